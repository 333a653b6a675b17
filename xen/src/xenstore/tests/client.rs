use std::sync::atomic::{AtomicU32, Ordering};

use super::super::{Access, Errno, Error, Options, Permission, Tree, Xenstore};
use super::{client, connected};
use crate::DomId;

#[test]
fn written_value_is_read_back() {
    let (daemon, store) = connected(0);

    store.write("/a/b", "value").unwrap();

    assert_eq!(store.read("/a/b").unwrap(), b"value");
    assert_eq!(store.read_string("/a/b").unwrap(), "value");
    assert_eq!(store.read("/a").unwrap(), b"");
    assert_eq!(daemon.read("/a/b").as_deref(), Some("value"));
}

#[test]
fn values_may_be_any_bytes() {
    let (_daemon, store) = connected(0);

    store.write("/a", [0, 1, 0xff, 0]).unwrap();

    assert_eq!(store.read("/a").unwrap(), [0, 1, 0xff, 0]);
    assert!(matches!(store.read_string("/a"), Err(Error::Value { path, .. }) if path == "/a"));
}

#[test]
fn missing_node_is_enoent() {
    let (_daemon, store) = connected(0);

    let error = store.read("/nowhere").unwrap_err();

    assert_eq!(error.errno(), Some(&Errno::NotFound));
    assert!(error.is_not_found());
    assert_eq!(
        error.to_string(),
        "xenstore READ /nowhere: refused with ENOENT"
    );
    assert!(!store.exists("/nowhere").unwrap());
}

#[test]
fn mkdir_keeps_the_value_of_a_node_that_is_there() {
    let (_daemon, store) = connected(0);
    store.write("/a", "kept").unwrap();

    store.mkdir("/a").unwrap();
    store.mkdir("/b/c").unwrap();

    assert_eq!(store.read_string("/a").unwrap(), "kept");
    assert_eq!(store.read_string("/b/c").unwrap(), "");
}

#[test]
fn rm_takes_what_is_under_a_node() {
    let (daemon, store) = connected(0);
    store.write("/a/b/c", "").unwrap();
    store.write("/a/b-c", "").unwrap();

    store.rm("/a/b").unwrap();
    store.rm("/a/b").unwrap();

    assert_eq!(daemon.list("/a"), ["b-c"]);
    assert!(!daemon.exists("/a/b/c"));
    assert!(store.rm("/no/parent").unwrap_err().is_not_found());
    assert_eq!(store.rm("/").unwrap_err().errno(), Some(&Errno::Invalid));
}

#[test]
fn directory_lists_in_the_order_of_creation() {
    let (_daemon, store) = connected(0);
    for name in ["z", "a", "m"] {
        store.write(&format!("/dir/{name}"), "").unwrap();
    }

    assert_eq!(store.directory("/dir").unwrap(), ["z", "a", "m"]);
    assert!(store.directory("/dir/z").unwrap().is_empty());
}

#[test]
fn list_above_4096_bytes_is_put_together() {
    let (daemon, store) = connected(0);
    let names: Vec<String> = (0..2000).map(|n| format!("device-{n}")).collect();
    for name in &names {
        daemon.write(&format!("/long/{name}"), "").unwrap();
    }

    assert_eq!(store.directory("/long").unwrap(), names);
    let in_transaction: Result<_, Error> = store.transaction(|tx| tx.directory("/long"));
    assert_eq!(in_transaction.unwrap(), names);
}

#[test]
fn list_around_the_limit_is_whole() {
    let (daemon, store) = connected(0);
    // 273 names of 15 bytes are 4095; each one more crosses the limit of a
    // message, and of its parts, elsewhere.
    for extra in 0..40 {
        daemon
            .write(&format!("/l/{}", "x".repeat(extra + 1)), "")
            .unwrap();
        daemon.write(&format!("/l/y{extra:0>80}"), "").unwrap();
        daemon.write(&format!("/l/z{extra:0>80}"), "").unwrap();

        assert_eq!(store.directory("/l").unwrap(), daemon.list("/l"));
    }
}

#[test]
fn long_list_that_changes_is_of_one_moment() {
    let (daemon, store) = connected(0);
    for n in 0..1000 {
        daemon.write(&format!("/l/fixed-{n}"), "").unwrap();
    }
    let writer = std::thread::spawn({
        let daemon = daemon.clone();
        move || {
            for n in 0..20 {
                daemon.write(&format!("/l/pair-{n}"), "").unwrap();
                std::thread::yield_now();
            }
        }
    });

    let lists: Vec<Vec<String>> = (0..20).map(|_| store.directory("/l").unwrap()).collect();
    writer.join().unwrap();

    for list in lists {
        let whole = daemon.list("/l");
        assert_eq!(list, whole[..list.len()]);
    }
}

#[test]
fn permissions_are_set_and_got() {
    let (_daemon, store) = connected(0);
    let list = [
        Permission::new(DomId(3), Access::None),
        Permission::new(DomId(0), Access::Read),
    ];
    store.mkdir("/a").unwrap();

    store.set_permissions("/a", &list).unwrap();

    assert_eq!(store.get_permissions("/a").unwrap(), list);
    assert_eq!(
        store.set_permissions("/a", &[]).unwrap_err().errno(),
        Some(&Errno::Invalid)
    );
}

#[test]
fn domains_are_asked_about() {
    let (daemon, store) = connected(0);
    daemon.introduce(DomId(7));

    assert!(store.is_domain_introduced(DomId(7)).unwrap());
    assert!(!store.is_domain_introduced(DomId(8)).unwrap());
    assert_eq!(store.get_domain_path(DomId(7)).unwrap(), "/local/domain/7");
}

#[test]
fn bad_requests_are_refused_before_they_are_sent() {
    let (_daemon, store) = connected(0);

    assert!(matches!(store.read("/a b"), Err(Error::Path(_))));
    assert!(matches!(store.write("", ""), Err(Error::Path(_))));
    assert!(matches!(store.watch("/a//b"), Err(Error::Path(_))));
    assert!(matches!(
        store.write("/a", vec![0; 4094]),
        Err(Error::TooLong { len: 4097, .. })
    ));
    store.write("/a", vec![b'x'; 4093]).unwrap();
    assert_eq!(store.read("/a").unwrap().len(), 4093);
}

#[test]
fn node_reads_typed_values() {
    let (daemon, store) = connected(0);
    daemon.write("/dev/irq", "33").unwrap();
    daemon.write("/dev/base", "0x2000000").unwrap();
    let node = store.at("/dev");

    assert_eq!(node.read::<u32>("irq").unwrap(), 33);
    assert_eq!(node.read::<u64>("base").unwrap(), 0x200_0000);
    assert_eq!(node.read_optional::<u32>("absent").unwrap(), None);
    node.child("sub").write("state", 4).unwrap();
    assert_eq!(node.keys().unwrap(), ["irq", "base", "sub"]);
    assert_eq!(daemon.read("/dev/sub/state").as_deref(), Some("4"));
    node.rm("sub").unwrap();
    assert!(!node.exists("sub/state").unwrap());
}

#[test]
fn node_errors_name_path_value_and_expectation() {
    let (daemon, store) = connected(0);
    daemon.write("/dev/irq", "many").unwrap();
    daemon.write("/dev/raw", [0xff]).unwrap();
    let node = store.at("/dev");

    let text = |result: Result<u32, Error>| result.unwrap_err().to_string();

    assert_eq!(
        text(node.read("irq")),
        "xenstore node /dev/irq holds \"many\", expected an unsigned 32-bit number"
    );
    assert_eq!(
        text(node.read("none")),
        "xenstore node /dev/none is missing, expected an unsigned 32-bit number"
    );
    assert!(
        matches!(node.read::<String>("raw"), Err(Error::Value { path, .. }) if path == "/dev/raw")
    );
}

#[test]
fn transaction_is_seen_whole_or_not_at_all() {
    let (daemon, store) = connected(0);

    let outcome: Result<u32, Error> = store.transaction(|tx| {
        tx.write("/a", "1")?;
        assert!(!daemon.exists("/a"));
        assert_eq!(tx.read_string("/a")?, "1");
        tx.at("/").write("b", 2)?;
        Ok(5)
    });

    assert_eq!(outcome.unwrap(), 5);
    assert_eq!(
        (daemon.read("/a"), daemon.read("/b")),
        (Some("1".into()), Some("2".into()))
    );
    assert_eq!(daemon.transactions(), 0);
}

#[test]
fn transaction_is_discarded_when_its_closure_errs() {
    let (daemon, store) = connected(0);

    let outcome: Result<(), Error> = store.transaction(|tx| {
        tx.write("/a", "1")?;
        tx.read("/missing").map(drop)
    });

    assert!(outcome.unwrap_err().is_not_found());
    // A reply to anything later shows that the discarding was carried out.
    assert!(!store.exists("/a").unwrap());
    assert_eq!(daemon.transactions(), 0);
}

#[test]
fn transaction_that_conflicts_is_run_again() {
    let (daemon, store) = connected(0);
    daemon.write("/counter", "1").unwrap();
    let runs = AtomicU32::new(0);

    let outcome: Result<(), Error> = store.transaction(|tx| {
        let seen: u32 = tx.at("/").read("counter")?;
        if runs.fetch_add(1, Ordering::Relaxed) < 2 {
            daemon.write("/counter", format!("{}", seen + 10)).unwrap();
            // The moment of its start is what a transaction sees.
            assert_eq!(tx.at("/").read::<u32>("counter")?, seen);
        }
        tx.at("/").write("counter", seen + 1)
    });

    outcome.unwrap();
    assert_eq!(runs.load(Ordering::Relaxed), 3);
    assert_eq!(daemon.read("/counter").as_deref(), Some("22"));
}

#[test]
fn transaction_that_always_conflicts_is_given_up() {
    let (daemon, _) = connected(0);
    let options = Options {
        transaction_attempts: 6,
        ..Options::default()
    };
    let store = Xenstore::from_stream_with(daemon.connect(DomId(0)).unwrap(), options).unwrap();
    let runs = AtomicU32::new(0);

    let outcome: Result<(), Error> = store.transaction(|tx| {
        let run = runs.fetch_add(1, Ordering::Relaxed);
        daemon.write("/x", run.to_string()).unwrap();
        tx.write("/x", "mine")?;
        daemon.write("/x", "theirs").unwrap();
        Ok(())
    });

    assert!(matches!(outcome, Err(Error::Conflict { attempts: 6 })));
    assert_eq!(runs.load(Ordering::Relaxed), 6);
    assert_eq!(daemon.read("/x").as_deref(), Some("theirs"));
}

#[test]
fn transactions_of_several_threads_lose_nothing() {
    let (daemon, store) = connected(0);
    daemon.write("/counter", "0").unwrap();
    let other = client(&daemon, 0);
    let add = |store: &Xenstore| {
        for _ in 0..25 {
            let done: Result<(), Error> = store.transaction(|tx| {
                let seen: u32 = tx.at("/").read("counter")?;
                tx.at("/").write("counter", seen + 1)
            });
            done.unwrap();
        }
    };

    std::thread::scope(|scope| {
        // Two on one connection, one on another.
        scope.spawn(|| add(&store));
        scope.spawn(|| add(&store.clone()));
        scope.spawn(|| add(&other));
    });

    assert_eq!(daemon.read("/counter").as_deref(), Some("75"));
}

#[test]
fn replies_reach_the_thread_that_asked() {
    let (daemon, store) = connected(0);
    for n in 0..4 {
        daemon.write(&format!("/n/{n}"), n.to_string()).unwrap();
    }

    std::thread::scope(|scope| {
        for n in 0..4 {
            let store = &store;
            scope.spawn(move || {
                let path = format!("/n/{n}");
                for _ in 0..200 {
                    assert_eq!(store.read_string(&path).unwrap(), n.to_string());
                }
            });
        }
    });
}
