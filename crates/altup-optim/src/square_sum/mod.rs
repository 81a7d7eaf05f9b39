//! The sum of squares of many tensors, on their device.

#[cfg(feature = "cube")]
mod cube;

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Dispatch, TensorMetadata};
use burn::tensor::{Shape, Slice, Tensor};

/// Parts of a tensor whose sums a GPU makes side by side.
#[cfg(any(feature = "cube", feature = "fusion"))]
const PARTS: usize = 256;

/// Adds up the sums of squares of tensors, given one after another.
pub(crate) struct SquareSum {
    tensors: Vec<FloatTensor<Dispatch>>,
}

impl SquareSum {
    pub(crate) fn new() -> Self {
        Self { tensors: Vec::new() }
    }

    pub(crate) fn add<const D: usize>(&mut self, tensor: Tensor<D>) {
        self.tensors.push(tensor.into_dispatch());
    }

    /// The sum over all tensors, `[1]`; none of none. It isn't read from the device.
    pub(crate) fn total(self) -> Option<Tensor<1>> {
        let first = self.tensors.first()?.clone();
        let sums = <Dispatch as SquareSumBackend>::square_sums(first, self.tensors.len());
        let numbered = self.tensors.into_iter().enumerate();
        let sums = numbered.fold(sums, |sums, (number, tensor)| {
            <Dispatch as SquareSumBackend>::with_square_sum(sums, tensor, number)
        });
        Some(Tensor::from_dispatch(<Dispatch as SquareSumBackend>::total_of_sums(sums)))
    }
}

altup_backend::operations! {
    gpu_kernels
    /// Sums of squares on a backend. A GPU keeps several sums of each tensor: what it adds up is in one order, where
    /// Burn's own sum of a whole tensor adds atomically, in any.
    pub trait SquareSumBackend {
        /// Room for the sums of `count` tensors, on the device of one.
        #[fusion(meta = |_beside, count| {
            let dtype = burn::tensor::DType::F32;
            burn::backend::fusion::custom::TensorSpec::new(Shape::new([*count, PARTS]), dtype)
        })]
        fn square_sums(beside: FloatTensor<Self>, count: usize) -> FloatTensor<Self> {
            Self::float_zeros(Shape::new([count]), &beside.device(), beside.dtype().into())
        }

        /// The same with the sum of squares of `tensor`, the one with this number.
        #[fusion(dtype = sums, shape = sums)]
        fn with_square_sum(
            sums: FloatTensor<Self>,
            tensor: FloatTensor<Self>,
            number: usize,
        ) -> FloatTensor<Self> {
            let sum = Self::float_sum(Self::float_powi_scalar(tensor, 2.into()));
            Self::float_slice_assign(sums, &[Slice::from(number..number + 1)], sum)
        }

        /// The sum of all, `[1]`.
        #[fusion(dtype = sums, shape = Shape::new([1]))]
        fn total_of_sums(sums: FloatTensor<Self>) -> FloatTensor<Self> {
            Self::float_sum(sums)
        }
    }
}

/// Gradients are not recorded.
impl<B: SquareSumBackend, C: CheckpointStrategy> SquareSumBackend for Autodiff<B, C> {}
