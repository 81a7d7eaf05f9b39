//! Sums over the threads of a row, and over the rows of a tensor.

use burn::tensor::{DType, Shape};
use burn_backend::cubecl::dtype_to_storage_type;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::{assert_countable, cubes, empty, threads, zeros};

/// Shared memory for [`sum_over_row()`] and [`max_over_row()`].
#[cube]
pub fn row_memory(#[comptime] units: usize, #[comptime] rows: usize) -> Shared<[f32]> {
    Shared::<[f32]>::new_slice(comptime!(units * rows))
}

/// The sum of the values of all threads of a row, which each of them gets. All threads of a group take part.
#[cube]
pub fn sum_over_row(value: f32, memory: &mut Shared<[f32]>, #[comptime] units: usize) -> f32 {
    over_row(value, memory, units, false)
}

/// As [`sum_over_row()`], the largest of the values.
#[cube]
pub fn max_over_row(value: f32, memory: &mut Shared<[f32]>, #[comptime] units: usize) -> f32 {
    over_row(value, memory, units, true)
}

#[allow(clippy::let_and_return)] // The value is read here, before another call writes over it.
#[cube]
fn over_row(
    value: f32,
    memory: &mut Shared<[f32]>,
    #[comptime] units: usize,
    #[comptime] largest: bool,
) -> f32 {
    let unit = UNIT_POS_X as usize;
    let first = UNIT_POS_Y as usize * units;
    let place = first + unit;
    // Somebody may still read what the last call left.
    sync_cube();
    memory[place] = value;
    sync_cube();
    let levels = comptime!(units.ilog2() as usize);
    #[unroll]
    for level in 0..levels {
        let half = comptime!(units >> (level + 1));
        if unit < half {
            let other = memory[place + half];
            let own = memory[place];
            if comptime!(largest) {
                memory[place] = max(own, other);
            } else {
                memory[place] = own + other;
            }
        }
        sync_cube();
    }
    let result = memory[first];
    result
}

/// The sum of a vector's values.
#[cube]
pub fn sum_of_vector<N: Size>(vector: Vector<f32, N>) -> f32 {
    let mut sum = 0.0f32;
    #[unroll]
    for i in 0..N::value() {
        sum += vector.extract(i);
    }
    sum
}

/// The largest of a vector's values.
#[cube]
pub fn largest_of_vector<N: Size>(vector: Vector<f32, N>) -> f32 {
    let mut largest = vector.extract(0usize);
    #[unroll]
    for i in 1..N::value() {
        largest = max(largest, vector.extract(i));
    }
    largest
}

/// Sums over the middle one of three dimensions, `[outer, rows, width]` to `[outer, width]`, in f32, into a tensor of
/// the given shape and type.
///
/// # Panics
///
/// Panics if there are more than [`u32::MAX`] values.
pub fn sum_rows(
    tensor: CubeTensor,
    [outer, rows, width]: [usize; 3],
    shape: Shape,
    dtype: DType,
) -> CubeTensor {
    if outer * rows * width == 0 {
        return zeros(shape, dtype, &tensor);
    }
    assert_countable("values", outer * rows * width);
    let output = empty(shape, dtype, &tensor);
    let client = output.client.clone();
    let tensor = into_contiguous(tensor);
    let limit = threads(&client);
    let columns = width.next_power_of_two().min(32).min(limit);
    let lanes = (limit / columns).min(rows.next_power_of_two());
    sum_rows_kernel::launch(
        &client,
        cubes(&client, outer * width.div_ceil(columns)),
        CubeDim::new_2d(columns as u32, lanes as u32),
        tensor.clone().into_tensor_arg(),
        output.clone().into_tensor_arg(),
        rows as u32,
        width as u32,
        columns,
        lanes,
        [dtype_to_storage_type(tensor.dtype), dtype_to_storage_type(dtype)],
    );
    output
}

/// A group of threads for 32 columns, between which its lanes share the rows.
#[cube(launch)]
fn sum_rows_kernel<F: Float, G: Float>(
    input: &Tensor<F>,
    output: &mut Tensor<G>,
    rows: u32,
    width: u32,
    #[comptime] columns: usize,
    #[comptime] lanes: usize,
    #[define(F, G)] _dtypes: [ElemType; 2],
) {
    let mut memory = row_memory(columns, lanes);
    let rows = rows as usize;
    let width = width as usize;
    let tiles = width.div_ceil(columns);
    let outer = CUBE_POS / tiles;
    let column = CUBE_POS % tiles * columns + UNIT_POS_X as usize;
    let inside = column < width && outer * width < output.len();
    let lane = UNIT_POS_Y as usize;
    let mut sum = 0.0f32;
    if inside {
        let first = outer * rows * width + column;
        let mut row = lane;
        while row < rows {
            sum += f32::cast_from(input[first + row * width]);
            row += lanes;
        }
    }
    let place = lane * columns + UNIT_POS_X as usize;
    memory[place] = sum;
    sync_cube();
    let levels = comptime!(lanes.ilog2() as usize);
    #[unroll]
    for level in 0..levels {
        let half = comptime!(lanes >> (level + 1));
        if lane < half {
            let other = memory[place + half * columns];
            let own = memory[place];
            memory[place] = own + other;
        }
        sync_cube();
    }
    if inside && lane == 0 {
        output[outer * width + column] = G::cast_from(memory[place]);
    }
}
