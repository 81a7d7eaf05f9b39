//! A few rows times a matrix of weights, as decoding does for every token: the weights cross memory once,
//! read by all threads, and that is what it takes.

use altup_core::cpu::{CpuBackend, for_each, vectorized};
use burn::backend::TensorMetadata;
use burn::backend::tensor::FloatTensor;
use burn::tensor::{Shape, bf16};

/// Rows of weights taken together: a sum is read and written once for all of them.
const DEPTH: usize = 8;

/// A type that weights are stored in.
pub(super) trait Weight: Copy + Send + Sync {
    fn to_f32(self) -> f32;
}

impl Weight for f32 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
}

impl Weight for bf16 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
}

/// `[rows, d_input]` times `[d_input, d_output]`, row by row in `weights`.
pub(super) fn project<B: CpuBackend, W: Weight>(
    x: &FloatTensor<B>,
    weights: &[W],
    d_output: usize,
) -> FloatTensor<B> {
    let rows = x.shape()[0];
    let mut output = B::zeros(Shape::new([rows, d_output]), x);
    let x = B::values(x);
    let d_input = x.len() / rows;
    // Columns of a task: with fewer, a row of weights would be read in pieces too short to stream.
    let columns = (d_output / 8).next_multiple_of(64).clamp(256, 2048);
    let mut tasks: Vec<Vec<&mut [f32]>> = Vec::new();
    tasks.resize_with(d_output.div_ceil(columns), || Vec::with_capacity(rows));
    for row in B::values_mut(&mut output).chunks_mut(d_output) {
        for (task, chunk) in tasks.iter_mut().zip(row.chunks_mut(columns)) {
            task.push(chunk);
        }
    }
    for_each(tasks.into_iter().enumerate().collect(), weights.len(), |(task, mut outputs)| {
        vectorized(|| {
            for (first, weights) in
                (0..d_input).step_by(DEPTH).zip(weights.chunks(DEPTH * d_output))
            {
                for (output, x) in outputs.iter_mut().zip(x.chunks(d_input)) {
                    let weights = &weights[task * columns..];
                    add_product(output, &x[first..d_input.min(first + DEPTH)], weights, d_output);
                }
            }
        });
    });
    output
}

/// Adds Σᵢ xᵢ · row i of the weights, whose rows lie `d_output` apart.
#[inline(always)]
fn add_product<W: Weight>(output: &mut [f32], x: &[f32], weights: &[W], d_output: usize) {
    let length = output.len();
    let row = |i: usize| &weights[i * d_output..][..length];
    if let &[x0, x1, x2, x3, x4, x5, x6, x7] = x {
        let [w0, w1, w2, w3, w4, w5, w6, w7] = [0, 1, 2, 3, 4, 5, 6, 7].map(row);
        for i in 0..length {
            let first = x0 * w0[i].to_f32() + x1 * w1[i].to_f32();
            let second = x2 * w2[i].to_f32() + x3 * w3[i].to_f32();
            let third = x4 * w4[i].to_f32() + x5 * w5[i].to_f32();
            let fourth = x6 * w6[i].to_f32() + x7 * w7[i].to_f32();
            output[i] += (first + second) + (third + fourth);
        }
    } else {
        for (i, x) in x.iter().enumerate() {
            for (output, weight) in output.iter_mut().zip(row(i)) {
                *output += x * weight.to_f32();
            }
        }
    }
}
