use altup_data::{Corpus, Mixture, PrepareOptions, PretrainingData, TextTokenizer};
use altup_models::ModelDirectory;
use altup_train::config::RunConfig;
use altup_train::evaluation::evaluate_mixture;
use altup_train::fine_tuning::FineTuningConfig;
use altup_train::learner::Learner;
use altup_train::metrics::TokenScore;
use altup_train::progress::{Progress, ProgressMode};
use altup_train::run_data::{DataCache, RunData};
use altup_train::run_folder::RunFolder;
use anyhow::Context;
use clap::Args;
use std::path::PathBuf;
use std::sync::Arc;

use super::evaluate_tasks::{ModelArgs, TaskArgs};
use super::model_source::ModelSource;
use super::{BackendArgs, CacheArgs, PrecisionArgs, output};

/// Score a model on text, or a model or predictions on benchmark tasks
///
/// On text: loss per token, perplexity and accuracy, under the run's objective, or span corruption where there is no run.
#[derive(Args)]
pub(super) struct EvaluateArgs {
    /// A model directory, the folder of a run, or the name of a model on the Hugging Face hub
    #[arg(long, value_name = "DIR", required_unless_present = "task")]
    model: Option<PathBuf>,
    #[command(flatten)]
    tasks: TaskArgs,
    /// Files, folders and globs of text to score [default: what the run was validated on]
    #[arg(long, num_args = 1.., value_name = "SOURCE")]
    valid: Vec<String>,
    /// A tokenizer.json, or a SentencePiece file that ends in .model [default: the model's]
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// Length of the inputs in tokens [default: the run's, or 512]
    #[arg(long, value_name = "TOKENS")]
    input_length: Option<usize>,
    /// Examples of each text or task to score at most, a sample of it [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    examples: Option<u64>,
    /// Examples that go through the model at once
    #[arg(long, default_value_t = 16, value_name = "N")]
    batch_size: usize,
    /// The seed of the masked spans, or of the sample of a task [default: the run's, or 0]
    #[arg(long)]
    seed: Option<u64>,
    /// Print the scores as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    backend: BackendArgs,
    #[command(flatten)]
    precision: PrecisionArgs,
    #[command(flatten)]
    cache: CacheArgs,
}

pub(super) fn run(args: EvaluateArgs) -> anyhow::Result<()> {
    if args.tasks.is_asked() {
        let model = ModelArgs {
            model: args.model.as_deref(),
            tokenizer: args.tokenizer.as_deref(),
            input_length: args.input_length,
            examples: args.examples,
            batch_size: args.batch_size,
            seed: args.seed,
            backend: &args.backend,
            precision: &args.precision,
        };
        return args.tasks.run(&model, args.json);
    }
    let model = args.model.as_ref().context("--model is missing")?;
    let source = ModelSource::find(model)?;
    let mut config = match &source.run {
        Some(run) if !FineTuningConfig::describes(run) => RunFolder::open(run)?.1,
        _ => RunConfig::default(),
    };
    if !args.valid.is_empty() {
        config.data.valid = args.valid;
        config.data.sources.clear();
    }
    anyhow::ensure!(args.batch_size > 0, "--batch-size must be at least 1");
    config.seed = args.seed.unwrap_or(config.seed);
    config.data.input_length = args.input_length.unwrap_or(config.data.input_length);

    let device = args.backend.open()?;
    let (model_config, model) = source.load(&device)?;
    let model = args.precision.apply(model)?;
    let tokenizer = match &args.tokenizer {
        Some(path) => TextTokenizer::load(path)?,
        None => source.tokenizer()?,
    };
    anyhow::ensure!(
        tokenizer.vocab_size() <= model_config.vocab_size,
        "the tokenizer has {} ids and the model only {}",
        tokenizer.vocab_size(),
        model_config.vocab_size
    );
    let cache = DataCache::new(&args.cache.folder());
    let data = if !config.data.valid.is_empty() {
        let corpus = Corpus::open(&config.data.valid)?;
        let options =
            PrepareOptions { on_error: config.data.on_error, ..PrepareOptions::default() };
        let tokens = cache.store().prepare(&corpus, &tokenizer, options, &mut |_| ())?;
        let objective = config.objective(&tokenizer)?;
        let data =
            PretrainingData::validation(Arc::new(tokens), &tokenizer, objective, config.seed)?;
        Mixture::single(data)
    } else if source.run.as_deref().is_some_and(|run| !FineTuningConfig::describes(run)) {
        // The run held out a part of its training corpus.
        let quiet = Progress::new(ProgressMode::Quiet, 0, 0);
        let model_tokenizer = ModelDirectory::new(&source.directory).tokenizer();
        let path = args.tokenizer.as_deref().unwrap_or(&model_tokenizer);
        RunData::prepare(&config, Some(path), &cache, &quiet)?.valid
    } else {
        anyhow::bail!("there is no validation text: name it with --valid");
    };
    let examples = args.examples.unwrap_or(u64::MAX);
    let scores = evaluate_mixture(&Learner { model }, &data, examples, args.batch_size, 0, &device);
    if args.json {
        return Ok(output::json(&serde_json::json!({
            "loss": scores.loss,
            "perplexity": scores.perplexity,
            "accuracy": scores.accuracy,
            "tokens": scores.tokens,
            "text": scores.text,
            "sources": scores.sources,
        }))?);
    }
    for source in &scores.sources {
        output::line(&format!("{}: loss {:.4} nats/token", source.name, source.loss))?;
    }
    output::line(&format!(
        "loss {:.4} nats/token · perplexity {:.2} · accuracy {:.2} % · {} target tokens",
        scores.loss,
        scores.perplexity,
        100.0 * scores.accuracy,
        scores.tokens,
    ))?;
    if let Some(TokenScore { loss, accuracy, tokens }) = scores.text {
        output::line(&format!(
            "of the text alone: loss {loss:.4} nats/token · accuracy {:.2} % · {tokens} tokens",
            100.0 * accuracy,
        ))?;
    }
    Ok(())
}
