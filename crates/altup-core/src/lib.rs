#![doc = include_str!("../README.md")]

mod altup;
mod backend;
mod block_selection;
mod widening;

pub use altup::{AltUp, AltUpConfig};
pub use backend::AltUpBackend;
pub use block_selection::BlockSelection;
pub use widening::{Widening, concatenate_blocks, replicate_blocks, split_blocks, sum_blocks};
