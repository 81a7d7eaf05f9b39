//! The updates under autodiff: one node each, whose backward pass is one operation of the inner backend.

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;

use super::AltUpBackend;

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
        let (prediction_coefs, prediction_node) = prediction_coefs.into_parts();
        let (correction_coefs, correction_node) = correction_coefs.into_parts();
        let update = |inputs: Inputs<B>| {
            B::altup_update(
                inputs.state,
                inputs.computed,
                inputs.prediction_coefs,
                inputs.correction_coefs,
                inputs.block,
            )
        };
        let inputs = Inputs { state, computed, prediction_coefs, correction_coefs, block };
        let nodes = [state_node, computed_node, prediction_node, correction_node];
        match AltUpUpdate.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => prepared.finish(inputs.clone(), update(inputs)),
            OpsKind::UnTracked(prepared) => prepared.finish(update(inputs)),
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
struct SequenceUpdate;

impl<B: AltUpBackend> Backward<B, 4> for SequenceUpdate {
    type State = ([FloatTensor<B>; 4], usize);

    fn backward(self, ops: Ops<Self::State, 4>, grads: &mut Gradients, _: &mut Checkpointer) {
        let output_grad = grads.consume::<B>(&ops.node);
        let ([x, computed, a, b], stride) = ops.state;
        let (x, computed, a, b) =
            B::sequence_update_backward(x, computed, a, b, output_grad, stride);
        for (parent, grad) in ops.parents.into_iter().zip([x, computed, a, b]) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, grad);
            }
        }
    }
}

#[derive(Debug)]
struct AltUpUpdate;

/// What the backward pass needs: handles, no copies.
#[derive(Clone, Debug)]
struct Inputs<B: AltUpBackend> {
    state: FloatTensor<B>,
    computed: FloatTensor<B>,
    prediction_coefs: FloatTensor<B>,
    correction_coefs: FloatTensor<B>,
    block: usize,
}

impl<B: AltUpBackend> Backward<B, 4> for AltUpUpdate {
    type State = Inputs<B>;

    fn backward(self, ops: Ops<Inputs<B>, 4>, grads: &mut Gradients, _: &mut Checkpointer) {
        let output_grad = grads.consume::<B>(&ops.node);
        let Inputs { state, computed, prediction_coefs, correction_coefs, block } = ops.state;
        let (state, computed, prediction, correction) = B::altup_update_backward(
            state,
            computed,
            prediction_coefs,
            correction_coefs,
            output_grad,
            block,
        );
        for (parent, grad) in ops.parents.into_iter().zip([state, computed, prediction, correction])
        {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, grad);
            }
        }
    }
}
