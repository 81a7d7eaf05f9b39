//! Backends on a CPU, in f32: a step in one pass over a parameter for AdamW, in three for Adafactor, by all
//! threads. Sums are made in the same order whatever the number of threads.

use altup_core::cpu::vector::sum;
use altup_core::cpu::{CpuBackend, for_each, map, vectorized};
use burn::backend::TensorMetadata;
use burn::backend::tensor::FloatTensor;

use super::primitive::{EPSILON_1, EPSILON_2};
use super::{AdafactorStep, AdamWStep, OptimizerBackend, primitive};

/// Values of a task.
const CHUNK: usize = 16 * 1024;

macro_rules! impl_optimizer_backend {
    ($backend:ty) => {
        impl OptimizerBackend for $backend {
            fn adamw_step(
                param: FloatTensor<Self>,
                grad: FloatTensor<Self>,
                moment_1: FloatTensor<Self>,
                moment_2: FloatTensor<Self>,
                step: AdamWStep,
            ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
                match Self::has([&param, &grad, &moment_1, &moment_2]) {
                    true => adamw::<Self>(param, &grad, moment_1, moment_2, step),
                    false => primitive::adamw_step::<Self>(param, grad, moment_1, moment_2, step),
                }
            }

            fn adafactor_matrix_step(
                param: FloatTensor<Self>,
                grad: FloatTensor<Self>,
                rows: FloatTensor<Self>,
                columns: FloatTensor<Self>,
                step: AdafactorStep,
            ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
                match Self::has([&param, &grad, &rows, &columns]) {
                    true => adafactor::<Self>(param, &grad, rows, columns, step),
                    false => {
                        primitive::adafactor_matrix_step::<Self>(param, grad, rows, columns, step)
                    }
                }
            }
        }
    };
}

#[cfg(feature = "flex")]
impl_optimizer_backend!(burn::backend::Flex);

#[cfg(feature = "ndarray")]
impl_optimizer_backend!(burn::backend::NdArray);

#[cfg(feature = "tch")]
impl_optimizer_backend!(burn::backend::LibTorch);

fn adamw<B: CpuBackend>(
    param: FloatTensor<B>,
    grad: &FloatTensor<B>,
    moment_1: FloatTensor<B>,
    moment_2: FloatTensor<B>,
    step: AdamWStep,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let mut written = [param, moment_1, moment_2].map(B::to_write);
    let grad = B::values(grad);
    let [params, moments_1, moments_2] =
        written.each_mut().map(|tensor| B::values_mut(tensor).chunks_mut(CHUNK));
    let tasks = params.zip(moments_1).zip(moments_2).zip(grad.chunks(CHUNK)).collect();
    for_each(tasks, grad.len(), |(((params, moments_1), moments_2), grads)| {
        vectorized(|| {
            let values = params.iter_mut().zip(moments_1).zip(moments_2).zip(grads);
            for (((param, moment_1), moment_2), &grad) in values {
                *moment_1 = *moment_1 * step.beta_1 + grad * (1.0 - step.beta_1);
                *moment_2 = *moment_2 * step.beta_2 + grad * grad * (1.0 - step.beta_2);
                let root = (*moment_2 / step.correction_2).sqrt() + step.epsilon;
                *param = *param * step.kept - *moment_1 / step.correction_1 / root * step.rate;
            }
        });
    });
    written.into()
}

fn adafactor<B: CpuBackend>(
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
        let row_scales = self.rows.iter().map(|row| 1.0 / (row / mean as f32).sqrt());
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

#[cfg(test)]
mod tests {
    use burn::module::{Module, Param, ParamId};
    use burn::optim::{AdafactorConfig, AdamWConfig, GradientsParams, ModuleOptimizer};
    use burn::tensor::{Device, Tensor, TensorData, Tolerance};

    use crate::optimizer::{adafactor::Adafactor, adamw::AdamW};

    #[derive(Module, Debug)]
    struct Parameters {
        stack: Param<Tensor<3>>,
        wide: Param<Tensor<2>>,
        tall: Param<Tensor<2>>,
        vector: Param<Tensor<1>>,
    }

    fn values<const D: usize>(shape: [usize; D], seed: usize, device: &Device) -> Tensor<D> {
        let value = |i: usize| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0;
        let values: Vec<f32> = (0..shape.iter().product()).map(value).collect();
        Tensor::from_data(TensorData::new(values, shape), device)
    }

    fn parameters(device: &Device) -> Parameters {
        let param = |seed| values([3, 5, 7], seed, device);
        Parameters {
            stack: Param::initialized(ParamId::new(), param(1)),
            wide: Param::initialized(ParamId::new(), values([3, 40_000], 2, device)),
            tall: Param::initialized(ParamId::new(), values([700, 33], 3, device)),
            vector: Param::initialized(ParamId::new(), values([50], 4, device)),
        }
    }

    /// Five steps of ours and of Burn's, at shapes where vectors and tasks end anywhere.
    fn steps_are_burns(
        ours: impl Fn() -> ModuleOptimizer,
        burns: impl Fn() -> ModuleOptimizer,
        device: &Device,
    ) {
        let start = parameters(&device.clone().autodiff());
        let train = |mut optimizer: ModuleOptimizer| {
            let mut model = start.clone();
            for seed in 0..5 {
                let mut grads = GradientsParams::new();
                grads.register::<3>(model.stack.id, values([3, 5, 7], 10 + seed, device));
                grads.register::<2>(model.wide.id, values([3, 40_000], 20 + seed, device));
                grads.register::<2>(model.tall.id, values([700, 33], 30 + seed, device));
                grads.register::<1>(model.vector.id, values([50], 40 + seed, device));
                model = optimizer.step(0.1, model, grads);
            }
            model
        };
        let (found, expected) = (train(ours()), train(burns()));
        let tolerance = Tolerance::<f32>::rel_abs(1e-4, 1e-5);
        let check = |found: TensorData, expected: TensorData| {
            found.assert_approx_eq(&expected, tolerance);
        };
        check(found.stack.val().into_data(), expected.stack.val().into_data());
        check(found.wide.val().into_data(), expected.wide.val().into_data());
        check(found.tall.val().into_data(), expected.tall.val().into_data());
        check(found.vector.val().into_data(), expected.vector.val().into_data());
        // What another holds stays.
        let unchanged = parameters(device);
        check(start.tall.val().into_data(), unchanged.tall.val().into_data());
    }

    fn on(device: &Device) {
        for weight_decay in [0.0, 0.05] {
            steps_are_burns(
                || AdamW { weight_decay: f64::from(weight_decay) }.into(),
                || AdamWConfig::new().with_epsilon(1e-8).with_weight_decay(weight_decay).init(),
                device,
            );
            let adafactor = || AdafactorConfig::new().with_relative_step(false);
            steps_are_burns(
                || Adafactor { weight_decay: f64::from(weight_decay) }.into(),
                || adafactor().with_weight_decay(weight_decay).init(),
                device,
            );
        }
    }

    #[cfg(feature = "flex")]
    #[test]
    fn on_flex() {
        on(&Device::flex());
    }

    #[cfg(feature = "ndarray")]
    #[test]
    fn on_ndarray() {
        on(&Device::ndarray());
    }
}
