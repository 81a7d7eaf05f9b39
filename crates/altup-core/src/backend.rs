// Burn marks the two backends that it will drop, ndarray and libtorch, as deprecated; while it ships
// them they are supported here.
#![allow(deprecated)]

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, TensorMetadata, backend_extension};
use burn::tensor::{Shape, Slice};

/// AltUp's operations over Burn's [`Backend`] trait.
///
/// Every method has a default body of primitive tensor operations, so any backend `B: Backend` gets
/// AltUp with an empty `impl AltUpBackend for B {}`, gradients included. A backend with a faster way
/// overrides the method; the default stays the reference that such a kernel is tested against.
///
/// Letters: K blocks, B batch, T sequence, d width of a block.
#[backend_extension(
    Flex: cfg(feature = "flex"),
    NdArray: cfg(feature = "ndarray"),
    LibTorch: cfg(feature = "tch"),
    Cube: cfg(any(feature = "wgpu", feature = "cuda")),
    Autodiff
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
    fn altup_update(
        state: FloatTensor<Self>,
        computed: FloatTensor<Self>,
        prediction_coefs: FloatTensor<Self>,
        correction_coefs: FloatTensor<Self>,
        block: usize,
    ) -> FloatTensor<Self> {
        let shape = state.shape();
        let num_blocks = shape[0];
        let block_size = shape[1] * shape[2] * shape[3];

        let selected_row = Self::float_slice(
            prediction_coefs.clone(),
            &[Slice::from(block..block + 1), Slice::from(0..num_blocks)],
        );
        let gains = Self::float_reshape(correction_coefs, Shape::new([num_blocks, 1]));
        let old_coefs =
            Self::float_sub(prediction_coefs, Self::float_matmul(gains.clone(), selected_row));

        let state = Self::float_reshape(state, Shape::new([num_blocks, block_size]));
        let computed = Self::float_reshape(computed, Shape::new([1, block_size]));
        let updated = Self::float_matmul(
            Self::float_cat(vec![old_coefs, gains], 1),
            Self::float_cat(vec![state, computed], 0),
        );
        Self::float_reshape(updated, shape)
    }
}

#[cfg(feature = "flex")]
impl AltUpBackend for burn::backend::Flex {}

#[cfg(feature = "ndarray")]
impl AltUpBackend for burn::backend::NdArray {}

#[cfg(feature = "tch")]
impl AltUpBackend for burn::backend::LibTorch {}

#[cfg(feature = "wgpu")]
impl AltUpBackend for burn::backend::Wgpu {}

#[cfg(all(feature = "cuda", not(feature = "wgpu")))]
impl AltUpBackend for burn::backend::Cuda {}

/// Under autodiff the default body is recorded operation by operation.
impl<B: AltUpBackend, C: CheckpointStrategy> AltUpBackend for Autodiff<B, C> {}
