//! On a GPU: one kernel forward, two backward. Several threads share a row. Statistics and sums are f32.

use altup_backend::cube::{
    RowLaunch, empty, empty_like, over, row_memory, sum_of_vector, sum_over_row, sum_rows,
};
use burn::backend::TensorMetadata;
use burn::backend::tensor::FloatTensor;
use burn::tensor::{DType, Shape};
use burn_backend::cubecl::dtype_to_storage_type;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use cubecl::prelude::*;

use super::RmsNormBackend;

/// Threads that sum the gradient of γ over rows of their own, at most; their sums are added up then.
const GROUPS: usize = 1024;

/// Rows of each at the least.
const ROWS: usize = 4;

impl RmsNormBackend for CubeBackend {
    fn rms_norm(x: FloatTensor<Self>, gamma: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self> {
        let output = empty_like(&x);
        let [rows, width] = x.shape().dims();
        if rows * width == 0 {
            return output;
        }
        let launch = RowLaunch::new(&output, rows, width);
        rms_norm_kernel::launch(
            &output.client.clone(),
            launch.cubes,
            launch.threads,
            launch.vector_size,
            into_contiguous(x).into_tensor_arg(),
            into_contiguous(gamma).into_tensor_arg(),
            output.clone().into_tensor_arg(),
            epsilon,
            launch.units,
            launch.rows,
            dtype_to_storage_type(output.dtype),
        );
        output
    }

    /// The gradient of x takes the place of the output's.
    fn rms_norm_backward(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        output_grad: FloatTensor<Self>,
        epsilon: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let [rows, width] = x.shape().dims();
        let (gamma_shape, gamma_dtype) = (gamma.shape(), gamma.dtype);
        let [x, gamma, output_grad] = [x, gamma, output_grad].map(into_contiguous);
        let of_group = rows.div_ceil(GROUPS).max(ROWS);
        let groups = if width == 0 { 0 } else { rows.div_ceil(of_group) };
        let gamma_sums = empty(Shape::new([groups, width]), DType::F32, &x);
        let (x_grad, x_grad_arg) = over(&output_grad, 2);
        if groups > 0 {
            let launch = RowLaunch::new(&x, groups, width);
            let of_unit = (width / launch.vector_size).div_ceil(launch.units);
            rms_norm_backward_kernel::launch(
                &x.client.clone(),
                launch.cubes,
                launch.threads,
                launch.vector_size,
                x.clone().into_tensor_arg(),
                gamma.into_tensor_arg(),
                output_grad.into_tensor_arg(),
                x_grad_arg,
                gamma_sums.clone().into_tensor_arg(),
                epsilon,
                of_group as u32,
                launch.units,
                launch.rows,
                of_unit,
                dtype_to_storage_type(x.dtype),
            );
        }
        (x_grad, sum_rows(gamma_sums, [1, groups, width], gamma_shape, gamma_dtype))
    }
}

/// x / √(mean(x²) + ε), rounded to the type of x, times γ.
#[cube(launch)]
fn rms_norm_kernel<F: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    gamma: &Tensor<Vector<F, N>>,
    output: &mut Tensor<Vector<F, N>>,
    epsilon: f32,
    #[comptime] units: usize,
    #[comptime] rows: usize,
    #[define(F)] _dtype: ElemType,
) {
    let mut memory = row_memory(units, rows);
    let vectors = gamma.len();
    let row = CUBE_POS * rows + UNIT_POS_Y as usize;
    let first = row * vectors;
    let unit = UNIT_POS_X as usize;
    // A row that isn't there has no columns.
    let mut end = vectors;
    if first >= x.len() {
        end = 0usize;
    }
    let mut squares = Vector::<f32, N>::new(0.0f32);
    let mut column = unit;
    while column < end {
        let value = Vector::<f32, N>::cast_from(x[first + column]);
        squares += value * value;
        column += units;
    }
    let square = sum_over_row(sum_of_vector(squares), &mut memory, units);
    let width = f32::cast_from(vectors * N::value());
    let scale = 1.0f32 / (square / width + epsilon).sqrt();
    let mut column = unit;
    while column < end {
        let value = Vector::<f32, N>::cast_from(x[first + column]);
        let normed = Vector::<F, N>::cast_from(value * Vector::new(scale));
        let scaled =
            Vector::<f32, N>::cast_from(normed) * Vector::<f32, N>::cast_from(gamma[column]);
        output[first + column] = Vector::cast_from(scaled);
        column += units;
    }
}

/// With n = x / rms: dx = (γ dy − n · mean(γ dy n)) / rms, and the sums of dy n over the rows of a group.
///
/// # Shapes
///
/// - gamma_sums: `[groups, width]`
#[cube(launch)]
fn rms_norm_backward_kernel<F: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    gamma: &Tensor<Vector<F, N>>,
    output_grad: &Tensor<Vector<F, N>>,
    x_grad: &mut Tensor<Vector<F, N>>,
    gamma_sums: &mut Tensor<Vector<f32, N>>,
    epsilon: f32,
    rows_of_group: u32,
    #[comptime] units: usize,
    #[comptime] groups: usize,
    #[comptime] of_unit: usize,
    #[define(F)] _dtype: ElemType,
) {
    let mut memory = row_memory(units, groups);
    let vectors = gamma.len();
    let width = f32::cast_from(vectors * N::value());
    let group = CUBE_POS * groups + UNIT_POS_Y as usize;
    let unit = UNIT_POS_X as usize;
    let rows_of_group = rows_of_group as usize;

    let mut sums = Array::<Vector<f32, N>>::new(of_unit);
    #[unroll(of_unit <= 8)]
    for i in 0..of_unit {
        sums[i] = Vector::new(0.0f32);
    }
    for number in 0..rows_of_group {
        let first = (group * rows_of_group + number) * vectors;
        let mut end = vectors;
        if first >= x.len() {
            end = 0usize;
        }
        let mut squares = Vector::<f32, N>::new(0.0f32);
        let mut products = Vector::<f32, N>::new(0.0f32);
        let mut column = unit;
        while column < end {
            let value = Vector::<f32, N>::cast_from(x[first + column]);
            let grad = Vector::<f32, N>::cast_from(output_grad[first + column]);
            squares += value * value;
            products += value * grad * Vector::<f32, N>::cast_from(gamma[column]);
            column += units;
        }
        let square = sum_over_row(sum_of_vector(squares), &mut memory, units);
        let product = sum_over_row(sum_of_vector(products), &mut memory, units);
        let scale = 1.0f32 / (square / width + epsilon).sqrt();
        let mean = product * scale / width;
        #[unroll(of_unit <= 8)]
        for i in 0..of_unit {
            let column = i * units + unit;
            if column < end {
                let normed = Vector::<f32, N>::cast_from(x[first + column]) * Vector::new(scale);
                let grad = Vector::<f32, N>::cast_from(output_grad[first + column]);
                sums[i] += grad * normed;
                let through = grad * Vector::<f32, N>::cast_from(gamma[column]);
                let of_x = (through - normed * Vector::new(mean)) * Vector::new(scale);
                x_grad[first + column] = Vector::cast_from(of_x);
            }
        }
    }
    #[unroll(of_unit <= 8)]
    for i in 0..of_unit {
        let column = i * units + unit;
        if column < vectors && group * vectors < gamma_sums.len() {
            gamma_sums[group * vectors + column] = sums[i];
        }
    }
}
