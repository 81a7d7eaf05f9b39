//! The operations of primitive tensor operations: what a backend without kernels of its own runs, and
//! what kernels are tested against.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::{Shape, Slice};

/// [`AltUpBackend::altup_update`](super::AltUpBackend::altup_update)
pub(super) fn altup_update<B: Backend>(
    state: FloatTensor<B>,
    computed: FloatTensor<B>,
    prediction_coefs: FloatTensor<B>,
    correction_coefs: FloatTensor<B>,
    block: usize,
) -> FloatTensor<B> {
    let shape = state.shape();
    let coefs = folded_coefs::<B>(prediction_coefs, correction_coefs, block);
    let updated = B::float_matmul(coefs, blocks::<B>(state, computed));
    B::float_reshape(updated, shape)
}

/// [`AltUpBackend::altup_update_backward`](super::AltUpBackend::altup_update_backward)
pub(super) fn altup_update_backward<B: Backend>(
    state: FloatTensor<B>,
    computed: FloatTensor<B>,
    prediction_coefs: FloatTensor<B>,
    correction_coefs: FloatTensor<B>,
    output_grad: FloatTensor<B>,
    block: usize,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let (state_shape, computed_shape) = (state.shape(), computed.shape());
    let num_blocks = state_shape[0];
    let block_size = computed_shape.num_elements();
    let coefs = folded_coefs::<B>(prediction_coefs.clone(), correction_coefs.clone(), block);
    let output_grad = B::float_reshape(output_grad, Shape::new([num_blocks, block_size]));

    let grads = B::float_matmul(B::float_swap_dims(coefs, 0, 1), output_grad.clone());
    let state_grad = rows::<B>(grads.clone(), 0..num_blocks, block_size);
    let computed_grad = rows::<B>(grads, num_blocks..num_blocks + 1, block_size);

    let blocks = B::float_swap_dims(blocks::<B>(state, computed), 0, 1);
    let coefs_grad = B::float_matmul(output_grad, blocks);
    let (prediction_grad, correction_grad) =
        unfolded_grads::<B>(coefs_grad, prediction_coefs, correction_coefs, block);
    (
        B::float_reshape(state_grad, state_shape),
        B::float_reshape(computed_grad, computed_shape),
        prediction_grad,
        correction_grad,
    )
}

/// The update's matrix: column j < K is pᵢⱼ − gᵢ pⱼ*ⱼ, the last one gᵢ, `[K, K + 1]`.
pub(super) fn folded_coefs<B: Backend>(
    prediction_coefs: FloatTensor<B>,
    correction_coefs: FloatTensor<B>,
    block: usize,
) -> FloatTensor<B> {
    let num_blocks = correction_coefs.shape()[0];
    let selected = rows::<B>(prediction_coefs.clone(), block..block + 1, num_blocks);
    let gains = B::float_reshape(correction_coefs, Shape::new([num_blocks, 1]));
    let old = B::float_sub(prediction_coefs, B::float_matmul(gains.clone(), selected));
    B::float_cat(vec![old, gains], 1)
}

/// The gradients of p and g from that of the update's matrix.
///
/// pᵢⱼ stands in cᵢⱼ, and pⱼ*ⱼ in every cᵢⱼ too, times −gᵢ; gᵢ stands in the last column, and in cᵢⱼ times
/// −pⱼ*ⱼ.
pub(super) fn unfolded_grads<B: Backend>(
    coefs_grad: FloatTensor<B>,
    prediction_coefs: FloatTensor<B>,
    correction_coefs: FloatTensor<B>,
    block: usize,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let num_blocks = correction_coefs.shape()[0];
    let all = Slice::from(0..num_blocks);
    let old = B::float_slice(coefs_grad.clone(), &[all, all]);
    let direct = B::float_slice(coefs_grad, &[all, Slice::from(num_blocks..num_blocks + 1)]);

    let selected = rows::<B>(prediction_coefs, block..block + 1, num_blocks);
    let through = B::float_matmul(old.clone(), B::float_swap_dims(selected, 0, 1));
    let correction_grad = B::float_reshape(B::float_sub(direct, through), Shape::new([num_blocks]));

    let gains = B::float_reshape(correction_coefs, Shape::new([1, num_blocks]));
    let row = [Slice::from(block..block + 1), all];
    let own = B::float_slice(old.clone(), &row);
    let prediction_grad =
        B::float_slice_assign(old.clone(), &row, B::float_sub(own, B::float_matmul(gains, old)));
    (prediction_grad, correction_grad)
}

/// The old blocks and x̃, one a row: `[K + 1, B·T·d]`.
fn blocks<B: Backend>(state: FloatTensor<B>, computed: FloatTensor<B>) -> FloatTensor<B> {
    let num_blocks = state.shape()[0];
    let block_size = computed.shape().num_elements();
    let state = B::float_reshape(state, Shape::new([num_blocks, block_size]));
    let computed = B::float_reshape(computed, Shape::new([1, block_size]));
    B::float_cat(vec![state, computed], 0)
}

fn rows<B: Backend>(
    matrix: FloatTensor<B>,
    rows: std::ops::Range<usize>,
    columns: usize,
) -> FloatTensor<B> {
    B::float_slice(matrix, &[Slice::from(rows), Slice::from(0..columns)])
}
