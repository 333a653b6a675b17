//! The fake's own rules, one test each: what the real ones refuse, it must
//! refuse with the same error.

mod copies;
mod dm_op;
mod domains;
mod eventfds;
mod events;
mod foreign;
mod grants;
mod heap;
mod ioreq;
mod kicks;
mod ranges;
mod support;
mod vcpus;
