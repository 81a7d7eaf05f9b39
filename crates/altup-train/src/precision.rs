//! The type that a model computes in.
//!
//! In bf16 the weights of record stay f32. Each pass runs on a copy of them in bf16, whose gradients go
//! back to f32 before the optimizer adds them to the weights: a step that is a small part of a weight
//! would be lost in bf16's 8 bits. The model itself takes softmax, the norms' means, the router and the
//! loss in f32 whatever its weights are.
//!
//! Decoding a token takes as long as reading the weights does. `bf16-weights` halves their bytes: those of
//! the projections are stored in bf16, and everything is computed in f32.

use altup_backend::is_gpu;
use altup_models::{ParameterInfo, ParameterMapper, Role, T5, map_parameters};
use burn::module::{Module, Param};
use burn::optim::GradientsParams;
use burn::tensor::{DType, Device, Tensor};
use burn::train::{TrainOutput, TrainStep};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::learner::{BatchLoss, DeviceBatch, Learner};
use altup_optim::map_gradients;

/// The type of weights and activations while a model computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32 bits
    #[default]
    F32,
    /// 16 bits with the range of f32, from weights that are kept in f32
    Bf16,
    /// 32 bits, from weights stored in 16: for inference, and faster where reading them is what takes time
    #[serde(rename = "bf16-weights")]
    #[value(name = "bf16-weights")]
    Bf16Weights,
}

/// A device that does not compute so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrecisionError {
    /// It has no bf16.
    #[error(
        "this device does not compute in bf16; `altup backends` lists those that do. Use \
         training.precision=f32 or --precision f32 here"
    )]
    NoBf16,
    /// A GPU would make all weights f32 again for each product.
    #[error(
        "--precision bf16-weights is for decoding on a CPU, and this device is a GPU: use --precision bf16, or f32"
    )]
    WeightsOnGpu,
}

impl Precision {
    /// Its name on the command line and in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Bf16Weights => "bf16-weights",
        }
    }

    /// The type of the matrix products in a pass.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 | Self::Bf16Weights => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }

    /// # Errors
    ///
    /// If the device does not compute in this type, or gains nothing by it.
    pub fn check(self, device: &Device) -> Result<(), PrecisionError> {
        match self {
            Self::Bf16Weights if is_gpu(device) => Err(PrecisionError::WeightsOnGpu),
            Self::Bf16 | Self::Bf16Weights if !device.supports_dtype(DType::BF16) => {
                Err(PrecisionError::NoBf16)
            }
            _ => Ok(()),
        }
    }

    /// The model to compute with: itself, or a copy whose parameters are in bf16 and have gradients of
    /// their own under the same ids.
    pub fn to_compute(self, model: &T5) -> T5 {
        let in_bf16 = |select| map_parameters(model.clone(), &mut ToBf16 { select });
        match self {
            Self::F32 => model.clone(),
            Self::Bf16 => in_bf16(|_| true),
            Self::Bf16Weights => in_bf16(is_halved),
        }
    }

    /// Whether a model can be trained so.
    pub fn trains(self) -> bool {
        self != Self::Bf16Weights
    }

    /// A step's loss, and its gradients in f32.
    pub fn step(self, learner: &Learner, batch: DeviceBatch) -> TrainOutput<BatchLoss> {
        let mut output = Learner { model: self.to_compute(&learner.model) }.step(batch);
        if self == Self::Bf16 {
            to_f32(learner, &mut output.grads);
        }
        output
    }
}

/// Whether `bf16-weights` stores a parameter in bf16: the projections, of which decoding reads most. Not the
/// routers, whose choices would change.
fn is_halved(role: Role) -> bool {
    match role {
        Role::OutputTable
        | Role::Query(_)
        | Role::Key(_)
        | Role::Value(_)
        | Role::AttentionOutput(_)
        | Role::FeedForwardInput
        | Role::FeedForwardOutput => true,
        Role::EmbeddingTable
        | Role::SubLayerNorm
        | Role::FinalNorm
        | Role::PositionBias
        | Role::Router
        | Role::ExpertsInput
        | Role::ExpertsOutput
        | Role::PredictionCoefs
        | Role::CorrectionCoefs
        | Role::SequencePredictionCoefs
        | Role::SequenceCorrectionCoef => false,
    }
}

struct ToBf16 {
    select: fn(Role) -> bool,
}

impl ParameterMapper for ToBf16 {
    fn map<const D: usize>(
        &mut self,
        info: &ParameterInfo,
        param: Param<Tensor<D>>,
    ) -> Param<Tensor<D>> {
        if !(self.select)(info.role) {
            return param;
        }
        let (id, tensor, mapper) = param.consume();
        let requires_grad = tensor.is_require_grad();
        let tensor = tensor.cast(DType::BF16).detach().set_require_grad(requires_grad);
        Param::from_mapped_value(id, tensor, mapper)
    }
}

fn to_f32<M: Module>(module: &M, gradients: &mut GradientsParams) {
    struct ToF32;
    impl altup_optim::GradientMap for ToF32 {
        fn map<const D: usize>(&self, gradient: Tensor<D>) -> Tensor<D> {
            gradient.cast(DType::F32)
        }
    }
    map_gradients(module, gradients, ToF32);
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use altup_models::{
        CrossEntropyOptions, MoeConfig, MoeMode, Noise, ParameterVisitor, T5Config, freeze,
        parameter_tensors, parameters, size, visit_parameters,
    };
    use altup_optim::{OptimizerConfig, OptimizerKind};
    use burn::tensor::{Distribution, Int};

    fn config() -> T5Config {
        T5Config {
            vocab_size: 96,
            dropout_rate: 0.0,
            num_layers: 2,
            num_decoder_layers: Some(2),
            ..size("tiny").unwrap()
        }
    }

    fn batch(device: &Device) -> DeviceBatch {
        let ids = |length: usize| {
            Tensor::<2, Int>::random([2, length], Distribution::Uniform(2.0, 96.0), device)
        };
        let (input_ids, labels) = (ids(9), ids(5));
        DeviceBatch {
            input_ids,
            padding: None,
            labels,
            targets: 10,
            loss_targets: 10,
            noise: Noise::none(),
            loss: CrossEntropyOptions::default(),
        }
    }

    /// bf16 keeps 8 bits, so values are 1/256 apart at most; the loss is a mean of 10 such values, and a
    /// step of a thousandth, which bf16 would lose, is kept by the f32 weights.
    #[test]
    fn a_bf16_step_is_close_to_the_f32_one_and_keeps_f32_weights() {
        let device = Device::flex().autodiff();
        device.seed(5);
        let learner = Learner { model: config().init(1, &device) };
        let batch = batch(&device);
        let full = Precision::F32.step(&learner, batch.clone());
        let half = Precision::Bf16.step(&learner, batch);
        let (full_loss, half_loss) =
            (full.item.sum.into_scalar::<f64>(), half.item.sum.into_scalar::<f64>());
        assert!((full_loss - half_loss).abs() < 0.01 * full_loss, "{half_loss} is not {full_loss}");
        assert!(full_loss != half_loss, "nothing was computed in bf16");

        let before = parameter_tensors(&learner.model);
        let rate = 1e-3;
        let stepped = OptimizerConfig::default().init().step(rate, learner.clone(), half.grads);
        for (before, after) in before.iter().zip(parameter_tensors(&stepped.model)) {
            let norm = |values: &[f32]| values.iter().map(|v| v * v).sum::<f32>().sqrt();
            let change: Vec<f32> = after
                .values
                .iter()
                .zip(&before.values)
                .map(|(after, before)| after - before)
                .collect();
            let relative = norm(&change) / norm(&before.values);
            assert!((1e-5..1e-2).contains(&relative), "{}: {relative}", after.name);
        }
        assert!(learner.model.embedding.weight.val().dtype() == DType::F32);
    }

    /// Frozen parameters stay bit by bit what they were, in a copy in bf16 too; all others move.
    #[test]
    fn a_step_leaves_frozen_parameters_alone() {
        let device = Device::flex().autodiff();
        device.seed(5);
        let batch = batch(&device);
        let frozen = |info: &ParameterInfo| info.role.is_table() || info.layer == Some(0);
        for optimizer in [OptimizerKind::Adafactor, OptimizerKind::AdamW] {
            // Weight decay moves whatever an optimizer looks at.
            let config =
                OptimizerConfig { kind: optimizer, weight_decay: 0.1, ..Default::default() };
            for precision in [Precision::F32, Precision::Bf16] {
                let model = freeze(self::config().init(1, &device), frozen);
                let learner = Learner { model };
                let gradients = precision.step(&learner, batch.clone()).grads;
                let stepped = config.init().step(1e-2, learner.clone(), gradients);
                let before = parameter_tensors(&learner.model);
                let after = parameter_tensors(&stepped.model);
                let pairs = before.iter().zip(&after);
                for (info, (before, after)) in parameters(&learner.model).iter().zip(pairs) {
                    assert_eq!(before == after, frozen(info), "{}", info.name);
                }
            }
        }
    }

    #[test]
    fn projections_are_stored_in_half_the_bytes() {
        struct Halved(Vec<String>);
        impl ParameterVisitor for Halved {
            fn visit<const D: usize>(&mut self, info: &ParameterInfo, param: &Param<Tensor<D>>) {
                if param.val().dtype() == DType::BF16 {
                    self.0.push(info.name.clone());
                }
            }
        }
        let moe = MoeConfig::new(2, 4, MoeMode::Partial);
        let config =
            T5Config { moe: Some(moe), num_layers: 1, num_decoder_layers: Some(1), ..config() };
        let model = Precision::Bf16Weights.to_compute(&config.init(1, &Device::flex()));
        let mut halved = Halved(Vec::new());
        visit_parameters(&model, &mut halved);
        let attention = |module: &str| {
            ["q", "k", "v", "o"].map(|name| format!("{module}Attention.{name}.weight"))
        };
        let feed_forward = |layer: usize| {
            ["wi_0", "wi_1", "wo"].map(|name| format!("layer.{layer}.DenseReluDense.{name}.weight"))
        };
        let in_stack = |stack: &str, names: Vec<String>| -> Vec<String> {
            names.iter().map(|name| format!("{stack}.block.0.{name}")).collect()
        };
        let encoder = [&attention("layer.0.Self")[..], &feed_forward(1)].concat();
        let decoder =
            [&attention("layer.0.Self")[..], &attention("layer.1.EncDec"), &feed_forward(2)]
                .concat();
        let mut expected = [in_stack("encoder", encoder), in_stack("decoder", decoder)].concat();
        expected.push("lm_head.weight".to_owned());
        assert_eq!(halved.0, expected);
    }

    #[cfg(feature = "ndarray")]
    #[test]
    #[allow(deprecated)]
    fn a_device_without_bf16_is_refused() {
        assert_eq!(Precision::Bf16.check(&Device::ndarray()), Err(PrecisionError::NoBf16));
        assert_eq!(Precision::Bf16.check(&Device::flex()), Ok(()));
        assert_eq!(Precision::Bf16Weights.check(&Device::flex()), Ok(()));
    }

    #[cfg(feature = "wgpu")]
    #[test]
    fn a_gpu_gains_nothing_by_weights_in_bf16() {
        let device = Device::wgpu(burn::tensor::DeviceKind::DefaultDevice);
        assert_eq!(Precision::Bf16Weights.check(&device), Err(PrecisionError::WeightsOnGpu));
    }
}
