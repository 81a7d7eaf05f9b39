//! The operation as a chain of primitive tensor operations. Backends without a kernel run it; kernels are tested
//! against it.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::Shape;

use altup_backend::{cast, to_f32};

pub(super) fn rms_norm<B: Backend>(
    x: FloatTensor<B>,
    gamma: FloatTensor<B>,
    epsilon: f32,
) -> FloatTensor<B> {
    let dtype = x.dtype();
    let x = to_f32::<B>(x);
    let normed = B::float_mul(x.clone(), inverse_rms::<B>(x, epsilon));
    B::float_mul(cast::<B>(normed, dtype), as_row::<B>(gamma))
}

pub(super) fn rms_norm_backward<B: Backend>(
    x: FloatTensor<B>,
    gamma: FloatTensor<B>,
    output_grad: FloatTensor<B>,
    epsilon: f32,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let (dtype, gamma_shape) = (x.dtype(), gamma.shape());
    let [x, output_grad] = [x, output_grad].map(to_f32::<B>);
    let scale = inverse_rms::<B>(x.clone(), epsilon);
    let normed = B::float_mul(x, scale.clone());
    let gamma_grad = B::float_sum_dim(B::float_mul(output_grad.clone(), normed.clone()), 0);
    // With n the normed x: dx = (γ dy − n · mean(γ dy n)) / rms
    let grad = B::float_mul(output_grad, as_row::<B>(to_f32::<B>(gamma)));
    let mean = B::float_mean_dim(B::float_mul(grad.clone(), normed.clone()), 1);
    let x_grad = B::float_mul(B::float_sub(grad, B::float_mul(normed, mean)), scale);
    (cast::<B>(x_grad, dtype), cast::<B>(B::float_reshape(gamma_grad, gamma_shape), dtype))
}

/// 1 / √(mean(x²) + ε) of each row, `[rows, 1]`.
fn inverse_rms<B: Backend>(x: FloatTensor<B>, epsilon: f32) -> FloatTensor<B> {
    let mean = B::float_mean_dim(B::float_mul(x.clone(), x), 1);
    B::float_recip(B::float_sqrt(B::float_add_scalar(mean, epsilon.into())))
}

fn as_row<B: Backend>(vector: FloatTensor<B>) -> FloatTensor<B> {
    let width = vector.shape()[0];
    B::float_reshape(vector, Shape::new([1, width]))
}
