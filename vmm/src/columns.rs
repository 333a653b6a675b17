//! Text in columns, for people at a terminal: wrapped words and tables whose
//! columns are as wide as what is in them.

use std::io::{self, Write};

/// The words of `text`, in lines of at most `width` characters; a longer word
/// has a line of its own. Nothing for no words.
#[must_use]
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        let fits = |line: &&mut String| {
            let len = line.chars().count().saturating_add(1);
            len.saturating_add(word.chars().count()) <= width
        };
        match lines.last_mut().filter(fits) {
            Some(line) => {
                line.push(' ');
                line.push_str(word);
            }
            None => lines.push(word.to_owned()),
        }
    }
    lines
}

/// What a terminal must not get from others' texts is replaced.
#[must_use]
pub fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

/// A table with a heading.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns.
    #[must_use]
    pub fn new(heading: &[&str]) -> Self {
        let heading = heading.iter().map(ToString::to_string).collect();
        Table {
            rows: vec![heading],
        }
    }

    /// Adds a row; control characters in it are replaced.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows
            .push(cells.into_iter().map(|cell| printable(&cell)).collect());
    }

    /// Writes it, each line behind `indent` spaces.
    ///
    /// # Errors
    /// What `out` says.
    pub fn print(&self, indent: usize, out: &mut impl Write) -> io::Result<()> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns)
            .map(|column| {
                let cells = self.rows.iter().filter_map(|row| row.get(column));
                cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
            })
            .collect();
        for row in &self.rows {
            let mut line = " ".repeat(indent);
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(&format!("{cell:<width$}  "));
            }
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_wrapped_and_long_ones_stand_alone() {
        let lines = wrap("one two  three extraordinary four", 9);

        assert_eq!(lines, ["one two", "three", "extraordinary", "four"]);
        assert!(wrap("  ", 9).is_empty());
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["a", "b"]);
        table.row(["long".into(), "x".into()]);
        table.row(["\u{1b}[31m".into(), "y".into()]);
        let mut out = Vec::new();

        table.print(1, &mut out).unwrap();

        let text = String::from_utf8(out).unwrap();
        assert_eq!(text, " a      b\n long   x\n \u{fffd}[31m  y\n");
    }
}
