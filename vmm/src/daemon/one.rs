//! The daemon with one guest: it begins with it, says so, and ends with it.

use xen::DomId;
use xen::dm_op::{self, ServerId};
use xen::xenstore::Error as XenstoreError;

use super::error::{AttachError, StartError};
use super::{Daemon, RETRY};
use crate::discovery::{self, DomainInfo, Place};
use crate::logs::report;

/// The only guest.
#[derive(Debug)]
pub(super) struct One {
    pub domid: DomId,
    /// xenstored has known it: then it also knows when it is over.
    introduced: bool,
}

impl One {
    pub(super) fn new(domid: DomId) -> Self {
        One {
            domid,
            introduced: false,
        }
    }

    /// Whether xenstored has known it.
    pub(super) fn is_introduced(&self) -> bool {
        self.introduced
    }
}

impl Daemon {
    /// Whether a guest is there and not dying.
    ///
    /// Guests that Xen has made at its own start need not be known to
    /// xenstored. Of devices that no toolstack announces, Xen's word will do,
    /// and so it will of guests that xenstored has lost.
    ///
    /// # Errors
    /// xenstore's.
    pub(super) fn lives(&mut self, domid: DomId) -> Result<bool, XenstoreError> {
        let known = discovery::is_alive(&self.store, &self.root, domid)?;
        let Some(one) = self.one.as_mut().filter(|one| one.domid == domid) else {
            return Ok(known || self.is_forgotten(domid)?);
        };
        one.introduced |= known;
        let only_xen_tells = !one.introduced && !self.served.given.is_empty();
        Ok(known || (only_xen_tells && self.is_in_xen(domid)) || self.is_forgotten(domid)?)
    }

    /// Whether Xen has the domain. One that is over stays there as long as
    /// anyone has its memory mapped, and that may be this process; but its
    /// ioreq servers go at once (`ioreq_server_destroy_all`,
    /// `xen/common/ioreq.c`).
    pub(super) fn is_in_xen(&self, domid: DomId) -> bool {
        let privcmd = match self.host.open_privcmd() {
            Ok(privcmd) => privcmd,
            Err(error) => {
                tracing::warn!("Xen cannot be asked for domain {domid}: {}", report(&error));
                return true;
            }
        };
        let answer = match self.guests.get(&domid) {
            Some(served) => {
                let server = ServerId(served.guest.ioreq_server());
                privcmd.ioreq_server_info(domid, server).map(drop)
            }
            None => privcmd.nr_vcpus(domid).map(drop),
        };
        use dm_op::Error::{NoDomain, NotFound};
        !matches!(answer, Err(NoDomain { .. } | NotFound { .. }))
    }

    /// Whether nothing but looking tells that a guest has ended: the only one,
    /// or one that xenstored has lost.
    pub(super) fn must_poll(&self) -> bool {
        let given = !self.served.given.is_empty();
        let unknown = given && self.one.as_ref().is_some_and(|one| !one.introduced);
        unknown || self.guests.values().any(|served| served.forgotten)
    }

    /// Serves the only guest, if there is but one: claims its windows, and
    /// looks at each device. What xenstore has may be wrong and be corrected
    /// later; what was given has to be right.
    ///
    /// # Errors
    /// [`StartError`]. The guest is not served then.
    pub(super) fn begin(&mut self) -> Result<(), StartError> {
        let Some(domid) = self.one.as_ref().map(|one| one.domid) else {
            return Ok(());
        };
        let begun = self.begin_one(domid);
        if begun.is_err() {
            self.give_up(domid);
        }
        begun
    }

    fn begin_one(&mut self, domid: DomId) -> Result<(), StartError> {
        if !self.lives(domid).map_err(StartError::Xenstore)? {
            return Err(StartError::NoGuest(domid));
        }
        let info = DomainInfo::read(&self.store, domid).map_err(StartError::Xenstore)?;
        self.serve_guest(domid, &info)
            .map(drop)
            .map_err(|error| match error {
                AttachError::State(error) => StartError::State(error),
                error => StartError::Guest {
                    domid,
                    source: Box::new(error),
                },
            })?;
        let places = self.served.places(&self.store, &self.root);
        let places = places.map_err(StartError::Xenstore)?;
        for place in &places {
            self.look(place).map_err(StartError::Xenstore)?;
        }
        self.await_trials();
        for place in &places {
            self.check_given(place)?;
        }
        match discovery::write_running(&self.store, &self.root, domid) {
            // a domain need not own all of its own directory
            Err(error) if discovery::is_refused(&error) => tracing::info!(
                "no toolstack is told that domain {domid} is served: {}",
                report(&error)
            ),
            other => other.map_err(StartError::Xenstore)?,
        }
        if self.must_poll() {
            self.look_again(RETRY);
        }
        Ok(())
    }

    fn check_given(&self, place: &Place) -> Result<(), StartError> {
        match self.refused.get(place) {
            Some(reason) if self.served.given.contains_key(place) => Err(StartError::Device {
                domid: place.domid,
                device: place.key.to_string(),
                reason: reason.clone(),
            }),
            _ => Ok(()),
        }
    }

    fn give_up(&mut self, domid: DomId) {
        let Some(served) = self.guests.remove(&domid) else {
            return;
        };
        if let Err(error) = served.guest.stop() {
            tracing::error!(%domid, "{}", report(&error));
        }
        served.record.remove();
    }

    /// Leaves when the only guest is over.
    ///
    /// # Errors
    /// xenstore's.
    pub(super) fn leave_with_guest(&mut self) -> Result<(), XenstoreError> {
        let Some(domid) = self.one.as_ref().map(|one| one.domid) else {
            return Ok(());
        };
        if !self.leaving && !self.lives(domid)? {
            tracing::info!(%domid, "the guest is over");
            self.leaving = true;
        }
        Ok(())
    }
}

/// Whoever waits for a device model must not find one that has left.
impl Drop for Daemon {
    fn drop(&mut self) {
        let Some(one) = &self.one else { return };
        match discovery::clear_running(&self.store, &self.root, one.domid) {
            Ok(()) => {}
            Err(error) if error.is_disconnected() => tracing::debug!("{}", report(&error)),
            Err(error) => tracing::warn!(
                "the node that says that domain {} is served stays: {}",
                one.domid,
                report(&error)
            ),
        }
    }
}
