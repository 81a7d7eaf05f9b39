use burn::tensor::Tensor;

use super::GenerationConfig;
use crate::T5;

/// What changes scores before a token is chosen, in the order of Hugging Face's processors.
pub(super) struct Processors {
    repetition_penalty: f64,
    min_new_tokens: usize,
    start_token: u32,
    eos_token: u32,
}

impl Processors {
    pub(super) fn new(config: &GenerationConfig, model: &T5) -> Self {
        Self {
            repetition_penalty: config.repetition_penalty,
            min_new_tokens: config.min_new_tokens,
            start_token: model.start_token(),
            eos_token: model.eos_token(),
        }
    }

    /// Whether scores of the token behind `length` generated ones stay as they are.
    pub(super) fn are_idle(&self, length: usize) -> bool {
        self.repetition_penalty == 1.0 && length >= self.min_new_tokens
    }

    /// Changes the scores of the token behind `target`: logits, or log-probabilities in a beam search.
    pub(super) fn apply(&self, scores: &mut [f64], target: &[u32]) {
        if self.repetition_penalty != 1.0 {
            let mut seen = [target, &[self.start_token]].concat();
            seen.sort_unstable();
            seen.dedup();
            for token in seen {
                let score = &mut scores[token as usize];
                *score = match *score < 0.0 {
                    true => *score * self.repetition_penalty,
                    false => *score / self.repetition_penalty,
                };
            }
        }
        if target.len() < self.min_new_tokens {
            scores[self.eos_token as usize] = f64::NEG_INFINITY;
        }
    }
}

/// The logits of each row, on the host.
///
/// # Shapes
///
/// - logits: `[rows, 1, vocab_size]`
pub(super) fn to_rows(logits: Tensor<3>) -> Vec<Vec<f64>> {
    let [_, _, vocab_size] = logits.dims();
    let values: Vec<f64> = logits.into_data().iter::<f64>().collect();
    values.chunks(vocab_size).map(<[f64]>::to_vec).collect()
}

/// The index of the largest score, the lowest of several.
pub(super) fn argmax(scores: &[f64]) -> usize {
    let mut best = 0;
    for (index, score) in scores.iter().enumerate() {
        if *score > scores[best] {
            best = index;
        }
    }
    best
}

/// Makes logits log-probabilities.
pub(super) fn log_softmax(logits: &mut [f64]) {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|logit| (logit - max).exp()).sum();
    let log_sum = max + sum.ln();
    logits.iter_mut().for_each(|logit| *logit -= log_sum);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_by_hand() {
        let processors =
            Processors { repetition_penalty: 2.0, min_new_tokens: 2, start_token: 0, eos_token: 1 };
        // Token 2 occurs twice and is penalised once; the start token counts.
        let mut scores = [1.0, 5.0, -3.0, 4.0];
        processors.apply(&mut scores, &[2, 2]);
        assert_eq!(scores, [0.5, 5.0, -6.0, 4.0]);
        let mut scores = [1.0, 5.0, -3.0, 4.0];
        processors.apply(&mut scores, &[3]);
        assert_eq!(scores, [0.5, f64::NEG_INFINITY, -3.0, 2.0]);
        assert!(!processors.are_idle(2));
    }

    #[test]
    fn log_softmax_by_hand() {
        let mut logits = [1000.0, 1000.0 + 3f64.ln()];
        log_softmax(&mut logits);
        assert!((logits[0] - 0.25f64.ln()).abs() < 1e-12, "{logits:?}");
        assert!((logits[1] - 0.75f64.ln()).abs() < 1e-12, "{logits:?}");
        assert_eq!(argmax(&[1.0, 2.0, 2.0]), 1);
    }
}
