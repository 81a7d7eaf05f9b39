//! Examples for pre-training, numbered from 0 without end.

use std::sync::Arc;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::objective::{Lengths, Objective, SpecialTokens};
use crate::permutation::Permutation;
use crate::{Batch, DataError, Example, TextTokenizer, TokenRow};

/// The version of the examples: raise it when example n of the same text, tokenizer, settings and seed
/// becomes another. A run that goes on under another version would train on some text twice and on some
/// never.
pub const EXAMPLES_VERSION: u32 = 1;

/// The examples that an objective makes of a corpus.
///
/// The tokens are cut into segments of the length that one example needs, and the remainder at the
/// end is dropped. Example n is a function of the corpus, the seed and n alone: whoever asks, and
/// in whatever order. No order of segments is stored: it is computed, see [`Permutation`].
#[derive(Debug, Clone)]
pub struct PretrainingData {
    tokens: Arc<TokenRow>,
    objective: Arc<dyn Objective>,
    lengths: Lengths,
    special: SpecialTokens,
    seed: u64,
    order: Order,
}

#[derive(Debug, Clone)]
enum Order {
    /// Each epoch in an order of its own.
    ByEpoch,
    /// The same in each epoch.
    Sample(Permutation),
}

impl PretrainingData {
    /// Examples to train on: in every epoch each segment once, in another order and with other
    /// noise.
    ///
    /// # Errors
    ///
    /// If the objective's settings make no sense or don't fit the tokenizer, or the corpus is
    /// shorter than one example.
    pub fn training(
        tokens: Arc<TokenRow>,
        tokenizer: &TextTokenizer,
        objective: Arc<dyn Objective>,
        seed: u64,
    ) -> Result<Self, DataError> {
        Self::new(tokens, tokenizer, objective, seed, |_| Order::ByEpoch)
    }

    /// Examples to validate on: the first n are a sample of n segments from the whole corpus, with
    /// the same noise every time. Those below [`num_segments`](Self::num_segments) are the whole
    /// corpus once.
    ///
    /// # Errors
    ///
    /// As for [`training`](Self::training).
    pub fn validation(
        tokens: Arc<TokenRow>,
        tokenizer: &TextTokenizer,
        objective: Arc<dyn Objective>,
        seed: u64,
    ) -> Result<Self, DataError> {
        Self::new(tokens, tokenizer, objective, seed, |segments| {
            let key = derive("altup-data 2026 validation sample", &[seed]);
            Order::Sample(Permutation::new(segments, key))
        })
    }

    fn new(
        tokens: Arc<TokenRow>,
        tokenizer: &TextTokenizer,
        objective: Arc<dyn Objective>,
        seed: u64,
        order: impl FnOnce(u64) -> Order,
    ) -> Result<Self, DataError> {
        let special = SpecialTokens::of(tokenizer);
        objective.check(&special)?;
        let lengths = objective.lengths();
        let segments = tokens.len() / lengths.segment as u64;
        if segments == 0 {
            let (have, need) = (tokens.len(), lengths.segment as u64);
            return Err(DataError::TooFewTokens { text: "the corpus".into(), have, need });
        }
        Ok(Self { tokens, objective, lengths, special, seed, order: order(segments) })
    }

    /// The tokens that the examples are made of.
    pub fn tokens(&self) -> &TokenRow {
        &self.tokens
    }

    /// How many whole segments the corpus has, and so examples an epoch.
    pub fn num_segments(&self) -> u64 {
        self.tokens.len() / self.lengths.segment as u64
    }

    /// The length of the inputs of every batch.
    pub fn input_length(&self) -> usize {
        self.lengths.input
    }

    /// The length of the labels of every batch.
    pub fn target_length(&self) -> usize {
        self.lengths.target
    }

    /// Whether a target is a token of the text, be it `<unk>`: no padding, no sentinel, and not the end.
    pub fn is_text(&self, target: u32) -> bool {
        target != 0 && target != self.special.eos && !self.special.sentinels.contains(&target)
    }

    /// Example number `n`.
    pub fn example(&self, n: u64) -> Example {
        let segments = self.num_segments();
        let (epoch, place) = (n / segments, n % segments);
        let segment = match &self.order {
            Order::ByEpoch => {
                let key = derive("altup-data 2026 epoch order", &[self.seed, epoch]);
                Permutation::new(segments, key).at(place)
            }
            Order::Sample(order) => order.at(place),
        };
        let length = self.lengths.segment as u64;
        let tokens = self.tokens.slice(segment * length..(segment + 1) * length);
        let mut rng =
            ChaCha8Rng::from_seed(derive("altup-train 2026 span corruption noise", &[self.seed]));
        rng.set_stream(n);
        self.objective.example(&tokens, &self.special, &mut rng)
    }

    /// The examples from number `first` on, as a batch.
    pub fn batch(&self, first: u64, batch_size: usize) -> Batch {
        let examples: Vec<Example> =
            (first..first + batch_size as u64).map(|n| self.example(n)).collect();
        Batch::new(&examples, self.input_length(), self.target_length())
    }
}

/// A seed for one purpose, of which each list of numbers has its own.
pub(crate) fn derive(purpose: &str, numbers: &[u64]) -> [u8; 32] {
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    blake3::derive_key(purpose, &bytes)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::fs;

    use super::*;
    use crate::{Corpus, OnError, PrepareOptions, SpanCorruption, TokenStore};

    const CORRUPTION: SpanCorruption =
        SpanCorruption { noise_density: 0.15, mean_span_length: 3.0, input_length: 32 };

    fn row(num_words: usize) -> (Arc<TokenRow>, TextTokenizer) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text.txt");
        let text: String = (0..num_words).map(|n| format!("word{} ", n * n % 997)).collect();
        fs::write(&path, text).unwrap();
        let corpus = Corpus::open(&[path.to_string_lossy().into_owned()]).unwrap();
        let tokenizer = TextTokenizer::train(&corpus, 200, u64::MAX, OnError::Stop).unwrap();
        let store = TokenStore::new(&folder.path().join("store"));
        let options = PrepareOptions::default();
        let row = store.prepare(&corpus, &tokenizer, options, &mut |_| ()).unwrap();
        (Arc::new(row), tokenizer)
    }

    fn training(seed: u64) -> PretrainingData {
        let (row, tokenizer) = row(1000);
        PretrainingData::training(row, &tokenizer, Arc::new(CORRUPTION), seed).unwrap()
    }

    /// The tokens of an example's segment that are in its inputs and targets, in any order.
    fn text_of(example: &Example, data: &PretrainingData) -> Vec<u32> {
        let all = example.inputs.iter().chain(&example.targets);
        let mut text: Vec<u32> = all.filter(|id| data.is_text(**id)).copied().collect();
        text.sort_unstable();
        text
    }

    #[test]
    fn example_is_a_function_of_seed_and_number() {
        let (data, again) = (training(7), training(7));
        let last = data.num_segments() * 3;
        let forwards: Vec<Example> = (0..last).map(|n| data.example(n)).collect();
        let mut backwards: Vec<Example> = (0..last).rev().map(|n| again.example(n)).collect();
        backwards.reverse();
        assert_eq!(forwards, backwards);
        assert_ne!(training(8).example(0), data.example(0));
    }

    #[test]
    fn every_epoch_has_each_segment_once_in_another_order() {
        let data = training(7);
        let segments = data.num_segments();
        assert!(segments > 20, "{segments}");
        let epoch = |number: u64| -> Vec<Vec<u32>> {
            (number * segments..(number + 1) * segments)
                .map(|n| text_of(&data.example(n), &data))
                .collect()
        };
        let (first, second) = (epoch(0), epoch(1));
        assert_ne!(first, second);
        let sorted = |mut epoch: Vec<Vec<u32>>| {
            epoch.sort_unstable();
            epoch
        };
        let mut in_file: Vec<Vec<u32>> = (0..segments)
            .map(|segment| {
                let length = data.lengths.segment as u64;
                let mut tokens = data.tokens.slice(segment * length..(segment + 1) * length);
                tokens.sort_unstable();
                tokens
            })
            .collect();
        in_file.sort_unstable();
        assert_eq!(sorted(first), in_file);
        assert_eq!(sorted(second), in_file);
    }

    #[test]
    fn noise_differs_between_epochs_and_segments() {
        let data = training(7);
        let sentinel_places = |ids: &[u32]| -> Vec<usize> {
            (0..ids.len()).filter(|at| data.special.sentinels.contains(&ids[*at])).collect()
        };
        let masks: HashSet<_> = (0..data.num_segments() * 2)
            .map(|n| {
                let Example { inputs, targets } = data.example(n);
                (sentinel_places(&inputs), sentinel_places(&targets))
            })
            .collect();
        // 29 unhidden and 5 hidden tokens in 2 spans each: 28 * 4 masks are possible.
        assert!(masks.len() > 20, "{}", masks.len());
    }

    #[test]
    fn validation_samples_the_whole_corpus_and_stays_the_same() {
        let (row, tokenizer) = row(3000);
        let validation = |seed| {
            let objective = Arc::new(CORRUPTION);
            PretrainingData::validation(Arc::clone(&row), &tokenizer, objective, seed).unwrap()
        };
        let data = validation(7);
        let segments = data.num_segments();
        assert!(segments > 60, "{segments}");
        let text = |n: u64| text_of(&data.example(n), &data);
        let in_row = |segment: u64| {
            let length = data.lengths.segment as u64;
            let mut tokens = row.slice(segment * length..(segment + 1) * length);
            tokens.sort_unstable();
            tokens
        };
        let all: Vec<Vec<u32>> = (0..segments).map(in_row).collect();
        // Of the first examples, some lie in each quarter.
        let places = (0..16).map(|n| all.iter().position(|tokens| *tokens == text(n)).unwrap());
        let quarters: HashSet<u64> = places.map(|place| place as u64 * 4 / segments).collect();
        assert_eq!(quarters.len(), 4);

        let mut once: Vec<Vec<u32>> = (0..segments).map(text).collect();
        once.sort_unstable();
        let mut all = all;
        all.sort_unstable();
        assert_eq!(once, all);
        assert_eq!(validation(7).batch(0, 9), data.batch(0, 9));
        assert_eq!(text(segments), text(0), "a second pass takes the same order");
        assert_ne!(validation(8).example(0), data.example(0));
    }

    #[test]
    fn batch_lays_its_examples_out_in_rows() {
        let data = training(7);
        let batch = data.batch(5, 3);
        let [inputs, targets] = [data.input_length(), data.target_length()];
        assert_eq!((batch.input_ids.len(), batch.labels.len()), (3 * inputs, 3 * targets));
        let row: Vec<i32> = data.example(6).inputs.iter().map(|id| *id as i32).collect();
        assert_eq!(batch.input_ids[inputs..2 * inputs], row);
    }

    #[test]
    fn corpus_shorter_than_an_example_is_an_error() {
        let (row, tokenizer) = row(1000);
        let corruption = SpanCorruption { input_length: 100_000, ..CORRUPTION };
        // Fewer and longer spans, as there are but 100 sentinels.
        let corruption = SpanCorruption { mean_span_length: 1000.0, ..corruption };
        let error =
            PretrainingData::training(row, &tokenizer, Arc::new(corruption), 7).unwrap_err();
        assert!(matches!(error, DataError::TooFewTokens { .. }), "{error}");
    }
}
