use burn::backend::Dispatch;
use burn::optim::{AdamWState, AdaptiveMomentumState, LearningRate, Optimizer};
use burn::tensor::{Device, Tensor};

use super::backend::{AdamWStep, OptimizerBackend};

const BETA_1: f32 = 0.9;
const BETA_2: f32 = 0.999;
const EPSILON: f32 = 1e-8;

/// AdamW (Loshchilov and Hutter, 2019), as Burn's with β₁ 0.9, β₂ 0.999 and ε 1e-8, in one pass over a
/// parameter's tensors on a CPU.
#[derive(Clone, Debug)]
pub(super) struct AdamW {
    pub(super) weight_decay: f64,
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
        let momentum = state.map_or_else(
            || AdaptiveMomentumState::new(0, grad.zeros_like(), grad.zeros_like()),
            |state| state.momentum,
        );
        let time = momentum.time + 1;
        let power = i32::try_from(time).unwrap_or(i32::MAX);
        let step = AdamWStep {
            beta_1: BETA_1,
            beta_2: BETA_2,
            correction_1: 1.0 - BETA_1.powi(power),
            correction_2: 1.0 - BETA_2.powi(power),
            epsilon: EPSILON,
            kept: (1.0 - lr * self.weight_decay) as f32,
            rate: lr as f32,
        };
        let (tensor, moment_1, moment_2) = <Dispatch as OptimizerBackend>::adamw_step(
            tensor.into_dispatch(),
            grad.into_dispatch(),
            momentum.moment_1.into_dispatch(),
            momentum.moment_2.into_dispatch(),
            step,
        );
        let [tensor, moment_1, moment_2] = [tensor, moment_1, moment_2].map(Tensor::from_dispatch);
        (tensor, Some(AdamWState::new(AdaptiveMomentumState::new(time, moment_1, moment_2))))
    }

    fn to_device<const D: usize>(mut state: AdamWState<D>, device: &Device) -> AdamWState<D> {
        state.momentum.moment_1 = state.momentum.moment_1.to_device(device);
        state.momentum.moment_2 = state.momentum.moment_2.to_device(device);
        state
    }
}
