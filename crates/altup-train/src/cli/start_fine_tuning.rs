//! How a fine-tuning run gets going: in a folder of its own, or from where it was.

use altup_data::TextTokenizer;
use altup_models::T5Config;
use altup_train::checkpoint::{Checkpoints, Restored, RunState};
use altup_train::fine_tuning::{FineTuningConfig, FineTuningData, TaskTraining, TaskValidation};
use altup_train::learner::Learner;
use altup_train::metrics::{MetricsLog, MetricsRow};
use altup_train::progress::Progress;
use altup_train::run_record::{HistoryRow, RunRecord};
use altup_train::trainer::RunFiles;
use altup_train::training_batches::TrainingBatches;
use altup_train::validation::Validation;
use anyhow::Context;
use std::path::Path;
use std::sync::Arc;

use super::start::{
    self, Begins, Begun, GoingOn, Parts, Place, Start, Stored, check_changes, optimizer,
    recorded_backend, stopped_early,
};

/// What a fine-tuning run is resumed with.
pub(super) const FINETUNE: &str = "altup finetune";

/// A fine-tuning run that is ready to train. Its model's configuration is that of the model as it is passed on.
pub(super) type Running = start::Running<FineTuningConfig, FineTuningData>;

impl Start<'_> {
    /// Starts a new run, over so many epochs where they are asked for.
    pub(super) fn new_fine_tuning(
        &self,
        mut config: FineTuningConfig,
        epochs: Option<f64>,
        place: Place,
    ) -> anyhow::Result<Running> {
        config.validate()?;
        let backend = self.backend.cloned().unwrap_or_default();
        self.agree(&config, &backend, &config.training)?;
        let device = self.open(&backend, &config.training)?;
        let quiet = Progress::new(self.mode, config.training.steps, 0);
        let (run, stop) = self.take(&place, FINETUNE, &quiet)?;
        let data = FineTuningData::prepare(&config, FineTuningData::tokenizer(&config)?)?;
        if let Some(epochs) = epochs {
            config.training.steps = config.steps_of(epochs, data.num_examples());
        }
        let progress = self.progress(&config.training)?;
        for task in &data.training {
            progress.note(&describe(task, &config));
        }
        let directory = config.directory();
        let source = directory.config()?;
        let (in_training, model) = directory.load_as(config.in_training(&source), &device)?;
        let model_config = T5Config { dropout_rate: source.dropout_rate, ..in_training };

        let mut record = RunRecord::new(config.training.precision, &backend.to_string());
        record.model = Some(model_config.clone());
        record.init = Some(directory.fingerprint()?.to_string());
        record.examples = Some(data.fingerprint.clone());
        self.agree_on_record(&record, &model)?;
        let first = HistoryRow::now(0, &config, &backend.to_string());
        let (record, first, tokenizer) = (&record, &first, &*data.tokenizer);
        let begins = Begins { place: &place, command: FINETUNE, record, first, tokenizer };
        let begun = self.begin(run, begins, &stop)?;
        let learner = Learner { model };
        let parts = Parts {
            optimizer: optimizer(&learner, &config.optimizer)?,
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
    /// `from`. `configure` puts what is asked for over the run's configuration.
    pub(super) fn resume_fine_tuning(
        &self,
        path: &Path,
        from: Option<u64>,
        configure: impl FnOnce(FineTuningConfig) -> anyhow::Result<FineTuningConfig>,
    ) -> anyhow::Result<Running> {
        let Stored { folder, lock, config: stored, mut record } =
            self.open_run::<FineTuningConfig>(path)?;
        let config = configure(stored.clone())?;
        let changes = stored.differences(&config);
        check_changes(path, &changes)?;
        config.validate()?;
        let recorded = recorded_backend(path, &record)?;
        let backend = self.backend.cloned().unwrap_or_else(|| recorded.clone());
        self.agree(&config, &backend, &config.training)?;
        let device = self.open(&backend, &config.training)?;
        let progress = self.progress(&config.training)?;
        let stop = self.listen(&stopped_early(FINETUNE, path))?;

        let tokenizer = self.share_file(|| Ok(folder.tokenizer()))?;
        let data = FineTuningData::prepare(&config, TextTokenizer::load(&tokenizer.path)?)?;
        anyhow::ensure!(
            record.examples.as_ref() == Some(&data.fingerprint),
            "the training examples have changed since the run in {} was started",
            path.display()
        );
        let model_config =
            record.model.clone().with_context(|| format!("{} has no model", path.display()))?;
        let mut checkpoints = Checkpoints::new(folder.checkpoints(), config.training.keep_last);
        let model = config.in_training(&model_config).init(config.seed, &device);
        self.agree_on_record(&record, &model)?;
        let learner = Learner { model };
        let optimizer = optimizer(&learner, &config.optimizer)?;
        let restored = self.restore(&mut checkpoints, from, &learner, &optimizer)?;
        let Restored { state, learner, optimizer, damaged } = restored;
        let going_on = GoingOn { folder: &folder, progress: &progress, step: state.step };
        going_on.check(&damaged, config.training.steps)?;

        // Everything is at hand. From here on, the folder changes.
        let mut files = None;
        if lock.is_some() {
            if from.is_some() {
                going_on.set_aside(&checkpoints)?;
            }
            if backend != recorded {
                record.backend = backend.to_string();
                folder.write_record(&record)?;
            }
            folder.write_config(&HistoryRow::now(state.step, &config, &backend.to_string()))?;
            going_on.announce(&recorded, &backend, &changes);
            let metrics = MetricsLog::resume(&folder.metrics(), &state)?;
            files = Some(RunFiles { checkpoints, metrics });
        }
        let rows = self.replicas.from_first("the scores so far", || {
            let mut rows = MetricsLog::read(&folder.metrics())?;
            rows.retain(|row| matches!(row, MetricsRow::Valid(_)));
            Ok::<_, anyhow::Error>(rows)
        })?;
        let tasks = tasks(&config, &data, &rows);
        let saved = Some(state.clone());
        let parts = Parts { learner, optimizer, state, saved, files };
        let trainer =
            parts.trainer(self, config.trainer(), device, &model_config, tasks, progress)?;
        let (_lock, command) = (lock, FINETUNE);
        Ok(Running { folder, _lock, backend, model_config, config, data, trainer, stop, command })
    }
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
