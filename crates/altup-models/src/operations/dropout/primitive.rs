//! The operation on any backend: the factors are made on the host.

use altup_backend::philox::DropoutMask;
use altup_backend::{for_each, vectorized};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::TensorData;

use altup_backend::cast;

pub(super) fn dropout<B: Backend>(x: FloatTensor<B>, mask: DropoutMask) -> FloatTensor<B> {
    let (shape, dtype, device) = (x.shape(), x.dtype(), x.device());
    let mut factors = vec![0.0; shape.num_elements()];
    let width = shape.last().copied().unwrap_or(1).max(1);
    let values = factors.len();
    let rows = factors.chunks_mut(width).enumerate().collect();
    for_each(rows, values, |(row, factors): (usize, &mut [f32])| {
        vectorized(|| mask.factors(row, factors));
    });
    let factors = B::float_from_data(TensorData::new(factors, shape), &device);
    B::float_mul(x, cast::<B>(factors, dtype))
}
