//! The client against the fake daemon, and against peers that keep no rules.

mod client;
mod malformed;
mod pure;
mod reconnect;
mod watches;
mod wire;

use std::time::Duration;

use super::{Event, Options, WatchEvent, Xenstore};
use crate::DomId;
use crate::fake::xenstored::Store;

/// Long enough for anything that is going to happen.
const LONG: Duration = Duration::from_secs(10);
/// How long something that must not happen is waited for.
const SHORT: Duration = Duration::from_millis(50);

/// A daemon and a connection to it as `domain`.
fn connected(domain: u16) -> (Store, Xenstore) {
    let daemon = Store::new().unwrap();
    let store = client(&daemon, domain);
    (daemon, store)
}

/// Another connection.
fn client(daemon: &Store, domain: u16) -> Xenstore {
    Xenstore::from_stream(daemon.connect(DomId(domain)).unwrap()).unwrap()
}

/// Options under which a peer that does not answer is given up soon.
fn hasty() -> Options {
    Options {
        timeout: Duration::from_millis(100),
        ..Options::default()
    }
}

/// The next watch event.
fn watch_event(store: &Xenstore) -> WatchEvent {
    match store.wait_event(LONG) {
        Some(Event::Watch(event)) => event,
        other => panic!("a watch event was expected, not {other:?}"),
    }
}

/// Waits, within a bound, until `done` says so.
fn eventually(what: &str, done: impl Fn() -> bool) {
    let start = std::time::Instant::now();
    while !done() {
        assert!(start.elapsed() < LONG, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
