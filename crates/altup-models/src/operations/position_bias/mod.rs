//! The bias of each query on each key, from a table by buckets of distances.

#[cfg(feature = "cube")]
mod cube;
mod primitive;

use altup_backend::record;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Dispatch};
use burn::tensor::{Int, Tensor};

/// `weight[buckets[query, key], head]`, in f32.
///
/// # Shapes
///
/// - weight: `[num_buckets, num_heads]`
/// - buckets: `[queries · keys]`, which depend on key − query alone and are below num_buckets; neither is checked
/// - output: `[1, num_heads, queries, keys]`
///
/// # Panics
///
/// Panics if there isn't a bucket for each query and key.
pub fn position_bias(
    weight: Tensor<2>,
    buckets: Tensor<1, Int>,
    [queries, keys]: [usize; 2],
) -> Tensor<4> {
    let [count] = buckets.dims();
    assert_eq!(count, queries * keys, "Got {queries} queries, {keys} keys, {count} buckets");
    Tensor::from_dispatch(<Dispatch as PositionBiasBackend>::position_bias(
        weight.into_dispatch(),
        buckets.into_dispatch(),
        [queries, keys],
    ))
}

altup_backend::operations! {
    gpu_kernels
    /// [`position_bias`] on a backend.
    pub trait PositionBiasBackend {
        /// Shapes as in [`position_bias`].
        #[fusion(meta = |weight, _buckets, [queries, keys]| {
            let shape = burn::tensor::Shape::new([1, weight.shape[1], *queries, *keys]);
            burn::backend::fusion::custom::TensorSpec::new(shape, burn::tensor::DType::F32)
        })]
        fn position_bias(
            weight: FloatTensor<Self>,
            buckets: IntTensor<Self>,
            lengths: [usize; 2],
        ) -> FloatTensor<Self> {
            primitive::position_bias::<Self>(weight, buckets, lengths)
        }

        /// The gradient of the weight.
        #[fusion(meta = |weight, _buckets, _grad| weight.clone())]
        fn position_bias_backward(
            weight: FloatTensor<Self>,
            buckets: IntTensor<Self>,
            output_grad: FloatTensor<Self>,
        ) -> FloatTensor<Self> {
            primitive::position_bias_backward::<Self>(weight, buckets, output_grad)
        }
    }
}

impl<B: PositionBiasBackend, C: CheckpointStrategy> PositionBiasBackend for Autodiff<B, C> {
    fn position_bias(
        weight: FloatTensor<Self>,
        buckets: IntTensor<Self>,
        lengths: [usize; 2],
    ) -> FloatTensor<Self> {
        record::<B, C, _, 1>(
            [weight],
            |[weight]| {
                (B::position_bias(weight.clone(), buckets.clone(), lengths), (weight, buckets))
            },
            |(weight, buckets), grad| [B::position_bias_backward(weight, buckets, grad)],
        )
    }
}

#[cfg(test)]
mod tests;
