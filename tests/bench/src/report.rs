//! Figures as a file, and where they were measured.

use std::path::Path;

use anyhow::Context;
use serde::Serialize;

use crate::Common;

/// The machine, as far as it matters to whoever compares.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    processor: String,
    processors: usize,
    kernel: String,
    /// Processes that wanted a processor during the last minute. More than
    /// there are processors, and threads seldom run at the same time.
    load: f64,
}

impl Machine {
    /// This one.
    ///
    /// # Errors
    /// Where the kernel does not tell.
    pub fn this() -> anyhow::Result<Self> {
        let info = std::fs::read_to_string("/proc/cpuinfo").context("/proc/cpuinfo")?;
        let mut lines = info.lines();
        let model = lines.find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let load = std::fs::read_to_string("/proc/loadavg").context("/proc/loadavg")?;
        Ok(Machine {
            load: load
                .split(' ')
                .next()
                .and_then(|load| load.parse().ok())
                .unwrap_or(f64::NAN),
            processor: model.map_or("unnamed", |(_, name)| name).to_owned(),
            processors: crate::processors::usable()?.len(),
            kernel: rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned(),
        })
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Machine {
            processor,
            processors,
            kernel,
            load,
        } = self;
        write!(f, "{processors} × {processor}, Linux {kernel}, load {load}")
    }
}

/// Everything that one run has measured.
#[derive(Serialize)]
pub struct Report<Row> {
    bench: &'static str,
    machine: Machine,
    bursts: u32,
    burst_ms: u32,
    /// As the bench has them.
    pub rows: Vec<Row>,
}

impl<Row: Serialize> Report<Row> {
    /// A report without rows.
    ///
    /// # Errors
    /// Where the machine is not known.
    pub fn new(bench: &'static str, common: &Common) -> anyhow::Result<Self> {
        Ok(Report {
            bench,
            machine: Machine::this()?,
            bursts: common.bursts,
            burst_ms: common.burst,
            rows: Vec::new(),
        })
    }

    /// Prints where and how it is measured.
    pub fn introduce(&self) {
        println!("{}", self.machine);
        println!(
            "{} bursts of {} ms of each contender, taking turns, threads pinned; processor time, ns per operation",
            self.bursts, self.burst_ms
        );
        // not to be compared: true of a load that is not known, too
        let is_idle = self.machine.load < self.machine.processors as f64;
        if !is_idle {
            println!(
                "others want the processors: threads seldom run at the same time, and figures of threads that share something say little"
            );
        }
        println!();
    }
}

/// Writes what a bench has to report to a file.
///
/// # Errors
/// Where the file cannot be written.
pub fn write(file: &Path, report: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(report)?;
    std::fs::write(file, text + "\n").with_context(|| format!("writing {}", file.display()))
}

/// The kind of the file system that `path` is on, as "tmpfs".
///
/// # Errors
/// Where the kernel does not tell.
pub fn file_system(path: &Path) -> anyhow::Result<String> {
    let path = path.canonicalize()?;
    let mounts = std::fs::read_to_string("/proc/self/mounts").context("/proc/self/mounts")?;
    let fields = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>());
    let mut best = (0, "an unknown file system");
    for fields in fields {
        if let [_, at, kind, ..] = fields[..]
            && path.starts_with(at)
            && at.len() >= best.0
        {
            best = (at.len(), kind);
        }
    }
    Ok(best.1.to_owned())
}
