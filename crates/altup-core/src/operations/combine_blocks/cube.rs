//! On a GPU in one kernel each way, in which a thread reads a vector of each block and of x̃ and writes one of each new
//! block. Backward it also sums the gradients of the coefficients; those of all groups of threads are added up by a second
//! kernel. Coefficients and sums are f32 whatever the blocks are.

use altup_backend::cube::{
    Launch, RowLaunch, assert_countable, empty, empty_like, row_memory, sum_of_vector,
    sum_over_row, sum_rows, zeros,
};
use burn::backend::TensorMetadata;
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::tensor::{DType, FloatDType, Shape};
use burn_backend::cubecl::dtype_to_storage_type;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::{CombineBlocksBackend, primitive};

/// Groups of threads that sum the gradients of the coefficients, at most.
const GROUPS: usize = 1024;

/// Vectors of a block for each of their threads at the least.
const VECTORS: usize = 8;

impl CombineBlocksBackend for CubeBackend {
    fn combine_blocks(
        state: FloatTensor<Self>,
        computed: FloatTensor<Self>,
        coefs: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        if coefs.shape().num_dims() != 2 {
            return primitive::combine_blocks::<Self>(state, computed, coefs);
        }
        let output = empty_like(&state);
        let num_blocks = state.shape()[0];
        if computed.shape().num_elements() == 0 {
            return output;
        }
        let coefs = Self::float_cast(coefs, FloatDType::F32);
        let [state, computed, coefs] = [state, computed, coefs].map(into_contiguous);
        let launch = Launch::new(&computed);
        assert_countable("vectors", state.shape().num_elements() / launch.vector_size);
        combine_kernel::launch(
            &output.client.clone(),
            launch.cubes,
            launch.threads,
            launch.vector_size,
            state.into_tensor_arg(),
            computed.into_tensor_arg(),
            coefs.into_tensor_arg(),
            output.clone().into_tensor_arg(),
            num_blocks,
            dtype_to_storage_type(output.dtype),
        );
        output
    }

    fn combine_blocks_backward(
        state: FloatTensor<Self>,
        computed: FloatTensor<Self>,
        coefs: FloatTensor<Self>,
        output_grad: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        if coefs.shape().num_dims() != 2 {
            return primitive::combine_blocks_backward::<Self>(state, computed, coefs, output_grad);
        }
        let (coefs_shape, coefs_dtype) = (coefs.shape(), coefs.dtype);
        if computed.shape().num_elements() == 0 {
            let coefs_grad = zeros(coefs_shape, coefs_dtype, &coefs);
            return (state, computed, coefs_grad);
        }
        let Spread { state_grad, computed_grad, sums } =
            spread(state, computed, coefs, output_grad);
        let [groups, count] = sums.shape().dims();
        let coefs_grad = sum_rows(sums, [1, groups, count], coefs_shape, coefs_dtype);
        (state_grad, computed_grad, coefs_grad)
    }
}

/// What one pass over the output's gradient, the old blocks and x̃ gives.
pub(in crate::operations) struct Spread {
    pub(in crate::operations) state_grad: CubeTensor,
    pub(in crate::operations) computed_grad: CubeTensor,
    /// Each group's sums for the gradient of the coefficients, `[groups, K · (K + 1)]`, in f32.
    pub(in crate::operations) sums: CubeTensor,
}

/// The backward pass, of a state that is not empty.
pub(in crate::operations) fn spread(
    state: CubeTensor,
    computed: CubeTensor,
    coefs: CubeTensor,
    output_grad: CubeTensor,
) -> Spread {
    let coefs = CubeBackend::float_cast(coefs, FloatDType::F32);
    let [state, computed, coefs, output_grad] =
        [state, computed, coefs, output_grad].map(into_contiguous);
    let (state_grad, computed_grad) = (empty_like(&state), empty_like(&computed));
    let num_blocks = state.shape()[0];
    let values = computed.shape().num_elements();
    let launch = RowLaunch::new(&computed, 1, values);
    let vectors = values / launch.vector_size;
    assert_countable("vectors", num_blocks * vectors);
    let groups = vectors.div_ceil(VECTORS * launch.units).min(GROUPS);
    let sums = empty(Shape::new([groups, num_blocks * (num_blocks + 1)]), DType::F32, &state);
    spread_kernel::launch(
        &state.client.clone(),
        CubeCount::new_1d(groups as u32),
        launch.threads,
        launch.vector_size,
        state.into_tensor_arg(),
        computed.into_tensor_arg(),
        output_grad.into_tensor_arg(),
        coefs.into_tensor_arg(),
        state_grad.clone().into_tensor_arg(),
        computed_grad.clone().into_tensor_arg(),
        sums.clone().into_tensor_arg(),
        num_blocks,
        launch.units,
        dtype_to_storage_type(state_grad.dtype),
    );
    Spread { state_grad, computed_grad, sums }
}

/// output i = Σⱼ cᵢⱼ · state j + cᵢ_K · computed, with c `[K, K + 1]`.
#[cube(launch)]
fn combine_kernel<F: Float, N: Size>(
    state: &Tensor<Vector<F, N>>,
    computed: &Tensor<Vector<F, N>>,
    coefs: &Tensor<f32>,
    output: &mut Tensor<Vector<F, N>>,
    #[comptime] num_blocks: usize,
    #[define(F)] _dtype: ElemType,
) {
    let block_size = computed.len();
    let position = ABSOLUTE_POS;
    if position >= block_size {
        terminate!();
    }
    let computed = Vector::<f32, N>::cast_from(computed[position]);
    #[unroll]
    for i in 0..num_blocks {
        let row = i * (num_blocks + 1);
        let mut sum = computed * Vector::new(coefs[row + num_blocks]);
        #[unroll]
        for j in 0..num_blocks {
            let old = Vector::<f32, N>::cast_from(state[j * block_size + position]);
            sum += old * Vector::new(coefs[row + j]);
        }
        output[i * block_size + position] = Vector::cast_from(sum);
    }
}

/// The transpose of [`combine_kernel`]: what of the output's gradient belongs to each old block and to x̃. And a group's
/// inner products of the output's gradient with the old blocks and x̃.
#[cube(launch)]
fn spread_kernel<F: Float, N: Size>(
    state: &Tensor<Vector<F, N>>,
    computed: &Tensor<Vector<F, N>>,
    output_grad: &Tensor<Vector<F, N>>,
    coefs: &Tensor<f32>,
    state_grad: &mut Tensor<Vector<F, N>>,
    computed_grad: &mut Tensor<Vector<F, N>>,
    sums: &mut Tensor<f32>,
    #[comptime] num_blocks: usize,
    #[comptime] units: usize,
    #[define(F)] _dtype: ElemType,
) {
    let columns = comptime!(num_blocks + 1);
    let count = comptime!(num_blocks * (num_blocks + 1));
    let mut memory = row_memory(units, 1usize);
    let mut products = Array::<f32>::new(count);
    #[unroll(num_blocks <= 4)]
    for place in 0..count {
        products[place] = 0.0f32;
    }
    let mut grads = Array::<Vector<f32, N>>::new(num_blocks);
    let block_size = computed.len();
    let step = CUBE_COUNT * units;
    let unit = UNIT_POS_X as usize;
    let mut position = CUBE_POS * units + unit;
    while position < block_size {
        #[unroll]
        for i in 0..num_blocks {
            grads[i] = Vector::cast_from(output_grad[i * block_size + position]);
        }
        #[unroll]
        for j in 0..columns {
            let old = if comptime!(j < num_blocks) {
                Vector::<f32, N>::cast_from(state[j * block_size + position])
            } else {
                Vector::<f32, N>::cast_from(computed[position])
            };
            let mut sum = Vector::<f32, N>::new(0.0f32);
            #[unroll]
            for i in 0..num_blocks {
                sum += grads[i] * Vector::new(coefs[i * columns + j]);
                products[i * columns + j] += sum_of_vector(grads[i] * old);
            }
            if comptime!(j < num_blocks) {
                state_grad[j * block_size + position] = Vector::cast_from(sum);
            } else {
                computed_grad[position] = Vector::cast_from(sum);
            }
        }
        position += step;
    }
    #[unroll(num_blocks <= 4)]
    for place in 0..count {
        let sum = sum_over_row(products[place], &mut memory, units);
        if unit == 0 {
            sums[CUBE_POS * count + place] = sum;
        }
    }
}
