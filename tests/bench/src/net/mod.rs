//! This project's network card between two network namespaces, beside a pair of
//! veth.
//!
//! Each namespace has a tap with a card behind it (`xen-dm vhost-user`), and one
//! guest has both cards and passes on what it receives: a packet goes through
//! two taps, two cards and a guest, where a veth's goes through nothing. The
//! ratio says what a guest costs beside no guest at all; there is no target.

mod guest;
mod spaces;
mod traffic;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::Context;
use clap::Args;
use serde::Serialize;

use crate::backend::{self, Backend, version};
use crate::figures::{Figures, Series};
use crate::processors::Layout;
use crate::report::{self, Machine};
use crate::table::{Column, Table, ratio};
use crate::vring::{Memory, Session};
use crate::{Output, Rounds};
use spaces::{Spaces, Way};
use traffic::Traffic;

/// What `./bench net` takes.
#[derive(Args, Debug)]
pub struct Options {
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    rounds: Rounds,
}

#[derive(Debug, Serialize)]
struct Row {
    traffic: Traffic,
    name: &'static str,
    veth: Figures,
    xen_dm: Figures,
    /// In the veth's, round by round.
    ratio: Figures,
}

#[derive(Serialize)]
struct Report {
    bench: &'static str,
    machine: Machine,
    xen_dm: Option<String>,
    #[serde(flatten)]
    rounds: Rounds,
    rows: Vec<Row>,
}

const TABLE: Table<4> = Table([
    Column("from one namespace to another", 30),
    Column("veth", 10),
    Column("xen-dm", 10),
    Column("of veth's", 9),
]);

/// Measures and prints. Nothing is judged.
///
/// # Errors
/// Where something could not be measured, or the report not written.
pub fn run(options: &Options) -> anyhow::Result<bool> {
    let mut report = Report {
        bench: "net",
        machine: Machine::this()?,
        xen_dm: version(&backend::xen_dm()?),
        rounds: options.rounds.clone(),
        rows: Vec::new(),
    };
    println!("{}", report.machine);
    println!(
        "{}: tap, card, a guest that passes on what it receives, card, tap",
        report.xen_dm.as_deref().unwrap_or("xen-dm")
    );
    println!(
        "{}; medians of the rounds, ratios of neighbouring bursts",
        report.rounds
    );
    println!();
    let directory = tempfile::tempdir()?;
    let spaces = Arc::new(Spaces::new()?);
    let (memory, stop) = (Memory::new()?, Arc::new(AtomicBool::new(false)));
    let (card_a, backend_a) = card(&spaces, 0, directory.path(), &memory)?;
    let (card_b, backend_b) = card(&spaces, 1, directory.path(), &memory)?;
    let guest = {
        let stop = Arc::clone(&stop);
        thread::spawn(move || guest::forward(&memory, [card_a, card_b], &stop))
    };
    TABLE.head();
    let measured = Traffic::ALL.into_iter().try_for_each(|traffic| {
        let row = measure(&spaces, traffic, &options.rounds)?;
        TABLE.row(&row.cells());
        report.rows.push(row);
        anyhow::Ok(())
    });
    stop.store(true, Ordering::Relaxed);
    let forwarded = guest
        .join()
        .map_err(|_| anyhow::anyhow!("the guest panicked"))?;
    let said = || format!("{}{}", backend_a.said(), backend_b.said());
    forwarded.context("the guest").with_context(said)?;
    measured.with_context(said)?;
    println!();
    if let Some(file) = &options.output.json {
        report::write(file, &report)?;
    }
    println!("no target");
    Ok(true)
}

impl Row {
    fn cells(&self) -> [String; 4] {
        let text = |figures: Figures| format!("{:.0}", figures.median);
        [
            self.name.to_owned(),
            text(self.veth),
            text(self.xen_dm),
            ratio(self.ratio.median),
        ]
    }
}

fn measure(spaces: &Arc<Spaces>, traffic: Traffic, rounds: &Rounds) -> anyhow::Result<Row> {
    let (mut veth, mut cards) = (Series::default(), Series::default());
    for round in 0..=rounds.rounds {
        for (way, series) in [(Way::Veth, &mut veth), (Way::Cards, &mut cards)] {
            let rate = traffic::measure(spaces, way, traffic, rounds.length())
                .with_context(|| format!("{} by {}", traffic.name(), way.interface()))?;
            // the first one warms up
            if round > 0 {
                series.push(rate);
            }
        }
    }
    Ok(Row {
        traffic,
        name: traffic.name(),
        veth: veth.figures(),
        xen_dm: cards.figures(),
        ratio: cards.over(&veth).figures(),
    })
}

/// A card on a tap of an end's namespace, in use, and who serves it.
fn card(
    spaces: &Spaces,
    end: usize,
    directory: &Path,
    memory: &Memory,
) -> anyhow::Result<(Session, Backend)> {
    let socket = directory.join(format!("{end}.sock"));
    let (program, mut arguments) = spaces.arguments(end, &backend::xen_dm()?)?;
    let device = format!("net,tap={}", Way::Cards.interface());
    let text = socket.display().to_string();
    let words = ["vhost-user", "--socket", &text, "--device", &device];
    arguments.extend(words.map(str::to_owned));
    let backend = Backend::start(&program, arguments, &socket, Layout::Anywhere)?;
    spaces.bring_up(end, Way::Cards)?;
    let first = guest::RINGS * u16::try_from(end)?;
    let session = Session::connect(&socket, memory, first, guest::RINGS, guest::FEATURES);
    Ok((session.with_context(|| backend.said())?, backend))
}
