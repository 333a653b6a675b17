//! Where a device is in xenstore, and which device a watch event is about.

use std::fmt;

use xen::DomId;
use xen::xenstore::path;

use super::KINDS;
use crate::guest::DeviceKey;

/// One device of one guest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The guest.
    pub domid: DomId,
    /// The device.
    pub key: DeviceKey,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "domain {} {}", self.domid, self.key)
    }
}

/// What a watch event is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Touched {
    /// A device or a key of it.
    Device(Place),
    /// A guest's list of devices of a kind, or everything above it.
    List,
    /// Something that is no device's.
    Nothing,
}

/// The back ends of one domain: the one this process runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Root {
    own: DomId,
}

impl Root {
    /// The back ends of domain `own`.
    #[must_use]
    pub fn new(own: DomId) -> Self {
        Root { own }
    }

    /// The domain this process runs in.
    #[must_use]
    pub fn own(&self) -> DomId {
        self.own
    }

    /// The directory of a kind.
    #[must_use]
    pub fn kind(&self, kind: &str) -> String {
        format!("/local/domain/{}/backend/{kind}", self.own)
    }

    /// The directory of a device.
    #[must_use]
    pub fn device(&self, place: &Place) -> String {
        format!(
            "{}/{}/{}",
            self.kind(&place.key.kind),
            place.domid,
            place.key.devid
        )
    }

    /// The node where xenbus tools look for a device's error (what Linux'
    /// `xenbus_dev_error` writes).
    #[must_use]
    pub fn error(&self, place: &Place) -> String {
        let Place { domid, key } = place;
        format!(
            "/local/domain/{}/error/backend/{}/{domid}/{}/error",
            self.own, key.kind, key.devid
        )
    }

    /// What a changed node belongs to.
    #[must_use]
    pub fn touched(&self, changed: &str) -> Touched {
        for kind in KINDS {
            let list = self.kind(kind.name);
            if path::is_within(&list, changed) {
                return Touched::List;
            }
            let Some(below) = changed
                .strip_prefix(&list)
                .and_then(|rest| rest.strip_prefix('/'))
            else {
                continue;
            };
            let mut names = below.split('/');
            let domid = names.next().and_then(decimal).map(DomId);
            return match (domid, names.next()) {
                (None, _) => Touched::Nothing,
                (Some(_), None) => Touched::List,
                (Some(domid), Some(name)) => match decimal(name) {
                    Some(devid) => Touched::Device(Place {
                        domid,
                        key: DeviceKey::new(kind.name, devid),
                    }),
                    None => Touched::Nothing,
                },
            };
        }
        Touched::Nothing
    }
}

/// A number as it stands in paths: digits only, and in one spelling only, so
/// that two paths never are one device.
pub(super) fn decimal<T: std::str::FromStr + fmt::Display>(name: &str) -> Option<T> {
    let number: T = name.parse().ok()?;
    (number.to_string() == name).then_some(number)
}
