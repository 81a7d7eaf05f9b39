//! The operation of primitive tensor operations: what a backend without kernels runs, and what kernels are
//! tested against.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};

use altup_backend::cast;

pub(super) fn project<B: Backend>(x: FloatTensor<B>, weight: FloatTensor<B>) -> FloatTensor<B> {
    let weight = cast::<B>(weight, x.dtype());
    B::float_matmul(x, weight)
}
