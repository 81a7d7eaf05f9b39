//! How a run gets going: in a folder of its own, or from where it was.

use altup_data::TextTokenizer;
use altup_data::pretraining::EXAMPLES_VERSION;
use altup_models::{ModelDirectory, T5, T5Config};
use altup_optim::OptimizerConfig;
use altup_train::checkpoint::{Checkpoints, Restored, RunState};
use altup_train::config::{RunConfig, TrainerConfig, TrainingConfig};
use altup_train::config_changes::Difference;
use altup_train::data_identity::DataIdentity;
use altup_train::device::{DeviceName, is_gpu};
use altup_train::fine_tuning::FineTuningConfig;
use altup_train::learner::Learner;
use altup_train::memory_estimate::{self, MemoryEstimate, WHAT_TO_LOWER, Workload};
use altup_train::metrics::MetricsLog;
use altup_train::out_of_memory;
use altup_train::process::quoted;
use altup_train::progress::{Progress, ProgressMode, format_bytes};
use altup_train::recorder::Recorder;
use altup_train::run_data::{RunData, identify_texts};
use altup_train::run_folder::{NewRun, OpenRun, RunFolder, RunLock};
use altup_train::run_record::{HistoryRow, RunRecord};
use altup_train::trainer::{Outcome, TrainError, Trainer};
use altup_train::training_batches::{TextBatches, TrainingBatches};
use altup_train::validation::{TextValidation, Validation};
use anyhow::Context;
use burn::optim::ModuleOptimizer;
use burn::tensor::Device;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::backends;
use super::stop::Stop;

/// What a run on text is resumed with.
pub(super) const TRAIN: &str = "altup train";

/// What a run gets going with, beside its configuration.
pub(super) struct Start<'a> {
    /// The backend that was asked for.
    pub(super) backend: Option<&'a DeviceName>,
    pub(super) mode: ProgressMode,
}

/// Where a new run goes.
pub(super) enum Place {
    /// Into this folder.
    Output { path: PathBuf, overwrite: bool },
    /// Into the first folder of this name, numbered, that doesn't exist.
    Fresh(PathBuf),
}

/// A run that is ready to train.
pub(super) struct Running<C = RunConfig, D = RunData> {
    pub(super) folder: RunFolder,
    /// Keeps others out of the folder.
    pub(super) _lock: RunLock,
    pub(super) backend: DeviceName,
    pub(super) model_config: T5Config,
    pub(super) config: C,
    pub(super) data: D,
    pub(super) trainer: Trainer,
    pub(super) stop: Stop,
    /// What the run is resumed with.
    pub(super) command: &'static str,
}

impl Start<'_> {
    /// Starts a new run. What it replaces stays until all that can go wrong has been tried.
    /// `cache` is where prepared data is kept.
    pub(super) fn new_run(
        &self,
        config: RunConfig,
        place: Place,
        cache: &Path,
    ) -> anyhow::Result<Running> {
        config.validate()?;
        if let Some(directory) = &config.model.init {
            ModelDirectory::new(directory).config()?;
        }
        let backend = self.backend.cloned().unwrap_or_default();
        check_groups(&config)?;
        let device = open(&backend, &config.training)?;
        let progress = Progress::new(self.mode, config.training.steps, 0);
        let (run, stop) = self.take(&place, TRAIN, &progress)?;

        let mut record = RunRecord::new(config.training.precision, &backend.to_string());
        let first = HistoryRow::now(0, &config, &backend.to_string());
        run.announce(&record, &first)?;
        let data = RunData::prepare(&config, None, cache, &progress)?;
        let (model_config, model) = initial_model(&config, &data.tokenizer, &device)?;
        record.model = Some(model_config.clone());
        record.data = Some(data.identity.clone());
        let (folder, lock) = run.begin(&record, &first, |folder| -> anyhow::Result<()> {
            Ok(data.tokenizer.save(&folder.tokenizer())?)
        })?;
        stop.say(stopped_early(TRAIN, folder.path()));
        let learner = Learner { model };
        let parts = Parts {
            optimizer: optimizer(&learner, &config.optimizer)?,
            learner,
            state: RunState::default(),
            saved: None,
            checkpoints: Checkpoints::new(folder.checkpoints(), config.training.keep_last),
            metrics: MetricsLog::create(&folder.metrics())?,
        };
        let text = text(&config, &data);
        let mut trainer = parts.trainer(config.trainer(), device, &model_config, text, progress)?;
        if config.model.init.is_some() {
            // From here on, the model's directory is no longer needed.
            trainer.save()?;
        }
        let command = TRAIN;
        Ok(Running {
            folder,
            _lock: lock,
            backend,
            model_config,
            config,
            data,
            trainer,
            stop,
            command,
        })
    }

    /// Goes on with the run in the folder `path`: from its newest checkpoint, or from that of the step
    /// `from`. `configure` puts what is asked for over the run's configuration.
    pub(super) fn resume(
        &self,
        path: &Path,
        from: Option<u64>,
        cache: &Path,
        configure: impl FnOnce(RunConfig) -> anyhow::Result<RunConfig>,
    ) -> anyhow::Result<Running> {
        anyhow::ensure!(
            !FineTuningConfig::describes(path),
            "{} is a run of `altup finetune`: go on with `altup finetune --resume`",
            path.display()
        );
        let OpenRun { folder, lock, config: stored, mut record } =
            OpenRun::<RunConfig>::open(path)?;
        let config = configure(stored.clone())?;
        let changes = stored.differences(&config);
        check_changes(path, &changes)?;
        config.validate()?;
        let recorded = recorded_backend(path, &record)?;
        let backend = self.backend.cloned().unwrap_or_else(|| recorded.clone());
        check_groups(&config)?;
        let device = open(&backend, &config.training)?;
        let progress = Progress::new(self.mode, config.training.steps, 0);
        let stop = self.listen(&stopped_early(TRAIN, path))?;

        let named = config.data.tokenizer != stored.data.tokenizer;
        let own = record.data.as_ref().map(|_| folder.tokenizer()).filter(|_| !named);
        if let Some(identity) = &record.data {
            // Before anything is prepared, which may take hours.
            let tokenizer = own.clone().or_else(|| config.data.tokenizer.clone());
            let tokenizer = tokenizer.unwrap_or_else(|| folder.tokenizer());
            let now = DataIdentity {
                examples_version: EXAMPLES_VERSION,
                tokenizer: TextTokenizer::load(&tokenizer)?.fingerprint().to_string(),
                sources: identify_texts(&config, cache)?,
            };
            identity.check(&now).with_context(|| cannot_resume(path))?;
        }
        let data = RunData::prepare(&config, own.as_deref(), cache, &progress)?;
        if let Some(identity) = &record.data {
            identity.check(&data.identity).with_context(|| cannot_resume(path))?;
        }

        let mut checkpoints = Checkpoints::new(folder.checkpoints(), config.training.keep_last);
        let from_start = match from {
            Some(step) => step == 0 && !checkpoints.has(0),
            None => checkpoints.is_empty()?,
        };
        let (model_config, model) = match &record.model {
            Some(model_config) if !from_start || config.model.init.is_none() => {
                (model_config.clone(), model_config.init(config.seed, &device))
            }
            _ => initial_model(&config, &data.tokenizer, &device)?,
        };
        let learner = Learner { model };
        let optimizer = optimizer(&learner, &config.optimizer)?;
        let restored = match from_start {
            true => None,
            false => Some(checkpoints.restore(from, &learner, &optimizer)?),
        };
        let is_restored = restored.is_some();
        let Restored { state, learner, optimizer, damaged } = restored.unwrap_or(Restored {
            state: RunState::default(),
            learner,
            optimizer,
            damaged: Vec::new(),
        });
        let step = state.step;
        let going_on = GoingOn { folder: &folder, progress: &progress, step };
        going_on.check(&damaged, config.training.steps)?;

        // Everything is at hand. From here on, the folder changes.
        if from.is_some() {
            going_on.set_aside(&checkpoints)?;
        }
        let is_prepared = record.data.is_some();
        if !is_prepared {
            data.tokenizer.save(&folder.tokenizer())?;
        }
        if !is_prepared || backend != recorded {
            record.backend = backend.to_string();
            record.model = Some(model_config.clone());
            record.data = Some(data.identity.clone());
            folder.write_record(&record)?;
        }
        folder.write_config(&HistoryRow::now(step, &config, &backend.to_string()))?;
        going_on.announce(&recorded, &backend, &changes);
        let metrics = match is_restored {
            true => MetricsLog::resume(&folder.metrics(), &state)?,
            false => MetricsLog::create(&folder.metrics())?,
        };
        let saved = is_restored.then(|| state.clone());
        let parts = Parts { learner, optimizer, state, saved, checkpoints, metrics };
        let text = text(&config, &data);
        let trainer = parts.trainer(config.trainer(), device, &model_config, text, progress)?;
        let command = TRAIN;
        Ok(Running {
            folder,
            _lock: lock,
            backend,
            model_config,
            config,
            data,
            trainer,
            stop,
            command,
        })
    }

    /// Takes the folder of a new run of `command`, and listens for signals.
    pub(super) fn take(
        &self,
        place: &Place,
        command: &str,
        progress: &Progress,
    ) -> anyhow::Result<(NewRun, Stop)> {
        let run = match place {
            Place::Output { path, overwrite } => NewRun::at(path, *overwrite)?,
            Place::Fresh(base) => NewRun::fresh(base)?,
        };
        for foreign in run.foreign()? {
            progress.note(&format!("{} is no run's, and stays", foreign.display()));
        }
        let path = run.folder().path();
        let stop = self.listen(&match run.replaces() {
            true => format!("stopped before its start: {} is as it was", path.display()),
            false => stopped_early(command, path),
        })?;
        Ok((run, stop))
    }

    pub(super) fn listen(&self, message: &str) -> anyhow::Result<Stop> {
        Stop::listen(match self.mode {
            ProgressMode::Quiet => String::new(),
            _ => message.to_owned(),
        })
    }
}

impl<C, D> Running<C, D> {
    /// Trains to the end, or until a signal.
    pub(super) fn train(&mut self) -> anyhow::Result<Outcome> {
        let estimate = self.tell_memory();
        self.trainer.progress.start(self.trainer.state.step);
        let run = self.folder.path().display().to_string();
        let no_memory = format!("out of memory; {estimate}. To need less, {WHAT_TO_LOWER}");
        let trained = out_of_memory::guard(&no_memory, || self.trainer.train(self.stop.flag()));
        self.trainer.progress.finish();
        let trained = trained.context(no_memory)?;
        let outcome = trained.map_err(|error| match error {
            TrainError::Diverged { last_good, .. } => {
                let step = last_good.unwrap_or(0);
                let rate = self.trainer.config.optimizer.learning_rate / 2.0;
                anyhow::anyhow!(
                    "{error}. Go on from there more slowly: {command} --resume {run} --from {step} --set \
                     optimizer.learning_rate={rate:?} (or set optimizer.clip_norm, or a longer \
                     schedule.warmup_steps, or training.on_divergence=rollback)",
                    run = quoted(&run),
                    command = self.command,
                )
            }
            error => error.into(),
        })?;
        if outcome == Outcome::Stopped {
            self.trainer.progress.note(&stopped_at(
                self.trainer.state.step,
                self.command,
                self.folder.path(),
            ));
        }
        Ok(outcome)
    }
}

impl<C, D> Running<C, D> {
    /// Says what the run's steps will hold, and warns if the device has less.
    fn tell_memory(&self) -> MemoryEstimate {
        let Trainer { config, train_data, device, learner, progress, .. } = &self.trainer;
        let workload = Workload::of_run(config, train_data.as_ref(), is_gpu(device));
        let estimate = MemoryEstimate::of_run(&self.model_config, &learner.model, &workload);
        let available = memory_estimate::available(device);
        let of = available.map(|bytes| format!(", of {}", format_bytes(bytes)));
        progress.note(&format!("memory: {estimate}{}", of.unwrap_or_default()));
        if let Some(available) = available.filter(|&available| available < estimate.peak) {
            progress.warn(&format!(
                "warning: steps need about {}, and there are {}: {WHAT_TO_LOWER}",
                format_bytes(estimate.peak),
                format_bytes(available)
            ));
        }
        estimate
    }
}

/// Refuses to resume a run with changes of what it learns from.
pub(super) fn check_changes(run: &Path, changes: &[Difference]) -> anyhow::Result<()> {
    let fixed = changes.iter().filter(|change| !change.may_change());
    let fixed: Vec<String> = fixed.map(Difference::to_string).collect();
    anyhow::ensure!(
        fixed.is_empty(),
        "the run in {} has another configuration: {}. What a run learns from and its model are fixed; its \
         length, its learning rate and how it is watched may change",
        run.display(),
        fixed.join(", ")
    );
    Ok(())
}

/// What a run was on.
pub(super) fn recorded_backend(run: &Path, record: &RunRecord) -> anyhow::Result<DeviceName> {
    let backend = record.backend.parse();
    backend.with_context(|| format!("the record of the run in {}", run.display()))
}

/// A run that goes on behind a step.
pub(super) struct GoingOn<'a> {
    pub(super) folder: &'a RunFolder,
    pub(super) progress: &'a Progress,
    pub(super) step: u64,
}

impl GoingOn<'_> {
    /// Tells of checkpoints that were passed over, and checks that the run isn't beyond its `steps`.
    pub(super) fn check(&self, damaged: &[String], steps: u64) -> anyhow::Result<()> {
        for damage in damaged {
            self.progress.warn(&format!("warning: passed over a checkpoint: {damage}"));
        }
        let (step, run) = (self.step, self.folder.path().display());
        anyhow::ensure!(
            steps >= step,
            "training.steps is {steps}, and the run in {run} has done {step}: --from goes back to an earlier checkpoint"
        );
        Ok(())
    }

    /// Puts what lies behind the step aside.
    pub(super) fn set_aside(&self, checkpoints: &Checkpoints) -> anyhow::Result<()> {
        let aside = self.folder.set_aside(self.step, checkpoints)?;
        let (step, aside) = (self.step, aside.display());
        self.progress.note(&format!("what lay behind step {step} is now in {aside}"));
        Ok(())
    }

    /// Says what is otherwise from now on.
    pub(super) fn announce(&self, was: &DeviceName, backend: &DeviceName, changes: &[Difference]) {
        let step = self.step;
        if was != backend {
            self.progress.warn(&format!(
                "warning: the run was on {was} and goes on on {backend}, which rounds otherwise"
            ));
        }
        for change in changes {
            self.progress.note(&format!("from step {step} on: {change}"));
        }
        self.progress.note(&format!("resuming after step {step}"));
    }
}

/// What a trainer is put together from.
pub(super) struct Parts {
    pub(super) learner: Learner,
    pub(super) optimizer: ModuleOptimizer,
    pub(super) state: RunState,
    pub(super) saved: Option<RunState>,
    pub(super) checkpoints: Checkpoints,
    pub(super) metrics: MetricsLog,
}

impl Parts {
    pub(super) fn trainer(
        self,
        config: TrainerConfig,
        device: Device,
        model_config: &T5Config,
        (train_data, valid_data): (Arc<dyn TrainingBatches>, Box<dyn Validation>),
        progress: Progress,
    ) -> anyhow::Result<Trainer> {
        let Self { learner, optimizer, state, saved, checkpoints, metrics } = self;
        let learner = learner.freeze(&config.optimizer).context(GROUPS)?;
        Ok(Trainer {
            learner: learner.recompute_layers(config.training.recompute_layers),
            config,
            device,
            train_data,
            valid_data,
            optimizer,
            state,
            saved,
            checkpoints,
            metrics,
            progress,
            recorder: Recorder::new(model_config.clone()),
        })
    }
}

/// The key that errors about groups of parameters name.
const GROUPS: &str = "optimizer.groups";

pub(super) fn optimizer(
    learner: &Learner,
    config: &OptimizerConfig,
) -> anyhow::Result<ModuleOptimizer> {
    learner.optimizer(config).context(GROUPS)
}

/// What a run on text trains on and is validated on.
fn text(config: &RunConfig, data: &RunData) -> (Arc<dyn TrainingBatches>, Box<dyn Validation>) {
    let batch_size = config.training.batch_size;
    let (train, valid) = (Arc::clone(&data.train), data.valid.clone());
    let examples = config.training.eval_examples;
    let final_examples = config.training.final_eval_examples.unwrap_or(examples);
    let last_step = config.training.steps;
    let train = Arc::new(TextBatches { data: train, batch_size });
    let data = valid;
    let valid = TextValidation { data, examples, last_step, final_examples, batch_size };
    (train, Box::new(valid))
}

/// The device that a run trains on.
pub(super) fn open(backend: &DeviceName, training: &TrainingConfig) -> anyhow::Result<Device> {
    let device = backends::open(backend)?.autodiff();
    training.precision.check(&device)?;
    Ok(match training.gradient_checkpointing {
        true => device.gradient_checkpointing(),
        false => device,
    })
}

/// Checks the groups of parameters of a run that starts from a seed: a pattern that matches nothing must not cost hours
/// of preparing text first.
fn check_groups(config: &RunConfig) -> anyhow::Result<()> {
    if config.model.init.is_none() {
        let device = Device::default();
        let model = config.any_model_config()?.build(&device);
        optimizer(&Learner { model }, &config.optimizer)?;
    }
    Ok(())
}

/// The model that a run begins with: from the seed, or from a directory.
fn initial_model(
    config: &RunConfig,
    tokenizer: &TextTokenizer,
    device: &Device,
) -> anyhow::Result<(T5Config, T5)> {
    let model_config = config.model_config(tokenizer.vocab_size())?;
    Ok(match &config.model.init {
        Some(directory) => ModelDirectory::new(directory).load_as(model_config, device)?,
        None => {
            let model = model_config.init(config.seed, device);
            let model = config.coefficients.start(model, model_config.altup.as_ref(), config.seed);
            (model_config, model)
        }
    })
}

fn cannot_resume(path: &Path) -> String {
    format!("cannot go on with the run in {}", path.display())
}

pub(super) fn stopped_early(command: &str, run: &Path) -> String {
    let run = quoted(&run.to_string_lossy());
    format!("stopped before training; go on with: {command} --resume {run}")
}

fn stopped_at(step: u64, command: &str, run: &Path) -> String {
    let run = quoted(&run.to_string_lossy());
    format!("stopped at step {step}, saved; go on with: {command} --resume {run}")
}
