//! What the daemon tells `xen-dm status`.

use std::time::{Duration, Instant};

use xen::DomId;

use super::Daemon;
use super::served::{ServedDevice, ServedGuest};
use crate::guest::{DeviceStats, GuestStats};
use crate::status::{
    DaemonStatus, DeviceStatus, Ending, GuestCounters, GuestStatus, Refused, Status, VERSION,
};

/// How long one guest's thread may take, which never waits for anything.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long all of them may take.
const ALL: Duration = Duration::from_secs(2);

impl Daemon {
    /// Someone wants the status.
    pub(super) fn on_status(&self) {
        if self.desk.asked() {
            self.desk.answer(self.status());
        }
    }

    fn status(&self) -> Status {
        let end = Instant::now() + ALL;
        let guests = self.guests.iter().map(|(&domid, served)| {
            let left = end.saturating_duration_since(Instant::now());
            let stats = served.guest.snapshot_within(PATIENCE.min(left));
            guest(domid, served, stats.as_ref())
        });
        let refused = self.refused.iter().map(|(place, reason)| Refused {
            domid: place.domid.0,
            device: place.key.to_string(),
            reason: reason.clone(),
        });
        let ending = self.stopping.iter().map(|(domid, stopping)| Ending {
            domid: domid.0,
            name: stopping.name.clone(),
        });
        Status {
            version: VERSION,
            daemon: DaemonStatus {
                xen_dm: env!("CARGO_PKG_VERSION").to_owned(),
                pid: std::process::id(),
                uptime: self.started.elapsed().as_secs(),
                domid: self.root.own().0,
                guest: self.served.one.map(|one| one.0),
                leaving: self.leaving,
                xenstore: self.store.is_connected(),
            },
            guests: guests.collect(),
            refused: refused.collect(),
            ending: ending.collect(),
        }
    }
}

fn guest(domid: DomId, served: &ServedGuest, stats: Option<&GuestStats>) -> GuestStatus {
    let devices = stats.map(|stats| stats.devices.as_slice());
    let devices = devices.unwrap_or_default().iter();
    GuestStatus {
        domid: domid.0,
        name: served.info.name.clone(),
        uuid: served.info.uuid.clone(),
        ioreq_server: served.guest.ioreq_server(),
        counters: stats.map(GuestCounters::from),
        devices: devices
            .map(|stats| device(stats, served.devices.get(&stats.id)))
            .collect(),
    }
}

fn device(stats: &DeviceStats, served: Option<&ServedDevice>) -> DeviceStatus {
    let mut status = DeviceStatus::from(stats);
    if let Some(served) = served {
        status.kind = Some(served.kind.to_owned());
        status.name = served.name.clone();
        status.image = served.path.as_ref().map(|path| path.display().to_string());
        status.format = served.format.map(|format| format.name().to_owned());
        status.driver_starts = served.starts;
        status.failures = served.failures;
    }
    status
}
