//! What a domain that is not dom0 may see.

use xen::xenstore::{Access, Permission, Tree};

use super::*;

/// A driver domain, with a disk for `GUEST` in its own back ends.
fn driver_domain(dom0: &Dom0) -> (Xenstore, Root, VirtioDisk) {
    let own = DomId(9);
    dom0.toolstack.create_domain(own, "driver").unwrap();
    let disk = VirtioDisk {
        backend: own,
        ..VirtioDisk::new(GUEST, 0, "/images/web.img")
    };
    dom0.toolstack.add(&disk).unwrap();
    let store = Xenstore::from_stream(dom0.daemon.connect(own).unwrap()).unwrap();
    (store, Root::new(own), disk)
}

#[test]
fn a_driver_domain_that_may_see_a_guests_directory_sees_its_end_there() {
    let dom0 = Dom0::with_disk();
    let (store, root, _) = driver_domain(&dom0);
    let readable = [
        Permission::new(DomId(0), Access::None),
        Permission::new(root.own(), Access::Read),
    ];
    for path in ["/local/domain", "/local/domain/3"] {
        dom0.daemon.set_permissions(path, &readable).unwrap();
    }

    let before = domain::is_seen(&store, &root, GUEST).unwrap();
    dom0.daemon.rm("/local/domain/3").unwrap();
    let after = domain::is_seen(&store, &root, GUEST).unwrap();

    assert_eq!((before, after), (true, false));
}

#[test]
fn a_driver_domain_that_may_not_sees_it_in_its_own_back_ends() {
    let dom0 = Dom0::with_disk();
    let (store, root, disk) = driver_domain(&dom0);

    let before = domain::is_seen(&store, &root, GUEST).unwrap();
    dom0.toolstack.clean_up(&disk.id()).unwrap();
    let after = domain::is_seen(&store, &root, GUEST).unwrap();

    assert!(store.exists("/local/domain/3").is_err());
    assert_eq!((before, after), (true, false));
}

#[test]
fn a_driver_domain_is_known_by_its_own_node() {
    let dom0 = Dom0::with_disk();
    let inside = Xenstore::from_stream(dom0.daemon.connect(GUEST).unwrap()).unwrap();

    assert_eq!(own_domain(&inside).unwrap(), GUEST);
}
