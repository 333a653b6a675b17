//! The adaptive way to granted data beside mapping and copying everything, in a
//! real Xen guest (the lab's case `bench-dma`).
//!
//! Emulation does not rank a copy against a mapping as hardware would, so that
//! no default is taken from these figures. What is judged holds anywhere: whoever
//! learns from live traffic finds the better way and stays near it.

mod rounds;

use clap::Args;
use serde::Serialize;

use crate::Output;
use crate::figures::Figures;
use crate::lab::Said;
use crate::report::{self, Machine};
use crate::table::{Column, Table, ratio};
use rounds::{Kind, Rounds};

/// The lab's case that measures.
const CASE: &str = "bench-dma";
/// The least speed of the adaptive way, in that of the better one.
const LEAST: f64 = 0.95;

/// What `./bench lab-dma` takes.
#[derive(Args, Debug)]
pub struct Options {
    #[command(flatten)]
    output: Output,
}

/// Requests of one kind.
#[derive(Debug, Serialize)]
struct Row {
    #[serde(flatten)]
    kind: Kind,
    /// Microseconds per request.
    map: Figures,
    copy: Figures,
    adaptive: Figures,
    /// The one of the first two that has the lower median.
    better: &'static str,
    /// The adaptive way's speed in that of the better one, round by round.
    speed: Figures,
}

#[derive(Serialize)]
struct Report {
    bench: &'static str,
    machine: Machine,
    rounds: usize,
    /// What the adaptive guest's device knew at the end.
    learned: Option<String>,
    rows: Vec<Row>,
}

impl Row {
    fn of(rounds: &Rounds) -> Self {
        let [map, copy, adaptive] =
            [&rounds.map, &rounds.copy, &rounds.adaptive].map(|series| series.figures());
        let (better, series) = match copy.median <= map.median {
            true => ("copy", &rounds.copy),
            false => ("map", &rounds.map),
        };
        Row {
            kind: rounds.kind,
            map,
            copy,
            adaptive,
            better,
            speed: series.over(&rounds.adaptive).figures(),
        }
    }

    /// A ratio that is no number holds nothing.
    fn holds(&self) -> bool {
        self.speed.median >= LEAST
    }

    fn cells(&self) -> [String; 7] {
        let microseconds = |figures: Figures| format!("{:.0}", figures.median);
        [
            self.kind.to_string(),
            microseconds(self.map),
            microseconds(self.copy),
            microseconds(self.adaptive),
            self.better.to_owned(),
            ratio(self.speed.median),
            if self.holds() { "" } else { "MISS" }.to_owned(),
        ]
    }
}

const TABLE: Table<7> = Table([
    Column("one request at a time", 22),
    Column("map-only", 10),
    Column("copy-only", 10),
    Column("adaptive", 10),
    Column("better", 7),
    Column("speed in it", 12),
    Column("", 4),
]);

/// Measures, prints, and says whether the gate holds.
///
/// # Errors
/// Where the lab fails, or the report is not written.
pub fn run(options: &Options) -> anyhow::Result<bool> {
    let said = Said::by(CASE)?;
    let rows: Vec<Row> = rounds::read(&said)?.iter().map(Row::of).collect();
    let report = Report {
        bench: "lab-dma",
        machine: Machine::this()?,
        rounds: rounds::count(&said)?,
        learned: rounds::learned(&said),
        rows,
    };
    println!("{}", report.machine);
    println!(
        "Xen under emulation: three guests of one daemon in turn, {} rounds; microseconds per request, medians of the rounds' means",
        report.rounds
    );
    if let Some(learned) = &report.learned {
        println!("the adaptive guest's device {learned}");
    }
    println!(
        "speed in it: that of adaptive in that of the better of the two, median of the rounds; at least {LEAST}"
    );
    println!();
    TABLE.head();
    report.rows.iter().for_each(|row| TABLE.row(&row.cells()));
    println!();
    if let Some(file) = &options.output.json {
        report::write(file, &report)?;
    }
    let missed = report.rows.iter().filter(|row| !row.holds()).count();
    println!("{missed} of {} gates missed", report.rows.len());
    Ok(missed == 0 || !options.output.check)
}
