//! Fine-tuning on benchmark tasks, text to text as T5 does it.
//!
//! [`FineTuningConfig`] describes a run, [`FineTuningData`] prepares its tasks, [`TaskValidation`] scores them while
//! it trains, and [`TaskResults`] are what its best model made of them. The loop is the
//! [`Trainer`](crate::trainer::Trainer) of pre-training: its checkpoints, its metrics, its exact resume.

mod config;
mod data;
mod results;
mod summary;
mod validation;

pub use config::{FineTuningConfig, Mixing, PretrainedConfig, TasksConfig};
pub use data::{FineTuningData, FineTuningDataError, TaskTraining};
pub use results::{Majority, Mistake, TaskResult, TaskResults, TaskResultsError};
pub use summary::FineTuningSummary;
pub use validation::{TaskValidation, best_step};
