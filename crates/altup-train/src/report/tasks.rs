//! What a report shows of the benchmark tasks of fine-tuning runs.

use serde::Serialize;

use super::history::History;
use super::thinning::evenly;
use super::{RunCurves, TABLE_ROWS, Table, TableRow, Tile, or_dash, percent};
use crate::fine_tuning::{Mistake, TaskResult};
use crate::metrics::{TaskScore, ValidRow};

/// The wrong answers of a task that are shown.
#[derive(Serialize)]
pub(super) struct MistakesView {
    heading: String,
    mistakes: Vec<MistakeView>,
}

/// A wrong answer.
#[derive(Serialize)]
struct MistakeView {
    input: String,
    output: String,
    target: String,
    note: String,
}

impl RunCurves {
    /// What the best model made of a task; none before the run is finished.
    pub(super) fn result(&self, task: &str) -> Option<&TaskResult> {
        let results = self.tasks.as_ref()?;
        results.tasks.iter().find(|result| result.score.task == task)
    }
}

/// The key numbers of a run: its score on each task, and their mean where there are several. On the whole split once the
/// run is finished, before that on what of it is scored at validations.
pub(super) fn tiles(run: &RunCurves) -> Vec<Tile> {
    let Some(best) = run.history.best_valid() else { return Vec::new() };
    let mut tiles = Vec::new();
    let mut add = |label: &str, score: f64, note: String| {
        let (label, value) = (label.to_owned(), percent(score));
        tiles.push(Tile { label, value, note });
    };
    let score_of = |task: &TaskScore| match run.result(&task.task) {
        Some(result) => result.score.mean(),
        None => task.mean(),
    };
    let step = format!("at step {}", best.step);
    if let [_, _, ..] = &best.tasks[..] {
        let sum: f64 = best.tasks.iter().map(score_of).sum();
        add("Mean score", sum / best.tasks.len() as f64, step.clone());
    }
    for task in &best.tasks {
        let metrics: Vec<&str> = task.metrics.keys().map(String::as_str).collect();
        let majority = run.result(&task.task).and_then(|result| result.majority.as_ref());
        let note = match (majority, &best.tasks[..]) {
            (Some(majority), _) => format!(
                "{}; always “{}”: {}",
                metrics.join(" and "),
                majority.label,
                percent(majority.score.mean())
            ),
            (None, [_]) => format!("{}, {step}", metrics.join(" and ")),
            (None, _) => metrics.join(" and "),
        };
        add(&task.task, score_of(task), note);
    }
    tiles
}

/// A table for each task of a run: its metrics at each validation, then those of the best model on the whole split, and
/// of always giving the same answer. `prefix` is what the headings begin with.
pub(super) fn tables(run: &RunCurves, prefix: &str) -> Vec<Table> {
    let history = &run.history;
    let (Some(last), Some(best)) = (history.last_valid(), history.best_valid()) else {
        return Vec::new();
    };
    let all = history.validations();
    let mut shown: Vec<&ValidRow> = evenly(&all, TABLE_ROWS).copied().collect();
    if let Err(place) = shown.binary_search_by_key(&best.step, |row| row.step) {
        shown.insert(place, best);
    }
    let table = |(number, task): (usize, &TaskScore)| {
        let metrics: Vec<&String> = task.metrics.keys().collect();
        let cells = |name: String, score: &TaskScore, loss: Option<f64>| {
            let values = metrics.iter().map(|name| score.metrics.get(*name).copied());
            let values = values.map(|value| or_dash(value.map(hundred_times)));
            let loss = or_dash(loss.map(|loss| format!("{loss:.4}")));
            std::iter::once(name).chain(values).chain([loss]).collect()
        };
        let of_step = |row: &&ValidRow| {
            let score = row.tasks.get(number)?;
            let loss = row.sources.get(number).map_or(row.loss, |source| source.loss);
            let cells = cells(row.step.to_string(), score, Some(loss));
            Some(TableRow { cells, is_best: row.step == best.step })
        };
        let mut rows: Vec<TableRow> = shown.iter().filter_map(of_step).collect();
        if let Some(result) = run.result(&task.task) {
            let name = format!("step {}, all {} examples", best.step, result.score.examples);
            let cells_of_all = cells(name, &result.score, Some(result.loss));
            rows.push(TableRow { cells: cells_of_all, is_best: true });
            if let Some(majority) = &result.majority {
                let cells = cells(format!("always “{}”", majority.label), &majority.score, None);
                rows.push(TableRow { cells, is_best: false });
            }
        }
        let header = std::iter::once("Step".to_owned())
            .chain(metrics.iter().map(|name| format!("{name}, %")))
            .chain(["Loss".to_owned()]);
        let TaskScore { task, split, examples, .. } = task;
        let heading = format!("{prefix}{task}: {examples} examples of {split}");
        Table { heading, header: header.collect(), rows }
    };
    last.tasks.iter().enumerate().map(table).collect()
}

/// A share as a number of hundredths.
fn hundred_times(share: f64) -> String {
    format!("{:.2}", 100.0 * share)
}

/// The wrong answers of a run's best model, task by task.
pub(super) fn mistakes(run: &RunCurves) -> Vec<MistakesView> {
    let results = run.tasks.iter().flat_map(|results| &results.tasks);
    let view = |result: &TaskResult| MistakesView {
        heading: result.score.task.clone(),
        mistakes: result.mistakes.iter().map(MistakeView::of).collect(),
    };
    results.filter(|result| !result.mistakes.is_empty()).map(view).collect()
}

impl MistakeView {
    fn of(mistake: &Mistake) -> Self {
        let Mistake { id, input, target, output, loss, confidence, margin } = mistake;
        let mut notes = Vec::new();
        if let Some(margin) = margin {
            notes.push(format!("margin {margin:.2} nats").replace('-', "−"));
        }
        if let Some(confidence) = confidence {
            notes.push(format!("sure to {}", percent(*confidence)));
        }
        if let Some(loss) = loss {
            notes.push(format!("loss of the target {loss:.2} nats a token"));
        }
        notes.push(format!("example {id}"));
        let [input, output, target] = [input, output, target].map(Clone::clone);
        Self { input, output, target, note: notes.join(" · ") }
    }
}

/// The tasks of some runs, each once.
pub(super) fn names<'a>(histories: impl Iterator<Item = &'a History>) -> Vec<&'a str> {
    let mut names: Vec<&str> = Vec::new();
    for task in histories.filter_map(History::last_valid).flat_map(|row| &row.tasks) {
        if !names.contains(&task.task.as_str()) {
            names.push(&task.task);
        }
    }
    names
}

/// The score of a task at a validation.
pub(super) fn score<'a>(row: &'a ValidRow, task: &str) -> Option<&'a TaskScore> {
    row.tasks.iter().find(|score| score.task == task)
}
