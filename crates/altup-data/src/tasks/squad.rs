//! SQuAD v1.1: a question about a passage, whose answer is a part of it.

use serde::Deserialize;
use std::path::PathBuf;
use std::sync::Arc;

use super::described::check_answers;
use super::example::Ids;
use super::files::may_lack_labels;
use super::punctuation::{find_padded, pad_punctuation, single_spaced};
use super::rows::{parse, read_text};
use super::{
    AnswerMetric, Dataset, Example, Metrics, Place, Reference, Split, Submission, SubmissionFormat,
    Task, TaskError, TaskFiles,
};
use crate::metrics::Normalization;

const NAME: &str = "squad";
const METRICS: [AnswerMetric; 2] = [AnswerMetric::Em, AnswerMetric::F1];

/// SQuAD v1.1. Inputs and targets have spaces around punctuation, as T5's have; [`Task::answer`] takes them back
/// out by finding what a model wrote in the passage, so that answers are scored against the file's own.
#[derive(Debug)]
pub struct Squad {
    files: TaskFiles,
}

#[derive(Deserialize)]
struct File {
    data: Vec<Article>,
}

#[derive(Deserialize)]
struct Article {
    paragraphs: Vec<Paragraph>,
}

#[derive(Deserialize)]
struct Paragraph {
    context: String,
    qas: Vec<Question>,
}

#[derive(Deserialize)]
struct Question {
    id: String,
    question: String,
    #[serde(default)]
    answers: Vec<Answer>,
}

#[derive(Deserialize)]
struct Answer {
    text: String,
    /// In characters.
    answer_start: usize,
}

impl Squad {
    /// The task.
    pub fn new() -> Self {
        let splits = vec![
            Split::new("train", &["train-v1.1.json"]),
            Split::new("validation", &["dev-v1.1.json"]),
            Split::new("test", &["test-v1.1.json"]),
        ];
        Self { files: TaskFiles::new(&["squad", "SQuAD"], splits) }
    }
}

impl Default for Squad {
    fn default() -> Self {
        Self::new()
    }
}

impl Task for Squad {
    fn name(&self) -> &str {
        NAME
    }

    fn benchmark(&self) -> &str {
        "SQuAD v1.1"
    }

    fn files(&self) -> &TaskFiles {
        &self.files
    }

    fn template(&self) -> &str {
        "question: {question} context: {context}"
    }

    fn metrics(&self) -> Vec<&'static str> {
        METRICS.map(AnswerMetric::name).to_vec()
    }

    fn read_files(&self, files: &[PathBuf], split: &str) -> Result<Dataset, TaskError> {
        let file = &files[0];
        let parsed: File = parse(NAME, Place::file(file), &read_text(file)?)?;
        let mut examples = Vec::new();
        let mut ids = Ids::default();
        for paragraph in parsed.data.into_iter().flat_map(|article| article.paragraphs) {
            let passage: Arc<str> = paragraph.context.into();
            let context = pad_punctuation(&passage);
            for question in paragraph.qas {
                let place = || Place::part(file, format!("question {}", question.id));
                ids.insert(&question.id, || Place::file(file))?;
                for answer in &question.answers {
                    check_offset(answer, &passage, place)?;
                }
                let answers: Vec<String> =
                    question.answers.into_iter().map(|answer| answer.text).collect();
                let is_labelled = !(answers.is_empty() && may_lack_labels(split));
                if is_labelled {
                    check_answers(&answers)
                        .map_err(|problem| TaskError::BadAnswers { place: place(), problem })?;
                }
                let padded = pad_punctuation(&question.question);
                let input = format!("question: {padded} context: {context}");
                examples.push(Example {
                    id: question.id,
                    // The padded texts may begin and end with a space of their own.
                    input: single_spaced(&input),
                    target: is_labelled.then(|| pad_punctuation(&answers[0])),
                    reference: is_labelled.then_some(Reference::Answers(answers)),
                    passage: Some(Arc::clone(&passage)),
                });
            }
        }
        Ok(Dataset { examples, files: files.to_owned(), skipped_rows: 0 })
    }

    fn answer(&self, example: &Example, output: &str) -> String {
        let found = example.passage.as_deref().and_then(|passage| find_padded(passage, output));
        found.unwrap_or(output).trim().to_owned()
    }

    fn score(&self, examples: &[&Example], answers: &[String]) -> Metrics {
        AnswerMetric::scores(&METRICS, Normalization::Squad, examples, answers)
    }

    fn submission(&self, _split: &str, examples: &[&Example], answers: &[String]) -> Submission {
        Submission::of_answers("squad.json", SubmissionFormat::Answers, examples, answers)
    }
}

fn check_offset(
    answer: &Answer,
    passage: &str,
    place: impl Fn() -> Place,
) -> Result<(), TaskError> {
    let length = answer.text.chars().count();
    let found: String = passage.chars().skip(answer.answer_start).take(length).collect();
    if found == answer.text {
        return Ok(());
    }
    Err(TaskError::AnswerOffset {
        place: place(),
        answer: answer.text.clone(),
        offset: answer.answer_start,
        found,
    })
}
