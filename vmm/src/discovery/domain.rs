//! What xenstore says about domains.

use xen::DomId;
use xen::xenstore::{Error, Tree, Xenstore};

use super::{KINDS, Root, is_refused};

/// The node with a domain's own number.
const OWN_DOMID: &str = "domid";
/// The directory of dom0.
const DOM0: &str = "/local/domain/0";
/// Before the uuid in a domain's `vm` node.
const VM_PREFIX: &str = "/vm/";

/// A guest as the toolstack knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainInfo {
    /// Its name, or `domain-5` where it has none.
    pub name: String,
    /// Its uuid.
    pub uuid: Option<String>,
}

/// Which domain this process runs in.
///
/// # Errors
/// xenstore's. [`Error::Missing`] in a dom0 whose `xen-init-dom0` was not run.
pub fn own_domain(store: &Xenstore) -> Result<DomId, Error> {
    // Relative paths start at the directory of the domain that asks. Over
    // xenstored's socket they start at the root (`get_implicit_path`,
    // tools/xenstored/domain.c), and that has users in dom0 alone.
    match store.at(OWN_DOMID).read_optional("")? {
        Some(own) => Ok(own),
        None => store.at(DOM0).read(OWN_DOMID),
    }
}

/// Name and uuid of a domain; nothing if xenstored does not know it as one
/// that is alive. Nodes alone do not count: those of a dead guest can stay.
///
/// # Errors
/// xenstore's.
pub fn read_domain(
    store: &Xenstore,
    root: &Root,
    domid: DomId,
) -> Result<Option<DomainInfo>, Error> {
    match is_alive(store, root, domid)? {
        true => DomainInfo::read(store, domid).map(Some),
        false => Ok(None),
    }
}

impl DomainInfo {
    /// Name and uuid of a domain, as far as they are known.
    ///
    /// # Errors
    /// xenstore's.
    pub fn read(store: &Xenstore, domid: DomId) -> Result<DomainInfo, Error> {
        let own = store.at(format!("/local/domain/{domid}"));
        let text = |key| match own.read_optional::<String>(key) {
            // outside dom0 these may be closed to us
            Err(error) if is_refused(&error) => Ok(None),
            other => other,
        };
        let name = text("name")?.filter(|name| !name.is_empty());
        let uuid = text("vm")?.and_then(|vm| vm.strip_prefix(VM_PREFIX).map(str::to_owned));
        Ok(DomainInfo {
            name: name.unwrap_or_else(|| format!("domain-{domid}")),
            uuid,
        })
    }
}

/// Whether a domain is there and not dying, as far as xenstored tells.
///
/// # Errors
/// xenstore's.
pub fn is_alive(store: &Xenstore, root: &Root, domid: DomId) -> Result<bool, Error> {
    match store.is_domain_introduced(domid) {
        Err(error) if is_refused(&error) => is_seen(store, root, domid),
        other => other,
    }
}

/// Whether a domain has left traces, where xenstored does not say more to a
/// domain that is not dom0: its directory, and where not even that may be
/// looked at, its back ends in this domain. The toolstack removes both with it.
pub(super) fn is_seen(store: &Xenstore, root: &Root, domid: DomId) -> Result<bool, Error> {
    match store.exists(&format!("/local/domain/{domid}")) {
        Err(error) if is_refused(&error) => {}
        other => return other,
    }
    for kind in KINDS {
        if store.exists(&format!("{}/{domid}", root.kind(kind.name)))? {
            return Ok(true);
        }
    }
    Ok(false)
}
