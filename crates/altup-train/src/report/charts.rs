//! The charts of a report.

use super::{RunCurves, coefficient_rows, train_rows, valid_rows};
use crate::chart::{Axis, ColumnGroup, HeatMap, Series, Style, XyChart};
use crate::coefficients::{CoefficientsRow, LayerCoefficients};
use crate::metrics::{MetricsRow, RoutingRow, TrainRow};

/// A chart with the name of its file.
pub(super) struct Figure {
    pub(super) file: String,
    pub(super) svg: String,
    /// The same for half of the page's width, where it takes all of it.
    pub(super) half: Option<String>,
}

/// Curves of one chart beyond which nobody tells them apart.
const CURVES: usize = 12;

/// The curves of runs over their steps, the most important first.
pub(super) fn curves(runs: &[RunCurves]) -> Vec<Figure> {
    let mut figures = Vec::new();
    let mut add = |file: &str, title: &str, y: Axis, series: Vec<Series>| {
        let has_points = series.iter().any(|series| !series.points.is_empty());
        let chart = chart(title, y, series);
        let svg = chart.svg();
        if file == "loss" {
            let wide = XyChart { size: XyChart::WIDE, ..chart };
            figures.push(Figure { file: "loss.svg".into(), svg: wide.svg(), half: Some(svg) });
        } else if has_points {
            figures.push(Figure { file: format!("{file}.svg"), svg, half: None });
        }
    };
    add("loss", "Loss", Axis::linear("nats per target token"), loss(runs));
    let accuracy = series(runs, Style::Marked, |rows| {
        valid_rows(rows).map(|row| (row.step, 100.0 * row.accuracy)).collect()
    });
    add(
        "accuracy",
        "Validation accuracy",
        Axis::linear("% of target tokens predicted right"),
        accuracy,
    );
    let mut of_train =
        |file: &str, title: &str, y: Axis, style, value: fn(&TrainRow) -> Option<f64>| {
            let points = |rows: &[MetricsRow]| {
                train_rows(rows).filter_map(|row| Some((row.step, value(row)?))).collect()
            };
            add(file, title, y, series(runs, style, points));
        };
    let (smoothed, line) = (Style::Smoothed, Style::Line);
    of_train("learning_rate", "Learning rate", Axis::linear("of the last step"), line, |row| {
        Some(row.learning_rate)
    });
    of_train("gradient_norm", "Gradient norm", Axis::log("before clipping"), smoothed, |row| {
        Some(row.grad_norm)
    });
    let unit = "input and target tokens per second";
    of_train("tokens_per_second", "Speed", Axis::linear(unit), smoothed, |row| {
        Some(row.tokens_per_second)
    });
    let unit = "model FLOP/s, % of the device's measured peak";
    of_train("utilization", "Utilization", Axis::linear(unit), smoothed, |row| {
        row.peak_share.map(|share| 100.0 * share)
    });
    let unit = "seconds, summed over a row's steps";
    of_train("data_wait", "Waiting for data", Axis::linear(unit), line, |row| {
        row.data_wait_seconds
    });
    let memory = memory(runs);
    add("memory", "Memory of the process", Axis::linear("GB"), memory);

    let is_routed = |run: &RunCurves| train_rows(&run.rows).any(|row| !row.routing.is_empty());
    if runs.iter().any(is_routed) {
        let peak = routing(runs, RoutingRow::peak_load);
        add("expert_load", "Most chosen expert", Axis::linear("times its even share"), peak);
        let entropy = routing(runs, |layer| layer.entropy);
        add("router_entropy", "Router entropy", Axis::linear("nats a token"), entropy);
        let dropped = routing(runs, |layer| 100.0 * layer.dropped);
        add("dropped", "Dropped by full experts", Axis::linear("% of choices"), dropped);
    }
    figures
}

fn chart(title: &str, y: Axis, series: Vec<Series>) -> XyChart {
    XyChart { title: title.to_owned(), x: Axis::linear("step"), y, series, size: XyChart::HALF }
}

/// One curve a run.
fn series(
    runs: &[RunCurves],
    style: Style,
    points: impl Fn(&[MetricsRow]) -> Vec<(u64, f64)>,
) -> Vec<Series> {
    let curve = |(color, run): (usize, &RunCurves)| {
        Series::new(&run.name, steps(points(&run.rows)), style).color(color)
    };
    runs.iter().enumerate().map(curve).collect()
}

fn steps(points: Vec<(u64, f64)>) -> impl Iterator<Item = (f64, f64)> {
    points.into_iter().map(|(step, value)| (step as f64, value))
}

/// Training and validation loss: of one run in two colours; of several in a colour a run, where the training losses
/// stay in the background.
fn loss(runs: &[RunCurves]) -> Vec<Series> {
    let train = |rows: &[MetricsRow]| -> Vec<(u64, f64)> {
        train_rows(rows).map(|row| (row.step, row.loss)).collect()
    };
    let valid = |rows: &[MetricsRow]| -> Vec<(u64, f64)> {
        valid_rows(rows).map(|row| (row.step, row.loss)).collect()
    };
    if let [run] = runs {
        return vec![
            Series::new("training", steps(train(&run.rows)), Style::Smoothed),
            Series::new("validation", steps(valid(&run.rows)), Style::Marked).color(1),
        ];
    }
    let compared_by_training = runs.iter().all(|run| valid(&run.rows).is_empty());
    let style = if compared_by_training { Style::Smoothed } else { Style::Faint };
    let mut all = Vec::new();
    for (name, mut curves) in [
        ("training", series(runs, style, train)),
        ("validation", series(runs, Style::Marked, valid)),
    ] {
        for curve in &mut curves {
            curve.name = format!("{}, {name}", curve.name);
        }
        all.extend(curves.into_iter().filter(|curve| !curve.points.is_empty()));
    }
    all
}

/// Of one run what is in memory and the peak; of several the peaks.
fn memory(runs: &[RunCurves]) -> Vec<Series> {
    let gigabytes = |value: fn(&TrainRow) -> Option<u64>| {
        move |rows: &[MetricsRow]| -> Vec<(u64, f64)> {
            train_rows(rows).filter_map(|row| Some((row.step, value(row)? as f64 / 1e9))).collect()
        }
    };
    let peak = series(runs, Style::Line, gigabytes(|row| row.peak_memory_bytes));
    if runs.len() > 1 {
        return peak;
    }
    let resident = series(runs, Style::Line, gigabytes(|row| row.memory_bytes));
    let named = |name: &str, series: Vec<Series>, color| {
        series.into_iter().map(move |s| Series { name: name.into(), ..s }.color(color)).collect()
    };
    let both: [Vec<Series>; 2] = [named("in memory", resident, 0), named("peak", peak, 1)];
    both.into_iter().flatten().filter(|series| !series.points.is_empty()).collect()
}

/// Of one run a curve for each layer that has experts; of several the mean over a run's layers.
fn routing(runs: &[RunCurves], value: impl Fn(&RoutingRow) -> f64) -> Vec<Series> {
    let [run] = runs else {
        return series(runs, Style::Smoothed, |rows| {
            let routed = train_rows(rows).filter(|row| !row.routing.is_empty());
            let mean = |row: &TrainRow| {
                row.routing.iter().map(&value).sum::<f64>() / row.routing.len() as f64
            };
            routed.map(|row| (row.step, mean(row))).collect()
        });
    };
    let layers = train_rows(&run.rows).map(|row| row.routing.len()).max().unwrap_or(0);
    let of_layer = |number: usize| {
        let rows = train_rows(&run.rows);
        let rows = rows.filter_map(|row| Some((row.step, row.routing.get(number)?)));
        let rows: Vec<(u64, &RoutingRow)> = rows.collect();
        let name = rows.first().map(|(_, layer)| format!("{} {}", layer.stack, layer.layer));
        let points = rows.iter().map(|(step, layer)| (*step, value(layer))).collect();
        Series::new(&name.unwrap_or_default(), steps(points), Style::Line).color(number)
    };
    (0..layers).map(of_layer).collect()
}

/// The last coefficients of a run as a heat map for each stack, and all of them as curves for each layer.
pub(super) fn coefficients(rows: &[MetricsRow]) -> (Vec<Figure>, Vec<Figure>) {
    let recorded: Vec<&CoefficientsRow> = coefficient_rows(rows).collect();
    let Some(last) = recorded.last() else { return (Vec::new(), Vec::new()) };
    let mut maps = Vec::new();
    for stack in ["encoder", "decoder"] {
        let layers: Vec<&LayerCoefficients> =
            last.layers.iter().filter(|layer| layer.stack == stack).collect();
        if !layers.is_empty() {
            let svg = heat_map(stack, last.step, &layers).svg();
            maps.push(Figure { file: format!("coefficients_{stack}.svg"), svg, half: None });
        }
    }
    let mut curves = Vec::new();
    for (number, layer) in last.layers.iter().enumerate() {
        let names: Vec<String> = layer.named().map(|(name, _)| name).collect();
        for (part, names) in names.chunks(CURVES).enumerate() {
            let series = names.iter().enumerate().map(|(color, name)| {
                let points = recorded.iter().filter_map(|row| {
                    let value = row.layers.get(number)?.named().find(|(n, _)| n == name)?.1;
                    Some((row.step, value))
                });
                Series::new(name, steps(points.collect()), Style::Line).color(color)
            });
            let (title, file) = (layer.name(), format!("{}_{}", layer.stack, layer.layer));
            let more = if part == 0 { String::new() } else { format!("_{}", part + 1) };
            let svg = chart(&title, Axis::linear("coefficient"), series.collect()).svg();
            curves.push(Figure { file: format!("coefficients_{file}{more}.svg"), svg, half: None });
        }
    }
    (maps, curves)
}

/// A row for each layer: p, g, and those along the sequence.
fn heat_map(stack: &str, step: u64, layers: &[&LayerCoefficients]) -> HeatMap {
    let is_group = |name: &str, group: char| match group {
        's' => name.starts_with('a') || name == "b",
        letter => name.starts_with(letter),
    };
    let mut groups = Vec::new();
    for (title, group) in
        [("p: prediction", 'p'), ("g: correction", 'g'), ("along the sequence", 's')]
    {
        let mut columns: Vec<String> = Vec::new();
        for (name, _) in layers.iter().flat_map(|layer| layer.named()) {
            if is_group(&name, group) && !columns.contains(&name) {
                columns.push(name);
            }
        }
        if !columns.is_empty() {
            groups.push(ColumnGroup { name: title.into(), columns });
        }
    }
    let values = layers.iter().map(|layer| {
        let named: Vec<(String, f64)> = layer.named().collect();
        let value = |column: &String| {
            named.iter().find(|(name, _)| name == column).map_or(f64::NAN, |(_, value)| *value)
        };
        groups.iter().flat_map(|group| &group.columns).map(value).collect()
    });
    HeatMap {
        title: format!("Coefficients of the {stack} at step {step}"),
        rows: layers.iter().map(|layer| format!("layer {}", layer.layer)).collect(),
        values: values.collect(),
        groups,
        width: XyChart::HALF.0,
    }
}
