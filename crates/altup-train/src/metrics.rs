//! The record of a run: `metrics.jsonl` in the run folder, one JSON object a line.
//!
//! Everything a report shows is computed from this file, so a run can be looked at while it goes
//! on, after it was killed, and beside other runs.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::iter;
use std::path::{Path, PathBuf};

use altup_data::Mixture;
use altup_data::tasks::Scores;
use serde::{Deserialize, Serialize};

use crate::checkpoint::RunState;
use crate::coefficients::{CoefficientsRow, LayerCoefficients};
use crate::durable::WholeFile;
use crate::json_lines::{JsonLines, LineError};

/// One line of `metrics.jsonl`.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum MetricsRow {
    /// How training went since the row before.
    Train(TrainRow),
    /// One pass over the validation data.
    Valid(ValidRow),
    /// Training diverged and went back to a checkpoint.
    Rollback(RollbackRow),
    /// What began the run, and on what machine.
    Start(StartRow),
    /// The learned scalars of AltUp at a validation.
    Coefficients(CoefficientsRow),
}

/// What a run began with, and on what machine: the first row of its metrics, and a later one where it goes on on another
/// device. The newest holds.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct StartRow {
    /// Optimizer steps done.
    pub step: u64,
    /// When the run began or went on, in seconds since 1970.
    pub unix_seconds: f64,
    /// Parameters of the model.
    pub parameters: u64,
    /// The backend, with the index of its device.
    pub backend: String,
    /// Threads that the process computes on.
    pub threads: usize,
    /// Processes that train together. Rows of older versions have none.
    #[serde(default = "one")]
    pub replicas: usize,
    /// The training text, in figures.
    pub text: String,
    /// Operations a second that the device does at best in matrix products: see
    /// [`matrix_peak`](crate::matrix_peak::matrix_peak).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub matrix_flops_per_second: Option<f64>,
    /// The version of altup.
    pub version: String,
}

fn one() -> usize {
    1
}

impl StartRow {
    /// The newest in the log at `path`.
    ///
    /// # Errors
    ///
    /// If a row of the log cannot be read.
    pub fn newest(path: &Path) -> Result<Option<Self>, MetricsError> {
        let mut newest = None;
        for row in MetricsLog::rows(path)? {
            if let MetricsRow::Start(row) = row? {
                newest = Some(row);
            }
        }
        Ok(newest)
    }
}

/// What the training steps since the previous row came to.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct TrainRow {
    /// Optimizer steps done so far.
    pub step: u64,
    /// Loss in nats per target token, the mean over all target tokens of the row's steps.
    pub loss: f64,
    /// Learning rate of the last step.
    pub learning_rate: f64,
    /// L2 norm of all gradients together before clipping, the mean over the row's steps.
    pub grad_norm: f64,
    /// Input and target tokens seen so far.
    pub tokens: u64,
    /// Input and target tokens per second over the row's steps.
    pub tokens_per_second: f64,
    /// Seconds spent in training steps so far, over all starts; validation and checkpoints don't count.
    pub elapsed_seconds: f64,
    /// Seconds that the row's steps waited for their batches, summed. Rows of older versions have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_wait_seconds: Option<f64>,
    /// Seconds of the row's steps from when replica 0 had its own gradients to when it had those of all: the exchange
    /// between replicas, and the wait for the slowest. None of a process alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exchange_seconds: Option<f64>,
    /// Bytes that the process has in memory, where the system tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// The most bytes that the process had in memory at once, where the system tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_memory_bytes: Option<u64>,
    /// Model operations a second over the row's steps: three times those of `altup_models::forward_cost`, for a
    /// forward pass and the two products of each of its products in the backward pass. What is computed again
    /// (gradient checkpointing) doesn't count, nor do norms and activations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flops_per_second: Option<f64>,
    /// The same as a share of [`StartRow::matrix_flops_per_second`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_share: Option<f64>,
    /// How the layers with experts routed the row's tokens, the encoder's first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routing: Vec<RoutingRow>,
    /// How often each source of a mixture has been gone through so far.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub epochs: Vec<SourceEpochs>,
}

/// How often training has gone through a source of a mixture.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct SourceEpochs {
    /// The source.
    pub name: String,
    /// Times, with fractions.
    pub epochs: f64,
}

impl SourceEpochs {
    /// Those of a mixture's first `examples` examples; none where there is one source.
    pub fn of(mixture: &Mixture, examples: u64) -> Vec<Self> {
        match mixture.sources() {
            [_] => Vec::new(),
            _ => mixture
                .epochs(examples)
                .map(|(name, epochs)| Self { name: name.to_owned(), epochs })
                .collect(),
        }
    }
}

/// How a layer routed tokens to its experts: means over the batches of a row.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct RoutingRow {
    /// `encoder` or `decoder`.
    pub stack: String,
    /// The layer, counted from 0.
    pub layer: usize,
    /// The load-balancing loss, before its coefficient; 1 where the load is even.
    pub load_balancing_loss: f64,
    /// The router's z-loss, before its coefficient.
    pub router_z_loss: f64,
    /// The mean entropy of a token's probabilities, in nats.
    pub entropy: f64,
    /// The share of choices that were dropped, as their expert was full.
    pub dropped: f64,
    /// The share of choices that fell on each expert.
    pub loads: Vec<f64>,
}

impl RoutingRow {
    /// How many times its even share the most chosen expert gets.
    pub fn peak_load(&self) -> f64 {
        self.loads.iter().copied().fold(0.0, f64::max) * self.loads.len() as f64
    }

    /// Every number, with what it is.
    pub(crate) fn values(&self) -> impl Iterator<Item = (&'static str, f64)> {
        let loads = self.loads.iter().map(|load| ("load of an expert", *load));
        [
            ("load-balancing loss", self.load_balancing_loss),
            ("router z-loss", self.router_z_loss),
            ("router entropy", self.entropy),
            ("share of dropped choices", self.dropped),
        ]
        .into_iter()
        .chain(loads)
    }

    /// Every number, to change it.
    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut f64> {
        [
            &mut self.load_balancing_loss,
            &mut self.router_z_loss,
            &mut self.entropy,
            &mut self.dropped,
        ]
        .into_iter()
        .chain(&mut self.loads)
    }
}

/// The score of one pass over the validation data.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct ValidRow {
    /// Optimizer steps done before the pass.
    pub step: u64,
    /// Loss in nats per target token.
    pub loss: f64,
    /// e to the power of the loss.
    pub perplexity: f64,
    /// Share of target tokens predicted right, from 0 to 1.
    pub accuracy: f64,
    /// Target tokens scored.
    pub tokens: u64,
    /// The scores over the targets that are tokens of the text, without sentinels and `</s>`; none in fine-tuning. A model
    /// that has learned little by span corruption gets the sentinels right and hardly any of the text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<TokenScore>,
    /// The scores by source, where there are several; those above are then means by the sources'
    /// rates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<SourceScore>,
    /// In fine-tuning, the metrics of each task.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<TaskScore>,
}

impl ValidRow {
    /// What checkpoints are compared by, the lower the better: the loss, and in fine-tuning what the mean of the tasks'
    /// scores lacks to 1.
    pub fn cost(&self) -> f64 {
        match self.tasks.len() {
            0 => self.loss,
            tasks => 1.0 - self.tasks.iter().map(TaskScore::mean).sum::<f64>() / tasks as f64,
        }
    }
}

/// Scores over some of the targets.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq)]
pub struct TokenScore {
    /// Loss in nats per token.
    pub loss: f64,
    /// Share of tokens predicted right, from 0 to 1.
    pub accuracy: f64,
    /// Tokens scored.
    pub tokens: u64,
}

/// The metrics of a task, from one pass over its validation examples.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct TaskScore {
    /// The task.
    pub task: String,
    /// The split.
    pub split: String,
    /// Examples that were judged.
    pub examples: usize,
    /// The metrics by name, as fractions.
    pub metrics: BTreeMap<String, f64>,
}

impl TaskScore {
    /// The mean of the metrics: the task's score.
    pub fn mean(&self) -> f64 {
        self.metrics.values().sum::<f64>() / self.metrics.len().max(1) as f64
    }
}

impl From<Scores> for TaskScore {
    fn from(scores: Scores) -> Self {
        let Scores { task, split, examples, metrics } = scores;
        let metrics = metrics.iter().map(|(name, value)| (name.to_owned(), value)).collect();
        Self { task, split, examples, metrics }
    }
}

/// The score of one pass over the validation data of a source of a mixture.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
pub struct SourceScore {
    /// The source.
    pub name: String,
    /// Loss in nats per target token.
    pub loss: f64,
    /// Share of target tokens predicted right, from 0 to 1.
    pub accuracy: f64,
    /// Target tokens scored.
    pub tokens: u64,
    /// The scores over the tokens of the text alone; none in fine-tuning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<TokenScore>,
}

/// How training diverged, went back to a checkpoint, and passed over the data in between.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct RollbackRow {
    /// Optimizer steps done at the checkpoint that it went back to.
    pub step: u64,
    /// How many times the run has gone back, this one included.
    pub number: u64,
    /// The step at which it diverged.
    pub diverged_at: u64,
    /// What was no longer a number there.
    pub quantity: String,
    /// Steps' worth of batches passed over so far, in all rollbacks.
    pub skipped_steps: u64,
}

impl MetricsRow {
    /// Optimizer steps done when the row was written.
    pub fn step(&self) -> u64 {
        match self {
            Self::Train(row) => row.step,
            Self::Valid(row) => row.step,
            Self::Rollback(row) => row.step,
            Self::Start(row) => row.step,
            Self::Coefficients(row) => row.step,
        }
    }

    /// Whether it belongs to a run that is where `state` says, and won't be written again.
    fn is_within(&self, state: &RunState) -> bool {
        let is_newest = self.step() == state.step;
        let comes_again = match self {
            Self::Rollback(row) => row.number > state.rollbacks,
            Self::Valid(_) | Self::Coefficients(_) => is_newest && state.validation_is_due,
            Self::Train(_) => is_newest && state.window.steps > 0,
            Self::Start(_) => false,
        };
        self.step() <= state.step && !comes_again
    }

    /// The first of its numbers that is none, with what it is.
    fn not_finite(&self) -> Option<(&'static str, f64)> {
        self.numbers().into_iter().find(|(_, value)| !value.is_finite())
    }

    /// Its numbers that may be none, each with what it is.
    fn numbers(&self) -> Vec<(&'static str, f64)> {
        let known = |name, value: Option<f64>| value.map(|value| (name, value));
        match self {
            Self::Train(row) => [
                ("loss", row.loss),
                ("learning rate", row.learning_rate),
                ("gradient norm", row.grad_norm),
                ("tokens_per_second", row.tokens_per_second),
                ("elapsed_seconds", row.elapsed_seconds),
            ]
            .into_iter()
            .chain(known("data_wait_seconds", row.data_wait_seconds))
            .chain(known("exchange_seconds", row.exchange_seconds))
            .chain(known("flops_per_second", row.flops_per_second))
            .chain(known("peak_share", row.peak_share))
            .chain(row.routing.iter().flat_map(RoutingRow::values))
            .chain(row.epochs.iter().map(|source| ("number of epochs", source.epochs)))
            .collect(),
            Self::Valid(row) => {
                let of_sources = row.sources.iter().filter_map(|source| source.text.as_ref());
                let texts = row.text.iter().chain(of_sources);
                [
                    ("validation loss", row.loss),
                    ("validation perplexity", row.perplexity),
                    ("validation accuracy", row.accuracy),
                ]
                .into_iter()
                .chain(texts.flat_map(|text| {
                    [("loss of the text", text.loss), ("accuracy of the text", text.accuracy)]
                }))
                .chain(row.sources.iter().flat_map(|source| {
                    [("loss of a source", source.loss), ("accuracy of a source", source.accuracy)]
                }))
                .chain(row.tasks.iter().flat_map(|task| {
                    task.metrics.values().map(|value| ("metric of a task", *value))
                }))
                .collect()
            }
            Self::Rollback(_) => Vec::new(),
            Self::Start(row) => [("unix_seconds", row.unix_seconds)]
                .into_iter()
                .chain(known("matrix_flops_per_second", row.matrix_flops_per_second))
                .collect(),
            Self::Coefficients(row) => {
                let values = row.layers.iter().flat_map(LayerCoefficients::values);
                values.map(|value| ("coefficient of a layer", value)).collect()
            }
        }
    }
}

/// Why a metrics file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// The file system refused.
    #[error("cannot read or write the metrics file {}", .path.display())]
    File {
        /// The metrics file.
        path: PathBuf,
        /// What the file system said.
        source: io::Error,
    },
    /// A line is not a metrics row.
    #[error("{}, line {line}: not a metrics row", .path.display())]
    Row {
        /// The metrics file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// What is wrong with the line.
        source: serde_json::Error,
    },
    /// A row holds a NaN or an infinity, which JSON cannot express.
    #[error("the {quantity} of step {step} is {value}, which the metrics can't hold")]
    NotFinite {
        /// The step of the row.
        step: u64,
        /// What isn't finite.
        quantity: &'static str,
        /// Its value.
        value: f64,
    },
}

/// The metrics file of a run in progress.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    file: File,
}

impl MetricsLog {
    /// Starts an empty log at `path`, replacing what lies there.
    ///
    /// # Errors
    /// [`MetricsError::File`] when the file cannot be created.
    pub fn create(path: &Path) -> Result<Self, MetricsError> {
        let file = File::create(path).map_err(at(path))?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Goes on with the log at `path` of a run that resumes where `state` says.
    ///
    /// Rows of later steps and rollbacks are dropped, and those of this step's validation if that is still
    /// due: the run was killed after its last checkpoint and is about to do those steps, and write those
    /// rows, a second time.
    ///
    /// # Errors
    /// The errors of [`MetricsLog::read`], and [`MetricsError::File`] when the kept rows cannot be
    /// written back.
    pub fn resume(path: &Path, state: &RunState) -> Result<Self, MetricsError> {
        let rows = Self::rows(path)?;
        let mut kept = WholeFile::create(path).map_err(at(path))?;
        for row in rows {
            let row = row?;
            if row.is_within(state) {
                let line = line(&row).map_err(at(path))?;
                kept.write_all(line.as_bytes()).map_err(at(path))?;
            }
        }
        kept.finish().map_err(at(path))?;
        let file = OpenOptions::new().append(true).open(path).map_err(at(path))?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Starts the log over from the rows of a run that is where `state` says; see [`resume`](Self::resume).
    ///
    /// # Errors
    /// Those of [`MetricsLog::resume`].
    pub(crate) fn reopen(&self, state: &RunState) -> Result<Self, MetricsError> {
        let start = StartRow::newest(&self.path)?;
        let mut log = Self::resume(&self.path, state)?;
        // The machine stays, also where it was another at that step.
        if let Some(start) = start.filter(|start| start.step > state.step) {
            log.append(&MetricsRow::Start(StartRow { step: state.step, ..start }))?;
        }
        Ok(log)
    }

    /// Where the log lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends one row, in one write, so that a reader beside the run sees whole lines.
    ///
    /// # Errors
    /// [`MetricsError::NotFinite`] for a row with a NaN or an infinity, [`MetricsError::File`]
    /// when the line cannot be written.
    pub fn append(&mut self, row: &MetricsRow) -> Result<(), MetricsError> {
        // serde_json would write `null`, and the file could not be read again.
        if let Some((quantity, value)) = row.not_finite() {
            return Err(MetricsError::NotFinite { step: row.step(), quantity, value });
        }
        line(row)
            .and_then(|line| self.file.write_all(line.as_bytes()))
            .and_then(|()| self.file.flush())
            .map_err(at(&self.path))
    }

    /// Makes the rows so far outlast a power cut.
    ///
    /// # Errors
    /// [`MetricsError::File`].
    pub(crate) fn sync(&self) -> Result<(), MetricsError> {
        self.file.sync_data().map_err(at(&self.path))
    }

    /// Reads all rows of the log at `path`; see [`rows`](Self::rows).
    ///
    /// # Errors
    /// Those of [`rows`](Self::rows), and of its rows.
    pub fn read(path: &Path) -> Result<Vec<MetricsRow>, MetricsError> {
        Self::rows(path)?.collect()
    }

    /// The rows of the log at `path`, read one by one.
    ///
    /// A last line without a line break that is no row is left out: the process writing it was
    /// killed halfway, or is about to write the rest.
    ///
    /// # Errors
    /// [`MetricsError::File`] when the file is not there, or a row cannot be read; for a row [`MetricsError::Row`] that
    /// names the line that is none.
    pub fn rows(
        path: &Path,
    ) -> Result<impl Iterator<Item = Result<MetricsRow, MetricsError>> + use<>, MetricsError> {
        fs::metadata(path).map_err(at(path))?;
        let mut lines = JsonLines::at(path);
        let mut has_ended = false;
        let path = path.to_owned();
        Ok(iter::from_fn(move || {
            if has_ended {
                return None;
            }
            if let Some(row) = lines.next() {
                return Some(row.map_err(|error| MetricsError::at(&path, error)));
            }
            has_ended = true;
            lines.unfinished().map(Ok)
        }))
    }
}

impl MetricsError {
    pub(crate) fn at(path: &Path, error: LineError) -> Self {
        let path = path.to_owned();
        match error {
            LineError::File(source) => Self::File { path, source },
            LineError::Row { line, source } => Self::Row { path, line, source },
        }
    }
}

/// A row as its line in the file, line break included.
fn line(row: &MetricsRow) -> io::Result<String> {
    Ok(serde_json::to_string(row)? + "\n")
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> MetricsError {
    move |source| MetricsError::File { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Window;

    fn train(step: u64) -> MetricsRow {
        MetricsRow::Train(TrainRow {
            step,
            loss: 10.0 / 3.0,
            learning_rate: 1e-4,
            grad_norm: 0.1 + 0.2,
            tokens: 626 * step,
            tokens_per_second: 1234.5678901234567,
            elapsed_seconds: 5e-324,
            data_wait_seconds: Some(0.1),
            exchange_seconds: Some(0.3),
            memory_bytes: Some(u64::MAX),
            peak_memory_bytes: None,
            flops_per_second: Some(1e12 / 3.0),
            peak_share: Some(0.7),
            routing: vec![RoutingRow {
                stack: "decoder".into(),
                layer: 2,
                load_balancing_loss: 1.0 / 3.0,
                router_z_loss: 0.1,
                entropy: 0.7,
                dropped: 0.0,
                loads: vec![0.25, 0.75],
            }],
            epochs: vec![SourceEpochs { name: "books".into(), epochs: 0.1 + 0.2 }],
        })
    }

    fn valid(step: u64) -> MetricsRow {
        MetricsRow::Valid(ValidRow {
            step,
            loss: 2.0,
            perplexity: 2f64.exp(),
            accuracy: 1.0 / 7.0,
            tokens: u64::MAX,
            text: Some(TokenScore { loss: 0.1 + 0.2, accuracy: 1.0 / 9.0, tokens: 5 }),
            sources: vec![SourceScore {
                name: "books".into(),
                loss: 1.0 / 3.0,
                accuracy: 0.1,
                tokens: 3,
                text: Some(TokenScore { loss: 0.7, accuracy: 0.3, tokens: 2 }),
            }],
            tasks: vec![TaskScore {
                task: "mrpc".into(),
                split: "validation".into(),
                examples: 408,
                metrics: BTreeMap::from([("accuracy".into(), 0.7), ("f1".into(), 0.8)]),
            }],
        })
    }

    fn at_step(step: u64, rollbacks: u64) -> RunState {
        RunState { step, rollbacks, ..RunState::default() }
    }

    fn written(rows: &[MetricsRow]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut log = MetricsLog::create(&path).unwrap();
        for row in rows {
            log.append(row).unwrap();
        }
        (folder, path)
    }

    #[test]
    fn rows_round_trip_exactly() {
        let rows = [train(1), valid(1), train(2)];
        let (_folder, path) = written(&rows);
        assert_eq!(MetricsLog::read(&path).unwrap(), rows);
    }

    #[test]
    fn rows_of_older_versions_are_read() {
        let old = r#"{"kind":"train","step":3,"loss":2.5,"learning_rate":0.1,"grad_norm":1.0,"tokens":9,"tokens_per_second":4.5,"elapsed_seconds":2.0}"#;
        let row: MetricsRow = serde_json::from_str(old).unwrap();
        assert_eq!(serde_json::to_string(&row).unwrap(), old, "and written as they were");
    }

    #[test]
    fn a_line_names_its_kind_first() {
        let (_folder, path) = written(&[train(1), valid(1)]);
        let text = fs::read_to_string(path).unwrap();
        let starts: Vec<_> = text.lines().map(|line| &line[..23]).collect();
        assert_eq!(starts, [r#"{"kind":"train","step":"#, r#"{"kind":"valid","step":"#]);
    }

    #[test]
    fn resuming_drops_later_rows_and_a_torn_line() {
        let (folder, path) = written(&[train(1), train(2), valid(2), train(3)]);
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(br#"{"kind":"train","step":4,"lo"#).unwrap();

        let mut log = MetricsLog::resume(&path, &at_step(2, 0)).unwrap();
        log.append(&train(3)).unwrap();
        assert_eq!(
            MetricsLog::read(&path).unwrap(),
            [train(1), train(2), valid(2), train(3)],
            "rows up to step 2, then the row written again"
        );
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn resuming_drops_rollbacks_that_the_run_is_about_to_repeat() {
        let rollback = |number| {
            MetricsRow::Rollback(RollbackRow {
                step: 2,
                number,
                diverged_at: 5,
                quantity: "loss".into(),
                skipped_steps: 3 * number,
            })
        };
        let (_folder, path) = written(&[train(2), rollback(1), rollback(2), train(4)]);
        MetricsLog::resume(&path, &at_step(3, 1)).unwrap();
        assert_eq!(MetricsLog::read(&path).unwrap(), [train(2), rollback(1)]);
    }

    #[test]
    fn resuming_drops_what_is_about_to_come_again_at_the_same_step() {
        let coefficients =
            MetricsRow::Coefficients(CoefficientsRow { step: 2, layers: Vec::new() });
        let rows = [train(1), valid(1), train(2), valid(2), coefficients];
        let (_folder, path) = written(&rows);
        MetricsLog::resume(&path, &at_step(2, 0)).unwrap();
        assert_eq!(MetricsLog::read(&path).unwrap(), rows, "the validation is done");
        let due = RunState { validation_is_due: true, ..at_step(2, 0) };
        MetricsLog::resume(&path, &due).unwrap();
        assert_eq!(MetricsLog::read(&path).unwrap(), rows[..3]);
        let unlogged = RunState { window: Window { steps: 1, ..Window::default() }, ..due };
        MetricsLog::resume(&path, &unlogged).unwrap();
        assert_eq!(MetricsLog::read(&path).unwrap(), rows[..2]);
    }

    #[test]
    fn going_back_keeps_the_present_machine() {
        let start = |step, backend: &str| {
            MetricsRow::Start(StartRow { step, backend: backend.into(), ..StartRow::default() })
        };
        let rows = [start(0, "flex"), train(2), train(4), start(4, "cuda"), train(6)];
        let (_folder, path) = written(&rows);
        let log = MetricsLog::resume(&path, &at_step(6, 0)).unwrap();
        log.reopen(&at_step(2, 0)).unwrap();
        let expected = [start(0, "flex"), train(2), start(2, "cuda")];
        assert_eq!(MetricsLog::read(&path).unwrap(), expected);
        // A resume finds out for itself where it is.
        MetricsLog::resume(&path, &at_step(1, 0)).unwrap();
        assert_eq!(MetricsLog::read(&path).unwrap(), [start(0, "flex")]);
    }

    #[test]
    fn resuming_keeps_a_whole_last_row_that_lacks_its_line_break() {
        let (_folder, path) = written(&[train(1), train(2)]);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.trim_end()).unwrap();

        let mut log = MetricsLog::resume(&path, &at_step(2, 0)).unwrap();
        log.append(&train(3)).unwrap();
        assert_eq!(MetricsLog::read(&path).unwrap(), [train(1), train(2), train(3)]);
    }

    #[test]
    fn a_broken_line_is_named() {
        let (_folder, path) = written(&[train(1)]);
        let mut text = fs::read_to_string(&path).unwrap();
        text.push_str("{\"kind\":\"test\"}\n");
        fs::write(&path, text).unwrap();
        let message = MetricsLog::read(&path).unwrap_err().to_string();
        assert!(message.ends_with("metrics.jsonl, line 2: not a metrics row"), "{message}");
    }

    #[test]
    fn a_row_that_is_not_finite_is_refused() {
        let (_folder, path) = written(&[]);
        let mut log = MetricsLog::resume(&path, &at_step(0, 0)).unwrap();
        let MetricsRow::Train(row) = train(7) else { unreachable!() };
        let mut routing = row.routing.clone();
        routing[0].loads[1] = f64::INFINITY;
        let epochs = vec![SourceEpochs { name: "books".into(), epochs: f64::NAN }];
        for (row, message) in [
            (TrainRow { loss: f64::NAN, ..row.clone() }, "the loss of step 7 is NaN"),
            (TrainRow { routing, ..row.clone() }, "the load of an expert of step 7 is inf"),
            (TrainRow { epochs, ..row }, "the number of epochs of step 7 is NaN"),
        ] {
            let refused = log.append(&MetricsRow::Train(row)).unwrap_err().to_string();
            assert_eq!(refused, format!("{message}, which the metrics can't hold"));
        }
        assert!(MetricsLog::read(&path).unwrap().is_empty());
    }
}
