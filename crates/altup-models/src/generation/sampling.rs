use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::Sampling;
use super::likeliest::{self, LikeliestOfRow};
use super::scores::{by_rank, log_softmax, max, resolve_infinity};

/// Draws the tokens of one target.
pub(super) struct Sampler {
    sampling: Sampling,
    rng: ChaCha8Rng,
}

impl Sampler {
    /// For target number `number` of an input.
    pub(super) fn new(sampling: &Sampling, input: &[u32], number: usize) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("altup-models 2026 sampling");
        hasher.update(&sampling.seed.to_le_bytes());
        hasher.update(&(number as u64).to_le_bytes());
        for token in input {
            hasher.update(&token.to_le_bytes());
        }
        let rng = ChaCha8Rng::from_seed(hasher.finalize().into());
        Self { sampling: sampling.clone(), rng }
    }

    /// A token, by its probability; none if all scores are -inf.
    pub(super) fn sample(&mut self, scores: &[f64]) -> Option<usize> {
        self.draw(&distribution(scores, &self.sampling))
    }

    /// A token, by its probability; none if the likeliest tokens don't tell which may be drawn.
    pub(super) fn sample_of(&mut self, likeliest: LikeliestOfRow<'_>) -> Option<usize> {
        let kept = distribution_of(likeliest, &self.sampling)?;
        self.draw(&kept)
    }

    fn draw(&mut self, kept: &[(usize, f64)]) -> Option<usize> {
        // 53 random bits: a number in [0, 1).
        let mut rest = (self.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        for &(token, probability) in kept {
            rest -= probability;
            if rest < 0.0 {
                return Some(token);
            }
        }
        // Rounding may leave a rest behind the last.
        kept.last().map(|&(token, _)| token)
    }
}

/// How many of the likeliest tokens tell which may be drawn, always or mostly; none if only all of them do.
pub(super) fn likeliest_needed(sampling: &Sampling, vocab_size: usize) -> Option<usize> {
    let most = likeliest::AT_MOST.min(vocab_size);
    match sampling.top_k {
        Some(k) => (k <= most).then_some(k),
        None => (sampling.top_p < 1.0).then_some(most),
    }
}

/// As [`distribution`], by as many of the likeliest tokens as are [needed](likeliest_needed); none if these are too few.
fn distribution_of(
    likeliest: LikeliestOfRow<'_>,
    sampling: &Sampling,
) -> Option<Vec<(usize, f64)>> {
    let max = likeliest.tokens().next()?.1;
    let below_max = |logit: f64| (logit - max) / sampling.temperature;
    let mut kept: Vec<(usize, f64)> = likeliest
        .tokens()
        .map(|(token, logit)| (token, below_max(logit)))
        .filter(|&(_, logit)| logit > f64::NEG_INFINITY)
        .collect();
    if sampling.top_k.is_some() {
        to_probabilities(&mut kept);
    } else {
        let log_sum = likeliest.log_sum();
        kept.iter_mut().for_each(|(_, logit)| *logit = (*logit - log_sum).exp());
        let known: f64 = kept.iter().map(|(_, probability)| probability).sum();
        if known < sampling.top_p {
            return None;
        }
    }
    keep_top_p(&mut kept, sampling.top_p);
    Some(kept)
}

/// The tokens that may be drawn, the likeliest first, with their probabilities, all above 0.
fn distribution(scores: &[f64], sampling: &Sampling) -> Vec<(usize, f64)> {
    let mut scores = scores.to_vec();
    resolve_infinity(&mut scores);
    // Below the largest, so that no temperature makes one infinite.
    let max = max(&scores);
    let mut kept: Vec<(usize, f64)> = scores
        .iter()
        .map(|score| (score - max) / sampling.temperature)
        .enumerate()
        .filter(|&(_, logit)| logit > f64::NEG_INFINITY)
        .collect();
    if let Some(k) = sampling.top_k.filter(|&k| k < kept.len()) {
        kept.select_nth_unstable_by(k - 1, by_rank);
        kept.truncate(k);
    }
    kept.sort_unstable_by(by_rank);
    to_probabilities(&mut kept);
    keep_top_p(&mut kept, sampling.top_p);
    kept
}

/// Keeps as many of the likeliest as have `top_p` of the probability together, and makes theirs sum to 1.
fn keep_top_p(kept: &mut Vec<(usize, f64)>, top_p: f64) {
    kept.retain(|&(_, probability)| probability > 0.0);
    if top_p < 1.0 {
        let mut before = 0.0;
        let enough = kept.iter().position(|&(_, probability)| {
            before += probability;
            before >= top_p
        });
        kept.truncate(enough.map_or(kept.len(), |last| last + 1));
        let sum: f64 = kept.iter().map(|(_, probability)| probability).sum();
        kept.iter_mut().for_each(|(_, probability)| *probability /= sum);
    }
}

fn to_probabilities(logits: &mut [(usize, f64)]) {
    let mut values: Vec<f64> = logits.iter().map(|&(_, logit)| logit).collect();
    log_softmax(&mut values);
    for ((_, logit), value) in logits.iter_mut().zip(values) {
        *logit = value.exp();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    /// Probabilities behind Hugging Face's logits warpers.
    #[derive(Deserialize)]
    struct Reference {
        logits: Vec<Vec<f64>>,
        cases: Vec<Case>,
    }

    #[derive(Deserialize)]
    struct Case {
        settings: Settings,
        probabilities: Vec<Vec<f64>>,
    }

    #[derive(Debug, Deserialize)]
    struct Settings {
        temperature: f64,
        top_k: Option<usize>,
        top_p: Option<f64>,
    }

    #[test]
    fn probabilities_equal_hugging_face() {
        // Cargo runs tests in the folder of their package.
        let text = std::fs::read("tests/fixtures/sampling.json").unwrap();
        let reference: Reference = serde_json::from_slice(&text).unwrap();
        for Case { settings, probabilities } in &reference.cases {
            let sampling = Sampling {
                temperature: settings.temperature,
                top_k: settings.top_k,
                top_p: settings.top_p.unwrap_or(1.0),
                seed: 0,
            };
            for (logits, expected) in reference.logits.iter().zip(probabilities) {
                let mut found = vec![0.0; logits.len()];
                for (token, probability) in distribution(logits, &sampling) {
                    found[token] = probability;
                }
                for (found, expected) in found.iter().zip(expected) {
                    let kept = (*found > 0.0) == (*expected > 0.0);
                    assert!(kept && (found - expected).abs() < 1e-6, "{settings:?}");
                }
            }
        }
    }
    #[test]
    fn scores_at_the_edges_of_their_range() {
        let probabilities = |scores: &[f64], temperature| {
            distribution(scores, &Sampling { temperature, ..Sampling::default() })
        };
        let never = f64::NEG_INFINITY;
        assert_eq!(probabilities(&[never, never], 1.0), []);
        assert_eq!(
            probabilities(&[f64::INFINITY, 1e300, f64::INFINITY], 1.0),
            [(0, 0.5), (2, 0.5)]
        );
        // Only the largest is left where the temperature is nearly 0.
        assert_eq!(probabilities(&[1.0, 2.0, 1.5], 1e-310), [(1, 1.0)]);
        assert_eq!(probabilities(&[0.0, -1000.0, never], 1.0), [(0, 1.0)]);
    }
}
