//! Processors and clocks.

use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, ensure};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

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
    keep_to(&[cpu])
}

/// Keeps the calling thread, and whatever it starts, on these processors.
///
/// # Errors
/// Where none of them may be used.
pub fn keep_to(cpus: &[usize]) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    cpus.iter().for_each(|&cpu| set.set(cpu));
    sched_setaffinity(None, &set)
        .with_context(|| format!("keeping a thread to the processors {cpus:?}"))
}

/// The processor time that the calling thread has had. A burst in which another
/// process had the processor is as long by it as one in which none had.
pub fn thread_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    Duration::from_secs(seconds) + Duration::from_nanos(u64::try_from(now.tv_nsec).unwrap_or(0))
}

/// Where a client and its back end run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// On one processor: what a request costs both is added, and none of them
    /// ever waits for an idle processor to wake up.
    Together,
    /// On processors of their own. In a virtual machine an idle one takes 20 µs
    /// and more to wake up, which says nothing of either.
    Apart,
    /// Wherever the kernel puts them.
    Anywhere,
}

/// The processor that a client of back ends has.
///
/// # Errors
/// Where the kernel does not tell.
pub fn of_client() -> anyhow::Result<usize> {
    usable_at_start()?
        .last()
        .copied()
        .context("no processor may be used")
}

/// The processors that back ends have: the client's, or all the others.
///
/// # Errors
/// Where the kernel does not tell, or there are no others.
pub fn of_backends(layout: Layout) -> anyhow::Result<Vec<usize>> {
    let all = usable_at_start()?;
    match (layout, all.split_last()) {
        (Layout::Together, Some((own, _))) => Ok(vec![*own]),
        (Layout::Apart, Some((_, others))) if !others.is_empty() => Ok(others.to_vec()),
        (Layout::Anywhere, Some(_)) => Ok(all),
        _ => anyhow::bail!("{} processors may be used, too few", all.len()),
    }
}

/// Those of this process before it kept itself to any.
fn usable_at_start() -> anyhow::Result<Vec<usize>> {
    static ALL: OnceLock<Vec<usize>> = OnceLock::new();
    if let Some(all) = ALL.get() {
        return Ok(all.clone());
    }
    let all = usable()?;
    Ok(ALL.get_or_init(|| all).clone())
}
