//! Why the daemon does not start, does not go on, or does not serve a device.

use std::io;
use std::path::PathBuf;

use devices::blk::ImageError;
use devices::registry::OpenError;
use devices::virtio::DeviceError;
use swiotlb::features::FeatureError;
use thiserror::Error;
use xen::{DomId, xenstore};

use crate::check::remedy;
use crate::discovery::NodeError;
use crate::guest::GuestError;
use crate::spec::SpecError;
use crate::state::StateError;

/// Why the daemon does not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// A device file of Xen's is not to be had.
    #[error(transparent)]
    Host(#[from] xen::host::OpenError),
    /// Xen cannot hand a guest's accesses to a process.
    #[error("{}", remedy::NO_IOREQ_SERVER)]
    NoIoreqServer,
    /// No word from xenstored.
    #[error("{}", remedy::NO_XENSTORE)]
    Xenstore(#[source] xenstore::Error),
    /// xenstored does not say which domain this is.
    #[error("{}", remedy::NO_OWN_DOMAIN)]
    OwnDomain(#[source] xenstore::Error),
    /// The state directory cannot be used, or another daemon uses it.
    #[error(transparent)]
    State(#[from] StateError),
    /// The guest to serve is not there.
    #[error("there is no domain {0}: `xl list` shows those that there are")]
    NoGuest(DomId),
    /// The guest to serve is not served.
    #[error("domain {domid} cannot be served")]
    Guest {
        /// The guest.
        domid: DomId,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A device given for the guest is not served.
    #[error("{device} of domain {domid} is not served: {reason}")]
    Device {
        /// The guest.
        domid: DomId,
        /// The device, by its kind and its place on the command line.
        device: String,
        /// Why.
        reason: String,
    },
    /// The system gives no descriptors.
    #[error("setting up the control loop: {what} failed")]
    System {
        /// What could not be had.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl StartError {
    /// What helps; nothing where that is not known, or said already.
    #[must_use]
    pub fn remedy(&self) -> Option<String> {
        match self {
            StartError::Host(error) => Some(error.remedy()).filter(|remedy| !remedy.is_empty()),
            StartError::NoIoreqServer => Some(remedy::BUILD_XEN.to_owned()),
            StartError::Xenstore(_) => Some(remedy::START_XENSTORED.to_owned()),
            StartError::OwnDomain(_) => Some(remedy::INIT_DOM0.to_owned()),
            _ => None,
        }
    }
}

/// Why the daemon did not go on.
#[derive(Debug, Error)]
pub enum RunError {
    /// Waiting for events failed.
    #[error("the control loop: {what} failed")]
    Loop {
        /// What failed.
        what: &'static str,
        /// Why.
        #[source]
        source: event_manager::Error,
    },
}

/// Why a device is not served.
#[derive(Debug, Error)]
pub(super) enum AttachError {
    /// Its nodes are wrong.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// Nodes and configuration together make no device.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// Another device of ours has the image.
    #[error(
        "image {} is in use by {user}: give each disk an image of its own, or make both read-only",
        image.display()
    )]
    Shared {
        /// The image.
        image: PathBuf,
        /// Guest and device that have it.
        user: String,
    },
    /// What the device stands on is not to be had, and another device of ours
    /// is described by the same section.
    #[error(
        "{section} is for {user}, too, which has what it names: a path, a tap or a socket that one \
         device alone can have wants a section of that device's own"
    )]
    SameSection {
        /// As it is headed.
        section: String,
        /// Guest and device that are served by it.
        user: String,
        /// Why it is not to be had.
        #[source]
        source: Box<AttachError>,
    },
    /// What the device stands on is not to be had.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// What the device stands on cannot serve it.
    #[error(transparent)]
    Unusable(DeviceError),
    /// The guest cannot be served, or not this device of it.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// Its ioreq server cannot be recorded.
    #[error(transparent)]
    State(#[from] StateError),
    /// The guest's kind of mapping cannot be told.
    #[error(transparent)]
    Features(#[from] FeatureError),
    /// No descriptor for its events.
    #[error("no event file for the guest")]
    System(#[source] io::Error),
    /// xenstore failed, which says nothing about the device.
    #[error(transparent)]
    Xenstore(#[from] xenstore::Error),
}

impl AttachError {
    /// The number that xenbus tools expect before the text.
    pub(super) fn errno(&self) -> i32 {
        match self {
            AttachError::Spec(SpecError::NoEntry { .. }) => libc::ENOENT,
            AttachError::Node(_) | AttachError::Spec(_) => libc::EINVAL,
            AttachError::Shared { .. }
            | AttachError::Open(OpenError::Blk(ImageError::InUse { .. })) => libc::EBUSY,
            AttachError::SameSection { source, .. } => source.errno(),
            other => system_errno(other).unwrap_or(libc::EINVAL),
        }
    }
}

/// The first error number among the causes.
fn system_errno(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(number) = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::raw_os_error)
        {
            return Some(number);
        }
        cause = error.source();
    }
    None
}
