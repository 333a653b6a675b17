//! The configuration space, which the back end keeps.

use vhost::vhost_user::message::FrontendReq;
use vmm_sys_util::eventfd::EventFd;

use super::partner::{Character, Partner};
use super::{Rig, config, eventually, registers};
use crate::vhost_user::frontend::VhostUserConfig;
use crate::virtio::mmio::Answer;
use crate::virtio::{Device, Transport};

/// Where the space is in the device's window.
const CONFIG: u64 = 0x100;

#[test]
fn a_changed_configuration_space_is_read_again_and_told() {
    let rig = Rig::new();
    rig.partner.change(|character| character.config[0] = 99);

    rig.partner.tell_config_change();
    eventually("the guest is told", || rig.notifier.status() == 2);

    let mut space = [0; 2];
    rig.device.read_config(0, &mut space);
    assert_eq!((space, rig.notifier.generation()), ([99, 7], 1));
    assert!(!rig.notifier.needs_reset());
}

#[test]
fn what_a_driver_writes_reaches_this_back_end_and_the_next() {
    let mut rig = Rig::new();

    let written = rig.device.write_config(4, &[1, 2]);
    let beyond = rig.device.write_config(255, &[1, 2]);
    rig.partner.wait_for(FrontendReq::SET_CONFIG);
    let body = rig.partner.bodies(FrontendReq::SET_CONFIG).remove(0);
    rig.partner.die();
    rig.partner.wait_for(FrontendReq::SET_CONFIG);
    let again = rig.partner.bodies(FrontendReq::SET_CONFIG).remove(0);

    let mut space = [0; 3];
    rig.device.read_config(4, &mut space);
    assert_eq!((written, beyond), (true, false));
    assert_eq!(body, [4, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1, 2]);
    assert_eq!((again, space), (body, [1, 2, 7]));
    assert!(!rig.notifier.needs_reset());
}

/// Looks after a driver that waits until it need not any more.
fn settle(transport: &mut Transport, event: &EventFd) {
    eventually("the driver is answered", || {
        event.read().is_ok() && transport.collect()
    });
}

#[test]
fn a_driver_that_has_written_reads_what_the_back_end_makes_of_it() {
    let partner = Partner::with(Character {
        left_lying: Some(FrontendReq::SET_CONFIG),
        ..Character::default()
    });
    let (mut transport, event) = registers(config(partner.socket()));

    let answer = transport.write(CONFIG + 4, 1, 9);
    let at_once = transport.collect();
    partner.change(|character| {
        character.config[8] = 42;
        character.left_lying = None;
    });
    settle(&mut transport, &event);

    assert_eq!((answer, at_once), (Answer::Later, false));
    let read = [4, 8].map(|at| transport.read(CONFIG + at, 1));
    assert_eq!(read, [9, 42]);
}

#[test]
fn an_input_devices_back_end_is_told_all_of_its_space() {
    let partner = Partner::new();
    let (mut transport, _event) = registers(VhostUserConfig {
        virtio_id: 18,
        config_size: Some(16),
        ..config(partner.socket())
    });
    let bodies = || partner.bodies(FrontendReq::SET_CONFIG);

    for at in [0, 1] {
        // the back end may be quicker than the look whether it has taken it
        let _ = transport.write(CONFIG + at, 1, 1);
        eventually("the write", || bodies().len() as u64 == at + 1);
    }

    let header = [0, 16, 0].map(u32::to_ne_bytes).concat();
    assert_eq!(bodies()[0][..14], [&header[..], &[1, 7]].concat());
    assert_eq!(bodies()[1][..14], [&header[..], &[1, 1]].concat());
    assert_eq!(bodies()[1].len(), 28);
}

#[test]
fn nobody_waits_for_a_back_end_that_dies_over_a_write() {
    let partner = Partner::with(Character {
        left_lying: Some(FrontendReq::SET_CONFIG),
        ..Character::default()
    });
    let (mut transport, event) = registers(config(partner.socket()));

    let answer = transport.write(CONFIG + 4, 1, 9);
    partner.change(|character| character.left_lying = None);
    partner.die();
    settle(&mut transport, &event);

    assert_eq!(answer, Answer::Later);
    assert_eq!(transport.read(CONFIG + 4, 1), 9);
}
