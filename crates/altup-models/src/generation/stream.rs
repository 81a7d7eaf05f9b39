use burn::tensor::{Int, Tensor, TensorData};

use super::likeliest::Likeliest;
use super::sampling::{Sampler, likeliest_needed};
use super::scores::{argmax, argmax_of_finite, to_host};
use super::{Decode, GenerationError, Generator, PartialTarget, Strategy};
use crate::ConfigError;

/// What rows read whose target has ended.
pub(super) const BEHIND_THE_END: u32 = 0;

/// The tokens of targets as they are generated. See [`Generator::stream`].
///
/// Each item is a step: the new token of every target, none for those that have ended. A target's last
/// token is an end token, unless it is cut off at `max_new_tokens`. An error is the last item.
pub struct TokenStream<'a, D: Decode> {
    generator: Generator<'a, D>,
    inputs: Vec<Vec<u32>>,
    prompts: Vec<Vec<u32>>,
    targets: Vec<Target>,
    /// Made in the first step: of no inputs there is none.
    cache: Option<D::Cache>,
    /// What each row reads in the next step.
    next: Vec<u32>,
    /// The number of tokens that targets have which have not ended.
    step: usize,
    failed: bool,
}

struct Target {
    input: usize,
    tokens: Vec<u32>,
    ended: bool,
    sampler: Option<Sampler>,
}

impl<'a, D: Decode> TokenStream<'a, D> {
    pub(super) fn new(
        generator: Generator<'a, D>,
        inputs: &[Vec<u32>],
    ) -> Result<Self, GenerationError> {
        let sampling = match &generator.config.strategy {
            Strategy::Greedy => None,
            Strategy::Sampling(sampling) => Some(sampling),
            Strategy::BeamSearch(_) => {
                let problem = "can't be a beam search in a stream".into();
                return Err(ConfigError { field: "strategy".into(), problem }.into());
            }
        };
        let prompts = generator.prompts(inputs)?;
        let target = |input: usize, number| Target {
            input,
            tokens: Vec::new(),
            ended: false,
            sampler: sampling.map(|sampling| Sampler::new(sampling, &inputs[input], number)),
        };
        let copies = generator.config.num_return_sequences;
        let targets: Vec<Target> = (0..inputs.len())
            .flat_map(|input| (0..copies).map(move |number| (input, number)))
            .map(|(input, number)| target(input, number))
            .collect();
        let next = first_tokens(&prompts, copies);
        let inputs = inputs.to_vec();
        Ok(Self { generator, inputs, prompts, targets, cache: None, next, step: 0, failed: false })
    }

    /// The tokens of every target.
    pub(super) fn into_targets(self) -> impl Iterator<Item = Vec<u32>> {
        self.targets.into_iter().map(|target| target.tokens)
    }

    /// The next token of every target that has not ended.
    fn choose(&mut self) -> Result<Vec<Option<u32>>, GenerationError> {
        let Self { generator, inputs, prompts, targets, cache, step, .. } = self;
        let copies = generator.config.num_return_sequences;
        let cache = cache.get_or_insert_with(|| generator.start(inputs, copies));
        let logits = generator.step(&self.next, cache);
        let [rows, vocab_size] = logits.dims();
        let mut chosen = vec![None; rows];
        if generator.is_idle(*step) {
            choose_by_few_values(generator, targets, &logits, &mut chosen);
        }
        let open = |row: &usize| !targets[*row].ended && chosen[*row].is_none();
        let open: Vec<usize> = (0..rows).filter(open).collect();
        let mut scores = rows_to_host(logits, &open);
        for (&row, scores) in open.iter().zip(scores.chunks_exact_mut(vocab_size)) {
            let target = &mut targets[row];
            let input = target.input;
            let so_far = PartialTarget {
                input: &inputs[input],
                prompt: &prompts[input],
                tokens: &target.tokens,
            };
            generator.check(input, *step, scores)?;
            generator.process(input, &so_far, scores)?;
            chosen[row] = match &mut target.sampler {
                Some(sampler) => sampler.sample(scores),
                None => argmax(scores),
            };
            if chosen[row].is_none() {
                return Err(GenerationError::NoTokenLeft { input, step: *step });
            }
        }
        Ok(chosen.into_iter().map(|token| token.map(|token| token as u32)).collect())
    }

    fn advance(&mut self) -> Result<Vec<Option<u32>>, GenerationError> {
        let chosen = self.choose()?;
        for (target, token) in self.targets.iter_mut().zip(&chosen) {
            target.tokens.extend(token);
            target.ended |= token.is_some_and(|token| self.generator.ends(token));
        }
        self.next = chosen.iter().map(|token| token.unwrap_or(BEHIND_THE_END)).collect();
        self.step += 1;
        Ok(chosen)
    }
}

/// Fills in the tokens of targets that follow from few values, which are chosen on the device: the largest logit of a row,
/// or on a GPU its likeliest tokens. A token that doesn't is none, as are those of targets that have ended.
fn choose_by_few_values<D: Decode>(
    generator: &Generator<'_, D>,
    targets: &mut [Target],
    logits: &Tensor<2>,
    chosen: &mut [Option<usize>],
) {
    let [_, vocab_size] = logits.dims();
    let running = |row: usize| !targets[row].ended;
    match &generator.config.strategy {
        Strategy::Sampling(sampling) if generator.selects_on_device => {
            let found = likeliest_needed(sampling, vocab_size).and_then(|count| {
                Likeliest::find(logits.clone(), count, sampling.temperature, running)
            });
            let Some(found) = found else { return };
            for (row, (target, chosen)) in targets.iter_mut().zip(chosen).enumerate() {
                let sampler = target.sampler.as_mut().filter(|_| !target.ended);
                *chosen = sampler.and_then(|sampler| sampler.sample_of(found.row(row)));
            }
        }
        Strategy::Greedy => {
            let Some(largest) = argmax_of_finite(logits.clone(), running) else { return };
            for (row, (chosen, token)) in chosen.iter_mut().zip(largest).enumerate() {
                *chosen = running(row).then_some(token as usize);
            }
        }
        Strategy::Sampling(_) | Strategy::BeamSearch(_) => {}
    }
}

/// The values of some rows, on the host.
fn rows_to_host(logits: Tensor<2>, rows: &[usize]) -> Vec<f64> {
    let [all, _] = logits.dims();
    match rows.len() {
        0 => Vec::new(),
        some if some == all => to_host(logits),
        some => {
            let rows = rows.iter().map(|&row| row as i32).collect();
            let rows = TensorData::new(rows, [some]);
            let rows = Tensor::<1, Int>::from_data(rows, &logits.device());
            to_host(logits.select(0, rows))
        }
    }
}

impl<D: Decode> Iterator for TokenStream<'_, D> {
    type Item = Result<Vec<Option<u32>>, GenerationError>;

    fn next(&mut self) -> Option<Self::Item> {
        let is_done = self.failed
            || self.step == self.generator.config.max_new_tokens
            || self.targets.iter().all(|target| target.ended);
        if is_done {
            return None;
        }
        let step = self.advance();
        self.failed = step.is_err();
        Some(step)
    }
}

/// What `copies` rows for each input read in the first step.
pub(super) fn first_tokens(prompts: &[Vec<u32>], copies: usize) -> Vec<u32> {
    let last = prompts.iter().filter_map(|prompt| prompt.last());
    last.flat_map(|&token| std::iter::repeat_n(token, copies)).collect()
}
