//! One device: what is there, what is served, and what follows from the two.

use devices::blk::ImageError;
use devices::registry::OpenError;
use xen::DomId;
use xen::xenstore::{Error as XenstoreError, XenbusState};

use super::error::AttachError;
use super::served::{Phase, ServedDevice};
use super::{AT_ONCE, Daemon, RETRY};
use crate::discovery::{self, DomainInfo, Life, NodeError, Place, Seen};
use crate::guest::{DeviceSlot, GuestError, Mapping, Said};
use crate::logs::report;
use crate::spec::{self, FileId, SlotSpec};
use crate::state::StateError;

/// A device that is to be served, if nothing is wrong with it.
pub(super) struct Wish {
    pub(super) spec: SlotSpec,
    /// `state`, of a device that xenstore has.
    state: Option<XenbusState>,
}

impl Daemon {
    /// Looks at a device and does what is to be done.
    ///
    /// # Errors
    /// xenstore's, after which it has to be looked at again.
    pub(super) fn look(&mut self, place: &Place) -> Result<(), XenstoreError> {
        let life = match self.is_given(place) {
            true => Life::Wanted,
            false => discovery::read_life(&self.store, &self.root, place)?,
        };
        let served = self
            .guests
            .get(&place.domid)
            .and_then(|guest| guest.devices.get(&place.key));
        let phase = served.map(|device| device.phase);
        match (phase, life) {
            // it is looked at again when it is gone
            (Some(Phase::Removing | Phase::Unusable), _) => Ok(()),
            // the toolstack has not been told yet
            (Some(Phase::Trial), Life::Wanted | Life::New) => Ok(()),
            (Some(Phase::Served), Life::Wanted) => {
                // somebody has touched its nodes, maybe its state
                if let Some(device) = self.served_device(place) {
                    device.is_told = false;
                }
                Ok(())
            }
            // all nodes are gone, and nobody has removed them
            (Some(Phase::Served | Phase::Trial), Life::Gone)
                if self.is_forgotten(place.domid)? =>
            {
                Ok(())
            }
            // new: the toolstack has written another one in its place
            (
                Some(Phase::Served | Phase::Trial),
                Life::Gone | Life::New | Life::Closing | Life::Closed,
            ) => self.remove(place),
            (None, Life::Gone) => self.forget(place),
            (None, Life::Closed) => Ok(()),
            (None, Life::Closing) => self.close(place),
            (None, Life::New | Life::Wanted) => self.meet(place),
        }
    }

    /// Serves a device that was not served before, or says why not. A guest
    /// that is not there gets nothing: its nodes are left over, or early.
    fn meet(&mut self, place: &Place) -> Result<(), XenstoreError> {
        let to_end = self.leaving && self.options.force;
        if to_end || self.stopping.contains_key(&place.domid) {
            // looked at again when the guest has been stopped
            return Ok(());
        }
        if !self.lives(place.domid)? {
            tracing::debug!(%place, "nodes of a domain that is not there");
            return Ok(());
        }
        let info = DomainInfo::read(&self.store, place.domid)?;
        let span = tracing::info_span!("guest", domid = %place.domid, name = %info.name);
        let _entered = span.enter();
        let Some(wish) = self.wish(place, &info)? else {
            // its removal is told by an event of its own
            return Ok(());
        };
        // The guest's windows are claimed whatever becomes of the device:
        // libxl does not wait for all kinds, and a guest that finds nobody at
        // its device's registers does not get past it.
        let attached = self
            .serve_guest(place.domid, &info)
            .map(drop)
            .and_then(|()| self.attach(place, &info, wish?));
        match attached {
            Ok(Phase::Trial) => Ok(()),
            Ok(_) => self.accept(place),
            Err(AttachError::Xenstore(error)) => Err(error),
            Err(error) => self.refuse(place, &info, &error),
        }
    }

    /// What is to be served at a place; nothing if its nodes have gone.
    pub(super) fn wish(
        &self,
        place: &Place,
        info: &DomainInfo,
    ) -> Result<Option<Result<Wish, AttachError>>, XenstoreError> {
        if let Some(spec) = self.served.given.get(place) {
            let spec = spec.clone().of_guest(info, &place.key);
            return Ok(Some(Ok(Wish { spec, state: None })));
        }
        Ok(
            match discovery::read_backend(&self.store, &self.root, place)? {
                Seen::Gone => None,
                Seen::Malformed(error) => Some(Err(error.into())),
                Seen::Device(backend) => {
                    let spec = spec::device(&self.options.config, info, &place.key, &backend.node);
                    let state = Some(backend.state);
                    Some(spec.map(|spec| Wish { spec, state }).map_err(Into::into))
                }
            },
        )
    }

    /// Puts a device before its guest; how far it is then.
    fn attach(
        &mut self,
        place: &Place,
        info: &DomainInfo,
        wish: Wish,
    ) -> Result<Phase, AttachError> {
        let Wish { spec, state } = wish;
        let mapping = self.mapping_of(place.domid, info)?;
        // what it starts of its own tells of itself by this name
        let span = tracing::info_span!("device", id = %place.key);
        let device = span.in_scope(|| spec.device.clone().open());
        let device = device.map_err(|error| self.not_opened(&spec, error))?;
        let slot = DeviceSlot {
            id: place.key.clone(),
            base: spec.base,
            irq: spec.irq,
            grants: spec.grants,
            mapping,
            device,
        };
        let served = self.serve_guest(place.domid, info)?;
        let phase = match served.guest.add(slot)? {
            true => Phase::Trial,
            false => Phase::Served,
        };
        let image = spec.image().map(|image| image.display().to_string());
        tracing::info!(
            device = %place.key,
            kind = spec.device.kind().name,
            name = spec.name,
            image,
            base = format_args!("{:#x}", spec.base),
            irq = spec.irq,
            grants = spec.grants,
            mapping = %mapping.kind(),
            mapping_source = %mapping,
            "serving a device"
        );
        if let Some(state) = state
            && state != XenbusState::Initialising
            && state != XenbusState::InitWait
        {
            tracing::warn!(
                device = %place.key,
                "its state was {state}: an earlier daemon has served it and its driver does not \
                 know that it starts anew. Reboot the guest, or unbind and bind the driver in it"
            );
        }
        served
            .devices
            .insert(place.key.clone(), ServedDevice::new(&spec, phase));
        Ok(phase)
    }

    /// A device can be used: its guest's window is claimed and the device in place.
    /// Only now may the toolstack start the guest.
    pub(super) fn accept(&mut self, place: &Place) -> Result<(), XenstoreError> {
        self.refused.remove(place);
        self.tell(place, XenbusState::InitWait)?;
        // an earlier daemon may have left one, too
        self.clear_error(place)
    }

    /// The kind of a guest's mapping: read for each device, as what a
    /// configuration says is for devices to come.
    fn mapping_of(&self, domid: DomId, info: &DomainInfo) -> Result<Mapping, AttachError> {
        let section = self.options.config.guest(&info.name, info.uuid.as_deref());
        let configured = self.served.direct_mapped.or(section.direct_mapped);
        let word = |node: String| match discovery::read_word(&self.store, &node) {
            Err(error) if discovery::is_about_nodes(&error) => Err(NodeError::from(error).into()),
            other => other.map_err(AttachError::Xenstore),
        };
        let said = Said {
            configured,
            toolstack: match configured {
                Some(_) => None,
                None => word(discovery::toolstack_word_node(domid))?,
            },
            guest: word(discovery::guest_word_node(domid))?,
        };
        let mapping = Mapping::decide(domid, said)?;
        if mapping.is_contradictory() {
            tracing::warn!(kind = %mapping.kind(), "{mapping}");
        }
        Ok(mapping)
    }

    /// Whether xenstore knows nothing of a device.
    pub(super) fn is_given(&self, place: &Place) -> bool {
        self.served.given.contains_key(place)
    }

    /// Tells the toolstack how far a device is.
    pub(super) fn tell(&self, place: &Place, state: XenbusState) -> Result<(), XenstoreError> {
        if !self.is_given(place) {
            discovery::write_state(&self.store, &self.root, place, state)?;
        }
        Ok(())
    }

    /// Tells the toolstack that a device's driver is up, if it does not know.
    pub(super) fn tell_connected(&mut self, place: &Place) -> Result<(), XenstoreError> {
        if self
            .served_device(place)
            .is_none_or(|device| device.is_told || device.phase == Phase::Trial)
        {
            return Ok(());
        }
        tracing::debug!(device = %place.key, "telling that the driver is up");
        self.tell(place, XenbusState::Connected)?;
        if let Some(device) = self.served_device(place) {
            device.is_told = true;
        }
        Ok(())
    }

    pub(super) fn served_device(&mut self, place: &Place) -> Option<&mut ServedDevice> {
        let served = self.guests.get_mut(&place.domid)?;
        served.devices.get_mut(&place.key)
    }

    fn clear_error(&self, place: &Place) -> Result<(), XenstoreError> {
        match self.is_given(place) {
            true => Ok(()),
            false => discovery::clear_error(&self.store, &self.root, place),
        }
    }

    /// What there is to say of a device that could not be opened: one of ours
    /// may have what it stands on.
    fn not_opened(&self, spec: &SlotSpec, error: OpenError) -> AttachError {
        let image = || FileId::of(spec.image()?);
        let error = match (error, image()) {
            (OpenError::Blk(ImageError::InUse { path: image }), Some(id)) => {
                match self.user_of(|device| device.image == Some(id)) {
                    Some(user) => AttachError::Shared { image, user },
                    None => OpenError::Blk(ImageError::InUse { path: image }).into(),
                }
            }
            (error, _) => error.into(),
        };
        let section = spec.section.as_ref();
        let user = self.user_of(|device| section.is_some() && device.section.as_ref() == section);
        match (user, section) {
            (Some(user), Some(section)) => AttachError::SameSection {
                section: section.clone(),
                user,
                source: Box::new(error),
            },
            _ => error,
        }
    }

    /// Which of our devices is a certain one.
    fn user_of(&self, is_it: impl Fn(&ServedDevice) -> bool) -> Option<String> {
        self.guests.iter().find_map(|(domid, served)| {
            let mut devices = served.devices.iter();
            let (key, _) = devices.find(|(_, device)| is_it(device))?;
            Some(format!(
                "{key} of guest {} (domain {domid})",
                served.info.name
            ))
        })
    }

    /// Says why a device is not served: once in the log, and in its nodes.
    pub(super) fn refuse(
        &mut self,
        place: &Place,
        info: &DomainInfo,
        error: &AttachError,
    ) -> Result<(), XenstoreError> {
        let reason = report(error);
        if self.refused.get(place) == Some(&reason) {
            return Ok(());
        }
        let Place { domid, key } = place;
        let message = format!("guest {} (domain {domid}), {key}: {reason}", info.name);
        tracing::error!(device = %key, "not served: {reason}");
        self.refused.insert(place.clone(), reason);
        let by_another = matches!(error, AttachError::State(StateError::Served { .. }));
        if by_another || self.is_given(place) {
            return Ok(());
        }
        discovery::report_error(&self.store, &self.root, place, error.errno(), &message)
    }

    /// Starts to take a device away.
    pub(super) fn remove(&mut self, place: &Place) -> Result<(), XenstoreError> {
        let Some(served) = self.guests.get_mut(&place.domid) else {
            return Ok(());
        };
        let Some(device) = served.devices.get_mut(&place.key) else {
            return Ok(());
        };
        let span = tracing::info_span!("guest", domid = %place.domid, name = %served.info.name);
        let _entered = span.enter();
        match served.guest.remove(&place.key) {
            Ok(()) => {
                tracing::debug!(device = %place.key, "removing");
                if device.phase != Phase::Unusable {
                    device.phase = Phase::Removing;
                }
                Ok(())
            }
            Err(error @ (GuestError::Ended(_) | GuestError::Unknown(_))) => {
                tracing::warn!(device = %place.key, "{}", report(&error));
                self.removed(place)
            }
            Err(error) => {
                tracing::error!(device = %place.key, "cannot be removed: {}", report(&error));
                self.look_again(RETRY);
                Ok(())
            }
        }
    }

    /// A device is gone: nothing of the guest's is held for it. Looks at what
    /// is there now, which answers the toolstack.
    pub(super) fn removed(&mut self, place: &Place) -> Result<(), XenstoreError> {
        let was = self
            .guests
            .get_mut(&place.domid)
            .and_then(|served| served.devices.remove(&place.key));
        if was.is_some() {
            tracing::info!(device = %place.key, "removed");
        }
        if was.is_some_and(|device| device.phase == Phase::Unusable) {
            return self.leave_unusable(place);
        }
        if !self.refused.is_empty() {
            // its image or its place may be what another one lacked
            self.look_again(AT_ONCE);
        }
        self.look(place)
    }

    /// Answers the toolstack that a device is closed.
    fn close(&mut self, place: &Place) -> Result<(), XenstoreError> {
        self.tell(place, XenbusState::Closed)
    }

    /// A device that is not there any more leaves no error behind.
    fn forget(&mut self, place: &Place) -> Result<(), XenstoreError> {
        match self.refused.remove(place) {
            Some(_) => self.clear_error(place),
            None => Ok(()),
        }
    }
}
