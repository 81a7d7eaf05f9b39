//! SuperGLUE's ReCoRD: the entity that a question leaves out.

use serde::Deserialize;
use std::collections::BTreeSet;
use std::path::PathBuf;

use super::described::check_answers;
use super::example::Ids;
use super::files::may_lack_labels;
use super::rows::{json_lines, read_text};
use super::{
    AnswerMetric, Dataset, Example, Metrics, Place, Reference, Submission, SubmissionFormat, Task,
    TaskError, TaskFiles,
};
use crate::metrics::Normalization;

const NAME: &str = "record";
const METRICS: [AnswerMetric; 2] = [AnswerMetric::Em, AnswerMetric::F1];

/// SuperGLUE's ReCoRD. A question with several right entities gives an example for each, all with the question's id;
/// it is judged once.
#[derive(Debug)]
pub struct Record {
    files: TaskFiles,
}

#[derive(Deserialize)]
struct Line {
    passage: Passage,
    qas: Vec<Question>,
}

#[derive(Deserialize)]
struct Passage {
    text: String,
    entities: Vec<Span>,
}

/// A part of the passage: its first and its last character.
#[derive(Deserialize)]
struct Span {
    start: usize,
    end: usize,
}

#[derive(Deserialize)]
struct Question {
    idx: u64,
    query: String,
    answers: Option<Vec<Answer>>,
}

#[derive(Deserialize)]
struct Answer {
    text: String,
}

impl Record {
    /// The task.
    pub fn new() -> Self {
        Self { files: TaskFiles::super_glue("ReCoRD") }
    }
}

impl Default for Record {
    fn default() -> Self {
        Self::new()
    }
}

impl Task for Record {
    fn name(&self) -> &str {
        NAME
    }

    fn benchmark(&self) -> &str {
        "SuperGLUE"
    }

    fn files(&self) -> &TaskFiles {
        &self.files
    }

    fn template(&self) -> &str {
        "record query: {query} entities: {entity}, {entity}, … passage: {passage}"
    }

    fn metrics(&self) -> Vec<&'static str> {
        METRICS.map(AnswerMetric::name).to_vec()
    }

    fn read_files(&self, files: &[PathBuf], split: &str) -> Result<Dataset, TaskError> {
        let file = &files[0];
        let mut examples = Vec::new();
        let mut ids = Ids::default();
        json_lines(NAME, file, &read_text(file)?, &mut |line: Line, number| {
            let place = || Place::line(file, number);
            let entities = entities(&line.passage).ok_or_else(|| TaskError::WrongValue {
                place: place(),
                column: "passage.entities".to_owned(),
                expected: "parts of the passage",
                found: "beyond its end".to_owned(),
            })?;
            let entities = entities.into_iter().collect::<Vec<_>>().join(", ");
            let passage = sentences(&line.passage.text);
            for question in line.qas {
                let id = question.idx.to_string();
                ids.insert(&id, place)?;
                let input = format!(
                    "record query: {} entities: {entities} passage: {passage}",
                    question.query
                );
                let answers = question.answers.unwrap_or_default();
                let answers: BTreeSet<String> =
                    answers.into_iter().map(|answer| answer.text).collect();
                let answers: Vec<String> = answers.into_iter().collect();
                if answers.is_empty() && may_lack_labels(split) {
                    let (target, reference, passage) = (None, None, None);
                    examples.push(Example { id, input, target, reference, passage });
                    continue;
                }
                check_answers(&answers)
                    .map_err(|problem| TaskError::BadAnswers { place: place(), problem })?;
                examples.extend(answers.iter().map(|answer| Example {
                    id: id.clone(),
                    input: input.clone(),
                    target: Some(answer.clone()),
                    reference: Some(Reference::Answers(answers.clone())),
                    passage: None,
                }));
            }
            Ok(())
        })?;
        Ok(Dataset { examples, files: files.to_owned(), skipped_rows: 0 })
    }

    fn score(&self, examples: &[&Example], answers: &[String]) -> Metrics {
        AnswerMetric::scores(&METRICS, Normalization::Squad, examples, answers)
    }

    fn submission(&self, _split: &str, examples: &[&Example], answers: &[String]) -> Submission {
        Submission::of_answers("ReCoRD.jsonl", SubmissionFormat::SuperGlue, examples, answers)
    }
}

/// The entities of a passage, each once and in the order of code points; `None` if one is not in it.
fn entities(passage: &Passage) -> Option<BTreeSet<String>> {
    let characters: Vec<char> = passage.text.chars().collect();
    let entity = |span: &Span| {
        Some(characters.get(span.start..span.end.checked_add(1)?)?.iter().collect::<String>())
    };
    passage.entities.iter().map(entity).collect()
}

/// The passage with its highlights, which stand behind it a line each, as further sentences.
fn sentences(passage: &str) -> String {
    const HIGHLIGHT: &str = "\n@highlight\n";
    let mut text = passage.to_owned();
    for end in [".", "?", "!", "\"", "'"] {
        text = text.replace(&format!("{end}{HIGHLIGHT}"), &format!("{end} "));
    }
    text.replace(HIGHLIGHT, ". ")
}
