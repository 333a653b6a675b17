//! What the fuzz targets stand on.
//!
//! A target turns its input into a story (`arbitrary`), plays it on the real
//! code and on a plain model beside it, and asserts that both agree after every
//! step. AddressSanitizer watches the bytes: memory that the code under test is
//! given comes from the heap, so that the first byte beyond it is noticed.

pub mod heap;
pub mod setup;
pub mod values;
pub mod world;
