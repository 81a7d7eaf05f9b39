//! What describes a fine-tuning run: defaults, below a TOML file, below the command line.

use altup_data::mixture::weights_by_size;
use altup_data::tasks::MaxLengths;
use altup_models::{ModelDirectory, T5Config};
use altup_optim::OptimizerConfig;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

use crate::coefficients_config::CoefficientsConfig;
use crate::config::{self, RunConfigError, RunConfiguration, TrainerConfig, TrainingConfig};
use crate::config_changes::{self, Difference};
use crate::optimization::LossConfig;
use crate::schedule::{ScheduleConfig, ScheduleKind};
use crate::task_evaluation::AnswerConfig;

/// The configuration of a fine-tuning run, as its `config.toml` holds it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FineTuningConfig {
    /// What all randomness of the run comes from. Default: 0
    pub seed: u64,
    /// The model that is fine-tuned.
    pub model: PretrainedConfig,
    /// The tasks, and how examples are made of them.
    pub tasks: TasksConfig,
    /// How the model answers when it is validated.
    pub answers: AnswerConfig,
    /// The optimizer. Default: Adafactor with a rate of 0.001, as T5
    pub optimizer: OptimizerConfig,
    /// The learning rate over the run. Default: constant, without warm-up, as T5
    pub schedule: ScheduleConfig,
    /// What is added to the loss. Default: nothing
    pub loss: LossConfig,
    /// How long and in what portions. Default: 1000 steps of 32 examples, validated on 1000 examples of each task and
    /// saved every 100
    pub training: TrainingConfig,
    /// Times that training goes through the examples of all tasks together. Takes the place of `training.steps`, and once
    /// the examples are read, `training.steps` takes its own. Default: none
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epochs: Option<f64>,
    /// Validations without a better score after which a run ends. Default: none, it does all its steps
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patience: Option<u64>,
}

/// The model that a run fine-tunes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PretrainedConfig {
    /// Its directory. Has no default
    pub path: PathBuf,
    /// Dropout rate of the run, in place of that in the directory's `config.json`, which the fine-tuned model keeps.
    /// Default: 0.1, as in T5's fine-tuning
    pub dropout_rate: f64,
}

/// The tasks of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TasksConfig {
    /// Their names, or the paths of descriptions, FILE.toml. Has no default
    pub names: Vec<String>,
    /// The folder of original files: a task's own, or one that holds such folders. Has no default
    pub data: PathBuf,
    /// The split that is trained on. Default: train
    pub train_split: String,
    /// The split that is validated on. Default: validation
    pub valid_split: String,
    /// How several tasks are mixed: `proportional` to their sizes, or `equal`. Default: proportional
    pub mixing: Mixing,
    /// Examples that count of a task when sizes are compared, the K of T5's paper. Default: all
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_limit: Option<u64>,
    /// How evenly tasks are mixed: each counts by its size to the power of 1 / temperature. Default: 1.0, in proportion
    pub temperature: f64,
    /// Inputs are cut to this many tokens, the end token included. Default: 512
    pub input_length: usize,
    /// Targets that have more tokens, the end token included, are an error. Default: any
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_length: Option<usize>,
    /// Threads that prepare batches. Default: 1
    pub workers: usize,
}

/// How several tasks are mixed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mixing {
    /// By their sizes, up to `size_limit` and tempered by `temperature`.
    #[default]
    Proportional,
    /// All alike.
    Equal,
}

impl Default for FineTuningConfig {
    fn default() -> Self {
        Self {
            seed: 0,
            model: PretrainedConfig::default(),
            tasks: TasksConfig::default(),
            answers: AnswerConfig::default(),
            optimizer: OptimizerConfig { learning_rate: 1e-3, ..OptimizerConfig::default() },
            schedule: ScheduleConfig {
                kind: ScheduleKind::Constant,
                warmup_steps: 0,
                final_share: 0.0,
            },
            loss: LossConfig::default(),
            training: TrainingConfig {
                steps: 1000,
                batch_size: 32,
                log_every: 20,
                eval_every: 100,
                eval_examples: 1000,
                checkpoint_every: 100,
                keep_last: 1,
                ..TrainingConfig::default()
            },
            epochs: None,
            patience: None,
        }
    }
}

impl Default for PretrainedConfig {
    fn default() -> Self {
        Self { path: PathBuf::new(), dropout_rate: 0.1 }
    }
}

impl Default for TasksConfig {
    fn default() -> Self {
        Self {
            names: Vec::new(),
            data: PathBuf::new(),
            train_split: "train".into(),
            valid_split: "validation".into(),
            mixing: Mixing::Proportional,
            size_limit: None,
            temperature: 1.0,
            input_length: MaxLengths::default().input,
            target_length: None,
            workers: 1,
        }
    }
}

impl RunConfiguration for FineTuningConfig {
    fn with_file(self, path: &Path) -> Result<Self, RunConfigError> {
        Self::with_file(self, path)
    }

    fn to_toml(&self) -> String {
        Self::to_toml(self)
    }
}

impl TasksConfig {
    /// How long examples may be.
    pub fn lengths(&self) -> MaxLengths {
        MaxLengths { input: self.input_length, target: self.target_length }
    }

    /// The weights of tasks that have as many examples as `sizes` says.
    pub fn weights(&self, sizes: &[u64]) -> Vec<f64> {
        match self.mixing {
            Mixing::Proportional => weights_by_size(sizes, self.size_limit, self.temperature),
            Mixing::Equal => vec![1.0; sizes.len()],
        }
    }
}

impl FineTuningConfig {
    /// Reads a TOML file and puts its keys over `self`.
    ///
    /// # Errors
    ///
    /// If the file can't be read or isn't TOML; a key that doesn't exist, or has a value of another
    /// type, is named.
    pub fn with_file(self, path: &Path) -> Result<Self, RunConfigError> {
        config::with_file(&self, path)
    }

    /// Puts `KEY=VALUE` assignments over `self`, as [`RunConfig`](crate::config::RunConfig) does.
    ///
    /// # Errors
    ///
    /// Names the assignment or the key.
    pub fn with_assignments(self, assignments: &[String]) -> Result<Self, RunConfigError> {
        self.check_paths()?;
        config::with_assignments(&self, assignments)
    }

    /// Puts the keys of a table over `self`, those that are tables key by key.
    ///
    /// # Errors
    ///
    /// Names a key that doesn't exist, or has a value of another type.
    pub fn with_keys(self, keys: toml::Table) -> Result<Self, RunConfigError> {
        config::with_keys(&self, keys)
    }

    /// Checks that TOML can hold the paths.
    ///
    /// # Errors
    ///
    /// Names the first key with a path that isn't UTF-8.
    pub fn check_paths(&self) -> Result<(), RunConfigError> {
        config::check_paths([
            ("model.path", self.model.path.as_path()),
            ("tasks.data", self.tasks.data.as_path()),
        ])
    }

    /// The configuration as TOML.
    pub fn to_toml(&self) -> String {
        config::to_table(self).to_string()
    }

    /// The keys whose values differ in `other`.
    pub fn differences(&self, other: &Self) -> Vec<Difference> {
        let mut differences = Vec::new();
        let [this, other] = [self, other].map(config::to_table);
        config_changes::compare("", &this, &other, &mut differences);
        differences
    }

    /// Whether the folder is that of a fine-tuning run, by its `config.toml`.
    pub fn describes(folder: &Path) -> bool {
        let text = std::fs::read_to_string(folder.join("config.toml")).unwrap_or_default();
        text.parse::<toml::Table>().is_ok_and(|table| table.contains_key("tasks"))
    }

    /// Makes paths absolute, so that the run can be resumed from any folder.
    ///
    /// # Errors
    ///
    /// If the current folder is not known.
    pub fn make_absolute(&mut self) -> std::io::Result<()> {
        let descriptions = self.tasks.names.iter_mut().filter(|name| name.ends_with(".toml"));
        for name in descriptions {
            *name = std::path::absolute(&*name)?.to_string_lossy().into_owned();
        }
        for path in [&mut self.model.path, &mut self.tasks.data] {
            if !path.as_os_str().is_empty() {
                *path = std::path::absolute(&*path)?;
            }
        }
        Ok(())
    }

    /// The same, with a hash of its content in place of the path of a description: what replicas must have alike.
    ///
    /// # Errors
    ///
    /// Names the description that can't be read.
    pub fn with_hashed_descriptions(mut self) -> Result<Self, RunConfigError> {
        let descriptions = self.tasks.names.iter_mut().filter(|name| name.ends_with(".toml"));
        for name in descriptions {
            let text = std::fs::read(&*name)
                .map_err(|source| RunConfigError::Read { path: name.as_str().into(), source })?;
            *name = format!("BLAKE3 {}", blake3::hash(&text));
        }
        Ok(self)
    }

    /// Checks the values, before any work.
    ///
    /// # Errors
    ///
    /// Names the key.
    pub fn validate(&self) -> Result<(), RunConfigError> {
        let error = |key: &str, problem: String| {
            Err(RunConfigError::Value { key: key.to_owned(), problem })
        };
        let (tasks, training) = (&self.tasks, &self.training);
        if self.model.path.as_os_str().is_empty() {
            return error("model.path", "is missing: name a model with --model".into());
        }
        if !(0.0..1.0).contains(&self.model.dropout_rate) {
            let rate = self.model.dropout_rate;
            return error(
                "model.dropout_rate",
                format!("must be at least 0 and below 1, not {rate}"),
            );
        }
        if tasks.names.is_empty() {
            return error("tasks.names", "is empty: name a task with --task".into());
        }
        if let Some(number) =
            (1..tasks.names.len()).find(|&n| tasks.names[..n].contains(&tasks.names[n]))
        {
            return error("tasks.names", format!("has {} twice", tasks.names[number]));
        }
        if tasks.data.as_os_str().is_empty() {
            return error(
                "tasks.data",
                "is missing: name the folder of the task's files with --data".into(),
            );
        }
        if training.final_eval_examples.is_some() {
            let problem = "has no meaning here: the scores of the end are on all examples";
            return error("training.final_eval_examples", problem.into());
        }
        if !training.prompts.is_empty() {
            let problem = "has no meaning here: a task's examples show what the model writes";
            return error("training.prompts", problem.into());
        }
        if let Some(epochs) = self.epochs.filter(|epochs| !(*epochs > 0.0 && epochs.is_finite())) {
            return error("epochs", format!("must be above 0, not {epochs}"));
        }
        if !(tasks.temperature > 0.0 && tasks.temperature.is_finite()) {
            return error(
                "tasks.temperature",
                format!("must be above 0, not {}", tasks.temperature),
            );
        }
        for (key, value) in [
            ("tasks.size_limit", tasks.size_limit),
            ("tasks.input_length", Some(tasks.input_length as u64)),
            ("tasks.target_length", tasks.target_length.map(|length| length as u64)),
            ("tasks.workers", Some(tasks.workers as u64)),
            ("answers.batch_size", Some(self.answers.batch_size as u64)),
            ("answers.max_new_tokens", self.answers.max_new_tokens.map(|tokens| tokens as u64)),
            ("patience", self.patience),
        ] {
            if value == Some(0) {
                return error(key, "must be at least 1, not 0".into());
            }
        }
        self.trainer().validate()?;
        if !training.eval_every.is_multiple_of(training.checkpoint_every) {
            return error(
                "training.eval_every",
                format!(
                    "({}) must be a multiple of training.checkpoint_every ({}), so that the best scores have a \
                     checkpoint",
                    training.eval_every, training.checkpoint_every
                ),
            );
        }
        Ok(())
    }

    /// How the run trains.
    pub fn trainer(&self) -> TrainerConfig {
        TrainerConfig {
            seed: self.seed,
            optimizer: self.optimizer.clone(),
            schedule: self.schedule.clone(),
            loss: self.loss.clone(),
            coefficients: CoefficientsConfig::default(),
            training: self.training.clone(),
            workers: self.tasks.workers,
        }
    }

    /// The model's directory.
    pub fn directory(&self) -> ModelDirectory {
        ModelDirectory::new(&self.model.path)
    }

    /// A model in training: with the dropout rate of the run.
    pub fn in_training(&self, model: &T5Config) -> T5Config {
        T5Config { dropout_rate: self.model.dropout_rate, ..model.clone() }
    }

    /// A short name of what is trained, such as `tiny-altup-sst2`.
    pub fn name(&self) -> String {
        // That of a description is its path.
        let stem = |name: &String| {
            let stem = Path::new(name).file_stem();
            stem.map_or_else(String::new, |stem| stem.to_string_lossy().into_owned())
        };
        let tasks: Vec<String> = self.tasks.names.iter().map(stem).collect();
        format!("{}-{}", config::name_of_model(&self.model.path), tasks.join("-"))
    }

    /// The same with steps in the place of epochs: as many as go through `examples` examples so often.
    pub fn with_steps_for(mut self, examples: u64) -> Self {
        if let Some(epochs) = self.epochs.take() {
            let of_step = self.training.batch_size * self.training.gradient_accumulation;
            let steps = (epochs * examples as f64 / of_step.max(1) as f64).ceil();
            self.training.steps = (steps as u64).max(1);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RunConfig;

    #[test]
    fn a_run_is_named_after_its_model_and_tasks() {
        let commit = "0123456789abcdef0123456789abcdef01234567";
        for (path, name) in [
            (format!("hub/models--google--flan-t5-small/snapshots/{commit}"), "flan-t5-small-rte"),
            (format!("hub/models--t5-small/snapshots/{commit}"), "t5-small-rte"),
            ("models/snapshots/tiny".to_owned(), "tiny-rte"),
            ("runs/tiny-altup/model".to_owned(), "tiny-altup-rte"),
            ("models/t5-v1.1".to_owned(), "t5-v1.1-rte"),
        ] {
            let mut config = FineTuningConfig::default();
            config.model.path = path.clone().into();
            config.tasks.names = vec!["rte".into()];
            assert_eq!(config.name(), name);
            let mut config = RunConfig::default();
            config.model.init = Some(path.into());
            assert_eq!(format!("{}-rte", config.name()), name);
        }
    }
}
