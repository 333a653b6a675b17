//! What `./bench` runs. Each bench is a subcommand and a module of its own;
//! what they share is here: bursts that take turns ([`bursts`]), what is made
//! of them ([`figures`]), and how it is shown ([`table`], [`report`]).
//!
//! Machines are noisy: a figure counts beside another one of the same run, as
//! the median of ratios of neighbouring bursts. Nanoseconds are for
//! orientation and never judged.

mod backend;
mod blk;
mod bursts;
mod figures;
mod lab;
mod lab_blk;
mod lab_dma;
mod memory;
mod net;
mod plot;
mod processors;
mod report;
mod rng;
mod rounds;
mod swiotlb;
mod table;
mod vhost_user;
mod vring;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use rounds::Rounds;

/// Measures this project beside its peers.
#[derive(Debug, Parser)]
#[command(name = "./bench", bin_name = "./bench", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// The bounce buffers of the crate swiotlb, beside allocate-copy-free and memcpy
    Swiotlb(swiotlb::Options),
    /// The disk over vhost-user, beside qemu-storage-daemon and the raw file
    Blk(blk::Options),
    /// A guest's disk of qemu-storage-daemon, beside the same disk driven straight
    VhostUser(vhost_user::Options),
    /// The source of entropy over vhost-user, beside vhost-device-rng
    Rng(rng::Options),
    /// The network card between two namespaces, beside a pair of veth; needs root
    Net(net::Options),
    /// How large xen-dm is, and how it grows with guests and queues
    Memory(memory::Options),
    #[command(hide = true, name = memory::SUBJECT)]
    MemorySubject(memory::Served),
    /// Draws what the others have kept, as SVG
    Plot(plot::Options),
    /// A Xen guest's disk by every way of events, and on two queues, in the lab
    LabBlk(lab_blk::Options),
    /// A Xen guest's requests by granted-data map, copy and adaptive, in the lab
    LabDma(lab_dma::Options),
}

/// What every bench takes.
#[derive(Args, Clone, Debug)]
pub struct Output {
    /// Fails where a gate does not hold
    #[arg(long)]
    check: bool,
    /// Also writes every figure to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What every bench takes whose contenders are in this process.
#[derive(Args, Clone, Debug)]
pub struct Common {
    #[command(flatten)]
    output: Output,
    /// Bursts of each contender; the gates want at least 21
    #[arg(long, value_name = "N", default_value_t = 21, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    bursts: u32,
    /// Length of a burst, milliseconds
    #[arg(long, value_name = "MS", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    burst: u32,
}

impl Common {
    /// The gates are stated for a number of bursts.
    fn validate(&self) -> anyhow::Result<()> {
        anyhow::ensure!(
            !self.output.check || self.bursts >= 21,
            "--check wants --bursts of at least 21, not {}",
            self.bursts
        );
        Ok(())
    }
}

fn main() -> ExitCode {
    let done = match Cli::parse().bench {
        Bench::Swiotlb(options) => swiotlb::run(&options),
        Bench::Blk(options) => blk::run(&options),
        Bench::VhostUser(options) => vhost_user::run(&options),
        Bench::Rng(options) => rng::run(&options),
        Bench::Net(options) => net::run(&options),
        Bench::Memory(options) => memory::run(&options),
        Bench::MemorySubject(served) => memory::run_subject(&served).map(|()| true),
        Bench::Plot(options) => plot::run(&options),
        Bench::LabBlk(options) => lab_blk::run(&options),
        Bench::LabDma(options) => lab_dma::run(&options),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}
