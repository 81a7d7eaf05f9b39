//! The operations of [`T5Backend`] on tensors.

use burn::backend::{Dispatch, DispatchTensor};
use burn::nn::{Linear, RmsNorm};
use burn::tensor::module::linear;
use burn::tensor::{Int, Tensor};

use crate::backend::T5Backend;

/// [`T5Backend::biased_attention`]
///
/// # Shapes
///
/// - query: `[batch_size, queries, num_heads, d_kv]`
/// - key, value: `[batch_size, length, num_heads, d_kv]`
/// - bias: broadcastable to `[batch_size, num_heads, queries, length]`, in f32
/// - output: `[batch_size, queries, num_heads, d_kv]`
pub(crate) fn attention(
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    bias: Tensor<4>,
) -> Tensor<4> {
    let (output, _) = <Dispatch as T5Backend>::biased_attention(
        query.into_dispatch(),
        key.into_dispatch(),
        value.into_dispatch(),
        bias.into_dispatch(),
    );
    Tensor::from_dispatch(output)
}

/// [`T5Backend::gated_gelu`]
pub(crate) fn gated_gelu(gate: Tensor<3>, linear: Tensor<3>) -> Tensor<3> {
    let output = <Dispatch as T5Backend>::gated_gelu(gate.into_dispatch(), linear.into_dispatch());
    Tensor::from_dispatch(output)
}

/// Rows of x up to which [`T5Backend::project`] is faster than a product.
const FEW_ROWS: usize = 8;

/// x · weight, through [`T5Backend::project`] where x has few rows, as in decoding.
///
/// # Shapes
///
/// - x: `[batch_size, seq_length, d_input]`
/// - output: `[batch_size, seq_length, d_output]`
pub(crate) fn project(layer: &Linear, x: Tensor<3>) -> Tensor<3> {
    if !has_few_rows(&x) {
        return product(layer, x);
    }
    let [batch_size, seq_length, _] = x.dims();
    let output = <Dispatch as T5Backend>::project(rows_of(x), weight_of(layer));
    unfold(output, batch_size, seq_length)
}

/// [`project`] by two layers; one operation, [`T5Backend::project_to_two`], where x has few rows.
pub(crate) fn project_to_two(layers: [&Linear; 2], x: Tensor<3>) -> [Tensor<3>; 2] {
    if !has_few_rows(&x) {
        return layers.map(|layer| product(layer, x.clone()));
    }
    let [batch_size, seq_length, _] = x.dims();
    let [first, second] = layers.map(weight_of);
    let outputs = <Dispatch as T5Backend>::project_to_two(rows_of(x), first, second);
    <[_; 2]>::from(outputs).map(|output| unfold(output, batch_size, seq_length))
}

/// [`project`] by three layers; one operation, [`T5Backend::project_to_three`], where x has few rows.
pub(crate) fn project_to_three(layers: [&Linear; 3], x: Tensor<3>) -> [Tensor<3>; 3] {
    if !has_few_rows(&x) {
        return layers.map(|layer| product(layer, x.clone()));
    }
    let [batch_size, seq_length, _] = x.dims();
    let [first, second, third] = layers.map(weight_of);
    let outputs = <Dispatch as T5Backend>::project_to_three(rows_of(x), first, second, third);
    <[_; 3]>::from(outputs).map(|output| unfold(output, batch_size, seq_length))
}

/// Whether reading the weights takes longer than computing with them, and no gradients are asked for.
fn has_few_rows(x: &Tensor<3>) -> bool {
    let [batch_size, seq_length, _] = x.dims();
    batch_size * seq_length <= FEW_ROWS && !x.device().is_autodiff()
}

fn product(layer: &Linear, x: Tensor<3>) -> Tensor<3> {
    let weight = layer.weight.val();
    let weight = if weight.dtype() == x.dtype() { weight } else { weight.cast(x.dtype()) };
    linear(x, weight, None)
}

fn weight_of(layer: &Linear) -> DispatchTensor {
    layer.weight.val().into_dispatch()
}

fn rows_of(x: Tensor<3>) -> DispatchTensor {
    let [batch_size, seq_length, width] = x.dims();
    x.reshape([batch_size * seq_length, width]).into_dispatch()
}

fn unfold(rows: DispatchTensor, batch_size: usize, seq_length: usize) -> Tensor<3> {
    let rows: Tensor<2> = Tensor::from_dispatch(rows);
    let [_, width] = rows.dims();
    rows.reshape([batch_size, seq_length, width])
}

/// [`T5Backend::rms_norm`] of the last dimension.
///
/// # Shapes
///
/// - x, output: `[batch_size, seq_length, width]`
pub(crate) fn rms_norm(norm: &RmsNorm, x: Tensor<3>) -> Tensor<3> {
    let shape @ [batch_size, seq_length, width] = x.dims();
    let rows: Tensor<2> = x.reshape([batch_size * seq_length, width]);
    let normed: Tensor<2> = Tensor::from_dispatch(<Dispatch as T5Backend>::rms_norm(
        rows.into_dispatch(),
        norm.gamma.val().into_dispatch(),
        norm.epsilon as f32,
    ));
    normed.reshape(shape)
}

/// [`T5Backend::cross_entropy`]
///
/// # Shapes
///
/// - logits: `[tokens, vocab_size]`, f32
/// - labels: `[tokens]`
/// - output: `[tokens]`
pub(crate) fn cross_entropy(logits: Tensor<2>, labels: Tensor<1, Int>) -> Tensor<1> {
    let output =
        <Dispatch as T5Backend>::cross_entropy(logits.into_dispatch(), labels.into_dispatch());
    Tensor::from_dispatch(output)
}
