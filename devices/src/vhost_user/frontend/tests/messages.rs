//! Answers that are none: each is named, ends the connection and nothing else.

use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use vhost::vhost_user::message::FrontendReq;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::partner::{Character, PROTOCOL_FEATURES, Partner, message};
use super::{PATIENCE, Rig, config, eventually, open};
use crate::vhost_user::frontend::peer::{Peer, until};
use crate::virtio::Device;
use crate::virtio::bell::Bell;
use crate::virtio::features::VERSION_1;

const REPLY: u32 = 5;

/// Why a device cannot be made of such a back end.
fn refused(character: Character) -> String {
    let partner = Partner::with(character);
    let error = open(config(partner.socket())).unwrap_err().to_string();
    let socket = partner.socket().to_str().unwrap();
    assert!(error.contains(socket), "{error}");
    error
}

fn instead(request: FrontendReq, bytes: Vec<u8>) -> Character {
    Character {
        instead: Some((request, bytes)),
        ..Character::default()
    }
}

#[test]
fn malformed_answers_to_every_question_are_named() {
    let questions = [
        (FrontendReq::GET_FEATURES, "GET_FEATURES"),
        (FrontendReq::GET_PROTOCOL_FEATURES, "GET_PROTOCOL_FEATURES"),
        (FrontendReq::GET_QUEUE_NUM, "GET_QUEUE_NUM"),
        (FrontendReq::GET_CONFIG, "GET_CONFIG"),
    ];
    for (request, name) in questions {
        let code = request as u32;
        let malformed = [
            message(code, REPLY, &[0]),
            message(code, REPLY, &[0; 7]),
            message(code, REPLY, &[0; 9]),
            message(code, 1, &[0; 8]),
            message(code, 4, &[0; 8]),
            message(code ^ 64, REPLY, &[0; 8]),
            [code, REPLY, 5000].map(u32::to_ne_bytes).concat(),
            [code, REPLY, u32::MAX].map(u32::to_ne_bytes).concat(),
        ];
        for bytes in malformed {
            let error = refused(instead(request, bytes));

            assert!(error.contains(name), "{name}: {error}");
        }
    }
}

#[test]
fn a_configuration_space_that_was_not_asked_for_is_named() {
    // what is asked for is 256 bytes from 0 on
    for (at, size, len) in [
        (0, 256, 257),
        (0, 256, 255),
        (0, 257, 257),
        (0, 255, 255),
        (4, 256, 256),
    ] {
        let words = [at, size, 0].map(u32::to_ne_bytes).concat();
        let body = [words, vec![7; len]].concat();
        let bytes = message(FrontendReq::GET_CONFIG as u32, REPLY, &body);

        let error = refused(instead(FrontendReq::GET_CONFIG, bytes));

        assert!(error.contains("asked for 256 bytes at 0"), "{error}");
    }
}

#[test]
fn an_answer_with_files_is_named_and_they_are_closed() {
    let (own, its) = UnixStream::pair().unwrap();
    own.set_nonblocking(true).unwrap();
    let (kept, given) = UnixStream::pair().unwrap();
    let peer = Peer::new(own.into(), PATIENCE);
    let bytes = message(FrontendReq::GET_FEATURES as u32, REPLY, &[0; 8]);
    its.send_with_fd(&bytes[..], given.as_raw_fd()).unwrap();
    drop(given);
    let quit = Bell::new().unwrap();

    let error = peer.features(&until(&quit)).unwrap_err();

    assert!(error.to_string().contains("answered with files"), "{error}");
    assert_eq!(
        (&kept).read(&mut [0]).unwrap(),
        0,
        "nobody has its other end"
    );
}

#[test]
fn who_answers_nothing_about_its_configuration_space_has_none() {
    let nothing = message(FrontendReq::GET_CONFIG as u32, REPLY, &[]);
    let partner = Partner::with(instead(FrontendReq::GET_CONFIG, nothing));
    let device = open(config(partner.socket())).unwrap();
    let mut byte = [9];

    device.read_config(0, &mut byte);

    assert_eq!(byte, [0]);
}

#[test]
fn a_refusal_of_every_word_is_named() {
    let words = [
        (FrontendReq::SET_OWNER, "SET_OWNER"),
        (FrontendReq::SET_BACKEND_REQ_FD, "SET_BACKEND_REQ_FD"),
    ];
    for (request, name) in words {
        let no = message(request as u32, REPLY, &7u64.to_ne_bytes());

        let error = refused(instead(request, no));

        assert!(error.contains(name) && error.contains('7'), "{error}");
    }
}

#[test]
fn a_refusal_once_the_driver_is_up_is_retried_and_hurts_nobody() {
    let words = [
        FrontendReq::SET_FEATURES,
        FrontendReq::SET_MEM_TABLE,
        FrontendReq::SET_VRING_NUM,
        FrontendReq::SET_VRING_BASE,
        FrontendReq::SET_VRING_ADDR,
        FrontendReq::SET_VRING_CALL,
        FrontendReq::SET_VRING_KICK,
        FrontendReq::SET_VRING_ENABLE,
    ];
    for request in words {
        let mut rig = Rig::new();
        let no = message(request as u32, REPLY, &1u64.to_ne_bytes());
        rig.partner
            .change(|character| character.instead = Some((request, no)));

        rig.partner.die();
        eventually("a second try", || {
            let _ = rig.handler.advance(&mut rig.queue);
            rig.partner.connections() > 2
        });
        rig.partner.change(|character| character.instead = None);
        eventually("it is served again", || {
            let _ = rig.handler.advance(&mut rig.queue);
            rig.handler.room() > 0
        });

        assert!(!rig.notifier.needs_reset());
    }
}

#[test]
fn an_answer_about_another_ring_ends_the_connection() {
    let mut rig = Rig::new();
    let other = message(FrontendReq::GET_VRING_BASE as u32, REPLY, &[1; 8]);
    rig.partner.change(|character| {
        character.instead = Some((FrontendReq::GET_VRING_BASE, other));
    });

    rig.handler.settle(&mut rig.queue);

    eventually("another connection", || rig.stat("connections") == 2);
}

#[test]
fn back_ends_that_cannot_serve_are_refused_with_the_reason() {
    let legacy = refused(Character {
        features: PROTOCOL_FEATURES,
        ..Character::default()
    });
    let few = refused(Character {
        queues: 0,
        ..Character::default()
    });

    assert!(legacy.contains("VIRTIO_F_VERSION_1"), "{legacy}");
    assert!(few.contains("0 queues, and 1 are configured"), "{few}");
}

#[test]
fn a_configuration_space_that_is_not_as_long_as_configured_is_refused() {
    let partner = Partner::with(Character {
        exact: true,
        ..Character::default()
    });
    let with_size = |size| {
        let config = crate::vhost_user::frontend::VhostUserConfig {
            config_size: Some(size),
            ..config(partner.socket())
        };
        // one after the other: it serves one front end at a time
        open(config).map(drop).map_err(|error| error.to_string())
    };

    let (fits, too_long) = (with_size(60), with_size(61));

    assert_eq!(fits, Ok(()));
    let error = too_long.unwrap_err();
    assert!(
        error.contains("60 bytes") && error.contains("61"),
        "{error}"
    );
}

#[test]
fn all_of_a_configuration_space_is_found_where_more_is_refused() {
    for len in [0, 1, 60, 128, 255, 256] {
        let partner = Partner::with(Character {
            exact: true,
            config: vec![7; len],
            ..Character::default()
        });
        let device = open(config(partner.socket())).unwrap();
        let mut space = [0; 300];

        device.read_config(0, &mut space);

        assert_eq!(space.iter().filter(|byte| **byte == 7).count(), len);
        assert!(space[len..].iter().all(|byte| *byte == 0));
    }
}

#[test]
fn a_back_end_of_before_protocol_features_is_served() {
    let partner = Partner::with(Character {
        features: VERSION_1,
        ..Character::default()
    });

    let mut rig = Rig::with(partner, |_| {});
    let buffer = rig.readable(b"plain");
    rig.ring.add(&[buffer]);
    rig.serve().unwrap();
    let (head, _) = rig.partner.take();
    let used = rig.used(&[(head.into(), 0)]).unwrap();

    assert_eq!(used, [(0, 0)]);
    assert!(rig.partner.bodies(FrontendReq::SET_VRING_ENABLE).is_empty());
}

#[test]
fn what_is_said_without_being_asked_ends_the_connection() {
    for bytes in [
        message(1, 1, &[]),
        vec![0xff; 64],
        message(1, REPLY, &[0; 8]),
    ] {
        let rig = Rig::new();

        rig.partner.interject(&bytes);

        eventually("another connection", || rig.stat("connections") == 2);
    }
}

#[test]
fn nonsense_on_its_own_channel_ends_the_connection_and_unknown_requests_do_not() {
    let rig = Rig::new();

    rig.partner.say(&message(3, 1, &[0; 24]));
    rig.partner.say(&message(1000, 1, &[]));
    rig.partner.tell_config_change();
    let kept = rig.stat("connections");
    rig.partner.say(&[0xff; 12]);

    eventually("another connection", || rig.stat("connections") == 2);
    assert_eq!(kept, 1);
}
