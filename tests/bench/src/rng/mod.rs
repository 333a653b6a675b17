//! This project's source of entropy as a vhost-user back end beside
//! vhost-device-rng, with one client: target P5.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use serde::Serialize;

use crate::backend::{self, Backend, version};
use crate::figures::{Figures, Series};
use crate::processors::Layout;
use crate::report::{self, Machine};
use crate::table::{Column, Table, cell, ratio};
use crate::vring::{Interrupts, Memory, Session};
use crate::{Output, Rounds};

/// The peer's program, and its crate.
const PEER: &str = "vhost-device-rng";
/// The least of this project's bytes per second in the peer's.
const LEAST: f64 = 1.5;

/// What `./bench rng` takes.
#[derive(Args, Debug)]
pub struct Options {
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    rounds: Rounds,
    /// Has cargo install the peer first, where it is not there yet
    #[arg(long)]
    install: bool,
}

/// Buffers of one size, and how many at a time.
#[derive(Clone, Copy, Debug, Serialize)]
struct Workload {
    bytes: u32,
    depth: u16,
}

/// The first is what Linux asks for.
const WORKLOADS: [Workload; 3] = [
    Workload {
        bytes: 64,
        depth: 1,
    },
    Workload {
        bytes: 4096,
        depth: 1,
    },
    Workload {
        bytes: 4096,
        depth: 16,
    },
];

impl std::fmt::Display for Workload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes, {} at a time", self.bytes, self.depth)
    }
}

#[derive(Debug, Serialize)]
struct Row {
    #[serde(flatten)]
    workload: Workload,
    name: String,
    /// MiB per second.
    xen_dm: Figures,
    peer: Option<Figures>,
    /// The back end's processor time, microseconds per buffer.
    xen_dm_cpu_us: Figures,
    peer_cpu_us: Option<Figures>,
    /// This project's bytes in the peer's, round by round.
    ratio: Option<Figures>,
}

#[derive(Serialize)]
struct Report {
    bench: &'static str,
    machine: Machine,
    xen_dm: Option<String>,
    peer: Option<String>,
    #[serde(flatten)]
    rounds: Rounds,
    rows: Vec<Row>,
}

const TABLE: Table<7> = Table([
    Column("", 26),
    Column("xen-dm MiB/s", 13),
    Column("CPU µs", 7),
    Column("peer MiB/s", 11),
    Column("CPU µs", 7),
    Column("×", 6),
    Column("", 4),
]);

impl Row {
    /// What was not measured holds nothing.
    fn holds(&self) -> bool {
        self.ratio.is_some_and(|ratio| ratio.median >= LEAST)
    }

    fn cells(&self) -> [String; 7] {
        let text = |figures: Figures| format!("{:.2}", figures.median);
        [
            self.name.clone(),
            text(self.xen_dm),
            text(self.xen_dm_cpu_us),
            cell(self.peer, text),
            cell(self.peer_cpu_us, text),
            cell(self.ratio, |figures| ratio(figures.median)),
            if self.holds() { "" } else { "MISS" }.to_owned(),
        ]
    }
}

/// A back end, and what was seen of it.
struct Contender {
    memory: Memory,
    interrupts: Interrupts,
    // before the back end that it is connected to
    session: Session,
    backend: Backend,
    rate: Series,
    cpu: Series,
}

/// Measures, prints, and says whether the gate holds.
///
/// # Errors
/// Where something could not be measured, or the report not written.
pub fn run(options: &Options) -> anyhow::Result<bool> {
    options.rounds.validate(&options.output)?;
    let peer = peer(options.install)?;
    let mut report = Report {
        bench: "rng",
        machine: Machine::this()?,
        xen_dm: version(&backend::xen_dm()?),
        peer: peer.as_deref().and_then(version),
        rounds: options.rounds.clone(),
        rows: Vec::new(),
    };
    println!("{}", report.machine);
    let xen_dm = report.xen_dm.as_deref().unwrap_or("xen-dm");
    match &report.peer {
        Some(peer) => println!("{xen_dm} beside {peer}, both on the kernel's generator"),
        None => println!("{xen_dm}; {PEER} is not here: ./bench rng --install"),
    }
    println!("one client, by interrupts, and both back ends on one processor");
    println!(
        "{}; medians of the rounds, ratios of neighbouring bursts",
        report.rounds
    );
    println!();
    let directory = tempfile::tempdir()?;
    let mut contenders = vec![start_xen_dm(directory.path())?];
    if let Some(peer) = &peer {
        contenders.push(start_peer(peer, directory.path())?);
    }
    TABLE.head();
    for workload in WORKLOADS {
        for contender in &mut contenders {
            (contender.rate, contender.cpu) = (Series::default(), Series::default());
        }
        for round in 0..=options.rounds.rounds {
            for contender in &mut contenders {
                contender.turn(workload, options.rounds.length(), round > 0)?;
            }
        }
        let row = row(workload, &contenders)?;
        TABLE.row(&row.cells());
        report.rows.push(row);
    }
    println!();
    if let Some(file) = &options.output.json {
        report::write(file, &report)?;
    }
    let missed = report.rows.iter().filter(|row| !row.holds()).count();
    println!(
        "P5: at least {LEAST:.1} × the peer's bytes; {missed} of {} gates missed",
        report.rows.len()
    );
    Ok(missed == 0 || !options.output.check)
}

fn row(workload: Workload, contenders: &[Contender]) -> anyhow::Result<Row> {
    let ours = contenders.first().context("nobody was measured")?;
    let peer = contenders.get(1);
    Ok(Row {
        workload,
        name: workload.to_string(),
        xen_dm: ours.rate.figures(),
        xen_dm_cpu_us: ours.cpu.figures(),
        peer: peer.map(|peer| peer.rate.figures()),
        peer_cpu_us: peer.map(|peer| peer.cpu.figures()),
        ratio: peer.map(|peer| ours.rate.over(&peer.rate).figures()),
    })
}

impl Contender {
    fn turn(&mut self, workload: Workload, length: Duration, counts: bool) -> anyhow::Result<()> {
        let ring = self.session.rings.first_mut().context("no ring")?;
        let before = self.backend.processor_time()?;
        let start = Instant::now();
        let (mut bytes, mut buffers) = (0u64, 0u64);
        for head in 0..workload.depth {
            ring.offer(head, workload.bytes, true)?;
        }
        ring.kick()?;
        let mut left = workload.depth;
        while left > 0 {
            let (head, written) = self.interrupts.take(ring)?;
            ensure!(
                written > 0 && written <= workload.bytes,
                "a buffer of {written} bytes"
            );
            bytes += u64::from(written);
            buffers += 1;
            if start.elapsed() < length {
                ring.offer(head, workload.bytes, true)?;
                ring.kick()?;
            } else {
                left -= 1;
            }
        }
        let took = start.elapsed();
        let mut sample = [0; 64];
        self.memory.read(0, 0, &mut sample)?;
        ensure!(
            sample != [0; 64],
            "what the back end says is random is not there"
        );
        std::thread::sleep(Duration::from_millis(2));
        let cpu = self.backend.processor_time()?.saturating_sub(before);
        if counts {
            self.rate
                .push(bytes as f64 / f64::from(1 << 20) / took.as_secs_f64());
            self.cpu.push(cpu.as_secs_f64() * 1e6 / buffers as f64);
        }
        Ok(())
    }

    fn of(backend: Backend, socket: &Path) -> anyhow::Result<Self> {
        let memory = Memory::new()?;
        let session = Session::connect(socket, &memory, 0, 1, 0);
        let session = session.with_context(|| backend.said())?;
        Ok(Contender {
            interrupts: Interrupts::of(&session.rings)?,
            memory,
            session,
            backend,
            rate: Series::default(),
            cpu: Series::default(),
        })
    }
}

fn start_xen_dm(directory: &Path) -> anyhow::Result<Contender> {
    let socket = directory.join("xen-dm.sock");
    let text = socket.display().to_string();
    let arguments = ["vhost-user", "--socket", &text, "--device", "rng"];
    let backend = Backend::start(&backend::xen_dm()?, arguments, &socket, Layout::Together)?;
    Contender::of(backend, &socket)
}

fn start_peer(program: &Path, directory: &Path) -> anyhow::Result<Contender> {
    let base = directory.join("peer.sock");
    // it numbers its sockets
    let socket = directory.join("peer.sock0");
    let text = base.display().to_string();
    let arguments = ["--socket-path", &text, "--filename", "/dev/urandom"];
    let backend = Backend::start(program, arguments, &socket, Layout::Together)?;
    Contender::of(backend, &socket)
}

/// Where the peer is, installed if it is to be.
fn peer(install: bool) -> anyhow::Result<Option<PathBuf>> {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME says where a cache may be")?;
    let root = cache.join("xen-dm-bench");
    let program = root.join("bin").join(PEER);
    if install && !program.exists() {
        let status = Command::new("cargo")
            .args(["install", "--locked", PEER, "--root"])
            .arg(&root)
            .status()
            .context("running cargo")?;
        ensure!(status.success(), "cargo install {PEER} ended with {status}");
    }
    Ok(program.exists().then_some(program))
}
