//! The charts of a report.

use super::history::{History, Quantity};
use super::{RunCurves, tasks};
use crate::chart::{Axis, ColumnGroup, HeatMap, Point, Series, Style, XyChart};
use crate::coefficients::{CoefficientsRow, LayerCoefficients};
use crate::metrics::{SourceScore, ValidRow};

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
    for task in tasks::names(runs.iter().map(|run| &run.history)) {
        add(&format!("score_{task}"), task, Axis::linear("%"), scores(runs, task));
    }
    let accuracy = series(runs, Style::Marked, |history| {
        validations(history, |row| Some(100.0 * row.accuracy))
    });
    let unit = "% of target tokens predicted right";
    add("accuracy", "Validation accuracy", Axis::linear(unit), accuracy);
    let of_text = series(runs, Style::Marked, |history| {
        validations(history, |row| Some(100.0 * row.text?.accuracy))
    });
    let unit = "% of the text's tokens predicted right";
    add("text_accuracy", "Validation accuracy over the text", Axis::linear(unit), of_text);
    for SourceChart { file, title, unit, series } in source_charts(runs) {
        add(&file, &title, Axis::linear(unit), series);
    }
    let mut of_train = |file: &str, title: &str, y: Axis, style, quantity, unit| {
        add(file, title, y, series(runs, style, |history| training(history, quantity, unit)));
    };
    let (smoothed, line) = (Style::Smoothed, Style::Line);
    let unit = Axis::linear("of the last step");
    of_train("learning_rate", "Learning rate", unit, line, Quantity::LearningRate, 1.0);
    let unit = Axis::log("before clipping");
    of_train("gradient_norm", "Gradient norm", unit, smoothed, Quantity::GradientNorm, 1.0);
    let unit = Axis::linear("input and target tokens per second");
    of_train("tokens_per_second", "Speed", unit, smoothed, Quantity::TokensPerSecond, 1.0);
    let unit = Axis::linear("model FLOP/s, % of the device's measured peak");
    of_train("utilization", "Utilization", unit, smoothed, Quantity::PeakShare, 100.0);
    let unit = Axis::linear("seconds, summed over a row's steps");
    of_train("data_wait", "Waiting for data", unit, line, Quantity::DataWait, 1.0);
    let memory = memory(runs);
    add("memory", "Memory of the process", Axis::linear("GB"), memory);

    if runs.iter().any(|run| !run.history.routing().is_empty()) {
        let peak = routing(runs, Quantity::PeakLoad, 1.0);
        add("expert_load", "Most chosen expert", Axis::linear("times its even share"), peak);
        let entropy = routing(runs, Quantity::RouterEntropy, 1.0);
        add("router_entropy", "Router entropy", Axis::linear("nats a token"), entropy);
        let dropped = routing(runs, Quantity::Dropped, 100.0);
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
    points: impl Fn(&History) -> Vec<Point>,
) -> Vec<Series> {
    let curve = |(color, run): (usize, &RunCurves)| {
        Series::new(&run.name, points(&run.history), style).color(color)
    };
    runs.iter().enumerate().map(curve).collect()
}

/// What training said of a quantity, times `unit`.
fn training(history: &History, quantity: Quantity, unit: f64) -> Vec<Point> {
    history.curve(quantity).map_or_else(Vec::new, |curve| curve.points(unit))
}

/// What the validations say.
fn validations(history: &History, value: impl Fn(&ValidRow) -> Option<f64>) -> Vec<Point> {
    let rows = history.validations().into_iter();
    rows.filter_map(|row| Some(Point::from((row.step as f64, value(row)?)))).collect()
}

/// Training and validation loss: of one run in two colours; of several in a colour a run, where the training losses
/// stay in the background.
fn loss(runs: &[RunCurves]) -> Vec<Series> {
    let train = |history: &History| training(history, Quantity::Loss, 1.0);
    let valid = |history: &History| validations(history, |row| Some(row.loss));
    if let [run] = runs {
        return vec![
            Series::new("training", train(&run.history), Style::Smoothed),
            Series::new("validation", valid(&run.history), Style::Marked).color(1),
        ];
    }
    let compared_by_training = runs.iter().all(|run| run.history.last_valid().is_none());
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

/// How well a task is done: of one run each metric, beside that of always giving the same answer; of several runs the means of
/// the metrics.
fn scores(runs: &[RunCurves], task: &str) -> Vec<Series> {
    let [run] = runs else {
        return series(runs, Style::Marked, |history| {
            validations(history, |row| Some(100.0 * tasks::score(row, task)?.mean()))
        });
    };
    let score = run.history.last_valid().and_then(|row| tasks::score(row, task));
    let metrics = score.into_iter().flat_map(|score| score.metrics.keys());
    let mut all = Vec::new();
    for (color, metric) in metrics.enumerate() {
        let points = validations(&run.history, |row| {
            Some(100.0 * tasks::score(row, task)?.metrics.get(metric)?)
        });
        let ends = [points.first(), points.last()].map(|point| point.map_or(0.0, |point| point.x));
        all.push(Series::new(metric, points, Style::Marked).color(color));
        let majority = run.result(task).and_then(|result| result.majority.as_ref());
        if let Some(majority) = majority
            && let Some(value) = majority.score.metrics.get(metric)
        {
            let name = format!("{metric}, always “{}”", majority.label);
            let points = ends.map(|step| (step, 100.0 * value));
            all.push(Series::new(&name, points, Style::Faint).color(color));
        }
    }
    all
}

/// A chart about the sources of mixtures.
struct SourceChart {
    file: String,
    title: String,
    unit: &'static str,
    series: Vec<Series>,
}

/// Of one run's mixture the losses, accuracies and epochs of its sources; of several runs the losses, a chart for each
/// source.
fn source_charts(runs: &[RunCurves]) -> Vec<SourceChart> {
    let score = |history: &History, source: &str, value: fn(&SourceScore) -> f64| {
        validations(history, |row| row.sources.iter().find(|score| score.name == source).map(value))
    };
    let chart = |file: &str, title: &str, unit, series| {
        let (file, title) = (file.to_owned(), title.to_owned());
        SourceChart { file, title, unit, series }
    };
    let mut names: Vec<&str> = Vec::new();
    for source in runs.iter().flat_map(|run| run.history.sources()) {
        if !names.contains(&source) {
            names.push(source);
        }
    }
    let [run] = runs else {
        let of_source = |(number, source): (usize, &&str)| {
            let curves =
                series(runs, Style::Marked, |history| score(history, source, |score| score.loss));
            let (file, title) =
                (format!("source_{}_loss", number + 1), format!("Validation loss of {source}"));
            chart(&file, &title, "nats per target token", curves)
        };
        return names.iter().enumerate().map(of_source).collect();
    };
    let of_each = |style, points: &dyn Fn(usize, &str) -> Vec<Point>| -> Vec<Series> {
        let sources = names.iter().enumerate();
        sources.map(|(n, name)| Series::new(name, points(n, name), style).color(n)).collect()
    };
    let history = &run.history;
    let losses = of_each(Style::Marked, &|_, name| score(history, name, |score| score.loss));
    let accuracies =
        of_each(Style::Marked, &|_, name| score(history, name, |score| 100.0 * score.accuracy));
    let epochs =
        of_each(Style::Line, &|number, _| training(history, Quantity::Epochs(number), 1.0));
    vec![
        chart("source_loss", "Validation loss by source", "nats per target token", losses),
        chart(
            "source_accuracy",
            "Validation accuracy by source",
            "% of target tokens predicted right",
            accuracies,
        ),
        chart("source_epochs", "Epochs by source", "times gone through", epochs),
    ]
}

/// Of one run what is in memory and the peak; of several the peaks.
fn memory(runs: &[RunCurves]) -> Vec<Series> {
    let gigabytes =
        |quantity| series(runs, Style::Line, move |history| training(history, quantity, 1e-9));
    let peak = gigabytes(Quantity::PeakMemory);
    if runs.len() > 1 {
        return peak;
    }
    let named = |name: &str, series: Vec<Series>, color| {
        series.into_iter().map(move |s| Series { name: name.into(), ..s }.color(color)).collect()
    };
    let resident = named("in memory", gigabytes(Quantity::Memory), 0);
    let both: [Vec<Series>; 2] = [resident, named("peak", peak, 1)];
    both.into_iter().flatten().filter(|series| !series.points.is_empty()).collect()
}

/// Of one run a curve for each layer that has experts; of several the mean over a run's layers.
fn routing(runs: &[RunCurves], quantity: fn(usize) -> Quantity, unit: f64) -> Vec<Series> {
    let layers = |history: &History| -> Vec<Vec<Point>> {
        let layers = 0..history.routing().len();
        layers.map(|layer| training(history, quantity(layer), unit)).collect()
    };
    let [run] = runs else {
        return series(runs, Style::Smoothed, |history| mean_curve(&layers(history)));
    };
    let curves = run.history.routing().iter().zip(layers(&run.history)).enumerate();
    curves
        .map(|(number, (layer, points))| {
            let name = format!("{} {}", layer.stack, layer.layer);
            Series::new(&name, points, Style::Line).color(number)
        })
        .collect()
}

/// The mean of curves that have points at the same steps.
fn mean_curve(curves: &[Vec<Point>]) -> Vec<Point> {
    let Some(first) = curves.first() else { return Vec::new() };
    let mean = |(number, point): (usize, &Point)| {
        let values = curves.iter().filter_map(|curve| curve.get(number)).map(|point| point.y);
        Point::from((point.x, values.sum::<f64>() / curves.len() as f64))
    };
    first.iter().enumerate().map(mean).collect()
}

/// The last coefficients of a run as a heat map for each stack, and all of them as curves for each layer.
pub(super) fn coefficients(history: &History) -> (Vec<Figure>, Vec<Figure>) {
    let recorded: Vec<&CoefficientsRow> = history.coefficients().collect();
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
        // A row has as many as another, in the same order.
        let values: Vec<(f64, Vec<f64>)> = recorded
            .iter()
            .filter_map(|row| Some((row.step as f64, row.layers.get(number)?.values().collect())))
            .collect();
        for (part, names) in names.chunks(CURVES).enumerate() {
            let series = names.iter().enumerate().map(|(color, name)| {
                let place = part * CURVES + color;
                let points =
                    values.iter().filter_map(|(step, of_row)| Some((*step, *of_row.get(place)?)));
                Series::new(name, points, Style::Line).color(color)
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
