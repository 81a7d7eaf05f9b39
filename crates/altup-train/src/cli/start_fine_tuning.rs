//! How a fine-tuning run gets going: in a folder of its own, or from where it was.

use altup_data::TextTokenizer;
use altup_models::{T5, T5Config};
use altup_train::checkpoint::{Checkpoints, Restored, RunState};
use altup_train::config_changes::Difference;
use altup_train::fine_tuning::{FineTuningConfig, FineTuningData, TaskTraining, TaskValidation};
use altup_train::learner::Learner;
use altup_train::metrics::{MetricsLog, MetricsRow};
use altup_train::progress::Progress;
use altup_train::replicas::Agreement;
use altup_train::run_record::{HistoryRow, RunRecord};
use altup_train::task_evaluation::TaskSplit;
use altup_train::trainer::RunFiles;
use altup_train::training_batches::TrainingBatches;
use altup_train::validation::Validation;
use anyhow::Context;
use burn::tensor::Device;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::start::{
    self, Begins, Begun, GoingOn, Parts, Place, Start, Stored, announce, cannot_resume,
    check_changes, check_directory, optimizer, recorded_backend, stopped_early, stopped_unchanged,
};

/// What a fine-tuning run is resumed with.
pub(super) const FINETUNE: &str = "altup finetune";

/// A fine-tuning run that is ready to train. Its model's configuration is that of the model as it is passed on.
pub(super) type Running = start::Running<FineTuningConfig, FineTuningData>;

impl Start<'_> {
    /// Starts a new run.
    pub(super) fn new_fine_tuning(
        &self,
        config: FineTuningConfig,
        place: Place,
    ) -> anyhow::Result<Running> {
        config.validate()?;
        let backend = self.backend.cloned().unwrap_or_default();
        let hashed = config.clone().with_hashed_descriptions()?;
        self.agree(&hashed, &backend, &config.training)?;
        let device = self.open(&backend, &config.training)?;
        let tokenizer = FineTuningData::tokenizer(&config)?;
        let mut record = RunRecord::new(config.training.precision, &backend.to_string());
        record.init = Some(config.directory().fingerprint()?.to_string());
        let first = HistoryRow::now(0, &config, &backend.to_string());
        let quiet = Progress::new(self.mode, config.training.steps, 0);
        let (run, stop) = self.take(&place, [("model.path", &*config.model.path)], &quiet)?;
        announce(run.as_ref(), &record, &first, FINETUNE, &stop)?;
        let data = FineTuningData::prepare(&config, tokenizer)?;
        let config = config.with_steps_for(data.num_examples());
        config.validate()?;
        let progress = self.watch(&config, &data)?;
        let (model_config, model) = initial_model(&config, &record, &device)?;
        record.model = Some(model_config.clone());
        record.examples = Some(data.fingerprint.clone());
        record.validation = fingerprints(data.valid.iter().map(Arc::as_ref));
        self.agree_on_record(&record, &model)?;
        let first = HistoryRow::now(0, &config, &backend.to_string());
        let learner = Learner { model };
        let optimizer = optimizer(&learner, &config.optimizer)?;
        let (record, first, tokenizer) = (&record, &first, &*data.tokenizer);
        let begins = Begins { place: &place, command: FINETUNE, record, first, tokenizer };
        let begun = self.begin(run, begins, &stop)?;
        let parts = Parts {
            optimizer,
            learner,
            state: RunState::default(),
            saved: None,
            files: begun.files(&config.training)?,
        };
        let Begun { folder, lock } = begun;
        let tasks = tasks(&config, &data, &[]);
        let mut trainer =
            parts.trainer(self, config.trainer(), device, &model_config, tasks, progress)?;
        // From here on, the model's directory is no longer needed.
        trainer.save()?;
        let (_lock, command) = (lock, FINETUNE);
        Ok(Running { folder, _lock, backend, model_config, config, data, trainer, stop, command })
    }

    /// Goes on with the run in the folder `path`: from its newest checkpoint, or from that of the step
    /// `from`; without any checkpoint, from its start. `configure` puts what is asked for over the run's configuration.
    pub(super) fn resume_fine_tuning(
        &self,
        path: &Path,
        from: Option<u64>,
        configure: impl FnOnce(FineTuningConfig) -> anyhow::Result<FineTuningConfig>,
    ) -> anyhow::Result<Running> {
        let opened = self.open_run::<FineTuningConfig>(path, || {
            anyhow::ensure!(
                !path.join("config.toml").exists() || FineTuningConfig::describes(path),
                "{} is a run of `altup train`: go on with `altup train --resume`",
                path.display()
            );
            Ok(())
        })?;
        let Stored { folder, lock, config: stored, mut record } = opened;
        let config = configure(stored.clone())?;
        check_changes(path, &stored.differences(&config), Difference::may_change_in_fine_tuning)?;
        config.validate()?;
        let recorded = recorded_backend(path, &record)?;
        let backend = self.backend.cloned().unwrap_or_else(|| recorded.clone());
        let hashed = config.clone().with_hashed_descriptions()?;
        self.agree(&hashed, &backend, &config.training)?;
        let device = self.open(&backend, &config.training)?;
        let stop = self.listen(&stopped_unchanged(path))?;

        let is_prepared = record.examples.is_some();
        let tokenizer = match is_prepared {
            true => TextTokenizer::load(&self.share_file(|| Ok(folder.tokenizer()))?.path)?,
            false => FineTuningData::tokenizer(&config)?,
        };
        let data = self.found_as_named(FineTuningData::prepare(&config, tokenizer))?;
        anyhow::ensure!(
            !is_prepared || record.examples.as_ref() == Some(&data.fingerprint),
            "the training examples have changed since the run in {} was started",
            path.display()
        );
        let validation = fingerprints(data.valid.iter().map(Arc::as_ref));
        if let Some((task, _)) =
            record.validation.iter().find(|(task, split)| validation.get(*task) != Some(split))
        {
            anyhow::bail!(
                "the validation examples of {task}, or how they are judged, have changed since the run in {} was started",
                path.display()
            );
        }
        let [stored, config] = [stored, config].map(|of| of.with_steps_for(data.num_examples()));
        config.validate()?;
        let changes = stored.differences(&config);
        let progress = self.watch(&config, &data)?;

        let mut checkpoints = Checkpoints::new(folder.checkpoints(), config.training.keep_last);
        let from_start = self.goes_from_start(&checkpoints, from)?;
        let (model_config, model) = match &record.model {
            Some(model_config) if !from_start => {
                let model = config.in_training(model_config).init(config.seed, &device);
                (model_config.clone(), model)
            }
            _ => initial_model(&config, &record, &device).with_context(|| cannot_resume(path))?,
        };
        let now = RunRecord {
            model: Some(model_config.clone()),
            examples: Some(data.fingerprint.clone()),
            validation: validation.clone(),
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
        let going_on = GoingOn { folder: &folder, progress: &progress, step: state.step };
        going_on.check(&damaged, config.training.steps)?;

        // Everything is at hand. From here on, the folder changes.
        let mut files = None;
        if lock.is_some() {
            going_on.begin(&stop, from.is_some(), config.training.steps, &checkpoints)?;
            if !is_prepared {
                data.tokenizer.save(&folder.tokenizer())?;
            }
            if !is_prepared || backend != recorded {
                record.backend = backend.to_string();
                record.model = Some(model_config.clone());
                record.examples = Some(data.fingerprint.clone());
                record.validation = validation;
                folder.write_record(&record)?;
            }
            folder.write_config(&HistoryRow::now(state.step, &config, &backend.to_string()))?;
            going_on.announce(&recorded, &backend, &changes);
            let metrics = match from_start {
                true => MetricsLog::create(&folder.metrics())?,
                false => MetricsLog::resume(&folder.metrics(), &state)?,
            };
            stop.say(stopped_early(FINETUNE, path));
            files = Some(RunFiles { checkpoints, metrics });
        }
        let rows = self.replicas.from_first("the scores so far", || {
            let mut rows = MetricsLog::read(&folder.metrics())?;
            rows.retain(|row| matches!(row, MetricsRow::Valid(_)));
            Ok::<_, anyhow::Error>(rows)
        })?;
        let tasks = tasks(&config, &data, &rows);
        let parts = Parts { learner, optimizer, state, saved, files };
        let mut trainer =
            parts.trainer(self, config.trainer(), device, &model_config, tasks, progress)?;
        if from_start {
            trainer.save()?;
        }
        let (_lock, command) = (lock, FINETUNE);
        Ok(Running { folder, _lock, backend, model_config, config, data, trainer, stop, command })
    }

    /// What shows how a run goes, told what it trains on.
    fn watch(&self, config: &FineTuningConfig, data: &FineTuningData) -> anyhow::Result<Progress> {
        let progress = self.progress(&config.training)?;
        for task in &data.training {
            progress.note(&describe(task, config));
        }
        Ok(progress)
    }
}

/// The model that a run begins with, in training, and its configuration as it is passed on.
fn initial_model(
    config: &FineTuningConfig,
    record: &RunRecord,
    device: &Device,
) -> anyhow::Result<(T5Config, T5)> {
    let directory = config.directory();
    check_directory(&directory, record)?;
    let source = directory.config()?;
    let (in_training, model) = directory.load_as(config.in_training(&source), device)?;
    Ok((T5Config { dropout_rate: source.dropout_rate, ..in_training }, model))
}

/// That all replicas validate on the same examples: each scores its own batches of them.
pub(super) fn on_validation<'a>(splits: impl IntoIterator<Item = &'a TaskSplit>) -> Agreement {
    Agreement::default().and("validation", fingerprints(splits))
}

/// The hash of each task's examples to validate on.
fn fingerprints<'a>(splits: impl IntoIterator<Item = &'a TaskSplit>) -> BTreeMap<String, String> {
    let of_split =
        |split: &TaskSplit| (split.task().name().to_owned(), split.fingerprint().to_string());
    splits.into_iter().map(of_split).collect()
}

/// What a run trains on and is validated on; `rows` are its metrics so far.
fn tasks(
    config: &FineTuningConfig,
    data: &FineTuningData,
    rows: &[MetricsRow],
) -> (Arc<dyn TrainingBatches>, Box<dyn Validation>) {
    let (splits, tokenizer) = (data.valid.clone(), Arc::clone(&data.tokenizer));
    let answers = config.answers.clone();
    let valid = TaskValidation::new(splits, tokenizer, answers, config.patience, rows);
    (Arc::clone(&data.train) as Arc<dyn TrainingBatches>, Box::new(valid))
}

/// A task's training examples in a line.
pub(super) fn describe(task: &TaskTraining, config: &FineTuningConfig) -> String {
    let TaskTraining { task: name, examples, truncated, rate, target_length, .. } = task;
    let mut line = format!("{name}: {examples} examples, targets of up to {target_length} tokens");
    if *rate < 1.0 {
        line.push_str(&format!(", {:.1} % of what is trained on", 100.0 * rate));
    }
    if *truncated > 0 {
        let length = config.tasks.input_length;
        line.push_str(&format!("; {truncated} inputs are cut to {length} tokens"));
    }
    line
}
