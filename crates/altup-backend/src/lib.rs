#![doc = include_str!("../README.md")]

mod operations;
mod recompute;
mod tape;

mod backends;
mod device;
mod host_tensors;

mod matrix;
mod parallel;
mod reading;
mod strided;
mod types;
pub mod vector;

pub mod philox;

#[cfg(feature = "cube")]
pub mod cube;

pub use device::{has_kernels, is_gpu};
pub use host_tensors::HostTensors;
pub use matrix::{HeadsMut, Matrix, MatrixMut, product};
pub use parallel::{for_each, map, vectorized};
pub use reading::Reading;
pub use recompute::recomputed;
pub use strided::Strided;
pub use tape::{record, record_asked};
pub use types::{cast, to_f32};
