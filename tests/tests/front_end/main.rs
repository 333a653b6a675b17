//! Devices that vhost-user back ends serve, driven through the front end by
//! grants and by plain addresses, and with the guest's own memory and rings.

mod foreign;
mod hostile;
mod killed;
mod served;

use std::time::Duration;

use tests::back_end::Way;
use vmm::demo::guest::{Addresses, within};

const LIMIT: Duration = Duration::from_secs(120);

/// Runs a test by every way, on a thread that plays the guest: virtio-drivers may
/// spin.
fn every(test: fn(Way)) {
    for way in [Way::GRANTS, Way::PLAIN, Way::DIRECT] {
        within("the test", LIMIT, move || test(way)).unwrap();
    }
}

/// The same, where the back end has a pool.
fn bounced(test: fn(Addresses)) {
    for addresses in [Addresses::Grants, Addresses::Plain] {
        within("the test", LIMIT, move || test(addresses)).unwrap();
    }
}
