use altup_data::corpus::SkippedInFile;
use altup_data::store::{CorpusEntry, StoreContents};
use altup_data::{OnError, PrepareOptions, TokenRow};
use altup_train::config::{ModelConfig, RunConfig};
use altup_train::progress::{Progress, ProgressMode, format_bytes, format_count, format_duration};
use altup_train::run_data::{DataCache, PreparedText, describe};
use altup_train::summary::SkippedLines;
use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use std::path::PathBuf;
use std::time::Duration;

use super::{CacheArgs, output};

/// Prepare text ahead of time, see what is prepared, and throw old text away
#[derive(Args)]
pub(super) struct DataArgs {
    #[command(subcommand)]
    command: DataCommand,
}

#[derive(Subcommand)]
enum DataCommand {
    Prepare(PrepareArgs),
    List(ListArgs),
    Prune(PruneArgs),
}

/// Tokenize text for runs to come
///
/// What is finished is kept, however this ends: the same command goes on. Several processes may
/// prepare the same text at once, and runs take what is there.
#[derive(Args)]
struct PrepareArgs {
    /// The TOML file of a run's configuration, for its texts and its tokenizer; flags go over it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Files, folders and globs of text to train on; more of them where it is given again
    #[arg(long, num_args = 1.., value_name = "SOURCE")]
    train: Vec<String>,
    /// Files, folders and globs of text to validate on [default: every 100th document of the training text]
    #[arg(long, num_args = 1.., value_name = "SOURCE")]
    valid: Vec<String>,
    /// A Hugging Face tokenizer.json, or a SentencePiece file that ends in .model [default: that of --init, or one trained
    /// from the text]
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// The model directory that the runs will start from, for its tokenizer
    #[arg(long, value_name = "DIR")]
    init: Option<PathBuf>,
    /// What to do about lines that can't be read [default: stop]. A run on text with skipped lines needs
    /// data.on_error=skip too
    #[arg(long, value_enum)]
    on_error: Option<OnErrorArg>,
    /// Threads that tokenize [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    workers: Option<u16>,
    /// Read all that is found prepared, and make anew what is damaged
    #[arg(long)]
    verify: bool,
    /// Any key of the configuration, as in data.vocab_size=8000
    #[arg(long = "set", value_name = "KEY=VALUE")]
    assignments: Vec<String>,
    /// Show no progress
    #[arg(long)]
    quiet: bool,
    /// Print the figures as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    cache: CacheArgs,
}

#[derive(Clone, Copy, ValueEnum)]
enum OnErrorArg {
    Stop,
    Skip,
}

/// List the prepared texts, with their sizes
#[derive(Args)]
struct ListArgs {
    /// Print the list as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    cache: CacheArgs,
}

/// Remove prepared text that wasn't used for a time, and tokenizers trained for it; runs in progress on this machine keep
/// what they have open
#[derive(Args)]
struct PruneArgs {
    /// Days without use from which on a text is removed; a run uses its text when it starts
    #[arg(long, default_value_t = 30, value_name = "DAYS", conflicts_with = "all")]
    unused_days: u64,
    /// Remove all prepared text
    #[arg(long)]
    all: bool,
    /// Only say what would be removed
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    cache: CacheArgs,
}

pub(super) fn run(args: DataArgs) -> anyhow::Result<()> {
    match args.command {
        DataCommand::Prepare(args) => prepare(args),
        DataCommand::List(args) => list(&args),
        DataCommand::Prune(args) => prune(&args),
    }
}

/// A prepared text in figures.
#[derive(Serialize)]
struct Prepared {
    name: String,
    split: &'static str,
    shards: u64,
    shards_made: u64,
    documents: u64,
    tokens: u64,
    text_bytes: u64,
}

impl Prepared {
    fn new(name: &str, split: &'static str, row: &TokenRow) -> Self {
        Self {
            name: name.to_owned(),
            split,
            shards: row.shards(),
            shards_made: row.shards_made(),
            documents: row.documents(),
            tokens: row.len(),
            text_bytes: row.text_bytes(),
        }
    }
}

fn prepare(args: PrepareArgs) -> anyhow::Result<()> {
    let mut config = match &args.config {
        Some(file) => RunConfig::default().with_file(file)?,
        None => RunConfig::tiny_altup(),
    };
    if let Some(directory) = args.init {
        // It has the rest of the model.
        config.model = ModelConfig { init: Some(directory), ..ModelConfig::default() };
    }
    let data = &mut config.data;
    if !args.train.is_empty() {
        data.train = args.train;
    }
    if !args.valid.is_empty() {
        data.valid = args.valid;
    }
    data.tokenizer = args.tokenizer.or(data.tokenizer.take());
    data.on_error = match args.on_error {
        Some(OnErrorArg::Stop) => OnError::Stop,
        Some(OnErrorArg::Skip) => OnError::Skip,
        None => data.on_error,
    };
    let mut config = config.with_assignments(&args.assignments)?;
    config.take_tokenizer_of_init();
    config.make_absolute()?;
    config.validate()?;

    let mode = if args.quiet { ProgressMode::Quiet } else { ProgressMode::Auto };
    let progress = Progress::new(mode, 0, 0);
    let defaults = PrepareOptions::default();
    let options = PrepareOptions {
        on_error: config.data.on_error,
        workers: args.workers.map_or(defaults.workers, usize::from),
        verify: args.verify,
        ..defaults
    };
    let cache = DataCache::new(&args.cache.folder());
    let text = PreparedText::prepare(&config, None, &cache, options, &progress)?;
    progress.finish();
    let skipped = text.skipped();
    let rows = text.sources.iter().flat_map(|source| {
        [(&source.name, "train", &source.train), (&source.name, "valid", &source.valid)]
    });
    if args.json {
        let texts = rows.map(|(name, split, row)| Prepared::new(name, split, row));
        let texts: Vec<Prepared> = texts.collect();
        let skipped: Vec<SkippedLines> = skipped.iter().map(SkippedLines::from).collect();
        return Ok(output::json(&serde_json::json!({ "texts": texts, "skipped": skipped }))?);
    }
    for (name, split, row) in rows {
        let label = [name, split].into_iter().filter(|part| !part.is_empty());
        let label = label.collect::<Vec<_>>().join(" ");
        let made = row.shards_made();
        let found = row.shards() - made;
        output::line(&format!("{label}: {} ({made} tokenized, {found} found)", describe(row)))?;
    }
    for SkippedInFile { file, count, first } in &skipped {
        output::line(&format!("left out of {}: {count}", file.display()))?;
        for defect in first {
            output::line(&format!("  {defect}"))?;
        }
    }
    Ok(())
}

fn list(args: &ListArgs) -> anyhow::Result<()> {
    let cache = DataCache::new(&args.cache.folder());
    let store = cache.store();
    let contents = store.contents()?;
    if args.json {
        return Ok(output::json(&contents)?);
    }
    let StoreContents {
        corpora,
        other_shards,
        other_bytes,
        older_bytes,
        tokenizers,
        tokenizer_bytes,
        bytes,
    } = contents;
    for corpus in &corpora {
        output::line(&entry(corpus))?;
    }
    if other_shards > 0 {
        let size = format_bytes(other_bytes);
        output::line(&format!("{other_shards} shards of no finished text, {size}"))?;
    }
    if older_bytes > 0 {
        output::line(&format!("left by earlier releases: {}", format_bytes(older_bytes)))?;
    }
    if tokenizers > 0 {
        let size = format_bytes(tokenizer_bytes);
        output::line(&format!("{tokenizers} tokenizers trained from texts, {size}"))?;
    }
    let folder = store.folder().display();
    Ok(output::line(&format!("{} in {folder}", format_bytes(bytes)))?)
}

fn entry(corpus: &CorpusEntry) -> String {
    let unused = corpus.last_used.elapsed().unwrap_or_default().as_secs_f64();
    format!(
        "{}\n  {} in {} shards, {} documents, {} tokens; tokenizer {} of {} ids; last used {} ago",
        corpus.sources.join(" "),
        format_bytes(corpus.bytes),
        corpus.shards,
        format_count(corpus.documents),
        format_count(corpus.tokens),
        &corpus.tokenizer[..corpus.tokenizer.len().min(8)],
        corpus.vocab_size,
        format_duration(unused),
    )
}

fn prune(args: &PruneArgs) -> anyhow::Result<()> {
    const DAY: u64 = 86_400;
    let days = if args.all { 0 } else { args.unused_days };
    let unused_for = Duration::from_secs(days.saturating_mul(DAY));
    let cache = DataCache::new(&args.cache.folder());
    let removed = cache.store().prune(unused_for, !args.dry_run)?;
    let verb = if args.dry_run { "would remove" } else { "removed" };
    Ok(output::line(&format!(
        "{verb} {} texts and {} shards, and {} tokenizers: {}",
        removed.corpora,
        removed.shards,
        removed.tokenizers,
        format_bytes(removed.bytes)
    ))?)
}
