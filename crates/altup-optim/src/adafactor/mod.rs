//! Adafactor.

mod cpu;
#[cfg(feature = "cube")]
mod cube;
mod primitive;

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Dispatch};
use burn::optim::{AdafactorState, LearningRate, Optimizer};
use burn::tensor::{DType, Device, Tensor};

use crate::ParameterSettings;

/// Adafactor (Shazeer and Stern, 2018) as T5 was pre-trained: steps relative to a parameter's size, no momentum,
/// decay 1 − t^−0.8, updates clipped to an RMS of 1. It computes what Burn's does, in three passes over a gradient.
///
/// The second moment of a matrix is kept as its means over rows and over columns; for a stack of matrices, one such
/// pair for each.
#[derive(Clone, Debug)]
pub(crate) struct Adafactor {
    pub(crate) settings: ParameterSettings,
}

fn start<const D: usize>(tensor: &Tensor<D>) -> AdafactorState<D> {
    let without = |dim: usize| {
        let mut shape = tensor.dims();
        shape[dim] = 1;
        Tensor::zeros(shape, (&tensor.device(), tensor.dtype()))
    };
    AdafactorState {
        time: 0,
        second_moment: if D == 1 { tensor.zeros_like() } else { without(D - 1) },
        column_second_moment: (D > 1).then(|| without(D - 2)),
    }
}

impl Optimizer for Adafactor {
    type State<const D: usize> = AdafactorState<D>;

    fn step<const D: usize>(
        &self,
        lr: LearningRate,
        tensor: Tensor<D>,
        grad: Tensor<D>,
        state: Option<AdafactorState<D>>,
    ) -> (Tensor<D>, Option<AdafactorState<D>>) {
        // As Burn's, in f32: in f16 the squares of small gradients are 0.
        let dtype = tensor.dtype();
        let (tensor, grad) = (tensor.cast(DType::F32), grad.cast(DType::F32));
        let state = state.unwrap_or_else(|| start(&tensor));
        let time = state.time + 1;
        let lr = lr * self.settings.learning_rate_factor;
        let step = AdafactorStep {
            new_weight: (time as f64).powf(-0.8) as f32,
            kept: (1.0 - lr * self.settings.weight_decay) as f32,
            rate: lr as f32,
        };
        let (tensor, grad) = (tensor.into_dispatch(), grad.into_dispatch());
        // One that was loaded is of the device's type.
        let second_moment = state.second_moment.cast(DType::F32).into_dispatch();
        match state.column_second_moment.map(|columns| columns.cast(DType::F32)) {
            Some(columns) => {
                let (tensor, rows, columns) = <Dispatch as AdafactorBackend>::adafactor_matrix_step(
                    tensor,
                    grad,
                    second_moment,
                    columns.into_dispatch(),
                    step,
                );
                let state = AdafactorState {
                    time,
                    second_moment: Tensor::from_dispatch(rows),
                    column_second_moment: Some(Tensor::from_dispatch(columns)),
                };
                (Tensor::<D>::from_dispatch(tensor).cast(dtype), Some(state))
            }
            None => {
                let (tensor, second_moment) = <Dispatch as AdafactorBackend>::adafactor_vector_step(
                    tensor,
                    grad,
                    second_moment,
                    step,
                );
                let second_moment = Tensor::from_dispatch(second_moment);
                let state = AdafactorState { time, second_moment, column_second_moment: None };
                (Tensor::<D>::from_dispatch(tensor).cast(dtype), Some(state))
            }
        }
    }

    fn to_device<const D: usize>(
        mut state: AdafactorState<D>,
        device: &Device,
    ) -> AdafactorState<D> {
        state.second_moment = state.second_moment.to_device(device);
        state.column_second_moment = state.column_second_moment.map(|c| c.to_device(device));
        state
    }
}

/// The numbers of a step of Adafactor.
#[derive(Clone, Copy, Debug)]
pub struct AdafactorStep {
    /// The weight of this gradient in the second moment.
    pub new_weight: f32,
    /// What decay leaves of a weight.
    pub kept: f32,
    /// The learning rate, relative to the size of the parameter.
    pub rate: f32,
}

altup_backend::operations! {
    gpu_kernels
    /// A step of [`OptimizerKind::Adafactor`](crate::OptimizerKind::Adafactor) on a backend. All tensors are f32.
    pub trait AdafactorBackend {
        /// The parameter and the means of the squared gradients of its rows and columns after a step.
        ///
        /// # Shapes
        ///
        /// - param, grad: `[..., R, C]`
        /// - rows: `[..., R, 1]`
        /// - columns: `[..., 1, C]`
        #[fusion(meta = |param, _grad, rows, columns, _step| {
            (param.clone(), rows.clone(), columns.clone())
        })]
        fn adafactor_matrix_step(
            param: FloatTensor<Self>,
            grad: FloatTensor<Self>,
            rows: FloatTensor<Self>,
            columns: FloatTensor<Self>,
            step: AdafactorStep,
        ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
            match Self::on_host([&param, &grad, &rows, &columns]) {
                true => cpu::adafactor_matrix_step::<Self>(param, &grad, rows, columns, step),
                false => primitive::adafactor_matrix_step::<Self>(param, grad, rows, columns, step),
            }
        }

        /// The parameter and its second moment after a step, of one shape.
        #[fusion(meta = |param, _grad, second_moment, _step| (param.clone(), second_moment.clone()))]
        fn adafactor_vector_step(
            param: FloatTensor<Self>,
            grad: FloatTensor<Self>,
            second_moment: FloatTensor<Self>,
            step: AdafactorStep,
        ) -> (FloatTensor<Self>, FloatTensor<Self>) {
            primitive::adafactor_vector_step::<Self>(param, grad, second_moment, step)
        }
    }
}

/// As AdamW's: steps are not recorded.
impl<B: AdafactorBackend, C: CheckpointStrategy> AdafactorBackend for Autodiff<B, C> {}
