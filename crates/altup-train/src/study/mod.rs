//! Studies: variants of a model, trained on the same batches from several seeds, and what their differences are worth.
//!
//! A [`StudyPlan`] is read from one TOML file. The [`Executor`](execute::Executor) runs its runs in processes of
//! their own, each in its own run folder, and goes on after a kill with what is not finished; then it fine-tunes their
//! models on the study's tasks. [`latency`] measures the models side by side. [`Results`] are read from the study's folder alone, by the
//! [`statistics`] of paired differences, and the [`report`] is written from them.

pub mod fine_tuning;
pub mod plan;
pub mod statistics;

pub mod folder;

pub mod comparable;

pub mod execute;
pub mod job;
pub mod overview;

pub mod latency;
pub mod results;
pub mod task_scores;

mod figures;
mod markdown;
mod page;
pub mod report;

pub use folder::StudyFolder;
pub use plan::StudyPlan;
pub use results::Results;
