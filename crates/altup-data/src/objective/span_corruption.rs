//! T5's pre-training task, after Raffel et al. 2020 (<https://arxiv.org/abs/1910.10683>), section
//! 3.1.4, and its code in `t5/data/preprocessors.py`, whose names are given below.
//!
//! A share of the tokens, the noise, is hidden in spans. In the inputs a sentinel stands for each
//! span; the targets are the same text seen from the other side, where a sentinel stands for each
//! run of tokens that were not hidden:
//!
//! ```text
//! tokens    Thank you for inviting me to your party last week
//! mask                xxx xxxxxxxx                  xxxx xxxx
//! inputs    Thank you <extra_id_0> me to your party <extra_id_1> </s>
//! targets   <extra_id_0> for inviting <extra_id_1> last week </s>
//! ```
//!
//! As in T5's code, and unlike in the paper's figure, no further sentinel closes the targets: a
//! mask always ends on noise, and only an unhidden run gets a sentinel there.

use rand::Rng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::{Example, Lengths, Objective, SpecialTokens};
use crate::DataError;

/// How much to hide, and in what pieces.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SpanCorruption {
    /// The share of the tokens that is hidden, up to [`MAX_NOISE_DENSITY`](Self::MAX_NOISE_DENSITY). Default: 0.15.
    pub noise_density: f64,
    /// The mean number of tokens in a hidden span. Default: 3.
    pub mean_span_length: f64,
    /// The length of the inputs, with `</s>`. Default: 512.
    pub input_length: usize,
}

impl Default for SpanCorruption {
    fn default() -> Self {
        Self { noise_density: 0.15, mean_span_length: 3.0, input_length: 512 }
    }
}

impl Objective for SpanCorruption {
    fn check(&self, special: &SpecialTokens) -> Result<(), DataError> {
        let Self { noise_density, mean_span_length, input_length } = *self;
        if !(noise_density > 0.0 && noise_density <= Self::MAX_NOISE_DENSITY) {
            return Err(DataError::NoiseDensity { value: noise_density });
        }
        if !(mean_span_length >= 1.0 && mean_span_length.is_finite()) {
            return Err(DataError::MeanSpanLength { value: mean_span_length });
        }
        if input_length < Self::MIN_INPUT_LENGTH {
            let minimum = Self::MIN_INPUT_LENGTH;
            return Err(DataError::InputLength { value: input_length, minimum });
        }
        let (segment_length, _) = self.segment_and_target_length();
        special.check_sentinels(self.num_spans(segment_length))
    }

    fn lengths(&self) -> Lengths {
        let (segment, target) = self.segment_and_target_length();
        Lengths { segment, input: self.input_length, target }
    }

    fn example(&self, tokens: &[u32], special: &SpecialTokens, rng: &mut ChaCha8Rng) -> Example {
        let mask = self.noise_mask(tokens.len(), rng);
        corrupt(tokens, &mask, special)
    }
}

impl SpanCorruption {
    /// The largest share that can be hidden. An example's text is longer by its inverse distance from 1: next to 1, no
    /// text is long enough.
    pub const MAX_NOISE_DENSITY: f64 = 0.99;

    /// The shortest inputs: a token, a sentinel, and `</s>`.
    const MIN_INPUT_LENGTH: usize = 3;

    /// How many tokens of text make an example whose inputs are just `input_length` long, and how
    /// long its targets are, with `</s>`: `random_spans_helper`.
    ///
    /// Every example of a run has these lengths.
    pub(super) fn segment_and_target_length(&self) -> (usize, usize) {
        let mut segment_length = self.input_length.saturating_sub(1).max(2);
        while self.example_lengths(segment_length + 1).0 <= self.input_length {
            segment_length += 1;
        }
        (segment_length, self.example_lengths(segment_length).1)
    }

    /// How many of `length` tokens are hidden, and in how many spans. At least one is, one is not,
    /// and each span has an unhidden run before it.
    fn noise_tokens_and_spans(&self, length: usize) -> (usize, usize) {
        // Half to even, as Python and TensorFlow round.
        let round = |value: f64| value.round_ties_even() as usize;
        let noise = round(length as f64 * self.noise_density).clamp(1, length - 1);
        let spans = round(noise as f64 / self.mean_span_length).max(1);
        (noise, spans.min(noise).min(length - noise))
    }

    /// How many spans of `length` tokens are hidden.
    pub(super) fn num_spans(&self, length: usize) -> usize {
        self.noise_tokens_and_spans(length).1
    }

    /// How long the inputs and the targets of `length` tokens are, with `</s>`.
    pub(super) fn example_lengths(&self, length: usize) -> (usize, usize) {
        let (noise, spans) = self.noise_tokens_and_spans(length);
        (length - noise + spans + 1, noise + spans + 1)
    }

    /// Chooses the tokens to hide: `random_spans_noise_mask`.
    ///
    /// The spans alternate, starting with an unhidden one, and both kinds have random lengths of at
    /// least 1.
    ///
    /// # Panics
    ///
    /// If `length` is less than 2, where there is nothing to choose.
    pub(super) fn noise_mask<R: Rng + ?Sized>(&self, length: usize, rng: &mut R) -> Vec<bool> {
        assert!(length >= 2, "A noise mask needs 2 or more tokens. Got length={length}");
        let (noise, spans) = self.noise_tokens_and_spans(length);
        let noise_lengths = random_segmentation(noise, spans, rng);
        let other_lengths = random_segmentation(length - noise, spans, rng);

        let mut mask = Vec::with_capacity(length);
        for (other, noise) in other_lengths.into_iter().zip(noise_lengths) {
            mask.resize(mask.len() + other, false);
            mask.resize(mask.len() + noise, true);
        }
        mask
    }
}

/// Cuts `items` things into `segments` runs of random lengths, each at least 1:
/// `_random_segmentation`.
fn random_segmentation<R: Rng + ?Sized>(items: usize, segments: usize, rng: &mut R) -> Vec<usize> {
    // Which of the things after the first start a new run.
    let mut starts: Vec<bool> = (1..items).map(|place| place < segments).collect();
    starts.shuffle(rng);

    let mut lengths = vec![1];
    for starts_segment in starts {
        match lengths.last_mut() {
            Some(length) if !starts_segment => *length += 1,
            _ => lengths.push(1),
        }
    }
    lengths
}

/// Makes an example of some tokens and a mask that is true where they are hidden.
///
/// Span number i becomes sentinel i, in the inputs (`noise_span_to_unique_sentinel`) and the targets
/// (`nonnoise_span_to_unique_sentinel`); both then end in `</s>`.
///
/// # Panics
///
/// If the mask has another length than the tokens, or more spans than there are sentinels.
pub(super) fn corrupt(tokens: &[u32], mask: &[bool], special: &SpecialTokens) -> Example {
    assert_eq!(tokens.len(), mask.len(), "The mask must cover the tokens");
    Example {
        inputs: spans_to_sentinels(tokens, mask, true, special),
        targets: spans_to_sentinels(tokens, mask, false, special),
    }
}

/// The tokens with a sentinel for each run where the mask equals `hidden`, and `</s>` at the end.
fn spans_to_sentinels(
    tokens: &[u32],
    mask: &[bool],
    hidden: bool,
    special: &SpecialTokens,
) -> Vec<u32> {
    let mut output = Vec::with_capacity(tokens.len() + 1);
    let mut spans = 0;
    let mut in_span = false;
    for (&token, &is_noise) in tokens.iter().zip(mask) {
        if is_noise != hidden {
            output.push(token);
        } else if !in_span {
            output.push(special.sentinels[spans]);
            spans += 1;
        }
        in_span = is_noise == hidden;
    }
    output.push(special.eos);
    output
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    const EOS: u32 = 1;

    /// `<extra_id_0>` = 99, `<extra_id_1>` = 98, …
    fn special() -> SpecialTokens {
        SpecialTokens { sentinels: (0..100).rev().collect(), eos: EOS }
    }

    fn check(corruption: SpanCorruption, num_sentinels: u32) -> Result<(), DataError> {
        corruption.check(&SpecialTokens { sentinels: (0..num_sentinels).collect(), eos: EOS })
    }

    fn corruption(input_length: usize) -> SpanCorruption {
        SpanCorruption { input_length, ..Default::default() }
    }

    #[test]
    fn lengths_are_those_of_t5() {
        // 568 tokens: round(85.2) = 85 hidden in round(85 / 3) = 28 spans. Inputs: 483 others, 28
        // sentinels, </s> = 512. Targets: 85 + 28 + 1 = 114. One token more would make 513.
        assert_eq!(corruption(512).segment_and_target_length(), (568, 114));
        // 141 tokens: round(21.15) = 21 hidden in 7 spans: 120 + 7 + 1 = 128 and 21 + 7 + 1 = 29.
        assert_eq!(corruption(128).segment_and_target_length(), (141, 29));
        // 1137 tokens: round(170.55) = 171 in 57 spans: 966 + 57 + 1 = 1024 and 171 + 57 + 1 = 229.
        assert_eq!(corruption(1024).segment_and_target_length(), (1137, 229));
        // 2 tokens: 1 hidden in 1 span: 1 + 1 + 1 = 3 both.
        assert_eq!(corruption(3).segment_and_target_length(), (2, 3));
    }

    #[test]
    fn hand_worked_example() {
        //  tokens   10 11 12 13 14 15 16 17
        //  hidden       x  x        x
        //  inputs   10 99    13 14 98 16 17 </s>
        //  targets  99 11 12 98    15 97    </s>   the last others are a run too
        let tokens = [10, 11, 12, 13, 14, 15, 16, 17];
        let mask = [false, true, true, false, false, true, false, false];
        let example = corrupt(&tokens, &mask, &special());
        assert_eq!(example.inputs, [10, 99, 13, 14, 98, 16, 17, EOS]);
        assert_eq!(example.targets, [99, 11, 12, 98, 15, 97, EOS]);
    }

    #[test]
    fn targets_of_a_mask_that_ends_on_noise_have_no_closing_sentinel() {
        let example = corrupt(&[10, 11, 12, 13], &[false, true, false, true], &special());
        assert_eq!(example.inputs, [10, 99, 12, 98, EOS]);
        assert_eq!(example.targets, [99, 11, 98, 13, EOS]);
    }

    #[test]
    fn masks_have_exact_counts_and_start_unhidden_and_end_hidden() {
        let corruption = SpanCorruption::default();
        for length in (2..200).chain([568]) {
            let (noise, spans) = corruption.noise_tokens_and_spans(length);
            for seed in 0..20 {
                let mask = corruption.noise_mask(length, &mut ChaCha8Rng::seed_from_u64(seed));
                assert_eq!(mask.len(), length);
                assert_eq!(mask.iter().filter(|hidden| **hidden).count(), noise);
                let starts = mask.windows(2).filter(|pair| *pair == [false, true]).count();
                assert_eq!(starts, spans);
                assert!(!mask[0] && mask[length - 1]);
            }
        }
    }

    #[test]
    fn spans_have_random_lengths_with_the_given_mean() {
        let corruption = SpanCorruption::default();
        let mask = corruption.noise_mask(568, &mut ChaCha8Rng::seed_from_u64(1));
        let spans: Vec<usize> =
            mask.split(|hidden| !hidden).map(<[bool]>::len).filter(|length| *length > 0).collect();
        assert_eq!((spans.iter().sum::<usize>(), spans.len()), (85, 28));
        assert!(spans.contains(&1) && spans.iter().any(|length| *length > 4));
    }

    #[test]
    fn inputs_and_targets_together_hold_the_whole_text() {
        let special = special();
        let corruption = SpanCorruption::default();
        let (segment_length, target_length) = corruption.segment_and_target_length();
        for seed in 0..200 {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let tokens: Vec<u32> =
                (0..segment_length).map(|_| rng.random_range(100..32_000)).collect();
            let mask = corruption.noise_mask(segment_length, &mut rng);
            let Example { inputs, targets } = corrupt(&tokens, &mask, &special);
            assert_eq!((inputs.len(), targets.len()), (512, target_length));

            // Put behind each sentinel of the inputs what follows it in the targets.
            let mut restored = Vec::new();
            let mut hidden = targets[..target_length - 1].iter().peekable();
            let mut next_sentinel = special.sentinels.iter();
            for &token in &inputs[..511] {
                if token >= 100 {
                    restored.push(token);
                    continue;
                }
                assert_eq!(Some(&token), next_sentinel.next(), "sentinels must come in order");
                assert_eq!(hidden.next(), Some(&token));
                while let Some(&token) = hidden.next_if(|token| **token >= 100) {
                    restored.push(token);
                }
            }
            assert_eq!(restored, tokens);
            assert_eq!((inputs[511], targets[target_length - 1]), (EOS, EOS));
        }
    }

    #[test]
    fn the_seed_decides_the_mask() {
        let mask =
            |seed| SpanCorruption::default().noise_mask(568, &mut ChaCha8Rng::seed_from_u64(seed));
        assert_eq!(mask(3), mask(3));
        assert_ne!(mask(3), mask(4));
    }

    #[test]
    fn dense_noise_keeps_a_run_between_spans() {
        // 9 of 10 tokens hidden, spans of 1: there is room for one unhidden run, so for one span.
        let corruption =
            SpanCorruption { noise_density: 0.9, mean_span_length: 1.0, input_length: 16 };
        assert_eq!(corruption.noise_tokens_and_spans(10), (9, 1));
    }

    #[test]
    fn impossible_settings_are_refused() {
        assert!(check(SpanCorruption::default(), 28).is_ok());
        let error = check(SpanCorruption::default(), 27).unwrap_err();
        assert!(matches!(error, DataError::TooFewSentinels { need: 28, have: 27 }), "{error}");
        for noise_density in [0.0, 1.0, 1.0 - 1e-12, 0.995, f64::NAN] {
            let corruption = SpanCorruption { noise_density, ..Default::default() };
            assert!(matches!(check(corruption, 100), Err(DataError::NoiseDensity { .. })));
        }
        for mean_span_length in [0.5, f64::INFINITY, f64::NAN] {
            let corruption = SpanCorruption { mean_span_length, ..Default::default() };
            assert!(matches!(check(corruption, 100), Err(DataError::MeanSpanLength { .. })));
        }
        assert!(matches!(check(corruption(2), 100), Err(DataError::InputLength { .. })));
    }
}
