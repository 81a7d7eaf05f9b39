//! SuperGLUE's WSC, as T5 was trained on it: which noun does a pronoun mean?

use serde::Deserialize;
use serde_json::Value;
use std::path::PathBuf;

use super::example::Ids;
use super::files::may_lack_labels;
use super::measures::class;
use super::rows::{json_lines, read_text};
use super::submission::SubmissionRow;
use super::{
    Dataset, Example, Metrics, Place, Reference, Submission, SubmissionFormat, Task, TaskError,
    TaskFiles,
};
use crate::metrics;

const NAME: &str = "wsc";
const WORDS: [&str; 2] = ["False", "True"];

/// SuperGLUE's WSC in T5's form (`wsc_simple`): the input marks the pronoun by asterisks, the target is the noun that the
/// file proposes. Training is on those rows alone whose noun is the right one. A prediction says that the proposed
/// noun is meant if the words of one are among those of the other, without articles and possessives and in any case;
/// the words `True` and `False` say it outright.
#[derive(Debug)]
pub struct Wsc {
    files: TaskFiles,
}

#[derive(Deserialize)]
struct Line {
    idx: u64,
    text: String,
    target: Spans,
    label: Option<bool>,
}

#[derive(Deserialize)]
struct Spans {
    span1_index: usize,
    span1_text: String,
    span2_index: usize,
    span2_text: String,
}

impl Wsc {
    /// The task.
    pub fn new() -> Self {
        Self { files: TaskFiles::super_glue("WSC") }
    }
}

impl Default for Wsc {
    fn default() -> Self {
        Self::new()
    }
}

impl Task for Wsc {
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
        "wsc: … *{span2_text}* …"
    }

    fn metrics(&self) -> Vec<&'static str> {
        vec!["accuracy"]
    }

    fn read_files(&self, files: &[PathBuf], split: &str) -> Result<Dataset, TaskError> {
        let file = &files[0];
        let mut examples = Vec::new();
        let mut ids = Ids::default();
        json_lines(NAME, file, &read_text(file)?, &mut |line: Line, number| {
            let place = || Place::line(file, number);
            let id = line.idx.to_string();
            ids.insert(&id, place)?;
            if line.label.is_none() && !may_lack_labels(split) {
                return Err(TaskError::UnknownLabel {
                    place: place(),
                    task: NAME.to_owned(),
                    label: "nothing".to_owned(),
                    known: "`true`, `false`".into(),
                });
            }
            if split == "train" && line.label == Some(false) {
                return Ok(());
            }
            let (index, pronoun) = (line.target.span2_index, &line.target.span2_text);
            let marked = mark_pronoun(&line.text, index, &as_written(&line.text, index, pronoun));
            let marked = marked.ok_or_else(|| TaskError::WrongValue {
                place: place(),
                column: "target.span2_text".to_owned(),
                expected: "a word of the text",
                found: format!("`{}`", line.target.span2_text),
            })?;
            examples.push(Example {
                id,
                input: format!("wsc: {marked}"),
                target: Some(as_written(
                    &line.text,
                    line.target.span1_index,
                    &line.target.span1_text,
                )),
                reference: line.label.map(|label| Reference::Class(usize::from(label))),
                passage: None,
            });
            Ok(())
        })?;
        Ok(Dataset { examples, files: files.to_owned(), skipped_rows: 0 })
    }

    fn score(&self, examples: &[&Example], answers: &[String]) -> Metrics {
        assert_eq!(examples.len(), answers.len(), "examples and answers");
        let references: Vec<usize> = examples.iter().map(|example| class(example)).collect();
        let predictions: Vec<Option<usize>> = verdicts(examples, answers).collect();
        Metrics::new(vec![("accuracy", metrics::accuracy(&references, &predictions))])
    }

    fn submission(&self, _split: &str, examples: &[&Example], answers: &[String]) -> Submission {
        assert_eq!(examples.len(), answers.len(), "examples and answers");
        let verdicts: Vec<Option<usize>> = verdicts(examples, answers).collect();
        let invalid = verdicts.iter().filter(|verdict| verdict.is_none()).count();
        let rows = examples.iter().zip(verdicts).map(|(example, verdict)| SubmissionRow {
            id: &example.id,
            question: "",
            answer: Value::from(WORDS[verdict.unwrap_or(0)]),
        });
        let contents = SubmissionFormat::SuperGlue.contents(rows);
        Submission { file_name: "WSC.jsonl".to_owned(), contents, invalid }
    }
}

/// The text with asterisks around the pronoun, which is word `index` of it or, as some rows are a word off, the
/// nearest that is the pronoun; `None` if no word is. Punctuation that sticks to the pronoun becomes a word.
fn mark_pronoun(text: &str, index: usize, pronoun: &str) -> Option<String> {
    let words: Vec<&str> = text.trim_end().split(' ').collect();
    let sticks = |word: &str| {
        let rest = word.strip_prefix(pronoun)?;
        (!rest.starts_with(char::is_alphanumeric)).then(|| rest.to_owned())
    };
    let nearest = |of: &dyn Fn(&str) -> bool| {
        let places = (0..words.len()).filter(|at| of(words[*at]));
        places.min_by_key(|at| at.abs_diff(index))
    };
    let at = match words.get(index).and_then(|word| sticks(word)) {
        Some(_) => index,
        None => {
            nearest(&|word| word == pronoun).or_else(|| nearest(&|word| sticks(word).is_some()))?
        }
    };
    let rest = sticks(words[at])?;
    let space = if rest.is_empty() { "" } else { " " };
    let marked = format!("*{pronoun}*{space}{rest}");
    let marked =
        words[..at].iter().copied().chain([&*marked]).chain(words[at + 1..].iter().copied());
    Some(marked.collect::<Vec<_>>().join(" "))
}

/// The proposed noun, or the pronoun, as the text has it. Some rows of the original files differ from their text in the case
/// of its first letter, in a full stop or in white space; mended as in TensorFlow Datasets' `wsc.fixed`.
fn as_written(text: &str, index: usize, noun: &str) -> String {
    if text.contains(noun) {
        return noun.to_owned();
    }
    let is_lower =
        text.split_whitespace().nth(index).is_some_and(|word| word.starts_with(char::is_lowercase));
    let mut rest = noun.chars();
    let first: String = match rest.next() {
        Some(first) if is_lower => first.to_lowercase().collect(),
        Some(first) => first.to_uppercase().collect(),
        None => String::new(),
    };
    let mended = first + rest.as_str().trim_end_matches('.').replace('\n', " ").as_str();
    if text.contains(&mended) { mended } else { noun.to_owned() }
}

/// Whether each answer says that the proposed noun is meant (class 1) or not (class 0).
fn verdicts(examples: &[&Example], answers: &[String]) -> impl Iterator<Item = Option<usize>> {
    examples.iter().zip(answers).map(|(example, answer)| {
        let noun = example.target.as_deref().unwrap_or_default();
        WORDS.iter().position(|word| *word == answer).or_else(|| means(answer, noun))
    })
}

/// Whether `prediction` names `referent`, as T5 judges it (`wsc_simple` of its postprocessors); `None` where it names
/// nothing.
fn means(prediction: &str, referent: &str) -> Option<usize> {
    const DETERMINERS: [&str; 22] = [
        "a", "an", "few", "her", "his", "each", "every", "many", "much", "my", "our", "some",
        "that", "the", "their", "these", "this", "those", "which", "whose", "your", "",
    ];
    let words = |text: &str| {
        let lower = text.trim().to_lowercase();
        lower
            .split(' ')
            .filter(|word| !DETERMINERS.contains(word))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let has_apostrophe = |words: &[String]| words.iter().any(|word| word.contains('\''));
    let [prediction, referent] = [prediction, referent].map(words);
    if prediction.is_empty() {
        return None;
    }
    if referent.is_empty() {
        // Of a noun such as "this" nothing is left that a prediction could share.
        return Some(0);
    }
    // "Bob" is not "Bob's hat".
    let same_owner = has_apostrophe(&prediction) == has_apostrophe(&referent);
    let within = |part: &[String], whole: &[String]| part.iter().all(|word| whole.contains(word));
    let same_words = within(&prediction, &referent) || within(&referent, &prediction);
    Some(usize::from(same_owner && same_words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pronouns_are_marked_where_they_stand() {
        let mark = |index, pronoun| mark_pronoun("He said he saw him,\" and her.", index, pronoun);
        assert_eq!(mark(2, "he").unwrap(), "He said *he* saw him,\" and her.");
        // Punctuation that sticks to the pronoun, and an index that is a word off.
        assert_eq!(mark(4, "him").unwrap(), "He said he saw *him* ,\" and her.");
        assert_eq!(mark(5, "him").unwrap(), "He said he saw *him* ,\" and her.");
        assert_eq!(mark(1, "he").unwrap(), "He said *he* saw him,\" and her.");
        assert_eq!(mark(4, "she"), None);
        assert_eq!(mark(9, "her").unwrap(), "He said he saw him,\" and *her* .");
    }

    #[test]
    fn nouns_are_mended() {
        let text = "Sam said the cat sat.";
        assert_eq!(as_written(text, 2, "The cat"), "the cat");
        assert_eq!(as_written(text, 0, "sam"), "Sam");
        assert_eq!(as_written(text, 2, "The cat\nsat."), "the cat sat");
        assert_eq!(as_written(text, 2, "The dog"), "The dog");
    }

    #[test]
    fn a_prediction_means_the_noun_in_other_words_too() {
        assert_eq!(means("fuzzy bunny", "the bunny"), Some(1));
        assert_eq!(means("The Bunny", "my fuzzy bunny"), Some(1));
        assert_eq!(means("Bob", "Bob's hat"), Some(0));
        assert_eq!(means("the fox", "the bunny"), Some(0));
        assert_eq!(means(" the ", "the bunny"), None);
        assert_eq!(means("dog", "this"), Some(0));
    }
}
