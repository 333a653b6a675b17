//! Taps, each in a network of its test's own.
#![allow(unsafe_code)]

use std::net::UdpSocket;
use std::process::{Command, Stdio};
use std::sync::mpsc;

use super::*;
use crate::net::{OpenError, TapError};
use crate::testing::lines::lines_of;

/// Makes this thread's network one without any interface.
fn leave_the_network() {
    // SAFETY: it concerns nothing but this thread's system calls
    let left = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    assert_eq!(left, 0, "{}", std::io::Error::last_os_error());
}

fn ip(arguments: &str) {
    let status = Command::new("ip")
        .args(arguments.split(' '))
        .status()
        .unwrap();
    assert!(status.success(), "ip {arguments}");
}

/// Several commands, one a line.
fn ip_batch(lines: &str) {
    let mut ip = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let written = ip.stdin.take().unwrap().write_all(lines.as_bytes());
    assert!(ip.wait().unwrap().success() && written.is_ok(), "{lines}");
}

/// Makes this thread's /sys that of its network.
fn see_the_own_network() {
    // SAFETY: it concerns nothing but this thread's system calls
    let left = unsafe { libc::unshare(libc::CLONE_NEWNS) };
    assert_eq!(left, 0, "{}", std::io::Error::last_os_error());
    for arguments in ["--make-rprivate /", "-t sysfs sysfs /sys"] {
        let mount = Command::new("mount").args(arguments.split(' ')).status();
        assert!(mount.unwrap().success(), "mount {arguments}");
    }
}

/// A card on the tap `vm`, and an address of the host on it.
fn on_tap(queues: u16, without: u64) -> Rig {
    leave_the_network();
    let config = |_: &std::path::Path| NetConfig {
        queues,
        ..NetConfig::tap("vm")
    };
    let mut rig = Rig::new(config, without);
    ip("addr add 10.9.0.1/24 dev vm");
    ip("link set vm up");
    rig.until("there is no link", |rig| rig.link() == 1);
    ip("neigh add 10.9.0.2 lladdr 02:00:00:00:00:01 dev vm");
    rig
}

/// A datagram from the guest to the host's port 7, its checksum left out.
fn datagram(host: [u8; 6], payload: &[u8]) -> Vec<u8> {
    let mut frame = [host, MAC].concat();
    let udp = 8 + payload.len() as u16;
    frame.extend([8, 0]);
    let mut ip = vec![0x45, 0];
    ip.extend((20 + udp).to_be_bytes());
    ip.extend([0, 0, 0, 0, 64, 17, 0, 0, 10, 9, 0, 2, 10, 9, 0, 1]);
    let sum: u32 = ip
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]))
        .sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    frame.extend(ip);
    frame.extend([0, 9, 0, 7]);
    frame.extend(udp.to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(payload);
    frame
}

fn host_address() -> [u8; 6] {
    let address = Command::new("ip")
        .args(["-o", "link", "show", "vm"])
        .output();
    let text = String::from_utf8(address.unwrap().stdout).unwrap();
    let mac = text.split("link/ether ").nth(1).unwrap();
    let mut bytes = [0; 6];
    for (byte, digits) in bytes.iter_mut().zip(mac[..17].split(':')) {
        *byte = u8::from_str_radix(digits, 16).unwrap();
    }
    bytes
}

/// What has come for the guest from the host's port 7: header and payload.
fn from_host(rig: &mut Rig, buffer: Buffer) -> Vec<(Vec<u8>, Vec<u8>)> {
    let used = rig.receive.ring.used();
    used.iter()
        .map(|(_, len)| rig.ram.read(buffer.address, *len as usize))
        .filter(|packet| packet.get(HEADER_LEN + 34..HEADER_LEN + 36) == Some(&[0, 7]))
        .map(|packet| {
            (
                packet[..HEADER_LEN].to_vec(),
                packet[HEADER_LEN + 42..].to_vec(),
            )
        })
        .collect()
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn datagrams_go_both_ways_with_and_without_offloads() {
    for without in [0, net::GUEST_CSUM] {
        let mut rig = on_tap(1, without);
        let socket = UdpSocket::bind("10.9.0.1:7").unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();

        rig.send(&datagram(host_address(), b"from the guest"));
        let mut bytes = [0; 64];
        let (count, from) = socket.recv_from(&mut bytes).unwrap();
        socket.send_to(b"from the host", "10.9.0.2:9").unwrap();
        let buffer = Buffer::writable(rig.ram.alloc(2048), 2048);
        let mut came = Vec::new();
        rig.until("no datagram comes", |rig| {
            rig.receive.ring.add(&[buffer]);
            rig.receive.serve().unwrap();
            came.extend(from_host(rig, buffer));
            !came.is_empty()
        });

        assert_eq!(&bytes[..count], b"from the guest");
        assert_eq!(from.to_string(), "10.9.0.2:9");
        assert_eq!(came[0].1, b"from the host");
        // whether the checksum is left open
        let open = u8::from(without == 0);
        assert_eq!((came[0].0[0], came[0].0[10]), (open, 1));
        assert_eq!(rig.stats().bad_requests, 0);
    }
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn the_link_follows_the_interface_and_its_carrier_whatever_it_is_called() {
    let mut rig = on_tap(1, 0);

    for (down, up) in [
        ("link set vm down", "link set vm up"),
        ("link set vm carrier off", "link set vm carrier on"),
        ("link set vm down name other", "link set other up"),
    ] {
        ip(down);
        rig.until("the link stays up", |rig| rig.link() == 0);
        ip(up);
        rig.until("the link stays down", |rig| rig.link() == 1);
    }

    let stats = rig.stats();
    assert_eq!((stats.link_downs, stats.link_ups), (3, 4));
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn an_interface_that_comes_up_while_no_driver_is_there_is_found_up() {
    leave_the_network();
    let config = NetConfig::tap("vm").validate().unwrap();
    let mut device = NetDevice::open(config).unwrap();
    let before = device.handle().is_up();

    ip("link set vm up");
    let deadline = Instant::now() + PATIENCE;
    while !device.handle().is_up() {
        assert!(Instant::now() < deadline, "the link stays down");
        device.reset();
    }

    assert!(!before);
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn an_interface_that_was_up_before_has_its_link_without_a_word_of_the_host() {
    leave_the_network();
    ip("tuntap add vm mode tap");
    ip("link set vm up");

    let mut rig = Rig::new(|_| NetConfig::tap("vm"), 0);
    rig.until("the link stays down", |rig| rig.link() == 1);

    assert!(rig.device.handle().is_up());
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn changes_of_other_interfaces_are_nobodys_and_more_than_anybody_keeps_lose_nothing() {
    let mut rig = on_tap(1, 0);
    let before = rig.stats();

    // the kernel keeps about 200 KiB of messages
    ip_batch(&"link add name other type bridge\nlink del other\n".repeat(200));
    ip("link set vm down");
    rig.until("the link stays up", |rig| rig.link() == 0);

    assert_eq!(rig.stats().link_downs, before.link_downs + 1);
    assert_eq!(rig.stats().link_ups, before.link_ups);
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn an_interface_that_was_moved_to_another_network_is_taken_to_be_up() {
    let mut rig = on_tap(1, 0);

    let (told, elsewhere) = mpsc::channel();
    let (end, ended) = mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        leave_the_network();
        // SAFETY: it has no conditions
        told.send(unsafe { libc::gettid() }).unwrap();
        ended.recv().unwrap_err()
    });
    ip(&format!("link set vm netns {}", elsewhere.recv().unwrap()));
    rig.settle_down();

    assert_eq!(rig.link(), 1);
    drop(end);
    thread.join().unwrap();
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_guest_announces_itself_on_a_bridge_that_its_tap_comes_to_and_that_comes_back() {
    let mut rig = on_tap(1, 0);
    see_the_own_network();
    rig.until("it is not asked", |rig| rig.status() == 3);
    rig.command(3, 0, &[]);

    let mut asked = Vec::new();
    ip("link add name lan type bridge");
    ip("link set vm master lan");
    rig.settle_down();
    asked.push(rig.stats().announcements);
    for down in [false, true] {
        if down {
            ip("link set lan down");
            rig.settle_down();
        }
        ip("link set lan up");
        rig.until("it is not asked", |rig| rig.status() == 3);
        rig.command(3, 0, &[]);
        asked.push(rig.stats().announcements);
    }

    assert_eq!(asked, [1, 2, 3]);
    assert_eq!(rig.stats().link_downs, 0);
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_tap_that_vanishes_takes_the_link_down_and_nothing_else() {
    let mut rig = on_tap(1, 0);
    let before = rig.link();

    ip("link del vm");
    rig.until("the link stays up", |rig| rig.link() == 0);
    rig.send(&frame(BROADCAST, 60, 1));
    let answer = rig.command(0, 0, &[0]);

    assert_eq!((before, answer), (1, 0));
    assert_eq!(rig.transmit.ring.used().len(), 1);
    let stats = rig.stats();
    assert_eq!((stats.link_downs, stats.tx_dropped), (1, 1));
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_guest_that_resets_on_a_tap_that_has_vanished_finds_its_link_down_and_fills_no_log() {
    let mut rig = on_tap(1, 0);
    ip("link del vm");

    let lines = lines_of(|| {
        for _ in 0..10 {
            rig.receive.handler.settle(&mut rig.receive.queue);
            rig.device.reset();
            rig.receive = Side::start(&rig.ram, &mut rig.device, 0);
        }
    });

    assert_eq!(rig.link(), 0);
    assert_eq!((rig.stats().link_downs, lines), (1, 1));
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_tap_that_vanishes_is_missed_by_a_guest_that_waits_for_frames() {
    let mut rig = on_tap(1, 0);
    // the host announces itself by more frames than one
    for _ in 0..60 {
        rig.offer(2048);
    }
    rig.settle_down();

    ip("link del vm");

    rig.until("the link stays up", |rig| rig.link() == 0);
    assert_eq!(rig.stats().link_downs, 1);
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_guest_that_sends_first_finds_out_that_the_tap_has_vanished() {
    let mut rig = on_tap(1, 0);

    ip("link del vm");
    rig.send(&frame(BROADCAST, 60, 1));

    assert_eq!(rig.link(), 0);
    assert_eq!(rig.transmit.ring.used().len(), 1);
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn pairs_of_queues_are_used_as_the_guest_says() {
    let mut rig = on_tap(2, 0);
    let features = rig.device.features();
    let mut second = Side::with(&rig.ram, &mut rig.device, 2, features);
    let buffer = Buffer::writable(rig.ram.alloc(2048), 2048);
    second.ring.add(&[buffer]);
    second.serve().unwrap();
    second.settle_down();

    let answers = [3u16, 0, 2, 1].map(|pairs| rig.command(4, 0, &pairs.to_le_bytes()));
    rig.command(4, 0, &[2, 0]);
    // frames of different flows are spread over the pairs
    let socket = UdpSocket::bind("10.9.0.1:7").unwrap();
    let deadline = Instant::now() + PATIENCE;
    let mut port = 1000u16;
    while second.ring.used_index() == 0 {
        assert!(
            Instant::now() < deadline,
            "nothing comes by the second pair"
        );
        port = port.wrapping_add(1).max(1);
        socket.send_to(b"x", ("10.9.0.2", port)).unwrap();
        second.settle_down();
    }

    assert_eq!(answers, [1, 1, 0, 0]);
    assert_ne!(features & net::MQ, 0);
    assert!(rig.device.handle().is_up());
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn without_a_control_queue_those_pairs_are_used_that_are_served() {
    let mut rig = on_tap(2, 0);
    let features = rig.device.features() & !net::CTRL_VQ;
    rig.device.reset();
    let mut first = Side::with(&rig.ram, &mut rig.device, 0, features);
    let alone = [rig.device.port().uses(0), rig.device.port().uses(1)];

    let second = Side::with(&rig.ram, &mut rig.device, 2, features);
    let both = [rig.device.port().uses(0), rig.device.port().uses(1)];
    drop(second);
    let again = [rig.device.port().uses(0), rig.device.port().uses(1)];

    assert_eq!(
        (alone, both, again),
        ([true, false], [true, true], [true, false])
    );
    first.settle_down();
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn offloads_are_those_of_the_tap_and_the_guest_changes_them() {
    let mut rig = on_tap(1, 0);
    let all = net::SENT | net::RECEIVED | net::CTRL_GUEST_OFFLOADS;

    let none = rig.command(5, 0, &0u64.to_le_bytes());
    let some = rig.command(5, 0, &(net::GUEST_CSUM | net::GUEST_TSO4).to_le_bytes());
    let odd = rig.command(5, 0, &net::HOST_USO.wrapping_shl(3).to_le_bytes());

    assert_eq!((none, some, odd), (0, 0, 1));
    assert_eq!(rig.device.features() & all, all);
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn an_interface_that_is_no_tap_is_told_by_name() {
    leave_the_network();

    let config = NetConfig::tap("lo").validate().unwrap();
    let error = NetDevice::open(config).unwrap_err();

    assert!(
        matches!(error, OpenError::Tap(TapError::Attach { .. })),
        "{error}"
    );
    assert!(error.to_string().contains("lo"));
}
