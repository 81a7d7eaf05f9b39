//! What is measured, for each kind of reference.

use serde::ser::{Serialize, SerializeMap, Serializer};

use super::{Example, Reference};
use crate::metrics::{self, BleuTokenizer, Normalization};

/// The metrics of a task, each a fraction.
#[derive(Clone, Debug, PartialEq)]
pub struct Metrics(Vec<(&'static str, f64)>);

impl Metrics {
    /// Metrics by name, in the order of the task.
    pub fn new(metrics: Vec<(&'static str, f64)>) -> Self {
        Self(metrics)
    }

    /// A metric, if the task has it.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    /// All metrics in the order of the task.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&'static str, f64)> + '_ {
        self.0.iter().copied()
    }

    /// Their mean: the score of the task in a benchmark's average.
    pub fn mean(&self) -> f64 {
        self.iter().map(|(_, value)| value).sum::<f64>() / self.0.len().max(1) as f64
    }
}

impl Serialize for Metrics {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in self.iter() {
            map.serialize_entry(name, &value)?;
        }
        map.end()
    }
}

/// A metric of classes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LabelMetric {
    /// The share that is right.
    Accuracy,
    /// F1 of the second of two labels.
    F1,
    /// The mean F1 of all labels; its name in results is `f1`.
    MacroF1,
    /// Matthews' correlation coefficient.
    Matthews,
}

impl LabelMetric {
    /// Its name in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Accuracy => "accuracy",
            Self::F1 | Self::MacroF1 => "f1",
            Self::Matthews => "matthews",
        }
    }

    /// Scores the classes that were predicted, `None` for what names none.
    pub(super) fn score(
        self,
        num_classes: usize,
        examples: &[&Example],
        predictions: &[Option<usize>],
    ) -> f64 {
        let references: Vec<usize> = examples.iter().map(|example| class(example)).collect();
        match self {
            Self::Accuracy => metrics::accuracy(&references, predictions),
            Self::F1 => metrics::f1(&references, predictions),
            Self::MacroF1 => metrics::macro_f1(num_classes, &references, predictions),
            Self::Matthews => metrics::matthews(&references, predictions),
        }
    }
}

/// A metric of numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScoreMetric {
    /// Pearson's correlation coefficient.
    Pearson,
    /// Spearman's rank correlation coefficient.
    Spearman,
}

impl ScoreMetric {
    /// Its name in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pearson => "pearson",
            Self::Spearman => "spearman",
        }
    }

    pub(super) fn score(self, examples: &[&Example], answers: &[String]) -> f64 {
        let references = examples.iter().map(|example| match example.reference {
            Some(Reference::Score(score)) => score,
            _ => panic!("example {} has no score", example.id),
        });
        let references: Vec<f64> = references.collect();
        let predictions: Vec<f64> =
            answers.iter().map(|answer| number(answer).unwrap_or(NO_NUMBER)).collect();
        match self {
            Self::Pearson => metrics::pearson(&references, &predictions),
            Self::Spearman => metrics::spearman(&references, &predictions),
        }
    }
}

/// What T5 takes a text for that is no number.
pub(super) const NO_NUMBER: f64 = -1.0;

/// The number that a text is.
pub(super) fn number(text: &str) -> Option<f64> {
    text.trim().parse().ok().filter(|number: &f64| number.is_finite())
}

/// A metric of short answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerMetric {
    /// The share that equals an answer.
    Em,
    /// The mean F1 of words with the nearest answer.
    F1,
}

impl AnswerMetric {
    /// Its name in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Em => "em",
            Self::F1 => "f1",
        }
    }

    pub(super) fn scores(
        metrics: &[Self],
        normalization: Normalization,
        examples: &[&Example],
        answers: &[String],
    ) -> Metrics {
        let score = |metric: &Self| (metric.name(), metric.score(normalization, examples, answers));
        Metrics::new(metrics.iter().map(score).collect())
    }

    fn score(self, normalization: Normalization, examples: &[&Example], answers: &[String]) -> f64 {
        let references = examples.iter().map(|example| match &example.reference {
            Some(Reference::Answers(answers)) => &answers[..],
            _ => panic!("example {} has no answers", example.id),
        });
        let references: Vec<&[String]> = references.collect();
        let predictions: Vec<&str> = answers.iter().map(|answer| &**answer).collect();
        match self {
            Self::Em => metrics::exact_match(&references, &predictions, normalization),
            Self::F1 => metrics::answer_f1(&references, &predictions, normalization),
        }
    }
}

/// A metric of texts such as translations and summaries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
pub enum TextMetric {
    /// BLEU with sacreBLEU's default words, `13a`.
    #[serde(rename = "bleu")]
    Bleu,
    /// BLEU with the words `intl`, as T5 reports it.
    #[serde(rename = "bleu_intl")]
    BleuInternational,
    /// ROUGE-1.
    #[serde(rename = "rouge_1")]
    Rouge1,
    /// ROUGE-2.
    #[serde(rename = "rouge_2")]
    Rouge2,
    /// ROUGE-L.
    #[serde(rename = "rouge_l")]
    RougeL,
    /// ROUGE-Lsum, where a full stop between spaces ends a sentence, as T5 has it, and so does a line.
    #[serde(rename = "rouge_lsum")]
    RougeLsum,
}

impl TextMetric {
    /// Its name in results and in descriptions.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bleu => "bleu",
            Self::BleuInternational => "bleu_intl",
            Self::Rouge1 => "rouge_1",
            Self::Rouge2 => "rouge_2",
            Self::RougeL => "rouge_l",
            Self::RougeLsum => "rouge_lsum",
        }
    }

    pub(super) fn score(self, examples: &[&Example], answers: &[String]) -> f64 {
        assert_eq!(examples.len(), answers.len(), "examples and answers");
        let references: Vec<&str> = examples
            .iter()
            .map(|example| match &example.reference {
                Some(Reference::Text(text)) => &**text,
                _ => panic!("example {} has no reference", example.id),
            })
            .collect();
        let rouge = |of: &dyn Fn(&str, &str) -> f64| {
            let scores = references.iter().zip(answers).map(|(text, answer)| of(text, answer));
            scores.sum::<f64>() / references.len().max(1) as f64
        };
        let bleu = |tokenizer| {
            let references: Vec<[&str; 1]> = references.iter().map(|text| [*text]).collect();
            let references: Vec<&[&str]> = references.iter().map(|texts| &texts[..]).collect();
            let predictions: Vec<&str> = answers.iter().map(|answer| &**answer).collect();
            metrics::bleu(&references, &predictions, tokenizer)
        };
        match self {
            Self::Bleu => bleu(BleuTokenizer::Mteval13a),
            Self::BleuInternational => bleu(BleuTokenizer::International),
            Self::Rouge1 => rouge(&|text, answer| metrics::rouge_n(1, text, answer)),
            Self::Rouge2 => rouge(&|text, answer| metrics::rouge_n(2, text, answer)),
            Self::RougeL => rouge(&metrics::rouge_l),
            Self::RougeLsum => rouge(&|text, answer| {
                let [text, answer] = [text, answer].map(|text| text.replace(" . ", " .\n"));
                metrics::rouge_lsum(&text, &answer)
            }),
        }
    }
}

/// The class of an example.
pub(super) fn class(example: &Example) -> usize {
    match example.reference {
        Some(Reference::Class(class)) => class,
        _ => panic!("example {} has no class", example.id),
    }
}

/// The class that each answer names, if it is a label word.
pub(super) fn classes<S: AsRef<str>>(words: &[S], answers: &[String]) -> Vec<Option<usize>> {
    let class = |answer: &String| words.iter().position(|word| word.as_ref() == answer.trim());
    answers.iter().map(class).collect()
}
