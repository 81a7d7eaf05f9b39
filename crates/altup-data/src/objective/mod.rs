//! What a model is asked to do with a stretch of text.

mod fixed_prefix_lm;
mod mixture_of_denoisers;
mod prefix_lm;
mod span_corruption;

use std::fmt::Debug;

use rand_chacha::ChaCha8Rng;

use crate::{DataError, TextTokenizer};

pub use self::fixed_prefix_lm::FixedPrefixLm;
pub use self::mixture_of_denoisers::{MODES, MixtureOfDenoisers};
pub use self::prefix_lm::PrefixLm;
pub use self::span_corruption::SpanCorruption;

/// An example for a sequence-to-sequence model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// What the encoder reads.
    pub inputs: Vec<u32>,
    /// What the decoder is to write.
    pub targets: Vec<u32>,
}

/// How examples are made of text: a task that text sets by itself.
pub trait Objective: Debug + Send + Sync {
    /// Checks that the settings make sense, and that a tokenizer has what they need.
    ///
    /// # Errors
    ///
    /// Names the setting.
    fn check(&self, special: &SpecialTokens) -> Result<(), DataError>;

    /// The lengths of every example.
    fn lengths(&self) -> Lengths;

    /// Makes an example of some tokens, as many as [`lengths`](Self::lengths) says.
    ///
    /// # Panics
    ///
    /// May panic where [`check`](Self::check) fails.
    fn example(&self, tokens: &[u32], special: &SpecialTokens, rng: &mut ChaCha8Rng) -> Example;
}

/// The lengths of an objective's examples, in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lengths {
    /// Tokens of text in an example.
    pub segment: usize,
    /// The longest inputs, `</s>` included.
    pub input: usize,
    /// The longest targets, `</s>` included.
    pub target: usize,
}

/// Ids that shape an example.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecialTokens {
    /// `<extra_id_0>`, `<extra_id_1>`, …
    pub sentinels: Vec<u32>,
    /// `</s>`
    pub eos: u32,
}

impl SpecialTokens {
    /// Those of a tokenizer.
    pub fn of(tokenizer: &TextTokenizer) -> Self {
        Self { sentinels: tokenizer.sentinels().to_vec(), eos: tokenizer.eos_id() }
    }

    fn check_sentinels(&self, need: usize) -> Result<(), DataError> {
        match self.sentinels.len() {
            have if have < need => Err(DataError::TooFewSentinels { need, have }),
            _ => Ok(()),
        }
    }
}
