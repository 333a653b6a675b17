use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use proptest::prelude::*;

use super::super::wire::{Decoder, Kind, Message, encode};
use super::super::{Errno, Error, Event, Tree, Xenstore};
use super::{LONG, SHORT, hasty};
use crate::DomId;

/// A daemon that answers each request with what `answer` makes of it.
fn scripted(
    answer: impl Fn(&Message) -> Vec<u8> + Send + 'static,
) -> (Xenstore, std::thread::JoinHandle<()>) {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.set_read_timeout(Some(LONG)).unwrap();
    let peer = std::thread::spawn(move || {
        let mut decoder = Decoder::default();
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = theirs.read(&mut buffer) {
            decoder.feed(&buffer[..count]);
            while let Ok(Some(request)) = decoder.next_message() {
                if theirs.write_all(&answer(&request)).is_err() {
                    return;
                }
            }
        }
    });
    (Xenstore::from_stream_with(ours, hasty()).unwrap(), peer)
}

/// A message in answer to `request`.
fn reply(request: &Message, kind: Kind, payload: &[u8]) -> Vec<u8> {
    encode(kind.number(), request.req_id, request.tx_id, &[payload]).unwrap()
}

/// What a call returns when every request is answered with this.
fn answered<T>(
    kind: Kind,
    payload: &'static [u8],
    call: impl FnOnce(&Xenstore) -> Result<T, Error>,
) -> Result<T, Error> {
    let (store, peer) = scripted(move |request| reply(request, kind, payload));
    let outcome = call(&store);
    drop(store);
    peer.join().unwrap();
    outcome
}

#[test]
fn reply_of_another_type_is_malformed() {
    let outcome = answered(Kind::Write, b"OK\0", |store| store.read("/a"));

    let text = outcome.unwrap_err().to_string();
    assert_eq!(text, "xenstore READ /a: malformed reply, its type is 11");
}

#[test]
fn error_without_a_name_is_malformed() {
    for payload in [&b""[..], b"ENOENT", b"\xff"] {
        let outcome = answered(Kind::Error, payload, |store| store.read("/a"));

        assert!(
            matches!(outcome, Err(Error::Malformed { .. })),
            "{payload:?}"
        );
    }
}

#[test]
fn error_of_an_unknown_name_is_kept() {
    let outcome = answered(Kind::Error, b"EFANCY\0", |store| store.read("/a"));

    assert_eq!(
        outcome.unwrap_err().errno(),
        Some(&Errno::Other("EFANCY".to_owned()))
    );
}

#[test]
fn lists_that_do_not_end_are_malformed() {
    let directory = answered(Kind::Directory, b"a\0b", |store| store.directory("/a"));
    let bytes = answered(Kind::Directory, b"a\0\xff\0", |store| store.directory("/a"));
    let permissions = answered(Kind::GetPerms, b"n0\0x", |store| {
        store.get_permissions("/a")
    });

    assert!(matches!(directory, Err(Error::Malformed { .. })));
    assert!(matches!(bytes, Err(Error::Malformed { .. })));
    assert!(matches!(permissions, Err(Error::Malformed { .. })));
}

#[test]
fn permissions_that_are_none_are_malformed() {
    for payload in [&b""[..], b"q0\0", b"n70000\0", b"\0"] {
        let outcome = answered(Kind::GetPerms, payload, |store| store.get_permissions("/a"));

        assert!(
            matches!(outcome, Err(Error::Malformed { .. })),
            "{payload:?}"
        );
    }
}

#[test]
fn answers_about_domains_that_are_none_are_malformed() {
    for payload in [&b""[..], b"maybe\0", b"T", b"T\0F\0"] {
        let outcome = answered(Kind::IsDomainIntroduced, payload, |store| {
            store.is_domain_introduced(DomId(1))
        });

        assert!(
            matches!(outcome, Err(Error::Malformed { .. })),
            "{payload:?}"
        );
    }
    let path = answered(Kind::GetDomainPath, b"\xff\0", |store| {
        store.get_domain_path(DomId(1))
    });
    assert!(matches!(path, Err(Error::Malformed { .. })));
}

#[test]
fn transaction_ids_that_are_none_are_malformed() {
    for payload in [
        &b""[..],
        b"one\0",
        b"0\0",
        b"-1\0",
        b"4294967296\0",
        b"\xff\0",
    ] {
        let outcome = answered(Kind::TransactionStart, payload, |store| {
            store.transaction(|_| Ok::<(), Error>(()))
        });

        assert!(
            matches!(outcome, Err(Error::Malformed { .. })),
            "{payload:?}"
        );
    }
}

#[test]
fn long_list_without_progress_is_malformed() {
    let (store, peer) = scripted(|request| match Kind::from_wire(request.kind) {
        Some(Kind::DirectoryPart) => reply(request, Kind::DirectoryPart, b"7\0"),
        _ => reply(request, Kind::Error, b"E2BIG\0"),
    });

    let outcome = store.directory("/a");

    assert!(matches!(outcome, Err(Error::Malformed { .. })));
    drop(store);
    peer.join().unwrap();
}

#[test]
fn long_list_that_always_changes_is_given_up() {
    let generation = std::sync::atomic::AtomicU32::new(0);
    let (store, peer) = scripted(move |request| match Kind::from_wire(request.kind) {
        Some(Kind::DirectoryPart) => {
            let count = generation.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            reply(
                request,
                Kind::DirectoryPart,
                format!("{count}\0name\0").as_bytes(),
            )
        }
        _ => reply(request, Kind::Error, b"E2BIG\0"),
    });

    let outcome = store.directory("/a");

    assert_eq!(outcome.unwrap_err().errno(), Some(&Errno::Again));
    drop(store);
    peer.join().unwrap();
}

#[test]
fn silence_is_a_timeout_and_a_late_reply_harms_nobody() {
    let late = std::sync::Mutex::new(Vec::new());
    let (store, peer) = scripted(move |request| {
        let mut late = late.lock().unwrap();
        let mine = reply(request, Kind::Read, request.payload.split_last().unwrap().1);
        if request.payload.starts_with(b"/silent") {
            *late = mine;
            return Vec::new();
        }
        let mut both = std::mem::take(&mut *late);
        both.extend(mine);
        both
    });

    let outcome = store.read("/silent");

    let after = Duration::from_millis(100);
    assert!(matches!(outcome, Err(Error::Timeout { after: waited, .. }) if waited == after));
    assert_eq!(store.read("/a").unwrap(), b"/a");
    assert_eq!(store.read("/b").unwrap(), b"/b");
    drop(store);
    peer.join().unwrap();
}

#[test]
fn transaction_begun_too_late_is_ended() {
    let (ended, seen) = std::sync::mpsc::channel();
    let start = std::sync::Mutex::new(None);
    let (store, peer) = scripted(move |request| match Kind::from_wire(request.kind) {
        Some(Kind::TransactionStart) => {
            *start.lock().unwrap() = Some(reply(request, Kind::TransactionStart, b"33\0"));
            Vec::new()
        }
        Some(Kind::TransactionEnd) => {
            ended
                .send((request.tx_id, request.payload.clone()))
                .unwrap();
            Vec::new()
        }
        _ => start.lock().unwrap().take().unwrap_or_default(),
    });

    let outcome = store.transaction(|_| Ok::<(), Error>(()));
    assert!(matches!(outcome, Err(Error::Timeout { .. })));
    let _ = store.read("/wakes-the-peer");

    assert_eq!(seen.recv_timeout(LONG), Ok((33, b"F\0".to_vec())));
    drop(store);
    peer.join().unwrap();
}

#[test]
fn header_that_announces_too_much_ends_the_connection() {
    let (store, peer) = scripted(|request| {
        let mut bytes = reply(request, Kind::Read, b"");
        bytes[12..16].copy_from_slice(&4097_u32.to_le_bytes());
        bytes
    });

    let outcome = store.read("/a");

    assert!(outcome.unwrap_err().is_disconnected());
    assert_eq!(store.wait_event(LONG), Some(Event::Disconnected));
    peer.join().unwrap();
}

#[test]
fn malformed_and_foreign_watch_events_are_ignored() {
    let (store, peer) = scripted(|request| {
        let events: [&[u8]; 6] = [
            b"",
            b"/a",
            b"/a\0",
            b"/a\0not-a-token\0",
            b"/a\0999999\0",
            b"\xff\x001\0",
        ];
        let mut bytes: Vec<u8> = events
            .iter()
            .flat_map(|event| encode(Kind::WatchEvent.number(), 0, 0, &[event]).unwrap())
            .collect();
        let kind = Kind::from_wire(request.kind).unwrap();
        bytes.extend(reply(request, kind, b"OK\0"));
        bytes
    });

    let _watch = store.watch("/a").unwrap();
    assert_eq!(store.read("/a").unwrap(), b"OK\0");

    assert_eq!(store.wait_event(SHORT), None);
    drop(store);
    peer.join().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn no_payload_makes_the_client_panic(payload in prop::collection::vec(any::<u8>(), 0..64)) {
        let (store, peer) = scripted(move |request| {
            let kind = Kind::from_wire(request.kind).unwrap();
            reply(request, kind, &payload)
        });

        let _ = store.directory("/a");
        let _ = store.get_permissions("/a");
        let _ = store.read_string("/a");
        let _ = store.is_domain_introduced(DomId(1));
        let _ = store.get_domain_path(DomId(1));
        let _ = store.transaction(|tx| tx.exists("/a"));

        // Whatever it was, the connection is still in step.
        prop_assert!(store.is_connected());
        drop(store);
        prop_assert!(peer.join().is_ok());
    }
}
