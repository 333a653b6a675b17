//! `xen-dm demo`: the whole way of a request, in one process without
//! privileges.
//!
//! A fake Xen with a guest, the guest's driver (virtio-drivers), and the very
//! code that serves real guests: registers through the ioreq page, rings and
//! data through grants and through plain addresses, completions through
//! interrupts. Every byte is verified, both by the guest and in the images.

pub mod guest;
mod workload;

use std::fs;
use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use devices::blk::BlkConfig;
use devices::registry::DeviceSpec;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use xen::Host;
use xen::fake::{Domain, DomainConfig, GuestHeap, Machine};

use crate::guest::{
    DeviceKey, DeviceSlot, DeviceStats, Guest, GuestConfig, Mapping, MmioWindow, SLOT_SIZE,
};
use guest::{Addresses, DriverMemory, within};
use workload::{Report, Workload};

/// Bytes of each image.
const IMAGE: usize = 8 << 20;
/// The guest's memory, bytes.
const MEMORY: u64 = 64 << 20;
/// Where it begins (`GUEST_RAM0_BASE`, `xen/include/public/arch-arm.h`).
const RAM: u64 = 0x4000_0000;
/// The first SPI of a virtio device (`GUEST_VIRTIO_MMIO_SPI_FIRST`).
const SPI: u32 = 33;
/// For the guest's driver, on a slow machine.
const LIMIT: Duration = Duration::from_secs(60);

/// The two ways, each with a disk of its own.
const WAYS: [(Addresses, &str, u32); 2] = [
    (Addresses::Grants, "grants", 51712),
    (Addresses::Plain, "plain addresses", 51728),
];

/// Runs the demonstration and says on `out` what happens.
///
/// # Errors
/// Whatever did not work, a byte that differs above all.
pub fn run(out: &mut dyn Write) -> anyhow::Result<()> {
    demonstrate(out, IMAGE)
}

fn demonstrate(out: &mut dyn Write, size: usize) -> anyhow::Result<()> {
    let start = Instant::now();
    writeln!(
        out,
        "xen-dm demo: a fake Xen, a guest with its own driver (virtio-drivers) and the device model, in this process"
    )?;
    let directory = tempfile::tempdir().context("no place for images")?;
    let machine = Machine::new().context("no fake Xen")?;
    let domain = machine.create_domain(DomainConfig::with_memory(MEMORY).vcpus(2))?;
    let heap = GuestHeap::new(&domain, RAM >> 12, MEMORY >> 12)?;
    let guest = serve(&machine, &domain)?;
    writeln!(
        out,
        "  domain {} has 2 vCPUs and {} MiB; ioreq server {} answers {}",
        domain.id(),
        MEMORY >> 20,
        guest.ioreq_server(),
        MmioWindow::list(&guest.config().windows),
    )?;
    let mut verified = 0;
    for (number, (addresses, name, devid)) in (0u32..).zip(WAYS) {
        let id = DeviceKey::new("virtio_disk", devid);
        let path = directory.path().join(format!("{devid}.img"));
        fs::File::create(&path)?.set_len(size as u64)?;
        let slot = DeviceSlot {
            id: id.clone(),
            base: MmioWindow::ARM.base + u64::from(number) * SLOT_SIZE,
            irq: SPI + number,
            grants: addresses == Addresses::Grants,
            mapping: Mapping::of_a_dom_u(),
            device: DeviceSpec::Blk(BlkConfig::new(&path).validate()?).open()?,
        };
        writeln!(out, "{id} through {name}, registers at {:#x}", slot.base)?;
        let work = Workload {
            memory: DriverMemory::new(&domain, &heap, addresses),
            vcpu: domain.vcpu(number),
            base: slot.base,
            irq: slot.irq,
            image: size,
        };
        guest.add(slot)?;
        let report = within("the guest's driver", LIMIT, move || work.run())??;
        let image = fs::read(&path)?;
        ensure!(
            image == report.expected,
            "{id}: the image differs from what the guest wrote, first at byte {:?}",
            image.iter().zip(&report.expected).position(|(a, b)| a != b)
        );
        verified += report.verified + size as u64;
        let stats = guest.snapshot();
        let device = stats.devices.iter().find(|device| device.id == id);
        describe(out, &report, device)?;
    }
    let stats = guest.snapshot();
    guest.stop()?;
    check(&machine, &domain, &heap)?;
    writeln!(
        out,
        "{} register accesses answered; nothing of the guest's is mapped any more, no grant was found in use",
        stats.ioreqs
    )?;
    writeln!(
        out,
        "ok: {} MiB verified, no byte differs; {:.2} s in all",
        verified >> 20,
        start.elapsed().as_secs_f64()
    )?;
    Ok(())
}

fn serve(machine: &Machine, domain: &Domain) -> anyhow::Result<Guest> {
    let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
    let config = GuestConfig::new(domain.id(), "demo");
    Ok(Guest::start(&Host::Fake(machine.clone()), config, wake)?)
}

fn describe(
    out: &mut dyn Write,
    report: &Report,
    device: Option<&DeviceStats>,
) -> anyhow::Result<()> {
    writeln!(
        out,
        "  the driver is up: {} sectors, features {:#x}",
        report.sectors, report.features
    )?;
    for phase in &report.phases {
        writeln!(out, "  {phase}")?;
    }
    if let Some(device) = device {
        let requests: u64 = device.queues.iter().map(|queue| queue.pushed).sum();
        let dma = &device.dma;
        writeln!(
            out,
            "  device: {requests} requests, {} interrupts; ranges: {} direct, {} granted in {} mappings, {} refused; {} small copies, {} by grant",
            device.interrupts,
            dma.direct,
            dma.granted,
            dma.loans,
            dma.rejected,
            dma.transfers,
            dma.grant_copies,
        )?;
    }
    Ok(())
}

/// What must hold after the guest has ended.
fn check(machine: &Machine, domain: &Domain, heap: &GuestHeap) -> anyhow::Result<()> {
    let held = machine.census().remove(&domain.id()).unwrap_or_default();
    ensure!(
        held.is_clean(),
        "something of the guest's is still held: {held:?}"
    );
    let broken = domain.broken_grants()?;
    ensure!(broken == 0, "the guest found {broken} grants still in use");
    heap.check_poison()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_demonstration_verifies_every_byte() {
        let mut out = Vec::new();

        let result = super::demonstrate(&mut out, 1 << 20);

        let text = String::from_utf8(out).unwrap();
        assert!(result.is_ok(), "{result:?}\n{text}");
        assert!(text.contains("no byte differs"), "{text}");
    }
}
