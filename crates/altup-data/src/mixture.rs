//! Examples from several sources.

use crate::interleaving::Interleaving;
use crate::{Batch, Example, PretrainingData};

/// Examples of several named sources, mixed at given rates.
///
/// Example n comes from a source, and is the source's example k, where both follow from the seed and
/// n alone: no counts are kept, and any example is had at once. Of each [`BLOCK`](Self::BLOCK)
/// examples in a row every source has its exact part, in a shuffled order.
#[derive(Debug, Clone)]
pub struct Mixture {
    sources: Vec<Source>,
    order: Interleaving,
}

/// A source of a [`Mixture`].
#[derive(Debug, Clone)]
pub struct Source {
    /// What it is called; empty where it is the only one and was given no name.
    pub name: String,
    /// Its examples.
    pub data: PretrainingData,
    /// Its share of the examples, from 0 to 1.
    pub rate: f64,
}

impl Mixture {
    /// Examples among which every source has its exact part.
    pub const BLOCK: u64 = Interleaving::BLOCK;

    /// Mixes sources, each with a name and a weight; a source's rate is its share of all weights,
    /// rounded to [`BLOCK`](Self::BLOCK)ths, and at least one.
    ///
    /// # Panics
    ///
    /// If there is no source or a weight is not positive.
    pub fn new(sources: Vec<(String, PretrainingData, f64)>, seed: u64) -> Self {
        let weights: Vec<f64> = sources.iter().map(|(_, _, weight)| *weight).collect();
        let order = Interleaving::new(&weights, seed);
        let sources = sources.into_iter().enumerate().map(|(number, (name, data, _))| Source {
            name,
            data,
            rate: order.rate(number),
        });
        Self { sources: sources.collect(), order }
    }

    /// A single source.
    pub fn single(data: PretrainingData) -> Self {
        Self::new(vec![(String::new(), data, 1.0)], 0)
    }

    /// The sources.
    pub fn sources(&self) -> &[Source] {
        &self.sources
    }

    /// The length of the inputs of every batch.
    pub fn input_length(&self) -> usize {
        self.sources.iter().map(|source| source.data.input_length()).max().unwrap_or(0)
    }

    /// The length of the labels of every batch.
    pub fn target_length(&self) -> usize {
        self.sources.iter().map(|source| source.data.target_length()).max().unwrap_or(0)
    }

    /// Example number `n`.
    pub fn example(&self, n: u64) -> Example {
        let (source, number) = self.order.locate(n);
        self.sources[source].data.example(number)
    }

    /// The examples from number `first` on, as a batch.
    pub fn batch(&self, first: u64, batch_size: usize) -> Batch {
        let examples: Vec<Example> =
            (first..first + batch_size as u64).map(|n| self.example(n)).collect();
        Batch::new(&examples, self.input_length(), self.target_length())
    }

    /// For each source, how many times the first `examples` examples go through it.
    pub fn epochs(&self, examples: u64) -> impl Iterator<Item = (&str, f64)> {
        self.sources.iter().map(move |source| {
            let seen = examples as f64 * source.rate;
            (source.name.as_str(), seen / source.data.num_segments() as f64)
        })
    }
}

/// Weights of sources by how many examples they have, as T5 mixes its tasks (Raffel et al. 2020,
/// <https://arxiv.org/abs/1910.10683>, section 3.5.2): in proportion to the number, which counts up
/// to `limit` at most (the paper's K), raised to the power of 1 / `temperature` (T). A temperature of
/// 1 mixes in proportion, a high one evenly. The largest weighs 1, and none so little that it counts as nothing.
pub fn weights_by_size(sizes: &[u64], limit: Option<u64>, temperature: f64) -> Vec<f64> {
    let limited = sizes.iter().map(|size| limit.map_or(*size, |limit| limit.min(*size)) as f64);
    let largest = limited.clone().fold(1.0, f64::max);
    // As parts of the largest: a low temperature makes powers of the sizes themselves infinite.
    let weight = |size: f64| (size / largest).powf(1.0 / temperature).max(f64::MIN_POSITIVE);
    limited.map(weight).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Arc;

    use super::*;
    use crate::{Corpus, OnError, PrepareOptions, SpanCorruption, TextTokenizer, TokenStore};

    /// Sources of as many words, with these weights.
    fn mixture(sources: &[(usize, f64)], seed: u64) -> Mixture {
        let folder = tempfile::tempdir().unwrap();
        let files: Vec<String> = sources
            .iter()
            .enumerate()
            .map(|(number, (words, _))| {
                let path = folder.path().join(format!("{number}.txt"));
                let word = |n: usize| format!("word{number}{} ", n * n % 97);
                fs::write(&path, (0..*words).map(word).collect::<String>()).unwrap();
                path.to_string_lossy().into_owned()
            })
            .collect();
        let tokenizer =
            TextTokenizer::train(&Corpus::open(&files).unwrap(), 250, u64::MAX, OnError::Stop)
                .unwrap();
        let store = TokenStore::new(&folder.path().join("store"));
        let data = |file: &String| {
            let corpus = Corpus::open(std::slice::from_ref(file)).unwrap();
            let options = PrepareOptions::default();
            let row = store.prepare(&corpus, &tokenizer, options, &mut |_| ()).unwrap();
            let objective = SpanCorruption { input_length: 32, ..SpanCorruption::default() };
            PretrainingData::training(Arc::new(row), &tokenizer, Arc::new(objective), seed).unwrap()
        };
        let named = files.iter().zip(sources).enumerate();
        let sources = named
            .map(|(number, (file, (_, weight)))| (format!("source {number}"), data(file), *weight));
        Mixture::new(sources.collect(), seed)
    }

    #[test]
    fn every_block_has_the_exact_part_of_each_source_and_each_example_once() {
        let mixture = mixture(&[(500, 1.0), (500, 3.0), (500, 0.001)], 7);
        let mut next = [0; 3];
        for block in 0..3 {
            let first = block * Mixture::BLOCK;
            let mut numbers = [(); 3].map(|()| Vec::new());
            for n in first..first + Mixture::BLOCK {
                let (source, number) = mixture.order.locate(n);
                numbers[source].push(number);
            }
            for (source, mut numbers) in numbers.into_iter().enumerate() {
                numbers.sort_unstable();
                let end = next[source] + numbers.len() as u64;
                assert!(numbers.into_iter().eq(next[source]..end), "source {source}");
                next[source] = end;
            }
        }
        // Of 16,384: a quarter, three quarters, and 4.09 of 4.001 weights.
        assert_eq!(next, [4095 * 3, 12285 * 3, 4 * 3]);
    }

    #[test]
    fn sources_alternate_from_the_start() {
        let mixture = mixture(&[(500, 1.0), (500, 1.0)], 7);
        let first: Vec<usize> = (0..64).map(|n| mixture.order.locate(n).0).collect();
        let of_first = first.iter().filter(|source| **source == 0).count();
        assert!((16..48).contains(&of_first), "{first:?}");
        let other = super::tests::mixture(&[(500, 1.0), (500, 1.0)], 8);
        assert_ne!(first, (0..64).map(|n| other.order.locate(n).0).collect::<Vec<_>>());
    }

    #[test]
    fn an_example_is_the_same_whoever_asks_and_when() {
        let (mixture, again) =
            (mixture(&[(500, 1.0), (900, 2.0)], 7), mixture(&[(500, 1.0), (900, 2.0)], 7));
        let forwards: Vec<Example> = (0..200).map(|n| mixture.example(n)).collect();
        let mut backwards: Vec<Example> = (0..200).rev().map(|n| again.example(n)).collect();
        backwards.reverse();
        assert_eq!(forwards, backwards);
        let batch = mixture.batch(100, 3);
        assert_eq!(batch, Batch::new(&forwards[100..103], 32, mixture.target_length()));
    }

    #[test]
    fn a_single_source_is_what_it_is_alone() {
        let mixture = mixture(&[(500, 2.5)], 7);
        let data = &mixture.sources()[0].data;
        assert!((0..99).all(|n| mixture.example(n) == data.example(n)));
        let single = Mixture::single(data.clone());
        assert_eq!((single.sources()[0].rate, single.example(5)), (1.0, data.example(5)));
    }

    #[test]
    fn epochs_are_counted_by_source() {
        let mixture = mixture(&[(500, 1.0), (900, 3.0)], 7);
        let segments = |number: usize| mixture.sources()[number].data.num_segments() as f64;
        let epochs: Vec<(&str, f64)> = mixture.epochs(1000).collect();
        assert_eq!(epochs, [("source 0", 250.0 / segments(0)), ("source 1", 750.0 / segments(1))]);
    }

    #[test]
    fn weights_by_size_are_those_of_t5() {
        // Sizes 100, 10,000 and 1,000,000: by T = 2, their square roots.
        let sizes = [100, 10_000, 1_000_000];
        assert_eq!(weights_by_size(&sizes, None, 1.0), [0.0001, 0.01, 1.0]);
        assert_eq!(weights_by_size(&sizes, Some(10_000), 1.0), [0.01, 1.0, 1.0]);
        assert_eq!(weights_by_size(&sizes, None, 2.0), [0.01, 0.1, 1.0]);
        // To the power of 100, then 10,000, they are beyond what a number holds.
        for temperature in [0.01, 0.0001] {
            let weights = weights_by_size(&sizes, None, temperature);
            assert!(weights.iter().all(|weight| *weight > 0.0 && *weight <= 1.0), "{weights:?}");
            assert_eq!(Interleaving::new(&weights, 0).rate(0), 1.0 / Mixture::BLOCK as f64);
        }
        let [least, .., most] = weights_by_size(&sizes, None, 1e9)[..] else { unreachable!() };
        assert!((most / least - 1.0).abs() < 1e-6);
    }
}
