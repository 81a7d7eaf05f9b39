//! Language modelling behind a prefix: "prefix LM" in Raffel et al. 2020
//! (<https://arxiv.org/abs/1910.10683>), section 3.3.1, and in T5's code `prefix_lm` of
//! `t5/data/preprocessors.py`. "LM adaptation" (Lester et al. 2021,
//! <https://arxiv.org/abs/2104.08691>, section 3.1) goes on with a T5 under this objective.
//!
//! ```text
//! tokens    Thank you for inviting me to your party last week
//! inputs    Thank you for inviting </s>
//! targets   me to your party last week </s>
//! ```

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::{Example, Lengths, Objective, SpecialTokens};
use crate::DataError;

/// The decoder goes on where a prefix, which the encoder reads, ends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PrefixLm {
    /// The length of the inputs, with `</s>`; a segment of text has one token less. Default: 512.
    pub input_length: usize,
    /// The mean share of the tokens that are targets, up to 0.5. Default: 0.5, where every split is
    /// as likely.
    pub target_share: f64,
}

impl Default for PrefixLm {
    fn default() -> Self {
        Self { input_length: 512, target_share: 0.5 }
    }
}

impl PrefixLm {
    /// The shortest inputs that a segment of two tokens fits.
    const MIN_INPUT_LENGTH: usize = 3;

    /// The shortest prefix of `length` tokens: `random_prefix_noise_mask`. The longest leaves one
    /// token, and all between are as likely, so that the targets have their share in the mean.
    pub(super) fn min_prefix(&self, length: usize) -> usize {
        let longest = length - 1;
        let shortest = ((1.0 - 2.0 * self.target_share) * longest as f64).round_ties_even();
        (shortest as usize).clamp(1, longest)
    }
}

impl Objective for PrefixLm {
    fn check(&self, _special: &SpecialTokens) -> Result<(), DataError> {
        let Self { input_length, target_share } = *self;
        if input_length < Self::MIN_INPUT_LENGTH {
            let minimum = Self::MIN_INPUT_LENGTH;
            return Err(DataError::InputLength { value: input_length, minimum });
        }
        if !(target_share > 0.0 && target_share <= 0.5) {
            return Err(DataError::TargetShare { value: target_share });
        }
        Ok(())
    }

    fn lengths(&self) -> Lengths {
        let segment = self.input_length - 1;
        let target = segment - self.min_prefix(segment) + 1;
        Lengths { segment, input: self.input_length, target }
    }

    fn example(&self, tokens: &[u32], special: &SpecialTokens, rng: &mut ChaCha8Rng) -> Example {
        let prefix = rng.random_range(self.min_prefix(tokens.len())..tokens.len());
        let (inputs, targets) = tokens.split_at(prefix);
        let ended = |part: &[u32]| [part, &[special.eos]].concat();
        Example { inputs: ended(inputs), targets: ended(targets) }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    const EOS: u32 = 1;

    fn special() -> SpecialTokens {
        SpecialTokens { sentinels: vec![99], eos: EOS }
    }

    #[test]
    fn every_split_of_a_segment_comes_about_equally_often() {
        let objective = PrefixLm { input_length: 7, ..PrefixLm::default() };
        assert_eq!(objective.lengths(), Lengths { segment: 6, input: 7, target: 6 });
        let tokens = [10, 11, 12, 13, 14, 15];
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut counts = [0; 6];
        for _ in 0..5000 {
            let Example { inputs, targets } = objective.example(&tokens, &special(), &mut rng);
            let (inputs, input_end) = inputs.split_at(inputs.len() - 1);
            let (targets, target_end) = targets.split_at(targets.len() - 1);
            assert_eq!([inputs, targets].concat(), tokens);
            assert_eq!((input_end, target_end), (&[EOS][..], &[EOS][..]));
            counts[inputs.len()] += 1;
        }
        // A prefix of 1 to 5 tokens, each 1000 times with a standard deviation of 28.
        assert_eq!(counts[0], 0);
        assert!(counts[1..].iter().all(|count| (850..1150).contains(count)), "{counts:?}");
    }

    #[test]
    fn a_smaller_share_has_longer_prefixes() {
        // 101 tokens: prefixes of 50 to 100, so targets of 1 to 51, and `</s>`.
        let objective = PrefixLm { input_length: 102, target_share: 0.25 };
        assert_eq!(objective.lengths(), Lengths { segment: 101, input: 102, target: 52 });
        let tokens: Vec<u32> = (100..201).collect();
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let lengths: Vec<usize> = (0..4000)
            .map(|_| objective.example(&tokens, &special(), &mut rng).targets.len() - 1)
            .collect();
        assert_eq!((lengths.iter().min(), lengths.iter().max()), (Some(&1), Some(&51)));
        let mean = lengths.iter().sum::<usize>() as f64 / 4000.0;
        assert!((25.0..27.0).contains(&mean), "{mean}");
    }

    #[test]
    fn impossible_settings_are_refused() {
        let check =
            |input_length, target_share| PrefixLm { input_length, target_share }.check(&special());
        assert!(check(3, 0.5).is_ok());
        assert!(matches!(check(2, 0.5), Err(DataError::InputLength { minimum: 3, .. })));
        for share in [0.0, 0.6, f64::NAN] {
            assert!(matches!(check(3, share), Err(DataError::TargetShare { .. })), "{share}");
        }
    }
}
