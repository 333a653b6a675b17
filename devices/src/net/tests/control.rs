//! Commands of the guest.

use proptest::prelude::*;

use super::*;

const OK: u8 = 0;
const ERR: u8 = 1;

/// Whether a frame gets through to the guest.
fn gets_through(rig: &mut Rig, other: &mut UnixStream, frame: &[u8]) -> bool {
    let before = rig.stats();
    rig.offer(2048);
    write_frame(other, frame);
    rig.until("the frame is lost", |rig| {
        let now = rig.stats();
        now.rx_frames + now.rx_filtered > before.rx_frames + before.rx_filtered
    });
    rig.stats().rx_frames > before.rx_frames
}

#[test]
fn the_guest_sees_the_frames_that_it_asks_for() {
    let mut rig = Rig::listening();
    let mut other = rig.connect();
    let stranger = frame([2, 0, 0, 0, 0, 9], 60, 1);
    let group = [1, 0, 0x5e, 0, 0, 7];

    let mut seen = vec![gets_through(&mut rig, &mut other, &stranger)];
    let mut answers = vec![rig.command(0, 0, &[0])];
    seen.push(gets_through(&mut rig, &mut other, &stranger));
    seen.push(gets_through(&mut rig, &mut other, &frame(MAC, 60, 2)));
    seen.push(gets_through(&mut rig, &mut other, &frame(group, 60, 3)));
    let mut table = vec![0, 0, 0, 0, 1, 0, 0, 0];
    table.extend(group);
    answers.push(rig.command(1, 0, &table));
    seen.push(gets_through(&mut rig, &mut other, &frame(group, 60, 4)));
    answers.push(rig.command(0, 5, &[1]));
    seen.push(gets_through(&mut rig, &mut other, &frame(BROADCAST, 60, 5)));
    answers.push(rig.command(1, 1, &[2, 0, 0, 0, 0, 9]));
    seen.push(gets_through(&mut rig, &mut other, &stranger));

    assert_eq!(answers, [OK; 4]);
    assert_eq!(seen, [true, false, true, false, true, false, true]);
    let mut mac = [0; 6];
    rig.device.read_config(0, &mut mac);
    assert_eq!(mac, [2, 0, 0, 0, 0, 9]);
}

#[test]
fn the_guest_sees_the_vlans_that_it_asks_for() {
    let mut rig = Rig::listening();
    let mut other = rig.connect();
    let mut tagged = frame(MAC, 64, 1);
    tagged[12..16].copy_from_slice(&[0x81, 0, 0, 7]);

    let before = gets_through(&mut rig, &mut other, &tagged);
    let added = rig.command(2, 0, &[7, 0]);
    let asked = gets_through(&mut rig, &mut other, &tagged);
    let removed = rig.command(2, 1, &[7, 0]);
    let after = gets_through(&mut rig, &mut other, &tagged);

    assert_eq!((added, removed), (OK, OK));
    assert_eq!((before, asked, after), (false, true, false));
}

#[test]
fn a_reset_forgets_what_was_asked_for() {
    let mut rig = Rig::listening();
    let mut other = rig.connect();
    rig.command(0, 0, &[0]);
    rig.command(1, 1, &[2, 0, 0, 0, 0, 9]);

    rig.device.reset();
    let stranger = frame([2, 0, 0, 0, 0, 8], 60, 1);
    let through = gets_through(&mut rig, &mut other, &stranger);

    let mut mac = [0; 6];
    rig.device.read_config(0, &mut mac);
    assert_eq!((mac, through), (MAC, true));
}

#[test]
fn a_guest_that_is_to_announce_itself_says_when_it_has() {
    let mut rig = Rig::listening();
    let _other = rig.connect();

    rig.device.port().announce();
    let asked = rig.status();
    let answer = rig.command(3, 0, &[]);

    assert_eq!((asked, answer, rig.status()), (3, OK, 1));
}

#[test]
fn commands_that_cannot_be_are_refused_one_by_one() {
    let mut rig = Rig::listening();
    let too_many = [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];

    let answers = [
        rig.command(0, 0, &[]),
        rig.command(0, 6, &[1]),
        rig.command(1, 0, &[1, 0, 0, 0, 2, 0]),
        rig.command(1, 0, &too_many),
        rig.command(1, 1, &[1, 0, 0, 0, 0, 0]),
        rig.command(1, 1, &[2, 0, 0]),
        rig.command(2, 0, &[0, 0x10]),
        rig.command(2, 0, &[7]),
        // a socket has one pair, and leaves nothing open
        rig.command(4, 0, &[1, 0]),
        rig.command(5, 0, &[0; 8]),
        rig.command(9, 0, &[]),
        rig.command(0, 0, &vec![0; 20_000]),
    ];

    assert_eq!(answers, [ERR; 12]);
    assert_eq!(rig.stats().bad_commands, 12);
    assert_eq!(rig.command(0, 0, &[1]), OK);
}

#[test]
fn what_was_not_negotiated_is_refused() {
    let without = net::CTRL_RX | net::CTRL_RX_EXTRA | net::CTRL_VLAN | net::CTRL_MAC_ADDR;
    let mut rig = Rig::new(listening, without | net::GUEST_ANNOUNCE);

    let answers = [
        rig.command(0, 0, &[1]),
        rig.command(0, 2, &[1]),
        rig.command(1, 0, &[0; 8]),
        rig.command(1, 1, &MAC),
        rig.command(2, 0, &[7, 0]),
        rig.command(3, 0, &[]),
    ];

    assert_eq!(answers, [ERR; 6]);
}

#[test]
fn a_command_without_room_for_its_answer_is_given_back() {
    let mut rig = Rig::listening();
    let page = rig.ram.alloc(64);
    rig.control.ring.add(&[Buffer::readable(page, 3)]);

    rig.control.serve().unwrap();

    assert_eq!(rig.control.ring.used(), [(0, 0)]);
    assert_eq!(rig.stats().bad_requests, 1);
}

#[test]
fn the_configuration_space_says_what_was_configured() {
    let mtu = |directory: &std::path::Path| NetConfig {
        mtu: Some(1400),
        ..listening(directory)
    };
    let rig = Rig::new(mtu, 0);

    let mut config = [0xff; 14];
    rig.device.read_config(0, &mut config);

    assert_eq!(config[..6], MAC);
    assert_eq!(config[6..], [0, 0, 1, 0, 0x78, 5, 0, 0]);
    assert_ne!(rig.device.features() & net::MTU, 0);
    assert_eq!(Rig::listening().device.features() & net::MTU, 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever a command says, it is answered, and the next one, too.
    #[test]
    fn any_command_is_answered(
        class in 0u8..8,
        number in 0u8..8,
        data in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let mut rig = Rig::listening();
        let answer = rig.command(class, number, &data);
        prop_assert!(answer == OK || answer == ERR);
        prop_assert_eq!(rig.command(0, 0, &[0]), OK);
    }
}
