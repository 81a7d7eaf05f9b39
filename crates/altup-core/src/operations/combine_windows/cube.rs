//! On a GPU in one kernel each way, with a thread for each vector of a token, and backward for some of a window. That also
//! sums the gradients of the three coefficients; those of all groups of threads are added up by a second kernel.
//! Coefficients and sums are f32 whatever the tokens are.

use altup_backend::cube::{
    Launch, RowLaunch, assert_countable, empty, empty_like, row_memory, sum_of_vector,
    sum_over_row, sum_rows, zeros_like,
};
use burn::backend::TensorMetadata;
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::tensor::{DType, FloatDType, Shape};
use burn_backend::cubecl::dtype_to_storage_type;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use cubecl::prelude::*;

use super::CombineWindowsBackend;

/// Groups of threads that sum the gradients of the coefficients, at most.
const GROUPS: usize = 1024;

/// Vectors of windows for each of their threads at the least.
const VECTORS: usize = 8;

impl CombineWindowsBackend for CubeBackend {
    fn combine_windows(
        x: FloatTensor<Self>,
        computed: FloatTensor<Self>,
        coefs: FloatTensor<Self>,
        stride: usize,
    ) -> FloatTensor<Self> {
        let output = empty_like(&x);
        if x.shape().num_elements() == 0 {
            return output;
        }
        let coefs = Self::float_cast(coefs, FloatDType::F32);
        let [x, computed, coefs] = [x, computed, coefs].map(into_contiguous);
        let launch = Launch::new(&x);
        combine_kernel::launch(
            &output.client.clone(),
            launch.cubes,
            launch.threads,
            launch.vector_size,
            x.into_tensor_arg(),
            computed.into_tensor_arg(),
            coefs.into_tensor_arg(),
            output.clone().into_tensor_arg(),
            stride,
            dtype_to_storage_type(output.dtype),
        );
        output
    }

    fn combine_windows_backward(
        x: FloatTensor<Self>,
        computed: FloatTensor<Self>,
        coefs: FloatTensor<Self>,
        output_grad: FloatTensor<Self>,
        stride: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let values = computed.shape().num_elements();
        if values == 0 {
            return (x, computed, zeros_like(&coefs));
        }
        let (coefs_shape, coefs_dtype) = (coefs.shape(), coefs.dtype);
        let (x_grad, computed_grad) = (empty_like(&x), empty_like(&computed));
        let coefs = Self::float_cast(coefs, FloatDType::F32);
        let [x, computed, coefs, output_grad] =
            [x, computed, coefs, output_grad].map(into_contiguous);
        let width = computed.shape()[2];
        let launch = RowLaunch::joined(&computed, values / width, width);
        assert_countable("vectors", x.shape().num_elements() / launch.vector_size);
        let vectors = values / launch.vector_size;
        let groups = vectors.div_ceil(VECTORS * launch.units).min(GROUPS);
        let sums = empty(Shape::new([groups, 3]), DType::F32, &x);
        spread_kernel::launch(
            &x.client.clone(),
            CubeCount::new_1d(groups as u32),
            launch.threads,
            launch.vector_size,
            x.into_tensor_arg(),
            computed.into_tensor_arg(),
            output_grad.into_tensor_arg(),
            coefs.into_tensor_arg(),
            x_grad.clone().into_tensor_arg(),
            computed_grad.clone().into_tensor_arg(),
            sums.clone().into_tensor_arg(),
            stride,
            launch.units,
            dtype_to_storage_type(x_grad.dtype),
        );
        let coefs_grad = sum_rows(sums, [1, groups, 3], coefs_shape, coefs_dtype);
        (x_grad, computed_grad, coefs_grad)
    }
}

/// yᵢ = c₀ xᵢ + c₁ x_kA + c₂ ỹ_A, of x `[B, T, d]` and ỹ `[B, ⌈T/k⌉, d]`.
#[cube(launch)]
fn combine_kernel<F: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    computed: &Tensor<Vector<F, N>>,
    coefs: &Tensor<f32>,
    output: &mut Tensor<Vector<F, N>>,
    #[comptime] stride: usize,
    #[define(F)] _dtype: ElemType,
) {
    let position = ABSOLUTE_POS;
    if position >= x.len() {
        terminate!();
    }
    let seq_length = x.shape(1);
    let width = x.len() / (x.shape(0) * seq_length);
    let token = position / width % seq_length;
    let row = position / width / seq_length;
    let window = token / stride;
    let column = position % width;
    let anchor = (row * seq_length + window * stride) * width + column;
    let of_window = (row * computed.shape(1) + window) * width + column;

    let mut sum = Vector::<f32, N>::cast_from(x[position]) * Vector::new(coefs[0]);
    sum += Vector::<f32, N>::cast_from(x[anchor]) * Vector::new(coefs[1]);
    sum += Vector::<f32, N>::cast_from(computed[of_window]) * Vector::new(coefs[2]);
    output[position] = Vector::cast_from(sum);
}

/// The transpose of [`combine_kernel`]: with W the sum of a window's gradients, what of the output's gradient belongs to
/// each token, and c₂ W for what was computed. And a group's sums of dyᵢ xᵢ, W x_kA and W ỹ.
///
/// # Shapes
///
/// - sums: `[groups, 3]`
#[cube(launch)]
fn spread_kernel<F: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    computed: &Tensor<Vector<F, N>>,
    output_grad: &Tensor<Vector<F, N>>,
    coefs: &Tensor<f32>,
    x_grad: &mut Tensor<Vector<F, N>>,
    computed_grad: &mut Tensor<Vector<F, N>>,
    sums: &mut Tensor<f32>,
    #[comptime] stride: usize,
    #[comptime] units: usize,
    #[define(F)] _dtype: ElemType,
) {
    let mut memory = row_memory(units, 1usize);
    let (seq_length, num_windows) = (x.shape(1), computed.shape(1));
    let width = computed.len() / (computed.shape(0) * num_windows);
    let of_token = Vector::<f32, N>::new(coefs[0]);
    let of_anchor = Vector::<f32, N>::new(coefs[1]);
    let of_computed = Vector::<f32, N>::new(coefs[2]);
    let mut of_tokens = Vector::<f32, N>::new(0.0f32);
    let mut of_anchors = Vector::<f32, N>::new(0.0f32);
    let mut of_layer = Vector::<f32, N>::new(0.0f32);
    let unit = UNIT_POS_X as usize;
    let mut position = CUBE_POS * units + unit;
    while position < computed.len() {
        let window = position / width % num_windows;
        let row = position / width / num_windows;
        let anchor = (row * seq_length + window * stride) * width + position % width;

        let token = Vector::<f32, N>::cast_from(x[anchor]);
        let anchor_grad = Vector::<f32, N>::cast_from(output_grad[anchor]);
        let mut sum = anchor_grad;
        of_tokens += anchor_grad * token;
        for i in 1..stride {
            if window * stride + i < seq_length {
                let place = anchor + i * width;
                let grad = Vector::<f32, N>::cast_from(output_grad[place]);
                x_grad[place] = Vector::cast_from(grad * of_token);
                of_tokens += grad * Vector::<f32, N>::cast_from(x[place]);
                sum += grad;
            }
        }
        x_grad[anchor] = Vector::cast_from(anchor_grad * of_token + sum * of_anchor);
        of_anchors += sum * token;
        of_layer += sum * Vector::<f32, N>::cast_from(computed[position]);
        computed_grad[position] = Vector::cast_from(sum * of_computed);
        position += CUBE_COUNT * units;
    }
    let of_tokens = sum_over_row(sum_of_vector(of_tokens), &mut memory, units);
    let of_anchors = sum_over_row(sum_of_vector(of_anchors), &mut memory, units);
    let of_layer = sum_over_row(sum_of_vector(of_layer), &mut memory, units);
    if unit == 0 {
        sums[CUBE_POS * 3] = of_tokens;
        sums[CUBE_POS * 3 + 1] = of_anchors;
        sums[CUBE_POS * 3 + 2] = of_layer;
    }
}
