//! On a CPU in f32: three passes over a parameter, by all threads. Sums are made in the same order whatever the
//! number of threads.

use altup_backend::vector::sum;
use altup_backend::{HostTensors, for_each, map, vectorized};
use burn::backend::TensorMetadata;
use burn::backend::tensor::FloatTensor;

use super::AdafactorStep;
use super::primitive::{EPSILON_1, EPSILON_2};

/// Values of a task.
const CHUNK: usize = 16 * 1024;

pub(super) fn adafactor_matrix_step<B: HostTensors>(
    param: FloatTensor<B>,
    grad: &FloatTensor<B>,
    rows: FloatTensor<B>,
    columns: FloatTensor<B>,
    step: AdafactorStep,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let shape = param.shape();
    let (height, width) = (shape[shape.num_dims() - 2], shape[shape.num_dims() - 1]);
    let mut written = [param, rows, columns].map(B::to_write);
    let grad = B::values(grad);
    let [params, rows, columns] = written.each_mut().map(B::values_mut);
    let size = (height * width).max(1);
    let matrices = params.chunks_mut(size).zip(grad.chunks(size));
    let moments = rows.chunks_mut(height.max(1)).zip(columns.chunks_mut(width.max(1)));
    let task_rows = (CHUNK / width.max(1)).max(height.div_ceil(64)).max(1);
    let mut matrices: Vec<Matrix<'_>> = matrices
        .zip(moments)
        .map(|((param, grad), (rows, columns))| Matrix { param, grad, rows, columns, task_rows })
        .collect();

    let scales: Vec<_> = matrices.iter_mut().map(|matrix| matrix.scales(step.new_weight)).collect();
    let sums = matrices.iter().zip(&scales).map(|(matrix, scales)| matrix.square_sums(scales));
    let [update, param] = sums.fold([0.0; 2], |[u, p], [update, param]| [u + update, p + param]);
    let rms = |sum: f64| (sum / grad.len() as f64).sqrt() as f32;
    let rate = step.rate * rms(param).max(EPSILON_2) / rms(update).max(1.0);
    for (matrix, scales) in matrices.iter_mut().zip(&scales) {
        matrix.update(scales, step.kept, rate);
    }
    written.into()
}

/// A matrix of a parameter, of which there may be a stack.
struct Matrix<'a> {
    param: &'a mut [f32],
    grad: &'a [f32],
    /// The means of the squared gradients of each row and column.
    rows: &'a mut [f32],
    columns: &'a mut [f32],
    /// Rows of a task: values enough, and no more than 64 tasks, each of which sums all columns.
    task_rows: usize,
}

impl Matrix<'_> {
    /// What an update's rows are multiplied by, and its columns, with the second moment of this gradient in.
    fn scales(&mut self, new_weight: f32) -> (Vec<f32>, Vec<f32>) {
        let (height, width) = (self.rows.len(), self.columns.len());
        let tasks = self.grad.chunks(self.task_rows * width).collect();
        let squares = map(tasks, self.grad.len(), |grad| vectorized(|| square_sums(grad, width)));
        let blend = |moment: &mut f32, mean: f64| {
            *moment = *moment * (1.0 - new_weight) + (mean as f32 + EPSILON_1) * new_weight;
        };
        let mut column_sums = vec![0f64; width];
        for (rows, (of_rows, of_columns)) in self.rows.chunks_mut(self.task_rows).zip(squares) {
            for (row, sum) in rows.iter_mut().zip(of_rows) {
                blend(row, f64::from(sum) / width as f64);
            }
            for (column, sum) in column_sums.iter_mut().zip(of_columns) {
                *column += f64::from(sum);
            }
        }
        for (column, sum) in self.columns.iter_mut().zip(column_sums) {
            blend(column, sum / height as f64);
        }
        let mean = self.rows.iter().map(|&row| f64::from(row)).sum::<f64>() / height as f64;
        // A row without a gradient beside very large ones: what its zeros are multiplied by must be a number.
        let share = |row: &f32| {
            let share = row / mean as f32;
            // Not `max`, in which NaN would become a number.
            if share < f32::MIN_POSITIVE { f32::MIN_POSITIVE } else { share }
        };
        let row_scales = self.rows.iter().map(|row| 1.0 / share(row).sqrt());
        let column_scales = self.columns.iter().map(|column| 1.0 / column.sqrt());
        (row_scales.collect(), column_scales.collect())
    }

    /// The sums of squares of the update and of the parameter.
    fn square_sums(&self, (row_scales, column_scales): &(Vec<f32>, Vec<f32>)) -> [f64; 2] {
        let width = self.columns.len();
        let size = self.task_rows * width;
        let chunks = self.grad.chunks(size).zip(self.param.chunks(size));
        let tasks = chunks.zip(row_scales.chunks(self.task_rows)).collect();
        let sums = map(tasks, self.grad.len(), |((grad, param), row_scales)| {
            vectorized(|| {
                let mut sums = [0f64; 2];
                let rows = grad.chunks(width).zip(param.chunks(width)).zip(row_scales);
                for ((grad, param), scale) in rows {
                    let columns = &column_scales[..grad.len()];
                    let update = sum(grad.len(), |i| (grad[i] * columns[i]).powi(2));
                    sums[0] += f64::from(update * scale * scale);
                    sums[1] += f64::from(sum(param.len(), |i| param[i] * param[i]));
                }
                sums
            })
        });
        sums.into_iter().fold([0.0; 2], |[u, p], [update, param]| [u + update, p + param])
    }

    fn update(&mut self, (row_scales, column_scales): &(Vec<f32>, Vec<f32>), kept: f32, rate: f32) {
        let width = self.columns.len();
        let size = self.task_rows * width;
        let chunks = self.param.chunks_mut(size).zip(self.grad.chunks(size));
        let tasks = chunks.zip(row_scales.chunks(self.task_rows)).collect();
        for_each(tasks, self.grad.len(), |((param, grad), row_scales)| {
            vectorized(|| {
                let rows = param.chunks_mut(width).zip(grad.chunks(width)).zip(row_scales);
                for ((param, grad), scale) in rows {
                    let scale = scale * rate;
                    for ((param, grad), column) in param.iter_mut().zip(grad).zip(column_scales) {
                        *param = *param * kept - grad * column * scale;
                    }
                }
            });
        });
    }
}

/// The sums of the squares of each row and column.
#[inline(always)]
fn square_sums(grad: &[f32], width: usize) -> (Vec<f32>, Vec<f32>) {
    let mut columns = vec![0.0; width];
    let rows = grad.chunks(width).map(|row| {
        for (column, value) in columns.iter_mut().zip(row) {
            *column += value * value;
        }
        sum(row.len(), |i| row[i] * row[i])
    });
    (rows.collect(), columns)
}
