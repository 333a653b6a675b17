use swiotlb::{Access, Grants};

use super::*;
use crate::virtio::features::{RING_INDIRECT_DESC, VERSION_1};

#[test]
fn a_chain_reaches_the_device_direct_and_indirect() {
    let ram = GuestRam::new(64);
    let mut ring = DriverRing::new(&ram, 8);
    let buffers = [
        Buffer::readable(ram.alloc(32), 32),
        Buffer::writable(ram.alloc(16), 16),
    ];
    let direct = ring.add(&buffers);
    let indirect = ring.add_indirect(&buffers);

    let (mut queue, _line) = ring.activate(VERSION_1 | RING_INDIRECT_DESC);
    let chains = queue.take(8).unwrap();

    let heads: Vec<_> = chains.iter().map(|chain| chain.head.index()).collect();
    assert_eq!(heads, [direct, indirect]);
    for chain in &chains {
        assert_eq!(chain.readable[0].len(), 32);
        assert_eq!(chain.writable[0].len(), 16);
    }
}

#[test]
fn a_revoked_grant_is_refused_and_others_are_counted_while_lent() {
    let ram = GuestRam::new(8);
    ram.revoke(3);
    let mut grants = Granted(ram.clone());
    let grant = |page: u64| {
        let range = Range::new(GuestRam::granted(page * PAGE_SIZE), 4096).unwrap();
        (range.grant().unwrap().unwrap(), 4096)
    };

    let loan = grants.map(&[grant(1), grant(2)], Access::Write).unwrap();
    let lent = ram.lent();
    loan.give_back().unwrap();

    assert_eq!(lent, 2);
    assert_eq!(ram.lent(), 0);
    assert!(grants.map(&[grant(3)], Access::Read).is_err());
}
