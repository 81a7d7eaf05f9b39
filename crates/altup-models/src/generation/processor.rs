/// A target that is being generated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartialTarget<'a> {
    /// The input that it is generated for.
    pub input: &'a [u32],
    /// What the decoder has read before it: see [`Decode::prompt`](crate::Decode::prompt).
    pub prompt: &'a [u32],
    /// Its tokens so far.
    pub tokens: &'a [u32],
}

/// Changes the scores that the next token of a target is chosen by. See
/// [`Generator::with_processor`](crate::Generator::with_processor).
///
/// Closures that take a [`PartialTarget`] and the scores are processors too.
pub trait LogitsProcessor: Send + Sync {
    /// Changes the scores of the token that follows `target`: logits in greedy decoding and sampling,
    /// log-probabilities in a beam search, as in Hugging Face transformers.
    ///
    /// A token with a score of -inf is never chosen. +inf takes all of the probability: one of the tokens that have it
    /// is chosen. NaN is an error.
    ///
    /// # Shapes
    ///
    /// - scores: `[vocab_size]`
    fn process(&self, target: &PartialTarget<'_>, scores: &mut [f64]);

    /// Whether the processor leaves all scores as they are while targets have `step` tokens. If all processors do,
    /// few values are read from the device, not all logits: the token that greedy decoding chooses, and on a GPU the
    /// likeliest tokens for a beam search or for sampling with top-k or top-p. Default: false
    fn is_idle(&self, step: usize) -> bool {
        let _ = step;
        false
    }
}

impl<F> LogitsProcessor for F
where
    F: Fn(&PartialTarget<'_>, &mut [f64]) + Send + Sync,
{
    fn process(&self, target: &PartialTarget<'_>, scores: &mut [f64]) {
        self(target, scores);
    }
}

/// Makes tokens less likely that the prompt or the target has already.
pub(super) struct RepetitionPenalty(pub(super) f64);

impl LogitsProcessor for RepetitionPenalty {
    fn process(&self, target: &PartialTarget<'_>, scores: &mut [f64]) {
        let mut seen = [target.prompt, target.tokens].concat();
        seen.sort_unstable();
        seen.dedup();
        for token in seen {
            let score = &mut scores[token as usize];
            *score = if *score < 0.0 { *score * self.0 } else { *score / self.0 };
        }
    }
}

/// Keeps a target from ending before it has as many tokens.
pub(super) struct MinNewTokens {
    pub(super) min_new_tokens: usize,
    pub(super) end_tokens: Vec<u32>,
}

impl LogitsProcessor for MinNewTokens {
    fn process(&self, target: &PartialTarget<'_>, scores: &mut [f64]) {
        if self.is_idle(target.tokens.len()) {
            return;
        }
        for &token in &self.end_tokens {
            // An end token that the model has no logit for never comes.
            if let Some(score) = scores.get_mut(token as usize) {
                *score = f64::NEG_INFINITY;
            }
        }
    }

    fn is_idle(&self, step: usize) -> bool {
        step >= self.min_new_tokens
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn processed(processor: &dyn LogitsProcessor, tokens: &[u32]) -> [f64; 4] {
        let mut scores = [1.0, 5.0, -3.0, 4.0];
        processor.process(&PartialTarget { input: &[3], prompt: &[0], tokens }, &mut scores);
        scores
    }

    #[test]
    fn a_repeated_token_is_penalised_once_and_the_prompt_counts() {
        assert_eq!(processed(&RepetitionPenalty(2.0), &[2, 2]), [0.5, 5.0, -6.0, 4.0]);
    }

    #[test]
    fn a_short_target_does_not_end() {
        let processor = MinNewTokens { min_new_tokens: 2, end_tokens: vec![1, 3, 99] };
        let never = f64::NEG_INFINITY;
        assert_eq!(processed(&processor, &[2]), [1.0, never, -3.0, never]);
        assert_eq!(processed(&processor, &[2, 2]), [1.0, 5.0, -3.0, 4.0]);
        assert!(!processor.is_idle(1) && processor.is_idle(2));
    }
}
