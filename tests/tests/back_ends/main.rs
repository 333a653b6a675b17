//! vhost-user back ends that others wrote, unmodified, behind xen-dm's front
//! end: guests on grants and on plain addresses see what the back end has, and
//! the back end sees nothing of theirs; or, where it is given the guest's memory,
//! serves the guest's own rings.
//!
//! | back end | tests |
//! |---|---|
//! | QEMU's storage daemon | [`disk`], [`address_space`] |
//! | SPDK's vhost target, where there is one | [`disk`] |
//! | virtiofsd | [`fs`] |
//! | vhost-device-rng | [`rng`] |
//! | vhost-device-vsock | [`vsock`] |
//! | vhost-device-scsi | [`scsi`] |
//! | vhost-device-sound, its null back end | [`sound`] |
//! | vhost-device-console | [`console`] |
//! | DPDK's testpmd | [`net`] |
//!
//! `tests/vhost-user/back-ends` builds them in the versions that
//! `tests/lab/lib/back-ends.sh` names, runs these tests, and says which others
//! are left out and why.

mod address_space;
mod console;
mod disk;
mod fs;
mod net;
mod peer;
mod rng;
mod scsi;
mod sound;
mod vsock;

use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use devices::registry::DeviceSpec;
use devices::vhost_user::frontend::VhostUserConfig;
use tests::back_end::Way;
use tests::{Place, Stand};
use vmm::demo::guest::within;

use peer::Peer;

/// How long a test may take with one kind of addresses.
const LIMIT: Duration = Duration::from_secs(300);

/// Held for writing by tests of back ends that poll: each of these takes a
/// processor for itself.
static PROCESSORS: RwLock<()> = RwLock::new(());

const WAYS: [Way; 3] = [Way::GRANTS, Way::PLAIN, Way::DIRECT];

/// Runs a test by every way, on a thread that plays the guest: virtio-drivers may
/// spin.
fn every(test: fn(Way)) {
    for way in WAYS {
        run(way, test);
    }
}

/// The same, where the back end has a pool.
fn bounced(test: fn(Way)) {
    for way in [Way::GRANTS, Way::PLAIN] {
        run(way, test);
    }
}

/// By every way, while no other test runs.
fn alone(test: fn(Way)) {
    let _held = PROCESSORS.write().unwrap_or_else(PoisonError::into_inner);
    for way in WAYS {
        drive(way, test);
    }
}

fn run(way: Way, test: fn(Way)) {
    let _held = PROCESSORS.read().unwrap_or_else(PoisonError::into_inner);
    drive(way, test);
}

fn drive(way: Way, test: fn(Way)) {
    let ended = within("the test", LIMIT, move || test(way));
    ended.inspect_err(|_| peer::kill_all()).unwrap();
}

/// What has to be said of a device.
#[derive(Clone, Copy)]
struct Kind {
    /// Its virtio device id.
    id: u32,
    /// How many queues its back end has.
    queues: u16,
    /// What its back end takes for a queue at most.
    size: u16,
    /// Features that its back end offers and cannot deal with alone.
    refused: &'static [u8],
}

/// A guest with one device.
struct Served {
    stand: Stand,
    place: Place,
}

/// Starts a back end, and a guest with its device.
fn serve(way: Way, kind: Kind, start: impl FnOnce(&Stand) -> Peer) -> (Served, Peer) {
    let stand = Stand::new();
    let peer = start(&stand);
    let place = add(&stand, 0, way, kind, &peer);
    (Served { stand, place }, peer)
}

/// Has a back end's device served.
fn add(stand: &Stand, number: u32, way: Way, kind: Kind, peer: &Peer) -> Place {
    let config = VhostUserConfig {
        queues: kind.queues,
        queue_size: kind.size,
        refuse_features: kind.refused.to_vec(),
        ..way.config(peer.socket(), kind.id)
    };
    let spec = DeviceSpec::VhostUser(config.validate().unwrap());
    stand.add(number, way.addresses, spec.open().unwrap())
}
