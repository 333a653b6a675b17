//! Cases of the lab that measure, and what they say: "CASE ok SECONDS s; NOTE;
//! NOTE …", with notes "KIND WAY MICROSECONDS…" that have a figure for each
//! round.

use std::process::{Command, Stdio};

use anyhow::{Context, ensure};

use crate::figures::Series;

/// What a case has said.
pub struct Said {
    case: &'static str,
    text: String,
}

impl Said {
    /// Runs a case. How far it is stands on standard error.
    ///
    /// # Errors
    /// A case that fails, with what the lab printed.
    pub fn by(case: &'static str) -> anyhow::Result<Self> {
        let output = Command::new("tests/lab/lab")
            .args(["run", case])
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .context("running tests/lab/lab: is this the project's root?")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "the lab failed:\n{text}");
        Ok(Said::of(case, text))
    }

    /// The words of a run that is over.
    pub fn of(case: &'static str, text: String) -> Self {
        Said { case, text }
    }

    /// Its notes, in their order.
    pub fn notes(&self) -> impl Iterator<Item = &str> {
        let head = format!("{} ok ", self.case);
        self.text
            .lines()
            .filter(move |line| line.starts_with(&head))
            .flat_map(|line| line.split("; ").skip(1))
    }

    /// The rounds of one kind of requests and one way of serving them.
    ///
    /// # Errors
    /// There are none, or one is no time.
    pub fn rounds(&self, kind: &str, way: &str) -> anyhow::Result<Series> {
        let wanted = |note: &&str| {
            let mut words = note.split(' ');
            words.next() == Some(kind) && words.next() == Some(way)
        };
        let note = self.notes().find(wanted);
        let note = note.with_context(|| format!("the lab says nothing of {kind} {way}"))?;
        let mut series = Series::default();
        for text in note.split(' ').skip(2) {
            let figure = text.parse().ok().filter(|figure: &f64| *figure > 0.0);
            let figure = figure.filter(|figure| figure.is_finite());
            series.push(figure.with_context(|| format!("'{text}' of {kind} {way} is no time"))?);
        }
        ensure!(
            series.len() > 0,
            "the lab has measured nothing of {kind} {way}"
        );
        Ok(series)
    }
}
