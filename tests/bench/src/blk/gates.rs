//! What is expected of this project's disk beside the others: targets P1 to P4.

use serde::Serialize;

use super::contenders::Contender;
use super::measure::Measured;
use super::workload::{Medium, Workload};
use crate::figures::Series;

/// An expectation, and what was seen.
#[derive(Clone, Debug, Serialize)]
pub struct Gate {
    /// Which expectation.
    pub target: &'static str,
    /// Of what.
    pub workload: String,
    /// What was looked at.
    pub what: String,
    /// The median of the rounds; `None` if it could not be measured.
    pub seen: Option<f64>,
    /// What it has to reach, or must not pass.
    pub limit: f64,
    /// Whether `limit` is the least, or the most.
    pub least: bool,
}

impl Gate {
    /// What was not measured holds nothing, and neither does what is no number.
    pub fn holds(&self) -> bool {
        self.seen.is_some_and(|seen| match self.least {
            true => seen >= self.limit,
            false => seen <= self.limit,
        })
    }
}

impl std::fmt::Display for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bound = if self.least { "at least" } else { "at most" };
        let seen = match self.seen {
            Some(seen) => format!("{seen:.2}"),
            None => "not measured".to_owned(),
        };
        let word = if self.holds() { "holds" } else { "MISS " };
        write!(
            f,
            "{word} {} {}: {} {seen}, {bound} {:.2}",
            self.target, self.workload, self.what, self.limit
        )
    }
}

/// The gates of one workload.
pub fn of(workload: &Workload, measured: &[Measured]) -> Vec<Gate> {
    let find = |contender| measured.iter().find(|one| one.contender == contender);
    let Some(ours) = find(Contender::XenDm) else {
        return Vec::new();
    };
    let raw = find(Contender::Raw);
    let median = |series: Series| Some(series.figures().median);
    // the best is the one that is hardest to beat
    let over_peers = |ratio: &dyn Fn(&Measured) -> Series| {
        let peers = measured.iter().filter(|one| one.contender.is_peer());
        let ratios = peers.map(|peer| ratio(peer).figures().median);
        ratios.reduce(f64::min)
    };
    let gate = |target, what: &str, seen, limit, least| Gate {
        target,
        workload: workload.to_string(),
        what: what.to_owned(),
        seen,
        limit,
        least,
    };
    let iops_over_peers = over_peers(&|peer| ours.iops.over(&peer.iops));
    let iops_over_raw = raw.and_then(|raw| median(ours.iops.over(&raw.iops)));
    let cpu = ours.cpu.as_ref().and_then(|cpu| median(cpu.clone()));
    match (workload.medium, workload.bytes, workload.depth) {
        (Medium::Null, ..) => vec![
            gate("P1", "IOPS in null-co's", iops_over_peers, 1.8, true),
            gate("P1", "back end's µs per request", cpu, 0.35, false),
        ],
        (Medium::File, 4096, 1) => vec![
            gate(
                "P3",
                "p50 beyond the raw file's, µs",
                raw.and_then(|raw| median(ours.p50.plus(&raw.p50.times(-1.0)))),
                2.0,
                false,
            ),
            gate(
                "P3",
                "best peer's p50 in ours",
                over_peers(&|peer| peer.p50.over(&ours.p50)),
                1.0,
                true,
            ),
        ],
        (Medium::File, 4096, _) => vec![
            gate("P2", "IOPS in the raw file's", iops_over_raw, 0.9, true),
            gate("P2", "IOPS in the best peer's", iops_over_peers, 1.3, true),
            gate("P2", "back end's µs per request", cpu, 2.2, false),
        ],
        (Medium::File, ..) => vec![
            gate("P4", "MiB/s in the raw file's", iops_over_raw, 0.95, true),
            gate("P4", "MiB/s in the best peer's", iops_over_peers, 1.1, true),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::super::workload::WORKLOADS;
    use super::*;

    fn measured(contender: Contender, iops: f64, p50: f64) -> Measured {
        let series = |value: f64| {
            let mut series = Series::default();
            (0..3).for_each(|_| series.push(value));
            series
        };
        Measured {
            contender,
            iops: series(iops),
            p50: series(p50),
            p99: series(p50),
            cpu: Some(series(0.3)),
        }
    }

    fn held(ours: (f64, f64)) -> usize {
        let others = [
            measured(Contender::XenDm, ours.0, ours.1),
            measured(Contender::Raw, 100.0, 6.0),
            measured(Contender::NullCo, 50.0, 9.0),
            measured(Contender::Native, 70.0, 8.0),
        ];
        let gates = WORKLOADS.iter().flat_map(|workload| of(workload, &others));
        gates.filter(Gate::holds).count()
    }

    #[test]
    fn all_gates_hold_for_a_disk_that_is_quick_and_few_for_one_that_is_not() {
        assert_eq!(held((130.0, 7.0)), 18);
        // time per request is the same
        assert_eq!(held((60.0, 9.0)), 4);
    }

    #[test]
    fn nothing_holds_without_the_others() {
        let alone = [Measured {
            cpu: None,
            ..measured(Contender::XenDm, 1e9, 0.1)
        }];
        let gates: Vec<_> = WORKLOADS.iter().flat_map(|one| of(one, &alone)).collect();

        assert_eq!(gates.len(), 18);
        assert!(!gates.iter().any(Gate::holds));
    }
}
