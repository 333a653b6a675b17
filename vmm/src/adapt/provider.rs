//! Which memory a device may reach, and by which way.

use std::sync::Arc;

use devices::virtio::{DeviceError, DmaProvider};
use swiotlb::{Counters, Dma, Grants, Kind, Translation};
use xen::DomId;
use xen::gntdev::Gntdev;
use xen::memory::ForeignRam;

use super::{ForeignMemory, GrantMemory, OneToOneMemory};

/// Opens data paths for the queues of one device.
#[derive(Debug)]
pub struct DeviceMemory {
    kind: Kind,
    plain: Option<Arc<ForeignRam>>,
    grants: Option<(Gntdev, DomId)>,
    counters: Arc<Counters>,
}

impl DeviceMemory {
    /// For a device whose driver hands out guest-physical addresses.
    #[must_use]
    pub fn plain(ram: Arc<ForeignRam>) -> Self {
        DeviceMemory {
            kind: Kind::Translated,
            plain: Some(ram),
            grants: None,
            counters: Arc::default(),
        }
    }

    /// For a device whose driver grants its pages. `plain` is the guest's
    /// memory, if it may be reached without grants, too.
    #[must_use]
    pub fn granted(gntdev: Gntdev, domid: DomId, plain: Option<Arc<ForeignRam>>) -> Self {
        DeviceMemory {
            kind: Kind::Translated,
            plain,
            grants: Some((gntdev, domid)),
            counters: Arc::default(),
        }
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
        Ok(Dma::new(
            self.kind,
            plain,
            grants,
            Arc::clone(&self.counters),
        ))
    }
}
