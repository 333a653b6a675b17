//! What no driver would send.

use proptest::prelude::*;

use super::*;

#[test]
fn packets_of_strangers_are_dropped_without_a_word() {
    let mut rig = Rig::usual();
    let _listener = rig.listen(HOST);

    for (src, dst) in [(4, 2), (3, 3), (3, u64::MAX), (2, 2), (3 | 1 << 32, 2)] {
        let header = Header {
            src_cid: src.into(),
            dst_cid: dst.into(),
            ..Rig::packet(Op::Request)
        };
        rig.send(header, &[]);
    }

    assert!(rig.received().is_empty());
    assert_eq!(rig.stats().bad_packets, 5);
}

#[test]
fn packets_that_break_a_rule_are_answered_with_a_reset() {
    let mut rig = Rig::usual();
    let bad = [
        Header {
            kind: 2.into(),
            ..Rig::packet(Op::Request)
        },
        Header {
            op: 0.into(),
            ..Rig::packet(Op::Request)
        },
        Header {
            op: 8.into(),
            ..Rig::packet(Op::Request)
        },
        // more than its chain has
        Header {
            len: 1.into(),
            ..Rig::packet(Op::ReadWrite)
        },
        Header {
            len: u32::MAX.into(),
            ..Rig::packet(Op::ReadWrite)
        },
    ];

    for header in bad {
        rig.send(header, &[]);
        assert_eq!(op(&rig.next()), Op::Reset, "{header:?}");
    }

    assert_eq!(rig.stats().bad_packets, bad.len() as u64);
}

#[test]
fn packets_out_of_turn_end_their_connection() {
    for op_out_of_turn in [Op::Request, Op::Response] {
        let mut rig = Rig::usual();
        let mut host = rig.connected();

        rig.send(Rig::packet(op_out_of_turn), &[]);
        let answer = rig.next();

        assert_eq!(op(&answer), Op::Reset);
        rig.until("the host sees no end", |_| read_now(&mut host) == Ok(0));
    }
}

#[test]
fn chains_without_room_for_a_packet_are_given_back() {
    let mut rig = Rig::usual();
    let page = rig.ram.alloc(4096);
    let header = HEADER_LEN as u32;

    rig.transmit.ring.add(&[Buffer::readable(page, header - 1)]);
    rig.transmit.ring.add(&[Buffer::writable(page, 100)]);
    rig.transmit.serve().unwrap();
    rig.receive.ring.add(&[Buffer::writable(page, header)]);
    rig.receive.ring.add(&[Buffer::readable(page, 100)]);
    rig.receive.serve().unwrap();
    rig.event.ring.add(&[Buffer::writable(page, 3)]);
    rig.event.serve().unwrap();

    assert_eq!(rig.transmit.ring.used(), [(0, 0), (1, 0)]);
    assert_eq!(rig.receive.ring.used(), [(0, 0), (1, 0)]);
    assert_eq!(rig.event.ring.used(), [(0, 0)]);
    assert_eq!(rig.stats().bad_packets, 5);
}

#[test]
fn memory_that_is_not_there_breaks_its_queue() {
    let mut rig = Rig::usual();
    let _host = rig.connected();
    rig.transmit.ring.add(&[Buffer::readable(1 << 40, 44)]);
    let header = Header {
        len: 8.into(),
        ..Rig::packet(Op::ReadWrite)
    };
    let good = rig.ram.alloc_bytes(header.as_bytes());

    let header = rig.transmit.serve().unwrap_err();
    rig.transmit
        .ring
        .add(&[Buffer::readable(good, 44), Buffer::readable(1 << 40, 8)]);
    let payload = rig.transmit.serve().unwrap_err();
    // four descriptors of the first packets went before
    rig.receive.ring.add(&[Buffer::writable(1 << 40, 64)]);
    rig.receive.serve().unwrap();
    rig.send_unknown();
    rig.buffers.clear();
    let mut broken = None;
    for _ in 0..64 {
        rig.send_unknown();
        broken = rig.receive.handler.advance(&mut rig.receive.queue).err();
        if broken.is_some() {
            break;
        }
    }

    for error in [header, payload, broken.unwrap()] {
        assert!(matches!(error, QueueError::Request { .. }), "{error}");
    }
}

impl Rig {
    /// A packet that is answered with a reset.
    fn send_unknown(&mut self) {
        let header = Header {
            dst_port: 9999.into(),
            ..Rig::packet(Op::ReadWrite)
        };
        self.send(header, &[]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever headers say, every packet is taken, replies are bounded, and
    /// the device serves the next one.
    #[test]
    fn any_headers_are_survived(
        headers in prop::collection::vec(
            (0u16..10, 0u32..3, 0u32..3, 0u32..200, 0u32..8, any::<u32>(), any::<u32>()),
            1..60,
        ),
    ) {
        let mut rig = Rig::new(|config| {
            config.connections = 4;
            config.buffer = 4096;
        });
        let _listeners = [rig.listen(0), rig.listen(1)];
        for (op, host, guest, len, flags, buf_alloc, fwd_cnt) in headers {
            let header = Header {
                op: op.into(),
                dst_port: host.into(),
                src_port: guest.into(),
                len: len.into(),
                flags: flags.into(),
                buf_alloc: buf_alloc.into(),
                fwd_cnt: fwd_cnt.into(),
                ..Rig::packet(Op::ReadWrite)
            };
            rig.send(header, &pattern(100));
            rig.received();
        }
        rig.device.reset();
        rig.received();
        rig.send(Rig::packet(Op::Request), &[]);
        prop_assert_eq!(op(&rig.next()), Op::Reset);
        let open = rig.device.statistics().into_iter().find(|(name, _)| *name == "connections");
        prop_assert_eq!(open, Some(("connections", 0)));
    }
}
