//! The benchmark tasks: what there is, how it looks to a model, and the scores of someone's predictions.

use altup_data::tasks::{Dataset, Registry, Task, evaluate, read_predictions};
use anyhow::Context;
use clap::{Args, Subcommand};
use serde_json::json;
use std::path::{Path, PathBuf};

use super::{OverwriteArgs, output};

/// The split that is meant where none is named.
const DEFAULT_SPLIT: &str = "validation";

/// List the benchmark tasks with the files they are read from and their metrics, or show examples of one
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct TasksArgs {
    #[command(subcommand)]
    command: Option<TasksCommand>,
    /// Print one line of JSON a task
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
enum TasksCommand {
    Show(ShowArgs),
}

/// Print inputs and targets of a task as a model sees them
#[derive(Args)]
struct ShowArgs {
    /// The name of a task, or the path of a description, FILE.toml
    task: String,
    /// The task's own folder of original files, or one that holds such folders
    #[arg(long, value_name = "FOLDER")]
    data: PathBuf,
    /// The split: train, validation, test, or another of the task's
    #[arg(long, default_value = DEFAULT_SPLIT)]
    split: String,
    /// Examples to print
    #[arg(long, default_value_t = 3, value_name = "N")]
    examples: usize,
    /// Print one line of JSON an example
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: TasksArgs) -> anyhow::Result<()> {
    match args.command {
        Some(TasksCommand::Show(args)) => show(&args),
        None => list(args.json),
    }
}

fn list(as_json: bool) -> anyhow::Result<()> {
    let registry = Registry::standard();
    if !as_json {
        output::line(
            "task      benchmark       metrics            files, in a folder of the name",
        )?;
    }
    for task in registry.iter() {
        let files = task.files();
        if as_json {
            let splits = files.splits.iter().map(|split| (split.name.clone(), json!(split.files)));
            output::json(&json!({
                "task": task.name(),
                "benchmark": task.benchmark(),
                "template": task.template(),
                "labels": task.label_words(),
                "metrics": task.metrics(),
                "folders": files.folders,
                "splits": splits.collect::<serde_json::Map<_, _>>(),
            }))?;
            continue;
        }
        let mut names: Vec<&str> = Vec::new();
        for name in files.splits.iter().flat_map(|split| &split.files).flatten() {
            if !names.contains(&&**name) {
                names.push(name);
            }
        }
        output::line(&format!(
            "{:<9} {:<15} {:<18} {}: {}",
            task.name(),
            task.benchmark(),
            task.metrics().join(", "),
            files.folders.first().map_or(".", |folder| folder),
            names.join(", "),
        ))?;
    }
    Ok(())
}

fn show(args: &ShowArgs) -> anyhow::Result<()> {
    let task = Registry::standard().find(&args.task)?;
    let dataset = read(&*task, &args.data, &args.split)?;
    if !args.json {
        output::line(&format!(
            "{} · {} · {} examples · {}",
            task.name(),
            args.split,
            dataset.examples.len(),
            files(&dataset)
        ))?;
    }
    for example in dataset.examples.iter().take(args.examples) {
        if args.json {
            let (id, input, target) = (&example.id, &example.input, &example.target);
            output::json(&json!({"id": id, "input": input, "target": target}))?;
        } else {
            let target = example.target.as_deref().unwrap_or("(not in the files)");
            output::line(&format!("\ninput:  {}\ntarget: {target}", example.input))?;
        }
    }
    Ok(())
}

/// Reads a split, and tells of rows that were left out.
fn read(task: &dyn Task, data: &Path, split: &str) -> anyhow::Result<Dataset> {
    let dataset = task.read(data, split)?;
    if dataset.skipped_rows > 0 {
        let (rows, files) = (dataset.skipped_rows, files(&dataset));
        output::note(&format!("{rows} rows of {files} are cut short and were left out"));
    }
    Ok(dataset)
}

fn files(dataset: &Dataset) -> String {
    dataset.files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// Which predictions to score on which task.
#[derive(Args)]
pub(super) struct PredictionsArgs {
    /// A benchmark task to score predictions on (`altup tasks` lists them), or the path of a description,
    /// FILE.toml
    #[arg(long, value_name = "NAME", requires_all = ["data", "predictions"])]
    task: Option<String>,
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
    /// The split that the predictions are for [default: validation]
    #[arg(long, requires = "task")]
    split: Option<String>,
    /// Also write the predictions into this folder as the benchmark wants them handed in; a split without labels
    /// is then not scored
    #[arg(long, value_name = "FOLDER", requires = "task")]
    submission: Option<PathBuf>,
    /// Replace the file to hand in that is there
    #[arg(long, requires = "submission")]
    overwrite: bool,
}

impl PredictionsArgs {
    /// The task, and where its files and the predictions are.
    fn asked(&self) -> Option<(&str, &Path, &Path)> {
        Some((self.task.as_deref()?, self.data.as_deref()?, self.predictions.as_deref()?))
    }

    /// Scores the predictions.
    pub(super) fn run(&self, as_json: bool) -> anyhow::Result<()> {
        let asked = self.asked().context("--task, --data and --predictions go together")?;
        let (task, data, predictions) = asked;
        let split = self.split.as_deref().unwrap_or(DEFAULT_SPLIT);
        let task = Registry::standard().find(task)?;
        let dataset = read(&*task, data, split)?;
        let answers = read_predictions(predictions, &*task, &dataset, split)?;
        let examples: Vec<_> = dataset.judged().collect();

        let words = task.label_words();
        let no_label = answers.iter().filter(|answer| !words.contains(&&***answer)).count();
        if !words.is_empty() && no_label > 0 {
            let (all, words) = (answers.len(), words.join(", "));
            output::note(&format!("{no_label} of {all} predictions are none of {words}"));
        }
        let is_labelled = examples.iter().all(|example| example.reference.is_some());
        if is_labelled || self.submission.is_none() {
            let scores = evaluate(&*task, &dataset, split, &answers)?;
            if as_json {
                output::json(&scores)?;
            } else {
                let metrics = scores.metrics.iter();
                let metrics: Vec<String> =
                    metrics.map(|(name, value)| format!("{name} {value:.4}")).collect();
                output::line(&format!(
                    "{} · {split} · {} examples · {}",
                    scores.task,
                    scores.examples,
                    metrics.join(" · ")
                ))?;
            }
        }
        if let Some(folder) = &self.submission {
            let submission = task.submission(split, &examples, &answers);
            let overwrite = OverwriteArgs { overwrite: self.overwrite };
            overwrite.check(&folder.join(&submission.file_name))?;
            let file = submission.write(folder)?;
            let invalid = match submission.invalid {
                0 => String::new(),
                invalid => {
                    format!(", with the first label for {invalid} predictions that are none")
                }
            };
            output::note(&format!("wrote {}{invalid}", file.display()));
        }
        Ok(())
    }
}
