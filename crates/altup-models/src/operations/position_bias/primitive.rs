//! The operation of primitive tensor operations: what a CPU and a backend without kernels run, and what kernels are
//! tested against.

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::{FloatDType, IndexingUpdateOp, Shape};

use altup_backend::{cast, to_f32};

pub(super) fn position_bias<B: Backend>(
    weight: FloatTensor<B>,
    buckets: IntTensor<B>,
    [queries, keys]: [usize; 2],
) -> FloatTensor<B> {
    let heads = weight.shape()[1];
    // Head by head in memory, as the scores are that it is added to in every layer.
    let by_head = B::float_select(B::float_swap_dims(weight, 0, 1), 1, buckets);
    to_f32::<B>(B::float_reshape(by_head, Shape::new([1, heads, queries, keys])))
}

pub(super) fn position_bias_backward<B: Backend>(
    weight: FloatTensor<B>,
    buckets: IntTensor<B>,
    output_grad: FloatTensor<B>,
) -> FloatTensor<B> {
    let [num_buckets, heads] = [0, 1].map(|dim| weight.shape()[dim]);
    let positions = Shape::new([heads, buckets.shape()[0]]);
    // In f32, as a bucket is that of most pairs of a long sequence: a sum of so many loses all that a half type has.
    let grad = B::float_reshape(to_f32::<B>(output_grad), positions);
    let shape = Shape::new([heads, num_buckets]);
    let zeros = B::float_zeros(shape, &weight.device(), FloatDType::F32);
    let by_head = B::float_select_assign(zeros, 1, buckets, grad, IndexingUpdateOp::Add);
    cast::<B>(B::float_swap_dims(by_head, 0, 1), weight.dtype())
}
