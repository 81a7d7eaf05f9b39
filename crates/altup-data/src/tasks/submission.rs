//! Answers as a benchmark wants them handed in.

use serde_json::{Value, json};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::{Example, TaskError};

/// A file to hand in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Submission {
    /// Its name, as the benchmark wants it.
    pub file_name: String,
    /// Its contents.
    pub contents: String,
    /// How many answers are nothing that the benchmark accepts, such as no label. In their place stands the
    /// task's first label.
    pub invalid: usize,
}

/// How a benchmark's file looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SubmissionFormat {
    /// GLUE: a table of `index` and `prediction`, separated by a tab.
    Glue,
    /// SuperGLUE: an object of `idx` and `label` a line.
    SuperGlue,
    /// An object of `question` and `prediction` a line, as Natural Questions open takes it. The question is the input
    /// without the text before the template's first column.
    Questions,
    /// One object of ids and answers, as SQuAD and TriviaQA take it.
    Answers,
    /// One answer a line.
    Lines,
}

/// One row of a file to hand in.
pub(super) struct SubmissionRow<'a> {
    /// The example's id.
    pub(super) id: &'a str,
    /// Its question, for those benchmarks that want it back.
    pub(super) question: &'a str,
    /// The answer.
    pub(super) answer: Value,
}

impl SubmissionFormat {
    pub(super) fn contents<'a>(self, rows: impl Iterator<Item = SubmissionRow<'a>>) -> String {
        let text = |value: &Value| match value {
            // A tab or line end would be taken for the end of the answer.
            Value::String(text) => text.replace(['\t', '\n', '\r'], " "),
            value => value.to_string(),
        };
        let line = |row: SubmissionRow<'_>| match self {
            Self::Glue => format!("{}\t{}\n", row.id, text(&row.answer)),
            Self::SuperGlue => {
                format!("{}\n", json!({"idx": index(row.id), "label": row.answer}))
            }
            Self::Questions => {
                format!("{}\n", json!({"question": row.question, "prediction": row.answer}))
            }
            Self::Answers | Self::Lines => format!("{}\n", text(&row.answer)),
        };
        match self {
            Self::Answers => {
                let answers = rows.map(|row| (row.id.to_owned(), row.answer)).collect();
                format!("{}\n", Value::Object(answers))
            }
            Self::Glue => "index\tprediction\n".to_owned() + &rows.map(line).collect::<String>(),
            Self::SuperGlue | Self::Questions | Self::Lines => rows.map(line).collect(),
        }
    }
}

/// The id as JSON: a number where it is one.
pub(super) fn index(id: &str) -> Value {
    id.parse::<u64>().map_or_else(|_| Value::from(id), Value::from)
}

impl Submission {
    /// A file of the answers as they are.
    pub(super) fn of_answers(
        file_name: &str,
        format: SubmissionFormat,
        examples: &[&Example],
        answers: &[String],
    ) -> Self {
        assert_eq!(examples.len(), answers.len(), "examples and answers");
        let rows = examples.iter().zip(answers).map(|(example, answer)| SubmissionRow {
            id: &example.id,
            question: "",
            answer: Value::from(answer.as_str()),
        });
        Self { file_name: file_name.to_owned(), contents: format.contents(rows), invalid: 0 }
    }

    /// Writes the file into `folder`, whole or not at all.
    ///
    /// # Errors
    ///
    /// If it can't be written.
    pub fn write(&self, folder: &Path) -> Result<PathBuf, TaskError> {
        let path = folder.join(&self.file_name);
        let write = || {
            std::fs::create_dir_all(folder)?;
            // `make_in` keeps the usual permissions, where a plain temporary file is its owner's alone.
            let mut file = tempfile::Builder::new()
                .prefix(".predictions-")
                .make_in(folder, |path| File::create_new(path))?;
            file.write_all(self.contents.as_bytes())?;
            file.as_file().sync_all()?;
            file.persist(&path).map_err(|error| error.error)
        };
        match write() {
            Ok(_) => Ok(path),
            Err(source) => Err(TaskError::Write { file: path, source }),
        }
    }
}
