//! The figures of a finished run: `summary.json` in its folder.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::metrics::TaskScore;

/// The figures of a finished fine-tuning run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FineTuningSummary {
    /// The folder of the run.
    pub run: PathBuf,
    /// The directory of the model that was fine-tuned.
    pub model: PathBuf,
    /// Parameters of the model.
    pub parameters: u64,
    /// The backend, with the index of its device.
    pub backend: String,
    /// What all randomness of the run came from.
    pub seed: u64,
    /// Optimizer steps.
    pub steps: u64,
    /// The step of the best scores: that of the fine-tuned model.
    pub best_step: u64,
    /// The mean of the tasks' scores, each the mean of its metrics.
    pub mean_score: f64,
    /// What the model made of the whole validation split of each task.
    pub tasks: Vec<TaskScore>,
    /// Input and target tokens trained on.
    pub tokens: u64,
    /// Input and target tokens a second.
    pub tokens_per_second: f64,
    /// Seconds of training.
    pub train_seconds: f64,
    /// How many processes trained it together.
    #[serde(default = "crate::summary::one")]
    pub replicas: usize,
    /// The share of the time that their exchange took, where there were several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exchange_share: Option<f64>,
    /// The most memory that the process held, where the system tells.
    pub peak_memory_bytes: Option<u64>,
    /// The version of altup.
    pub version: String,
}
