//! A device that reaches up to 4 GiB reads and writes a guest's memory above
//! that, through a pool that lies below.
//!
//! `cargo run -p swiotlb --example bounce`
#![allow(clippy::indexing_slicing)] // arrays of known lengths

use std::num::NonZeroU64;

use swiotlb::allocator::BringUp;
use swiotlb::{
    AddressSpace, Allocator, Attrs, Base, Device, DeviceConstraints, Direction, Error, PoolMemory,
    Settings, Window,
};

const BELOW: u64 = 0x4000_0000;
const ABOVE: u64 = 0x1_8000_0000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let allocator = Allocator::new(
        Settings {
            options: "2048,1".parse()?, // 4 MiB
            ..Settings::default()
        },
        AddressSpace::one_to_one(),
    );
    let mut source = |bytes: u64, _limit: u64| PoolMemory::anonymous(bytes, Base::At(BELOW));
    allocator.ensure_default_pool(BringUp {
        source: &mut source,
        limit: NonZeroU64::new(u64::from(u32::MAX)),
        remap: None,
        probe: &mut || false,
        pv_pci: false,
    })?;
    let constraints = DeviceConstraints {
        name: "nic".into(),
        dma_mask: NonZeroU64::new(u64::from(u32::MAX)),
        ..DeviceConstraints::default()
    };
    let worker = Device::attach(&allocator, constraints)?.worker(0);

    let ram = PoolMemory::anonymous(1 << 20, Base::At(ABOVE))?;
    let whole = ram.slice(0, 1 << 20).ok_or("the RAM is all there")?;
    let guest = Window::new(ABOVE, whole);
    whole.copy_from(&[1u8; 1 << 20]);

    let mapping = worker.map(
        &guest,
        ABOVE + 0x123,
        1500,
        Direction::Bidirectional,
        &Attrs::default(),
    )?;
    println!(
        "the guest's {:#x} is {:#x} to the device",
        ABOVE + 0x123,
        mapping.dma_address()
    );
    let bytes = mapping
        .bounced()
        .and_then(|bounced| bounced.lease().bytes());
    let bytes = bytes.ok_or("the device cannot reach that far: it is bounced")?;
    let mut seen = vec![0u8; 1500];
    bytes.copy_to(&mut seen[..]);
    bytes.copy_from(&[2u8; 1500]); // the device's answer
    mapping.unmap(&guest)?;

    let mut after = [0u8; 1502];
    ram.slice(0x122, 1502)
        .ok_or("inside")?
        .copy_to(&mut after[..]);
    println!(
        "the device read {}, the guest finds {} {} … {} {}, and {} slots are in use",
        seen[0],
        after[0],
        after[1],
        after[1500],
        after[1501],
        allocator.used()
    );

    // more than a buffer holds is refused, with what one does
    let refused = worker.map(
        &guest,
        ABOVE,
        300_000,
        Direction::ToDevice,
        &Attrs::default(),
    );
    match refused {
        Err(error @ Error::TooLarge { .. }) => println!("refused: {error}"),
        other => return Err(format!("300 000 bytes were mapped: {other:?}").into()),
    }
    Ok(())
}
