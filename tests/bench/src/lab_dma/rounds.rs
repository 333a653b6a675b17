//! The rounds of the case, by what is asked of the disk.

use anyhow::ensure;
use serde::Serialize;

use crate::figures::Series;
use crate::lab::Said;

/// What is asked of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Kind {
    pub bytes: u32,
    pub access: Access,
}

/// Which way the data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    Read,
    Write,
}

/// All of them, in the table's order.
const KINDS: [Kind; 4] = [
    Kind::new(4096, Access::Read),
    Kind::new(4096, Access::Write),
    Kind::new(131_072, Access::Read),
    Kind::new(131_072, Access::Write),
];

impl Kind {
    const fn new(bytes: u32, access: Access) -> Self {
        Kind { bytes, access }
    }

    /// Its word in the notes.
    fn word(self) -> String {
        match self.access {
            Access::Read => format!("read-{}", self.bytes),
            Access::Write => format!("write-{}", self.bytes),
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let access = match self.access {
            Access::Read => "read",
            Access::Write => "write",
        };
        write!(f, "{:>4} KiB {access}", self.bytes / 1024)
    }
}

/// The rounds of one kind, by how the guest's data is reached.
pub struct Rounds {
    pub kind: Kind,
    pub map: Series,
    pub copy: Series,
    pub adaptive: Series,
}

/// The rounds of every kind.
///
/// # Errors
/// Where one is missing or is not what it should be.
pub fn read(said: &Said) -> anyhow::Result<Vec<Rounds>> {
    let rounds = count(said)?;
    let of = |kind: Kind, way: &str| {
        let series = said.rounds(&kind.word(), way)?;
        ensure!(
            series.len() == rounds,
            "the lab has {} rounds of {} {way} and {rounds} of others",
            series.len(),
            kind.word()
        );
        Ok(series)
    };
    KINDS
        .into_iter()
        .map(|kind| {
            Ok(Rounds {
                kind,
                map: of(kind, "map")?,
                copy: of(kind, "copy")?,
                adaptive: of(kind, "adaptive")?,
            })
        })
        .collect()
}

/// How many rounds there are.
///
/// # Errors
/// Where there are none.
pub fn count(said: &Said) -> anyhow::Result<usize> {
    let [first, ..] = KINDS;
    Ok(said.rounds(&first.word(), "map")?.len())
}

/// What the adaptive device says that it has learned.
pub fn learned(said: &Said) -> Option<String> {
    let mut notes = said.notes();
    notes
        .find(|note| note.starts_with("learned: "))
        .map(ToOwned::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lab's words with these rounds of everything, but `last` of the last.
    fn said(last: &str) -> Said {
        let words = KINDS.map(Kind::word);
        let notes = words.iter().flat_map(|word| {
            ["map", "copy", "adaptive"].map(|way| match (word.as_str(), way) {
                ("write-131072", "adaptive") => format!("; {word} {way} {last}"),
                _ => format!("; {word} {way} 20.5 30.0 10.0"),
            })
        });
        let notes: String = notes.collect();
        let text =
            format!("bench-dma ok 12.3 s; learned: this, and that{notes}\n1 passed, 0 failed\n");
        Said::of("bench-dma", text)
    }

    #[test]
    fn every_kind_has_its_rounds() {
        let said = said("1.0 3.0 2.0");

        let rounds = read(&said).unwrap();

        let kinds: Vec<_> = rounds.iter().map(|rounds| rounds.kind).collect();
        assert_eq!(kinds, KINDS);
        let mut medians = rounds.iter().map(|rounds| {
            let all = [&rounds.map, &rounds.copy, &rounds.adaptive];
            all.map(|series| series.figures().median)
        });
        let last = medians.next_back().unwrap();
        assert_eq!(last, [20.5, 20.5, 2.0]);
        assert_eq!(count(&said).unwrap(), 3);
        assert_eq!(learned(&said).unwrap(), "learned: this, and that");
    }

    #[test]
    fn rounds_that_are_missing_or_no_times_are_refused() {
        for last in ["1.0 2.0", "1.0 2.0 -3.0", "1.0 2.0 nan", "1.0 2.0 x"] {
            assert!(read(&said(last)).is_err(), "{last}");
        }
        for said in ["", "bench-dma ok 1 s", "bench-dma FAILED after 1 s: x"] {
            let said = Said::of("bench-dma", said.to_owned());
            assert!(read(&said).is_err());
        }
    }
}
