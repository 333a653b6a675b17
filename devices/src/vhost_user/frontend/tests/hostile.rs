//! Back ends of which no byte makes sense.

use std::io::Write;
use std::os::unix::net::UnixListener;

use proptest::prelude::*;
use vhost::vhost_user::message::FrontendReq;

use super::partner::{message, receive};
use super::{Rig, config, open};
use crate::testing::Buffer;
use crate::virtio::Device;

/// What is said in place of an answer: bytes, or a message that is nearly one.
fn word() -> impl Strategy<Value = Vec<u8>> {
    let codes = prop::sample::select(vec![
        FrontendReq::GET_FEATURES as u32,
        FrontendReq::GET_PROTOCOL_FEATURES as u32,
        FrontendReq::SET_OWNER as u32,
        FrontendReq::GET_QUEUE_NUM as u32,
        FrontendReq::SET_BACKEND_REQ_FD as u32,
        FrontendReq::GET_CONFIG as u32,
    ]);
    let body = prop_oneof![
        any::<u64>().prop_map(|value| value.to_ne_bytes().to_vec()),
        Just(u64::MAX.to_ne_bytes().to_vec()),
        Just(0u64.to_ne_bytes().to_vec()),
        prop::collection::vec(any::<u8>(), 0..300),
    ];
    prop_oneof![
        1 => prop::collection::vec(any::<u8>(), 0..64),
        8 => (codes, prop_oneof![9 => Just(5u32), 1 => any::<u32>()], body)
            .prop_map(|(code, flags, body)| message(code, flags, &body)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn whatever_a_back_end_says_the_device_stays_and_can_be_taken_away(
        words in prop::collection::vec(word(), 0..10)
    ) {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        let back_end = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            for word in words {
                if receive(&stream).is_none() || stream.write_all(&word).is_err() {
                    return;
                }
            }
        });

        let opened = open(config(&socket));
        if let Ok(device) = &opened {
            let mut space = [0; 300];
            device.read_config(0, &mut space);
            let _ = device.features();
        }
        drop(opened);

        prop_assert!(back_end.join().is_ok());
    }

    #[test]
    fn whatever_stands_in_the_used_ring_nothing_else_of_the_guests_is_touched(
        rooms in prop::collection::vec(1usize..3000, 1..6),
        entries in prop::collection::vec(
            (prop_oneof![4 => 0u32..8, 1 => any::<u32>()],
             prop_oneof![4 => 0u32..3500, 1 => any::<u32>()]),
            0..10,
        ),
        jump in prop_oneof![6 => Just(0u16), 1 => any::<u16>()],
    ) {
        let mut rig = Rig::new();
        let guard = [0x55; 64];
        let mut buffers: Vec<(Buffer, Buffer)> = Vec::new();
        for room in &rooms {
            let buffer = rig.writable(*room);
            buffers.push((buffer, rig.writable(guard.len())));
            rig.ring.add(&[buffer]);
        }
        rig.serve().unwrap();
        for _ in &rooms {
            rig.partner.take();
        }

        rig.partner.scribble(0xee);
        rig.partner.push_used(&entries);
        let index = entries.len() as u16;
        rig.partner.show_used(index.wrapping_add(jump));
        let _ = rig.advance();

        let used = rig.ring.used();
        let mut heads: Vec<u16> = used.iter().map(|(head, _)| *head).collect();
        heads.sort_unstable();
        heads.dedup();
        prop_assert_eq!(heads.len(), used.len(), "used twice");
        for (head, len) in used {
            prop_assert!(len as usize <= rooms[usize::from(head)]);
            let bytes = rig.read(buffers[usize::from(head)].0);
            let (written, rest) = bytes.split_at(len as usize);
            prop_assert!(written.iter().all(|byte| *byte == 0xee));
            prop_assert!(rest.iter().all(|byte| *byte == 0x55));
        }
        for (head, (buffer, behind)) in buffers.iter().enumerate() {
            prop_assert_eq!(rig.read(*behind), guard);
            if heads.binary_search(&(head as u16)).is_err() {
                prop_assert!(rig.read(*buffer).iter().all(|byte| *byte == 0x55));
            }
        }
    }
}
