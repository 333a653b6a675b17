//! Contenders that take turns at one workload.

use std::time::Duration;

use anyhow::Context;

use super::contenders::{Contender, Running};
use super::workload::Workload;
use crate::Rounds;
use crate::figures::Series;

/// What was seen of a contender, round by round.
#[derive(Clone, Debug)]
pub struct Measured {
    pub contender: Contender,
    /// Requests per second.
    pub iops: Series,
    /// Microseconds of half of the requests, and of all but a hundredth.
    pub p50: Series,
    pub p99: Series,
    /// The back end's processor time per request, microseconds.
    pub cpu: Option<Series>,
}

/// Lets them take turns: one burst each, over and over. The first turn is for
/// warming up and not counted.
///
/// # Errors
/// A request that failed, a back end that has ended.
pub fn measure(
    workload: &Workload,
    running: &mut [Running],
    rounds: &Rounds,
) -> anyhow::Result<Vec<Measured>> {
    let length = rounds.length();
    let new = |one: &Running| Measured {
        contender: one.contender,
        iops: Series::default(),
        p50: Series::default(),
        p99: Series::default(),
        cpu: one.backend.as_ref().map(|_| Series::default()),
    };
    let mut measured: Vec<_> = running.iter().map(new).collect();
    for round in 0..=rounds.rounds {
        for (one, measured) in running.iter_mut().zip(&mut measured) {
            let turn = turn(one, workload, length).with_context(|| one.contender.name())?;
            if round > 0 {
                measured.note(&turn);
            }
        }
    }
    Ok(measured)
}

struct Turn {
    burst: super::client::Burst,
    cpu: Option<Duration>,
}

fn turn(one: &mut Running, workload: &Workload, length: Duration) -> anyhow::Result<Turn> {
    let backend = one.backend.as_ref();
    let before = backend
        .map(|backend| backend.processor_time())
        .transpose()?;
    let burst = one.client.burst(workload, length)?;
    // its last thread has stopped for want of requests, and is accounted for
    std::thread::sleep(Duration::from_millis(2));
    let after = backend
        .map(|backend| backend.processor_time())
        .transpose()?;
    let cpu = before
        .zip(after)
        .map(|(before, after)| after.saturating_sub(before));
    Ok(Turn { burst, cpu })
}

impl Measured {
    fn note(&mut self, turn: &Turn) {
        let burst = &turn.burst;
        let requests = burst.requests as f64;
        let micros = |duration: Duration| duration.as_secs_f64() * 1e6;
        self.iops.push(requests / burst.took.as_secs_f64());
        self.p50.push(micros(burst.p50));
        self.p99.push(micros(burst.p99));
        if let (Some(series), Some(cpu)) = (&mut self.cpu, turn.cpu) {
            series.push(micros(cpu) / requests);
        }
    }
}
