//! The operation as a chain of primitive tensor operations. Backends without a kernel run it; kernels are tested
//! against it.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};

use altup_backend::cast;

pub(super) fn project<B: Backend>(x: FloatTensor<B>, weight: FloatTensor<B>) -> FloatTensor<B> {
    let weight = cast::<B>(weight, x.dtype());
    B::float_matmul(x, weight)
}
