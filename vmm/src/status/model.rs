//! What a daemon tells of itself; plain data, and the JSON of
//! `xen-dm status`. Counters count from the start of the daemon, or of the
//! guest or device if that was later.

mod data;

use std::collections::BTreeMap;

use devices::virtio::HostPlace;
use serde::{Deserialize, Serialize};

pub use data::{Dma, GrantedData, GrantedSize};

use crate::guest::{DeviceStats, GuestStats, QueueCounts};

/// All that a daemon tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of this structure and all below it, [`VERSION`](super::VERSION).
    pub version: u32,
    /// The process.
    pub daemon: DaemonStatus,
    /// Guests that are served, by their numbers.
    pub guests: Vec<GuestStatus>,
    /// Devices that are not served.
    pub refused: Vec<Refused>,
    /// Guests that are being stopped.
    pub ending: Vec<Ending>,
}

/// The process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonStatus {
    /// Version of the program.
    pub xen_dm: String,
    /// Its process.
    pub pid: u32,
    /// Seconds since it was started.
    pub uptime: u64,
    /// The domain it runs in.
    pub domid: u16,
    /// The only guest that it serves, if it was started for one.
    pub guest: Option<u16>,
    /// It was asked to leave, and stays for its guests.
    pub leaving: bool,
    /// It is connected to xenstored.
    pub xenstore: bool,
}

/// A guest that is served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestStatus {
    /// Its number.
    pub domid: u16,
    /// Its name.
    pub name: String,
    /// Its uuid, if xenstore has it.
    pub uuid: Option<String>,
    /// The number of its ioreq server.
    pub ioreq_server: u16,
    /// Its counters; nothing if its thread did not answer in time, and then no
    /// device is listed.
    pub counters: Option<GuestCounters>,
    /// Its devices, by their addresses.
    pub devices: Vec<DeviceStatus>,
}

/// Accesses of a guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestCounters {
    /// Requests of Xen answered, of every kind.
    pub ioreqs: u64,
    /// Of these, those that made no sense.
    pub malformed: u64,
    /// Accesses to slots without a device.
    pub empty: u64,
    /// Times that mapped guest memory was to be forgotten.
    pub invalidations: u64,
    /// Answers that waited for queues to stop.
    pub deferred: u64,
    /// Answers that Xen did not take.
    pub unanswered: u64,
    /// Failures of a device's own code that were caught.
    pub panics: u64,
}

/// How far a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceState {
    /// No driver has set it up.
    Idle,
    /// Its driver is up.
    Running,
    /// It cannot go on until its driver resets it.
    NeedsReset,
    /// It is being removed.
    Removing,
}

impl DeviceState {
    /// Its name, for people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            DeviceState::Idle => "idle",
            DeviceState::Running => "running",
            DeviceState::NeedsReset => "needs reset",
            DeviceState::Removing => "removing",
        }
    }
}

/// How interrupts go to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InterruptsBy {
    /// A hypercall each.
    Hypercall,
    /// An eventfd that the kernel turns into one.
    Irqfd,
}

/// How kicks come from the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KicksBy {
    /// As register accesses, through the guest's thread.
    Register,
    /// As an eventfd of the kernel's.
    Ioeventfd,
}

/// Which addresses a device takes from its driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Addresses {
    /// Guest-physical ones: all of the guest's memory is in reach.
    Plain,
    /// Grants alone.
    Grants,
    /// Grants, and by configuration plain ones, too.
    GrantsAndPlain,
}

/// A device that is served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// Which: its kind of back end and its number, such as
    /// `virtio_disk/51712`.
    pub device: String,
    /// What it is, such as `blk`.
    pub kind: Option<String>,
    /// Its name in the guest's configuration, such as `xvda`.
    pub name: Option<String>,
    /// The image behind it.
    pub image: Option<String>,
    /// How the image's bytes make a disk: `raw` or `qcow2`.
    #[serde(default)]
    pub format: Option<String>,
    /// Where users of this host find it: a console's terminals and sockets.
    #[serde(default)]
    pub places: Vec<Place>,
    /// How far it is.
    pub state: DeviceState,
    /// Its virtio device id.
    pub device_type: u32,
    /// First address of its registers, guest-physical.
    pub base: u64,
    /// Its interrupt, an SPI.
    pub irq: u32,
    /// The features that its driver has taken, in hexadecimal.
    pub features: String,
    /// How its interrupts go.
    pub interrupts_by: InterruptsBy,
    /// How its kicks come.
    pub kicks_by: KicksBy,
    /// Which addresses it takes.
    pub addresses: Addresses,
    /// How its addresses relate to the machine's: `OneToOne` or `Translated`.
    pub mapping: String,
    /// Where that is known from, in words.
    pub mapping_source: String,
    /// How often its driver came up.
    pub driver_starts: u64,
    /// How often it broke.
    pub failures: u64,
    /// Kicks of all queues.
    pub kicks: u64,
    /// Interrupts raised.
    pub interrupts: u64,
    /// Interrupts that the host failed to raise.
    pub interrupts_lost: u64,
    /// Accesses to its registers that made no sense.
    pub malformed: u64,
    /// Requests taken from all queues.
    pub requests: u64,
    /// Of these, those that are not answered yet, or never were, because the
    /// driver reset the device meanwhile.
    pub unfinished: u64,
    /// Accesses that wait for queues to stop.
    pub waiting: u64,
    /// Its data path.
    pub dma: Dma,
    /// The options of its queues' bounce pools.
    pub swiotlb: String,
    /// How its granted data is reached.
    pub granted_data: GrantedData,
    /// Its queues.
    pub queues: Vec<QueueStatus>,
    /// The device's own statistics, by names of its own.
    pub statistics: BTreeMap<String, u64>,
}

/// Where a device, or a port of it, is found on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The port's name, if it has one.
    pub name: Option<String>,
    /// The terminal, the socket or the file.
    pub path: String,
    /// What a port of several has done, by names of its own.
    #[serde(default)]
    pub statistics: BTreeMap<String, u64>,
}

impl From<&HostPlace> for Place {
    fn from(place: &HostPlace) -> Self {
        Place {
            name: place.name.clone(),
            path: place.path.display().to_string(),
            statistics: by_name(&place.statistics),
        }
    }
}

/// A queue, over all its activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueStatus {
    /// Kicks.
    pub kicks: u64,
    /// Requests taken from the guest.
    pub taken: u64,
    /// Requests answered.
    pub pushed: u64,
    /// Bytes written to the guest.
    pub written: u64,
}

/// A device that is not served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Its guest.
    pub domid: u16,
    /// Which.
    pub device: String,
    /// Why.
    pub reason: String,
}

/// A guest that is being stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// Its number.
    pub domid: u16,
    /// Its name.
    pub name: String,
}

impl From<&GuestStats> for GuestCounters {
    fn from(stats: &GuestStats) -> Self {
        GuestCounters {
            ioreqs: stats.ioreqs,
            malformed: stats.malformed,
            empty: stats.empty,
            invalidations: stats.invalidations,
            deferred: stats.deferred,
            unanswered: stats.unanswered,
            panics: stats.panics,
        }
    }
}

impl From<&DeviceStats> for DeviceStatus {
    /// What the device's guest knows of it; the rest is the daemon's.
    fn from(stats: &DeviceStats) -> Self {
        let sum = |count: fn(&QueueCounts) -> u64| stats.queues.iter().map(count).sum::<u64>();
        let (taken, pushed) = (sum(|queue| queue.taken), sum(|queue| queue.pushed));
        let wiring = stats.wiring;
        DeviceStatus {
            device: stats.id.to_string(),
            kind: None,
            name: None,
            image: None,
            format: None,
            places: stats.places.iter().map(Place::from).collect(),
            state: match stats {
                DeviceStats { removing: true, .. } => DeviceState::Removing,
                DeviceStats {
                    needs_reset: true, ..
                } => DeviceState::NeedsReset,
                DeviceStats { running: true, .. } => DeviceState::Running,
                _ => DeviceState::Idle,
            },
            device_type: stats.device_type,
            base: wiring.base,
            irq: wiring.irq,
            features: format!("{:#x}", stats.features),
            interrupts_by: match wiring.irqfd {
                true => InterruptsBy::Irqfd,
                false => InterruptsBy::Hypercall,
            },
            kicks_by: match stats.ioeventfd {
                true => KicksBy::Ioeventfd,
                false => KicksBy::Register,
            },
            addresses: match (wiring.grants, wiring.plain) {
                (true, false) => Addresses::Grants,
                (true, true) => Addresses::GrantsAndPlain,
                (false, _) => Addresses::Plain,
            },
            mapping: wiring.mapping.kind().to_string(),
            mapping_source: wiring.mapping.to_string(),
            driver_starts: 0,
            failures: 0,
            kicks: sum(|queue| queue.kicks),
            interrupts: stats.interrupts,
            interrupts_lost: stats.interrupts_lost,
            malformed: stats.malformed,
            requests: taken,
            unfinished: taken.saturating_sub(pushed),
            waiting: stats.waiting,
            dma: Dma::from(&stats.dma),
            swiotlb: wiring.data.pool.to_string(),
            granted_data: GrantedData::from(&stats.granted),
            queues: stats.queues.iter().map(QueueStatus::from).collect(),
            statistics: by_name(&stats.statistics),
        }
    }
}

fn by_name(statistics: &[(&str, u64)]) -> BTreeMap<String, u64> {
    let named = statistics.iter();
    named
        .map(|(name, value)| ((*name).to_owned(), *value))
        .collect()
}

impl From<&QueueCounts> for QueueStatus {
    fn from(counts: &QueueCounts) -> Self {
        QueueStatus {
            kicks: counts.kicks,
            taken: counts.taken,
            pushed: counts.pushed,
            written: counts.written,
        }
    }
}
