//! What describes a run: defaults, below a TOML file, below the command line.

use altup_data::mixture::weights_by_size;
use altup_data::objective::{FixedPrefixLm, MODES, MixtureOfDenoisers, PrefixLm};
use altup_data::{DataError, Objective, OnError, SpanCorruption, TextTokenizer};
use altup_models::{
    Activation, AltUpModelConfig, DirectoryError, ModelDirectory, MoeConfig, T5Config, size,
    size_names,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use toml::{Table, Value};

use crate::coefficients_config::CoefficientsConfig;
use crate::optimization::LossConfig;
use crate::precision::Precision;
use crate::replicas::DEFAULT_TIMEOUT;
use crate::schedule::{ScheduleConfig, ScheduleKind};
use crate::variant::{Variant, label};
use altup_optim::{OptimizerConfig, OptimizerKind};

/// The configuration of a run, as `config.toml` holds it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunConfig {
    /// What all randomness of the run comes from. Default: 0
    pub seed: u64,
    /// The model.
    pub model: ModelConfig,
    /// The corpus, and how examples are made of it.
    pub data: DataConfig,
    /// What is added to the loss.
    pub loss: LossConfig,
    /// The optimizer.
    pub optimizer: OptimizerConfig,
    /// How AltUp's coefficients start, and how far they may go.
    #[serde(skip_serializing_if = "CoefficientsConfig::is_default")]
    pub coefficients: CoefficientsConfig,
    /// The learning rate over the run.
    pub schedule: ScheduleConfig,
    /// How long and in what portions.
    pub training: TrainingConfig,
}

/// The model of a run: a named size, and what differs from it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelConfig {
    /// A model directory whose model is trained on. Its `config.json` then decides the model, and of
    /// the keys below only `dropout_rate` may be set. Default: none, a model that starts from the seed
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<PathBuf>,
    /// A named size, such as `tiny`, `altup-s` or `t5-v1_1-small`; `altup sizes` lists them.
    /// Default: tiny
    pub size: String,
    /// Rows of the embedding table. Default: the tokenizer's vocabulary, rounded up to a multiple
    /// of 64
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vocab_size: Option<usize>,
    /// Width of a layer. Default: the size's
    #[serde(skip_serializing_if = "Option::is_none")]
    pub d_model: Option<usize>,
    /// Width of an attention head. Default: the size's, or d_model / num_heads where one of them is
    /// set
    #[serde(skip_serializing_if = "Option::is_none")]
    pub d_kv: Option<usize>,
    /// Hidden width of the feed-forward layer. Default: the size's
    #[serde(skip_serializing_if = "Option::is_none")]
    pub d_ff: Option<usize>,
    /// Attention heads. Default: the size's
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_heads: Option<usize>,
    /// Layers of the encoder. Default: the size's
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_layers: Option<usize>,
    /// Layers of the decoder. Default: as many as in the encoder
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_decoder_layers: Option<usize>,
    /// `gated-gelu` (T5 v1.1) or `relu` (the original T5). Default: gated-gelu
    pub feed_forward_proj: Activation,
    /// Whether the output layer is the embedding table. Default: false, as in T5 v1.1
    pub tie_word_embeddings: bool,
    /// Dropout rate. Default: 0.0, as in T5's pre-training
    pub dropout_rate: f64,
    /// AltUp. Default: none, a dense T5
    #[serde(skip_serializing_if = "Option::is_none")]
    pub altup: Option<AltUpModelConfig>,
    /// Mixture of experts. Default: none
    #[serde(skip_serializing_if = "Option::is_none")]
    pub moe: Option<MoeConfig>,
}

/// The corpus of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// Files, folders and globs to train on. Default: none, which means the crate sources that
    /// Cargo has unpacked on this machine
    pub train: Vec<String>,
    /// Files, folders and globs to validate on. Default: none, which holds out every 100th document
    /// of the training corpus
    pub valid: Vec<String>,
    /// Several texts to train on, in place of the two keys above. Default: none
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<SourceConfig>,
    /// How evenly sources without weights are mixed: each counts by its number of examples to the
    /// power of 1 / temperature, as in T5. Default: 1.0, in proportion to their sizes
    pub temperature: f64,
    /// Examples that count of a source without a weight, the K of T5's paper. Default: all
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_limit: Option<u64>,
    /// What to do about lines that can't be read: `stop` or `skip` them. Default: stop
    pub on_error: OnError,
    /// A Hugging Face `tokenizer.json`. Default: none, which trains one from the corpus
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<PathBuf>,
    /// The vocabulary of a tokenizer trained from the corpus. Default: 4096
    pub vocab_size: usize,
    /// The task: `span_corruption`, `prefix_lm`, `fixed_prefix_lm` or `ul2`. Default: span_corruption
    pub objective: ObjectiveKind,
    /// Length of the inputs, in tokens. Default: 512, which makes targets of 114 in span corruption
    pub input_length: usize,
    /// Share of the tokens that span corruption masks. Default: 0.15
    pub noise_density: f64,
    /// Mean length of a span that span corruption masks, in tokens. Default: 3.0
    pub mean_span_length: f64,
    /// What the inputs of UL2's R-, S- and X-denoisers start with. Default: `[R]`, `[S]`, `[X]`
    pub modes: [String; 3],
    /// Threads that prepare batches. Default: 1
    pub workers: usize,
}

/// A text of a mixture.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceConfig {
    /// What it is called, in metrics and reports.
    pub name: String,
    /// Files, folders and globs to train on.
    pub train: Vec<String>,
    /// Files, folders and globs to validate on. Default: none, which holds out every 100th document
    /// of the training text
    #[serde(default)]
    pub valid: Vec<String>,
    /// Its share among the weights of all sources, which then all have one. Default: by its size
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<f64>,
}

impl RunConfig {
    /// Makes paths absolute, so that they hold from any folder.
    ///
    /// # Errors
    ///
    /// If the current folder is not known.
    pub fn make_absolute(&mut self) -> std::io::Result<()> {
        self.make_absolute_from(&std::env::current_dir()?)
    }

    /// Makes paths absolute that are relative to `folder`, itself absolute.
    ///
    /// # Errors
    ///
    /// If a path is empty.
    pub fn make_absolute_from(&mut self, folder: &Path) -> std::io::Result<()> {
        if let Some(directory) = &mut self.model.init {
            *directory = std::path::absolute(folder.join(&*directory))?;
        }
        self.data.make_absolute_from(folder)
    }
}

impl DataConfig {
    /// Makes paths absolute that are relative to `folder`, itself absolute.
    fn make_absolute_from(&mut self, folder: &Path) -> std::io::Result<()> {
        let named = self.sources.iter_mut().flat_map(|named| [&mut named.train, &mut named.valid]);
        for sources in [&mut self.train, &mut self.valid].into_iter().chain(named) {
            for source in sources {
                *source = absolute(folder, source)?;
            }
        }
        if let Some(tokenizer) = &mut self.tokenizer {
            *tokenizer = std::path::absolute(folder.join(&*tokenizer))?;
        }
        Ok(())
    }
}

impl ModelConfig {
    /// The first key that is set beside `init`, although the directory decides it.
    fn set_beside_init(&self) -> Option<String> {
        let from_directory =
            Self { init: self.init.clone(), dropout_rate: self.dropout_rate, ..Self::default() };
        let keys = RunConfig { model: from_directory, ..RunConfig::default() };
        let found = RunConfig { model: self.clone(), ..RunConfig::default() };
        keys.differences(&found).into_iter().next().map(|difference| difference.key)
    }
}

/// A source with the folder it is named from. Where it is a glob, that folder's name isn't.
fn absolute(folder: &Path, source: &str) -> std::io::Result<String> {
    let path = std::path::absolute(folder.join(source))?;
    if path.exists() || Path::new(source).is_absolute() {
        return Ok(path.to_string_lossy().into_owned());
    }
    Ok(format!("{}/{source}", glob::Pattern::escape(&folder.to_string_lossy())))
}

/// What is made of text for a model to learn from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObjectiveKind {
    /// T5's pre-training: hidden spans are to be filled in.
    #[default]
    SpanCorruption,
    /// A prefix is to be continued, as in T5's LM adaptation.
    PrefixLm,
    /// The first half of a segment is to be continued, so that nothing is padded.
    FixedPrefixLm,
    /// UL2's mixture of denoisers.
    Ul2,
}

/// How long a run is, and in what portions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainingConfig {
    /// Optimizer steps. Default: 10000
    pub steps: u64,
    /// Examples that go through the model at once. Default: 16
    pub batch_size: usize,
    /// Batches whose gradients are added up for one step. Replicas share them. Default: 1
    pub gradient_accumulation: usize,
    /// Whether activations that are cheap to compute again are not kept for the backward pass.
    /// Default: false
    pub gradient_checkpointing: bool,
    /// Whether a layer keeps its input alone for the backward pass, which computes the rest of it again: less memory
    /// for one more forward pass. Default: false
    pub recompute_layers: bool,
    /// The type that passes compute in: f32, or bf16 from weights that stay f32. Default: f32
    pub precision: Precision,
    /// Steps from one line of metrics to the next. Default: 50
    pub log_every: u64,
    /// Steps from one validation to the next. Default: 500
    pub eval_every: u64,
    /// Validation examples that are scored, of each source: a sample of its whole validation text, the same in every
    /// pass. Default: 512
    pub eval_examples: u64,
    /// Validation examples that are scored after the last step, those above among them. Default: as
    /// many as in every other pass
    #[serde(skip_serializing_if = "Option::is_none")]
    pub final_eval_examples: Option<u64>,
    /// Steps from one checkpoint to the next. Default: 500
    pub checkpoint_every: u64,
    /// Minutes after which a checkpoint is written if none was; 0 for never. Default: 30
    pub checkpoint_minutes: f64,
    /// Checkpoints that are kept beside the one with the best validation loss. Default: 2
    pub keep_last: usize,
    /// What to do when the loss or the gradients are no longer numbers: `stop`, or `rollback` to the last
    /// good checkpoint and pass over the batches in between. Default: stop
    pub on_divergence: OnDivergence,
    /// How often a run may go back before it stops. Default: 3
    pub max_rollbacks: u64,
    /// Seconds that a replica waits for the others before it ends all of them, with an error; and that any run waits for
    /// another process that prepares the same text and gets no further. Default: 1800.0
    pub replica_timeout: f64,
    /// Texts with <extra_id_0>, <extra_id_1>, … for blanks that the model fills at each validation, beside a few
    /// validation examples. Default: none
    pub prompts: Vec<String>,
}

/// What to do when training has diverged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnDivergence {
    /// End with an error that says how to go on.
    #[default]
    Stop,
    /// Go back to the last good checkpoint, and pass over the batches in between.
    Rollback,
}

/// How a run trains, whatever it trains on: the part of its configuration that the
/// [`Trainer`](crate::trainer::Trainer) knows.
#[derive(Clone, Debug)]
pub struct TrainerConfig {
    /// What all randomness of the run comes from.
    pub seed: u64,
    /// The optimizer.
    pub optimizer: OptimizerConfig,
    /// The learning rate over the run.
    pub schedule: ScheduleConfig,
    /// What is added to the loss.
    pub loss: LossConfig,
    /// How far AltUp's coefficients may go.
    pub coefficients: CoefficientsConfig,
    /// How long and in what portions.
    pub training: TrainingConfig,
    /// Threads that prepare batches.
    pub workers: usize,
}

/// Why a configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum RunConfigError {
    /// The file can't be read.
    #[error("cannot use {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("cannot use {}", path.display())]
    Toml {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: toml::de::Error,
    },
    /// A `--set` isn't KEY=VALUE.
    #[error("--set {0:?}: must be KEY=VALUE, as in --set training.steps=1000")]
    Assignment(String),
    /// A key doesn't exist or has a value of another type.
    #[error("the configuration doesn't fit: {}", one_line(.0))]
    Key(toml::de::Error),
    /// A value is out of range.
    #[error("{key} {problem}")]
    Value {
        /// The key, dotted.
        key: String,
        /// What is wrong with its value.
        problem: String,
    },
    /// The model that a run is to start from can't be read.
    #[error("cannot start from the model of model.init")]
    Init(#[from] DirectoryError),
}

/// What a key of no file has wrong with it: TOML's message goes on in a second line.
fn one_line(error: &toml::de::Error) -> String {
    error.to_string().lines().map(str::trim).collect::<Vec<_>>().join(" ")
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            init: None,
            size: "tiny".into(),
            vocab_size: None,
            d_model: None,
            d_kv: None,
            d_ff: None,
            num_heads: None,
            num_layers: None,
            num_decoder_layers: None,
            feed_forward_proj: Activation::GatedGelu,
            tie_word_embeddings: false,
            dropout_rate: 0.0,
            altup: None,
            moe: None,
        }
    }
}

impl Default for DataConfig {
    fn default() -> Self {
        let corruption = SpanCorruption::default();
        Self {
            train: Vec::new(),
            valid: Vec::new(),
            sources: Vec::new(),
            temperature: 1.0,
            size_limit: None,
            on_error: OnError::Stop,
            tokenizer: None,
            vocab_size: 4096,
            objective: ObjectiveKind::SpanCorruption,
            input_length: corruption.input_length,
            noise_density: corruption.noise_density,
            mean_span_length: corruption.mean_span_length,
            modes: MODES.map(str::to_owned),
            workers: 1,
        }
    }
}

impl Default for TrainingConfig {
    fn default() -> Self {
        Self {
            steps: 10_000,
            batch_size: 16,
            gradient_accumulation: 1,
            gradient_checkpointing: false,
            recompute_layers: false,
            precision: Precision::F32,
            log_every: 50,
            eval_every: 500,
            eval_examples: 512,
            final_eval_examples: None,
            checkpoint_every: 500,
            checkpoint_minutes: 30.0,
            keep_last: 2,
            on_divergence: OnDivergence::Stop,
            max_rollbacks: 3,
            replica_timeout: DEFAULT_TIMEOUT.as_secs_f64(),
            prompts: Vec::new(),
        }
    }
}

/// The configuration of one kind of run.
pub trait RunConfiguration: Clone + Default + PartialEq + Serialize + DeserializeOwned {
    /// Reads a TOML file and puts its keys over `self`.
    ///
    /// # Errors
    ///
    /// If the file can't be read or a key doesn't fit.
    fn with_file(self, path: &Path) -> Result<Self, RunConfigError>;

    /// The configuration as TOML.
    fn to_toml(&self) -> String;
}

impl RunConfiguration for RunConfig {
    fn with_file(self, path: &Path) -> Result<Self, RunConfigError> {
        Self::with_file(self, path)
    }

    fn to_toml(&self) -> String {
        Self::to_toml(self)
    }
}

impl TrainingConfig {
    /// Validation examples that are scored after a step, of each source.
    pub fn eval_examples_at(&self, step: u64) -> u64 {
        let of_last = self.final_eval_examples.filter(|_| step == self.steps);
        of_last.unwrap_or(self.eval_examples)
    }
}

impl TrainerConfig {
    /// A line that says how the model is trained, for reports.
    pub fn optimization(&self) -> String {
        let optimizer = match self.optimizer.kind {
            OptimizerKind::Adafactor => "Adafactor",
            OptimizerKind::AdamW => "AdamW",
        };
        let batch = self.training.batch_size * self.training.gradient_accumulation;
        format!(
            "{optimizer}, learning rate {} under {} with {} steps of warm-up, {batch} examples a step",
            self.optimizer.learning_rate,
            match self.schedule.kind {
                ScheduleKind::InverseSqrt => "1/√step",
                ScheduleKind::Cosine => "a cosine",
                ScheduleKind::Linear => "a line",
                ScheduleKind::Constant => "a constant",
            },
            self.schedule.warmup_steps,
        )
    }

    /// Checks the values of the keys that every run has.
    ///
    /// # Errors
    ///
    /// Names the key.
    pub fn validate(&self) -> Result<(), RunConfigError> {
        let (optimizer, schedule) = (self.optimizer.clone(), self.schedule.clone());
        let (loss, training) = (self.loss.clone(), self.training.clone());
        RunConfig { optimizer, schedule, loss, training, ..RunConfig::default() }.validate()
    }
}

impl RunConfig {
    /// The run of `altup train` without any flag: a tiny AltUp T5 on Cargo's unpacked crate sources,
    /// for about a minute of two CPU cores. `configs/tiny-altup.toml` is the same.
    ///
    /// An example is 24 tokens with one blank of three, at its end. So short a run has no time to learn which of
    /// many blanks is which, but does learn what follows on a beginning.
    pub fn tiny_altup() -> Self {
        Self {
            seed: 0,
            model: ModelConfig { altup: Variant::Altup.altup(2), ..ModelConfig::default() },
            data: DataConfig {
                vocab_size: 1024,
                input_length: 24,
                noise_density: 0.13,
                ..DataConfig::default()
            },
            loss: LossConfig::default(),
            optimizer: OptimizerConfig { learning_rate: 0.04, ..OptimizerConfig::default() },
            coefficients: CoefficientsConfig::default(),
            schedule: ScheduleConfig {
                kind: ScheduleKind::Cosine,
                warmup_steps: 50,
                final_share: 0.0,
            },
            training: TrainingConfig {
                steps: 1200,
                batch_size: 32,
                log_every: 20,
                eval_every: 200,
                eval_examples: 512,
                checkpoint_every: 400,
                prompts: [
                    "#[derive(Debug, Clone<extra_id_0>",
                    "#[must_use] pub <extra_id_0>",
                    "fn clone(&self)<extra_id_0>",
                    "pub struct Point<extra_id_0>",
                    "let mut buffer<extra_id_0>",
                ]
                .map(str::to_owned)
                .to_vec(),
                ..TrainingConfig::default()
            },
        }
    }

    /// Reads a TOML file and puts its keys over `self`.
    ///
    /// # Errors
    ///
    /// If the file can't be read or isn't TOML; a key that doesn't exist, or has a value of another
    /// type, is named.
    pub fn with_file(self, path: &Path) -> Result<Self, RunConfigError> {
        with_file(&self, path)
    }

    /// Puts `KEY=VALUE` assignments over `self`, keys dotted, values as in TOML; what isn't a TOML
    /// value is taken as a string.
    ///
    /// # Errors
    ///
    /// Names the assignment or the key.
    pub fn with_assignments(self, assignments: &[String]) -> Result<Self, RunConfigError> {
        self.check_paths()?;
        with_assignments(&self, assignments)
    }

    /// Puts the keys of a table over `self`, those that are tables key by key.
    ///
    /// # Errors
    ///
    /// Names a key that doesn't exist, or has a value of another type.
    pub fn with_keys(self, keys: Table) -> Result<Self, RunConfigError> {
        with_keys(&self, keys)
    }

    /// Checks that TOML can hold the paths.
    ///
    /// # Errors
    ///
    /// Names the first key with a path that isn't UTF-8.
    pub fn check_paths(&self) -> Result<(), RunConfigError> {
        check_paths(self.inputs())
    }

    /// The model directory and the tokenizer that a run begins with, where they are named, each with its key.
    pub fn inputs(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        let paths = [("model.init", &self.model.init), ("data.tokenizer", &self.data.tokenizer)];
        paths.into_iter().filter_map(|(key, path)| Some((key, path.as_deref()?)))
    }

    /// Takes the tokenizer of the directory in `model.init`, unless one is named.
    pub fn take_tokenizer_of_init(&mut self) {
        if let (Some(directory), None) = (&self.model.init, &self.data.tokenizer) {
            self.data.tokenizer = Some(ModelDirectory::new(directory).tokenizer());
        }
    }

    /// The configuration as TOML. Where `model.init` decides the model, the keys beside it, which then
    /// have their defaults, are left out.
    pub fn to_toml(&self) -> String {
        let mut table = to_table(self);
        if self.model.init.is_some()
            && let Some(Value::Table(model)) = table.get_mut("model")
        {
            model.retain(|key, _| ["init", "dropout_rate"].contains(&key));
        }
        table.to_string()
    }

    pub(crate) fn to_table(&self) -> Table {
        to_table(self)
    }

    /// Checks every value that doesn't depend on the data.
    ///
    /// # Errors
    ///
    /// Names the first key with a value out of range.
    pub fn validate(&self) -> Result<(), RunConfigError> {
        let error = |key: &str, problem: String| {
            Err(RunConfigError::Value { key: key.to_owned(), problem })
        };
        for (key, value) in [
            ("training.steps", self.training.steps),
            ("training.batch_size", self.training.batch_size as u64),
            ("training.gradient_accumulation", self.training.gradient_accumulation as u64),
            ("training.log_every", self.training.log_every),
            ("training.eval_every", self.training.eval_every),
            ("training.eval_examples", self.training.eval_examples),
            ("training.final_eval_examples", self.training.final_eval_examples.unwrap_or(1)),
            ("training.checkpoint_every", self.training.checkpoint_every),
            ("training.keep_last", self.training.keep_last as u64),
            ("data.workers", self.data.workers as u64),
            ("schedule.warmup_steps", self.schedule.warmup_steps),
        ] {
            let may_be_zero =
                key == "schedule.warmup_steps" && self.schedule.kind != ScheduleKind::InverseSqrt;
            if value == 0 && !may_be_zero {
                return error(key, "must be at least 1, not 0".into());
            }
        }
        self.validate_size()?;
        let minutes = self.training.checkpoint_minutes;
        if !(minutes.is_finite() && minutes >= 0.0) {
            return error(
                "training.checkpoint_minutes",
                format!("must be at least 0, not {minutes}"),
            );
        }
        let timeout = self.training.replica_timeout;
        if !(timeout > 0.0 && Duration::try_from_secs_f64(timeout).is_ok()) {
            return error(
                "training.replica_timeout",
                format!("must be a number of seconds above 0, not {timeout}"),
            );
        }
        if !self.training.precision.trains() {
            return error(
                "training.precision",
                "must be f32 or bf16: bf16-weights is for inference".into(),
            );
        }
        self.validate_sources()?;
        if self.data.input_length < 2 {
            return error(
                "data.input_length",
                format!("must be at least 2, not {}", self.data.input_length),
            );
        }
        let most = SpanCorruption::MAX_NOISE_DENSITY;
        if !(self.data.noise_density > 0.0 && self.data.noise_density <= most) {
            return error(
                "data.noise_density",
                format!("must be above 0 and up to {most}, not {}", self.data.noise_density),
            );
        }
        if !(self.data.mean_span_length >= 1.0 && self.data.mean_span_length.is_finite()) {
            return error(
                "data.mean_span_length",
                format!("must be at least 1, not {}", self.data.mean_span_length),
            );
        }
        for (key, value, least) in [
            ("optimizer.learning_rate", self.optimizer.learning_rate, f64::MIN_POSITIVE),
            ("optimizer.weight_decay", self.optimizer.weight_decay, 0.0),
            ("optimizer.clip_norm", self.optimizer.clip_norm, 0.0),
        ] {
            if !(value.is_finite() && value >= least) {
                let range = if least > 0.0 { "above 0" } else { "at least 0" };
                return error(key, format!("must be {range}, not {value}"));
            }
        }
        if let Some((key, problem)) = self.coefficients.problem() {
            return error(&format!("coefficients.{key}"), problem);
        }
        self.validate_groups()?;
        if !(0.0..1.0).contains(&self.loss.label_smoothing) {
            let problem = format!("must be from 0 to below 1, not {}", self.loss.label_smoothing);
            return error("loss.label_smoothing", problem);
        }
        if !(self.loss.z_loss.is_finite() && self.loss.z_loss >= 0.0) {
            return error("loss.z_loss", format!("must be at least 0, not {}", self.loss.z_loss));
        }
        if !(0.0..=1.0).contains(&self.schedule.final_share) {
            return error(
                "schedule.final_share",
                format!("must be between 0 and 1, not {}", self.schedule.final_share),
            );
        }
        match &self.model.init {
            // The directory is read when a run starts, and not when it is resumed.
            Some(_) => match self.model.set_beside_init() {
                Some(key) => error(
                    &key,
                    "can't be set beside model.init, whose config.json decides the model".into(),
                ),
                None => Ok(()),
            },
            None => self.any_model_config().map(|_| ()),
        }
    }

    /// The model as it is with some tokenizer: its vocabulary need not be that of the run.
    ///
    /// # Errors
    ///
    /// As [`model_config`](Self::model_config).
    pub fn any_model_config(&self) -> Result<T5Config, RunConfigError> {
        self.model_config(self.model.vocab_size.unwrap_or(self.data.vocab_size).max(64))
    }

    /// Checks that the examples of a step and of the run can be counted.
    fn validate_size(&self) -> Result<(), RunConfigError> {
        let error = |key: &str, problem: String| {
            Err(RunConfigError::Value { key: key.to_owned(), problem })
        };
        let TrainingConfig { steps, batch_size, gradient_accumulation, .. } = self.training;
        for (key, value) in [
            ("training.batch_size", batch_size),
            ("training.gradient_accumulation", gradient_accumulation),
        ] {
            const MOST: usize = 1 << 20;
            if value > MOST {
                return error(key, format!("must be at most {MOST}, not {value}"));
            }
        }
        // Below 2^40.
        let of_step = (batch_size * gradient_accumulation) as u64;
        // What numbers in metrics and charts count exactly.
        const MOST: u64 = 1 << f64::MANTISSA_DIGITS;
        if steps.checked_mul(of_step).is_none_or(|examples| examples > MOST) {
            let most = MOST / of_step;
            return error(
                "training.steps",
                format!("must be at most {most} with {of_step} examples a step, not {steps}"),
            );
        }
        Ok(())
    }

    fn validate_groups(&self) -> Result<(), RunConfigError> {
        for (number, group) in self.optimizer.groups.iter().enumerate() {
            let error = |name: &str, problem: String| {
                Err(RunConfigError::Value {
                    key: format!("optimizer.groups[{number}].{name}"),
                    problem,
                })
            };
            for (name, value) in [
                ("learning_rate_factor", group.learning_rate_factor),
                ("weight_decay", group.weight_decay),
            ] {
                if let Some(value) = value.filter(|value| !(value.is_finite() && *value >= 0.0)) {
                    return error(name, format!("must be at least 0, not {value}"));
                }
            }
        }
        Ok(())
    }

    fn validate_sources(&self) -> Result<(), RunConfigError> {
        let error = |key: String, problem: &str| {
            Err(RunConfigError::Value { key, problem: problem.to_owned() })
        };
        let data = &self.data;
        if !(data.temperature > 0.0 && data.temperature.is_finite()) {
            return error("data.temperature".into(), "must be above 0");
        }
        if data.size_limit == Some(0) {
            return error("data.size_limit".into(), "must be at least 1, not 0");
        }
        for (key, other) in [("data.train", &data.train), ("data.valid", &data.valid)] {
            if !data.sources.is_empty() && !other.is_empty() {
                return error(key.into(), "can't be given beside data.sources");
            }
        }
        let weighted = data.sources.iter().filter(|source| source.weight.is_some()).count();
        for (number, source) in data.sources.iter().enumerate() {
            let key = |name: &str| format!("data.sources[{number}].{name}");
            if source.name.is_empty() {
                return error(key("name"), "must not be empty");
            }
            if data.sources[..number].iter().any(|other| other.name == source.name) {
                return error(key("name"), &format!("{:?} is another source's", source.name));
            }
            if source.train.is_empty() {
                return error(key("train"), "must name a file, folder or glob");
            }
            match source.weight {
                Some(weight) if !(weight > 0.0 && weight.is_finite()) => {
                    return error(key("weight"), &format!("must be above 0, not {weight}"));
                }
                None if weighted > 0 => {
                    return error(key("weight"), "is missing: all sources have one, or none has");
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The model's configuration for a tokenizer of `tokenizer_vocabulary` ids. Where `model.init` names
    /// a directory, it is that in its `config.json`.
    ///
    /// # Errors
    ///
    /// Names the key that can't be built, or the directory's file.
    pub fn model_config(&self, tokenizer_vocabulary: usize) -> Result<T5Config, RunConfigError> {
        let error = |key: &str, problem: String| RunConfigError::Value {
            key: format!("model.{key}"),
            problem,
        };
        let model = &self.model;
        if let Some(directory) = &model.init {
            let config = ModelDirectory::new(directory).config()?;
            if config.vocab_size < tokenizer_vocabulary {
                return Err(error(
                    "init",
                    format!(
                        "({}) has a vocabulary of {}, and the tokenizer has {tokenizer_vocabulary} ids",
                        directory.display(),
                        config.vocab_size
                    ),
                ));
            }
            return Ok(T5Config { dropout_rate: model.dropout_rate, ..config });
        }
        let base = size(&model.size).ok_or_else(|| {
            let names: Vec<_> = size_names().collect();
            error(
                "size",
                format!(
                    "must be one of {} (each also with -wide2 or -wide4), not {:?}",
                    names.join(", "),
                    model.size
                ),
            )
        })?;
        let vocab_size =
            model.vocab_size.unwrap_or_else(|| tokenizer_vocabulary.next_multiple_of(64));
        if vocab_size < tokenizer_vocabulary {
            return Err(error(
                "vocab_size",
                format!(
                    "must hold the tokenizer's {tokenizer_vocabulary} ids, not only {vocab_size}"
                ),
            ));
        }
        let d_model = model.d_model.unwrap_or(base.d_model);
        let num_heads = model.num_heads.unwrap_or(base.num_heads);
        let d_kv = match model.d_kv {
            Some(d_kv) => d_kv,
            None if model.d_model.is_none() && model.num_heads.is_none() => base.d_kv,
            None if num_heads > 0 && d_model.is_multiple_of(num_heads) => d_model / num_heads,
            None => {
                return Err(error(
                    "d_model",
                    format!(
                        "({d_model}) is not divisible by num_heads ({num_heads}); change one of \
                         them or set model.d_kv"
                    ),
                ));
            }
        };
        let num_layers = model.num_layers.unwrap_or(base.num_layers);
        let config = T5Config {
            vocab_size,
            d_model,
            d_kv,
            num_heads,
            d_ff: model.d_ff.unwrap_or(base.d_ff),
            num_layers,
            num_decoder_layers: Some(model.num_decoder_layers.unwrap_or(num_layers)),
            feed_forward_proj: model.feed_forward_proj,
            tie_word_embeddings: model.tie_word_embeddings,
            dropout_rate: model.dropout_rate,
            altup: model.altup.clone(),
            moe: model.moe.clone(),
            ..base
        };
        config.validate().map_err(|problem| error(&problem.field, problem.problem.clone()))?;
        Ok(config)
    }

    /// How examples are made of text.
    ///
    /// # Errors
    ///
    /// If the tokenizer doesn't have what they need.
    pub fn objective(&self, tokenizer: &TextTokenizer) -> Result<Arc<dyn Objective>, DataError> {
        let DataConfig { input_length, noise_density, mean_span_length, .. } = self.data;
        Ok(match self.data.objective {
            ObjectiveKind::SpanCorruption => {
                Arc::new(SpanCorruption { noise_density, mean_span_length, input_length })
            }
            ObjectiveKind::PrefixLm => Arc::new(PrefixLm { input_length, ..PrefixLm::default() }),
            ObjectiveKind::FixedPrefixLm => Arc::new(FixedPrefixLm { input_length }),
            ObjectiveKind::Ul2 => {
                let modes = self.data.modes.each_ref().map(String::as_str);
                Arc::new(MixtureOfDenoisers::new(input_length, modes, tokenizer)?)
            }
        })
    }

    /// How the run trains.
    pub fn trainer(&self) -> TrainerConfig {
        TrainerConfig {
            seed: self.seed,
            optimizer: self.optimizer.clone(),
            schedule: self.schedule.clone(),
            loss: self.loss.clone(),
            coefficients: self.coefficients.clone(),
            training: self.training.clone(),
            workers: self.data.workers,
        }
    }

    /// The weights of the sources, which have as many examples as `sizes` says.
    pub fn source_weights(&self, sizes: &[u64]) -> Vec<f64> {
        let weights = self.data.sources.iter().map(|source| source.weight);
        weights
            .collect::<Option<Vec<f64>>>()
            .filter(|weights| !weights.is_empty())
            .unwrap_or_else(|| weights_by_size(sizes, self.data.size_limit, self.data.temperature))
    }

    /// A short name of what is trained, such as `tiny-altup-k2` or `altup-s-dense`. See [`label`]. Of a run that starts
    /// from a directory, the [name of its model](name_of_model).
    pub fn name(&self) -> String {
        if let Some(directory) = &self.model.init {
            return name_of_model(directory);
        }
        let ModelConfig { size, altup, moe, .. } = &self.model;
        format!("{size}-{}", label(altup.as_ref(), moe.as_ref()))
    }
}

/// What a model is called that lies in a directory: by the directory's name, or by that of the run or of the model on the
/// hub where all of these have directories of the same name.
pub(crate) fn name_of_model(directory: &Path) -> String {
    // A path may end in dots, and is looked up then.
    let found = directory.file_name().is_none().then(|| directory.canonicalize().ok()).flatten();
    let directory = found.as_deref().unwrap_or(directory);
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let of_run = |directory: &Path| match name(directory)?.as_str() {
        "model" => name(directory.parent()?),
        _ => None,
    };
    let found = name_in_cache(directory).or_else(|| of_run(directory)).or_else(|| name(directory));
    found.unwrap_or_else(|| "model".to_owned())
}

/// The name of a model in a hub's cache: `flan-t5-small` of `models--google--flan-t5-small/snapshots/COMMIT`.
fn name_in_cache(path: &Path) -> Option<String> {
    let snapshots = path.parent()?;
    if snapshots.file_name()? != "snapshots" {
        return None;
    }
    let folder = snapshots.parent()?.file_name()?.to_str()?;
    let name = folder.strip_prefix("models--")?;
    Some(name.rsplit_once("--").map_or(name, |(_, name)| name).to_owned())
}

/// Reads a TOML file and puts its keys over `base`.
pub(crate) fn with_file<C: Serialize + DeserializeOwned>(
    base: &C,
    path: &Path,
) -> Result<C, RunConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| RunConfigError::Read { path: path.to_owned(), source })?;
    let error = |source| RunConfigError::Toml { path: path.to_owned(), source };
    let keys: Table = text.parse().map_err(error)?;
    // Read alone first: an error then points into the file.
    toml::from_str::<C>(&text).map_err(error)?;
    with_keys(base, keys)
}

/// Checks that TOML can hold the paths of some keys.
pub(crate) fn check_paths<'k, 'p>(
    paths: impl IntoIterator<Item = (&'k str, &'p Path)>,
) -> Result<(), RunConfigError> {
    let mut paths = paths.into_iter();
    match paths.find(|(_, path)| path.to_str().is_none()) {
        Some((key, path)) => Err(RunConfigError::Value {
            key: key.to_owned(),
            problem: format!("must be a path in UTF-8, as a configuration is, not {path:?}"),
        }),
        None => Ok(()),
    }
}

/// Puts `KEY=VALUE` assignments over `base`.
pub(crate) fn with_assignments<C: Serialize + DeserializeOwned>(
    base: &C,
    assignments: &[String],
) -> Result<C, RunConfigError> {
    let mut keys = Table::new();
    for assignment in assignments {
        let Some((key, text)) = assignment.split_once('=') else {
            return Err(RunConfigError::Assignment(assignment.clone()));
        };
        let value = match format!("value = {text}").parse::<Table>() {
            Ok(mut parsed) => parsed.remove("value").unwrap_or(Value::String(text.into())),
            Err(_) => Value::String(text.into()),
        };
        let nested = key
            .trim()
            .rsplit('.')
            .fold(value, |value, part| Value::Table(Table::from_iter([(part.to_owned(), value)])));
        if let Value::Table(nested) = nested {
            merge(&mut keys, nested);
        }
    }
    with_keys(base, keys)
}

pub(crate) fn with_keys<C: Serialize + DeserializeOwned>(
    base: &C,
    keys: Table,
) -> Result<C, RunConfigError> {
    let mut table = to_table(base);
    merge(&mut table, keys);
    Value::Table(table).try_into().map_err(RunConfigError::Key)
}

/// A configuration as a table.
pub(crate) fn to_table(config: &impl Serialize) -> Table {
    // Numbers, strings, lists and tables of them: nothing that TOML can't hold, once the paths were checked.
    Table::try_from(config).unwrap_or_else(|error| unreachable!("not TOML: {error}"))
}

/// Puts the keys of `over` over those of `table`, table by table.
fn merge(table: &mut Table, over: Table) {
    for (key, value) in over {
        match (table.get_mut(&key), value) {
            (Some(Value::Table(table)), Value::Table(over)) => merge(table, over),
            (_, value) => {
                table.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assign(assignments: &[&str]) -> Result<RunConfig, RunConfigError> {
        let assignments: Vec<String> = assignments.iter().map(|&text| text.into()).collect();
        RunConfig::tiny_altup().with_assignments(&assignments)
    }

    #[test]
    fn a_configuration_survives_its_toml() {
        let config = RunConfig::tiny_altup();
        assert_eq!(toml::from_str::<RunConfig>(&config.to_toml()).unwrap(), config);
    }

    #[test]
    fn assignments_take_toml_values_and_plain_words() {
        let config = assign(&[
            "training.steps=7",
            "model.size=altup-s",
            "model.altup.num_blocks=4",
            "data.train=[\"a\", \"b\"]",
        ])
        .unwrap();
        assert_eq!(config.training.steps, 7);
        assert_eq!(config.name(), "altup-s-altup-k4");
        assert_eq!(config.data.train, ["a", "b"]);
    }

    #[test]
    fn unknown_keys_and_wrong_values_are_named() {
        let message = |assignment: &str| {
            let config = assign(&[assignment]);
            config.and_then(|config| config.validate()).unwrap_err().to_string()
        };
        assert!(message("training.step=7").contains("step"), "{}", message("training.step=7"));
        assert!(message("training.steps=many").contains("steps"));
        assert!(message("steps").contains("KEY=VALUE"));
        assert_eq!(
            message("model.altup.num_blocks=0"),
            "model.altup.num_blocks must be between 1 and 1024, not 0"
        );
        assert!(message("model.d_model=102").starts_with("model.d_model (102) is not divisible"));
        assert!(message("model.size=huge").contains("altup-s"));
        assert_eq!(message("training.steps=0"), "training.steps must be at least 1, not 0");
        assert!(message("data.noise_density=1.0").starts_with("data.noise_density"));
    }

    #[test]
    fn sources_of_a_mixture_are_read_and_checked() {
        let read = |sources: &str| -> Result<RunConfig, RunConfigError> {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("config.toml");
            std::fs::write(&path, sources).unwrap();
            let config = RunConfig::default().with_file(&path)?;
            config.validate()?;
            Ok(config)
        };
        let books = "[[data.sources]]\nname = \"books\"\ntrain = [\"b\"]\n";
        let news = "[[data.sources]]\nname = \"news\"\ntrain = [\"n\"]\nvalid = [\"v\"]\n";
        let both = format!("{books}{news}");
        let config = read(&both).unwrap();
        assert_eq!(config.data.sources[1].valid, ["v"]);
        assert_eq!(toml::from_str::<RunConfig>(&config.to_toml()).unwrap(), config);
        assert_eq!(config.source_weights(&[100, 400]), [0.25, 1.0]);
        let tempered = read(&format!("[data]\ntemperature = 2.0\nsize_limit = 225\n{both}"));
        let weights = tempered.unwrap().source_weights(&[100, 400]);
        assert!((weights[0] / weights[1] - 10.0 / 15.0).abs() < 1e-12, "{weights:?}");
        let weighted = read(&format!("{books}weight = 1.0\n{news}weight = 3.0\n"));
        assert_eq!(weighted.unwrap().source_weights(&[100, 400]), [1.0, 3.0]);

        for (sources, words) in [
            (format!("{books}{books}"), "data.sources[1].name \"books\" is another source's"),
            (format!("{books}weight = 1.0\n{news}"), "data.sources[1].weight is missing"),
            (format!("{books}weight = 0.0\n"), "data.sources[0].weight must be above 0, not 0"),
            (format!("[data]\ntrain = [\"x\"]\n{books}"), "data.train can't be given beside"),
            (format!("[data]\nvalid = [\"x\"]\n{books}"), "data.valid can't be given beside"),
            (format!("[data]\ntemperature = 0.0\n{books}"), "data.temperature must be above 0"),
            (format!("{books}wieght = 1.0\n"), "wieght"),
        ] {
            let error = read(&sources).unwrap_err();
            let message = format!("{:#}", anyhow::Error::from(error));
            assert!(message.contains(words), "{message}");
        }
    }

    #[test]
    fn the_vocabulary_is_rounded_up_and_never_too_small() {
        let config = RunConfig::default();
        assert_eq!(config.model_config(32100).unwrap().vocab_size, 32128);
        let small = config.with_assignments(&["model.vocab_size=1000".into()]).unwrap();
        let message = small.model_config(32100).unwrap_err().to_string();
        assert!(message.contains("tokenizer's 32100 ids"), "{message}");
    }

    #[test]
    fn a_directory_decides_the_model_alone() {
        let mut config = RunConfig::default();
        config.model.init = Some("some/t5".into());
        config.model.dropout_rate = 0.1;
        config.validate().unwrap();
        assert_eq!(config.name(), "t5");
        for assignment in ["model.size=altup-s", "model.altup.num_blocks=2", "model.d_ff=8"] {
            let config = config.clone().with_assignments(&[assignment.into()]).unwrap();
            let message = config.validate().unwrap_err().to_string();
            let (key, _) = assignment.split_once('=').unwrap();
            assert!(message.starts_with(key.trim_end_matches(".num_blocks")), "{message}");
            assert!(message.contains("model.init"), "{message}");
        }
    }
}
