//! Language modelling behind a prefix of one length: [`PrefixLm`](super::PrefixLm) whose splits are all
//! in the middle. Nothing is padded, so that no time goes into padding, and every batch has as many
//! targets.
//!
//! ```text
//! tokens    Thank you for inviting me to your party
//! inputs    Thank you for inviting </s>
//! targets   me to your party </s>
//! ```

use rand_chacha::ChaCha8Rng;

use super::{Example, Lengths, Objective, SpecialTokens};
use crate::DataError;

/// [`PrefixLm`](super::PrefixLm) with every split in the middle of a segment: the decoder goes on for as
/// many tokens as the encoder has read. Raffel et al. 2020, section 3.3.1, draws the split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FixedPrefixLm {
    /// The length of the inputs and of the targets, each with `</s>`; a segment of text has twice as
    /// many tokens, less two. Default: 512.
    pub input_length: usize,
}

impl Default for FixedPrefixLm {
    fn default() -> Self {
        Self { input_length: 512 }
    }
}

impl FixedPrefixLm {
    /// A token and `</s>`.
    const MIN_INPUT_LENGTH: usize = 2;
}

impl Objective for FixedPrefixLm {
    fn check(&self, _special: &SpecialTokens) -> Result<(), DataError> {
        match self.input_length {
            value if value < Self::MIN_INPUT_LENGTH => {
                Err(DataError::InputLength { value, minimum: Self::MIN_INPUT_LENGTH })
            }
            _ => Ok(()),
        }
    }

    fn lengths(&self) -> Lengths {
        let length = self.input_length;
        Lengths { segment: 2 * length.saturating_sub(1), input: length, target: length }
    }

    fn example(&self, tokens: &[u32], special: &SpecialTokens, _rng: &mut ChaCha8Rng) -> Example {
        let (inputs, targets) = tokens.split_at(tokens.len() / 2);
        let ended = |part: &[u32]| [part, &[special.eos]].concat();
        Example { inputs: ended(inputs), targets: ended(targets) }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn the_second_half_continues_the_first() {
        let special = SpecialTokens { sentinels: vec![], eos: 1 };
        let objective = FixedPrefixLm { input_length: 4 };
        assert!(objective.check(&special).is_ok());
        assert_eq!(objective.lengths(), Lengths { segment: 6, input: 4, target: 4 });
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let example = objective.example(&[10, 11, 12, 13, 14, 15], &special, &mut rng);
        let expected = Example { inputs: vec![10, 11, 12, 1], targets: vec![13, 14, 15, 1] };
        assert_eq!(example, expected);
    }

    #[test]
    fn inputs_have_room_for_a_token() {
        let special = SpecialTokens { sentinels: vec![], eos: 1 };
        assert!(FixedPrefixLm { input_length: 2 }.check(&special).is_ok());
        for input_length in [0, 1] {
            let error = FixedPrefixLm { input_length }.check(&special).unwrap_err();
            assert!(matches!(error, DataError::InputLength { minimum: 2, .. }), "{error}");
        }
    }
}
