//! The step loop.
//!
//! It stands beside burn-train's, which counts epochs and can't be resumed inside of one: here a run
//! is a number of steps, and all that step n depends on is the model, the optimizer and n. Each step
//! is burn-train's [`TrainStep`].

use altup_data::{Batch, DataError, Prefetcher};
use altup_models::{LayerRouting, Noise};
use burn::module::Module;
use burn::optim::{GradientsAccumulator, GradientsParams, ModuleOptimizer};
use burn::tensor::Device;
use burn::train::TrainStep;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::checkpoint::{CheckpointError, Checkpoints, RunState, Window};
use crate::config::TrainerConfig;
use crate::learner::{DeviceBatch, Learner, ToDevice};
use crate::metrics::{MetricsError, MetricsLog, MetricsRow, RoutingRow, SourceEpochs, TrainRow};
use crate::progress::Progress;
use crate::task_evaluation::TaskEvaluationError;
use crate::training_batches::TrainingBatches;
use crate::validation::{Validated, Validation};
use altup_optim::{global_norm, make_contiguous, scale_gradients};

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
    /// Where it saves itself.
    pub checkpoints: Checkpoints,
    /// Where its metrics go.
    pub metrics: MetricsLog,
    /// Who watches.
    pub progress: Progress,
}

/// How a call of [`Trainer::train`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All steps are done.
    Finished,
    /// It was told to stop, and saved a checkpoint at this step.
    Stopped {
        /// The last step done.
        step: u64,
    },
}

/// Why training can't go on.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The loss or the gradients are no longer numbers.
    #[error(
        "the {quantity} is {value} at step {step}: training has diverged. {} Lower \
         optimizer.learning_rate, lengthen schedule.warmup_steps or set optimizer.clip_norm",
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
        Some(step) => format!("The checkpoint of step {step} is good."),
        None => "No checkpoint before it is good.".into(),
    }
}

impl Trainer {
    /// Trains to the last step, or until `stop` is set.
    ///
    /// # Errors
    ///
    /// If a step, a checkpoint or a line of metrics fails. What was saved before stays whole.
    pub fn train(&mut self, stop: &AtomicBool) -> Result<Outcome, TrainError> {
        let total_steps = self.config.training.steps;
        let accumulation = self.config.training.gradient_accumulation as u64;
        let mut batches = self.batches(self.state.step * accumulation)?;
        // A checkpoint proves good when the step behind it has a loss: weights that a bad step ruined
        // are numbers still.
        let mut unproven = (self.state.step > 0).then_some(self.state.step);
        let mut last_good = None;
        while self.state.step < total_steps && !self.valid_data.is_satisfied() {
            let step = self.state.step + 1;
            let started = Instant::now();
            let batches = batches.by_ref().take(accumulation as usize).collect::<Result<_, _>>()?;
            self.step(step, batches, last_good)?;
            last_good = unproven.take().or(last_good);
            let seconds = started.elapsed().as_secs_f64();
            self.state.elapsed_seconds += seconds;
            self.state.window.seconds += seconds;

            let mut last = step == total_steps;
            if last || step.is_multiple_of(self.config.training.log_every) {
                self.log_window()?;
            }
            self.state.valid_loss = None;
            if last || step.is_multiple_of(self.config.training.eval_every) {
                self.validate(step, last_good)?;
                last |= self.valid_data.is_satisfied();
            }
            let stopped = stop.load(Ordering::Relaxed);
            if last || stopped || step.is_multiple_of(self.config.training.checkpoint_every) {
                self.checkpoints.save(&self.state, &self.learner, &self.optimizer)?;
                unproven = Some(step);
            }
            if stopped && !last {
                return Ok(Outcome::Stopped { step });
            }
        }
        Ok(Outcome::Finished)
    }

    fn batches(&self, first: u64) -> Result<Prefetcher<Batch>, DataError> {
        const AHEAD: usize = 4;
        let data = Arc::clone(&self.train_data);
        let make = move |number: u64| data.batch(number);
        Prefetcher::start(first, self.config.workers, AHEAD, make)
    }

    /// One optimizer step, over the gradients of several batches.
    fn step(
        &mut self,
        step: u64,
        batches: Vec<Batch>,
        last_good: Option<u64>,
    ) -> Result<(), TrainError> {
        let targets: u64 = batches.iter().map(Batch::num_targets).sum();
        let inputs: u64 = batches.iter().map(Batch::num_inputs).sum();
        let (loss, mut gradients) = self.gradients(step, &batches, targets);
        make_contiguous(&self.learner, &mut gradients);
        let norm = global_norm(&self.learner, &gradients);
        for (quantity, value) in [("loss", loss), ("gradient norm", norm)] {
            if !value.is_finite() {
                return Err(TrainError::Diverged { quantity, value, step, last_good });
            }
        }
        let clip = self.config.optimizer.clip_norm;
        if clip > 0.0 && norm > clip {
            scale_gradients(&self.learner, &mut gradients, clip / norm);
        }
        let rate = self.learning_rate(step);
        let learner = self.learner.clone();
        self.learner = learner.optimize(&mut self.optimizer, rate.into(), gradients);

        self.state.step = step;
        self.state.tokens += inputs + targets;
        let window = &mut self.state.window;
        window.loss += loss;
        window.targets += targets;
        window.tokens += inputs + targets;
        window.grad_norm += norm;
        window.steps += 1;
        Ok(())
    }

    /// The summed loss of the batches, and the gradients of its mean over their `targets`.
    fn gradients(&mut self, step: u64, batches: &[Batch], targets: u64) -> (f64, GradientsParams) {
        let mut accumulator = GradientsAccumulator::new();
        let mut loss = 0.0;
        for (micro_batch, batch) in (0..).zip(batches) {
            let noise = Noise::training(self.config.seed, step, micro_batch);
            let batch = DeviceBatch { noise, ..batch.to_device(targets, &self.device) };
            let output = self.config.training.precision.step(&self.learner, batch);
            loss += output.item.sum.into_scalar::<f64>();
            self.state.window.add_routing(routing_rows(output.item.routing));
            if batches.len() == 1 {
                return (loss, output.grads);
            }
            accumulator.accumulate(&self.learner, output.grads);
        }
        (loss, accumulator.grads())
    }

    fn learning_rate(&self, step: u64) -> f64 {
        let rate = self.config.optimizer.learning_rate;
        self.config.schedule.learning_rate(rate, step, self.config.training.steps)
    }

    fn log_window(&mut self) -> Result<(), TrainError> {
        let window = std::mem::take(&mut self.state.window);
        let Window { loss, targets, tokens, grad_norm, steps, seconds, batches, routing } = window;
        let row = TrainRow {
            step: self.state.step,
            loss: loss / targets as f64,
            learning_rate: self.learning_rate(self.state.step),
            grad_norm: grad_norm / steps as f64,
            tokens: self.state.tokens,
            tokens_per_second: tokens as f64 / seconds,
            elapsed_seconds: self.state.elapsed_seconds,
            routing: Window::mean_routing(routing, batches),
            epochs: self.epochs(),
        };
        self.progress.train(&row);
        self.record(MetricsRow::Train(row))
    }

    fn validate(&mut self, step: u64, last_good: Option<u64>) -> Result<(), TrainError> {
        let Validated { row, cost } = self.score(step)?;
        // The perplexity overflows first: from a loss of 710 nats on.
        if !row.perplexity.is_finite() {
            let (quantity, value) = ("validation perplexity", row.perplexity);
            return Err(TrainError::Diverged { quantity, value, step, last_good });
        }
        self.state.valid_loss = Some(cost);
        self.progress.valid(&row);
        self.record(MetricsRow::Valid(row))
    }

    fn score(&mut self, step: u64) -> Result<Validated, TrainError> {
        let model = self.config.training.precision.to_compute(&self.learner.model.valid());
        let device = self.device.clone().without_autodiff();
        self.valid_data.score(&Learner { model }, step, &device)
    }

    /// How often the sources of the data have been gone through so far.
    fn epochs(&self) -> Vec<SourceEpochs> {
        let accumulation = self.config.training.gradient_accumulation as u64;
        self.train_data.epochs(self.state.step * accumulation)
    }

    fn record(&mut self, row: MetricsRow) -> Result<(), TrainError> {
        Ok(self.metrics.append(&row)?)
    }
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
