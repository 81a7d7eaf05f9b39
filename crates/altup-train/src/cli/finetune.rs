use altup_models::{ModelDirectory, num_parameters};
use altup_train::device::{DeviceName, hardware_name};
use altup_train::fine_tuning::{
    FineTuningConfig, FineTuningSummary, TaskResult, TaskResults, best_step,
};
use altup_train::memory;
use altup_train::metrics::{MetricsLog, StartRow, TaskScore};
use altup_train::progress::format_duration;
use altup_train::replicas::{Replicas, Turns};
use altup_train::task_evaluation::{AnswerBy, answer_in_turns};
use altup_train::trainer::Outcome;
use anyhow::Context;
use clap::Args;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;

use super::convert::copy_companions;
use super::model_source::ModelSource;
use super::replicas::agreement_on;
use super::start::{Place, Start};
use super::start_fine_tuning::{FINETUNE, Running, describe, on_validation};
use super::{config_number, output, stop};

/// Fine-tune a model on benchmark tasks, text to text as T5 does it.
///
/// Adafactor at a constant rate of 0.001 with a dropout of 0.1, batches of examples of about equal length; the
/// checkpoint with the best scores becomes the model of the run.
///
/// Signals, exit codes and several processes are as with `altup train`.
#[derive(Args)]
pub(super) struct FinetuneArgs {
    /// A TOML file of the run's configuration; flags go over its keys
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The model: its directory, the folder of the run that trained it, or its name on the Hugging Face hub
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// A task or several, by commas (`altup tasks` lists them); a name that ends in .toml is the path of a
    /// description
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    task: Vec<String>,
    /// The task's own folder of original files, or one that holds such folders
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
    /// Optimizer steps [default: 1000]
    #[arg(long, value_name = "N", value_parser = config_number::<u64>())]
    steps: Option<u64>,
    /// Times that training goes through the examples of all tasks together, in place of --steps
    #[arg(long, value_name = "N", conflicts_with = "steps")]
    epochs: Option<f64>,
    /// Examples that go through the model at once [default: 32]
    #[arg(long, value_name = "N", value_parser = config_number::<usize>())]
    batch_size: Option<usize>,
    /// Steps from one validation, and checkpoint, to the next [default: 100]
    #[arg(long, value_name = "N", value_parser = config_number::<u64>())]
    eval_every: Option<u64>,
    /// How the model answers when it is validated [default: generation]
    #[arg(long, value_enum, value_name = "HOW")]
    evaluate_by: Option<AnswerBy>,
    /// Validations without a better score after which the run ends [default: it doesn't]
    #[arg(long, value_name = "N", value_parser = config_number::<u64>())]
    patience: Option<u64>,
    /// What all randomness of the run comes from, below 2^63 as TOML's numbers are [default: 0]
    #[arg(long, value_parser = config_number::<u64>())]
    seed: Option<u64>,
    /// Any key of the configuration, as in model.dropout_rate=0
    #[arg(long = "set", value_name = "KEY=VALUE")]
    assignments: Vec<String>,
    /// The folder of the run [default: a new one in runs/]
    #[arg(long, value_name = "DIR", conflicts_with = "resume")]
    output: Option<PathBuf>,
    /// Replace the run in the output folder
    #[arg(long, requires = "output", conflicts_with = "resume")]
    overwrite: bool,
    /// Go on with the run in this folder, exactly where its last checkpoint is. Its length, its learning rate and
    /// schedule, and how it is watched and kept may be given anew; its model and tasks are fixed (docs/formats.md has the keys)
    #[arg(long, value_name = "DIR")]
    resume: Option<PathBuf>,
    /// Go back to the checkpoint of this step, or to the start with 0; what came after it is kept in abandoned/
    #[arg(long, requires = "resume", value_name = "STEP")]
    from: Option<u64>,
    /// Go on with the run in the output folder if it was begun there, and start it if not
    #[arg(long, requires = "output", conflicts_with_all = ["resume", "overwrite"])]
    auto_resume: bool,
    /// Show no progress; warnings are shown
    #[arg(long)]
    quiet: bool,
    /// Print the figures of the finished run as JSON
    #[arg(long)]
    json: bool,
    /// The backend, with the index of a device where it has several (cuda:1): flex, ndarray, wgpu,
    /// vulkan, tch or cuda; `altup backends` lists what this machine has [default: flex, or what the run was on]
    #[arg(long, value_name = "BACKEND")]
    backend: Option<DeviceName>,
}

pub(super) fn run(args: FinetuneArgs, replicas: &Replicas) -> anyhow::Result<ExitCode> {
    let agreement = agreement_on(FINETUNE)
        .and("--resume", args.resume.is_some())
        .and("--auto-resume", args.auto_resume)
        .and_if_any("--from", args.from);
    replicas.agree(&agreement)?;
    let start = Start::new(args.backend.as_ref(), args.quiet, replicas);
    let begun = start.begun(args.output.as_ref(), args.auto_resume)?;
    let mut running = match args.resume.as_ref().or(begun) {
        Some(path) => start.resume_fine_tuning(path, args.from, |stored| {
            let model = args.model.as_deref().map(|model| found_or(model, &stored.model.path));
            configured(stored, model, &args)
        })?,
        None => {
            let model = args.model.as_deref().map(ModelSource::find).transpose()?;
            let model = model.map(|source| source.directory);
            let config = configured(FineTuningConfig::default(), model, &args)?;
            let place = match &args.output {
                Some(path) => Place::Output {
                    path: path.clone(),
                    overwrite: args.overwrite,
                    config: args.config.clone(),
                },
                None => {
                    let name = format!("{}-seed{}", config.name(), config.seed);
                    Place::Fresh(Path::new("runs").join(name))
                }
            };
            start.new_fine_tuning(config, place)?
        }
    };
    begin_record(&mut running)?;
    if running.train()? == Outcome::Stopped {
        return Ok(stop::exit_code());
    }
    finish(&args, &mut running)?;
    Ok(ExitCode::SUCCESS)
}

/// Begins to write down how the run goes: the metrics get their first row.
fn begin_record(running: &mut Running) -> anyhow::Result<()> {
    let Running { folder, backend, config, data, trainer, .. } = running;
    let Some(files) = &mut trainer.files else { return Ok(()) };
    trainer.recorder.show(folder);
    let tasks = data.training.iter().map(|task| describe(task, config));
    let hardware = hardware_name(&trainer.device).map(|name| format!(" ({name})"));
    let start = StartRow {
        step: trainer.state.step,
        parameters: num_parameters(&trainer.learner.model) as u64,
        backend: format!("{backend}{}", hardware.unwrap_or_default()),
        text: tasks.collect::<Vec<_>>().join("; "),
        replicas: trainer.replicas.size(),
        ..StartRow::default()
    };
    let dtype = config.training.precision.dtype();
    trainer.recorder.begin(&mut files.metrics, start, &trainer.device, dtype)?;
    if let Some(warning) = trainer.recorder.show_if_due() {
        trainer.progress.warn(&warning);
    }
    Ok(())
}

/// The directory of the model that a run is told to go on with. Once it has a checkpoint it needs none: what can't be found is
/// then what it began with.
fn found_or(model: &Path, stored: &Path) -> PathBuf {
    ModelSource::find(model).map_or_else(
        |error| {
            output::note(&format!("going on without --model {}: {error}", model.display()));
            stored.to_owned()
        },
        |source| source.directory,
    )
}

/// Puts the file, then the flags over a configuration; `model` is what --model names.
fn configured(
    config: FineTuningConfig,
    model: Option<PathBuf>,
    args: &FinetuneArgs,
) -> anyhow::Result<FineTuningConfig> {
    let mut config = match &args.config {
        Some(file) => config.with_file(file)?,
        None => config,
    };
    config.model.path = model.unwrap_or(config.model.path);
    if !args.task.is_empty() {
        config.tasks.names = args.task.clone();
    }
    if let Some(data) = &args.data {
        config.tasks.data = data.clone();
    }
    let training = &mut config.training;
    if let Some(steps) = args.steps {
        (training.steps, config.epochs) = (steps, None);
    }
    config.epochs = args.epochs.or(config.epochs);
    training.batch_size = args.batch_size.unwrap_or(training.batch_size);
    if let Some(every) = args.eval_every {
        (training.eval_every, training.checkpoint_every) = (every, every);
    }
    config.answers.by = args.evaluate_by.unwrap_or(config.answers.by);
    config.patience = args.patience.or(config.patience);
    config.seed = args.seed.unwrap_or(config.seed);
    let mut config = config.with_assignments(&args.assignments)?;
    config.make_absolute()?;
    config.check_paths()?;
    Ok(config)
}

/// Writes the best model, what it made of the tasks and the report, and prints what came of the run.
fn finish(args: &FinetuneArgs, running: &mut Running) -> anyhow::Result<()> {
    let Running { folder, backend, model_config, config, data, trainer, .. } = running;
    let replicas = &trainer.replicas;
    let best = replicas.from_first("the best step", || {
        best_step(&MetricsLog::read(&folder.metrics())?).context("the run has no validation row")
    })?;
    let of_kind = model_config.build(&trainer.device.clone().without_autodiff());
    let files = trainer.files.as_ref();
    let read = files.map(|files| files.checkpoints.model(Some(best), of_kind.clone()));
    let model = replicas.share_module(read.transpose()?.as_ref(), &of_kind, "the best model")?;

    trainer.progress.note(&format!("scoring the model of step {best} on all validation examples"));
    let splits = data.whole_validation(config)?;
    replicas.agree(&on_validation(&splits))?;
    let computing = config.training.precision.to_compute(&model);
    let turns = Turns { replicas, stop: &AtomicBool::new(false) };
    let mut answers = Vec::new();
    for split in &splits {
        let of_split = answer_in_turns(&computing, &data.tokenizer, split, &config.answers, turns)?;
        answers.extend(of_split);
    }
    if !replicas.is_first() {
        return Ok(());
    }
    let directory = ModelDirectory::new(folder.model());
    directory.save(model_config, &model)?;
    copy_companions(&config.model.path, &folder.model())?;
    data.tokenizer.save(&directory.tokenizer_json())?;
    let results = TaskResults::write(folder, best, &splits, &answers, &data.training)?;

    let state = &trainer.state;
    let summary = FineTuningSummary {
        // JSON holds no other text than UTF-8.
        run: folder.path().to_string_lossy().into_owned().into(),
        model: config.model.path.clone(),
        parameters: num_parameters(&model) as u64,
        backend: backend.to_string(),
        seed: config.seed,
        steps: state.step,
        best_step: best,
        mean_score: results.mean_score,
        tasks: results.tasks.iter().map(|result| result.score.clone()).collect(),
        tokens: state.tokens,
        tokens_per_second: state.tokens as f64 / state.elapsed_seconds,
        train_seconds: state.elapsed_seconds,
        replicas: replicas.size(),
        exchange_share: state.exchange_share(),
        peak_memory_bytes: memory::peak(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    folder.write(&folder.summary(), &serde_json::to_vec_pretty(&summary)?)?;
    if let Some(warning) = trainer.recorder.write_views() {
        trainer.progress.warn(&warning);
    }
    if args.json {
        return Ok(output::json(&summary)?);
    }
    print(&summary, &results)
}

/// A task's metrics, beside those of always giving the same answer.
fn scores_line(result: &TaskResult) -> String {
    let list = |score: &TaskScore| {
        let metrics = score.metrics.iter().map(|(name, value)| format!("{name} {value:.4}"));
        metrics.collect::<Vec<_>>().join(" · ")
    };
    let mut line = list(&result.score);
    if let Some(majority) = &result.majority {
        line.push_str(&format!(" (always “{}”: {})", majority.label, list(&majority.score)));
    }
    line
}

fn print(summary: &FineTuningSummary, results: &TaskResults) -> anyhow::Result<()> {
    for result in &results.tasks {
        let TaskScore { task, split, examples, .. } = &result.score;
        let scores = scores_line(result);
        output::line(&format!("{task} · {split} · {examples} examples · {scores}"))?;
    }
    let run = summary.run.display();
    Ok(output::line(&format!(
        "\nbest at step {} of {} in {} · {:.0} tokens/s\n\nreport  {run}/report.html\nmodel   {run}/model\ntasks   \
         {run}/tasks",
        summary.best_step,
        summary.steps,
        format_duration(summary.train_seconds),
        summary.tokens_per_second,
    ))?)
}
