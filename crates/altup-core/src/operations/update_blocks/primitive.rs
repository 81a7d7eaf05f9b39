//! The operations as chains of primitive tensor operations. Backends without kernels run them; kernels are tested
//! against them.

use altup_backend::cast;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::{DType, Shape, Slice};

/// As [`UpdateBlocksBackend::select_block`](super::UpdateBlocksBackend::select_block), by the block's number.
pub fn select_block<B: Backend>(state: FloatTensor<B>, block: usize) -> FloatTensor<B> {
    let shape = state.shape();
    let selected = B::float_slice(state, &one_of(&shape, block));
    B::float_reshape(selected, Shape::new([shape[1], shape[2], shape[3]]))
}

/// As [`UpdateBlocksBackend::add_to_block`](super::UpdateBlocksBackend::add_to_block), by the block's number.
pub fn add_to_block<B: Backend>(
    state: FloatTensor<B>,
    added: FloatTensor<B>,
    block: usize,
) -> FloatTensor<B> {
    let place = one_of(&state.shape(), block);
    let old = B::float_slice(state.clone(), &place);
    let sum = B::float_add(B::float_reshape(added, old.shape()), old);
    B::float_slice_assign(state, &place, sum)
}

/// A state of zeros but for one block: the gradient of a block that was selected.
pub fn in_block<B: Backend>(
    grad: FloatTensor<B>,
    num_blocks: usize,
    block: usize,
) -> FloatTensor<B> {
    let [batch_size, seq_length, width] = [0, 1, 2].map(|dim| grad.shape()[dim]);
    let shape = Shape::new([num_blocks, batch_size, seq_length, width]);
    let zeros = B::float_zeros(shape.clone(), &grad.device(), grad.dtype().into());
    let grad = B::float_reshape(grad, Shape::new([1, batch_size, seq_length, width]));
    B::float_slice_assign(zeros, &one_of(&shape, block), grad)
}

/// p and g in one matrix, `[K, K + 1]`: cᵢⱼ = pᵢⱼ − gᵢ pⱼ*ⱼ, and gᵢ behind them. In f32 if p and g have fewer bits.
pub fn fold<B: Backend>(p: FloatTensor<B>, g: FloatTensor<B>, block: usize) -> FloatTensor<B> {
    let [p, g] = [p, g].map(at_least_f32::<B>);
    let (gains, row) = (column::<B>(g), row::<B>(p.clone(), block));
    let of_blocks = B::float_sub(p, B::float_mul(gains.clone(), row));
    B::float_cat(vec![of_blocks, gains], 1)
}

/// The gradients of p and g, from that of the matrix.
pub fn fold_backward<B: Backend>(
    coefs_grad: FloatTensor<B>,
    p: FloatTensor<B>,
    g: FloatTensor<B>,
    block: usize,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let (p_dtype, g_dtype, g_shape) = (p.dtype(), g.dtype(), g.shape());
    let [p, g] = [p, g].map(at_least_f32::<B>);
    let (shape, num_blocks) = (p.shape(), p.shape()[0]);
    let (gains, row) = (column::<B>(g), row::<B>(p, block));
    let columns = |range: std::ops::Range<usize>| {
        B::float_slice(coefs_grad.clone(), &[Slice::from(0..num_blocks), Slice::from(range)])
    };
    let (of_blocks, of_gains) = (columns(0..num_blocks), columns(num_blocks..num_blocks + 1));
    let of_products = B::float_neg(of_blocks.clone());
    let of_row = B::float_sum_dim(B::float_mul(of_products.clone(), gains), 0);
    let zeros = B::float_zeros(shape, &of_row.device(), of_row.dtype().into());
    let of_row = B::float_slice_assign(zeros, &row_of(num_blocks, block), of_row);
    let of_gains = B::float_add(of_gains, B::float_sum_dim(B::float_mul(of_products, row), 1));
    (
        cast::<B>(B::float_add(of_row, of_blocks), p_dtype),
        cast::<B>(B::float_reshape(of_gains, g_shape), g_dtype),
    )
}

/// With enough bits for a coefficient.
fn at_least_f32<B: Backend>(tensor: FloatTensor<B>) -> FloatTensor<B> {
    match tensor.dtype() {
        DType::F16 | DType::BF16 => cast::<B>(tensor, DType::F32),
        _ => tensor,
    }
}

/// g as `[K, 1]`.
fn column<B: Backend>(g: FloatTensor<B>) -> FloatTensor<B> {
    let num_blocks = g.shape()[0];
    B::float_reshape(g, Shape::new([num_blocks, 1]))
}

/// Row j* of p, `[1, K]`.
fn row<B: Backend>(p: FloatTensor<B>, block: usize) -> FloatTensor<B> {
    let num_blocks = p.shape()[0];
    B::float_slice(p, &row_of(num_blocks, block))
}

fn row_of(num_blocks: usize, block: usize) -> [Slice; 2] {
    [Slice::from(block..block + 1), Slice::from(0..num_blocks)]
}

/// One block of a state of this shape.
fn one_of(shape: &Shape, block: usize) -> [Slice; 4] {
    let whole = |dim: usize| Slice::from(0..shape[dim]);
    [Slice::from(block..block + 1), whole(1), whole(2), whole(3)]
}
