//! On a GPU. A matrix, or a stack of them, takes four kernels that read the gradient three times, as loops on a CPU do:
//! the means of squares of rows, and sums of squares of columns over groups of rows; these sums added up; the size of
//! the update; the update. A vector takes one kernel, by one group of threads.

use altup_backend::cube::{
    RowLaunch, empty, empty_like, over, row_memory, sum_of_vector, sum_over_row, sum_rows,
};
use burn::backend::TensorMetadata;
use burn::backend::tensor::FloatTensor;
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use cubecl::prelude::*;

use super::primitive::{EPSILON_1, EPSILON_2};
use super::{AdafactorBackend, AdafactorStep};

/// Groups of rows of all matrices, about.
const GROUPS: usize = 1024;

/// Rows of a group at the least.
const ROWS: usize = 4;

impl AdafactorBackend for CubeBackend {
    fn adafactor_matrix_step(
        param: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        rows: FloatTensor<Self>,
        columns: FloatTensor<Self>,
        step: AdafactorStep,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let shape = param.shape();
        let (height, width) = (shape[shape.num_dims() - 2], shape[shape.num_dims() - 1]);
        if shape.num_elements() == 0 {
            return (param, rows, columns);
        }
        let matrices = shape.num_elements() / (height * width);
        let [param, grad, rows, columns] = [param, grad, rows, columns].map(into_contiguous);
        let (new_param, param_arg) = over(&param, 0);
        let (new_rows, rows_arg) = over(&rows, 2);
        let new_columns = empty_like(&columns);

        let rows_of_group = (matrices * height).div_ceil(GROUPS).max(ROWS);
        let groups_of_matrix = height.div_ceil(rows_of_group);
        let groups = matrices * groups_of_matrix;
        let column_sums = empty(Shape::new([groups, width]), DType::F32, &param);
        let sums = empty(Shape::new([3, groups]), DType::F32, &param);
        let client = param.client.clone();
        let launch = || RowLaunch::new(&param, groups, width);
        let RowLaunch { cubes, threads, vector_size, units, rows: groups_of_cube } = launch();
        let of_unit = (width / vector_size).div_ceil(units);
        moments_kernel::launch(
            &client,
            cubes,
            threads,
            vector_size,
            param.clone().into_tensor_arg(),
            grad.clone().into_tensor_arg(),
            rows.into_tensor_arg(),
            rows_arg,
            column_sums.clone().into_tensor_arg(),
            sums.clone().into_tensor_arg(),
            step.new_weight,
            height as u32,
            rows_of_group as u32,
            units,
            groups_of_cube,
            of_unit,
        );
        let column_sums = sum_rows(
            column_sums,
            [matrices, groups_of_matrix, width],
            Shape::new([matrices, width]),
            DType::F32,
        );
        let RowLaunch { cubes, threads, .. } = launch();
        update_squares_kernel::launch(
            &client,
            cubes,
            threads,
            vector_size,
            grad.clone().into_tensor_arg(),
            new_rows.clone().into_tensor_arg(),
            columns.clone().into_tensor_arg(),
            column_sums.clone().into_tensor_arg(),
            sums.clone().into_tensor_arg(),
            step.new_weight,
            height as u32,
            rows_of_group as u32,
            units,
            groups_of_cube,
        );
        let RowLaunch { cubes, threads, .. } = launch();
        update_kernel::launch(
            &client,
            cubes,
            threads,
            vector_size,
            param.into_tensor_arg(),
            grad.into_tensor_arg(),
            new_rows.clone().into_tensor_arg(),
            columns.into_tensor_arg(),
            column_sums.into_tensor_arg(),
            sums.into_tensor_arg(),
            param_arg,
            new_columns.clone().into_tensor_arg(),
            step.new_weight,
            step.kept,
            step.rate,
            height as u32,
            rows_of_group as u32,
            units,
            groups_of_cube,
        );
        (new_param, new_rows, new_columns)
    }

    fn adafactor_vector_step(
        param: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        second_moment: FloatTensor<Self>,
        step: AdafactorStep,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let values = param.shape().num_elements();
        if values == 0 {
            return (param, second_moment);
        }
        let [param, grad, second_moment] = [param, grad, second_moment].map(into_contiguous);
        let (new_param, param_arg) = over(&param, 0);
        let (new_moment, moment_arg) = over(&second_moment, 2);
        let launch = RowLaunch::new(&param, 1, values);
        vector_kernel::launch(
            &param.client.clone(),
            launch.cubes,
            launch.threads,
            launch.vector_size,
            param.into_tensor_arg(),
            grad.into_tensor_arg(),
            second_moment.into_tensor_arg(),
            param_arg,
            moment_arg,
            step.new_weight,
            step.kept,
            step.rate,
            launch.units,
        );
        (new_param, new_moment)
    }
}

/// A second moment with a new mean of squares in it.
#[cube]
fn blended<N: Size>(
    old: Vector<f32, N>,
    mean_square: Vector<f32, N>,
    new_weight: f32,
) -> Vector<f32, N> {
    let epsilon = comptime!(EPSILON_1);
    old * Vector::new(1.0f32 - new_weight)
        + (mean_square + Vector::new(epsilon)) * Vector::new(new_weight)
}

/// The size of a step, of the sums of squares of an update and a parameter of so many values.
#[cube]
fn step_size(update_square: f32, param_square: f32, values: usize, rate: f32) -> f32 {
    let count = f32::cast_from(values);
    let smallest = comptime!(EPSILON_2);
    let clipping = max((update_square / count).sqrt(), 1.0f32);
    rate * max((param_square / count).sqrt(), smallest) / clipping
}

/// The sum of a tensor's values from `first` on, which each thread of a row gets.
#[cube]
fn sum_of(
    values: &Tensor<f32>,
    first: usize,
    count: usize,
    memory: &mut Shared<[f32]>,
    #[comptime] units: usize,
) -> f32 {
    let mut sum = 0.0f32;
    let mut place = UNIT_POS_X as usize;
    while place < count {
        sum += values[first + place];
        place += units;
    }
    sum_over_row(sum, memory, units)
}

/// The new moments of rows; of each group of rows the sums of squares of columns, the sum of the new moments, and the
/// sum of squares of the parameter.
///
/// # Shapes
///
/// - param, grad: `[matrices, height, width]`
/// - rows, new_rows: `[matrices, height]`
/// - column_sums: `[groups, width]`
/// - sums: `[3, groups]`, of the new moments, of the squares of the parameter, and of those of the update
#[cube(launch)]
fn moments_kernel<N: Size>(
    param: &Tensor<Vector<f32, N>>,
    grad: &Tensor<Vector<f32, N>>,
    rows: &Tensor<f32>,
    new_rows: &mut Tensor<f32>,
    column_sums: &mut Tensor<Vector<f32, N>>,
    sums: &mut Tensor<f32>,
    new_weight: f32,
    height: u32,
    rows_of_group: u32,
    #[comptime] units: usize,
    #[comptime] groups_of_cube: usize,
    #[comptime] of_unit: usize,
) {
    let mut memory = row_memory(units, groups_of_cube);
    let height = height as usize;
    let rows_of_group = rows_of_group as usize;
    let groups = sums.len() / 3;
    let vectors = column_sums.len() / groups;
    let width = f32::cast_from(vectors * N::value());
    let groups_of_matrix = height.div_ceil(rows_of_group);
    let group = CUBE_POS * groups_of_cube + UNIT_POS_Y as usize;
    let first_row = group % groups_of_matrix * rows_of_group;
    let matrix = group / groups_of_matrix;
    let unit = UNIT_POS_X as usize;

    let mut of_columns = Array::<Vector<f32, N>>::new(of_unit);
    #[unroll(of_unit <= 8)]
    for i in 0..of_unit {
        of_columns[i] = Vector::new(0.0f32);
    }
    let epsilon = comptime!(EPSILON_1);
    let mut params = Vector::<f32, N>::new(0.0f32);
    let mut row_sum = 0.0f32;
    for number in 0..rows_of_group {
        let inside = group < groups && first_row + number < height;
        let row = matrix * height + first_row + number;
        let mut squares = Vector::<f32, N>::new(0.0f32);
        #[unroll(of_unit <= 8)]
        for i in 0..of_unit {
            let column = i * units + unit;
            if inside && column < vectors {
                let value = grad[row * vectors + column];
                let square = value * value;
                squares += square;
                of_columns[i] += square;
                let value = param[row * vectors + column];
                params += value * value;
            }
        }
        let square = sum_over_row(sum_of_vector(squares), &mut memory, units);
        // One thread alone: the new moments may lie where the old ones do.
        if inside && unit == 0 {
            let mean_square = square / width + epsilon;
            let moment = rows[row] * (1.0f32 - new_weight) + mean_square * new_weight;
            row_sum += moment;
            new_rows[row] = moment;
        }
    }
    let param_square = sum_over_row(sum_of_vector(params), &mut memory, units);
    if group < groups {
        #[unroll(of_unit <= 8)]
        for i in 0..of_unit {
            let column = i * units + unit;
            if column < vectors {
                column_sums[group * vectors + column] = of_columns[i];
            }
        }
        if unit == 0 {
            sums[group] = row_sum;
            sums[groups + group] = param_square;
        }
    }
}

/// Of each group of rows the sum of squares of the update before it is clipped.
///
/// # Shapes
///
/// - columns: `[matrices, width]`, of the step before
/// - column_sums: `[matrices, width]`
/// - others: as in [`moments_kernel`]
#[cube(launch)]
fn update_squares_kernel<N: Size>(
    grad: &Tensor<Vector<f32, N>>,
    new_rows: &Tensor<f32>,
    columns: &Tensor<Vector<f32, N>>,
    column_sums: &Tensor<Vector<f32, N>>,
    sums: &mut Tensor<f32>,
    new_weight: f32,
    height: u32,
    rows_of_group: u32,
    #[comptime] units: usize,
    #[comptime] groups_of_cube: usize,
) {
    let mut memory = row_memory(units, groups_of_cube);
    let height = height as usize;
    let rows_of_group = rows_of_group as usize;
    let groups = sums.len() / 3;
    let groups_of_matrix = height.div_ceil(rows_of_group);
    let vectors = columns.len() / (groups / groups_of_matrix);
    let group = CUBE_POS * groups_of_cube + UNIT_POS_Y as usize;
    let first_row = group % groups_of_matrix * rows_of_group;
    let matrix = group / groups_of_matrix;
    let mut count = groups_of_matrix;
    let mut end = vectors;
    if group >= groups {
        count = 0usize;
        end = 0usize;
    }
    let first_group = matrix * groups_of_matrix;
    let mean = sum_of(&*sums, first_group, count, &mut memory, units) / f32::cast_from(height);
    let heights = Vector::<f32, N>::new(f32::cast_from(height));
    let mut squares = Vector::<f32, N>::new(0.0f32);
    let mut column = UNIT_POS_X as usize;
    while column < end {
        let place = matrix * vectors + column;
        let moment = blended(columns[place], column_sums[place] / heights, new_weight);
        let mut of_column = Vector::<f32, N>::new(0.0f32);
        for number in 0..rows_of_group {
            if first_row + number < height {
                let row = matrix * height + first_row + number;
                let value = grad[row * vectors + column] * Vector::new(scale(mean, new_rows[row]));
                of_column += value * value;
            }
        }
        squares += of_column / moment;
        column += units;
    }
    let square = sum_over_row(sum_of_vector(squares), &mut memory, units);
    if group < groups && UNIT_POS_X == 0 {
        sums[2 * groups + group] = square;
    }
}

/// √(mean / moment of the row). A row without a gradient has 1e-30, by which a large mean can't be divided.
#[cube]
fn scale(mean: f32, of_row: f32) -> f32 {
    mean.sqrt() / of_row.sqrt()
}

/// The parameter and the moments of columns after the step.
///
/// # Shapes
///
/// - new_columns: `[matrices, width]`
/// - others: as in [`update_squares_kernel`]
#[cube(launch)]
fn update_kernel<N: Size>(
    param: &Tensor<Vector<f32, N>>,
    grad: &Tensor<Vector<f32, N>>,
    new_rows: &Tensor<f32>,
    columns: &Tensor<Vector<f32, N>>,
    column_sums: &Tensor<Vector<f32, N>>,
    sums: &Tensor<f32>,
    new_param: &mut Tensor<Vector<f32, N>>,
    new_columns: &mut Tensor<Vector<f32, N>>,
    new_weight: f32,
    kept: f32,
    rate: f32,
    height: u32,
    rows_of_group: u32,
    #[comptime] units: usize,
    #[comptime] groups_of_cube: usize,
) {
    let mut memory = row_memory(units, groups_of_cube);
    let height = height as usize;
    let rows_of_group = rows_of_group as usize;
    let groups = sums.len() / 3;
    let groups_of_matrix = height.div_ceil(rows_of_group);
    let vectors = columns.len() / (groups / groups_of_matrix);
    let group = CUBE_POS * groups_of_cube + UNIT_POS_Y as usize;
    let group_of_matrix = group % groups_of_matrix;
    let first_row = group_of_matrix * rows_of_group;
    let matrix = group / groups_of_matrix;
    let mut count = groups_of_matrix;
    let mut end = vectors;
    if group >= groups {
        count = 0usize;
        end = 0usize;
    }
    let first_group = matrix * groups_of_matrix;
    let mean = sum_of(sums, first_group, count, &mut memory, units) / f32::cast_from(height);
    let update_square = sum_of(sums, 2 * groups, groups, &mut memory, units);
    let param_square = sum_of(sums, groups, groups, &mut memory, units);
    let size = step_size(update_square, param_square, param.len() * N::value(), rate);
    let heights = Vector::<f32, N>::new(f32::cast_from(height));
    let mut column = UNIT_POS_X as usize;
    while column < end {
        let place = matrix * vectors + column;
        let moment = blended(columns[place], column_sums[place] / heights, new_weight);
        if group_of_matrix == 0 {
            new_columns[place] = moment;
        }
        let root = moment.sqrt();
        for number in 0..rows_of_group {
            if first_row + number < height {
                let row = matrix * height + first_row + number;
                let update = grad[row * vectors + column] * Vector::new(scale(mean, new_rows[row]));
                let old = param[row * vectors + column];
                new_param[row * vectors + column] =
                    old * Vector::new(kept) - update / root * Vector::new(size);
            }
        }
        column += units;
    }
}

/// A vector's whole step.
#[cube(launch)]
fn vector_kernel<N: Size>(
    param: &Tensor<Vector<f32, N>>,
    grad: &Tensor<Vector<f32, N>>,
    second_moment: &Tensor<Vector<f32, N>>,
    new_param: &mut Tensor<Vector<f32, N>>,
    new_moment: &mut Tensor<Vector<f32, N>>,
    new_weight: f32,
    kept: f32,
    rate: f32,
    #[comptime] units: usize,
) {
    let mut memory = row_memory(units, 1usize);
    let mut updates = Vector::<f32, N>::new(0.0f32);
    let mut params = Vector::<f32, N>::new(0.0f32);
    let mut place = UNIT_POS_X as usize;
    let mut end = param.len();
    if CUBE_POS > 0 {
        end = 0usize;
    }
    while place < end {
        let square = grad[place] * grad[place];
        let moment = blended(second_moment[place], square, new_weight);
        new_moment[place] = moment;
        updates += square / moment;
        params += param[place] * param[place];
        place += units;
    }
    let update_square = sum_over_row(sum_of_vector(updates), &mut memory, units);
    let param_square = sum_over_row(sum_of_vector(params), &mut memory, units);
    let size = step_size(update_square, param_square, param.len() * N::value(), rate);
    let mut place = UNIT_POS_X as usize;
    while place < end {
        let update = grad[place] / new_moment[place].sqrt();
        new_param[place] = param[place] * Vector::new(kept) - update * Vector::new(size);
        place += units;
    }
}
