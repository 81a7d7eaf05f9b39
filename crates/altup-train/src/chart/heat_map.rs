//! A table of numbers whose cells have colours.

use super::axis::{number, short_number};
use super::svg::{Anchor, Area, Svg, lines, shortened, text_width};
use super::theme::Font;

/// A table of numbers: positive ones in one colour, negative ones in another, the stronger the further from zero.
#[derive(Clone, Debug)]
pub struct HeatMap {
    /// What the numbers are.
    pub title: String,
    /// The names of the rows, from above.
    pub rows: Vec<String>,
    /// The columns, in groups.
    pub groups: Vec<ColumnGroup>,
    /// The numbers of each row, over the columns of all groups. What isn't finite is left empty.
    pub values: Vec<Vec<f64>>,
    /// Pixels.
    pub width: f64,
}

/// Columns that stand together.
#[derive(Clone, Debug)]
pub struct ColumnGroup {
    /// What they are.
    pub name: String,
    /// The names of the columns.
    pub columns: Vec<String>,
}

const EDGE: f64 = 18.0;
const ROW: f64 = 24.0;
const GAP: f64 = 14.0;
/// No wider, so that a table of few columns still looks like one.
const WIDEST_CELL: f64 = 72.0;
/// How much of the ground the strongest colour covers: the number on it stays readable.
const STRONGEST: f64 = 0.7;

impl HeatMap {
    /// The chart as an SVG document.
    pub fn svg(&self) -> String {
        let (svg, height) = self.drawn();
        svg.document(height, &self.title, &self.description())
    }

    fn drawn(&self) -> (Svg, f64) {
        let mut svg = Svg::new(self.width);
        let mut y = EDGE + 6.0;
        for line in lines(Font::Title, &self.title, self.width - 2.0 * EDGE) {
            svg.text(Font::Title, Anchor::Start, (EDGE, y), &line);
            y += 21.0;
        }
        let finite = self.values.iter().flatten().filter(|value| value.is_finite());
        let largest = finite.map(|value| value.abs()).fold(0.0, f64::max);
        let columns: usize = self.groups.iter().map(|group| group.columns.len()).sum();
        let rows = self.rows.iter().map(|row| text_width(Font::Name, row));
        let left = EDGE + rows.fold(0.0, f64::max).min(self.width / 3.0) + 8.0;
        let gaps = self.groups.len().saturating_sub(1) as f64 * GAP;
        let cell = ((self.width - EDGE - left - gaps) / columns.max(1) as f64).min(WIDEST_CELL);

        let step = 10f64.powf(largest.log10().floor() - 2.0);
        let text = |value: f64| match step > 0.0 {
            true => number((value / step).round() * step, step),
            false => short_number(value),
        };
        // Names of columns and numbers that don't fit are in the hints alone.
        let fits = |text: &str| text_width(Font::Note, text) + 4.0 <= cell;
        let names = self.groups.iter().flat_map(|group| &group.columns);
        let shows_names = { names }.all(|name| fits(name));
        let shows_numbers = self.values.iter().flatten().all(|&value| fits(&text(value)));

        let starts = self.group_starts(left, cell);
        for (group, &start) in self.groups.iter().zip(&starts) {
            let width = group.columns.len() as f64 * cell;
            let name = shortened(Font::Name, &group.name, width + GAP / 2.0);
            svg.text(Font::Name, Anchor::Start, (start, y), &name);
            for (number, column) in group.columns.iter().enumerate().filter(|_| shows_names) {
                let middle = start + (number as f64 + 0.5) * cell;
                svg.text(Font::Note, Anchor::Middle, (middle, y + 20.0), column);
            }
        }
        y += if shows_names { 34.0 } else { 14.0 };

        for (row, values) in self.rows.iter().zip(&self.values) {
            let name = shortened(Font::Name, row, left - EDGE - 8.0);
            svg.text(Font::Name, Anchor::End, (left - 8.0, y + ROW / 2.0), &name);
            let mut values = values.iter();
            for (group, &start) in self.groups.iter().zip(&starts) {
                for ((number, column), &value) in group.columns.iter().enumerate().zip(&mut values)
                {
                    let x = start + number as f64 * cell;
                    // Cells that are too narrow for it have no gap between them.
                    let gap = if cell > 2.0 { 0.5 } else { 0.0 };
                    let area = Area {
                        left: x + gap,
                        top: y + 0.5,
                        right: x + cell - gap,
                        bottom: y + ROW - 0.5,
                    };
                    let hint = format!("{row}, {column}: {}", short_number(value));
                    draw_cell(&mut svg, area, value, largest, &hint);
                    if shows_numbers && value.is_finite() {
                        let middle = (x + cell / 2.0, y + ROW / 2.0);
                        svg.text(Font::Name, Anchor::Middle, middle, &text(value));
                    }
                }
            }
            y += ROW;
        }
        y += 14.0;
        self.draw_key(&mut svg, (left, y), largest);
        (svg, y + 18.0)
    }

    fn group_starts(&self, left: f64, cell: f64) -> Vec<f64> {
        let mut start = left;
        let starts = self.groups.iter().map(|group| {
            let here = start;
            start += group.columns.len() as f64 * cell + GAP;
            here
        });
        starts.collect()
    }

    /// What the colours mean.
    fn draw_key(&self, svg: &mut Svg, (left, y): (f64, f64), largest: f64) {
        const STEPS: i32 = 5;
        const STEP: f64 = 14.0;
        let (low, high) = (short_number(-largest), short_number(largest));
        svg.text(Font::Note, Anchor::Start, (left, y), &low);
        let mut x = left + text_width(Font::Note, &low) + 6.0;
        for step in -STEPS..=STEPS {
            let value = largest * f64::from(step) / f64::from(STEPS);
            let area = Area { left: x, top: y - 6.0, right: x + STEP, bottom: y + 6.0 };
            draw_cell(svg, area, value, largest, &short_number(value));
            x += STEP;
        }
        svg.text(Font::Note, Anchor::Start, (x + 6.0, y), &high);
    }

    /// What the chart shows, in words.
    fn description(&self) -> String {
        let names: Vec<&str> =
            self.groups.iter().flat_map(|group| &group.columns).map(String::as_str).collect();
        let rows = self.rows.iter().zip(&self.values).map(|(row, values)| {
            let cells = names.iter().zip(values);
            let cells = cells.map(|(name, value)| format!("{name} {}", short_number(*value)));
            format!("{row}: {}.", cells.collect::<Vec<_>>().join(", "))
        });
        rows.collect::<Vec<_>>().join(" ")
    }
}

fn draw_cell(svg: &mut Svg, area: Area, value: f64, largest: f64, hint: &str) {
    if !value.is_finite() {
        return;
    }
    let strength = if largest > 0.0 { STRONGEST * value.abs() / largest } else { 0.0 };
    let class = if value < 0.0 { "f0" } else { "f1" };
    svg.rectangle(class, area, &format!(" fill-opacity=\"{strength:.3}\""), hint);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(columns: usize) -> HeatMap {
        let names =
            |letter: char, count: usize| (0..count).map(|n| format!("{letter}{n}")).collect();
        let values = |row: usize| (0..columns + 2).map(|n| n as f64 - row as f64).collect();
        HeatMap {
            title: "p & g".into(),
            rows: (0..3).map(|row| format!("encoder {row}")).collect(),
            groups: vec![
                ColumnGroup { name: "p".into(), columns: names('p', columns) },
                ColumnGroup { name: "g".into(), columns: names('g', 2) },
            ],
            values: (0..3).map(values).collect(),
            width: 520.0,
        }
    }

    #[test]
    fn cells_are_as_strong_as_their_values() {
        let svg = map(2).svg();
        let cells: Vec<&str> = svg
            .lines()
            .filter(|line| line.starts_with("<rect class=\"f") && line.contains("encoder"))
            .collect();
        assert_eq!(cells.len(), 3 * 4);
        assert!(svg.contains(">0</text>"), "a zero has no digits behind its point");
        // The last row holds -2, -1, 0, 1, and the largest value is the first row's 3.
        let strengths = ["0.467", "0.233", "0.000", "0.233"];
        let classes = ["f0", "f0", "f1", "f1"];
        for ((cell, strength), class) in cells[8..].iter().zip(strengths).zip(classes) {
            assert!(
                cell.contains(&format!("class=\"{class}\" fill-opacity=\"{strength}\"")),
                "{cell}"
            );
        }
        assert!(cells[8].contains("<title>encoder 2, p0: -2.00</title>"), "{}", cells[8]);
        assert!(svg.contains(">-2.00</text>"), "the number stands in its cell");
    }

    #[test]
    fn what_has_no_room_is_left_to_hints() {
        for columns in [1, 4, 16, 64, 420, 4096] {
            let map = map(columns);
            let (svg, height) = map.drawn();
            for width in map.svg().split(" width=\"").skip(2) {
                let width: f64 = width.split_once('"').unwrap().0.parse().unwrap();
                assert!(width >= 0.0, "{columns}: {width}");
            }
            let picture = Area { left: 0.0, top: 0.0, right: map.width, bottom: height };
            for (index, area) in svg.texts().iter().enumerate() {
                assert!(area.lies_in(&picture), "{columns}: {area:?}");
                let others = &svg.texts()[..index];
                assert!(!others.iter().any(|other| other.overlaps(area)), "{columns}: {area:?}");
            }
        }
        assert!(!map(64).svg().contains(">p63</text>"));
        assert!(map(64).svg().contains("<title>encoder 0, p63: 63.0</title>"));
    }

    #[test]
    fn any_numbers_can_be_shown() {
        let mut map = map(2);
        map.values = vec![vec![0.0; 4], vec![f64::NAN, f64::INFINITY, 0.0, 0.0]];
        let svg = map.svg();
        assert!(!svg.contains("\"NaN") && !svg.contains("\"inf"), "{svg}");
    }
}
