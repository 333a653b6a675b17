//! What a device model for one guest tells the toolstack: that it runs
//! (`libxl__spawn_local_dm`, `tools/libs/light/libxl_dm.c`, waits for this).

use xen::DomId;
use xen::xenstore::{Error, Tree, Xenstore, path};

use super::Root;

/// What stands in the node once the guest is served.
const RUNNING: &str = "running";

impl Root {
    /// The node that says how far the device model of a guest is.
    #[must_use]
    pub fn model_state(&self, domid: DomId) -> String {
        format!("/local/domain/{}/device-model/{domid}/state", self.own())
    }
}

/// Says that guest `domid` is served.
///
/// # Errors
/// xenstore's.
pub fn write_running(store: &Xenstore, root: &Root, domid: DomId) -> Result<(), Error> {
    store.write(&root.model_state(domid), RUNNING)
}

/// Takes that back, if it is said, and the directory with it if it holds
/// nothing else.
///
/// # Errors
/// xenstore's.
pub fn clear_running(store: &Xenstore, root: &Root, domid: DomId) -> Result<(), Error> {
    let state = root.model_state(domid);
    store.transaction(|tx| {
        if !tx.exists(&state)? {
            return Ok(());
        }
        tx.rm(&state)?;
        match path::parent(&state) {
            Some(directory) if tx.directory(directory)?.is_empty() => tx.rm(directory),
            _ => Ok(()),
        }
    })
}
