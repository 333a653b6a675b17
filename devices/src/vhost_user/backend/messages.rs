//! What each message of a front end does to the device.
//!
//! Called by `vhost`'s `BackendReqHandler` on the thread of the socket, which
//! is the only one that uses it; the lock around it is the crate's.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVirtioFeatures,
    VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::error::Refusal;
use super::fds;
use super::inflight::InflightRegion;
use super::log::DirtyLog;
use super::memory::{MAX_SLOTS, Memory};
use super::ring::{Ring, RingAddresses, RingContext};
use crate::virtio::queue::inflight::Inflight;
use crate::virtio::worker::Returned;
use crate::virtio::{Device, features};

const PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
const LOG_ALL: u64 = VhostUserVirtioFeatures::LOG_ALL.bits();

/// After this long a worker may be waiting for its front end.
const SLOW: Duration = Duration::from_secs(1);

/// A device and what its front end has said; outlives connections.
pub struct Backend {
    device: Box<dyn Device>,
    label: String,
    memory: Memory,
    rings: Vec<Ring>,
    /// Acknowledged features, virtio's and vhost's.
    features: u64,
    region: Option<InflightRegion>,
    log: Option<Arc<DirtyLog>>,
    /// The device knows that its driver was up before it.
    resumed: bool,
    sender: Sender<Returned>,
    receiver: Receiver<Returned>,
    returned: EventFd,
    /// Why the last message was refused.
    refusal: Option<Refusal>,
}

impl Backend {
    /// Puts `device` behind messages; `label` names its threads, short.
    ///
    /// # Errors
    /// No event file, or a device that serves its rings itself, which this
    /// cannot pass on to it.
    pub fn new(device: Box<dyn Device>, label: &str) -> io::Result<Self> {
        if device.ring_server().is_some() {
            let why = "a device with memory = \"foreign\" is for a guest's registers alone";
            return Err(io::Error::new(io::ErrorKind::Unsupported, why));
        }
        let (sender, receiver) = channel();
        let rings = (0..)
            .zip(device.queue_sizes())
            .map(|(index, &max)| Ring::new(index, max))
            .collect();
        Ok(Backend {
            device,
            label: label.to_owned(),
            memory: Memory::new(),
            rings,
            features: 0,
            region: None,
            log: None,
            resumed: false,
            sender,
            receiver,
            returned: EventFd::new(EFD_NONBLOCK)?,
            refusal: None,
        })
    }

    /// The front end is gone: stops everything and forgets what it said.
    pub fn disconnect(&mut self) {
        self.stop(|_| true);
        self.device.reset();
        self.resumed = false;
        for ring in &mut self.rings {
            ring.forget();
        }
        self.memory.clear();
        self.features = 0;
        self.region = None;
        self.log = None;
    }

    /// Chains that each ring has given back so far, to all its front ends.
    pub fn served(&self) -> Vec<u64> {
        self.rings.iter().map(Ring::served).collect()
    }

    /// Why the last message was refused, if it was.
    pub fn take_refusal(&mut self) -> Option<Refusal> {
        self.refusal.take()
    }

    /// Whether rings are enabled by messages: PROTOCOL_FEATURES is acknowledged.
    pub(super) fn has_protocol_features(&self) -> bool {
        self.features & PROTOCOL_FEATURES != 0
    }

    fn offered(&self) -> u64 {
        self.device.features()
            | features::VERSION_1
            | features::RING_INDIRECT_DESC
            | features::RING_EVENT_IDX
            | PROTOCOL_FEATURES
            | LOG_ALL
    }

    fn ring(&mut self, index: u32) -> std::result::Result<&mut Ring, Refusal> {
        let rings = self.rings.len();
        usize::try_from(index)
            .ok()
            .and_then(|index| self.rings.get_mut(index))
            .ok_or(Refusal::NoRing { index, rings })
    }

    /// Stops the rings that `which` says, all at once, and tells which ran.
    fn stop(&mut self, which: impl Fn(&Ring) -> bool) -> Vec<u16> {
        let asked: Vec<u16> = self
            .rings
            .iter()
            .filter(|ring| which(ring) && ring.ask_to_stop())
            .map(Ring::index)
            .collect();
        let mut waited_for = asked.len();
        while waited_for > 0 {
            // we hold a sender: it does not end
            let Ok(given_back) = self.receiver.recv_timeout(SLOW) else {
                let slow = asked.iter().filter_map(|&i| self.rings.get(usize::from(i)));
                slow.for_each(|ring| ring.line().unblock());
                continue;
            };
            if asked.contains(&given_back.index) {
                waited_for -= 1;
            }
            if let Some(ring) = self.rings.get_mut(usize::from(given_back.index)) {
                ring.given_back(given_back.position);
            }
        }
        // empty is as good as read
        let _ = self.returned.read();
        asked
    }

    /// Starts the rings that `which` says, as far as they can be.
    fn start(&mut self, which: impl Fn(&Ring) -> bool) -> std::result::Result<(), Refusal> {
        self.memory.set_log(match self.features & LOG_ALL {
            0 => None,
            _ => self.log.clone(),
        });
        let context = RingContext {
            label: &self.label,
            features: self.features & !(PROTOCOL_FEATURES | LOG_ALL),
            memory: &self.memory,
            region: self.region.as_ref(),
            sender: &self.sender,
            returned: &self.returned,
        };
        for ring in self.rings.iter_mut().filter(|ring| which(ring)) {
            if ring.goes_on() && !std::mem::replace(&mut self.resumed, true) {
                self.device.resume();
            }
            ring.start(&mut *self.device, &context)?;
        }
        Ok(())
    }

    /// Changes something that running rings have to know of: each is stopped
    /// with nothing in flight and goes on where it was.
    fn change(&mut self, which: impl Fn(&Ring) -> bool, change: impl FnOnce(&mut Self)) -> Answer {
        let stopped = self.stop(which);
        change(self);
        self.start(|ring| stopped.contains(&ring.index()))
    }

    /// Keeps why, and tells `vhost` to end the connection.
    fn told<T>(&mut self, result: std::result::Result<T, Refusal>) -> Result<T> {
        result.map_err(|refusal| {
            self.refusal = Some(refusal);
            Error::InvalidParam
        })
    }

    fn not_offered<T>(&mut self, what: &'static str) -> Result<T> {
        self.told(Err(Refusal::NotOffered(what)))
    }

    fn event<E>(
        &mut self,
        index: u8,
        role: &'static str,
        file: Option<File>,
        open: fn(File) -> io::Result<Option<E>>,
    ) -> std::result::Result<Option<E>, Refusal> {
        let index = u16::from(index);
        self.ring(u32::from(index))?;
        let Some(file) = file else { return Ok(None) };
        let event = open(file).map_err(|source| Refusal::Host("eventfd", source))?;
        event.map(Some).ok_or(Refusal::NoEvent { index, role })
    }

    fn set_kick(&mut self, index: u8, file: Option<File>) -> Answer {
        let number = u16::from(index);
        let kick = self.event(index, "kick", file, fds::kick)?;
        let kick = kick.ok_or(Refusal::NoKick { index: number })?;
        self.stop(|ring| ring.index() == number);
        let without_enable = !self.has_protocol_features();
        let ring = self.ring(u32::from(number))?;
        ring.set_kick(Some(kick));
        if without_enable {
            // nobody will enable it
            ring.set_enabled(true);
        }
        self.start(|ring| ring.index() == number)
    }

    fn set_enable(&mut self, index: u32, enable: bool) -> Answer {
        self.ring(index)?;
        let this = |ring: &Ring| u32::from(ring.index()) == index;
        if !enable {
            self.stop(this);
        }
        self.ring(index)?.set_enabled(enable);
        self.start(this)
    }
}

type Answer = std::result::Result<(), Refusal>;

impl VhostUserBackendReqHandlerMut for Backend {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.reset_device()
    }

    fn reset_device(&mut self) -> Result<()> {
        self.stop(|_| true);
        self.device.reset();
        self.resumed = false;
        for ring in &mut self.rings {
            ring.forget();
            // its driver has forgotten them
            let part = self
                .region
                .as_ref()
                .and_then(|all| all.part(ring.index(), 0));
            part.iter().for_each(Inflight::forget);
        }
        tracing::debug!("device reset");
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.offered())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        let offered = self.offered();
        if features & !offered != 0 {
            return self.told(Err(Refusal::Features { features, offered }));
        }
        if features == self.features {
            return Ok(());
        }
        let answer = self.change(|_| true, |this| this.features = features);
        self.told(answer)
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<u64>>> {
        let answer = self.memory.set(regions, files);
        self.told(answer.map(|()| None))
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let answer = self.ring(index).and_then(|ring| ring.set_size(num));
        self.told(answer)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        desc: u64,
        used: u64,
        avail: u64,
        _log: u64,
    ) -> Result<()> {
        let addresses = RingAddresses { desc, avail, used };
        let answer = self.ring(index).map(|_| ()).and_then(|()| {
            self.change(
                |ring| u32::from(ring.index()) == index,
                |this| {
                    if let Ok(ring) = this.ring(index) {
                        ring.set_addresses(addresses);
                    }
                },
            )
        });
        self.told(answer)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let answer = self.ring(index).and_then(|ring| ring.set_base(base));
        self.told(answer)
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        self.stop(|ring| u32::from(ring.index()) == index);
        let answer = self.ring(index).map(|ring| {
            // it starts again with the next kick's file
            ring.set_kick(None);
            VhostUserVringState::new(index, u32::from(ring.base()))
        });
        self.told(answer)
    }

    fn set_vring_kick(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let answer = self.set_kick(index, file);
        self.told(answer)
    }

    fn set_vring_call(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let answer = self.event(index, "call", file, fds::event);
        let event = self.told(answer)?;
        let answer = self
            .ring(u32::from(index))
            .map(|r| r.line().set_call(event));
        self.told(answer)
    }

    fn set_vring_err(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let answer = self.event(index, "error", file, fds::event);
        let event = self.told(answer)?;
        let answer = self
            .ring(u32::from(index))
            .map(|r| r.line().set_error(event));
        self.told(answer)
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::INFLIGHT_SHMFD
            | VhostUserProtocolFeatures::RESET_DEVICE
            | VhostUserProtocolFeatures::LOG_SHMFD)
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        let offered = self.get_protocol_features()?.bits();
        match features & !offered {
            0 => Ok(()),
            _ => self.told(Err(Refusal::Features { features, offered })),
        }
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.rings.len() as u64)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        let answer = self.set_enable(index, enable);
        self.told(answer)
    }

    fn get_config(
        &mut self,
        offset: u32,
        size: u32,
        _flags: VhostUserConfigFlags,
    ) -> Result<Vec<u8>> {
        // at most a message: checked by `vhost`
        let mut config = vec![0; usize::try_from(size).unwrap_or(0)];
        self.device.read_config(u64::from(offset), &mut config);
        Ok(config)
    }

    fn set_config(&mut self, offset: u32, data: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        if self.device.write_config(u64::from(offset), data) {
            return Ok(());
        }
        // as with registers: it is told, and nothing else happens
        let bytes = data.len();
        tracing::debug!(offset, bytes, "write to the configuration space ignored");
        Err(Error::ReqHandlerError(
            io::ErrorKind::ReadOnlyFilesystem.into(),
        ))
    }

    fn set_gpu_socket(&mut self, _gpu: GpuBackend) -> Result<()> {
        self.not_offered("a GPU socket")
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        self.not_offered("sharing objects")
    }

    fn get_inflight_fd(&mut self, wanted: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        let created = InflightRegion::create(wanted.num_queues, wanted.queue_size);
        let (region, told, file) = self.told(created)?;
        self.region = Some(region);
        Ok((told, file))
    }

    fn set_inflight_fd(&mut self, told: &VhostUserInflight, file: File) -> Result<()> {
        let region = InflightRegion::map(told, file);
        self.region = Some(self.told(region)?);
        Ok(())
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MAX_SLOTS)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<u64>> {
        let answer = self.memory.add(region, file);
        self.told(answer.map(|()| None))
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let answer = self.memory.remove(region);
        self.told(answer)
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _file: File,
    ) -> Result<Option<File>> {
        self.not_offered("moving the device's state")
    }

    fn check_device_state(&mut self) -> Result<()> {
        self.not_offered("moving the device's state")
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        self.not_offered("shared memory of the device")
    }

    fn set_log_base(&mut self, log: &VhostUserLog, file: File) -> Result<()> {
        let mapped = DirtyLog::map(file, log.mmap_offset, log.mmap_size);
        let mapped = self.told(mapped)?;
        let answer = self.change(|_| true, |this| this.log = Some(Arc::new(mapped)));
        self.told(answer)
    }
}
