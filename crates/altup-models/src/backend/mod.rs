//! The operations of a T5 that are worth more than a chain of primitive ones: what crosses memory once
//! instead of once an operation, and what a backward pass need not keep.

// Burn marks ndarray and libtorch as deprecated; while it ships them they are supported here.
#![allow(deprecated)]

mod autodiff;
#[cfg(any(feature = "flex", feature = "ndarray", feature = "tch"))]
mod cpu;
mod primitive;
#[cfg(test)]
mod tests;

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, backend_extension};

/// Operations of a T5 over Burn's [`Backend`] trait.
///
/// Every method has a default body of primitive tensor operations, so any backend `B: Backend` runs T5
/// with an empty `impl T5Backend for B {}`. Flex and ndarray override them in f32. Backward passes are
/// written by hand: under autodiff an operation is one node, that keeps its inputs and what is named
/// below, and nothing between.
///
/// Letters: B batch, H heads, Q queries, M memory (keys and values), d width.
#[backend_extension(
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
    LibTorch: cfg(feature = "tch"),
    Cube: cfg(any(feature = "wgpu", feature = "cuda")),
    Autodiff
)]
pub trait T5Backend: Backend {
    /// Multi-head attention without scale: softmax(q kᵀ + bias) v for each head.
    ///
    /// The second output is what the backward pass needs beside the first: the attention weights,
    /// `[B, H, Q, M]`, by default; on a CPU, which makes the weights anew, the logarithm of each row's
    /// sum of exponentials, `[B, H, Q]`.
    ///
    /// # Shapes
    ///
    /// - query: `[B, Q, H, d]`
    /// - key, value: `[B, M, H, d]`
    /// - bias: broadcastable to `[B, H, Q, M]`, in f32
    /// - output: `[B, Q, H, d]`
    fn biased_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        primitive::attention::<Self>(query, key, value, bias)
    }

    /// The gradients of [`biased_attention`](Self::biased_attention) for query, key, value and bias. `saved` is the
    /// forward pass's second output.
    #[allow(clippy::too_many_arguments)]
    fn biased_attention_backward(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        output: FloatTensor<Self>,
        saved: FloatTensor<Self>,
        output_grad: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let _ = output;
        primitive::attention_backward::<Self>(query, key, value, bias, saved, output_grad)
    }

    /// gelu(gate) ⊙ linear, with the tanh approximation of GELU.
    ///
    /// # Shapes
    ///
    /// All are of one shape.
    fn gated_gelu(gate: FloatTensor<Self>, linear: FloatTensor<Self>) -> FloatTensor<Self> {
        primitive::gated_gelu::<Self>(gate, linear)
    }

    /// The gradients of [`gated_gelu`](Self::gated_gelu) for gate and linear.
    fn gated_gelu_backward(
        gate: FloatTensor<Self>,
        linear: FloatTensor<Self>,
        output_grad: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        primitive::gated_gelu_backward::<Self>(gate, linear, output_grad)
    }

    /// x · weight, for the few rows of a decoding step. The weights may be stored in bf16 where x is f32.
    ///
    /// # Shapes
    ///
    /// - x: `[rows, d_input]`
    /// - weight: `[d_input, d_output]`
    /// - output: `[rows, d_output]`, of x's type
    fn project(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        primitive::project::<Self>(x, weight)
    }

    /// x · first and x · second, as by [`project`](Self::project): a layer's gate and what it gates, as if
    /// their weights were one matrix. The widths of the two may differ.
    ///
    /// # Shapes
    ///
    /// - x: `[rows, d_input]`
    /// - first, second: `[d_input, d_output]` each
    /// - outputs: `[rows, d_output]` each, of x's type
    fn project_to_two(
        x: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        (Self::project(x.clone(), first), Self::project(x, second))
    }

    /// x · first, x · second and x · third, as by [`project`](Self::project): self-attention's queries, keys
    /// and values, as if their weights were one matrix.
    ///
    /// # Shapes
    ///
    /// As in [`project_to_two`](Self::project_to_two).
    fn project_to_three(
        x: FloatTensor<Self>,
        first: FloatTensor<Self>,
        second: FloatTensor<Self>,
        third: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let (first, second) = Self::project_to_two(x.clone(), first, second);
        (first, second, Self::project(x, third))
    }

    /// Root-mean-square normalisation, x / √(mean(x²) + ε) · γ, of each row. The mean is taken in f32.
    ///
    /// # Shapes
    ///
    /// - x, output: `[rows, d]`
    /// - gamma: `[d]`
    fn rms_norm(x: FloatTensor<Self>, gamma: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self> {
        primitive::rms_norm::<Self>(x, gamma, epsilon)
    }

    /// The gradients of [`rms_norm`](Self::rms_norm) for x and gamma.
    fn rms_norm_backward(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        output_grad: FloatTensor<Self>,
        epsilon: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        primitive::rms_norm_backward::<Self>(x, gamma, output_grad, epsilon)
    }

    /// The cross-entropy of each token in nats, and 0 where the label is padding (0).
    ///
    /// The backward pass keeps the logits alone, and on a CPU writes their gradient over them: there is
    /// never a second tensor of their size.
    ///
    /// # Shapes
    ///
    /// - logits: `[tokens, vocab_size]`, f32
    /// - labels: `[tokens]`
    /// - output: `[tokens]`
    fn cross_entropy(logits: FloatTensor<Self>, labels: IntTensor<Self>) -> FloatTensor<Self> {
        primitive::cross_entropy::<Self>(logits, labels)
    }

    /// The gradient of [`cross_entropy`](Self::cross_entropy) for the logits.
    fn cross_entropy_backward(
        logits: FloatTensor<Self>,
        labels: IntTensor<Self>,
        output_grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        primitive::cross_entropy_backward::<Self>(logits, labels, output_grad)
    }
}

#[cfg(feature = "wgpu")]
impl T5Backend for burn::backend::Wgpu {}

#[cfg(all(feature = "cuda", not(feature = "wgpu")))]
impl T5Backend for burn::backend::Cuda {}
