//! The status for people: tables of about 100 columns.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io::{self, Write};

use super::model::{
    Addresses, DaemonStatus, DeviceStatus, Dma, GrantedData, GuestStatus, InterruptsBy, KicksBy,
    Status,
};
use crate::columns::{Table, printable, wrap};

/// Columns of a line.
const WIDTH: usize = 98;

/// Writes the status.
///
/// # Errors
/// What `out` says.
pub fn print(status: &Status, out: &mut impl Write) -> io::Result<()> {
    daemon(&status.daemon, out)?;
    if status.guests.is_empty() {
        writeln!(out, "No guest is served.")?;
    }
    for each in &status.guests {
        writeln!(out)?;
        guest(each, out)?;
    }
    if !status.ending.is_empty() {
        writeln!(out, "\nBeing stopped:")?;
        for ending in &status.ending {
            writeln!(out, "  {} {}", ending.domid, printable(&ending.name))?;
        }
    }
    if !status.refused.is_empty() {
        writeln!(out, "\nNot served:")?;
        for refused in &status.refused {
            let device = printable(&refused.device);
            let text = format!("domain {}, {device}: {}", refused.domid, refused.reason);
            for line in wrap(&printable(&text), WIDTH - 2) {
                writeln!(out, "  {line}")?;
            }
        }
    }
    Ok(())
}

fn daemon(daemon: &DaemonStatus, out: &mut impl Write) -> io::Result<()> {
    let DaemonStatus {
        xen_dm,
        pid,
        uptime,
        domid,
        ..
    } = daemon;
    let time = duration(*uptime);
    write!(
        out,
        "xen-dm {xen_dm}, process {pid}, up {time}, in domain {domid}"
    )?;
    if let Some(guest) = daemon.guest {
        write!(out, ", for domain {guest} alone")?;
    }
    writeln!(out)?;
    if daemon.leaving {
        writeln!(
            out,
            "It was asked to leave, and stays until its guests are gone."
        )?;
    }
    if !daemon.xenstore {
        writeln!(
            out,
            "xenstored is gone: guests are served on, changes wait."
        )?;
    }
    Ok(())
}

fn guest(guest: &GuestStatus, out: &mut impl Write) -> io::Result<()> {
    let GuestStatus { domid, name, .. } = guest;
    writeln!(
        out,
        "{domid} {}  (ioreq server {})",
        printable(name),
        guest.ioreq_server
    )?;
    let Some(counters) = &guest.counters else {
        return writeln!(out, "  its thread does not answer");
    };
    let numbers = [
        ("accesses", counters.ioreqs),
        ("malformed", counters.malformed),
        ("to empty slots", counters.empty),
        ("invalidations", counters.invalidations),
        ("deferred answers", counters.deferred),
        ("unanswered", counters.unanswered),
        ("panics", counters.panics),
    ];
    sentence("", &numbers, out)?;
    if guest.devices.is_empty() {
        return Ok(());
    }
    let mut table = Table::new(&[
        "device", "name", "state", "requests", "open", "kicks", "irqs", "events", "memory",
    ]);
    for device in &guest.devices {
        table.row([
            device.device.clone(),
            device.name.clone().unwrap_or_default(),
            device.state.name().to_owned(),
            device.requests.to_string(),
            device.unfinished.to_string(),
            device.kicks.to_string(),
            device.interrupts.to_string(),
            events(device).to_owned(),
            memory(device).to_owned(),
        ]);
    }
    table.print(2, out)?;
    guest.devices.iter().try_for_each(|each| detail(each, out))
}

/// irqfd, ioeventfd, or neither.
fn events(device: &DeviceStatus) -> &'static str {
    match (device.interrupts_by, device.kicks_by) {
        (InterruptsBy::Hypercall, KicksBy::Register) => "plain",
        (InterruptsBy::Irqfd, KicksBy::Register) => "irqfd",
        (_, KicksBy::Ioeventfd) => "ioeventfd",
    }
}

fn memory(device: &DeviceStatus) -> &'static str {
    match device.addresses {
        Addresses::Plain => "plain",
        Addresses::Grants => "grants",
        Addresses::GrantsAndPlain => "grants, plain",
    }
}

fn detail(device: &DeviceStatus, out: &mut impl Write) -> io::Result<()> {
    let Dma {
        direct,
        granted,
        bounced,
        rejected,
        ..
    } = device.dma;
    let image = device.image.as_deref().unwrap_or_default();
    let format = device.format.as_deref().filter(|format| *format != "raw");
    let format = format.map(|format| format!(" ({})", printable(format)));
    let head = format!(
        "  {}: {}{}",
        printable(&device.device),
        printable(image),
        format.unwrap_or_default()
    );
    writeln!(out, "{}", head.trim_end())?;
    writeln!(
        out,
        "    at {:#x}, interrupt {}, features {}",
        device.base, device.irq, device.features
    )?;
    for place in &device.places {
        let name = place.name.as_deref().unwrap_or_default();
        let text = format!("found at {} {name}", place.path);
        writeln!(out, "    {}", printable(text.trim_end()))?;
        statistics("    ", &place.statistics, out)?;
    }
    let mapping = format!("{}: {}", device.mapping, device.mapping_source);
    for line in wrap(&printable(&mapping), WIDTH - 4) {
        writeln!(out, "    {line}")?;
    }
    let trouble = [
        ("broken", device.failures),
        ("lost interrupts", device.interrupts_lost),
        ("malformed accesses", device.malformed),
        ("accesses waiting for a reset", device.waiting),
        ("refused requests", rejected),
        ("grants not given back cleanly", device.dma.loans_lost),
    ];
    let path = [
        ("direct", direct),
        ("granted", granted),
        ("bounced", bounced),
        ("because not pinnable", device.dma.bounced_pinned),
        ("because not contiguous", device.dma.bounced_straddles),
        ("because misaligned", device.dma.bounced_misaligned),
        ("because above a limit", device.dma.bounced_limit),
        ("because all are", device.dma.bounced_forced),
        ("because copying is cheaper", device.dma.bounced_cheaper),
        ("bytes bounced in", device.dma.bounced_bytes_in),
        ("bytes bounced out", device.dma.bounced_bytes_out),
        ("waits for the pool", device.dma.pool_full),
        ("grant copies", device.dma.grant_copies),
    ];
    sentence("  ranges: ", &path, out)?;
    if device.addresses != Addresses::Plain {
        paragraph("  granted data: ", &granted_data(&device.granted_data), out)?;
    }
    statistics("  ", &device.statistics, out)?;
    sentence("  trouble: ", &trouble, out)
}

/// What a device, or a part of it, has done: its counters, then a line for each
/// histogram.
fn statistics(
    indent: &str,
    statistics: &BTreeMap<String, u64>,
    out: &mut impl Write,
) -> io::Result<()> {
    let mut counters = Vec::new();
    let mut histograms: BTreeMap<&str, Histogram> = BTreeMap::new();
    for (name, value) in statistics {
        match name.split_once(LATENCY) {
            Some((what, part)) => histograms.entry(what).or_default().add(part, *value),
            None => counters.push((name.as_str(), *value)),
        }
    }
    sentence(&format!("{indent}did: "), &counters, out)?;
    for (what, histogram) in histograms {
        let head = format!("{indent}{} latency: ", printable(&what.replace('_', " ")));
        paragraph(&head, &histogram.text(), out)?;
    }
    Ok(())
}

/// What stands between a histogram's name and that of one of its values.
const LATENCY: &str = "_latency_";

/// How long things took, as a device counts it.
#[derive(Default)]
struct Histogram {
    /// Of all, µs.
    sum: u64,
    /// Counts by their upper bound, µs.
    buckets: BTreeMap<u64, u64>,
}

impl Histogram {
    /// Takes the value of a name without its beginning: `us` is the sum,
    /// `below_8_us` and `above_us` are buckets.
    fn add(&mut self, part: &str, value: u64) {
        let bound = part
            .strip_prefix("below_")
            .and_then(|rest| rest.strip_suffix("_us"))
            .and_then(|bound| bound.parse().ok());
        match (part, bound) {
            ("us", _) => self.sum = value,
            (_, bound) => {
                self.buckets.insert(bound.unwrap_or(u64::MAX), value);
            }
        }
    }

    fn text(&self) -> String {
        let all = self.buckets.values().copied().fold(0, u64::saturating_add);
        let mean = self.sum.checked_div(all).unwrap_or(0);
        let parts: Vec<String> = self
            .buckets
            .iter()
            .map(|(bound, count)| match *bound {
                u64::MAX => format!("{count} above"),
                bound => format!("{count} below {bound}"),
            })
            .collect();
        format!("{mean} us on average; {} us", parts.join(", "))
    }
}

/// What becomes of granted data, and why.
fn granted_data(data: &GrantedData) -> String {
    let way = match data.copies_up_to {
        Some(0) => "mapped".to_owned(),
        Some(bytes) => format!("copied up to {bytes} bytes, else mapped"),
        None => "copied".to_owned(),
    };
    format!("{way} ({}; {})", data.mode, data.reason)
}

/// The numbers that are not zero, with their names; no line if there is none.
fn sentence(head: &str, numbers: &[(&str, u64)], out: &mut impl Write) -> io::Result<()> {
    let parts: Vec<String> = numbers
        .iter()
        .filter(|(_, value)| *value != 0)
        .map(|(name, value)| format!("{value} {}", printable(&name.replace('_', " "))))
        .collect();
    if parts.is_empty() {
        return Ok(());
    }
    paragraph(head, &parts.join(", "), out)
}

/// Text behind a head, in lines of some width.
fn paragraph(head: &str, text: &str, out: &mut impl Write) -> io::Result<()> {
    let mut head = format!("  {head}");
    let indent = head.chars().count();
    for line in wrap(text, WIDTH.saturating_sub(indent)) {
        writeln!(out, "{head:<indent$}{line}")?;
        head.clear();
    }
    Ok(())
}

/// Seconds, for people.
fn duration(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, _, _) => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}
