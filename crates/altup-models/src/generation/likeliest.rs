//! The likeliest tokens of rows of logits, found on the device, so that few values are read from it.

use burn::tensor::{DType, Tensor, Transaction};

use super::scores::by_rank;

/// How many tokens of a row a device finds at most: it keeps that many in the registers of each of its threads.
pub(super) const AT_MOST: usize = 64;

/// The likeliest tokens of each row, and what it takes to tell their probabilities.
pub(super) struct Likeliest {
    /// `[rows, count]` tokens and their logits, the likeliest first, the lowest of equal ones.
    tokens: Vec<(usize, f64)>,
    /// Σ exp((logit − largest) / temperature) over all of a row.
    sums: Vec<f64>,
    count: usize,
}

/// The likeliest tokens of one row.
#[derive(Clone, Copy)]
pub(super) struct LikeliestOfRow<'a> {
    tokens: &'a [(usize, f64)],
    sum: f64,
}

impl Likeliest {
    /// The `count` likeliest tokens of each row, in one read; where more are as likely as the last of them, the backend
    /// chooses. None if a row that counts holds NaN or +inf, or nothing but
    /// -inf, and where the temperature is too small for f32.
    ///
    /// # Shapes
    ///
    /// - logits: `[rows, vocab_size]`
    pub(super) fn find(
        logits: Tensor<2>,
        count: usize,
        temperature: f64,
        counts: impl Fn(usize) -> bool,
    ) -> Option<Self> {
        // Without autodiff, under which Burn would sort on the host.
        let logits = logits.cast(DType::F32).inner();
        let [_, vocab_size] = logits.dims();
        let (largest, tokens) = logits.clone().topk_with_indices(count, 1);
        let below = (logits - largest.clone().narrow(1, 0, 1)) / temperature;
        // NaN and infinities make one of these sums NaN or infinite.
        let sums = below.exp().sum_dim(1);
        let registered = Transaction::default().register(tokens).register(largest).register(sums);
        let read = registered.execute();
        let [tokens, largest, sums] =
            read.try_into().expect("a transaction gives what it registered");
        // A kernel finds no token of -inf, and gives one that isn't there.
        let of_pair = |(token, logit): (i64, f64)| match usize::try_from(token) {
            Ok(token) if token < vocab_size => (token, logit),
            _ => (0, f64::NEG_INFINITY),
        };
        let pairs = tokens.iter::<i64>().zip(largest.iter::<f64>());
        let mut tokens: Vec<(usize, f64)> = pairs.map(of_pair).collect();
        // Not every backend puts the lowest of equal ones first.
        tokens.chunks_exact_mut(count).for_each(|row| row.sort_unstable_by(by_rank));
        let found = Self { tokens, sums: sums.iter::<f64>().collect(), count };
        let is_told = |row: usize| found.row(row).is_told();
        (0..found.sums.len()).all(|row| is_told(row) || !counts(row)).then_some(found)
    }

    pub(super) fn row(&self, row: usize) -> LikeliestOfRow<'_> {
        let tokens = &self.tokens[row * self.count..(row + 1) * self.count];
        LikeliestOfRow { tokens, sum: self.sums[row] }
    }
}

impl LikeliestOfRow<'_> {
    /// Tokens and logits, the likeliest first.
    pub(super) fn tokens(self) -> impl Iterator<Item = (usize, f64)> {
        self.tokens.iter().copied()
    }

    /// The logarithm of the [sum](Likeliest::sums): what a logit, less the largest and over the temperature, is a
    /// log-probability by.
    pub(super) fn log_sum(self) -> f64 {
        self.sum.ln()
    }

    /// Tokens and log-probabilities at a temperature of 1, the likeliest first.
    pub(super) fn log_probabilities(self) -> impl Iterator<Item = (usize, f64)> {
        let log_sum = self.tokens[0].1 + self.log_sum();
        self.tokens().map(move |(token, logit)| (token, logit - log_sum))
    }

    fn is_told(self) -> bool {
        // A NaN in the row may be overlooked by the choice of the largest, but not by the sum.
        self.sum.is_finite() && self.tokens[0].1.is_finite()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{BeamSearch, Decode, GenerationConfig, Generator, Sampling, Strategy};
    use super::*;
    use crate::operations::testing::devices;
    use burn::tensor::{Device, Int, TensorData};

    fn find(logits: &[f32], count: usize, temperature: f64) -> Vec<Option<Likeliest>> {
        let rows = |device| {
            let data = TensorData::new(logits.to_vec(), [1, logits.len()]);
            Likeliest::find(Tensor::from_data(data, &device), count, temperature, |_| true)
        };
        devices().into_iter().map(rows).collect()
    }

    /// exp(0) + exp(ln 3) + 0 at a temperature of 1, of logits less the largest: 1/3 + 1 + 0.
    #[test]
    fn the_lowest_of_equal_tokens_come_first_and_the_sum_is_of_all() {
        let never = f32::NEG_INFINITY;
        let mut logits = vec![never; 300];
        (logits[7], logits[280], logits[30]) = (0.0, 3f32.ln(), 3f32.ln());
        for found in find(&logits, 2, 1.0) {
            let found = found.unwrap();
            let row = found.row(0);
            assert_eq!(row.tokens().map(|(token, _)| token).collect::<Vec<_>>(), [30, 280]);
            assert!((row.sum - (2.0 + 1.0 / 3.0)).abs() < 1e-6, "{}", row.sum);
            for (_, log_probability) in row.log_probabilities() {
                assert!((log_probability - (3f64 / 7.0).ln()).abs() < 1e-6);
            }
        }
        for found in find(&logits, 3, 0.5) {
            let found = found.unwrap();
            assert_eq!(found.row(0).tokens().nth(2).unwrap().0, 7);
            assert!((found.row(0).sum - (2.0 + 1.0 / 9.0)).abs() < 1e-6);
        }
    }

    #[test]
    fn a_row_whose_probabilities_cannot_be_told_is_none() {
        for value in [f32::NAN, f32::INFINITY] {
            for place in [0, 3, 299] {
                let mut logits: Vec<f32> = (0..300).map(|logit| logit as f32 / 10.0).collect();
                logits[place] = value;
                assert!(find(&logits, 4, 1.0).iter().all(Option::is_none), "{value} at {place}");
            }
        }
        assert!(find(&[f32::NEG_INFINITY; 300], 4, 1.0).iter().all(Option::is_none));
        // 1e-310 is 0 in f32.
        assert!(find(&[1.0, 2.0, 1.5], 2, 1e-310).iter().all(Option::is_none));
    }

    #[test]
    fn a_row_that_does_not_count_may_hold_anything() {
        let data = TensorData::from([[1f32, 2.0, 0.0], [f32::NAN, 1.0, 1.0]]);
        for device in devices() {
            let logits = || Tensor::from_data(data.clone(), &device);
            let found = Likeliest::find(logits(), 1, 1.0, |row| row == 0).unwrap();
            assert_eq!(found.row(0).tokens().collect::<Vec<_>>(), [(1, 2.0)]);
            assert!(Likeliest::find(logits(), 1, 1.0, |_| true).is_none());
        }
    }

    /// Of two tokens that may come, a beam search that asks for eight finds two, whatever a kernel makes of -inf.
    #[test]
    fn tokens_that_never_come_are_none() {
        let mut logits = [f32::NEG_INFINITY; 300];
        (logits[5], logits[9]) = (1.0, 2.0);
        for found in find(&logits, 8, 1.0) {
            let found = found.unwrap();
            let likely = found.row(0).tokens().filter(|(_, logit)| logit.is_finite());
            assert_eq!(likely.collect::<Vec<_>>(), [(9, 2.0), (5, 1.0)]);
            assert!(found.row(0).tokens().all(|(token, _)| token < 300));
        }
    }

    /// The next token depends on the one before it: row t of `[vocab_size, vocab_size]` logits is behind token t.
    struct Bigrams(Tensor<2>);

    impl Bigrams {
        /// Of some rows one token is likely, of others hundreds are nearly alike.
        fn new(device: &Device) -> Self {
            const VOCABULARY: usize = 300;
            let logit = |place: usize| {
                let (row, column) = (place / VOCABULARY, place % VOCABULARY);
                let noise = ((place * 7919 + row * 104_729) % 2003) as f32 / 2003.0;
                let sharpness = if row % 3 == 0 { 0.5 } else { 12.0 };
                if column == 1 { -2.0 } else { sharpness * noise }
            };
            let logits = (0..VOCABULARY * VOCABULARY).map(logit).collect();
            let data = TensorData::new(logits, [VOCABULARY, VOCABULARY]);
            Self(Tensor::from_data(data, device))
        }
    }

    impl Decode for Bigrams {
        type Cache = ();

        fn vocab_size(&self) -> usize {
            self.0.dims()[0]
        }

        fn end_tokens(&self) -> Vec<u32> {
            vec![1]
        }

        fn device(&self) -> Device {
            self.0.device()
        }

        fn prompt(&self, input: &[u32]) -> Vec<u32> {
            input.to_vec()
        }

        fn start(&self, _inputs: &[Vec<u32>], _copies: usize) {}

        fn step(&self, tokens: Tensor<2, Int>, _cache: &mut ()) -> Tensor<2> {
            let [rows, _] = tokens.dims();
            self.0.clone().select(0, tokens.reshape([rows]))
        }

        fn reorder(&self, _cache: &mut (), _rows: &Tensor<1, Int>) {}
    }

    #[test]
    fn few_values_choose_the_tokens_that_all_do() {
        let sampling = |top_k, top_p| {
            let temperature = 0.8;
            let strategy = Strategy::Sampling(Sampling { temperature, top_k, top_p, seed: 7 });
            (strategy, 6, 20)
        };
        // In longer targets cycles come in another order, as likely but for rounding.
        let beams = |num_beams| {
            let settings = BeamSearch { num_beams, ..BeamSearch::default() };
            (Strategy::BeamSearch(settings), num_beams, 5)
        };
        let strategies = [
            sampling(Some(5), 1.0),
            sampling(Some(AT_MOST), 0.9),
            // More than a device finds.
            sampling(Some(AT_MOST + 1), 0.9),
            // Of flat rows this takes nearly all tokens: they are read.
            sampling(None, 0.95),
            sampling(None, 1.0),
            beams(1),
            beams(4),
            beams(AT_MOST / 2 + 1),
        ];
        for device in devices() {
            let model = Bigrams::new(&device);
            for (strategy, num_return_sequences, max_new_tokens) in strategies.clone() {
                let config = GenerationConfig {
                    num_return_sequences,
                    strategy,
                    // The first steps have a processor, and read all.
                    min_new_tokens: 3,
                    ..GenerationConfig::greedy(max_new_tokens)
                };
                let inputs = [vec![3], vec![4, 5], vec![200]];
                let [by_few, by_all] = [true, false].map(|selects_on_device| {
                    let mut generator = Generator::new(&model, &config).unwrap();
                    generator.selects_on_device = selects_on_device;
                    generator.generate(&inputs).unwrap()
                });
                for (few, all) in by_few.iter().flatten().zip(by_all.iter().flatten()) {
                    assert_eq!(few.tokens, all.tokens, "{config:?}");
                    let scores = few.score.zip(all.score);
                    assert!(scores.is_none_or(|(few, all)| (few - all).abs() < 1e-5), "{scores:?}");
                }
                assert_eq!(by_few.len(), by_all.len());
            }
        }
    }
}
