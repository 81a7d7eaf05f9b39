//! How a run gets going: in a folder of its own, or from where it was.

use altup_backend::is_gpu;
use altup_data::TextTokenizer;
use altup_models::{ModelDirectory, T5, T5Config, parameters};
use altup_optim::OptimizerConfig;
use altup_train::checkpoint::{CheckpointError, Checkpoints, Restored, RunState};
use altup_train::config::{RunConfig, RunConfiguration, TrainerConfig, TrainingConfig};
use altup_train::config_changes::Difference;
use altup_train::data_identity::DataIdentity;
use altup_train::device::{DeviceName, cpu};
use altup_train::fine_tuning::FineTuningConfig;
use altup_train::folder_lock::FolderLock;
use altup_train::learner::Learner;
use altup_train::memory_estimate::{self, MemoryEstimate, WHAT_TO_LOWER, Workload};
use altup_train::metrics::MetricsLog;
use altup_train::out_of_memory;
use altup_train::process::quoted;
use altup_train::progress::{Progress, ProgressMode, format_bytes};
use altup_train::recorder::Recorder;
use altup_train::replicas::{Agreement, MicroBatches, Replicas};
use altup_train::run_data::{DataCache, RunData, identify_texts, train_tokenizer};
use altup_train::run_folder::{NewRun, OpenRun, RunFolder};
use altup_train::run_record::{HistoryRow, RunRecord};
use altup_train::trainer::{Outcome, RunFiles, TrainError, Trainer};
use altup_train::training_batches::{TextBatches, TrainingBatches};
use altup_train::validation::{TextValidation, Validation};
use anyhow::Context;
use burn::optim::ModuleOptimizer;
use burn::tensor::Device;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

use super::backends;
use super::stop::Stop;

/// What a run on text is resumed with.
pub(super) const TRAIN: &str = "altup train";

/// What a run gets going with, beside its configuration.
pub(super) struct Start<'a> {
    /// The backend that was asked for.
    pub(super) backend: Option<&'a DeviceName>,
    pub(super) mode: ProgressMode,
    /// Those that train it together.
    pub(super) replicas: &'a Replicas,
}

/// Where a new run goes.
pub(super) enum Place {
    /// Into this folder; `config` is the file that its configuration comes from.
    Output { path: PathBuf, overwrite: bool, config: Option<PathBuf> },
    /// Into the first folder of this name, numbered, that doesn't exist.
    Fresh(PathBuf),
}

impl Place {
    /// The folder, as far as its name is known.
    fn path(&self) -> &Path {
        match self {
            Self::Output { path, .. } | Self::Fresh(path) => path,
        }
    }

    fn config(&self) -> Option<&Path> {
        match self {
            Self::Output { config, .. } => config.as_deref(),
            Self::Fresh(_) => None,
        }
    }
}

/// A run that is ready to train, on one of its replicas.
pub(super) struct Running<C = RunConfig, D = RunData> {
    /// Only replica 0 has it; on the others it is a name.
    pub(super) folder: RunFolder,
    /// Keeps others out of the folder.
    pub(super) _lock: Option<FolderLock>,
    pub(super) backend: DeviceName,
    pub(super) model_config: T5Config,
    pub(super) config: C,
    pub(super) data: D,
    pub(super) trainer: Trainer,
    pub(super) stop: Stop,
    /// What the run is resumed with.
    pub(super) command: &'static str,
}

/// A run as its folder has it.
pub(super) struct Stored<C> {
    pub(super) folder: RunFolder,
    pub(super) lock: Option<FolderLock>,
    pub(super) config: C,
    pub(super) record: RunRecord,
}

/// A file that all replicas have.
pub(super) struct SharedFile {
    pub(super) path: PathBuf,
    /// Where it lies on a replica that was given it.
    _folder: Option<TempDir>,
}

impl<'a> Start<'a> {
    /// On one of `replicas`, of which the first alone shows how it goes.
    pub(super) fn new(
        backend: Option<&'a DeviceName>,
        quiet: bool,
        replicas: &'a Replicas,
    ) -> Self {
        let mode = match (replicas.is_first(), quiet) {
            (false, _) => ProgressMode::Silent,
            (true, true) => ProgressMode::Quiet,
            (true, false) => ProgressMode::Auto,
        };
        Self { backend, mode, replicas }
    }

    /// Starts a new run. What it replaces stays until all that can go wrong has been tried.
    /// `cache` is where prepared data is kept.
    pub(super) fn new_run(
        &self,
        config: RunConfig,
        place: Place,
        cache: &DataCache,
    ) -> anyhow::Result<Running> {
        config.validate()?;
        let backend = self.backend.cloned().unwrap_or_default();
        self.agree(&config, &backend, &config.training)?;
        check_groups(&config)?;
        let device = self.open(&backend, &config.training)?;
        let progress = self.progress(&config.training)?;
        let mut record = RunRecord::new(config.training.precision, &backend.to_string());
        record.init = init_fingerprint(&config)?;
        let first = HistoryRow::now(0, &config, &backend.to_string());
        let (run, stop) = self.take(&place, config.inputs(), &progress)?;
        announce(run.as_ref(), &record, &first, TRAIN, &stop)?;
        let trained = self.trained_tokenizer(&config, cache, &progress)?;
        let trained = trained.as_ref().map(|file| file.path.as_path());
        let data = RunData::prepare(&config, trained, cache, &progress)?;
        let (model_config, model) = initial_model(&config, &record, &data.tokenizer, &device)?;
        record.model = Some(model_config.clone());
        record.data = Some(data.identity.clone());
        record.skipped = data.skipped.clone();
        self.agree_on_record(&record, &model)?;
        let learner = Learner { model };
        let optimizer = optimizer(&learner, &config.optimizer)?;
        let (record, first, tokenizer) = (&record, &first, &data.tokenizer);
        let begins = Begins { place: &place, command: TRAIN, record, first, tokenizer };
        let begun = self.begin(run, begins, &stop)?;
        let parts = Parts {
            optimizer,
            learner,
            state: RunState::default(),
            saved: None,
            files: begun.files(&config.training)?,
        };
        let Begun { folder, lock } = begun;
        let text = text(&config, &data);
        let mut trainer =
            parts.trainer(self, config.trainer(), device, &model_config, text, progress)?;
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
        cache: &DataCache,
        configure: impl FnOnce(RunConfig) -> anyhow::Result<RunConfig>,
    ) -> anyhow::Result<Running> {
        let opened = self.open_run::<RunConfig>(path, || {
            anyhow::ensure!(
                !FineTuningConfig::describes(path),
                "{} is a run of `altup finetune`: go on with `altup finetune --resume`",
                path.display()
            );
            Ok(())
        })?;
        let Stored { folder, lock, config: stored, mut record } = opened;
        let config = configure(stored.clone())?;
        let changes = stored.differences(&config);
        check_changes(path, &changes, Difference::may_change)?;
        config.validate()?;
        let recorded = recorded_backend(path, &record)?;
        let backend = self.backend.cloned().unwrap_or_else(|| recorded.clone());
        self.agree(&config, &backend, &config.training)?;
        check_groups(&config)?;
        let device = self.open(&backend, &config.training)?;
        let progress = self.progress(&config.training)?;
        let stop = self.listen(&stopped_unchanged(path))?;

        let named = config.data.tokenizer != stored.data.tokenizer;
        let of_run = match &record.data {
            Some(_) => Some(self.share_file(|| Ok(folder.tokenizer()))?),
            None => self.trained_tokenizer(&config, cache, &progress)?,
        };
        let of_run = of_run.as_ref().map(|file| file.path.as_path());
        let own = of_run.filter(|_| record.data.is_none() || !named);
        if let Some(identity) = &record.data {
            // Before anything is prepared, which may take hours.
            let tokenizer = own.or(config.data.tokenizer.as_deref()).or(of_run);
            let tokenizer = tokenizer.context("the run has no tokenizer")?;
            let tokenizer = TextTokenizer::load(tokenizer)?;
            let texts = self.found_as_named(identify_texts(&config, cache, &progress))?;
            let now = DataIdentity::new(&tokenizer, texts);
            identity.check(&now).with_context(|| cannot_resume(path))?;
        }
        let mut checkpoints = Checkpoints::new(folder.checkpoints(), config.training.keep_last);
        let from_start = self.goes_from_start(&checkpoints, from)?;
        if from_start {
            check_init(&config, &record).with_context(|| cannot_resume(path))?;
        }
        let data = self.found_as_named(RunData::prepare(&config, own, cache, &progress))?;
        if let Some(identity) = &record.data {
            identity.check(&data.identity).with_context(|| cannot_resume(path))?;
        }
        let (model_config, model) = match &record.model {
            // Its weights come from a checkpoint.
            Some(model_config) if !from_start => {
                (model_config.clone(), model_config.init(config.seed, &device))
            }
            _ => initial_model(&config, &record, &data.tokenizer, &device)?,
        };
        let now = RunRecord {
            model: Some(model_config.clone()),
            data: Some(data.identity.clone()),
            ..record.clone()
        };
        self.agree_on_record(&now, &model)?;
        let learner = Learner { model };
        let optimizer = optimizer(&learner, &config.optimizer)?;
        let Restored { mut state, learner, optimizer, damaged } = match from_start {
            true => Restored::fresh(learner, optimizer),
            false => self.restore(&mut checkpoints, from, &learner, &optimizer)?,
        };
        let saved = (!from_start).then(|| state.clone());
        state.ask_for_the_last_validation(&config.training);
        let step = state.step;
        let going_on = GoingOn { folder: &folder, progress: &progress, step };
        going_on.check(&damaged, config.training.steps)?;

        // Everything is at hand. From here on, the folder changes.
        let mut files = None;
        if lock.is_some() {
            going_on.begin(&stop, from.is_some(), config.training.steps, &checkpoints)?;
            let is_prepared = record.data.is_some();
            if !is_prepared {
                data.tokenizer.save(&folder.tokenizer())?;
            }
            if !is_prepared || backend != recorded || record.skipped != data.skipped {
                record.backend = backend.to_string();
                record.model = Some(model_config.clone());
                record.data = Some(data.identity.clone());
                record.skipped = data.skipped.clone();
                folder.write_record(&record)?;
            }
            folder.write_config(&HistoryRow::now(step, &config, &backend.to_string()))?;
            going_on.announce(&recorded, &backend, &changes);
            let metrics = match from_start {
                true => MetricsLog::create(&folder.metrics())?,
                false => MetricsLog::resume(&folder.metrics(), &state)?,
            };
            stop.say(stopped_early(TRAIN, path));
            files = Some(RunFiles { checkpoints, metrics });
        }
        let parts = Parts { learner, optimizer, state, saved, files };
        let text = text(&config, &data);
        let mut trainer =
            parts.trainer(self, config.trainer(), device, &model_config, text, progress)?;
        if from_start && config.model.init.is_some() {
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

    /// Takes the folder of a new run, on replica 0, and listens for signals.
    ///
    /// `inputs` are the files and folders that the run reads, each with its key.
    pub(super) fn take<'p>(
        &self,
        place: &'p Place,
        inputs: impl IntoIterator<Item = (&'static str, &'p Path)>,
        progress: &Progress,
    ) -> anyhow::Result<(Option<NewRun>, Stop)> {
        if !self.replicas.is_first() {
            return Ok((None, self.listen("")?));
        }
        let stop = self.listen(&format!("stopped before its start; {SAME_COMMAND}"))?;
        let run = match place {
            Place::Output { path, overwrite, .. } => NewRun::at(path, *overwrite)?,
            Place::Fresh(base) => NewRun::fresh(base)?,
        };
        run.keep(place.config().map(|path| ("--config", path)).into_iter().chain(inputs))?;
        if run.replaces() {
            let path = run.folder().path().display();
            stop.say(format!("stopped before its start: {path} is as it was"));
        }
        for foreign in run.foreign()? {
            progress.note(&format!("{} is no run's, and stays", foreign.display()));
        }
        Ok((Some(run), stop))
    }

    /// Begins a run in the folder that replica 0 has taken.
    pub(super) fn begin<C: RunConfiguration>(
        &self,
        run: Option<NewRun>,
        begins: Begins<'_, C>,
        stop: &Stop,
    ) -> anyhow::Result<Begun> {
        let Begins { place, command, record, first, tokenizer } = begins;
        let Some(run) = run else {
            return Ok(Begun { folder: RunFolder::at(place.path()), lock: None });
        };
        if run.replaces() {
            let path = run.folder().path().display();
            stop.say(format!("stopped while {path} was replaced; {SAME_COMMAND}"));
        }
        let (folder, lock) = run.begin(record, first, |folder| -> anyhow::Result<()> {
            Ok(tokenizer.save(&folder.tokenizer())?)
        })?;
        stop.say(stopped_early(command, folder.path()));
        Ok(Begun { folder, lock: Some(lock) })
    }

    /// Opens the folder of a run, on replica 0, and tells the others what it is. There `check` first says whether it is
    /// one of this command's: on other machines anything may lie at the path.
    pub(super) fn open_run<C: RunConfiguration>(
        &self,
        path: &Path,
        check: impl FnOnce() -> anyhow::Result<()>,
    ) -> anyhow::Result<Stored<C>> {
        let mut lock = None;
        let open = || -> anyhow::Result<(C, RunRecord)> {
            check()?;
            let run = OpenRun::<C>::open(path)?;
            lock = Some(run.lock);
            Ok((run.config, run.record))
        };
        let (config, record) = self.replicas.from_first("the run's configuration", open)?;
        Ok(Stored { folder: RunFolder::at(path), lock, config, record })
    }

    /// What a replica has found where the configuration of a run that is resumed names it. This is replica 0's.
    pub(super) fn found_as_named<T, E>(&self, found: Result<T, E>) -> anyhow::Result<T>
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        match self.replicas.is_first() {
            true => Ok(found?),
            false => found.context(
                "the run's paths are those of replica 0 (name what lies elsewhere on this machine again, as by --train \
                 or --data)",
            ),
        }
    }

    /// Gives a file that replica 0 has to the others.
    pub(super) fn share_file(
        &self,
        path: impl FnOnce() -> anyhow::Result<PathBuf>,
    ) -> anyhow::Result<SharedFile> {
        const WHAT: &str = "the tokenizer";
        if !self.replicas.is_first() {
            let folder = tempfile::tempdir()?;
            let path = folder.path().join("tokenizer.json");
            let written = std::fs::write(&path, self.replicas.broadcast(Vec::new(), WHAT));
            written.with_context(|| format!("cannot write {}", path.display()))?;
            return Ok(SharedFile { path, _folder: Some(folder) });
        }
        let path = path()?;
        if !self.replicas.is_lone() {
            let read = std::fs::read(&path);
            let bytes = read.with_context(|| format!("cannot use {}", path.display()))?;
            self.replicas.broadcast(bytes, WHAT);
        }
        Ok(SharedFile { path, _folder: None })
    }

    /// The tokenizer that several replicas train from their texts: the first trains it, as other numbers of threads give
    /// other last bits. None where there is one already, or one process that trains it as it prepares.
    fn trained_tokenizer(
        &self,
        config: &RunConfig,
        cache: &DataCache,
        progress: &Progress,
    ) -> anyhow::Result<Option<SharedFile>> {
        if self.replicas.is_lone() || config.data.tokenizer.is_some() {
            return Ok(None);
        }
        let folder = tempfile::tempdir()?;
        let file = self.share_file(|| {
            let path = folder.path().join("tokenizer.json");
            train_tokenizer(config, cache, progress)?.save(&path)?;
            Ok(path)
        })?;
        let own = self.replicas.is_first().then_some(folder);
        Ok(Some(SharedFile { path: file.path, _folder: file._folder.or(own) }))
    }

    /// The output folder, if a run that was begun there is to go on.
    pub(super) fn begun<'p>(
        &self,
        output: Option<&'p PathBuf>,
        auto_resume: bool,
    ) -> anyhow::Result<Option<&'p PathBuf>> {
        let goes_on = self.replicas.from_first("a look into the output folder", || match output
            .filter(|_| auto_resume)
        {
            Some(path) => RunFolder::at(path).is_begun(),
            None => Ok(false),
        })?;
        Ok(output.filter(|_| goes_on))
    }

    /// Whether a run goes on from its start: it has no checkpoint yet, or is told to go back there.
    pub(super) fn goes_from_start(
        &self,
        checkpoints: &Checkpoints,
        from: Option<u64>,
    ) -> anyhow::Result<bool> {
        Ok(self.replicas.from_first("the list of checkpoints", || match from {
            Some(step) => Ok(step == 0 && !checkpoints.has(0)),
            None => checkpoints.is_empty(),
        })?)
    }

    /// Reads a checkpoint on replica 0, for all.
    pub(super) fn restore(
        &self,
        checkpoints: &mut Checkpoints,
        from: Option<u64>,
        learner: &Learner,
        optimizer: &ModuleOptimizer,
    ) -> anyhow::Result<Restored> {
        let is_first = self.replicas.is_first();
        let read = is_first.then(|| checkpoints.restore(from, learner, optimizer)).transpose();
        let read = read.map_err(|error| match error {
            CheckpointError::None { .. } | CheckpointError::NoSuchStep { .. }
                if !checkpoints.has(0) =>
            {
                anyhow::anyhow!("{error}; --from 0 goes back to the start")
            }
            error => error.into(),
        })?;
        Ok(self.replicas.share_restored(read, learner, optimizer)?)
    }

    /// Checks that all replicas are asked for the same run, that they can share its steps, and takes from its
    /// configuration how long they wait for each other.
    pub(super) fn agree<C: RunConfiguration>(
        &self,
        config: &C,
        backend: &DeviceName,
        training: &TrainingConfig,
    ) -> anyhow::Result<()> {
        self.replicas.set_timeout(Duration::from_secs_f64(training.replica_timeout));
        let agreement = Agreement::on_config(config).and("backend", backend.to_string());
        self.replicas.agree(&agreement)?;
        MicroBatches::of(self.replicas, training.gradient_accumulation as u64)?;
        Ok(())
    }

    /// Checks that all replicas have the same data, and begin with the same model: its configuration, its parameters, and
    /// where it comes from a directory, its weights.
    pub(super) fn agree_on_record(&self, record: &RunRecord, model: &T5) -> anyhow::Result<()> {
        let shapes: BTreeMap<String, Vec<usize>> =
            parameters(model).into_iter().map(|info| (info.name, info.shape)).collect();
        let agreement = Agreement::default()
            .and("parameters", shapes)
            // Each replica scores its own batches of these.
            .and("validation", &record.validation)
            .and_if_any("model", record.model.as_ref())
            .and_if_any("weights (BLAKE3)", record.init.as_ref())
            .and_if_any("data", record.data.as_ref())
            // Within the data it has the name of a path.
            .and_if_any("tokenizer (BLAKE3)", record.data.as_ref().map(|data| &data.tokenizer))
            .and_if_any("examples", record.examples.as_ref());
        Ok(self.replicas.agree(&agreement)?)
    }

    /// The device that this replica trains on.
    pub(super) fn open(
        &self,
        backend: &DeviceName,
        training: &TrainingConfig,
    ) -> anyhow::Result<Device> {
        let device = match self.replicas.is_lone() {
            true => backends::open(backend)?,
            false => backends::open(&backend.of_replica(self.replicas.place().local_rank))?,
        };
        let device = device.autodiff();
        training.precision.check(&device)?;
        Ok(match training.gradient_checkpointing {
            true => device.gradient_checkpointing(),
            false => device,
        })
    }

    /// What shows how the run goes.
    pub(super) fn progress(&self, training: &TrainingConfig) -> anyhow::Result<Progress> {
        let size = self.replicas.size();
        let progress = Progress::new(self.mode, training.steps, 0).among(size);
        let own = MicroBatches::of(self.replicas, training.gradient_accumulation as u64)?;
        if !own.sums_as_one() {
            progress.note(&format!(
                "each of {size} replicas adds {} micro-batches, which is no power of two: the last bits of sums are not \
                 those of another number of replicas",
                own.count
            ));
        }
        Ok(progress)
    }

    pub(super) fn listen(&self, message: &str) -> anyhow::Result<Stop> {
        // Where there are several, a launcher ends this one by a signal when another has said what is wrong.
        let says_nothing = self.mode != ProgressMode::Auto || !self.replicas.is_lone();
        Stop::listen(if says_nothing { String::new() } else { message.to_owned() })
    }
}

/// What a run begins with.
pub(super) struct Begins<'a, C> {
    pub(super) place: &'a Place,
    pub(super) command: &'a str,
    pub(super) record: &'a RunRecord,
    pub(super) first: &'a HistoryRow<C>,
    pub(super) tokenizer: &'a TextTokenizer,
}

/// Writes what is known of a new run before its data is prepared, so that it can be resumed from here on. Where a run is
/// replaced, that one stays.
pub(super) fn announce<C: RunConfiguration>(
    run: Option<&NewRun>,
    record: &RunRecord,
    first: &HistoryRow<C>,
    command: &str,
    stop: &Stop,
) -> anyhow::Result<()> {
    if let Some(run) = run.filter(|run| !run.replaces()) {
        let message = stopped_early(command, run.folder().path());
        stop.around(message, || run.announce(record, first))?;
    }
    Ok(())
}

/// A run that was just begun.
pub(super) struct Begun {
    pub(super) folder: RunFolder,
    pub(super) lock: Option<FolderLock>,
}

impl Begun {
    /// Its files, on the replica that has them.
    pub(super) fn files(&self, training: &TrainingConfig) -> anyhow::Result<Option<RunFiles>> {
        let Self { folder, lock } = self;
        let files = || -> anyhow::Result<RunFiles> {
            Ok(RunFiles {
                checkpoints: Checkpoints::new(folder.checkpoints(), training.keep_last),
                metrics: MetricsLog::create(&folder.metrics())?,
            })
        };
        lock.is_some().then(files).transpose()
    }
}

impl<C, D> Running<C, D> {
    /// Trains to the end, or until a signal.
    pub(super) fn train(&mut self) -> anyhow::Result<Outcome> {
        let estimate = self.tell_memory();
        self.trainer.progress.start(self.trainer.state.step);
        let run = self.folder.path().display().to_string();
        let no_memory = format!("out of memory; {estimate}. To need less, {WHAT_TO_LOWER}");
        let last_words = self.trainer.replicas.last_words(&no_memory);
        let trained = out_of_memory::guard(last_words, || self.trainer.train(self.stop.flag()));
        self.trainer.progress.finish();
        let trained = trained.context(no_memory)?;
        // With others, an error is said first: they may see it too, and would end this replica while it writes.
        let writes = matches!(trained, Ok(Outcome::Stopped))
            || trained.is_err() && self.trainer.replicas.is_lone();
        if writes {
            // What people look at may be older than the last row.
            let warning = self.trainer.recorder.write_views();
            warning.iter().for_each(|warning| self.trainer.progress.warn(warning));
        }
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
        // From here on there is nothing to save, on any replica: what is left to do is done again where it is cut off.
        self.trainer.replicas.meet("the last checkpoint");
        let step = self.trainer.state.step;
        let stopped = stopped_at(step, self.command, self.folder.path());
        let is_told = self.stop.end_at_once(stopped.clone());
        let is_stopped = outcome == Outcome::Stopped
            || self.trainer.replicas.any(is_told, "the end of training");
        if is_stopped {
            self.trainer.progress.note(&stopped);
            return Ok(Outcome::Stopped);
        }
        Ok(outcome)
    }
}

impl<C, D> Running<C, D> {
    /// Says what the run's steps will hold, and warns if the device has less.
    fn tell_memory(&self) -> MemoryEstimate {
        let Trainer { config, train_data, device, learner, progress, replicas, .. } = &self.trainer;
        let batches = train_data.as_ref();
        let workload = Workload::of_run(config, batches, is_gpu(device), replicas.size());
        let estimate = MemoryEstimate::of_run(&self.model_config, &learner.model, &workload);
        let available = memory_estimate::available(device, replicas.place().local_size);
        let of = available.map(|bytes| format!(", of {}", format_bytes(bytes)));
        progress.note(&format!("memory: {estimate}{}", of.unwrap_or_default()));
        if let Some(available) = available.filter(|&available| available < estimate.peak) {
            let each = if replicas.is_lone() { "" } else { " of each replica" };
            progress.warn(&format!(
                "warning: steps{each} need about {}, and there are {}: {WHAT_TO_LOWER}",
                format_bytes(estimate.peak),
                format_bytes(available)
            ));
        }
        estimate
    }
}

/// Refuses to resume a run with changes other than those that `may_change` allows.
pub(super) fn check_changes(
    run: &Path,
    changes: &[Difference],
    may_change: impl Fn(&Difference) -> bool,
) -> anyhow::Result<()> {
    let fixed = changes.iter().filter(|change| !may_change(change));
    let fixed: Vec<String> = fixed.map(Difference::to_string).collect();
    anyhow::ensure!(
        fixed.is_empty(),
        "the run in {} has another configuration: {}. What a run learns from and its model are fixed (docs/formats.md \
         has the keys that may change, under Going on)",
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

    /// Begins to change the folder, for a run of so many `steps`: removes what a killed process has left, and if the run goes
    /// back to the step, puts aside what came after it.
    pub(super) fn begin(
        &self,
        stop: &Stop,
        goes_back: bool,
        steps: u64,
        checkpoints: &Checkpoints,
    ) -> anyhow::Result<()> {
        stop.say(STOPPED_WITHIN.to_owned());
        self.folder.remove_left_overs()?;
        if goes_back {
            let aside = self.folder.set_aside(self.step, checkpoints)?;
            let (step, aside) = (self.step, aside.display());
            self.progress.note(&format!("what came after step {step} is now in {aside}"));
        } else if self.step < steps {
            // Figures of an end that the run goes on from; the metrics still have them.
            self.folder.remove_summary()?;
        }
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
    pub(super) files: Option<RunFiles>,
}

impl Parts {
    pub(super) fn trainer(
        self,
        start: &Start<'_>,
        config: TrainerConfig,
        device: Device,
        model_config: &T5Config,
        (train_data, valid_data): (Arc<dyn TrainingBatches>, Box<dyn Validation>),
        progress: Progress,
    ) -> anyhow::Result<Trainer> {
        let Self { learner, optimizer, state, saved, files } = self;
        let learner = learner.freeze(&config.optimizer).context(GROUPS)?;
        Ok(Trainer {
            learner: learner.recompute_layers(config.training.recompute_layers),
            config,
            replicas: start.replicas.clone(),
            device,
            train_data,
            valid_data,
            optimizer,
            state,
            saved,
            files,
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
    let train = Arc::new(TextBatches { data: train, batch_size });
    let valid = TextValidation { data: valid, training: config.training.clone() };
    (train, Box::new(valid))
}

/// Checks the groups of parameters of a run that starts from a seed: a pattern that matches nothing must not cost hours
/// of preparing text first.
fn check_groups(config: &RunConfig) -> anyhow::Result<()> {
    if config.model.init.is_none() {
        let model = config.any_model_config()?.build(&cpu());
        optimizer(&Learner { model }, &config.optimizer)?;
    }
    Ok(())
}

/// The hash of the model that a run begins with, if that comes from a directory.
fn init_fingerprint(config: &RunConfig) -> anyhow::Result<Option<String>> {
    let Some(directory) = &config.model.init else { return Ok(None) };
    let directory = ModelDirectory::new(directory);
    directory.config()?;
    Ok(Some(directory.fingerprint()?.to_string()))
}

/// Checks that the model that a run begins with, if that comes from a directory, is still the one that its record names.
fn check_init(config: &RunConfig, record: &RunRecord) -> anyhow::Result<()> {
    let Some(directory) = &config.model.init else { return Ok(()) };
    check_directory(&ModelDirectory::new(directory), record)
}

/// Checks that the model in a directory is still the one that a run's record says it begins with: another may be there by
/// now.
pub(super) fn check_directory(
    directory: &ModelDirectory,
    record: &RunRecord,
) -> anyhow::Result<()> {
    let Some(was) = &record.init else { return Ok(()) };
    let is = directory.fingerprint()?.to_string();
    anyhow::ensure!(
        is == *was,
        "the model in {} is another one than the run was started with: that had tensors of BLAKE3 {was}, and this one \
         has {is}",
        directory.path().display()
    );
    Ok(())
}

/// The model that a run begins with: from the seed, or from a directory.
fn initial_model(
    config: &RunConfig,
    record: &RunRecord,
    tokenizer: &TextTokenizer,
    device: &Device,
) -> anyhow::Result<(T5Config, T5)> {
    let model_config = config.model_config(tokenizer.vocab_size())?;
    // Preparing text may have taken hours.
    check_init(config, record)?;
    Ok(match &config.model.init {
        Some(directory) => ModelDirectory::new(directory).load_as(model_config, device)?,
        None => {
            let model = model_config.init(config.seed, device);
            let model = config.coefficients.start(model, model_config.altup.as_ref(), config.seed);
            (model_config, model)
        }
    })
}

pub(super) fn cannot_resume(path: &Path) -> String {
    format!("cannot go on with the run in {}", path.display())
}

pub(super) fn stopped_early(command: &str, run: &Path) -> String {
    let run = quoted(&run.to_string_lossy());
    format!("stopped before training; go on with: {command} --resume {run}")
}

/// What is said of a run that was to go on, and of which nothing has changed yet: neither has its configuration, so that
/// `--resume` alone would go on otherwise than it was told to.
pub(super) fn stopped_unchanged(run: &Path) -> String {
    format!(
        "stopped before training: the run in {} is as it was; give the same command again",
        run.display()
    )
}

/// What is said while the folder of a run changes to what it was told to go on with.
const STOPPED_WITHIN: &str = "stopped before training; give the same command again";

/// What starts a run that isn't begun.
const SAME_COMMAND: &str = "start it again, by the same command";

fn stopped_at(step: u64, command: &str, run: &Path) -> String {
    let how_far = match step {
        0 => "before its first step".to_owned(),
        step => format!("at step {step}, saved"),
    };
    let run = quoted(&run.to_string_lossy());
    format!("stopped {how_far}; go on with: {command} --resume {run}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_saved_is_said() {
        let run = Path::new("runs/my run");
        let go_on = "go on with: altup train --resume 'runs/my run'";
        assert_eq!(stopped_at(7, TRAIN, run), format!("stopped at step 7, saved; {go_on}"));
        assert_eq!(stopped_at(0, TRAIN, run), format!("stopped before its first step; {go_on}"));
    }
}
