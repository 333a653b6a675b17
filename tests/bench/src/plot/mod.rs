//! What the benches have kept (`--json`), drawn.

mod chart;
mod reports;

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use serde_json::Value;

/// What `./bench plot` takes.
#[derive(Args, Debug)]
pub struct Options {
    /// Reports, as written by --json of blk, rng, memory and lab-blk
    #[arg(required = true, value_name = "FILE")]
    reports: Vec<PathBuf>,
    /// Where pictures go, each under its bench's name
    #[arg(long, value_name = "DIRECTORY", default_value = "docs")]
    directory: PathBuf,
}

/// Draws each report.
///
/// # Errors
/// A report that cannot be read or drawn.
pub fn run(options: &Options) -> anyhow::Result<bool> {
    std::fs::create_dir_all(&options.directory)
        .with_context(|| options.directory.display().to_string())?;
    for file in &options.reports {
        let draw = || {
            let report: Value = serde_json::from_str(&std::fs::read_to_string(file)?)?;
            let name = format!("bench-{}.svg", reports::bench(&report)?);
            let picture = options.directory.join(name);
            reports::chart(&report)?.draw(&picture)?;
            println!("{}", picture.display());
            anyhow::Ok(())
        };
        draw().with_context(|| file.display().to_string())?;
    }
    Ok(true)
}
