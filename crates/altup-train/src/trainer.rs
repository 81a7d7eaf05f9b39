//! The step loop.
//!
//! It stands beside burn-train's, which counts epochs and can't be resumed inside of one: here a run
//! is a number of steps, and all that step n depends on is the model, the optimizer, n and how many steps'
//! worth of batches were skipped. Each step is burn-train's [`TrainStep`].

use altup_data::{Batch, DataError, Prefetcher};
use altup_models::{LayerRouting, Noise};
use burn::module::Module;
use burn::optim::{GradientsAccumulator, GradientsParams, ModuleOptimizer};
use burn::tensor::Device;
use burn::train::TrainStep;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::checkpoint::{CheckpointError, Checkpoints, Restored, RunState, Window};
use crate::coefficients::CoefficientsRow;
use crate::config::{OnDivergence, TrainerConfig};
use crate::learner::{DeviceBatch, Learner, ToDevice};
use crate::memory;
use crate::metrics::{
    MetricsError, MetricsLog, MetricsRow, RollbackRow, RoutingRow, SourceEpochs, TrainRow,
};
use crate::progress::Progress;
use crate::recorder::Recorder;
use crate::task_evaluation::TaskEvaluationError;
use crate::training_batches::TrainingBatches;
use crate::validation::{Validated, Validation};
use altup_optim::{GroupError, global_norm, make_contiguous, scale_gradients};

/// A run in progress.
pub struct Trainer {
    /// How it trains.
    pub config: TrainerConfig,
    /// The device that it trains on, with autodiff.
    pub device: Device,
    /// What it trains on.
    pub train_data: Arc<dyn TrainingBatches>,
    /// What it is validated on.
    pub valid_data: Box<dyn Validation>,
    /// The model.
    pub learner: Learner,
    /// The optimizer.
    pub optimizer: ModuleOptimizer,
    /// Where the run is.
    pub state: RunState,
    /// Where the run was when its newest checkpoint was written or read.
    pub saved: Option<RunState>,
    /// Where it saves itself.
    pub checkpoints: Checkpoints,
    /// Where its metrics go.
    pub metrics: MetricsLog,
    /// Who watches.
    pub progress: Progress,
    /// What writes down how it goes.
    pub recorder: Recorder,
}

/// How a call of [`Trainer::train`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All steps are done.
    Finished,
    /// It was told to stop, and saved itself.
    Stopped,
}

/// Training was told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stopped;

fn unless(stop: &AtomicBool) -> Result<(), Stopped> {
    match stop.load(Ordering::Relaxed) {
        true => Err(Stopped),
        false => Ok(()),
    }
}

/// Why training can't go on.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The loss or the gradients are no longer numbers.
    #[error(
        "the {quantity} is {value} at step {step}: training has diverged. {}",
        describe(.last_good)
    )]
    Diverged {
        /// What isn't a number.
        quantity: &'static str,
        /// Its value.
        value: f64,
        /// The step.
        step: u64,
        /// The step of the newest checkpoint from which training went on well.
        last_good: Option<u64>,
    },
    /// Groups of parameters can't be formed.
    #[error("optimizer.groups")]
    Groups(#[from] GroupError),
    /// The data can't be prepared.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A task can't be evaluated.
    #[error(transparent)]
    Task(#[from] TaskEvaluationError),
    /// A checkpoint can't be written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The metrics can't be written.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
}

fn describe(last_good: &Option<u64>) -> String {
    match last_good {
        Some(step) => format!("The checkpoint of step {step} is good"),
        None => "No checkpoint before it is good".into(),
    }
}

impl Trainer {
    /// Trains to the last step, or until `stop` is set: then it ends before the next batch, without the
    /// step that it is in, and saves itself.
    ///
    /// # Errors
    ///
    /// If a step, a checkpoint or a line of metrics fails. What was saved before stays whole.
    pub fn train(&mut self, stop: &AtomicBool) -> Result<Outcome, TrainError> {
        if self.state.step == self.config.training.steps {
            self.make_up_for_the_last_step()?;
        }
        loop {
            match self.train_until_divergence(stop) {
                Err(TrainError::Diverged {
                    quantity, step, last_good: Some(last_good), ..
                }) if self.may_roll_back() => {
                    self.roll_back(last_good, step, quantity)?;
                }
                ended => return ended,
            }
        }
    }

    /// A run whose end was brought forward to the step that it has done lacks what belongs to a last step.
    fn make_up_for_the_last_step(&mut self) -> Result<(), TrainError> {
        self.state.validation_is_due |= self.state.valid_loss.is_none();
        if self.state.window.steps > 0 {
            self.log_window()?;
        }
        Ok(())
    }

    fn train_until_divergence(&mut self, stop: &AtomicBool) -> Result<Outcome, TrainError> {
        let training = &self.config.training;
        let (total_steps, checkpoint_every) = (training.steps, training.checkpoint_every);
        let minutes = training.checkpoint_minutes;
        let accumulation = training.gradient_accumulation as u64;
        let mut batches = self.batches(self.state.data_steps() * accumulation)?;
        let mut saved_at = Instant::now();
        loop {
            let step = self.state.step;
            if self.state.validation_is_due && self.validate(stop)? == Err(Stopped) {
                return self.stop();
            }
            let last = step >= total_steps || self.valid_data.is_satisfied();
            let by_time = minutes > 0.0 && saved_at.elapsed().as_secs_f64() >= 60.0 * minutes;
            if last || by_time || (step > 0 && step.is_multiple_of(checkpoint_every)) {
                self.save()?;
                saved_at = Instant::now();
            }
            if last {
                return Ok(Outcome::Finished);
            }
            if unless(stop) == Err(Stopped) {
                return self.stop();
            }
            let started = Instant::now();
            let batches = batches.by_ref().take(accumulation as usize).collect::<Result<_, _>>()?;
            let data_wait = started.elapsed().as_secs_f64();
            if self.step(step + 1, batches, stop)? == Err(Stopped) {
                return self.stop();
            }
            self.state.window.data_wait += data_wait;
            self.close_step(started.elapsed())?;
        }
    }

    /// What follows on a step: its time, the line of metrics, whether validation is due.
    fn close_step(&mut self, time: Duration) -> Result<(), TrainError> {
        let seconds = time.as_secs_f64();
        self.state.elapsed_seconds += seconds;
        self.state.window.seconds += seconds;
        // A checkpoint proves good when the step behind it has a loss: weights that a bad step ruined
        // are numbers still.
        if let Some(saved) = self.saved.as_ref().filter(|saved| saved.step + 1 == self.state.step) {
            self.state.proven = Some(saved.step);
        }
        let training = &self.config.training;
        let last = self.state.step == training.steps;
        self.state.valid_loss = None;
        self.state.validation_is_due = last || self.state.step.is_multiple_of(training.eval_every);
        if last || self.state.step.is_multiple_of(training.log_every) {
            self.log_window()?;
        }
        Ok(())
    }

    /// Writes a checkpoint, unless there is one that says the same.
    ///
    /// # Errors
    ///
    /// If it can't be written. Earlier checkpoints stay as they are.
    pub fn save(&mut self) -> Result<(), TrainError> {
        // A checkpoint says that the rows before it are written.
        self.metrics.sync()?;
        match &self.saved {
            Some(saved) if *saved == self.state => return Ok(()),
            // Neither model nor optimizer has changed.
            Some(saved) if saved.step == self.state.step => {
                self.checkpoints.restate(&self.state)?
            }
            _ => self.checkpoints.save(&self.state, &self.learner, &self.optimizer)?,
        }
        self.saved = Some(self.state.clone());
        self.warn_of_left_overs();
        Ok(())
    }

    /// Says what of old checkpoints couldn't be removed.
    fn warn_of_left_overs(&mut self) {
        for note in self.checkpoints.take_notes() {
            self.progress.warn(&format!("warning: {note}"));
        }
    }

    fn stop(&mut self) -> Result<Outcome, TrainError> {
        if self.state.step > 0 {
            self.save()?;
        }
        Ok(Outcome::Stopped)
    }

    fn may_roll_back(&self) -> bool {
        let training = &self.config.training;
        training.on_divergence == OnDivergence::Rollback
            && self.state.rollbacks < training.max_rollbacks
    }

    /// Goes back to the checkpoint of step `to` from a step at which training diverged, and passes over
    /// the batches in between.
    ///
    /// A kill in between leaves a run that diverges and goes back again, in the same way: what is done
    /// before the checkpoint is rewritten is undone at the next start.
    fn roll_back(&mut self, to: u64, from: u64, quantity: &str) -> Result<(), TrainError> {
        let optimizer = self.learner.optimizer(&self.config.optimizer)?;
        let Restored { state, learner, optimizer, .. } =
            self.checkpoints.restore(Some(to), &self.learner, &optimizer)?;
        let learner = learner.freeze(&self.config.optimizer)?;
        let state = RunState {
            skipped_steps: self.state.skipped_steps + from - to,
            rollbacks: self.state.rollbacks + 1,
            proven: Some(to),
            elapsed_seconds: self.state.elapsed_seconds,
            ..state
        };
        self.checkpoints.remove_later(to)?;
        self.warn_of_left_overs();
        // A validation that is still due comes again.
        self.valid_data.rewind(to.saturating_sub(u64::from(state.validation_is_due)));
        let undone = RunState { rollbacks: self.state.rollbacks, ..state.clone() };
        self.metrics = self.metrics.reopen(&undone)?;
        self.record(MetricsRow::Rollback(RollbackRow {
            step: to,
            number: state.rollbacks,
            diverged_at: from,
            quantity: quantity.to_owned(),
            skipped_steps: state.skipped_steps,
        }))?;
        self.checkpoints.restate(&state)?;
        self.progress.warn(&format!(
            "warning: the {quantity} is not finite at step {from}: back to step {to}, without the batches in between"
        ));
        self.saved = Some(state.clone());
        (self.state, self.learner, self.optimizer) = (state, learner, optimizer);
        Ok(())
    }

    fn batches(&self, first: u64) -> Result<Prefetcher<Batch>, DataError> {
        const AHEAD: usize = 4;
        let data = Arc::clone(&self.train_data);
        let make = move |number: u64| data.batch(number);
        Prefetcher::start(first, self.config.workers, AHEAD, make)
    }

    /// One optimizer step, over the gradients of several batches. If it is stopped between them, all is
    /// as it was before the step.
    fn step(
        &mut self,
        step: u64,
        batches: Vec<Batch>,
        stop: &AtomicBool,
    ) -> Result<Result<(), Stopped>, TrainError> {
        let targets: u64 = batches.iter().map(Batch::num_targets).sum();
        let inputs: u64 = batches.iter().map(Batch::num_inputs).sum();
        let Ok(summed) = self.gradients(step, &batches, targets, stop) else {
            return Ok(Err(Stopped));
        };
        let Summed { loss, mut gradients, routing } = summed;
        make_contiguous(&self.learner, &mut gradients);
        let norm = global_norm(&self.learner, &gradients);
        for (quantity, value) in [("loss", loss), ("gradient norm", norm)] {
            if !value.is_finite() {
                return Err(self.diverged(quantity, value, step));
            }
        }
        let clip = self.config.optimizer.clip_norm;
        if clip > 0.0 && norm > clip {
            scale_gradients(&self.learner, &mut gradients, clip / norm);
        }
        let rate = self.learning_rate(step);
        let learner = self.learner.clone();
        self.learner = learner.optimize(&mut self.optimizer, rate.into(), gradients);
        self.learner.model = self.config.coefficients.clip(self.learner.model.clone());

        self.state.step = step;
        self.state.tokens += inputs + targets;
        let window = &mut self.state.window;
        window.loss += loss;
        window.targets += targets;
        window.tokens += inputs + targets;
        window.grad_norm += norm;
        window.steps += 1;
        window.flops += batches.iter().map(|batch| self.recorder.train_flops(batch)).sum::<f64>();
        routing.into_iter().for_each(|routing| window.add_routing(routing));
        Ok(Ok(()))
    }

    fn diverged(&self, quantity: &'static str, value: f64, step: u64) -> TrainError {
        TrainError::Diverged { quantity, value, step, last_good: self.state.proven }
    }

    /// The summed loss of the batches of step `step`, and the gradients of its mean over their `targets`.
    fn gradients(
        &self,
        step: u64,
        batches: &[Batch],
        targets: u64,
        stop: &AtomicBool,
    ) -> Result<Summed, Stopped> {
        let mut accumulator = GradientsAccumulator::new();
        let mut sum = 0.0;
        let mut routing = Vec::new();
        for (micro_batch, batch) in (0..).zip(batches) {
            unless(stop)?;
            let data_step = self.state.data_steps() + 1;
            let noise = Noise::training(self.config.seed, data_step, micro_batch);
            let loss = self.config.loss.options();
            let batch = DeviceBatch { noise, loss, ..batch.to_device(targets, &self.device) };
            let output = self.config.training.precision.step(&self.learner, batch);
            sum += output.item.sum.into_scalar::<f64>();
            self.progress.micro_batch(step, u64::from(micro_batch) + 1, batches.len() as u64);
            routing.push(routing_rows(output.item.routing));
            if batches.len() == 1 {
                return Ok(Summed { loss: sum, gradients: output.grads, routing });
            }
            accumulator.accumulate(&self.learner, output.grads);
        }
        Ok(Summed { loss: sum, gradients: accumulator.grads(), routing })
    }

    fn learning_rate(&self, step: u64) -> f64 {
        let rate = self.config.optimizer.learning_rate;
        self.config.schedule.learning_rate(rate, step, self.config.training.steps)
    }

    fn log_window(&mut self) -> Result<(), TrainError> {
        let window = std::mem::take(&mut self.state.window);
        let Window { loss, targets, tokens, grad_norm, steps, seconds, batches, .. } = window;
        let flops_per_second = window.flops / seconds;
        let row = TrainRow {
            step: self.state.step,
            loss: loss / targets as f64,
            learning_rate: self.learning_rate(self.state.step),
            grad_norm: grad_norm / steps as f64,
            tokens: self.state.tokens,
            tokens_per_second: tokens as f64 / seconds,
            elapsed_seconds: self.state.elapsed_seconds,
            data_wait_seconds: Some(window.data_wait),
            memory_bytes: memory::resident(),
            peak_memory_bytes: memory::peak(),
            flops_per_second: Some(flops_per_second),
            peak_share: self.recorder.peak_share(flops_per_second),
            routing: Window::mean_routing(window.routing, batches),
            epochs: self.epochs(),
        };
        self.progress.train(&row);
        self.record(MetricsRow::Train(row))
    }

    /// Scores the validation data. If it is stopped between batches, nothing is recorded.
    fn validate(&mut self, stop: &AtomicBool) -> Result<Result<(), Stopped>, TrainError> {
        let Some(Validated { row, cost }) = self.score(stop)? else {
            return Ok(Err(Stopped));
        };
        // The perplexity overflows first: from a loss of 710 nats on.
        if !row.perplexity.is_finite() {
            return Err(self.diverged("validation perplexity", row.perplexity, row.step));
        }
        self.state.valid_loss = Some(cost);
        self.state.validation_is_due = false;
        self.progress.valid(&row);
        self.record(MetricsRow::Valid(row))?;
        let step = self.state.step;
        if let Some(row) = CoefficientsRow::of(&self.learner.model, step) {
            self.record(MetricsRow::Coefficients(row))?;
        }
        let model = self.config.training.precision.to_compute(&self.learner.model.valid());
        if let Some(warning) = self.recorder.validated(&model, step) {
            self.progress.warn(&warning);
        }
        Ok(Ok(()))
    }

    fn score(&mut self, stop: &AtomicBool) -> Result<Option<Validated>, TrainError> {
        let model = self.config.training.precision.to_compute(&self.learner.model.valid());
        let device = self.device.clone().without_autodiff();
        self.valid_data.score(&Learner { model }, self.state.step, &device, stop)
    }

    /// How often the sources of the data have been gone through so far.
    fn epochs(&self) -> Vec<SourceEpochs> {
        let accumulation = self.config.training.gradient_accumulation as u64;
        self.train_data.epochs(self.state.data_steps() * accumulation)
    }

    fn record(&mut self, row: MetricsRow) -> Result<(), TrainError> {
        Ok(self.metrics.append(&row)?)
    }
}

/// What the batches of a step come to together.
struct Summed {
    /// In nats.
    loss: f64,
    gradients: GradientsParams,
    /// How the layers with experts routed each batch.
    routing: Vec<Vec<RoutingRow>>,
}

fn routing_rows(routing: Vec<LayerRouting>) -> Vec<RoutingRow> {
    let row = |layer: LayerRouting| RoutingRow {
        stack: layer.stack.to_owned(),
        layer: layer.layer,
        load_balancing_loss: layer.load_balancing_loss.into_scalar::<f64>(),
        router_z_loss: layer.z_loss.into_scalar::<f64>(),
        entropy: layer.entropy,
        dropped: layer.dropped,
        loads: layer.loads,
    };
    routing.into_iter().map(row).collect()
}
