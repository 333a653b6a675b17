//! The report for people: a table of at most 100 columns.

use std::io::{self, Write};

use super::Report;
use crate::columns::wrap;

/// Columns of a line.
const WIDTH: usize = 98;
/// Columns before the text: severity and name.
const INDENT: usize = 24;

/// Writes the report.
///
/// # Errors
/// What `out` says.
pub fn print(report: &Report, out: &mut impl Write) -> io::Result<()> {
    for line in &report.lines {
        let name = line.id.replace('_', " ");
        let mut head = format!("{:<8} {name:<14} ", line.severity.name());
        for text in wrap(&line.found, WIDTH.saturating_sub(INDENT)) {
            writeln!(out, "{head:<INDENT$}{text}")?;
            head.clear();
        }
        let remedy = line.remedy.as_deref().unwrap_or_default();
        let mut mark = "-> ";
        for text in wrap(remedy, WIDTH.saturating_sub(INDENT).saturating_sub(3)) {
            writeln!(out, "{:<INDENT$}{mark}{text}", "")?;
            mark = "   ";
        }
    }
    writeln!(out)?;
    match report.can_serve {
        true => writeln!(out, "Guests can be served here."),
        false => writeln!(out, "No guest can be served here: see the problems above."),
    }
}
