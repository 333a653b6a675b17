//! The adapters, on the fake Xen.
// tests build addresses out of small numbers
#![allow(clippy::cast_possible_truncation)]

mod plain;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use devices::virtio::{DmaProvider, Interrupt, Sharing};
use swiotlb::range::GRANT_BIT;
use swiotlb::{
    Access, CopyBytes, Dma, Fault, GrantAddress, GrantCopy, Grants, Job, Kind, Need, Range,
    Segments, Transfer, TransferBytes, Translation,
};
use xen::Host;
use xen::fake::{Call, Domain, DomainConfig, Machine, MachineConfig, PrivcmdEventfd, Target};
use xen::memory::ForeignRam;

use super::*;

const RAM: u64 = 0x4000_0000;
const CHUNK: u64 = 2 << 20;
const PAGE: u64 = 4096;

struct Bench {
    machine: Machine,
    host: Host,
    domain: Domain,
}

impl Bench {
    fn new() -> Self {
        Self::with(DomainConfig::with_memory(8 << 20))
    }

    fn with(config: DomainConfig) -> Self {
        let machine = Machine::new().unwrap();
        let domain = machine.create_domain(config).unwrap();
        Bench {
            host: Host::Fake(machine.clone()),
            machine,
            domain,
        }
    }

    fn ram(&self) -> Arc<ForeignRam> {
        let privcmd = self.host.open_privcmd().unwrap();
        Arc::new(ForeignRam::new(&privcmd, self.domain.id()).unwrap())
    }

    fn plain(&self) -> (Arc<ForeignRam>, ForeignMemory) {
        let ram = self.ram();
        (ram.clone(), ForeignMemory::new(ram))
    }

    fn grants(&self) -> GrantMemory {
        GrantMemory::new(self.host.open_gntdev().unwrap(), self.domain.id())
    }

    /// Grants pages from the start of RAM, which hold their own numbers.
    fn granted(&self, pages: u32, read_only: bool) -> u32 {
        for page in 0..u64::from(pages) {
            let bytes = vec![page as u8 + 1; PAGE as usize];
            self.domain.write_memory(RAM + page * PAGE, &bytes).unwrap();
        }
        self.domain
            .grant_range(RAM >> 12, pages, read_only)
            .unwrap()
    }

    fn mapped(&self) -> (u64, u64) {
        let census = self.machine.census();
        let held = census[&self.domain.id()];
        (held.foreign_pages, held.mapped_grants)
    }
}

fn range(address: u64, len: u32) -> Range {
    Range::new(address, len).unwrap()
}

fn grant(first: u32, offset: u64, len: u32) -> (GrantAddress, u32) {
    let address = GRANT_BIT | u64::from(first) << 12 | offset;
    (range(address, len).grant().unwrap().unwrap(), len)
}

fn job(ranges: &[(u64, u32, Access)]) -> Job<u32> {
    Job {
        token: 0,
        ranges: ranges
            .iter()
            .map(|&(address, len, access)| (range(address, len), access))
            .collect(),
    }
}

#[test]
fn granted_ranges_of_a_batch_are_mapped_by_one_call() {
    let bench = Bench::new();
    let first = bench.granted(6, false);
    let mut grants = bench.grants();
    // a second mapping would fail
    bench
        .machine
        .fail(Target::Call(Call::GrantMap), 2, libc::ENOMEM);
    let ranges = [
        grant(first + 4, 0, 10),
        grant(first, 0xff0, 0x1020),
        grant(first + 3, 5, 1),
    ];

    let loan = grants.map(&ranges, Access::Write).unwrap();
    let lengths: Vec<usize> = (0..3)
        .map(|index| loan.segment(index).unwrap().len())
        .collect();
    let offsets: Vec<usize> = (0..3)
        .map(|index| loan.segment(index).unwrap().address() % PAGE as usize)
        .collect();
    let held = bench.mapped().1;
    loan.give_back().unwrap();

    assert_eq!(lengths, [10, 0x1020, 1]);
    assert_eq!(offsets, [0, 0xff0, 5]);
    // the middle range touches three pages
    assert_eq!((held, bench.mapped().1), (5, 0));
    assert_eq!(bench.domain.end_access_range(first, 6), Ok(()));
}

#[test]
fn a_bad_grant_is_the_guests_and_a_failing_call_the_hosts_fault() {
    let bench = Bench::new();
    let first = bench.granted(2, true);
    let mut grants = bench.grants();

    let protected = grants.map(&[grant(first, 0, 8)], Access::Write).err();
    let unknown = grants.map(&[grant(0x7000, 0, 8)], Access::Read).err();
    bench
        .machine
        .fail(Target::Call(Call::GrantMmap), 1, libc::ENOMEM);
    let failing = grants.map(&[grant(first, 0, 8)], Access::Read).err();

    assert!(matches!(
        protected,
        Some(Fault::GrantRefusedByXen { reference, .. }) if reference == first
    ));
    assert!(matches!(
        unknown,
        Some(Fault::GrantRefusedByXen {
            reference: 0x7000,
            ..
        })
    ));
    assert!(failing.is_some_and(|fault| fault.is_host()));
    assert_eq!(bench.mapped().1, 0);
}

#[test]
fn copies_of_a_batch_go_both_ways_and_fail_one_by_one() {
    let bench = Bench::new();
    let first = bench.granted(3, false);
    let mut grants = bench.grants();
    let (mut crossing, mut unknown) = ([0; 8], [0; 8]);
    let copy = |grant: (GrantAddress, u32), bytes| GrantCopy {
        grant: grant.0,
        bytes,
        result: Ok(()),
    };
    let mut batch = [
        copy(grant(first, 0xffc, 8), CopyBytes::FromGuest(&mut crossing)),
        copy(grant(0x7000, 0, 8), CopyBytes::FromGuest(&mut unknown)),
        copy(grant(first + 1, 0xffe, 4), CopyBytes::ToGuest(&[8; 4])),
        copy(grant(first, 0, 2), CopyBytes::ToGuest(&[9; 2])),
    ];
    bench
        .machine
        .fail(Target::Call(Call::GrantCopy), 2, libc::ENOMEM);

    grants.copy(&mut batch);
    let outcome: Vec<bool> = batch.iter().map(|copy| copy.result.is_ok()).collect();
    let mut memory = [0; 4];
    bench
        .domain
        .read_memory(RAM + PAGE + 0xffe, &mut memory)
        .unwrap();
    let mut start = [0; 2];
    bench.domain.read_memory(RAM, &mut start).unwrap();

    assert_eq!(outcome, [true, false, true, true]);
    assert_eq!(crossing, [1, 1, 1, 1, 2, 2, 2, 2]);
    assert_eq!((memory, start), ([8; 4], [9; 2]));
}

#[test]
fn a_batch_of_copies_that_the_host_refuses_fails_whole() {
    let bench = Bench::new();
    let first = bench.granted(1, false);
    let mut grants = bench.grants();
    let mut bytes = [0; 4];
    let mut batch = [GrantCopy {
        grant: grant(first, 0, 4).0,
        bytes: CopyBytes::FromGuest(&mut bytes),
        result: Ok(()),
    }];
    bench
        .machine
        .fail(Target::Call(Call::GrantCopy), 1, libc::ENOMEM);

    grants.copy(&mut batch);

    let [copy] = batch;
    assert!(copy.result.is_err_and(|fault| fault.is_host()));
}

#[test]
fn a_granted_ring_has_just_the_access_that_it_needs() {
    let bench = Bench::new();
    let first = bench.granted(2, true);
    let mut grants = bench.grants();
    let (address, len) = grant(first, 0xff8, 16);

    let ring = grants.map_ring(address, len, Access::Read).unwrap();
    let mut bytes = [0u8; 16];
    ring.volatile().copy_to(&mut bytes[..]);
    let writable = grants.map_ring(address, len, Access::Write);
    drop(ring);

    assert_eq!(bytes, [1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2]);
    assert!(matches!(
        writable.err(),
        Some(Fault::GrantRefusedByXen { .. })
    ));
    assert_eq!(bench.mapped().1, 0);
}

fn reaches(dma: &mut Dma, address: u64) -> bool {
    let mapped = dma.map([job(&[(address, 8, Access::Read)])], Need::COPY);
    mapped.into_iter().all(|result| match result {
        Ok(mapped) => {
            let mut flights = vec![mapped.submit()];
            dma.finish(&mut flights).len() == 1
        }
        Err(rejected) => {
            let _ = dma.reject(rejected);
            false
        }
    })
}

#[test]
fn a_device_reaches_what_its_kind_may_and_nothing_else() {
    let bench = Bench::new();
    let first = bench.granted(1, false);
    let granted = GRANT_BIT | u64::from(first) << 12;
    let gntdev = || bench.host.open_gntdev().unwrap();
    let id = bench.domain.id();
    let providers = [
        DeviceMemory::plain(bench.ram()),
        DeviceMemory::granted(gntdev(), id, None),
        DeviceMemory::granted(gntdev(), id, Some(bench.ram())),
    ];

    let reached = providers.map(|provider| {
        let mut dma = provider.open().unwrap();
        (reaches(&mut dma, RAM), reaches(&mut dma, granted))
    });

    assert_eq!(reached, [(true, false), (false, true), (true, true)]);
}

#[test]
fn a_kind_decides_whether_ranges_are_looked_up() {
    let bench = Bench::new();
    let looked_up = |kind| {
        let provider = DeviceMemory::plain(bench.ram()).of_kind(kind);
        let mut dma = provider.open().unwrap();
        assert!(reaches(&mut dma, RAM));
        let counted = provider.counters().snapshot();
        (dma.kind(), counted.direct, counted.lookups)
    };

    let (translated, one_to_one) = (looked_up(Kind::Translated), looked_up(Kind::OneToOne));

    assert_eq!(translated, (Kind::Translated, 1, 1));
    assert_eq!(one_to_one, (Kind::OneToOne, 1, 0));
}

#[test]
fn all_data_paths_of_a_device_count_together() {
    let bench = Bench::new();
    let provider = DeviceMemory::plain(bench.ram());
    let (mut first, mut second) = (provider.open().unwrap(), provider.open().unwrap());
    let mut bytes = [0; 4];

    first.transfer(&mut [Transfer::from_guest([range(RAM, 4)], &mut bytes)]);
    assert!(reaches(&mut second, RAM));

    let counted = provider.counters().snapshot();
    assert_eq!((counted.transfers, counted.direct), (1, 1));
}

#[test]
fn plain_memory_is_shared_as_the_guest_has_it_and_granted_memory_is_not() {
    let hole = RAM / PAGE + 3;
    let bench = Bench::with(DomainConfig::with_memory(8 << 20).hole(hole, 1));
    bench.domain.write_memory(RAM + 0x4010, b"behind").unwrap();
    let gntdev = bench.host.open_gntdev().unwrap();
    let plain = DeviceMemory::plain(bench.ram());
    let granted = DeviceMemory::granted(gntdev, bench.domain.id(), Some(bench.ram()));

    let regions = plain.share().unwrap();
    let places: Vec<_> = regions
        .iter()
        .map(|region| (region.address, region.len, region.sharing))
        .collect();
    let mut bytes = [0; 6];
    let file = File::from(regions[1].file.try_clone().unwrap());
    file.read_exact_at(&mut bytes, regions[1].offset + 0x10)
        .unwrap();

    let before = (RAM, 3 * PAGE, Sharing::File);
    let behind = (RAM + 4 * PAGE, (8 << 20) - 4 * PAGE, Sharing::File);
    assert_eq!(places, [before, behind]);
    assert_eq!(&bytes, b"behind");
    assert_eq!(plain.sharing().unwrap(), Sharing::File);
    assert_eq!(plain.pages(), Some((8 << 20) / PAGE - 1));
    let refused = granted.share().unwrap_err().to_string();
    assert!(refused.contains("grant_usage=0"), "{refused}");
    assert!(granted.sharing().is_err());
}

#[test]
fn a_line_is_raised_by_hypercall_and_by_the_kernel() {
    let bench = Bench::new();
    let privcmd = bench.host.open_privcmd().unwrap();
    let id = bench.domain.id();
    let interrupts = bench.domain.interrupts().unwrap();
    let patience = std::time::Duration::from_secs(10);

    Line::hypercall(&privcmd, id, 33).raise().unwrap();
    let irqfd = Line::irqfd(&privcmd, id, 34).unwrap();
    irqfd.raise().unwrap();

    assert_eq!(interrupts.count(33), 1);
    assert_eq!(interrupts.wait_past(34, 0, patience), Some(1));
    drop(irqfd);
    assert_eq!(bench.machine.census()[&id].irqfds, 0);
}

#[test]
fn a_line_that_cannot_be_is_an_error() {
    let machine = Machine::with_config(MachineConfig {
        privcmd_eventfd: PrivcmdEventfd::NotConfigured,
        ..MachineConfig::default()
    })
    .unwrap();
    let domain = machine.create_domain(DomainConfig::default()).unwrap();
    let privcmd = Host::Fake(machine).open_privcmd().unwrap();

    let irqfd = Line::irqfd(&privcmd, domain.id(), 33);
    let private = Line::hypercall(&privcmd, domain.id(), 16).raise();

    assert!(matches!(
        irqfd,
        Err(xen::privcmd::Error::NotInKernel { .. })
    ));
    assert!(private.is_err());
}
