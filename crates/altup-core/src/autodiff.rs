//! Operations with a backward pass written by hand, under Burn's autodiff.

use burn::backend::Backend;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::Ops;
use burn::backend::tensor::FloatTensor;

/// The backward pass of an operation: `gradients` makes those of its N inputs of what the forward pass kept
/// and of the output's gradient, and each tracked input is handed its own.
///
/// What was kept is given away, so that a kernel may write over what nobody else holds.
pub fn backward<B: Backend, S, const N: usize>(
    ops: Ops<S, N>,
    grads: &mut Gradients,
    gradients: impl FnOnce(S, FloatTensor<B>) -> [FloatTensor<B>; N],
) {
    let output_grad = grads.consume::<B>(&ops.node);
    let of_inputs = gradients(ops.state, output_grad);
    for (parent, grad) in ops.parents.into_iter().zip(of_inputs) {
        if let Some(parent) = parent {
            grads.register::<B>(parent.id, grad);
        }
    }
}
