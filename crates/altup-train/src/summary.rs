//! The figures of a finished run: `summary.json` in its folder.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use altup_data::corpus::SkippedInFile;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::metrics::{SourceEpochs, SourceScore, TokenScore};

/// The figures of a finished run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// The folder of the run.
    pub run: PathBuf,
    /// What was trained, such as `tiny-altup-k2`.
    pub model: String,
    /// Parameters of the model.
    pub parameters: u64,
    /// The backend, with the index of its device.
    pub backend: String,
    /// What all randomness of the run came from.
    pub seed: u64,
    /// Optimizer steps.
    pub steps: u64,
    /// Input and target tokens trained on.
    pub tokens: u64,
    /// The last validation loss, in nats a token.
    pub valid_loss: f64,
    /// e to the power of it.
    pub valid_perplexity: f64,
    /// Share of validation tokens predicted right, from 0 to 1.
    pub valid_accuracy: f64,
    /// The last scores over the tokens of the text alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_text: Option<TokenScore>,
    /// The loss of guessing each target token by its frequency alone.
    pub unigram_loss: f64,
    /// Input and target tokens a second.
    pub tokens_per_second: f64,
    /// Seconds of training.
    pub train_seconds: f64,
    /// Processes that trained it together, at the end.
    #[serde(default = "one")]
    pub replicas: usize,
    /// The share of the training time in which they exchanged gradients, or waited for each other's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exchange_share: Option<f64>,
    /// The most memory that the process held, where the system tells.
    pub peak_memory_bytes: Option<u64>,
    /// The last scores by source, where there are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<SourceScore>,
    /// How often each source was gone through, where there are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub epochs: Vec<SourceEpochs>,
    /// Lines, rows and ends of files that couldn't be read and were left out, by file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<SkippedLines>,
    /// The version of altup.
    pub version: String,
}

pub(crate) fn one() -> usize {
    1
}

/// What was left out of a file that couldn't be read whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedLines {
    /// The file.
    pub file: PathBuf,
    /// How many lines, rows or ends.
    pub count: u64,
    /// The first few.
    pub first: Vec<String>,
}

impl From<&SkippedInFile> for SkippedLines {
    fn from(skipped: &SkippedInFile) -> Self {
        let SkippedInFile { file, count, first } = skipped;
        let first = first.iter().map(ToString::to_string).collect();
        Self { file: file.to_string_lossy().into_owned().into(), count: *count, first }
    }
}

/// Why what a finished run wrote can't be read.
#[derive(Debug, thiserror::Error)]
pub enum SummaryError {
    /// The file system refused.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The file has other contents.
    #[error("{} is not what a finished run writes there", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

/// A word on the processes that trained a run together, and the share of the time that their exchange took; none of one.
pub fn together(replicas: usize, exchange_share: Option<f64>) -> Option<String> {
    let exchange = exchange_share.map_or_else(String::new, |share| {
        format!(", whose exchange took {:.0} % of the time", 100.0 * share)
    });
    (replicas > 1).then(|| format!("{replicas} replicas{exchange}"))
}

/// What a finished run wrote into a file of JSON; none if there is no file.
///
/// # Errors
///
/// Names the file.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, SummaryError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(SummaryError::Read { path: path.to_owned(), source }),
    };
    let written = serde_json::from_slice(&bytes);
    written.map(Some).map_err(|source| SummaryError::Json { path: path.to_owned(), source })
}
