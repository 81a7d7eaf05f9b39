#![doc = include_str!("../README.md")]

mod altup;
pub mod autodiff;
mod backend;
mod block_selection;
#[cfg(any(feature = "flex", feature = "ndarray", feature = "tch"))]
pub mod cpu;
mod sequence;
mod widening;

pub use altup::{AltUp, AltUpConfig};
pub use backend::AltUpBackend;
pub use block_selection::BlockSelection;
pub use sequence::{SequenceAltUp, SequenceAltUpConfig, anchors, average_pool, stride_and_skip};
pub use widening::{Widening, concatenate_blocks, replicate_blocks, split_blocks, sum_blocks};
