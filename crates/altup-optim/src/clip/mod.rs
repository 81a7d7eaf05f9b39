//! A gradient scaled down to a norm that lies on its device.

#[cfg(feature = "cube")]
mod cube;
mod primitive;

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Dispatch};
use burn::tensor::Tensor;

/// The gradient times `max_norm` / √`square_sum`, if that is below 1.
///
/// # Shapes
///
/// - gradient, output: of any shape
/// - square_sum: `[1]`
pub(crate) fn clip<const D: usize>(
    gradient: Tensor<D>,
    square_sum: Tensor<1>,
    max_norm: f64,
) -> Tensor<D> {
    Tensor::from_dispatch(<Dispatch as ClipBackend>::clip(
        gradient.into_dispatch(),
        square_sum.into_dispatch(),
        max_norm,
    ))
}

altup_backend::operations! {
    gpu_kernels
    /// Clipping on a backend. Where the norm lies in this process's memory it is looked at: gradients that aren't too
    /// large are then not touched. A GPU scales them by 1, and nothing waits for the norm.
    pub trait ClipBackend {
        /// Shapes as in [`clip`].
        #[fusion(dtype = gradient, shape = gradient)]
        fn clip(
            gradient: FloatTensor<Self>,
            square_sum: FloatTensor<Self>,
            max_norm: f64,
        ) -> FloatTensor<Self> {
            match Self::on_host([&square_sum]) {
                true => {
                    let norm = f64::from(Self::values(&square_sum)[0]).sqrt();
                    match norm > max_norm {
                        true => Self::float_mul_scalar(gradient, (max_norm / norm).into()),
                        false => gradient,
                    }
                }
                false => primitive::clip::<Self>(gradient, square_sum, max_norm),
            }
        }
    }
}

/// Gradients are not recorded.
impl<B: ClipBackend, C: CheckpointStrategy> ClipBackend for Autodiff<B, C> {}

#[cfg(test)]
mod tests;
