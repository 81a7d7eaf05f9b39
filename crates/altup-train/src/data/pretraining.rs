//! Examples for pre-training, numbered from 0 without end.

use std::sync::{Arc, Mutex, PoisonError};

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::span_corruption::corrupt;
use super::{DataError, Example, SpanCorruption, TextTokenizer, TokenCache};

/// The examples that span corruption makes of a corpus.
///
/// The tokens are cut into segments of the length that one example needs, and the remainder at the
/// end is dropped. Example n is a function of the corpus, the seed and n alone: whoever asks, and
/// in whatever order.
#[derive(Debug, Clone)]
pub struct PretrainingData {
    tokens: Arc<TokenCache>,
    corruption: SpanCorruption,
    segment_length: usize,
    target_length: usize,
    sentinels: Vec<u32>,
    eos: u32,
    seed: u64,
    order: Order,
}

#[derive(Debug, Clone)]
enum Order {
    /// As in the corpus.
    InOrder,
    /// Each epoch in an order of its own. The latest one is kept, as examples are asked for in
    /// turn and shuffling for each would cost more than all the rest.
    Shuffled { latest: Arc<Mutex<Option<(u64, Arc<[u32]>)>>> },
}

impl PretrainingData {
    /// Examples to train on: in every epoch each segment once, in another order and with other
    /// noise.
    pub fn training(
        tokens: Arc<TokenCache>,
        tokenizer: &TextTokenizer,
        corruption: SpanCorruption,
        seed: u64,
    ) -> Result<Self, DataError> {
        let order = Order::Shuffled { latest: Arc::default() };
        Self::new(tokens, tokenizer, corruption, seed, order)
    }

    /// Examples to validate on: the segments in the order of the corpus. Those below
    /// [`num_segments`](Self::num_segments) are the whole corpus once, with the same noise every
    /// time.
    pub fn validation(
        tokens: Arc<TokenCache>,
        tokenizer: &TextTokenizer,
        corruption: SpanCorruption,
        seed: u64,
    ) -> Result<Self, DataError> {
        Self::new(tokens, tokenizer, corruption, seed, Order::InOrder)
    }

    fn new(
        tokens: Arc<TokenCache>,
        tokenizer: &TextTokenizer,
        corruption: SpanCorruption,
        seed: u64,
        order: Order,
    ) -> Result<Self, DataError> {
        corruption.check(tokenizer.sentinels().len())?;
        let (segment_length, target_length) = corruption.segment_and_target_length();
        if tokens.len() < segment_length {
            let (have, need) = (tokens.len() as u64, segment_length as u64);
            return Err(DataError::TooFewTokens { have, need });
        }
        Ok(Self {
            tokens,
            corruption,
            segment_length,
            target_length,
            sentinels: tokenizer.sentinels().to_vec(),
            eos: tokenizer.eos_id(),
            seed,
            order,
        })
    }

    /// How many whole segments the corpus has, and so examples an epoch.
    pub fn num_segments(&self) -> u64 {
        (self.tokens.len() / self.segment_length) as u64
    }

    /// Tokens of text in each example, before corruption.
    pub fn segment_length(&self) -> usize {
        self.segment_length
    }

    /// The length of the inputs of every batch.
    pub fn input_length(&self) -> usize {
        self.corruption.input_length
    }

    /// The length of the labels of every batch.
    pub fn target_length(&self) -> usize {
        self.target_length
    }

    /// Example number `n`.
    pub fn example(&self, n: u64) -> Example {
        let (epoch, position) = (n / self.num_segments(), n % self.num_segments());
        let segment = match &self.order {
            Order::InOrder => position as usize,
            Order::Shuffled { latest } => {
                self.epoch_order(epoch, latest)[position as usize] as usize
            }
        };
        let start = segment * self.segment_length;
        let tokens = self.tokens.slice(start..start + self.segment_length);
        let mut rng = random_stream("altup-train 2026 span corruption noise", self.seed, n);
        let mask = self.corruption.noise_mask(tokens.len(), &mut rng);
        corrupt(&tokens, &mask, &self.sentinels, self.eos)
    }

    /// The examples from number `first` on, as a batch.
    pub fn batch(&self, first: u64, batch_size: usize) -> Batch {
        let examples: Vec<Example> =
            (first..first + batch_size as u64).map(|n| self.example(n)).collect();
        Batch::new(&examples, self.input_length(), self.target_length)
    }

    /// One epoch from the start in batches, of which the last may be smaller.
    ///
    /// # Panics
    ///
    /// If `batch_size` is 0.
    pub fn epoch(&self, batch_size: usize) -> impl Iterator<Item = Batch> {
        let end = self.num_segments();
        (0..end).step_by(batch_size).map(move |first| {
            let left = (end - first) as usize;
            self.batch(first, batch_size.min(left))
        })
    }

    fn epoch_order(&self, epoch: u64, latest: &Mutex<Option<(u64, Arc<[u32]>)>>) -> Arc<[u32]> {
        // A panic while the lock is held leaves a whole value behind, old or new.
        let mut latest = latest.lock().unwrap_or_else(PoisonError::into_inner);
        match &*latest {
            Some((latest_epoch, order)) if *latest_epoch == epoch => Arc::clone(order),
            _ => {
                let mut order: Vec<u32> = (0..self.num_segments() as u32).collect();
                order.shuffle(&mut random_stream("altup-train 2026 epoch order", self.seed, epoch));
                let order: Arc<[u32]> = Arc::from(order);
                *latest = Some((epoch, Arc::clone(&order)));
                order
            }
        }
    }
}

/// Random numbers for one purpose, of which each seed has a stream for every number.
fn random_stream(purpose: &str, seed: u64, stream: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::from_seed(blake3::derive_key(purpose, &seed.to_le_bytes()));
    rng.set_stream(stream);
    rng
}

/// Examples of equal length, row by row, as the model takes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// What the encoder reads, `[batch_size, input_length]`, padded with 0.
    pub input_ids: Vec<i32>,
    /// What the decoder is to write, `[batch_size, target_length]`, padded with 0.
    pub labels: Vec<i32>,
    /// The number of examples.
    pub batch_size: usize,
    /// The length of the inputs.
    pub input_length: usize,
    /// The length of the labels.
    pub target_length: usize,
}

impl Batch {
    /// Lays out examples in rows, padded to the lengths given.
    ///
    /// # Panics
    ///
    /// If an example is longer than that.
    pub fn new(examples: &[Example], input_length: usize, target_length: usize) -> Self {
        let inputs = examples.iter().map(|example| example.inputs.as_slice());
        let targets = examples.iter().map(|example| example.targets.as_slice());
        Self {
            input_ids: padded(inputs, input_length),
            labels: padded(targets, target_length),
            batch_size: examples.len(),
            input_length,
            target_length,
        }
    }
}

fn padded<'a>(rows: impl Iterator<Item = &'a [u32]>, length: usize) -> Vec<i32> {
    let mut ids = Vec::new();
    for (number, row) in rows.enumerate() {
        assert!(row.len() <= length, "Got a row of {} for a length of {length}", row.len());
        // Backends index with signed integers; no vocabulary comes near their limit.
        ids.extend(row.iter().map(|id| *id as i32));
        ids.resize((number + 1) * length, 0);
    }
    ids
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::fs;

    use super::*;
    use crate::data::Corpus;

    const CORRUPTION: SpanCorruption =
        SpanCorruption { noise_density: 0.15, mean_span_length: 3.0, input_length: 32 };

    fn cache(num_words: usize) -> (Arc<TokenCache>, TextTokenizer) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text.txt");
        let text: String = (0..num_words).map(|n| format!("word{} ", n * n % 997)).collect();
        fs::write(&path, text).unwrap();
        let corpus = Corpus::open(&[path.to_string_lossy().into_owned()]).unwrap();
        let tokenizer = TextTokenizer::train(&corpus, 200, u64::MAX).unwrap();
        let cache =
            TokenCache::open_or_build(folder.path(), &corpus, &tokenizer, &mut |_| ()).unwrap();
        (Arc::new(cache), tokenizer)
    }

    fn training(seed: u64) -> PretrainingData {
        let (cache, tokenizer) = cache(1000);
        PretrainingData::training(cache, &tokenizer, CORRUPTION, seed).unwrap()
    }

    /// The tokens of an example's segment that are in its inputs and targets, in any order.
    fn text_of(example: &Example, data: &PretrainingData) -> Vec<u32> {
        let all = example.inputs.iter().chain(&example.targets);
        let mut text: Vec<u32> =
            all.filter(|id| **id != data.eos && !data.sentinels.contains(id)).copied().collect();
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
        let mut in_file: Vec<Vec<u32>> = (0..segments as usize)
            .map(|segment| {
                let start = segment * data.segment_length;
                let mut tokens = data.tokens.slice(start..start + data.segment_length);
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
            (0..ids.len()).filter(|at| data.sentinels.contains(&ids[*at])).collect()
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
    fn validation_walks_through_the_corpus_once() {
        let (cache, tokenizer) = cache(1000);
        let data = PretrainingData::validation(cache, &tokenizer, CORRUPTION, 7).unwrap();
        let start = data.segment_length;
        let mut second = data.tokens.slice(start..start * 2);
        second.sort_unstable();
        assert_eq!(text_of(&data.example(1), &data), second);

        let batches: Vec<Batch> = data.epoch(4).collect();
        let sizes: Vec<usize> = batches.iter().map(|batch| batch.batch_size).collect();
        assert_eq!(sizes.iter().sum::<usize>() as u64, data.num_segments());
        assert!(sizes[..sizes.len() - 1].iter().all(|size| *size == 4));
        assert_eq!(batches, data.epoch(4).collect::<Vec<_>>());
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
    fn short_examples_are_padded_with_zeros() {
        let examples = [
            Example { inputs: vec![5, 6, 7], targets: vec![8] },
            Example { inputs: vec![9], targets: vec![] },
        ];
        let batch = Batch::new(&examples, 4, 2);
        assert_eq!(batch.input_ids, [5, 6, 7, 0, 9, 0, 0, 0]);
        assert_eq!(batch.labels, [8, 0, 0, 0]);
    }

    #[test]
    fn corpus_shorter_than_an_example_is_an_error() {
        let (cache, tokenizer) = cache(1000);
        let corruption = SpanCorruption { input_length: 100_000, ..CORRUPTION };
        // Fewer and longer spans, as there are but 100 sentinels.
        let corruption = SpanCorruption { mean_span_length: 1000.0, ..corruption };
        let error = PretrainingData::training(cache, &tokenizer, corruption, 7).unwrap_err();
        assert!(matches!(error, DataError::TooFewTokens { .. }), "{error}");
    }
}
