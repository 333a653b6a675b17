//! Which guests and devices are served: what xenstore announces for all guests
//! or for one, or devices that no toolstack has announced.

use std::collections::{BTreeMap, BTreeSet};

use xen::DomId;
use xen::xenstore::{Error as XenstoreError, Xenstore};

use crate::discovery::{self, Place, Root};
use crate::guest::{DeviceKey, MmioWindow};
use crate::spec::SlotSpec;

/// Which guests and devices are served.
#[derive(Clone, Debug, Default)]
pub enum Scope {
    /// Each that xenstore has in this domain's back ends.
    #[default]
    All,
    /// Those of one guest, until it ends.
    One {
        /// The guest.
        domid: DomId,
        /// Its devices; if there are none, those that xenstore has.
        devices: Vec<SlotSpec>,
        /// Whether it is mapped 1:1, in place of what the configuration says.
        direct_mapped: Option<bool>,
    },
}

/// The same, as the control thread asks for it.
#[derive(Debug)]
pub(super) struct Served {
    /// The only guest, if there is but one.
    pub one: Option<DomId>,
    /// Devices that xenstore knows nothing of.
    pub given: BTreeMap<Place, SlotSpec>,
    /// Whether the only guest is mapped 1:1, if that was said.
    pub direct_mapped: Option<bool>,
}

impl Served {
    pub(super) fn new(scope: &Scope) -> Served {
        let Scope::One {
            domid,
            devices,
            direct_mapped,
        } = scope
        else {
            return Served {
                one: None,
                given: BTreeMap::new(),
                direct_mapped: None,
            };
        };
        let given = (0..).zip(devices).map(|(number, spec)| {
            let key = DeviceKey::new(spec.device.kind().name, number);
            (Place { domid: *domid, key }, spec.clone())
        });
        Served {
            one: Some(*domid),
            given: given.collect(),
            direct_mapped: *direct_mapped,
        }
    }

    /// Whether a device of xenstore's is to be served.
    pub(super) fn includes(&self, place: &Place) -> bool {
        self.given.is_empty() && self.one.is_none_or(|domid| domid == place.domid)
    }

    /// Every device there is to serve.
    ///
    /// # Errors
    /// xenstore's.
    pub(super) fn places(
        &self,
        store: &Xenstore,
        root: &Root,
    ) -> Result<BTreeSet<Place>, XenstoreError> {
        if !self.given.is_empty() {
            return Ok(self.given.keys().cloned().collect());
        }
        let mut places = discovery::list(store, root)?;
        places.retain(|place| self.includes(place));
        Ok(places.into_iter().collect())
    }

    /// What to claim of a guest for its devices.
    pub(super) fn windows(&self) -> Vec<MmioWindow> {
        if self.given.is_empty() {
            return vec![MmioWindow::ARM];
        }
        let mut windows = Vec::new();
        for spec in self.given.values() {
            let window = MmioWindow::around(spec.base);
            if !windows.contains(&window) {
                windows.push(window);
            }
        }
        windows
    }
}
