//! Grants, cache flushes and exchanged memory, each on a fake of what stands
//! behind it.

use std::sync::Arc;

use proptest::prelude::*;
use swiotlb::cache::{CacheOp, Flush, FlushCache, Maintenance, flushes, op_for_cpu, op_for_device};
use swiotlb::exchange::{self, Exchange, needs_exchange};
use swiotlb::foreign::ForeignFrames;
use swiotlb::grant_dma::{GrantDevice, GrantPages, GrantPlan, encode, judge_copies, plan};
use swiotlb::space::FrameTable;
use swiotlb::split::{copy_pieces, page_pieces};
use swiotlb::*;

use crate::stand::*;

#[test]
fn v27_grant_addresses_are_made_and_taken_apart() {
    for (reference, offset, dma) in [
        (5, 0x123, 0x8000_0000_0000_5123),
        (0xFFFF_FFFF, 0, 0x8000_0FFF_FFFF_F000),
    ] {
        assert_eq!(encode(reference, offset), Ok(dma));
        let grant = Range::new(dma, 1).unwrap().grant().unwrap().unwrap();
        assert_eq!((grant.first, u64::from(grant.offset)), (reference, offset));
    }
    assert!(encode(0, 4096).is_err());
}

#[test]
fn v28_pages_touched_are_granted_as_the_device_uses_them() {
    let plan = |offset, len, direction| {
        let plan = plan(offset, len, direction).unwrap();
        (plan.count, plan.read_only)
    };
    assert_eq!(plan(0xff0, 0x20, Direction::ToDevice), (2, true));
    assert_eq!(plan(0, 4096, Direction::FromDevice), (1, false));
    assert_eq!(plan(1, 4096, Direction::Bidirectional), (2, false));
}

/// Grants pages by consecutive references; may hold on to one.
struct Peer {
    next: u32,
    live: Vec<u32>,
    keeps: Option<u32>,
}

impl GrantPages for Peer {
    fn grant(&mut self, _gfn: u64, plan: GrantPlan) -> Result<u32, Error> {
        let first = self.next;
        if u64::from(first) + u64::from(plan.count) - 1 > u64::from(u32::MAX) {
            let count = u64::from(plan.count);
            return Err(Error::GrantRange { first, count });
        }
        self.live.extend(first..=first + (plan.count - 1));
        self.next = self.next.wrapping_add(plan.count);
        Ok(first)
    }

    fn end(&mut self, reference: u32) -> bool {
        if self.keeps == Some(reference) {
            return false;
        }
        let before = self.live.len();
        self.live.retain(|&live| live != reference);
        assert_eq!(self.live.len(), before - 1, "ended once");
        true
    }
}

fn peer(next: u32) -> Peer {
    Peer {
        next,
        live: Vec::new(),
        keeps: None,
    }
}

#[test]
fn v28_references_do_not_run_past_the_last_one() {
    let constraints = DeviceConstraints::default();
    let mut device = GrantDevice::new(peer(0xFFFF_FFFF), constraints).unwrap();
    let mapped = device.map(0x1ff0, 0x20, Direction::ToDevice);
    assert!(matches!(
        mapped,
        Err(Error::GrantRange {
            first: 0xFFFF_FFFF,
            count: 2
        })
    ));
}

/// Says that it has granted more references than there are; notes those that
/// are ended.
struct Wrapping<'a>(&'a std::cell::RefCell<Vec<u32>>);

impl GrantPages for Wrapping<'_> {
    fn grant(&mut self, _gfn: u64, _plan: GrantPlan) -> Result<u32, Error> {
        Ok(u32::MAX - 1)
    }

    fn end(&mut self, reference: u32) -> bool {
        self.0.borrow_mut().push(reference);
        true
    }
}

#[test]
fn v28_references_that_run_past_the_last_one_are_ended_again() {
    let ended = std::cell::RefCell::default();
    let mut device = GrantDevice::new(Wrapping(&ended), DeviceConstraints::default()).unwrap();
    let mapped = device.map(0, 3 * 4096, Direction::ToDevice);
    assert!(matches!(mapped, Err(Error::GrantRange { count: 3, .. })));
    assert_eq!(*ended.borrow(), [u32::MAX - 1, u32::MAX]);
    assert!(!device.is_broken());
}

#[test]
fn v28_a_device_of_less_than_64_bits_takes_no_grants() {
    let constraints = DeviceConstraints {
        dma_mask: std::num::NonZeroU64::new(u64::MAX >> 1),
        ..DeviceConstraints::default()
    };
    let refused = GrantDevice::new(peer(0), constraints).map(|_| ());
    assert!(matches!(refused, Err(Error::NotCapable { .. })));
}

#[test]
fn v29_a_peer_that_holds_on_breaks_the_device() {
    let constraints = DeviceConstraints::default();
    let mut holding = peer(8);
    holding.keeps = Some(9);
    let mut device = GrantDevice::new(holding, constraints).unwrap();
    let mapping = device
        .map(0x5123, 3 * 4096 - 0x123, Direction::FromDevice)
        .unwrap();
    assert_eq!(mapping.dma, encode(8, 0x123).unwrap());
    assert_eq!(device.unmap(mapping), Err(Error::Broken));
    assert_eq!((device.is_broken(), device.leaked()), (true, 2));
    assert_eq!(device.map(0, 1, Direction::ToDevice), Err(Error::Broken));
}

#[test]
fn granted_pages_go_back() {
    let mut device = GrantDevice::new(peer(8), DeviceConstraints::default()).unwrap();
    let mapping = device.map(0, 9000, Direction::ToDevice).unwrap();
    assert_eq!(device.unmap(mapping), Ok(()));
    assert!(!device.is_broken());
    assert!(!device.needs_bounce(1, 1));
    let untrusted = DeviceConstraints {
        untrusted: true,
        granule: 4096,
        ..DeviceConstraints::default()
    };
    let device = GrantDevice::new(peer(8), untrusted).unwrap();
    assert!(device.needs_bounce(0, 100));
    assert!(!device.needs_bounce(0x1000, 0x2000));
}

#[test]
fn v30_copies_are_cut_on_both_sides() {
    let cut = |from, to, len| -> Vec<(u64, u64, u64)> {
        let pieces = copy_pieces(from, to, len).unwrap();
        pieces
            .map(|piece| (piece.from, piece.to, piece.len))
            .collect()
    };
    let pieces = [(0x800, 0, 0x800), (0x1000, 0x800, 0x800)];
    assert_eq!(cut(0x800, 0, 0x1000), pieces);
    let lengths: Vec<u64> = cut(0x800, 0xC00, 0x1000)
        .iter()
        .map(|piece| piece.2)
        .collect();
    assert_eq!(lengths, [0x400, 0x400, 0x800]);
    assert_eq!(cut(0x800, 0, 0), []);
    assert!(copy_pieces(u64::MAX, 0, 1).is_err());
}

#[test]
fn v30_every_status_of_a_batch_counts() {
    assert_eq!(judge_copies(Ok(()), &[0, 0]), Ok(()));
    assert_eq!(judge_copies(Ok(()), &[0, -3]), Err(Error::GrantCopy(-3)));
    assert!(judge_copies(Err(14), &[0, 0]).is_err());
    // a buffer that could not be filled goes back without being handed out
    let (allocator, worker) = masked(0);
    let filled = worker
        .lease(0x1000, 4096, Direction::ToDevice, &Attrs::default())
        .and_then(|lease| judge_copies(Ok(()), &[0, -3]).map(|()| lease));
    assert_eq!(filled.unwrap_err(), Error::GrantCopy(-3));
    assert_eq!(allocator.used(), 0);
}

fn flushed(address: u64, len: u64) -> Vec<(u64, u64, u64)> {
    let ops = flushes(address, len, CacheOp::Clean).unwrap();
    ops.map(|op| (op.frame, op.offset, op.len)).collect()
}

#[test]
fn v51_no_frame_is_left_unflushed() {
    let expected = [
        (0x10000, 0xff0, 0x10),
        (0x11000, 0, 0x1000),
        (0x12000, 0, 0x1000),
        (0x13000, 0, 0x10),
    ];
    assert_eq!(flushed(0x10ff0, 0x2020), expected);
    assert_eq!(
        flushed(0x10800, 0x1000),
        [(0x10000, 0x800, 0x800), (0x11000, 0, 0x800)]
    );
    assert_eq!(flushed(0x10ff0, 0x10), [(0x10000, 0xff0, 0x10)]);
}

#[test]
fn v51_the_operation_follows_from_the_direction() {
    use Direction::{Bidirectional, FromDevice, ToDevice};
    assert_eq!(op_for_device(FromDevice), Some(CacheOp::Invalidate));
    assert_eq!(op_for_device(ToDevice), Some(CacheOp::Clean));
    assert_eq!(op_for_device(Bidirectional), Some(CacheOp::Clean));
    assert_eq!(op_for_cpu(ToDevice), None);
    assert_eq!(op_for_cpu(FromDevice), Some(CacheOp::Invalidate));
    assert_eq!(op_for_cpu(Bidirectional), Some(CacheOp::Invalidate));
}

/// A hypervisor that remembers flushes.
struct Hypervisor(Vec<Flush>);

impl FlushCache for Hypervisor {
    fn is_supported(&mut self) -> bool {
        true
    }

    fn flush(&mut self, flush: Flush) -> Result<(), i32> {
        self.0.push(flush);
        Ok(())
    }
}

/// A domain in which guest frame 0x10 is somebody's frame 0x70.
fn with_foreign_frame(flushes_caches: bool, coherent: bool) -> (Arc<Allocator>, Worker) {
    let foreign = Arc::new(ForeignFrames::new());
    foreign.insert(0x10, 0x70, 1).unwrap();
    let allocator = Allocator::new(settings("2048,1"), AddressSpace::OneToOne(foreign));
    allocator
        .ensure_default_pool(allocator::BringUp {
            source: &mut at(BASE),
            limit: None,
            remap: None,
            probe: &mut || flushes_caches,
            pv_pci: false,
        })
        .unwrap();
    let constraints = DeviceConstraints {
        coherent,
        ..DeviceConstraints::default()
    };
    let worker = worker(&allocator, constraints, 0);
    (allocator, worker)
}

#[test]
fn v51_a_foreign_frame_is_bounced_where_nobody_flushes_it() {
    let bounced = |flushes_caches, coherent| {
        let (allocator, worker) = with_foreign_frame(flushes_caches, coherent);
        let mapping = worker.map(&NoRam, 0x1_0010, 64, Direction::ToDevice, &Attrs::default());
        let bounced = mapping.unwrap().bounced().is_some();
        assert_eq!(
            allocator.stats().bounced_for(Reason::ForeignCache),
            u64::from(bounced)
        );
        bounced
    };
    assert!(bounced(false, false));
    assert!(!bounced(true, false));
    assert!(!bounced(false, true));
}

#[test]
fn v51_foreign_frames_alone_are_flushed() {
    let (_allocator, worker) = with_foreign_frame(true, false);
    let map = |address| {
        let attrs = Attrs::default();
        worker
            .map(&NoRam, address, 64, Direction::Bidirectional, &attrs)
            .unwrap()
    };
    let mut xen = Hypervisor(Vec::new());
    let mut maintenance = Maintenance::new(worker.device(), &mut xen);
    let foreign = map(0x1_0010);
    maintenance.for_device(0x1_0010, &foreign).unwrap();
    maintenance.for_cpu(0x1_0010, &foreign).unwrap();
    maintenance.for_device(0x2_0010, &map(0x2_0010)).unwrap();
    let flush = |op| Flush {
        frame: 0x7_0000,
        offset: 0x10,
        len: 64,
        op,
    };
    assert_eq!(xen.0, [flush(CacheOp::Clean), flush(CacheOp::Invalidate)]);
}

/// Memory whose pages have a given place on the bus, and its exchange.
struct Machine {
    gpa: u64,
    allocated: i64,
    exchanged: Vec<(u64, u32, u32)>,
    restored: Vec<(u64, u32)>,
    freed: Vec<(u64, u64)>,
    fails: bool,
}

impl Machine {
    fn at(gpa: u64) -> Self {
        Machine {
            gpa,
            allocated: 0,
            exchanged: Vec::new(),
            restored: Vec::new(),
            freed: Vec::new(),
            fails: false,
        }
    }
}

impl Exchange for Machine {
    fn allocate(&mut self, _pages: u64, _order: u32) -> Result<u64, Error> {
        self.allocated += 1;
        Ok(self.gpa)
    }

    fn zero(&mut self, _address: u64, _pages: u64) {}

    fn free(&mut self, address: u64, pages: u64) {
        self.allocated -= 1;
        self.freed.push((address, pages));
    }

    fn exchange(&mut self, address: u64, order: u32, bits: u32) -> Result<u64, Error> {
        if self.fails {
            return Err(Error::Remap("no extent".into()));
        }
        self.exchanged.push((address, order, bits));
        Ok(0x200_0000)
    }

    fn restore(&mut self, address: u64, order: u32) {
        self.restored.push((address, order));
    }
}

/// A domain whose frames from `gpa` on follow each other from `bus` on.
fn space(gpa: u64, bus: u64) -> AddressSpace {
    let frames = (0..16).map(|page| Some(bus / 4096 + page));
    AddressSpace::Translated(Arc::new(FrameTable::new(gpa / 4096, frames)))
}

#[test]
fn v23_memory_is_exchanged_where_it_has_to_be() {
    let exchanged = |gpa, bus, len, mask| needs_exchange(&space(gpa, bus), gpa, len, mask);
    assert_eq!(exchanged(0x10_0000, 0x800_0000, 8192, u64::MAX), Ok(false));
    assert_eq!(exchanged(0x10_1000, 0x800_1000, 8192, u64::MAX), Ok(false));
    assert_eq!(exchanged(0x20_0000, 0x800_1000, 8192, u64::MAX), Ok(true));
    assert_eq!(
        exchanged(0x20_0000, 0x1_0000_0000, 4096, 0xFFFF_FFFF),
        Ok(true)
    );
    assert!(exchanged(0x20_0000, 0, 0, u64::MAX).is_err());
}

#[test]
fn v23_an_exchange_is_undone_exactly_where_it_was_made() {
    let mut machine = Machine::at(0x20_0000);
    let high = space(0x20_0000, 0x1_0000_0000);
    let memory = exchange::allocate(&mut machine, &high, 5000, 0xFFFF_FFFF).unwrap();
    assert!(memory.is_remapped());
    assert_eq!(machine.exchanged, [(0x20_0000, 1, 32)]);
    assert_eq!(memory.bus, 0x200_0000);
    exchange::free(&mut machine, memory);
    assert_eq!(machine.restored, [(0x20_0000, 1)]);
    assert_eq!(machine.freed, [(0x20_0000, 2)]);

    let mut machine = Machine::at(0x10_0000);
    let low = space(0x10_0000, 0x800_0000);
    let memory = exchange::allocate(&mut machine, &low, 5000, 0xFFFF_FFFF).unwrap();
    exchange::free(&mut machine, memory);
    assert!(machine.exchanged.is_empty() && machine.restored.is_empty());
    assert_eq!(
        (machine.allocated, machine.freed),
        (0, vec![(0x10_0000, 2)])
    );
}

#[test]
fn memory_that_cannot_be_exchanged_is_given_back() {
    let mut machine = Machine::at(0x20_0000);
    machine.fails = true;
    let high = space(0x20_0000, 0x1_0000_0000);
    assert!(exchange::allocate(&mut machine, &high, 4096, 0xFFFF_FFFF).is_err());
    assert_eq!(machine.allocated, 0);
}

proptest! {
    #[test]
    fn inv19_grant_addresses_survive(reference in any::<u32>(), offset in 0u64..4096, len in 1u32..0x10_0000) {
        let dma = encode(reference, offset).unwrap();
        prop_assert_eq!(dma >> 63, 1);
        let range = Range::new(dma, len).unwrap();
        let pages = (offset + u64::from(len)).div_ceil(4096);
        match range.grant() {
            Ok(grant) => {
                let grant = grant.unwrap();
                prop_assert_eq!((grant.first, u64::from(grant.offset)), (reference, offset));
                prop_assert_eq!(u64::from(grant.count), pages);
            }
            Err(_) => prop_assert!(u64::from(reference) + pages - 1 > u64::from(u32::MAX)),
        }
    }

    #[test]
    fn inv22_pieces_cover_a_range_once_and_cross_no_page(
        from in 0u64..0x10_0000,
        to in 0u64..0x10_0000,
        len in 0u64..0x1_0000,
    ) {
        let mut done = 0;
        for piece in copy_pieces(from, to, len).unwrap() {
            prop_assert_eq!((piece.from, piece.to), (from + done, to + done));
            prop_assert!(piece.len > 0);
            prop_assert_eq!(piece.from / 4096, (piece.from + piece.len - 1) / 4096);
            prop_assert_eq!(piece.to / 4096, (piece.to + piece.len - 1) / 4096);
            done += piece.len;
        }
        prop_assert_eq!(done, len);
        let pages: u64 = page_pieces(from, len).unwrap().map(|(_, len)| len).sum();
        prop_assert_eq!(pages, len);
        for flush in flushes(from, len, CacheOp::Clean).unwrap() {
            prop_assert!(flush.offset + flush.len <= 4096 && flush.frame % 4096 == 0);
        }
    }
}
