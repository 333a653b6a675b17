//! What is looked at before anything is served: this host, and what an
//! earlier daemon has left on it.

use xen::dm_op::{self, ServerId};
use xen::xenstore::Xenstore;
use xen::{DomId, Host};

use super::error::StartError;
use crate::check::{IoreqServer, ask_ioreq_server, remedy};
use crate::discovery::{Root, read_domain};
use crate::logs::report;
use crate::state::StateDir;

/// Whether guests can be served here at all; [`crate::check`] tells more.
///
/// # Errors
/// [`StartError`] names the remedy.
pub(super) fn check(host: &Host) -> Result<(), StartError> {
    let privcmd = host.open_privcmd()?;
    host.open_gntdev()?;
    host.open_evtchn()?;
    match ask_ioreq_server(&privcmd) {
        IoreqServer::Absent => return Err(StartError::NoIoreqServer),
        IoreqServer::Forbidden => tracing::warn!(
            "privcmd is restricted: at most one guest can be served. {}",
            remedy::LIFT_RESTRICTION
        ),
        answer => tracing::debug!(?answer, "asked Xen for device-model operations"),
    }
    match privcmd.version() {
        Ok((major, minor)) => tracing::info!("Xen {major}.{minor}"),
        Err(error) => tracing::debug!("Xen does not tell its version: {}", report(&error)),
    }
    Ok(())
}

/// Destroys the ioreq servers that a dead process of ours has left: they would
/// be asked in place of the new ones. `one`: of that guest alone. What fails is
/// logged and left.
///
/// # Errors
/// The state directory cannot be read, or privcmd not opened.
pub(super) fn remove_stale(
    host: &Host,
    store: &Xenstore,
    root: &Root,
    state: &StateDir,
    one: Option<DomId>,
) -> Result<(), StartError> {
    for (record, file) in state.stale()? {
        let domid = DomId(record.domid);
        if one.is_some_and(|one| one != domid) {
            continue;
        }
        let span = tracing::info_span!("stale", %domid, server = record.server);
        let _entered = span.enter();
        let same_guest = match read_domain(store, root, domid) {
            Ok(None) => false,
            Ok(Some(info)) => {
                info.uuid.is_none() || record.uuid.is_none() || info.uuid == record.uuid
            }
            Err(error) => {
                tracing::warn!("its guest cannot be looked up: {}", report(&error));
                continue;
            }
        };
        if same_guest {
            match host
                .open_privcmd()?
                .destroy_ioreq_server(domid, ServerId(record.server))
            {
                Ok(()) => tracing::info!("destroyed the ioreq server of an earlier daemon"),
                Err(dm_op::Error::NotFound { .. } | dm_op::Error::NoDomain { .. }) => {}
                Err(error) => tracing::warn!(
                    "the ioreq server of an earlier daemon stays: {}",
                    report(&error)
                ),
            }
        }
        file.remove();
    }
    Ok(())
}
