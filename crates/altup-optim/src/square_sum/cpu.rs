//! On a CPU in f32: sums of fixed parts of a tensor by all threads, added up in f64 in the order of the parts. The sum is
//! the same whatever the number of threads, where flex's own of a large tensor depends on which thread came first.

use altup_backend::vector::sum;
use altup_backend::{HostTensors, map, vectorized};
use burn::backend::tensor::FloatTensor;

/// Values of a part.
const CHUNK: usize = 16 * 1024;

/// `sums` with the sum of squares of all values of `tensor` in the place `number`.
pub(super) fn with_square_sum<B: HostTensors>(
    sums: FloatTensor<B>,
    tensor: &FloatTensor<B>,
    number: usize,
) -> FloatTensor<B> {
    let values = B::values(tensor);
    let of_part = |part: &[f32]| vectorized(|| sum(part.len(), |i| part[i] * part[i]));
    let parts = map(values.chunks(CHUNK).collect(), values.len(), of_part);
    let mut sums = B::to_write(sums);
    B::values_mut(&mut sums)[number] = parts.into_iter().map(f64::from).sum::<f64>() as f32;
    sums
}
