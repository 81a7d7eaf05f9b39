use crate::DirectoryError;
use std::io;
use std::path::PathBuf;

/// Why a model can't be had by its name.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The name is neither that of a directory nor one that the hub could have.
    #[error("there is no directory {name:?}, and a model on the hub can't have this name")]
    NoName {
        /// What was asked for.
        name: String,
    },
    /// The name is not that of a directory, and this build knows no other.
    #[error(
        "there is no directory {name:?}; to get models from the hub by their names, build with the cargo feature `hub`"
    )]
    FeatureMissing {
        /// What was asked for.
        name: String,
    },
    /// Nothing says where the cache is.
    #[error("there is no home folder to keep models from the hub in: set HF_HOME")]
    NoCache,
    /// The hub doesn't know the model.
    #[error("there is no directory {name:?}, and no model of this name on {endpoint}")]
    Unknown {
        /// The name.
        name: String,
        /// The hub.
        endpoint: String,
    },
    /// The hub knows the model, but not this revision.
    #[error("{repository} on {endpoint} has no branch, tag or commit {revision:?}")]
    UnknownRevision {
        /// The model.
        repository: String,
        /// The hub.
        endpoint: String,
        /// What it lacks.
        revision: String,
    },
    /// The hub doesn't give the model to whoever asks.
    #[error(
        "{endpoint} does not give out {name:?} ({status}): there is no such model, or it is private, or gated. If it \
         is gated, accept its terms on its page; then name your token in HF_TOKEN, or log in with `hf auth login`"
    )]
    Denied {
        /// The model.
        name: String,
        /// The hub.
        endpoint: String,
        /// The answer's HTTP status, 401 or 403.
        status: u16,
    },
    /// Nothing may be asked of the hub, and the cache has no such model.
    #[error("there is no directory {name:?}, and no model of this name in {}; HF_HUB_OFFLINE is set, so it is not looked for on the hub", cache.display())]
    Offline {
        /// The model.
        name: String,
        /// The cache.
        cache: PathBuf,
    },
    /// Nothing may be asked of the hub, and the cache has a part of the model only.
    #[error("the copy of {name:?} in {} lacks {file}; HF_HUB_OFFLINE is set, so it is not fetched from the hub", cache.display())]
    PartlyCached {
        /// The model.
        name: String,
        /// The cache.
        cache: PathBuf,
        /// The first file that is missing.
        file: String,
    },
    /// The model has no weights in safetensors.
    #[error(
        "{name} has its weights only as {file}, PyTorch's own format, which is not read here (opening it can run code). \
         See if a revision has model.safetensors ({repository}@refs/pr/N, of a pull request on the model's page); or write \
         it in Python: T5ForConditionalGeneration.from_pretrained({repository:?}).save_pretrained(FOLDER)"
    )]
    PyTorchOnly {
        /// The model.
        name: String,
        /// The model without its revision.
        repository: String,
        /// The file that it has.
        file: String,
    },
    /// The model lacks a file without which it can't be opened.
    #[error("{name} on {endpoint} has no {file}: is it a T5?")]
    MissingFile {
        /// The model.
        name: String,
        /// The hub.
        endpoint: String,
        /// The file.
        file: String,
    },
    /// The hub can't be reached, or answers with an error.
    #[error(
        "cannot get {what} from {endpoint} (with HF_HUB_OFFLINE=1, a copy in the cache is used)"
    )]
    Unreachable {
        /// The hub.
        endpoint: String,
        /// What was asked for.
        what: String,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The hub's answer makes no sense.
    #[error("{endpoint} answers for {what} with {problem}")]
    Answer {
        /// The hub.
        endpoint: String,
        /// What was asked for.
        what: String,
        /// What is wrong.
        problem: String,
    },
    /// A download ended early.
    #[error(
        "the download of {what} ended after {received} of {size} bytes; the same command again goes on from there"
    )]
    Interrupted {
        /// The model and the file.
        what: String,
        /// Bytes that are there now.
        received: u64,
        /// Bytes of the whole file.
        size: u64,
        /// The cause, where there is one but the end itself.
        source: Option<io::Error>,
    },
    /// A file was downloaded whole, but isn't what the hub says it is.
    #[error(
        "{what} was damaged on its way: its SHA-256 is {found}, not {expected}. It is thrown away; try again"
    )]
    Damaged {
        /// The model and the file.
        what: String,
        /// Its hash.
        found: String,
        /// The hub's hash.
        expected: String,
    },
    /// A file of the cache can't be used.
    #[error("cannot use {}", path.display())]
    Cache {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The index of the weights is damaged.
    #[error(transparent)]
    Index(#[from] DirectoryError),
}
