//! AltUp's predict and correct with p and g as they are learned, and the block that the layer between them reads.

mod autodiff;
#[cfg(feature = "cube")]
mod cube;
pub mod primitive;

use burn::backend::Dispatch;
use burn::backend::tensor::FloatTensor;
use burn::tensor::Tensor;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::combine_blocks::CombineBlocksBackend;

/// The block that a layer reads of a state, and whose correction it computes: one for each time that a layer runs.
///
/// In the backward pass the update comes before the layer, and gives the whole state a gradient. What the layer adds to
/// it is in one block only. The selection is how the one is told that the other was there.
#[derive(Clone, Debug)]
pub struct Selection {
    block: usize,
    is_updated: Arc<AtomicBool>,
}

impl Selection {
    /// Of this block.
    pub fn new(block: usize) -> Self {
        Self { block, is_updated: Arc::default() }
    }

    fn set_updated(&self) {
        self.is_updated.store(true, Ordering::Relaxed);
    }

    fn is_updated(&self) -> bool {
        self.is_updated.load(Ordering::Relaxed)
    }
}

/// The selected block of a state.
///
/// # Shapes
///
/// - state: `[K, B, T, d]`
/// - output: `[B, T, d]`
pub(crate) fn select_block(state: Tensor<4>, selection: &Selection) -> Tensor<3> {
    Tensor::from_dispatch(<Dispatch as UpdateBlocksBackend>::select_block(
        state.into_dispatch(),
        selection.clone(),
    ))
}

/// x'ⁱ = x̂ⁱ + gᵢ (x̃ − x̂ʲ*) with x̂ⁱ = Σⱼ pᵢⱼ xʲ, where j* is the selected block. The shapes must fit: they aren't checked.
///
/// # Shapes
///
/// - state, of the blocks x: `[K, B, T, d]`
/// - computed, x̃: `[B, T, d]`, of the state's type
/// - p: `[K, K]`
/// - g: `[K]`
/// - output: `[K, B, T, d]`
pub(crate) fn update_blocks(
    state: Tensor<4>,
    computed: Tensor<3>,
    p: Tensor<2>,
    g: Tensor<1>,
    selection: Selection,
) -> Tensor<4> {
    let (output, _) = <Dispatch as UpdateBlocksBackend>::update_blocks(
        state.into_dispatch(),
        computed.into_dispatch(),
        p.into_dispatch(),
        g.into_dispatch(),
        selection,
    );
    Tensor::from_dispatch(output)
}

altup_backend::operations! {
    gpu_kernels
    /// AltUp's update on a backend, from p and g. [`CombineBlocksBackend`] is the update from the one matrix that both
    /// fold into.
    pub trait UpdateBlocksBackend: CombineBlocksBackend {
        /// # Shapes
        ///
        /// - state: `[K, B, T, d]`
        /// - output: `[B, T, d]`
        #[fusion(dtype = state, shape = burn::tensor::Shape::new([state[1], state[2], state[3]]))]
        fn select_block(state: FloatTensor<Self>, selection: Selection) -> FloatTensor<Self> {
            primitive::select_block::<Self>(state, selection.block)
        }

        /// A state with `added` in addition to its selected block.
        ///
        /// # Shapes
        ///
        /// - state, output: `[K, B, T, d]`
        /// - added: `[B, T, d]`, of the state's type
        #[fusion(dtype = state, shape = state)]
        fn add_to_block(
            state: FloatTensor<Self>,
            added: FloatTensor<Self>,
            selection: Selection,
        ) -> FloatTensor<Self> {
            primitive::add_to_block::<Self>(state, added, selection.block)
        }

        /// The second output is the matrix that p and g fold into, `[K, K + 1]`, in f32 if they have fewer bits. The
        /// backward pass needs it.
        ///
        /// # Shapes
        ///
        /// - state, first output: `[K, B, T, d]`
        /// - computed: `[B, T, d]`, of the state's type
        /// - p: `[K, K]`
        /// - g: `[K]`
        #[fusion(meta = |state, _computed, p, _g, _selection| {
            let shape = burn::tensor::Shape::new([p.shape[0], p.shape[0] + 1]);
            let folded = burn::backend::fusion::custom::TensorSpec::new(shape, burn::tensor::DType::F32);
            (state.clone(), folded)
        })]
        fn update_blocks(
            state: FloatTensor<Self>,
            computed: FloatTensor<Self>,
            p: FloatTensor<Self>,
            g: FloatTensor<Self>,
            selection: Selection,
        ) -> (FloatTensor<Self>, FloatTensor<Self>) {
            let coefs = primitive::fold::<Self>(p, g, selection.block);
            (Self::combine_blocks(state, computed, coefs.clone()), coefs)
        }

        /// The gradients of state, computed, p and g, from that of the first output. `coefs` is the second.
        #[fusion(meta = |state, computed, _coefs, p, g, _grad, _selection| {
            (state.clone(), computed.clone(), p.clone(), g.clone())
        })]
        fn update_blocks_backward(
            state: FloatTensor<Self>,
            computed: FloatTensor<Self>,
            coefs: FloatTensor<Self>,
            p: FloatTensor<Self>,
            g: FloatTensor<Self>,
            output_grad: FloatTensor<Self>,
            selection: Selection,
        ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
            let (of_state, of_computed, of_coefs) =
                Self::combine_blocks_backward(state, computed, coefs, output_grad);
            let (of_p, of_g) = primitive::fold_backward::<Self>(of_coefs, p, g, selection.block);
            (of_state, of_computed, of_p, of_g)
        }
    }
}

#[cfg(test)]
mod tests;
