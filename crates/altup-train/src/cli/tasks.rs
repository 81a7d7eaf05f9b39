//! The benchmark tasks: what there is, and how it looks to a model.

use altup_data::TextTokenizer;
use altup_data::tasks::{Dataset, Registry, Task};
use altup_train::fine_tuning::{FineTuningConfig, FineTuningData};
use altup_train::run_folder::RunFolder;
use clap::{Args, Subcommand};
use serde_json::json;
use std::path::{Path, PathBuf};

use super::output;

/// The split that is meant where none is named.
pub(super) const DEFAULT_SPLIT: &str = "validation";

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
    Batches(BatchesArgs),
}

/// Print the batches of a fine-tuning run, a line of JSON each: input_ids and labels, padded with 0
#[derive(Args)]
struct BatchesArgs {
    /// The folder of the run
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// Batches to print
    #[arg(long, default_value_t = 1, value_name = "N")]
    count: u64,
    /// The number of the first, counted from 0
    #[arg(long, default_value_t = 0, value_name = "N")]
    first: u64,
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
        Some(TasksCommand::Batches(args)) => batches(&args),
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

fn batches(args: &BatchesArgs) -> anyhow::Result<()> {
    let (folder, config) = RunFolder::open_as::<FineTuningConfig>(&args.run)?;
    let tokenizer = TextTokenizer::load(&folder.tokenizer())?;
    let data = FineTuningData::prepare(&config, tokenizer)?;
    for number in args.first..args.first + args.count {
        let batch = data.train.batch(number);
        let input_ids: Vec<&[i32]> = batch.input_ids.chunks(batch.input_length).collect();
        let labels: Vec<&[i32]> = batch.labels.chunks(batch.target_length).collect();
        output::json(&json!({"input_ids": input_ids, "labels": labels}))?;
    }
    Ok(())
}

/// Reads a split, and tells of rows that were left out.
pub(super) fn read(task: &dyn Task, data: &Path, split: &str) -> anyhow::Result<Dataset> {
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
