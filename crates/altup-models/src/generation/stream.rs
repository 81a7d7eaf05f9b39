use burn::tensor::{Int, Tensor};

use super::logits::{Processors, argmax, to_rows};
use super::sampling::Sampler;
use super::{GenerationConfig, Strategy, column, start};
use crate::T5;
use crate::decoder::DecoderCache;

/// What the decoder reads behind a target's end; nothing that it makes of it is used.
const BEHIND_THE_END: u32 = 0;

/// The tokens of targets as they are generated. See [`stream`].
pub struct TokenStream<'a> {
    model: &'a T5,
    cache: DecoderCache,
    processors: Processors,
    /// What the decoder reads in the next step: `[targets, 1]`.
    next: Tensor<2, Int>,
    targets: Vec<Target>,
    steps: usize,
    max_new_tokens: usize,
}

struct Target {
    tokens: Vec<u32>,
    ended: bool,
    sampler: Option<Sampler>,
}

/// Generates targets token by token, greedily or by sampling: `num_return_sequences` for each input,
/// those of an input next to each other.
///
/// Each item is a step: the new token of every target, none for those that have ended. A target's last
/// token is the end token, unless it is cut off at `max_new_tokens`.
///
/// # Panics
///
/// Panics if the settings are not [valid](GenerationConfig::validate), ask for a beam search, whose
/// targets are not known before its end, or if a token is not in the vocabulary.
pub fn stream<'a>(
    model: &'a T5,
    inputs: &[Vec<u32>],
    config: &GenerationConfig,
) -> TokenStream<'a> {
    if let Err(error) = config.validate() {
        panic!("Targets can't be generated so: {error}");
    }
    let sampling = match &config.strategy {
        Strategy::Greedy => None,
        Strategy::Sampling(sampling) => Some(sampling),
        Strategy::BeamSearch(_) => panic!("A beam search can't be streamed."),
    };
    let copies = config.num_return_sequences;
    let target = |input: &[u32], number| Target {
        tokens: Vec::new(),
        ended: false,
        sampler: sampling.map(|sampling| Sampler::new(sampling, input, number)),
    };
    let targets: Vec<Target> = inputs
        .iter()
        .flat_map(|input| (0..copies).map(move |number| (input, number)))
        .map(|(input, number)| target(input, number))
        .collect();
    TokenStream {
        model,
        cache: start(model, inputs, copies),
        processors: Processors::new(config, model),
        next: model.start_tokens(targets.len()),
        targets,
        steps: 0,
        max_new_tokens: config.max_new_tokens,
    }
}

impl TokenStream<'_> {
    /// The next token of every target, whether or not it has ended.
    fn choose(&mut self) -> Vec<u32> {
        let logits = self.model.decode(self.next.clone(), &mut self.cache);
        let greedy = self.targets.iter().all(|target| target.sampler.is_none());
        if greedy && self.processors.are_idle(self.steps) {
            // Chosen on the device: only the tokens come to the host.
            return logits.argmax(2).into_data().iter::<u32>().collect();
        }
        let rows = to_rows(logits);
        let choose = |(target, mut scores): (&mut Target, Vec<f64>)| {
            self.processors.apply(&mut scores, &target.tokens);
            match &mut target.sampler {
                Some(sampler) => sampler.sample(&scores) as u32,
                None => argmax(&scores) as u32,
            }
        };
        self.targets.iter_mut().zip(rows).map(choose).collect()
    }
}

impl Iterator for TokenStream<'_> {
    type Item = Vec<Option<u32>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.steps == self.max_new_tokens || self.targets.iter().all(|target| target.ended) {
            return None;
        }
        let eos = self.model.eos_token();
        let chosen = self.choose();
        self.steps += 1;
        let step = self.targets.iter_mut().zip(chosen).map(|(target, token)| {
            if target.ended {
                return None;
            }
            target.tokens.push(token);
            target.ended = token == eos;
            Some(token)
        });
        let step: Vec<Option<u32>> = step.collect();
        self.next = column(step.iter().map(|token| token.unwrap_or(BEHIND_THE_END)), self.model);
        Some(step)
    }
}
