//! What xenstore says about the devices that this process is to serve.
//!
//! Paths, the typed reading of a device's nodes, and what is written back:
//! states and errors. The control thread calls it; nothing here keeps state.
//! libxl writes each device in one transaction and each is read in one, so a
//! device is seen whole or not at all.

mod backend;
mod disk;
mod domain;
mod features;
mod model;
mod node;
mod place;
#[cfg(test)]
mod tests;
mod virtio;

pub use backend::{
    Backend, Life, Seen, clear_error, list, read_backend, read_life, report_error, write_state,
};
pub use disk::DiskNode;
pub use domain::{DomainInfo, is_alive, own_domain, read_domain};
pub use features::{guest_word_node, read_word, toolstack_word_node};
pub use model::{clear_running, write_running};
pub use node::{Announced, DeviceNode};
pub use place::{Place, Root, Touched};
pub use virtio::VirtioType;

use thiserror::Error;
use xen::xenstore::{Errno, Error as XenstoreError, Node};

/// A kind of back end: a directory under `backend`.
pub struct Kind {
    /// The directory's name.
    pub name: &'static str,
    /// Reads what only devices of the kind have.
    read: fn(&Node<'_>) -> Result<Announced, NodeError>,
}

/// The kinds of back end that are served.
pub const KINDS: &[Kind] = &[
    Kind {
        name: disk::KIND,
        read: disk::read_disk,
    },
    Kind {
        name: virtio::KIND,
        read: virtio::read_virtio,
    },
];

/// Why a device's nodes make no device. Each names the node's key.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum NodeError {
    /// A node is missing or holds what it cannot.
    #[error(transparent)]
    Node(#[from] XenstoreError),
    /// There is no such kind of back end.
    #[error("back ends of kind {0:?} are not served")]
    Kind(String),
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

/// Whether this domain may not ask that: it is not dom0.
pub(crate) fn is_refused(error: &XenstoreError) -> bool {
    error.errno() == Some(&Errno::Access)
}

/// Whether an error says something about nodes, in contrast to the
/// connection or the moment.
pub(crate) fn is_about_nodes(error: &XenstoreError) -> bool {
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
