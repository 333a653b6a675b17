//! Grants of another domain: `/dev/xen/gntdev`.

mod segment;
mod status;

pub use segment::{CopyDirection, CopySegment};
pub use status::GrantStatus;
