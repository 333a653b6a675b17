//! This project's disk as a vhost-user back end, beside qemu-storage-daemon's
//! export and the raw file, with one client: targets P1 to P4.

pub mod client;
pub mod contenders;
pub mod gates;
mod measure;
pub mod workload;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::Args;
use serde::Serialize;

use crate::backend::version;
use crate::figures::Figures;
use crate::processors::Layout;
use crate::report::{self, Machine};
use crate::table::{Column, Table, cell, ratio};
use crate::{Output, Rounds};
use contenders::{Contender, PEER, PEER_REMEDY, Place, Running};
use gates::Gate;
use measure::Measured;
use workload::{Medium, WORKLOADS, Workload};

/// What `./bench blk` takes.
#[derive(Args, Debug)]
pub struct Options {
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    rounds: Rounds,
    /// Only workloads that have this in their name, as "null", "4 KiB" or "8 at a time"
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Back ends on other processors than their client's: for orientation, not judged
    #[arg(long)]
    apart: bool,
    /// Where the image is put; a tmpfs, so that no disk is measured
    #[arg(long, value_name = "DIRECTORY", default_value = "/dev/shm")]
    directory: PathBuf,
    /// Size of the image, MiB
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u64).range(16..=65_536))]
    size: u64,
}

/// One contender at one workload.
#[derive(Debug, Serialize)]
struct Row {
    workload: Workload,
    name: String,
    contender: Contender,
    iops: Figures,
    mib_per_second: Figures,
    p50_us: Figures,
    p99_us: Figures,
    /// The back end's.
    cpu_us: Option<Figures>,
    /// In the raw file's, round by round.
    iops_over_raw: Option<Figures>,
    /// This project's in its own, round by round.
    xen_dm_over: Option<Figures>,
}

#[derive(Serialize)]
struct Report {
    bench: &'static str,
    machine: Machine,
    xen_dm: Option<String>,
    peer: Option<String>,
    medium: String,
    layout: Layout,
    #[serde(flatten)]
    rounds: Rounds,
    rows: Vec<Row>,
    gates: Vec<Gate>,
}

const TABLE: Table<8> = Table([
    Column("", 28),
    Column("IOPS", 9),
    Column("MiB/s", 7),
    Column("p50 µs", 7),
    Column("p99 µs", 7),
    Column("CPU µs/io", 9),
    Column("× raw", 6),
    Column("xen-dm ×", 8),
]);

impl Row {
    fn of(workload: &Workload, one: &Measured, all: &[Measured]) -> Self {
        let find = |contender| all.iter().find(|other| other.contender == contender);
        let mib = workload.bytes as f64 / f64::from(1 << 20);
        let ours = find(Contender::XenDm).filter(|_| one.contender != Contender::XenDm);
        let raw = find(Contender::Raw).filter(|_| one.contender != Contender::Raw);
        Row {
            workload: *workload,
            name: workload.to_string(),
            contender: one.contender,
            iops: one.iops.figures(),
            mib_per_second: one.iops.times(mib).figures(),
            p50_us: one.p50.figures(),
            p99_us: one.p99.figures(),
            cpu_us: one.cpu.as_ref().map(|cpu| cpu.figures()),
            iops_over_raw: raw.map(|raw| one.iops.over(&raw.iops).figures()),
            xen_dm_over: ours.map(|ours| ours.iops.over(&one.iops).figures()),
        }
    }

    fn cells(&self) -> [String; 8] {
        let over = |figures: Option<Figures>| cell(figures, |figures| ratio(figures.median));
        [
            self.contender.name().to_owned(),
            format!("{:.0}", self.iops.median),
            format!("{:.0}", self.mib_per_second.median),
            format!("{:.1}", self.p50_us.median),
            format!("{:.1}", self.p99_us.median),
            cell(self.cpu_us, |cpu| format!("{:.2}", cpu.median)),
            over(self.iops_over_raw),
            over(self.xen_dm_over),
        ]
    }
}

/// Measures, prints, and says whether the gates hold.
///
/// # Errors
/// Where something could not be measured, or the report not written.
pub fn run(options: &Options) -> anyhow::Result<bool> {
    options.rounds.validate(&options.output)?;
    ensure!(
        !(options.apart && options.output.check),
        "--check and --apart: the targets are stated for one processor"
    );
    let directory = tempfile::Builder::new()
        .prefix("xen-dm-bench-")
        .tempdir_in(&options.directory)
        .with_context(|| options.directory.display().to_string())?;
    let bytes = options.size << 20;
    let mut report = Report {
        bench: "blk",
        machine: Machine::this()?,
        xen_dm: version(&crate::backend::xen_dm()?),
        peer: version(Path::new(PEER)),
        medium: report::file_system(directory.path())?,
        layout: match options.apart {
            true => Layout::Apart,
            false => Layout::Together,
        },
        rounds: options.rounds.clone(),
        rows: Vec::new(),
        gates: Vec::new(),
    };
    introduce(&report, options);
    let image = directory.path().join("image");
    fill(&image, bytes)?;
    let place = Place {
        directory: directory.path(),
        image: &image,
        bytes,
        layout: report.layout,
    };
    let chosen = |workload: &&Workload| {
        let name = workload.to_string();
        options.only.as_ref().is_none_or(|only| name.contains(only))
    };
    for medium in [Medium::Null, Medium::File] {
        let mut workloads = WORKLOADS.iter().filter(chosen).peekable();
        if !workloads.any(|workload| workload.medium == medium) {
            continue;
        }
        let mut running = start(medium, report.peer.is_some(), &place)?;
        let of_medium = WORKLOADS.iter().filter(chosen);
        for workload in of_medium.filter(|workload| workload.medium == medium) {
            let measured = measure::measure(workload, &mut running, &options.rounds)?;
            println!("{workload}");
            TABLE.head();
            for one in &measured {
                let row = Row::of(workload, one, &measured);
                TABLE.row(&row.cells());
                report.rows.push(row);
            }
            println!();
            if report.layout == Layout::Together {
                report.gates.extend(gates::of(workload, &measured));
            }
        }
    }
    ensure!(!report.rows.is_empty(), "no workload of that name");
    if let Some(file) = &options.output.json {
        report::write(file, &report)?;
    }
    report.gates.iter().for_each(|gate| println!("{gate}"));
    let missed = report.gates.iter().filter(|gate| !gate.holds()).count();
    println!("{missed} of {} gates missed", report.gates.len());
    Ok(missed == 0 || !options.output.check)
}

fn introduce(report: &Report, options: &Options) {
    println!("{}", report.machine);
    let xen_dm = report.xen_dm.as_deref().unwrap_or("xen-dm");
    match &report.peer {
        Some(peer) => println!("{xen_dm} beside {peer}"),
        None => println!("{xen_dm}; {PEER} is not here: {PEER_REMEDY}"),
    }
    println!(
        "an image of {} MiB on {}, the same for all; one client (the crate blkio, one queue, by interrupts), {}",
        options.size,
        report.medium,
        match report.layout {
            Layout::Together => "and its back ends on one processor",
            Layout::Apart | Layout::Anywhere => "its back ends on other processors",
        }
    );
    println!(
        "{}; medians of the rounds, ratios of neighbouring bursts",
        report.rounds
    );
    println!();
}

/// Everybody's disk. Not sparse: every block is there.
fn fill(image: &Path, bytes: u64) -> anyhow::Result<()> {
    let mut file = File::create_new(image).with_context(|| image.display().to_string())?;
    let block = vec![0x5a; 1 << 20];
    for _ in 0..bytes >> 20 {
        file.write_all(&block).context("filling the image")?;
    }
    Ok(())
}

fn start(medium: Medium, has_peer: bool, place: &Place<'_>) -> anyhow::Result<Vec<Running>> {
    let contenders = Contender::of(medium).iter().copied();
    contenders
        .filter(|contender| has_peer || !contender.is_peer())
        .map(|contender| Running::start(contender, medium, place))
        .collect()
}
