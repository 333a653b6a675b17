//! Hypercalls and device-model operations: `/dev/xen/privcmd`.

mod eventfd;

pub use eventfd::IoeventfdRequest;
