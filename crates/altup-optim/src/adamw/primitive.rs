//! The step as a chain of primitive tensor operations. Backends without a kernel run it; kernels are tested against
//! it.

use burn::backend::Backend;
use burn::backend::tensor::FloatTensor;

use super::AdamWStep;
use crate::weighted;

pub(super) fn adamw_step<B: Backend>(
    param: FloatTensor<B>,
    grad: FloatTensor<B>,
    moment_1: FloatTensor<B>,
    moment_2: FloatTensor<B>,
    step: AdamWStep,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let square = B::float_mul(grad.clone(), grad.clone());
    let moment_1 = weighted::<B>(moment_1, step.beta_1, grad, 1.0 - step.beta_1);
    let moment_2 = weighted::<B>(moment_2, step.beta_2, square, 1.0 - step.beta_2);
    let root = B::float_div_scalar(moment_2.clone(), step.correction_2.into());
    let root = B::float_add_scalar(B::float_sqrt(root), step.epsilon.into());
    let mean = B::float_div_scalar(moment_1.clone(), step.correction_1.into());
    let update = B::float_div(mean, root);
    (weighted::<B>(param, step.kept, update, -step.rate), moment_1, moment_2)
}
