//! What the benchmarks share: the backends they compare, and tensors to measure with.

// Burn marks ndarray, which it will drop, as deprecated; while it ships it is compared here.
#![allow(deprecated)]

use burn::tensor::{Device, Distribution, Tensor};

/// The CPU backends by name.
pub const BACKENDS: [&str; 2] = ["flex", "ndarray"];

/// The device of a backend of [`BACKENDS`].
///
/// # Panics
///
/// Panics at another name.
pub fn device(backend: &str) -> Device {
    match backend {
        "flex" => Device::flex(),
        "ndarray" => Device::ndarray(),
        other => panic!("no backend {other}"),
    }
}

/// Random values of a shape, in memory of their own.
pub fn random<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), device)
}
