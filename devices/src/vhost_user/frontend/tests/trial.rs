//! Whether a back end can serve its device comes out without anybody's waiting.

use std::time::Duration;

use vhost::vhost_user::message::FrontendReq;

use super::partner::{Character, Partner};
use super::{PATIENCE, behind_registers, config, eventually};
use crate::vhost_user::frontend::{VhostUserConfig, VhostUserDevice};
use crate::virtio::mmio::Answer;
use crate::virtio::{Device, Trial};

const STATUS: u64 = 0x70;

/// A back end that takes connections and says nothing.
fn hung() -> Partner {
    Partner::with(Character {
        left_lying: Some(FrontendReq::GET_FEATURES),
        ..Character::default()
    })
}

/// A device for which nobody has waited.
fn made(partner: &Partner) -> VhostUserDevice {
    let config = VhostUserConfig {
        answer_timeout: 3600,
        ..config(partner.socket())
    };
    VhostUserDevice::open(config.validate().unwrap()).unwrap()
}

#[test]
fn nobody_waits_for_a_back_end_that_says_nothing_to_be_made() {
    let mut partners: Vec<Partner> = (0..8).map(|_| hung()).collect();

    let devices: Vec<VhostUserDevice> = partners.iter().map(made).collect();
    // all of them, and each is there before any back end has been heard
    let trials: Vec<Trial> = devices
        .iter()
        .map(|device| device.trial(Duration::ZERO))
        .collect();
    let features: Vec<u64> = devices.iter().map(Device::features).collect();
    partners.iter_mut().for_each(|partner| {
        partner.change(|character| character.left_lying = None);
    });
    let ends = devices.iter().map(|device| device.trial(PATIENCE));
    let ends: Vec<Trial> = ends.collect();

    assert!(trials.iter().all(|trial| matches!(trial, Trial::Pending)));
    assert_eq!(features, [0; 8]);
    assert!(ends.iter().all(|trial| matches!(trial, Trial::Passed)));
    assert!(devices.iter().all(|device| device.features() == 1 << 5));
}

#[test]
fn a_trial_is_over_at_once_where_nobody_is_there_and_by_itself_where_one_hangs() {
    let (absent, hung) = (Partner::absent(Character::default()), hung());
    let (waiting, silent) = (made(&absent), made(&hung));

    let ends = [&waiting, &silent].map(|device| device.trial(PATIENCE));
    let after = silent.trial(Duration::ZERO);

    assert!(
        ends.iter().all(|end| matches!(end, Trial::Passed)),
        "{ends:?}"
    );
    assert!(matches!(after, Trial::Passed), "{after:?}");
    assert!(!silent.is_ready(), "a driver waits for it all the same");
    hung.change(|character| character.left_lying = None);
}

#[test]
fn a_back_end_that_cannot_serve_fails_the_trial_late_as_well_and_is_named() {
    let partner = hung();
    partner.change(|character| character.queues = 0);
    let (mut transport, event) = behind_registers(made(&partner));

    let before = transport.device().trial(Duration::ZERO);
    let first = transport.write(STATUS, 4, 1);
    partner.change(|character| character.left_lying = None);
    eventually("somebody looks", || event.read().is_ok());
    let Trial::Failed(why) = transport.device().trial(PATIENCE) else {
        panic!("it is used");
    };
    let removed = transport.begin_reset();

    assert!(matches!(before, Trial::Pending), "{before:?}");
    assert_eq!((first, removed), (Answer::Later, Answer::Now));
    let (why, socket) = (why.to_string(), partner.socket().to_str().unwrap());
    assert!(why.contains(socket) && why.contains("0 queues"), "{why}");
}

#[test]
fn a_device_whose_back_end_hangs_is_gone_at_once() {
    let partner = hung();
    let device = made(&partner);
    eventually("a connection", || partner.connections() > 0);

    let (sender, gone) = std::sync::mpsc::channel();
    let remover = std::thread::spawn(move || {
        drop(device);
        sender.send(()).unwrap();
    });
    // it would answer only after this
    let went = gone.recv_timeout(PATIENCE);
    partner.change(|character| character.left_lying = None);

    assert_eq!(went, Ok(()));
    remover.join().unwrap();
}
