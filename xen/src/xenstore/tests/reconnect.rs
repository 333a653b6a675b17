use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use super::super::{Backoff, Error, Event, Options, Tree, Xenstore};
use super::{LONG, client, connected, eventually, watch_event};
use crate::DomId;
use crate::fake::xenstored::Store;

/// A connection that comes back.
fn lasting(daemon: &Store, attempts: u32) -> Xenstore {
    let daemon = daemon.clone();
    let reconnect = Backoff {
        first: Duration::from_millis(1),
        longest: Duration::from_millis(10),
        attempts,
    };
    let options = Options {
        reconnect,
        ..Options::default()
    };
    Xenstore::with_connector(move || daemon.connect(DomId(0)), options).unwrap()
}

#[test]
fn restart_is_told_and_every_watch_fires_again() {
    let daemon = Store::new().unwrap();
    let store = lasting(&daemon, 1000);
    let watches = [store.watch("/a").unwrap(), store.watch("/b").unwrap()];
    watch_event(&store);
    watch_event(&store);

    daemon.restart();

    assert_eq!(store.wait_event(LONG), Some(Event::Disconnected));
    assert_eq!(store.wait_event(LONG), Some(Event::Reconnected));
    let fired = [watch_event(&store), watch_event(&store)];
    assert_eq!(
        fired.map(|event| event.token),
        [watches[0].token(), watches[1].token()]
    );
    assert!(store.exists("/tool").unwrap());
    daemon.write("/a/x", "").unwrap();
    assert_eq!(watch_event(&store).path, "/a/x");
    assert_eq!(daemon.watches(), 2);
}

#[test]
fn dropped_watches_are_not_registered_again() {
    let daemon = Store::new().unwrap();
    let store = lasting(&daemon, 1000);
    let kept = store.watch("/kept").unwrap();
    drop(store.watch("/dropped").unwrap());

    daemon.restart();
    eventually("back again", || {
        daemon.watches() == 1 && store.is_connected()
    });

    daemon.write("/dropped", "").unwrap();
    daemon.write("/kept", "").unwrap();
    let paths: Vec<_> = std::iter::from_fn(|| store.wait_event(super::SHORT)).collect();
    assert!(!format!("{paths:?}").contains("/dropped"), "{paths:?}");
    drop(kept);
}

#[test]
fn requests_fail_typed_while_the_daemon_is_gone() {
    let daemon = Store::new().unwrap();
    let store = lasting(&daemon, 1000);
    daemon.set_accepting(false);

    daemon.restart();
    assert_eq!(store.wait_event(LONG), Some(Event::Disconnected));

    let error = store.read("/tool").unwrap_err();
    assert!(matches!(&error, Error::Disconnected { subject, .. } if subject == "/tool"));
    assert_eq!(
        error.to_string(),
        "xenstore READ /tool: not connected to xenstored"
    );
    assert!(store.watch("/a").unwrap_err().is_disconnected());
    daemon.set_accepting(true);
    assert_eq!(store.wait_event(LONG), Some(Event::Reconnected));
    assert!(store.exists("/tool").unwrap());
}

#[test]
fn pending_request_fails_typed_when_the_connection_is_lost() {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let store = Xenstore::from_stream(ours).unwrap();

    let outcome = std::thread::scope(|scope| {
        let asking = scope.spawn(|| store.read("/a"));
        // The request is on its way before the peer goes.
        std::io::Read::read_exact(&mut &theirs, &mut [0; 19]).unwrap();
        drop(theirs);
        asking.join().unwrap()
    });

    assert!(outcome.unwrap_err().is_disconnected());
    assert_eq!(store.wait_event(LONG), Some(Event::Disconnected));
    assert!(matches!(store.reconnect(), Err(Error::Reconnect { .. })));
    assert!(!store.is_connected());
}

#[test]
fn giving_up_is_told_and_can_be_taken_back() {
    let daemon = Store::new().unwrap();
    let store = lasting(&daemon, 3);
    let watch = store.watch("/a").unwrap();
    watch_event(&store);
    daemon.set_accepting(false);

    daemon.restart();
    assert_eq!(store.wait_event(LONG), Some(Event::Disconnected));
    assert_eq!(store.wait_event(LONG), Some(Event::GaveUp));
    daemon.set_accepting(true);
    store.reconnect().unwrap();

    assert_eq!(store.wait_event(LONG), Some(Event::Reconnected));
    assert_eq!(watch_event(&store).token, watch.token());
}

#[test]
fn transaction_does_not_outlive_its_connection() {
    let daemon = Store::new().unwrap();
    let store = lasting(&daemon, 1000);
    let runs = AtomicU32::new(0);

    let outcome: Result<(), Error> = store.transaction(|tx| {
        runs.fetch_add(1, Ordering::Relaxed);
        tx.write("/a", "before")?;
        daemon.restart();
        eventually("back again", || {
            daemon.connections() == 1 && store.is_connected()
        });
        tx.write("/a", "after")
    });

    assert!(outcome.unwrap_err().is_disconnected());
    assert_eq!(runs.load(Ordering::Relaxed), 1);
    assert!(!daemon.exists("/a"));
}

#[test]
fn use_from_two_threads_survives_restarts() {
    let daemon = Store::new().unwrap();
    let store = lasting(&daemon, 100_000);
    let stop = Arc::new(AtomicBool::new(false));
    let _watch = store.watch("/busy").unwrap();
    let work = |name: &str| {
        let (mut done, mut lost) = (0_u32, 0_u32);
        while !stop.load(Ordering::Relaxed) {
            let path = format!("/busy/{name}");
            let written = store
                .write(&path, done.to_string())
                .and_then(|()| store.read_string(&path));
            match written {
                Ok(text) => {
                    assert_eq!(text, done.to_string());
                    done += 1;
                }
                Err(error) => {
                    assert!(error.is_disconnected(), "{error}");
                    lost += 1;
                    std::thread::yield_now();
                }
            }
        }
        (done, lost)
    };

    let results = std::thread::scope(|scope| {
        let threads = [scope.spawn(|| work("one")), scope.spawn(|| work("two"))];
        let mut reconnections = 0;
        while reconnections < 10 {
            daemon.restart();
            while store.wait_event(LONG).unwrap() != Event::Reconnected {}
            reconnections += 1;
            // Some work on each connection.
            let seen = daemon.read("/busy/one");
            eventually("work goes on", || daemon.read("/busy/one") != seen);
        }
        stop.store(true, Ordering::Relaxed);
        threads.map(|thread| thread.join().unwrap())
    });

    for (done, _lost) in results {
        assert!(done >= 1);
    }
    assert_eq!(daemon.connections(), 1);
    assert_eq!(daemon.watches(), 1);
}

#[test]
fn connection_to_a_path_comes_back() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let daemon = Store::new().unwrap();
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let proxied = daemon.clone();
    // Accepts twice, joining each connection to the fake daemon's.
    let accepting = std::thread::spawn(move || {
        for _ in 0..2 {
            let (stream, _) = listener.accept().unwrap();
            let inner = proxied.connect(DomId(0)).unwrap();
            join(stream, inner);
        }
    });
    let store = Xenstore::open_path(&path, Options::default()).unwrap();
    let watch = store.watch("/a").unwrap();
    watch_event(&store);

    daemon.restart();

    assert_eq!(store.wait_event(LONG), Some(Event::Disconnected));
    assert_eq!(store.wait_event(LONG), Some(Event::Reconnected));
    assert_eq!(watch_event(&store).token, watch.token());
    accepting.join().unwrap();
    drop((watch, store));
    eventually("closed", || daemon.connections() == 0);
}

/// Copies both ways until either side ends.
fn join(one: std::os::unix::net::UnixStream, two: std::os::unix::net::UnixStream) {
    for (mut from, mut to) in [
        (one.try_clone().unwrap(), two.try_clone().unwrap()),
        (two, one),
    ] {
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut from, &mut to);
            let _ = to.shutdown(std::net::Shutdown::Both);
            let _ = from.shutdown(std::net::Shutdown::Both);
        });
    }
}

#[test]
fn opening_where_nothing_is_tells_what_was_tried() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");

    let error = Xenstore::open_path(&path, Options::default()).unwrap_err();

    assert!(matches!(&error, Error::Unavailable { tried } if tried.len() == 1));
    assert!(
        error.to_string().contains(path.to_str().unwrap()),
        "{error}"
    );
}

#[test]
fn other_connections_outlive_one() {
    let (daemon, one) = connected(0);
    let two = client(&daemon, 0);

    drop(one);

    assert!(two.exists("/tool").unwrap());
}
