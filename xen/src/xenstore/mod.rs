//! Xenstore: the tree of small texts through which toolstack, guests and
//! device models tell each other what there is.
//!
//! [`Xenstore`] speaks the wire protocol (`docs/misc/xenstore.txt`,
//! `xen/include/public/io/xs_wire.h`) over xenstored's socket or the kernel's
//! device. The control-plane thread owns the watches and polls
//! [`Xenstore::watch_fd`]; any thread may make requests. One thread of this
//! module reads the connection.
//!
//! ```
//! use xen::DomId;
//! use xen::fake::xenstored::Store;
//! use xen::xenstore::{Tree, Xenstore};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let daemon = Store::new()?;
//! let store = Xenstore::from_stream(daemon.connect(DomId(0))?)?;
//! let disk = "/local/domain/0/backend/virtio_disk/1/51712";
//! store.transaction(|tx| {
//!     let disk = tx.at(disk);
//!     disk.write("irq", 33)?;
//!     disk.write("state", 1)
//! })?;
//! assert_eq!(store.at(disk).read::<u32>("irq")?, 33);
//! # Ok(())
//! # }
//! ```

pub mod path;
pub mod wire;

mod client;
mod connection;
mod error;
mod events;
mod node;
mod permissions;
mod reader;
mod state;
mod transaction;
mod transport;
mod tree;
mod watch;

#[cfg(test)]
mod tests;

pub use client::{Backoff, Options, Xenstore};
pub use error::{Errno, Error};
pub use events::{Event, WatchEvent};
pub use node::{Node, NodeValue};
pub use path::PathError;
pub use permissions::{Access, Permission, PermissionError};
pub use state::XenbusState;
pub use transaction::Transaction;
pub use transport::Way;
pub use tree::Tree;
pub use watch::{Watch, WatchToken};
