//! The rows of a table for tokens.

#[cfg(feature = "cube")]
mod cube;

use altup_backend::{cast, record, to_f32};
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::ops::ModuleOps;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Dispatch, TensorMetadata};
use burn::tensor::{Int, Tensor};

/// The row of each token.
///
/// # Shapes
///
/// - weight: `[vocab_size, width]`
/// - tokens: `[batch_size, seq_length]`, below vocab_size; on a GPU this is not checked
/// - output: `[batch_size, seq_length, width]`
pub fn embedding(weight: Tensor<2>, tokens: Tensor<2, Int>) -> Tensor<3> {
    let output =
        <Dispatch as EmbeddingBackend>::embed(weight.into_dispatch(), tokens.into_dispatch());
    Tensor::from_dispatch(output)
}

altup_backend::operations! {
    gpu_kernels
    /// [`embedding`] on a backend. By default these are Burn's operations, the gradient's in f32: a token may be there very often.
    pub trait EmbeddingBackend {
        /// Shapes as in [`embedding`].
        #[fusion(dtype = weight, shape = burn::tensor::Shape::new([tokens[0], tokens[1], weight[1]]))]
        fn embed(weight: FloatTensor<Self>, tokens: IntTensor<Self>) -> FloatTensor<Self> {
            <Self as ModuleOps<Self>>::embedding(weight, tokens)
        }

        /// The gradient of the weight.
        #[fusion(dtype = output_grad, shape = weight)]
        fn embed_backward(
            weight: FloatTensor<Self>,
            tokens: IntTensor<Self>,
            output_grad: FloatTensor<Self>,
        ) -> FloatTensor<Self> {
            let (dtype, output_grad) = (output_grad.dtype(), to_f32::<Self>(output_grad));
            let grad = <Self as ModuleOps<Self>>::embedding_backward(weight, output_grad, tokens);
            cast::<Self>(grad, dtype)
        }
    }
}

impl<B: EmbeddingBackend, C: CheckpointStrategy> EmbeddingBackend for Autodiff<B, C> {
    fn embed(weight: FloatTensor<Self>, tokens: IntTensor<Self>) -> FloatTensor<Self> {
        record::<B, C, _, 1>(
            [weight],
            |[weight]| (B::embed(weight.clone(), tokens.clone()), (weight, tokens)),
            |(weight, tokens), grad| [B::embed_backward(weight, tokens, grad)],
        )
    }
}

#[cfg(test)]
mod tests;
