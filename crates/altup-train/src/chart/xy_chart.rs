//! Curves and scattered points over two axes.

use super::axis::{Axis, Range, Tick, short_number};
use super::curve::{Place, below, fitted, focus, moving_mean, thinned};
use super::svg::{Anchor, Area, Svg, lines, shortened, text_area, text_width};
use super::theme::{Font, dashes, series_color};

/// A chart of curves or points over two axes.
///
/// Learning curves are what it is made for: a noisy curve gets its mean drawn on top, and the huge losses of the
/// first steps do not squash all that follows.
#[derive(Clone, Debug)]
pub struct XyChart {
    /// What the chart shows, drawn above it.
    pub title: String,
    /// From left to right.
    pub x: Axis,
    /// From below.
    pub y: Axis,
    /// What is drawn, in this order.
    pub series: Vec<Series>,
    /// Width and height in pixels.
    pub size: (f64, f64),
}

/// One curve, or points of one kind.
#[derive(Clone, Debug)]
pub struct Series {
    /// Name in the legend.
    pub name: String,
    /// The points; those of a curve in the order of x. What isn't finite is left out.
    pub points: Vec<Point>,
    /// Number of a colour. They repeat after the sixth, with dashes.
    pub color: usize,
    /// How it is drawn.
    pub style: Style,
}

/// A point, and how sure it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Point {
    /// Its place on the x axis.
    pub x: f64,
    /// Its place on the y axis.
    pub y: f64,
    /// From where to where x may lie: an error bar.
    pub x_range: Option<(f64, f64)>,
    /// From where to where y may lie: of a curve without dots a band, else an error bar.
    pub y_range: Option<(f64, f64)>,
    /// A name that stands beside the point where there is room, and in its hint; may be empty.
    pub label: String,
}

impl From<(f64, f64)> for Point {
    fn from((x, y): (f64, f64)) -> Self {
        Self { x, y, ..Self::default() }
    }
}

/// How a series is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// A line, with a band around it where its points have a range.
    Line,
    /// A line with a dot at each point, for curves of few points.
    Marked,
    /// The moving mean as a line over the faint raw curve, or over the band of its ranges, for noisy curves.
    Smoothed,
    /// Only the moving mean, faint, for curves that are the background of others.
    Faint,
    /// Dots.
    Scattered,
    /// Dots, and the line through them with the least squares, straight on these axes.
    Fitted,
}

impl Style {
    fn has_dots(self) -> bool {
        matches!(self, Self::Marked | Self::Scattered | Self::Fitted)
    }

    fn may_be_cut(self) -> bool {
        matches!(self, Self::Smoothed | Self::Faint | Self::Line | Self::Marked)
    }
}

impl Series {
    /// A series of the first colour.
    pub fn new<P: Into<Point>>(
        name: &str,
        points: impl IntoIterator<Item = P>,
        style: Style,
    ) -> Self {
        let points = points.into_iter().map(Into::into).collect();
        Self { name: name.to_owned(), points, color: 0, style }
    }

    /// The same in another colour.
    pub fn color(self, color: usize) -> Self {
        Self { color, ..self }
    }
}

const EDGE: f64 = 18.0;
const LINE: f64 = 19.0;
const DOT: f64 = 3.5;

impl XyChart {
    /// Size of a chart that takes the whole width of a report.
    pub const WIDE: (f64, f64) = (1080.0, 420.0);
    /// Size of a chart of which two stand side by side in a report.
    pub const HALF: (f64, f64) = (520.0, 330.0);

    /// The chart as an SVG document.
    pub fn svg(&self) -> String {
        self.drawn().document(self.size.1, &self.title, &self.description())
    }

    fn drawn(&self) -> Svg {
        let (width, height) = self.size;
        let mut svg = Svg::new(width);
        let drawn: Vec<Drawn<'_>> =
            self.series.iter().map(|series| Drawn::of(series, &self.x, &self.y)).collect();
        let drawn: Vec<Drawn<'_>> =
            drawn.into_iter().filter(|drawn| !drawn.points.is_empty()).collect();

        let mut top = EDGE + 6.0;
        for line in lines(Font::Title, &self.title, width - 2.0 * EDGE) {
            svg.text(Font::Title, Anchor::Start, (EDGE, top), &line);
            top += LINE + 2.0;
        }
        svg.text(Font::Note, Anchor::Start, (EDGE, top), &self.y.caption());
        if drawn.is_empty() {
            svg.text(Font::Note, Anchor::Middle, (width / 2.0, height / 2.0), "no data");
            return svg;
        }

        let (x, y, highest) = self.ranges(&drawn);
        if y.high < highest {
            let text = format!("cut off above; highest {}", short_number(y.scale.value(highest)));
            let place = (width - EDGE, top);
            let room = text_area(Font::Note, Anchor::End, place, &text);
            if svg.texts().iter().any(|area| area.overlaps(&room)) {
                top += LINE;
            }
            svg.text(Font::Note, Anchor::End, (width - EDGE, top), &text);
        }
        top = legend(&mut svg, &drawn, width, top + LINE + 2.0);

        let bottom = height - 50.0;
        let y_ticks = y.ticks(((bottom - top) / 34.0) as usize);
        let widest = y_ticks.iter().map(|(_, text)| text_width(Font::Note, text));
        let left = EDGE + widest.fold(12.0, f64::max) + 8.0;
        let frame = Area { left, top, right: width - EDGE, bottom };
        let frame = Frame { area: frame, x, y };
        frame.draw_axes(&mut svg, &y_ticks, &self.x.caption());
        // Below all lines, and the fainter the more there are, for where they overlap.
        let with_bands: Vec<&Drawn<'_>> = drawn.iter().filter(|drawn| drawn.has_band()).collect();
        let opacity = 0.18 * (2.0 / with_bands.len() as f64).min(1.0);
        for drawn in with_bands {
            drawn.draw_band(&mut svg, &frame, opacity);
        }
        for drawn in &drawn {
            drawn.draw(&mut svg, &frame);
        }
        label_points(&mut svg, &drawn, &frame);
        svg
    }

    /// The range of each axis, and the highest position there is, which the y axis may not reach.
    fn ranges(&self, drawn: &[Drawn<'_>]) -> (Range, Range, f64) {
        let sorted = |of_point: fn(&Placed) -> [f64; 3]| {
            let points = drawn.iter().flat_map(|drawn| &drawn.points);
            let mut values: Vec<f64> = points.flat_map(of_point).collect();
            values.sort_unstable_by(f64::total_cmp);
            values
        };
        let ends = |values: &[f64]| match values {
            [first, .., last] => (*first, *last),
            _ => (0.0, 1.0),
        };
        let (xs, ys) =
            (sorted(|p| [p.x_low, p.at.0, p.x_high]), sorted(|p| [p.y_low, p.at.1, p.y_high]));
        let (first, last) = ends(&xs);
        let has_scattered = drawn
            .iter()
            .any(|drawn| matches!(drawn.series.style, Style::Scattered | Style::Fitted));
        let x = match has_scattered {
            true => Range::padded(self.x.scale, first, last),
            false => Range::exact(self.x.scale, first, last),
        };
        let (low, highest) = ends(&ys);
        let may_be_cut = drawn.iter().all(|drawn| drawn.series.style.may_be_cut());
        let high = if may_be_cut { focus(&ys) } else { highest };
        (x, Range::padded(self.y.scale, low, high), highest)
    }

    /// What the chart shows, in words.
    fn description(&self) -> String {
        let mut text = format!("{} over {}.", self.y.caption(), self.x.caption());
        for series in &self.series {
            let finite = series.points.iter().filter(|p| p.x.is_finite() && p.y.is_finite());
            let points: Vec<&Point> = finite.collect();
            let name = if series.name.is_empty() { "Values" } else { &series.name };
            let (Some(first), Some(last)) = (points.first(), points.last()) else {
                text.push_str(&format!(" {name}: no data."));
                continue;
            };
            let lowest = points.iter().map(|point| point.y).fold(f64::INFINITY, f64::min);
            let highest = points.iter().map(|point| point.y).fold(f64::NEG_INFINITY, f64::max);
            text.push_str(&format!(
                " {name}: {} points, from {} at {} to {} at {}, lowest {}, highest {}.",
                points.len(),
                short_number(first.y),
                short_number(first.x),
                short_number(last.y),
                short_number(last.x),
                short_number(lowest),
                short_number(highest),
            ));
        }
        text
    }
}

/// A point at its positions on the axes.
struct Placed {
    at: Place,
    x_low: f64,
    x_high: f64,
    y_low: f64,
    y_high: f64,
    hint: String,
    label: String,
}

/// A series whose points are at their positions on the axes.
struct Drawn<'a> {
    series: &'a Series,
    points: Vec<Placed>,
}

impl<'a> Drawn<'a> {
    fn of(series: &'a Series, x_axis: &Axis, y_axis: &Axis) -> Self {
        let placed = |point: &Point| {
            let (x, y) = (x_axis.scale.position(point.x)?, y_axis.scale.position(point.y)?);
            // An end that has no place, as of a band that reaches below 0 on a scale of ratios, is left out.
            let end = |axis: &Axis, value: Option<f64>, at: f64| {
                value.and_then(|value| axis.scale.position(value)).unwrap_or(at)
            };
            let mut hint = format!("{}: {}", short_number(point.x), exact(point.y));
            for name in [&point.label, &series.name].into_iter().filter(|name| !name.is_empty()) {
                hint = format!("{name}, {hint}");
            }
            if let Some((low, high)) = point.y_range {
                hint.push_str(&format!(" ({} to {})", exact(low), exact(high)));
            }
            Some(Placed {
                at: (x, y),
                x_low: end(x_axis, point.x_range.map(|range| range.0), x),
                x_high: end(x_axis, point.x_range.map(|range| range.1), x),
                y_low: end(y_axis, point.y_range.map(|range| range.0), y),
                y_high: end(y_axis, point.y_range.map(|range| range.1), y),
                hint,
                label: point.label.clone(),
            })
        };
        Self { series, points: series.points.iter().filter_map(placed).collect() }
    }

    fn places(&self) -> Vec<Place> {
        self.points.iter().map(|point| point.at).collect()
    }

    /// Whether dots are drawn: more of them on a curve would touch each other and hide it.
    fn shows_dots(&self) -> bool {
        let style = self.series.style;
        style.has_dots() && (style != Style::Marked || self.points.len() <= 60)
    }

    fn draw(&self, svg: &mut Svg, frame: &Frame) {
        let places = self.places();
        let color = series_color(self.series.color);
        let dashes = dashes(self.series.color);
        let dashed = dashes.map_or(String::new(), |d| format!(" stroke-dasharray=\"{d}\""));
        let line = format!("l s{color}");
        match self.series.style {
            Style::Line | Style::Marked => frame.draw_curve(svg, &line, &dashed, &places),
            Style::Smoothed => {
                if !self.has_band() {
                    let faint = " style=\"stroke-width:1\" stroke-opacity=\"0.3\"";
                    frame.draw_curve(svg, &line, faint, &places);
                }
                frame.draw_curve(svg, &line, &dashed, &moving_mean(&places));
            }
            Style::Faint => {
                let faint = format!(" style=\"stroke-width:1.5\" stroke-opacity=\"0.5\"{dashed}");
                frame.draw_curve(svg, &line, &faint, &moving_mean(&places));
            }
            Style::Fitted => {
                if let Some((intercept, slope)) = fitted(&places) {
                    let ends = frame.clipped_line(intercept, slope);
                    svg.path(&line, &ends, " stroke-opacity=\"0.6\" style=\"stroke-width:1.5\"");
                }
            }
            Style::Scattered => {}
        }
        if !matches!(self.series.style, Style::Line | Style::Smoothed | Style::Faint) {
            self.draw_error_bars(svg, frame);
        }
        if self.shows_dots() {
            for point in self.points.iter().filter(|point| point.at.1 <= frame.y.high) {
                svg.dot(&format!("f{color}"), frame.pixel(point.at), DOT, &point.hint);
            }
        }
    }

    /// Whether the ranges of its points are a band.
    fn has_band(&self) -> bool {
        matches!(self.series.style, Style::Line | Style::Smoothed)
            && self.points.iter().any(|point| point.y_low < point.y_high)
    }

    fn draw_band(&self, svg: &mut Svg, frame: &Frame, opacity: f64) {
        let end = |x: f64, y: f64| frame.pixel((x, y.min(frame.y.high)));
        let above = self.points.iter().map(|point| end(point.at.0, point.y_high));
        let below = self.points.iter().rev().map(|point| end(point.at.0, point.y_low));
        let outline: Vec<(f64, f64)> = above.chain(below).collect();
        let color = series_color(self.series.color);
        let opacity = format!(" fill-opacity=\"{opacity:.3}\"");
        svg.area(&format!("f{color}"), &outline, &opacity);
    }

    fn draw_error_bars(&self, svg: &mut Svg, frame: &Frame) {
        const CAP: f64 = 3.0;
        let class = format!("s{}", series_color(self.series.color));
        for point in self.points.iter().filter(|point| point.at.1 <= frame.y.high) {
            let (x, y) = point.at;
            if point.y_low < point.y_high {
                let low = frame.pixel((x, point.y_low));
                let high = frame.pixel((x, point.y_high.min(frame.y.high)));
                svg.line(&class, low, high);
                for end in [low, high] {
                    svg.line(&class, (end.0 - CAP, end.1), (end.0 + CAP, end.1));
                }
            }
            if point.x_low < point.x_high {
                let (low, high) = (frame.pixel((point.x_low, y)), frame.pixel((point.x_high, y)));
                svg.line(&class, low, high);
                for end in [low, high] {
                    svg.line(&class, (end.0, end.1 - CAP), (end.0, end.1 + CAP));
                }
            }
        }
    }
}

/// A value to five digits or so: what a hint is for.
fn exact(value: f64) -> String {
    let digits = if value == 0.0 { 0 } else { value.abs().log10().floor() as i32 };
    match digits {
        -4..5 => format!("{value:.*}", (4 - digits).max(0) as usize),
        _ => format!("{value:.4e}"),
    }
}

/// A line of colour and a name for each series, in as many rows as they need. Returns where the room below starts.
/// A single series is named by the chart's title.
fn legend(svg: &mut Svg, drawn: &[Drawn<'_>], width: f64, top: f64) -> f64 {
    const MARK: f64 = 16.0;
    if drawn.len() < 2 {
        return top - 6.0;
    }
    let (mut x, mut y) = (EDGE, top);
    for drawn in drawn {
        let series = drawn.series;
        let name = shortened(Font::Name, &series.name, width - 2.0 * EDGE - MARK - 8.0);
        let item = MARK + 8.0 + text_width(Font::Name, &name);
        if x > EDGE && x + item > width - EDGE {
            (x, y) = (EDGE, y + LINE);
        }
        let color = series_color(series.color);
        if matches!(series.style, Style::Scattered | Style::Fitted) {
            svg.dot(&format!("f{color}"), (x + MARK / 2.0, y), DOT + 0.5, &series.name);
        } else {
            let dashed = dashes(series.color).map(|d| format!(" stroke-dasharray=\"{d}\""));
            let faint = if series.style == Style::Faint { " stroke-opacity=\"0.5\"" } else { "" };
            let more = dashed.unwrap_or_default() + faint;
            svg.path(&format!("l s{color}"), &[(x, y), (x + MARK, y)], &more);
        }
        svg.text(Font::Name, Anchor::Start, (x + MARK + 8.0, y), &name);
        x += item + 18.0;
    }
    y + LINE
}

/// Names beside the points, each where it covers no other and no dot; a name without such a place is in its
/// point's hint alone.
fn label_points(svg: &mut Svg, drawn: &[Drawn<'_>], frame: &Frame) {
    let dotted = drawn.iter().filter(|drawn| drawn.shows_dots());
    let points: Vec<&Placed> = dotted.flat_map(|drawn| &drawn.points).collect();
    let covered = |point: &&Placed| {
        let (left, bottom) = frame.pixel((point.x_low, point.y_low));
        let (right, top) = frame.pixel((point.x_high, point.y_high));
        let (x, y) = frame.pixel(point.at);
        let across = Area { left, top: y - 3.0, right, bottom: y + 3.0 };
        let along = Area { left: x - 3.0, top, right: x + 3.0, bottom };
        [Area::around((x, y), DOT), across, along]
    };
    let dots: Vec<Area> = points.iter().flat_map(covered).collect();
    for point in points.iter().filter(|point| !point.label.is_empty()) {
        let (x, y) = frame.pixel(point.at);
        let near = DOT + 4.0;
        let candidates = [
            (Anchor::Start, (x + near, y)),
            (Anchor::End, (x - near, y)),
            (Anchor::Middle, (x, y - near - 7.0)),
            (Anchor::Middle, (x, y + near + 7.0)),
            (Anchor::Start, (x + near, y - 12.0)),
            (Anchor::Start, (x + near, y + 12.0)),
            (Anchor::End, (x - near, y - 12.0)),
            (Anchor::End, (x - near, y + 12.0)),
        ];
        let is_free = |(anchor, place): &(Anchor, (f64, f64))| {
            let area = text_area(Font::Note, *anchor, *place, &point.label);
            area.lies_in(&frame.area)
                && !svg.texts().iter().chain(&dots).any(|taken| taken.overlaps(&area))
        };
        if let Some((anchor, place)) = candidates.into_iter().find(is_free) {
            svg.text(Font::Note, anchor, place, &point.label);
        }
    }
}

/// Where the curves go.
struct Frame {
    area: Area,
    x: Range,
    y: Range,
}

impl Frame {
    fn pixel(&self, (x, y): Place) -> (f64, f64) {
        let Area { left, top, right, bottom } = self.area;
        (left + self.x.share(x) * (right - left), bottom - self.y.share(y) * (bottom - top))
    }

    fn draw_axes(&self, svg: &mut Svg, y_ticks: &[Tick], x_caption: &str) {
        let Area { left, right, bottom, .. } = self.area;
        for (position, text) in y_ticks {
            let (_, y) = self.pixel((self.x.low, *position));
            svg.line("g", (left, y), (right, y));
            svg.text(Font::Note, Anchor::End, (left - 8.0, y), text);
        }
        svg.line("a", (left, bottom), (right, bottom));
        for (position, text) in self.x_ticks() {
            let (x, _) = self.pixel((position, self.y.low));
            svg.line("a", (x, bottom), (x, bottom + 4.0));
            svg.text(Font::Note, Anchor::Middle, (self.within(x, &text), bottom + 16.0), &text);
        }
        let middle = ((left + right) / 2.0, bottom + 36.0);
        svg.text(Font::Note, Anchor::Middle, middle, x_caption);
    }

    /// As many as stand beside each other.
    fn x_ticks(&self) -> Vec<Tick> {
        let Area { left, right, .. } = self.area;
        let most = ((right - left) / 55.0) as usize;
        let stand_apart = |ticks: &Vec<Tick>| {
            let ends = |(position, text): &Tick| {
                let middle = self.within(self.pixel((*position, self.y.low)).0, text);
                let half = text_width(Font::Note, text) / 2.0;
                (middle - half, middle + half)
            };
            ticks.windows(2).all(|pair| ends(&pair[0]).1 + 8.0 <= ends(&pair[1]).0)
        };
        let choices = (2..=most.max(2)).rev().map(|most| self.x.ticks(most));
        { choices }.find(stand_apart).unwrap_or_default()
    }

    /// The middle of a tick's text: the tick, unless the text would leave the picture.
    fn within(&self, x: f64, text: &str) -> f64 {
        let half = text_width(Font::Note, text) / 2.0;
        x.min(self.area.right + EDGE - 2.0 - half)
    }

    fn draw_curve(&self, svg: &mut Svg, class: &str, more: &str, places: &[Place]) {
        for piece in below(&thinned(places), self.y.high) {
            let mut pixels: Vec<(f64, f64)> = piece.iter().map(|&p| self.pixel(p)).collect();
            if let [point] = pixels[..] {
                // Round ends make a dot of a line of no length.
                pixels.push(point);
            }
            svg.path(class, &pixels, more);
        }
    }

    /// The part of a straight line that lies in the frame.
    fn clipped_line(&self, intercept: f64, slope: f64) -> Vec<(f64, f64)> {
        let y = |x: f64| intercept + slope * x;
        let x = |y: f64| (y - intercept) / slope;
        let (mut low, mut high) = (self.x.low, self.x.high);
        if slope != 0.0 {
            let crossings = [x(self.y.low), x(self.y.high)];
            low = low.max(crossings[0].min(crossings[1]));
            high = high.min(crossings[0].max(crossings[1]));
        }
        [low, high].map(|x| self.pixel((x, y(x)))).to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chart::Scale;

    fn chart(series: Vec<Series>, y: Scale) -> XyChart {
        XyChart {
            title: "Loss <1> & more".to_owned(),
            x: Axis::linear("step"),
            y: Axis { label: "nats".to_owned(), scale: y },
            series,
            size: XyChart::HALF,
        }
    }

    fn pair(points: &[(f64, f64)], style: Style, y: Scale) -> XyChart {
        let series = Series::new("train", points.iter().copied(), style);
        chart(vec![series.clone(), Series { name: "again".to_owned(), color: 7, ..series }], y)
    }

    const STYLES: [Style; 6] = [
        Style::Line,
        Style::Marked,
        Style::Smoothed,
        Style::Faint,
        Style::Scattered,
        Style::Fitted,
    ];

    /// The attribute of the elements of a kind that have a class, in their order.
    fn attributes(svg: &str, element: &str, class: &str, attribute: &str) -> Vec<String> {
        let start = format!("<{element} class=\"{class}\"");
        svg.lines()
            .filter(|line| line.starts_with(&start))
            .map(|line| {
                let (_, value) = line.split_once(&format!(" {attribute}=\"")).unwrap();
                value.split_once('"').unwrap().0.to_owned()
            })
            .collect()
    }

    /// No two texts cover each other, and none leaves the picture.
    fn assert_tidy(chart: &XyChart) {
        let svg = chart.drawn();
        let picture = Area { left: 0.0, top: 0.0, right: chart.size.0, bottom: chart.size.1 };
        for (index, area) in svg.texts().iter().enumerate() {
            assert!(area.lies_in(&picture), "{area:?} of\n{}", chart.svg());
            for other in &svg.texts()[..index] {
                assert!(!area.overlaps(other), "{area:?} {other:?} of\n{}", chart.svg());
            }
        }
    }

    #[test]
    fn any_data_can_be_drawn() {
        let step = |n: i32| f64::from(n);
        let data = [
            vec![(5.0, 3.0)],
            vec![(5.0, 0.0)],
            vec![(1.0, 2.0), (1.0, 2.0)],
            (0..40).map(|n| (step(n), 1e-4)).collect(),
            (0..40).map(|n| (step(n), -step(n))).collect(),
            vec![(1.0, f64::NAN), (2.0, 4.0), (3.0, f64::INFINITY), (4.0, 5.0)],
            (0..5000).map(|n| (step(n), (step(n) * 0.7).sin().exp())).collect(),
            vec![(1e300, 1e-300), (2e300, 1e300)],
            vec![(1_234_567.0, 1e9), (1_234_569.0, 1e9 + 3.0)],
        ];
        for points in data {
            for style in STYLES {
                for scale in [Scale::Linear, Scale::Log] {
                    let chart = pair(&points, style, scale);
                    let svg = chart.svg();
                    assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
                    assert_tidy(&chart);
                }
            }
        }
    }

    #[test]
    fn a_chart_without_data_says_so() {
        assert!(pair(&[], Style::Line, Scale::Linear).svg().contains("no data"));
        let negative = [(1.0, -1.0), (2.0, 0.0)];
        assert!(pair(&negative, Style::Line, Scale::Log).svg().contains("no data"));
    }

    #[test]
    fn points_lie_where_their_values_are() {
        // x from 0 to 10 takes the frame's whole width; y from 0 to 100 has a room of 5 above.
        let points = [(0.0, 0.0), (5.0, 50.0), (10.0, 100.0)];
        let svg = chart(vec![Series::new("", points, Style::Marked)], Scale::Linear).svg();
        let number = |text: &String| text.parse::<f64>().unwrap();
        let xs: Vec<f64> = attributes(&svg, "circle", "f0", "cx").iter().map(number).collect();
        let ys: Vec<f64> = attributes(&svg, "circle", "f0", "cy").iter().map(number).collect();
        let left = attributes(&svg, "line", "a", "x1")[0].parse::<f64>().unwrap();
        assert!((xs[0] - left).abs() < 0.2 && (xs[2] - (520.0 - EDGE)).abs() < 0.2, "{xs:?}");
        assert!((xs[0] + xs[2] - 2.0 * xs[1]).abs() < 0.2, "{xs:?}");
        assert!((ys[0] - 280.0).abs() < 0.2, "{ys:?}");
        assert!((ys[0] + ys[2] - 2.0 * ys[1]).abs() < 0.2, "{ys:?}");

        let decades = [(1.0, 1.0), (2.0, 10.0), (3.0, 100.0)];
        let svg = chart(vec![Series::new("", decades, Style::Marked)], Scale::Log).svg();
        let ys: Vec<f64> = attributes(&svg, "circle", "f0", "cy").iter().map(number).collect();
        assert!((ys[0] + ys[2] - 2.0 * ys[1]).abs() < 0.2, "{ys:?}");
    }

    #[test]
    fn ranges_are_bands_around_lines_and_bars_at_dots() {
        let point = |x: f64| Point { y_range: Some((x - 0.5, x + 1.0)), ..Point::from((x, x)) };
        let points = || [1.0, 2.0, 3.0].map(point);
        let line = chart(vec![Series::new("", points(), Style::Line)], Scale::Linear).svg();
        let band = attributes(&line, "path", "f0", "d");
        assert_eq!(band.len(), 1);
        assert_eq!(band[0].matches(['M', 'L']).count(), 6, "there and back: {}", band[0]);
        assert!(attributes(&line, "line", "s0", "x1").is_empty());

        // Under a moving mean, in the place of the raw curve.
        let smoothed = chart(vec![Series::new("", points(), Style::Smoothed)], Scale::Linear).svg();
        assert_eq!(attributes(&smoothed, "path", "f0", "d"), band);
        assert_eq!(attributes(&smoothed, "path", "l s0", "d").len(), 1);
        assert!(attributes(&smoothed, "line", "s0", "x1").is_empty());

        // No band hides the line of another.
        let several = (0..4).map(|color| Series::new("", points(), Style::Line).color(color));
        let several = chart(several.collect(), Scale::Linear).svg();
        let last_band = several.rfind("fill-opacity=\"0.090\"").unwrap();
        assert_eq!(several[last_band..].matches("<path class=\"l s").count(), 4);

        let dots = chart(vec![Series::new("", points(), Style::Scattered)], Scale::Linear).svg();
        assert!(attributes(&dots, "path", "f0", "d").is_empty());
        let bars = attributes(&dots, "line", "s0", "x1");
        assert_eq!(bars.len(), 9, "a bar and two caps each");
        assert!(dots.contains("2.00: 2.0000 (1.5000 to 3.0000)"), "{dots}");
    }

    #[test]
    fn a_fitted_line_goes_through_points_on_a_line() {
        let points = (1..=5).map(|n| (f64::from(n), 10f64.powi(n)));
        let svg = chart(vec![Series::new("", points, Style::Fitted)], Scale::Log).svg();
        let number = |text: &String| text.parse::<f64>().unwrap();
        let xs: Vec<f64> = attributes(&svg, "circle", "f0", "cx").iter().map(number).collect();
        let ys: Vec<f64> = attributes(&svg, "circle", "f0", "cy").iter().map(number).collect();
        let line = &attributes(&svg, "path", "l s0", "d")[0];
        let ends: Vec<f64> =
            line[1..].split(['L', ' ']).map(|number| number.parse().unwrap()).collect();
        let slope = (ends[3] - ends[1]) / (ends[2] - ends[0]);
        for (x, y) in xs.iter().zip(&ys) {
            assert!((ends[1] + slope * (x - ends[0]) - y).abs() < 0.3, "{line} {x} {y}");
        }
    }

    #[test]
    fn names_of_points_stay_clear_of_each_other() {
        let point = |n: u32| Point {
            label: format!("altup-{n}-with-a-name"),
            ..Point::from((f64::from(n % 7), f64::from(n % 5)))
        };
        let chart = chart(
            vec![Series::new("variants", (0..35).map(point), Style::Scattered)],
            Scale::Linear,
        );
        assert_tidy(&chart);
        assert!(chart.drawn().texts().len() > 20, "many of the names have a place");
        assert!(chart.svg().contains("variants, altup-34-with-a-name, "), "all are in hints");
    }

    #[test]
    fn long_legends_and_titles_take_more_rows() {
        let series = |n: usize| {
            let name = format!("a run with a name that is rather long, number {n}");
            Series::new(&name, [(0.0, 1.0), (1.0, 2.0)], Style::Line).color(n)
        };
        let long =
            "A title that does not fit on a line of half the width of a report's page at all";
        let chart = XyChart {
            title: long.to_owned(),
            ..chart((0..8).map(series).collect(), Scale::Linear)
        };
        assert_tidy(&chart);
        assert!(
            chart.svg().contains("stroke-dasharray"),
            "the seventh colour is the first, dashed"
        );
    }

    #[test]
    fn the_first_losses_do_not_squash_the_curve() {
        let points: Vec<(f64, f64)> =
            (0..500).map(|n| (f64::from(n), if n < 5 { 90.0 } else { 3.0 })).collect();
        let chart = pair(&points, Style::Smoothed, Scale::Linear);
        assert!(chart.svg().contains("cut off above; highest 90.0"));
        assert_tidy(&chart);
        let scattered = pair(&points, Style::Scattered, Scale::Linear).svg();
        assert!(!scattered.contains("cut off"), "points are never cut");
    }

    #[test]
    fn those_who_do_not_see_it_are_told() {
        let svg = pair(&[(1.0, 4.0), (2.0, 3.0), (3.0, 3.5)], Style::Line, Scale::Linear).svg();
        assert!(
            svg.contains("role=\"img\"")
                && svg.contains("<title>Loss &lt;1&gt; &amp; more</title>")
        );
        assert!(
            svg.contains(
                "<desc>nats over step. train: 3 points, from 4.00 at 1.00 to 3.50 at 3.00, lowest 3.00, \
                 highest 4.00."
            ),
            "{svg}"
        );
    }
}
