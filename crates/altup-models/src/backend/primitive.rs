//! The operations of primitive tensor operations: what a backend without kernels of its own runs, and
//! what kernels are tested against.

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::{DType, FloatDType, IndexingUpdateOp, Shape};

/// [`T5Backend::biased_attention`](super::T5Backend::biased_attention)
pub(super) fn attention<B: Backend>(
    query: FloatTensor<B>,
    key: FloatTensor<B>,
    value: FloatTensor<B>,
    bias: FloatTensor<B>,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let dtype = query.dtype();
    let [query, key, value] = [query, key, value].map(heads_first::<B>);
    // Biases are f32, and so is the softmax, whatever the weights are.
    let scores = to_f32::<B>(B::float_matmul(query, B::float_swap_dims(key, 2, 3)));
    let weights = cast::<B>(B::softmax(B::float_add(scores, bias), 3), dtype);
    (heads_first::<B>(B::float_matmul(weights.clone(), value)), weights)
}

/// [`T5Backend::biased_attention_backward`](super::T5Backend::biased_attention_backward)
pub(super) fn attention_backward<B: Backend>(
    query: FloatTensor<B>,
    key: FloatTensor<B>,
    value: FloatTensor<B>,
    bias: FloatTensor<B>,
    weights: FloatTensor<B>,
    output_grad: FloatTensor<B>,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let dtype = query.dtype();
    let [query, key, value, output_grad] = [query, key, value, output_grad].map(heads_first::<B>);
    let value_grad =
        B::float_matmul(B::float_swap_dims(weights.clone(), 2, 3), output_grad.clone());
    let weights_grad = to_f32::<B>(B::float_matmul(output_grad, B::float_swap_dims(value, 2, 3)));
    let weights = to_f32::<B>(weights);
    let weighted = B::float_mul(weights_grad, weights.clone());
    let mean = B::float_sum_dim(weighted.clone(), 3);
    let scores_grad = B::float_sub(weighted, B::float_mul(weights, mean));
    let bias_grad = summed_to::<B>(scores_grad.clone(), bias.shape());
    let scores_grad = cast::<B>(scores_grad, dtype);
    let query_grad = B::float_matmul(scores_grad.clone(), key);
    let key_grad = B::float_matmul(B::float_swap_dims(scores_grad, 2, 3), query);
    let [query_grad, key_grad, value_grad] =
        [query_grad, key_grad, value_grad].map(heads_first::<B>);
    (query_grad, key_grad, value_grad, bias_grad)
}

/// gelu(x) = x/2 (1 + tanh(√(2/π) (x + 0.044715 x³))) = x · sigmoid(2 √(2/π) (x + 0.044715 x³)): the same
/// function, in fewer passes. This is 2 √(2/π).
pub(super) const GELU_SCALE: f64 = 2.0 * 0.797_884_560_802_865_4;

/// The coefficient of x³.
pub(super) const GELU_CUBIC: f64 = 0.044_715;

/// [`T5Backend::gated_gelu`](super::T5Backend::gated_gelu)
pub(super) fn gated_gelu<B: Backend>(
    gate: FloatTensor<B>,
    linear: FloatTensor<B>,
) -> FloatTensor<B> {
    let sigmoid = gelu_sigmoid::<B>(gate.clone());
    B::float_mul(B::float_mul(gate, sigmoid), linear)
}

/// [`T5Backend::gated_gelu_backward`](super::T5Backend::gated_gelu_backward)
pub(super) fn gated_gelu_backward<B: Backend>(
    gate: FloatTensor<B>,
    linear: FloatTensor<B>,
    output_grad: FloatTensor<B>,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let sigmoid = gelu_sigmoid::<B>(gate.clone());
    let gelu = B::float_mul(gate.clone(), sigmoid.clone());
    // gelu' = s + gelu (1 − s) z', with z' = 2 √(2/π) (1 + 3 · 0.044715 x²)
    let square = B::float_mul(gate.clone(), gate);
    let slope = B::float_mul_scalar(square, (3.0 * GELU_CUBIC * GELU_SCALE).into());
    let slope = B::float_add_scalar(slope, GELU_SCALE.into());
    let falling = B::float_sub(gelu.clone(), B::float_mul(gelu.clone(), sigmoid.clone()));
    let derivative = B::float_add(sigmoid, B::float_mul(falling, slope));
    let linear_grad = B::float_mul(output_grad.clone(), gelu);
    (B::float_mul(B::float_mul(output_grad, linear), derivative), linear_grad)
}

fn gelu_sigmoid<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let square = B::float_mul(x.clone(), x.clone());
    let inner = B::float_mul_scalar(square, (GELU_CUBIC * GELU_SCALE).into());
    B::sigmoid(B::float_mul(B::float_add_scalar(inner, GELU_SCALE.into()), x))
}

/// [`T5Backend::project`](super::T5Backend::project)
pub(super) fn project<B: Backend>(x: FloatTensor<B>, weight: FloatTensor<B>) -> FloatTensor<B> {
    let weight = cast::<B>(weight, x.dtype());
    B::float_matmul(x, weight)
}

/// [`T5Backend::rms_norm`](super::T5Backend::rms_norm)
pub(super) fn rms_norm<B: Backend>(
    x: FloatTensor<B>,
    gamma: FloatTensor<B>,
    epsilon: f32,
) -> FloatTensor<B> {
    let dtype = x.dtype();
    let scale = cast::<B>(inverse_rms::<B>(to_f32::<B>(x.clone()), epsilon), dtype);
    B::float_mul(B::float_mul(x, scale), as_row::<B>(gamma))
}

/// [`T5Backend::rms_norm_backward`](super::T5Backend::rms_norm_backward)
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

/// [`T5Backend::cross_entropy`](super::T5Backend::cross_entropy)
pub(super) fn cross_entropy<B: Backend>(
    logits: FloatTensor<B>,
    labels: IntTensor<B>,
) -> FloatTensor<B> {
    let tokens = labels.shape();
    let counts = counts::<B>(labels.clone());
    let labels = B::int_reshape(labels, Shape::new([tokens[0], 1]));
    let log_weights = B::float_gather(1, B::log_softmax(logits, 1), labels);
    B::float_mul(B::float_neg(B::float_reshape(log_weights, tokens)), counts)
}

/// [`T5Backend::cross_entropy_backward`](super::T5Backend::cross_entropy_backward)
pub(super) fn cross_entropy_backward<B: Backend>(
    logits: FloatTensor<B>,
    labels: IntTensor<B>,
    output_grad: FloatTensor<B>,
) -> FloatTensor<B> {
    let column = Shape::new([labels.shape()[0], 1]);
    let grad = B::float_mul(output_grad, counts::<B>(labels.clone()));
    let grad = B::float_reshape(grad, column.clone());
    let labels = B::int_reshape(labels, column);
    let weights = B::float_mul(B::softmax(logits, 1), grad.clone());
    B::float_scatter(1, weights, labels, B::float_neg(grad), IndexingUpdateOp::Add)
}

/// 1 for a label that counts, 0 for padding.
fn counts<B: Backend>(labels: IntTensor<B>) -> FloatTensor<B> {
    // A label is no less than 0, and counts as one from 1 on.
    B::int_into_float(B::int_clamp(labels, 0.into(), 1.into()), FloatDType::F32)
}

/// `[B, T, H, d]` to `[B, H, T, d]` and back.
fn heads_first<B: Backend>(tensor: FloatTensor<B>) -> FloatTensor<B> {
    B::float_swap_dims(tensor, 1, 2)
}

fn as_row<B: Backend>(vector: FloatTensor<B>) -> FloatTensor<B> {
    let width = vector.shape()[0];
    B::float_reshape(vector, Shape::new([1, width]))
}

fn to_f32<B: Backend>(tensor: FloatTensor<B>) -> FloatTensor<B> {
    cast::<B>(tensor, DType::F32)
}

fn cast<B: Backend>(tensor: FloatTensor<B>, dtype: DType) -> FloatTensor<B> {
    if tensor.dtype() == dtype { tensor } else { B::float_cast(tensor, dtype.into()) }
}

/// Sums over the dimensions that `shape` has once.
fn summed_to<B: Backend>(tensor: FloatTensor<B>, shape: Shape) -> FloatTensor<B> {
    let sum = |tensor: FloatTensor<B>, dim: usize| match shape[dim] == tensor.shape()[dim] {
        true => tensor,
        false => B::float_sum_dim(tensor, dim),
    };
    (0..shape.num_dims()).fold(tensor, sum)
}
