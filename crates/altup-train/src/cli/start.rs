//! How a run gets going: in a folder of its own, or from where it was.

use altup_data::TextTokenizer;
use altup_data::pretraining::EXAMPLES_VERSION;
use altup_models::{ModelDirectory, T5, T5Config};
use altup_train::checkpoint::{Checkpoints, Restored, RunState};
use altup_train::config::RunConfig;
use altup_train::config_changes::Difference;
use altup_train::data_identity::DataIdentity;
use altup_train::device::DeviceName;
use altup_train::learner::Learner;
use altup_train::metrics::MetricsLog;
use altup_train::progress::{Progress, ProgressMode};
use altup_train::recorder::Recorder;
use altup_train::run_data::{RunData, identify_texts};
use altup_train::run_folder::{NewRun, OpenRun, RunFolder, RunLock};
use altup_train::run_record::{HistoryRow, RunRecord};
use altup_train::trainer::{Outcome, TrainError, Trainer};
use anyhow::Context;
use burn::optim::ModuleOptimizer;
use burn::tensor::Device;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::backends;
use super::stop::Stop;

/// What a run gets going with, beside its configuration.
pub(super) struct Start<'a> {
    /// The backend that was asked for.
    pub(super) backend: Option<&'a DeviceName>,
    /// Where prepared data is kept.
    pub(super) cache: &'a Path,
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
pub(super) struct Running {
    pub(super) folder: RunFolder,
    /// Keeps others out of the folder.
    _lock: RunLock,
    pub(super) backend: DeviceName,
    pub(super) model_config: T5Config,
    pub(super) data: RunData,
    pub(super) trainer: Trainer,
    stop: Stop,
}

impl Start<'_> {
    /// Starts a new run. What it replaces stays until all that can go wrong has been tried.
    pub(super) fn new_run(&self, config: RunConfig, place: Place) -> anyhow::Result<Running> {
        config.validate()?;
        if let Some(directory) = &config.model.init {
            ModelDirectory::new(directory).config()?;
        }
        let backend = self.backend.cloned().unwrap_or_default();
        let device = open(&backend, &config)?;
        let progress = Progress::new(self.mode, config.training.steps, 0);
        let run = match &place {
            Place::Output { path, overwrite } => NewRun::at(path, *overwrite)?,
            Place::Fresh(base) => NewRun::fresh(base)?,
        };
        let path = run.folder().path().display().to_string();
        for foreign in run.foreign()? {
            progress.note(&format!("{} is no run's, and stays", foreign.display()));
        }
        let stop = self.listen(&match run.replaces() {
            true => format!("stopped before its start: {path} is as it was"),
            false => stopped_early(&path),
        })?;

        let mut record = RunRecord::new(&config, &backend.to_string());
        let first = HistoryRow::now(0, &config, &backend.to_string());
        run.announce(&record, &first)?;
        let data = RunData::prepare(&config, None, self.cache, &progress)?;
        let (model_config, model) = initial_model(&config, &data.tokenizer, &device)?;
        record.model = Some(model_config.clone());
        record.data = Some(data.identity.clone());
        let (folder, lock) = run.begin(&record, &first, |folder| -> anyhow::Result<()> {
            Ok(data.tokenizer.save(&folder.tokenizer())?)
        })?;
        let learner = Learner { model };
        let parts = Parts {
            optimizer: optimizer(&learner, &config)?,
            learner,
            state: RunState::default(),
            saved: None,
            checkpoints: Checkpoints::new(folder.checkpoints(), config.training.keep_last),
            metrics: MetricsLog::create(&folder.metrics())?,
        };
        let mut trainer = parts.trainer(config, device, &model_config, &data, progress)?;
        if trainer.config.model.init.is_some() {
            // From here on, the model's directory is no longer needed.
            trainer.save()?;
        }
        Ok(Running { folder, _lock: lock, backend, model_config, data, trainer, stop })
    }

    /// Goes on with the run in the folder `path`: from its newest checkpoint, or from that of the step
    /// `from`. `configure` puts what is asked for over the run's configuration.
    pub(super) fn resume(
        &self,
        path: &Path,
        from: Option<u64>,
        configure: impl FnOnce(RunConfig) -> anyhow::Result<RunConfig>,
    ) -> anyhow::Result<Running> {
        let OpenRun { folder, lock, config: stored, mut record } = OpenRun::open(path)?;
        let config = configure(stored.clone())?;
        let changes = stored.differences(&config);
        let run = path.display();
        let fixed = changes.iter().filter(|change| !change.may_change());
        let fixed: Vec<String> = fixed.map(Difference::to_string).collect();
        anyhow::ensure!(
            fixed.is_empty(),
            "the run in {run} has another configuration: {}. What a run learns from and its model are fixed; its \
             length, its learning rate and how it is watched may change",
            fixed.join(", ")
        );
        config.validate()?;
        let recorded: DeviceName =
            record.backend.parse().with_context(|| format!("the record of the run in {run}"))?;
        let backend = self.backend.cloned().unwrap_or_else(|| recorded.clone());
        let device = open(&backend, &config)?;
        let progress = Progress::new(self.mode, config.training.steps, 0);
        let stop = self.listen(&stopped_early(&run.to_string()))?;

        let named = config.data.tokenizer != stored.data.tokenizer;
        let own = record.data.as_ref().map(|_| folder.tokenizer()).filter(|_| !named);
        if let Some(identity) = &record.data {
            // Before anything is prepared, which may take hours.
            let tokenizer = own.clone().or_else(|| config.data.tokenizer.clone());
            let tokenizer = tokenizer.unwrap_or_else(|| folder.tokenizer());
            let now = DataIdentity {
                examples_version: EXAMPLES_VERSION,
                tokenizer: TextTokenizer::load(&tokenizer)?.fingerprint().to_string(),
                sources: identify_texts(&config, self.cache)?,
            };
            identity.check(&now).with_context(|| cannot_resume(path))?;
        }
        let data = RunData::prepare(&config, own.as_deref(), self.cache, &progress)?;
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
        let optimizer = optimizer(&learner, &config)?;
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
        for damage in &damaged {
            progress.note(&format!("passed over a checkpoint: {damage}"));
        }
        let step = state.step;
        anyhow::ensure!(
            config.training.steps >= step,
            "training.steps is {}, and the run in {run} has done {step}: --from goes back to an earlier checkpoint",
            config.training.steps
        );

        // Everything is at hand. From here on, the folder changes.
        if from.is_some() {
            let aside = folder.set_aside(step, &checkpoints)?;
            progress.note(&format!("what lay behind step {step} is now in {}", aside.display()));
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
        if backend != recorded {
            progress.note(&format!(
                "warning: the run was on {recorded} and goes on on {backend}, which rounds otherwise"
            ));
        }
        for change in changes {
            progress.note(&format!("from step {step} on: {change}"));
        }
        progress.note(&format!("resuming after step {step}"));
        let metrics = match is_restored {
            true => MetricsLog::resume(&folder.metrics(), step, state.rollbacks)?,
            false => MetricsLog::create(&folder.metrics())?,
        };
        let saved = is_restored.then(|| state.clone());
        let parts = Parts { learner, optimizer, state, saved, checkpoints, metrics };
        let trainer = parts.trainer(config, device, &model_config, &data, progress)?;
        Ok(Running { folder, _lock: lock, backend, model_config, data, trainer, stop })
    }

    fn listen(&self, message: &str) -> anyhow::Result<Stop> {
        Stop::listen(match self.mode {
            ProgressMode::Quiet => String::new(),
            _ => message.to_owned(),
        })
    }
}

impl Running {
    /// Trains to the end, or until a signal.
    pub(super) fn train(&mut self) -> anyhow::Result<Outcome> {
        self.trainer.progress.start(self.trainer.state.step);
        let run = self.folder.path().display().to_string();
        let trained = self.trainer.train(self.stop.flag());
        self.trainer.progress.finish();
        let outcome = trained.map_err(|error| match error {
            TrainError::Diverged { last_good, .. } => {
                let step = last_good.unwrap_or(0);
                let rate = self.trainer.config.optimizer.learning_rate / 2.0;
                anyhow::anyhow!(
                    "{error}. Go on from there more slowly: altup train --resume {run} --from {step} --set \
                     optimizer.learning_rate={rate:?} (or set optimizer.clip_norm, or a longer \
                     schedule.warmup_steps, or training.on_divergence=rollback)",
                    run = quoted(&run),
                )
            }
            error => error.into(),
        })?;
        if outcome == Outcome::Stopped {
            self.trainer.progress.note(&stopped_at(self.trainer.state.step, &run));
        }
        Ok(outcome)
    }
}

/// What a trainer is put together from.
struct Parts {
    learner: Learner,
    optimizer: ModuleOptimizer,
    state: RunState,
    saved: Option<RunState>,
    checkpoints: Checkpoints,
    metrics: MetricsLog,
}

impl Parts {
    fn trainer(
        self,
        config: RunConfig,
        device: Device,
        model_config: &T5Config,
        data: &RunData,
        progress: Progress,
    ) -> anyhow::Result<Trainer> {
        let Self { learner, optimizer, state, saved, checkpoints, metrics } = self;
        Ok(Trainer {
            learner: learner.freeze(&config.optimizer).context(GROUPS)?,
            config,
            device,
            train_data: Arc::clone(&data.train),
            valid_data: data.valid.clone(),
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

fn optimizer(learner: &Learner, config: &RunConfig) -> anyhow::Result<ModuleOptimizer> {
    learner.optimizer(&config.optimizer).context(GROUPS)
}

/// The device that a run trains on.
fn open(backend: &DeviceName, config: &RunConfig) -> anyhow::Result<Device> {
    let device = backends::open(backend)?.autodiff();
    config.training.precision.check(&device)?;
    if config.model.init.is_none() {
        // A pattern that matches nothing must not cost hours of preparing text first.
        optimizer(&Learner { model: config.any_model_config()?.build(&device) }, config)?;
    }
    Ok(match config.training.gradient_checkpointing {
        true => device.gradient_checkpointing(),
        false => device,
    })
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
            (model_config, model)
        }
    })
}

fn cannot_resume(path: &Path) -> String {
    format!("cannot go on with the run in {}", path.display())
}

fn stopped_early(run: &str) -> String {
    format!("stopped before training; go on with: altup train --resume {}", quoted(run))
}

fn stopped_at(step: u64, run: &str) -> String {
    format!("stopped at step {step}, saved; go on with: altup train --resume {}", quoted(run))
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./,:=@%+".contains(c);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}
