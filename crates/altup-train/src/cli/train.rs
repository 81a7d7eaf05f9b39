use altup_models::{ModelDirectory, num_parameters};
use altup_train::config::{ModelConfig, RunConfig};
use altup_train::device::{DeviceName, hardware_name};
use altup_train::memory;
use altup_train::metrics::{MetricsLog, MetricsRow, SourceEpochs, StartRow};
use altup_train::precision::Precision;
use altup_train::process::quoted;
use altup_train::progress::format_duration;
use altup_train::recorder::warning;
use altup_train::replicas::Replicas;
use altup_train::run_data::DataCache;
use altup_train::samples::{self, SamplePrompts, SampleRow};
use altup_train::summary::{self, Summary};
use altup_train::trainer::Outcome;
use altup_train::variant::Variant;
use anyhow::Context;
use clap::Args;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::replicas::agreement_on;
use super::start::{Place, Running, Start, TRAIN};
use super::{CacheArgs, config_number, output, stop};

/// Pre-train a T5 or an AltUp T5 on text: by span corruption, or by the objective that data.objective names.
///
/// Without any flag: a tiny AltUp T5 on the crate sources that Cargo has unpacked on this machine.
///
/// Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 end a run before its next batch, saved, with the exit code 75: it is not
/// finished, and --resume goes on with it. A second signal, two seconds or more behind the first, ends it at once.
///
/// Several processes train one model together under a launcher, in a build with `--features mpi`: `mpirun -n 4 altup
/// train …`. They share the micro-batches of each step, training.gradient_accumulation (docs/scale-out.md).
#[derive(Args)]
pub(super) struct TrainArgs {
    /// A TOML file of the run's configuration; flags go over its keys
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Start from the model in this directory, with its tokenizer unless another is named; `altup convert` makes one of a
    /// dense T5
    #[arg(long, value_name = "DIR", conflicts_with_all = ["size", "variant", "blocks"])]
    init: Option<PathBuf>,
    /// A named model size: `altup sizes` lists them
    #[arg(long, value_name = "NAME")]
    size: Option<String>,
    /// How the representation is widened
    #[arg(long, value_enum)]
    variant: Option<Variant>,
    /// The number of blocks K of a widened representation [default: that of the file, or 2]
    #[arg(long, value_name = "K", value_parser = config_number::<usize>())]
    blocks: Option<usize>,
    /// Files, folders and globs of text to train on; more of them where it is given again
    #[arg(long, num_args = 1.., value_name = "SOURCE")]
    train: Vec<String>,
    /// Files, folders and globs of text to validate on [default: every 100th document of the training text]
    #[arg(long, num_args = 1.., value_name = "SOURCE")]
    valid: Vec<String>,
    /// A Hugging Face tokenizer.json, or a SentencePiece file that ends in .model [default: one trained from the text]
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// Optimizer steps
    #[arg(long, value_name = "N", value_parser = config_number::<u64>())]
    steps: Option<u64>,
    /// Examples that go through the model at once
    #[arg(long, value_name = "N", value_parser = config_number::<usize>())]
    batch_size: Option<usize>,
    /// The type that passes compute in; the weights of record stay f32
    #[arg(long, value_enum)]
    precision: Option<Precision>,
    /// What all randomness of the run comes from, below 2^63 as TOML's numbers are
    #[arg(long, value_parser = config_number::<u64>())]
    seed: Option<u64>,
    /// Any key of the configuration, as in training.eval_every=100
    #[arg(long = "set", value_name = "KEY=VALUE")]
    assignments: Vec<String>,
    /// The folder of the run [default: a new one in runs/]
    #[arg(long, value_name = "DIR", conflicts_with = "resume")]
    output: Option<PathBuf>,
    /// Replace the run in the output folder
    #[arg(long, requires = "output", conflicts_with = "resume")]
    overwrite: bool,
    /// Go on with the run in this folder, exactly where its last checkpoint is. Its length, its learning rate and
    /// schedule, and how it is watched and kept may be given anew; its model and data are fixed (docs/formats.md has the
    /// keys)
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
    #[command(flatten)]
    cache: CacheArgs,
}

pub(super) fn run(args: TrainArgs, replicas: &Replicas) -> anyhow::Result<ExitCode> {
    let agreement = agreement_on(TRAIN)
        .and("--resume", args.resume.is_some())
        .and("--auto-resume", args.auto_resume)
        .and_if_any("--from", args.from);
    replicas.agree(&agreement)?;
    let cache = DataCache::new(&args.cache.folder());
    let start = Start::new(args.backend.as_ref(), args.quiet, replicas);
    let begun = start.begun(args.output.as_ref(), args.auto_resume)?;
    let mut running = match args.resume.as_ref().or(begun) {
        Some(path) => start.resume(path, args.from, &cache, |stored| configured(stored, &args))?,
        None => {
            let config = configured(new_config(&args), &args)?;
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
            start.new_run(config, place, &cache)?
        }
    };
    begin_record(&mut running)?;
    if running.train()? == Outcome::Stopped {
        return Ok(stop::exit_code());
    }
    if replicas.is_first() {
        finish(&args, &mut running)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What the configuration of a new run starts from, below its file and its flags.
fn new_config(args: &TrainArgs) -> RunConfig {
    let mut config = match &args.config {
        Some(_) => RunConfig::default(),
        None => RunConfig::tiny_altup(),
    };
    if args.init.is_some() {
        // The directory has it.
        config.model = ModelConfig::default();
    }
    config
}

/// Puts the file, then the flags over a configuration.
fn configured(config: RunConfig, args: &TrainArgs) -> anyhow::Result<RunConfig> {
    let mut config = match &args.config {
        Some(file) => config.with_file(file)?,
        None => config,
    };
    if let Some(directory) = &args.init {
        config.model.init = Some(directory.clone());
    }
    if let Some(size) = &args.size {
        config.model.size = size.clone();
    }
    // A single block is there for the sequence's sake.
    let configured = config.model.altup.as_ref().map(|altup| altup.num_blocks);
    let blocks = args.blocks.or(configured.filter(|&blocks| blocks > 1));
    match (args.variant, args.blocks) {
        (Some(Variant::Dense), Some(_)) => {
            anyhow::bail!("--blocks has no meaning with --variant dense");
        }
        (Some(variant), _) => {
            // How the sequence is reduced is no part of the variant.
            let sequence = config.model.altup.take().and_then(|altup| altup.encoder_sequence);
            config.model.altup = variant.altup(blocks.unwrap_or(2));
            match &mut config.model.altup {
                Some(altup) => altup.encoder_sequence = sequence,
                None => anyhow::ensure!(
                    sequence.is_none(),
                    "--variant dense would drop model.altup.encoder_sequence: take it out of the configuration, or name \
                     another variant"
                ),
            }
        }
        (None, Some(blocks)) => match &mut config.model.altup {
            Some(altup) => altup.num_blocks = blocks,
            None => anyhow::bail!("--blocks needs a --variant other than dense"),
        },
        (None, None) => {}
    }
    if !args.train.is_empty() {
        config.data.train = args.train.clone();
    }
    if !args.valid.is_empty() {
        config.data.valid = args.valid.clone();
    }
    if let Some(tokenizer) = &args.tokenizer {
        config.data.tokenizer = Some(tokenizer.clone());
    }
    config.training.steps = args.steps.unwrap_or(config.training.steps);
    config.training.batch_size = args.batch_size.unwrap_or(config.training.batch_size);
    config.training.precision = args.precision.unwrap_or(config.training.precision);
    config.seed = args.seed.unwrap_or(config.seed);
    let mut config = config.with_assignments(&args.assignments)?;
    config.take_tokenizer_of_init();
    // Absolute, so that the run can be resumed from any folder.
    config.make_absolute()?;
    config.check_paths()?;
    Ok(config)
}

/// Begins to write down how the run goes: the metrics get their first row.
fn begin_record(running: &mut Running) -> anyhow::Result<()> {
    let Running { folder, backend, config, data, trainer, .. } = running;
    let Some(files) = &mut trainer.files else { return Ok(()) };
    /// Validation examples that are samples beside the configuration's prompts.
    const EXAMPLES: u64 = 3;
    let training = &config.training;
    let valid = &data.valid.sources()[0].data;
    let examples = (0..EXAMPLES.min(valid.num_segments())).map(|n| valid.example(n).inputs);
    let prompts = SamplePrompts::new(&training.prompts, examples, &data.tokenizer)?;
    trainer.recorder.show(folder);
    trainer.recorder.sample(folder, prompts, &trainer.state)?;
    let hardware = hardware_name(&trainer.device).map(|name| format!(" ({name})"));
    let start = StartRow {
        step: trainer.state.step,
        parameters: num_parameters(&trainer.learner.model) as u64,
        backend: format!("{backend}{}", hardware.unwrap_or_default()),
        text: data.description.clone(),
        replicas: trainer.replicas.size(),
        ..StartRow::default()
    };
    let dtype = training.precision.dtype();
    trainer.recorder.begin(&mut files.metrics, start, &trainer.device, dtype)?;
    if let Some(warning) = trainer.recorder.show_if_due() {
        trainer.progress.warn(&warning);
    }
    Ok(())
}

/// Writes the trained model, its figures and the report, and prints what came of the run.
fn finish(args: &TrainArgs, running: &mut Running) -> anyhow::Result<()> {
    use burn::module::Module;
    let Running { folder, backend, model_config, config, data, trainer, .. } = running;
    let model = trainer.learner.valid().model;
    let directory = ModelDirectory::new(folder.model());
    directory.save(model_config, &model)?;
    data.tokenizer.save(&directory.tokenizer_json())?;

    let mut valid = None;
    for row in MetricsLog::rows(&folder.metrics())? {
        if let MetricsRow::Valid(row) = row? {
            valid = Some(row);
        }
    }
    let valid = valid.context("the run has no validation row")?;
    let state = &trainer.state;
    let summary = Summary {
        // JSON holds no other text than UTF-8.
        run: folder.path().to_string_lossy().into_owned().into(),
        model: config.name(),
        parameters: num_parameters(&model) as u64,
        backend: backend.to_string(),
        seed: config.seed,
        steps: state.step,
        tokens: state.tokens,
        valid_loss: valid.loss,
        valid_perplexity: valid.perplexity,
        valid_accuracy: valid.accuracy,
        valid_text: valid.text,
        unigram_loss: data.unigram_loss(config.training.eval_examples_at(state.step)),
        tokens_per_second: state.tokens as f64 / state.elapsed_seconds,
        train_seconds: state.elapsed_seconds,
        replicas: trainer.replicas.size(),
        exchange_share: state.exchange_share(),
        peak_memory_bytes: memory::peak(),
        sources: valid.sources,
        epochs: SourceEpochs::of(&data.train, examples_seen(config, state.data_steps())),
        skipped: data.skipped.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    folder.write(&folder.summary(), &serde_json::to_vec_pretty(&summary)?)?;
    if let Some(warning) = trainer.recorder.write_views() {
        trainer.progress.warn(&warning);
    }
    if args.json {
        return Ok(output::json(&summary)?);
    }
    let samples = samples::read(&folder.samples()).unwrap_or_else(|error| {
        trainer.progress.warn(&warning(&error));
        Vec::new()
    });
    print(&summary, &samples)
}

/// Training examples that the first `steps` steps take.
fn examples_seen(config: &RunConfig, steps: u64) -> u64 {
    steps * (config.training.batch_size * config.training.gradient_accumulation) as u64
}

fn print(summary: &Summary, samples: &[SampleRow]) -> anyhow::Result<()> {
    let together = summary::together(summary.replicas, summary.exchange_share);
    let of_text =
        summary.valid_text.map(|text| format!(", of text {:.1} %", 100.0 * text.accuracy));
    output::line(&format!(
        "\nvalidation loss {:.3} nats a token, where a unigram model has {:.3}\n\
         perplexity {:.1} · accuracy {:.1} %{} · {} steps in {} · {:.0} tokens/s{}",
        summary.valid_loss,
        summary.unigram_loss,
        summary.valid_perplexity,
        100.0 * summary.valid_accuracy,
        of_text.unwrap_or_default(),
        summary.steps,
        format_duration(summary.train_seconds),
        summary.tokens_per_second,
        together.map_or_else(String::new, |together| format!(" · {together}")),
    ))?;
    let last: Vec<&SampleRow> =
        samples.iter().filter(|sample| sample.step == summary.steps).collect();
    if !last.is_empty() {
        output::line("\nWhat it writes:")?;
    }
    for SampleRow { prompt, filled, .. } in &last {
        output::line(&format!("  {}\n  → {}", in_a_line(prompt), in_a_line(filled)))?;
    }
    let run = summary.run.display();
    output::line(&format!("\nreport  {run}/report.html\nmodel   {run}/model"))?;
    if let Some(SampleRow { prompt, .. }) = last.first() {
        let [model, text] =
            [&*summary.run.to_string_lossy(), in_a_line(prompt).as_str()].map(quoted);
        // A text that begins as a flag does is none.
        let end_of_flags = if prompt.trim_start().starts_with('-') { "-- " } else { "" };
        output::line(&format!("try     altup generate --model {model} {end_of_flags}{text}"))?;
    }
    Ok(())
}

/// A text with every stretch of white space as one space.
fn in_a_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
