//! What a run shows of itself beside its losses: how fast it computes, what it writes, and the files that people
//! look at while it goes on.

use std::error::Error;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use altup_data::{Batch, DataError, TextTokenizer};
use altup_models::{Decode, T5Config, forward_cost};
use burn::tensor::{DType, Device};

use crate::checkpoint::RunState;
use crate::filling::FillError;
use crate::matrix_peak::matrix_peak;
use crate::metrics::{MetricsError, MetricsLog, MetricsRow, StartRow};
use crate::process::num_threads;
use crate::run_folder::RunFolder;
use crate::samples::{SamplePrompts, SamplesError, SamplesLog};
use crate::views::{ViewError, Views};

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
    sampling: Option<Sampling>,
    shown: Option<Shown>,
}

/// What a model writes at each validation for people to read.
struct Sampling {
    /// Where it goes.
    path: PathBuf,
    tokenizer: TextTokenizer,
    prompts: SamplePrompts,
    /// None where it couldn't be opened or written last.
    log: Option<SamplesLog>,
}

impl Sampling {
    fn record<D: Decode>(
        &mut self,
        model: &D,
        step: u64,
        stop: &AtomicBool,
    ) -> Result<Option<()>, RecordError> {
        let rows = self.prompts.fill(model, &self.tokenizer, step, stop);
        let Some(rows) = rows.map_err(|source| RecordError::Fill { step, source })? else {
            return Ok(None);
        };
        let error = |source| RecordError::Samples { step, source };
        let mut log = match self.log.take() {
            Some(log) => log,
            None => {
                let state = RunState { step, validation_is_due: true, ..RunState::default() };
                SamplesLog::open(&self.path, &state).map_err(error)?
            }
        };
        log.record(step, &rows).map_err(error)?;
        self.log = Some(log);
        Ok(Some(()))
    }
}

/// A run whose folder people look at.
struct Shown {
    views: Views,
    pace: Pace,
}

impl Shown {
    fn write_views_if_due(&mut self) -> Result<(), RecordError> {
        let started = Instant::now();
        if !self.pace.is_due(started) {
            return Ok(());
        }
        let written = self.views.write_unless_busy();
        self.pace.done(started, Instant::now());
        Ok(written?)
    }
}

/// How often what people look at is made anew.
#[derive(Debug, Default)]
struct Pace {
    due: Option<Instant>,
}

impl Pace {
    /// As often as a page loads itself again: nobody sees more.
    const EVERY: Duration = Duration::from_secs(30);
    /// Of a run's time, at most one part in so many.
    const SHARE: u32 = 50;

    fn is_due(&self, now: Instant) -> bool {
        self.due.is_none_or(|due| now >= due)
    }

    /// Everything was made anew, which took from `started` to `ended`.
    fn done(&mut self, started: Instant, ended: Instant) {
        let wait = Self::SHARE * ended.saturating_duration_since(started);
        self.due = Some(ended + wait.max(Self::EVERY));
    }
}

impl Recorder {
    /// Counts the operations of a model, and no more.
    pub fn new(model: T5Config) -> Self {
        Self { model, peak: None, sampling: None, shown: None }
    }

    /// From now on, also writes TensorBoard's files and the report into the run's folder, when it is [asked
    /// to](Self::show_if_due) and twice a minute at most.
    pub fn show(&mut self, folder: &RunFolder) {
        self.shown = Some(Shown { views: Views::new(folder.clone()), pace: Pace::default() });
    }

    /// From now on, also writes what the model makes of `prompts` into the run's folder, after each validation. The folder
    /// has its tokenizer already. Samples from behind `state`, where the run is, are dropped.
    ///
    /// # Errors
    ///
    /// If the tokenizer can't be read.
    pub fn sample(
        &mut self,
        folder: &RunFolder,
        prompts: SamplePrompts,
        state: &RunState,
    ) -> Result<(), DataError> {
        let (path, tokenizer) = (folder.samples(), TextTokenizer::load(&folder.tokenizer())?);
        // Where this fails, it is tried again when there are samples to write, and a warning says why.
        let log = SamplesLog::open(&path, state).ok();
        self.sampling = Some(Sampling { path, tokenizer, prompts, log });
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
        let threads = num_threads();
        let present = StartRow::newest(metrics.path())?
            .filter(|row| row.backend == start.backend && row.threads == threads)
            .filter(|row| row.replicas == start.replicas);
        let row = match present {
            Some(row) => row,
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

    /// Writes down what a model has learned by `step`: its samples. Nothing of them, if it is to stop before it has them.
    ///
    /// # Errors
    ///
    /// If they can't be made or written, which is not worth a run.
    pub fn sampled<D: Decode>(
        &mut self,
        model: &D,
        step: u64,
        stop: &AtomicBool,
    ) -> Result<Option<()>, RecordError> {
        match &mut self.sampling {
            Some(sampling) => sampling.record(model, step, stop),
            None => Ok(Some(())),
        }
    }

    /// Makes the files of what is written down, if they are due. A failure is returned as a warning.
    pub fn show_if_due(&mut self) -> Option<String> {
        Some(warning(&self.shown.as_mut()?.write_views_if_due().err()?))
    }

    /// Makes the files of what is written down, whenever they were made last. A failure is returned as a warning.
    pub fn write_views(&mut self) -> Option<String> {
        let written = self.shown.as_mut()?.views.write().map_err(RecordError::from);
        Some(warning(&written.err()?))
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
    fn views_come_at_their_pace() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut pace = Pace::default();
        assert!(pace.is_due(at(0)), "the first at once");
        pace.done(at(0), at(0));
        assert!(!pace.is_due(at(29)) && pace.is_due(at(30)));
        // Slow ones come seldom.
        pace.done(at(30), at(40));
        assert!(!pace.is_due(at(539)) && pace.is_due(at(540)));
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
        let newest = StartRow::newest(&path).unwrap().unwrap();
        assert_eq!((rows.len(), newest.step, newest.backend.as_str()), (2, 5, "other"));
        assert_eq!(resumed.peak, newest.matrix_flops_per_second);
    }
}
