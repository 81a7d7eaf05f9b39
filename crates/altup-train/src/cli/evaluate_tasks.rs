//! Scores on benchmark tasks, of a model or of predictions that someone else's made.

use altup_data::TextTokenizer;
use altup_data::metrics::Benchmark;
use altup_data::tasks::{Registry, Scores, Task, evaluate, read_predictions};
use altup_models::{ModelDirectory, T5};
use altup_train::fine_tuning::FineTuningConfig;
use altup_train::run_folder::RunFolder;
use altup_train::task_evaluation::{AnswerBy, AnswerConfig, Selection, TaskSplit, answer};
use anyhow::Context;
use clap::Args;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::model_source::{ModelSource, from_checkpoint};
use super::tasks::{DEFAULT_SPLIT, read};
use super::{BackendArgs, OverwriteArgs, PrecisionArgs, output};

/// What to score on which task.
#[derive(Args)]
pub(super) struct TaskArgs {
    /// A benchmark task, or several by commas (`altup tasks` lists them); a name that ends in .toml is the path of a
    /// description
    #[arg(
        long,
        value_name = "NAME,…",
        value_delimiter = ',',
        requires = "data",
        conflicts_with = "valid"
    )]
    task: Vec<String>,
    /// The task's own folder of original files, or one that holds such folders
    #[arg(long, value_name = "FOLDER", requires = "task")]
    data: Option<PathBuf>,
    /// Predictions for the task: a text a line in the order of the split, or JSON of a text for each id
    #[arg(
        long,
        value_name = "FILE",
        requires = "task",
        conflicts_with_all = ["model", "valid", "tokenizer", "input_length", "examples", "seed"]
    )]
    predictions: Option<PathBuf>,
    /// The split [default: validation]
    #[arg(long, requires = "task")]
    split: Option<String>,
    /// How the model answers [default: the run's, or generation]
    #[arg(long, value_enum, value_name = "HOW", requires = "task", conflicts_with = "predictions")]
    evaluate_by: Option<AnswerBy>,
    /// An answer that the model writes has at most this many tokens [default: the run's, or the longest label word,
    /// or 64, of translations and summaries 128]
    #[arg(
        long,
        value_name = "TOKENS",
        requires = "task",
        conflicts_with = "predictions",
        value_parser = clap::value_parser!(u64).range(1..)
    )]
    max_new_tokens: Option<u64>,
    /// A checkpoint of the run in place of its model: a step, or `last`
    #[arg(long, value_name = "STEP", requires_all = ["task", "model"])]
    checkpoint: Option<String>,
    /// Also write the predictions into this folder as the benchmark wants them handed in; a split without labels
    /// is then not scored
    #[arg(long, value_name = "FOLDER", requires = "task", alias = "submission")]
    output: Option<PathBuf>,
    /// Replace the files to hand in that are there
    #[arg(long, requires = "output")]
    overwrite: bool,
}

/// The model that is asked, and how.
pub(super) struct ModelArgs<'a> {
    pub(super) model: Option<&'a Path>,
    pub(super) tokenizer: Option<&'a Path>,
    pub(super) input_length: Option<usize>,
    pub(super) examples: Option<u64>,
    pub(super) batch_size: usize,
    pub(super) seed: Option<u64>,
    pub(super) backend: &'a BackendArgs,
    pub(super) precision: &'a PrecisionArgs,
}

impl TaskArgs {
    /// Whether a task is to be scored.
    pub(super) fn is_asked(&self) -> bool {
        !self.task.is_empty()
    }

    /// Scores the tasks, one line each.
    pub(super) fn run(&self, model: &ModelArgs<'_>, as_json: bool) -> anyhow::Result<()> {
        let data = self.data.as_deref().context("--task needs --data")?;
        let tasks = self.task.iter().map(|name| Registry::standard().find(name));
        let tasks: Vec<Arc<dyn Task>> = tasks.collect::<Result<_, _>>()?;
        let split = self.split.as_deref().unwrap_or(DEFAULT_SPLIT);
        for (task, split) in parts(tasks.clone(), split) {
            // Before anything is answered.
            self.check_hand_in(&*task, &split)?;
        }
        let mut scores = Vec::new();
        if let Some(predictions) = &self.predictions {
            let [task] = &tasks[..] else {
                anyhow::bail!("--predictions is for one task, and --task names {}", tasks.len());
            };
            scores.extend(self.score_predictions(&**task, data, split, predictions)?);
        } else {
            let path = model.model.context("--task needs --model DIR or --predictions FILE")?;
            let asked = Asked::open(path, self, model)?;
            for (task, split) in parts(tasks, split) {
                scores.extend(self.score_model(&asked, task, data, &split)?);
                // As soon as there are any: the next task may take long.
                if let Some(scores) = scores.last() {
                    print(scores, as_json)?;
                }
            }
            return print_averages(&scores, split, as_json);
        }
        scores.iter().try_for_each(|scores| print(scores, as_json))
    }

    fn score_predictions(
        &self,
        task: &dyn Task,
        data: &Path,
        split: &str,
        predictions: &Path,
    ) -> anyhow::Result<Option<Scores>> {
        let dataset = read(task, data, split)?;
        let answers = read_predictions(predictions, task, &dataset, split)?;
        note_odd_answers(task, &answers);
        let examples: Vec<_> = dataset.judged().collect();
        let is_labelled = examples.iter().all(|example| example.reference.is_some());
        let scores = match is_labelled || self.output.is_none() {
            true => Some(evaluate(task, &dataset, split, &answers)?),
            false => None,
        };
        self.hand_in(task, split, &examples, &answers)?;
        Ok(scores)
    }

    fn score_model(
        &self,
        asked: &Asked,
        task: Arc<dyn Task>,
        data: &Path,
        split: &str,
    ) -> anyhow::Result<Option<Scores>> {
        let part = TaskSplit::read(task, data, split, &asked.tokenizer, asked.selection)?;
        let name = part.task().name();
        if part.skipped_rows() > 0 {
            let rows = part.skipped_rows();
            output::note(&format!("{rows} rows of {name} are cut short and were left out"));
        }
        if part.truncated() > 0 {
            let (cut, length) = (part.truncated(), asked.selection.input_length);
            output::note(&format!("{cut} inputs of {name} are cut to {length} tokens"));
        }
        let is_scored = part.is_labelled() || self.output.is_none();
        if is_scored && !part.is_labelled() {
            // Before the model has worked for nothing.
            anyhow::bail!(
                "the {split} split of {name} has no labels, so nothing can be scored on it: --output \
                 writes what the model predicts"
            );
        }
        let answers = answer(&asked.model, &asked.tokenizer, &part, &asked.answers)?.texts();
        note_odd_answers(part.task(), &answers);
        let scores = is_scored.then(|| part.score(&answers)).transpose()?;
        let examples: Vec<_> = part.examples().iter().collect();
        self.hand_in(part.task(), split, &examples, &answers)?;
        Ok(scores)
    }

    /// Checks that the file with the answers to hand in, if they are asked for, replaces none that is to stay.
    fn check_hand_in(&self, task: &dyn Task, split: &str) -> anyhow::Result<()> {
        let Some(folder) = &self.output else { return Ok(()) };
        let file = folder.join(task.submission(split, &[], &[]).file_name);
        OverwriteArgs { overwrite: self.overwrite }.check(&file)
    }

    /// Writes the answers as the benchmark wants them, if that is asked for.
    fn hand_in(
        &self,
        task: &dyn Task,
        split: &str,
        examples: &[&altup_data::tasks::Example],
        answers: &[String],
    ) -> anyhow::Result<()> {
        let Some(folder) = &self.output else { return Ok(()) };
        let submission = task.submission(split, examples, answers);
        self.check_hand_in(task, split)?;
        let file = submission.write(folder)?;
        let invalid = match submission.invalid {
            0 => String::new(),
            // Each task says what it hands in for these; docs/tasks.md has it.
            invalid => format!(", where {invalid} predictions are no answer"),
        };
        output::note(&format!("wrote {}{invalid}", file.display()));
        Ok(())
    }
}

/// A model, and how it is asked.
struct Asked {
    model: T5,
    tokenizer: TextTokenizer,
    selection: Selection,
    answers: AnswerConfig,
}

impl Asked {
    fn open(path: &Path, task: &TaskArgs, args: &ModelArgs<'_>) -> anyhow::Result<Self> {
        anyhow::ensure!(args.batch_size > 0, "--batch-size must be at least 1");
        let device = args.backend.open()?;
        let (config, model, tokenizer) = match &task.checkpoint {
            Some(checkpoint) => {
                let (config, model) = from_checkpoint(path, checkpoint, &device)?;
                (config, model, path.join("tokenizer.json"))
            }
            None => {
                let source = ModelSource::find(path)?;
                let (config, model) = source.load(&device)?;
                (config, model, ModelDirectory::new(&source.directory).tokenizer())
            }
        };
        let tokenizer = TextTokenizer::load(args.tokenizer.unwrap_or(&tokenizer))?;
        anyhow::ensure!(
            tokenizer.vocab_size() <= config.vocab_size,
            "the tokenizer has {} ids and the model only {}",
            tokenizer.vocab_size(),
            config.vocab_size
        );
        // A run is scored as it was validated.
        let run = match FineTuningConfig::describes(path) {
            true => RunFolder::open_as::<FineTuningConfig>(path)?.1,
            false => FineTuningConfig::default(),
        };
        let input_length = args.input_length.unwrap_or(run.tasks.input_length);
        anyhow::ensure!(input_length > 0, "--input-length must be at least 1");
        let max_new_tokens = task.max_new_tokens.map(|tokens| tokens as usize);
        Ok(Self {
            model: args.precision.apply(model)?,
            tokenizer,
            selection: Selection {
                input_length,
                max_examples: args.examples,
                seed: args.seed.unwrap_or(run.seed),
            },
            answers: AnswerConfig {
                by: task.evaluate_by.unwrap_or(run.answers.by),
                batch_size: args.batch_size,
                max_new_tokens: max_new_tokens.or(run.answers.max_new_tokens),
            },
        })
    }
}

/// The second set of MNLI, without which there is no average of GLUE.
const MISMATCHED: &str = "validation_mismatched";

/// The tasks, each with its split. Where all of GLUE is scored, MNLI has both of its validation sets.
fn parts(tasks: Vec<Arc<dyn Task>>, split: &str) -> Vec<(Arc<dyn Task>, String)> {
    let mut names: BTreeMap<String, f64> =
        tasks.iter().map(|task| (task.name().to_owned(), 0.0)).collect();
    names.insert("mnli_mismatched".to_owned(), 0.0);
    let is_glue = split == DEFAULT_SPLIT && Benchmark::Glue.average(&names).is_ok();
    let mut parts = Vec::new();
    for task in tasks {
        let has_both = is_glue && task.name() == "mnli";
        parts.push((Arc::clone(&task), split.to_owned()));
        if has_both {
            parts.push((task, MISMATCHED.to_owned()));
        }
    }
    parts
}

/// A line for each benchmark all of whose tasks are scored.
fn print_averages(scores: &[Scores], split: &str, as_json: bool) -> anyhow::Result<()> {
    let named = |scores: &Scores| {
        let name = match scores.split == MISMATCHED {
            true => format!("{}_mismatched", scores.task),
            false => scores.task.clone(),
        };
        (name, scores.metrics.mean())
    };
    let by_name: BTreeMap<String, f64> = scores.iter().map(named).collect();
    for (benchmark, name) in [(Benchmark::Glue, "glue"), (Benchmark::SuperGlue, "superglue")] {
        let Ok(average) = benchmark.average(&by_name) else { continue };
        if as_json {
            output::json(&json!({
                "task": name, "split": split, "metrics": {"average": average}
            }))?;
        } else {
            output::line(&format!("{name} · {split} · average {average:.4}"))?;
        }
    }
    Ok(())
}

fn note_odd_answers(task: &dyn Task, answers: &[String]) {
    let words = task.label_words();
    let no_label = answers.iter().filter(|answer| !words.contains(&&***answer)).count();
    if !words.is_empty() && no_label > 0 {
        let (all, words) = (answers.len(), words.join(", "));
        output::note(&format!("{no_label} of {all} predictions are none of {words}"));
    }
}

fn print(scores: &Scores, as_json: bool) -> anyhow::Result<()> {
    if as_json {
        return Ok(output::json(scores)?);
    }
    let metrics: Vec<String> =
        scores.metrics.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
    Ok(output::line(&format!(
        "{} · {} · {} examples · {}",
        scores.task,
        scores.split,
        scores.examples,
        metrics.join(" · ")
    ))?)
}
