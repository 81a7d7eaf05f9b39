//! Sequence-AltUp's update, a window at a time: its tokens share an anchor and what was computed there.

use crate::cpu::vector::{add, sum};
use crate::cpu::{for_each, map, vectorized};

/// Values of a task.
const CHUNK: usize = 8 * 1024;

/// Windows of the same rows of a batch: their tokens, and what belongs to them once a window.
struct Windows {
    width: usize,
    stride: usize,
    seq_length: usize,
    /// Windows of a task.
    of_task: usize,
}

impl Windows {
    fn new([seq_length, width]: [usize; 2], stride: usize) -> Self {
        let of_task = (CHUNK / (stride * width).max(1)).max(1);
        Self { width, stride, seq_length, of_task }
    }

    /// The tokens of each task, of one with a value for each token.
    fn of_tokens<'a>(&self, values: &'a [f32]) -> impl Iterator<Item = &'a [f32]> {
        let size = self.of_task * self.stride * self.width;
        values.chunks((self.seq_length * self.width).max(1)).flat_map(move |row| row.chunks(size))
    }

    fn of_tokens_mut<'a>(&self, values: &'a mut [f32]) -> impl Iterator<Item = &'a mut [f32]> {
        let (row, size) = (self.seq_length * self.width, self.of_task * self.stride * self.width);
        values.chunks_mut(row.max(1)).flat_map(move |row| row.chunks_mut(size))
    }

    fn of_windows<'a>(&self, values: &'a [f32]) -> impl Iterator<Item = &'a [f32]> {
        let row = self.seq_length.div_ceil(self.stride) * self.width;
        let size = self.of_task * self.width;
        values.chunks(row.max(1)).flat_map(move |row| row.chunks(size))
    }

    fn of_windows_mut<'a>(&self, values: &'a mut [f32]) -> impl Iterator<Item = &'a mut [f32]> {
        let row = self.seq_length.div_ceil(self.stride) * self.width;
        let size = self.of_task * self.width;
        values.chunks_mut(row.max(1)).flat_map(move |row| row.chunks_mut(size))
    }
}

/// The update of x `[B, T, d]`, of which `shape` is `[T, d]`, into `output`.
pub(super) fn update(
    [x, computed, prediction_coefs, correction_coef]: [&[f32]; 4],
    shape: [usize; 2],
    stride: usize,
    output: &mut [f32],
) {
    let windows = Windows::new(shape, stride);
    let (width, window) = (windows.width, stride * windows.width);
    let (first, second, gain) = (prediction_coefs[0], prediction_coefs[1], correction_coef[0]);
    let of_anchor = second - gain * (first + second);
    let tokens = windows.of_tokens_mut(output).zip(windows.of_tokens(x));
    let tasks = tokens.zip(windows.of_windows(computed)).collect();
    for_each(tasks, x.len(), |((output, x), computed)| {
        vectorized(|| {
            let mut shared = vec![0.0; width];
            let windows = output.chunks_mut(window).zip(x.chunks(window));
            for ((output, x), computed) in windows.zip(computed.chunks(width)) {
                for ((shared, anchor), computed) in shared.iter_mut().zip(x).zip(computed) {
                    *shared = of_anchor * anchor + gain * computed;
                }
                for (output, x) in output.chunks_mut(width).zip(x.chunks(width)) {
                    for ((output, x), shared) in output.iter_mut().zip(x).zip(&shared) {
                        *output = first * x + shared;
                    }
                }
            }
        });
    });
}

/// The gradients of x, of what was computed, of (a₁, a₂) and of b, into `grads`.
///
/// With W the sum of a window's gradients: dxᵢ = a₁ dyᵢ, to which the anchor adds its coefficient times W,
/// and dỹ = b W. The coefficients' follow from Σ dyᵢ xᵢ, Σ W x_kA and Σ W ỹ.
pub(super) fn update_backward(
    [x, computed, prediction_coefs, correction_coef]: [&[f32]; 4],
    output_grad: &[f32],
    shape: [usize; 2],
    stride: usize,
    [x_grad, computed_grad, prediction_grad, correction_grad]: [&mut [f32]; 4],
) {
    let windows = Windows::new(shape, stride);
    let (width, window) = (windows.width, stride * windows.width);
    let (first, second, gain) = (prediction_coefs[0], prediction_coefs[1], correction_coef[0]);
    let of_anchor = second - gain * (first + second);
    let tokens = windows.of_tokens_mut(x_grad).zip(windows.of_tokens(output_grad));
    let tokens = tokens.zip(windows.of_tokens(x));
    let of_windows = windows.of_windows_mut(computed_grad).zip(windows.of_windows(computed));
    let tasks = tokens.zip(of_windows).collect();
    let products =
        map(tasks, x.len(), |(((x_grad, output_grad), x), (computed_grad, computed))| {
            vectorized(|| {
                let mut products = [0f64; 3];
                let tokens = x_grad.chunks_mut(window).zip(output_grad.chunks(window));
                let tokens = tokens.zip(x.chunks(window));
                let of_windows = computed_grad.chunks_mut(width).zip(computed.chunks(width));
                for (((x_grad, grad), x), (sums, computed)) in tokens.zip(of_windows) {
                    sums.fill(0.0);
                    grad.chunks(width).for_each(|grad| add(sums, grad));
                    let dot = |a: &[f32], b: &[f32]| f64::from(sum(a.len(), |i| a[i] * b[i]));
                    products[0] += dot(grad, &x[..grad.len()]);
                    products[1] += dot(sums, &x[..width]);
                    products[2] += dot(sums, &computed[..width]);
                    for (x_grad, grad) in x_grad.iter_mut().zip(grad) {
                        *x_grad = first * grad;
                    }
                    for (x_grad, sum) in x_grad.iter_mut().zip(&*sums) {
                        *x_grad += of_anchor * sum;
                    }
                    sums.iter_mut().for_each(|sum| *sum *= gain);
                }
                products
            })
        });
    let [with_tokens, with_anchors, with_computed] = products
        .into_iter()
        .fold([0.0; 3], |sums: [f64; 3], task| std::array::from_fn(|i| sums[i] + task[i]));
    let corrected = f64::from(gain) * with_anchors;
    prediction_grad[0] = (with_tokens - corrected) as f32;
    prediction_grad[1] = (with_anchors - corrected) as f32;
    correction_grad[0] = (with_computed - f64::from(first + second) * with_anchors) as f32;
}
