//! What can go wrong between a benchmark's files and a score, one variant per cause.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::DataError;

/// An error in finding, reading or scoring a task. Lists are `Box<str>`, which keeps the error below 128 bytes.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// No task has this name.
    #[error(
        "there is no task `{name}`: tasks are {known}, or the path of a description, FILE.toml"
    )]
    UnknownTask {
        /// The name.
        name: String,
        /// The names there are.
        known: String,
    },

    /// Two tasks would have one name.
    #[error("there is a task `{name}` already: choose another name")]
    NameTaken {
        /// The name.
        name: String,
    },

    /// A task has no split of this name.
    #[error("{task} has no split `{split}`: its splits are {known}")]
    UnknownSplit {
        /// The task.
        task: String,
        /// The split.
        split: String,
        /// The splits there are.
        known: String,
    },

    /// No file of a split is where it could be.
    #[error(
        "no file of the {split} split of {task} in {}: looked for {expected}; the folder holds {held}",
        .folder.display()
    )]
    NoFile {
        /// The task.
        task: String,
        /// The split.
        split: String,
        /// Where was looked.
        folder: PathBuf,
        /// What was looked for.
        expected: Box<str>,
        /// What is there.
        held: Box<str>,
    },

    /// A file or folder cannot be read.
    #[error("cannot read {}", .file.display())]
    Read {
        /// The file or folder.
        file: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },

    /// A file cannot be written.
    #[error("cannot write {}", .file.display())]
    Write {
        /// The file.
        file: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },

    /// A line is not UTF-8.
    #[error("{place}: not valid UTF-8: convert the file first")]
    InvalidUtf8 {
        /// Where.
        place: Place,
    },

    /// A file holds no example.
    #[error("{} holds no example", .file.display())]
    NoExamples {
        /// The file.
        file: PathBuf,
    },

    /// A row has another number of columns than its file.
    #[error("{place}: {found} columns, and there should be {expected}")]
    ColumnCount {
        /// Where.
        place: Place,
        /// The columns of the row.
        found: usize,
        /// The columns of the file.
        expected: usize,
    },

    /// A file or row lacks a column that the task is made of.
    #[error("{place}: no column `{column}`, so this is no file of {task}; there are {found}")]
    NoColumn {
        /// Where.
        place: Place,
        /// The task.
        task: String,
        /// The missing column.
        column: String,
        /// The columns there are.
        found: Box<str>,
    },

    /// A value is of another kind than the task needs.
    #[error("{place}: `{column}` should be {expected}, and is {found}")]
    WrongValue {
        /// Where.
        place: Place,
        /// The column.
        column: String,
        /// What it should be.
        expected: &'static str,
        /// What it is.
        found: String,
    },

    /// A label is none of the task's.
    #[error("{place}: `{label}` is no label of {task}; its labels are {known}")]
    UnknownLabel {
        /// Where.
        place: Place,
        /// The task.
        task: String,
        /// The label.
        label: String,
        /// The labels there are.
        known: Box<str>,
    },

    /// A question has no answer, or an empty one.
    #[error("{place}: {problem}")]
    BadAnswers {
        /// Where.
        place: Place,
        /// What is wrong.
        problem: &'static str,
    },

    /// An answer of SQuAD is not what its passage holds at its offset.
    #[error(
        "{place}: the answer `{answer}` is not in its passage at character {offset}, where it says \
         `{found}`"
    )]
    AnswerOffset {
        /// Where.
        place: Place,
        /// The answer.
        answer: String,
        /// Its offset in characters.
        offset: usize,
        /// What is there.
        found: String,
    },

    /// Two examples have one id.
    #[error("{place}: the id `{id}` occurs twice")]
    DuplicateId {
        /// Where, the second time.
        place: Place,
        /// The id.
        id: String,
    },

    /// A file is not JSON of the layout that the task has.
    #[error("{place}: not JSON as {task} has it")]
    Json {
        /// Where.
        place: Place,
        /// The task.
        task: String,
        /// What the parser says.
        source: serde_path_to_error::Error<serde_json::Error>,
    },

    /// Files that belong together line by line have different numbers of lines.
    #[error("{} has {found} lines, and {} has {expected}", .file.display(), .first.display())]
    LineCount {
        /// A file.
        file: PathBuf,
        /// Its lines.
        found: usize,
        /// The file it belongs to.
        first: PathBuf,
        /// The lines of that.
        expected: usize,
    },

    /// The description of a task does not say what a task needs.
    #[error("{origin}: {problem}")]
    Description {
        /// The file.
        origin: String,
        /// What is wrong.
        problem: String,
    },

    /// There is another number of predictions than of examples.
    #[error(
        "{} has {found} lines, and the {split} split of {task} has {expected} examples",
        .file.display()
    )]
    PredictionCount {
        /// The predictions.
        file: PathBuf,
        /// How many there are.
        found: usize,
        /// The task.
        task: String,
        /// The split.
        split: String,
        /// How many there should be.
        expected: usize,
    },

    /// A predictions file is not an object of one text for each id.
    #[error("{} is not a JSON object of one text for each id", .file.display())]
    PredictionsJson {
        /// The predictions.
        file: PathBuf,
        /// What the parser says.
        source: serde_json::Error,
    },

    /// Predictions are about examples that are not in the split.
    #[error("{}: {count} ids are not in the {split} split of {task}, the first `{id}`", .file.display())]
    UnknownIds {
        /// The predictions.
        file: PathBuf,
        /// How many ids are unknown.
        count: usize,
        /// The task.
        task: String,
        /// The split.
        split: String,
        /// The first of them.
        id: String,
    },

    /// Examples of the split have no prediction.
    #[error(
        "{}: {count} ids of the {split} split of {task} are missing, the first `{id}`",
        .file.display()
    )]
    MissingIds {
        /// The predictions.
        file: PathBuf,
        /// How many ids are missing.
        count: usize,
        /// The task.
        task: String,
        /// The split.
        split: String,
        /// The first of them.
        id: String,
    },

    /// There is nothing to learn from an example.
    #[error("the example `{id}` of {task} has no target, so nothing can be learned from it")]
    NoTarget {
        /// The task.
        task: String,
        /// The example.
        id: String,
    },

    /// Targets are longer than they may be, and are not cut.
    #[error(
        "{count} targets of {task} have more than the {maximum} tokens that were asked for, that of \
         `{id}` has {found}: allow longer ones, or none will be learned whole"
    )]
    TargetTooLong {
        /// The task.
        task: String,
        /// How many targets.
        count: usize,
        /// The most tokens that they may have.
        maximum: usize,
        /// The example with the longest.
        id: String,
        /// Its tokens.
        found: usize,
    },

    /// A text of an example can't be tokenized.
    #[error("cannot tokenize the examples of {task}")]
    Tokenize {
        /// The task.
        task: String,
        /// The cause.
        source: Box<DataError>,
    },

    /// There is nothing to compare predictions with.
    #[error("the {split} split of {task} has no labels in {file}, so nothing can be scored on it")]
    NothingToScore {
        /// The task.
        task: String,
        /// The split.
        split: String,
        /// The file.
        file: String,
    },
}

/// A place in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: PathBuf,
    /// The line, counted from 1, or what the place is called by in a file without lines.
    pub at: At,
}

/// Where in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum At {
    /// The file as a whole.
    File,
    /// A line, counted from 1.
    Line(usize),
    /// A named part, such as a question.
    Part(String),
}

impl Place {
    pub(super) fn file(file: &Path) -> Self {
        Self { file: file.to_owned(), at: At::File }
    }

    pub(super) fn line(file: &Path, line: usize) -> Self {
        Self { file: file.to_owned(), at: At::Line(line) }
    }

    pub(super) fn part(file: &Path, part: impl fmt::Display) -> Self {
        Self { file: file.to_owned(), at: At::Part(part.to_string()) }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        match &self.at {
            At::File => Ok(()),
            At::Line(line) => write!(f, ": line {line}"),
            At::Part(part) => write!(f, ": {part}"),
        }
    }
}

/// Names as a message lists them.
pub(super) fn list<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> String {
    names.into_iter().map(|name| format!("`{}`", name.as_ref())).collect::<Vec<_>>().join(", ")
}
