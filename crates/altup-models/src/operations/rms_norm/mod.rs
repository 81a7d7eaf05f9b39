//! Root-mean-square normalisation.

mod cpu;
#[cfg(feature = "cube")]
mod cube;
mod primitive;

use altup_backend::record;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Dispatch};
use burn::tensor::Tensor;

/// x / √(mean(x²) + ε) · γ over the last dimension, without a bias and without a mean taken away. The mean of squares
/// is f32 whatever the type of x.
///
/// # Shapes
///
/// - x, output: `[…, width]`
/// - gamma: `[width]`
///
/// # Panics
///
/// Panics if the widths or the types differ.
pub fn rms_norm<const D: usize>(x: Tensor<D>, gamma: Tensor<1>, epsilon: f64) -> Tensor<D> {
    let shape = x.dims();
    let [width] = gamma.dims();
    assert_eq!(shape[D - 1], width, "Got x={shape:?}, gamma=[{width}]");
    assert_eq!(x.dtype(), gamma.dtype(), "x and gamma must be of one type");
    let rows: Tensor<2> = x.reshape([shape.iter().product::<usize>() / width.max(1), width]);
    let normed: Tensor<2> = Tensor::from_dispatch(<Dispatch as RmsNormBackend>::rms_norm(
        rows.into_dispatch(),
        gamma.into_dispatch(),
        epsilon as f32,
    ));
    normed.reshape(shape)
}

altup_backend::operations! {
    gpu_kernels
    /// [`rms_norm`] on a backend.
    pub trait RmsNormBackend {
        /// # Shapes
        ///
        /// - x, output: `[rows, width]`
        /// - gamma: `[width]`
        #[fusion(dtype = x, shape = x)]
        fn rms_norm(
            x: FloatTensor<Self>,
            gamma: FloatTensor<Self>,
            epsilon: f32,
        ) -> FloatTensor<Self> {
            match Self::on_host([&x, &gamma]) {
                true => cpu::rms_norm::<Self>(&x, &gamma, epsilon),
                false => primitive::rms_norm::<Self>(x, gamma, epsilon),
            }
        }

        /// The gradients of x and gamma.
        #[fusion(meta = |x, gamma, _grad, _epsilon| (x.clone(), gamma.clone()))]
        fn rms_norm_backward(
            x: FloatTensor<Self>,
            gamma: FloatTensor<Self>,
            output_grad: FloatTensor<Self>,
            epsilon: f32,
        ) -> (FloatTensor<Self>, FloatTensor<Self>) {
            match Self::on_host([&x, &gamma, &output_grad]) {
                true => cpu::rms_norm_backward::<Self>(&x, &gamma, output_grad, epsilon),
                false => primitive::rms_norm_backward::<Self>(x, gamma, output_grad, epsilon),
            }
        }
    }
}

impl<B: RmsNormBackend, C: CheckpointStrategy> RmsNormBackend for Autodiff<B, C> {
    fn rms_norm(x: FloatTensor<Self>, gamma: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self> {
        record::<B, C, _, 2>(
            [x, gamma],
            |[x, gamma]| (B::rms_norm(x.clone(), gamma.clone(), epsilon), ([x, gamma], epsilon)),
            |([x, gamma], epsilon), grad| B::rms_norm_backward(x, gamma, grad, epsilon).into(),
        )
    }
}

#[cfg(test)]
mod tests;
