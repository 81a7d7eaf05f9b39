//! Multi-head attention without scale, as T5 has it.

mod cpu;
#[cfg(feature = "cube")]
mod cube;
mod primitive;

use altup_backend::philox::DropoutMask;
use altup_backend::record_asked;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, AutodiffBackend, Dispatch};
use burn::tensor::{DType, Tensor};

use super::dropout::DropoutBackend;

/// dropout(softmax(q kᵀ + bias)) v, for each head.
///
/// Bias and softmax are f32 whatever the type of query, key and value. The product q kᵀ is of their type before it is
/// added to the bias, as in Hugging Face's models. A query whose keys are all hidden attends to all of them evenly.
///
/// # Shapes
///
/// - query: `[batch_size, queries, num_heads, d_kv]`
/// - key, value: `[batch_size, length, num_heads, d_kv]`
/// - bias: each dimension that of `[batch_size, num_heads, queries, length]` or 1, in f32
/// - output: `[batch_size, queries, num_heads, d_kv]`
///
/// The rows of the dropout's mask are those of the scores: (row · num_heads + head) · queries + query.
///
/// # Panics
///
/// Panics if the shapes do not fit, query, key and value are of several types, or the bias isn't f32.
pub fn attention(
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    bias: Option<Tensor<4>>,
    dropout: Option<DropoutMask>,
) -> Tensor<4> {
    let [batch_size, queries, heads, width] = query.dims();
    let [_, length, _, _] = key.dims();
    let bias = bias.unwrap_or_else(|| Tensor::zeros([1, 1, 1, 1], (&query.device(), DType::F32)));
    let scores = [batch_size, heads, queries, length];
    let fits = bias.dims().iter().zip(scores).all(|(&found, whole)| found == whole || found == 1);
    assert!(
        key.dims() == [batch_size, length, heads, width] && value.dims() == key.dims() && fits,
        "Attention needs a key and a value of each position, and a bias of the scores {scores:?}. Got query={:?}, \
         key={:?}, value={:?}, bias={:?}",
        query.dims(),
        key.dims(),
        value.dims(),
        bias.dims()
    );
    let types = [query.dtype(), key.dtype(), value.dtype(), bias.dtype()];
    assert!(
        types[1..3].iter().all(|dtype| *dtype == types[0]) && types[3] == DType::F32,
        "Query, key and value must be of one type, and the bias f32. Got query={:?}, key={:?}, value={:?}, bias={:?}",
        types[0],
        types[1],
        types[2],
        types[3]
    );
    let (output, _) = <Dispatch as AttentionBackend>::biased_attention(
        query.into_dispatch(),
        key.into_dispatch(),
        value.into_dispatch(),
        bias.into_dispatch(),
        dropout,
    );
    Tensor::from_dispatch(output)
}

altup_backend::operations! {
    gpu_kernels
    /// [`attention`] on a backend. Burn's own attention has no dropout, and under autodiff it is a chain of primitive
    /// operations.
    ///
    /// Letters: B batch, H heads, Q queries, M memory (keys and values), d width.
    pub trait AttentionBackend: DropoutBackend {
        /// The second output is what the backward pass needs besides the first. By default it is the attention
        /// weights, `[B, H, Q, M]`. In loops and kernels it is the maximum of each row of scores and the sum of its exponentials,
        /// `[2, B, H, Q]`, from which the backward pass makes the weights again. Both are kept, and not the logarithm
        /// of the whole: where all keys are hidden, the sum would be lost beside the large maximum.
        ///
        /// # Shapes
        ///
        /// - query: `[B, Q, H, d]`
        /// - key, value: `[B, M, H, d]`
        /// - bias: broadcastable to `[B, H, Q, M]`, in f32
        /// - output: `[B, Q, H, d]`
        #[fusion(meta = |query, _key, _value, _bias, _dropout| {
            let [batch_size, length, heads] = [0, 1, 2].map(|dim| query.shape[dim]);
            let statistics = burn::tensor::Shape::new([2, batch_size, heads, length]);
            let statistics = burn::backend::fusion::custom::TensorSpec::new(statistics, DType::F32);
            (query.clone(), statistics)
        })]
        fn biased_attention(
            query: FloatTensor<Self>,
            key: FloatTensor<Self>,
            value: FloatTensor<Self>,
            bias: FloatTensor<Self>,
            dropout: Option<DropoutMask>,
        ) -> (FloatTensor<Self>, FloatTensor<Self>) {
            match Self::on_host([&query, &key, &value, &bias]) {
                true => cpu::attention::<Self>([&query, &key, &value], &bias, dropout),
                false => primitive::attention::<Self>(query, key, value, bias, dropout),
            }
        }

        /// The gradients of query, key, value and bias. `saved` is the forward pass's second output. If the bias's
        /// gradient isn't asked for, it may be anything of the bias's shape: a sum over all scores is saved.
        #[fusion(meta = |query, key, value, bias, _output, _saved, _grad, _dropout, _asked| {
            (query.clone(), key.clone(), value.clone(), bias.clone())
        })]
        #[allow(clippy::too_many_arguments)]
        fn biased_attention_backward(
            query: FloatTensor<Self>,
            key: FloatTensor<Self>,
            value: FloatTensor<Self>,
            bias: FloatTensor<Self>,
            output: FloatTensor<Self>,
            saved: FloatTensor<Self>,
            output_grad: FloatTensor<Self>,
            dropout: Option<DropoutMask>,
            bias_grad_asked: bool,
        ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
            // What was saved says which body ran: both look at the same four tensors.
            match Self::on_host([&query, &key, &value, &bias]) {
                true => cpu::attention_backward::<Self>(
                    [&query, &key, &value, &output, &output_grad],
                    &bias,
                    &saved,
                    dropout,
                ),
                false => primitive::attention_backward::<Self>(
                    query,
                    key,
                    value,
                    bias,
                    saved,
                    output_grad,
                    dropout,
                    bias_grad_asked,
                ),
            }
        }
    }
}

impl<B: AttentionBackend, C: CheckpointStrategy> AttentionBackend for Autodiff<B, C> {
    fn biased_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        dropout: Option<DropoutMask>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let mut also = None;
        let output = record_asked::<B, C, _, 4>(
            [query, key, value, bias],
            |[query, key, value, bias]| {
                let inputs = [query.clone(), key.clone(), value.clone(), bias.clone()];
                let (output, saved) = B::biased_attention(query, key, value, bias, dropout);
                also = Some(saved.clone());
                (output.clone(), (inputs, output, saved, dropout))
            },
            |([query, key, value, bias], output, saved, dropout), grad, [.., asked]| {
                B::biased_attention_backward(
                    query, key, value, bias, output, saved, grad, dropout, asked,
                )
                .into()
            },
        );
        (output, Self::from_inner(also.expect("the operation has run")))
    }
}

#[cfg(test)]
mod tests;
