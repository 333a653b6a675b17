//! Guests as wholes: their start, their end, and the daemon's.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use xen::DomId;
use xen::xenstore::Error as XenstoreError;

use super::error::AttachError;
use super::one::One;
use super::served::{Phase, ServedGuest};
use super::{AT_ONCE, Daemon, RETRY, Stopping};
use crate::config::Config;
use crate::discovery::{self, DomainInfo, Place};
use crate::guest::{Guest, GuestConfig};
use crate::logs::report;
use crate::spec;
use crate::state::StateError;

impl Daemon {
    /// The guest's thread, started and recorded with the guest's first device.
    pub(super) fn serve_guest(
        &mut self,
        domid: DomId,
        info: &DomainInfo,
    ) -> Result<&mut ServedGuest, AttachError> {
        let vacant = match self.guests.entry(domid) {
            Entry::Occupied(served) => return Ok(served.into_mut()),
            Entry::Vacant(vacant) => vacant,
        };
        if let Some(maker) = self.state.other(domid) {
            let pid = maker.pid;
            return Err(StateError::Served { domid, pid }.into());
        }
        let wake = self.wake.try_clone().map_err(AttachError::System)?;
        let config = GuestConfig {
            windows: self.served.windows(),
            ..spec::guest(&self.options.config, domid, info)
        };
        let guest = Guest::start(&self.host, config, wake)?;
        let record = self
            .state
            .record(domid, info.uuid.as_deref(), guest.ioreq_server())?;
        Ok(vacant.insert(ServedGuest {
            info: info.clone(),
            guest,
            record,
            devices: BTreeMap::new(),
            forgotten: false,
        }))
    }

    /// Stops the guests whose domain is gone. With the only guest there was,
    /// the daemon goes.
    ///
    /// # Errors
    /// xenstore's.
    pub(super) fn end_dead_guests(&mut self) -> Result<(), XenstoreError> {
        let known: Vec<DomId> = self.guests.keys().copied().collect();
        for domid in known {
            if !self.lives(domid)? {
                self.stop(domid, "the domain is gone");
                continue;
            }
            let forgotten = self.is_forgotten(domid)?;
            self.note_forgotten(domid, forgotten);
        }
        self.leave_with_guest()
    }

    /// Whether xenstored has lost a guest that is served and that Xen still
    /// has: one that was killed and started anew knows nothing of before.
    /// Only dom0 is told enough to say so.
    ///
    /// # Errors
    /// xenstore's.
    pub(super) fn is_forgotten(&self, domid: DomId) -> Result<bool, XenstoreError> {
        // one that xenstored never knew is not lost to it
        let known = self.one.as_ref().is_none_or(One::is_introduced);
        Ok(known
            && self.watches.domains.is_some()
            && self.guests.contains_key(&domid)
            && !discovery::is_alive(&self.store, &self.root, domid)?
            && self.is_in_xen(domid))
    }

    fn note_forgotten(&mut self, domid: DomId, forgotten: bool) {
        let Some(served) = self.guests.get_mut(&domid) else {
            return;
        };
        if std::mem::replace(&mut served.forgotten, forgotten) == forgotten {
            return;
        }
        let name = &served.info.name;
        if !forgotten {
            tracing::info!(%domid, %name, "xenstored knows the guest again");
            return;
        }
        tracing::warn!(
            %domid,
            %name,
            "xenstored has lost the guest, and Xen has not: was it killed and started anew? The \
             guest is served on until Xen ends it, but its devices cannot be changed any more. \
             Shut it down from inside, or end it by `xl destroy {domid}`. New guests are served \
             once `xen-init-dom0` has been run. What loses nothing is `xenstore-control live-update`"
        );
        // xenstored will not tell of its end
        self.look_again(RETRY);
    }

    /// Stops a guest on a thread of its own: a queue may take its time, and
    /// the other guests do not wait for it.
    pub(super) fn stop(&mut self, domid: DomId, why: &str) {
        let Some(served) = self.guests.remove(&domid) else {
            return;
        };
        let ServedGuest {
            info,
            guest,
            record,
            ..
        } = served;
        let span = tracing::info_span!("guest", %domid, name = %info.name);
        span.in_scope(|| tracing::info!("stopping: {why}"));
        let done = self.stopped.0.clone();
        let wake = self.wake.try_clone();
        let work = move || {
            let _entered = span.enter();
            match guest.stop() {
                Ok(()) => tracing::info!("stopped; nothing of it is held"),
                Err(error) => tracing::error!("stopped: {}", report(&error)),
            }
            record.remove();
            // both fail only when the daemon has left already
            let _ = done.send(domid);
            let _ = wake.map(|wake| wake.write(1));
        };
        match std::thread::Builder::new()
            .name(format!("stop-{domid}"))
            .spawn(work)
        {
            Ok(thread) => {
                let stopping = Stopping {
                    name: info.name,
                    thread,
                };
                drop(self.stopping.insert(domid, stopping));
            }
            // the closure is dropped, and the guest with it, which stops it
            Err(error) => {
                tracing::error!(%domid, %error, "no thread; the guest was stopped in line")
            }
        }
    }

    /// Parts with the threads that have stopped a guest.
    pub(super) fn reap(&mut self) {
        let done: Vec<DomId> = self.stopped.1.try_iter().collect();
        for domid in &done {
            let Some(Stopping { name, thread }) = self.stopping.remove(domid) else {
                continue;
            };
            if thread.join().is_err() {
                tracing::error!(%domid, %name, "the thread that stopped the guest panicked");
            }
        }
        if !done.is_empty() {
            // its number may have been given to another guest meanwhile
            self.look_again(AT_ONCE);
        }
    }

    /// Someone wants the configuration read anew. What is served stays as it is,
    /// except that disks take the size that their images have by now, and cards
    /// the link that the configuration says.
    pub(super) fn on_reload(&mut self) {
        if !self.control.reload() {
            return;
        }
        for (domid, served) in &self.guests {
            if let Err(error) = served.guest.refresh() {
                tracing::warn!(%domid, "its devices were not looked at: {}", report(&error));
            }
        }
        let Some(file) = &self.options.config_file else {
            tracing::warn!("asked to read the configuration anew, but started without a file");
            return;
        };
        match Config::load(file) {
            Ok(config) => {
                let before = &self.options.config;
                let one = self.served.one;
                if config.state_dir != before.state_dir
                    || config.log != before.log
                    || config.control_socket(one) != before.control_socket(one)
                {
                    tracing::warn!("state-dir, control-socket and log are read at start only");
                }
                tracing::info!(
                    file = %file.display(),
                    "the configuration was read anew; it is for guests and devices to come, and for the \
                     links of cards that are served"
                );
                self.options.config = config;
                self.reconfigure();
                // a device that was refused is one of these
                self.look_again(AT_ONCE);
            }
            Err(error) => tracing::error!("the configuration stays as it was: {}", report(&error)),
        }
    }

    /// Has the devices that are served take what the configuration says of them
    /// now, as far as it can change while they are: a card's link.
    fn reconfigure(&self) {
        for (domid, served) in &self.guests {
            let devices = served.devices.iter();
            let devices = devices.filter(|(_, device)| device.phase == Phase::Served);
            for (key, _) in devices {
                let place = Place {
                    domid: *domid,
                    key: key.clone(),
                };
                let wish = match self.wish(&place, &served.info) {
                    // its removal is told by an event of its own
                    Ok(None) => continue,
                    Ok(Some(wish)) => wish,
                    Err(error) => Err(AttachError::Xenstore(error)),
                };
                let told = wish.and_then(|wish| {
                    let device = wish.spec.device;
                    Ok(served.guest.reconfigure(key, device)?)
                });
                if let Err(error) = told {
                    tracing::warn!(%domid, device = %key, "stays as it is: {}", report(&error));
                }
            }
        }
    }

    /// Someone wants the daemon to leave.
    pub(super) fn on_leave(&mut self) {
        if !self.control.leave() {
            return;
        }
        self.leaving = true;
        if let Err(error) = self.end_dead_guests() {
            tracing::warn!("which guests still live is not known: {}", report(&error));
        }
        if self.guests.is_empty() {
            tracing::info!("asked to leave");
            return;
        }
        let names: Vec<String> = self
            .guests
            .iter()
            .map(|(domid, served)| format!("{} (domain {domid})", served.info.name))
            .collect();
        let names = names.join(", ");
        if self.options.force {
            tracing::warn!(
                "asked to leave, and started with --force: the devices of {names} stop answering"
            );
            let all: Vec<DomId> = self.guests.keys().copied().collect();
            for domid in all {
                self.stop(domid, "the daemon leaves");
            }
        } else {
            tracing::warn!(
                "asked to leave, but guests are attached: {names}. Staying until they are gone: \
                 shut them down (`xl shutdown`), or start xen-dm with --force to let it leave its \
                 guests behind"
            );
        }
    }
}
