//! Wiring: what runs xen-dm, short of its command line.
//!
//! [`adapt`] joins `xen` to what `swiotlb` and `devices` ask for; [`guest`] is
//! one guest's life; [`daemon`] serves all guests, or the one that [`run`] is
//! about: what xenstore says ([`discovery`]) and what the configuration file
//! says ([`config`]) become immutable specs ([`spec`]), and what outlives the
//! process is in [`state`].

pub mod adapt;
pub mod check;
pub mod cli;
pub mod columns;
pub mod config;
pub mod daemon;
pub mod demo;
pub mod discovery;
pub mod guest;
pub mod logs;
pub mod run;
pub mod spec;
pub mod state;
pub mod status;
mod words;
