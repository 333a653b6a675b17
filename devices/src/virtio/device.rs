//! What a device is to its transport and to its workers.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use swiotlb::Dma;
use vmm_sys_util::eventfd::EventFd;

use super::interrupt::Notifier;
use super::queue::{ActiveQueue, Chain, QueueError};
use super::ring::RingServer;
use crate::registry::DeviceSpec;

/// A virtio device type. virtio 1.3 §5
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeviceType(pub u32);

impl DeviceType {
    /// What a slot without a device answers.
    pub const NONE: DeviceType = DeviceType(0);
    /// A network card. virtio 1.3 §5.1
    pub const NETWORK: DeviceType = DeviceType(1);
    /// A block device. virtio 1.3 §5.2
    pub const BLOCK: DeviceType = DeviceType(2);
    /// A console. virtio 1.3 §5.3
    pub const CONSOLE: DeviceType = DeviceType(3);
    /// A source of entropy. virtio 1.3 §5.4
    pub const ENTROPY: DeviceType = DeviceType(4);
    /// A socket device. virtio 1.3 §5.10
    pub const SOCKET: DeviceType = DeviceType(19);
}

/// Why a device could not start a queue: a host's failure, told to the guest
/// as DEVICE_NEEDS_RESET.
pub type DeviceError = Box<dyn std::error::Error + Send + Sync>;

/// Whether a device can be served, where that is another process's word.
#[derive(Debug)]
pub enum Trial {
    /// It has not been said yet.
    Pending,
    /// It can; or nobody has said so in time, and whoever does is waited for.
    Passed,
    /// It cannot.
    Failed(DeviceError),
}

/// Where users of the host find a device, or a part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPlace {
    /// Which part: a port's name, if it has one.
    pub name: Option<String>,
    /// A terminal, a socket, a file, or whatever else has a path.
    pub path: PathBuf,
    /// What this part has done so far, if it is one of several: as
    /// [`Device::statistics`] has it for all of them together.
    pub statistics: Vec<(&'static str, u64)>,
}

/// A virtio device. Owned by its transport and called on the thread that
/// answers register accesses; its queues are served by the handlers it makes,
/// each on a worker thread of its own, or, where it is a [`RingServer`], by
/// itself.
pub trait Device: Send {
    /// Its type.
    fn device_type(&self) -> DeviceType;

    /// The device's own feature bits; the transport adds its and the rings'.
    fn features(&self) -> u64;

    /// The largest size of each queue, powers of two.
    fn queue_sizes(&self) -> &[u16];

    /// Reads the configuration space; what lies past its end reads as zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes the configuration space. Returns false where nothing of it can be
    /// written; the access is then counted as malformed and ignored.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) -> bool {
        false
    }

    /// The driver is up: `queues` are those that it uses from the beginning, and
    /// are started one after the other now.
    fn activate(&mut self, _queues: &[u16]) {}

    /// Makes the handler of queue `index` for the negotiated `features`. The
    /// handler is dropped on its worker's thread once the queue was given back.
    ///
    /// # Errors
    /// A failure of the host.
    fn start_queue(
        &mut self,
        index: u16,
        features: u64,
    ) -> Result<Box<dyn QueueHandler>, DeviceError>;

    /// The device itself, if it serves its rings: it is given them, and
    /// [`Device::start_queue`] is not called. Always the same answer.
    fn ring_server(&self) -> Option<&dyn RingServer> {
        None
    }

    /// The device is put behind registers, once. `notifier` is for what it tells
    /// its driver outside of its queues' workers; `attention` is rung when
    /// [`Device::is_ready`], [`Device::is_settled`] or [`Device::trial`] has changed.
    fn attach(&mut self, _notifier: &Arc<Notifier>, _attention: EventFd) {}

    /// Whether the device can be served. Waits for it to be said for `patience` at
    /// most; with none it only looks. The device sets itself a bound besides, after
    /// which it has passed. Whoever was told the end does not ask again.
    fn trial(&self, _patience: Duration) -> Trial {
        Trial::Passed
    }

    /// Whether the device knows what it offers. Until it does, a driver's first
    /// word is not answered, for which the device sets itself a bound; then it
    /// stays so.
    fn is_ready(&self) -> bool {
        true
    }

    /// Whether what was written to the configuration space has become of it what
    /// will. Until then the write is not answered, for which the device sets
    /// itself a bound.
    fn is_settled(&self) -> bool {
        true
    }

    /// What the device stands on may have changed on the host: looks at it
    /// again. Returns whether the configuration space has changed, of which the
    /// transport then tells the driver.
    fn refresh(&mut self) -> bool {
        false
    }

    /// Its user has described the device anew: takes from `spec` what can change
    /// while it is served, and leaves the rest. Whoever does not know how has
    /// nothing of that kind.
    fn reconfigure(&mut self, _spec: &DeviceSpec) {}

    /// The driver has been up for a while, and what a device before this one
    /// knew of it is lost: its process has ended. Called before the first queue
    /// is started that goes on where it was.
    fn resume(&mut self) {}

    /// Memory has left the guest, and other memory may come in its place: whoever
    /// was given the guest's memory is soon to be given it anew. What the transport
    /// maps for a device's workers is not the device's affair.
    fn memory_changed(&mut self) {}

    /// Queue `index` is being asked back from its handler: whatever of the
    /// device's could keep the handler has to let go of it.
    fn stopping(&mut self, _index: u16) {}

    /// The device was reset: all its queues were given back.
    fn reset(&mut self) {}

    /// Where a user of the host finds the device, if it has such a place: a
    /// console's terminal.
    fn host_path(&self) -> Option<&Path> {
        None
    }

    /// All places of the device, if it has several or they have names.
    fn places(&self) -> Vec<HostPlace> {
        let place = |path: &Path| HostPlace {
            name: None,
            path: path.to_owned(),
            statistics: Vec::new(),
        };
        self.host_path().map(place).into_iter().collect()
    }

    /// What the device has done so far, by names of its own: what its requests
    /// were and how they ended. They outlive resets. Names are snake_case and
    /// stay what they are, for scripts read them.
    fn statistics(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}

/// Serves one queue, on the worker thread that owns the queue.
pub trait QueueHandler: Send {
    /// Serves chains that the guest made available. Each of them is pushed now
    /// or, by [`QueueHandler::advance`], later. The worker notifies the guest
    /// afterwards.
    ///
    /// # Errors
    /// [`QueueError`] breaks the device until it is reset: for what cannot be
    /// told in a request's own status.
    fn serve(&mut self, queue: &mut ActiveQueue, chains: Vec<Chain>) -> Result<(), QueueError>;

    /// How many more chains the handler takes now. With 0 the queue rests until
    /// the handler's event.
    fn room(&self) -> usize {
        64
    }

    /// Becomes readable when [`QueueHandler::advance`] has something to do.
    fn event(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// What comes next is seen in the ring or by [`QueueHandler::has_come`]: the
    /// worker may look for it for a while before it sleeps.
    fn is_idle(&self) -> bool {
        false
    }

    /// Whether something of the handler's own has come, which it finds when it
    /// is next given chains, even none; for handlers that can look without a
    /// system call.
    fn has_come(&self) -> bool {
        false
    }

    /// The worker is about to sleep: what comes from now on has to tell by the
    /// event. True if something has come meanwhile that may not.
    ///
    /// # Errors
    /// As [`QueueHandler::serve`].
    fn rest(&mut self) -> Result<bool, QueueError> {
        Ok(false)
    }

    /// The event has come.
    ///
    /// # Errors
    /// As [`QueueHandler::serve`].
    fn advance(&mut self, _queue: &mut ActiveQueue) -> Result<(), QueueError> {
        Ok(())
    }

    /// The queue is about to be given back: waits for, or cancels, everything
    /// in flight, and finishes it, so that nothing of the guest's memory is
    /// held any more. What was completed may be pushed or dropped.
    fn settle(&mut self, _queue: &mut ActiveQueue) {}
}

/// Opens data paths to one guest's memory, one for each queue; or tells how
/// another process is given it.
pub trait DmaProvider: Send + Sync {
    /// A data path.
    ///
    /// # Errors
    /// A failure of the host.
    fn open(&self) -> Result<Dma, DeviceError>;

    /// What sharing this memory with another process takes of that one. Does not
    /// wait.
    ///
    /// # Errors
    /// It cannot be shared; says why and what would help.
    fn sharing(&self) -> Result<Sharing, DeviceError> {
        Err(Box::new(NotShared))
    }

    /// How many pages the guest has now, where somebody counts them: who was given
    /// its memory lacks some if it is another number than before.
    fn pages(&self) -> Option<u64> {
        None
    }

    /// All of the guest's memory, for another process. May take a while, and may
    /// hold addresses that show memory only later, or none.
    ///
    /// # Errors
    /// As [`DmaProvider::sharing`], or a failure of the host.
    fn share(&self) -> Result<Vec<SharedRegion>, DeviceError> {
        Err(Box::new(NotShared))
    }
}

/// This embedder's memory is not for others.
#[derive(Debug, thiserror::Error)]
#[error("this guest's memory cannot be shared with another process")]
struct NotShared;

/// How another process comes to a guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// It maps a file.
    File,
    /// The file is Xen's privcmd: it has to ask for each frame of this domain.
    Foreign {
        /// The guest.
        domid: u16,
    },
}

/// Guest memory that is contiguous for the guest and for whoever maps it.
#[derive(Debug)]
pub struct SharedRegion {
    /// Guest-physical address.
    pub address: u64,
    /// Bytes.
    pub len: u64,
    /// What to map.
    pub file: OwnedFd,
    /// Where in the file it begins; 0 where frames are asked for.
    pub offset: u64,
    /// How.
    pub sharing: Sharing,
}
