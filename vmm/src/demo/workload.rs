//! What the demonstration's guest does with a disk.
//!
//! Runs on the thread that plays the guest's vCPU.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use virtio_drivers::device::blk::RespStatus;
use virtio_drivers::transport::Transport;
use xen::fake::Vcpu;

use super::guest::hal::enter;
use super::guest::{Disk, DriverMemory, Outcome, Pattern, Registers, SECTOR};

/// Lengths of the sequential requests, one after the other, bytes.
const LENGTHS: [usize; 7] = [512, 4096, 1536, 65536, 262_144, 8192, 131_072];
/// Length of the scattered ones.
const BLOCK: usize = 4096;

/// A guest's work.
pub(super) struct Workload {
    pub memory: DriverMemory,
    pub vcpu: Vcpu,
    pub base: u64,
    pub irq: u32,
    /// Bytes of the disk: a multiple of [`BLOCK`].
    pub image: usize,
}

/// What became of it.
pub(super) struct Report {
    pub sectors: u64,
    /// What the device offered.
    pub features: u64,
    pub phases: Vec<Phase>,
    /// Bytes that the guest compared.
    pub verified: u64,
    /// What the image must hold now.
    pub expected: Vec<u8>,
}

/// One kind of work, measured.
pub(super) struct Phase {
    name: &'static str,
    requests: usize,
    bytes: usize,
    took: Duration,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.took.as_secs_f64().max(1e-9);
        let mib = self.bytes as f64 / f64::from(1 << 20);
        write!(
            f,
            "{:<16} {:>5} requests, {:>4.1} MiB in {:>6.1} ms: {:>7.0} requests/s, {:>6.0} MiB/s",
            self.name,
            self.requests,
            mib,
            seconds * 1e3,
            self.requests as f64 / seconds,
            mib / seconds,
        )
    }
}

/// One request: the first byte and how many.
type Extent = (usize, usize);

impl Workload {
    /// Drives the disk.
    pub(super) fn run(&self) -> anyhow::Result<Report> {
        enter(self.memory.clone());
        let mut registers =
            Registers::probe(&self.vcpu, self.base).context("the guest finds no device")?;
        let features = registers.read_device_features();
        let interrupts = self.memory.domain().interrupts()?;
        let mut disk = Disk::new(registers, interrupts, self.irq)?;
        let sectors = disk.sectors();
        ensure!(
            usize::try_from(sectors).ok() == Some(self.image / SECTOR),
            "the disk has {sectors} sectors, not {}",
            self.image / SECTOR
        );
        let mut expected = vec![0; self.image];
        let (ends, scattered) = (sequential(self.image), scattered(self.image));
        let phases = vec![
            write(&mut disk, "write, mixed", &ends, &mut expected, 1)?,
            read(&mut disk, "read, mixed", &ends, &expected)?,
            write(&mut disk, "write, 4 KiB", &scattered, &mut expected, 2)?,
            read(&mut disk, "read, 4 KiB", &scattered, &expected)?,
        ];
        disk.flush().context("flush")?;
        drop(disk);
        let failures = self.memory.failures();
        ensure!(failures.is_empty(), "the guest's memory: {failures:?}");
        Ok(Report {
            sectors,
            features,
            phases,
            verified: 2 * expected.len() as u64,
            expected,
        })
    }
}

/// The whole disk from the start, in pieces of many lengths.
fn sequential(image: usize) -> Vec<Extent> {
    let mut extents = Vec::new();
    let mut at = 0;
    for length in LENGTHS.into_iter().cycle() {
        let length = length.min(image - at);
        if length == 0 {
            break;
        }
        extents.push((at, length));
        at += length;
    }
    extents
}

/// The whole disk in blocks, each once and far from the one before.
fn scattered(image: usize) -> Vec<Extent> {
    let blocks = image / BLOCK;
    // an odd step visits every one of a power of two
    (0..blocks)
        .map(|i| ((i * 1237 + 511) % blocks * BLOCK, BLOCK))
        .collect()
}

fn write(
    disk: &mut Disk,
    name: &'static str,
    extents: &[Extent],
    expected: &mut [u8],
    seed: u64,
) -> anyhow::Result<Phase> {
    let mut pattern = Pattern::new(seed);
    for &(at, length) in extents {
        pattern.fill(expected.get_mut(at..at + length).unwrap_or_default());
    }
    let start = Instant::now();
    let done = pump(disk, extents, |disk, (at, length)| {
        let data = expected.get(at..at + length).unwrap_or_default();
        disk.write(at / SECTOR, data.to_vec())
    })?;
    finish(name, extents, start, &done)
}

fn read(
    disk: &mut Disk,
    name: &'static str,
    extents: &[Extent],
    expected: &[u8],
) -> anyhow::Result<Phase> {
    let start = Instant::now();
    let done = pump(disk, extents, |disk, (at, length)| {
        disk.read(at / SECTOR, length)
    })?;
    let phase = finish(name, extents, start, &done)?;
    for outcome in done {
        let at = outcome.sector * SECTOR;
        let wanted = expected.get(at..at + outcome.data.len());
        ensure!(
            wanted == Some(outcome.data.as_slice()),
            "{name}: {} bytes at {at:#x} differ from what was written",
            outcome.data.len()
        );
    }
    Ok(phase)
}

/// Keeps the queue full until every extent was asked for and completed.
fn pump(
    disk: &mut Disk,
    extents: &[Extent],
    mut ask: impl FnMut(&mut Disk, Extent) -> Result<u64, super::guest::DiskError>,
) -> anyhow::Result<Vec<Outcome>> {
    let mut done = Vec::with_capacity(extents.len());
    for &extent in extents {
        while !disk.has_room() {
            done.append(&mut disk.wait()?);
        }
        ask(disk, extent)?;
    }
    done.append(&mut disk.drain()?);
    Ok(done)
}

fn finish(
    name: &'static str,
    extents: &[Extent],
    start: Instant,
    done: &[Outcome],
) -> anyhow::Result<Phase> {
    let took = start.elapsed();
    ensure!(
        done.len() == extents.len(),
        "{name}: {} requests completed of {}",
        done.len(),
        extents.len()
    );
    if let Some(failed) = done.iter().find(|outcome| outcome.status != RespStatus::OK) {
        anyhow::bail!(
            "{name}: the request at sector {} failed with {:?}",
            failed.sector,
            failed.status
        );
    }
    Ok(Phase {
        name,
        requests: done.len(),
        bytes: done.iter().map(|outcome| outcome.data.len()).sum(),
        took,
    })
}
