//! Which memory a device may reach, and by which way.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use devices::virtio::{DeviceError, DmaProvider, SharedRegion, Sharing};
use swiotlb::allocator::PadPolicy;
use swiotlb::{Counters, Dma, GrantPolicy, Grants, Kind, Settings, Translation};
use xen::DomId;
use xen::gntdev::Gntdev;
use xen::memory::{ForeignRam, SharedRam, SharedRun};

use super::{ForeignMemory, GrantMemory, OneToOneMemory};
use crate::guest::DataPath;

/// The guest's memory is not for another process.
#[derive(Debug, thiserror::Error)]
#[error(
    "its driver lends its pages one by one, which nobody else can be given: say grant_usage=0 for \
     this device, or memory = \"bounce\""
)]
struct Granted;

/// Opens data paths for the queues of one device.
#[derive(Debug)]
pub struct DeviceMemory {
    kind: Kind,
    plain: Option<Arc<ForeignRam>>,
    grants: Option<(Gntdev, DomId)>,
    counters: Arc<Counters>,
    pool: Settings,
    policy: Arc<GrantPolicy>,
}

impl DeviceMemory {
    /// For a device whose driver hands out guest-physical addresses.
    #[must_use]
    pub fn plain(ram: Arc<ForeignRam>) -> Self {
        DeviceMemory {
            plain: Some(ram),
            ..DeviceMemory::none()
        }
    }

    fn none() -> Self {
        DeviceMemory {
            kind: Kind::Translated,
            plain: None,
            grants: None,
            counters: Arc::default(),
            pool: pool(&DataPath::default()),
            policy: Arc::default(),
        }
    }

    /// For a device whose driver grants its pages. `plain` is the guest's
    /// memory, if it may be reached without grants, too.
    #[must_use]
    pub fn granted(gntdev: Gntdev, domid: DomId, plain: Option<Arc<ForeignRam>>) -> Self {
        DeviceMemory {
            plain,
            grants: Some((gntdev, domid)),
            ..DeviceMemory::none()
        }
    }

    /// The same, reached as `data` says where there is a choice.
    #[must_use]
    pub fn with_data_path(self, data: &DataPath) -> Self {
        DeviceMemory {
            pool: pool(data),
            policy: Arc::new(GrantPolicy::new(data.granted)),
            ..self
        }
    }

    /// What all data paths opened here have learned of granted data.
    #[must_use]
    pub fn policy(&self) -> &Arc<GrantPolicy> {
        &self.policy
    }

    /// For a guest of a kind of mapping; Translated if nothing is said.
    #[must_use]
    pub fn of_kind(self, kind: Kind) -> Self {
        DeviceMemory { kind, ..self }
    }

    /// What all data paths opened here count.
    #[must_use]
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }
}

impl DmaProvider for DeviceMemory {
    fn open(&self) -> Result<Dma, DeviceError> {
        let plain = self.plain.as_ref().map(|ram| match self.kind {
            Kind::OneToOne => {
                Box::new(OneToOneMemory::new(Arc::clone(ram))) as Box<dyn Translation>
            }
            Kind::Translated | Kind::Disabled => Box::new(ForeignMemory::new(Arc::clone(ram))),
        });
        let grants = self.grants.as_ref().map(|(gntdev, domid)| {
            Box::new(GrantMemory::new(gntdev.clone(), *domid)) as Box<dyn Grants>
        });
        Ok(
            Dma::new(self.kind, plain, grants, Arc::clone(&self.counters))
                .with_pool(self.pool.clone(), Arc::clone(&self.policy)),
        )
    }

    fn sharing(&self) -> Result<Sharing, DeviceError> {
        match (&self.plain, &self.grants) {
            (Some(ram), None) => Ok(match ram.is_foreign() {
                true => Sharing::Foreign { domid: ram.dom().0 },
                false => Sharing::File,
            }),
            _ => Err(Box::new(Granted)),
        }
    }

    fn pages(&self) -> Option<u64> {
        let pages = self.plain.as_ref()?.pages();
        // a guest that has ended has other ways to say so
        pages.ok().flatten()
    }

    fn share(&self) -> Result<Vec<SharedRegion>, DeviceError> {
        let sharing = self.sharing()?;
        let ram = self.plain.as_ref().ok_or(Granted)?;
        let region = |run: SharedRun, file: OwnedFd| SharedRegion {
            address: run.address,
            len: run.len,
            file,
            offset: run.offset,
            sharing,
        };
        let (file, runs) = match ram.share()? {
            SharedRam::Foreign { file, runs } => (Arc::new(file), runs),
            SharedRam::File { file, runs } => (file, runs),
        };
        let regions = runs
            .into_iter()
            .map(|run| Ok(region(run, file.try_clone()?.into())));
        regions.collect()
    }
}

/// The pool of a queue. One thread uses it, and nobody else sees it: neither
/// areas nor zeroes around the data are of use.
fn pool(data: &DataPath) -> Settings {
    Settings {
        name: "queue".into(),
        options: data.pool,
        workers: 1,
        pad: PadPolicy::Trusted,
        ..Settings::default()
    }
}
