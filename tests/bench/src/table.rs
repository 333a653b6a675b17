//! A table that is printed row by row as it is measured.

/// A column: its head, and how wide it is.
pub struct Column(pub &'static str, pub usize);

/// The columns of a table. The first one is for names and stands left.
pub struct Table<const N: usize>(pub [Column; N]);

impl<const N: usize> Table<N> {
    /// Prints the heads.
    pub fn head(&self) {
        let heads = self.0.each_ref().map(|column| column.0.to_owned());
        self.row(&heads);
        println!(
            "{}",
            "─".repeat(self.0.iter().map(|column| column.1 + 1).sum())
        );
    }

    /// Prints a row.
    pub fn row(&self, cells: &[String; N]) {
        let mut line = String::new();
        for (index, (cell, Column(_, width))) in cells.iter().zip(&self.0).enumerate() {
            let cell = match index {
                0 => format!("{cell:<width$} "),
                _ => format!("{cell:>width$} "),
            };
            line.push_str(&cell);
        }
        println!("{}", line.trim_end());
    }
}

/// Nanoseconds: with one digit below ten, so that small ones can be compared.
pub fn nanoseconds(value: f64) -> String {
    match value {
        value if value < 100.0 => format!("{value:.1}"),
        value => format!("{value:.0}"),
    }
}

/// A ratio.
pub fn ratio(value: f64) -> String {
    match value {
        value if value < 10.0 => format!("{value:.2}"),
        value => format!("{value:.1}"),
    }
}

/// A cell that may be empty.
pub fn cell<T>(value: Option<T>, text: impl Fn(T) -> String) -> String {
    value.map_or_else(|| "–".to_owned(), text)
}
