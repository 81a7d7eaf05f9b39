//! A study's report: `report.html` and `report.md`, which say the same, `results.json`, `results.csv` and the charts.

use std::collections::BTreeMap;
use std::io;

use super::figures::{Figure, Figures};
use super::folder::{StudyFolder, StudyFolderError};
use super::plan::{Cell, Contrast, Metric, StudyPlan};
use super::results::{CellResult, Compared, Results, RunResult, Times};
use super::statistics::{PairedDifference, SpeedUp, Verdict};
use super::{markdown, page};
use crate::bench::Work;
use crate::metrics::{MetricsError, MetricsLog, MetricsRow};
use crate::progress::format_count;

/// Why a report can't be written.
#[derive(Debug, thiserror::Error)]
pub enum StudyReportError {
    /// The metrics of a run can't be read.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// A file can't be written.
    #[error(transparent)]
    Folder(#[from] StudyFolderError),
}

/// What a report shows, before it is a page.
pub(super) struct Document {
    pub(super) title: String,
    /// What the study asks.
    pub(super) question: String,
    /// Names and values.
    pub(super) facts: Vec<(String, String)>,
    pub(super) sections: Vec<Section>,
}

/// A part of a report.
#[derive(Default)]
pub(super) struct Section {
    pub(super) heading: String,
    /// Paragraphs above the tables.
    pub(super) text: Vec<String>,
    pub(super) tables: Vec<Table>,
    pub(super) figures: Vec<Figure>,
}

/// A table of a report.
pub(super) struct Table {
    pub(super) caption: String,
    pub(super) header: Vec<String>,
    pub(super) rows: Vec<Vec<Value>>,
}

/// What stands in a cell of a table.
pub(super) struct Value {
    pub(super) text: String,
    /// Whether an interval decides it.
    pub(super) is_decided: bool,
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self { text, is_decided: false }
    }
}

/// Writes a study's results and report into its folder.
///
/// # Errors
///
/// If the metrics of a run can't be read, or a file can't be written.
pub fn write(
    plan: &StudyPlan,
    folder: &StudyFolder,
    results: &Results,
) -> Result<(), StudyReportError> {
    let mut rows = BTreeMap::new();
    for run in &results.runs {
        let path = folder.run_folder(&run.name).metrics();
        rows.insert(run.name.clone(), MetricsLog::read(&path)?);
    }
    let document = document(plan, results, &rows);
    let path = |name: &str| folder.path().join(name);
    let figures = || document.sections.iter().flat_map(|section| &section.figures);
    for figure in figures() {
        folder.write(&path("charts").join(&figure.file), figure.svg.as_bytes())?;
    }
    folder.keep_charts(figures().map(|figure| figure.file.as_str()).collect())?;
    folder.write(&path("report.html"), page::html(&document).as_bytes())?;
    folder.write(&path("report.md"), markdown::markdown(&document).as_bytes())?;
    folder.write(&path("results.csv"), results.csv().as_bytes())?;
    let json = serde_json::to_vec_pretty(results).map_err(|source| StudyFolderError::File {
        path: folder.results(),
        source: io::Error::from(source),
    })?;
    // Last: its presence says that the report is there.
    Ok(folder.write(&folder.results(), &json)?)
}

fn document(
    plan: &StudyPlan,
    results: &Results,
    rows: &BTreeMap<String, Vec<MetricsRow>>,
) -> Document {
    let figures = Figures { plan, results, rows };
    let sections = [
        quality(plan, results),
        variant_by_variant(plan, results),
        contrasts(plan, results),
        fine_tuned(plan, results),
        equal_quality(plan, results, &figures),
        speed(plan, results),
        budget(plan, results, &figures),
        Section {
            heading: "Curves".into(),
            text: vec![
                "Means over the seeds, on the training.eval_examples that are scored while a run trains; the last point is on \
                 training.final_eval_examples, where these are more. Bands, of at least 3 seeds: of a loss, a standard \
                 deviation to either side; of a paired difference, its 95 % interval."
                    .into(),
            ],
            figures: figures.curves(),
            ..Section::default()
        },
        Section {
            heading: "Coefficients".into(),
            text: vec![
                "What the layers learned, beside what leaves a dense model as it is: p = I, g = 1; along the sequence a1 = 1, a2 = 0, b = 1. Means over the seeds.".into(),
            ],
            figures: figures.coefficients(),
            ..Section::default()
        },
        methods(plan, results),
    ];
    let is_shown = |section: &Section| {
        !section.tables.is_empty() || !section.figures.is_empty() || section.heading == "Methods"
    };
    Document {
        title: plan.title.clone(),
        question: plan.question.clone(),
        facts: facts(plan, results),
        sections: sections.into_iter().filter(is_shown).collect(),
    }
}

fn facts(plan: &StudyPlan, results: &Results) -> Vec<(String, String)> {
    let mut facts = vec![(
        "Runs".to_owned(),
        match results.missing.len() {
            0 => format!("{}, all finished", results.planned),
            missing => format!("{} of {} finished", results.planned - missing, results.planned),
        },
    )];
    let mut add = |name: &str, value: String| facts.push((name.to_owned(), value));
    if results.planned_fine_tunings > 0 {
        let (planned, missing) = (results.planned_fine_tunings, results.missing_fine_tunings.len());
        add(
            "Fine-tunings",
            match missing {
                0 => format!("{planned}, all finished"),
                missing => format!("{} of {planned} finished", planned - missing),
            },
        );
    }
    add("Compared with", plan.label(&plan.baseline).to_owned());
    let steps: Vec<u64> = results.runs.iter().map(|run| run.steps).collect();
    let tokens: Vec<u64> = results.runs.iter().map(|run| run.tokens).collect();
    let range = |values: &[u64], show: fn(u64) -> String| match (
        values.iter().min(),
        values.iter().max(),
    ) {
        (Some(low), Some(high)) if low == high => show(*low),
        (Some(low), Some(high)) => format!("{} to {}", show(*low), show(*high)),
        _ => "–".into(),
    };
    add("Steps", range(&steps, |steps| steps.to_string()));
    add("Training tokens", range(&tokens, format_count));
    let scored: Vec<u64> = results.runs.iter().map(|run| run.valid_tokens).collect();
    add("Validation targets", range(&scored, format_count));
    let mut optimizations: Vec<String> = Vec::new();
    for run in &plan.runs {
        let optimization = run.config.trainer().optimization();
        if !optimizations.contains(&optimization) {
            optimizations.push(optimization);
        }
    }
    add("Optimization", optimizations.join("; "));
    if let Some(latency) = &results.latency {
        let machine = &latency.setting.machine;
        let backend = &latency.setting.backend;
        add("Timed on", format!("{}, {} cores, {backend}", machine.cpu, machine.cores));
    }
    let of_runs = |of: fn(&RunResult) -> &str| {
        let mut known: Vec<&str> =
            results.runs.iter().map(of).filter(|of| !of.is_empty()).collect();
        known.sort_unstable();
        known.dedup();
        known.join("; ")
    };
    for (name, value) in [
        ("Trained by", of_runs(|run| &run.software)),
        ("Computed by", of_runs(|run| &run.arithmetic)),
        ("Reported by", format!("altup {}", results.version)),
    ] {
        if !value.is_empty() {
            add(name, value);
        }
    }
    facts
}

/// A caption of the cells of a size and budget; empty where there is only one.
fn group_caption(plan: &StudyPlan, cell: &Cell) -> String {
    let mut words = Vec::new();
    if plan.sizes.len() > 1 {
        words.push(cell.size.clone());
    }
    if plan.multiples.len() > 1 {
        words.push(format!("{} × the budget", cell.multiple));
    }
    words.join(", ")
}

/// The cells of each size and budget, in the order of tables.
pub(super) fn groups(results: &Results) -> Vec<Vec<&CellResult>> {
    let mut groups: Vec<Vec<&CellResult>> = Vec::new();
    for cell in &results.cells {
        let belongs = |group: &Vec<&CellResult>| {
            let first = &group[0].cell;
            (&first.size, first.multiple) == (&cell.cell.size, cell.cell.multiple)
        };
        match groups.last_mut().filter(|group| belongs(group)) {
            Some(group) => group.push(cell),
            None => groups.push(vec![cell]),
        }
    }
    groups
}

fn quality(plan: &StudyPlan, results: &Results) -> Section {
    let mut header: Vec<String> =
        ["", "Parameters: tables", "all else", "Seeds"].map(String::from).into();
    for metric in &plan.metrics {
        header.extend([metric.label().to_owned(), "to the baseline".to_owned()]);
    }
    let table = |group: Vec<&CellResult>| Table {
        caption: group_caption(plan, &group[0].cell),
        header: header.clone(),
        rows: group.into_iter().map(|cell| quality_row(plan, cell)).collect(),
    };
    Section {
        heading: "Quality".into(),
        text: vec![
            "Mean ± standard deviation over the seeds; then the mean paired difference to the baseline with its 95 % \
             interval, bold where the interval excludes zero."
                .into(),
        ],
        tables: groups(results).into_iter().map(table).collect(),
        figures: Vec::new(),
    }
}

/// The differences between all variants, of which [`quality`] has those to the baseline alone.
fn variant_by_variant(plan: &StudyPlan, results: &Results) -> Section {
    let Some(&metric) = plan.metrics.first() else { return Section::default() };
    let table = |group: &Vec<&CellResult>| {
        let labels = group.iter().map(|cell| cell.label.clone());
        let row = |number: usize| -> Vec<Value> {
            let difference = |column: &&CellResult| {
                let difference = group[number].to_others.get(&column.cell.variant);
                difference.map_or("–".to_owned().into(), |difference| {
                    difference_value(scale(metric), difference)
                })
            };
            let label = std::iter::once(group[number].label.clone().into());
            let above = (number..group.len() - 1).map(|_| String::new().into());
            label.chain(group[..number].iter().map(difference)).chain(above).collect()
        };
        Table {
            caption: group_caption(plan, &group[0].cell),
            header: std::iter::once(String::new()).chain(labels.take(group.len() - 1)).collect(),
            rows: (1..group.len()).map(row).collect(),
        }
    };
    Section {
        heading: "Variant by variant".into(),
        text: vec![format!(
            "{}: a row's minus a column's, the mean paired difference with its 95 % interval, bold where the interval \
             excludes zero.",
            metric.label()
        )],
        // Of two there is nothing that the baseline's column doesn't say.
        tables: groups(results).iter().filter(|group| group.len() > 2).map(table).collect(),
        figures: Vec::new(),
    }
}

/// Sums over variants.
fn contrasts(plan: &StudyPlan, results: &Results) -> Section {
    let Some(&metric) = plan.metrics.first() else { return Section::default() };
    let mut tables: Vec<Table> = Vec::new();
    for result in &results.contrasts {
        let (size, multiple) = (result.size.clone(), result.multiple);
        let cell = Cell { size, variant: plan.baseline.clone(), multiple };
        let caption = group_caption(plan, &cell);
        let row = vec![
            result.label.clone().into(),
            result.value.pairs.to_string().into(),
            difference_value(scale(metric), &result.value),
        ];
        match tables.last_mut().filter(|table| table.caption == caption) {
            Some(table) => table.rows.push(row),
            None => tables.push(Table {
                caption,
                header: ["", "Seeds", metric.label()].map(String::from).into(),
                rows: vec![row],
            }),
        }
    }
    let formula = |contrast: &Contrast| {
        let term = |(name, weight): (&String, &f64)| {
            format!("{} × {}", signed(*weight, 2), plan.label(name))
        };
        let terms: Vec<String> = contrast.weights.iter().map(term).collect();
        format!("{}: {}.", contrast.label, terms.join(", "))
    };
    let mut text = vec![
        "Sums over variants, seed by seed: the mean with its 95 % interval, bold where that excludes zero.".to_owned(),
    ];
    text.extend(plan.contrasts.iter().map(formula));
    Section { heading: "Contrasts".into(), text, tables, figures: Vec::new() }
}

fn budget(plan: &StudyPlan, results: &Results, figures: &Figures<'_>) -> Section {
    let Some(&metric) = plan.metrics.first() else { return Section::default() };
    let least = plan.multiples.iter().min().copied().unwrap_or(1);
    let rows = results.cells.iter().filter_map(|cell| {
        let mut name = vec![cell.label.clone(), format!("{} × the budget", cell.cell.multiple)];
        if plan.sizes.len() > 1 {
            name.insert(0, cell.cell.size.clone());
        }
        Some(vec![name.join(", ").into(), difference_value(scale(metric), cell.change.as_ref()?)])
    });
    let rows: Vec<Vec<Value>> = rows.collect();
    let header = vec![String::new(), format!("change since {least} ×")];
    let tables = match rows.is_empty() {
        true => Vec::new(),
        false => vec![Table { caption: String::new(), header, rows }],
    };
    Section {
        heading: "Budget".into(),
        text: vec![format!(
            "The paired difference of the {} to the baseline by how many times the budget the runs are long; and how it has \
             changed since the least budget, seed by seed, with the 95 % interval, bold where that excludes zero.",
            metric.label()
        )],
        tables,
        figures: figures.gaps(),
    }
}

fn quality_row(plan: &StudyPlan, cell: &CellResult) -> Vec<Value> {
    let count = cell.metrics.get(&Metric::ValidLoss).map_or(0, |compared| compared.spread.count);
    let parameters = |of: fn(&CellResult) -> Option<usize>| {
        of(cell).map_or("–".to_owned(), |count| format_count(count as u64))
    };
    let seeds = match count == cell.planned {
        true => count.to_string(),
        false => format!("{count} of {}", cell.planned),
    };
    let mut row: Vec<Value> = vec![
        cell.label.clone().into(),
        parameters(|cell| Some(cell.parameters?.tables)).into(),
        parameters(|cell| Some(cell.parameters?.rest)).into(),
        seeds.into(),
    ];
    for &metric in &plan.metrics {
        match cell.metrics.get(&metric) {
            Some(compared) => {
                let [own, difference] = compared_values(scale(metric), compared);
                row.extend([of_seeds(own, compared.spread.count, count), difference]);
            }
            None => row.extend(nothing()),
        }
    }
    row
}

/// A figure over the seeds, and beside the baseline's.
fn compared_values(scale: Scale, compared: &Compared) -> [Value; 2] {
    let difference = compared
        .difference
        .map_or(String::new().into(), |difference| difference_value(scale, &difference));
    [spread_text(scale, compared).into(), difference]
}

/// A figure that says of how many seeds it is, where it is not of all.
fn of_seeds(mut value: Value, seeds: usize, all: usize) -> Value {
    if seeds != all {
        value.text.push_str(&format!(" ({seeds} of {all} seeds)"));
    }
    value
}

fn difference_value(scale: Scale, difference: &PairedDifference) -> Value {
    Value {
        text: difference_text(scale, difference),
        is_decided: difference.verdict() != Verdict::Undecided,
    }
}

/// In place of a figure that is not there yet.
fn nothing() -> [Value; 2] {
    ["–", ""].map(|text| text.to_owned().into())
}

/// What the models made of the study's tasks.
fn fine_tuned(plan: &StudyPlan, results: &Results) -> Section {
    let tasks = plan.tasks();
    let is_scored = |cell: &CellResult| !cell.fine_tuned.tasks.is_empty();
    if !results.cells.iter().any(is_scored) {
        return Section::default();
    }
    let with_mean = tasks.len() > 1;
    let mut header = vec![String::new()];
    for task in tasks.iter().copied().chain(with_mean.then_some("mean of the tasks")) {
        header.extend([task.to_owned(), "to the baseline".to_owned()]);
    }
    let table = |group: Vec<&CellResult>| {
        let mut rows: Vec<Vec<Value>> = group
            .iter()
            .map(|cell| {
                let compared = |of: Option<&Compared>| {
                    of.map_or_else(nothing, |compared| {
                        let [own, difference] = compared_values(PERCENT, compared);
                        [of_seeds(own, compared.spread.count, cell.planned), difference]
                    })
                };
                let of_tasks = tasks.iter().map(|task| cell.fine_tuned.tasks.get(*task));
                let mean = with_mean.then_some(cell.fine_tuned.mean.as_ref());
                let values = of_tasks.chain(mean).flat_map(compared);
                std::iter::once(cell.label.clone().into()).chain(values).collect()
            })
            .collect();
        rows.extend(majority_row(&tasks, results, with_mean));
        Table { caption: group_caption(plan, &group[0].cell), header: header.clone(), rows }
    };
    let mut text = vec![
        "Each run's model, fine-tuned on each task alone: the mean of the task's metrics on its validation split, in percent, \
         of the checkpoint that is best there. Mean ± standard deviation over the seeds of the runs; then the mean \
         paired difference to the baseline with its 95 % interval, bold where the interval excludes zero."
            .to_owned(),
    ];
    if !results.missing_fine_tunings.is_empty() {
        text.push(format!("Not finished: {}.", results.missing_fine_tunings.join(", ")));
    }
    Section {
        heading: "Fine-tuned".into(),
        text,
        tables: groups(results).into_iter().map(table).collect(),
        figures: Vec::new(),
    }
}

/// The scores of the label that is most frequent in training; none where no task has labels.
fn majority_row(tasks: &[&str], results: &Results, with_mean: bool) -> Option<Vec<Value>> {
    let score = |task: &&str| {
        let figures = results.runs.iter().flat_map(|run| &run.tasks);
        let of_task = figures.filter(|figures| figures.task == *task);
        of_task.filter_map(|figures| figures.majority_score).next()
    };
    let scores: Vec<Option<f64>> = tasks.iter().map(score).collect();
    if scores.iter().all(Option::is_none) {
        return None;
    }
    let (factor, decimals) = PERCENT;
    let mut row: Vec<Value> = vec!["always the most frequent label".to_owned().into()];
    for score in scores.into_iter().chain(with_mean.then_some(None)) {
        let text = score.map_or_else(|| "–".to_owned(), |of| format!("{:.decimals$}", factor * of));
        row.extend([text.into(), String::new().into()]);
    }
    Some(row)
}

/// What a figure is multiplied by in tables, and its decimals there.
type Scale = (f64, usize);

/// Shares and scores in percent.
const PERCENT: Scale = (100.0, 2);

fn scale(metric: Metric) -> Scale {
    match metric {
        Metric::ValidLoss | Metric::BestValidLoss | Metric::TextLoss => (1.0, 4),
        Metric::Accuracy | Metric::TextAccuracy => PERCENT,
        Metric::Perplexity => (1.0, 2),
    }
}

fn spread_text((factor, decimals): Scale, compared: &Compared) -> String {
    let mean = format!("{:.decimals$}", factor * compared.spread.mean);
    let deviation = compared.spread.standard_deviation;
    deviation
        .map_or(mean.clone(), |deviation| format!("{mean} ± {:.decimals$}", factor * deviation))
}

fn difference_text((factor, decimals): Scale, difference: &PairedDifference) -> String {
    let number = |value: f64| signed(factor * value, decimals);
    let mut text = number(difference.mean);
    match difference.interval {
        Some(interval) => {
            text.push_str(&format!(" [{}, {}]", number(interval.low), number(interval.high)));
            let seeds = difference.pairs + difference.unpaired;
            if difference.unpaired > 0 {
                text.push_str(&format!(" ({} of {seeds} seeds)", difference.pairs));
            } else if difference.is_of_few() {
                text.push_str(&format!(" ({seeds} seeds)"));
            }
        }
        None => text.push_str(" (1 seed, no interval)"),
    }
    text
}

/// A number with its sign, a minus as long as a plus.
pub(super) fn signed(value: f64, decimals: usize) -> String {
    let text = format!("{value:+.decimals$}");
    // What rounds to zero has no sign.
    match text[1..].chars().all(|digit| "0.".contains(digit)) {
        true => text[1..].to_owned(),
        false => text.replace('-', "−"),
    }
}

/// A ratio of times, and what is known of it: of how many of all the variant's seeds it is, where it isn't of all, or of
/// few.
fn speed_up_text(speed_up: &SpeedUp, all: usize) -> String {
    let (SpeedUp::OnLine { seeds, rounds, .. }
    | SpeedUp::BetterThanLine { seeds, rounds, .. }
    | SpeedUp::WorseThanLine { seeds, rounds, .. }) = *speed_up;
    // Why there is no interval.
    let lacks = match (seeds, rounds) {
        (..2, _) => Some("1 seed, no interval"),
        (_, ..2) => Some("1 round, no interval"),
        _ => None,
    };
    let interval = |text: String| lacks.map_or(text, |lacks| format!("({lacks})"));
    let beyond = |than: &str, bound: Option<f64>, side: &str| {
        let bound = match (bound, lacks) {
            (Some(bound), _) => format!(", {side} {bound:.2} ×"),
            (None, Some(lacks)) => format!(" ({lacks})"),
            (None, None) => " in the mean, none is excluded".to_owned(),
        };
        format!("beyond the dense models measured: {than}{bound}")
    };
    let text = match *speed_up {
        SpeedUp::OnLine { ratio, low, high, .. } => {
            let interval = interval(match (low, high) {
                (Some(low), Some(high)) => format!("[{low:.2}, {high:.2}]"),
                (Some(low), None) => format!("[{low:.2}, beyond the dense models measured)"),
                (None, Some(high)) => format!("(beyond the dense models measured, {high:.2}]"),
                (None, None) => "(no dense model measured is excluded)".to_owned(),
            });
            format!("{ratio:.2} × {interval}")
        }
        SpeedUp::BetterThanLine { above, .. } => beyond("better than all", above, "above"),
        SpeedUp::WorseThanLine { below, .. } => beyond("worse than the fastest", below, "below"),
    };
    match (seeds == all, seeds) {
        (false, _) => format!("{text} ({seeds} of {all} seeds)"),
        (true, 2..PairedDifference::FEW) => format!("{text} ({seeds} seeds)"),
        (true, _) => text,
    }
}

fn equal_quality(plan: &StudyPlan, results: &Results, figures: &Figures<'_>) -> Section {
    if plan.scaling_line.is_empty() {
        return Section::default();
    }
    let batch_sizes: Vec<usize> = match &results.latency {
        Some(latency) => latency.setting.measure.batch_sizes.clone(),
        None => Vec::new(),
    };
    let of = |cell: &CellResult, rows: usize| {
        let is_asked = |times: &&Times| (times.work, times.batch_size) == (Work::Forward, rows);
        cell.times.iter().find(is_asked).and_then(|times| times.speed_up)
    };
    let mut rows = Vec::new();
    for cell in &results.cells {
        let speed_ups: Vec<Option<SpeedUp>> =
            batch_sizes.iter().map(|&rows| of(cell, rows)).collect();
        if speed_ups.iter().all(Option::is_none) {
            continue;
        }
        let mut row: Vec<Value> = vec![
            [group_caption(plan, &cell.cell), cell.label.clone()]
                .into_iter()
                .filter(|text| !text.is_empty())
                .collect::<Vec<_>>()
                .join(": ")
                .into(),
        ];
        let seeds = cell.metrics.get(&Metric::ValidLoss).map_or(0, |loss| loss.spread.count);
        row.extend(speed_ups.iter().map(|speed_up| Value {
            text: speed_up.as_ref().map_or("–".to_owned(), |of| speed_up_text(of, seeds)),
            is_decided: speed_up.is_some_and(|speed_up| match speed_up {
                SpeedUp::OnLine { low, high, .. } => {
                    low.is_some_and(|low| low > 1.0) || high.is_some_and(|high| high < 1.0)
                }
                SpeedUp::BetterThanLine { above, .. } => above.is_some_and(|above| above > 1.0),
                SpeedUp::WorseThanLine { below, .. } => below.is_some_and(|below| below < 1.0),
            }),
        }));
        rows.push(row);
    }
    let header = |rows: &usize| format!("batch {rows}");
    let header: Vec<String> =
        std::iter::once(String::new()).chain(batch_sizes.iter().map(header)).collect();
    let tables = match rows.is_empty() {
        true => Vec::new(),
        false => vec![Table { caption: String::new(), header, rows }],
    };
    let of_table = "The latency of the dense model that would have the variant's final loss, over the variant's own: above 1 \
                    the variant is faster. The dense model is interpolated between those measured, in the logarithm of the \
                    latency, and never extrapolated. Bold where the interval excludes 1.";
    let without = "There is no line of dense models yet, which takes two of them that are trained and timed, and so no speed \
                   at equal quality.";
    let of_pictures = "Bars in the pictures are no intervals: up and down a standard deviation over the seeds to either side, \
                       across the shortest and the longest round.";
    Section {
        heading: "Speed at equal quality".into(),
        text: [if tables.is_empty() { without } else { of_table }, of_pictures]
            .map(String::from)
            .into(),
        tables,
        figures: figures.quality_against_latency(),
    }
}

fn speed(plan: &StudyPlan, results: &Results) -> Section {
    let Some(latency) = &results.latency else { return Section::default() };
    let measure = &latency.setting.measure;
    let mut columns: Vec<(Work, usize, String)> = measure
        .batch_sizes
        .iter()
        .map(|&rows| (Work::Forward, rows, format!("forward, batch {rows}")))
        .collect();
    columns.extend(
        measure
            .batch_sizes
            .iter()
            .map(|&rows| (Work::Prefill, rows, format!("encoder and first token, batch {rows}"))),
    );
    let rows = measure.train_batch_size;
    columns.push((Work::Train, rows, format!("training step, batch {rows}")));
    let header =
        std::iter::once(String::new()).chain(columns.iter().map(|(.., name)| name.clone()));
    let header: Vec<String> = header.collect();
    // Times are the model's: budgets share them.
    let first = plan.multiples.first().copied().unwrap_or(1);
    let tables = groups(results).into_iter().filter(|group| group[0].cell.multiple == first);
    let row = |cell: &CellResult| -> Vec<Value> {
        let of = |(work, rows, _): &(Work, usize, String)| {
            let is_asked = |times: &&Times| (times.work, times.batch_size) == (*work, *rows);
            let text = |times: &Times| times_text(times, measure.rounds);
            cell.times.iter().find(is_asked).map_or("–".to_owned(), text).into()
        };
        std::iter::once(cell.label.clone().into()).chain(columns.iter().map(of)).collect()
    };
    let tables = tables.map(|group| Table {
        caption: if plan.sizes.len() > 1 { group[0].cell.size.clone() } else { String::new() },
        header: header.clone(),
        rows: group.into_iter().map(row).collect(),
    });
    Section {
        heading: "Speed".into(),
        text: vec![format!(
            "Milliseconds: medians of {} with the shortest and the longest, then the ratio to the baseline, which is the median \
             of the rounds' ratios with the least and the largest. {} input and {} target tokens. Every model was timed alone, \
             in a process of its own, all of them in turns. A training step is one of AdamW, whatever the runs were trained \
             with.",
            rounds_text(measure.rounds),
            measure.input_length,
            measure.target_length
        )],
        tables: tables.collect(),
        figures: Vec::new(),
    }
}

fn rounds_text(rounds: usize) -> String {
    if rounds == 1 { "1 round".to_owned() } else { format!("{rounds} rounds") }
}

/// A time and its ratio to the baseline's; and its rounds, if they are not all that were planned.
fn times_text(times: &Times, planned: usize) -> String {
    let milliseconds = |seconds: f64| match 1000.0 * seconds {
        value @ 100.0.. => format!("{value:.0}"),
        value @ 10.0.. => format!("{value:.1}"),
        value => format!("{value:.2}"),
    };
    let mut text = format!(
        "{} ({} – {})",
        milliseconds(times.seconds),
        milliseconds(times.shortest),
        milliseconds(times.longest)
    );
    if let (Some(ratio), Some(range)) = (times.to_baseline, times.to_baseline_range) {
        text.push_str(&format!(", {ratio:.2} ×"));
        // The baseline's own are all 1.
        if range.low < range.high {
            text.push_str(&format!(" ({:.2} – {:.2})", range.low, range.high));
        }
    }
    if times.rounds != planned {
        text.push_str(&format!(" ({} of {planned} rounds)", times.rounds));
    }
    text
}

fn methods(plan: &StudyPlan, results: &Results) -> Section {
    let mut text = vec![
        "Runs of a seed see the same batches in the same order, whatever the variant, and are validated on the same examples; \
         where a layer's shape is the same, it starts from the same weights. Differences are taken seed by seed, which \
         removes what the variants of a seed share. Intervals are Student's t over the differences, at 95 %: they are about \
         other seeds, not about other text. With 2 seeds they are very wide, with 1 there is none. None is adjusted for \
         multiple comparisons: of 20 differences that are zero in truth, one is expected to be bold."
            .to_owned(),
        "The interval of a speed-up is Fieller's: the latencies at which the interpolated dense models don't differ \
         from the variant by their paired t test. Half the width of the interval of the rounds' ratios is added in quadrature. \
         An end that no dense model measured bounds is left open."
            .to_owned(),
    ];
    if !plan.scaling_line.is_empty() {
        let line: Vec<&str> = plan.scaling_line.iter().map(|name| plan.label(name)).collect();
        text.push(format!("The line of dense models: {}.", line.join(", ")));
    }
    if !results.missing.is_empty() {
        text.push(format!("Not finished: {}.", results.missing.join(", ")));
    }
    for (run, reason) in &results.failed {
        // A loss that is no number can't be averaged: the means are of the others, and so too good.
        text.push(format!("Failed, and in no mean: {run}: {reason}"));
    }
    Section { heading: "Methods".into(), text, ..Section::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coefficients::LayerCoefficients;
    use crate::machine::Machine;
    use crate::metrics::{TokenScore, ValidRow};
    use crate::study::latency::{Latency, Setting, Timed};
    use crate::study::plan::Overrides;
    use crate::study::results::Parameters;
    use crate::study::statistics::Interval;
    use altup_models::T5Config;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;
    use std::path::Path;

    const STUDY: &str = "../../configs/studies/widths.toml";

    /// What the shipped study of widths would come to if losses and latencies were these, with the same noise for all
    /// variants of a seed, and a little of their own.
    fn simulated(missing: &[&str]) -> (StudyPlan, Results, BTreeMap<String, Vec<MetricsRow>>) {
        let plan = StudyPlan::read(Path::new(STUDY), &Overrides::default()).unwrap();
        let mut random = ChaCha8Rng::seed_from_u64(5);
        let mut noise =
            |scale: f64| scale * (random.random::<f64>() + random.random::<f64>() - 1.0);
        let size = |cell: &Cell| match cell.size.as_str() {
            "tiny" => (4.10, 0.010),
            "mini" => (3.85, 0.030),
            _ => (3.75, 0.055),
        };
        // The loss beside dense, and how many times the time.
        let effect = |cell: &Cell| match cell.variant.as_str() {
            "altup-k2" => (-0.036, 1.15),
            "altup-k4" => (-0.050, 1.45),
            "sameup-k2" => (-0.028, 1.13),
            "recycled-k2" => (-0.030, 1.03),
            "sum-k2" => (-0.012, 1.05),
            "dense-wide2" => (-0.22, 2.9),
            _ => (0.0, 1.0),
        };
        let commons: BTreeMap<u64, f64> = (1..=5).map(|seed| (seed, noise(0.05))).collect();
        let (mut runs, mut rows) = (Vec::new(), BTreeMap::new());
        for run in plan.runs.iter().filter(|run| !missing.contains(&run.name.as_str())) {
            let (base, _) = size(&run.cell);
            let own = effect(&run.cell).0 + commons[&run.seed] + noise(0.01);
            let valid = |step: u64| {
                let loss = base + own + 2.0 * (-(step as f64) / 250.0).exp();
                let (perplexity, tokens) = (loss.exp(), 20_000);
                let accuracy = 0.32 - 0.05 * (loss - 4.0);
                MetricsRow::Valid(ValidRow {
                    step,
                    loss,
                    perplexity,
                    accuracy,
                    tokens,
                    text: Some(TokenScore {
                        loss: loss + 1.0,
                        accuracy: accuracy / 4.0,
                        tokens: 14_000,
                    }),
                    ..ValidRow::default()
                })
            };
            let last = valid(1200);
            rows.insert(run.name.clone(), (1..=12).map(|pass| valid(100 * pass)).collect());
            let MetricsRow::Valid(last) = last else { unreachable!() };
            let blocks = run.config.model.altup.as_ref().map_or(0, |altup| altup.num_blocks);
            let mut layer = |number: usize| LayerCoefficients {
                stack: if number < 4 { "encoder" } else { "decoder" }.into(),
                layer: number % 4,
                p: (0..blocks)
                    .map(|row| {
                        let one = |column| f64::from(u8::from(row == column));
                        (0..blocks).map(|column| one(column) + noise(0.2)).collect()
                    })
                    .collect(),
                g: (0..blocks).map(|_| 1.0 + noise(0.3)).collect(),
                sequence: Vec::new(),
            };
            let layers = if blocks > 0 { 0..8 } else { 0..0 };
            runs.push(RunResult {
                coefficients: layers.map(&mut layer).collect(),
                name: run.name.clone(),
                cell: run.cell.clone(),
                seed: run.seed,
                model: T5Config::default(),
                parameters: Parameters { tables: 2_097_152, rest: 1_573_000 },
                steps: 1200,
                tokens: 1_507_200,
                valid_loss: last.loss,
                best_valid_loss: last.loss,
                best_step: 1200,
                accuracy: last.accuracy,
                perplexity: last.perplexity,
                valid_tokens: 109_000,
                text: last.text,
                tokens_per_second: 9000.0,
                train_seconds: 170.0,
                data: String::new(),
                arithmetic: String::new(),
                software: String::new(),
                tasks: Vec::new(),
            });
        }
        let mut timed = Vec::new();
        for round in 0..5 {
            let machine = noise(0.05);
            for cell in plan.cells() {
                for (work, batch_size) in [
                    (Work::Forward, 1),
                    (Work::Forward, 32),
                    (Work::Prefill, 1),
                    (Work::Prefill, 32),
                    (Work::Train, 4),
                ] {
                    let batch = batch_size as f64;
                    let seconds =
                        size(&cell).1 * effect(&cell).1 * batch * (machine + noise(0.01)).exp();
                    let peak_bytes = None;
                    timed.push(Timed {
                        round,
                        model: cell.model(),
                        batch_size,
                        work,
                        seconds,
                        peak_bytes,
                    });
                }
            }
        }
        let setting = Setting {
            machine: Machine { cpu: "a made processor".into(), cores: 2, system: "none".into() },
            backend: "flex".into(),
            program: String::new(),
            threads: 2,
            measure: plan.measure.clone(),
            models: BTreeMap::new(),
        };
        let missing = missing.iter().map(|&name| name.to_owned()).collect();
        let results = Results::of(&plan, runs, missing, Some(Latency { setting, timed }));
        (plan, results, rows)
    }

    fn table<'a>(document: &'a Document, heading: &str, caption: &str) -> &'a Table {
        let section = document.sections.iter().find(|section| section.heading == heading).unwrap();
        section.tables.iter().find(|table| table.caption == caption).unwrap()
    }

    fn row<'a>(table: &'a Table, label: &str) -> &'a [Value] {
        table.rows.iter().find(|row| row[0].text == label).unwrap()
    }

    /// Results of before a figure was kept are in none of its means, also where those of the baseline lack it too.
    #[test]
    fn a_figure_that_some_runs_lack_says_of_how_many_it_is() {
        let (plan, mut results, rows) = simulated(&[]);
        for run in results.runs.iter_mut().filter(|run| run.seed == 1) {
            run.text = None;
        }
        let results = Results::of(&plan, results.runs, Vec::new(), results.latency);
        let document = document(&plan, &results, &rows);
        let altup = row(table(&document, "Quality", "tiny"), "AltUp K=2");
        assert_eq!(altup[3].text, "5");
        assert!(!altup[4].text.contains("seeds"), "{}", altup[4].text);
        assert!(altup[6].text.ends_with(" (4 of 5 seeds)"), "{}", altup[6].text);
    }

    #[test]
    fn a_report_says_what_simulated_results_hold() {
        let missing = ["mini-altup-k2-seed3", "mini-sum-k2-seed2", "mini-sum-k2-seed3"];
        let (plan, results, rows) = simulated(&missing);
        let document = document(&plan, &results, &rows);

        let tiny = table(&document, "Quality", "tiny");
        let altup = row(tiny, "AltUp K=2");
        assert_eq!(altup[3].text, "5");
        assert!(altup[5].text.starts_with("−0.03") && altup[5].is_decided, "{}", altup[5].text);
        assert_eq!(row(tiny, "dense")[5].text, "", "the baseline has no difference to itself");
        // A quarter of the accuracy, which is near 0.32.
        assert_eq!(tiny.header[6], "accuracy of the text, %");
        assert!(
            altup[6].text.starts_with("7.") || altup[6].text.starts_with("8."),
            "{}",
            altup[6].text
        );
        assert!(!altup[6].text.contains("seeds"), "{}", altup[6].text);
        let mini = table(&document, "Quality", "mini");
        assert_eq!(row(mini, "AltUp K=2")[3].text, "2 of 3");
        assert!(row(mini, "AltUp K=2")[5].text.ends_with("(2 of 3 seeds)"));
        assert!(row(mini, "Sum K=2")[5].text.ends_with("(1 seed, no interval)"));

        // What a row is beside a column, here −0.036 − (−0.012) with the same noise, and never the other way round.
        let pairs = table(&document, "Variant by variant", "tiny");
        assert_eq!(pairs.header[1..3], ["dense", "AltUp K=2"]);
        let sum = row(pairs, "Sum K=2");
        assert!(sum[2].text.starts_with("+0.02"), "{}", sum[2].text);
        assert_eq!((sum.len(), sum[6].text.as_str()), (7, ""), "{:?}", pairs.header);
        assert_eq!(row(pairs, "AltUp K=2")[1].text, altup[5].text);
        assert!(pairs.rows.iter().all(|row| row[0].text != "dense"));
        let mini = table(&document, "Variant by variant", "mini");
        assert!(row(mini, "Sum K=2")[2].text.ends_with("(1 seed, no interval)"));

        // Seed by seed, from the runs themselves.
        let contrast = &table(&document, "Contrasts", "tiny").rows[0];
        let loss = |variant: &str, seed: u64| {
            let name = format!("tiny-{variant}-seed{seed}");
            results.runs.iter().find(|run| run.name == name).unwrap().valid_loss
        };
        let lack =
            |seed| loss("recycled-k2", seed) - (loss("altup-k2", seed) + loss("dense", seed)) / 2.0;
        let mean = (1..=5).map(lack).sum::<f64>() / 5.0;
        assert!(contrast[2].text.starts_with(&signed(mean, 4)), "{}, {mean}", contrast[2].text);
        assert_eq!(contrast[1].text, "5");

        let speed_up = table(&document, "Speed at equal quality", "");
        // 0.036 of 0.25 nats on the way from 10 to 30 ms: 3^0.144 / 1.15 = 1.02; Recycled 3^0.12 / 1.03 = 1.11.
        let recycled = row(speed_up, "tiny: Recycled-AltUp K=2");
        assert!(recycled[1].text.starts_with("1.1"), "{}", recycled[1].text);
        let wide = &row(speed_up, "mini: dense, 2 × width")[1].text;
        assert!(wide.starts_with("beyond the dense models measured: better than all"), "{wide}");
        let of_dense = |row: &&Vec<Value>| row[0].text.ends_with(": dense");
        assert_eq!(speed_up.rows.iter().filter(of_dense).count(), 0, "the line is not on itself");

        let speed = row(table(&document, "Speed", "tiny"), "AltUp K=2");
        assert!(
            speed[1].text.contains(", 1.15 ×")
                || speed[1].text.contains(", 1.14 ×")
                || speed[1].text.contains(", 1.16 ×"),
            "{}",
            speed[1].text
        );
        let methods = document.sections.last().unwrap();
        let unfinished = format!("Not finished: {}.", missing.join(", "));
        assert_eq!(methods.text.last(), Some(&unfinished));

        let files: Vec<&str> = document
            .sections
            .iter()
            .flat_map(|section| &section.figures)
            .map(|f| f.file.as_str())
            .collect();
        for file in [
            "latency-batch1.svg",
            "loss-tiny.svg",
            "difference-mini.svg",
            "coefficients-tiny-altup-k4.svg",
        ] {
            assert!(files.contains(&file), "{file} in {files:?}");
        }
        let page = page::html(&document);
        assert!(page.contains("<td><strong>−0.03") && page.contains("<svg"));
        assert!(markdown::markdown(&document).contains("| **−0.03"));
    }

    #[test]
    fn differences_say_their_interval_and_when_they_are_of_few() {
        let mut difference = PairedDifference {
            pairs: 4,
            unpaired: 0,
            mean: -0.0363,
            standard_deviation: Some(0.002),
            interval: Some(Interval { low: -0.04, high: -0.0325 }),
        };
        let loss =
            |difference: &PairedDifference| difference_text(scale(Metric::ValidLoss), difference);
        assert_eq!(loss(&difference), "−0.0363 [−0.0400, −0.0325]");
        difference.pairs = 2;
        assert_eq!(loss(&difference), "−0.0363 [−0.0400, −0.0325] (2 seeds)");
        (difference.pairs, difference.unpaired) = (3, 2);
        assert_eq!(loss(&difference), "−0.0363 [−0.0400, −0.0325] (3 of 5 seeds)");
        difference.interval = None;
        assert_eq!(loss(&difference), "−0.0363 (1 seed, no interval)");
        assert_eq!(difference_text(PERCENT, &difference), "−3.63 (1 seed, no interval)");
        assert_eq!(signed(0.00001, 4), "0.0000");
        assert_eq!(signed(0.25, 2), "+0.25");
    }

    #[test]
    fn a_speed_up_beyond_the_line_is_said_to_be() {
        let (seeds, rounds) = (3, 5);
        let on = SpeedUp::OnLine { ratio: 1.5, low: Some(1.25), high: None, seeds, rounds };
        assert_eq!(speed_up_text(&on, 3), "1.50 × [1.25, beyond the dense models measured)");
        // The dense models may have fewer seeds than the variant, and its mean elsewhere be of all.
        let of_some = "1.50 × [1.25, beyond the dense models measured) (3 of 5 seeds)";
        assert_eq!(speed_up_text(&on, 5), of_some);
        let once = SpeedUp::OnLine { ratio: 1.5, low: None, high: None, seeds, rounds: 1 };
        assert_eq!(speed_up_text(&once, 3), "1.50 × (1 round, no interval)");
        let of_two = SpeedUp::OnLine { ratio: 1.5, low: None, high: None, seeds: 2, rounds };
        let text = "1.50 × (no dense model measured is excluded) (2 seeds)";
        assert_eq!(speed_up_text(&of_two, 2), text);

        let beyond = "beyond the dense models measured";
        let better = |above, seeds, rounds| {
            speed_up_text(&SpeedUp::BetterThanLine { above, seeds, rounds }, seeds)
        };
        assert_eq!(better(Some(2.0), 3, 5), format!("{beyond}: better than all, above 2.00 ×"));
        let text = format!("{beyond}: better than all, above 2.00 × (2 seeds)");
        assert_eq!(better(Some(2.0), 2, 5), text);
        let text = format!("{beyond}: better than all in the mean, none is excluded");
        assert_eq!(better(None, 3, 5), text);
        assert_eq!(better(None, 3, 1), format!("{beyond}: better than all (1 round, no interval)"));
        let worse = SpeedUp::WorseThanLine { below: None, seeds: 1, rounds };
        let text = format!("{beyond}: worse than the fastest (1 seed, no interval)");
        assert_eq!(speed_up_text(&worse, 1), text);
    }

    #[test]
    fn a_time_says_how_far_its_ratios_go_and_of_how_many_rounds_it_is() {
        let mut times = Times {
            work: Work::Forward,
            batch_size: 1,
            seconds: 0.05,
            shortest: 0.04,
            longest: 0.07,
            rounds: 5,
            to_baseline: Some(1.15),
            to_baseline_range: Some(Interval { low: 0.93, high: 1.47 }),
            speed_up: None,
        };
        assert_eq!(times_text(&times, 5), "50.0 (40.0 – 70.0), 1.15 × (0.93 – 1.47)");
        times.rounds = 2;
        times.to_baseline_range = Some(Interval { low: 1.15, high: 1.15 });
        assert_eq!(times_text(&times, 5), "50.0 (40.0 – 70.0), 1.15 × (2 of 5 rounds)");
    }

    /// Each round is compared with the same round of the baseline, whichever a model lacks.
    #[test]
    fn ratios_to_the_baseline_are_of_the_same_round() {
        let (plan, results, _) = simulated(&[]);
        let mut latency = results.latency.unwrap();
        let lacks = |timed: &Timed| timed.model.contains("altup-k2") && timed.round < 3;
        latency.timed.retain(|timed| !lacks(timed));
        // What would be taken for the ratio if rounds were counted off.
        for timed in latency.timed.iter_mut().filter(|timed| timed.round < 3) {
            timed.seconds *= 10.0;
        }
        let results = Results::of(&plan, results.runs, Vec::new(), Some(latency));
        let of = |variant: &str| {
            let is_asked = |of: &&CellResult| of.cell.size == "tiny" && of.cell.variant == variant;
            results.cells.iter().find(is_asked).unwrap().times[0].clone()
        };
        let altup = of("altup-k2");
        assert_eq!((of("dense").rounds, altup.rounds), (5, 2));
        assert!((1.1..1.2).contains(&altup.to_baseline.unwrap()), "{altup:?}");
    }
}
