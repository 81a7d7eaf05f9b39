//! The charts of a study's report.

use std::collections::BTreeMap;

use super::plan::{Cell, Metric, StudyPlan};
use super::report::groups;
use super::results::{CellResult, Results, RunResult, Times, valid_rows};
use super::statistics::{BySeed, PairedDifference, Spread};
use crate::bench::Work;
use crate::chart::{Axis, ColumnGroup, HeatMap, Point, Series, Style, XyChart};
use crate::coefficients::LayerCoefficients;
use crate::metrics::MetricsRow;

/// A chart of a report.
pub(super) struct Figure {
    /// Its file's name.
    pub(super) file: String,
    /// What it shows.
    pub(super) title: String,
    /// The chart.
    pub(super) svg: String,
    /// Whether it takes the page's whole width.
    pub(super) is_wide: bool,
}

impl Figure {
    fn of(file: String, chart: XyChart) -> Self {
        let is_wide = chart.size == XyChart::WIDE;
        Self { file, svg: chart.svg(), title: chart.title, is_wide }
    }
}

/// What charts are drawn from.
pub(super) struct Figures<'a> {
    pub(super) plan: &'a StudyPlan,
    pub(super) results: &'a Results,
    /// The metrics of each finished run.
    pub(super) rows: &'a BTreeMap<String, Vec<MetricsRow>>,
}

impl Figures<'_> {
    /// A variant has one colour in all charts.
    fn color(&self, variant: &str) -> usize {
        self.plan.variants.iter().position(|entry| entry.name == variant).unwrap_or(0)
    }

    fn suffix(&self, cell: &Cell) -> (String, String) {
        let (mut file, mut title) = (String::new(), String::new());
        if self.plan.sizes.len() > 1 {
            file.push_str(&format!("-{}", cell.size));
            title.push_str(&format!(", {}", cell.size));
        }
        if self.plan.multiples.len() > 1 {
            file.push_str(&format!("-{}x", cell.multiple));
            title.push_str(&format!(", {} × the budget", cell.multiple));
        }
        (file, title)
    }

    /// The key picture: final loss against latency, a chart for each batch size, and against the encoder's time where
    /// variants differ in it.
    pub(super) fn quality_against_latency(&self) -> Vec<Figure> {
        let Some(latency) = &self.results.latency else { return Vec::new() };
        let batch_sizes = &latency.setting.measure.batch_sizes;
        let shortens = |cell: &Cell| {
            let run = self.plan.runs.iter().find(|run| run.cell == *cell);
            let altup = run.and_then(|run| run.config.model.altup.as_ref());
            altup.is_some_and(|altup| altup.encoder_sequence.is_some())
        };
        let mut pictures: Vec<(Work, usize, String, String)> = batch_sizes
            .iter()
            .map(|&rows| {
                let label = "milliseconds of a forward pass".to_owned();
                (Work::Forward, rows, format!("latency-batch{rows}"), label)
            })
            .collect();
        if self.results.cells.iter().any(|cell| shortens(&cell.cell)) {
            pictures.extend(batch_sizes.iter().map(|&rows| {
                let label = "milliseconds of the encoder and the first token".to_owned();
                (Work::Prefill, rows, format!("encoder-batch{rows}"), label)
            }));
        }
        let mut figures = Vec::new();
        for &multiple in &self.plan.multiples {
            for (work, rows, file, label) in &pictures {
                let points = |cell: &CellResult| self.point(cell, *work, *rows);
                let mut series = Vec::new();
                for variant in &self.plan.variants {
                    let of_variant = self.results.cells.iter().filter(|cell| {
                        cell.cell.variant == variant.name && cell.cell.multiple == multiple
                    });
                    let mut points: Vec<Point> = of_variant.filter_map(points).collect();
                    points.sort_by(|a, b| a.x.total_cmp(&b.x));
                    let is_line = self.plan.scaling_line.contains(&variant.name);
                    let style = if is_line { Style::Marked } else { Style::Scattered };
                    let color = self.color(&variant.name);
                    series.push(Series::new(&variant.label, points, style).color(color));
                }
                if series.iter().all(|series| series.points.is_empty()) {
                    continue;
                }
                let several = self.plan.multiples.len() > 1;
                let budget =
                    if several { format!(", {multiple} × the budget") } else { String::new() };
                let suffix = if several { format!("-{multiple}x") } else { String::new() };
                let chart = XyChart {
                    title: format!("Quality against latency, batch {rows}{budget}"),
                    x: Axis::log(label),
                    y: Axis::linear("final validation loss, nats per target token"),
                    series,
                    size: XyChart::WIDE,
                };
                figures.push(Figure::of(format!("{file}{suffix}.svg"), chart));
            }
        }
        figures
    }

    fn point(&self, cell: &CellResult, work: Work, rows: usize) -> Option<Point> {
        let is_asked = |times: &&Times| (times.work, times.batch_size) == (work, rows);
        let times = cell.times.iter().find(is_asked)?;
        let spread = cell.metrics.get(&Metric::ValidLoss)?.spread;
        let deviation = spread.standard_deviation;
        Some(Point {
            x: 1000.0 * times.seconds,
            y: spread.mean,
            x_range: Some((1000.0 * times.shortest, 1000.0 * times.longest)),
            y_range: deviation.map(|deviation| (spread.mean - deviation, spread.mean + deviation)),
            label: self.point_label(&cell.cell),
        })
    }

    /// What stands beside a point: its size, and its variant where another has its colour.
    fn point_label(&self, cell: &Cell) -> String {
        const COLORS: usize = 6;
        let color = self.color(&cell.variant);
        let others = (0..self.plan.variants.len()).filter(|other| other % COLORS == color % COLORS);
        let mut words = Vec::new();
        if others.count() > 1 {
            words.push(self.plan.label(&cell.variant));
        }
        if self.plan.sizes.len() > 1 {
            words.push(&cell.size);
        }
        words.join(", ")
    }

    /// The difference to the baseline by budget, a chart for each size.
    pub(super) fn gaps(&self) -> Vec<Figure> {
        if self.plan.multiples.len() < 2 {
            return Vec::new();
        }
        let chart = |size: &String| {
            let series = |name: &str, label: &str| {
                let of_variant = self
                    .results
                    .cells
                    .iter()
                    .filter(|cell| cell.cell.variant == name && cell.cell.size == *size);
                let point = |cell: &CellResult| {
                    let difference = cell.metrics.get(&Metric::ValidLoss)?.difference?;
                    let interval = difference.interval.filter(|_| !difference.is_of_few());
                    let range = interval.map(|interval| (interval.low, interval.high));
                    let x = cell.cell.multiple as f64;
                    Some(Point { y_range: range, ..Point::from((x, difference.mean)) })
                };
                let points: Vec<Point> = of_variant.filter_map(point).collect();
                Series::new(label, points, Style::Marked).color(self.color(name))
            };
            let variants =
                self.plan.variants.iter().filter(|entry| entry.name != self.plan.baseline);
            let chart = XyChart {
                title: format!("Final loss minus the baseline's by budget, {size}"),
                x: Axis::log("times the budget"),
                y: Axis::linear("nats per target token"),
                series: variants.map(|entry| series(&entry.name, &entry.label)).collect(),
                size: XyChart::WIDE,
            };
            let has_points = chart.series.iter().any(|series| !series.points.is_empty());
            has_points.then(|| Figure::of(format!("gap-{size}.svg"), chart))
        };
        self.plan.sizes.iter().filter_map(chart).collect()
    }

    /// Validation loss over steps, and its paired difference to the baseline, for each size and budget.
    pub(super) fn curves(&self) -> Vec<Figure> {
        let mut figures = Vec::new();
        for group in groups(self.results) {
            let (file, title) = self.suffix(&group[0].cell);
            let (mut losses, mut differences) = (Vec::new(), Vec::new());
            let baseline = self.loss_by_step(&self.plan.baseline_of(&group[0].cell));
            for cell in &group {
                let by_step = self.loss_by_step(&cell.cell);
                let point = |(step, losses): (&u64, &BySeed)| {
                    let spread = Spread::of(losses.values().copied())?;
                    let band = |deviation: f64| (spread.mean - deviation, spread.mean + deviation);
                    let deviation = spread.standard_deviation;
                    let y_range =
                        deviation.filter(|_| spread.count >= PairedDifference::FEW).map(band);
                    Some(Point { y_range, ..Point::from((*step as f64, spread.mean)) })
                };
                let points: Vec<Point> = by_step.iter().filter_map(point).collect();
                let color = self.color(&cell.cell.variant);
                losses.push(Series::new(&cell.label, points, Style::Line).color(color));
                if cell.cell.variant == self.plan.baseline {
                    continue;
                }
                let point = |(step, losses): (&u64, &BySeed)| {
                    let difference = PairedDifference::of(losses, baseline.get(step)?)?;
                    // Of 2 seeds it is so wide that all else would be flat.
                    let interval = difference.interval.filter(|_| !difference.is_of_few());
                    let y_range = interval.map(|interval| (interval.low, interval.high));
                    Some(Point { y_range, ..Point::from((*step as f64, difference.mean)) })
                };
                let points: Vec<Point> = by_step.iter().filter_map(point).collect();
                // In the first quarter losses fall so fast that all else would be flat.
                let last = points.last().map_or(0.0, |point| point.x);
                let points = points.into_iter().filter(|point| point.x > 0.25 * last);
                differences.push(Series::new(&cell.label, points, Style::Line).color(color));
            }
            let charts = [
                ("loss", "Validation loss", losses),
                (
                    "difference",
                    "Validation loss minus the baseline's, paired, after the first quarter",
                    differences,
                ),
            ];
            for (name, what, series) in charts {
                if series.iter().all(|series| series.points.is_empty()) {
                    continue;
                }
                let chart = XyChart {
                    title: format!("{what}{title}"),
                    x: Axis::linear("step"),
                    y: Axis::linear("nats per target token"),
                    series,
                    size: XyChart::WIDE,
                };
                figures.push(Figure::of(format!("{name}{file}.svg"), chart));
            }
        }
        figures
    }

    /// The validation losses of a cell's runs at each step, the last one over more examples where the runs have it so.
    fn loss_by_step(&self, cell: &Cell) -> BTreeMap<u64, BySeed> {
        let mut by_step: BTreeMap<u64, BySeed> = BTreeMap::new();
        for run in self.results.of_cell(cell) {
            let rows = self.rows.get(&run.name).map_or(&[][..], Vec::as_slice);
            for row in valid_rows(rows) {
                by_step.entry(row.step).or_default().insert(run.seed, row.loss);
            }
        }
        by_step
    }

    /// What was learned beside p = I, g = 1, for each cell whose runs have coefficients: each scalar by layer at the end,
    /// and how far each layer went over the steps.
    pub(super) fn coefficients(&self) -> Vec<Figure> {
        let mut figures = Vec::new();
        for cell in &self.results.cells {
            let runs: Vec<&RunResult> = self
                .results
                .of_cell(&cell.cell)
                .filter(|run| !run.coefficients.is_empty())
                .collect();
            if runs.is_empty() {
                continue;
            }
            figures.push(self.learned(cell, &runs));
            let chart = self.distances(cell, &runs);
            if chart.series.iter().any(|series| series.points.len() > 1) {
                figures.push(Figure::of(format!("changes-{}.svg", cell.cell), chart));
            }
        }
        figures
    }

    fn learned(&self, cell: &CellResult, runs: &[&RunResult]) -> Figure {
        let layers = &runs[0].coefficients;
        // Layers of one model may differ in what they have: only some of an encoder's are shortened.
        let mut rows: Vec<String> = Vec::new();
        for (name, _) in layers.iter().flat_map(changes) {
            if !rows.contains(&name) {
                rows.push(name);
            }
        }
        let mean = |layer: usize, name: &String| {
            let of_run = runs.iter().filter_map(|run| {
                changes(run.coefficients.get(layer)?).find(|(other, _)| other == name)
            });
            Spread::of(of_run.map(|(_, value)| value)).map_or(f64::NAN, |spread| spread.mean)
        };
        let mut groups: Vec<ColumnGroup> = Vec::new();
        for layer in layers {
            match groups.last_mut().filter(|group| group.name == layer.stack) {
                Some(group) => group.columns.push(layer.layer.to_string()),
                None => groups.push(ColumnGroup {
                    name: layer.stack.clone(),
                    columns: vec![layer.layer.to_string()],
                }),
            }
        }
        let (_, suffix) = self.suffix(&cell.cell);
        let map = HeatMap {
            title: format!("{}{suffix}: what each layer learned", cell.label),
            values: rows
                .iter()
                .map(|name| (0..layers.len()).map(|layer| mean(layer, name)).collect())
                .collect(),
            rows,
            groups,
            width: XyChart::HALF.0,
        };
        Figure {
            file: format!("coefficients-{}.svg", cell.cell),
            svg: map.svg(),
            title: map.title,
            is_wide: false,
        }
    }

    /// The root mean square of a layer's changes, over the steps.
    fn distances(&self, cell: &CellResult, runs: &[&RunResult]) -> XyChart {
        let series = |(number, layer): (usize, &LayerCoefficients)| {
            let mut by_step: BTreeMap<u64, Vec<f64>> = BTreeMap::new();
            for rows in runs.iter().filter_map(|run| self.rows.get(&run.name)) {
                for row in rows {
                    let MetricsRow::Coefficients(row) = row else { continue };
                    let Some(layer) = row.layers.get(number) else { continue };
                    let squares: Vec<f64> =
                        changes(layer).map(|(_, value)| value * value).collect();
                    let mean = squares.iter().sum::<f64>() / squares.len().max(1) as f64;
                    by_step.entry(row.step).or_default().push(mean.sqrt());
                }
            }
            let point =
                |(step, values): (u64, Vec<f64>)| Some((step as f64, Spread::of(values)?.mean));
            let points: Vec<(f64, f64)> = by_step.into_iter().filter_map(point).collect();
            Series::new(&layer.name(), points, Style::Line).color(number)
        };
        let (_, suffix) = self.suffix(&cell.cell);
        XyChart {
            title: format!("{}{suffix}: how far each layer went", cell.label),
            x: Axis::linear("step"),
            y: Axis::linear("root mean square of the changes"),
            series: runs[0].coefficients.iter().enumerate().map(series).collect(),
            size: XyChart::HALF,
        }
    }
}

/// The scalars of a layer beside those that leave a dense model as it is: p = I, g = 1, a1 = 1, a2 = 0, b = 1.
fn changes(layer: &LayerCoefficients) -> impl Iterator<Item = (String, f64)> {
    layer.named().map(|(name, value)| {
        let numbers: Vec<char> = name.chars().skip(1).collect();
        let is_one = match name.chars().next() {
            // p11, p22, …; from ten blocks on with a comma: p10,10.
            Some('p') => {
                let text: String = numbers.iter().collect();
                match text.split_once(',') {
                    Some((row, column)) => row == column,
                    None => numbers.first() == numbers.last(),
                }
            }
            Some('a') => numbers == ['1'],
            _ => true,
        };
        match is_one {
            true => (format!("{name} − 1"), value - 1.0),
            false => (name, value),
        }
    })
}
