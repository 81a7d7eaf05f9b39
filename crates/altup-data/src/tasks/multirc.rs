//! SuperGLUE's MultiRC: questions with several answers to choose from, each of which is an example.

use serde::Deserialize;
use serde_json::json;
use std::fmt;
use std::path::PathBuf;

use super::example::Ids;
use super::files::may_lack_labels;
use super::measures::{class, classes};
use super::rows::{json_lines, read_text};
use super::{Dataset, Example, Metrics, Place, Reference, Submission, Task, TaskError, TaskFiles};
use crate::metrics;

const NAME: &str = "multirc";
const WORDS: [&str; 2] = ["False", "True"];

/// SuperGLUE's MultiRC. `f1` is over all answers (F1a), `em` the share of questions all of whose answers are judged
/// rightly. The id of an example is `PARAGRAPH.QUESTION.ANSWER`, of the indices in the file.
#[derive(Debug)]
pub struct MultiRc {
    files: TaskFiles,
}

#[derive(Deserialize)]
struct Line {
    idx: u64,
    passage: Passage,
}

#[derive(Deserialize)]
struct Passage {
    text: String,
    questions: Vec<Question>,
}

#[derive(Deserialize)]
struct Question {
    idx: u64,
    question: String,
    answers: Vec<Answer>,
}

#[derive(Deserialize)]
struct Answer {
    idx: u64,
    text: String,
    label: Option<u64>,
}

/// Which answer to which question an example is about.
#[derive(Clone, Copy)]
struct AnswerId {
    paragraph: u64,
    question: u64,
    answer: u64,
}

impl fmt::Display for AnswerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.paragraph, self.question, self.answer)
    }
}

impl AnswerId {
    fn of(example: &Example) -> Self {
        let mut parts = example.id.split('.').map(|part| part.parse().ok());
        let mut next = || parts.next().flatten().expect("the id of an answer");
        Self { paragraph: next(), question: next(), answer: next() }
    }
}

impl MultiRc {
    /// The task.
    pub fn new() -> Self {
        Self { files: TaskFiles::super_glue("MultiRC") }
    }
}

impl Default for MultiRc {
    fn default() -> Self {
        Self::new()
    }
}

impl Task for MultiRc {
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
        "multirc question: {question} answer: {answer} paragraph: {paragraph}"
    }

    fn label_words(&self) -> Vec<&str> {
        WORDS.to_vec()
    }

    fn metrics(&self) -> Vec<&'static str> {
        vec!["f1", "em"]
    }

    fn read_files(&self, files: &[PathBuf], split: &str) -> Result<Dataset, TaskError> {
        let file = &files[0];
        let mut examples = Vec::new();
        let mut ids = Ids::default();
        json_lines(NAME, file, &read_text(file)?, &mut |line: Line, number| {
            let place = || Place::line(file, number);
            for question in &line.passage.questions {
                for answer in &question.answers {
                    let id = AnswerId {
                        paragraph: line.idx,
                        question: question.idx,
                        answer: answer.idx,
                    };
                    ids.insert(&id.to_string(), place)?;
                    let class = class_of(answer.label, split, place)?;
                    let (text, query) = (&line.passage.text, &question.question);
                    let input = format!(
                        "multirc question: {query} answer: {} paragraph: {text}",
                        answer.text
                    );
                    examples.push(Example {
                        id: id.to_string(),
                        input: without_markup(&input),
                        target: class.map(|class| WORDS[class].to_owned()),
                        reference: class.map(Reference::Class),
                        passage: None,
                    });
                }
            }
            Ok(())
        })?;
        Ok(Dataset { examples, files: files.to_owned(), skipped_rows: 0 })
    }

    /// The question, which `em` judges.
    fn group(&self, example: &Example) -> String {
        let id = AnswerId::of(example);
        format!("{}.{}", id.paragraph, id.question)
    }

    fn score(&self, examples: &[&Example], answers: &[String]) -> Metrics {
        let predictions = classes(&WORDS, answers);
        let references: Vec<usize> = examples.iter().map(|example| class(example)).collect();
        let question = |example: &&Example| {
            let id = AnswerId::of(example);
            (id.paragraph, id.question)
        };
        let questions: Vec<(u64, u64)> = examples.iter().map(question).collect();
        Metrics::new(vec![
            ("f1", metrics::f1(&references, &predictions)),
            ("em", metrics::grouped_exact_match(&questions, &references, &predictions)),
        ])
    }

    /// A line for each paragraph, with its questions and their answers in it.
    fn submission(&self, _split: &str, examples: &[&Example], answers: &[String]) -> Submission {
        assert_eq!(examples.len(), answers.len(), "examples and answers");
        let predictions = classes(&WORDS, answers);
        let invalid = predictions.iter().filter(|class| class.is_none()).count();
        let judged: Vec<(AnswerId, usize)> = examples
            .iter()
            .zip(predictions)
            .map(|(example, class)| (AnswerId::of(example), class.unwrap_or(0)))
            .collect();
        let mut contents = String::new();
        for paragraph in judged.chunk_by(|(a, _), (b, _)| a.paragraph == b.paragraph) {
            let questions = paragraph.chunk_by(|(a, _), (b, _)| a.question == b.question);
            let questions = questions.map(|question| {
                let answers =
                    question.iter().map(|(id, class)| json!({"idx": id.answer, "label": class}));
                json!({"idx": question[0].0.question, "answers": answers.collect::<Vec<_>>()})
            });
            let questions: Vec<_> = questions.collect();
            let line =
                json!({"idx": paragraph[0].0.paragraph, "passage": {"questions": questions}});
            contents += &format!("{line}\n");
        }
        Submission { file_name: "MultiRC.jsonl".to_owned(), contents, invalid }
    }
}

fn class_of(
    label: Option<u64>,
    split: &str,
    place: impl Fn() -> Place,
) -> Result<Option<usize>, TaskError> {
    match label {
        Some(label @ (0 | 1)) => Ok(Some(label as usize)),
        None if may_lack_labels(split) => Ok(None),
        label => Err(TaskError::UnknownLabel {
            place: place(),
            task: NAME.to_owned(),
            label: label.map_or_else(|| "nothing".to_owned(), |label| label.to_string()),
            known: "`0`, `1`".into(),
        }),
    }
}

/// The text without the tags that some of MultiRC's paragraphs have.
fn without_markup(text: &str) -> String {
    text.replace("<br>", " ").replace("<b>", "").replace("</b>", "")
}
