//! What a run shows of itself beside its losses: how fast it computes, what it writes, and the files that people
//! look at while it goes on.

use std::error::Error;
use std::fs::{OpenOptions, TryLockError};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use altup_data::{Batch, DataError, TextTokenizer};
use altup_models::{Decode, T5Config, forward_cost};
use burn::tensor::{DType, Device};

use crate::filling::FillError;
use crate::matrix_peak::matrix_peak;
use crate::metrics::{MetricsError, MetricsLog, MetricsRow, StartRow};
use crate::report::{ReportError, write_report};
use crate::run_folder::RunFolder;
use crate::samples::{self, SamplePrompts, SamplesError};
use crate::tensorboard;

/// Why what a run shows can't be made.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The samples can't be made.
    #[error("no samples of step {step}")]
    Fill {
        /// The step.
        step: u64,
        /// The cause.
        source: FillError,
    },
    /// The samples can't be read or written.
    #[error("no samples of step {step}")]
    Samples {
        /// The step.
        step: u64,
        /// The cause.
        source: SamplesError,
    },
    /// The files that people look at can't be made.
    #[error("the report is not up to date")]
    Views(#[from] ViewError),
}

/// What writes down how a run goes.
pub struct Recorder {
    model: T5Config,
    /// Operations a second that the device does at best.
    peak: Option<f64>,
    shown: Option<Shown>,
}

/// A run whose folder people look at.
struct Shown {
    folder: RunFolder,
    tokenizer: TextTokenizer,
    prompts: SamplePrompts,
}

impl Recorder {
    /// Counts the operations of a model, and no more.
    pub fn new(model: T5Config) -> Self {
        Self { model, peak: None, shown: None }
    }

    /// From now on, after each validation, also writes samples, TensorBoard's files and the report into the run's folder, which
    /// has its tokenizer already.
    ///
    /// # Errors
    ///
    /// If the tokenizer can't be read.
    pub fn show(&mut self, folder: RunFolder, prompts: SamplePrompts) -> Result<(), DataError> {
        let tokenizer = TextTokenizer::load(&folder.tokenizer())?;
        self.shown = Some(Shown { folder, tokenizer, prompts });
        Ok(())
    }

    /// Writes the first row of a run's metrics, with what `start` says, the time, and the speed of the device, which
    /// takes a second to measure. A run that is resumed has such a row already, and gets another one when it is on
    /// another device, or has another number of threads or replicas. Its precision is fixed.
    ///
    /// # Errors
    ///
    /// If the metrics can't be read or written.
    pub fn begin(
        &mut self,
        metrics: &mut MetricsLog,
        start: StartRow,
        device: &Device,
        dtype: DType,
    ) -> Result<(), MetricsError> {
        let rows = MetricsLog::read(metrics.path())?;
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let present = StartRow::newest(&rows)
            .filter(|row| row.backend == start.backend && row.threads == threads)
            .filter(|row| row.replicas == start.replicas);
        let row = match present {
            Some(row) => row.clone(),
            None => {
                let peak = matrix_peak(&device.clone().without_autodiff(), dtype);
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                let row = StartRow {
                    unix_seconds: now.as_secs_f64().floor(),
                    threads,
                    matrix_flops_per_second: peak.map(|peak| peak.flops_per_second.round()),
                    version: env!("CARGO_PKG_VERSION").to_owned(),
                    ..start
                };
                metrics.append(&MetricsRow::Start(row.clone()))?;
                row
            }
        };
        self.peak = row.matrix_flops_per_second;
        Ok(())
    }

    /// The operations of a training step on a batch: three times those of a forward pass over it, padding included.
    pub fn train_flops(&self, batch: &Batch) -> f64 {
        let lengths = (batch.input_length as u64, batch.target_length as u64);
        let parts = forward_cost(&self.model, lengths.0, lengths.1);
        let forward: f64 = parts.iter().map(|part| part.flops as f64).sum();
        3.0 * batch.batch_size as f64 * forward
    }

    /// A rate as a share of what the device does at best.
    pub fn peak_share(&self, flops_per_second: f64) -> Option<f64> {
        self.peak.map(|peak| flops_per_second / peak)
    }

    /// Writes down what a model has learned by `step`: its samples, then the files that are made of what is written
    /// down. Nothing of this is worth a run, so that a failure ends none: it is returned as a warning.
    pub fn validated<D: Decode>(&self, model: &D, step: u64) -> Option<String> {
        let Shown { folder, tokenizer, prompts } = self.shown.as_ref()?;
        let record_samples = || {
            let rows = prompts.fill(model, tokenizer, step);
            let rows = rows.map_err(|source| RecordError::Fill { step, source })?;
            samples::record(&folder.samples(), step, &rows)
                .map_err(|source| RecordError::Samples { step, source })
        };
        let sampled = record_samples();
        let shown = write_views(folder).map_err(RecordError::from);
        Some(warning(&sampled.and(shown).err()?))
    }
}

/// An error that ends nothing, with its causes, in a line.
pub fn warning(error: &dyn Error) -> String {
    let mut text = format!("warning: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

/// Why the files that people look at can't be written.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// The metrics can't be read.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// The report can't be made.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// The lock of these files can't be had.
    #[error("cannot use {}", path.display())]
    Lock {
        /// The lock.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// TensorBoard's files can't be written.
    #[error("cannot write {}", path.display())]
    TensorBoard {
        /// Their folder.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}

/// Makes TensorBoard's files and the report of a run, from what lies in its folder. While another process makes them, it
/// does nothing.
///
/// # Errors
///
/// If a file of the run can't be read, or one can't be written.
pub fn write_views(folder: &RunFolder) -> Result<(), ViewError> {
    let path = folder.views_lock();
    let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let lock = match lock.map(|lock| (lock.try_lock(), lock)) {
        Ok((Ok(()), lock)) => lock,
        Ok((Err(TryLockError::WouldBlock), _)) => return Ok(()),
        Ok((Err(TryLockError::Error(source)), _)) | Err(source) => {
            return Err(ViewError::Lock { path, source });
        }
    };
    let written = write_locked_views(folder);
    drop(lock);
    written
}

fn write_locked_views(folder: &RunFolder) -> Result<(), ViewError> {
    // A run that was killed before its first step may have no metrics.
    if folder.metrics().exists() {
        let rows = MetricsLog::read(&folder.metrics())?;
        let path = folder.tensorboard();
        tensorboard::write(&path, &rows)
            .map_err(|source| ViewError::TensorBoard { path, source })?;
    }
    Ok(write_report(folder.path())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RunConfig;

    #[test]
    fn a_step_is_three_forward_passes() {
        let model = RunConfig::tiny_altup().model_config(64).unwrap();
        let forward: u64 = forward_cost(&model, 8, 4).iter().map(|part| part.flops).sum();
        let batch = Batch {
            input_ids: vec![5; 24],
            labels: vec![5; 12],
            batch_size: 3,
            input_length: 8,
            target_length: 4,
        };
        let recorder = Recorder { peak: Some(4e9), ..Recorder::new(model) };
        assert_eq!(recorder.train_flops(&batch), (9 * forward) as f64);
        assert_eq!(recorder.peak_share(1e9), Some(0.25));
    }

    #[test]
    fn the_start_of_a_run_is_written_down_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let device = crate::device::cpu();
        let mut recorder = Recorder::new(RunConfig::tiny_altup().model_config(64).unwrap());
        let start = || StartRow { parameters: 7, ..StartRow::default() };
        let mut metrics = MetricsLog::create(&path).unwrap();
        recorder.begin(&mut metrics, start(), &device, DType::F32).unwrap();
        let rows = MetricsLog::read(&path).unwrap();
        let MetricsRow::Start(row) = &rows[0] else { panic!("{rows:?}") };
        assert!(row.parameters == 7 && row.unix_seconds > 1.7e9, "{row:?}");
        assert_eq!(recorder.peak, row.matrix_flops_per_second);

        let mut resumed = Recorder::new(RunConfig::tiny_altup().model_config(64).unwrap());
        resumed.begin(&mut metrics, start(), &device, DType::F32).unwrap();
        assert_eq!(MetricsLog::read(&path).unwrap(), rows);
        assert_eq!(resumed.peak, recorder.peak);

        let elsewhere = StartRow { step: 5, backend: "other".into(), ..start() };
        resumed.begin(&mut metrics, elsewhere, &device, DType::F32).unwrap();
        let rows = MetricsLog::read(&path).unwrap();
        let newest = StartRow::newest(&rows).unwrap();
        assert_eq!((rows.len(), newest.step, newest.backend.as_str()), (2, 5, "other"));
        assert_eq!(resumed.peak, newest.matrix_flops_per_second);
    }
}
