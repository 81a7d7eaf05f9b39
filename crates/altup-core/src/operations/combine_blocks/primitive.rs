//! The operation as a chain of primitive tensor operations. Backends without a kernel run it; kernels are tested
//! against it.

use altup_backend::cast;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::{DType, Shape, Slice};

/// As [`CombineBlocksBackend::combine_blocks`](super::CombineBlocksBackend::combine_blocks).
pub fn combine_blocks<B: Backend>(
    state: FloatTensor<B>,
    computed: FloatTensor<B>,
    coefs: FloatTensor<B>,
) -> FloatTensor<B> {
    let shape = state.shape();
    if shape.num_elements() == 0 {
        return state;
    }
    let coefs = cast::<B>(coefs, state.dtype());
    let inputs = side_by_side::<B>(state, computed);
    if coefs.shape().num_dims() == 2 {
        let rows = rows::<B>(inputs);
        return B::float_reshape(B::float_matmul(coefs, rows), shape);
    }
    blocks_first::<B>(B::float_matmul(coefs, blocks_last::<B>(inputs)))
}

/// As [`CombineBlocksBackend::combine_blocks_backward`](super::CombineBlocksBackend::combine_blocks_backward).
pub fn combine_blocks_backward<B: Backend>(
    state: FloatTensor<B>,
    computed: FloatTensor<B>,
    coefs: FloatTensor<B>,
    output_grad: FloatTensor<B>,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let computed_shape = computed.shape();
    if computed_shape.num_elements() == 0 {
        let coefs_grad = B::float_zeros(coefs.shape(), &coefs.device(), coefs.dtype().into());
        return (state, computed, coefs_grad);
    }
    let by_token = coefs.shape().num_dims() == 4;
    let transposed = {
        let (a, b) = if by_token { (2, 3) } else { (0, 1) };
        B::float_swap_dims(cast::<B>(coefs.clone(), state.dtype()), a, b)
    };
    let [num_blocks, batch_size, seq_length, width] = [0, 1, 2, 3].map(|dim| state.shape()[dim]);
    let (grads, coefs_grad) = if by_token {
        let coefs_dtype = coefs.dtype();
        let output_grad = blocks_last::<B>(output_grad);
        let inputs = blocks_last::<B>(side_by_side::<B>(state, computed));
        let grads = blocks_first::<B>(B::float_matmul(transposed, output_grad.clone()));
        let products = B::float_matmul(output_grad, B::float_swap_dims(inputs, 2, 3));
        (grads, cast::<B>(products, coefs_dtype))
    } else {
        let grads = B::float_matmul(transposed, rows::<B>(output_grad.clone()));
        let shape = Shape::new([num_blocks + 1, batch_size, seq_length, width]);
        (B::float_reshape(grads, shape), coefs_grad::<B>(state, computed, coefs, output_grad))
    };
    let blocks = |range: std::ops::Range<usize>| {
        let whole = [batch_size, seq_length, width].map(|length| Slice::from(0..length));
        B::float_slice(grads.clone(), &[Slice::from(range), whole[0], whole[1], whole[2]])
    };
    let computed_grad = B::float_reshape(blocks(num_blocks..num_blocks + 1), computed_shape);
    (blocks(0..num_blocks), computed_grad, coefs_grad)
}

/// The gradient of one matrix for all tokens, `[K, K + 1]`.
pub(super) fn coefs_grad<B: Backend>(
    state: FloatTensor<B>,
    computed: FloatTensor<B>,
    coefs: FloatTensor<B>,
    output_grad: FloatTensor<B>,
) -> FloatTensor<B> {
    if output_grad.shape().num_elements() == 0 {
        // Not by a product over nothing: Burn's autotuned one for GPUs leaves its output as it finds it.
        return B::float_zeros(coefs.shape(), &coefs.device(), coefs.dtype().into());
    }
    // In f32 if it has more bits: these are sums over all tokens.
    let dtype = match output_grad.dtype() {
        DType::F16 | DType::BF16 => DType::F32,
        dtype => dtype,
    };
    let [state, computed, output_grad] =
        [state, computed, output_grad].map(|blocks| cast::<B>(blocks, dtype));
    let output_grad = rows::<B>(output_grad);
    let block = one_block(&computed.shape());
    let computed = B::float_reshape(computed, block);
    let products = [state, computed].map(|blocks| {
        B::float_matmul(output_grad.clone(), B::float_swap_dims(rows::<B>(blocks), 0, 1))
    });
    cast::<B>(B::float_cat(products.into(), 1), coefs.dtype())
}

/// The old blocks and x̃: `[K + 1, B, T, d]`.
fn side_by_side<B: Backend>(state: FloatTensor<B>, computed: FloatTensor<B>) -> FloatTensor<B> {
    let shape = one_block(&computed.shape());
    B::float_cat(vec![state, B::float_reshape(computed, shape)], 0)
}

fn one_block(shape: &Shape) -> Shape {
    Shape::new([1, shape[0], shape[1], shape[2]])
}

/// `[K, B, T, d]` to `[K, B·T·d]`
fn rows<B: Backend>(blocks: FloatTensor<B>) -> FloatTensor<B> {
    let shape = blocks.shape();
    B::float_reshape(blocks, Shape::new([shape[0], shape.num_elements() / shape[0]]))
}

/// `[K, B, T, d]` to `[B, T, K, d]`
fn blocks_last<B: Backend>(blocks: FloatTensor<B>) -> FloatTensor<B> {
    B::float_permute(blocks, &[1, 2, 0, 3])
}

/// `[B, T, K, d]` to `[K, B, T, d]`
fn blocks_first<B: Backend>(blocks: FloatTensor<B>) -> FloatTensor<B> {
    B::float_permute(blocks, &[2, 0, 1, 3])
}
