//! Everything that is stated before the first mapping, as anybody could state
//! it; and the arithmetic on addresses that knows no pool.

use std::sync::Arc;

use arbitrary::Arbitrary;
use swiotlb::allocator::{BringUp, Remap, bring_up};
use swiotlb::contiguity::FrameTranslation;
use swiotlb::features::{DIRECT_MAPPED, NOT_DIRECT_MAPPED};
use swiotlb::foreign::ForeignFrames;
use swiotlb::restricted::{RegionProperties, Regions};
use swiotlb::space::FrameTable;
use swiotlb::*;
use vm_memory::MmapRegion;

use crate::heap::Heap;
use crate::values::{AnyAttrs, AnyDirection, Number, Shape};

/// What is stated.
#[derive(Arbitrary, Debug)]
pub enum Story {
    /// A domain's features.
    Features(Option<u32>, u8),
    /// An option's text.
    Options(String, u32),
    /// A device and a pool of the domain's, at any address in any space.
    Device(Shape, [Number; 6], Space, [Mapped; 3]),
    /// A restricted region.
    Region(Number, Number, u8, Mapped),
    /// Memory that is exchanged.
    Exchange([Number; 4]),
    /// Foreign frames.
    Foreign([[Number; 3]; 3], [Number; 2]),
    /// Ranges that are granted, copied and flushed.
    Ranges([Number; 3], u32, AnyDirection),
}

/// An address space.
#[derive(Arbitrary, Debug)]
pub enum Space {
    Plain,
    Foreign([[Number; 3]; 2]),
    Table(Number, Vec<Number>),
}

/// A mapping.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Mapped(Number, Number, AnyDirection, AnyAttrs);

/// Bytes of the pools.
const POOL: u64 = 0x4_0000;

/// Plays a story.
pub fn play(story: Story) {
    match story {
        Story::Features(word, bits) => features(word, bits),
        Story::Options(text, workers) => options(&text, workers),
        Story::Device(shape, [a, b, c, d, e, base], space, mapped) => {
            let device = shape.wild(a, b, c, [d, e, base]);
            for device in [device, shape.get()] {
                let _ = pooled(base.get(), &space, device, &mapped);
            }
        }
        Story::Region(base, size, bits, mapped) => restricted(base.get(), size.get(), bits, mapped),
        Story::Exchange(numbers) => exchange(numbers.map(Number::get)),
        Story::Foreign(runs, [address, len]) => foreign(runs, address.get(), len.get()),
        Story::Ranges([a, b, c], reference, direction) => {
            ranges(a.get(), b.get(), c.get(), reference, direction.get());
        }
    }
}

/// The closed form of section 1.1, and nothing but the legacy rule asks for the
/// initial domain.
fn features(features: Option<u32>, bits: u8) {
    let inputs = FeatureInputs {
        arch: if bits & 1 == 0 {
            Arch::Arm
        } else {
            Arch::X86 {
                pv: bits & 2 != 0,
                machine_addresses: bits & 32 != 0,
            }
        },
        xen_domain: bits & 4 != 0,
        initial_domain: bits & 8 != 0,
        features,
    };
    let found = detect(&inputs, bits & 16 != 0);
    let (Some(word), true, Arch::Arm) = (features, inputs.xen_domain, inputs.arch) else {
        assert!(found.is_ok() || inputs.xen_domain);
        return;
    };
    let (dm, ndm) = (word & DIRECT_MAPPED != 0, word & NOT_DIRECT_MAPPED != 0);
    let strict = bits & 16 != 0 && dm && ndm;
    assert_eq!(found.is_err(), strict);
    let detected = dm || (!ndm && inputs.initial_domain);
    let kind = [Kind::Translated, Kind::OneToOne][usize::from(detected)];
    assert!(
        strict
            || found
                == Ok(Detection {
                    linux: detected,
                    kind,
                    contradictory: dm && ndm
                })
    );
    let heap = Heap::new(POOL as usize);
    let region = heap.region();
    let allocator = Allocator::new(settings("128,1"), AddressSpace::one_to_one());
    let brought = bring_up(
        &inputs,
        bits & 16 != 0,
        &allocator,
        BringUp {
            source: &mut |_, _| part(&region, POOL, 0x4000_0000),
            limit: None,
            remap: None,
            probe: &mut || false,
            pv_pci: false,
        },
    );
    assert_eq!(brought.is_err(), strict);
    assert_eq!(allocator.is_active(), !strict);
}

/// INV-17.
fn options(text: &str, workers: u32) {
    let Ok(options) = text.parse::<Options>() else {
        return;
    };
    let sizing = options.sizing(workers);
    assert!(sizing.nareas().is_power_of_two());
    assert_eq!(sizing.nslots() % 128, 0);
    assert!(sizing.nslots() / 128 >= sizing.nareas());
    assert_eq!(options.to_string().parse(), Ok(options));
}

fn settings(options: &str) -> Settings {
    Settings {
        options: options.parse().expect("options"),
        ..Settings::default()
    }
}

/// The first `len` bytes of a region, at any address.
fn part(region: &Arc<MmapRegion>, len: u64, base: u64) -> Result<PoolMemory, Error> {
    let region = Arc::clone(region);
    PoolMemory::of_region(region, 0, len as usize, Base::At(base), false)
}

fn runs(runs: &[[Number; 3]]) -> ForeignFrames {
    let frames = ForeignFrames::new();
    for [gfn, mfn, count] in runs {
        let _ = frames.insert(gfn.get(), mfn.get(), count.get());
    }
    frames
}

/// A pool and a device, whatever they are like: what is mapped is in reach.
fn pooled(
    base: u64,
    space: &Space,
    constraints: DeviceConstraints,
    mapped: &[Mapped],
) -> Result<(), Error> {
    let space = match space {
        Space::Plain => AddressSpace::Plain,
        Space::Foreign(frames) => AddressSpace::OneToOne(Arc::new(runs(frames))),
        Space::Table(first, frames) => {
            let frames = frames.iter().map(|frame| Some(frame.get()));
            AddressSpace::Translated(Arc::new(FrameTable::new(first.get(), frames)))
        }
    };
    let heap = Heap::new(POOL as usize);
    let region = heap.region();
    let allocator = Allocator::new(settings("128,1"), space);
    allocator.ensure_default_pool(BringUp {
        source: &mut |_, _| part(&region, POOL, base),
        limit: constraints.dma_mask,
        remap: None,
        probe: &mut || false,
        pv_pci: false,
    })?;
    let device = Device::attach(&allocator, constraints)?;
    each(&device, mapped, |_| ());
    assert_eq!(allocator.used(), 0);
    Ok(())
}

/// Maps all of these for a guest with little memory.
fn each(device: &Arc<Device>, mapped: &[Mapped], check: impl Fn(&Mapping<&Device>)) {
    let ram = Heap::new(0x1000);
    let window = Window::new(0, ram.slice());
    let worker = device.worker(0);
    let mut live = Vec::new();
    for Mapped(address, len, direction, attrs) in mapped {
        let (address, len) = (address.get(), len.get());
        let mapping = worker.map(&window, address, len, direction.get(), &attrs.get());
        let Ok(mapping) = mapping else { continue };
        let dma = mapping.dma_address();
        assert!(constraints::capable(dma, len, device.limit()), "INV-12");
        check(&mapping);
        live.push(mapping);
    }
    for mapping in live {
        let _ = mapping.unmap(&window);
    }
}

/// INV-20.
fn restricted(base: u64, size: u64, bits: u8, mapped: Mapped) {
    let heap = Heap::new(POOL as usize);
    let region = heap.region();
    let Ok(memory) = part(&region, size.min(POOL), base) else {
        return;
    };
    let properties = RegionProperties {
        reusable: bits & 3 == 1,
        cma_default: bits & 12 == 4,
        dma_default: bits & 48 == 16,
        no_map: bits & 192 == 64,
    };
    let space = AddressSpace::one_to_one();
    let mut regions = Regions::new();
    let end = memory.base() + memory.len();
    let overlapping = memory.clone();
    let Ok(known) = regions.add(memory, properties, Settings::default(), space.clone()) else {
        return;
    };
    let again = regions.add(overlapping, properties, Settings::default(), space);
    assert!(
        matches!(again, Err(Error::BadRegion { .. })),
        "they overlap"
    );
    let Ok(device) = known.attach(DeviceConstraints::default()) else {
        return;
    };
    each(&device, &[mapped; 3], |mapping| {
        let dma = mapping.dma_address();
        assert!(dma >= base && dma + mapping.len() <= end, "INV-20");
    });
    if let Ok(pages) = device.worker(0).alloc_coherent(4096) {
        assert!(
            pages.dma_address() >= base && pages.dma_address() + 4096 <= end,
            "INV-20"
        );
    }
}

/// A hypervisor that says anything.
struct Hostile([u64; 4]);

impl Remap for Hostile {
    fn remap(&mut self, _: &PoolMemory, _: u64, done: &mut Vec<u64>) -> Result<(), String> {
        done.extend(self.0[0].checked_rem(3).map(|_| self.0[0]));
        done.extend(self.0[1].is_multiple_of(2).then_some(self.0[1]));
        match self.0[2] % 4 {
            0 => Err("no".into()),
            _ => Ok(()),
        }
    }

    fn restore(&mut self, pool: &PoolMemory, offset: u64) {
        assert!(offset < pool.len());
    }
}

fn exchange(numbers: [u64; 4]) {
    let heap = Heap::new(POOL as usize * 2);
    let region = heap.region();
    let allocator = Allocator::new(settings("256,2,force"), AddressSpace::one_to_one());
    let ensured = allocator.ensure_default_pool(BringUp {
        source: &mut |bytes, _| part(&region, bytes, 0x4000_0000),
        limit: std::num::NonZeroU64::new(numbers[3]),
        remap: Some(&mut Hostile(numbers)),
        probe: &mut || false,
        pv_pci: false,
    });
    let attached = Device::attach(&allocator, DeviceConstraints::default());
    if let (Ok(_), Ok(device)) = (ensured, attached) {
        let any = Number::Any(numbers[2]);
        let mut bytes = arbitrary::Unstructured::new(&[]);
        let attrs = AnyAttrs::arbitrary(&mut bytes).expect("no bytes are enough");
        let direction = AnyDirection::arbitrary(&mut bytes).expect("no bytes are enough");
        each(
            &device,
            &[Mapped(any, Number::Short(9000), direction, attrs); 2],
            |_| (),
        );
    }
}

/// Runs of frames: each probe has one translation, and comes back if local.
fn foreign(of: [[Number; 3]; 3], address: u64, len: u64) {
    let frames = runs(&of);
    let gfn = address / 4096;
    let bfn = frames.gfn_to_bfn(gfn).expect("the identity is one");
    assert!(
        frames
            .bfn_to_local_gfn(gfn)
            .is_none_or(|local| local == gfn)
    );
    if len == 0 || address.checked_add(len - 1).is_none() {
        return;
    }
    let straddles = frames
        .straddles_at(address, len)
        .expect("no frame is missing");
    let last = (address + (len - 1)) / 4096;
    for probe in [gfn, gfn + (last - gfn) / 2, last] {
        let at = frames.gfn_to_bfn(probe).expect("the identity is one");
        assert!(straddles || at.wrapping_sub(bfn) == probe - gfn);
    }
}

/// INV-19 and INV-22.
fn ranges(a: u64, b: u64, len: u64, reference: u32, direction: Direction) {
    if let Ok(dma) = grant_dma::encode(reference, a) {
        assert_eq!(dma >> 63, 1);
        let range = Range::new(dma, u32::try_from(len).unwrap_or(u32::MAX));
        let grant = range.map(|range| range.grant());
        if let Ok(Ok(Some(grant))) = grant {
            assert_eq!((grant.first, u64::from(grant.offset)), (reference, a));
            let pages = grant_dma::plan(a, len.min(u32::MAX.into()), Direction::ToDevice);
            assert_eq!(pages.map(|plan| plan.count), Ok(grant.count));
            assert!(grant.first.checked_add(grant.count - 1).is_some());
        }
    }
    let _ = grant_dma::plan(a, len, direction);
    // one by one: only the first of very many
    let Ok(pieces) = split::copy_pieces(a, b, len) else {
        return;
    };
    let mut done = 0;
    for piece in pieces.take(64) {
        assert_eq!((piece.from, piece.to), (a + done, b + done));
        assert!(piece.len > 0 && piece.from % 4096 + piece.len <= 4096);
        assert!(piece.to % 4096 + piece.len <= 4096);
        done += piece.len;
    }
    assert!(done == len || done >= 64);
    let space = AddressSpace::one_to_one();
    let _ = swiotlb::exchange::needs_exchange(&space, a, len, b);
}
