//! The TLB's conformance: every vector of its specification is a test that
//! carries the vector's number, every invariant one that carries its own.
//! `coverage.rs` holds the lists and fails if one is missing.

// helpers stand outside of test functions
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

mod accounting;
mod address_limits;
mod allocator;
mod coverage;
mod decision;
mod devices;
mod foreign;
mod growth;
mod leaks;
mod map_unmap;
mod model;
mod options;
mod originals;
mod restricted;
mod stand;
