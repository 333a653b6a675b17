//! How often contenders take turns whose bursts are long: back ends in other
//! processes.

use std::time::Duration;

use anyhow::ensure;
use clap::Args;
use serde::Serialize;

use crate::Output;

/// The fewest rounds that the gates are stated for.
const LEAST: u32 = 5;

/// What every such bench takes.
#[derive(Args, Clone, Debug, Serialize)]
pub struct Rounds {
    /// Bursts of each contender; the gates want at least 5
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub rounds: u32,
    /// Length of a burst, milliseconds
    #[arg(long = "burst", value_name = "MS", default_value_t = 250, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    pub burst_ms: u32,
}

impl Rounds {
    /// Of a burst.
    pub fn length(&self) -> Duration {
        Duration::from_millis(self.burst_ms.into())
    }

    /// The gates are stated for a number of rounds.
    ///
    /// # Errors
    /// Too few.
    pub fn validate(&self, output: &Output) -> anyhow::Result<()> {
        ensure!(
            !output.check || self.rounds >= LEAST,
            "--check wants --rounds of at least {LEAST}, not {}",
            self.rounds
        );
        Ok(())
    }
}

impl std::fmt::Display for Rounds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} bursts of {} ms of each contender, taking turns",
            self.rounds, self.burst_ms
        )
    }
}
