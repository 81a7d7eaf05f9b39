use burn::module::{Initializer, Param};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Tensor};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, Normal};

use crate::parameters::{ParameterInfo, ParameterMapper, Role, map_parameters, with_values};
use crate::{T5, T5Config};

/// Normally distributed around 0.
pub(crate) fn normal(std: f64) -> Initializer {
    Initializer::Normal { mean: 0.0, std }
}

/// A projection without bias. Its weight stays unallocated until it is read, or [`initialize`] or a model
/// directory fills it.
pub(crate) fn projection(d_input: usize, d_output: usize, std: f64, device: &Device) -> Linear {
    LinearConfig::new(d_input, d_output).with_bias(false).with_initializer(normal(std)).init(device)
}

/// Draws every parameter as T5 initialises it.
///
/// Standard deviations, times `initializer_factor` (Hugging Face's `_init_weights`, after Mesh
/// TensorFlow): embedding 1; query (d_model·d_kv)^−½; key, value, gate and hidden projections
/// fan_in^−½, and so experts and routers; attention output (num_heads·d_kv)^−½; relative position bias d_model^−½. An untied
/// output layer gets fan_in^−½ as in Mesh TensorFlow, not Hugging Face's 1, from which the loss
/// starts far above that of a uniform guess. Norms start at the factor itself, AltUp at p = I,
/// g = 1.
///
/// A parameter's values depend on the seed, its name and its size alone, and are drawn on the host:
/// they are the same on every backend, and models that share a parameter (a dense T5 and its AltUp)
/// start from the same one.
pub(crate) fn initialize(model: T5, config: &T5Config, seed: u64, device: &Device) -> T5 {
    initialize_some(model, config, seed, device, |_| true)
}

/// As [`initialize`], but draws only the selected parameters.
pub(crate) fn initialize_some(
    model: T5,
    config: &T5Config,
    seed: u64,
    device: &Device,
    select: impl FnMut(&ParameterInfo) -> bool,
) -> T5 {
    map_parameters(model, &mut Initialize { config, seed, device, select })
}

struct Initialize<'a, S> {
    config: &'a T5Config,
    seed: u64,
    device: &'a Device,
    select: S,
}

enum Start {
    /// Normally distributed around 0 with this standard deviation.
    Normal(f64),
    Constant(f64),
    /// As the module was built.
    Unchanged,
}

impl Start {
    fn of(role: Role, fan_in: usize, config: &T5Config) -> Self {
        let factor = config.initializer_factor;
        let inverse_sqrt = |width: usize| Self::Normal(factor * (width as f64).powf(-0.5));
        match role {
            Role::EmbeddingTable => Self::Normal(factor),
            Role::SubLayerNorm | Role::FinalNorm => Self::Constant(factor),
            Role::PositionBias => inverse_sqrt(config.d_model),
            Role::Query(_) => inverse_sqrt(config.d_model * config.d_kv),
            Role::OutputTable
            | Role::Key(_)
            | Role::Value(_)
            | Role::AttentionOutput(_)
            | Role::FeedForwardInput
            | Role::FeedForwardOutput
            | Role::Router
            | Role::ExpertsInput
            | Role::ExpertsOutput => inverse_sqrt(fan_in),
            Role::PredictionCoefs
            | Role::CorrectionCoefs
            | Role::SequencePredictionCoefs
            | Role::SequenceCorrectionCoef => Self::Unchanged,
        }
    }
}

impl<S: FnMut(&ParameterInfo) -> bool> ParameterMapper for Initialize<'_, S> {
    fn map<const D: usize>(
        &mut self,
        info: &ParameterInfo,
        param: Param<Tensor<D>>,
    ) -> Param<Tensor<D>> {
        if !(self.select)(info) {
            return param;
        }
        let size = info.size();
        let values = match Start::of(info.role, fan_in(&param.lazy_shape()), self.config) {
            Start::Unchanged => return param,
            Start::Constant(value) => vec![value as f32; size],
            Start::Normal(std) => {
                let mut rng = ChaCha8Rng::from_seed(parameter_seed(self.seed, &info.name));
                let normal = Normal::new(0.0, std).expect("standard deviations are finite");
                (0..size).map(|_| normal.sample(&mut rng) as f32).collect()
            }
        };
        with_values(param, values, self.device)
    }
}

/// Inputs of a projection `[in, out]`, or of each of several `[…, in, out]`.
fn fan_in(shape: &[usize]) -> usize {
    shape[shape.len().saturating_sub(2)]
}

/// A seed of its own for each parameter name.
fn parameter_seed(seed: u64, name: &str) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.update(name.as_bytes());
    hasher.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        AltUpModelConfig, EncoderBlock, FeedForward, FeedForwardLayer, MoeConfig, MoeMode, size,
    };
    use altup_core::{BlockSelection, Widening};

    fn spread<const D: usize>(tensor: Tensor<D>) -> f64 {
        tensor.square().mean().sqrt().into_scalar::<f64>()
    }

    #[test]
    fn spreads_are_t5s() {
        let device = Device::flex();
        let config = T5Config { vocab_size: 512, ..size("tiny").unwrap() };
        let model = config.init(7, &device);
        let attention = &model.encoder.blocks[0].self_attention.attention;
        let (width, inner) = (config.d_model as f64, (config.num_heads * config.d_kv) as f64);
        let close = |value: f64, expected: f64| {
            assert!((value / expected - 1.0).abs() < 0.05, "{value} is not near {expected}");
        };
        close(spread(model.embedding.weight.val()), 1.0);
        close(spread(attention.query.weight.val()), (width * config.d_kv as f64).powf(-0.5));
        close(spread(attention.key.weight.val()), width.powf(-0.5));
        close(spread(attention.output.weight.val()), inner.powf(-0.5));
    }

    /// [`initialize`] draws a model's values, the layers' own configurations those of a layer alone.
    #[test]
    fn layers_on_their_own_start_with_the_same_spreads() {
        let device = Device::flex();
        let moe = MoeConfig::new(4, 96, MoeMode::Partial);
        let config = T5Config { vocab_size: 512, moe: Some(moe), ..size("tiny").unwrap() };
        let model = config.init(7, &device);
        let of_model = &model.encoder.blocks[0];
        let alone = config.encoder_block(0).init(&device);
        let spreads = |block: &EncoderBlock| {
            let attention = &block.self_attention.attention;
            let FeedForwardLayer { feed_forward, moe, .. } = &block.feed_forward;
            let (Some(FeedForward::GatedGelu(network)), Some(moe)) = (feed_forward, moe) else {
                panic!("a gated network and experts")
            };
            [
                spread(attention.query.weight.val()),
                spread(attention.key.weight.val()),
                spread(attention.value.weight.val()),
                spread(attention.output.weight.val()),
                spread(network.wi_0.weight.val()),
                spread(network.wi_1.weight.val()),
                spread(network.wo.weight.val()),
                spread(moe.router.weight.val()),
                spread(moe.experts.wi.val()),
                spread(moe.experts.wo.val()),
                spread(block.feed_forward.norm.gamma.val()),
            ]
        };
        let pairs = spreads(of_model).into_iter().zip(spreads(&alone));
        for (number, (of_model, alone)) in pairs.enumerate() {
            // The smallest, a router, has 4 values for each of the width's.
            assert!((of_model / alone - 1.0).abs() < 0.15, "{number}: {of_model}, {alone}");
        }
    }

    #[test]
    #[allow(deprecated)] // Burn will drop ndarray; it is tested while it ships.
    fn dense_and_altup_start_from_the_same_layers_on_every_backend() {
        let dense = T5Config { vocab_size: 256, ..size("tiny").unwrap() };
        let altup = T5Config {
            altup: Some(AltUpModelConfig {
                num_blocks: 2,
                selection: BlockSelection::Alternating,
                widening: Widening::Embedding,
                encoder_sequence: None,
            }),
            ..dense.clone()
        };
        let weight = |config: &T5Config, device: &Device| {
            let model = config.init(7, device);
            model.decoder.blocks[1].self_attention.attention.key.weight.val().into_data()
        };
        let reference = weight(&dense, &Device::flex());
        weight(&altup, &Device::flex()).assert_eq(&reference, true);
        let other_seed = dense.init(8, &Device::flex());
        let other = other_seed.decoder.blocks[1].self_attention.attention.key.weight.val();
        assert_ne!(other.into_data(), reference);
        #[cfg(feature = "ndarray")]
        weight(&dense, &Device::ndarray()).assert_eq(&reference, true);
    }
}
