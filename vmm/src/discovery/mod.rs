//! What xenstore says about the devices that this process is to serve.
//!
//! Paths, the typed reading of a device's nodes, and what is written back:
//! states and errors. The control thread calls it; nothing here keeps state.
//! libxl writes each device in one transaction and each is read in one, so a
//! device is seen whole or not at all.

mod backend;
mod disk;
mod domain;
mod place;
#[cfg(test)]
mod tests;

pub use backend::{
    Backend, Life, Seen, clear_error, list, read_backend, read_life, report_error, write_state,
};
pub use disk::DiskNode;
pub use domain::{DomainInfo, is_alive, own_domain, read_domain};
pub use place::{Place, Root, Touched};

use thiserror::Error;
use xen::xenstore::{Errno, Error as XenstoreError};

/// The kinds of back end that are served: directories under `backend`.
pub const KINDS: &[&str] = &[disk::KIND];

/// Why a device's nodes make no device. Each names the node's key.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum NodeError {
    /// A node is missing or holds what it cannot.
    #[error(transparent)]
    Node(XenstoreError),
    /// A node holds what this program does not serve.
    #[error("xenstore node {path} holds {value:?}, expected {expected}")]
    Unserved {
        /// The node.
        path: String,
        /// Its value.
        value: String,
        /// What is served.
        expected: String,
    },
}

/// Whether an error says something about nodes, in contrast to the
/// connection or the moment.
fn is_about_nodes(error: &XenstoreError) -> bool {
    match error {
        XenstoreError::Missing { .. } | XenstoreError::Value { .. } | XenstoreError::Path(_) => {
            true
        }
        XenstoreError::Refused { errno, .. } => {
            matches!(errno, Errno::NotFound | Errno::Access | Errno::NotPermitted)
        }
        _ => false,
    }
}
