//! Kernels against the bodies of primitive operations, at shapes where vectors and tasks end anywhere.
//!
//! Golden values, on every backend: `altup-train`'s conformance suite.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::{TensorData, Tolerance};

use super::AltUpBackend;
use super::{combine_blocks, combine_windows};

/// Values between −1 and 1 that repeat after no length used here.
pub(super) fn values<B: Backend>(shape: &[usize], seed: usize) -> FloatTensor<B> {
    let count = shape.iter().product();
    let value = |i: usize| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0;
    let values: Vec<f32> = (0..count).map(value).collect();
    B::float_from_data(TensorData::new(values, shape.to_vec()), &B::Device::default())
}

/// The same values in another order of memory: the last two dimensions change places and back.
pub(super) fn permuted<B: Backend>(tensor: FloatTensor<B>) -> FloatTensor<B> {
    let rank = tensor.shape().num_dims();
    let (a, b) = (rank - 2, rank - 1);
    let shape = B::float_swap_dims(tensor.clone(), a, b).shape();
    let row_by_row = B::float_reshape(B::float_swap_dims(tensor, a, b), shape);
    B::float_swap_dims(row_by_row, a, b)
}

#[track_caller]
pub(super) fn assert_close<B: Backend>(
    what: &str,
    found: FloatTensor<B>,
    expected: FloatTensor<B>,
) {
    let data = |tensor| burn::tensor::read_sync(B::float_into_data(tensor)).unwrap();
    let (found, expected) = (data(found), data(expected));
    assert_eq!(found.shape(), expected.shape(), "{what}");
    // Sums over up to 20 000 products of f32 between −1 and 1, in two orders.
    found.assert_approx_eq::<f32>(&expected, Tolerance::rel_abs(1e-4, 2e-3));
}

#[track_caller]
fn all_close<B: Backend>(
    what: &str,
    found: (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>),
    expected: (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>),
) {
    assert_close::<B>(what, found.0, expected.0);
    assert_close::<B>(what, found.1, expected.1);
    assert_close::<B>(what, found.2, expected.2);
}

/// With a matrix for all tokens, for which there are kernels.
fn blocks<B: AltUpBackend>() {
    let shapes = [(1, 1, 1), (2, 3, 5), (1, 1, 33), (3, 7, 16), (2, 600, 17)];
    for num_blocks in 1..=8 {
        for (batch_size, seq_length, width) in shapes {
            let shape = [num_blocks, batch_size, seq_length, width];
            let state = values::<B>(&shape, 1);
            let computed = values::<B>(&shape[1..], 2);
            let grad = values::<B>(&shape, 3);
            let coefs = values::<B>(&[num_blocks, num_blocks + 1], 4);
            let what = format!("{shape:?}");
            let contiguous = [state, computed, coefs, grad];
            let other = contiguous.clone().map(permuted::<B>);
            for [state, computed, coefs, grad] in [contiguous, other] {
                let inputs = || (state.clone(), computed.clone(), coefs.clone());
                let (state, computed, coefs) = inputs();
                let found = B::combine_blocks(state, computed, coefs);
                let (state, computed, coefs) = inputs();
                let expected =
                    combine_blocks::primitive::combine_blocks::<B>(state, computed, coefs);
                assert_close::<B>(&what, found, expected);
                let (state, computed, coefs) = inputs();
                let found = B::combine_blocks_backward(state, computed, coefs, grad.clone());
                let (state, computed, coefs) = inputs();
                let expected = combine_blocks::primitive::combine_blocks_backward::<B>(
                    state, computed, coefs, grad,
                );
                all_close::<B>(&what, found, expected);
            }
        }
    }
}

/// One matrix for all tokens is the same matrix for each.
fn a_matrix_for_all_tokens_is_that_of_each<B: AltUpBackend>() {
    let (num_blocks, batch_size, seq_length, width) = (3, 2, 4, 5);
    let state = values::<B>(&[num_blocks, batch_size, seq_length, width], 1);
    let computed = values::<B>(&[batch_size, seq_length, width], 2);
    let shared = values::<B>(&[num_blocks, num_blocks + 1], 3);
    let grad = values::<B>(&[num_blocks, batch_size, seq_length, width], 4);
    let by_token = B::float_expand(
        shared.clone(),
        vec![batch_size, seq_length, num_blocks, num_blocks + 1].into(),
    );
    let combine = |coefs| B::combine_blocks(state.clone(), computed.clone(), coefs);
    assert_close::<B>("output", combine(by_token.clone()), combine(shared.clone()));
    let backward =
        |coefs| B::combine_blocks_backward(state.clone(), computed.clone(), coefs, grad.clone());
    let (of_state, of_computed, of_tokens) = backward(by_token);
    let tokens = B::float_reshape(
        of_tokens,
        vec![batch_size * seq_length, num_blocks * (num_blocks + 1)].into(),
    );
    let summed =
        B::float_reshape(B::float_sum_dim(tokens, 0), vec![num_blocks, num_blocks + 1].into());
    all_close::<B>("gradients", (of_state, of_computed, summed), backward(shared));
}

/// At strides that divide the length, that do not, and that are longer than it.
fn windows<B: AltUpBackend>() {
    for (batch_size, seq_length, width) in [(1, 1, 1), (2, 8, 5), (3, 13, 16), (2, 150, 70)] {
        for stride in [1, 2, 3, 4, 20] {
            let count = usize::div_ceil(seq_length, stride);
            let x = values::<B>(&[batch_size, seq_length, width], 1);
            let computed = values::<B>(&[batch_size, count, width], 2);
            let coefs = values::<B>(&[3], 3);
            let grad = values::<B>(&[batch_size, seq_length, width], 5);
            let what = format!("{batch_size} × {seq_length} × {width}, stride {stride}");
            let contiguous = [x, computed, grad];
            let other = contiguous.clone().map(permuted::<B>);
            for [x, computed, grad] in [contiguous, other] {
                let inputs = || (x.clone(), computed.clone(), coefs.clone());
                let (x, computed, coefs) = inputs();
                let found = B::combine_windows(x, computed, coefs, stride);
                let (x, computed, coefs) = inputs();
                let expected =
                    combine_windows::primitive::combine_windows::<B>(x, computed, coefs, stride);
                assert_close::<B>(&what, found, expected);
                let (x, computed, coefs) = inputs();
                let found = B::combine_windows_backward(x, computed, coefs, grad.clone(), stride);
                let (x, computed, coefs) = inputs();
                let expected = combine_windows::primitive::combine_windows_backward::<B>(
                    x, computed, coefs, grad, stride,
                );
                all_close::<B>(&what, found, expected);
            }
        }
    }
}

/// Of an empty batch, which ndarray's own products do not take. Gradients of coefficients are zeros then.
fn an_empty_batch_stays_empty<B: AltUpBackend>() {
    let zeros = |shape: &[usize]| B::float_mul_scalar(values::<B>(shape, 3), 0.0.into());
    let shape = [2, 0, 4, 8];
    for coefs in [values::<B>(&[2, 3], 3), values::<B>(&[0, 4, 2, 3], 3)] {
        let inputs = || (values::<B>(&shape, 1), values::<B>(&shape[1..], 2), coefs.clone());
        let (state, computed, coefs) = inputs();
        let combined = B::combine_blocks(state, computed, coefs);
        assert_eq!(combined.shape().as_slice(), shape);
        let (state, computed, coefs) = inputs();
        let of_coefs = coefs.shape();
        let grads = B::combine_blocks_backward(state, computed, coefs, combined);
        assert_eq!(grads.0.shape().as_slice(), shape);
        assert_eq!(grads.1.shape().as_slice(), &shape[1..]);
        assert_close::<B>("blocks", grads.2, zeros(of_coefs.as_slice()));
    }
    let shape = [0, 4, 8];
    let inputs = || (values::<B>(&shape, 1), values::<B>(&[0, 2, 8], 2), values::<B>(&[3], 3));
    let (x, computed, coefs) = inputs();
    let combined = B::combine_windows(x, computed, coefs, 2);
    assert_eq!(combined.shape().as_slice(), shape);
    let (x, computed, coefs) = inputs();
    let grads = B::combine_windows_backward(x, computed, coefs, combined, 2);
    assert_eq!(grads.0.shape().as_slice(), shape);
    assert_eq!(grads.1.shape().as_slice(), [0, 2, 8]);
    assert_close::<B>("windows", grads.2, zeros(&[3]));
}

fn all<B: AltUpBackend>() {
    blocks::<B>();
    a_matrix_for_all_tokens_is_that_of_each::<B>();
    windows::<B>();
    an_empty_batch_stays_empty::<B>();
}

#[cfg(feature = "flex")]
#[test]
fn on_flex() {
    all::<burn::backend::Flex>();
}

#[cfg(feature = "ndarray")]
#[test]
#[allow(deprecated)]
fn on_ndarray() {
    all::<burn::backend::NdArray>();
}

#[cfg(feature = "tch")]
#[test]
#[allow(deprecated)]
fn on_libtorch() {
    all::<burn::backend::LibTorch>();
}

/// What has kernels there; a driver in software compiles each new shape of all else for seconds.
#[cfg(feature = "wgpu")]
#[test]
fn on_wgpu() {
    blocks::<burn::backend::Wgpu>();
    windows::<burn::backend::Wgpu>();
    an_empty_batch_stays_empty::<burn::backend::Wgpu>();
}

#[cfg(all(feature = "cuda", not(feature = "wgpu")))]
#[test]
fn on_cuda() {
    all::<burn::backend::Cuda>();
}

/// Blocks in bf16 with coefficients in f32, whose gradients are f32: products of 8 bits.
#[cfg(feature = "flex")]
#[test]
fn coefficients_may_be_of_another_type() {
    use super::combine_blocks::CombineBlocksBackend;
    use burn::backend::Flex;
    use burn::backend::ops::FloatTensorOps;
    use burn::tensor::{DType, FloatDType};

    let coefs = || values::<Flex>(&[2, 3], 1);
    let state = || values::<Flex>(&[2, 3, 4, 5], 2);
    let computed = || values::<Flex>(&[3, 4, 5], 3);
    let half = |tensor| Flex::float_cast(tensor, FloatDType::BF16);
    let found = Flex::combine_blocks(half(state()), half(computed()), coefs());
    assert_eq!(found.dtype(), DType::BF16);
    let data = |tensor| burn::tensor::read_sync(Flex::float_into_data(tensor)).unwrap();
    let expected = data(Flex::combine_blocks(state(), computed(), coefs()));
    data(found).convert::<f32>().assert_approx_eq(&expected, Tolerance::<f32>::absolute(0.03));
    let grads =
        Flex::combine_blocks_backward(half(state()), half(computed()), coefs(), half(state()));
    let types = [grads.0.dtype(), grads.1.dtype(), grads.2.dtype()];
    assert_eq!(types, [DType::BF16, DType::BF16, DType::F32]);
}
