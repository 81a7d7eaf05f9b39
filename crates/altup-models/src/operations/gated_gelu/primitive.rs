//! The operation as a chain of primitive tensor operations. Backends without a kernel run it; kernels are tested
//! against it.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};

use altup_backend::{cast, to_f32};

/// gelu(x) = x/2 (1 + tanh(√(2/π) (x + 0.044715 x³))) = x · sigmoid(2 √(2/π) (x + 0.044715 x³)): the same
/// function, in fewer passes. This is 2 √(2/π).
pub(super) const GELU_SCALE: f64 = 2.0 * 0.797_884_560_802_865_4;

/// The coefficient of x³.
pub(super) const GELU_CUBIC: f64 = 0.044_715;

pub(super) fn gated_gelu<B: Backend>(
    gate: FloatTensor<B>,
    linear: FloatTensor<B>,
) -> FloatTensor<B> {
    let sigmoid = gelu_sigmoid::<B>(gate.clone());
    B::float_mul(B::float_mul(gate, sigmoid), linear)
}

pub(super) fn gated_gelu_backward<B: Backend>(
    gate: FloatTensor<B>,
    linear: FloatTensor<B>,
    output_grad: FloatTensor<B>,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let dtype = gate.dtype();
    // In f16 the square would overflow from 256 on.
    let [gate, linear, output_grad] = [gate, linear, output_grad].map(to_f32::<B>);
    let sigmoid = gelu_sigmoid::<B>(gate.clone());
    let gelu = B::float_mul(gate.clone(), sigmoid.clone());
    // gelu' = s + gelu (1 − s) z', with z' = 2 √(2/π) (1 + 3 · 0.044715 x²)
    let square = B::float_mul(gate.clone(), gate);
    let slope = B::float_mul_scalar(square, (3.0 * GELU_CUBIC * GELU_SCALE).into());
    let slope = B::float_add_scalar(slope, GELU_SCALE.into());
    let falling = B::float_sub(gelu.clone(), B::float_mul(gelu.clone(), sigmoid.clone()));
    let derivative = B::float_add(sigmoid, B::float_mul(falling, slope));
    let linear_grad = B::float_mul(output_grad.clone(), gelu);
    let gate_grad = B::float_mul(B::float_mul(output_grad, linear), derivative);
    (cast::<B>(gate_grad, dtype), cast::<B>(linear_grad, dtype))
}

fn gelu_sigmoid<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let square = B::float_mul(x.clone(), x.clone());
    let inner = B::float_mul_scalar(square, (GELU_CUBIC * GELU_SCALE).into());
    B::sigmoid(B::float_mul(B::float_add_scalar(inner, GELU_SCALE.into()), x))
}
