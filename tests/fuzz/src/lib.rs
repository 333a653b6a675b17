//! What the fuzz targets stand on.
//!
//! A target turns its input into a story (`arbitrary`, or the records of
//! [`script`]) and plays it on the real code. That of `swiotlb` is played on a plain model beside it, and both have
//! to agree after every step; a device's is judged by what no device may do
//! whatever its driver does ([`driver`]). AddressSanitizer watches the bytes:
//! memory that `swiotlb` is given comes from the heap, so that the first byte
//! beyond it is noticed.

pub mod blk;
pub mod console;
pub mod driver;
pub mod front_end;
pub mod heap;
pub mod host;
pub mod net;
pub mod queue;
pub mod script;
pub mod setup;
pub mod values;
pub mod vhost_user;
pub mod vsock;
pub mod world;
