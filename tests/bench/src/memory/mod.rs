//! How large xen-dm is: with two disks and a network card, and how it grows with
//! guests and with queues.
//!
//! Each row is a process of its own, on the fake Xen and with the guests'
//! drivers in it: what is counted is rather too much. The guests' memory is not
//! counted.

mod subject;

use std::process::Command;

use anyhow::{Context, ensure};
use clap::Args;
use serde::Serialize;

use crate::Output;
use crate::report::{self, Machine};
use crate::table::{Column, Table};
use subject::Size;
pub use subject::{Served, run as run_subject};

/// The subcommand of this program that is a row.
pub const SUBJECT: &str = "memory-subject";
/// The most with two disks and a network card, KiB.
const LIMIT: u64 = 16 << 10;
/// The most that what is added last may take, in what was added first.
const GROWTH: f64 = 1.25;

/// What `./bench memory` takes.
#[derive(Args, Debug)]
pub struct Options {
    #[command(flatten)]
    output: Output,
}

#[derive(Clone, Debug, Serialize)]
struct Row {
    name: String,
    #[serde(flatten)]
    served: Served,
    #[serde(flatten)]
    size: Size,
}

impl Row {
    /// What is judged: all but the guests' memory, KiB.
    fn resident(&self) -> u64 {
        self.size.anonymous + self.size.program
    }

    fn cells(&self) -> [String; 6] {
        let mib = |kib: u64| format!("{:.1}", kib as f64 / 1024.0);
        [
            self.name.clone(),
            mib(self.resident()),
            mib(self.size.anonymous),
            mib(self.size.program),
            mib(self.size.shared),
            self.size.threads.to_string(),
        ]
    }
}

#[derive(Debug, Serialize)]
struct Gate {
    what: &'static str,
    seen: f64,
    most: f64,
}

#[derive(Serialize)]
struct Report {
    bench: &'static str,
    machine: Machine,
    rows: Vec<Row>,
    gates: Vec<Gate>,
}

const TABLE: Table<6> = Table([
    Column("MiB", 40),
    Column("resident", 9),
    Column("anonymous", 10),
    Column("program", 8),
    Column("guests' own", 12),
    Column("threads", 8),
]);

/// Measures, prints, and says whether the gates hold.
///
/// # Errors
/// A row that could not be measured, or the report not written.
pub fn run(options: &Options) -> anyhow::Result<bool> {
    let mut report = Report {
        bench: "memory",
        machine: Machine::this()?,
        rows: Vec::new(),
        gates: Vec::new(),
    };
    println!("{}", report.machine);
    println!(
        "the fake Xen and the guests' drivers are in it, the guests' memory is not; every queue has been used"
    );
    println!();
    TABLE.head();
    let mut measure = |name: String, served: Served| {
        let size = measure(&served).with_context(|| name.clone())?;
        let row = Row { name, served, size };
        TABLE.row(&row.cells());
        let resident = row.resident();
        report.rows.push(row);
        anyhow::Ok(resident)
    };
    let usual = |guests| Served {
        guests,
        disks: 2,
        queues: 1,
        nic: true,
    };
    let mut guests = Vec::new();
    for count in [1, 16, 32, 64] {
        let plural = if count == 1 { "" } else { "s" };
        let name = format!("{count} guest{plural}, two disks and a card each");
        guests.push((f64::from(count), measure(name, usual(count))?));
    }
    let mut queues = Vec::new();
    for count in [1u16, 8, 16] {
        let served = Served {
            guests: 1,
            disks: 4,
            queues: count,
            nic: false,
        };
        let name = format!("1 guest, 4 disks, {} queues", 4 * count);
        queues.push((f64::from(count), measure(name, served)?));
    }
    println!();
    let one = guests.first().map_or(f64::NAN, |(_, size)| *size as f64);
    report.gates = vec![
        Gate {
            what: "two disks and a network card, MiB",
            seen: one / 1024.0,
            most: LIMIT as f64 / 1024.0,
        },
        Gate {
            what: "the last guests, each in one of the first",
            seen: growth(&guests),
            most: GROWTH,
        },
        Gate {
            what: "the last queues, each in one of the first",
            seen: growth(&queues),
            most: GROWTH,
        },
    ];
    if let Some(file) = &options.output.json {
        report::write(file, &report)?;
    }
    for gate in &report.gates {
        let Gate { what, seen, most } = gate;
        let word = if gate.holds() { "holds" } else { "MISS " };
        println!("{word} {what}: {seen:.2}, at most {most:.2}");
    }
    let missed = report.gates.iter().filter(|gate| !gate.holds()).count();
    println!("{missed} of {} gates missed", report.gates.len());
    Ok(missed == 0 || !options.output.check)
}

impl Gate {
    /// No number holds nothing.
    fn holds(&self) -> bool {
        self.seen <= self.most
    }
}

/// What each of those added last takes, in what each of those added first takes.
fn growth(sizes: &[(f64, u64)]) -> f64 {
    let slope = |pair: Option<&[(f64, u64)]>| match pair {
        Some([(n, size), (m, more)]) => (*more as f64 - *size as f64) / (m - n),
        _ => f64::NAN,
    };
    slope(sizes.windows(2).next_back()) / slope(sizes.windows(2).next())
}

fn measure(served: &Served) -> anyhow::Result<Size> {
    let Served {
        guests,
        disks,
        queues,
        nic,
    } = served;
    let own = std::env::current_exe().context("where this program is")?;
    let mut command = Command::new(own);
    command.arg(SUBJECT).args([
        format!("--guests={guests}"),
        format!("--disks={disks}"),
        format!("--queues={queues}"),
    ]);
    command.args(nic.then_some("--nic"));
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "it ended with {}:\n{said}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_str(&said).context("what it says of its size")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_what_the_last_take_in_what_the_first_take() {
        let linear = growth(&[(1.0, 10), (3.0, 30), (7.0, 70)]);
        let more = growth(&[(1.0, 10), (3.0, 30), (7.0, 110)]);

        assert_eq!((linear, more), (1.0, 2.0));
    }

    #[test]
    fn nothing_measured_holds_nothing() {
        let gate = Gate {
            what: "",
            seen: growth(&[]),
            most: GROWTH,
        };

        assert!(!gate.holds());
    }
}
