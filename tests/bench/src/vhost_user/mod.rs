//! A disk of QEMU's storage daemon: a guest on the fake Xen drives it through
//! xen-dm's vhost-user front end, and the crate `blkio` drives the same disk
//! straight.

mod guest;
mod kernel;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use serde::Serialize;
use tests::back_end;

use crate::backend::{Backend, version};
use crate::blk::client::{Burst, Client};
use crate::blk::contenders::{PEER, PEER_REMEDY};
use crate::blk::gates::Gate;
use crate::blk::workload::{Access, Medium, Order, Workload};
use crate::figures::{Figures, Series};
use crate::processors::{self, Layout};
use crate::report::{self, Machine};
use crate::table::{Column, Table, cell, ratio};
use crate::{Output, Rounds};
use guest::{Events, Guest};

/// What `./bench vhost-user` takes.
#[derive(Args, Debug)]
pub struct Options {
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    rounds: Rounds,
    /// Where the image is put; a tmpfs, so that no disk is measured
    #[arg(long, value_name = "DIRECTORY", default_value = "/dev/shm")]
    directory: PathBuf,
}

/// Bytes of the disks.
const BYTES: u64 = 256 << 20;

/// What is asked of the disks.
const WORKLOADS: [Workload; 6] = [
    workload(Medium::Null, 4096, Access::Read, 32),
    workload(Medium::Null, 4096, Access::Write, 32),
    workload(Medium::Null, 131_072, Access::Read, 8),
    workload(Medium::Null, 131_072, Access::Write, 8),
    workload(Medium::File, 4096, Access::Read, 32),
    workload(Medium::File, 131_072, Access::Write, 8),
];

const fn workload(medium: Medium, bytes: usize, access: Access, depth: usize) -> Workload {
    Workload {
        medium,
        bytes,
        access,
        order: Order::Random,
        depth,
    }
}

/// How a disk is driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Way {
    /// By the crate `blkio`.
    Straight,
    /// By a guest that lends its pages, through the front end's pool.
    BounceGrants,
    /// By a guest that names its pages, through the front end's pool.
    BouncePlain,
    /// By a guest whose memory and ring the daemon has, with the fake's events.
    DirectOnFake,
    /// The same, with events as the kernel passes them.
    Direct,
}

impl Way {
    const ALL: [Way; 5] = [
        Way::Straight,
        Way::BounceGrants,
        Way::BouncePlain,
        Way::DirectOnFake,
        Way::Direct,
    ];

    fn name(self) -> &'static str {
        match self {
            Way::Straight => "straight (blkio)",
            Way::BounceGrants => "bounce, grants",
            Way::BouncePlain => "bounce, plain addresses",
            Way::DirectOnFake => "direct, the fake's events",
            Way::Direct => "direct",
        }
    }
}

/// Who drives a disk.
enum Driver {
    Straight(Box<Client>),
    Guest(Box<Guest>),
}

struct Running {
    way: Way,
    // the driver goes before the back end that it is connected to
    driver: Driver,
    _backend: Backend,
}

/// What was seen of a way, round by round.
struct Measured {
    way: Way,
    iops: Series,
    p50: Series,
    /// The front end's worker's processor time per request, microseconds.
    worker: Series,
}

/// A way at a workload.
#[derive(Debug, Serialize)]
struct Row {
    workload: String,
    way: Way,
    iops: Figures,
    p50_us: Figures,
    worker_us: Option<Figures>,
    iops_over_straight: Option<Figures>,
    /// Time of a request in that of a straight one and a copy of its data.
    over_copy: Option<Figures>,
}

#[derive(Serialize)]
struct Report {
    bench: &'static str,
    machine: Machine,
    peer: Option<String>,
    medium: String,
    #[serde(flatten)]
    rounds: Rounds,
    rows: Vec<Row>,
    gates: Vec<Gate>,
}

const TABLE: Table<6> = Table([
    Column("", 28),
    Column("IOPS", 9),
    Column("p50 µs", 7),
    Column("worker µs/io", 12),
    Column("× straight", 10),
    Column("× with copy", 11),
]);

/// Measures, prints, and says whether the gates hold.
///
/// # Errors
/// Where something could not be measured, or the report not written.
pub fn run(options: &Options) -> anyhow::Result<bool> {
    options.rounds.validate(&options.output)?;
    let directory = tempfile::Builder::new()
        .prefix("xen-dm-bench-")
        .tempdir_in(&options.directory)
        .with_context(|| options.directory.display().to_string())?;
    let peer = version(Path::new(PEER));
    ensure!(peer.is_some(), "{PEER} is not here: {PEER_REMEDY}");
    let mut report = Report {
        bench: "vhost-user",
        machine: Machine::this()?,
        peer,
        medium: report::file_system(directory.path())?,
        rounds: options.rounds.clone(),
        rows: Vec::new(),
        gates: Vec::new(),
    };
    introduce(&report);
    for medium in [Medium::Null, Medium::File] {
        let mut running = Way::ALL
            .iter()
            .map(|way| start(*way, medium, directory.path()))
            .collect::<anyhow::Result<Vec<_>>>()?;
        for workload in WORKLOADS.iter().filter(|one| one.medium == medium) {
            let (measured, copy) = measure(workload, &mut running, &options.rounds)?;
            println!("{workload}");
            TABLE.head();
            for one in &measured {
                let row = row(workload, one, &measured, &copy);
                TABLE.row(&cells(&row));
                report.rows.push(row);
            }
            println!(
                "{:<28} {:>9.0} ns",
                "a copy of the data",
                copy.figures().median
            );
            println!();
            report.gates.extend(gates(workload, &measured, &copy));
        }
    }
    if let Some(file) = &options.output.json {
        report::write(file, &report)?;
    }
    report.gates.iter().for_each(|gate| println!("{gate}"));
    let missed = report.gates.iter().filter(|gate| !gate.holds()).count();
    println!("{missed} of {} gates missed", report.gates.len());
    Ok(missed == 0 || !options.output.check)
}

fn introduce(report: &Report) {
    println!("{}", report.machine);
    println!(
        "{} on nothing, and on an image of {} MiB on {}; a process of its own for each way, all on one processor with who drives them",
        report.peer.as_deref().unwrap_or(PEER),
        BYTES >> 20,
        report.medium
    );
    println!(
        "grants for orientation: here they are copied by system calls, and not by a hypervisor"
    );
    println!(
        "direct: kicks and interrupts are eventfds, as the kernel has them; the fake passes them through threads"
    );
    println!(
        "{}; medians of the rounds, ratios of neighbouring bursts",
        report.rounds
    );
    println!();
}

/// Starts a daemon, and whoever drives it.
fn start(way: Way, medium: Medium, directory: &Path) -> anyhow::Result<Running> {
    let word = format!("{way:?}-{medium:?}").to_lowercase();
    let socket = directory.join(word).with_extension("sock");
    let node = match medium {
        Medium::Null => format!("null-co,size={BYTES},read-zeroes=off,node-name=disk"),
        Medium::File => {
            let image = directory.join("image");
            // not sparse: every block is there
            std::fs::write(&image, vec![0x5a; usize::try_from(BYTES)?])?;
            let image = image.display();
            format!(
                "file,filename={image},aio=io_uring,cache.direct=off,locking=off,node-name=disk"
            )
        }
    };
    let export = format!(
        "vhost-user-blk,id=export,node-name=disk,addr.type=unix,addr.path={},writable=on,iothread=io",
        socket.display()
    );
    let arguments = [
        "--object",
        "iothread,id=io",
        "--blockdev",
        &node,
        "--export",
        &export,
    ];
    let backend = Backend::start(Path::new(PEER), arguments, &socket, Layout::Together)?;
    let guest = |way, events| Guest::new(&socket, way, events, BYTES / 512).map(Box::new);
    let driver = match way {
        Way::Straight => Driver::Straight(Box::new(Client::of_socket(&socket)?)),
        Way::BounceGrants => Driver::Guest(guest(back_end::Way::GRANTS, Events::Fake)?),
        Way::BouncePlain => Driver::Guest(guest(back_end::Way::PLAIN, Events::Fake)?),
        Way::DirectOnFake => Driver::Guest(guest(back_end::Way::DIRECT, Events::Fake)?),
        Way::Direct => Driver::Guest(guest(back_end::Way::DIRECT, Events::Kernel)?),
    };
    Ok(Running {
        way,
        driver,
        _backend: backend,
    })
}

/// Lets all ways, and a copy, take turns. The first turn is for warming up and
/// not counted. Gives nanoseconds of the copy, too.
fn measure(
    workload: &Workload,
    running: &mut [Running],
    rounds: &Rounds,
) -> anyhow::Result<(Vec<Measured>, Series)> {
    let mut measured: Vec<_> = running
        .iter()
        .map(|one| Measured {
            way: one.way,
            iops: Series::default(),
            p50: Series::default(),
            worker: Series::default(),
        })
        .collect();
    let mut copies = Series::default();
    for round in 0..=rounds.rounds {
        for (one, measured) in running.iter_mut().zip(&mut measured) {
            let (burst, worker) =
                turn(&mut one.driver, workload, rounds.length()).with_context(|| one.way.name())?;
            let requests = burst.requests as f64;
            if round > 0 {
                measured.iops.push(requests / burst.took.as_secs_f64());
                measured.p50.push(burst.p50.as_secs_f64() * 1e6);
                measured.worker.push(worker.as_secs_f64() * 1e6 / requests);
            }
        }
        let copy = copy(workload.bytes);
        if round > 0 {
            copies.push(copy);
        }
    }
    Ok((measured, copies))
}

fn turn(
    driver: &mut Driver,
    workload: &Workload,
    length: Duration,
) -> anyhow::Result<(Burst, Duration)> {
    match driver {
        Driver::Straight(client) => Ok((client.burst(workload, length)?, Duration::ZERO)),
        Driver::Guest(guest) => {
            let before = guest.worker_time()?;
            let burst = guest.burst(workload, length)?;
            // the worker has stopped for want of requests, and is accounted for
            std::thread::sleep(Duration::from_millis(2));
            Ok((burst, guest.worker_time()?.saturating_sub(before)))
        }
    }
}

/// Nanoseconds of a copy between two places of many, as requests in flight have
/// them.
fn copy(bytes: usize) -> f64 {
    const PLACES: usize = 32;
    let from = vec![0x5a_u8; PLACES * bytes];
    let mut to = vec![0_u8; PLACES * bytes];
    let rounds = ((64 << 20) / (PLACES * bytes)).max(4);
    let before = processors::thread_time();
    for _ in 0..rounds {
        for (to, from) in to.chunks_mut(bytes).zip(from.chunks(bytes)) {
            to.copy_from_slice(std::hint::black_box(from));
        }
        std::hint::black_box(&mut to);
    }
    let took = processors::thread_time().saturating_sub(before);
    took.as_nanos() as f64 / (rounds * PLACES) as f64
}

fn find(measured: &[Measured], way: Way) -> Option<&Measured> {
    measured.iter().find(|one| one.way == way)
}

/// Time of a request in that of a straight one and a copy.
fn over_copy(one: &Measured, straight: &Measured, copy: &Series) -> Series {
    let nanoseconds = |series: &Series| series.inverse().times(1e9);
    nanoseconds(&one.iops).over(&nanoseconds(&straight.iops).plus(copy))
}

fn row(workload: &Workload, one: &Measured, all: &[Measured], copy: &Series) -> Row {
    let straight = find(all, Way::Straight).filter(|_| one.way != Way::Straight);
    let is_direct = matches!(one.way, Way::Direct | Way::DirectOnFake);
    let bounced = straight.filter(|_| !is_direct);
    Row {
        workload: workload.to_string(),
        way: one.way,
        iops: one.iops.figures(),
        p50_us: one.p50.figures(),
        worker_us: bounced.map(|_| one.worker.figures()),
        iops_over_straight: straight.map(|straight| one.iops.over(&straight.iops).figures()),
        over_copy: bounced.map(|straight| over_copy(one, straight, copy).figures()),
    }
}

fn cells(row: &Row) -> [String; 6] {
    let median = |figures: Option<Figures>| cell(figures, |figures| ratio(figures.median));
    [
        row.way.name().to_owned(),
        format!("{:.0}", row.iops.median),
        format!("{:.1}", row.p50_us.median),
        median(row.worker_us),
        median(row.iops_over_straight),
        median(row.over_copy),
    ]
}

/// What is expected of the front end: with the guest's own ring nearly all of the
/// straight way's requests; with a pool, at 4 KiB a share of them, and little time
/// of its worker's beside the copy, at 128 KiB no more than the copy costs. Grants
/// are shown and not judged: a copy of the fake's is a read or a write of its
/// memory file, and none of the hypervisor's. Nor are the fake's events, which pass
/// two threads that the kernel has not.
fn gates(workload: &Workload, measured: &[Measured], copy: &Series) -> Vec<Gate> {
    let Some(straight) = find(measured, Way::Straight) else {
        return Vec::new();
    };
    let guests = find(measured, Way::BouncePlain).into_iter();
    let gate = |one: &Measured, what: &str, seen: Series, limit, least| Gate {
        target: "V",
        workload: workload.to_string(),
        what: format!("{}: {what}", one.way.name()),
        seen: Some(seen.figures().median),
        limit,
        least,
    };
    let direct = find(measured, Way::Direct).into_iter().map(|one| {
        let seen = one.iops.over(&straight.iops);
        gate(one, "IOPS in the straight", seen, 0.9, true)
    });
    let bounced = guests.flat_map(|one| match workload.bytes {
        4096 => {
            let beside = one.worker.plus(&copy.times(-1e-3));
            vec![
                gate(
                    one,
                    "IOPS in the straight",
                    one.iops.over(&straight.iops),
                    0.6,
                    true,
                ),
                gate(one, "worker's µs beside the copy", beside, 0.5, false),
            ]
        }
        _ => {
            let seen = over_copy(one, straight, copy);
            vec![gate(
                one,
                "time in the straight and a copy",
                seen,
                1.3,
                false,
            )]
        }
    });
    bounced.chain(direct).collect()
}
