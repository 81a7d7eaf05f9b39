//! AltUp's operations: its update from p and g, and linear combinations of blocks, and of tokens with their anchors.
//!
//! Each has a folder: the operation on tensors and on a backend (`mod.rs`), its body of primitive operations
//! (`primitive.rs`), its loops on a CPU (`cpu.rs`), its kernels for GPUs (`cube.rs`).

pub mod combine_blocks;
pub mod combine_windows;
pub mod update_blocks;

use combine_windows::CombineWindowsBackend;
use update_blocks::UpdateBlocksBackend;

/// A backend that runs AltUp: each that the cargo features name, and `Autodiff` around it.
///
/// Tensors run on these backends only, because Burn's dispatch is a closed list. Code that is generic over this
/// trait runs on any backend `B` that implements it, with kernels where there are some. Code that calls the bodies of
/// primitive operations runs on any `B: Backend` at all:
///
/// ```
/// use altup_core::operations::{AltUpBackend, combine_blocks::primitive};
/// use burn::backend::{Backend, tensor::FloatTensor};
///
/// /// Half of block 0 and half of what was computed.
/// fn average<B: AltUpBackend>(state: FloatTensor<B>, computed: FloatTensor<B>) -> FloatTensor<B> {
///     B::combine_blocks(state, computed, halves::<B>())
/// }
///
/// /// The same on any backend.
/// fn average_anywhere<B: Backend>(state: FloatTensor<B>, computed: FloatTensor<B>) -> FloatTensor<B> {
///     primitive::combine_blocks::<B>(state, computed, halves::<B>())
/// }
///
/// fn halves<B: Backend>() -> FloatTensor<B> {
///     let halves = burn::tensor::TensorData::from([[0.5f32, 0.5]]);
///     B::float_from_data(halves, &B::Device::default())
/// }
/// # use burn::backend::{Flex, ops::FloatTensorOps};
/// # use burn::tensor::TensorData;
/// # for average in [average::<Flex>, average_anywhere::<Flex>] {
/// # let tensor = |data| Flex::float_from_data(data, &Default::default());
/// # let output =
/// #     average(tensor(TensorData::from([[[[1.0f32]]]])), tensor(TensorData::from([[[3.0f32]]])));
/// # let output = burn::tensor::read_sync(Flex::float_into_data(output)).unwrap();
/// # assert_eq!(output, TensorData::from([[[[2.0f32]]]]));
/// # }
/// ```
///
/// A backend of your own implements it with four empty impls: `altup_backend::HostTensors`,
/// [`CombineBlocksBackend`](combine_blocks::CombineBlocksBackend), [`UpdateBlocksBackend`] and
/// [`CombineWindowsBackend`]. The bodies of primitive operations ([`combine_blocks::primitive`],
/// [`update_blocks::primitive`], [`combine_windows::primitive`]) can be called for any `B: Backend`.
pub trait AltUpBackend: UpdateBlocksBackend + CombineWindowsBackend {}

impl<B: UpdateBlocksBackend + CombineWindowsBackend> AltUpBackend for B {}

#[cfg(test)]
mod tests;
