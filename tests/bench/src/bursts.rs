//! Bursts that take turns.
//!
//! Contenders run one after the other, each for some milliseconds, over and
//! over: A B C A B C. What disturbs the machine for longer than a burst
//! disturbs all of them. With several threads all do the same contender's work
//! at a time, each on a processor of its own.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;

use crate::figures::Series;
use crate::processors;

/// What one thread does for one contender: an operation, as often as it is
/// told, and how long that took.
pub type Subject<'a> = Box<dyn FnMut(u64) -> anyhow::Result<Duration> + Send + 'a>;

/// A subject whose time is the processor time of all of `work`.
pub fn timed<'a>(mut work: impl FnMut(u64) -> anyhow::Result<()> + Send + 'a) -> Subject<'a> {
    Box::new(move |operations| {
        let start = processors::thread_time();
        work(operations)?;
        Ok(processors::thread_time().saturating_sub(start))
    })
}

/// A subject that does nothing while other threads work.
pub fn idle<'a>() -> Subject<'a> {
    Box::new(|_| Ok(Duration::ZERO))
}

/// How long it all goes on.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Bursts of each contender.
    pub bursts: u32,
    /// The length that a burst is to have.
    pub length: Duration,
    /// Operations of which a burst is to have a whole number of times as many.
    pub whole: u64,
}

impl Plan {
    /// The rounds in which it is found out how many operations a burst is: few
    /// where it has many to begin with.
    fn growing(&self) -> u32 {
        if self.whole > 1 { 3 } else { 24 }
    }
}

/// What the contenders took: nanoseconds per operation, burst by burst.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// By thread, then by contender.
    threads: Vec<Vec<Series>>,
}

impl Outcome {
    /// Adds the bursts of the same contenders at another time.
    pub fn extend(&mut self, later: &Outcome) {
        for (all, more) in self.threads.iter_mut().zip(&later.threads) {
            for (all, more) in all.iter_mut().zip(more) {
                all.extend(more);
            }
        }
    }

    /// What a contender took on one thread.
    pub fn of_thread(&self, thread: usize, contender: usize) -> Series {
        let series = self
            .threads
            .get(thread)
            .and_then(|thread| thread.get(contender));
        series.cloned().unwrap_or_default()
    }

    /// What a contender took: the mean over the threads, burst by burst.
    pub fn of(&self, contender: usize) -> Series {
        let all = (0..self.threads.len()).map(|thread| self.of_thread(thread, contender));
        let sum = all.reduce(|sum, next| sum.plus(&next)).unwrap_or_default();
        sum.times(1.0 / self.threads.len() as f64)
    }
}

/// Lets contenders take turns. `threads` has for each thread a subject of every
/// contender, in the same order.
///
/// # Errors
/// Those of the subjects, and too few processors.
pub fn take_turns(threads: Vec<Vec<Subject<'_>>>, plan: &Plan) -> anyhow::Result<Outcome> {
    let processors = processors::for_threads(threads.len())?;
    let contenders = threads.iter().map(Vec::len).min().unwrap_or(0);
    let meeting = Meeting {
        barrier: Barrier::new(threads.len()),
        failed: AtomicBool::new(false),
        whole: plan.whole.max(1),
        counts: (0..contenders).map(|_| Count::default()).collect(),
    };
    let meeting = &meeting;
    let threads = std::thread::scope(|scope| {
        let running: Vec<_> = threads
            .into_iter()
            .zip(processors)
            .map(|(subjects, cpu)| scope.spawn(move || run(subjects, cpu, plan, meeting)))
            .collect();
        let results = running.into_iter().map(|thread| thread.join());
        // one thread's error makes the others leave without one
        let results: Vec<_> = results.collect();
        results
            .into_iter()
            .map(|result| result.unwrap_or_else(|_| Err(anyhow::anyhow!("a thread panicked"))))
            .collect::<anyhow::Result<Vec<_>>>()
    })?;
    Ok(Outcome { threads })
}

/// Where threads wait for each other.
struct Meeting {
    barrier: Barrier,
    /// Somebody has given up. Read after a meeting, written before one: all
    /// leave at the same one.
    failed: AtomicBool,
    /// As the plan's.
    whole: u64,
    /// Of each contender.
    counts: Vec<Count>,
}

/// The operations of a burst, the same on all threads.
struct Count {
    now: AtomicU64,
    /// The least that was proposed since the last meeting.
    proposed: AtomicU64,
}

impl Default for Count {
    fn default() -> Self {
        Count {
            now: AtomicU64::new(1),
            proposed: AtomicU64::new(u64::MAX),
        }
    }
}

impl Meeting {
    /// Waits for all, to start the contender's burst at once. The operations it
    /// is to have; `None` if somebody has given up.
    fn start(&self, count: &Count) -> Option<u64> {
        if self.barrier.wait().is_leader() {
            let proposed = count.proposed.swap(u64::MAX, Ordering::Relaxed);
            if proposed != u64::MAX {
                count.now.store(proposed, Ordering::Relaxed);
            }
        }
        let failed = self.failed.load(Ordering::Relaxed);
        // nobody fails or proposes before all have looked
        self.barrier.wait();
        let count = count.now.load(Ordering::Relaxed);
        (!failed).then(|| count.div_ceil(self.whole).saturating_mul(self.whole))
    }
}

fn run(
    mut subjects: Vec<Subject<'_>>,
    cpu: usize,
    plan: &Plan,
    meeting: &Meeting,
) -> anyhow::Result<Vec<Series>> {
    let mut well = processors::pin(cpu);
    let mut series = vec![Series::default(); subjects.len()];
    let growing = plan.growing();
    for round in 0..growing + plan.bursts {
        let contenders = subjects.iter_mut().zip(&mut series).zip(&meeting.counts);
        for ((subject, series), count) in contenders {
            if well.is_err() {
                meeting.failed.store(true, Ordering::Relaxed);
            }
            let Some(operations) = meeting.start(count) else {
                return well.map(|()| Vec::new());
            };
            match subject(operations) {
                Ok(time) if round < growing => {
                    let next = next_count(operations, time, plan.length);
                    count.proposed.fetch_min(next, Ordering::Relaxed);
                }
                Ok(time) => series.push(time.as_nanos() as f64 / operations as f64),
                Err(error) => well = Err(error).context("while measuring"),
            }
        }
    }
    well.map(|()| series)
}

/// How many operations to try next, so that a burst becomes `wanted` long:
/// at most four times as many as before.
fn next_count(count: u64, took: Duration, wanted: Duration) -> u64 {
    let per_operation = took.as_nanos().max(1) / u128::from(count.max(1));
    let fitting = wanted.as_nanos() / per_operation.max(1);
    let fitting = u64::try_from(fitting).unwrap_or(u64::MAX);
    fitting.clamp(1, count.saturating_mul(4))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: Plan = Plan {
        bursts: 5,
        length: Duration::from_micros(50),
        whole: 1,
    };

    #[test]
    fn every_contender_has_its_bursts() {
        let subject = || {
            timed(|n| {
                std::hint::black_box((0..n).sum::<u64>());
                Ok(())
            })
        };
        let outcome = take_turns(vec![vec![subject(), idle()]], &PLAN).unwrap();
        assert!(outcome.of(0).figures().min > 0.0);
        assert_eq!(outcome.of(1).figures().median, 0.0);
    }

    #[test]
    fn bursts_are_whole() {
        let asked = std::sync::Mutex::new(Vec::new());
        let subject: Subject<'_> = Box::new(|operations| {
            asked.lock().unwrap().push(operations);
            Ok(Duration::from_micros(operations))
        });
        let plan = Plan { whole: 40, ..PLAN };
        take_turns(vec![vec![subject]], &plan).unwrap();
        // 80 are longer than they need be, 40 too short
        let last = asked.into_inner().unwrap().last().copied();
        assert_eq!(last, Some(80));
    }

    #[test]
    fn a_failure_ends_all_threads_and_is_told() {
        let others = processors::usable().unwrap().len().min(2) - 1;
        let failing: Subject<'_> = Box::new(|_| anyhow::bail!("no room"));
        let mut threads = vec![vec![failing]];
        threads.extend((0..others).map(|_| vec![idle()]));
        let outcome = take_turns(threads, &PLAN);
        assert!(format!("{:#}", outcome.unwrap_err()).contains("no room"));
    }

    #[test]
    fn counts_grow_towards_the_length() {
        assert_eq!(next_count(1, Duration::from_nanos(10), PLAN.length), 4);
        assert_eq!(
            next_count(1000, Duration::from_micros(10), PLAN.length),
            4000
        );
        assert_eq!(
            next_count(1000, Duration::from_micros(100), PLAN.length),
            500
        );
        assert_eq!(next_count(1, Duration::from_secs(1), PLAN.length), 1);
    }
}
