//! AltUp's operations over Burn's [`Backend`] trait: the trait, its default bodies, and who overrides them.

// Burn marks the two backends that it will drop, ndarray and libtorch, as deprecated; while it ships
// them they are supported here.
#![allow(deprecated)]

mod autodiff;
#[cfg(any(feature = "flex", feature = "ndarray", feature = "tch"))]
mod cpu;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod cube;
mod primitive;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, backend_extension};

/// AltUp's operations over Burn's [`Backend`] trait.
///
/// Every method has a default body of primitive tensor operations, so any backend `B: Backend` gets
/// AltUp with an empty `impl AltUpBackend for B {}`, gradients included. A backend with a faster way
/// overrides the methods: flex and ndarray in f32 do, in one pass over the blocks. The defaults stay the
/// reference that such kernels are tested against.
///
/// Letters: K blocks, B batch, T sequence, d width of a block.
#[backend_extension(
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
    LibTorch: cfg(feature = "tch"),
    Cube: cfg(any(feature = "wgpu", feature = "cuda")),
    Autodiff,
    Fusion: cfg(feature = "fusion")
)]
pub trait AltUpBackend: Backend {
    /// Predict and correct in one linear combination.
    ///
    /// With x̃ = `computed`, j* = `block`, p = `prediction_coefs` and g = `correction_coefs`, the two
    /// steps x̂ⁱ = Σⱼ pᵢⱼ xʲ and x'ⁱ = x̂ⁱ + gᵢ (x̃ − x̂ʲ*) fold into
    ///
    /// x'ⁱ = Σⱼ (pᵢⱼ − gᵢ pⱼ*ⱼ) xʲ + gᵢ x̃,
    ///
    /// a K×(K+1) matrix applied to the K old blocks and x̃. A kernel need read only K+1 blocks and
    /// write K; the default concatenates them first.
    ///
    /// # Shapes
    ///
    /// - state: `[K, B, T, d]`
    /// - computed: `[B, T, d]`
    /// - prediction_coefs: `[K, K]`
    /// - correction_coefs: `[K]`
    /// - output: `[K, B, T, d]`
    #[fusion(dtype = state, shape = state)]
    fn altup_update(
        state: FloatTensor<Self>,
        computed: FloatTensor<Self>,
        prediction_coefs: FloatTensor<Self>,
        correction_coefs: FloatTensor<Self>,
        block: usize,
    ) -> FloatTensor<Self> {
        primitive::altup_update::<Self>(state, computed, prediction_coefs, correction_coefs, block)
    }

    /// The gradients of [`altup_update`](Self::altup_update) for `state`, `computed`,
    /// `prediction_coefs` and `correction_coefs`, from that of its output.
    ///
    /// With the K×(K+1) matrix c of the update, the gradients of the K old blocks and of x̃ are cᵀ applied
    /// to the K blocks of `output_grad`: a pass as the forward one. That of c is the K×(K+1) inner
    /// products of the blocks of `output_grad` with the old blocks and x̃, in which p and g take part by
    /// the formula above.
    ///
    /// # Shapes
    ///
    /// - output_grad: `[K, B, T, d]`
    /// - others, and the outputs: as in [`altup_update`](Self::altup_update)
    #[fusion(meta = |state, computed, p, g, _grad, _block| {
        (state.clone(), computed.clone(), p.clone(), g.clone())
    })]
    fn altup_update_backward(
        state: FloatTensor<Self>,
        computed: FloatTensor<Self>,
        prediction_coefs: FloatTensor<Self>,
        correction_coefs: FloatTensor<Self>,
        output_grad: FloatTensor<Self>,
        block: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        primitive::altup_update_backward::<Self>(
            state,
            computed,
            prediction_coefs,
            correction_coefs,
            output_grad,
            block,
        )
    }

    /// Sequence-AltUp's predict and correct in one pass.
    ///
    /// With (a₁, a₂) = `prediction_coefs`, b = `correction_coef` and A = ⌊i/k⌋, the steps
    /// ŷᵢ = a₁ xᵢ + a₂ x_kA and yᵢ = ŷᵢ + b (ỹ_A − ŷ_kA) fold into
    ///
    /// yᵢ = a₁ xᵢ + (a₂ − b (a₁ + a₂)) x_kA + b ỹ_A.
    ///
    /// # Shapes
    ///
    /// - x: `[B, T, d]`
    /// - computed: `[B, ⌈T/k⌉, d]`
    /// - prediction_coefs: `[2]`
    /// - correction_coef: `[1]`
    /// - output: `[B, T, d]`
    #[fusion(dtype = x, shape = x)]
    fn sequence_update(
        x: FloatTensor<Self>,
        computed: FloatTensor<Self>,
        prediction_coefs: FloatTensor<Self>,
        correction_coef: FloatTensor<Self>,
        stride: usize,
    ) -> FloatTensor<Self> {
        primitive::sequence_update::<Self>(x, computed, prediction_coefs, correction_coef, stride)
    }

    /// The gradients of [`sequence_update`](Self::sequence_update) for `x`, `computed`,
    /// `prediction_coefs` and `correction_coef`, from that of its output.
    #[fusion(meta = |x, computed, a, b, _grad, _stride| {
        (x.clone(), computed.clone(), a.clone(), b.clone())
    })]
    fn sequence_update_backward(
        x: FloatTensor<Self>,
        computed: FloatTensor<Self>,
        prediction_coefs: FloatTensor<Self>,
        correction_coef: FloatTensor<Self>,
        output_grad: FloatTensor<Self>,
        stride: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        primitive::sequence_update_backward::<Self>(
            x,
            computed,
            prediction_coefs,
            correction_coef,
            output_grad,
            stride,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::backend::TensorMetadata;
    use burn::tensor::{TensorData, Tolerance};

    /// Values between −1 and 1 that repeat after no length used here.
    fn values<B: Backend>(shape: &[usize], seed: usize) -> FloatTensor<B> {
        let count = shape.iter().product();
        let value = |i: usize| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0;
        let values: Vec<f32> = (0..count).map(value).collect();
        B::float_from_data(TensorData::new(values, shape.to_vec()), &B::Device::default())
    }

    /// The same values in another order of memory: the last two dimensions change places and back.
    fn permuted<B: Backend>(tensor: FloatTensor<B>) -> FloatTensor<B> {
        let rank = tensor.shape().num_dims();
        let (a, b) = (rank - 2, rank - 1);
        let shape = B::float_swap_dims(tensor.clone(), a, b).shape();
        let row_by_row = B::float_reshape(B::float_swap_dims(tensor, a, b), shape);
        B::float_swap_dims(row_by_row, a, b)
    }

    fn assert_close<B: Backend>(what: &str, found: FloatTensor<B>, expected: FloatTensor<B>) {
        let data = |tensor| burn::tensor::read_sync(B::float_into_data(tensor)).unwrap();
        let (found, expected) = (data(found), data(expected));
        assert_eq!(found.shape(), expected.shape(), "{what}");
        // Sums over up to 20 000 products of f32 between −1 and 1, in two orders.
        found.assert_approx_eq::<f32>(&expected, Tolerance::rel_abs(1e-4, 2e-3));
    }

    /// At shapes where vectors and tasks end anywhere.
    fn kernels_equal_the_default_bodies<B: AltUpBackend>() {
        let shapes = [(1, 1, 1), (2, 3, 5), (1, 1, 33), (3, 7, 16), (2, 600, 17)];
        for num_blocks in 1..=8 {
            for (batch_size, seq_length, width) in shapes {
                let state_shape = [num_blocks, batch_size, seq_length, width];
                let block = (batch_size + seq_length) % num_blocks;
                let state = values::<B>(&state_shape, 1);
                let computed = values::<B>(&state_shape[1..], 2);
                let p = values::<B>(&[num_blocks, num_blocks], 3);
                let g = values::<B>(&[num_blocks], 4);
                let grad = values::<B>(&state_shape, 5);
                let what = format!("{state_shape:?}, block {block}");
                let contiguous = (state.clone(), computed.clone(), p.clone(), grad.clone());
                let other = (
                    permuted::<B>(state),
                    permuted::<B>(computed),
                    permuted::<B>(p),
                    permuted::<B>(grad),
                );
                for (state, computed, p, grad) in [contiguous, other] {
                    assert_close::<B>(
                        &what,
                        B::altup_update(
                            state.clone(),
                            computed.clone(),
                            p.clone(),
                            g.clone(),
                            block,
                        ),
                        primitive::altup_update::<B>(
                            state.clone(),
                            computed.clone(),
                            p.clone(),
                            g.clone(),
                            block,
                        ),
                    );
                    let found = B::altup_update_backward(
                        state.clone(),
                        computed.clone(),
                        p.clone(),
                        g.clone(),
                        grad.clone(),
                        block,
                    );
                    let expected = primitive::altup_update_backward::<B>(
                        state,
                        computed,
                        p,
                        g.clone(),
                        grad,
                        block,
                    );
                    assert_close::<B>(&what, found.0, expected.0);
                    assert_close::<B>(&what, found.1, expected.1);
                    assert_close::<B>(&what, found.2, expected.2);
                    assert_close::<B>(&what, found.3, expected.3);
                }
            }
        }
    }

    /// Of an empty batch, which ndarray's own products do not take.
    fn an_empty_batch_stays_empty<B: AltUpBackend>() {
        let shape = [2, 0, 4, 8];
        let tensors =
            || (values::<B>(&shape, 1), values::<B>(&shape[1..], 2), values::<B>(&[2, 2], 3));
        let (state, computed, p) = tensors();
        let g = values::<B>(&[2], 4);
        let updated = B::altup_update(state, computed, p, g.clone(), 1);
        assert_eq!(updated.shape().as_slice(), shape);
        let (state, computed, p) = tensors();
        let grads = B::altup_update_backward(state, computed, p, g, updated, 1);
        assert_eq!(grads.0.shape().as_slice(), shape);
        assert_eq!(grads.1.shape().as_slice(), &shape[1..]);
        let zeros = |shape: &[usize]| B::float_mul_scalar(values::<B>(shape, 3), 0.0.into());
        assert_close::<B>("p", grads.2, zeros(&[2, 2]));
        assert_close::<B>("g", grads.3, zeros(&[2]));

        let shape = [0, 4, 8];
        let tensors = || (values::<B>(&shape, 1), values::<B>(&[0, 2, 8], 2));
        let (a, b) = (values::<B>(&[2], 3), values::<B>(&[1], 4));
        let (x, computed) = tensors();
        let updated = B::sequence_update(x, computed, a.clone(), b.clone(), 2);
        assert_eq!(updated.shape().as_slice(), shape);
        let (x, computed) = tensors();
        let grads = B::sequence_update_backward(x, computed, a, b, updated, 2);
        assert_eq!(grads.0.shape().as_slice(), shape);
        assert_eq!(grads.1.shape().as_slice(), [0, 2, 8]);
        assert_close::<B>("(a₁, a₂)", grads.2, zeros(&[2]));
        assert_close::<B>("b", grads.3, zeros(&[1]));
    }

    /// At strides that divide the length, that do not, and that are longer than it.
    fn sequence_kernels_equal_the_default_bodies<B: AltUpBackend>() {
        for (batch_size, seq_length, width) in [(1, 1, 1), (2, 8, 5), (3, 13, 16), (2, 150, 70)] {
            for stride in [1, 2, 3, 4, 20] {
                let count = usize::div_ceil(seq_length, stride);
                let x = values::<B>(&[batch_size, seq_length, width], 1);
                let computed = values::<B>(&[batch_size, count, width], 2);
                let a = values::<B>(&[2], 3);
                let b = values::<B>(&[1], 4);
                let grad = values::<B>(&[batch_size, seq_length, width], 5);
                let what = format!("{batch_size} × {seq_length} × {width}, stride {stride}");
                let contiguous = (x.clone(), computed.clone(), grad.clone());
                let other = (permuted::<B>(x), permuted::<B>(computed), permuted::<B>(grad));
                for (x, computed, grad) in [contiguous, other] {
                    let inputs = || (x.clone(), computed.clone(), a.clone(), b.clone());
                    let (x, computed, a, b) = inputs();
                    let found = B::sequence_update(x, computed, a, b, stride);
                    let (x, computed, a, b) = inputs();
                    let expected = primitive::sequence_update::<B>(x, computed, a, b, stride);
                    assert_close::<B>(&what, found, expected);
                    let (x, computed, a, b) = inputs();
                    let found =
                        B::sequence_update_backward(x, computed, a, b, grad.clone(), stride);
                    let (x, computed, a, b) = inputs();
                    let expected =
                        primitive::sequence_update_backward::<B>(x, computed, a, b, grad, stride);
                    assert_close::<B>(&what, found.0, expected.0);
                    assert_close::<B>(&what, found.1, expected.1);
                    assert_close::<B>(&what, found.2, expected.2);
                    assert_close::<B>(&what, found.3, expected.3);
                }
            }
        }
    }

    #[cfg(feature = "flex")]
    #[test]
    fn on_flex() {
        kernels_equal_the_default_bodies::<burn::backend::Flex>();
        an_empty_batch_stays_empty::<burn::backend::Flex>();
        sequence_kernels_equal_the_default_bodies::<burn::backend::Flex>();
    }

    #[cfg(feature = "wgpu")]
    #[test]
    fn on_wgpu() {
        kernels_equal_the_default_bodies::<burn::backend::Wgpu>();
        an_empty_batch_stays_empty::<burn::backend::Wgpu>();
        sequence_kernels_equal_the_default_bodies::<burn::backend::Wgpu>();
    }

    #[cfg(feature = "tch")]
    #[test]
    fn on_libtorch() {
        kernels_equal_the_default_bodies::<burn::backend::LibTorch>();
        an_empty_batch_stays_empty::<burn::backend::LibTorch>();
        sequence_kernels_equal_the_default_bodies::<burn::backend::LibTorch>();
    }

    #[cfg(feature = "ndarray")]
    #[test]
    fn on_ndarray() {
        kernels_equal_the_default_bodies::<burn::backend::NdArray>();
        an_empty_batch_stays_empty::<burn::backend::NdArray>();
        sequence_kernels_equal_the_default_bodies::<burn::backend::NdArray>();
    }
}
