//! How well a model does a benchmark task: by the answers that it writes, or by the label word that it finds likeliest.

use altup_data::tasks::{
    Dataset, Example, MaxLengths, Reference, Scores, Task, TaskError, TokenizedTask,
};
use altup_data::{Batch, DataError, TextTokenizer, permutation::Permutation};
use altup_models::operations::cross_entropy::cross_entropy;
use altup_models::{
    CrossEntropyOptions, Decode, DecoderCache, GenerationConfig, GenerationError, Generator,
    Memory, T5,
};
use burn::tensor::{Device, Int, Tensor, TensorData};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::learner::{DeviceBatch, ToDevice};
use crate::replicas::{Exact, Replicas, Turns};

/// How a model answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum AnswerBy {
    /// What it writes, greedily
    #[default]
    Generation,
    /// The label word whose tokens have the highest probability together; for tasks with label words
    Ranking,
}

/// How a model is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AnswerConfig {
    /// What its answer is: `generation` or `ranking`. Default: generation
    pub by: AnswerBy,
    /// Examples that go through the model at once. Default: 32
    pub batch_size: usize,
    /// An answer that it writes has at most this many tokens, the end token included. Default: those of the longest
    /// label word, and 64 where there are no label words
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_new_tokens: Option<usize>,
}

impl Default for AnswerConfig {
    fn default() -> Self {
        Self { by: AnswerBy::Generation, batch_size: 32, max_new_tokens: None }
    }
}

/// Why a task can't be evaluated.
#[derive(Debug, thiserror::Error)]
pub enum TaskEvaluationError {
    /// The task's files can't be read, or its examples not scored.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// A label word can't be tokenized, or what the model wrote not be read.
    #[error(transparent)]
    Text(#[from] DataError),
    /// The model can't write.
    #[error("cannot answer the examples of {task}")]
    Generation {
        /// The task.
        task: String,
        /// The cause.
        source: GenerationError,
    },
    /// The task has no label words to rank.
    #[error("{task} has no label words to rank: let the model answer by generation")]
    NoLabelWords {
        /// The task.
        task: String,
    },
    /// Two label words are the same to the model.
    #[error(
        "the tokenizer makes the same tokens of {task}'s label words `{first}` and `{second}`, so that no \
         model could tell them apart"
    )]
    SameLabels {
        /// The task.
        task: String,
        /// A label word.
        first: String,
        /// The other.
        second: String,
    },
}

/// A split of a task, ready to be put to a model.
pub struct TaskSplit {
    task: Arc<dyn Task>,
    split: String,
    /// The examples that a model is judged by.
    dataset: Dataset,
    tokenized: TokenizedTask,
    /// The label words as targets.
    labels: Vec<Vec<u32>>,
}

/// What of a split is put to a model.
#[derive(Clone, Copy, Debug)]
pub struct Selection {
    /// Inputs are cut to this many tokens.
    pub input_length: usize,
    /// At most this many examples are judged, a sample of all; more only where a single [group](Task::group) has more.
    pub max_examples: Option<u64>,
    /// The seed of the sample.
    pub seed: u64,
}

impl Default for Selection {
    /// All examples, inputs cut to T5's 512 tokens.
    fn default() -> Self {
        Self { input_length: MaxLengths::default().input, max_examples: None, seed: 0 }
    }
}

impl Selection {
    /// The examples that are judged. What a task judges together is in the sample as a whole.
    fn apply(self, task: &dyn Task, mut dataset: Dataset) -> Dataset {
        let judged: Vec<Example> = dataset.judged().cloned().collect();
        dataset.examples = match self.max_examples {
            Some(max) if max < judged.len() as u64 => {
                let mut groups: Vec<Vec<Example>> = Vec::new();
                let mut places: HashMap<String, usize> = HashMap::new();
                for example in judged {
                    let place = *places.entry(task.group(&example)).or_insert(groups.len());
                    if place == groups.len() {
                        groups.push(Vec::new());
                    }
                    groups[place].push(example);
                }
                let seed = self.seed.to_le_bytes();
                let key = blake3::derive_key("altup-train 2026 sample of a task's split", &seed);
                let sample = Permutation::new(groups.len() as u64, key);
                let (mut chosen, mut count) = (Vec::new(), 0);
                for place in (0..groups.len() as u64).map(|place| sample.at(place) as usize) {
                    count += groups[place].len() as u64;
                    // One at least.
                    if count > max && !chosen.is_empty() {
                        break;
                    }
                    chosen.push(place);
                }
                chosen.sort_unstable();
                chosen.into_iter().flat_map(|place| std::mem::take(&mut groups[place])).collect()
            }
            _ => judged,
        };
        dataset
    }
}

impl TaskSplit {
    /// Reads a split of `task` from the data folder, the task's own or one that holds it.
    ///
    /// # Errors
    ///
    /// If the files are not there or not whole, or the tokenizer can't tell the label words apart.
    pub fn read(
        task: Arc<dyn Task>,
        data: &Path,
        split: &str,
        tokenizer: &TextTokenizer,
        selection: Selection,
    ) -> Result<Self, TaskEvaluationError> {
        let dataset = task.read(data, split)?;
        let dataset = selection.apply(&*task, dataset);
        let lengths = MaxLengths { input: selection.input_length, target: None };
        let tokenized = TokenizedTask::judged(task.name(), &dataset, tokenizer, lengths)?;
        let labels = label_targets(&*task, tokenizer)?;
        Ok(Self { task, split: split.to_owned(), dataset, tokenized, labels })
    }

    /// The task.
    pub fn task(&self) -> &dyn Task {
        &*self.task
    }

    /// The name of the split.
    pub fn split(&self) -> &str {
        &self.split
    }

    /// The examples that a model is judged by.
    pub fn examples(&self) -> &[Example] {
        &self.dataset.examples
    }

    /// How many inputs are cut.
    pub fn truncated(&self) -> usize {
        self.tokenized.truncated
    }

    /// How many rows of the files were left out because they are cut short.
    pub fn skipped_rows(&self) -> usize {
        self.dataset.skipped_rows
    }

    /// A hash of what answers and scores depend on beside the model: the task, and the examples as text and as tokens.
    pub fn fingerprint(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_derive_key("altup-train 2026 split of a task");
        let Self { task, split, labels, .. } = self;
        let task = (task.name(), task.template(), task.label_words(), task.metrics());
        hasher.update(format!("{task:?} {split:?} {labels:?}").as_bytes());
        for example in self.examples().iter().zip(&self.tokenized.examples) {
            hasher.update(format!("{example:?}").as_bytes());
        }
        hasher.finalize()
    }

    /// Whether the files say what is right.
    pub fn is_labelled(&self) -> bool {
        self.examples().iter().all(|example| example.reference.is_some())
    }

    /// The scores of one answer for each example.
    ///
    /// # Errors
    ///
    /// If the split has no labels.
    ///
    /// # Panics
    ///
    /// If there is not one answer for each.
    pub fn score(&self, answers: &[String]) -> Result<Scores, TaskError> {
        altup_data::tasks::evaluate(self.task(), &self.dataset, &self.split, answers)
    }

    /// Checks that the task can be answered so.
    ///
    /// # Errors
    ///
    /// If label words are to be ranked and there are none.
    pub fn check(&self, by: AnswerBy) -> Result<(), TaskEvaluationError> {
        match by {
            AnswerBy::Ranking if self.labels.is_empty() => {
                Err(TaskEvaluationError::NoLabelWords { task: self.task.name().to_owned() })
            }
            _ => Ok(()),
        }
    }

    fn max_new_tokens(&self, config: &AnswerConfig) -> usize {
        const ANSWER: usize = 64;
        // A sentence or several.
        const TEXT: usize = 128;
        let longest_label = self.labels.iter().map(Vec::len).max();
        let is_text = |example: &Example| matches!(example.reference, Some(Reference::Text(_)));
        let default = if self.examples().iter().any(is_text) { TEXT } else { ANSWER };
        config.max_new_tokens.or(longest_label).unwrap_or(default)
    }
}

/// The label words of a task as targets.
fn label_targets(
    task: &dyn Task,
    tokenizer: &TextTokenizer,
) -> Result<Vec<Vec<u32>>, TaskEvaluationError> {
    let words = task.label_words();
    let mut targets: Vec<Vec<u32>> = Vec::with_capacity(words.len());
    for word in &words {
        let mut target = tokenizer.encode(word)?;
        target.push(tokenizer.eos_id());
        if let Some(same) = targets.iter().position(|other| *other == target) {
            return Err(TaskEvaluationError::SameLabels {
                task: task.name().to_owned(),
                first: words[same].to_owned(),
                second: String::from(*word),
            });
        }
        targets.push(target);
    }
    Ok(targets)
}

/// What a model made of the examples of a split.
#[derive(Clone, Debug)]
pub struct Answers {
    /// For each example, in their order.
    pub answers: Vec<Answer>,
    /// The summed cross-entropy of all targets, in nats; 0 where the files tell none.
    pub loss: f64,
    /// Target tokens.
    pub tokens: u64,
    /// Target tokens that the model finds likeliest, given those before.
    pub correct: u64,
}

/// What a model made of an example.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// What it wrote, or the label word that it found likeliest.
    pub output: String,
    /// The answer in that.
    pub text: String,
    /// The loss of the target in nats per token; `None` where the files tell none.
    pub loss: Option<f64>,
    /// When label words are ranked: the probability of the one that was chosen, among them.
    pub confidence: Option<f64>,
    /// When label words are ranked, and the files tell the right one: its summed log-probability minus that of the likeliest
    /// other, in nats; below 0 where the answer is wrong.
    pub margin: Option<f64>,
}

impl Answers {
    /// The answers alone.
    pub fn texts(&self) -> Vec<String> {
        self.answers.iter().map(|answer| answer.text.clone()).collect()
    }

    /// The examples that were answered wrongly, by their places: the most clearly wrong ones first, by the margin where label
    /// words are ranked and else by the loss of the target.
    pub fn mistakes(&self, split: &TaskSplit) -> Vec<usize> {
        let examples = split.examples();
        let is_wrong =
            |place: &usize| !is_right(split.task(), &examples[*place], &self.answers[*place].text);
        let mut wrong: Vec<usize> = (0..examples.len()).filter(is_wrong).collect();
        let clearness = |place: usize| {
            let Answer { loss, margin, .. } = &self.answers[place];
            margin.map(|margin| -margin).or(*loss).unwrap_or(0.0)
        };
        wrong.sort_by(|&a, &b| clearness(b).total_cmp(&clearness(a)));
        wrong
    }
}

/// Whether an answer to one example is all right.
fn is_right(task: &dyn Task, example: &Example, answer: &str) -> bool {
    match &example.reference {
        None => true,
        Some(Reference::Class(class)) if !task.label_words().is_empty() => {
            task.label_words()[*class] == answer
        }
        // A correlation says nothing about a single number.
        Some(Reference::Score(_)) => example.target.as_deref() == Some(answer),
        // BLEU has 0 for what is shorter than four tokens.
        Some(Reference::Text(text)) if text == answer => true,
        Some(_) => task.score(&[example], &[answer.to_owned()]).mean() > 1.0 - 1e-9,
    }
}

/// Lets a model answer the examples of a split, which the encoder goes through once.
///
/// A batch has examples of about equal length; what is answered does not depend on how they are put together but for
/// rounding.
///
/// # Errors
///
/// If the model's numbers are no numbers, or the task can't be answered so.
pub fn answer(
    model: &T5,
    tokenizer: &TextTokenizer,
    split: &TaskSplit,
    config: &AnswerConfig,
) -> Result<Answers, TaskEvaluationError> {
    let turns = Turns { replicas: &Replicas::lone(), stop: &AtomicBool::new(false) };
    let answers = answer_in_turns(model, tokenizer, split, config, turns)?;
    Ok(answers.unwrap_or_else(|| unreachable!("nobody stops it")))
}

/// As [`answer`], by all replicas. Once they are to stop, they end before the next batch, and get nothing.
///
/// # Errors
///
/// As [`answer`].
pub fn answer_in_turns(
    model: &T5,
    tokenizer: &TextTokenizer,
    split: &TaskSplit,
    config: &AnswerConfig,
    turns: Turns<'_>,
) -> Result<Option<Answers>, TaskEvaluationError> {
    split.check(config.by)?;
    let examples = &split.tokenized.examples;
    let mut order: Vec<usize> = (0..examples.len()).collect();
    order.sort_by_key(|&place| (examples[place].inputs.len(), examples[place].targets.len()));
    let batches: Vec<&[usize]> = order.chunks(config.batch_size).collect();
    let answered =
        turns.score(&batches, |places| answer_batch(model, tokenizer, split, config, places))?;
    let Some(answered) = answered else { return Ok(None) };
    let mut answers = vec![None; examples.len()];
    let (mut loss, mut tokens, mut correct) = (0.0, 0, 0);
    for (places, batch) in batches.iter().zip(answered) {
        loss += batch.losses.iter().map(|loss| loss.0).sum::<f64>();
        tokens += batch.tokens;
        correct += batch.correct;
        for ((&place, output), loss) in places.iter().zip(batch.outputs).zip(batch.losses) {
            let Output { text, confidence, margin } = output;
            let length = examples[place].targets.len();
            answers[place] = Some(Answer {
                text: split.task.answer(&split.examples()[place], &text),
                output: text,
                loss: (length > 0).then(|| loss.0 / length as f64),
                confidence: confidence.map(|confidence| confidence.0),
                margin: margin.map(|margin| margin.0),
            });
        }
    }
    let answers = answers.into_iter().flatten().collect();
    Ok(Some(Answers { answers, loss, tokens, correct }))
}

/// What a model makes of the examples at some places.
fn answer_batch(
    model: &T5,
    tokenizer: &TextTokenizer,
    split: &TaskSplit,
    config: &AnswerConfig,
    places: &[usize],
) -> Result<AnsweredBatch, TaskEvaluationError> {
    let examples: Vec<altup_data::Example> =
        places.iter().map(|&place| split.tokenized.examples[place].clone()).collect();
    let batch = Batch::of(&examples);
    let DeviceBatch { input_ids, padding, labels, .. } = batch.to_device(0, &model.device());
    let memory = model.encode(input_ids, padding.as_ref());
    let targets = Targets::score(model, &memory, &batch, labels);
    let cache = model.decoder.start(&memory);
    let outputs = match config.by {
        AnswerBy::Ranking => split.rank(model, cache, places),
        AnswerBy::Generation => {
            let inputs: Vec<Vec<u32>> = examples.into_iter().map(|of| of.inputs).collect();
            split.generate(model, tokenizer, cache, &inputs, config)?
        }
    };
    Ok(AnsweredBatch {
        losses: targets.losses.into_iter().map(Exact).collect(),
        tokens: batch.num_targets(),
        correct: targets.correct,
        outputs,
    })
}

/// What a model made of a batch of examples.
#[derive(Serialize, Deserialize)]
struct AnsweredBatch {
    /// The summed cross-entropy of each example's target, in nats.
    losses: Vec<Exact>,
    tokens: u64,
    correct: u64,
    outputs: Vec<Output>,
}

/// What a model answers to an example.
#[derive(Serialize, Deserialize)]
struct Output {
    text: String,
    confidence: Option<Exact>,
    margin: Option<Exact>,
}

impl TaskSplit {
    /// The label word of the highest summed log-probability for each row of `cache`, which are the examples at `places`. Of
    /// equal ones the first.
    fn rank(&self, model: &T5, cache: DecoderCache, places: &[usize]) -> Vec<Output> {
        // Each word alone, so that there is nothing to pad.
        let rows = places.len();
        let scores: Vec<Vec<f64>> =
            self.labels.iter().map(|label| log_probabilities(model, &cache, label, rows)).collect();
        let words = self.task.label_words();
        let output = |(row, place): (usize, &usize)| {
            let of_row: Vec<f64> = scores.iter().map(|scores| scores[row]).collect();
            let mut best = 0;
            for label in 1..of_row.len() {
                if of_row[label] > of_row[best] {
                    best = label;
                }
            }
            let total: f64 = of_row.iter().map(|score| (score - of_row[best]).exp()).sum();
            let margin = match self.examples()[*place].reference {
                Some(Reference::Class(right)) => {
                    let others = (0..of_row.len()).filter(|&label| label != right);
                    let likeliest = others.map(|label| of_row[label]).max_by(f64::total_cmp);
                    likeliest.map(|other| Exact(of_row[right] - other))
                }
                _ => None,
            };
            Output { text: words[best].to_owned(), confidence: Some(Exact(1.0 / total)), margin }
        };
        places.iter().enumerate().map(output).collect()
    }

    /// What the model writes for each input, of which `cache` holds the encoder's output.
    fn generate(
        &self,
        model: &T5,
        tokenizer: &TextTokenizer,
        cache: DecoderCache,
        inputs: &[Vec<u32>],
        config: &AnswerConfig,
    ) -> Result<Vec<Output>, TaskEvaluationError> {
        let encoded = Encoded { model, cache };
        let generation = GenerationConfig::greedy(self.max_new_tokens(config));
        let generated = Generator::new(&encoded, &generation)
            .and_then(|generator| generator.generate(inputs))
            .map_err(|source| TaskEvaluationError::Generation {
                task: self.task.name().to_owned(),
                source,
            })?;
        let output = |targets: Vec<altup_models::Generated>| {
            let tokens = targets.first().map_or(&[][..], |target| &target.tokens);
            let text = tokenizer.decode(tokens, true)?;
            Ok(Output { text, confidence: None, margin: None })
        };
        generated.into_iter().map(output).collect()
    }
}

/// How likely the targets of a batch are.
struct Targets {
    /// The summed cross-entropy of each row's target, in nats.
    losses: Vec<f64>,
    /// Tokens that are the likeliest, given those before.
    correct: u64,
}

impl Targets {
    fn score(model: &T5, memory: &Memory, batch: &Batch, labels: Tensor<2, Int>) -> Self {
        let (rows, length) = (batch.batch_size, batch.target_length);
        if length == 0 {
            return Self { losses: vec![0.0; rows], correct: 0 };
        }
        let logits = model.forward_decoder(memory, labels.clone());
        let correct = altup_models::correct_tokens(logits.clone(), labels.clone());
        let losses = row_losses(logits, labels);
        Self { losses, correct: correct.into_scalar::<u64>() }
    }
}

/// The summed cross-entropy of each row of labels.
fn row_losses(logits: Tensor<3>, labels: Tensor<2, Int>) -> Vec<f64> {
    let [rows, length, vocab_size] = logits.dims();
    let (logits, labels) =
        (logits.reshape([rows * length, vocab_size]), labels.reshape([rows * length]));
    let losses = cross_entropy(logits, labels, CrossEntropyOptions::default());
    let losses: Vec<f64> = losses.into_data().iter::<f64>().collect();
    losses.chunks(length).map(|row| row.iter().sum()).collect()
}

/// The log-probability of one target for each of the `rows` of a cache that has decoded nothing yet.
fn log_probabilities(model: &T5, cache: &DecoderCache, target: &[u32], rows: usize) -> Vec<f64> {
    let ids: Vec<i32> = std::iter::repeat_n(target, rows).flatten().map(|&id| id as i32).collect();
    let ids = TensorData::new(ids, [rows, target.len()]);
    let labels: Tensor<2, Int> = Tensor::from_data(ids, &model.device());
    let logits = model.decode(model.shift_right(labels.clone()), &mut cache.clone());
    row_losses(logits, labels).into_iter().map(|loss| -loss).collect()
}

/// A model with the encoder's output of a batch, which then is not computed again to write.
struct Encoded<'a> {
    model: &'a T5,
    cache: DecoderCache,
}

impl Decode for Encoded<'_> {
    type Cache = DecoderCache;

    fn vocab_size(&self) -> usize {
        self.model.vocab_size()
    }

    fn end_tokens(&self) -> Vec<u32> {
        self.model.end_tokens()
    }

    fn device(&self) -> Device {
        self.model.device()
    }

    fn prompt(&self, input: &[u32]) -> Vec<u32> {
        self.model.prompt(input)
    }

    /// Greedy decoding has one row for each input.
    fn start(&self, _inputs: &[Vec<u32>], copies: usize) -> DecoderCache {
        assert_eq!(copies, 1, "The cache has a row for each input. Got copies={copies}");
        self.cache.clone()
    }

    fn step(&self, tokens: Tensor<2, Int>, cache: &mut DecoderCache) -> Tensor<2> {
        self.model.step(tokens, cache)
    }

    fn reorder(&self, cache: &mut DecoderCache, rows: &Tensor<1, Int>) {
        Decode::reorder(self.model, cache, rows);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use altup_data::tasks::Registry;
    use altup_models::{ModelDirectory, generate};

    const MODEL: &str = "tests/fixtures/fine_tuning/model";
    const REVIEWS: &str = "../../examples/reviews"; // Cargo runs tests in the folder of their package.

    fn model() -> (T5, TextTokenizer) {
        let directory = ModelDirectory::new(MODEL);
        let (_, model) = directory.load(&Device::flex()).unwrap();
        (model, TextTokenizer::load(&directory.tokenizer()).unwrap())
    }

    fn split(name: &str, tokenizer: &TextTokenizer, selection: Selection) -> TaskSplit {
        let data = match name {
            "sst2" => REVIEWS,
            _ => "../altup-data/tests/fixtures/benchmarks",
        };
        let task = Registry::standard().find(name).unwrap();
        TaskSplit::read(task, Path::new(data), "validation", tokenizer, selection).unwrap()
    }

    /// The summed log-probability of a text by one pass over this input and target alone.
    fn log_probability(model: &T5, input: &[u32], target: &[u32]) -> f64 {
        let tensor = |ids: &[u32]| {
            let ids: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
            let shape = [1, ids.len()];
            Tensor::<2, Int>::from_data(TensorData::new(ids, shape), &model.device())
        };
        let labels = tensor(target);
        -row_losses(model.forward(tensor(input), None, labels.clone()), labels)[0]
    }

    #[test]
    fn ranking_chooses_the_word_of_the_highest_summed_log_probability() {
        let (model, tokenizer) = model();
        let split = split("sst2", &tokenizer, Selection::default());
        let config =
            AnswerConfig { by: AnswerBy::Ranking, batch_size: 5, ..AnswerConfig::default() };
        let answers = answer(&model, &tokenizer, &split, &config).unwrap();
        assert_eq!(answers.answers.len(), 32);
        let mut loss = 0.0;
        for (place, answer) in answers.answers.iter().enumerate() {
            let example = &split.tokenized.examples[place];
            let scores = ["negative", "positive"].map(|word| {
                let mut target = tokenizer.encode(word).unwrap();
                target.push(tokenizer.eos_id());
                log_probability(&model, &example.inputs, &target)
            });
            let best = usize::from(scores[1] > scores[0]);
            assert_eq!(answer.text, ["negative", "positive"][best]);
            let confidence = 1.0 / (1.0 + (scores[1 - best] - scores[best]).exp());
            assert!((answer.confidence.unwrap() - confidence).abs() < 1e-5);
            let right = usize::from(split.examples()[place].target.as_deref() == Some("positive"));
            assert!((answer.margin.unwrap() - (scores[right] - scores[1 - right])).abs() < 1e-5);
            let of_target = log_probability(&model, &example.inputs, &example.targets);
            let length = example.targets.len() as f64;
            assert!((answer.loss.unwrap() + of_target / length).abs() < 1e-5);
            loss -= of_target;
        }
        assert!((answers.loss - loss).abs() < 1e-3, "{} {loss}", answers.loss);
        assert_eq!(answers.tokens, 64);
        let margins: Vec<f64> = answers
            .mistakes(&split)
            .into_iter()
            .map(|place| answers.answers[place].margin.unwrap())
            .collect();
        assert!(margins.is_sorted() && margins.len() > 2, "{margins:?}");
        let wrong = answers.answers.iter().filter(|answer| answer.margin.unwrap() < 0.0);
        assert_eq!(wrong.count(), margins.len());
    }

    #[test]
    fn what_is_written_is_what_the_model_generates_for_each_input_alone() {
        let (model, tokenizer) = model();
        let split = split("sst2", &tokenizer, Selection::default());
        let config =
            AnswerConfig { batch_size: 7, max_new_tokens: Some(6), ..AnswerConfig::default() };
        let answers = answer(&model, &tokenizer, &split, &config).unwrap();
        for (example, answer) in split.tokenized.examples.iter().zip(&answers.answers) {
            let alone = std::slice::from_ref(&example.inputs);
            let written = generate(&model, alone, &GenerationConfig::greedy(6)).unwrap();
            assert_eq!(answer.output, tokenizer.decode(&written[0][0].tokens, true).unwrap());
            assert_eq!((answer.text.as_str(), answer.confidence), (answer.output.trim(), None));
        }
    }

    #[test]
    fn a_sample_is_the_same_every_time_and_in_the_order_of_the_file() {
        let (_, tokenizer) = model();
        let ids = |max_examples, seed| {
            let selection = Selection { max_examples, seed, ..Selection::default() };
            let split = split("sst2", &tokenizer, selection);
            let ids = split.examples().iter().map(|example| example.id.parse().unwrap());
            ids.collect::<Vec<u32>>()
        };
        let sample = ids(Some(8), 0);
        assert_eq!((sample.len(), sample.is_sorted()), (8, true));
        assert_eq!(ids(Some(8), 0), sample);
        assert_ne!(ids(Some(8), 1), sample);
        assert_ne!(sample, (0..8).collect::<Vec<_>>());
        assert_eq!(ids(Some(32), 0), (0..32).collect::<Vec<_>>());
        assert_eq!(ids(None, 0), (0..32).collect::<Vec<_>>());
    }

    #[test]
    fn answers_are_right_by_their_task() {
        let (_, tokenizer) = model();
        let is_right = |name: &str, place: usize, answer: &str| {
            let split = split(name, &tokenizer, Selection::default());
            is_right(split.task(), &split.examples()[place], answer)
        };
        // The first question of SQuAD has several answers.
        assert!(is_right("squad", 0, "in St. John's") && !is_right("squad", 0, "St. John"));
        // Class 0 of MRPC, of which F1 is 0 even where it is right.
        assert!(is_right("mrpc", 1, "not_equivalent") && !is_right("mrpc", 1, "equivalent"));
        assert!(is_right("wsc", 0, "Tom") && !is_right("wsc", 0, "Ann"));
        let target = split("stsb", &tokenizer, Selection::default()).examples()[1].target.clone();
        assert!(is_right("stsb", 1, &target.unwrap()) && !is_right("stsb", 1, "5.0"));
    }
}
