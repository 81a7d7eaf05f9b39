//! The operation as a chain of primitive tensor operations. Backends without a kernel run it; kernels are tested against
//! it.

use altup_backend::cast;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::Shape;

/// By min(max_norm / norm, 1).
pub(super) fn clip<B: Backend>(
    gradient: FloatTensor<B>,
    square_sum: FloatTensor<B>,
    max_norm: f64,
) -> FloatTensor<B> {
    let norm = B::float_sqrt(square_sum);
    let ratio = B::float_mul_scalar(B::float_recip(norm), max_norm.into());
    let factor = B::float_clamp_max(ratio, 1.0.into());
    let factor = B::float_reshape(factor, Shape::from(vec![1; gradient.shape().num_dims()]));
    let factor = cast::<B>(factor, gradient.dtype());
    B::float_mul(gradient, factor)
}
