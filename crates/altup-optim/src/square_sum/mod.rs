//! The sum of squares of many tensors, on their device.

mod cpu;
#[cfg(feature = "cube")]
mod cube;

use altup_backend::to_f32;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Dispatch, TensorMetadata};
use burn::tensor::{FloatDType, Shape, Slice, Tensor};

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
    /// Sums of squares on a backend, in one order whatever the number of threads. A GPU keeps several sums of each tensor,
    /// where Burn's own sum of a whole tensor adds atomically, in any order.
    pub trait SquareSumBackend {
        /// Room for the sums of `count` tensors, on the device of one, in f32: the square of a gradient may be more than f16
        /// holds, or less.
        #[fusion(meta = |_beside, count| {
            let dtype = burn::tensor::DType::F32;
            burn::backend::fusion::custom::TensorSpec::new(Shape::new([*count, PARTS]), dtype)
        })]
        fn square_sums(beside: FloatTensor<Self>, count: usize) -> FloatTensor<Self> {
            Self::float_zeros(Shape::new([count]), &beside.device(), FloatDType::F32)
        }

        /// The same with the sum of squares of `tensor`, the one with this number.
        #[fusion(dtype = sums, shape = sums)]
        fn with_square_sum(
            sums: FloatTensor<Self>,
            tensor: FloatTensor<Self>,
            number: usize,
        ) -> FloatTensor<Self> {
            let tensor = to_f32::<Self>(tensor);
            if Self::on_host([&sums, &tensor]) {
                return cpu::with_square_sum::<Self>(sums, &tensor, number);
            }
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

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use burn::tensor::{DType, Device, TensorData};

    /// The square of 300 is more than f16 holds, and that of 1e-4 less; gradients of several types have one norm.
    #[test]
    fn squares_are_f32_whatever_the_gradients_are() {
        let device = Device::flex();
        let tensor =
            |values: [f32; 2], dtype: DType| Tensor::<1>::from_data(values, &device).cast(dtype);
        for first in [DType::F16, DType::BF16, DType::F32] {
            let mut sum = SquareSum::new();
            sum.add(tensor([300.0, 1e-4], first));
            sum.add(tensor([0.0, 0.0], DType::F32));
            sum.add(tensor([1e-4, 1e-4], DType::F16));
            let total = sum.total().unwrap();
            assert_eq!(total.dtype(), DType::F32);
            let total = total.into_scalar::<f32>();
            assert!((total / 9e4 - 1.0).abs() < 1e-2, "{first:?}: {total}");
        }
        let mut small = SquareSum::new();
        small.add(tensor([1e-4, 0.0], DType::F16));
        let total = small.total().unwrap().into_scalar::<f32>();
        assert!((total / 1e-8 - 1.0).abs() < 1e-2, "{total}");
    }

    /// As large as a table of embeddings: from 4 Mi values on, flex's own sum is made by whatever thread is free.
    #[test]
    fn the_sum_is_the_same_whatever_the_number_of_threads() {
        let values: Vec<f32> = (0..5 * 1024 * 1024 + 1)
            .map(|i: u32| {
                (i.wrapping_mul(2_654_435_761) as f32 / 4e9 - 0.5) * 10f32.powi(i as i32 % 5)
            })
            .collect();
        let expected: f64 = values.iter().map(|&value| f64::from(value).powi(2)).sum();
        let shape = [values.len()];
        let tensor = Tensor::<1>::from_data(TensorData::new(values, shape), &Device::flex());
        for (dtype, tolerance) in [(DType::F32, 1e-6), (DType::BF16, 1e-3)] {
            let tensor = tensor.clone().cast(dtype);
            let total = || {
                let mut sum = SquareSum::new();
                sum.add(tensor.clone());
                sum.total().unwrap().into_scalar::<f32>()
            };
            let first = total();
            let error = (f64::from(first) / expected - 1.0).abs();
            assert!(error < tolerance, "{dtype:?}: {first}, and {expected}");
            for threads in [1, 2, 3, 8] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                for _ in 0..20 {
                    let found = pool.install(total);
                    assert_eq!(found.to_bits(), first.to_bits(), "{dtype:?}, {threads} threads");
                }
            }
        }
    }
}
