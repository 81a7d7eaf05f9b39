//! The loss of a model on a fixed set of examples.

use altup_data::{Batch, Mixture, PretrainingData};
use burn::tensor::Device;
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::sync::atomic::AtomicBool;

use crate::learner::{Learner, ToDevice};
use crate::metrics::{SourceScore, TextScore, ValidRow};
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

    fn score(self) -> TextScore {
        let tokens = self.tokens as f64;
        let (loss, accuracy) = (self.loss.0 / tokens, self.correct as f64 / tokens);
        TextScore { loss, accuracy, tokens: self.tokens }
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
        let TextScore { loss, accuracy, tokens } = all.score();
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
        let scores = self.learner.score(batch.to_device(batch.num_targets(), self.device));
        let (losses, predictions) = (scores.losses.into_data(), scores.predictions.into_data());
        let of_labels = losses.iter::<f64>().zip(predictions.iter::<i32>());
        let mut scored = Scored::default();
        for (&label, (loss, prediction)) in batch.labels.iter().zip(of_labels) {
            if label == 0 {
                continue;
            }
            let correct = u64::from(prediction == label);
            let sums = Sums { loss: Exact(loss), correct, tokens: 1 };
            scored.all.add(sums);
            if data.is_text(label as u32) {
                scored.text.add(sums);
            }
        }
        scored
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
            row.sources.push(SourceScore { name: source.name.clone(), loss, accuracy, tokens });
        }
        row.perplexity = row.loss.exp();
        Some(row)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Arc;

    use altup_data::{Corpus, OnError, PrepareOptions, SpanCorruption, TextTokenizer, TokenStore};
    use altup_models::T5Config;
    use burn::tensor::activation::log_softmax;

    use super::*;
    use crate::config::RunConfig;
    use crate::learner::DeviceBatch;

    const EXAMPLES: u64 = 5;

    fn data(words: &str) -> (PretrainingData, TextTokenizer) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text.txt");
        fs::write(&path, words.repeat(100)).unwrap();
        let corpus = Corpus::open(&[path.to_string_lossy().into_owned()]).unwrap();
        let tokenizer = TextTokenizer::train(&corpus, 200, u64::MAX, OnError::Stop).unwrap();
        let store = TokenStore::new(&folder.path().join("store"));
        let options = PrepareOptions::default();
        let row = store.prepare(&corpus, &tokenizer, options, &mut |_| ()).unwrap();
        let corruption =
            SpanCorruption { noise_density: 0.3, mean_span_length: 2.0, input_length: 16 };
        let objective = Arc::new(corruption);
        let data = PretrainingData::validation(Arc::new(row), &tokenizer, objective, 3).unwrap();
        (data, tokenizer)
    }

    fn learner(device: &Device) -> Learner {
        let config = RunConfig::tiny_altup().model_config(256).unwrap();
        let config = T5Config { num_layers: 1, num_decoder_layers: Some(1), ..config };
        Learner { model: config.init(4, device) }
    }

    /// Loss, hits and count of the targets that `counts` has, of log-probabilities in f64.
    fn by_hand(
        learner: &Learner,
        data: &PretrainingData,
        device: &Device,
        counts: impl Fn(i32) -> bool,
    ) -> TextScore {
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
        TextScore { loss: loss / count, accuracy: hits as f64 / count, tokens }
    }

    fn assert_near(found: TextScore, expected: TextScore) {
        assert_eq!((found.tokens, found.accuracy), (expected.tokens, expected.accuracy));
        assert!((found.loss - expected.loss).abs() < 1e-5, "{found:?} is not {expected:?}");
    }

    /// Four examples in the first batch, one in the second; targets are of several lengths, so that some are padded.
    #[test]
    fn all_targets_are_scored_and_those_of_the_text_apart() {
        let device = crate::device::cpu();
        let (data, tokenizer) = data("a quick brown fox jumps over the lazy dog and so on ");
        let learner = learner(&device);
        let row = evaluate(&learner, &data, EXAMPLES, 4, 7, &device);
        let is_special = |label: i32| {
            label as u32 == tokenizer.eos_id() || tokenizer.sentinels().contains(&(label as u32))
        };
        let all = by_hand(&learner, &data, &device, |label| label != 0);
        let text = by_hand(&learner, &data, &device, |label| label != 0 && !is_special(label));
        assert!(text.tokens > 0 && text.tokens < all.tokens);
        let ValidRow { step, loss, perplexity, accuracy, tokens, .. } = row;
        assert_eq!((step, perplexity), (7, loss.exp()));
        assert_near(TextScore { loss, accuracy, tokens }, all);
        assert_near(row.text.unwrap(), text);
    }

    #[test]
    fn the_scores_of_a_mixture_are_means_by_the_rates() {
        let device = crate::device::cpu();
        let learner = learner(&device);
        let (first, _) = data("a quick brown fox jumps over the lazy dog and so on ");
        let (second, _) = data("nothing of that is in the other text ");
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
        assert_eq!(row.sources.len(), 2);
    }
}
