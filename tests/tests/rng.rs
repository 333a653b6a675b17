//! A source of entropy, driven by virtio-drivers and by hand, through grants
//! and through plain addresses.

use std::time::{Duration, Instant};

use devices::registry::DeviceSpec;
use devices::rng::RngConfig;
use devices::virtio::Device;
use tests::raw::Request;
use tests::{Place, Stand};
use virtio_drivers::device::rng::VirtIORng;
use vmm::demo::guest::hal::enter;
use vmm::demo::guest::{Addresses, GuestHal, Registers, within};

const LIMIT: Duration = Duration::from_secs(60);

/// Runs a test on a thread that plays the guest: virtio-drivers may spin.
fn both(test: fn(Addresses)) {
    for addresses in [Addresses::Grants, Addresses::Plain] {
        within("the test", LIMIT, move || test(addresses)).unwrap();
    }
}

fn rng(config: RngConfig) -> Box<dyn Device> {
    DeviceSpec::Rng(config.validate().unwrap()).open().unwrap()
}

fn limited(bytes_per_second: u64, burst: u32) -> Box<dyn Device> {
    rng(RngConfig {
        bytes_per_second: Some(bytes_per_second),
        burst: Some(burst),
        ..RngConfig::default()
    })
}

fn drive(stand: &Stand, place: &Place) -> VirtIORng<GuestHal, Registers> {
    enter(stand.memory(place.addresses));
    VirtIORng::new(Registers::probe(&stand.vcpu(0), place.base).unwrap()).unwrap()
}

fn ones(bytes: &[u8]) -> u32 {
    bytes.iter().map(|byte| byte.count_ones()).sum()
}

#[test]
fn a_driver_gets_random_bytes_in_every_length() {
    both(|addresses| {
        let stand = Stand::new();
        let place = stand.add(0, addresses, rng(RngConfig::default()));
        let mut driver = drive(&stand, &place);

        for len in [1, 2, 64, 4095, 4096, 4097, 16384] {
            let mut bytes = vec![0; len];
            assert_eq!(driver.request_entropy(&mut bytes).unwrap(), len);
        }
        let mut bytes = vec![0; 16384];
        driver.request_entropy(&mut bytes).unwrap();

        // 131072 fair bits: within ten standard deviations of the half
        assert!(ones(&bytes).abs_diff(65536) < 1811);
        drop(driver);
        stand.finish();
    });
}

#[test]
fn the_rate_limit_bounds_what_a_guest_gets_in_the_time_that_has_passed() {
    both(|addresses| {
        const RATE: u64 = 20_000;
        const BURST: u32 = 1000;
        let begin = Instant::now();
        let stand = Stand::new();
        let place = stand.add(0, addresses, limited(RATE, BURST));
        let mut driver = drive(&stand, &place);
        let mut got = 0;

        for _ in 0..20 {
            got += driver.request_entropy(&mut [0; 512]).unwrap() as u128;
        }

        let yielded = begin.elapsed().as_nanos() * u128::from(RATE) / 1_000_000_000;
        assert_eq!(got, 20 * 512);
        assert!(got <= u128::from(BURST) + yielded + 1);
        drop(driver);
        stand.finish();
    });
}

#[test]
fn a_chain_that_waits_stalls_neither_a_disk_nor_a_reset() {
    both(|addresses| {
        let stand = Stand::new();
        let place = stand.add(0, addresses, limited(1, 64));
        let (disk, _) = stand.add_disk(1, addresses, 1 << 20);
        let driver = stand.raw(&place, 0);
        driver.negotiate();
        let mut queue = driver.queue(0, 16);
        driver.go();
        let request = Request {
            readable: Vec::new(),
            writable: vec![64],
        };
        let (first, second) = (request.share(&driver.memory), request.share(&driver.memory));

        first.submit(&driver.memory, &mut queue, 0);
        second.submit(&driver.memory, &mut queue, 1);
        driver.kick(&queue);
        let used = driver.wait(&mut queue).unwrap();
        let mut disk = stand.drive(&disk);
        for sector in 0..200 {
            disk.read(sector, 512).unwrap();
            assert_eq!(disk.drain().unwrap().len(), 1);
        }
        let waiting = queue.pop(&driver.memory);
        driver.reset();

        assert_eq!((used, waiting), ((0, 64), None));
        drop(disk);
        queue.free(&driver.memory);
        first.take_back(&driver.memory);
        assert_eq!(second.take_back(&driver.memory), [[0; 64]]);
        stand.finish();
    });
}

#[test]
fn a_source_that_fails_gives_the_guest_nothing_and_hinders_no_reset() {
    both(|addresses| {
        let stand = Stand::new();
        let device = rng(RngConfig {
            path: Some("/dev/zero".into()),
            ..RngConfig::default()
        });
        let place = stand.add(0, addresses, device);
        let driver = stand.raw(&place, 0);
        driver.negotiate();
        let mut queue = driver.queue(0, 16);
        driver.go();
        let request = Request {
            readable: Vec::new(),
            writable: vec![64],
        };
        let shared = request.share(&driver.memory);

        shared.submit(&driver.memory, &mut queue, 0);
        driver.kick(&queue);
        let answer = driver.wait_for(&mut queue, Duration::from_millis(100));
        driver.reset();

        assert_eq!(answer, None);
        queue.free(&driver.memory);
        assert_eq!(shared.take_back(&driver.memory), [[0; 64]]);
        stand.finish();
    });
}
