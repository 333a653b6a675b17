use std::io::{Read, Write};
use std::time::Duration;

use super::Store;
use crate::DomId;
use crate::xenstore::wire::{Kind, encode};
use crate::xenstore::{Access, Errno, Error, Permission, Tree, Xenstore};

const LONG: Duration = Duration::from_secs(10);

fn client(daemon: &Store, domain: u16) -> Xenstore {
    Xenstore::from_stream(daemon.connect(DomId(domain)).unwrap()).unwrap()
}

fn entry(domain: u16, access: Access) -> Permission {
    Permission::new(DomId(domain), access)
}

fn errno<T: std::fmt::Debug>(outcome: Result<T, Error>) -> Option<Errno> {
    outcome.unwrap_err().errno().cloned()
}

/// A daemon with a guest's directory, as the toolstack makes it.
fn with_guest(domain: u16) -> Store {
    let daemon = Store::new().unwrap();
    let own = format!("/local/domain/{domain}");
    let data = format!("{own}/data");
    daemon.mkdir(&data).unwrap();
    daemon
        .set_permissions(&own, &[entry(0, Access::None), entry(domain, Access::Read)])
        .unwrap();
    daemon
        .set_permissions(&data, &[entry(domain, Access::None)])
        .unwrap();
    daemon.introduce(DomId(domain));
    daemon
}

#[test]
fn guest_writes_what_it_owns_and_nothing_else() {
    let daemon = with_guest(3);
    let guest = client(&daemon, 3);

    guest.write("data/key", "mine").unwrap();

    assert_eq!(
        daemon.read("/local/domain/3/data/key").as_deref(),
        Some("mine")
    );
    assert_eq!(errno(guest.write("new", "")), Some(Errno::Access));
    assert_eq!(
        errno(guest.write("/local/domain/0/name", "")),
        Some(Errno::Access)
    );
    assert_eq!(errno(guest.rm("/tool")), Some(Errno::Access));
    assert_eq!(errno(guest.mkdir("/x")), Some(Errno::Access));
}

#[test]
fn guest_reads_what_it_was_given() {
    let daemon = with_guest(3);
    daemon
        .write("/local/domain/0/backend/x/3", "for 3")
        .unwrap();
    let given = [entry(0, Access::None), entry(3, Access::Read)];
    daemon
        .set_permissions("/local/domain/0/backend/x/3", &given)
        .unwrap();
    let (guest, stranger) = (client(&daemon, 3), client(&daemon, 4));

    assert_eq!(
        guest.read_string("/local/domain/0/backend/x/3").unwrap(),
        "for 3"
    );
    assert_eq!(
        errno(guest.write("/local/domain/0/backend/x/3", "")),
        Some(Errno::Access)
    );
    assert_eq!(
        errno(stranger.read("/local/domain/0/backend/x/3")),
        Some(Errno::Access)
    );
    // Whether it is there is not told either.
    assert_eq!(
        errno(stranger.read("/local/domain/0/backend/x/5")),
        Some(Errno::Access)
    );
    assert_eq!(errno(guest.read("data/none")), Some(Errno::NotFound));
}

#[test]
fn access_given_to_all_is_the_first_entrys() {
    let daemon = with_guest(3);
    daemon.write("/open", "").unwrap();
    daemon
        .set_permissions("/open", &[entry(0, Access::Both), entry(4, Access::None)])
        .unwrap();

    client(&daemon, 3).write("/open", "by 3").unwrap();

    assert_eq!(daemon.read("/open").as_deref(), Some("by 3"));
    assert_eq!(errno(client(&daemon, 4).read("/open")), Some(Errno::Access));
}

#[test]
fn owner_may_share_but_not_give_away() {
    let daemon = with_guest(3);
    let guest = client(&daemon, 3);
    guest.mkdir("data/x").unwrap();
    let shared = [entry(3, Access::None), entry(4, Access::Both)];

    guest.set_permissions("data/x", &shared).unwrap();

    assert_eq!(guest.get_permissions("data/x").unwrap(), shared);
    client(&daemon, 4)
        .write("/local/domain/3/data/x", "by 4")
        .unwrap();
    let given_away = [entry(4, Access::None)];
    assert_eq!(
        errno(guest.set_permissions("data/x", &given_away)),
        Some(Errno::NotPermitted)
    );
    let other = client(&daemon, 4);
    let path = "/local/domain/3/data/x";
    assert_eq!(
        errno(other.set_permissions(path, &shared)),
        Some(Errno::Access)
    );
}

#[test]
fn new_nodes_inherit_permissions_and_belong_to_their_maker() {
    let daemon = with_guest(3);
    daemon
        .set_permissions(
            "/local/domain/3/data",
            &[entry(3, Access::None), entry(5, Access::Both)],
        )
        .unwrap();

    client(&daemon, 5)
        .write("/local/domain/3/data/new", "")
        .unwrap();

    let expected = [entry(5, Access::None), entry(5, Access::Both)];
    assert_eq!(
        daemon.permissions("/local/domain/3/data/new").unwrap(),
        expected
    );
}

#[test]
fn guest_is_not_told_of_what_it_may_not_read() {
    let daemon = with_guest(3);
    daemon.write("/secret", "").unwrap();
    let guest = client(&daemon, 3);
    let _watches = [
        guest.watch("/secret").unwrap(),
        guest.watch("data").unwrap(),
    ];
    for _ in 0..2 {
        guest.wait_event(LONG).unwrap();
    }

    daemon.write("/secret", "changed").unwrap();
    daemon.rm("/secret").unwrap();
    daemon.write("/local/domain/3/data", "changed").unwrap();

    let told = format!("{:?}", guest.wait_event(LONG).unwrap());
    assert!(told.contains("\"data\""), "{told}");
}

#[test]
fn guest_that_loses_a_node_is_told() {
    let daemon = with_guest(3);
    let guest = client(&daemon, 3);
    guest.write("data/x", "").unwrap();
    let watch = guest.watch("data/x").unwrap();
    guest.wait_event(LONG).unwrap();

    daemon.rm("/local/domain/3").unwrap();

    let told = format!("{:?}", guest.wait_event(LONG).unwrap());
    assert!(told.contains("\"data/x\""), "{told}");
    drop(watch);
}

#[test]
fn entry_above_the_quota_is_refused_to_guests_only() {
    let daemon = with_guest(3);
    let guest = client(&daemon, 3);

    assert_eq!(
        errno(guest.write("data/new/big", vec![b'x'; 2048])),
        Some(Errno::NoSpace)
    );

    assert!(!daemon.exists("/local/domain/3/data/new"));
    guest.write("data/x", vec![b'x'; 1024]).unwrap();
    client(&daemon, 0).write("/big", vec![b'x'; 4000]).unwrap();
}

#[test]
fn only_dom0_manages_domains() {
    let daemon = with_guest(3);
    let send = |domain: u16, kind: Kind, payload: &[u8]| {
        let mut stream = daemon.connect(DomId(domain)).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream
            .write_all(&encode(kind.number(), 1, 0, &[payload]).unwrap())
            .unwrap();
        let mut header = [0; 16];
        stream.read_exact(&mut header).unwrap();
        let mut answer = vec![0; header[12].into()];
        stream.read_exact(&mut answer).unwrap();
        String::from_utf8(answer).unwrap()
    };

    assert_eq!(send(3, Kind::Introduce, b"9\x001\x001\0"), "EACCES\0");
    assert_eq!(send(0, Kind::Introduce, b"9\x001\x001\0"), "OK\0");
    assert_eq!(send(0, Kind::IsDomainIntroduced, b"9\0"), "T\0");
    assert_eq!(send(0, Kind::Release, b"9\0"), "OK\0");
    assert_eq!(send(0, Kind::Release, b"9\0"), "ENOENT\0");
    assert_eq!(send(0, Kind::Control, b"help\0"), "ENOSYS\0");
    assert_eq!(send(0, Kind::Read, b"/a b\0"), "EINVAL\0");
    assert_eq!(send(0, Kind::Read, b"/tool"), "EINVAL\0");
    assert_eq!(send(0, Kind::Watch, b"/tool\0"), "EINVAL\0");
    assert_eq!(send(0, Kind::Unwatch, b"/tool\0t\0"), "ENOENT\0");
    assert_eq!(send(0, Kind::TransactionEnd, b"T\0"), "ENOENT\0");
}

#[test]
fn released_domain_loses_its_connections() {
    let daemon = with_guest(3);
    let mut guest = daemon.connect(DomId(3)).unwrap();
    guest.set_read_timeout(Some(LONG)).unwrap();
    let other = client(&daemon, 0);

    daemon.release(DomId(3));

    assert_eq!(guest.read(&mut [0; 1]).unwrap(), 0);
    assert!(!other.is_domain_introduced(DomId(3)).unwrap());
}

#[test]
fn message_that_is_too_long_ends_its_connection_only() {
    let daemon = Store::new().unwrap();
    let other = client(&daemon, 0);
    let mut stream = daemon.connect(DomId(0)).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    let mut message = encode(Kind::Read.number(), 1, 0, &[]).unwrap();
    message[12..16].copy_from_slice(&4097_u32.to_le_bytes());

    stream.write_all(&message).unwrap();

    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    assert!(other.exists("/tool").unwrap());
}

#[test]
fn client_that_does_not_read_holds_nobody_up() {
    let daemon = Store::new().unwrap();
    let mut lazy = daemon.connect(DomId(0)).unwrap();
    lazy.write_all(&encode(Kind::Watch.number(), 1, 0, &[b"/w\0t\0"]).unwrap())
        .unwrap();
    let other = client(&daemon, 0);
    // The reply to this shows that the request before it was served, too.
    while daemon.watches() == 0 {
        assert!(other.exists("/tool").unwrap());
    }
    let long = format!("/w/{}", "x".repeat(1000));

    for n in 0..1000_u32 {
        other.write(&long, n.to_string()).unwrap();
    }

    lazy.set_read_timeout(Some(LONG)).unwrap();
    let mut total = 0;
    let expected = 16 + 3 + 16 + 5 + 1000 * (16 + long.len() + 1 + 2);
    let mut buffer = vec![0; 65536];
    while total < expected {
        total += lazy.read(&mut buffer).unwrap();
    }
    assert_eq!(total, expected);
}

#[test]
fn dropping_the_store_closes_every_connection() {
    let daemon = Store::new().unwrap();
    let mut stream = daemon.connect(DomId(0)).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();

    drop(daemon.clone());
    assert_eq!(daemon.connections(), 1);
    drop(daemon);

    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn unrelated_changes_do_not_conflict() {
    let daemon = Store::new().unwrap();
    daemon.write("/a/x", "").unwrap();
    daemon.write("/b/x", "").unwrap();
    let store = client(&daemon, 0);
    let mut runs = 0;

    let outcome: Result<(), Error> = store.transaction(|tx| {
        runs += 1;
        tx.write("/a/x", "mine")?;
        daemon.write("/b/x", "theirs").unwrap();
        Ok(())
    });

    outcome.unwrap();
    assert_eq!(runs, 1);
    assert_eq!(daemon.read("/b/x").as_deref(), Some("theirs"));
}

#[test]
fn removal_conflicts_with_what_was_read() {
    let daemon = Store::new().unwrap();
    daemon.write("/a/x", "1").unwrap();
    let store = client(&daemon, 0);
    let mut seen = Vec::new();

    let outcome: Result<(), Error> = store.transaction(|tx| {
        seen.push(tx.exists("/a/x")?);
        daemon.rm("/a").unwrap_or_default();
        tx.write("/result", "")
    });

    outcome.unwrap();
    assert_eq!(seen, [true, false]);
}

#[test]
fn subtree_removed_in_a_transaction_goes_on_commit() {
    let daemon = Store::new().unwrap();
    daemon.write("/a/b/c", "").unwrap();
    let store = client(&daemon, 0);

    let outcome: Result<(), Error> = store.transaction(|tx| {
        tx.rm("/a")?;
        assert!(daemon.exists("/a/b/c"));
        tx.write("/a/new", "")
    });

    outcome.unwrap();
    assert!(!daemon.exists("/a/b"));
    assert_eq!(daemon.list("/a"), ["new"]);
}
