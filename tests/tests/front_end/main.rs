//! Devices that vhost-user back ends serve, driven through the front end by
//! grants and by plain addresses.

mod hostile;
mod killed;
mod served;

use std::time::Duration;

use vmm::demo::guest::{Addresses, within};

const LIMIT: Duration = Duration::from_secs(120);

/// Runs a test on a thread that plays the guest: virtio-drivers may spin.
fn both(test: fn(Addresses)) {
    for addresses in [Addresses::Grants, Addresses::Plain] {
        within("the test", LIMIT, move || test(addresses)).unwrap();
    }
}
