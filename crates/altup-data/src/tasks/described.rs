//! Tasks described in TOML: rows of files, a template, and what is predicted.

use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::example::Ids;
use super::files::may_lack_labels;
use super::measures::{NO_NUMBER, classes, number};
use super::rows::{Row, RowReader, read_text};
use super::submission::SubmissionRow;
use super::template::Template;
use super::{
    AnswerMetric, Dataset, Example, Format, LabelMetric, Metrics, Reference, ScoreMetric, Split,
    Submission, SubmissionFormat, Task, TaskError, TaskFiles, TextMetric,
};
use crate::metrics::Normalization;

/// The description of a task. Exactly one of `label`, `score`, `answers` and `text` says what is predicted.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    /// The task's name.
    pub name: String,
    /// The benchmark that it is part of. Default: `own`
    #[serde(default = "own")]
    pub benchmark: String,
    /// Folders below the data folder in which its files may lie, beside the data folder itself. Default: none
    #[serde(default)]
    pub folders: Vec<String>,
    /// The files of each split.
    pub splits: BTreeMap<String, SplitDescription>,
    /// What the files are made of.
    pub format: Format,
    /// The names of the columns of TSV files without a header. Default: the header's
    #[serde(default)]
    pub columns: Option<Vec<String>>,
    /// Splits whose TSV file has a header although `columns` is set. Default: none
    #[serde(default)]
    pub splits_with_header: Vec<String>,
    /// Whether TSV rows with too few columns are left out and counted, not an error. Default: no
    #[serde(default)]
    pub skip_short_rows: bool,
    /// The column of an example's id, in files that have it. Default: the number of the row, counted from 0
    #[serde(default)]
    pub id: Option<String>,
    /// The input, with `{column}` for the text of a column.
    pub template: String,
    /// A class is predicted.
    #[serde(default)]
    pub label: Option<LabelDescription>,
    /// A number is predicted.
    #[serde(default)]
    pub score: Option<ScoreDescription>,
    /// A short answer is predicted, of which several may be right.
    #[serde(default)]
    pub answers: Option<AnswersDescription>,
    /// A text is predicted.
    #[serde(default)]
    pub text: Option<TextDescription>,
    /// The file to hand in. Default: `NAME.txt`, an answer a line
    #[serde(default)]
    pub submission: Option<SubmissionDescription>,
}

fn own() -> String {
    "own".to_owned()
}

/// The files of a split.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum SplitDescription {
    /// One file.
    File(String),
    /// Names of which the first that is there is read.
    FirstOf(Vec<String>),
    /// For `format = "lines"`: the file of each column.
    Columns(BTreeMap<String, String>),
}

/// A class as target.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabelDescription {
    /// The column of the label.
    pub column: String,
    /// What stands in the files, and the word for it that a model writes. For `f1` the second is the one to find.
    pub words: Vec<LabelWord>,
    /// The metrics.
    pub metrics: Vec<LabelMetric>,
}

/// A label and the word for it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabelWord {
    /// What stands in the files: a text, a whole number, true or false.
    pub value: Value,
    /// The word that a model writes.
    pub word: String,
}

/// A number as target.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScoreDescription {
    /// The column of the number.
    pub column: String,
    /// Targets are rounded to so many steps per unit. Metrics see the number itself.
    pub steps_per_unit: u32,
    /// The decimals of a target.
    pub decimals: usize,
    /// The metrics.
    pub metrics: Vec<ScoreMetric>,
}

/// Short answers as target.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnswersDescription {
    /// The column of the answers: a text or, in JSON, a list of texts. The first is the target.
    pub column: String,
    /// Whether each row has a list: a single text is an error, as of another benchmark's file. Default: false
    #[serde(default)]
    pub list: bool,
    /// How answers are made comparable.
    pub normalization: Normalization,
    /// The metrics.
    pub metrics: Vec<AnswerMetric>,
}

/// A text as target.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextDescription {
    /// The target, with `{column}` for the text of a column.
    pub template: String,
    /// The metrics.
    pub metrics: Vec<TextMetric>,
}

/// The file to hand in.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubmissionDescription {
    /// What it looks like.
    pub format: SubmissionFormat,
    /// Its name.
    pub file: String,
    /// Its name for those splits that have another. Default: none
    #[serde(default)]
    pub split_files: BTreeMap<String, String>,
}

/// A task made of its description.
#[derive(Debug)]
pub struct DescribedTask {
    description: Description,
    files: TaskFiles,
    template: Template,
    target: Target,
}

/// What is predicted.
#[derive(Debug)]
enum Target {
    Label(LabelDescription),
    Score(ScoreDescription),
    Answers(AnswersDescription),
    Text { template: Template, metrics: Vec<TextMetric> },
}

impl DescribedTask {
    /// Reads the description in a file.
    ///
    /// # Errors
    ///
    /// If it can't be read or does not say what a task needs.
    pub fn open(file: &Path) -> Result<Self, TaskError> {
        Self::parse(&read_text(file)?, &file.display().to_string())
    }

    /// Reads a description; `origin` is what errors call it.
    ///
    /// # Errors
    ///
    /// If it does not say what a task needs.
    pub fn parse(toml: &str, origin: &str) -> Result<Self, TaskError> {
        let error = |problem: String| TaskError::Description { origin: origin.to_owned(), problem };
        let description: Description = toml::from_str(toml).map_err(|parsed| {
            let line = parsed.span().map_or(1, |span| 1 + toml[..span.start].matches('\n').count());
            error(format!("line {line}: {}", parsed.message().replace('\n', " ")))
        })?;
        Self::new(description).map_err(error)
    }

    /// Makes a task of a description.
    ///
    /// # Errors
    ///
    /// What the description lacks.
    pub fn new(description: Description) -> Result<Self, String> {
        let template = Template::parse(&description.template)
            .map_err(|problem| format!("template {problem}"))?;
        let kinds =
            (&description.label, &description.score, &description.answers, &description.text);
        let target = match kinds {
            (Some(label), None, None, None) => Target::Label(checked_label(label)?),
            (None, Some(score), None, None) => {
                if score.steps_per_unit == 0 {
                    return Err("score.steps_per_unit must be at least 1".to_owned());
                }
                Target::Score(score.clone())
            }
            (None, None, Some(answers), None) => Target::Answers(answers.clone()),
            (None, None, None, Some(text)) => Target::Text {
                template: Template::parse(&text.template)
                    .map_err(|problem| format!("text.template {problem}"))?,
                metrics: text.metrics.clone(),
            },
            _ => {
                let problem = "exactly one of [label], [score], [answers] and [text] says what is \
                               predicted";
                return Err(problem.to_owned());
            }
        };
        let names = target.metrics();
        if names.is_empty() {
            return Err("metrics names none".to_owned());
        }
        if let Some(again) = (1..names.len()).find(|&at| names[..at].contains(&names[at])) {
            return Err(format!("metrics has two of the name {}", names[again]));
        }
        let splits = splits(&description, |split| {
            // Where labels may be missing, so may their file.
            let of_target = target.columns().filter(|_| !may_lack_labels(split));
            template.columns().chain(of_target).map(str::to_owned).collect()
        })?;
        let name = &description.name;
        if name.is_empty() || name.ends_with(".toml") || name.contains(['/', '\\', ',']) {
            return Err(format!("`{name}` can't be the name of a task"));
        }
        if description
            .splits_with_header
            .iter()
            .any(|split| !description.splits.contains_key(split))
        {
            return Err("splits_with_header names a split that is not there".to_owned());
        }
        let files = TaskFiles { folders: description.folders.clone(), splits };
        Ok(Self { files, template, target, description })
    }

    fn submission_file(&self, split: &str) -> String {
        match &self.description.submission {
            Some(submission) => {
                submission.split_files.get(split).unwrap_or(&submission.file).clone()
            }
            None => format!("{}.txt", self.description.name),
        }
    }
}

fn checked_label(label: &LabelDescription) -> Result<LabelDescription, String> {
    let unusable = |word: &LabelWord| word.value.is_object() || word.value.is_array();
    if label.words.len() < 2 || label.words.iter().any(unusable) {
        return Err("label.words must be at least two pairs of a plain value and a word".to_owned());
    }
    for (at, word) in label.words.iter().enumerate() {
        let same = |other: &LabelWord| {
            other.word.trim() == word.word.trim() || plain(&other.value) == plain(&word.value)
        };
        if label.words[..at].iter().any(same) {
            return Err(format!("label.words has `{}` or its value twice", word.word));
        }
    }
    if label.words.len() != 2 && label.metrics.contains(&LabelMetric::F1) {
        return Err("label.metrics: `f1` is between two labels; see `macro_f1`".to_owned());
    }
    Ok(label.clone())
}

/// The splits, training first and tests last.
fn splits(
    description: &Description,
    needed: impl Fn(&str) -> Vec<String>,
) -> Result<Vec<Split>, String> {
    let mut splits = Vec::new();
    for (name, files) in &description.splits {
        let files = match (files, description.format) {
            (SplitDescription::File(file), Format::Tsv | Format::Jsonl) => vec![vec![file.clone()]],
            (SplitDescription::FirstOf(files), Format::Tsv | Format::Jsonl) => {
                files.iter().map(|file| vec![file.clone()]).collect()
            }
            (SplitDescription::Columns(columns), Format::Lines) => {
                if let Some(column) = needed(name).iter().find(|name| !columns.contains_key(*name))
                {
                    return Err(format!("splits.{name} has no file of the column `{column}`"));
                }
                vec![columns.values().cloned().collect()]
            }
            (_, Format::Lines) => {
                return Err(format!("splits.{name} must name a file for each column"));
            }
            (_, _) => return Err(format!("splits.{name} must be a file, or a list of them")),
        };
        splits.push(Split { name: name.clone(), files });
    }
    if splits.is_empty() {
        return Err("[splits] names no file".to_owned());
    }
    let rank = |split: &Split| match &*split.name {
        "train" => 0,
        name if name.starts_with("validation") => 1,
        name if may_lack_labels(name) => 3,
        _ => 2,
    };
    splits.sort_by_key(rank);
    Ok(splits)
}

impl Target {
    fn columns(&self) -> impl Iterator<Item = &str> {
        let (one, many) = match self {
            Self::Label(LabelDescription { column, .. })
            | Self::Score(ScoreDescription { column, .. })
            | Self::Answers(AnswersDescription { column, .. }) => (Some(&**column), None),
            Self::Text { template, .. } => (None, Some(template.columns())),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }

    fn metrics(&self) -> Vec<&'static str> {
        match self {
            Self::Label(label) => label.metrics.iter().map(|metric| metric.name()).collect(),
            Self::Score(score) => score.metrics.iter().map(|metric| metric.name()).collect(),
            Self::Answers(of) => of.metrics.iter().map(|metric| metric.name()).collect(),
            Self::Text { metrics, .. } => metrics.iter().map(|metric| metric.name()).collect(),
        }
    }

    /// The target text of a row, and what predictions are compared with.
    fn read(&self, task: &str, row: &Row<'_>) -> Result<(String, Reference), TaskError> {
        match self {
            Self::Label(label) => {
                let value = row.value(&label.column).ok_or_else(|| row.lacks(&label.column))?;
                let is_value = |word: &LabelWord| plain(&word.value) == plain(&value);
                let Some(class) = label.words.iter().position(is_value) else {
                    return Err(TaskError::UnknownLabel {
                        place: row.place(),
                        task: task.to_owned(),
                        label: plain(&value),
                        known: super::error::list(
                            label.words.iter().map(|word| plain(&word.value)),
                        )
                        .into(),
                    });
                };
                Ok((label.words[class].word.clone(), Reference::Class(class)))
            }
            Self::Score(score) => {
                let text = row.text(&score.column)?;
                let value = number(&text).ok_or_else(|| {
                    row.wrong_value(&score.column, "a number", &Value::from(&*text))
                })?;
                // In single precision and with halves to even, as TensorFlow rounds it.
                let steps = score.steps_per_unit as f32;
                let rounded = (value as f32 * steps).round_ties_even() / steps;
                Ok((format!("{rounded:.*}", score.decimals), Reference::Score(value)))
            }
            Self::Answers(AnswersDescription { column, list, .. }) => {
                let value = row.value(column).ok_or_else(|| row.lacks(column))?;
                let answers = match &*value {
                    Value::String(answer) if !list => Some(vec![answer.clone()]),
                    Value::Array(answers) => {
                        answers.iter().map(|answer| answer.as_str().map(str::to_owned)).collect()
                    }
                    _ => None,
                };
                let expected = if *list { "a list of texts" } else { "a text or a list of texts" };
                let answers = answers.ok_or_else(|| row.wrong_value(column, expected, &value))?;
                check_answers(&answers)
                    .map_err(|problem| TaskError::BadAnswers { place: row.place(), problem })?;
                Ok((answers[0].clone(), Reference::Answers(answers)))
            }
            Self::Text { template, .. } => {
                let text = template.fill(row)?;
                Ok((text.clone(), Reference::Text(text)))
            }
        }
    }
}

/// What is wrong with the answers to a question.
pub(super) fn check_answers(answers: &[String]) -> Result<(), &'static str> {
    match answers {
        [] => Err("the question has no answer"),
        _ if answers.iter().any(|answer| answer.trim().is_empty()) => {
            Err("an answer to the question is empty")
        }
        _ => Ok(()),
    }
}

/// A plain value as the text that a TSV file would have.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

impl Task for DescribedTask {
    fn name(&self) -> &str {
        &self.description.name
    }

    fn benchmark(&self) -> &str {
        &self.description.benchmark
    }

    fn files(&self) -> &TaskFiles {
        &self.files
    }

    fn template(&self) -> &str {
        self.template.source()
    }

    fn label_words(&self) -> Vec<&str> {
        match &self.target {
            Target::Label(label) => label.words.iter().map(|word| &*word.word).collect(),
            _ => Vec::new(),
        }
    }

    fn metrics(&self) -> Vec<&'static str> {
        self.target.metrics()
    }

    fn read_files(&self, files: &[PathBuf], split: &str) -> Result<Dataset, TaskError> {
        let description = &self.description;
        let names = match &description.splits[split] {
            SplitDescription::Columns(columns) => Some(columns.keys().cloned().collect()),
            _ if description.splits_with_header.iter().any(|name| name == split) => None,
            _ => description.columns.clone(),
        };
        let may_lack = may_lack_labels(split);
        let target_columns = self.target.columns().filter(|_| !may_lack);
        let reader = RowReader {
            task: &description.name,
            format: description.format,
            columns: names.as_deref(),
            needed: self.template.columns().chain(target_columns).collect(),
            skip_short_rows: description.skip_short_rows,
        };
        let mut examples = Vec::new();
        let mut ids = Ids::default();
        let skipped_rows = reader.read(files, &mut |row| {
            let id = description.id.as_deref().filter(|column| row.value(column).is_some());
            let id = match id {
                Some(column) => row.text(column)?.into_owned(),
                None => row.number.to_string(),
            };
            ids.insert(&id, || row.place())?;
            // First, as a column that is missing says more than a label that is unknown.
            let input = self.template.fill(row)?;
            let is_labelled = !may_lack
                || self
                    .target
                    .columns()
                    .all(|column| row.value(column).is_some_and(|value| !value.is_null()));
            let target =
                is_labelled.then(|| self.target.read(&description.name, row)).transpose()?;
            let (target, reference) = target.unzip();
            examples.push(Example { id, input, target, reference, passage: None });
            Ok(())
        })?;
        Ok(Dataset { examples, files: files.to_owned(), skipped_rows })
    }

    fn score(&self, examples: &[&Example], answers: &[String]) -> Metrics {
        let metrics = match &self.target {
            Target::Label(label) => {
                let predictions = classes(&self.label_words(), answers);
                let score = |metric: &LabelMetric| {
                    (metric.name(), metric.score(label.words.len(), examples, &predictions))
                };
                label.metrics.iter().map(score).collect()
            }
            Target::Score(score) => {
                let metrics = score.metrics.iter();
                metrics.map(|metric| (metric.name(), metric.score(examples, answers))).collect()
            }
            Target::Answers(of) => {
                return AnswerMetric::scores(&of.metrics, of.normalization, examples, answers);
            }
            Target::Text { metrics, .. } => {
                let metrics = metrics.iter();
                metrics.map(|metric| (metric.name(), metric.score(examples, answers))).collect()
            }
        };
        Metrics::new(metrics)
    }

    fn submission(&self, split: &str, examples: &[&Example], answers: &[String]) -> Submission {
        assert_eq!(examples.len(), answers.len(), "examples and answers");
        let mut invalid = 0;
        let mut handed_in = |answer: &String| match &self.target {
            Target::Label(label) => {
                let class = classes(&self.label_words(), std::slice::from_ref(answer))[0];
                invalid += usize::from(class.is_none());
                match &label.words[class.unwrap_or(0)].value {
                    Value::Bool(value) => Value::from(value.to_string()),
                    value => value.clone(),
                }
            }
            Target::Score(_) => {
                let number = number(answer);
                invalid += usize::from(number.is_none());
                Value::from(number.unwrap_or(NO_NUMBER))
            }
            Target::Answers(_) | Target::Text { .. } => Value::from(answer.as_str()),
        };
        let submission = self.description.submission.as_ref();
        let prefix = self.template.source().split('{').next().unwrap_or_default();
        let rows = examples.iter().zip(answers).map(|(example, answer)| SubmissionRow {
            id: &example.id,
            question: example.input.strip_prefix(prefix).unwrap_or(&example.input),
            answer: handed_in(answer),
        });
        let format = submission.map_or(SubmissionFormat::Lines, |submission| submission.format);
        let contents = format.contents(rows);
        Submission { file_name: self.submission_file(split), contents, invalid }
    }
}

/// The descriptions that come with the crate: GLUE's, SuperGLUE's and those of questions without passages.
pub(super) fn standard_descriptions() -> [Vec<DescribedTask>; 3] {
    macro_rules! described {
        ($($name:literal),+) => {
            vec![$({
                let toml = include_str!(concat!("descriptions/", $name, ".toml"));
                DescribedTask::parse(toml, $name).expect("a description that a test parses")
            }),+]
        };
    }
    [
        described!["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"],
        described!["boolq", "cb", "copa", "sg_rte", "wic"],
        described!["nq_open"],
    ]
}
