//! The operations of a T5 that have kernels. As a chain of primitive operations, each would pass over memory many
//! times, and keep many tensors for the backward pass.
//!
//! Each has a folder: the operation on tensors and on a backend (`mod.rs`) and, where it has them, its body of primitive
//! operations (`primitive.rs`), its loops on a CPU in f32 (`cpu.rs`), and GPU kernels (`cube.rs`). The loops
//! sum in the same order whatever the number of threads. Backward passes are written by hand. Under autodiff an
//! operation is one node; it keeps its inputs, and what its documentation names.

pub mod attention;
pub mod cross_entropy;
pub mod dispatch;
pub mod dropout;
pub mod embedding;
pub mod gated_gelu;
pub mod position_bias;
pub mod project;
pub mod rms_norm;

#[cfg(all(test, any(feature = "wgpu", feature = "cuda")))]
mod half_types;
#[cfg(test)]
pub(crate) mod testing;
