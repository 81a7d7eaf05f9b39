//! The updates under autodiff: one node each, whose backward pass is one operation of the inner backend.
//! What is kept are handles, no copies.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;

use super::AltUpBackend;
use crate::autodiff::backward;

impl<B: AltUpBackend, C: CheckpointStrategy> AltUpBackend for Autodiff<B, C> {
    fn altup_update(
        state: FloatTensor<Self>,
        computed: FloatTensor<Self>,
        prediction_coefs: FloatTensor<Self>,
        correction_coefs: FloatTensor<Self>,
        block: usize,
    ) -> FloatTensor<Self> {
        let (state, state_node) = state.into_parts();
        let (computed, computed_node) = computed.into_parts();
        let (p, p_node) = prediction_coefs.into_parts();
        let (g, g_node) = correction_coefs.into_parts();
        let output = B::altup_update(state.clone(), computed.clone(), p.clone(), g.clone(), block);
        let nodes = [state_node, computed_node, p_node, g_node];
        match AltUpUpdate.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => prepared.finish(([state, computed, p, g], block), output),
            OpsKind::UnTracked(prepared) => prepared.finish(output),
        }
    }

    fn sequence_update(
        x: FloatTensor<Self>,
        computed: FloatTensor<Self>,
        prediction_coefs: FloatTensor<Self>,
        correction_coef: FloatTensor<Self>,
        stride: usize,
    ) -> FloatTensor<Self> {
        let (x, x_node) = x.into_parts();
        let (computed, computed_node) = computed.into_parts();
        let (a, a_node) = prediction_coefs.into_parts();
        let (b, b_node) = correction_coef.into_parts();
        let output = B::sequence_update(x.clone(), computed.clone(), a.clone(), b.clone(), stride);
        let nodes = [x_node, computed_node, a_node, b_node];
        match SequenceUpdate.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => prepared.finish(([x, computed, a, b], stride), output),
            OpsKind::UnTracked(prepared) => prepared.finish(output),
        }
    }
}

#[derive(Debug)]
struct AltUpUpdate;

impl<B: AltUpBackend> Backward<B, 4> for AltUpUpdate {
    type State = ([FloatTensor<B>; 4], usize);

    fn backward(self, ops: Ops<Self::State, 4>, grads: &mut Gradients, _: &mut Checkpointer) {
        backward::<B, _, 4>(ops, grads, |([state, computed, p, g], block), output_grad| {
            B::altup_update_backward(state, computed, p, g, output_grad, block).into()
        });
    }
}

#[derive(Debug)]
struct SequenceUpdate;

impl<B: AltUpBackend> Backward<B, 4> for SequenceUpdate {
    type State = ([FloatTensor<B>; 4], usize);

    fn backward(self, ops: Ops<Self::State, 4>, grads: &mut Gradients, _: &mut Checkpointer) {
        backward::<B, _, 4>(ops, grads, |([x, computed, a, b], stride), output_grad| {
            B::sequence_update_backward(x, computed, a, b, output_grad, stride).into()
        });
    }
}
