//! What xenstore says about domains.

use xen::DomId;
use xen::xenstore::{Errno, Error, Tree, Xenstore};

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
pub fn read_domain(store: &Xenstore, domid: DomId) -> Result<Option<DomainInfo>, Error> {
    if !is_alive(store, domid)? {
        return Ok(None);
    }
    let own = store.at(format!("/local/domain/{domid}"));
    let text = |key| match own.read_optional::<String>(key) {
        // outside dom0 these may be closed to us
        Err(error) if error.errno() == Some(&Errno::Access) => Ok(None),
        other => other,
    };
    let name = text("name")?.filter(|name| !name.is_empty());
    let uuid = text("vm")?.and_then(|vm| vm.strip_prefix(VM_PREFIX).map(str::to_owned));
    Ok(Some(DomainInfo {
        name: name.unwrap_or_else(|| format!("domain-{domid}")),
        uuid,
    }))
}

/// Whether a domain is there and not dying.
///
/// # Errors
/// xenstore's.
pub fn is_alive(store: &Xenstore, domid: DomId) -> Result<bool, Error> {
    match store.is_domain_introduced(domid) {
        // only dom0 may ask; elsewhere the toolstack's removal has to do
        Err(error) if error.errno() == Some(&Errno::Access) => Ok(true),
        other => other,
    }
}
