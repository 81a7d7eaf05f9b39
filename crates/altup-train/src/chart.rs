//! Line charts as SVG text.
//!
//! The charts are made for learning curves: a noisy curve gets its mean drawn on top, and the huge
//! losses of the first steps do not squash everything that follows. plotters draws the shapes; the
//! layout, the axes and their labels are done here, because its own axes leave no say in where
//! ticks fall.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// A chart of one or more curves over a shared x axis.
#[derive(Clone, Debug)]
pub struct LineChart {
    /// What the chart shows, drawn above it.
    pub title: String,
    /// What x is.
    pub x_label: String,
    /// What y is, with its unit.
    pub y_label: String,
    /// The curves, drawn in this order.
    pub series: Vec<Series>,
    /// Whether the y axis is logarithmic. Points that are not positive are then left out.
    pub log_y: bool,
    /// Width and height in pixels.
    pub size: (u32, u32),
}

/// One curve.
#[derive(Clone, Debug)]
pub struct Series {
    /// Name in the legend.
    pub name: String,
    /// The points, in the order of x. Those that are not finite are left out.
    pub points: Vec<(f64, f64)>,
    /// Number of a colour in the palette, which repeats after the sixth.
    pub color: usize,
    /// How the curve is drawn.
    pub stroke: Stroke,
}

/// How a curve is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stroke {
    /// A solid line.
    Line,
    /// A solid line with a dot at each point, for curves of few points.
    Marked,
    /// The moving mean as a solid line over the faint raw curve, for noisy curves.
    Smoothed,
    /// Only the moving mean, faint, for curves that are the background of others.
    Faint,
}

/// Why a chart could not be drawn.
#[derive(Debug, thiserror::Error)]
#[error("cannot draw a chart")]
pub struct ChartError(#[from] DrawingAreaErrorKind<std::io::Error>);

type Canvas<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Point = (f64, f64);

/// Okabe and Ito's colours, told apart with every kind of colour vision, without their yellow and
/// black (too faint on white, and the colour of the text).
pub(crate) const PALETTE: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];
const INK: RGBColor = RGBColor(36, 41, 47);
const MUTED: RGBColor = RGBColor(101, 109, 118);
const GRID: RGBColor = RGBColor(228, 231, 235);
const FONT: &str = "system-ui, sans-serif";

/// plotters works in whole numbers: drawing in quarters of a pixel keeps curves smooth.
const PIXEL: i32 = 4;

const LEFT: i32 = 60 * PIXEL;
const RIGHT: i32 = 24 * PIXEL;
const BOTTOM: i32 = 48 * PIXEL;
const LEGEND_TOP: i32 = 66 * PIXEL;
const LEGEND_ROW: i32 = 20 * PIXEL;

impl LineChart {
    /// Size of a chart that takes the whole width of a report.
    pub const WIDE: (u32, u32) = (1080, 420);
    /// Size of a chart of which two stand side by side in a report.
    pub const HALF: (u32, u32) = (530, 320);

    /// Draws the chart as an SVG document.
    ///
    /// # Errors
    /// When plotters fails, which it does not for any data.
    pub fn svg(&self) -> Result<String, ChartError> {
        let (width, height) = self.size;
        let drawn = (width * PIXEL as u32, height * PIXEL as u32);
        let mut svg = String::new();
        {
            let canvas = SVGBackend::with_string(&mut svg, drawn).into_drawing_area();
            self.draw(&canvas)?;
            canvas.present()?;
        }
        // The view box keeps the drawn size; round joins keep noisy curves from growing spikes.
        let root = format!("<svg width=\"{}\" height=\"{}\"", drawn.0, drawn.1);
        let shown = format!(
            "<svg width=\"{width}\" height=\"{height}\" stroke-linejoin=\"round\" \
             stroke-linecap=\"round\""
        );
        Ok(svg.replacen(&root, &shown, 1))
    }

    fn draw(&self, canvas: &Canvas<'_>) -> Result<(), ChartError> {
        let (width, height) = canvas.dim_in_pixel();
        let (width, height) = (width as i32, height as i32);
        canvas.fill(&WHITE)?;
        let title = font(17.0, &INK, HPos::Left, VPos::Center);
        let title = TextStyle { font: title.font.style(FontStyle::Bold), ..title };
        canvas.draw_text(&self.title, &title, (20 * PIXEL, 24 * PIXEL))?;
        let scale_note = if self.log_y { " (log scale)" } else { "" };
        canvas.draw_text(
            &format!("{}{scale_note}", self.y_label),
            &font(12.0, &MUTED, HPos::Left, VPos::Center),
            (20 * PIXEL, 46 * PIXEL),
        )?;

        let curves: Vec<Curve<'_>> = self
            .series
            .iter()
            .map(|series| Curve::of(series, self.log_y))
            .filter(|curve| !curve.points.is_empty())
            .collect();
        if curves.is_empty() {
            let middle = font(14.0, &MUTED, HPos::Center, VPos::Center);
            canvas.draw_text("no data", &middle, (width / 2, height / 2))?;
            return Ok(());
        }

        let top = draw_legend(canvas, &curves, width - RIGHT)?;
        let (x, y, highest) = axes(&curves, self.log_y, self.size.0);
        if y.high < highest {
            let label = short_label(if self.log_y { 10f64.powf(highest) } else { highest });
            canvas.draw_text(
                &format!("cut off above; highest {label}"),
                &font(12.0, &MUTED, HPos::Right, VPos::Center),
                (width - RIGHT, 46 * PIXEL),
            )?;
        }
        let frame = Frame { left: LEFT, right: width - RIGHT, top, bottom: height - BOTTOM, x, y };
        frame.draw(canvas, &self.x_label)?;
        curves.iter().try_for_each(|curve| curve.draw(canvas, &frame))
    }
}

/// A series as it is drawn: y is a logarithm where the axis is logarithmic.
struct Curve<'a> {
    series: &'a Series,
    points: Vec<Point>,
}

impl<'a> Curve<'a> {
    fn of(series: &'a Series, log_y: bool) -> Self {
        let scaled = series.points.iter().map(|&(x, y)| (x, if log_y { y.log10() } else { y }));
        let points = scaled.filter(|(x, y)| x.is_finite() && y.is_finite()).collect();
        Self { series, points }
    }

    fn color(&self) -> RGBColor {
        PALETTE[self.series.color % PALETTE.len()]
    }

    fn draw(&self, canvas: &Canvas<'_>, frame: &Frame) -> Result<(), ChartError> {
        let color = self.color();
        let solid = color.stroke_width(2 * PIXEL as u32);
        match self.series.stroke {
            Stroke::Line => frame.draw_line(canvas, &self.points, solid),
            Stroke::Marked => {
                frame.draw_line(canvas, &self.points, solid)?;
                // More dots than this would touch each other and hide the line.
                let few = self.points.len() <= 60;
                let dots = self.points.iter().filter(|point| few && point.1 <= frame.y.high);
                for &point in dots {
                    frame.draw_dot(canvas, point, solid)?;
                }
                Ok(())
            }
            Stroke::Smoothed => {
                let faint = color.mix(0.25).stroke_width(PIXEL as u32);
                frame.draw_line(canvas, &self.points, faint)?;
                frame.draw_line(canvas, &moving_mean(&self.points), solid)
            }
            Stroke::Faint => {
                let faint = color.mix(0.45).stroke_width(3 * PIXEL as u32 / 2);
                frame.draw_line(canvas, &moving_mean(&self.points), faint)
            }
        }
    }
}

/// Where the curves go.
struct Frame {
    left: i32,
    right: i32,
    top: i32,
    bottom: i32,
    x: Axis,
    y: Axis,
}

impl Frame {
    fn pixel(&self, (x, y): Point) -> (i32, i32) {
        (self.x.place(x, self.left, self.right), self.y.place(y, self.bottom, self.top))
    }

    fn draw(&self, canvas: &Canvas<'_>, x_label: &str) -> Result<(), ChartError> {
        let numbers = font(12.0, &MUTED, HPos::Right, VPos::Center);
        for (value, label) in &self.y.ticks {
            let y = self.y.place(*value, self.bottom, self.top);
            draw_path(
                canvas,
                vec![(self.left, y), (self.right, y)],
                GRID.stroke_width(PIXEL as u32),
            )?;
            canvas.draw_text(label, &numbers, (self.left - 8 * PIXEL, y))?;
        }
        let axis = MUTED.stroke_width(PIXEL as u32);
        draw_path(canvas, vec![(self.left, self.bottom), (self.right, self.bottom)], axis)?;
        let numbers = font(12.0, &MUTED, HPos::Center, VPos::Top);
        for (value, label) in &self.x.ticks {
            let x = self.x.place(*value, self.left, self.right);
            draw_path(canvas, vec![(x, self.bottom), (x, self.bottom + 4 * PIXEL)], axis)?;
            canvas.draw_text(label, &numbers, (x, self.bottom + 8 * PIXEL))?;
        }
        let middle = (self.left + self.right) / 2;
        canvas.draw_text(x_label, &numbers, (middle, self.bottom + 27 * PIXEL))?;
        Ok(())
    }

    fn draw_line(
        &self,
        canvas: &Canvas<'_>,
        points: &[Point],
        style: ShapeStyle,
    ) -> Result<(), ChartError> {
        for piece in below(&thinned(points), self.y.high) {
            match piece[..] {
                [point] => self.draw_dot(canvas, point, style)?,
                _ => draw_path(canvas, piece.iter().map(|&p| self.pixel(p)).collect(), style)?,
            }
        }
        Ok(())
    }

    fn draw_dot(
        &self,
        canvas: &Canvas<'_>,
        point: Point,
        style: ShapeStyle,
    ) -> Result<(), ChartError> {
        Ok(canvas.draw(&Circle::new(self.pixel(point), 3 * PIXEL, style.filled()))?)
    }
}

fn draw_path(
    canvas: &Canvas<'_>,
    points: Vec<(i32, i32)>,
    style: ShapeStyle,
) -> Result<(), ChartError> {
    Ok(canvas.draw(&PathElement::new(points, style))?)
}

/// Draws a line of colour and a name for each curve, in as many rows as they need, and returns
/// where the room below starts. A single curve is named by the chart's title.
fn draw_legend(canvas: &Canvas<'_>, curves: &[Curve<'_>], right: i32) -> Result<i32, ChartError> {
    if curves.len() < 2 {
        return Ok(LEGEND_TOP);
    }
    let names = font(12.0, &INK, HPos::Left, VPos::Center);
    let start = 20 * PIXEL;
    let (mut x, mut y) = (start, LEGEND_TOP);
    for curve in curves {
        let name = &curve.series.name;
        // SVG text has the size the viewer's font gives it: 6.6 pixels a letter is on the safe
        // side.
        let text_width = name.chars().count() as i32 * 66 * PIXEL / 10;
        let item_width = 24 * PIXEL + text_width;
        if x > start && x + item_width > right {
            (x, y) = (start, y + LEGEND_ROW);
        }
        let opacity = if curve.series.stroke == Stroke::Faint { 0.45 } else { 1.0 };
        let style = curve.color().mix(opacity).stroke_width(3 * PIXEL as u32);
        draw_path(canvas, vec![(x, y), (x + 16 * PIXEL, y)], style)?;
        canvas.draw_text(name, &names, (x + 24 * PIXEL, y))?;
        x += item_width + 16 * PIXEL;
    }
    Ok(y + LEGEND_ROW)
}

fn font(size: f64, color: &'static RGBColor, h_pos: HPos, v_pos: VPos) -> TextStyle<'static> {
    // plotters divides by 1.24 when it writes the size into the SVG.
    let size = size * 1.24 * f64::from(PIXEL);
    TextStyle::from((FONT, size).into_font()).color(color).pos(Pos::new(h_pos, v_pos))
}

/// The span of values an axis shows, and its labelled ticks.
struct Axis {
    low: f64,
    high: f64,
    ticks: Vec<(f64, String)>,
}

impl Axis {
    fn place(&self, value: f64, from: i32, to: i32) -> i32 {
        let share = (value - self.low) / (self.high - self.low);
        from + (share * f64::from(to - from)).round() as i32
    }
}

/// The x axis, the y axis, and the highest value there is, which the y axis may not reach.
fn axes(curves: &[Curve<'_>], log_y: bool, width: u32) -> (Axis, Axis, f64) {
    let sorted = |coordinate: fn(&Point) -> f64| {
        let mut values: Vec<f64> =
            curves.iter().flat_map(|curve| &curve.points).map(coordinate).collect();
        values.sort_unstable_by(f64::total_cmp);
        values
    };
    let (xs, ys) = (sorted(|point| point.0), sorted(|point| point.1));
    let (first, last) = ends(&xs);
    let (first, last) = if first < last { (first, last) } else { (first - 1.0, last + 1.0) };
    let x = Axis { low: first, high: last, ticks: linear_ticks(first, last, (width / 90).max(2)) };

    let (low, highest) = ends(&ys);
    let (low, high) = padded(low, focus(&ys));
    let ticks = if log_y { log_ticks(low, high) } else { linear_ticks(low, high, 6) };
    (x, Axis { low, high, ticks }, highest)
}

fn ends(sorted: &[f64]) -> (f64, f64) {
    match sorted {
        [first, .., last] => (*first, *last),
        [only] => (*only, *only),
        [] => (0.0, 1.0),
    }
}

/// The highest value worth showing: the highest there is, unless the topmost 2 % of many values
/// would take more than half of the axis for themselves.
fn focus(sorted: &[f64]) -> f64 {
    let (low, high) = ends(sorted);
    let typical = match sorted.len() {
        0..20 => high,
        len => sorted[(len - 1) * 98 / 100],
    };
    if high - typical > typical - low { typical } else { high }
}

/// A little room around the values, and enough for a constant curve to have an axis at all.
fn padded(low: f64, high: f64) -> (f64, f64) {
    let room = if high - low > 1e-9 * high.abs().max(low.abs()) {
        0.05 * (high - low)
    } else if high != 0.0 {
        0.1 * high.abs()
    } else {
        1.0
    };
    (low - room, high + room)
}

/// Ticks at multiples of 1, 2 or 5 times a power of ten, `about` as many.
fn linear_ticks(low: f64, high: f64, about: u32) -> Vec<(f64, String)> {
    let rough = (high - low) / f64::from(about);
    let magnitude = 10f64.powi(rough.log10().floor() as i32);
    let factor = [1.0, 2.0, 5.0].into_iter().find(|factor| factor * magnitude >= rough);
    let step = factor.unwrap_or(10.0) * magnitude;
    let (first, last) = ((low / step).ceil() as i64, (high / step).floor() as i64);
    (first..=last)
        .map(|multiple| multiple as f64 * step)
        .map(|value| (value, label(value, step)))
        .collect()
}

/// Ticks for an axis of decimal logarithms, labelled with the values themselves.
fn log_ticks(low: f64, high: f64) -> Vec<(f64, String)> {
    let ticks = |factors: &'static [f64]| -> Vec<(f64, String)> {
        (low.floor() as i32..=high.ceil() as i32)
            .flat_map(|exponent| factors.iter().map(move |factor| (*factor, 10f64.powi(exponent))))
            .map(|(factor, power)| ((factor * power).log10(), label(factor * power, power)))
            .filter(|(place, _)| (low..=high).contains(place))
            .collect()
    };
    match ticks(&[1.0, 2.0, 5.0]) {
        many if many.len() > 9 => ticks(&[1.0]),
        enough if enough.len() > 2 => enough,
        // Less than a decade: the axis is nearly straight.
        _ => linear_ticks(10f64.powf(low), 10f64.powf(high), 6)
            .into_iter()
            .map(|(value, label)| (value.log10(), label))
            .collect(),
    }
}

/// A value with the digits that tell it from its neighbours a `step` away.
fn label(value: f64, step: f64) -> String {
    let digits = step.log10().floor() as i32;
    if value == 0.0 {
        "0".to_owned()
    } else if digits >= 3 {
        let (size, unit) = match value.abs() {
            1e9.. => (1e9, "G"),
            1e6.. => (1e6, "M"),
            _ => (1e3, "k"),
        };
        format!("{}{unit}", value / size)
    } else if digits <= -4 {
        let precision = (value.abs().log10().floor() as i32 - digits).max(0) as usize;
        let text = format!("{value:.precision$e}");
        let (mantissa, power) = text.split_once('e').unwrap_or((text.as_str(), "0"));
        format!("{}e{power}", mantissa.trim_end_matches('0').trim_end_matches('.'))
    } else {
        let decimals = (-digits).max(0) as usize;
        format!("{value:.decimals$}")
    }
}

/// A value to three digits.
fn short_label(value: f64) -> String {
    let step = 10f64.powf(value.abs().log10().floor() - 2.0);
    // Zero has no digits to count.
    if step > 0.0 { label((value / step).round() * step, step) } else { label(value, 1.0) }
}

/// An exponential moving mean over about a fiftieth of the curve. Early points are the plain mean
/// of what came before them, so that the first one does not weigh on all that follow.
fn moving_mean(points: &[Point]) -> Vec<Point> {
    let window = (points.len() as f64 / 50.0).max(1.0);
    let mut mean = 0.0;
    points
        .iter()
        .enumerate()
        .map(|(index, &(x, y))| {
            mean += (y - mean) / window.min((index + 1) as f64);
            (x, mean)
        })
        .collect()
}

/// Fewer points for the same picture: where many share a pixel, their lowest and highest remain.
fn thinned(points: &[Point]) -> Vec<Point> {
    const BUCKETS: usize = 600;
    if points.len() <= 2 * BUCKETS {
        return points.to_vec();
    }
    let mut kept = Vec::with_capacity(2 * BUCKETS);
    for bucket in points.chunks(points.len().div_ceil(BUCKETS)) {
        let low = bucket.iter().min_by(|a, b| a.1.total_cmp(&b.1));
        let high = bucket.iter().max_by(|a, b| a.1.total_cmp(&b.1));
        let mut extremes: Vec<Point> = low.into_iter().chain(high).copied().collect();
        extremes.sort_by(|a, b| a.0.total_cmp(&b.0));
        kept.extend(extremes);
    }
    kept
}

/// The pieces of a curve that lie below `ceiling`, cut where the curve crosses it.
fn below(points: &[Point], ceiling: f64) -> Vec<Vec<Point>> {
    let mut pieces = Vec::new();
    let mut piece: Vec<Point> = Vec::new();
    let mut previous: Option<Point> = None;
    for &point in points {
        if let Some(before) = previous
            && (before.1 > ceiling) != (point.1 > ceiling)
        {
            let share = (ceiling - before.1) / (point.1 - before.1);
            piece.push((before.0 + share * (point.0 - before.0), ceiling));
        }
        if point.1 <= ceiling {
            piece.push(point);
        } else if !piece.is_empty() {
            pieces.push(std::mem::take(&mut piece));
        }
        previous = Some(point);
    }
    if !piece.is_empty() {
        pieces.push(piece);
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: Vec<Point>, stroke: Stroke, log_y: bool) -> String {
        let series = Series { name: "train".to_owned(), points, color: 0, stroke };
        let chart = LineChart {
            title: "Loss <1> & more".to_owned(),
            x_label: "step".to_owned(),
            y_label: "nats".to_owned(),
            series: vec![series.clone(), Series { name: "again".to_owned(), color: 7, ..series }],
            log_y,
            size: LineChart::HALF,
        };
        let svg = chart.svg().unwrap();
        assert!(svg.starts_with("<svg width=\"530\" height=\"320\""), "{svg}");
        assert!(svg.contains("viewBox=\"0 0 2120 1280\""), "{svg}");
        assert!(svg.trim_end().ends_with("</svg>"), "{svg}");
        assert!(svg.contains("Loss &lt;1&gt; &amp; more"), "{svg}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        svg
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
        ];
        for points in data {
            for stroke in [Stroke::Line, Stroke::Marked, Stroke::Smoothed, Stroke::Faint] {
                chart(points.clone(), stroke, false);
                chart(points.clone(), stroke, true);
            }
        }
    }

    #[test]
    fn a_chart_without_data_says_so() {
        assert!(chart(Vec::new(), Stroke::Line, false).contains("no data"));
        let negative = vec![(1.0, -1.0), (2.0, 0.0)];
        assert!(chart(negative, Stroke::Line, true).contains("no data"));
    }

    #[test]
    fn the_first_losses_do_not_squash_the_curve() {
        let points: Vec<Point> =
            (0..500).map(|n| (f64::from(n), if n < 5 { 90.0 } else { 3.0 })).collect();
        assert!(chart(points, Stroke::Smoothed, false).contains("cut off above; highest 90.0"));
        let even: Vec<f64> = (0..100).map(f64::from).collect();
        assert_eq!(focus(&even), 99.0, "an even spread is shown whole");
    }

    #[test]
    fn a_curve_is_cut_where_it_crosses_the_ceiling() {
        let points = [(0.0, 4.0), (1.0, 0.0), (2.0, 0.0), (3.0, 8.0), (4.0, 4.0), (5.0, 1.0)];
        assert_eq!(
            below(&points, 2.0),
            [
                vec![(0.5, 2.0), (1.0, 0.0), (2.0, 0.0), (2.25, 2.0)],
                vec![(4.0 + 2.0 / 3.0, 2.0), (5.0, 1.0)],
            ]
        );
    }

    #[test]
    fn ticks_are_round_numbers() {
        let labels = |ticks: Vec<(f64, String)>| -> Vec<String> {
            ticks.into_iter().map(|(_, label)| label).collect()
        };
        assert_eq!(labels(linear_ticks(2.9, 5.2, 5)), ["3.0", "3.5", "4.0", "4.5", "5.0"]);
        assert_eq!(labels(linear_ticks(0.0, 1.1e6, 5)), ["0", "500k", "1M"]);
        assert_eq!(labels(linear_ticks(0.0, 1.2e-4, 3)), ["0", "5e-5", "1e-4"]);
        assert_eq!(labels(log_ticks(-1.1, 2.1)), ["0.1", "1", "10", "100"]);
    }

    #[test]
    fn the_moving_mean_of_a_constant_is_that_constant() {
        let points: Vec<Point> = (0..500).map(|n| (f64::from(n), 2.0)).collect();
        assert_eq!(moving_mean(&points), points);
    }

    #[test]
    fn thinning_keeps_the_extremes() {
        let mut points: Vec<Point> = (0..10_000).map(|n| (f64::from(n), 1.0)).collect();
        points[1234].1 = 9.0;
        points[4321].1 = -9.0;
        let kept = thinned(&points);
        assert!(kept.len() <= 1200);
        assert!(kept.contains(&(1234.0, 9.0)) && kept.contains(&(4321.0, -9.0)));
    }
}
