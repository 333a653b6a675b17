//! What dom0 holds of each domain, for tests that look for leaks.

use std::collections::BTreeMap;

use super::state::World;
use crate::DomId;

/// What dom0 holds of one domain.
#[derive(Copy, Clone, Debug, Default, Eq, PartialEq)]
pub struct Census {
    /// Pages of its RAM mapped through privcmd.
    pub foreign_pages: u64,
    /// Ioreq pages mapped through privcmd.
    pub ioreq_pages: u64,
    /// Grants mapped, those included whose unmap waits for a pin.
    pub mapped_grants: u64,
    /// IOREQ servers.
    pub ioreq_servers: u64,
    /// Local event channels that were bound to it and not closed.
    pub event_channels: u64,
    /// irqfds assigned.
    pub irqfds: u64,
    /// ioeventfds assigned.
    pub ioeventfds: u64,
}

impl Census {
    /// Whether nothing is held.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        *self == Census::default()
    }
}

impl World {
    /// Every domain that exists or is still held in some way.
    pub(super) fn census(&self) -> BTreeMap<DomId, Census> {
        let mut all: BTreeMap<DomId, Census> = BTreeMap::new();
        for (dom, domain) in &self.domains {
            let census = all.entry(*dom).or_default();
            census.foreign_pages = domain.foreign_pages;
            census.ioreq_pages = domain.resource_pages;
            census.mapped_grants = domain.grants.mapped();
            census.ioreq_servers = domain.servers.iter().flatten().count() as u64;
        }
        for port in self.local.ports.values() {
            all.entry(port.origin).or_default().event_channels += 1;
        }
        for (dom, _) in self.irqfds.values() {
            all.entry(*dom).or_default().irqfds += 1;
        }
        for kernel in &self.ioeventfds {
            all.entry(kernel.dom).or_default().ioeventfds += kernel.kicks() as u64;
        }
        all
    }
}
