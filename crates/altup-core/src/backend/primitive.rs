//! The operations of primitive tensor operations: what a backend without kernels of its own runs, and
//! what kernels are tested against.

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::{IndexingUpdateOp, Shape, Slice, TensorData};

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

    let coefs_grad = coefs_grad::<B>(state, computed, output_grad);
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

/// The gradient of the update's matrix, `[K, K + 1]`: the inner products of the blocks of `output_grad` with
/// the old blocks and x̃.
pub(super) fn coefs_grad<B: Backend>(
    state: FloatTensor<B>,
    computed: FloatTensor<B>,
    output_grad: FloatTensor<B>,
) -> FloatTensor<B> {
    let num_blocks = state.shape()[0];
    let block_size = computed.shape().num_elements();
    if block_size == 0 {
        // Not by a product over nothing: Burn's autotuned one for GPUs leaves its output as it finds it.
        let shape = Shape::new([num_blocks, num_blocks + 1]);
        return B::float_zeros(shape, &state.device(), state.dtype().into());
    }
    let rows = |tensor, rows| B::float_reshape(tensor, Shape::new([rows, block_size]));
    let output_grad = rows(output_grad, num_blocks);
    let products = [(state, num_blocks), (computed, 1)].map(|(blocks, count)| {
        let blocks = B::float_swap_dims(rows(blocks, count), 0, 1);
        B::float_matmul(output_grad.clone(), blocks)
    });
    B::float_cat(products.into(), 1)
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

/// [`AltUpBackend::sequence_update`](super::AltUpBackend::sequence_update)
pub(super) fn sequence_update<B: Backend>(
    x: FloatTensor<B>,
    computed: FloatTensor<B>,
    prediction_coefs: FloatTensor<B>,
    correction_coef: FloatTensor<B>,
    stride: usize,
) -> FloatTensor<B> {
    let places = Places::<B>::new(&x, stride);
    let [of_token, of_anchor, _, gain] = sequence_coefs::<B>(prediction_coefs, correction_coef);
    let anchors = B::float_select(x.clone(), 1, places.anchors_of_tokens);
    let computed = B::float_select(computed, 1, places.windows_of_tokens);
    let sum = B::float_add(B::float_mul(x, of_token), B::float_mul(anchors, of_anchor));
    B::float_add(sum, B::float_mul(computed, gain))
}

/// [`AltUpBackend::sequence_update_backward`](super::AltUpBackend::sequence_update_backward)
pub(super) fn sequence_update_backward<B: Backend>(
    x: FloatTensor<B>,
    computed: FloatTensor<B>,
    prediction_coefs: FloatTensor<B>,
    correction_coef: FloatTensor<B>,
    output_grad: FloatTensor<B>,
    stride: usize,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let places = Places::<B>::new(&x, stride);
    let coefs = sequence_coefs::<B>(prediction_coefs, correction_coef);
    let [of_token, of_anchor, _, _] = coefs.clone();
    let (device, dtype) = (computed.device(), computed.dtype());
    let zeros = B::float_zeros(computed.shape(), &device, dtype.into());
    let windows = B::float_select_assign(
        zeros,
        1,
        places.windows_of_tokens,
        output_grad.clone(),
        IndexingUpdateOp::Add,
    );
    let x_grad = B::float_select_assign(
        B::float_mul(output_grad.clone(), of_token),
        1,
        places.anchors.clone(),
        B::float_mul(windows.clone(), of_anchor),
        IndexingUpdateOp::Add,
    );
    let anchors = B::float_select(x.clone(), 1, places.anchors);
    let (computed_grad, prediction_grad, correction_grad) =
        gathered_grads::<B>([x, output_grad], [windows, anchors, computed], coefs);
    (x_grad, computed_grad, prediction_grad, correction_grad)
}

/// The gradients of what was computed, of (a₁, a₂) and of b: from the tokens and their gradients, and from
/// each window's sum of gradients, anchor and computed token.
pub(super) fn gathered_grads<B: Backend>(
    [x, output_grad]: [FloatTensor<B>; 2],
    [windows, anchors, computed]: [FloatTensor<B>; 3],
    [_, _, both, gain]: [FloatTensor<B>; 4],
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let inner = |a: FloatTensor<B>, b: FloatTensor<B>| match a.shape().num_elements() {
        // Nor is a sum over nothing left to the backend: see `coefs_grad`.
        0 => B::float_zeros(Shape::new([1]), &a.device(), a.dtype().into()),
        _ => B::float_reshape(B::float_sum(B::float_mul(a, b)), Shape::new([1])),
    };
    let with_tokens = inner(output_grad, x);
    let with_anchors = inner(windows.clone(), anchors);
    let with_computed = inner(windows.clone(), computed);
    let computed_grad = B::float_mul(windows, gain.clone());
    let [both, gain] = [both, gain].map(|coef| B::float_reshape(coef, Shape::new([1])));
    let corrected = B::float_mul(gain, with_anchors.clone());
    let prediction_grad = B::float_cat(
        vec![
            B::float_sub(with_tokens, corrected.clone()),
            B::float_sub(with_anchors.clone(), corrected),
        ],
        0,
    );
    let correction_grad = B::float_sub(with_computed, B::float_mul(both, with_anchors));
    (computed_grad, prediction_grad, correction_grad)
}

/// a₁, a₂ − b (a₁ + a₂), a₁ + a₂ and b, each `[1, 1, 1]`.
pub(super) fn sequence_coefs<B: Backend>(
    prediction_coefs: FloatTensor<B>,
    correction_coef: FloatTensor<B>,
) -> [FloatTensor<B>; 4] {
    let scalar = |tensor: FloatTensor<B>| B::float_reshape(tensor, Shape::new([1, 1, 1]));
    let coef = |index: usize| {
        scalar(B::float_slice(prediction_coefs.clone(), &[Slice::from(index..index + 1)]))
    };
    let (first, second, gain) = (coef(0), coef(1), scalar(correction_coef));
    let both = B::float_add(first.clone(), second.clone());
    let of_anchor = B::float_sub(second, B::float_mul(gain.clone(), both.clone()));
    [first, of_anchor, both, gain]
}

/// Where the tokens of a sequence are, in it and among its windows.
struct Places<B: Backend> {
    /// Of each token, `[T]`.
    anchors_of_tokens: IntTensor<B>,
    /// Of each token, `[T]`.
    windows_of_tokens: IntTensor<B>,
    /// Of each window, `[⌈T/k⌉]`.
    anchors: IntTensor<B>,
}

impl<B: Backend> Places<B> {
    fn new(x: &FloatTensor<B>, stride: usize) -> Self {
        let (length, device) = (x.shape()[1], x.device());
        let indices = |indices: Vec<i32>| {
            let count = indices.len();
            B::int_from_data(TensorData::new(indices, [count]), &device)
        };
        let tokens = || 0..length;
        Self {
            anchors_of_tokens: indices(tokens().map(|i| (i / stride * stride) as i32).collect()),
            windows_of_tokens: indices(tokens().map(|i| (i / stride) as i32).collect()),
            anchors: indices(tokens().step_by(stride).map(|i| i as i32).collect()),
        }
    }
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
