//! `xen-dm check`: what this host offers, what it lacks, and what helps.
//!
//! [`run`] gathers [`Facts`] from the host without changing anything on it and
//! judges them: each becomes a [`Line`] with a severity, what was found and
//! the remedy. Nothing needs privileges: what may not be asked is said to be
//! so. What could block (the kernel holds back an open, xenstored is silent)
//! is asked on a thread and given up after a bounded time.
//!
//! The command line calls it. The daemon asks the same questions at its start
//! by [`ask_ioreq_server`] and says what helps in the words of [`remedy`].
//!
//! # JSON
//!
//! `xen-dm check --json` prints one [`Report`]. Keys are only ever added;
//! [`Report::version`] counts up when one changes its meaning or goes.

mod facts;
mod judge;
mod probe;
pub mod remedy;
mod table;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use xen::Host;

pub use facts::{
    Eventfd, Facts, Features, FileFact, FileState, IoreqServer, Limits, OpenFiles, Route,
    XenstoreFact,
};
pub use judge::{Line, Severity, judge};
pub use probe::{FILES_OF_DEVICE, FILES_OF_GUEST, ask_ioreq_server, gather};
pub use table::print;

/// Version of [`Report`] as JSON.
pub const VERSION: u32 = 1;

/// What `xen-dm check` has found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Version of this structure, [`VERSION`].
    pub version: u32,
    /// Guests can be served here, by this user: no line is a problem.
    pub can_serve: bool,
    /// The facts judged, each line of the table, in its order.
    pub lines: Vec<Line>,
    /// The facts as they are.
    pub facts: Facts,
}

/// Looks at the host. Takes milliseconds, or some seconds where a part of it
/// does not answer.
#[must_use]
pub fn run(host: &Host) -> Report {
    let facts = gather(host);
    let lines = judge(&facts);
    Report {
        version: VERSION,
        can_serve: lines.iter().all(|line| line.severity != Severity::Problem),
        lines,
        facts,
    }
}
