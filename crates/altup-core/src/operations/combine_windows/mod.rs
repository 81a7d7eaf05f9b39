//! Sequence-AltUp's predict and correct as one operation: linear combinations of each token, its anchor and the
//! layer's output there.

mod cpu;
#[cfg(feature = "cube")]
mod cube;
pub mod primitive;

use altup_backend::record;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Dispatch};
use burn::tensor::Tensor;

/// yᵢ = c₀ xᵢ + c₁ x_kA + c₂ ỹ_A, with the stride k and A = ⌊i/k⌋. The three terms are the token, its anchor, and the
/// layer's output at the anchor.
///
/// # Shapes
///
/// - x: `[B, T, d]`
/// - computed, ỹ: `[B, ⌈T/k⌉, d]`
/// - coefs, c: `[3]`
/// - output: `[B, T, d]`
///
/// # Panics
///
/// Panics if the stride is 0, the shapes do not fit, or x and computed are of two types; the coefficients may be
/// of another.
pub fn combine_windows(
    x: Tensor<3>,
    computed: Tensor<3>,
    coefs: Tensor<1>,
    stride: usize,
) -> Tensor<3> {
    assert!(stride > 0, "The stride must be at least 1. Got stride={stride}");
    let [batch_size, seq_length, width] = x.dims();
    // A longer stride has the same single window, and kernels multiply by it.
    let stride = stride.min(seq_length.max(1));
    assert_eq!(
        (computed.dims(), coefs.dims()),
        ([batch_size, seq_length.div_ceil(stride), width], [3]),
        "There must be one computed token for each anchor, and three coefficients. Got x={:?}, computed={:?}, \
         coefs={:?}, stride={stride}",
        x.dims(),
        computed.dims(),
        coefs.dims()
    );
    assert_eq!(
        x.dtype(),
        computed.dtype(),
        "What was computed must be of the tokens' type. Got x={:?}, computed={:?}",
        x.dtype(),
        computed.dtype()
    );
    Tensor::from_dispatch(<Dispatch as CombineWindowsBackend>::combine_windows(
        x.into_dispatch(),
        computed.into_dispatch(),
        coefs.into_dispatch(),
        stride,
    ))
}

altup_backend::operations! {
    gpu_kernels
    /// [`combine_windows`] on a backend.
    pub trait CombineWindowsBackend {
        /// # Shapes
        ///
        /// - x: `[B, T, d]`
        /// - computed: `[B, ⌈T/k⌉, d]`, of the type of x
        /// - coefs: `[3]`
        /// - output: `[B, T, d]`
        #[fusion(dtype = x, shape = x)]
        fn combine_windows(
            x: FloatTensor<Self>,
            computed: FloatTensor<Self>,
            coefs: FloatTensor<Self>,
            stride: usize,
        ) -> FloatTensor<Self> {
            match Self::on_host([&x, &computed, &coefs]) {
                true => cpu::combine_windows::<Self>(&x, &computed, &coefs, stride),
                false => primitive::combine_windows::<Self>(x, computed, coefs, stride),
            }
        }

        /// The gradients of x, computed and coefs, from that of the output.
        #[fusion(meta = |x, computed, coefs, _grad, _stride| (x.clone(), computed.clone(), coefs.clone()))]
        fn combine_windows_backward(
            x: FloatTensor<Self>,
            computed: FloatTensor<Self>,
            coefs: FloatTensor<Self>,
            output_grad: FloatTensor<Self>,
            stride: usize,
        ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
            match Self::on_host([&x, &computed, &coefs, &output_grad]) {
                true => {
                    cpu::combine_windows_backward::<Self>([&x, &computed, &coefs], &output_grad, stride)
                }
                false => {
                    primitive::combine_windows_backward::<Self>(x, computed, coefs, output_grad, stride)
                }
            }
        }
    }
}

impl<B: CombineWindowsBackend, C: CheckpointStrategy> CombineWindowsBackend for Autodiff<B, C> {
    fn combine_windows(
        x: FloatTensor<Self>,
        computed: FloatTensor<Self>,
        coefs: FloatTensor<Self>,
        stride: usize,
    ) -> FloatTensor<Self> {
        record::<B, C, _, 3>(
            [x, computed, coefs],
            |[x, computed, coefs]| {
                let inputs = [x.clone(), computed.clone(), coefs.clone()];
                (B::combine_windows(x, computed, coefs, stride), (inputs, stride))
            },
            |([x, computed, coefs], stride), grad| {
                B::combine_windows_backward(x, computed, coefs, grad, stride).into()
            },
        )
    }
}
