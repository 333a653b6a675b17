//! A device's registers, whose kicks and interrupts are eventfds with nobody in
//! between: as the kernel passes them on Xen (ioeventfd, irqfd), and not the
//! fake's thread.

use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use devices::virtio::descriptor::borrow;
use devices::virtio::features::{
    STATUS_ACKNOWLEDGE, STATUS_DRIVER, STATUS_DRIVER_OK, STATUS_FEATURES_OK,
};
use devices::virtio::mmio::Register;
use devices::virtio::{Answer, Device, Interrupt, Transport, TransportOptions};
use tests::Stand;
use tests::raw::RawQueue;
use vmm::adapt::DeviceMemory;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use xen::Host;
use xen::memory::ForeignRam;

/// An interrupt line that is an eventfd.
struct Line(EventFd);

impl Interrupt for Line {
    fn raise(&self) -> io::Result<()> {
        self.0.write(1)
    }

    fn event(&self) -> Option<BorrowedFd<'_>> {
        Some(borrow(&self.0))
    }
}

/// See the module.
pub struct Registers {
    transport: Transport,
    line: Arc<Line>,
    waiting: Epoll,
    _returned: EventFd,
}

impl Registers {
    /// Puts `device` behind registers, for the guest of `stand`.
    ///
    /// # Errors
    /// No event files, or a memory that the device cannot use.
    pub fn new(device: Box<dyn Device>, stand: &Stand) -> anyhow::Result<Self> {
        let privcmd = Host::Fake(stand.machine.clone()).open_privcmd()?;
        let ram = Arc::new(ForeignRam::new(&privcmd, stand.domain.id())?);
        let line = Arc::new(Line(EventFd::new(EFD_NONBLOCK)?));
        let waiting = Epoll::new()?;
        let event = EpollEvent::new(EventSet::IN, 0);
        waiting.ctl(ControlOperation::Add, line.0.as_raw_fd(), event)?;
        let returned = EventFd::new(EFD_NONBLOCK)?;
        let options = TransportOptions {
            label: "measured".into(),
            access_platform: false,
        };
        let memory = Arc::new(DeviceMemory::plain(ram));
        let transport = Transport::new(
            device,
            options,
            Arc::clone(&line) as Arc<dyn Interrupt>,
            memory,
            returned.try_clone()?,
        )?;
        Ok(Registers {
            transport,
            line,
            waiting,
            _returned: returned,
        })
    }

    /// Does what a driver does until it is up, with all features and one queue.
    ///
    /// # Errors
    /// A device that does not take it.
    pub fn start(&mut self, queue: &RawQueue) -> anyhow::Result<()> {
        let features = self.transport.offered();
        let mut status = STATUS_ACKNOWLEDGE | STATUS_DRIVER;
        self.set(Register::Status, status.into())?;
        for (sel, half) in [(0, features & 0xffff_ffff), (1, features >> 32)] {
            self.set(Register::DriverFeaturesSel, sel)?;
            self.set(Register::DriverFeatures, half)?;
        }
        status |= STATUS_FEATURES_OK;
        self.set(Register::Status, status.into())?;
        let layout = queue.layout;
        self.set(Register::QueueSel, queue.index.into())?;
        self.set(Register::QueueSize, layout.size.into())?;
        for (register, address) in [
            (Register::QueueDescLow, layout.desc),
            (Register::QueueDescHigh, layout.desc >> 32),
            (Register::QueueDriverLow, layout.avail),
            (Register::QueueDriverHigh, layout.avail >> 32),
            (Register::QueueDeviceLow, layout.used),
            (Register::QueueDeviceHigh, layout.used >> 32),
        ] {
            self.set(register, address & 0xffff_ffff)?;
        }
        self.set(Register::QueueReady, 1)?;
        status |= STATUS_DRIVER_OK;
        self.set(Register::Status, status.into())?;
        let seen = self.transport.read(Register::Status as u64, 4);
        ensure!(
            seen == u64::from(status),
            "the device's status is {seen:#x}"
        );
        Ok(())
    }

    fn set(&mut self, register: Register, value: u64) -> anyhow::Result<()> {
        match self.transport.write(register as u64, 4, value) {
            Answer::Now => Ok(()),
            Answer::Later => bail!("{register:?} is not answered at once"),
        }
    }

    /// Kicks a queue.
    ///
    /// # Errors
    /// No such queue.
    pub fn kick(&self, queue: &RawQueue) -> anyhow::Result<()> {
        let doorbell = self.transport.doorbell(queue.index);
        Ok(doorbell.context("no such queue")?.write(1)?)
    }

    /// Waits for an interrupt, for `patience` at most.
    ///
    /// # Errors
    /// The event file's.
    pub fn wait(&self, patience: Duration) -> anyhow::Result<()> {
        let mut events = [EpollEvent::default()];
        let patience = i32::try_from(patience.as_millis())?;
        match self.waiting.wait(patience, &mut events) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            other => {
                other?;
            }
        }
        // none has come if it is empty
        let _ = self.line.0.read();
        Ok(())
    }
}
