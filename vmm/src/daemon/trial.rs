//! Devices on trial: whether they can be used is another process's word, such as a
//! vhost-user back end's, and this thread, which serves all guests, does not wait
//! for it.
//!
//! ```text
//!             on trial            Usable
//!  attached ────────────► Trial ─────────► Served: the toolstack is told (InitWait)
//!      │ not                │ Unusable
//!      └───► Served         └────────────► Unusable: refused with the reason, removed
//! ```
//!
//! The guest has the device from the beginning, and its driver's first word waits
//! as long as the trial does; the toolstack waits, too, and so starts no guest with a
//! device that is refused. A device bounds its trial, so that a back end which
//! hangs delays nobody else at all, and its own toolstack for a moment.

use devices::virtio::DeviceError;
use rustix::event::{PollFd, PollFlags, poll};
use xen::xenstore::Error as XenstoreError;

use super::Daemon;
use super::error::AttachError;
use super::served::{Phase, ServedDevice};
use crate::adapt::borrow;
use crate::discovery::{self, Life, Place};

impl Daemon {
    /// A device's trial has ended well.
    ///
    /// # Errors
    /// xenstore's.
    pub(super) fn usable(&mut self, place: &Place) -> Result<(), XenstoreError> {
        let Some(device) = self.on_trial(place) else {
            return Ok(());
        };
        device.phase = Phase::Served;
        let is_up = device.starts > 0;
        self.accept(place)?;
        match is_up {
            // the driver did not have to wait for the end
            true => self.tell_connected(place),
            false => Ok(()),
        }
    }

    /// It has not: the device is refused, and taken from its guest.
    ///
    /// # Errors
    /// xenstore's.
    pub(super) fn unusable(
        &mut self,
        place: &Place,
        why: DeviceError,
    ) -> Result<(), XenstoreError> {
        let Some(device) = self.on_trial(place) else {
            return Ok(());
        };
        device.phase = Phase::Unusable;
        let info = self
            .guests
            .get(&place.domid)
            .map(|guest| guest.info.clone());
        self.remove(place)?;
        match info {
            Some(info) => self.refuse(place, &info, &AttachError::Unusable(why)),
            None => Ok(()),
        }
    }

    /// A device that was refused is gone. It is not tried again on account of that,
    /// nor is any other: nothing has become free.
    ///
    /// # Errors
    /// xenstore's.
    pub(super) fn leave_unusable(&mut self, place: &Place) -> Result<(), XenstoreError> {
        if self.is_given(place) {
            return Ok(());
        }
        match discovery::read_life(&self.store, &self.root, place)? {
            Life::New | Life::Wanted => Ok(()),
            Life::Gone | Life::Closing | Life::Closed => self.look(place),
        }
    }

    /// Waits until no device is on trial, which the devices bound. Not for a daemon
    /// with more than one guest.
    pub(super) fn await_trials(&mut self) {
        let is_tried = |device: &ServedDevice| device.phase == Phase::Trial;
        while self
            .guests
            .values()
            .any(|guest| guest.devices.values().any(is_tried))
        {
            let wake = borrow(&self.wake);
            let mut events = [PollFd::from_borrowed_fd(wake, PollFlags::IN)];
            if let Err(error) = poll(&mut events, None)
                && error != rustix::io::Errno::INTR
            {
                tracing::error!(%error, "the guest's events cannot be waited for");
                return;
            }
            self.on_guests();
        }
    }

    fn on_trial(&mut self, place: &Place) -> Option<&mut ServedDevice> {
        let device = self.served_device(place);
        device.filter(|device| device.phase == Phase::Trial)
    }
}
