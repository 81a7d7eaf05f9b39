//! Grouped horizontal bars.

use super::axis::short_number;
use super::svg::{Anchor, Area, Svg, lines, shortened, text_width};
use super::theme::{Font, series_color};

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
    /// From where to where the value may lie.
    pub range: Option<(f64, f64)>,
}

const WIDTH: f64 = 720.0;
const EDGE: f64 = 18.0;
const BAR: f64 = 18.0;
const GAP: f64 = 12.0;

impl BarChart {
    /// The chart as an SVG document.
    pub fn svg(&self) -> String {
        let (svg, height) = self.drawn();
        svg.document(height, &self.title, &self.description())
    }

    fn bars(&self) -> impl Iterator<Item = &Bar> {
        self.groups.iter().flat_map(|group| &group.bars)
    }

    fn drawn(&self) -> (Svg, f64) {
        let mut names: Vec<&str> = Vec::new();
        for bar in self.bars() {
            if !names.contains(&bar.name.as_str()) {
                names.push(&bar.name);
            }
        }
        let mut svg = Svg::new(WIDTH);
        let mut y = EDGE + 6.0;
        for line in lines(Font::Title, &self.title, WIDTH - 2.0 * EDGE) {
            svg.text(Font::Title, Anchor::Start, (EDGE, y), &line);
            y += 21.0;
        }
        y += 4.0;

        let widest = |widths: &mut dyn Iterator<Item = f64>| widths.fold(0.0, f64::max);
        let group_names = self.groups.iter().map(|group| text_width(Font::Name, &group.name));
        let left = EDGE + widest(&mut { group_names }).min(180.0) + 8.0;
        let beside = widest(&mut self.bars().map(|bar| text_width(Font::Note, &caption(bar))));
        let room = (WIDTH - EDGE - left - beside.min(300.0) - 8.0).max(100.0);
        let end = |bar: &Bar| bar.range.map_or(bar.value, |range| range.1.max(bar.value));
        let longest = self.bars().map(end).filter(|end| end.is_finite());
        let scale = room / longest.fold(f64::MIN_POSITIVE, f64::max);

        for group in &self.groups {
            let middle = y + group.bars.len() as f64 * BAR / 2.0;
            let name = shortened(Font::Name, &group.name, left - EDGE - 8.0);
            svg.text(Font::Name, Anchor::End, (left - 8.0, middle), &name);
            for bar in &group.bars {
                let color = names.iter().position(|name| *name == bar.name).unwrap_or_default();
                let color = series_color(color);
                let middle = y + BAR / 2.0;
                let reach = |value: f64| left + (value * scale).clamp(0.0, room);
                let area = Area {
                    left,
                    top: y + 1.5,
                    right: reach(bar.value).max(left + 1.0),
                    bottom: y + BAR - 1.5,
                };
                let hint = format!("{}, {}", group.name, caption(bar));
                svg.rectangle(&format!("f{color}"), area, "", &hint);
                if let Some((low, high)) = bar.range {
                    let (low, high) = (reach(low), reach(high));
                    svg.line("a", (low, middle), (high, middle));
                    for x in [low, high] {
                        svg.line("a", (x, middle - 3.0), (x, middle + 3.0));
                    }
                }
                let x = reach(end(bar)).max(left + 1.0) + 6.0;
                let text = shortened(Font::Note, &caption(bar), WIDTH - x - 4.0);
                svg.text(Font::Note, Anchor::Start, (x, middle), &text);
                y += BAR;
            }
            y += GAP;
        }
        (svg, y + 4.0)
    }

    /// What the chart shows, in words.
    fn description(&self) -> String {
        let groups = self.groups.iter().map(|group| {
            let bars: Vec<String> = group.bars.iter().map(caption).collect();
            format!("{}: {}.", group.name, bars.join(", "))
        });
        groups.collect::<Vec<_>>().join(" ")
    }
}

fn caption(bar: &Bar) -> String {
    format!("{} {}", short_number(bar.value), bar.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bar(name: &str, value: f64) -> Bar {
        Bar { name: name.into(), value, range: None }
    }

    fn chart() -> BarChart {
        let group = |name: &str, bars| Group { name: name.into(), bars };
        BarChart {
            title: "ms".into(),
            groups: vec![
                group("dense", vec![bar("flex", 10.0), bar("tch", 5.0)]),
                group("altup <2>", vec![Bar { range: Some((18.0, 22.0)), ..bar("flex", 20.0) }]),
            ],
        }
    }

    #[test]
    fn bars_are_as_long_as_their_values() {
        let svg = chart().svg();
        let bars = svg.lines().filter(|line| line.starts_with("<rect class=\"f"));
        let attribute = |line: &str, name: &str| -> String {
            let (_, value) = line.split_once(&format!(" {name}=\"")).unwrap();
            value.split_once('"').unwrap().0.to_owned()
        };
        let widths: Vec<f64> =
            bars.clone().map(|line| attribute(line, "width").parse().unwrap()).collect();
        assert_eq!(widths.len(), 3);
        assert!((widths[0] / widths[1] - 2.0).abs() < 0.02, "{widths:?}");
        assert!((widths[2] / widths[0] - 2.0).abs() < 0.02, "{widths:?}");
        let classes: Vec<&str> = bars.map(|line| &line[13..15]).collect();
        assert_eq!(classes, ["f0", "f1", "f0"], "a name has one colour");
        assert!(svg.contains(">20.0 flex<") && svg.contains(">altup &lt;2&gt;<"), "{svg}");
        assert!(svg.contains("<desc>dense: 10.0 flex, 5.00 tch. altup"), "{svg}");
    }

    #[test]
    fn texts_stay_apart_and_in_the_picture() {
        let mut chart = chart();
        chart.title = "a long title ".repeat(12);
        chart.groups[0].name = "a group with a name that takes more than its room".into();
        chart.groups[0].bars.push(bar("a side with a very long name, ".repeat(4).trim(), 20.0));
        chart.groups[1].bars.push(bar("nothing", 0.0));
        let (svg, height) = chart.drawn();
        let picture = Area { left: 0.0, top: 0.0, right: WIDTH, bottom: height };
        for (index, area) in svg.texts().iter().enumerate() {
            assert!(area.lies_in(&picture), "{area:?}");
            assert!(!svg.texts()[..index].iter().any(|other| other.overlaps(area)), "{area:?}");
        }
    }
}
