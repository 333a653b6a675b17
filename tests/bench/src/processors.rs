//! Processors and clocks.

use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

/// The processors that this process may use.
///
/// # Errors
/// Where the kernel does not tell.
pub fn usable() -> anyhow::Result<Vec<usize>> {
    let set = sched_getaffinity(None).context("which processors may be used")?;
    Ok((0..CpuSet::MAX_CPU)
        .filter(|&cpu| set.is_set(cpu))
        .collect())
}

/// The processors for a number of threads, one for each. The last ones, as
/// interrupts favour the first.
///
/// # Errors
/// Where there are fewer.
pub fn for_threads(threads: usize) -> anyhow::Result<Vec<usize>> {
    let usable = usable()?;
    ensure!(
        threads <= usable.len(),
        "{threads} threads need as many processors, and {} may be used",
        usable.len()
    );
    Ok(usable.into_iter().rev().take(threads).collect())
}

/// Keeps the calling thread on one processor.
///
/// # Errors
/// Where it may not be used.
pub fn pin(cpu: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).with_context(|| format!("pinning a thread to processor {cpu}"))
}

/// The processor time that the calling thread has had. A burst in which another
/// process had the processor is as long by it as one in which none had.
pub fn thread_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    Duration::from_secs(seconds) + Duration::from_nanos(u64::try_from(now.tv_nsec).unwrap_or(0))
}
