//! AltUp's predict and correct as one operation: linear combinations of a state's blocks and of the layer's output.

mod cpu;
#[cfg(feature = "cube")]
pub(super) mod cube;
pub mod primitive;

use altup_backend::record;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Dispatch, TensorMetadata};
use burn::tensor::Tensor;

/// x'ⁱ = Σⱼ cᵢⱼ xʲ + cᵢ_K x̃, with one matrix c for all tokens.
///
/// # Shapes
///
/// - state, of the blocks x: `[K, B, T, d]`
/// - computed, x̃: `[B, T, d]`
/// - coefs, c: `[K, K + 1]`
/// - output: `[K, B, T, d]`
///
/// # Panics
///
/// Panics if the shapes do not fit, or if state and computed are of two types; the coefficients may be of
/// another.
pub fn combine_blocks(state: Tensor<4>, computed: Tensor<3>, coefs: Tensor<2>) -> Tensor<4> {
    let [num_blocks, ..] = check(&state, &computed);
    assert_eq!(
        coefs.dims(),
        [num_blocks, num_blocks + 1],
        "There must be a coefficient of each block and of what was computed, for each block. Got state={:?}, \
         coefs={:?}",
        state.dims(),
        coefs.dims()
    );
    combine(state, computed, coefs)
}

/// [`combine_blocks`] with a matrix for each token, for coefficients that are computed from the token (as in
/// Gemma 3n's AltUp).
///
/// # Shapes
///
/// - coefs: `[B, T, K, K + 1]`
/// - others, and the output: as in [`combine_blocks`]
///
/// # Panics
///
/// As [`combine_blocks`].
pub fn combine_blocks_by_token(
    state: Tensor<4>,
    computed: Tensor<3>,
    coefs: Tensor<4>,
) -> Tensor<4> {
    let [num_blocks, batch_size, seq_length, _] = check(&state, &computed);
    assert_eq!(
        coefs.dims(),
        [batch_size, seq_length, num_blocks, num_blocks + 1],
        "There must be a matrix of coefficients for each token. Got state={:?}, coefs={:?}",
        state.dims(),
        coefs.dims()
    );
    combine(state, computed, coefs)
}

fn check(state: &Tensor<4>, computed: &Tensor<3>) -> [usize; 4] {
    let shape @ [num_blocks, batch_size, seq_length, width] = state.dims();
    assert!(num_blocks > 0, "A state has at least one block. Got state={shape:?}");
    assert_eq!(
        computed.dims(),
        [batch_size, seq_length, width],
        "What was computed must have the shape of a block. Got state={:?}, computed={:?}",
        state.dims(),
        computed.dims()
    );
    assert_eq!(
        state.dtype(),
        computed.dtype(),
        "What was computed must be of the state's type. Got state={:?}, computed={:?}",
        state.dtype(),
        computed.dtype()
    );
    shape
}

fn combine<const D: usize>(state: Tensor<4>, computed: Tensor<3>, coefs: Tensor<D>) -> Tensor<4> {
    Tensor::from_dispatch(<Dispatch as CombineBlocksBackend>::combine_blocks(
        state.into_dispatch(),
        computed.into_dispatch(),
        coefs.into_dispatch(),
    ))
}

altup_backend::operations! {
    gpu_kernels
    /// [`combine_blocks`] and [`combine_blocks_by_token`] on a backend. The rank of the coefficients tells them
    /// apart.
    ///
    /// At the least, the operation reads K + 1 blocks and writes K. The body of primitive operations also copies the
    /// K + 1 blocks into one tensor.
    pub trait CombineBlocksBackend {
        /// # Shapes
        ///
        /// - state: `[K, B, T, d]`
        /// - computed: `[B, T, d]`, of the state's type
        /// - coefs: `[K, K + 1]` or `[B, T, K, K + 1]`
        /// - output: `[K, B, T, d]`
        #[fusion(dtype = state, shape = state)]
        fn combine_blocks(
            state: FloatTensor<Self>,
            computed: FloatTensor<Self>,
            coefs: FloatTensor<Self>,
        ) -> FloatTensor<Self> {
            let shared = coefs.shape().num_dims() == 2;
            match shared && Self::on_host([&state, &computed, &coefs]) {
                true => cpu::combine_blocks::<Self>(&state, &computed, &coefs),
                false => primitive::combine_blocks::<Self>(state, computed, coefs),
            }
        }

        /// The gradients of state, computed and coefs, from that of the output.
        ///
        /// The gradients of the blocks and of x̃ are cᵀ applied to the K blocks of `output_grad`, in a pass like the
        /// forward one. The gradient of c holds the K × (K + 1) inner products of the blocks of `output_grad` with the
        /// old blocks and x̃: over all tokens, or for each token.
        #[fusion(meta = |state, computed, coefs, _grad| (state.clone(), computed.clone(), coefs.clone()))]
        fn combine_blocks_backward(
            state: FloatTensor<Self>,
            computed: FloatTensor<Self>,
            coefs: FloatTensor<Self>,
            output_grad: FloatTensor<Self>,
        ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
            let shared = coefs.shape().num_dims() == 2;
            match shared && Self::on_host([&state, &computed, &coefs, &output_grad]) {
                true => cpu::combine_blocks_backward::<Self>([&state, &computed, &coefs], &output_grad),
                false => primitive::combine_blocks_backward::<Self>(state, computed, coefs, output_grad),
            }
        }
    }
}

impl<B: CombineBlocksBackend, C: CheckpointStrategy> CombineBlocksBackend for Autodiff<B, C> {
    fn combine_blocks(
        state: FloatTensor<Self>,
        computed: FloatTensor<Self>,
        coefs: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        record::<B, C, _, 3>(
            [state, computed, coefs],
            |[state, computed, coefs]| {
                let inputs = [state.clone(), computed.clone(), coefs.clone()];
                (B::combine_blocks(state, computed, coefs), inputs)
            },
            |[state, computed, coefs], grad| {
                B::combine_blocks_backward(state, computed, coefs, grad).into()
            },
        )
    }
}
