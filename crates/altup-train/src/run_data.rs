//! From a run's configuration to its tokenizer and examples.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use crate::config::RunConfig;
use crate::data::token_cache::CacheProgress;
use crate::data::{Corpus, DataError, PretrainingData, TextTokenizer, TokenCache, UnigramBaseline};
use crate::progress::{Progress, format_bytes, format_count};

/// Bytes of crate sources that the built-in corpus takes.
const BUILT_IN_BYTES: u64 = 16 << 20;
/// Bytes of text that a tokenizer is trained on.
const TOKENIZER_BYTES: u64 = 4 << 20;
/// Every how many-th document is held out where there is no validation corpus.
const HELD_OUT: u64 = 100;
/// Training examples that the unigram model counts.
const UNIGRAM_EXAMPLES: u64 = 4096;

/// The data of a run.
pub struct RunData {
    /// The tokenizer.
    pub tokenizer: TextTokenizer,
    /// Examples to train on.
    pub train: Arc<PretrainingData>,
    /// Examples to validate on.
    pub valid: PretrainingData,
    /// The training text, in figures.
    pub description: String,
    /// What the training tokens are: changes with them, but not with when or where they lie.
    pub fingerprint: String,
}

impl RunData {
    /// Prepares the data of a run; what was prepared before is taken from `cache_folder`. A run that
    /// is resumed brings its own `tokenizer`.
    ///
    /// # Errors
    ///
    /// Names the file, and its line where it has lines.
    pub fn prepare(
        config: &RunConfig,
        tokenizer: Option<&Path>,
        cache_folder: &Path,
        progress: &Progress,
    ) -> Result<Self, DataError> {
        let corpus = if config.data.train.is_empty() {
            Corpus::cargo_sources(BUILT_IN_BYTES)?
        } else {
            Corpus::open(&config.data.train)?
        };
        let (train, valid) = if config.data.valid.is_empty() {
            corpus.clone().split(HELD_OUT)
        } else {
            (corpus.clone(), Corpus::open(&config.data.valid)?)
        };
        let tokenizer = match tokenizer.or(config.data.tokenizer.as_deref()) {
            Some(path) => TextTokenizer::load(path)?,
            None => trained_tokenizer(&train, config.data.vocab_size, cache_folder, progress)?,
        };
        config.span_corruption().check(tokenizer.sentinels().len())?;

        let tokens = |corpus: &Corpus, name: &str| {
            let mut report = |so_far: CacheProgress| {
                let text = format_bytes(so_far.text_bytes);
                progress.stage(&format!("tokenizing the {name} text: {text}"));
            };
            let folder = cache_folder.join("tokens");
            TokenCache::open_or_build(&folder, corpus, &tokenizer, &mut report).map(Arc::new)
        };
        let (train_tokens, valid_tokens) =
            (tokens(&train, "training")?, tokens(&valid, "validation")?);
        let description = format!(
            "{} documents, {} of text, {} tokens",
            format_count(train_tokens.documents()),
            format_bytes(train_tokens.text_bytes()),
            format_count(train_tokens.len() as u64),
        );
        progress.note(&format!("training text: {description}"));
        let fingerprint = fingerprint(&train_tokens, &tokenizer);
        let (corruption, seed) = (config.span_corruption(), config.seed);
        let train = PretrainingData::training(train_tokens, &tokenizer, corruption, seed)?;
        let valid = PretrainingData::validation(valid_tokens, &tokenizer, corruption, seed)?;
        Ok(Self { tokenizer, train: Arc::new(train), valid, description, fingerprint })
    }

    /// The loss, on the first `eval_examples` validation examples, of a model that knows how often
    /// each token occurs in the training targets, and nothing else.
    pub fn unigram_loss(&self, eval_examples: u64) -> f64 {
        let targets = |data: &PretrainingData, examples: u64| -> Vec<Vec<u32>> {
            (0..examples.min(data.num_segments())).map(|n| data.example(n).targets).collect()
        };
        let train = targets(&self.train, UNIGRAM_EXAMPLES);
        UnigramBaseline::from_targets(train, self.tokenizer.vocab_size())
            .loss(targets(&self.valid, eval_examples))
    }
}

/// A tokenizer trained from the corpus, or the one trained from it before.
fn trained_tokenizer(
    corpus: &Corpus,
    vocab_size: usize,
    cache_folder: &Path,
    progress: &Progress,
) -> Result<TextTokenizer, DataError> {
    let folder = cache_folder.join("tokenizers");
    let path = folder.join(format!("{}-{vocab_size}.json", corpus.fingerprint()?));
    if let Ok(tokenizer) = TextTokenizer::load(&path) {
        return Ok(tokenizer);
    }
    progress.stage(&format!("training a tokenizer of {vocab_size} pieces on the corpus"));
    let tokenizer = TextTokenizer::train(corpus, vocab_size, TOKENIZER_BYTES)?;
    fs::create_dir_all(&folder)
        .map_err(|source| DataError::Cache { folder: folder.clone(), source })?;
    tokenizer.save(&path)?;
    Ok(tokenizer)
}

fn fingerprint(tokens: &TokenCache, tokenizer: &TextTokenizer) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(tokenizer.fingerprint().as_bytes());
    hasher.update(&(tokens.len() as u64).to_le_bytes());
    for count in tokens.counts() {
        hasher.update(&count.to_le_bytes());
    }
    hasher.finalize().to_string()
}
