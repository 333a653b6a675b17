//! What a device model relies on, asked of Xen: on the fake in every test run,
//! and on real Xen by the lab's case `xen-suite`.
//!
//! With `XEN_SUITE_DOMID` set, the guest of that number on the Xen of this
//! machine is asked: an Arm DomU of at least 64 MiB that uses no virtio
//! device. Without it, each test has a fake machine of its own. A rule that
//! holds on one and not on the other is a fault of the fake.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use xen::dm_op::{Error as DmError, IoRange, ServerId};
use xen::features::FeatureWord;
use xen::gntdev::CopySegment;
use xen::ioreq::IoreqServer;
use xen::memory::ForeignRam;
use xen::privcmd::Error as PrivcmdError;
use xen::xenstore::Tree;
use xen::{DomId, Host, fake};

/// First frame of an Arm guest's memory, `xen/include/public/arch-arm.h`.
const RAM: u64 = 0x4_0000;
/// A frame of the first bank that a guest of 256 MiB does not have.
const HOLE: u64 = 0x9_0000;
const WINDOW: IoRange = IoRange::Memory(0x200_0000, 0x20f_ffff);
/// No domain has it.
const NOBODY: DomId = DomId(32_000);

struct Target {
    host: Host,
    dom: DomId,
}

impl Target {
    fn get() -> Self {
        if let Ok(text) = std::env::var("XEN_SUITE_DOMID") {
            let dom = text.parse().expect("XEN_SUITE_DOMID is a domain's number");
            return Target {
                host: Host::Kernel,
                dom: DomId(dom),
            };
        }
        let machine = fake::Machine::new().unwrap();
        let config = fake::DomainConfig::with_memory(256 << 20);
        let domain = machine.create_domain(config).unwrap();
        Target {
            dom: domain.id(),
            host: Host::Fake(machine),
        }
    }

    fn server(&self) -> IoreqServer {
        let privcmd = self.host.open_privcmd().unwrap();
        let evtchn = self.host.open_evtchn().unwrap();
        IoreqServer::create(&privcmd, evtchn, self.dom).unwrap()
    }
}

#[test]
fn our_own_feature_word_says_how_we_are_mapped() {
    let target = Target::get();
    let word = target.host.open_privcmd().unwrap().features().unwrap();
    let both = FeatureWord::DIRECT_MAPPED | FeatureWord::NOT_DIRECT_MAPPED;
    let said = word & both;
    assert!(
        !said.is_empty() && said != both,
        "exactly one of the two since Xen 4.16: {word:?}"
    );
}

#[test]
fn the_guest_has_vcpus_and_a_highest_frame() {
    let target = Target::get();
    let privcmd = target.host.open_privcmd().unwrap();
    assert!(privcmd.version().unwrap() >= (4, 16));
    assert!(privcmd.nr_vcpus(target.dom).unwrap() >= 1);
    assert!(privcmd.maximum_gpfn(target.dom).unwrap() > RAM);
    let pages = privcmd.current_reservation(target.dom).unwrap();
    assert!(pages > 0 && pages <= privcmd.maximum_reservation(target.dom).unwrap());
}

#[test]
fn a_domain_that_does_not_exist_is_called_so() {
    let target = Target::get();
    let privcmd = target.host.open_privcmd().unwrap();
    assert!(matches!(
        privcmd.create_ioreq_server(NOBODY),
        Err(DmError::NoDomain { .. })
    ));
    assert!(matches!(
        privcmd.maximum_gpfn(NOBODY),
        Err(PrivcmdError::NoDomain { .. })
    ));
    assert!(ForeignRam::new(&privcmd, NOBODY).is_err());
}

#[test]
fn an_ioreq_server_lives_and_its_place_is_free_again() {
    let target = Target::get();
    let mut first = target.server();
    first.map_range(WINDOW).unwrap();
    first.enable().unwrap();
    let ports = first.ports();
    let id = first.id();
    first.destroy().unwrap();
    let second = target.server();
    assert!(!ports.is_empty());
    assert!(ports.iter().all(|port| *port > 0));
    assert_eq!(second.id(), id);
}

#[test]
fn a_range_is_claimed_once_and_given_back() {
    let target = Target::get();
    let mut server = target.server();
    server.map_range(WINDOW).unwrap();
    let twice = server.map_range(WINDOW);
    let inside = server.map_range(IoRange::Memory(0x200_0200, 0x200_03ff));
    server.unmap_range(WINDOW).unwrap();
    let again = server.map_range(WINDOW);
    assert!(twice.is_err());
    assert!(inside.is_err());
    assert!(again.is_ok());
}

#[test]
fn a_range_that_ends_before_it_starts_is_refused() {
    let target = Target::get();
    let mut server = target.server();
    assert!(
        server
            .map_range(IoRange::Memory(0x201_0000, 0x200_0000))
            .is_err()
    );
}

#[test]
fn a_guest_has_eight_servers_and_no_ninth() {
    let target = Target::get();
    let servers: Vec<_> = (0..8).map(|_| target.server()).collect();
    let privcmd = target.host.open_privcmd().unwrap();
    let ninth = privcmd.create_ioreq_server(target.dom);
    drop(servers);
    assert!(
        matches!(ninth, Err(DmError::TooManyServers { .. })),
        "{ninth:?}"
    );
}

#[test]
fn what_is_asked_of_an_unknown_server_is_refused() {
    let target = Target::get();
    let privcmd = target.host.open_privcmd().unwrap();
    let unknown = ServerId(7);
    assert!(privcmd.ioreq_server_info(target.dom, unknown).is_err());
    assert!(privcmd.map_io_range(target.dom, unknown, WINDOW).is_err());
    assert!(privcmd.destroy_ioreq_server(target.dom, unknown).is_err());
}

#[test]
fn the_interrupts_of_devices_can_be_raised_and_those_of_cpus_cannot() {
    let target = Target::get();
    let privcmd = target.host.open_privcmd().unwrap();
    assert!(privcmd.set_irq_level(target.dom, 43, true).is_ok());
    assert!(privcmd.set_irq_level(target.dom, 31, true).is_err());
    assert!(privcmd.set_irq_level(target.dom, 5000, true).is_err());
}

#[test]
fn foreign_pages_are_mapped_and_a_missing_one_is_told_by_itself() {
    let target = Target::get();
    let privcmd = target.host.open_privcmd().unwrap();
    // the kernel's image begins behind the first 2 MiB
    let there = RAM + 0x201;
    let pages = privcmd
        .map_foreign(target.dom, &[there, HOLE, there + 1], true)
        .unwrap();
    assert!(pages.error(0).is_none());
    assert!(pages.error(1).is_some());
    assert!(pages.error(2).is_none());
    assert!(!pages.is_complete());
}

#[test]
fn two_mappings_of_one_page_show_the_same_bytes() {
    let target = Target::get();
    let privcmd = target.host.open_privcmd().unwrap();
    let ram = ForeignRam::new(&privcmd, target.dom).unwrap();
    let address = (RAM + 0x201) << 12;
    let mut through_chunk = vec![0; 4096];
    let mut by_itself = vec![0; 4096];
    let generation = ram.current();
    let slice = generation.slices(address, 4096).next().unwrap().unwrap();
    slice.copy_to(&mut through_chunk);
    let range = ram.map_range(address, 4096, false).unwrap();
    range.volatile().copy_to(&mut by_itself);
    assert_eq!(through_chunk, by_itself);
}

#[test]
fn a_generation_outlives_its_end() {
    let target = Target::get();
    let privcmd = target.host.open_privcmd().unwrap();
    let ram = ForeignRam::new(&privcmd, target.dom).unwrap();
    let address = (RAM + 0x201) << 12;
    let old = ram.current();
    let slice = old.slices(address, 64).next().unwrap().unwrap();
    ram.invalidate();
    let mut bytes = [0; 64];
    slice.copy_to(&mut bytes);
    assert_eq!(ram.current().number(), old.number() + 1);
}

#[test]
fn a_window_shows_the_guests_memory_in_one_piece() {
    let target = Target::get();
    let privcmd = target.host.open_privcmd().unwrap();
    let ram = ForeignRam::new(&privcmd, target.dom).unwrap();
    // behind the image, and over a border of two chunks
    let (first, len) = ((RAM + 0x201) << 12, 4 << 20);
    let window = ram.reach(first, len).unwrap();
    let whole = window.slice(first, len).unwrap();
    for at in [0, len / 2, len - 4096] {
        let address = first + at as u64;
        let page = window.slice(address, 4096).unwrap();
        let (base, place) = (whole.ptr_guard_mut(), page.ptr_guard_mut());
        assert_eq!(place.as_ptr().addr() - base.as_ptr().addr(), at);
        let (mut in_window, mut by_itself) = (vec![0; 4096], vec![0; 4096]);
        page.copy_to(&mut in_window);
        let range = ram.map_range(address, 4096, false).unwrap();
        range.volatile().copy_to(&mut by_itself);
        assert_eq!(in_window, by_itself);
    }
}

#[test]
fn a_window_outlives_its_end_and_shows_no_memory_that_is_not_there() {
    /// Neither RAM nor anything of Xen's.
    const VOID: u64 = 0x1_0000;
    let target = Target::get();
    let privcmd = target.host.open_privcmd().unwrap();
    let ram = ForeignRam::new(&privcmd, target.dom).unwrap();
    let address = (RAM + 0x201) << 12;
    let old = ram.reach(address, 64).unwrap();
    // what was tried and taken back can be tried again
    for _ in 0..3 {
        let error = ram.reach(VOID << 12, 64).unwrap_err();
        assert!(error.to_string().contains("0x10000"), "{error}");
    }
    assert!(ram.reach(HOLE << 12, 64).is_err());
    ram.invalidate();
    let mut bytes = [0; 64];
    old.slice(address, 64).unwrap().copy_to(&mut bytes);
    drop(old);
    let new = ram.reach(address, 64).unwrap();
    let mut again = [0; 64];
    new.slice(address, 64).unwrap().copy_to(&mut again);
    assert_eq!(bytes, again);
}

#[test]
fn memory_that_is_not_there_is_an_error_that_names_its_frame() {
    let target = Target::get();
    let privcmd = target.host.open_privcmd().unwrap();
    let ram = ForeignRam::new(&privcmd, target.dom).unwrap();
    let error = ram.map_range(HOLE << 12, 4096, false).unwrap_err();
    let generation = ram.current();
    let sliced = generation.slices(HOLE << 12, 4096).next().unwrap();
    assert!(format!("{error}").contains("0x90000"), "{error}");
    assert!(sliced.is_err());
    assert!(ram.map_range(u64::MAX - 1, 4096, false).is_err());
}

#[test]
fn a_reference_that_was_never_granted_fails_the_whole_map() {
    let target = Target::get();
    let gntdev = target.host.open_gntdev().unwrap();
    for write in [false, true] {
        let refused = gntdev.map(&[(target.dom, 4000), (target.dom, 4001)], write);
        assert!(refused.is_err());
    }
}

#[test]
fn every_grant_copy_has_its_own_status() {
    let target = Target::get();
    let gntdev = target.host.open_gntdev().unwrap();
    let mut bytes = [0; 64];
    let local = vm_memory::VolatileSlice::from(bytes.as_mut_slice());
    let mut segments = [
        CopySegment::from_grant(local, target.dom, 4000, 0),
        CopySegment::to_grant(local, target.dom, 4001, 0),
    ];
    // that segments failed is no error of the call
    gntdev.copy(&mut segments).unwrap();
    assert!(segments.iter().all(|segment| segment.result().is_err()));
}

#[test]
fn event_channels_that_do_not_exist_cannot_be_bound() {
    let target = Target::get();
    let evtchn = target.host.open_evtchn().unwrap();
    assert!(evtchn.bind_interdomain(target.dom, 0).is_err());
    assert!(evtchn.bind_interdomain(target.dom, 100_000).is_err());
    assert!(evtchn.bind_interdomain(NOBODY, 1).is_err());
}

#[test]
fn a_restricted_file_serves_its_domain_and_no_other() {
    let target = Target::get();
    let privcmd = target.host.open_privcmd().unwrap();
    privcmd.restrict(target.dom).unwrap();
    assert!(privcmd.nr_vcpus(target.dom).is_ok());
    assert!(matches!(
        privcmd.nr_vcpus(NOBODY),
        Err(DmError::Restricted { .. })
    ));
    assert!(matches!(
        privcmd.features(),
        Err(PrivcmdError::Restricted { .. })
    ));
}

#[test]
fn irqfd_is_used_where_the_probe_finds_it() {
    use std::os::fd::{AsRawFd, BorrowedFd};
    let target = Target::get();
    let privcmd = target.host.open_privcmd().unwrap();
    let event = vmm_sys_util::eventfd::EventFd::new(0).unwrap();
    let support = privcmd.irqfd_support();
    #[expect(unsafe_code, reason = "eventfds of vmm-sys-util are not AsFd")]
    // SAFETY: `event` outlives the borrow
    let fd = unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) };
    let assigned = privcmd.irqfd(target.dom, 42, fd);
    assert_eq!(assigned.is_ok(), support.is_available(), "{support:?}");
}

#[test]
fn xenstore_keeps_what_is_written_and_tells_who_watches() {
    let target = Target::get();
    let store = target.host.connect_xenstore().unwrap();
    let base = format!("/local/domain/0/xen-dm-suite/{}", std::process::id());
    let watch = store.watch(&base).unwrap();
    let node = store.at(&base);
    node.write("key", "value").unwrap();
    store
        .transaction(|tx| -> Result<(), xen::xenstore::Error> {
            let inside = tx.at(&base);
            inside.write("a", 1)?;
            inside.write("b", 2)
        })
        .unwrap();

    let mut seen = Vec::new();
    while let Some(event) = store.wait_event(Duration::from_secs(5)) {
        let xen::xenstore::Event::Watch(event) = event else {
            continue;
        };
        let last = event.path.ends_with("/b");
        seen.push(event.path);
        if last {
            break;
        }
    }
    let sum = node.read::<u32>("a").unwrap() + node.read::<u32>("b").unwrap();
    let mut keys = node.keys().unwrap();
    keys.sort();
    store.rm("/local/domain/0/xen-dm-suite").unwrap();
    watch.unwatch().unwrap();

    assert_eq!(sum, 3);
    assert_eq!(keys, ["a", "b", "key"]);
    assert_eq!(seen.first(), Some(&base), "a watch fires once at first");
    assert!(seen.contains(&format!("{base}/key")));
    assert!(!node.exists("key").unwrap());
}

#[test]
fn xenstore_knows_who_lives() {
    let target = Target::get();
    let store = target.host.connect_xenstore().unwrap();
    assert!(store.is_domain_introduced(target.dom).unwrap());
    assert!(!store.is_domain_introduced(NOBODY).unwrap());
}
