//! Sessions that a test runs itself.

use std::cell::RefCell;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::rc::Rc;

use super::config;
use crate::vhost_user::frontend::VhostUserDevice;
use crate::vhost_user::frontend::by_hand::Pause;
use crate::virtio::Device;

/// The first `count` pauses of a session, and its device's statistics then.
fn pauses(socket: &Path, count: usize) -> (Vec<Pause>, Vec<(&'static str, u64)>) {
    let spec = config(socket).validate().unwrap();
    let (device, session) = VhostUserDevice::by_hand(spec).unwrap();
    let seen = Rc::new(RefCell::new((Vec::new(), Vec::new())));
    let seeing = Rc::clone(&seen);
    let mut device = Some(device);
    session.run(move |pause| {
        let mut seen = seeing.borrow_mut();
        seen.0.push(pause);
        let last = device.take_if(|_| seen.0.len() == count);
        seen.1.extend(last.iter().flat_map(Device::statistics));
    });
    seen.take()
}

#[test]
fn a_session_that_finds_nobody_tries_again_at_once() {
    let directory = tempfile::tempdir().unwrap();

    let (pauses, statistics) = pauses(&directory.path().join("nobody"), 1000);

    assert_eq!(pauses, [Pause::Away; 1000]);
    assert!(statistics.contains(&("hung", 0)));
}

#[test]
fn a_session_waits_for_no_answer() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("silent");
    let _listener = UnixListener::bind(&socket).unwrap();

    let (pauses, statistics) = pauses(&socket, 20);

    assert_eq!(pauses, [Pause::Told, Pause::Away].repeat(10));
    assert!(statistics.contains(&("hung", 10)));
}
