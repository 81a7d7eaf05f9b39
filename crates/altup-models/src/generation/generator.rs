use altup_backend::is_gpu;
use burn::tensor::{Int, Tensor, TensorData};
use std::sync::Arc;

use super::processor::{MinNewTokens, RepetitionPenalty};
use super::scores::has_nan;
use super::{
    Decode, GenerationConfig, GenerationError, LogitsProcessor, PartialTarget, Strategy,
    TokenStream, beam_search,
};
use crate::ConfigError;

/// A generated target.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// Its tokens, with the end token if it ended.
    pub tokens: Vec<u32>,
    /// Its score in a beam search: the summed log-probability over length^length_penalty, in nats.
    pub score: Option<f64>,
}

/// Generates `num_return_sequences` targets for each input, the best first. See
/// [`Generator::generate`].
///
/// # Errors
///
/// If the settings make no sense, and as [`Generator::generate`].
pub fn generate<D: Decode>(
    decoder: &D,
    inputs: &[Vec<u32>],
    config: &GenerationConfig,
) -> Result<Vec<Vec<Generated>>, GenerationError> {
    Generator::new(decoder, config)?.generate(inputs)
}

/// Generates targets token by token. See [`Generator::stream`].
///
/// # Errors
///
/// If the settings make no sense, and as [`Generator::stream`].
pub fn stream<'a, D: Decode>(
    decoder: &'a D,
    inputs: &[Vec<u32>],
    config: &GenerationConfig,
) -> Result<TokenStream<'a, D>, GenerationError> {
    Generator::new(decoder, config)?.stream(inputs)
}

/// Generates with a model, settings, and your own logits processors.
///
/// ```
/// use altup_models::{GenerationConfig, Generator, PartialTarget, size};
/// use burn::tensor::Device;
///
/// let config = altup_models::T5Config { vocab_size: 64, ..size("tiny").unwrap() };
/// let model = config.init(0, &Device::flex());
/// // Only even tokens.
/// let generator = Generator::new(&model, &GenerationConfig::greedy(8))?.with_processor(
///     |_: &PartialTarget, scores: &mut [f64]| {
///         scores.iter_mut().skip(1).step_by(2).for_each(|score| *score = f64::NEG_INFINITY);
///     },
/// );
/// let targets = generator.generate(&[vec![5, 6, 1]])?;
/// assert!(targets[0][0].tokens.iter().all(|token| token % 2 == 0));
/// # Ok::<(), altup_models::GenerationError>(())
/// ```
pub struct Generator<'a, D> {
    decoder: &'a D,
    pub(super) config: GenerationConfig,
    end_tokens: Vec<u32>,
    processors: Vec<Arc<dyn LogitsProcessor + 'a>>,
    /// Whether the likeliest tokens are found on the device: on a GPU, where it costs less than to read all logits. A CPU
    /// has them at hand.
    pub(super) selects_on_device: bool,
}

impl<D> Clone for Generator<'_, D> {
    fn clone(&self) -> Self {
        Self {
            decoder: self.decoder,
            config: self.config.clone(),
            end_tokens: self.end_tokens.clone(),
            processors: self.processors.clone(),
            selects_on_device: self.selects_on_device,
        }
    }
}

impl<'a, D: Decode> Generator<'a, D> {
    /// With the processors that the settings ask for: first the repetition penalty, then the minimum length, as in
    /// Hugging Face transformers.
    ///
    /// # Errors
    ///
    /// [`GenerationError::Config`] if the settings are not [valid](GenerationConfig::validate), or if
    /// a beam search has more than half as many beams as the vocabulary has tokens.
    pub fn new(decoder: &'a D, config: &GenerationConfig) -> Result<Self, GenerationError> {
        config.validate()?;
        let half = decoder.vocab_size() / 2;
        if let Strategy::BeamSearch(settings) = &config.strategy
            && settings.num_beams > half
        {
            let problem = format!(
                "must be at most half of the vocabulary ({}), not {}",
                decoder.vocab_size(),
                settings.num_beams
            );
            return Err(ConfigError { field: "num_beams".into(), problem }.into());
        }
        let end_tokens = decoder.end_tokens();
        let mut generator = Self {
            decoder,
            config: config.clone(),
            end_tokens,
            processors: Vec::new(),
            selects_on_device: is_gpu(&decoder.device()),
        };
        if generator.config.repetition_penalty != 1.0 {
            let penalty = RepetitionPenalty(generator.config.repetition_penalty);
            generator = generator.with_processor(penalty);
        }
        if generator.config.min_new_tokens > 0 {
            let processor = MinNewTokens {
                min_new_tokens: generator.config.min_new_tokens,
                end_tokens: generator.end_tokens.clone(),
            };
            generator = generator.with_processor(processor);
        }
        Ok(generator)
    }

    /// Adds a processor, which runs after those added before. Temperature, top-k and top-p come last.
    pub fn with_processor(mut self, processor: impl LogitsProcessor + 'a) -> Self {
        self.processors.push(Arc::new(processor));
        self
    }

    /// Generates `num_return_sequences` targets for each input, the best first. There are fewer of a
    /// beam search that finds fewer with a probability above 0.
    ///
    /// Inputs may differ in length. Those of a T5 end with the end token, as in training.
    ///
    /// A logit of +inf takes all of the probability, and several share it equally: greedy decoding
    /// chooses the lowest token of them, sampling draws one, a beam search scores each with its share.
    ///
    /// # Errors
    ///
    /// If an input holds a token that is not in the vocabulary, or makes an empty
    /// [prompt](Decode::prompt); if logits or processed scores of a target that has not ended hold
    /// NaN; if all of them are -inf, in a beam search those of all beams.
    ///
    /// # Panics
    ///
    /// Panics if the decoder gives logits of another shape than [`Decode::step`] says.
    pub fn generate(&self, inputs: &[Vec<u32>]) -> Result<Vec<Vec<Generated>>, GenerationError> {
        if let Strategy::BeamSearch(settings) = &self.config.strategy {
            return beam_search::search(self, inputs, settings);
        }
        let mut stream = self.stream(inputs)?;
        for step in &mut stream {
            step?;
        }
        let mut targets = stream.into_targets().map(|tokens| Generated { tokens, score: None });
        let copies = self.config.num_return_sequences;
        Ok(inputs.iter().map(|_| targets.by_ref().take(copies).collect()).collect())
    }

    /// Generates targets token by token, greedily or by sampling: `num_return_sequences` for each
    /// input, those of an input next to each other.
    ///
    /// # Errors
    ///
    /// [`GenerationError::Config`] for a beam search, whose targets are not known before its end, and
    /// the errors of [`generate`](Self::generate): those of inputs here, the others from the stream.
    pub fn stream(&self, inputs: &[Vec<u32>]) -> Result<TokenStream<'a, D>, GenerationError> {
        TokenStream::new(self.clone(), inputs)
    }

    /// What the decoder reads before each target.
    pub(super) fn prompts(&self, inputs: &[Vec<u32>]) -> Result<Vec<Vec<u32>>, GenerationError> {
        let vocab_size = self.decoder.vocab_size();
        let prompt = |(input, tokens): (usize, &Vec<u32>)| {
            let prompt = self.decoder.prompt(tokens);
            if prompt.is_empty() {
                return Err(GenerationError::EmptyPrompt { input });
            }
            match tokens.iter().chain(&prompt).find(|&&token| token as usize >= vocab_size) {
                Some(&token) => Err(GenerationError::UnknownToken { input, token, vocab_size }),
                None => Ok(prompt),
            }
        };
        inputs.iter().enumerate().map(prompt).collect()
    }

    pub(super) fn start(&self, inputs: &[Vec<u32>], copies: usize) -> D::Cache {
        self.decoder.start(inputs, copies)
    }

    /// The logits of the token that follows each row's token.
    ///
    /// # Shapes
    ///
    /// - output: `[rows, vocab_size]`
    pub(super) fn step(&self, tokens: &[u32], cache: &mut D::Cache) -> Tensor<2> {
        let (rows, vocab_size) = (tokens.len(), self.decoder.vocab_size());
        let logits = self.decoder.step(self.tensor(tokens, [rows, 1]), cache);
        let shape = logits.dims();
        assert!(
            shape == [rows, vocab_size],
            "A decoder's logits must be [rows, vocab_size] = [{rows}, {vocab_size}]. Got {shape:?}"
        );
        logits
    }

    pub(super) fn reorder(&self, cache: &mut D::Cache, rows: &[u32]) {
        self.decoder.reorder(cache, &self.tensor(rows, [rows.len()]));
    }

    fn tensor<const N: usize>(&self, values: &[u32], shape: [usize; N]) -> Tensor<N, Int> {
        let values: Vec<i32> = values.iter().map(|&value| value as i32).collect();
        Tensor::from_data(TensorData::new(values, shape), &self.decoder.device())
    }

    pub(super) fn ends(&self, token: u32) -> bool {
        self.end_tokens.contains(&token)
    }

    pub(super) fn num_end_tokens(&self) -> usize {
        self.end_tokens.len()
    }

    /// Whether no processor changes scores of targets with `step` tokens.
    pub(super) fn is_idle(&self, step: usize) -> bool {
        self.processors.iter().all(|processor| processor.is_idle(step))
    }

    /// Refuses logits with NaN.
    pub(super) fn check(
        &self,
        input: usize,
        step: usize,
        logits: &[f64],
    ) -> Result<(), GenerationError> {
        match has_nan(logits) {
            true => Err(GenerationError::NanLogits { input, step }),
            false => Ok(()),
        }
    }

    /// Runs the processors over the scores of the token that follows `target`; the scores hold no NaN.
    pub(super) fn process(
        &self,
        input: usize,
        target: &PartialTarget<'_>,
        scores: &mut [f64],
    ) -> Result<(), GenerationError> {
        for processor in &self.processors {
            processor.process(target, scores);
        }
        match !self.processors.is_empty() && has_nan(scores) {
            true => Err(GenerationError::NanScores { input, step: target.tokens.len() }),
            false => Ok(()),
        }
    }
}
