//! TriviaQA without its passages.

use serde::Deserialize;
use std::path::{Path, PathBuf};

use super::described::check_answers;
use super::example::Ids;
use super::files::may_lack_labels;
use super::rows::{json_lines, parse, read_text};
use super::{
    AnswerMetric, Dataset, Example, Metrics, Place, Reference, Split, Submission, SubmissionFormat,
    Task, TaskError, TaskFiles,
};
use crate::metrics::Normalization;

const NAME: &str = "triviaqa";
const METRICS: [AnswerMetric; 2] = [AnswerMetric::Em, AnswerMetric::F1];

/// TriviaQA as questions without passages, from its own JSON files or from JSON lines of `question`, `answer` and
/// `aliases`. In the latter, the id of a question is the number of its row, counted from 0, unless there is an `id`.
#[derive(Debug)]
pub struct TriviaQa {
    files: TaskFiles,
}

/// TriviaQA's own layout.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct File {
    data: Vec<Question>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Question {
    question: String,
    question_id: String,
    answer: Option<Answer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    value: String,
    aliases: Vec<String>,
    #[serde(default)]
    normalized_aliases: Vec<String>,
    #[serde(default)]
    human_answers: Vec<String>,
}

/// A line of the JSON lines.
#[derive(Deserialize)]
struct Line {
    id: Option<String>,
    question: String,
    answer: Option<String>,
    #[serde(default)]
    aliases: Vec<String>,
}

impl TriviaQa {
    /// The task.
    pub fn new() -> Self {
        // The unfiltered questions are those that T5 answers without passages; the others have the same layout.
        let splits = vec![
            Split::new(
                "train",
                &[
                    "unfiltered-web-train.json",
                    "web-train.json",
                    "wikipedia-train.json",
                    "train.jsonl",
                ],
            ),
            Split::new(
                "validation",
                &[
                    "unfiltered-web-dev.json",
                    "web-dev.json",
                    "wikipedia-dev.json",
                    "validation.jsonl",
                    "triviaqa-sm-sub.jsonl",
                ],
            ),
            Split::new("test", &["unfiltered-web-test-without-answers.json", "test.jsonl"]),
        ];
        let folders = ["triviaqa", "qa/triviaqa", "triviaqa-unfiltered", "qa"];
        Self { files: TaskFiles::new(&folders, splits) }
    }
}

impl Default for TriviaQa {
    fn default() -> Self {
        Self::new()
    }
}

impl Task for TriviaQa {
    fn name(&self) -> &str {
        NAME
    }

    fn benchmark(&self) -> &str {
        "closed-book QA"
    }

    fn files(&self) -> &TaskFiles {
        &self.files
    }

    fn template(&self) -> &str {
        "trivia_qa question: {question}"
    }

    fn metrics(&self) -> Vec<&'static str> {
        METRICS.map(AnswerMetric::name).to_vec()
    }

    fn read_files(&self, files: &[PathBuf], split: &str) -> Result<Dataset, TaskError> {
        let file = &files[0];
        let text = read_text(file)?;
        let mut reader = Reader { file, split, ids: Ids::default(), examples: Vec::new() };
        if file.extension().is_some_and(|extension| extension == "jsonl") {
            json_lines(NAME, file, &text, &mut |line: Line, number| {
                let id = line.id.unwrap_or_else(|| reader.examples.len().to_string());
                let place = || Place::line(file, number);
                reader.add(id, &line.question, line.answer.map(|of| (of, line.aliases)), place)
            })?;
        } else {
            let parsed: File = parse(NAME, Place::file(file), &text)?;
            for question in parsed.data {
                let id = question.question_id;
                let part = format!("question {id}");
                let place = || Place::part(file, &part);
                let answer = question.answer.map(|answer| {
                    // As the official evaluation does, which normalises what is normalised once more.
                    // Of an alias such as "(a" it leaves nothing.
                    let mut normalized = answer.normalized_aliases;
                    normalized.retain(|alias| !alias.trim().is_empty());
                    let aliases = match normalized.is_empty() {
                        true => answer.aliases,
                        false => normalized,
                    };
                    (answer.value, [aliases, answer.human_answers].concat())
                });
                reader.add(id, &question.question, answer, place)?;
            }
        }
        Ok(Dataset { examples: reader.examples, files: files.to_owned(), skipped_rows: 0 })
    }

    fn score(&self, examples: &[&Example], answers: &[String]) -> Metrics {
        AnswerMetric::scores(&METRICS, Normalization::TriviaQa, examples, answers)
    }

    fn submission(&self, _split: &str, examples: &[&Example], answers: &[String]) -> Submission {
        Submission::of_answers("triviaqa.json", SubmissionFormat::Answers, examples, answers)
    }
}

struct Reader<'a> {
    file: &'a Path,
    split: &'a str,
    ids: Ids,
    examples: Vec<Example>,
}

impl Reader<'_> {
    fn add(
        &mut self,
        id: String,
        question: &str,
        answer: Option<(String, Vec<String>)>,
        place: impl Fn() -> Place,
    ) -> Result<(), TaskError> {
        self.ids.insert(&id, || Place::file(self.file))?;
        let (target, aliases) = match answer {
            Some((answer, aliases)) if aliases.is_empty() => (Some(answer.clone()), vec![answer]),
            Some((answer, aliases)) => (Some(answer), aliases),
            None => (None, Vec::new()),
        };
        if target.is_some() || !may_lack_labels(self.split) {
            check_answers(&aliases)
                .map_err(|problem| TaskError::BadAnswers { place: place(), problem })?;
        }
        self.examples.push(Example {
            id,
            input: format!("trivia_qa question: {question}"),
            reference: target.is_some().then_some(Reference::Answers(aliases)),
            target,
            passage: None,
        });
        Ok(())
    }
}
