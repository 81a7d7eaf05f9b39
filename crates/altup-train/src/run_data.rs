//! From a run's configuration to its tokenizer and examples.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use altup_data::corpus::{Selection, SkippedInFile};
use altup_data::objective::SpecialTokens;
use altup_data::{
    Corpus, DataError, Mixture, PrepareOptions, PretrainingData, ShardSource, TextTokenizer,
    TokenRow, TokenStore, UnigramBaseline,
};

use crate::config::RunConfig;
use crate::data_identity::{DataIdentity, SourceIdentity, TextIdentity};
use crate::progress::{Progress, format_bytes, format_count};
use crate::summary::SkippedLines;

/// Bytes of crate sources that the built-in corpus takes.
const BUILT_IN_BYTES: u64 = 16 << 20;
/// Bytes of text that a tokenizer is trained on.
const TOKENIZER_BYTES: u64 = 4 << 20;
/// Every how many-th document is held out where there is no validation corpus.
const HELD_OUT: u64 = 100;
/// Training examples that the unigram model counts.
const UNIGRAM_EXAMPLES: u64 = 4096;

/// The tokenizer of a run, and the tokens of its texts.
pub struct PreparedText {
    /// The tokenizer.
    pub tokenizer: TextTokenizer,
    /// The texts: one without a name, or those of a mixture.
    pub sources: Vec<PreparedSource>,
}

/// The tokens of a text.
pub struct PreparedSource {
    /// What it is called; empty where it has no name.
    pub name: String,
    /// To train on.
    pub train: Arc<TokenRow>,
    /// To validate on.
    pub valid: Arc<TokenRow>,
    /// Both by their content.
    pub identity: SourceIdentity,
}

/// A text before it is tokenised.
struct TextSource {
    name: String,
    train: Corpus,
    valid: Corpus,
}

impl TextSource {
    /// What its part is called, as in "web training".
    fn label(&self, split: &str) -> String {
        match self.name.as_str() {
            "" => split.to_owned(),
            name => format!("{name} {split}"),
        }
    }

    fn identity(&self, train: &[ShardSource], valid: &[ShardSource]) -> SourceIdentity {
        SourceIdentity {
            name: self.name.clone(),
            train: TextIdentity::new(&self.train, train),
            valid: TextIdentity::new(&self.valid, valid),
        }
    }
}

/// A folder of prepared data, with what this process knows of it: files that are hashed for one purpose aren't hashed again
/// for another.
#[derive(Debug, Clone)]
pub struct DataCache {
    /// Where tokenizers lie that were trained from texts.
    tokenizers: PathBuf,
    store: TokenStore,
}

impl DataCache {
    /// The one in a folder, which need not exist yet.
    pub fn new(folder: &Path) -> Self {
        let tokenizers = folder.join("tokenizers");
        let store = TokenStore::new(&folder.join("tokens")).with_tokenizers(&tokenizers);
        Self { tokenizers, store }
    }

    /// The store of tokens in it.
    pub fn store(&self) -> &TokenStore {
        &self.store
    }
}

/// Finds the texts of a run, without reading them.
///
/// # Errors
///
/// Names the text that is not there.
pub fn find_texts(config: &RunConfig) -> Result<(), DataError> {
    text_sources(config).map(drop)
}

/// What the texts of a run are, without preparing them.
///
/// # Errors
///
/// Names the file that can't be read.
pub fn identify_texts(
    config: &RunConfig,
    cache: &DataCache,
    progress: &Progress,
) -> Result<Vec<SourceIdentity>, DataError> {
    let identify = |corpus: &Corpus, name: &str| {
        let mut identification = progress.identification(name);
        cache.store.identify(corpus, &mut |so_far| identification.show(so_far))
    };
    let texts = text_sources(config)?;
    let identify = |text: &TextSource| {
        let train = identify(&text.train, &text.label("training"))?;
        Ok(text.identity(&train, &identify(&text.valid, &text.label("validation"))?))
    };
    texts.iter().map(identify).collect()
}

impl PreparedText {
    /// Prepares the texts of a run; what was prepared before is taken from `cache`. A run that
    /// is resumed brings its own `tokenizer`.
    ///
    /// # Errors
    ///
    /// Names the file, and its line where it has lines.
    pub fn prepare(
        config: &RunConfig,
        tokenizer: Option<&Path>,
        cache: &DataCache,
        options: PrepareOptions,
        progress: &Progress,
    ) -> Result<Self, DataError> {
        let texts = text_sources(config)?;
        warn_of_dangling_links(&texts, progress);
        warn_of_shared_files(&texts, progress);
        let tokenizer = match tokenizer.or(config.data.tokenizer.as_deref()) {
            Some(path) => TextTokenizer::load(path)?,
            None => trained_tokenizer(config, &texts, cache, progress)?,
        };
        // What can't work must not cost hours first.
        let objective = config.objective(&tokenizer)?;
        objective.check(&SpecialTokens::of(&tokenizer))?;
        let need = objective.lengths().segment as u64;

        let prepare = |corpus: &Corpus, name: &str| {
            let mut preparation = progress.preparation(name);
            let row = cache
                .store
                .prepare(corpus, &tokenizer, options, &mut |so_far| preparation.show(so_far))?;
            for file in row.skipped() {
                warn_of_skipped(file, progress);
            }
            if let Some(why) = row.not_noted() {
                progress.warn(&format!(
                    "warning: the {name} text is prepared, and its use is not noted: {why}"
                ));
            }
            // Before other texts, which may take hours.
            if row.len() < need {
                let (text, have) = (format!("the {name} text"), row.len());
                return Err(DataError::TooFewTokens { text, have, need });
            }
            Ok::<_, DataError>(Arc::new(row))
        };
        let mut sources = Vec::new();
        for text in texts {
            let train = prepare(&text.train, &text.label("training"))?;
            let valid = prepare(&text.valid, &text.label("validation"))?;
            progress.note(&format!("{} text: {}", text.label("training"), describe(&train)));
            let identity = text.identity(train.sources(), valid.sources());
            sources.push(PreparedSource { name: text.name, train, valid, identity });
        }
        warn_of_copies(&sources, progress);
        Ok(Self { tokenizer, sources })
    }

    /// What was left out of the files, each named once.
    pub fn skipped(&self) -> Vec<SkippedInFile> {
        let rows = self.sources.iter().flat_map(|source| [&source.train, &source.valid]);
        let mut files = HashSet::new();
        let skipped = rows.flat_map(|row| row.skipped());
        skipped.filter(|skipped| files.insert(&skipped.file)).cloned().collect()
    }
}

/// The data of a run.
pub struct RunData {
    /// The tokenizer.
    pub tokenizer: TextTokenizer,
    /// Examples to train on.
    pub train: Arc<Mixture>,
    /// Examples to validate on, of the same sources at the same rates.
    pub valid: Mixture,
    /// The training text, in figures.
    pub description: String,
    /// What all of it is: changes with the data, but not with when or where it lies.
    pub identity: DataIdentity,
    /// What was left out of the files.
    pub skipped: Vec<SkippedLines>,
}

impl RunData {
    /// Prepares the data of a run; what was prepared before is taken from `cache`. A run that
    /// is resumed brings its own `tokenizer`.
    ///
    /// # Errors
    ///
    /// Names the file, and its line where it has lines.
    pub fn prepare(
        config: &RunConfig,
        tokenizer: Option<&Path>,
        cache: &DataCache,
        progress: &Progress,
    ) -> Result<Self, DataError> {
        let options = PrepareOptions {
            on_error: config.data.on_error,
            patience: Duration::from_secs_f64(config.training.replica_timeout),
            ..PrepareOptions::default()
        };
        let text = PreparedText::prepare(config, tokenizer, cache, options, progress)?;
        let skipped = text.skipped().iter().map(SkippedLines::from).collect();
        let PreparedText { tokenizer, sources } = text;
        let objective = config.objective(&tokenizer)?;

        let mut identities = Vec::new();
        let (mut train, mut valid, mut descriptions) = (Vec::new(), Vec::new(), Vec::new());
        for PreparedSource { name, train: train_row, valid: valid_row, identity } in sources {
            let seed = source_seed(config.seed, &name);
            identities.push(identity);
            let description = describe(&train_row);
            descriptions.push(match name.as_str() {
                "" => description,
                name => format!("{name}: {description}"),
            });
            let objective = || Arc::clone(&objective);
            let data = PretrainingData::training(train_row, &tokenizer, objective(), seed)?;
            train.push((name.clone(), data));
            let data = PretrainingData::validation(valid_row, &tokenizer, objective(), seed)?;
            valid.push((name, data));
        }
        let sizes: Vec<u64> = train.iter().map(|(_, data)| data.num_segments()).collect();
        let weights = config.source_weights(&sizes);
        let mix = |sources: Vec<(String, PretrainingData)>| {
            let weighted = sources.into_iter().zip(&weights);
            let weighted = weighted.map(|((name, data), weight)| (name, data, *weight)).collect();
            Mixture::new(weighted, config.seed)
        };
        let identity = DataIdentity::new(&tokenizer, identities);
        Ok(Self {
            tokenizer,
            train: Arc::new(mix(train)),
            valid: mix(valid),
            description: descriptions.join("; "),
            identity,
            skipped,
        })
    }

    /// The loss, on the first `eval_examples` validation examples of each source, of a model that
    /// knows how often each token occurs in the training targets, and nothing else. As the model's,
    /// it is a mean over the sources by their rates.
    pub fn unigram_loss(&self, eval_examples: u64) -> f64 {
        let sources = self.train.sources().iter();
        let epoch: u64 = sources.map(|source| source.data.num_segments()).sum();
        let train = (0..UNIGRAM_EXAMPLES.min(epoch)).map(|n| self.train.example(n).targets);
        let baseline = UnigramBaseline::from_targets(train, self.tokenizer.vocab_size());
        let valid = self.valid.sources().iter().map(|source| {
            let examples = 0..eval_examples.min(source.data.num_segments());
            source.rate * baseline.loss(examples.map(|n| source.data.example(n).targets))
        });
        valid.sum()
    }
}

/// The tokenizer that a run without one trains from its texts, taken from `cache` where it was trained before.
///
/// # Errors
///
/// Names the file, and its line where it has lines.
pub fn train_tokenizer(
    config: &RunConfig,
    cache: &DataCache,
    progress: &Progress,
) -> Result<TextTokenizer, DataError> {
    trained_tokenizer(config, &text_sources(config)?, cache, progress)
}

/// The texts that a configuration names.
fn text_sources(config: &RunConfig) -> Result<Vec<TextSource>, DataError> {
    let source = |name: &str, train: &[String], valid: &[String]| {
        let corpus = match train {
            [] => Corpus::cargo_sources(BUILT_IN_BYTES)?,
            train => Corpus::open(train)?,
        };
        let (train, valid) = match valid {
            [] => corpus.split(HELD_OUT),
            valid => (corpus, Corpus::open(valid)?),
        };
        Ok::<_, DataError>(TextSource { name: name.to_owned(), train, valid })
    };
    let data = &config.data;
    if data.sources.is_empty() {
        return Ok(vec![source("", &data.train, &data.valid)?]);
    }
    data.sources.iter().map(|named| source(&named.name, &named.train, &named.valid)).collect()
}

/// Says that links of the texts lead to nothing, and so that a part of them may be missing.
fn warn_of_dangling_links(texts: &[TextSource], progress: &Progress) {
    let corpora = texts.iter().flat_map(|text| [&text.train, &text.valid]);
    let links: BTreeSet<_> = corpora.flat_map(Corpus::dangling_links).collect();
    if let Some(first) = links.first() {
        progress.warn(&format!(
            "warning: passed over {} links to nothing, {} among them",
            links.len(),
            first.display()
        ));
    }
}

/// Says that a model will be validated on what it is trained on, where files are named for both, by whatever texts.
fn warn_of_shared_files(texts: &[TextSource], progress: &Progress) {
    let mut shared = BTreeSet::new();
    for (number, text) in texts.iter().enumerate() {
        for (other, trained_on) in texts.iter().enumerate() {
            // Documents that are held out are of the files that the text is trained on.
            if other != number || text.valid.selection() == Selection::All {
                shared.extend(text.valid.files_shared_with(&trained_on.train));
            }
        }
    }
    if let Some(first) = shared.first() {
        progress.warn(&format!(
            "warning: {} of the validation files are trained on too, {} among them",
            shared.len(),
            first.display()
        ));
    }
}

/// Says the same where the files have other names and the same content, which is known once they are prepared.
fn warn_of_copies(sources: &[PreparedSource], progress: &Progress) {
    let trained_on = sources.iter().flat_map(|source| source.train.sources());
    let trained_on: HashMap<_, _> = trained_on.map(|shard| (shard.content, &shard.file)).collect();
    let validated_on = sources.iter().flat_map(|source| source.valid.sources());
    let copies = validated_on.filter_map(|shard| {
        let copied = trained_on.get(&shard.content)?;
        (**copied != shard.file).then_some((&shard.file, *copied))
    });
    let copies: BTreeMap<_, _> = copies.collect();
    if let Some((file, copied)) = copies.first_key_value() {
        progress.warn(&format!(
            "warning: {} of the validation files are copies of what is trained on, {} of {} among them",
            copies.len(),
            file.display(),
            copied.display()
        ));
    }
}

fn warn_of_skipped(file: &SkippedInFile, progress: &Progress) {
    let places = if file.count == 1 { "place" } else { "places" };
    progress.warn(&format!("warning: skipped {} {places} of {}:", file.count, file.file.display()));
    for defect in &file.first {
        progress.warn(&format!("  {defect}"));
    }
}

/// A tokenizer trained from the texts, or the one trained from them before.
fn trained_tokenizer(
    config: &RunConfig,
    texts: &[TextSource],
    cache: &DataCache,
    progress: &Progress,
) -> Result<TextTokenizer, DataError> {
    let all;
    let corpus = match texts {
        [text] => &text.train,
        texts => {
            let sources = texts.iter().flat_map(|text| text.train.sources());
            all = Corpus::open(&sources.cloned().collect::<Vec<_>>())?;
            &all
        }
    };
    let vocab_size = config.data.vocab_size;
    let start = || {
        progress.stage(&format!("training a tokenizer of {vocab_size} pieces on the corpus"));
    };
    let on_error = config.data.on_error;
    TextTokenizer::train_once(
        &cache.tokenizers,
        corpus,
        vocab_size,
        TOKENIZER_BYTES,
        on_error,
        start,
    )
}

/// A seed of its own for each named source, so that their examples have nothing in common.
fn source_seed(seed: u64, name: &str) -> u64 {
    if name.is_empty() {
        return seed;
    }
    let input = [&seed.to_le_bytes(), name.as_bytes()].concat();
    let mut hash = [0; 8];
    hash.copy_from_slice(&blake3::derive_key("altup-train 2026 source", &input)[..8]);
    u64::from_le_bytes(hash)
}

/// A text in figures.
pub fn describe(row: &TokenRow) -> String {
    let shards = row.shards();
    let files = if shards == 1 { "shard" } else { "shards" };
    format!(
        "{} documents, {} tokens, of {} of text in {shards} {files}",
        format_count(row.documents()),
        format_count(row.len()),
        format_bytes(row.text_bytes()),
    )
}
