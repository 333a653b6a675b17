//! What xenstore says about domains.

use xen::DomId;
use xen::xenstore::{Errno, Error, Tree, Xenstore};

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
    // relative to the directory of the domain that asks
    let text = match store.read_string("domid") {
        Err(error) if error.is_not_found() => None,
        other => Some(other?),
    };
    let number = text.as_deref().map(|text| text.trim().parse().map(DomId));
    match number {
        Some(Ok(domid)) => Ok(domid),
        Some(Err(_)) => Err(Error::Value {
            path: "domid".to_owned(),
            value: text.unwrap_or_default(),
            expected: "a domain id",
        }),
        None => Err(Error::Missing {
            path: "domid".to_owned(),
            expected: "a domain id",
        }),
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
