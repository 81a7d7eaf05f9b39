//! Products of many rows, by all threads.

use altup_backend::HostTensors;
use burn::backend::TensorMetadata;
use burn::backend::tensor::FloatTensor;
use burn::tensor::Shape;

/// The product of two matrices, wherever their values lie in memory: one may be the transposed view of a tensor.
pub(super) fn product<B: HostTensors>(
    left: &FloatTensor<B>,
    right: &FloatTensor<B>,
) -> FloatTensor<B> {
    let shape = Shape::new([left.shape()[0], right.shape()[1]]);
    let [of_left, of_right] = [left, right].map(|factor| B::strided::<2>(factor).matrix());
    B::of_values(altup_backend::product(of_left, of_right), shape, left)
}
