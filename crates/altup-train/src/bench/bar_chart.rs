//! Grouped horizontal bars as SVG text.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::chart::{ChartError, PALETTE};

/// Groups of bars on one scale from zero.
#[derive(Clone, Debug)]
pub struct BarChart {
    /// What the bars show, with its unit.
    pub title: String,
    /// The groups, from above.
    pub groups: Vec<Group>,
}

/// Bars that are compared.
#[derive(Clone, Debug)]
pub struct Group {
    /// Its label.
    pub name: String,
    /// The bars, from above. Bars of one name have one colour in all groups.
    pub bars: Vec<Bar>,
}

/// One bar.
#[derive(Clone, Debug)]
pub struct Bar {
    /// Its name.
    pub name: String,
    /// Its length, at least 0.
    pub value: f64,
}

const WIDTH: i32 = 720;
const LABELS: i32 = 110;
const BAR: i32 = 16;
const GAP: i32 = 12;
const TOP: i32 = 40;

impl BarChart {
    /// The chart.
    ///
    /// # Errors
    ///
    /// If plotters can't draw it.
    pub fn svg(&self) -> Result<String, ChartError> {
        let mut names: Vec<&str> = Vec::new();
        let bars = self.groups.iter().flat_map(|group| &group.bars);
        for bar in bars.clone() {
            if !names.contains(&bar.name.as_str()) {
                names.push(&bar.name);
            }
        }
        let longest = bars.clone().map(|bar| bar.value).fold(f64::MIN_POSITIVE, f64::max);
        let height = TOP + self.groups.len() as i32 * GAP + bars.count() as i32 * BAR;
        // Room for the name and the value beside the longest bar.
        let scale = f64::from(WIDTH - LABELS - 150) / longest;
        let mut svg = String::new();
        {
            let canvas = SVGBackend::with_string(&mut svg, (WIDTH as u32, height as u32));
            let canvas = canvas.into_drawing_area();
            canvas.fill(&WHITE)?;
            let text = |text: &str, place: (i32, i32), size: f64, anchor: HPos| {
                let style = ("sans-serif", size).into_font().color(&BLACK);
                canvas.draw_text(text, &style.pos(Pos::new(anchor, VPos::Center)), place)
            };
            text(&self.title, (10, 18), 16.0, HPos::Left)?;
            let mut y = TOP;
            for group in &self.groups {
                let middle = y + group.bars.len() as i32 * BAR / 2;
                text(&group.name, (LABELS - 8, middle), 13.0, HPos::Right)?;
                for bar in &group.bars {
                    let color = names.iter().position(|name| *name == bar.name).unwrap_or_default();
                    let end = LABELS + (bar.value * scale) as i32;
                    let corners = [(LABELS, y + 1), (end.max(LABELS + 1), y + BAR - 1)];
                    canvas
                        .draw(&Rectangle::new(corners, PALETTE[color % PALETTE.len()].filled()))?;
                    let label = format!("{} {}", short(bar.value), bar.name);
                    text(&label, (end + 5, y + BAR / 2), 11.0, HPos::Left)?;
                    y += BAR;
                }
                y += GAP;
            }
            canvas.present()?;
        }
        Ok(svg)
    }
}

/// About three digits.
fn short(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_long_as_their_values() {
        let bar = |name: &str, value| Bar { name: name.into(), value };
        let group = |name: &str, bars| Group { name: name.into(), bars };
        let chart = BarChart {
            title: "ms".into(),
            groups: vec![
                group("dense", vec![bar("flex", 10.0), bar("tch", 5.0)]),
                group("altup", vec![bar("flex", 20.0)]),
            ],
        };
        let svg = chart.svg().unwrap();
        let widths: Vec<f64> = svg
            .split("<rect ")
            .skip(2) // What is before the first, and the background.
            .map(|rect| {
                let width = rect.split("width=\"").nth(1).unwrap();
                width.split('"').next().unwrap().parse().unwrap()
            })
            .collect();
        assert_eq!(widths.len(), 3);
        assert!((widths[0] / widths[1] - 2.0).abs() < 0.02, "{widths:?}");
        assert!((widths[2] / widths[0] - 2.0).abs() < 0.02, "{widths:?}");
        assert!(svg.contains("20.0 flex") && svg.contains("dense"));
    }
}
