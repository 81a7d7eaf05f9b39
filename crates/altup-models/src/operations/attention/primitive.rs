//! The operation as a chain of primitive tensor operations. Backends without a kernel run it; kernels are tested
//! against it.

use altup_backend::philox::DropoutMask;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::Shape;

use crate::operations::dropout::DropoutBackend;
use altup_backend::{cast, to_f32};

pub(super) fn attention<B: DropoutBackend>(
    query: FloatTensor<B>,
    key: FloatTensor<B>,
    value: FloatTensor<B>,
    bias: FloatTensor<B>,
    dropout: Option<DropoutMask>,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let dtype = query.dtype();
    let [query, key, value] = [query, key, value].map(heads_first::<B>);
    let scores = to_f32::<B>(B::float_matmul(query, B::float_swap_dims(key, 2, 3)));
    let weights = cast::<B>(B::softmax(B::float_add(scores, bias), 3), dtype);
    let dropped = dropped::<B>(weights.clone(), dropout);
    (heads_first::<B>(B::float_matmul(dropped, value)), weights)
}

/// With P the weights of a head, M the dropout's factors, S the scores: dV = (P ⊙ M)ᵀ dO, dP = dO Vᵀ ⊙ M,
/// dS = P ⊙ (dP − Σ dP ⊙ P), dQ = dS K, dK = dSᵀ Q, and the bias has the gradient of the scores.
#[allow(clippy::too_many_arguments)]
pub(super) fn attention_backward<B: DropoutBackend>(
    query: FloatTensor<B>,
    key: FloatTensor<B>,
    value: FloatTensor<B>,
    bias: FloatTensor<B>,
    weights: FloatTensor<B>,
    output_grad: FloatTensor<B>,
    dropout: Option<DropoutMask>,
    bias_grad_asked: bool,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let dtype = query.dtype();
    let [query, key, value, output_grad] = [query, key, value, output_grad].map(heads_first::<B>);
    let used = dropped::<B>(weights.clone(), dropout);
    let value_grad = B::float_matmul(B::float_swap_dims(used, 2, 3), output_grad.clone());
    let weights_grad = B::float_matmul(output_grad, B::float_swap_dims(value, 2, 3));
    let weights_grad = to_f32::<B>(dropped::<B>(weights_grad, dropout));
    let weights = to_f32::<B>(weights);
    let weighted = B::float_mul(weights_grad, weights.clone());
    let mean = B::float_sum_dim(weighted.clone(), 3);
    let scores_grad = B::float_sub(weighted, B::float_mul(weights, mean));
    let bias_grad = match bias_grad_asked {
        true => summed_to::<B>(scores_grad.clone(), bias.shape()),
        false => bias,
    };
    let scores_grad = cast::<B>(scores_grad, dtype);
    let query_grad = B::float_matmul(scores_grad.clone(), key);
    let key_grad = B::float_matmul(B::float_swap_dims(scores_grad, 2, 3), query);
    let [query_grad, key_grad, value_grad] =
        [query_grad, key_grad, value_grad].map(heads_first::<B>);
    (query_grad, key_grad, value_grad, bias_grad)
}

fn dropped<B: DropoutBackend>(
    weights: FloatTensor<B>,
    dropout: Option<DropoutMask>,
) -> FloatTensor<B> {
    match dropout {
        Some(mask) => B::dropout(weights, mask),
        None => weights,
    }
}

/// `[B, T, H, d]` to `[B, H, T, d]` and back.
fn heads_first<B: Backend>(tensor: FloatTensor<B>) -> FloatTensor<B> {
    B::float_swap_dims(tensor, 1, 2)
}

/// Sums over the dimensions that `shape` has once.
fn summed_to<B: Backend>(tensor: FloatTensor<B>, shape: Shape) -> FloatTensor<B> {
    let sum = |tensor: FloatTensor<B>, dim: usize| match shape[dim] == tensor.shape()[dim] {
        true => tensor,
        false => B::float_sum_dim(tensor, dim),
    };
    (0..shape.num_dims()).fold(tensor, sum)
}
