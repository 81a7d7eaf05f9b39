//! The backward passes.

use altup_backend::record;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, AutodiffBackend, TensorMetadata};
use std::marker::PhantomData;

use super::{Selection, UpdateBlocksBackend, primitive};

impl<B: UpdateBlocksBackend, C: CheckpointStrategy> UpdateBlocksBackend for Autodiff<B, C> {
    fn select_block(state: FloatTensor<Self>, selection: Selection) -> FloatTensor<Self> {
        let num_blocks = state.shape()[0];
        let (state, node) = state.into_parts();
        let output = B::select_block(state, selection.clone());
        match SelectBlock::<B>(PhantomData).prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => prepared.finish((num_blocks, selection), output),
            OpsKind::UnTracked(prepared) => prepared.finish(output),
        }
    }

    fn update_blocks(
        state: FloatTensor<Self>,
        computed: FloatTensor<Self>,
        p: FloatTensor<Self>,
        g: FloatTensor<Self>,
        selection: Selection,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let mut also = None;
        let output = record::<B, C, _, 4>(
            [state, computed, p, g],
            |[state, computed, p, g]| {
                let (output, coefs) = B::update_blocks(
                    state.clone(),
                    computed.clone(),
                    p.clone(),
                    g.clone(),
                    selection.clone(),
                );
                also = Some(coefs.clone());
                (output, ([state, computed, coefs, p, g], selection))
            },
            |([state, computed, coefs, p, g], selection), grad| {
                // Whatever comes later in the backward pass finds the state's gradient.
                selection.set_updated();
                B::update_blocks_backward(state, computed, coefs, p, g, grad, selection).into()
            },
        );
        (output, Self::from_inner(also.expect("the operation has run")))
    }
}

/// [`UpdateBlocksBackend::select_block`] on the tape.
#[derive(Debug)]
struct SelectBlock<B>(PhantomData<B>);

impl<B: UpdateBlocksBackend> Backward<B, 1> for SelectBlock<B> {
    type State = (usize, Selection);

    /// Adds the block's gradient to that of the state, where it is. There is none if the block alone was used; that of a
    /// leaf of the tape is handed out as a copy, and would be there twice.
    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let (num_blocks, selection) = ops.state;
        let [Some(state)] = ops.parents else { return };
        let is_leaf = state.parents.is_empty();
        let of_state = if selection.is_updated() && !is_leaf {
            B::add_to_block(grads.consume::<B>(&state), grad, selection)
        } else {
            primitive::in_block::<B>(grad, num_blocks, selection.block)
        };
        grads.register::<B>(state.id, of_state);
    }
}
