//! What a front end may ask for, and gets.

use std::io::Read;

use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserProtocolFeatures};

use super::guest::{
    BLOCK, Buffer, DATA, Guest, IN, OUT, PROTOCOL_FEATURES, REGION, Session, Used, VERSION_1,
    places, request, status,
};
use super::program::Program;

const DISK: &str = "blk,path=DISK,queue-size=128,queues=2";
const BYTES: u64 = 8 << 20;

fn pattern(block: u64) -> Vec<u8> {
    let word = |at: u64| (block << 32 | at).to_le_bytes();
    (0..u64::from(BLOCK) / 8).flat_map(word).collect()
}

fn write(guest: &mut Guest, ring: usize, slot: u16, block: u64) -> u8 {
    guest.write(places(ring, slot)[1], &pattern(block));
    request(guest, ring, slot, OUT, block);
    finish(guest, ring, slot)
}

fn finish(guest: &mut Guest, ring: usize, slot: u16) -> u8 {
    guest.kick(ring);
    assert_eq!(guest.wait(ring).head, 3 * slot);
    status(guest, ring, slot)
}

#[test]
fn features_and_configuration_are_the_devices() {
    let program = Program::serve(&[DISK], BYTES);
    let mut session = Session::connect(&program, 0);

    let protocol = session.protocol_features();
    let queues = session.frontend.get_queue_num().unwrap();
    let slots = session.frontend.get_max_mem_slots().unwrap();
    let (_, config) = session
        .frontend
        .get_config(0, 8, VhostUserConfigFlags::empty(), &[0; 8])
        .unwrap();

    assert!(session.offered & VERSION_1 != 0 && session.offered & PROTOCOL_FEATURES != 0);
    assert!(protocol.contains(
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::INFLIGHT_SHMFD
            | VhostUserProtocolFeatures::RESET_DEVICE
            | VhostUserProtocolFeatures::LOG_SHMFD
    ));
    assert_eq!((queues, slots), (2, 509));
    assert_eq!(config, (BYTES / 512).to_le_bytes());
}

#[test]
fn what_one_ring_writes_the_other_reads() {
    let program = Program::serve(&[DISK], BYTES);
    let mut guest = Guest::new(2);
    let mut session = Session::connect(&program, 0);
    session.start(&guest);

    let written = write(&mut guest, 0, 3, 77);
    request(&mut guest, 1, 9, IN, 77);
    let read = finish(&mut guest, 1, 9);

    assert_eq!((written, read), (0, 0));
    assert_eq!(guest.read(places(1, 9)[1], 4096), pattern(77));
    assert_eq!(program.image()[77 * 4096..78 * 4096], pattern(77));
}

#[test]
fn a_stopped_ring_tells_where_it_is_and_goes_on_from_there() {
    let program = Program::serve(&[DISK], BYTES);
    let mut guest = Guest::new(1);
    let mut session = Session::connect(&program, 0);
    session.start(&guest);
    write(&mut guest, 0, 0, 1);
    write(&mut guest, 0, 1, 2);

    let base = session.frontend.get_vring_base(0).unwrap();
    request(&mut guest, 0, 2, IN, 2);
    guest.kick(0);
    let while_stopped = guest.take(0);
    session.start_ring(&guest, 0, 2);
    let after = guest.wait(0);

    assert_eq!((base, while_stopped), (2, None));
    assert_eq!(after.head, 6);
    assert_eq!(guest.read(places(0, 2)[1], 4096), pattern(2));
}

#[test]
fn a_disabled_ring_rests_until_it_is_enabled() {
    let program = Program::serve(&[DISK], BYTES);
    let mut guest = Guest::new(1);
    let mut session = Session::connect(&program, 0);
    session.start(&guest);
    write(&mut guest, 0, 0, 1);

    session.frontend.set_vring_enable(0, false).unwrap();
    request(&mut guest, 0, 1, IN, 1);
    guest.kick(0);
    let while_disabled = guest.take(0);
    session.frontend.set_vring_enable(0, true).unwrap();

    assert_eq!(while_disabled, None);
    assert_eq!(guest.wait(0).head, 3);
}

#[test]
fn a_reset_device_starts_anew() {
    let program = Program::serve(&[DISK], BYTES);
    let mut guest = Guest::new(1);
    let mut session = Session::connect(&program, 0);
    session.start(&guest);
    write(&mut guest, 0, 0, 5);

    session.frontend.reset_device().unwrap();
    request(&mut guest, 0, 1, IN, 5);
    guest.kick(0);
    let after_reset = guest.take(0);
    let mut anew = Guest::new(1);
    session.start(&anew);
    request(&mut anew, 0, 1, IN, 5);

    assert_eq!(after_reset, None);
    assert_eq!(finish(&mut anew, 0, 1), 0);
    assert_eq!(anew.read(places(0, 1)[1], 4096), pattern(5));
}

#[test]
fn memory_is_reached_from_the_moment_it_is_added_until_it_is_removed() {
    let program = Program::serve(&[DISK], BYTES);
    let mut guest = Guest::new(1);
    let mut session = Session::connect(&program, 0);
    let regions = guest.regions();
    session.frontend.add_mem_region(&regions[0]).unwrap();
    session.start_ring(&guest, 0, 0);

    let before = write(&mut guest, 0, 0, 1);
    session.frontend.add_mem_region(&regions[1]).unwrap();
    let added = write(&mut guest, 0, 1, 1);
    session.frontend.remove_mem_region(&regions[1]).unwrap();
    let removed = write(&mut guest, 0, 2, 1);

    // VIRTIO_BLK_S_OK and VIRTIO_BLK_S_IOERR
    assert_eq!((before, added, removed), (1, 0, 1));
}

#[test]
fn memory_that_is_added_twice_is_there_until_it_is_removed_twice() {
    let program = Program::serve(&[DISK], BYTES);
    let mut guest = Guest::new(1);
    let mut session = Session::connect(&program, 0);
    let regions = guest.regions();
    session.frontend.add_mem_region(&regions[0]).unwrap();
    session.frontend.add_mem_region(&regions[1]).unwrap();
    session.start_ring(&guest, 0, 0);

    session.frontend.add_mem_region(&regions[1]).unwrap();
    let twice = write(&mut guest, 0, 0, 1);
    session.frontend.remove_mem_region(&regions[1]).unwrap();
    let once = write(&mut guest, 0, 1, 1);
    session.frontend.remove_mem_region(&regions[1]).unwrap();
    let removed = write(&mut guest, 0, 2, 1);

    // VIRTIO_BLK_S_OK and VIRTIO_BLK_S_IOERR
    assert_eq!((twice, once, removed), (0, 0, 1));
}

#[test]
fn data_may_cross_from_one_region_to_the_next() {
    let program = Program::serve(&[DISK], BYTES);
    let mut guest = Guest::new(1);
    let other = Guest::new(0);
    let behind = other.regions()[1];
    let mut regions = guest.regions();
    regions.push(vhost::VhostUserMemoryRegionInfo {
        guest_phys_addr: DATA + REGION as u64,
        ..behind
    });
    let mut session = Session::connect(&program, 0);
    session.frontend.set_mem_table(&regions).unwrap();
    session.start_ring(&guest, 0, 0);
    write(&mut guest, 0, 1, 0);

    let [header, _, status_at] = places(0, 0);
    guest.write(header, &[0; 16]);
    let part = |address, len, writable| Buffer {
        address,
        len,
        writable,
    };
    let data = part(DATA + REGION as u64 - 512, 1024, true);
    guest.submit(
        0,
        0,
        &[part(header, 16, false), data, part(status_at, 1, true)],
    );
    guest.kick(0);
    let used = guest.wait(0);

    assert_eq!((used.written, status(&guest, 0, 0)), (1025, 0));
    let ahead = guest.read(DATA + REGION as u64 - 512, 512);
    let behind = other.read(DATA, 512);
    assert_eq!([ahead, behind].concat(), pattern(0)[..1024]);
}

#[test]
fn several_devices_are_served_by_one_process() {
    let program = Program::serve(&[DISK, "rng,queue-size=128"], BYTES);
    let (mut disk, mut entropy) = (Guest::new(1), Guest::new(1));
    let mut sessions = [Session::connect(&program, 0), Session::connect(&program, 1)];
    sessions[0].start(&disk);
    sessions[1].start(&entropy);

    let written = write(&mut disk, 0, 0, 0);
    let buffer = Buffer {
        address: DATA,
        len: 256,
        writable: true,
    };
    entropy.submit(0, 0, &[buffer]);
    entropy.kick(0);
    let filled = entropy.wait(0);

    assert_eq!(written, 0);
    assert_eq!((filled.head, filled.written), (0, 256));
    assert_ne!(entropy.read(DATA, 256), [0; 256]);
}

#[test]
fn receive_buffers_that_were_not_filled_are_available_again() {
    let program = Program::serve(&["console,backend=pty"], BYTES);
    let mut guest = Guest::new(2);
    let mut session = Session::connect(&program, 0);
    session.start(&guest);
    let buffer = Buffer {
        address: DATA,
        len: 64,
        writable: true,
    };
    for head in 0..3 {
        guest.submit(0, head, &[buffer]);
    }
    guest.kick(0);
    let sent = Buffer {
        writable: false,
        ..buffer
    };
    guest.submit(1, 0, &[sent]);
    guest.kick(1);
    guest.wait(1);

    let bases = [0, 1].map(|ring| session.frontend.get_vring_base(ring).unwrap());

    assert_eq!(bases, [0, 1]);
}

#[test]
fn a_new_front_end_finds_the_device_reset() {
    let program = Program::serve(&[DISK], BYTES);
    let mut first = Guest::new(1);
    let mut session = Session::connect(&program, 0);
    session.start(&first);
    write(&mut first, 0, 0, 9);

    drop(session);
    let mut second = Guest::new(1);
    Session::connect(&program, 0).start(&second);
    let mut session = Session::connect(&program, 0);
    session.start(&second);
    request(&mut second, 0, 0, IN, 9);
    let read = finish(&mut second, 0, 0);

    assert_eq!(read, 0);
    assert_eq!(second.read(places(0, 0)[1], 4096), pattern(9));
    assert_eq!(first.take(0), None::<Used>);
}

#[test]
fn what_each_ring_has_served_is_said_when_its_front_end_goes() {
    let program = Program::serve(&[DISK], BYTES);
    let mut guest = Guest::new(2);
    let mut session = Session::connect(&program, 0);
    session.start(&guest);
    for (ring, slot) in [(0, 0), (1, 0), (1, 1), (1, 2)] {
        write(&mut guest, ring, slot, u64::from(slot));
    }

    drop(session);
    program.wait_for("served so far", 1);

    assert_eq!(program.count("chains=[1, 3]"), 1);
}

#[test]
fn without_descriptors_a_front_end_waits_until_there_are_some() {
    let program = Program::serve(&[DISK], BYTES);

    program.leave_files(Some(0));
    let early = program.connect(0);
    program.wait_for("a front end cannot be let in", 1);
    program.leave_files(None);
    drop(early);
    let mut session = Session::connect(&program, 0);

    assert_eq!(session.frontend.get_queue_num().unwrap(), 2);
}

#[test]
fn a_connection_for_which_there_are_too_few_descriptors_is_closed_and_no_other() {
    let program = Program::serve(&[DISK, "rng"], BYTES);

    program.leave_files(Some(1));
    let end = program.connect(0).read(&mut [0]).unwrap();
    program.leave_files(None);
    let mut disk = Session::connect(&program, 0);
    let rng = Session::connect(&program, 1);

    assert_eq!(end, 0);
    assert_eq!(disk.frontend.get_queue_num().unwrap(), 2);
    assert_ne!(rng.offered & VERSION_1, 0);
}

#[test]
fn it_has_as_many_open_files_as_it_may() {
    let program = Program::serve(&["rng"], BYTES);

    let files = program.files();

    assert_eq!(files.current, files.maximum);
    assert_ne!(files.current, Some(64));
}

#[test]
fn asked_to_leave_it_finishes_and_removes_its_sockets() {
    let mut program = Program::serve(&[DISK, "rng,queue-size=128"], BYTES);
    let mut guest = Guest::new(1);
    let mut session = Session::connect(&program, 0);
    session.start(&guest);
    write(&mut guest, 0, 0, 4);

    let status = program.terminate();

    assert!(status.success(), "{status}");
    assert!(!program.socket(0).exists() && !program.socket(1).exists());
    assert_eq!(program.image()[4 * 4096..5 * 4096], pattern(4));
}
