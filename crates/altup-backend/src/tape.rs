//! Operations with a backward pass written by hand, under Burn's autodiff.

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend};
use std::fmt::Debug;

/// Runs an operation of the backend inside and records it as one node of the tape.
///
/// `forward` returns the output, and what the backward pass needs: handles of tensors, no copies. `backward` takes
/// that and the output's gradient, and returns the gradients of the inputs, in their order. It owns its arguments,
/// so a kernel may write over tensors that nobody else holds.
pub fn record<B, C, S, const N: usize>(
    inputs: [FloatTensor<Autodiff<B, C>>; N],
    forward: impl FnOnce([FloatTensor<B>; N]) -> (FloatTensor<B>, S),
    backward: fn(S, FloatTensor<B>) -> [FloatTensor<B>; N],
) -> FloatTensor<Autodiff<B, C>>
where
    B: Backend,
    C: CheckpointStrategy,
    S: Clone + Send + Debug + 'static,
{
    record_asked::<B, C, _, N>(
        inputs,
        |inputs| {
            let (output, kept) = forward(inputs);
            (output, (kept, backward))
        },
        |(kept, backward), output_grad, _| backward(kept, output_grad),
    )
}

/// As [`record`]. `backward` is also told which of the inputs' gradients anybody asks for. In place of another it may
/// return any tensor.
pub fn record_asked<B, C, S, const N: usize>(
    inputs: [FloatTensor<Autodiff<B, C>>; N],
    forward: impl FnOnce([FloatTensor<B>; N]) -> (FloatTensor<B>, S),
    backward: fn(S, FloatTensor<B>, [bool; N]) -> [FloatTensor<B>; N],
) -> FloatTensor<Autodiff<B, C>>
where
    B: Backend,
    C: CheckpointStrategy,
    S: Clone + Send + Debug + 'static,
{
    let parts = inputs.map(|input| input.into_parts());
    let (mut tensors, mut nodes) = (Vec::with_capacity(N), Vec::with_capacity(N));
    for (tensor, node) in parts {
        tensors.push(tensor);
        nodes.push(node);
    }
    let (Ok(tensors), Ok(nodes)) = (tensors.try_into(), nodes.try_into()) else {
        unreachable!("there are N of both");
    };
    let (output, kept) = forward(tensors);
    let node = Node::<B, S, N> { backward };
    match node.prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(prepared) => prepared.finish(kept, output),
        OpsKind::UnTracked(prepared) => prepared.finish(output),
    }
}

/// An operation on the tape.
#[derive(Debug)]
struct Node<B: Backend, S, const N: usize> {
    backward: fn(S, FloatTensor<B>, [bool; N]) -> [FloatTensor<B>; N],
}

impl<B, S, const N: usize> Backward<B, N> for Node<B, S, N>
where
    B: Backend,
    S: Clone + Send + Debug + 'static,
{
    type State = S;

    fn backward(self, ops: Ops<S, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let output_grad = grads.consume::<B>(&ops.node);
        let asked = ops.parents.each_ref().map(Option::is_some);
        let of_inputs = (self.backward)(ops.state, output_grad, asked);
        for (parent, grad) in ops.parents.into_iter().zip(of_inputs) {
            if let Some(parent) = parent {
                grads.register::<B>(parent.id, grad);
            }
        }
    }
}
