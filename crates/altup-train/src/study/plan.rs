//! What a study runs: read from one TOML file, and checked whole before anything runs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use altup_data::objective::{FixedPrefixLm, Lengths, PrefixLm};
use altup_data::tasks::TaskError;
use altup_data::{Objective, SpanCorruption};
use altup_models::forward_cost;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::fine_tuning::{self, FineTuningEntry, PlannedFineTuning};
use super::folder::joined;
use crate::config::{ObjectiveKind, RunConfig, RunConfigError};
use crate::fine_tuning::FineTuningConfig;

/// A study, as its file says it. `R` is what holds keys of a run's configuration, `F` those of a fine-tuning run's.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct StudyFile<R, F> {
    name: String,
    title: String,
    #[serde(default)]
    question: String,
    #[serde(default)]
    expected: String,
    baseline: String,
    #[serde(default)]
    scaling_line: Option<Vec<String>>,
    seeds: Vec<u64>,
    budget: Budget,
    #[serde(default = "default_metrics")]
    metrics: Vec<Metric>,
    #[serde(default)]
    contrasts: Vec<Contrast>,
    #[serde(default = "none")]
    run: Option<R>,
    #[serde(default = "Vec::new")]
    sizes: Vec<SizeEntry<R>>,
    variants: Vec<VariantEntry<R>>,
    #[serde(default)]
    measure: MeasureConfig,
    #[serde(default = "none")]
    fine_tuning: Option<FineTuningEntry<F>>,
    #[serde(default = "none")]
    smoke: Option<Smoke<R, F>>,
}

/// A default that asks nothing of `T`.
fn none<T>() -> Option<T> {
    None
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SizeEntry<R> {
    name: String,
    #[serde(default)]
    seeds: Option<Vec<u64>>,
    #[serde(default = "none")]
    run: Option<R>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct VariantEntry<R> {
    name: String,
    #[serde(default)]
    label: Option<String>,
    #[serde(default)]
    sizes: Option<Vec<String>>,
    #[serde(default)]
    seeds: Option<Vec<u64>>,
    #[serde(default = "none")]
    run: Option<R>,
    /// Keys of the run at one size.
    #[serde(default = "BTreeMap::new")]
    by_size: BTreeMap<String, R>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Smoke<R, F> {
    #[serde(default)]
    seeds: Option<Vec<u64>>,
    #[serde(default)]
    budget: Option<Budget>,
    #[serde(default)]
    measure: Option<MeasureConfig>,
    #[serde(default = "none")]
    run: Option<R>,
    #[serde(default = "none")]
    fine_tuning: Option<FineTuningEntry<F>>,
}

/// How long the runs of a study are.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Budget {
    #[serde(default)]
    steps: Option<u64>,
    #[serde(default)]
    tokens: Option<u64>,
    #[serde(default = "once")]
    multiples: Vec<u64>,
}

fn once() -> Vec<u64> {
    vec![1]
}

/// A figure that variants are compared by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// The validation loss after the last step, in nats per target token.
    ValidLoss,
    /// The least validation loss of a run, over its passes of as many targets as the last one.
    BestValidLoss,
    /// The share of validation targets predicted right after the last step.
    Accuracy,
    /// e to the power of the validation loss after the last step.
    Perplexity,
    /// As the validation loss, over the tokens of the text alone.
    TextLoss,
    /// As the accuracy, over the tokens of the text alone.
    TextAccuracy,
}

impl Metric {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::ValidLoss,
        Self::BestValidLoss,
        Self::Accuracy,
        Self::Perplexity,
        Self::TextLoss,
        Self::TextAccuracy,
    ];

    /// Its name in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::ValidLoss => "valid_loss",
            Self::BestValidLoss => "best_valid_loss",
            Self::Accuracy => "accuracy",
            Self::Perplexity => "perplexity",
            Self::TextLoss => "text_loss",
            Self::TextAccuracy => "text_accuracy",
        }
    }

    /// Its name in tables.
    pub fn label(self) -> &'static str {
        match self {
            Self::ValidLoss => "final loss",
            Self::BestValidLoss => "best loss",
            Self::Accuracy => "accuracy, %",
            Self::Perplexity => "perplexity",
            Self::TextLoss => "loss of the text",
            Self::TextAccuracy => "accuracy of the text, %",
        }
    }
}

fn default_metrics() -> Vec<Metric> {
    vec![Metric::ValidLoss, Metric::TextAccuracy]
}

/// A sum over variants, of the study's first metric, whose sign decides a claim: whether two gains add up, say.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contrast {
    /// What it is called in tables.
    pub label: String,
    /// What each variant counts, by its name. They come to 0.
    pub weights: BTreeMap<String, f64>,
}

/// How models are timed, side by side.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MeasureConfig {
    /// Rows of a forward pass's batch. Default: 1 and 32
    pub batch_sizes: Vec<usize>,
    /// Rows of a training step's batch. Default: 4
    pub train_batch_size: usize,
    /// Tokens of an input. Default: 512
    pub input_length: usize,
    /// Tokens of a target. Default: 114
    pub target_length: usize,
    /// Rounds, in each of which every model takes its turn; with 0 nothing is timed. Default: 5
    pub rounds: usize,
    /// Timed passes of a model in a turn, of which the median counts. Default: 3
    pub repeats: usize,
}

impl Default for MeasureConfig {
    fn default() -> Self {
        Self {
            batch_sizes: vec![1, 32],
            train_batch_size: 4,
            input_length: 512,
            target_length: 114,
            rounds: 5,
            repeats: 3,
        }
    }
}

/// What a study runs.
#[derive(Clone, Debug)]
pub struct StudyPlan {
    /// Its name, a word.
    pub name: String,
    /// The report's title.
    pub title: String,
    /// What the study asks.
    pub question: String,
    /// How long it takes, as its file says.
    pub expected: String,
    /// The sizes, in the file's order.
    pub sizes: Vec<String>,
    /// The variants, in the file's order.
    pub variants: Vec<Variant>,
    /// The variant that all others are compared with, at the same size and budget.
    pub baseline: String,
    /// Variants whose sizes make the line that speed at equal quality is read off.
    pub scaling_line: Vec<String>,
    /// How many times the budget the runs are long.
    pub multiples: Vec<u64>,
    /// What variants are compared by.
    pub metrics: Vec<Metric>,
    /// Sums over variants.
    pub contrasts: Vec<Contrast>,
    /// How models are timed.
    pub measure: MeasureConfig,
    /// The runs, in the order in which they start: all variants of the first seed, then of the second, so that
    /// an unfinished study is already paired.
    pub runs: Vec<PlannedRun>,
    /// The tasks that the runs' models are fine-tuned on, in the order of the runs.
    pub fine_tunings: Vec<PlannedFineTuning>,
}

/// A variant of a study.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variant {
    /// Its name, a word.
    pub name: String,
    /// What it is called in tables.
    pub label: String,
}

/// What runs that differ only by their seed have in common.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Cell {
    /// The size.
    pub size: String,
    /// The variant.
    pub variant: String,
    /// How many times the budget.
    pub multiple: u64,
}

impl Cell {
    /// The name of the model: runs of several budgets have the same.
    pub fn model(&self) -> String {
        format!("{}-{}", self.size, self.variant)
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.model())?;
        if self.multiple > 1 {
            write!(f, "-{}x", self.multiple)?;
        }
        Ok(())
    }
}

/// A run of a study.
#[derive(Clone, Debug)]
pub struct PlannedRun {
    /// Its name, and that of its folder: `{size}-{variant}-seed{n}`, with the multiple of the budget where that is
    /// more than 1.
    pub name: String,
    /// What it has in common with the runs of other seeds.
    pub cell: Cell,
    /// The seed.
    pub seed: u64,
    /// Its whole configuration.
    pub config: RunConfig,
}

impl PlannedRun {
    /// What its training steps cost in floating-point operations, nearly: what the time of a run that has not started
    /// is estimated from.
    pub fn cost(&self) -> f64 {
        let RunConfig { data, training, .. } = &self.config;
        let vocabulary = self.config.model.vocab_size.unwrap_or(data.vocab_size.max(64));
        let Ok(model) = self.config.model_config(vocabulary) else { return 0.0 };
        // Of ul2, whose examples differ in length, those of span corruption.
        let target = lengths(&self.config).map_or_else(
            || span_corruption(&self.config).lengths().target,
            |lengths| lengths.target,
        );
        let parts = forward_cost(&model, data.input_length as u64, target as u64);
        let example: f64 = parts.iter().map(|part| part.flops as f64).sum();
        let examples = training.batch_size * training.gradient_accumulation;
        3.0 * example * examples as f64 * training.steps as f64
    }
}

/// The lengths of a run's examples; none where they differ.
fn lengths(config: &RunConfig) -> Option<Lengths> {
    let input_length = config.data.input_length;
    match config.data.objective {
        ObjectiveKind::SpanCorruption => Some(span_corruption(config).lengths()),
        ObjectiveKind::PrefixLm => Some(PrefixLm { input_length, ..PrefixLm::default() }.lengths()),
        ObjectiveKind::FixedPrefixLm => Some(FixedPrefixLm { input_length }.lengths()),
        ObjectiveKind::Ul2 => None,
    }
}

fn span_corruption(config: &RunConfig) -> SpanCorruption {
    SpanCorruption {
        noise_density: config.data.noise_density,
        mean_span_length: config.data.mean_span_length,
        input_length: config.data.input_length,
    }
}

/// What the command line says over the file.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// Whether to run with the file's `[smoke]` keys: seconds that show that everything works.
    pub smoke: bool,
    /// Text to train on, absolute or relative to the current folder.
    pub train: Vec<String>,
    /// Text to validate on.
    pub valid: Vec<String>,
    /// The folder of the original files of tasks.
    pub task_data: Option<PathBuf>,
    /// `KEY=VALUE` of every run's configuration.
    pub assignments: Vec<String>,
}

/// Why a study can't be run.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The file can't be read.
    #[error("cannot use {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The file is not TOML, or has a key that doesn't exist or a value of another type.
    #[error("{}, line {line}: {problem}", path.display())]
    Toml {
        /// The file.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
        /// What is wrong there.
        problem: String,
    },
    /// A key has a value that makes no sense.
    #[error("{}: {key} {problem}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What is wrong with its value.
        problem: String,
    },
    /// The configuration of a run can't be used.
    #[error("{}: the run {run} can't be", path.display())]
    Run {
        /// The file.
        path: PathBuf,
        /// The run.
        run: String,
        /// The cause.
        source: Box<RunConfigError>,
    },
    /// A task can't be used.
    #[error("{}: fine_tuning.tasks", path.display())]
    Task {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: Box<TaskError>,
    },
}

impl StudyPlan {
    /// Reads a study's file. Paths in it are relative to its folder.
    ///
    /// # Errors
    ///
    /// If the file can't be read, if a key is unknown or makes no sense, or if any of the runs can't be: names the file,
    /// and its line or the key.
    pub fn read(path: &Path, overrides: &Overrides) -> Result<Self, PlanError> {
        let read = |source| PlanError::Read { path: path.to_owned(), source };
        let text = std::fs::read_to_string(path).map_err(read)?;
        let folder = std::path::absolute(path).map_err(read)?;
        let folder = folder.parent().unwrap_or(Path::new("/"));
        let toml = |error: toml::de::Error| PlanError::Toml {
            path: path.to_owned(),
            line: error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count()),
            problem: error.message().lines().map(str::trim).collect::<Vec<_>>().join(" "),
        };
        // Keys of runs are read twice: as such, so that an error points into the file, and as they stand there, so that
        // what is not there stays what it was.
        toml::from_str::<StudyFile<RunConfig, FineTuningConfig>>(&text).map_err(toml)?;
        let file: StudyFile<Table, Table> = toml::from_str(&text).map_err(toml)?;
        Reader { path, folder, overrides }.plan(file)
    }

    /// The baseline's cell beside another.
    pub fn baseline_of(&self, cell: &Cell) -> Cell {
        Cell { variant: self.baseline.clone(), ..cell.clone() }
    }

    /// The tasks that models are fine-tuned on, in the file's order.
    pub fn tasks(&self) -> Vec<&str> {
        let mut tasks: Vec<&str> = Vec::new();
        for planned in &self.fine_tunings {
            if !tasks.contains(&planned.task.as_str()) {
                tasks.push(&planned.task);
            }
        }
        tasks
    }

    /// The cells in the order of tables: by size, by budget, by variant.
    pub fn cells(&self) -> Vec<Cell> {
        let mut cells: Vec<Cell> = Vec::new();
        for run in &self.runs {
            if !cells.contains(&run.cell) {
                cells.push(run.cell.clone());
            }
        }
        cells.sort_by_key(|cell| {
            let size = self.sizes.iter().position(|size| *size == cell.size);
            let variant = self.variants.iter().position(|variant| variant.name == cell.variant);
            (size, cell.multiple, variant)
        });
        cells
    }

    /// What a variant is called in tables.
    pub fn label<'a>(&'a self, variant: &'a str) -> &'a str {
        let found = self.variants.iter().find(|entry| entry.name == variant);
        found.map_or(variant, |entry| &entry.label)
    }
}

/// Makes a plan of a file.
struct Reader<'a> {
    path: &'a Path,
    folder: &'a Path,
    overrides: &'a Overrides,
}

impl Reader<'_> {
    fn error<T>(&self, key: impl Into<String>, problem: impl Into<String>) -> Result<T, PlanError> {
        let (path, key, problem) = (self.path.to_owned(), key.into(), problem.into());
        Err(PlanError::Value { path, key, problem })
    }

    fn plan(&self, mut file: StudyFile<Table, Table>) -> Result<StudyPlan, PlanError> {
        let smoke = file.smoke.take();
        let in_smoke = smoke.as_ref().and_then(|smoke| smoke.run.as_ref());
        self.check_managed("smoke.run", in_smoke)?;
        let mut smoke_keys = None;
        let mut smoke_seeds = None;
        let mut smoke_tasks = None;
        if self.overrides.smoke {
            let Some(smoke) = smoke else {
                return self.error("smoke", "is missing: the study has no smoke budget");
            };
            file.budget = smoke.budget.unwrap_or(file.budget);
            file.measure = smoke.measure.unwrap_or(file.measure);
            (smoke_keys, smoke_seeds) = (smoke.run, smoke.seeds);
            smoke_tasks = smoke.fine_tuning;
        }
        for assignment in &self.overrides.assignments {
            let key = assignment.split('=').next().unwrap_or_default().trim();
            if ["seed", "training.steps"].contains(&key) {
                return self
                    .error(format!("--set {key}"), "can't be given: it is the study's to set");
            }
        }
        self.check_names(&file)?;
        self.check_measure(&file.measure)?;
        self.check_budget(&file.budget)?;
        if file.metrics.is_empty() {
            return self.error("metrics", "must name at least one");
        }

        let sizes = if file.sizes.is_empty() {
            let name = file.run.as_ref().and_then(|run| run.get("model")?.get("size")?.as_str());
            let name = name.unwrap_or("tiny").to_owned();
            vec![SizeEntry { name, seeds: None, run: None }]
        } else {
            file.sizes.clone()
        };
        self.check_managed("run", file.run.as_ref())?;
        let mut runs: Vec<(usize, PlannedRun)> = Vec::new();
        for size in &sizes {
            self.check_managed(&format!("sizes.{}.run", size.name), size.run.as_ref())?;
            for &multiple in &file.budget.multiples {
                for variant in &file.variants {
                    let is_asked = |names: &Vec<String>| names.contains(&size.name);
                    if !variant.sizes.as_ref().is_none_or(is_asked) {
                        continue;
                    }
                    self.check_managed(
                        &format!("variants.{}.run", variant.name),
                        variant.run.as_ref(),
                    )?;
                    let cell =
                        Cell { size: size.name.clone(), variant: variant.name.clone(), multiple };
                    let at_size = variant.by_size.get(&size.name);
                    let key = format!("variants.{}.by_size.{}", variant.name, size.name);
                    self.check_managed(&key, at_size)?;
                    let layers = [&file.run, &size.run, &variant.run].map(Option::as_ref);
                    let layers = layers.into_iter().chain([at_size, smoke_keys.as_ref()]);
                    let keys: Vec<&Table> = layers.flatten().collect();
                    let seeds = smoke_seeds.as_ref().or(variant.seeds.as_ref());
                    let seeds = seeds.or(size.seeds.as_ref()).unwrap_or(&file.seeds);
                    self.check_seeds(&cell, seeds)?;
                    for (number, &seed) in seeds.iter().enumerate() {
                        runs.push((number, self.run(&file.budget, cell.clone(), seed, &keys)?));
                    }
                }
            }
        }
        // A stable sort: within a seed the order above stays.
        runs.sort_by_key(|(number, _)| *number);
        let runs: Vec<PlannedRun> = runs.into_iter().map(|(_, run)| run).collect();
        let fine_tunings = match &file.fine_tuning {
            Some(entry) => {
                let data = self.overrides.task_data.as_deref();
                let (file, folder) = (self.path, self.folder);
                let smoke = smoke_tasks.as_ref();
                fine_tuning::Reader { file, folder, entry, smoke, data }.plan(&runs)?
            }
            None => Vec::new(),
        };
        let plan = StudyPlan {
            title: match self.overrides.smoke {
                true => format!("{} (smoke)", file.title),
                false => file.title,
            },
            name: file.name,
            question: file.question,
            expected: file.expected,
            sizes: sizes.into_iter().map(|size| size.name).collect(),
            variants: file
                .variants
                .into_iter()
                .map(|variant| Variant {
                    label: variant.label.unwrap_or_else(|| variant.name.clone()),
                    name: variant.name,
                })
                .collect(),
            scaling_line: file.scaling_line.unwrap_or_else(|| vec![file.baseline.clone()]),
            baseline: file.baseline,
            multiples: file.budget.multiples,
            metrics: file.metrics,
            contrasts: file.contrasts,
            measure: file.measure,
            runs,
            fine_tunings,
        };
        self.check_folders(&plan)?;
        self.check_pairs(&plan)?;
        self.check_precision(&plan)?;
        Ok(plan)
    }

    fn run(
        &self,
        budget: &Budget,
        cell: Cell,
        seed: u64,
        keys: &[&Table],
    ) -> Result<PlannedRun, PlanError> {
        let name = format!("{cell}-seed{seed}");
        let error = |source| PlanError::Run {
            path: self.path.to_owned(),
            run: name.clone(),
            source: Box::new(source),
        };
        let mut config = RunConfig::default();
        for &keys in keys {
            config = config.with_keys(keys.clone()).map_err(error)?;
        }
        let io = |source| PlanError::Read { path: self.path.to_owned(), source };
        config.make_absolute_from(self.folder).map_err(io)?;
        config = config.with_assignments(&self.overrides.assignments).map_err(error)?;
        if !self.overrides.train.is_empty() {
            config.data.train = self.overrides.train.clone();
        }
        if !self.overrides.valid.is_empty() {
            config.data.valid = self.overrides.valid.clone();
        }
        // As the run will write them down: so the plan is known again.
        config.take_tokenizer_of_init();
        config.make_absolute().map_err(io)?;
        config.seed = seed;
        config.training.steps = cell.multiple * self.steps(budget, &config)?;
        config.validate().map_err(error)?;
        Ok(PlannedRun { name, cell, seed, config })
    }

    /// The steps of the budget once.
    fn steps(&self, budget: &Budget, config: &RunConfig) -> Result<u64, PlanError> {
        let Some(tokens) = budget.tokens else {
            return Ok(budget.steps.unwrap_or_default());
        };
        let Some(lengths) = lengths(config) else {
            return self.error(
                "budget.tokens",
                "has no meaning with ul2, whose examples differ in length: give steps",
            );
        };
        let training = &config.training;
        let examples = training.batch_size * training.gradient_accumulation;
        let step = examples * (lengths.input + lengths.target);
        Ok(tokens.div_ceil(step.max(1) as u64))
    }

    fn check_names(&self, file: &StudyFile<Table, Table>) -> Result<(), PlanError> {
        let word = |name: &str| {
            let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !name.is_empty() && name.chars().all(plain) && !name.starts_with(['.', '-'])
        };
        if !word(&file.name) {
            return self.error(
                "name",
                format!("must be a word of letters, digits, - and _, not {:?}", file.name),
            );
        }
        let sizes: Vec<&str> = file.sizes.iter().map(|size| size.name.as_str()).collect();
        let variants: Vec<&str> =
            file.variants.iter().map(|variant| variant.name.as_str()).collect();
        for (key, names) in [("sizes", &sizes), ("variants", &variants)] {
            for (number, name) in names.iter().enumerate() {
                if !word(name) {
                    let problem =
                        format!("must be a word of letters, digits, - and _, not {name:?}");
                    return self.error(format!("{key}[{number}].name"), problem);
                }
                if names[..number].contains(name) {
                    return self
                        .error(format!("{key}[{number}].name"), format!("{name:?} is another's"));
                }
            }
        }
        if !variants.contains(&file.baseline.as_str()) {
            let known = variants.join(", ");
            return self.error(
                "baseline",
                format!("must be one of the variants {known}, not {:?}", file.baseline),
            );
        }
        for name in file.scaling_line.iter().flatten() {
            if !variants.contains(&name.as_str()) {
                return self.error("scaling_line", format!("{name:?} is no variant"));
            }
        }
        for (number, contrast) in file.contrasts.iter().enumerate() {
            let key = format!("contrasts[{number}].weights");
            if let Some(name) =
                contrast.weights.keys().find(|name| !variants.contains(&name.as_str()))
            {
                return self.error(key, format!("{name:?} is no variant"));
            }
            let sum: f64 = contrast.weights.values().sum();
            // False of a weight that is no number.
            let is_zero = sum.abs() < 1e-9;
            if contrast.weights.is_empty() || !is_zero {
                return self.error(key, format!("must come to 0, not {sum}"));
            }
        }
        for variant in &file.variants {
            let named = variant.sizes.iter().flatten().map(|size| ("sizes", size));
            for (key, size) in named.chain(variant.by_size.keys().map(|size| ("by_size", size))) {
                if !sizes.contains(&size.as_str()) {
                    let key = format!("variants.{}.{key}", variant.name);
                    return self.error(key, format!("{size:?} is no size"));
                }
            }
        }
        Ok(())
    }

    fn check_budget(&self, budget: &Budget) -> Result<(), PlanError> {
        match (budget.steps, budget.tokens) {
            (Some(0), _) | (_, Some(0)) => return self.error("budget", "must be at least 1"),
            (Some(_), Some(_)) => return self.error("budget", "must be steps or tokens, not both"),
            (None, None) => return self.error("budget", "must be steps or tokens"),
            _ => {}
        }
        let multiples = &budget.multiples;
        let distinct: BTreeSet<&u64> = multiples.iter().collect();
        if multiples.is_empty() || multiples.contains(&0) || distinct.len() < multiples.len() {
            return self.error("budget.multiples", "must be different numbers from 1 on");
        }
        Ok(())
    }

    fn check_measure(&self, measure: &MeasureConfig) -> Result<(), PlanError> {
        for (key, value) in [
            ("train_batch_size", measure.train_batch_size),
            ("input_length", measure.input_length),
            ("target_length", measure.target_length),
            ("repeats", measure.repeats),
            ("batch_sizes", measure.batch_sizes.iter().copied().min().unwrap_or(0)),
        ] {
            if value == 0 {
                return self.error(format!("measure.{key}"), "must be at least 1, not 0");
            }
        }
        Ok(())
    }

    fn check_seeds(&self, cell: &Cell, seeds: &[u64]) -> Result<(), PlanError> {
        let distinct: BTreeSet<&u64> = seeds.iter().collect();
        if seeds.is_empty() || distinct.len() < seeds.len() {
            return self
                .error("seeds", format!("of {cell} must be different numbers, at least one"));
        }
        if seeds.iter().any(|&seed| seed > i64::MAX as u64) {
            return self.error("seeds", format!("of {cell} must be below 2^63"));
        }
        Ok(())
    }

    /// Each run has a folder of its own, and each model a name.
    fn check_folders(&self, plan: &StudyPlan) -> Result<(), PlanError> {
        let mut names = BTreeSet::new();
        if let Some(run) = plan.runs.iter().find(|run| !names.insert(run.name.as_str())) {
            let problem = format!("make two runs {}: choose other names", run.name);
            return self.error("sizes, variants and budget.multiples", problem);
        }
        let mut models = BTreeMap::new();
        for cell in plan.cells() {
            let of = (cell.size.clone(), cell.variant.clone());
            if *models.entry(cell.model()).or_insert_with(|| of.clone()) != of {
                let problem = format!("make two models {}: choose other names", cell.model());
                return self.error("sizes and variants", problem);
            }
        }
        Ok(())
    }

    /// Keys that the study sets itself.
    fn check_managed(&self, key: &str, keys: Option<&Table>) -> Result<(), PlanError> {
        let Some(keys) = keys else { return Ok(()) };
        if keys.contains_key("seed") {
            return self
                .error(format!("{key}.seed"), "can't be given: runs take the study's seeds");
        }
        let steps = keys.get("training").and_then(Value::as_table);
        if steps.is_some_and(|training| training.contains_key("steps")) {
            let problem = "can't be given: runs take the study's budget";
            return self.error(format!("{key}.training.steps"), problem);
        }
        Ok(())
    }

    /// Runs of a seed are comparable only on the same batches, and validated on the same examples.
    /// All runs compute in one type, and so do all fine-tunings.
    fn check_precision(&self, plan: &StudyPlan) -> Result<(), PlanError> {
        let runs = plan.runs.iter().map(|run| (run.name.clone(), run.config.training.precision));
        let tuned = plan.fine_tunings.iter();
        let tuned = tuned.map(|planned| (planned.name(), planned.config.training.precision));
        for mut compared in [Vec::from_iter(runs), Vec::from_iter(tuned)].map(Vec::into_iter) {
            let Some((first, was)) = compared.next() else { continue };
            if let Some((name, is)) = compared.find(|(_, precision)| *precision != was) {
                let (was, is) = (was.name(), is.name());
                let problem = format!("must be one for all: {first} has {was}, {name} has {is}");
                return self.error("training.precision", problem);
            }
        }
        Ok(())
    }

    fn check_pairs(&self, plan: &StudyPlan) -> Result<(), PlanError> {
        for run in &plan.runs {
            let cell = plan.baseline_of(&run.cell);
            let is_baseline = |other: &&PlannedRun| other.cell == cell && other.seed == run.seed;
            let Some(baseline) = plan.runs.iter().find(is_baseline) else {
                let key = format!("variants.{}", plan.baseline);
                let problem = format!("has no run of the size and the seed of {}", run.name);
                return self.error(key, problem);
            };
            let seen = |config: &RunConfig| {
                let mut of_data = RunConfig { data: config.data.clone(), ..RunConfig::default() };
                let training = &config.training;
                of_data.training.batch_size = training.batch_size;
                of_data.training.gradient_accumulation = training.gradient_accumulation;
                of_data.training.eval_examples = training.eval_examples;
                of_data.training.final_eval_examples = training.final_eval_examples;
                of_data
            };
            let differences = seen(&baseline.config).differences(&seen(&run.config));
            if !differences.is_empty() {
                let key = format!("variants.{}.run", run.cell.variant);
                let problem = format!(
                    "can't be compared with {}: they don't see the same batches: {}",
                    baseline.name,
                    joined(&differences)
                );
                return self.error(key, problem);
            }
        }
        Ok(())
    }
}
