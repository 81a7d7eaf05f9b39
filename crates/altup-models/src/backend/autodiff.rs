//! The operations under autodiff: one node each, whose backward pass is one operation of the inner
//! backend. States are handles, no copies.

use altup_core::autodiff::backward;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, AutodiffBackend};

use super::T5Backend;

impl<B: T5Backend, C: CheckpointStrategy> T5Backend for Autodiff<B, C> {
    fn biased_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (query, query_node) = query.into_parts();
        let (key, key_node) = key.into_parts();
        let (value, value_node) = value.into_parts();
        let (bias, bias_node) = bias.into_parts();
        let nodes = [query_node, key_node, value_node, bias_node];
        let (output, saved) =
            B::biased_attention(query.clone(), key.clone(), value.clone(), bias.clone());
        let output = match Attention.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => {
                let inputs = [query, key, value, bias, output.clone(), saved.clone()];
                prepared.finish(inputs, output)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(output),
        };
        (output, Self::from_inner(saved))
    }

    fn gated_gelu(gate: FloatTensor<Self>, linear: FloatTensor<Self>) -> FloatTensor<Self> {
        let (gate, gate_node) = gate.into_parts();
        let (linear, linear_node) = linear.into_parts();
        let output = B::gated_gelu(gate.clone(), linear.clone());
        match GatedGelu.prepare::<C>([gate_node, linear_node]).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => prepared.finish([gate, linear], output),
            OpsKind::UnTracked(prepared) => prepared.finish(output),
        }
    }

    fn rms_norm(x: FloatTensor<Self>, gamma: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self> {
        let (x, x_node) = x.into_parts();
        let (gamma, gamma_node) = gamma.into_parts();
        let output = B::rms_norm(x.clone(), gamma.clone(), epsilon);
        match RmsNorm.prepare::<C>([x_node, gamma_node]).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => prepared.finish(([x, gamma], epsilon), output),
            OpsKind::UnTracked(prepared) => prepared.finish(output),
        }
    }

    fn cross_entropy(logits: FloatTensor<Self>, labels: IntTensor<Self>) -> FloatTensor<Self> {
        let (logits, node) = logits.into_parts();
        let output = B::cross_entropy(logits.clone(), labels.clone());
        match CrossEntropy.prepare::<C>([node]).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => prepared.finish((logits, labels), output),
            OpsKind::UnTracked(prepared) => prepared.finish(output),
        }
    }
}

#[derive(Debug)]
struct Attention;

impl<B: T5Backend> Backward<B, 4> for Attention {
    type State = [FloatTensor<B>; 6];

    fn backward(self, ops: Ops<Self::State, 4>, grads: &mut Gradients, _: &mut Checkpointer) {
        backward::<B, _, 4>(ops, grads, |[query, key, value, bias, output, saved], output_grad| {
            B::biased_attention_backward(query, key, value, bias, output, saved, output_grad).into()
        });
    }
}

#[derive(Debug)]
struct GatedGelu;

impl<B: T5Backend> Backward<B, 2> for GatedGelu {
    type State = [FloatTensor<B>; 2];

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        backward::<B, _, 2>(ops, grads, |[gate, linear], output_grad| {
            B::gated_gelu_backward(gate, linear, output_grad).into()
        });
    }
}

#[derive(Debug)]
struct RmsNorm;

impl<B: T5Backend> Backward<B, 2> for RmsNorm {
    type State = ([FloatTensor<B>; 2], f32);

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
        backward::<B, _, 2>(ops, grads, |([x, gamma], epsilon), output_grad| {
            B::rms_norm_backward(x, gamma, output_grad, epsilon).into()
        });
    }
}

#[derive(Debug)]
struct CrossEntropy;

impl<B: T5Backend> Backward<B, 1> for CrossEntropy {
    type State = (FloatTensor<B>, IntTensor<B>);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        backward::<B, _, 1>(ops, grads, |(logits, labels), output_grad| {
            [B::cross_entropy_backward(logits, labels, output_grad)]
        });
    }
}
