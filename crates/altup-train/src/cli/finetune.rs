use altup_models::{ModelDirectory, T5Config, num_parameters};
use altup_train::checkpoint::{Checkpoints, RunState};
use altup_train::fine_tuning::{
    FineTuningConfig, FineTuningData, TaskResult, TaskResults, TaskTraining, TaskValidation,
    best_step,
};
use altup_train::learner::Learner;
use altup_train::metrics::{MetricsLog, TaskScore};
use altup_train::progress::{Progress, ProgressMode, format_count, format_duration};
use altup_train::report::{Report, RunCurves, Tile};
use altup_train::run_folder::RunFolder;
use altup_train::task_evaluation::AnswerBy;
use altup_train::trainer::{Outcome, Trainer};
use altup_train::training_batches::TrainingBatches;
use anyhow::Context;
use burn::tensor::Device;
use clap::Args;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::convert::copy_companions;
use super::model_source::ModelSource;
use super::train::{peak_memory, stop_on_signals};
use super::{BackendArgs, output};

/// Fine-tune a model on benchmark tasks, text to text as T5 does it.
///
/// Adafactor at a constant rate of 0.001 with a dropout of 0.1, batches of examples of about equal length; the
/// checkpoint with the best scores becomes the model of the run.
#[derive(Args)]
pub(super) struct FinetuneArgs {
    /// A TOML file of the run's configuration; flags go over its keys
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The model: its directory, or the folder of the run that trained it
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// A task or several, by commas (`altup tasks` lists them); a name that ends in .toml is the path of a
    /// description
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    task: Vec<String>,
    /// The task's own folder of original files, or one that holds such folders
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
    /// Optimizer steps
    #[arg(long, value_name = "N")]
    steps: Option<u64>,
    /// Times that training goes through the examples of all tasks together, in place of --steps
    #[arg(long, value_name = "N", conflicts_with_all = ["steps", "resume"])]
    epochs: Option<f64>,
    /// Examples that go through the model at once
    #[arg(long, value_name = "N")]
    batch_size: Option<usize>,
    /// Steps from one validation, and checkpoint, to the next
    #[arg(long, value_name = "N")]
    eval_every: Option<u64>,
    /// How the model answers when it is validated
    #[arg(long, value_enum, value_name = "HOW")]
    evaluate_by: Option<AnswerBy>,
    /// Validations without a better score after which the run ends
    #[arg(long, value_name = "N")]
    patience: Option<u64>,
    /// What all randomness of the run comes from, below 2^63 as TOML's numbers are
    #[arg(long, value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
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
    /// Go on with the run in this folder, exactly where its last checkpoint is
    #[arg(long, value_name = "DIR")]
    resume: Option<PathBuf>,
    /// Show no progress
    #[arg(long)]
    quiet: bool,
    /// Print the figures of the finished run as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    backend: BackendArgs,
}

/// The figures of a finished run.
#[derive(Serialize)]
struct Summary {
    run: PathBuf,
    model: PathBuf,
    parameters: u64,
    backend: String,
    seed: u64,
    steps: u64,
    best_step: u64,
    mean_score: f64,
    tasks: Vec<TaskScore>,
    tokens: u64,
    tokens_per_second: f64,
    train_seconds: f64,
    peak_memory_bytes: Option<u64>,
    version: &'static str,
}

pub(super) fn run(args: FinetuneArgs) -> anyhow::Result<()> {
    let (folder, mut config) = resolve(&args)?;
    config.validate()?;
    let device = args.backend.open()?.autodiff();
    config.training.precision.check(&device)?;
    let device = match config.training.gradient_checkpointing {
        true => device.gradient_checkpointing(),
        false => device,
    };
    let mode = if args.quiet { ProgressMode::Quiet } else { ProgressMode::Auto };
    let data = FineTuningData::prepare(&config)?;
    if let Some(epochs) = args.epochs {
        anyhow::ensure!(epochs > 0.0 && epochs.is_finite(), "--epochs must be above 0");
        config.training.steps = config.steps_of(epochs, data.num_examples());
    }
    let progress = Progress::new(mode, config.training.steps, 0);
    for task in &data.training {
        progress.note(&describe(task, &config));
    }
    // Read before anything is written: a run that can't start leaves nothing behind.
    let (model_config, model) = config.directory().load_as(config.model_config()?, &device)?;
    if args.resume.is_none() {
        folder.create_for(&config.to_toml())?;
        data.tokenizer.save(&folder.tokenizer())?;
    }
    let resumed = args.resume.is_some();
    let mut trainer =
        trainer(&folder, &config, &data, Learner { model }, device, progress, resumed)?;
    let stop = stop_on_signals()?;
    trainer.progress.start(trainer.state.step);
    let outcome = trainer.train(&stop)?;
    trainer.progress.finish();
    match outcome {
        Outcome::Finished => finish(&args, &folder, &config, &model_config, &data, &trainer),
        Outcome::Stopped { step } => {
            let run = folder.path().display();
            trainer.progress.note(&format!(
                "stopped at step {step}, saved; go on with: altup finetune --resume {run}"
            ));
            Ok(())
        }
    }
}

/// The run's folder and its configuration: that of the run which is resumed, or defaults below the
/// file below the flags.
fn resolve(args: &FinetuneArgs) -> anyhow::Result<(RunFolder, FineTuningConfig)> {
    if let Some(path) = &args.resume {
        anyhow::ensure!(
            !path.join("config.toml").exists() || FineTuningConfig::describes(path),
            "{} is a run of `altup train`: go on with `altup train --resume`",
            path.display()
        );
        let (folder, stored) = RunFolder::open_fine_tuning(path)?;
        let base = match &args.config {
            Some(file) => FineTuningConfig::default().with_file(file)?,
            None => stored.clone(),
        };
        let differences = stored.differences(&with_flags(base, args)?);
        anyhow::ensure!(
            differences.is_empty(),
            "the run in {} has another configuration: {}. A run is resumed as it was started",
            path.display(),
            differences.join(", ")
        );
        return Ok((folder, stored));
    }
    let base = match &args.config {
        Some(file) => FineTuningConfig::default().with_file(file)?,
        None => FineTuningConfig::default(),
    };
    let config = with_flags(base, args)?;
    let folder = match &args.output {
        Some(path) => RunFolder::reserve(path, args.overwrite)?,
        None => RunFolder::fresh(&Path::new("runs").join(config.name())),
    };
    Ok((folder, config))
}

fn with_flags(
    mut config: FineTuningConfig,
    args: &FinetuneArgs,
) -> anyhow::Result<FineTuningConfig> {
    if let Some(model) = &args.model {
        config.model.path = ModelSource::find(model)?.directory;
    }
    if !args.task.is_empty() {
        config.tasks.names = args.task.clone();
    }
    if let Some(data) = &args.data {
        config.tasks.data = data.clone();
    }
    let training = &mut config.training;
    training.steps = args.steps.unwrap_or(training.steps);
    training.batch_size = args.batch_size.unwrap_or(training.batch_size);
    if let Some(every) = args.eval_every {
        (training.eval_every, training.checkpoint_every) = (every, every);
    }
    config.answers.by = args.evaluate_by.unwrap_or(config.answers.by);
    config.patience = args.patience.or(config.patience);
    config.seed = args.seed.unwrap_or(config.seed);
    let mut config = config.with_assignments(&args.assignments)?;
    config.make_absolute()?;
    Ok(config)
}

/// A task's training examples in a line.
fn describe(task: &TaskTraining, config: &FineTuningConfig) -> String {
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

fn trainer(
    folder: &RunFolder,
    config: &FineTuningConfig,
    data: &FineTuningData,
    learner: Learner,
    device: Device,
    progress: Progress,
    resumed: bool,
) -> anyhow::Result<Trainer> {
    let checkpoints = Checkpoints::new(folder.checkpoints(), config.training.keep_last);
    let optimizer = config.optimizer.init();
    let (state, learner, optimizer, metrics) = if resumed {
        let restored = checkpoints.restore(learner, optimizer)?;
        for damage in &restored.damaged {
            progress.note(&format!("passed over a checkpoint: {damage}"));
        }
        anyhow::ensure!(
            restored.state.data == data.fingerprint,
            "the training examples or the tokenizer have changed since the run in {} was started",
            folder.path().display()
        );
        progress.note(&format!("resuming after step {}", restored.state.step));
        let metrics = MetricsLog::resume(&folder.metrics(), restored.state.step)?;
        (restored.state, restored.learner, restored.optimizer, metrics)
    } else {
        let state = RunState { data: data.fingerprint.clone(), ..RunState::default() };
        (state, learner, optimizer, MetricsLog::create(&folder.metrics())?)
    };
    let validation = TaskValidation::new(
        data.valid.clone(),
        Arc::clone(&data.tokenizer),
        config.answers.clone(),
        config.patience,
        &MetricsLog::read(&folder.metrics())?,
    );
    Ok(Trainer {
        config: config.trainer(),
        device,
        train_data: Arc::clone(&data.train) as Arc<dyn TrainingBatches>,
        valid_data: Box::new(validation),
        learner,
        optimizer,
        state,
        checkpoints,
        metrics,
        progress,
    })
}

/// Writes the best model, what it made of the tasks and the report, and prints what came of the run.
fn finish(
    args: &FinetuneArgs,
    folder: &RunFolder,
    config: &FineTuningConfig,
    model_config: &T5Config,
    data: &FineTuningData,
    trainer: &Trainer,
) -> anyhow::Result<()> {
    let rows = MetricsLog::read(&folder.metrics())?;
    let best = best_step(&rows).context("the run has no validation row")?;
    let device = trainer.device.clone().without_autodiff();
    let model = trainer.checkpoints.model(Some(best), model_config.build(&device))?;
    let directory = ModelDirectory::new(folder.model());
    // The dropout of the run is not the model's.
    let dropout_rate = config.directory().config()?.dropout_rate;
    directory.save(&T5Config { dropout_rate, ..model_config.clone() }, &model)?;
    copy_companions(&config.model.path, &folder.model())?;

    trainer.progress.note(&format!("scoring the model of step {best} on all validation examples"));
    let splits = data.whole_validation(config)?;
    let model = config.training.precision.to_compute(&model);
    let (tokenizer, training) = (&data.tokenizer, &data.training);
    let results =
        TaskResults::write(folder, best, &model, tokenizer, &splits, training, &config.answers)?;

    let state = &trainer.state;
    let summary = Summary {
        run: folder.path().to_owned(),
        model: config.model.path.clone(),
        parameters: num_parameters(&model) as u64,
        backend: args.backend.backend.to_string(),
        seed: config.seed,
        steps: state.step,
        best_step: best,
        mean_score: results.mean_score,
        tasks: results.tasks.iter().map(|result| result.score.clone()).collect(),
        tokens: state.tokens,
        tokens_per_second: state.tokens as f64 / state.elapsed_seconds,
        train_seconds: state.elapsed_seconds,
        peak_memory_bytes: peak_memory(),
        version: env!("CARGO_PKG_VERSION"),
    };
    folder.write(&folder.summary(), &serde_json::to_vec_pretty(&summary)?)?;
    let report = Report {
        title: config.name(),
        tiles: Tile::summary(&rows, None),
        facts: facts(&summary, config, data, &results),
        runs: vec![RunCurves { name: config.name(), rows }],
        examples: Vec::new(),
        configuration: config.to_toml(),
    };
    report.write(folder.path())?;
    if args.json {
        return Ok(output::json(&summary)?);
    }
    print(&summary, &results)
}

fn facts(
    summary: &Summary,
    config: &FineTuningConfig,
    data: &FineTuningData,
    results: &TaskResults,
) -> Vec<(String, String)> {
    let mut facts = vec![
        (
            "Model".to_owned(),
            format!(
                "{}, {} parameters, of step {}",
                summary.model.display(),
                format_count(summary.parameters),
                summary.best_step
            ),
        ),
        ("Backend".to_owned(), summary.backend.clone()),
        ("Seed".to_owned(), summary.seed.to_string()),
        ("Software".to_owned(), format!("altup {}, Burn 0.22.1", summary.version)),
    ];
    for (training, result) in data.training.iter().zip(&results.tasks) {
        let fact = format!("{}; {}", describe(training, config), scores_line(result));
        facts.push((result.score.task.clone(), fact));
    }
    facts
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

fn print(summary: &Summary, results: &TaskResults) -> anyhow::Result<()> {
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
