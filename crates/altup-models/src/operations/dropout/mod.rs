//! Dropout whose mask depends on the place of use and not on a generator's state: see [`DropoutMask`].

mod cpu;
#[cfg(feature = "cube")]
pub(super) mod cube;
mod primitive;

use altup_backend::philox::DropoutMask;
use altup_backend::record;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Dispatch};
use burn::tensor::Tensor;

/// x with the values that `mask` drops set to 0 and the others divided by 1 − rate.
///
/// The backward pass keeps nothing: it makes the mask anew.
///
/// # Shapes
///
/// - x, output: of any shape; the mask's columns are the last dimension, its rows all others, counted in their order
pub fn dropout<const D: usize>(x: Tensor<D>, mask: DropoutMask) -> Tensor<D> {
    Tensor::from_dispatch(<Dispatch as DropoutBackend>::dropout(x.into_dispatch(), mask))
}

altup_backend::operations! {
    gpu_kernels
    /// [`dropout`] on a backend. The same values are dropped on every one.
    pub trait DropoutBackend {
        /// # Shapes
        ///
        /// - x, output: `[…, width]`
        #[fusion(dtype = x, shape = x)]
        fn dropout(x: FloatTensor<Self>, mask: DropoutMask) -> FloatTensor<Self> {
            match Self::on_host([&x]) {
                true => cpu::dropout::<Self>(x, mask),
                false => primitive::dropout::<Self>(x, mask),
            }
        }
    }
}

impl<B: DropoutBackend, C: CheckpointStrategy> DropoutBackend for Autodiff<B, C> {
    fn dropout(x: FloatTensor<Self>, mask: DropoutMask) -> FloatTensor<Self> {
        record::<B, C, _, 1>(
            [x],
            |[x]| (B::dropout(x, mask), mask),
            |mask, grad| [B::dropout(grad, mask)],
        )
    }
}

#[cfg(test)]
mod tests;
