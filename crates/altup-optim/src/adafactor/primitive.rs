//! The step as a chain of primitive tensor operations. Backends without a kernel run it; kernels are tested against
//! it.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};

use super::AdafactorStep;
use crate::weighted;

/// The smallest mean square of a gradient, as in T5.
pub(super) const EPSILON_1: f32 = 1e-30;
/// The smallest size of a parameter, as in T5.
pub(super) const EPSILON_2: f32 = 1e-3;

pub(super) fn adafactor_matrix_step<B: Backend>(
    param: FloatTensor<B>,
    grad: FloatTensor<B>,
    rows: FloatTensor<B>,
    columns: FloatTensor<B>,
    step: AdafactorStep,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let rank = param.shape().num_dims();
    let square = B::float_mul(grad.clone(), grad.clone());
    let square = B::float_add_scalar(square, EPSILON_1.into());
    let new_rows = B::float_mean_dim(square.clone(), rank - 1);
    let new_columns = B::float_mean_dim(square, rank - 2);
    let rows = weighted::<B>(rows, 1.0 - step.new_weight, new_rows, step.new_weight);
    let columns = weighted::<B>(columns, 1.0 - step.new_weight, new_columns, step.new_weight);
    let mean = B::float_mean_dim(rows.clone(), rank - 2);
    // A row without a gradient beside very large ones: what its zeros are divided by must not be 0.
    let share = B::float_clamp_min(B::float_div(rows.clone(), mean), f32::MIN_POSITIVE.into());
    let row_scale = B::float_sqrt(share);
    let update = B::float_div(grad, row_scale);
    let update = B::float_div(update, B::float_sqrt(columns.clone()));
    (updated::<B>(param, update, step), rows, columns)
}

pub(super) fn adafactor_vector_step<B: Backend>(
    param: FloatTensor<B>,
    grad: FloatTensor<B>,
    second_moment: FloatTensor<B>,
    step: AdafactorStep,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let square = B::float_mul(grad.clone(), grad.clone());
    let square = B::float_add_scalar(square, EPSILON_1.into());
    let weight = step.new_weight;
    let second_moment = weighted::<B>(second_moment, 1.0 - weight, square, weight);
    let update = B::float_div(grad, B::float_sqrt(second_moment.clone()));
    (updated::<B>(param, update, step), second_moment)
}

/// The parameter after an update that is clipped to an RMS of 1 and then scaled by the parameter's.
fn updated<B: Backend>(
    param: FloatTensor<B>,
    update: FloatTensor<B>,
    step: AdafactorStep,
) -> FloatTensor<B> {
    let rms =
        |tensor: FloatTensor<B>| B::float_sqrt(B::float_mean(B::float_mul(tensor.clone(), tensor)));
    let clipping = B::float_clamp_min(rms(update.clone()), 1.0.into());
    let size = B::float_clamp_min(rms(param.clone()), EPSILON_2.into());
    let scale = B::float_mul_scalar(B::float_div(size, clipping), step.rate.into());
    let scale = B::float_reshape(scale, vec![1; param.shape().num_dims()].into());
    let kept = B::float_mul_scalar(param, step.kept.into());
    B::float_sub(kept, B::float_mul(update, scale))
}
