//! Kernels for GPUs, through CubeCL: tensors to write, how many threads write them, sums over the threads of a group,
//! and which kernels are launched.
//!
//! Sums are made in one order on a device, from run to run: there is no atomic addition. No kernel here knows how many
//! threads run in lockstep (a warp, a subgroup).

mod launches;
#[allow(missing_docs)] // `cube` makes a module of each function, besides the documented one.
mod rows;
mod transfer;

pub use launches::launches;
pub use rows::{
    largest_of_vector, max_over_row, row_memory, sum_of_vector, sum_over_row, sum_rows,
};
pub(crate) use transfer::Transfer;

use burn::backend::TensorMetadata;
use burn::tensor::{DType, Shape};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::{self, empty_device_contiguous_dtype};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use cubecl::{calculate_cube_count_elemwise, tensor_vector_size_parallel};

/// Threads of a group that sums together, where the device has as many.
const THREADS: usize = 256;

/// Vectors of a row that a thread reads at the least, if the row is long enough.
const VECTORS: usize = 4;

/// A tensor of the shape and type of another, to write.
pub fn empty_like(tensor: &CubeTensor) -> CubeTensor {
    empty(tensor.shape(), tensor.dtype, tensor)
}

/// A tensor to write, on the device of another. It lies row by row without gaps, which kernels that count
/// positions rely on: CubeCL's usual allocation may pad rows on some devices.
pub fn empty(shape: Shape, dtype: DType, beside: &CubeTensor) -> CubeTensor {
    let (client, device) = (beside.client.clone(), beside.device.clone());
    empty_device_contiguous_dtype(client, device, shape, dtype)
}

/// Zeros, on the device of another. They lie as what [`empty`] makes does.
pub fn zeros(shape: Shape, dtype: DType, beside: &CubeTensor) -> CubeTensor {
    into_contiguous(numeric::zeros(beside.device.clone(), shape, dtype))
}

/// As [`zeros`], of the shape and type of another.
pub fn zeros_like(tensor: &CubeTensor) -> CubeTensor {
    zeros(tensor.shape(), tensor.dtype, tensor)
}

/// The values of a tensor, to write over: row by row without gaps, in memory that nobody else holds.
pub fn into_owned(tensor: CubeTensor) -> CubeTensor {
    let tensor = into_contiguous(tensor);
    if tensor.can_mut() { tensor } else { into_contiguous(tensor.copy()) }
}

/// A thread for each vector of a tensor that lies row by row.
#[derive(Debug)]
pub struct Launch {
    /// Groups of threads.
    pub cubes: CubeCount,
    /// Threads of a group.
    pub threads: CubeDim,
    /// Values of a vector; it divides the last dimension.
    pub vector_size: usize,
}

impl Launch {
    /// Over a tensor with at least one value.
    ///
    /// # Panics
    ///
    /// Panics if the tensor has more than [`u32::MAX`] vectors.
    pub fn new(tensor: &CubeTensor) -> Self {
        let vector_size = tensor_vector_size_parallel(
            tensor.client.io_optimized_vector_sizes(tensor.dtype.size()),
            tensor.meta.shape(),
            tensor.meta.strides(),
            tensor.meta.num_dims() - 1,
        );
        Self::with_vectors(tensor, vector_size)
    }

    /// Over a tensor with at least one value, with a thread for each value.
    ///
    /// # Panics
    ///
    /// Panics if the tensor has more than [`u32::MAX`] values.
    pub fn of_values(tensor: &CubeTensor) -> Self {
        Self::with_vectors(tensor, 1)
    }

    /// # Panics
    ///
    /// Panics if there are more vectors than a kernel can count.
    fn with_vectors(tensor: &CubeTensor, vector_size: usize) -> Self {
        let vectors = tensor.meta.num_elements() / vector_size;
        assert_countable("vectors", vectors);
        let threads = CubeDim::new(&tensor.client, vectors);
        let cubes = calculate_cube_count_elemwise(&tensor.client, vectors, threads);
        Self { cubes, threads, vector_size }
    }
}

/// A tensor of the shape and type of another that takes its place in memory, if nobody else holds it and it lies row
/// by row; and what a kernel writes. Its argument is `input` of those before it.
///
/// A kernel that reads the old value at a position before it writes the new one there may write over its input.
pub fn over(tensor: &CubeTensor, input: usize) -> (CubeTensor, TensorArg) {
    if tensor.can_mut() && tensor.is_contiguous() && tensor.is_nonoverlapping() {
        return (tensor.clone(), tensor.as_tensor_alias(input));
    }
    let output = empty_like(tensor);
    (output.clone(), output.into_tensor_arg())
}

/// A thread for each vector of rows that lie one after another, several threads for a row, and several rows for a
/// group of threads.
#[derive(Debug)]
pub struct RowLaunch {
    /// Groups of threads.
    pub cubes: CubeCount,
    /// Threads of a group: those of a row, times rows.
    pub threads: CubeDim,
    /// Values of a vector; it divides the length of a row.
    pub vector_size: usize,
    /// Threads of a row, a power of two.
    pub units: usize,
    /// Rows of a group.
    pub rows: usize,
}

impl RowLaunch {
    /// Over `rows` rows of `width` values of a tensor's type.
    ///
    /// # Panics
    ///
    /// Panics if the rows have more than [`u32::MAX`] vectors.
    pub fn new(tensor: &CubeTensor, rows: usize, width: usize) -> Self {
        Self::with_vectors(tensor, rows, width, row_vector_size(tensor, width))
    }

    /// Over `rows` rows of `width` values as over one, in vectors none of which lies in two of them.
    ///
    /// # Panics
    ///
    /// As [`new`](Self::new).
    pub fn joined(tensor: &CubeTensor, rows: usize, width: usize) -> Self {
        Self::with_vectors(tensor, 1, rows * width, row_vector_size(tensor, width))
    }

    fn with_vectors(tensor: &CubeTensor, rows: usize, width: usize, vector_size: usize) -> Self {
        let client = &tensor.client;
        assert_countable("vectors", rows * (width / vector_size));
        let limit = threads(client);
        let units = (width / vector_size).div_ceil(VECTORS).next_power_of_two().min(limit);
        let of_group = (limit / units).min(rows.next_power_of_two());
        Self {
            cubes: cubes(client, rows.div_ceil(of_group)),
            threads: CubeDim::new_2d(units as u32, of_group as u32),
            vector_size,
            units,
            rows: of_group,
        }
    }
}

/// The largest vector of a tensor's type that divides a row. At most four values: WGSL has no longer ones, and sums
/// are vectors of f32.
fn row_vector_size(tensor: &CubeTensor, width: usize) -> usize {
    let sizes = tensor.client.io_optimized_vector_sizes(tensor.dtype.size());
    sizes.filter(|&size| size <= 4 && width.is_multiple_of(size)).max().unwrap_or(1)
}

/// Kernels count positions in u32, which would begin again at 0. [`Launch`] and [`RowLaunch`] check the tensor that they
/// are made for; this is for those that a kernel reads or writes elsewhere, or in other units.
///
/// # Panics
///
/// Panics if there are more than [`u32::MAX`].
pub fn assert_countable(what: &str, count: usize) {
    assert!(
        u32::try_from(count).is_ok(),
        "a kernel counts at most {} {what} of a tensor, got {count}: make the batch smaller",
        u32::MAX
    );
}

/// Threads of a group, a power of two.
fn threads(client: &Client) -> usize {
    let limit = THREADS.min(client.properties().hardware.max_units_per_cube as usize).max(1);
    1 << limit.ilog2()
}

/// As many groups of threads or a few more, which find nothing to do. A device may have a low limit to those along one
/// dimension: they are spread over three.
pub fn cubes(client: &Client, count: usize) -> CubeCount {
    calculate_cube_count_elemwise(client, count, CubeDim::new_single())
}

#[cfg(test)]
mod tests {
    use super::assert_countable;

    #[test]
    fn the_largest_tensor_is_countable() {
        assert_countable("values", 0);
        assert_countable("values", u32::MAX as usize);
    }

    #[test]
    #[should_panic = "at most 4294967295 vectors of a tensor, got 4294967296"]
    fn a_larger_tensor_is_refused() {
        assert_countable("vectors", u32::MAX as usize + 1);
    }
}
