//! The crate swiotlb beside allocate-copy-free and memcpy, against section 17.4
//! of its specification.
//!
//! Each burst of the crate's is judged by the burst of memcpy and the one of
//! memset right after it, and a row by the median of these ratios. No burst is
//! left out. A row is measured again, once and with more bursts, where it misses
//! and where its limit is inside the sign test's interval of the median, also if
//! it passes: a row that is near its limit has no second chance that one just
//! within it has not. Rows that miss by more than that are measured again, too,
//! which favours the crate where the machine was disturbed only: the median of
//! four times as many bursts misses a limit that the crate is really beyond.
//!
//! What is not judged fairly is left as it is: the 30 ns of the gate are those of
//! a quiet machine, and do not grow where another tenant of the processor makes
//! all else slower.

mod cases;
mod others;
mod pairs;
mod stand;

use std::time::Duration;

use clap::Args;
use serde::Serialize;

use crate::Common;
use crate::bursts::Plan;
use crate::report::{self, Report};
use crate::table::{Column, Table, cell, nanoseconds, ratio};
use cases::Case;
use others::Target;
use pairs::{Guests, Measured};

/// What `./bench swiotlb` takes.
#[derive(Args, Debug)]
pub struct Options {
    #[command(flatten)]
    common: Common,
    /// Only what has this in its name, as "512 B", "cold" or "allocator"
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Makes every pair of the crate's longer by N steps of a short loop, to see
    /// --check fail: 100 are about 20 ns
    #[arg(long, value_name = "N", default_value_t = 0)]
    burden: u32,
}

/// How many times as many bursts there are of what is measured again.
const AGAIN: u32 = 3;

/// A line of the report.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Row {
    /// A pair of map and unmap with its copies.
    Pair(Box<pairs::Row>),
    /// Anything else.
    Other(others::Row),
}

const PAIRS: Table<14> = Table([
    Column("map and unmap", 50),
    Column("padding", 7),
    Column("min", 6),
    Column("p25", 6),
    Column("median", 6),
    Column("target", 6),
    Column("memcpy", 6),
    Column("× memcpy", 8),
    Column("Linux's", 7),
    Column("gate", 6),
    Column("of gate", 7),
    Column("copy-free", 9),
    Column("× copy-free", 11),
    Column("", 4),
]);

const OTHERS: Table<7> = Table([
    Column("other", 58),
    Column("min", 6),
    Column("p25", 6),
    Column("median", 6),
    Column("target", 7),
    Column("beside", 20),
    Column("×", 6),
]);

/// Measures, prints, and says whether the gates hold.
///
/// # Errors
/// Where something could not be measured, or the report not written.
pub fn run(options: &Options) -> anyhow::Result<bool> {
    let common = &options.common;
    common.validate()?;
    let mut report = Report::new("swiotlb", common)?;
    report.introduce();
    println!(
        "target: section 17.4 of the crate's specification, on its machine, for orientation. Linux's: its ratio to memcpy, section 17.5."
    );
    println!(
        "gate: 1.10 × (copies × memcpy + memset of the zeroed padding) + 30 ns; ours is judged by the median of ours over it."
    );
    println!(
        "A row that misses, or whose bursts leave open on which side of the gate their median is, is measured again at the end with {AGAIN} × as many; all of its bursts count."
    );
    println!("cold: a burst is as many times all of the originals as it takes.");
    println!(
        "memcpy: one copy from originals to the pool; cold and declared, back. copy-free: a zeroed heap buffer for each mapping, copied once (twice for both) and freed."
    );
    println!();
    let plan = Plan {
        bursts: common.bursts,
        length: Duration::from_millis(u64::from(common.burst)),
        whole: 1,
    };
    let chosen = |name: &str| {
        options
            .only
            .as_ref()
            .is_none_or(|only| name.contains(only.as_str()))
    };
    let guests = Guests::new()?;
    let mut missed = Vec::new();
    let mut doubtful = Vec::new();

    PAIRS.head();
    for case in Case::all().iter().filter(|case| chosen(&case.name())) {
        let measured = Measured::new(*case, &guests, &plan, options.burden)?;
        let row = measured.row();
        PAIRS.row(&pair_cells(&row));
        if row.is_doubtful {
            doubtful.push((report.rows.len(), measured));
        }
        report.rows.push(Row::Pair(Box::new(row)));
    }
    println!();
    let mut heads = Some(|| OTHERS.head());
    others::measure(&guests, &plan, &chosen, |row| {
        if let Some(print) = heads.take() {
            print();
        }
        OTHERS.row(&other_cells(&row));
        report.rows.push(Row::Other(row));
    })?;
    println!();
    measure_again(&mut doubtful, &guests, &plan, options.burden)?;
    for (index, measured) in &doubtful {
        if let Some(row) = report.rows.get_mut(*index) {
            *row = Row::Pair(Box::new(measured.row()));
        }
    }
    for row in &report.rows {
        if let Row::Pair(row) = row {
            missed.extend(row.missed());
        }
    }

    if let Some(file) = &common.output.json {
        report::write(file, &report)?;
    }
    anyhow::ensure!(!report.rows.is_empty(), "nothing of that name is measured");
    for miss in &missed {
        println!("missed: {miss}");
    }
    let judged = report.rows.iter().map(|row| match row {
        Row::Pair(row) => {
            usize::from(row.case.is_gated()) + usize::from(row.case.linux().is_some())
        }
        Row::Other(_) => 0,
    });
    println!("{} of {} gates missed", missed.len(), judged.sum::<usize>());
    Ok(missed.is_empty() || !common.output.check)
}

/// Measures again what is in doubt, long after its first time: what disturbed
/// the machine then may be over. Nothing of the first time is left out.
fn measure_again(
    doubtful: &mut [(usize, Measured)],
    guests: &Guests,
    plan: &Plan,
    burden: u32,
) -> anyhow::Result<()> {
    println!("measured again: {} rows", doubtful.len());
    if doubtful.is_empty() {
        return Ok(());
    }
    let plan = Plan {
        bursts: plan.bursts * AGAIN,
        ..*plan
    };
    PAIRS.head();
    for (_, measured) in doubtful {
        measured.again(guests, &plan, burden)?;
        PAIRS.row(&pair_cells(&measured.row()));
    }
    println!();
    Ok(())
}

fn pair_cells(row: &pairs::Row) -> [String; 14] {
    let case = &row.case;
    let gated = |value: f64, text: fn(f64) -> String| cell(case.is_gated().then_some(value), text);
    [
        case.name(),
        case.padding_name().to_owned(),
        nanoseconds(row.ours.min),
        nanoseconds(row.ours.p25),
        nanoseconds(row.ours.median),
        cell(case.target(), |target| format!("{target:.0}")),
        nanoseconds(row.memcpy.median),
        ratio(row.over_memcpy.median),
        cell(case.linux(), ratio),
        gated(row.gate.median, nanoseconds),
        gated(row.over_gate.median, ratio),
        nanoseconds(row.copy_free.median),
        ratio(row.over_copy_free.median),
        if row.missed().is_empty() { "" } else { "MISS" }.to_owned(),
    ]
}

fn other_cells(row: &others::Row) -> [String; 7] {
    let target = match row.target {
        Target::Nanoseconds(most) => format!("{most:.0}"),
        Target::Ratio(most) => format!("{most:.2} ×"),
        Target::Shown => "–".to_owned(),
    };
    let beside = row.beside.as_ref();
    [
        row.name.clone(),
        nanoseconds(row.ours.min),
        nanoseconds(row.ours.p25),
        nanoseconds(row.ours.median),
        target,
        cell(beside, |(what, other, _)| {
            format!("{what}: {}", nanoseconds(other.median))
        }),
        cell(beside, |(_, _, over)| ratio(over.median)),
    ]
}
