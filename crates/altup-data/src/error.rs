//! What can go wrong between the files on disk and a batch, one variant per cause.

use std::any::Any;
use std::io;
use std::path::{Path, PathBuf};

use crate::corpus::Defect;

/// An error in reading, tokenising or preparing data.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A source names neither a file, nor a folder, nor a glob with a match.
    #[error(
        "no data at `{pattern}`: it is no file, no folder, and no glob that matches a data file"
    )]
    NoMatch {
        /// The source as it was given.
        pattern: String,
    },

    /// A source is not a well-formed glob.
    #[error("`{pattern}` is not a valid glob")]
    BadPattern {
        /// The source as it was given.
        pattern: String,
        /// What the pattern parser says.
        source: glob::PatternError,
    },

    /// A folder holds no file that can be read as data.
    #[error("no data file below {}: looked for {accepted}", .folder.display())]
    NoReadableFiles {
        /// The folder.
        folder: PathBuf,
        /// The accepted file name extensions.
        accepted: String,
    },

    /// A file was named whose extension says nothing about how to read it.
    #[error("cannot tell how to read {}: its name must end in one of {accepted}", .file.display())]
    UnsupportedExtension {
        /// The file.
        file: PathBuf,
        /// The accepted file name extensions.
        accepted: String,
    },

    /// The built-in corpus was asked for, and Cargo has unpacked no crate here.
    #[error(
        "no crate sources below {} to train on: name your own text with `--train`",
        .folder.display()
    )]
    NoCrateSources {
        /// Where Cargo unpacks crates.
        folder: PathBuf,
    },

    /// The sources hold files, and the files hold no text.
    #[error("the corpus holds no text: every document is empty in {files}")]
    EmptyCorpus {
        /// The files.
        files: String,
    },

    /// The corpus has too few documents to hold one out for validation.
    #[error(
        "nothing to validate on: one of every {every} documents is held out, and {files} has \
         fewer; name validation text with `--valid`"
    )]
    NothingHeldOut {
        /// One of how many documents is held out.
        every: u64,
        /// The files.
        files: String,
    },

    /// A file or folder cannot be read.
    #[error("cannot read {}", .file.display())]
    Read {
        /// The file or folder.
        file: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },

    /// A place in a file can't be read, and the text around it can.
    #[error(transparent)]
    Defect(#[from] Defect),

    /// A file was written to while it was read.
    #[error("{} changed while it was read: start again when it is complete", .file.display())]
    ChangedMeanwhile {
        /// The file.
        file: PathBuf,
    },

    /// A Parquet file has no top-level column named `text`.
    #[error("{} has no column `text`: its columns are {columns}", .file.display())]
    NoTextColumn {
        /// The file.
        file: PathBuf,
        /// The columns it does have.
        columns: String,
    },

    /// The `text` column of a Parquet file is no plain string column.
    #[error("{}: the column `text` is {found}, not a string", .file.display())]
    TextColumnType {
        /// The file.
        file: PathBuf,
        /// The physical type of the column.
        found: String,
    },

    /// A text is shorter than a single training example.
    #[error("{text} holds {have} tokens, and one example needs {need}: give more text")]
    TooFewTokens {
        /// Which text, as in `the validation text`.
        text: String,
        /// Tokens in it.
        have: u64,
        /// Tokens that one example is made of.
        need: u64,
    },

    /// A tokenizer file is missing or malformed.
    #[error("cannot load the tokenizer {}", .file.display())]
    TokenizerFile {
        /// The file.
        file: PathBuf,
        /// What the tokenizer library says.
        source: tokenizers::Error,
    },

    /// A tokenizer file cannot be written.
    #[error("cannot write the tokenizer to {}", .file.display())]
    SaveTokenizer {
        /// The file.
        file: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },

    /// The tokenizer lacks one of `<pad>`, `</s>` and `<unk>`.
    #[error("{tokenizer} has no token `{token}`: a T5 tokenizer needs <pad>, </s> and <unk>")]
    MissingToken {
        /// Which tokenizer.
        tokenizer: String,
        /// The token it lacks.
        token: &'static str,
    },

    /// Padding has an id other than 0.
    #[error("{tokenizer} gives <pad> the id {id}, and it must be 0: models here pad with 0")]
    PadNotZero {
        /// Which tokenizer.
        tokenizer: String,
        /// The id it gives to `<pad>`.
        id: u32,
    },

    /// The sentinels do not run from `<extra_id_0>` upwards without a gap.
    #[error("{tokenizer} lacks the sentinels {missing}, which span corruption needs")]
    MissingSentinels {
        /// Which tokenizer.
        tokenizer: String,
        /// The sentinels it lacks.
        missing: String,
    },

    /// A tokenizer was asked for that would be smaller than its fixed parts.
    #[error("a vocabulary of {vocab_size} is too small: train one of at least {minimum}")]
    VocabularyTooSmall {
        /// The size asked for.
        vocab_size: usize,
        /// The smallest size that can be trained.
        minimum: usize,
    },

    /// Training a tokenizer failed.
    #[error("cannot train a tokenizer from this corpus")]
    TokenizerTraining {
        /// What the tokenizer library says.
        source: tokenizers::Error,
    },

    /// Text could not be encoded, or ids not decoded.
    #[error("the tokenizer failed")]
    Tokenize {
        /// What the tokenizer library says.
        source: tokenizers::Error,
    },

    /// The text of some files could not be encoded.
    #[error("{file} can't be tokenized")]
    TokenizeShard {
        /// The files.
        file: String,
        /// What the tokenizer library says.
        source: tokenizers::Error,
    },

    /// A tokenizer fails where a text has a character that it has no token for.
    #[error(
        "{tokenizer} fails at characters that it has no token for: a T5 tokenizer makes them its model's unknown token, as          `unk_id` or `unk_token` says"
    )]
    UnknownCharacters {
        /// Which tokenizer.
        tokenizer: String,
        /// What the tokenizer library says.
        source: tokenizers::Error,
    },

    /// The folder of prepared data cannot be written or read back.
    #[error("cannot use the prepared data at {}", .path.display())]
    Store {
        /// The file or folder.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },

    /// A file of prepared data isn't what was written.
    #[error(
        "{} is damaged: `altup data prepare --verify` finds what is, and makes it anew",
        .path.display()
    )]
    DamagedTokens {
        /// The file.
        path: PathBuf,
    },

    /// A file of prepared data can't be mapped into memory: there are too many of them.
    #[error(
        "cannot map {}: a process may map so many files only (on Linux vm.max_map_count, 65,530 by default), and each \
         shard of a text is one",
        .path.display()
    )]
    TooManyMappings {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },

    /// The folder of prepared data may be read only, and something is missing in it.
    #[error(
        "{} can't be written to, and lacks {lacks}: have it prepared (`altup data prepare`) where that folder can be \
         written to, or name a folder of your own (`--cache-dir`, ALTUP_CACHE)",
        .folder.display()
    )]
    ReadOnlyStore {
        /// The folder.
        folder: PathBuf,
        /// What is missing.
        lacks: String,
        /// What the operating system says.
        source: io::Error,
    },

    /// The noise density is no share that can be hidden.
    #[error("a noise density of {value} makes no sense: give one above 0 and up to 0.99")]
    NoiseDensity {
        /// The density given.
        value: f64,
    },

    /// The mean span length is shorter than a token.
    #[error("a mean span length of {value} makes no sense: give 1 or more")]
    MeanSpanLength {
        /// The length given.
        value: f64,
    },

    /// The share of targets is none, or more than a half.
    #[error("a share of {value} for targets makes no sense: give one above 0 and up to 0.5")]
    TargetShare {
        /// The share given.
        value: f64,
    },

    /// The tokenizer has no token for a mode.
    #[error("the mode {mode:?} has no tokens: spell it with characters that the tokenizer knows")]
    EmptyMode {
        /// The mode.
        mode: String,
    },

    /// The input is too short to hold a token, a sentinel and the end of the sequence.
    #[error("an input length of {value} is too short: give at least {minimum}")]
    InputLength {
        /// The length given.
        value: usize,
        /// The shortest that works.
        minimum: usize,
    },

    /// An example has more noise spans than the tokenizer has sentinels.
    #[error(
        "each example has {need} noise spans and the tokenizer only {have} sentinels: shorten \
         the input, lower the noise density, or lengthen the spans"
    )]
    TooFewSentinels {
        /// Noise spans in an example.
        need: usize,
        /// Sentinels in the tokenizer.
        have: usize,
    },

    /// A thread could not be started.
    #[error("cannot start a thread to prepare data")]
    StartWorker {
        /// What the operating system says.
        source: io::Error,
    },

    /// A thread panicked on the text of some files.
    #[error("{file} can't be tokenized: a panic says {message}")]
    ShardPanicked {
        /// The files.
        file: String,
        /// What it panicked with.
        message: String,
    },

    /// A thread that prepares batches panicked.
    #[error("a thread that prepares batches panicked: {message}")]
    WorkerPanicked {
        /// What it panicked with.
        message: String,
    },
}

impl DataError {
    /// The error that something isn't in a folder of prepared data and can't be put there.
    pub(crate) fn not_written(folder: &Path, lacks: String, source: io::Error) -> Self {
        match is_refused(&source) {
            true => Self::ReadOnlyStore { folder: folder.to_owned(), lacks, source },
            false => Self::Store { path: folder.to_owned(), source },
        }
    }
}

/// Whether something can't be written because nothing may be, as in a folder that is mounted to read from.
pub(crate) fn is_refused(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
}

/// What a panic said.
pub(crate) fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message")
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_to_read_from_is_told_from_one_that_fails() {
        let error = |kind: io::ErrorKind| {
            let lacks = "the tokens of a.txt".to_owned();
            DataError::not_written(Path::new("/team/tokens"), lacks, kind.into()).to_string()
        };
        for kind in [io::ErrorKind::ReadOnlyFilesystem, io::ErrorKind::PermissionDenied] {
            let message = error(kind);
            assert!(message.starts_with("/team/tokens can't be written to"), "{message}");
            assert!(message.contains("lacks the tokens of a.txt"), "{message}");
            assert!(message.contains("--cache-dir"), "{message}");
        }
        let message = error(io::ErrorKind::StorageFull);
        assert!(message.starts_with("cannot use the prepared data at /team/tokens"), "{message}");
    }
}
