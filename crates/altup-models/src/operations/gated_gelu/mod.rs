//! The gate of T5 v1.1's feed-forward network.

mod cpu;
#[cfg(feature = "cube")]
mod cube;
mod primitive;

use altup_backend::record;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Dispatch};
use burn::tensor::Tensor;

/// gelu(gate) ⊙ linear, with the tanh approximation of GELU (Hugging Face's `gelu_new`).
///
/// # Shapes
///
/// All are of one shape.
///
/// # Panics
///
/// Panics if they are not, or are of two types.
pub fn gated_gelu<const D: usize>(gate: Tensor<D>, linear: Tensor<D>) -> Tensor<D> {
    assert_eq!(gate.dims(), linear.dims(), "A gate has the shape of what it gates.");
    assert_eq!(gate.dtype(), linear.dtype(), "A gate has the type of what it gates.");
    let output =
        <Dispatch as GatedGeluBackend>::gated_gelu(gate.into_dispatch(), linear.into_dispatch());
    Tensor::from_dispatch(output)
}

altup_backend::operations! {
    gpu_kernels
    /// [`gated_gelu`] on a backend.
    pub trait GatedGeluBackend {
        /// All are of one shape.
        #[fusion(dtype = gate, shape = gate)]
        fn gated_gelu(gate: FloatTensor<Self>, linear: FloatTensor<Self>) -> FloatTensor<Self> {
            match Self::on_host([&gate, &linear]) {
                true => cpu::gated_gelu::<Self>(&gate, &linear),
                false => primitive::gated_gelu::<Self>(gate, linear),
            }
        }

        /// The gradients of gate and linear.
        #[fusion(meta = |gate, linear, _grad| (gate.clone(), linear.clone()))]
        fn gated_gelu_backward(
            gate: FloatTensor<Self>,
            linear: FloatTensor<Self>,
            output_grad: FloatTensor<Self>,
        ) -> (FloatTensor<Self>, FloatTensor<Self>) {
            match Self::on_host([&gate, &linear, &output_grad]) {
                true => cpu::gated_gelu_backward::<Self>(&gate, &linear, output_grad),
                false => primitive::gated_gelu_backward::<Self>(gate, linear, output_grad),
            }
        }
    }
}

impl<B: GatedGeluBackend, C: CheckpointStrategy> GatedGeluBackend for Autodiff<B, C> {
    fn gated_gelu(gate: FloatTensor<Self>, linear: FloatTensor<Self>) -> FloatTensor<Self> {
        record::<B, C, _, 2>(
            [gate, linear],
            |[gate, linear]| (B::gated_gelu(gate.clone(), linear.clone()), [gate, linear]),
            |[gate, linear], grad| B::gated_gelu_backward(gate, linear, grad).into(),
        )
    }
}

#[cfg(test)]
mod tests;
