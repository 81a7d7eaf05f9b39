//! On a GPU one kernel for each tensor, and one at the end. Sums are f32.

use altup_backend::cube::{
    RowLaunch, into_owned, row_memory, sum_of_vector, sum_over_row, sum_rows, zeros,
};
use burn::backend::TensorMetadata;
use burn::backend::tensor::FloatTensor;
use burn::tensor::{DType, Shape};
use burn_backend::cubecl::dtype_to_storage_type;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use cubecl::prelude::*;

use super::{PARTS, SquareSumBackend};

impl SquareSumBackend for CubeBackend {
    /// Each kernel writes all places of its tensor; of a tensor without values there is none.
    fn square_sums(beside: FloatTensor<Self>, count: usize) -> FloatTensor<Self> {
        zeros(Shape::new([count, PARTS]), DType::F32, &beside)
    }

    fn with_square_sum(
        sums: FloatTensor<Self>,
        tensor: FloatTensor<Self>,
        number: usize,
    ) -> FloatTensor<Self> {
        let values = tensor.shape().num_elements();
        if values == 0 {
            return sums;
        }
        let sums = into_owned(sums);
        let tensor = into_contiguous(tensor);
        let launch = RowLaunch::new(&tensor, 1, values);
        square_sum_kernel::launch(
            &sums.client.clone(),
            CubeCount::new_1d(PARTS as u32),
            launch.threads,
            launch.vector_size,
            tensor.clone().into_tensor_arg(),
            sums.clone().into_tensor_arg(),
            (number * PARTS) as u32,
            launch.units,
            dtype_to_storage_type(tensor.dtype),
        );
        sums
    }

    fn total_of_sums(sums: FloatTensor<Self>) -> FloatTensor<Self> {
        let count = sums.shape().num_elements();
        sum_rows(sums, [1, count, 1], Shape::new([1]), DType::F32)
    }
}

/// The sum of squares of each group's share of a tensor, from place `first` on.
#[cube(launch)]
fn square_sum_kernel<F: Float, N: Size>(
    tensor: &Tensor<Vector<F, N>>,
    sums: &mut Tensor<f32>,
    first: u32,
    #[comptime] units: usize,
    #[define(F)] _dtype: ElemType,
) {
    let mut memory = row_memory(units, 1usize);
    let unit = UNIT_POS_X as usize;
    let step = CUBE_COUNT * units;
    let mut squares = Vector::<f32, N>::new(0.0f32);
    let mut place = CUBE_POS * units + unit;
    while place < tensor.len() {
        let value = Vector::<f32, N>::cast_from(tensor[place]);
        squares += value * value;
        place += step;
    }
    let sum = sum_over_row(sum_of_vector(squares), &mut memory, units);
    if unit == 0 {
        sums[first as usize + CUBE_POS] = sum;
    }
}
