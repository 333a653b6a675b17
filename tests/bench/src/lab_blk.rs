//! A disk of a real Xen guest by every way that events can pass, and on two
//! queues (the lab's case `bench-blk`): target P8.
//!
//! Emulation makes everything slow, and traps slower than most: microseconds are
//! for orientation. What is judged is the order: a way that spares hypercalls is
//! not slower than the one that makes them.

use clap::Args;
use serde::Serialize;

use crate::Output;
use crate::figures::{Figures, Series};
use crate::lab::Said;
use crate::report::{self, Machine};
use crate::table::{Column, Table, cell, ratio};

/// The lab's case that measures.
const CASE: &str = "bench-blk";
/// What the others are compared with.
const PLAIN: &str = "plain";
const WAYS: [&str; 4] = [PLAIN, "irqfd", "ioeventfd", "two-queues"];
/// Words of the case, and what they mean.
const KINDS: [(&str, &str); 3] = [
    ("latency-4096", "4 KiB read, one at a time"),
    ("rate-4096", "4 KiB read, 32 at a time"),
    ("latency-131072", "128 KiB read, one at a time"),
];
/// The kind that is judged, and the ways that are.
const JUDGED: (&str, [&str; 2]) = ("latency-4096", ["irqfd", "ioeventfd"]);
/// The least speed in the plain way's: as quick, but for the noise of emulation.
const LEAST: f64 = 0.95;

/// What `./bench lab-blk` takes.
#[derive(Args, Debug)]
pub struct Options {
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Serialize)]
struct Row {
    kind: &'static str,
    way: &'static str,
    /// Microseconds per request.
    took: Figures,
    /// In the plain way's speed, round by round.
    speed: Option<Figures>,
    judged: bool,
}

#[derive(Serialize)]
struct Report {
    bench: &'static str,
    machine: Machine,
    rounds: usize,
    rows: Vec<Row>,
}

const TABLE: Table<5> = Table([
    Column("", 28),
    Column("way", 11),
    Column("µs each", 8),
    Column("speed in plain's", 17),
    Column("", 5),
]);

impl Row {
    /// A ratio that is no number holds nothing.
    fn holds(&self) -> bool {
        !self.judged || self.speed.is_some_and(|speed| speed.median >= LEAST)
    }

    fn cells(&self) -> [String; 5] {
        [
            self.kind.to_owned(),
            self.way.to_owned(),
            format!("{:.0}", self.took.median),
            cell(self.speed, |speed| ratio(speed.median)),
            if self.holds() { "" } else { "MISS" }.to_owned(),
        ]
    }
}

/// Measures, prints, and says whether the gates hold.
///
/// # Errors
/// Where the lab fails, or the report is not written.
pub fn run(options: &Options) -> anyhow::Result<bool> {
    let said = Said::by(CASE)?;
    let (rounds, rows) = rows(&said)?;
    let report = Report {
        bench: "lab-blk",
        machine: Machine::this()?,
        rounds,
        rows,
    };
    println!("{}", report.machine);
    println!(
        "Xen under emulation: four guests of one daemon in turn, {} rounds; medians. Two queues: by irqfd, two vCPUs",
        report.rounds
    );
    println!();
    TABLE.head();
    report.rows.iter().for_each(|row| TABLE.row(&row.cells()));
    println!();
    if let Some(file) = &options.output.json {
        report::write(file, &report)?;
    }
    let judged = report.rows.iter().filter(|row| row.judged).count();
    let missed = report.rows.iter().filter(|row| !row.holds()).count();
    println!(
        "P8: at least {LEAST} of the plain way's speed, one at a time; {missed} of {judged} gates missed"
    );
    Ok(missed == 0 || !options.output.check)
}

/// How many rounds there are, and a row for each kind and way.
fn rows(said: &Said) -> anyhow::Result<(usize, Vec<Row>)> {
    let mut rows = Vec::new();
    let mut rounds = 0;
    for (word, kind) in KINDS {
        let plain = said.rounds(word, PLAIN)?;
        rounds = plain.len();
        for way in WAYS {
            let series: Series = said.rounds(word, way)?;
            anyhow::ensure!(
                series.len() == rounds,
                "{} rounds of {word} {way}",
                series.len()
            );
            rows.push(Row {
                kind,
                way,
                took: series.figures(),
                speed: (way != PLAIN).then(|| plain.over(&series).figures()),
                judged: word == JUDGED.0 && JUDGED.1.contains(&way),
            });
        }
    }
    Ok((rounds, rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(ioeventfd: &str) -> Said {
        let notes = KINDS.iter().flat_map(|(word, _)| {
            WAYS.map(|way| match way {
                "ioeventfd" => format!("; {word} {way} {ioeventfd}"),
                _ => format!("; {word} {way} 100 200 300"),
            })
        });
        let notes: String = notes.collect();
        Said::of(
            CASE,
            format!("bench-blk ok 99 s{notes}\n1 passed, 0 failed\n"),
        )
    }

    fn missed(said: &Said) -> Vec<&'static str> {
        let (_, rows) = rows(said).unwrap();
        let missed = rows.iter().filter(|row| !row.holds());
        missed.map(|row| row.way).collect()
    }

    #[test]
    fn a_way_that_is_slower_than_the_plain_one_misses() {
        assert!(missed(&said("50 200 310")).is_empty());
        assert_eq!(missed(&said("110 220 330")), ["ioeventfd"]);
    }

    #[test]
    fn rounds_that_are_missing_are_refused() {
        assert!(rows(&said("100 200")).is_err());
    }
}
