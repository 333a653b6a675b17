use proptest::prelude::*;

use super::super::wire::{
    Decoder, FrameError, HEADER_LEN, Kind, Message, PAYLOAD_MAX, encode, strings,
};

/// `READ /a`, request 7 in transaction 9.
const READ: [u8; 19] = [
    2, 0, 0, 0, 7, 0, 0, 0, 9, 0, 0, 0, 3, 0, 0, 0, b'/', b'a', 0,
];
/// An `ERROR ENOENT` in answer to it.
const ENOENT: [u8; 23] = [
    16, 0, 0, 0, 7, 0, 0, 0, 9, 0, 0, 0, 7, 0, 0, 0, b'E', b'N', b'O', b'E', b'N', b'T', 0,
];

#[test]
fn read_request_has_the_bytes_of_the_header_file() {
    let message = encode(Kind::Read.number(), 7, 9, &[b"/a", b"\0"]);

    assert_eq!(message.as_deref(), Some(&READ[..]));
}

#[test]
fn error_reply_is_read_from_its_bytes() {
    let mut decoder = Decoder::default();
    decoder.feed(&ENOENT);

    let message = decoder.next_message().unwrap().unwrap();

    let payload = b"ENOENT\0".to_vec();
    assert_eq!(
        message,
        Message {
            kind: 16,
            req_id: 7,
            tx_id: 9,
            payload
        }
    );
    assert_eq!(decoder.next_message(), Ok(None));
}

#[test]
fn every_kind_has_the_number_of_the_header_file() {
    let expected = [
        (0, "CONTROL"),
        (1, "DIRECTORY"),
        (2, "READ"),
        (3, "GET_PERMS"),
        (4, "WATCH"),
        (5, "UNWATCH"),
        (6, "TRANSACTION_START"),
        (7, "TRANSACTION_END"),
        (8, "INTRODUCE"),
        (9, "RELEASE"),
        (10, "GET_DOMAIN_PATH"),
        (11, "WRITE"),
        (12, "MKDIR"),
        (13, "RM"),
        (14, "SET_PERMS"),
        (15, "WATCH_EVENT"),
        (16, "ERROR"),
        (17, "IS_DOMAIN_INTRODUCED"),
        (18, "RESUME"),
        (19, "SET_TARGET"),
        (21, "RESET_WATCHES"),
        (22, "DIRECTORY_PART"),
        (23, "GET_FEATURE"),
        (24, "SET_FEATURE"),
        (25, "GET_QUOTA"),
        (26, "SET_QUOTA"),
    ];

    let known: Vec<(u32, &str)> = (0..1000)
        .filter_map(|n| Kind::from_wire(n).map(|kind| (kind.number(), kind.name())))
        .collect();

    assert_eq!(known, expected);
}

#[test]
fn payload_of_exactly_4096_bytes_is_the_longest() {
    let longest = vec![b'x'; PAYLOAD_MAX];

    assert_eq!(PAYLOAD_MAX, 4096);
    assert_eq!(
        encode(2, 1, 0, &[&longest]).map(|m| m.len()),
        Some(HEADER_LEN + 4096)
    );
    assert_eq!(encode(2, 1, 0, &[&longest, b"x"]), None);
}

#[test]
fn header_that_announces_more_is_an_error_and_stays_one() {
    let mut decoder = Decoder::default();
    decoder.feed(&[2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 16, 0, 0]);

    assert_eq!(decoder.next_message(), Err(FrameError { len: 4097 }));
    decoder.feed(&READ);
    assert_eq!(decoder.next_message(), Err(FrameError { len: 4097 }));
}

#[test]
fn strings_end_with_a_nul_each() {
    assert_eq!(strings(b""), Some(vec![]));
    assert_eq!(strings(b"\0"), Some(vec![&b""[..]]));
    assert_eq!(strings(b"a\0bc\0"), Some(vec![&b"a"[..], b"bc"]));
    assert_eq!(strings(b"a\0\0"), Some(vec![&b"a"[..], b""]));
    assert_eq!(strings(b"a\0b"), None);
}

proptest! {
    #[test]
    fn messages_survive_any_cutting_of_the_stream(
        messages in prop::collection::vec(
            (any::<u32>(), any::<u32>(), any::<u32>(), prop::collection::vec(any::<u8>(), 0..200)),
            1..6,
        ),
        size in 1_usize..64,
    ) {
        let messages: Vec<Message> = messages
            .into_iter()
            .map(|(kind, req_id, tx_id, payload)| Message { kind, req_id, tx_id, payload })
            .collect();
        let stream: Vec<u8> = messages
            .iter()
            .flat_map(|m| encode(m.kind, m.req_id, m.tx_id, &[&m.payload]).unwrap())
            .collect();
        let mut decoder = Decoder::default();
        let mut seen = Vec::new();

        for piece in stream.chunks(size) {
            decoder.feed(piece);
            while let Some(message) = decoder.next_message().unwrap() {
                seen.push(message);
            }
        }

        prop_assert_eq!(seen, messages);
    }

    #[test]
    fn any_bytes_are_messages_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        let mut decoder = Decoder::default();
        decoder.feed(&bytes);

        let mut used = 0;
        while let Ok(Some(message)) = decoder.next_message() {
            used += HEADER_LEN + message.payload.len();
        }

        prop_assert!(used <= bytes.len());
    }
}
