//! The other kind of memory, `memory = "foreign"`: the back end is given the
//! guest's own, and its rings as they are.
//!
//! ```text
//! guest's ring ◄──────────────────── serves it ───────────────────► back end
//! doorbell ── kick: the same eventfd, the kernel's where it takes kicks ──► │
//! interrupt ◄── call: the kernel's eventfd, or the session passes it on ── ─┘
//!                      Session ── messages, SET_MEM_TABLE: all of the guest's memory
//! ```
//!
//! Nothing of this process is on that way: no worker, no copy, no shadow ring.
//! Hence nothing of it is checked either. **A back end in this mode can do to its
//! guest whatever it likes**, and is as much part of the guest as its kernel; of
//! other guests it has nothing: what it maps frames by is restricted to this
//! one (by it, it may do all that a device model does to this guest). Doorbell and
//! call are files that it has, too, and can fill and make wait; they are used so
//! that nobody waits then. One that fills the doorbell in just the moment between a
//! look and a kick would stop the thread that answers this guest's register
//! accesses, and no other guest's.
//!
//! # Memory
//!
//! Where the guest's memory is a file the back end maps that. On Xen there is no
//! file: the back end is given privcmd and asks Xen for each frame, which it has
//! to be built for (VHOST_USER_PROTOCOL_F_XEN_MMAP, [`table`]). Rings and buffers
//! of a driver that lends its pages (ACCESS_PLATFORM, grants) are no such memory,
//! and the device is refused. The protocol has a flag for grants; it is not used,
//! for the back ends that there are map and unmap a grant for every access, and
//! expect the flag that goes with it in another bit than the specification has
//! it: the pool is quicker and shows less.
//!
//! It is told where the guest has, or had, RAM: of a frame that is not there the
//! back end has to see itself. rust-vmm's maps all that there is when it is told,
//! and ends (SIGBUS) when it touches a page that was not there then. So a guest can
//! end its back end: a process for each guest.
//!
//! When memory leaves the guest Xen says so, and when some has come its number of
//! pages, which is looked at ten times a second, is another one: then the rings are
//! stopped, and go on when the back end was told anew ([`watch`]). That is soon, and
//! not at once:
//! - What has left stays mapped there until then. A guest that takes the same
//!   frames back meanwhile and has them written to loses that.
//! - A request into memory that has only just come is beyond the back end. One that
//!   ends over it and is started anew does it then, and the guest waits so long; one
//!   that answers with an error hands that on. So a guest that balloons under load
//!   wants a back end that is started anew whenever it ends. A ring in such memory
//!   breaks the device until it is reset.
//! - Where Xen may not be asked for the number (privcmd that is restricted as a
//!   whole), what has come is told with what leaves next.
//!
//! # Reset, and a back end that goes away
//!
//! A ring that its driver takes back is stopped (GET_VRING_BASE) before the
//! driver is answered, so a reset waits for the back end, up to `answer-timeout`
//! for each word. One that does not answer is given up, and so is one that has
//! died; neither can be kept from writing while it lives.
//!
//! The next one begins where the used ring ends ([`restart`]). Which requests
//! the last one had is known where it tracks them (INFLIGHT_SHMFD): the next one
//! gets the same record, and each is done once. Where it does not, the ring itself
//! shows it nearly always; if it does not, the device needs a reset. Where its type
//! demands it, the driver is told of the loss in one of these requests ([`loss`]).

mod connection;
mod inflight;
mod loss;
mod restart;
mod rings;
mod table;
mod unfinished;
mod watch;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use swiotlb::range::GRANT_BIT;
use thiserror::Error;

use super::device::VhostUserDevice;
use super::error::SessionError;
use super::features;
use crate::virtio::bell::Bell;
use crate::virtio::{DeviceError, DmaProvider, Ring, RingServer};

pub(super) use connection::{Direct, can_map};
pub(super) use inflight::Record;
pub(super) use loss::tell_loss;
pub(super) use rings::{GuestMemory, GuestRings};
#[cfg(test)]
pub(super) use watch::LOOK;

/// Why a device cannot be served so. Whoever logs it names guest and device.
#[derive(Debug, Error)]
pub enum ForeignError {
    /// The guest's memory is not to be had.
    #[error("the back end at {socket} is to be given its guest's memory (memory = \"foreign\")")]
    Memory {
        /// Its socket.
        socket: String,
        /// Why it cannot.
        #[source]
        source: DeviceError,
    },
    /// The back end cannot take it.
    #[error("the back end at {socket} is to be given its guest's memory (memory = \"foreign\")")]
    BackEnd {
        /// Its socket.
        socket: String,
        /// Why it cannot.
        #[source]
        source: SessionError,
    },
    /// A ring that its driver lends.
    #[error(
        "{part} at {address:#x} is granted, and memory = \"foreign\" has plain addresses: \
         grant_usage=0 for this device, or memory = \"bounce\""
    )]
    Granted {
        /// Which part of the ring.
        part: &'static str,
        /// Its address.
        address: u64,
    },
}

impl RingServer for VhostUserDevice {
    fn ring_features(&self) -> u64 {
        let shared = self.shared();
        let state = shared.state();
        let known = state.known.as_ref();
        known.map_or(0, |known| {
            known.features & features::RING & !shared.spec.refused
        })
    }

    fn attach_memory(&self, memory: &Arc<dyn DmaProvider>) -> Result<(), DeviceError> {
        let shared = self.shared();
        let socket = || shared.spec.socket().display().to_string();
        let sharing = memory.sharing().map_err(|source| ForeignError::Memory {
            socket: socket(),
            source,
        })?;
        let memory = GuestMemory(Arc::clone(memory), sharing);
        let state = shared.state();
        let known = state.known.as_ref();
        if known.is_some_and(|known| !can_map(Some(&memory), known.protocol)) {
            return Err(Box::new(ForeignError::BackEnd {
                socket: socket(),
                source: SessionError::NoXenMmap,
            }));
        }
        // it is put behind registers once; whoever learns next what the back end can
        // do looks at it
        let _ = shared.guest_memory.set(memory);
        drop(state);
        shared.bell.ring();
        Ok(())
    }

    fn start(&self, ring: Ring) -> Result<(), DeviceError> {
        let layout = ring.layout();
        let parts = [
            ("descriptor table", layout.desc),
            ("available ring", layout.avail),
            ("used ring", layout.used),
        ];
        let granted = parts.into_iter().find(|(_, at)| at & GRANT_BIT != 0);
        if let Some((part, address)) = granted {
            return Err(Box::new(ForeignError::Granted { part, address }));
        }
        let mut state = self.shared().state();
        state.expected.remove(&ring.index());
        state.guest_rings.add(ring);
        drop(state);
        self.shared().bell.ring();
        Ok(())
    }
}

/// How a call reaches the driver.
#[derive(Debug)]
enum Call {
    /// By the kernel, past this process.
    Past(OwnedFd),
    /// By the session, which hears it.
    Here(Bell),
}

impl AsFd for Call {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Call::Past(event) => event.as_fd(),
            Call::Here(bell) => bell.as_fd(),
        }
    }
}
