//! Panels of bars, as SVG.

use std::path::Path;

use anyhow::anyhow;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// A value, and how it is said.
#[derive(Clone, Debug, PartialEq)]
pub struct Bar {
    pub label: String,
    pub value: f64,
    pub text: String,
    /// This project's, and not a peer's.
    pub ours: bool,
}

/// Bars that are compared with each other.
#[derive(Clone, Debug, PartialEq)]
pub struct Panel {
    pub title: String,
    pub bars: Vec<Bar>,
}

/// A picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Chart {
    pub title: String,
    /// Where it was measured.
    pub notes: Vec<String>,
    pub panels: Vec<Panel>,
}

// pixels
const WIDTH: i32 = 1000;
const MARGIN: i32 = 16;
const LINE: i32 = 20;
/// Of a panel: its labels, and its longest bar.
const LABELS: i32 = 200;
const LONGEST: i32 = 170;
const COLUMNS: usize = 2;

const OURS: RGBColor = RGBColor(0x1f, 0x6f, 0xb4);
const THEIRS: RGBColor = RGBColor(0xb5, 0xbd, 0xc6);
const INK: RGBColor = RGBColor(0x22, 0x22, 0x22);

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

impl Panel {
    fn height(&self) -> i32 {
        LINE * (2 + i32::try_from(self.bars.len()).unwrap_or(i32::MAX / LINE - 2)) + MARGIN
    }
}

impl Chart {
    /// Writes the picture.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn draw(&self, file: &Path) -> anyhow::Result<()> {
        self.try_draw(file)
            .map_err(|error| anyhow!("{}: {error}", file.display()))
    }

    fn try_draw(&self, file: &Path) -> Result<(), Box<dyn std::error::Error + '_>> {
        let rows: Vec<_> = self.panels.chunks(COLUMNS).collect();
        let height_of = |row: &&[Panel]| row.iter().map(Panel::height).max().unwrap_or(0);
        let notes = i32::try_from(self.notes.len())?;
        let head = 2 * MARGIN + LINE * (1 + notes);
        let height = head + rows.iter().map(height_of).sum::<i32>();
        let size = (u32::try_from(WIDTH)?, u32::try_from(height)?);
        let area = SVGBackend::new(file, size).into_drawing_area();
        area.fill(&WHITE).map_err(|error| error.to_string())?;
        write(&area, &self.title, (MARGIN, MARGIN), 17, HPos::Left)?;
        for (line, note) in (1..).zip(&self.notes) {
            write(
                &area,
                note,
                (MARGIN, MARGIN + 4 + LINE * line),
                12,
                HPos::Left,
            )?;
        }
        let mut top = head;
        for row in &rows {
            for (panel, column) in row.iter().zip(0..) {
                let left = MARGIN + column * WIDTH / i32::try_from(COLUMNS)?;
                draw_panel(&area, panel, (left, top))?;
            }
            top += height_of(row);
        }
        area.present().map_err(|error| error.to_string())?;
        Ok(())
    }
}

fn draw_panel(area: &Area<'_>, panel: &Panel, (left, top): (i32, i32)) -> Result<(), String> {
    write(area, &panel.title, (left, top), 14, HPos::Left)?;
    let most = panel.bars.iter().map(|bar| bar.value).fold(0.0, f64::max);
    let mut y = top + LINE + 4;
    for bar in &panel.bars {
        let start = left + LABELS;
        let end = start + length(bar.value / most);
        let color = if bar.ours { OURS } else { THEIRS };
        write(area, &bar.label, (start - 8, y), 13, HPos::Right)?;
        let corners = [(start, y), (end, y + LINE - 6)];
        area.draw(&Rectangle::new(corners, color.filled()))
            .map_err(|error| error.to_string())?;
        write(area, &bar.text, (end + 6, y), 13, HPos::Left)?;
        y += LINE;
    }
    Ok(())
}

/// Pixels of a bar that is this part of the longest.
#[expect(clippy::cast_possible_truncation, reason = "at most LONGEST")]
fn length(part: f64) -> i32 {
    let part = if part.is_finite() {
        part.clamp(0.0, 1.0)
    } else {
        0.0
    };
    (part * f64::from(LONGEST)).round() as i32
}

fn write(area: &Area<'_>, text: &str, at: (i32, i32), size: u32, side: HPos) -> Result<(), String> {
    let style = TextStyle::from(("sans-serif", size).into_font())
        .color(&INK)
        .pos(Pos::new(side, VPos::Top));
    area.draw(&Text::new(text.to_owned(), at, style))
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bar_is_drawn_with_its_words() {
        let bar = |label: &str, value| Bar {
            label: label.to_owned(),
            value,
            text: format!("{value} units"),
            ours: label == "own",
        };
        let panel = |title: &str| Panel {
            title: title.to_owned(),
            bars: vec![bar("own", 3.5), bar("other", 7.0)],
        };
        let chart = Chart {
            title: "what is shown".to_owned(),
            notes: vec!["where".to_owned()],
            panels: vec![panel("one"), panel("two"), panel("three")],
        };
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("chart.svg");

        chart.draw(&file).unwrap();

        let svg = std::fs::read_to_string(file).unwrap();
        for word in ["what is shown", "where", "one", "two", "three"] {
            assert_eq!(svg.matches(&format!("\n{word}\n")).count(), 1, "{word}");
        }
        assert_eq!(svg.matches("3.5 units").count(), 3);
        // the background, and a bar for each
        assert_eq!(svg.matches("<rect").count(), 7);
    }

    #[test]
    fn a_bar_is_as_long_as_its_part_and_no_number_has_none() {
        assert_eq!(length(0.5), LONGEST / 2);
        assert_eq!(length(f64::NAN), 0);
        assert_eq!(length(7.0), LONGEST);
    }
}
