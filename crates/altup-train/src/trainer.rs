//! The step loop.
//!
//! It stands beside burn-train's, which counts epochs and can't be resumed inside of one: here a run
//! is a number of steps, and all that step n depends on is the model, the optimizer, n and how many steps'
//! worth of batches were skipped. Each step is burn-train's [`TrainStep`].
//!
//! A step waits for no number of its own. Its loss and the norm of its gradients are read while the device is at the step
//! behind it, so a GPU has always something to do. That training has diverged is then seen one step late. Whatever
//! writes or scores the weights comes after the numbers of every step before it: a checkpoint, a validation, a line of
//! metrics, the end.

use altup_backend::Reading;
use altup_data::{Batch, DataError, Prefetcher};
use altup_models::{LayerRouting, Noise, T5};
use burn::module::Module;
use burn::optim::{GradientsParams, ModuleOptimizer};
use burn::store::RecordError;
use burn::tensor::{Device, Tensor};
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
use crate::recorder::{Recorder, warning};
use crate::replicas::{GradientSum, MicroBatches, Replicas, ShareError, Turns};
use crate::task_evaluation::TaskEvaluationError;
use crate::training_batches::TrainingBatches;
use crate::validation::{Validated, Validation};
use altup_optim::{GroupError, clip_gradients, global_square_sum, make_contiguous};

/// A run in progress, on one of its replicas.
pub struct Trainer {
    /// How it trains.
    pub config: TrainerConfig,
    /// Those that train it together.
    pub replicas: Replicas,
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
    /// What it writes into its folder, on the replica that has it.
    pub files: Option<RunFiles>,
    /// Who watches.
    pub progress: Progress,
    /// What writes down how it goes.
    pub recorder: Recorder,
}

/// What a run writes into its folder while it trains.
pub struct RunFiles {
    /// Where it saves itself.
    pub checkpoints: Checkpoints,
    /// Where its metrics go.
    pub metrics: MetricsLog,
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
        "the {quantity} is {value} at step {step}{}: training has diverged. {}",
        describe_delay(.step, .seen_at),
        describe(.last_good)
    )]
    Diverged {
        /// What isn't a number.
        quantity: &'static str,
        /// Its value.
        value: f64,
        /// The step.
        step: u64,
        /// The step that was begun when this was seen.
        seen_at: u64,
        /// The step of the newest checkpoint from which training went on well.
        last_good: Option<u64>,
    },
    /// The replicas can't share a step.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// A replica computes something else.
    #[error(
        "the weights of replica {rank} are not those of replica 0 after step {step}, bit by bit, and nothing was saved: \
         its device or its memory computes something else"
    )]
    OtherWeights {
        /// The first replica with other weights.
        rank: usize,
        /// The step.
        step: u64,
    },
    /// What replica 0 has read of a checkpoint can't be given to the others.
    #[error("the checkpoint can't be given to all replicas")]
    Record(#[from] RecordError),
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

fn describe_delay(step: &u64, seen_at: &u64) -> String {
    match seen_at > step {
        true => format!(" (seen after step {seen_at} was begun)"),
        false => String::new(),
    }
}

impl Trainer {
    /// Trains to the last step, or until `stop` is set: then it ends before the next batch, without the
    /// step that it is in, and saves itself. Several replicas end together, at the end of a step, once it is set on any.
    ///
    /// # Errors
    ///
    /// If a step, a checkpoint or a line of metrics fails. What was saved before stays whole.
    pub fn train(&mut self, stop: &AtomicBool) -> Result<Outcome, TrainError> {
        // A run whose end was brought forward to the step that it has done lacks the row of a last step.
        if self.state.step == self.config.training.steps && self.state.window.steps > 0 {
            self.log_window()?;
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

    fn train_until_divergence(&mut self, stop: &AtomicBool) -> Result<Outcome, TrainError> {
        let training = &self.config.training;
        let (total_steps, checkpoint_every) = (training.steps, training.checkpoint_every);
        let minutes = training.checkpoint_minutes;
        let own = MicroBatches::of(&self.replicas, training.gradient_accumulation as u64)?;
        let mut batches = self.batches(own)?;
        let mut saved_at = Instant::now();
        // The step whose numbers are still to be read.
        let mut unread: Option<LaunchedStep> = None;
        loop {
            let step = self.state.step;
            if self.state.validation_is_due && self.validate(stop)? == Err(Stopped) {
                return self.stop();
            }
            let last = step >= total_steps || self.valid_data.is_satisfied();
            let by_time = minutes > 0.0 && {
                let is_due = saved_at.elapsed().as_secs_f64() >= 60.0 * minutes;
                self.replicas.any(is_due, &format!("step {}", step + 1))
            };
            if last || by_time || (step > 0 && step.is_multiple_of(checkpoint_every)) {
                self.read_now(&mut unread)?;
                self.save()?;
                saved_at = Instant::now();
            }
            if last {
                return Ok(Outcome::Finished);
            }
            let is_told = stop.load(Ordering::Relaxed);
            if self.replicas.any(is_told, &format!("step {}", step + 1)) {
                self.read_now(&mut unread)?;
                return self.stop();
            }
            let started = Instant::now();
            let Ok(batches) = self.batches_of_step(&mut batches, own, stop)? else {
                self.read_now(&mut unread)?;
                return self.stop();
            };
            let data_wait = started.elapsed().as_secs_f64();
            let Ok(launched) = self.step(step + 1, own, batches, stop)? else {
                self.read_now(&mut unread)?;
                return self.stop();
            };
            if let Some(before) = unread.replace(launched) {
                self.read(before)?;
            }
            if self.reads_at(step + 1) {
                unread.take().map_or(Ok(()), |launched| self.read(launched))?;
            }
            self.state.window.data_wait += data_wait;
            self.close_step(started.elapsed())?;
        }
    }

    /// Whether a step's numbers are needed before the next step.
    fn reads_at(&self, step: u64) -> bool {
        let training = &self.config.training;
        let every = [training.log_every, training.eval_every, training.checkpoint_every];
        step == training.steps || every.into_iter().any(|every| step.is_multiple_of(every))
    }

    /// Reads a step's numbers, if there is one unread, between two steps. What it waits counts to training.
    fn read_now(&mut self, unread: &mut Option<LaunchedStep>) -> Result<(), TrainError> {
        let Some(launched) = unread.take() else { return Ok(()) };
        let started = Instant::now();
        self.read(launched)?;
        self.add_time(started.elapsed());
        Ok(())
    }

    fn add_time(&mut self, time: Duration) {
        self.state.elapsed_seconds += time.as_secs_f64();
        self.state.window.seconds += time.as_secs_f64();
    }

    /// What follows on a step: its time, the line of metrics, whether validation is due.
    fn close_step(&mut self, time: Duration) -> Result<(), TrainError> {
        self.add_time(time);
        let training = &self.config.training;
        let last = self.state.step == training.steps;
        (self.state.valid_loss, self.state.valid_examples) = (None, None);
        self.state.validation_is_due = last || self.state.step.is_multiple_of(training.eval_every);
        if last || self.state.step.is_multiple_of(training.log_every) {
            self.log_window()?;
        }
        Ok(())
    }

    /// Writes a checkpoint, unless there is one that says the same. Several replicas first compare their weights.
    ///
    /// # Errors
    ///
    /// If it can't be written, or a replica has other weights. Earlier checkpoints stay as they are.
    pub fn save(&mut self) -> Result<(), TrainError> {
        let step = self.state.step;
        if let Some(rank) = self.replicas.first_with_other_weights(&self.learner) {
            return Err(TrainError::OtherWeights { rank, step });
        }
        if let Some(RunFiles { checkpoints, metrics }) = &mut self.files {
            // A checkpoint says that the rows before it are written.
            metrics.sync()?;
            match &self.saved {
                Some(saved) if *saved == self.state => {}
                // Neither model nor optimizer has changed.
                Some(saved) if saved.step == step => checkpoints.restate(&self.state)?,
                _ => checkpoints.save(&self.state, &self.learner, &self.optimizer)?,
            }
        }
        self.saved = Some(self.state.clone());
        self.warn_of_left_overs();
        Ok(())
    }

    /// Says what of old checkpoints couldn't be removed.
    fn warn_of_left_overs(&mut self) {
        let notes = self.files.as_mut().map(|files| files.checkpoints.take_notes());
        for note in notes.unwrap_or_default() {
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
        let read = self
            .files
            .as_mut()
            .map(|files| files.checkpoints.restore(Some(to), &self.learner, &optimizer));
        let Restored { state, learner, optimizer, .. } =
            self.replicas.share_restored(read.transpose()?, &self.learner, &optimizer)?;
        let learner = learner.freeze(&self.config.optimizer)?;
        let state = RunState {
            skipped_steps: self.state.skipped_steps + from - to,
            rollbacks: self.state.rollbacks + 1,
            proven: Some(to),
            // What was done and is undone now took its time, and counts with it.
            tokens: self.state.tokens,
            elapsed_seconds: self.state.elapsed_seconds,
            exchange_seconds: self.state.exchange_seconds,
            ..state
        };
        if let Some(files) = &mut self.files {
            files.checkpoints.remove_later(to)?;
        }
        self.warn_of_left_overs();
        // A validation that is still due comes again.
        self.valid_data.rewind(to.saturating_sub(u64::from(state.validation_is_due)));
        let undone = RunState { rollbacks: self.state.rollbacks, ..state.clone() };
        if let Some(files) = &mut self.files {
            files.metrics = files.metrics.reopen(&undone)?;
        }
        self.record(MetricsRow::Rollback(RollbackRow {
            step: to,
            number: state.rollbacks,
            diverged_at: from,
            quantity: quantity.to_owned(),
            skipped_steps: state.skipped_steps,
        }))?;
        if let Some(files) = &mut self.files {
            // A checkpoint says that the rows before it are written.
            files.metrics.sync()?;
            files.checkpoints.restate(&state)?;
        }
        self.progress.warn(&format!(
            "warning: the {quantity} is not finite at step {from}: back to step {to}, without the batches in between"
        ));
        self.saved = Some(state.clone());
        (self.state, self.learner, self.optimizer) = (state, learner, optimizer);
        Ok(())
    }

    /// This replica's batches from where the run is.
    fn batches(&self, own: MicroBatches) -> Result<Prefetcher<Batch>, DataError> {
        const AHEAD: usize = 4;
        let data = Arc::clone(&self.train_data);
        let make = move |nth: u64| data.batch(own.batch(nth));
        let first = self.state.data_steps() * own.count;
        Prefetcher::start(first, self.config.workers, AHEAD, make)
    }

    /// This replica's batches of a step. A lone one waits for them no longer than until it is to stop.
    fn batches_of_step(
        &self,
        batches: &mut Prefetcher<Batch>,
        own: MicroBatches,
        stop: &AtomicBool,
    ) -> Result<Result<Vec<Batch>, Stopped>, DataError> {
        let is_over = || self.replicas.is_lone() && stop.load(Ordering::Relaxed);
        let mut of_step = Vec::with_capacity(own.count as usize);
        for _ in 0..own.count {
            match batches.next_unless(is_over) {
                Some(batch) => of_step.push(batch?),
                None => return Ok(Err(Stopped)),
            }
        }
        Ok(Ok(of_step))
    }

    /// One optimizer step, over the gradients of several batches on each replica. If it is stopped between them, all is
    /// as it was before the step. Its numbers aren't read yet.
    fn step(
        &mut self,
        step: u64,
        own: MicroBatches,
        batches: Vec<Batch>,
        stop: &AtomicBool,
    ) -> Result<Result<LaunchedStep, Stopped>, TrainError> {
        let count = |of: fn(&Batch) -> u64| batches.iter().map(of).sum::<u64>();
        let counts = [count(Batch::num_targets), count(Batch::num_inputs)];
        let [targets, inputs] =
            self.replicas.sum_counts(counts, &format!("the batches of step {step}"));
        let Ok(summed) = self.gradients(step, own, &batches, targets, stop) else {
            return Ok(Err(Stopped));
        };
        let Summed { passes, mut gradients, exchange } = summed;
        make_contiguous(&self.learner, &mut gradients);
        let square_sum = global_square_sum(&self.learner, &gradients);
        let clip = self.config.optimizer.clip_norm;
        if clip > 0.0
            && let Some(square_sum) = &square_sum
        {
            clip_gradients(&self.learner, &mut gradients, square_sum, clip);
        }
        let launched = LaunchedStep::new(step, targets, inputs + targets, passes, square_sum);
        let rate = self.learning_rate(step);
        let learner = self.learner.clone();
        self.learner = learner.optimize(&mut self.optimizer, rate.into(), gradients);
        self.learner.model = self.config.coefficients.clip(self.learner.model.clone());

        self.state.step = step;
        self.state.exchange_seconds += exchange.as_secs_f64();
        self.state.window.exchange += exchange.as_secs_f64();
        Ok(Ok(launched))
    }

    /// Waits for a step's numbers, and adds them up.
    ///
    /// # Errors
    ///
    /// If training has diverged there.
    fn read(&mut self, launched: LaunchedStep) -> Result<(), TrainError> {
        let LaunchedStep { step, targets, tokens, .. } = launched;
        let (passes, norm) = launched.read();
        let loss: f64 = passes.iter().map(|pass| pass.loss).sum();
        let routing = passes.iter().flat_map(|pass| &pass.routing).flat_map(RoutingRow::values);
        let not_finite = [("loss", loss), ("gradient norm", norm)]
            .into_iter()
            .chain(routing)
            .find(|(_, value)| !value.is_finite());
        if let Some((quantity, value)) = not_finite {
            return Err(self.diverged(quantity, value, step));
        }
        // A checkpoint proves good when the step behind it has a loss: weights that a bad step ruined
        // are numbers still.
        if let Some(saved) = self.saved.as_ref().filter(|saved| saved.step + 1 == step) {
            self.state.proven = Some(saved.step);
        }
        // Not those of a step that diverged, nor of the one begun behind it, which is done again.
        self.state.tokens += tokens;
        let window = &mut self.state.window;
        window.loss += loss;
        window.targets += targets;
        window.tokens += tokens;
        window.grad_norm += norm;
        window.steps += 1;
        for pass in passes {
            window.flops += pass.flops;
            window.add_routing(pass.routing);
        }
        Ok(())
    }

    fn diverged(&self, quantity: &'static str, value: f64, step: u64) -> TrainError {
        let (seen_at, last_good) = (self.state.step, self.state.proven);
        TrainError::Diverged { quantity, value, step, seen_at, last_good }
    }

    /// What the batches of step `step` come to on all replicas: the gradients of the mean loss over their `targets`.
    fn gradients(
        &self,
        step: u64,
        own: MicroBatches,
        batches: &[Batch],
        targets: u64,
        stop: &AtomicBool,
    ) -> Result<Summed, Stopped> {
        let mut sum = GradientSum::default();
        let mut passes = Vec::with_capacity(batches.len());
        for (number, batch) in (0..).zip(batches) {
            if self.replicas.is_lone() {
                unless(stop)?;
            }
            let data_step = self.state.data_steps() + 1;
            let micro_batch = own.first as u32 + number;
            let noise = Noise::training(self.config.seed, data_step, micro_batch);
            let loss = self.config.loss.options();
            let flops = self.recorder.train_flops(batch);
            let batch = DeviceBatch { noise, loss, ..batch.to_device(targets, &self.device) };
            let output = self.config.training.precision.step(&self.learner, batch);
            self.progress.micro_batch(step, u64::from(number) + 1, batches.len() as u64);
            passes.push(Pass { loss: output.item.sum, flops, routing: output.item.routing });
            sum.push(&self.learner, output.grads);
        }
        let started = Instant::now();
        let passes = match self.replicas.is_lone() {
            true => Passes::Unread(passes),
            false => {
                let own = Pass::read_all(passes);
                // First: so all of them are here when their gradients go out.
                let what = format!("the losses of step {step}");
                Passes::Read(PassRow::of_all(own, &self.replicas, &what))
            }
        };
        let what = format!("the gradients of step {step}");
        let gradients = sum.total(&self.learner, &self.replicas, &what);
        let exchange = if self.replicas.is_lone() { Duration::ZERO } else { started.elapsed() };
        Ok(Summed { passes, gradients, exchange })
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
            exchange_seconds: (!self.replicas.is_lone()).then_some(window.exchange),
            memory_bytes: memory::resident(),
            peak_memory_bytes: memory::peak(),
            flops_per_second: Some(flops_per_second),
            peak_share: self.recorder.peak_share(flops_per_second / self.replicas.size() as f64),
            routing: Window::mean_routing(window.routing, batches),
            epochs: self.epochs(),
        };
        self.progress.train(&row);
        self.record(MetricsRow::Train(row))?;
        if let Some(warning) = self.recorder.show_if_due() {
            self.progress.warn(&warning);
        }
        Ok(())
    }

    /// Scores the validation data and makes the samples. If it is stopped before it has both, nothing is recorded.
    fn validate(&mut self, stop: &AtomicBool) -> Result<Result<(), Stopped>, TrainError> {
        let model = self.config.training.precision.to_compute(&self.learner.model.valid());
        let Some(Validated { row, cost }) = self.score(&model, stop)? else {
            return Ok(Err(Stopped));
        };
        // The perplexity overflows first: from a loss of 710 nats on.
        if !row.perplexity.is_finite() {
            return Err(self.diverged("validation perplexity", row.perplexity, row.step));
        }
        let step = self.state.step;
        // Of several replicas, only the first has samples to make, and it must not stop alone.
        let stop = if self.replicas.is_lone() { stop } else { &AtomicBool::new(false) };
        match self.recorder.sampled(&model, step, stop) {
            Ok(Some(())) => {}
            Ok(None) => {
                self.valid_data.rewind(step.saturating_sub(1));
                return Ok(Err(Stopped));
            }
            Err(error) => self.progress.warn(&warning(&error)),
        }
        self.progress.valid(&row);
        self.record(MetricsRow::Valid(row))?;
        if let Some(row) = CoefficientsRow::of(&self.learner.model, step) {
            self.record(MetricsRow::Coefficients(row))?;
        }
        self.state.valid_loss = Some(cost);
        self.state.valid_examples = Some(self.config.training.eval_examples_at(step));
        self.state.validation_is_due = false;
        if let Some(warning) = self.recorder.show_if_due() {
            self.progress.warn(&warning);
        }
        Ok(Ok(()))
    }

    fn score(&mut self, model: &T5, stop: &AtomicBool) -> Result<Option<Validated>, TrainError> {
        let learner = Learner { model: model.clone() };
        let device = self.device.clone().without_autodiff();
        let turns = Turns { replicas: &self.replicas, stop };
        self.valid_data.score(&learner, self.state.step, &device, turns)
    }

    /// How often the sources of the data have been gone through so far.
    fn epochs(&self) -> Vec<SourceEpochs> {
        let accumulation = self.config.training.gradient_accumulation as u64;
        self.train_data.epochs(self.state.data_steps() * accumulation)
    }

    fn record(&mut self, row: MetricsRow) -> Result<(), TrainError> {
        match &mut self.files {
            Some(files) => Ok(files.metrics.append(&row)?),
            None => Ok(()),
        }
    }
}

/// What the batches of a step come to together, on all replicas.
struct Summed {
    passes: Passes,
    gradients: GradientsParams,
    /// From when this replica had its own gradients to when it had those of all.
    exchange: Duration,
}

/// What is written down of a step's micro-batches, in their order.
enum Passes {
    /// Of a process alone, on the device.
    Unread(Vec<Pass>),
    /// Of all replicas.
    Read(Vec<PassRow>),
}

/// A step whose kernels are launched, and whose numbers are on their way.
struct LaunchedStep {
    step: u64,
    targets: u64,
    tokens: u64,
    passes: Passes,
    /// Those of the passes, where they are unread, and the square of the gradients' norm, if there are gradients.
    reading: Reading,
}

impl LaunchedStep {
    fn new(
        step: u64,
        targets: u64,
        tokens: u64,
        passes: Passes,
        square_sum: Option<Tensor<1>>,
    ) -> Self {
        let of_passes = match &passes {
            Passes::Unread(passes) => passes.iter().flat_map(Pass::numbers).collect(),
            Passes::Read(_) => Vec::new(),
        };
        let reading = Reading::start(of_passes.into_iter().chain(square_sum));
        Self { step, targets, tokens, passes, reading }
    }

    /// Waits for the numbers: the passes, and the norm of the gradients.
    fn read(self) -> (Vec<PassRow>, f64) {
        let mut numbers = self.reading.wait();
        let passes = match self.passes {
            Passes::Unread(passes) => {
                passes.into_iter().map(|pass| pass.row(&mut numbers)).collect()
            }
            Passes::Read(rows) => rows,
        };
        (passes, numbers.next().map_or(0.0, f64::sqrt))
    }
}

/// A micro-batch's forward and backward pass, with its numbers on the device.
struct Pass {
    /// The summed cross-entropy, in nats, `[1]`.
    loss: Tensor<1>,
    /// Operations.
    flops: f64,
    /// How the layers with experts routed it.
    routing: Vec<LayerRouting>,
}

impl Pass {
    fn numbers(&self) -> Vec<Tensor<1>> {
        let of_layer = |layer: &LayerRouting| {
            let LayerRouting { load_balancing_loss, z_loss, loads, entropy, dropped, .. } = layer;
            [load_balancing_loss, z_loss, entropy, dropped, loads].map(Tensor::clone)
        };
        let of_layers = self.routing.iter().flat_map(of_layer);
        std::iter::once(self.loss.clone()).chain(of_layers).collect()
    }

    /// With the [`numbers`](Self::numbers) as they were read.
    fn row(self, numbers: &mut impl Iterator<Item = f64>) -> PassRow {
        let mut next = || numbers.next().expect("as many are read as were asked for");
        let loss = next();
        let row = |layer: LayerRouting| RoutingRow {
            stack: layer.stack.to_owned(),
            layer: layer.layer,
            load_balancing_loss: next(),
            router_z_loss: next(),
            entropy: next(),
            dropped: next(),
            loads: (0..layer.loads.dims()[0]).map(|_| next()).collect(),
        };
        let routing = self.routing.into_iter().map(row).collect();
        PassRow { loss, flops: self.flops, routing }
    }

    /// Waits for the numbers of several.
    fn read_all(passes: Vec<Self>) -> Vec<PassRow> {
        let mut numbers = Reading::start(passes.iter().flat_map(Self::numbers)).wait();
        passes.into_iter().map(|pass| pass.row(&mut numbers)).collect()
    }
}

/// What is written down of a micro-batch.
#[derive(Clone, Debug, PartialEq)]
struct PassRow {
    /// The summed cross-entropy, in nats.
    loss: f64,
    /// Operations.
    flops: f64,
    /// How the layers with experts routed it.
    routing: Vec<RoutingRow>,
}

impl PassRow {
    /// Those of all replicas, which have as many each, in the order of the micro-batches.
    fn of_all(own: Vec<Self>, replicas: &Replicas, what: &str) -> Vec<Self> {
        if replicas.is_lone() {
            return own;
        }
        let mut numbers: Vec<f64> = Vec::new();
        let mut own = own;
        for pass in &mut own {
            numbers.extend(pass.values_mut().map(|value| *value));
        }
        let mut all = Vec::with_capacity(own.len() * replicas.size());
        for of_one in replicas.gather_numbers(&numbers, what) {
            let mut values = of_one.into_iter();
            for pass in &own {
                // The same layers, with its own numbers.
                let mut pass = pass.clone();
                pass.values_mut().zip(&mut values).for_each(|(value, of_one)| *value = of_one);
                all.push(pass);
            }
        }
        all
    }

    fn values_mut(&mut self) -> impl Iterator<Item = &mut f64> {
        let routing = self.routing.iter_mut().flat_map(RoutingRow::values_mut);
        [&mut self.loss, &mut self.flops].into_iter().chain(routing)
    }
}

#[cfg(all(test, feature = "flex"))]
mod divergence;
#[cfg(all(test, feature = "flex"))]
mod together;
