//! AdamW.

mod cpu;
#[cfg(feature = "cube")]
mod cube;
mod primitive;

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Dispatch};
use burn::optim::{AdamWState, AdaptiveMomentumState, LearningRate, Optimizer};
use burn::tensor::{DType, Device, Tensor};

use crate::ParameterSettings;

const BETA_1: f32 = 0.9;
const BETA_2: f32 = 0.999;
const EPSILON: f32 = 1e-8;

/// AdamW (Loshchilov and Hutter, 2019) with β₁ 0.9, β₂ 0.999 and ε 1e-8. It computes what Burn's does, in one pass over
/// a parameter's tensors.
#[derive(Clone, Debug)]
pub(crate) struct AdamW {
    pub(crate) settings: ParameterSettings,
}

impl Optimizer for AdamW {
    type State<const D: usize> = AdamWState<D>;

    fn step<const D: usize>(
        &self,
        lr: LearningRate,
        tensor: Tensor<D>,
        grad: Tensor<D>,
        state: Option<AdamWState<D>>,
    ) -> (Tensor<D>, Option<AdamWState<D>>) {
        // In f32: in f16 ε is 0 and so are the squares of small gradients, in bf16 β₂ is 1.
        let dtype = tensor.dtype();
        let (tensor, grad) = (tensor.cast(DType::F32), grad.cast(DType::F32));
        let momentum = state.map_or_else(
            || AdaptiveMomentumState::new(0, grad.zeros_like(), grad.zeros_like()),
            |state| state.momentum,
        );
        assert!(
            momentum.max_moment_2.is_none(),
            "This AdamW has no AMSGrad, which the optimizer's state is of"
        );
        let time = momentum.time + 1;
        let lr = lr * self.settings.learning_rate_factor;
        let power = i32::try_from(time).unwrap_or(i32::MAX);
        let step = AdamWStep {
            beta_1: BETA_1,
            beta_2: BETA_2,
            correction_1: 1.0 - BETA_1.powi(power),
            correction_2: 1.0 - BETA_2.powi(power),
            epsilon: EPSILON,
            kept: (1.0 - lr * self.settings.weight_decay) as f32,
            rate: lr as f32,
        };
        let (tensor, moment_1, moment_2) = <Dispatch as AdamWBackend>::adamw_step(
            tensor.into_dispatch(),
            grad.into_dispatch(),
            momentum.moment_1.cast(DType::F32).into_dispatch(),
            momentum.moment_2.cast(DType::F32).into_dispatch(),
            step,
        );
        let [tensor, moment_1, moment_2]: [Tensor<D>; 3] =
            [tensor, moment_1, moment_2].map(Tensor::from_dispatch);
        (
            tensor.cast(dtype),
            Some(AdamWState::new(AdaptiveMomentumState::new(time, moment_1, moment_2))),
        )
    }

    fn to_device<const D: usize>(mut state: AdamWState<D>, device: &Device) -> AdamWState<D> {
        state.momentum.moment_1 = state.momentum.moment_1.to_device(device);
        state.momentum.moment_2 = state.momentum.moment_2.to_device(device);
        state
    }
}

/// The numbers of a step of AdamW.
#[derive(Clone, Copy, Debug)]
pub struct AdamWStep {
    /// What is kept of the first moment.
    pub beta_1: f32,
    /// What is kept of the second moment.
    pub beta_2: f32,
    /// 1 − β₁ᵗ
    pub correction_1: f32,
    /// 1 − β₂ᵗ
    pub correction_2: f32,
    /// ε
    pub epsilon: f32,
    /// What decay leaves of a weight.
    pub kept: f32,
    /// The learning rate.
    pub rate: f32,
}

altup_backend::operations! {
    gpu_kernels
    /// A step of [`OptimizerKind::AdamW`](crate::OptimizerKind::AdamW) on a backend.
    pub trait AdamWBackend {
        /// The parameter and its two moments after a step. All are f32 and of one shape.
        #[fusion(meta = |param, _grad, moment_1, moment_2, _step| {
            (param.clone(), moment_1.clone(), moment_2.clone())
        })]
        fn adamw_step(
            param: FloatTensor<Self>,
            grad: FloatTensor<Self>,
            moment_1: FloatTensor<Self>,
            moment_2: FloatTensor<Self>,
            step: AdamWStep,
        ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
            match Self::on_host([&param, &grad, &moment_1, &moment_2]) {
                true => cpu::adamw_step::<Self>(param, &grad, moment_1, moment_2, step),
                false => primitive::adamw_step::<Self>(param, grad, moment_1, moment_2, step),
            }
        }
    }
}

/// Optimizers step on tensors that are not recorded. Should one be, its primitive operations are recorded.
impl<B: AdamWBackend, C: CheckpointStrategy> AdamWBackend for Autodiff<B, C> {}
