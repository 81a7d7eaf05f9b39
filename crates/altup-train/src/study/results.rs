//! What came of a study: a row for each finished run, read from its folder, and what the rows come to.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;

use altup_models::{DirectoryError, ModelDirectory, ParameterInfo, T5Config, parameters};
use serde::{Deserialize, Serialize};

use super::comparable::{self, Incomparable};
use super::folder::{RunStatus, StudyFolder, StudyFolderError};
use super::latency::{ByRound, Latency, LatencyError};
use super::plan::{Cell, Contrast, Metric, PlannedRun, StudyPlan};
use super::statistics::{BySeed, Interval, PairedDifference, Placed, SpeedUp, Spread};
use super::task_scores::{self, ComparedTasks, TaskFigures};
use crate::bench::Work;
use crate::coefficients::{CoefficientsRow, LayerCoefficients};
use crate::metrics::{MetricsError, MetricsLog, MetricsRow, TokenScore, TrainRow, ValidRow};
use crate::run_folder::{RunFolder, RunFolderError};
use crate::statistics::median;
use crate::summary::SummaryError;

/// A study's results, as `results.json` holds them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// The study.
    pub study: String,
    /// The version of this program.
    pub version: String,
    /// Runs that the study plans.
    pub planned: usize,
    /// Those of them that are not finished.
    pub missing: Vec<String>,
    /// Why those of them, and of the fine-tunings, have failed that have: what their programs said last.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub failed: BTreeMap<String, String>,
    /// Fine-tunings that the study plans.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub planned_fine_tunings: usize,
    /// Those of them that are not finished.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing_fine_tunings: Vec<String>,
    /// A row for each finished run.
    pub runs: Vec<RunResult>,
    /// What the runs of each size, budget and variant come to, in the order of tables.
    pub cells: Vec<CellResult>,
    /// The study's sums over variants, for each size and budget that has a seed of all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub contrasts: Vec<ContrastResult>,
    /// What was measured side by side.
    pub latency: Option<Latency>,
}

/// A finished run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunResult {
    /// Its name.
    pub name: String,
    /// What it has in common with the runs of other seeds.
    #[serde(flatten)]
    pub cell: Cell,
    /// The seed.
    pub seed: u64,
    /// Its model.
    pub model: T5Config,
    /// The model's parameters.
    pub parameters: Parameters,
    /// Optimizer steps.
    pub steps: u64,
    /// Input and target tokens seen.
    pub tokens: u64,
    /// The validation loss after the last step, in nats per target token.
    pub valid_loss: f64,
    /// The least validation loss of all passes over as many targets as the last one.
    pub best_valid_loss: f64,
    /// The step of that pass.
    pub best_step: u64,
    /// The share of validation targets predicted right after the last step.
    pub accuracy: f64,
    /// e to the power of the validation loss.
    pub perplexity: f64,
    /// Validation targets scored after the last step.
    pub valid_tokens: u64,
    /// The scores over the tokens of the text alone; none in results of before they were kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<TokenScore>,
    /// Input and target tokens a second: the median over the rows of the metrics. Runs side by side on a machine slow each
    /// other down; `latency` has figures that can be compared.
    pub tokens_per_second: f64,
    /// Seconds of training.
    pub train_seconds: f64,
    /// What the tokens to train and to validate on are, by content: runs of a seed with the same saw the same batches.
    pub data: String,
    /// What it was computed by: the backend, the version of the arithmetic and the type. Empty in results of before it was
    /// kept.
    #[serde(default)]
    pub arithmetic: String,
    /// The releases of altup and Burn that computed it. Empty in results of before they were kept.
    #[serde(default)]
    pub software: String,
    /// The learned scalars of AltUp and Sequence-AltUp at the end, layer by layer.
    pub coefficients: Vec<LayerCoefficients>,
    /// What the model made of the tasks that it was fine-tuned on. Not part of what is kept in the run's folder.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<TaskFigures>,
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// Numbers of parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parameters {
    /// In the embedding and output tables.
    pub tables: usize,
    /// In all else.
    pub rest: usize,
}

/// What the runs that differ only by their seed come to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CellResult {
    /// What they have in common.
    #[serde(flatten)]
    pub cell: Cell,
    /// Its name in tables.
    pub label: String,
    /// Runs that the study plans.
    pub planned: usize,
    /// Its parameters, where a run is finished.
    pub parameters: Option<Parameters>,
    /// Each figure over the seeds, and beside the baseline.
    pub metrics: BTreeMap<Metric, Compared>,
    /// The study's first figure beside each other variant of the same size and budget, on the same seeds, by the
    /// other's name.
    #[serde(default)]
    pub to_others: BTreeMap<String, PairedDifference>,
    /// How the difference of that figure to the baseline has changed since the study's least budget, on the same seeds.
    #[serde(default)]
    pub change: Option<PairedDifference>,
    /// What the models made of the study's tasks.
    #[serde(default)]
    pub fine_tuned: ComparedTasks,
    /// Times of the model, side by side with the others.
    pub times: Vec<Times>,
}

/// What a sum over variants comes to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContrastResult {
    /// Its name in tables.
    pub label: String,
    /// The size.
    pub size: String,
    /// How many times the budget.
    pub multiple: u64,
    /// Its mean over the seeds that all its variants have, and the interval.
    pub value: PairedDifference,
}

/// A figure of a variant.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Compared {
    /// Over the seeds.
    pub spread: Spread,
    /// Beside the baseline of the same size and budget, on the same seeds; of the baseline itself there is none.
    pub difference: Option<PairedDifference>,
}

/// The times of a work on a batch, over rounds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Times {
    /// What was timed.
    pub work: Work,
    /// Rows of the batch.
    pub batch_size: usize,
    /// The median over rounds, in seconds.
    pub seconds: f64,
    /// The shortest.
    pub shortest: f64,
    /// The longest.
    pub longest: f64,
    /// Rounds in which it was measured.
    pub rounds: usize,
    /// Relative to the baseline's of the same size: the median of the rounds' ratios.
    pub to_baseline: Option<f64>,
    /// The least and the largest of these ratios.
    pub to_baseline_range: Option<Interval>,
    /// Of a forward pass: how much faster than the dense model of the same loss.
    pub speed_up: Option<SpeedUp>,
}

/// Why results can't be read.
#[derive(Debug, thiserror::Error)]
pub enum ResultsError {
    /// The metrics of a run.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// The record of a run.
    #[error(transparent)]
    Run(#[from] RunFolderError),
    /// What was measured.
    #[error(transparent)]
    Latency(#[from] LatencyError),
    /// A trained model.
    #[error("cannot use the model of the run {run}")]
    Model {
        /// The run.
        run: String,
        /// The cause.
        source: DirectoryError,
    },
    /// A result that was kept.
    #[error("cannot use {}", path.display())]
    Kept {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// What a model made of its tasks.
    #[error(transparent)]
    Tasks(#[from] SummaryError),
    /// A file of the study can't be written.
    #[error(transparent)]
    Folder(#[from] StudyFolderError),
    /// A run has ended without what every run has.
    #[error("{}: no row of {kind}", path.display())]
    NoRow {
        /// The metrics.
        path: PathBuf,
        /// The kind of row that is missing.
        kind: &'static str,
    },
    /// Runs that are compared are not comparable.
    #[error(transparent)]
    Incomparable(#[from] Incomparable),
    /// Models that were to learn the same examples of a task, and to be judged on the same, had others.
    #[error(
        "{run} and {other} were fine-tuned or judged on different examples: the task's files have changed between them; \
         remove one of them"
    )]
    OtherExamples {
        /// A fine-tuning.
        run: String,
        /// Another of its seeds.
        other: String,
    },
}

impl Results {
    /// Reads what is finished from the folder of a study.
    ///
    /// # Errors
    ///
    /// If a file of a finished run is missing or damaged, or if runs that are compared have seen different text.
    pub fn collect(plan: &StudyPlan, folder: &StudyFolder) -> Result<Self, ResultsError> {
        let (mut runs, mut missing, mut failed) = (Vec::new(), Vec::new(), BTreeMap::new());
        for run in &plan.runs {
            if folder.status(&run.name) == RunStatus::Finished {
                runs.push(RunResult::of(run, folder)?);
                continue;
            }
            missing.push(run.name.clone());
            failed.extend(folder.failure(&run.name).map(|reason| (run.name.clone(), reason)));
        }
        comparable::check_results(&runs)?;
        let missing_fine_tunings = task_scores::read(plan, folder, &mut runs)?;
        let of_fine_tuning =
            |name: &String| folder.failure(name).map(|reason| (name.clone(), reason));
        failed.extend(missing_fine_tunings.iter().filter_map(of_fine_tuning));
        let latency = Latency::read(folder)?.map(|latency| latency.of_runs(&runs));
        let results = Self::of(plan, runs, missing, latency);
        Ok(Self { failed, missing_fine_tunings, ..results })
    }

    /// What runs and times come to.
    pub(super) fn of(
        plan: &StudyPlan,
        runs: Vec<RunResult>,
        missing: Vec<String>,
        latency: Option<Latency>,
    ) -> Self {
        Self {
            study: plan.name.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            planned: plan.runs.len(),
            missing,
            failed: BTreeMap::new(),
            planned_fine_tunings: plan.fine_tunings.len(),
            missing_fine_tunings: Vec::new(),
            cells: cells(plan, &runs, latency.as_ref()),
            contrasts: contrasts(plan, &runs),
            runs,
            latency,
        }
    }

    /// The finished runs of a cell, by seed.
    pub fn of_cell<'a>(&'a self, cell: &'a Cell) -> impl Iterator<Item = &'a RunResult> {
        self.runs.iter().filter(move |run| run.cell == *cell)
    }

    /// The rows of `runs` as CSV, without the coefficients. Behind what is the same in all studies comes a column for each
    /// metric of each task.
    pub fn csv(&self) -> String {
        let mut tasks: Vec<(&str, &str)> = Vec::new();
        for figures in self.runs.iter().flat_map(|run| &run.tasks) {
            for metric in figures.metrics.keys() {
                if !tasks.contains(&(&figures.task, metric)) {
                    tasks.push((&figures.task, metric));
                }
            }
        }
        let mut csv = String::from(
            "name,size,variant,multiple,seed,table_parameters,other_parameters,steps,tokens,valid_loss,best_valid_loss,\
             best_step,accuracy,perplexity,valid_tokens,text_loss,text_accuracy,tokens_per_second,train_seconds",
        );
        tasks.iter().for_each(|(task, metric)| csv.push_str(&format!(",{task}_{metric}")));
        for run in &self.runs {
            let RunResult { name, cell, seed, parameters, steps, tokens, .. } = run;
            let Cell { size, variant, multiple } = cell;
            let Parameters { tables, rest } = parameters;
            csv.push_str(&format!(
                "\n{name},{size},{variant},{multiple},{seed},{tables},{rest},{steps},{tokens},{},{},{},{},{},{},{},{},{},{}",
                run.valid_loss,
                run.best_valid_loss,
                run.best_step,
                run.accuracy,
                run.perplexity,
                run.valid_tokens,
                or_empty(run.metric(Metric::TextLoss)),
                or_empty(run.metric(Metric::TextAccuracy)),
                run.tokens_per_second,
                run.train_seconds
            ));
            for &(task, metric) in &tasks {
                let figures = run.tasks.iter().find(|figures| figures.task == task);
                let value = figures.and_then(|figures| figures.metrics.get(metric));
                csv.push_str(&format!(",{}", or_empty(value.copied())));
            }
        }
        csv.push('\n');
        csv
    }
}

/// A cell of a CSV file.
fn or_empty(value: Option<f64>) -> String {
    value.map_or(String::new(), |value| value.to_string())
}

impl RunResult {
    /// A figure; none where the result is of before it was kept.
    pub fn metric(&self, metric: Metric) -> Option<f64> {
        match metric {
            Metric::ValidLoss => Some(self.valid_loss),
            Metric::BestValidLoss => Some(self.best_valid_loss),
            Metric::Accuracy => Some(self.accuracy),
            Metric::Perplexity => Some(self.perplexity),
            Metric::TextLoss => self.text.map(|text| text.loss),
            Metric::TextAccuracy => self.text.map(|text| text.accuracy),
        }
    }

    /// The result of a finished run: as it was kept in the run's folder, or else out of metrics and model, and then
    /// kept. From then on a study needs neither the model nor its checkpoints.
    fn of(run: &PlannedRun, folder: &StudyFolder) -> Result<Self, ResultsError> {
        let path = folder.result(&run.name);
        let error = |source| ResultsError::Kept { path: path.clone(), source };
        match std::fs::read(&path) {
            Ok(json) => {
                let kept: Self =
                    serde_json::from_slice(&json).map_err(|source| error(source.into()))?;
                if kept.is_of(&Ended::read(&folder.run_folder(&run.name))?) {
                    return Ok(kept);
                }
            }
            Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(error(source)),
            Err(_) => {}
        }
        let result = Self::read(run, folder)?;
        let json = serde_json::to_vec_pretty(&result).map_err(|source| error(source.into()))?;
        folder.write(&path, &json)?;
        Ok(result)
    }

    /// Whether this is what the run came to that ended so, and not one that had its folder before.
    fn is_of(&self, ended: &Ended) -> bool {
        let is_near = |a: f64, b: f64| (a - b).abs() <= 1e-12 * a.abs().max(b.abs());
        (self.steps, self.tokens) == (ended.train.step, ended.train.tokens)
            && is_near(self.valid_loss, ended.valid.loss)
    }

    fn read(run: &PlannedRun, folder: &StudyFolder) -> Result<Self, ResultsError> {
        let files = folder.run_folder(&run.name);
        let Ended { rows, train: last_train, valid: last } = Ended::read(&files)?;
        // Of passes over as many examples as the last one: losses of others are not comparable.
        let like_last = valid_rows(&rows).filter(|row| row.tokens == last.tokens);
        let best = like_last.min_by(|a, b| a.loss.total_cmp(&b.loss)).unwrap_or(&last);
        let speeds: Vec<f64> = train_rows(&rows).map(|row| row.tokens_per_second).collect();
        let model = |source| ResultsError::Model { run: run.name.clone(), source };
        let (config, model) =
            ModelDirectory::new(files.model()).load(&crate::device::cpu()).map_err(model)?;
        let (tables, rest): (Vec<_>, Vec<_>) =
            parameters(&model).into_iter().partition(|parameter| parameter.role.is_table());
        let size =
            |parameters: Vec<ParameterInfo>| parameters.iter().map(ParameterInfo::size).sum();
        let coefficients = CoefficientsRow::of(&model, last_train.step);
        let record = files.record()?;
        Ok(Self {
            name: run.name.clone(),
            cell: run.cell.clone(),
            seed: run.seed,
            model: config,
            parameters: Parameters { tables: size(tables), rest: size(rest) },
            steps: last_train.step,
            tokens: last_train.tokens,
            valid_loss: last.loss,
            best_valid_loss: best.loss,
            best_step: best.step,
            accuracy: last.accuracy,
            perplexity: last.perplexity,
            valid_tokens: last.tokens,
            text: last.text,
            tokens_per_second: median(&speeds),
            train_seconds: last_train.elapsed_seconds,
            data: record.data.as_ref().map(|data| data.fingerprint()).unwrap_or_default(),
            arithmetic: comparable::arithmetic(&record.backend, record.numerics, record.precision),
            software: format!("altup {}, Burn {}", record.altup, record.burn),
            coefficients: coefficients.map_or(Vec::new(), |row| row.layers),
            tasks: Vec::new(),
        })
    }
}

/// The metrics of a finished run, and the rows that it ended with.
struct Ended {
    rows: Vec<MetricsRow>,
    train: TrainRow,
    valid: ValidRow,
}

impl Ended {
    fn read(files: &RunFolder) -> Result<Self, ResultsError> {
        let rows = MetricsLog::read(&files.metrics())?;
        let no_row = |kind| ResultsError::NoRow { path: files.metrics(), kind };
        let train = train_rows(&rows).last().cloned().ok_or_else(|| no_row("training"))?;
        let valid = valid_rows(&rows).last().cloned().ok_or_else(|| no_row("validation"))?;
        Ok(Self { rows, train, valid })
    }
}

/// The seconds that a finished run has trained.
pub(super) fn train_seconds(run: &RunFolder) -> Option<f64> {
    let rows = MetricsLog::read(&run.metrics()).ok()?;
    train_rows(&rows).last().map(|row| row.elapsed_seconds)
}

pub(super) fn train_rows(rows: &[MetricsRow]) -> impl Iterator<Item = &TrainRow> {
    rows.iter().filter_map(|row| match row {
        MetricsRow::Train(row) => Some(row),
        _ => None,
    })
}

pub(super) fn valid_rows(rows: &[MetricsRow]) -> impl Iterator<Item = &ValidRow> {
    rows.iter().filter_map(|row| match row {
        MetricsRow::Valid(row) => Some(row),
        _ => None,
    })
}

/// What the runs come to, cell by cell.
fn cells(plan: &StudyPlan, runs: &[RunResult], latency: Option<&Latency>) -> Vec<CellResult> {
    let by_seed = |cell: &Cell, metric: Metric| -> BySeed {
        let of_cell = runs.iter().filter(|run| run.cell == *cell);
        of_cell.filter_map(|run| Some((run.seed, run.metric(metric)?))).collect()
    };
    let placed = |cell: &Cell, rows: usize| Placed {
        seconds: latency.map_or_else(ByRound::new, |latency| {
            latency.seconds(&cell.model(), rows, Work::Forward)
        }),
        losses: by_seed(cell, Metric::ValidLoss),
    };
    let cells = plan.cells();
    let result = |cell: &Cell| {
        let baseline = plan.baseline_of(cell);
        let compared = |metric: Metric| {
            let values = by_seed(cell, metric);
            let difference = (*cell != baseline)
                .then(|| PairedDifference::of(&values, &by_seed(&baseline, metric)))
                .flatten();
            Some((metric, Compared { spread: Spread::of(values.into_values())?, difference }))
        };
        let to_other = |other: &Cell| {
            let metric = *plan.metrics.first()?;
            let difference = PairedDifference::of(&by_seed(cell, metric), &by_seed(other, metric))?;
            Some((other.variant.clone(), difference))
        };
        let others = cells.iter().filter(|other| {
            (&other.size, other.multiple) == (&cell.size, cell.multiple) && *other != cell
        });
        let seen = |cell: &Cell| runs.iter().find(|run| run.cell == *cell).map(|run| &run.data);
        let speed_up = |rows: usize| {
            if plan.scaling_line.contains(&cell.variant) {
                return None;
            }
            // Losses on other text, or of other tokens, don't make a line.
            let on_line = cells.iter().filter(|other| {
                plan.scaling_line.contains(&other.variant)
                    && other.multiple == cell.multiple
                    && seen(other) == seen(cell)
            });
            let line: Vec<Placed> = on_line
                .map(|other| placed(other, rows))
                .filter(|placed| !placed.losses.is_empty() && !placed.seconds.is_empty())
                .collect();
            SpeedUp::of(&placed(cell, rows), &line)
        };
        let least = plan.multiples.iter().min().copied().unwrap_or(1);
        let change = || {
            let metric = *plan.metrics.first()?;
            let gap = |multiple: u64| -> BySeed {
                let cell = Cell { multiple, ..cell.clone() };
                let baseline = by_seed(&plan.baseline_of(&cell), metric);
                let own = by_seed(&cell, metric).into_iter();
                own.filter_map(|(seed, value)| Some((seed, value - baseline.get(&seed)?))).collect()
            };
            PairedDifference::of(&gap(cell.multiple), &gap(least))
        };
        let has_change = *cell != baseline && cell.multiple != least;
        CellResult {
            change: has_change.then(change).flatten(),
            label: plan.label(&cell.variant).to_owned(),
            planned: plan.runs.iter().filter(|run| run.cell == *cell).count(),
            parameters: runs.iter().find(|run| run.cell == *cell).map(|run| run.parameters),
            metrics: Metric::ALL.into_iter().filter_map(compared).collect(),
            to_others: others.filter_map(to_other).collect(),
            fine_tuned: task_scores::compare(plan, runs, cell, &baseline),
            times: latency.map_or(Vec::new(), |latency| times(latency, cell, &baseline, speed_up)),
            cell: cell.clone(),
        }
    };
    cells.iter().map(result).collect()
}

fn contrasts(plan: &StudyPlan, runs: &[RunResult]) -> Vec<ContrastResult> {
    let Some(&metric) = plan.metrics.first() else { return Vec::new() };
    let mut results = Vec::new();
    for size in &plan.sizes {
        for &multiple in &plan.multiples {
            for Contrast { label, weights } in &plan.contrasts {
                let of_seed = |seed: u64| -> Option<f64> {
                    let of_variant = |(variant, weight): (&String, &f64)| {
                        let (size, variant) = (size.clone(), variant.clone());
                        let cell = Cell { size, variant, multiple };
                        let run = runs.iter().find(|run| run.cell == cell && run.seed == seed)?;
                        Some(weight * run.metric(metric)?)
                    };
                    weights.iter().map(of_variant).sum()
                };
                let seeds: BTreeSet<u64> = runs.iter().map(|run| run.seed).collect();
                let sums: BySeed =
                    seeds.into_iter().filter_map(|seed| Some((seed, of_seed(seed)?))).collect();
                let zeros = sums.keys().map(|&seed| (seed, 0.0)).collect();
                results.extend(PairedDifference::of(&sums, &zeros).map(|value| ContrastResult {
                    label: label.clone(),
                    size: size.clone(),
                    multiple,
                    value,
                }));
            }
        }
    }
    results
}

fn times(
    latency: &Latency,
    cell: &Cell,
    baseline: &Cell,
    speed_up: impl Fn(usize) -> Option<SpeedUp>,
) -> Vec<Times> {
    let measure = &latency.setting.measure;
    let forward =
        measure.batch_sizes.iter().flat_map(|&rows| [(Work::Forward, rows), (Work::Prefill, rows)]);
    let works = forward.chain([(Work::Train, measure.train_batch_size)]);
    let times = works.filter_map(|(work, batch_size)| {
        let by_round = latency.seconds(&cell.model(), batch_size, work);
        let others = latency.seconds(&baseline.model(), batch_size, work);
        let ratio = |(round, own): (&usize, &f64)| Some(own / others.get(round)?);
        let ratios: Vec<f64> = by_round.iter().filter_map(ratio).collect();
        let seconds: Vec<f64> = by_round.into_values().collect();
        let range = |values: &[f64]| Interval {
            low: values.iter().copied().fold(f64::INFINITY, f64::min),
            high: values.iter().copied().fold(0.0, f64::max),
        };
        let Interval { low: shortest, high: longest } = range(&seconds);
        (!seconds.is_empty()).then(|| Times {
            work,
            batch_size,
            rounds: seconds.len(),
            seconds: median(&seconds),
            shortest,
            longest,
            to_baseline: (!ratios.is_empty()).then(|| median(&ratios)),
            to_baseline_range: (!ratios.is_empty()).then(|| range(&ratios)),
            speed_up: if work == Work::Forward { speed_up(batch_size) } else { None },
        })
    });
    times.collect()
}
