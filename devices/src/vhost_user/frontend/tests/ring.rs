//! What the back end finds in its ring and what it may do there.

use vhost::vhost_user::message::FrontendReq;

use super::Rig;
use super::partner::{Character, PROTOCOL_FEATURES, Partner};
use crate::testing::{Buffer, GuestRam};
use crate::vhost_user::frontend::config::CopyBack;
use crate::virtio::features::{RING_EVENT_IDX, VERSION_1};
use crate::virtio::{Device, QueueError};

fn text(error: &QueueError) -> String {
    error.to_string()
}

#[test]
fn a_chain_arrives_as_the_driver_cut_it_and_what_is_to_be_written_is_zero() {
    let mut rig = Rig::new();
    let (one, two) = (rig.readable(b"header"), rig.readable(&[9; 5000]));
    let (three, four) = (rig.writable(4096), rig.writable(1));
    rig.ring.add(&[one, two, three, four]);

    rig.serve().unwrap();
    let (_, chain) = rig.partner.take();

    let shape: Vec<(u32, u16)> = chain.iter().map(|d| (d.len, d.flags & 2)).collect();
    assert_eq!(shape, [(6, 0), (5000, 0), (4096, 2), (1, 2)]);
    assert_eq!(rig.partner.read(chain[0].addr, 6), b"header");
    assert_eq!(rig.partner.read(chain[1].addr, 5000), [9; 5000]);
    assert_eq!(rig.partner.read(chain[2].addr, 4096), [0; 4096]);
    assert!(chain[1..3].iter().all(|part| part.addr % 4096 == 0));
    assert_eq!(rig.stat("indirect"), 1);
}

#[test]
fn what_is_declared_is_copied_back_over_the_buffers_and_no_byte_more() {
    let mut rig = Rig::new();
    let (first, second) = (rig.writable(10), rig.writable(10));
    let page = rig.ram.alloc(8192).next_multiple_of(4096);
    rig.ram.write(page, &[0x55; 10]);
    let granted = Buffer::writable(GuestRam::granted(page), 10);
    let outside = rig.writable(64);
    rig.ring.add(&[first, second, granted]);
    rig.serve().unwrap();
    let (head, _) = rig.partner.take();

    rig.partner.scribble(0xee);
    let used = rig.used(&[(head.into(), 23)]).unwrap();

    assert_eq!(used, [(0, 23)]);
    assert_eq!(rig.read(first), [0xee; 10]);
    assert_eq!(rig.read(second), [0xee; 10]);
    assert_eq!(
        rig.ram.read(page, 10),
        [[0xee; 3].as_slice(), &[0x55; 7]].concat()
    );
    assert_eq!(rig.read(outside), [0x55; 64]);
    assert_eq!((rig.stat("requests"), rig.stat("bytes_out")), (1, 23));
}

#[test]
fn where_lengths_are_not_believed_all_of_a_buffer_is_copied_back() {
    let mut rig = Rig::with(Partner::new(), |config| config.copy_back = CopyBack::Whole);
    let (short, long) = (rig.writable(8), rig.writable(8));
    rig.ring.add(&[short]);
    rig.ring.add(&[long]);
    rig.serve().unwrap();
    let (head, chain) = rig.partner.take();
    let (other, _) = rig.partner.take();

    rig.partner.write(chain[0].addr, b"abc");
    let used = rig.used(&[(head.into(), 0), (other.into(), 100)]).unwrap();

    assert_eq!(used, [(0, 0), (1, 8)]);
    assert_eq!(rig.read(short), b"abc\0\0\0\0\0");
    assert_eq!(rig.read(long), [0; 8]);
}

#[test]
fn a_length_of_what_was_only_read_is_taken_for_none() {
    let mut rig = Rig::new();
    let buffer = rig.readable(&[1; 100]);
    rig.ring.add(&[buffer]);
    rig.serve().unwrap();
    let (head, _) = rig.partner.take();

    let used = rig.used(&[(head.into(), 100)]).unwrap();

    assert_eq!(used, [(0, 0)]);
}

#[test]
fn memory_that_held_another_requests_data_is_zeroed_before_it_may_be_written() {
    let mut rig = Rig::new();
    let secret = rig.readable(&[0x77; 4096]);
    rig.ring.add(&[secret]);
    rig.serve().unwrap();
    let (head, first) = rig.partner.take();
    rig.used(&[(head.into(), 0)]).unwrap();
    let buffer = rig.writable(4096);
    rig.ring.add(&[buffer]);

    rig.serve().unwrap();
    let (_, second) = rig.partner.take();

    assert_eq!(first[0].addr, second[0].addr);
    assert_eq!(rig.partner.read(second[0].addr, 4096), [0; 4096]);
}

#[test]
fn a_back_end_without_indirect_tables_gets_chains() {
    let character = Character {
        features: VERSION_1 | PROTOCOL_FEATURES,
        ..Character::default()
    };
    let mut rig = Rig::with(Partner::with(character), |_| {});
    let buffers: Vec<Buffer> = (0..16).map(|_| rig.readable(&[3; 32])).collect();
    rig.ring.add_indirect(&buffers);
    rig.ring.add_indirect(&buffers);

    rig.serve().unwrap();
    let (head, chain) = rig.partner.take();
    let has_more = rig.partner.has_more();
    let used = rig.used(&[(head.into(), 0)]).unwrap();
    let (_, second) = rig.partner.take();

    assert_eq!((chain.len(), has_more), (16, false));
    assert_eq!(used, [(0, 0)]);
    assert_eq!(second.len(), 16);
}

#[test]
fn a_chain_that_the_ring_can_never_hold_breaks_the_queue_by_name() {
    let character = Character {
        features: VERSION_1 | PROTOCOL_FEATURES,
        ..Character::default()
    };
    let mut rig = Rig::with(Partner::with(character), |_| {});
    let buffers: Vec<Buffer> = (0..17).map(|_| rig.readable(&[3; 32])).collect();
    rig.ring.add_indirect(&buffers);

    let error = rig.serve().unwrap_err();

    assert!(text(&error).contains("17 buffers"), "{error}");
}

#[test]
fn a_long_chain_goes_through_a_table_of_its_own() {
    let mut rig = Rig::new();
    let buffers: Vec<Buffer> = (0..100).map(|i| rig.readable(&[i; 16])).collect();
    rig.ring.add_indirect(&buffers);

    rig.serve().unwrap();
    let (_, chain) = rig.partner.take();

    assert_eq!(chain.len(), 100);
    assert_eq!(rig.partner.read(chain[99].addr, 16), [99; 16]);
}

#[test]
fn requests_that_are_in_flight_at_once_have_tables_of_their_own() {
    let mut rig = Rig::new();
    let chains: Vec<[Buffer; 2]> = (0..3)
        .map(|i| [rig.readable(&[i; 20]), rig.writable(10 + usize::from(i))])
        .collect();
    for chain in &chains {
        rig.ring.add(chain);
    }

    rig.serve().unwrap();
    let taken = [(); 3].map(|()| rig.partner.take().1);

    for (i, chain) in (0..).zip(taken) {
        let found = rig.partner.read(chain[0].addr, chain[0].len as usize);
        assert_eq!(found, [i; 20]);
        assert_eq!(chain[1].len, 10 + u32::from(i));
    }
}

#[test]
fn a_back_end_is_kicked_for_the_entry_that_it_waits_for() {
    let character = Character {
        features: Character::default().features | RING_EVENT_IDX,
        ..Character::default()
    };
    let mut rig = Rig::with(Partner::with(character), |_| {});
    let [_, used, _] = rig.partner.rings();
    let event = used + 4 + 8 * 16;
    let mut kicked = Vec::new();

    // it waits for the first, still does at the second, and then for the third
    for waits_for in [0u16, 0, 2] {
        rig.partner.write(event, &waits_for.to_le_bytes());
        let buffer = rig.readable(b"request");
        rig.ring.add(&[buffer]);
        rig.serve().unwrap();
        kicked.push(rig.partner.is_kicked());
    }

    assert_eq!(kicked, [true, false, true]);
}

#[test]
fn a_buffer_above_the_largest_mapping_is_split_all_or_nothing() {
    let mut rig = Rig::new();
    let bytes: Vec<u8> = (0..600_000u32).map(|i| i as u8).collect();
    let large = rig.readable(&bytes);
    rig.ring.add(&[large]);
    let second = rig.readable(&bytes);
    rig.ring.add(&[second]);

    rig.serve().unwrap();
    let (head, chain) = rig.partner.take();
    let waits = !rig.partner.has_more();
    let found: Vec<u8> = chain
        .iter()
        .flat_map(|part| rig.partner.read(part.addr, part.len as usize))
        .collect();
    let used = rig.used(&[(head.into(), 0)]).unwrap();
    let (_, again) = rig.partner.take();

    assert_eq!(chain.len(), 3);
    assert!(found == bytes);
    assert!(waits, "there is no room for parts of it");
    assert_eq!((used.len(), again.len()), (1, 3));
    assert!(rig.stat("waited") > 0);
}

#[test]
fn a_request_that_no_pool_could_hold_breaks_the_queue_by_name() {
    for lens in [vec![(1 << 20) + 1], vec![u32::MAX; 15]] {
        let mut rig = Rig::new();
        let large: Vec<_> = lens.iter().map(|len| Buffer::readable(0, *len)).collect();
        rig.ring.add(&large);

        let error = rig.serve().unwrap_err();

        assert!(text(&error).contains("pool-mib"), "{error}");
    }
}

#[test]
fn memory_that_the_guest_does_not_have_breaks_its_queue_and_spares_the_rest() {
    let mut rig = Rig::new();
    let good = rig.readable(b"good");
    rig.ring.add(&[good]);
    rig.ring.add(&[Buffer::readable(1 << 40, 32)]);

    let error = rig.serve().unwrap_err();

    assert!(
        matches!(error, QueueError::Request { head: 1, .. }),
        "{error}"
    );
    assert_eq!(rig.stat("violations"), 0);
}

/// One request in flight; what the back end does then.
fn broken(hostile: fn(&Rig, u16)) -> (Rig, String) {
    let mut rig = Rig::new();
    let buffer = rig.writable(64);
    rig.ring.add(&[buffer]);
    rig.serve().unwrap();
    let (head, _) = rig.partner.take();
    hostile(&rig, head);
    let error = rig.advance().unwrap_err();
    assert_eq!(
        rig.read(buffer),
        [0x55; 64],
        "nothing has reached the guest"
    );
    assert_eq!(rig.ring.used_index(), 0);
    let socket = rig.partner.socket().to_str().unwrap();
    assert!(error.to_string().contains(socket), "{error}");
    assert_eq!(rig.stat("violations"), 1);
    let said = error.to_string();
    (rig, said)
}

#[test]
fn an_id_that_is_none_breaks_the_device() {
    for id in [16, 77, 0xffff, 0x1_0000, u32::MAX] {
        let mut rig = Rig::new();
        let buffer = rig.writable(64);
        rig.ring.add(&[buffer]);
        rig.serve().unwrap();
        rig.partner.take();

        let error = rig.used(&[(id, 0)]).unwrap_err();

        assert!(
            text(&error).contains(&format!("descriptor {id}")),
            "{error}"
        );
    }
}

#[test]
fn an_id_that_is_not_in_flight_breaks_the_device() {
    let (_, said) = broken(|rig, head| rig.partner.push_used(&[(u32::from(head ^ 1), 0)]));

    assert!(said.contains("not in flight"), "{said}");
}

#[test]
fn more_than_there_is_room_for_breaks_the_device() {
    let (_, said) = broken(|rig, head| rig.partner.push_used(&[(head.into(), 65)]));

    assert!(
        said.contains("declares 65 bytes") && said.contains("have 64"),
        "{said}"
    );
}

#[test]
fn an_index_that_jumps_breaks_the_device() {
    let (_, said) = broken(|rig, _| rig.partner.show_used(2));

    assert!(said.contains("2 entries ahead, and 1 requests"), "{said}");
}

#[test]
fn what_is_used_twice_is_done_once_and_breaks_the_device() {
    let mut rig = Rig::new();
    let (one, two) = (rig.writable(8), rig.writable(8));
    rig.ring.add(&[one]);
    rig.ring.add(&[two]);
    rig.serve().unwrap();
    let (head, _) = rig.partner.take();
    rig.partner.take();

    rig.partner.push_used(&[(head.into(), 8), (head.into(), 8)]);
    let error = rig.advance().unwrap_err();

    assert!(text(&error).contains("not in flight"), "{error}");
    assert_eq!(rig.ring.used(), [(0, 8)]);
    assert_eq!(rig.read(two), [0x55; 8]);
}

#[test]
fn a_back_end_that_broke_the_rules_is_left_until_the_device_is_reset() {
    let (mut rig, _) = broken(|rig, _| rig.partner.show_used(9));
    let before = rig.partner.connections();

    rig.handler.settle(&mut rig.queue);
    rig.device.reset();
    rig.handler = rig.device.start_queue(0, VERSION_1).unwrap();
    rig.advance_until_served();

    assert_eq!((before, rig.partner.connections()), (1, 2));
    assert_eq!(rig.stat("lost"), 1);
}

#[test]
fn its_files_are_its_own_memory_two_events_a_ring_and_its_channel() {
    let mut rig = Rig::new();
    let secret = rig.readable(b"in flight");
    rig.ring.add(&[secret]);
    let untold = rig.readable(b"the guest's own secret");
    rig.serve().unwrap();
    rig.partner.take();

    let files = rig.partner.files();

    let of = |request: FrontendReq| -> Vec<&str> {
        let found = files.iter().filter(|(code, _)| *code == request as u32);
        found.map(|(_, file)| file.as_str()).collect()
    };
    assert_eq!(
        of(FrontendReq::SET_MEM_TABLE),
        ["/memfd:vhost-user (deleted)"]
    );
    assert_eq!(of(FrontendReq::SET_VRING_KICK), ["anon_inode:[eventfd]"]);
    assert_eq!(of(FrontendReq::SET_VRING_CALL), ["anon_inode:[eventfd]"]);
    assert!(of(FrontendReq::SET_BACKEND_REQ_FD)[0].starts_with("socket:"));
    assert_eq!(files.len(), 4);
    let memory = rig.partner.memory();
    let mut bytes = vec![0; memory.size()];
    vm_memory::VolatileMemory::get_slice(&*memory, 0, memory.size())
        .unwrap()
        .copy_to(&mut bytes);
    let has = |what: &[u8]| bytes.windows(what.len()).any(|window| window == what);
    assert!(has(b"in flight"), "what it was given");
    assert!(!has(b"the guest's own secret"), "what it was not");
    assert_eq!(rig.read(untold), b"the guest's own secret");
}

#[test]
fn a_call_is_asked_for_before_sleeping_and_what_came_before_that_is_not_slept_over() {
    let character = Character {
        features: Character::default().features | RING_EVENT_IDX,
        ..Character::default()
    };
    let mut rig = Rig::with(Partner::with(character), |_| {});
    let buffer = rig.writable(64);
    rig.ring.add(&[buffer]);
    rig.serve().unwrap();
    let (head, _) = rig.partner.take();
    let nothing = (rig.handler.has_come(), rig.handler.rest().unwrap());
    let [_, _, avail] = rig.partner.rings();
    let event = |rig: &Rig| rig.partner.read(avail + 4 + 2 * 16, 2);
    let first = event(&rig);

    rig.partner.push_used(&[(head.into(), 8)]);
    let something = (rig.handler.has_come(), rig.handler.rest().unwrap());
    rig.handler.serve(&mut rig.queue, Vec::new()).unwrap();
    let busy = event(&rig);
    let rested = rig.handler.rest().unwrap();

    assert_eq!((nothing, something), ((false, false), (true, true)));
    assert_eq!(rig.ring.used(), [(0, 8)]);
    assert_eq!((first, busy), (vec![0, 0], vec![0, 0]));
    assert_eq!((rested, event(&rig)), (false, vec![1, 0]));
}

#[test]
fn short_pieces_lie_apart_from_pages_and_show_nothing_of_earlier_ones() {
    let mut rig = Rig::new();
    let (secret, page) = (rig.readable(&[0x77; 200]), rig.readable(&[0x66; 512]));
    rig.ring.add(&[secret, page]);
    rig.serve().unwrap();
    let (head, first) = rig.partner.take();
    rig.used(&[(head.into(), 0)]).unwrap();
    let (short, answer) = (rig.readable(b"short"), rig.writable(300));
    let status = rig.writable(1);
    rig.ring.add(&[short, answer, status]);

    rig.serve().unwrap();
    let (head, second) = rig.partner.take();
    let cell = rig.partner.read(second[0].addr, 200);
    let pages = [rig.partner.read(second[1].addr, 512), vec![0; 512]];
    rig.partner.write(second[2].addr, b"s");
    let used = rig.used(&[(head.into(), 301)]).unwrap();

    assert_eq!(first[0].addr, second[0].addr);
    assert_eq!(first[1].addr, second[1].addr);
    assert_eq!(cell, [b"short".as_slice(), &[0; 195]].concat());
    assert_eq!(pages[0], pages[1]);
    assert_eq!(second[2].addr / 4096, second[0].addr / 4096);
    assert_eq!(used, [(2, 301)]);
    assert_eq!(rig.read(status), b"s");
}
