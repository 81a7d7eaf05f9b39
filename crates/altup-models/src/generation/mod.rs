//! Generation: greedy, by sampling or by beam search, with cached keys and values.

mod beam_search;
mod logits;
mod sampling;
mod stream;

use serde::{Deserialize, Serialize};

pub use stream::{TokenStream, stream};

use crate::decoder::DecoderCache;
use crate::{ConfigError, T5};
use burn::tensor::{Bool, Int, Tensor, TensorData};

/// How targets are generated; settings have the names and the meaning of Hugging Face's
/// `GenerationConfig`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GenerationConfig {
    /// Tokens after which a target ends, whether or not with the end token. Default: 64
    pub max_new_tokens: usize,
    /// Tokens before which it doesn't end. Default: 0
    pub min_new_tokens: usize,
    /// What the logit of a token that the target has already is divided by, or multiplied with where
    /// it is negative (after [CTRL](https://arxiv.org/abs/1909.05858)). Beam search applies it to
    /// log-probabilities. The start token counts as one of the target's. Default: 1.0, no penalty
    pub repetition_penalty: f64,
    /// Targets for each input: the best of a beam search, or as many samples. Default: 1
    pub num_return_sequences: usize,
    /// How the next token is chosen. Default: greedy
    pub strategy: Strategy,
}

/// How the next token is chosen.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// Always the likeliest.
    #[default]
    Greedy,
    /// At random, by its probability.
    Sampling(Sampling),
    /// By the probability of the whole target, over several of them at once.
    BeamSearch(BeamSearch),
}

/// Settings of [`Strategy::Sampling`], applied in this order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// What logits are divided by: below 1 favours likely tokens. Default: 1.0
    pub temperature: f64,
    /// Only the k likeliest tokens are drawn from. Default: all
    pub top_k: Option<usize>,
    /// Only the likeliest tokens are drawn from that together have this probability. Default: 1.0
    pub top_p: f64,
    /// A target is a function of its input, its number among the input's targets, and this seed: it
    /// doesn't depend on the inputs beside it. Default: 0
    pub seed: u64,
}

/// Settings of [`Strategy::BeamSearch`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BeamSearch {
    /// Targets that are followed at once. Default: 4
    pub num_beams: usize,
    /// A target's score is its summed log-probability, over its length to this power: above 0 favours
    /// long targets. Default: 1.0
    pub length_penalty: f64,
    /// When an input is done. Default: heuristic
    pub early_stopping: EarlyStopping,
}

/// When a beam search is done with an input that has `num_beams` ended targets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EarlyStopping {
    /// At once (Hugging Face's `true`).
    Immediate,
    /// When the best running target, at its present length, doesn't beat the worst of them (Hugging
    /// Face's `false`).
    #[default]
    Heuristic,
    /// When no running target could beat the worst of them at any length (Hugging Face's `"never"`).
    Never,
}

/// A generated target.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// Its tokens, with the end token if it ended.
    pub tokens: Vec<u32>,
    /// Its score in a beam search: the summed log-probability over length^length_penalty, in nats.
    pub score: Option<f64>,
}

impl Default for GenerationConfig {
    fn default() -> Self {
        Self {
            max_new_tokens: 64,
            min_new_tokens: 0,
            repetition_penalty: 1.0,
            num_return_sequences: 1,
            strategy: Strategy::Greedy,
        }
    }
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 1.0, top_k: None, top_p: 1.0, seed: 0 }
    }
}

impl Default for BeamSearch {
    fn default() -> Self {
        Self { num_beams: 4, length_penalty: 1.0, early_stopping: EarlyStopping::Heuristic }
    }
}

impl GenerationConfig {
    /// Greedy decoding of at most `max_new_tokens` tokens.
    pub fn greedy(max_new_tokens: usize) -> Self {
        Self { max_new_tokens, ..Self::default() }
    }

    /// Checks the settings.
    ///
    /// # Errors
    ///
    /// Names the first that makes no sense.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let error = |field: &str, problem| Err(ConfigError { field: field.into(), problem });
        let at_least_one = |field: &str, value| match value {
            0 => error(field, "must be at least 1, not 0".into()),
            _ => Ok(()),
        };
        let positive = |field: &str, value: f64| match value {
            value if value > 0.0 && value.is_finite() => Ok(()),
            _ => error(field, format!("must be a positive number, not {value}")),
        };
        at_least_one("max_new_tokens", self.max_new_tokens)?;
        at_least_one("num_return_sequences", self.num_return_sequences)?;
        positive("repetition_penalty", self.repetition_penalty)?;
        if self.min_new_tokens > self.max_new_tokens {
            let problem = format!(
                "must be at most max_new_tokens ({}), not {}",
                self.max_new_tokens, self.min_new_tokens
            );
            return error("min_new_tokens", problem);
        }
        match &self.strategy {
            Strategy::Greedy if self.num_return_sequences > 1 => {
                let problem = "must be 1 for greedy decoding, which has one result";
                error("num_return_sequences", problem.into())
            }
            Strategy::Greedy => Ok(()),
            Strategy::Sampling(sampling) => {
                positive("temperature", sampling.temperature)?;
                at_least_one("top_k", sampling.top_k.unwrap_or(1))?;
                if !(sampling.top_p > 0.0 && sampling.top_p <= 1.0) {
                    let problem = format!("must be above 0 and at most 1, not {}", sampling.top_p);
                    return error("top_p", problem);
                }
                Ok(())
            }
            Strategy::BeamSearch(beam_search) => {
                at_least_one("num_beams", beam_search.num_beams)?;
                if !beam_search.length_penalty.is_finite() {
                    let problem = format!("must be a number, not {}", beam_search.length_penalty);
                    return error("length_penalty", problem);
                }
                if self.num_return_sequences > beam_search.num_beams {
                    let problem = format!(
                        "must be at most num_beams ({}), not {}",
                        beam_search.num_beams, self.num_return_sequences
                    );
                    return error("num_return_sequences", problem);
                }
                Ok(())
            }
        }
    }
}

/// Generates `num_return_sequences` targets for each input, the best first.
///
/// Keys and values are cached, those of the encoder's output projected once: each step runs the decoder
/// on one new position. Inputs may differ in length; each ends with the end token, as in training.
///
/// # Panics
///
/// Panics if the settings are not [valid](GenerationConfig::validate), if a token is not in the
/// vocabulary, or if a beam search has more than half as many beams as the vocabulary has tokens.
pub fn generate(model: &T5, inputs: &[Vec<u32>], config: &GenerationConfig) -> Vec<Vec<Generated>> {
    if let Err(error) = config.validate() {
        panic!("Targets can't be generated so: {error}");
    }
    if inputs.is_empty() {
        return Vec::new();
    }
    if let Strategy::BeamSearch(beams) = &config.strategy {
        return beam_search::search(model, inputs, config, beams);
    }
    let mut targets = vec![Vec::new(); inputs.len() * config.num_return_sequences];
    for step in stream(model, inputs, config) {
        for (target, token) in targets.iter_mut().zip(step) {
            target.extend(token);
        }
    }
    let generated = |tokens: &Vec<u32>| Generated { tokens: tokens.clone(), score: None };
    let of_an_input = targets.chunks(config.num_return_sequences);
    of_an_input.map(|targets| targets.iter().map(generated).collect()).collect()
}

/// A cache that attends to the encoded inputs, each of which has `copies` rows in it.
fn start(model: &T5, inputs: &[Vec<u32>], copies: usize) -> DecoderCache {
    let (input_ids, padding) = pad(model, inputs);
    let memory = model.encode(input_ids, padding.as_ref());
    let mut cache = model.decoder.start(&memory);
    if copies > 1 {
        let rows = (0..inputs.len()).flat_map(|row| std::iter::repeat_n(row as i32, copies));
        cache.select_rows(&index(rows.collect(), model));
    }
    cache
}

fn index(rows: Vec<i32>, model: &T5) -> Tensor<1, Int> {
    let count = rows.len();
    Tensor::from_data(TensorData::new(rows, [count]), &model.device())
}

/// One token for each row, as the decoder takes it: `[rows, 1]`.
fn column(tokens: impl Iterator<Item = u32>, model: &T5) -> Tensor<2, Int> {
    let tokens: Vec<i32> = tokens.map(|token| token as i32).collect();
    let rows = tokens.len();
    Tensor::from_data(TensorData::new(tokens, [rows, 1]), &model.device())
}

/// The inputs as one tensor `[batch_size, longest]`, and where it is padding, if anywhere.
fn pad(model: &T5, inputs: &[Vec<u32>]) -> (Tensor<2, Int>, Option<Tensor<2, Bool>>) {
    let longest = inputs.iter().map(Vec::len).max().unwrap_or(0).max(1);
    let ids: Vec<i32> = inputs
        .iter()
        .flat_map(|input| {
            let padding = std::iter::repeat_n(0, longest - input.len());
            input.iter().map(|&token| token as i32).chain(padding)
        })
        .collect();
    let ids = Tensor::from_data(TensorData::new(ids, [inputs.len(), longest]), &model.device());
    let padded = inputs.iter().any(|input| input.len() < longest || input.contains(&0));
    let padding = padded.then(|| ids.clone().equal_elem(0));
    (ids, padding)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_make_no_sense_are_named() {
        let refused = |json: &str| {
            let config: GenerationConfig = serde_json::from_str(json).unwrap();
            config.validate().unwrap_err().to_string()
        };
        for (json, message) in [
            (r#"{"max_new_tokens": 0}"#, "max_new_tokens must be at least 1, not 0"),
            (
                r#"{"min_new_tokens": 65}"#,
                "min_new_tokens must be at most max_new_tokens (64), not 65",
            ),
            (
                r#"{"repetition_penalty": -1.0}"#,
                "repetition_penalty must be a positive number, not -1",
            ),
            (
                r#"{"num_return_sequences": 2}"#,
                "num_return_sequences must be 1 for greedy decoding, which has one result",
            ),
            (
                r#"{"strategy": {"sampling": {"temperature": 0.0}}}"#,
                "temperature must be a positive number, not 0",
            ),
            (r#"{"strategy": {"sampling": {"top_k": 0}}}"#, "top_k must be at least 1, not 0"),
            (
                r#"{"strategy": {"sampling": {"top_p": 1.5}}}"#,
                "top_p must be above 0 and at most 1, not 1.5",
            ),
            (
                r#"{"strategy": {"beam_search": {"num_beams": 0}}}"#,
                "num_beams must be at least 1, not 0",
            ),
            (
                r#"{"num_return_sequences": 5, "strategy": {"beam_search": {}}}"#,
                "num_return_sequences must be at most num_beams (4), not 5",
            ),
        ] {
            assert_eq!(refused(json), message);
        }
    }
}
