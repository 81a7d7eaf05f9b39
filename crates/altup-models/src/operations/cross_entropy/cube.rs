//! On a GPU in one kernel each way, in which a group of threads shares a token. The backward pass makes the sum of
//! exponentials again and writes over the logits: of their size there is one tensor. The arithmetic is f32.

use altup_backend::cube::{
    RowLaunch, empty, largest_of_vector, max_over_row, over, row_memory, sum_of_vector,
    sum_over_row,
};
use burn::backend::TensorMetadata;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::tensor::DType;
use burn_backend::cubecl::dtype_to_storage_type;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use cubecl::prelude::*;

use super::{CrossEntropyBackend, CrossEntropyOptions};

impl CrossEntropyBackend for CubeBackend {
    /// Kernels read logits of any type.
    fn logits_to_keep(logits: FloatTensor<Self>) -> FloatTensor<Self> {
        logits
    }

    fn cross_entropy(
        logits: FloatTensor<Self>,
        labels: IntTensor<Self>,
        options: CrossEntropyOptions,
    ) -> FloatTensor<Self> {
        let [tokens, vocab_size] = logits.shape().dims();
        let losses = empty(labels.shape(), DType::F32, &logits);
        if tokens * vocab_size == 0 {
            return losses;
        }
        let [logits, labels] = [logits, labels].map(into_contiguous);
        let launch = RowLaunch::new(&logits, tokens, vocab_size);
        let dtypes = [logits.dtype, labels.dtype].map(dtype_to_storage_type);
        cross_entropy_kernel::launch(
            &losses.client.clone(),
            launch.cubes,
            launch.threads,
            launch.vector_size,
            logits.into_tensor_arg(),
            labels.into_tensor_arg(),
            losses.clone().into_tensor_arg(),
            options.label_smoothing as f32,
            options.z_loss as f32,
            launch.units,
            launch.rows,
            dtypes,
        );
        losses
    }

    fn cross_entropy_backward(
        logits: FloatTensor<Self>,
        labels: IntTensor<Self>,
        output_grad: FloatTensor<Self>,
        options: CrossEntropyOptions,
    ) -> FloatTensor<Self> {
        let [tokens, vocab_size] = logits.shape().dims();
        let [logits, labels, output_grad] = [logits, labels, output_grad].map(into_contiguous);
        let (grad, grad_arg) = over(&logits, 0);
        if tokens * vocab_size == 0 {
            return grad;
        }
        let launch = RowLaunch::new(&logits, tokens, vocab_size);
        let dtypes = [logits.dtype, labels.dtype].map(dtype_to_storage_type);
        cross_entropy_backward_kernel::launch(
            &grad.client.clone(),
            launch.cubes,
            launch.threads,
            launch.vector_size,
            logits.into_tensor_arg(),
            labels.into_tensor_arg(),
            output_grad.into_tensor_arg(),
            grad_arg,
            options.label_smoothing as f32,
            options.z_loss as f32,
            launch.units,
            launch.rows,
            dtypes,
        );
        grad
    }
}

/// log Σ exp of a row, in one pass: the sum shrinks where the maximum so far grows.
#[cube]
fn log_sum_exp<F: Float, N: Size>(
    logits: &Tensor<Vector<F, N>>,
    first: usize,
    end: usize,
    memory: &mut Shared<[f32]>,
    #[comptime] units: usize,
) -> f32 {
    let mut maxima = Vector::<f32, N>::new(f32::MIN);
    let mut sums = Vector::<f32, N>::new(0.0f32);
    let mut column = UNIT_POS_X as usize;
    while column < end {
        let value = Vector::<f32, N>::cast_from(logits[first + column]);
        let next = max(maxima, value);
        sums = sums * (maxima - next).exp() + (value - next).exp();
        maxima = next;
        column += units;
    }
    let largest = max_over_row(largest_of_vector(maxima), memory, units);
    let sums = sums * (maxima - Vector::new(largest)).exp();
    largest + sum_over_row(sum_of_vector(sums), memory, units).ln()
}

/// With L = log Σ exp(logits): L − (1 − ε) · logit of the label − ε · mean of the logits + z L²; 0 where a label is
/// ignored.
#[cube(launch)]
fn cross_entropy_kernel<F: Float, I: Int, N: Size>(
    logits: &Tensor<Vector<F, N>>,
    labels: &Tensor<I>,
    losses: &mut Tensor<f32>,
    label_smoothing: f32,
    z_loss: f32,
    #[comptime] units: usize,
    #[comptime] rows: usize,
    #[define(F, I)] _dtypes: [ElemType; 2],
) {
    let mut memory = row_memory(units, rows);
    let vectors = logits.shape(1) / N::value();
    let row = CUBE_POS * rows + UNIT_POS_Y as usize;
    let first = row * vectors;
    let unit = UNIT_POS_X as usize;
    // A row that isn't there has no columns.
    let mut end = vectors;
    if first >= logits.len() {
        end = 0usize;
    }
    let log_sum = log_sum_exp::<F, N>(logits, first, end, &mut memory, units);
    let mut sums = Vector::<f32, N>::new(0.0f32);
    let mut column = unit;
    while column < end {
        sums += Vector::cast_from(logits[first + column]);
        column += units;
    }
    let mean = sum_over_row(sum_of_vector(sums), &mut memory, units)
        / f32::cast_from(vectors * N::value());
    if end > 0 && unit == 0 {
        let label = i32::cast_from(labels[row]);
        let mut loss = 0.0f32;
        if label > 0 {
            let place = label as usize;
            let beside = Vector::<f32, N>::cast_from(logits[first + place / N::value()]);
            let mut of_label = 0.0f32;
            #[unroll]
            for i in 0..N::value() {
                if place % N::value() == i {
                    of_label = beside.extract(i);
                }
            }
            loss = log_sum - of_label + z_loss * log_sum * log_sum;
            // Without smoothing, a logit of −∞ makes nothing of the loss but its mean infinite.
            if label_smoothing > 0.0f32 {
                loss += label_smoothing * (of_label - mean);
            }
        }
        losses[row] = loss;
    }
}

/// With P the softmax: P (1 + 2 z L) − ε / V, less 1 − ε for the label, times the gradient of the loss.
#[cube(launch)]
fn cross_entropy_backward_kernel<F: Float, I: Int, N: Size>(
    logits: &Tensor<Vector<F, N>>,
    labels: &Tensor<I>,
    output_grad: &Tensor<f32>,
    logits_grad: &mut Tensor<Vector<F, N>>,
    label_smoothing: f32,
    z_loss: f32,
    #[comptime] units: usize,
    #[comptime] rows: usize,
    #[define(F, I)] _dtypes: [ElemType; 2],
) {
    let mut memory = row_memory(units, rows);
    let vectors = logits.shape(1) / N::value();
    let row = CUBE_POS * rows + UNIT_POS_Y as usize;
    let first = row * vectors;
    let unit = UNIT_POS_X as usize;
    let mut end = vectors;
    if first >= logits.len() {
        end = 0usize;
    }
    let log_sum = log_sum_exp::<F, N>(logits, first, end, &mut memory, units);
    let mut grad = 0.0f32;
    let mut label = 0i32;
    if end > 0 {
        label = i32::cast_from(labels[row]);
        if label > 0 {
            grad = output_grad[row];
        }
    }
    let place = label as usize;
    let of_weight = grad * (1.0f32 + 2.0f32 * z_loss * log_sum);
    let of_each = grad * label_smoothing / f32::cast_from(vectors * N::value());
    let of_label = grad * (1.0f32 - label_smoothing);
    let mut column = unit;
    while column < end {
        // Not 0 times what an ignored row holds, which may be infinite.
        let mut result = Vector::<f32, N>::new(0.0f32);
        if label > 0 {
            let value = Vector::<f32, N>::cast_from(logits[first + column]);
            let weight = (value - Vector::new(log_sum)).exp();
            result = weight * Vector::new(of_weight) - Vector::new(of_each);
            if place / N::value() == column {
                #[unroll]
                for i in 0..N::value() {
                    if place % N::value() == i {
                        result.insert(i, result.extract(i) - of_label);
                    }
                }
            }
        }
        logits_grad[first + column] = Vector::cast_from(result);
        column += units;
    }
}
