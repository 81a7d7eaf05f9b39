//! Benchmark tasks, text to text as T5 does them.
//!
//! A [`Task`] reads a benchmark's original files into [`Example`]s, each with the text that a model reads and the one
//! that it learns to write; turns what a model wrote into an answer; scores answers; and writes them as the
//! benchmark wants them handed in. [`Registry::standard`] has the tasks of GLUE and SuperGLUE, SQuAD v1.1,
//! and TriviaQA and Natural Questions without passages.
//!
//! ```no_run
//! use altup_data::tasks::{Registry, evaluate};
//! use std::path::Path;
//!
//! # fn main() -> Result<(), altup_data::tasks::TaskError> {
//! let sst2 = Registry::standard().find("sst2")?;
//! let data = sst2.read(Path::new("data"), "validation")?;
//! for example in data.judged().take(3) {
//!     println!("{} -> {:?}", example.input, example.target);
//! }
//! let always_positive = vec!["positive".to_owned(); data.judged().count()];
//! let scores = evaluate(&*sst2, &data, "validation", &always_positive)?;
//! println!("{:?}", scores.metrics.get("accuracy"));
//! # Ok(())
//! # }
//! ```
//!
//! Most tasks are [`Description`]s in TOML, which anyone can write more of; the others implement the trait.
//! Templates and labels are those of T5's preprocessors (google-research/text-to-text-transfer-transformer,
//! `t5/data/preprocessors.py`, `glue_utils.py`) over TensorFlow Datasets' reading of the files, and of
//! `t5_closed_book_qa` in google-research.

mod batches;
mod described;
mod error;
mod example;
mod files;
mod measures;
mod multirc;
mod predictions;
mod punctuation;
mod record;
mod registry;
mod rows;
mod scores;
mod squad;
mod submission;
mod template;
mod tokenized;
mod trivia_qa;
mod wsc;

pub use batches::TaskBatches;
pub use described::{
    AnswersDescription, DescribedTask, Description, LabelDescription, LabelWord, ScoreDescription,
    SplitDescription, SubmissionDescription, TextDescription,
};
pub use error::{At, Place, TaskError};
pub use example::{Dataset, Example, Reference};
pub use files::{Split, TaskFiles};
pub use measures::{AnswerMetric, LabelMetric, Metrics, ScoreMetric, TextMetric};
pub use multirc::MultiRc;
pub use predictions::read_predictions;
pub use record::Record;
pub use registry::Registry;
pub use rows::Format;
pub use scores::{Scores, evaluate};
pub use squad::Squad;
pub use submission::{Submission, SubmissionFormat};
pub use tokenized::{MaxLengths, TokenizedTask};
pub use trivia_qa::TriviaQa;
pub use wsc::Wsc;

use std::path::{Path, PathBuf};

/// A benchmark task.
pub trait Task: Send + Sync {
    /// Its name on the command line and in results.
    fn name(&self) -> &str;

    /// The benchmark that it is part of, or what it is about.
    fn benchmark(&self) -> &str;

    /// Where its files lie.
    fn files(&self) -> &TaskFiles;

    /// The template of its inputs, for people to read.
    fn template(&self) -> &str;

    /// The texts that a prediction must be one of, in the order of their classes. Default: none, where any text
    /// can be right.
    fn label_words(&self) -> Vec<&str> {
        Vec::new()
    }

    /// The names of its metrics.
    fn metrics(&self) -> Vec<&'static str>;

    /// Reads the files of a split, as [`TaskFiles::locate`] gives them.
    ///
    /// # Errors
    ///
    /// If a file can't be read or is not a file of this task.
    fn read_files(&self, files: &[PathBuf], split: &str) -> Result<Dataset, TaskError>;

    /// The answer in what a model wrote for `example`. Default: the text without the white space around it.
    fn answer(&self, example: &Example, output: &str) -> String {
        let _ = example;
        output.trim().to_owned()
    }

    /// What an example is judged together with: those with the same text here are all in a sample, or none is. Default: its
    /// id.
    fn group(&self, example: &Example) -> String {
        example.id.clone()
    }

    /// Scores answers. [`evaluate`] checks beforehand what this relies on.
    ///
    /// # Panics
    ///
    /// If there is not one answer for each example, or an example has no reference.
    fn score(&self, examples: &[&Example], answers: &[String]) -> Metrics;

    /// The answers as the benchmark wants them handed in.
    ///
    /// # Panics
    ///
    /// If there is not one answer for each example.
    fn submission(&self, split: &str, examples: &[&Example], answers: &[String]) -> Submission;

    /// Reads a split from the data folder: the task's own folder, or one that holds it.
    ///
    /// # Errors
    ///
    /// If the task has no such split, its files are not there or are not files of this task, or hold no example.
    fn read(&self, data: &Path, split: &str) -> Result<Dataset, TaskError> {
        let files = self.files().locate(self.name(), data, split)?;
        let dataset = self.read_files(&files, split)?;
        match dataset.examples.is_empty() {
            true => Err(TaskError::NoExamples { file: files[0].clone() }),
            false => Ok(dataset),
        }
    }
}
