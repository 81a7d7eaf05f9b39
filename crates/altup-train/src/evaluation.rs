//! The loss of a model on a fixed set of examples.

use altup_data::{Batch, Mixture, PretrainingData};
use burn::tensor::Device;
use burn::train::InferenceStep;
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::sync::atomic::AtomicBool;

use crate::learner::{Learner, ToDevice};
use crate::metrics::{SourceScore, TokenScore, ValidRow};
use crate::replicas::{Exact, Replicas, Turns};

/// Scores the first `max_examples` examples of `data`, without dropout.
///
/// `learner` must not be on an autodiff device (see Burn's `Module::valid`), and `device` is its
/// device.
pub fn evaluate(
    learner: &Learner,
    data: &PretrainingData,
    max_examples: u64,
    batch_size: usize,
    step: u64,
    device: &Device,
) -> ValidRow {
    let turns = Turns { replicas: &Replicas::lone(), stop: &AtomicBool::new(false) };
    let pass = Pass { learner, max_examples, batch_size, step, device, turns };
    pass.score(data).unwrap_or_else(|| unreachable!("nobody stops it"))
}

/// Scores the first `max_examples` examples of each source of a mixture, as [`evaluate`] does.
///
/// The scores of the whole are means over the sources by their rates, so that they are those of the
/// mixture, however much text each source has to validate on.
pub fn evaluate_mixture(
    learner: &Learner,
    data: &Mixture,
    max_examples: u64,
    batch_size: usize,
    step: u64,
    device: &Device,
) -> ValidRow {
    let turns = Turns { replicas: &Replicas::lone(), stop: &AtomicBool::new(false) };
    let pass = Pass { learner, max_examples, batch_size, step, device, turns };
    pass.score_mixture(data).unwrap_or_else(|| unreachable!("nobody stops it"))
}

/// A pass over validation data, by all replicas, that can be ended between batches.
#[derive(Clone, Copy, Debug)]
pub struct Pass<'a> {
    /// The model; not on an autodiff device.
    pub learner: &'a Learner,
    /// How many examples of each source are scored at most.
    pub max_examples: u64,
    /// Examples that go through the model at once.
    pub batch_size: usize,
    /// Optimizer steps done before the pass.
    pub step: u64,
    /// The model's device.
    pub device: &'a Device,
    /// Who takes which batch.
    pub turns: Turns<'a>,
}

/// What came of a batch.
#[derive(Default, Serialize, Deserialize)]
struct Scored {
    all: Sums,
    text: Sums,
}

impl Scored {
    /// Sums over the labels that are not padding, each with its loss and the model's prediction.
    fn of(
        labels: &[i32],
        losses: impl Iterator<Item = f64>,
        predictions: impl Iterator<Item = i32>,
        is_text: impl Fn(i32) -> bool,
    ) -> Self {
        let mut scored = Self::default();
        for ((&label, loss), prediction) in labels.iter().zip(losses).zip(predictions) {
            if label > 0 {
                let correct = u64::from(prediction == label);
                let sums = Sums { loss: Exact(loss), correct, tokens: 1 };
                scored.all.add(sums);
                if is_text(label) {
                    scored.text.add(sums);
                }
            }
        }
        scored
    }
}

/// Sums over tokens.
#[derive(Clone, Copy, Default, Serialize, Deserialize)]
struct Sums {
    loss: Exact,
    correct: u64,
    tokens: u64,
}

impl Sums {
    fn add(&mut self, other: Self) {
        self.loss.0 += other.loss.0;
        self.correct += other.correct;
        self.tokens += other.tokens;
    }

    fn score(self) -> TokenScore {
        let tokens = self.tokens as f64;
        let (loss, accuracy) = (self.loss.0 / tokens, self.correct as f64 / tokens);
        TokenScore { loss, accuracy, tokens: self.tokens }
    }
}

impl Pass<'_> {
    /// Scores examples as [`evaluate`] does. None if it was ended.
    pub fn score(self, data: &PretrainingData) -> Option<ValidRow> {
        let examples = data.num_segments().min(self.max_examples);
        let batches: Vec<u64> = (0..examples).step_by(self.batch_size).collect();
        let Ok(scored) = self.turns.score(&batches, |&first| {
            let batch = data.batch(first, (examples - first).min(self.batch_size as u64) as usize);
            Ok::<_, Infallible>(self.score_batch(&batch, data))
        });
        let (mut all, mut text) = (Sums::default(), Sums::default());
        for batch in scored? {
            all.add(batch.all);
            text.add(batch.text);
        }
        let TokenScore { loss, accuracy, tokens } = all.score();
        Some(ValidRow {
            step: self.step,
            loss,
            perplexity: loss.exp(),
            accuracy,
            tokens,
            text: (text.tokens > 0).then(|| text.score()),
            ..ValidRow::default()
        })
    }

    fn score_batch(self, batch: &Batch, data: &PretrainingData) -> Scored {
        let scores = self.learner.step(batch.to_device(batch.num_targets(), self.device));
        let (losses, predictions) = (scores.losses.into_data(), scores.predictions.into_data());
        let is_text = |label: i32| data.is_text(label as u32);
        Scored::of(&batch.labels, losses.iter(), predictions.iter(), is_text)
    }

    /// Scores a mixture as [`evaluate_mixture`] does. None if it was ended.
    pub fn score_mixture(self, data: &Mixture) -> Option<ValidRow> {
        if let [source] = data.sources() {
            return self.score(&source.data);
        }
        let mut row = ValidRow { step: self.step, ..ValidRow::default() };
        for source in data.sources() {
            let ValidRow { loss, accuracy, tokens, text, .. } = self.score(&source.data)?;
            row.loss += source.rate * loss;
            row.accuracy += source.rate * accuracy;
            row.tokens += tokens;
            if let Some(score) = text {
                let text = row.text.get_or_insert_default();
                text.loss += source.rate * score.loss;
                text.accuracy += source.rate * score.accuracy;
                text.tokens += score.tokens;
            }
            let name = source.name.clone();
            row.sources.push(SourceScore { name, loss, accuracy, tokens, text });
        }
        row.perplexity = row.loss.exp();
        Some(row)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Arc;

    use altup_data::objective::PrefixLm;
    use altup_data::{
        Corpus, Objective, OnError, PrepareOptions, SpanCorruption, TextTokenizer, TokenStore,
    };
    use altup_models::T5Config;
    use burn::tensor::activation::log_softmax;

    use super::*;
    use crate::config::RunConfig;
    use crate::learner::DeviceBatch;

    const WORDS: &str = "a quick brown fox jumps over the lazy dog and so on ";
    const EXAMPLES: u64 = 5;
    const CORRUPTION: SpanCorruption =
        SpanCorruption { noise_density: 0.3, mean_span_length: 2.0, input_length: 16 };

    fn data(words: &str, objective: impl Objective + 'static) -> (PretrainingData, TextTokenizer) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text.txt");
        fs::write(&path, words.repeat(100)).unwrap();
        let corpus = Corpus::open(&[path.to_string_lossy().into_owned()]).unwrap();
        let tokenizer = TextTokenizer::train(&corpus, 200, u64::MAX, OnError::Stop).unwrap();
        let store = TokenStore::new(&folder.path().join("store"));
        let options = PrepareOptions::default();
        let row = store.prepare(&corpus, &tokenizer, options, &mut |_| ()).unwrap();
        let objective = Arc::new(objective);
        let data = PretrainingData::validation(Arc::new(row), &tokenizer, objective, 3).unwrap();
        (data, tokenizer)
    }

    fn learner(device: &Device) -> Learner {
        let config = RunConfig::tiny_altup().model_config(256).unwrap();
        let config = T5Config { num_layers: 1, num_decoder_layers: Some(1), ..config };
        Learner { model: config.init(4, device) }
    }

    /// Loss, hits and count of the targets that `counts` has, from log-probabilities.
    fn by_hand(
        learner: &Learner,
        data: &PretrainingData,
        device: &Device,
        counts: impl Fn(i32) -> bool,
    ) -> TokenScore {
        let batch = data.batch(0, EXAMPLES as usize);
        let DeviceBatch { input_ids, padding, labels, .. } = batch.to_device(1, device);
        let logits = learner.model.forward(input_ids, padding, labels);
        let [_, _, vocab_size] = logits.dims();
        let of_tokens: Vec<f64> = log_softmax(logits, 2).into_data().iter::<f64>().collect();
        let (mut loss, mut hits, mut tokens) = (0.0, 0, 0);
        for (row, &label) in of_tokens.chunks_exact(vocab_size).zip(&batch.labels) {
            if counts(label) {
                let own = row[label as usize];
                loss -= own;
                hits += u64::from(row.iter().all(|other| *other <= own));
                tokens += 1;
            }
        }
        let count = tokens as f64;
        TokenScore { loss: loss / count, accuracy: hits as f64 / count, tokens }
    }

    fn assert_near(found: TokenScore, expected: TokenScore) {
        assert_eq!((found.tokens, found.accuracy), (expected.tokens, expected.accuracy));
        assert!((found.loss - expected.loss).abs() < 1e-5, "{found:?} is not {expected:?}");
    }

    /// A hit and a miss in the text, a hit on a sentinel (9), a miss at the end (1), and padding, which a prediction can't hit.
    #[test]
    fn sums_by_hand() {
        let labels = [5, 9, 6, 1, 0, -100];
        let predictions = [5, 9, 5, 6, 0, -100];
        let losses = [0.5, 0.25, 2.0, 4.0, 8.0, 16.0];
        let (losses, predictions) = (losses.into_iter(), predictions.into_iter());
        let scored = Scored::of(&labels, losses, predictions, |label| label != 9 && label != 1);
        let (all, text) = (scored.all.score(), scored.text.score());
        assert_eq!(all, TokenScore { loss: 6.75 / 4.0, accuracy: 0.5, tokens: 4 });
        assert_eq!(text, TokenScore { loss: 1.25, accuracy: 0.5, tokens: 2 });
    }

    /// Four examples in the first batch, one in the second.
    fn check_against_log_probabilities(data: &PretrainingData, tokenizer: &TextTokenizer) {
        let device = crate::device::cpu();
        let learner = learner(&device);
        let row = evaluate(&learner, data, EXAMPLES, 4, 7, &device);
        let is_special = |label: i32| {
            label as u32 == tokenizer.eos_id() || tokenizer.sentinels().contains(&(label as u32))
        };
        let all = by_hand(&learner, data, &device, |label| label != 0);
        let text = by_hand(&learner, data, &device, |label| label != 0 && !is_special(label));
        assert!(text.tokens > 0 && text.tokens < all.tokens);
        let ValidRow { step, loss, perplexity, accuracy, tokens, .. } = row;
        assert_eq!((step, perplexity), (7, loss.exp()));
        assert_near(TokenScore { loss, accuracy, tokens }, all);
        assert_near(row.text.unwrap(), text);
    }

    #[test]
    fn all_targets_are_scored_and_those_of_the_text_apart() {
        let (data, tokenizer) = data(WORDS, CORRUPTION);
        check_against_log_probabilities(&data, &tokenizer);
    }

    #[test]
    fn targets_of_several_lengths_are_scored() {
        let (data, tokenizer) = data(WORDS, PrefixLm { input_length: 16, target_share: 0.5 });
        assert!(data.batch(0, EXAMPLES as usize).labels.contains(&0));
        check_against_log_probabilities(&data, &tokenizer);
    }

    #[test]
    fn the_scores_of_a_mixture_are_means_by_the_rates() {
        let device = crate::device::cpu();
        let learner = learner(&device);
        let (first, _) = data(WORDS, CORRUPTION);
        let (second, _) = data("nothing of that is in the other text ", CORRUPTION);
        let scores =
            [&first, &second].map(|data| evaluate(&learner, data, EXAMPLES, 4, 7, &device));
        let sources = vec![("first".into(), first, 3.0), ("second".into(), second, 1.0)];
        let row = evaluate_mixture(&learner, &Mixture::new(sources, 0), EXAMPLES, 4, 7, &device);
        let mean = |of: fn(&ValidRow) -> f64| 0.75 * of(&scores[0]) + 0.25 * of(&scores[1]);
        let text = row.text.unwrap();
        assert_eq!(row.loss, mean(|row| row.loss));
        assert_eq!(text.loss, mean(|row| row.text.unwrap().loss));
        assert_eq!(text.accuracy, mean(|row| row.text.unwrap().accuracy));
        let tokens = scores.iter().map(|row| row.text.unwrap().tokens).sum::<u64>();
        assert_eq!(text.tokens, tokens);
        let of_sources: Vec<_> = row.sources.iter().map(|source| source.text).collect();
        assert_eq!(of_sources, scores.iter().map(|row| row.text).collect::<Vec<_>>());
    }
}
