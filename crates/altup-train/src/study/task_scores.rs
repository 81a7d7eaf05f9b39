//! What the models of a study made of its tasks.

use std::collections::BTreeMap;
use std::io;

use serde::{Deserialize, Serialize};

use super::comparable::{self, Incomparable};
use super::fine_tuning::PlannedFineTuning;
use super::folder::{RunStatus, StudyFolder};
use super::plan::{Cell, StudyPlan};
use super::results::{Compared, ResultsError, RunResult};
use super::statistics::{BySeed, PairedDifference, Spread};
use crate::fine_tuning::TaskResults;
use crate::metrics::TaskScore;
use crate::run_record::RunRecord;

/// What a run's model made of a task, fine-tuned from each of the study's seeds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskFigures {
    /// The task.
    pub task: String,
    /// The split that it was scored on.
    pub split: String,
    /// Examples of that split.
    pub examples: usize,
    /// The seeds of the fine-tunings.
    pub seeds: Vec<u64>,
    /// The mean of the metrics.
    pub score: f64,
    /// The metrics by name, as fractions: means over the seeds.
    pub metrics: BTreeMap<String, f64>,
    /// The score of always giving the label that is most frequent in training, where there are labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub majority_score: Option<f64>,
}

/// What the runs that differ only by their seed made of the tasks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ComparedTasks {
    /// The score of each task over the seeds of the runs, and beside the baseline.
    pub tasks: BTreeMap<String, Compared>,
    /// The mean score of the tasks, of runs that have all of them; none where there is one task.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mean: Option<Compared>,
}

/// Reads the finished fine-tunings of the finished `runs` into these. A run has the figures of a task as soon as its model
/// was fine-tuned from all seeds. The names of those that are not finished are returned.
///
/// # Errors
///
/// If a file of a finished fine-tuning is missing or damaged, or if models that are compared learned other examples, or were
/// judged on others, or computed otherwise.
pub(super) fn read(
    plan: &StudyPlan,
    folder: &StudyFolder,
    runs: &mut [RunResult],
) -> Result<Vec<String>, ResultsError> {
    let (mut missing, mut seen) = (Vec::new(), Seen::default());
    for planned in &plan.fine_tunings {
        let run = runs.iter().any(|run| run.name == planned.run);
        let files = folder.fine_tuning_folder(planned);
        if run && RunStatus::of(&files) == RunStatus::Finished {
            seen.check(planned, files.record()?)?;
        } else {
            missing.push(planned.name());
        }
    }
    for run in runs {
        for task in plan.tasks() {
            let of_task =
                |planned: &&PlannedFineTuning| planned.run == run.name && planned.task == task;
            let planned: Vec<_> = plan.fine_tunings.iter().filter(of_task).collect();
            if planned.iter().any(|planned| missing.contains(&planned.name())) {
                continue;
            }
            run.tasks.push(figures(task, &planned, folder)?);
        }
    }
    Ok(missing)
}

/// What fine-tunings of a model on a task come to together.
fn figures(
    task: &str,
    planned: &[&PlannedFineTuning],
    folder: &StudyFolder,
) -> Result<TaskFigures, ResultsError> {
    let mut scores: Vec<TaskScore> = Vec::new();
    let mut majority_score = None;
    for planned in planned {
        let files = folder.fine_tuning_folder(planned);
        let results = TaskResults::read(&files)?;
        let result = results.and_then(|results| results.tasks.into_iter().next());
        let result = result.ok_or_else(|| ResultsError::Kept {
            path: files.scores(),
            source: io::ErrorKind::NotFound.into(),
        })?;
        majority_score = result.majority.map(|majority| majority.score.mean());
        scores.push(result.score);
    }
    let count = scores.len().max(1) as f64;
    let mut metrics = BTreeMap::new();
    for (name, value) in scores.iter().flat_map(|score| &score.metrics) {
        *metrics.entry(name.clone()).or_insert(0.0) += value / count;
    }
    let first = scores.first();
    Ok(TaskFigures {
        task: task.to_owned(),
        split: first.map_or_else(String::new, |score| score.split.clone()),
        examples: first.map_or(0, |score| score.examples),
        seeds: planned.iter().map(|planned| planned.config.seed).collect(),
        score: scores.iter().map(TaskScore::mean).sum::<f64>() / count,
        metrics,
        majority_score,
    })
}

/// What fine-tunings that are compared, of the same size, budget, seeds and task, learn and are judged on.
type Examples = (Option<String>, BTreeMap<String, String>);

/// What fine-tunings that are compared have in common.
#[derive(Default)]
struct Seen {
    /// Their examples, each with the first fine-tuning that had them.
    examples: BTreeMap<(String, u64, u64, String), (String, Examples)>,
    /// What all are computed by, with the first of them.
    arithmetic: Option<(String, String)>,
}

impl Seen {
    fn check(
        &mut self,
        planned: &PlannedFineTuning,
        record: RunRecord,
    ) -> Result<(), ResultsError> {
        let is = comparable::arithmetic_of(&record);
        let (other, was) = self.arithmetic.get_or_insert_with(|| (planned.name(), is.clone()));
        if *was != is {
            let (run, other, was) = (planned.name(), other.clone(), was.clone());
            return Err(Incomparable::OtherArithmetic { run, is, other, was }.into());
        }
        let examples = (record.examples, record.validation);
        let Cell { size, multiple, .. } = &planned.cell;
        let seeds = (planned.run_seed, planned.config.seed);
        let task = format!("{}, {}", planned.task, seeds.1);
        let key = (size.clone(), *multiple, seeds.0, task);
        let (other, first) =
            self.examples.entry(key).or_insert_with(|| (planned.name(), examples.clone()));
        match *first == examples {
            true => Ok(()),
            false => Err(ResultsError::OtherExamples { run: planned.name(), other: other.clone() }),
        }
    }
}

/// What the runs of a cell made of the tasks, beside those of the baseline.
pub(super) fn compare(
    plan: &StudyPlan,
    runs: &[RunResult],
    cell: &Cell,
    baseline: &Cell,
) -> ComparedTasks {
    let compared = |score: &dyn Fn(&RunResult) -> Option<f64>| {
        let by_seed = |cell: &Cell| -> BySeed {
            let of_cell = runs.iter().filter(|run| run.cell == *cell);
            of_cell.filter_map(|run| Some((run.seed, score(run)?))).collect()
        };
        let values = by_seed(cell);
        let difference =
            (cell != baseline).then(|| PairedDifference::of(&values, &by_seed(baseline))).flatten();
        Some(Compared { spread: Spread::of(values.into_values())?, difference })
    };
    let tasks = plan.tasks();
    let of_task = |task: &str, run: &RunResult| {
        run.tasks.iter().find(|figures| figures.task == task).map(|figures| figures.score)
    };
    let mean = |run: &RunResult| {
        let scores: Option<Vec<f64>> = tasks.iter().map(|task| of_task(task, run)).collect();
        scores.map(|scores| scores.iter().sum::<f64>() / scores.len() as f64)
    };
    let each = |task: &&str| Some(((*task).to_owned(), compared(&|run| of_task(task, run))?));
    ComparedTasks {
        tasks: tasks.iter().filter_map(each).collect(),
        mean: if tasks.len() > 1 { compared(&mean) } else { None },
    }
}
