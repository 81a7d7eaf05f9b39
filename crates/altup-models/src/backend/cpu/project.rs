//! A few rows times a matrix of weights, as decoding does for every token: the weights cross memory once,
//! read by all threads, and that is what it takes.

use altup_core::cpu::vector::add;
use altup_core::cpu::{CpuBackend, map, vectorized};
use burn::backend::TensorMetadata;
use burn::backend::tensor::FloatTensor;
use burn::tensor::{Shape, bf16};

/// Rows of weights taken together: a sum is read and written once for all of them.
const DEPTH: usize = 8;

/// Columns whose sums stay in the first-level cache.
const COLUMNS: usize = 2048;

/// A type that weights are stored in.
pub(super) trait Weight: Copy + Send + Sync {
    /// Whether the values are f32 as they lie.
    const IS_F32: bool;

    fn to_f32(self) -> f32;
}

impl Weight for f32 {
    const IS_F32: bool = true;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
}

impl Weight for bf16 {
    const IS_F32: bool = false;

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
    // A task has whole rows of weights, so that it reads memory in one stream. As many whatever the number
    // of threads: their sums are added in the same order then.
    let depth = d_input.div_ceil(16).next_multiple_of(DEPTH).max(64);
    let tasks = weights.chunks(depth * d_output).enumerate().collect();
    let of_tasks = map(tasks, weights.len(), |(task, weights)| {
        let mut sums = vec![0.0; rows * d_output];
        // Several rows share the work of widening.
        let widen = rows > 1 && !W::IS_F32;
        let mut widened = if widen { vec![0.0; DEPTH * COLUMNS] } else { Vec::new() };
        vectorized(|| {
            for (group, weights) in weights.chunks(DEPTH * d_output).enumerate() {
                let first = task * depth + group * DEPTH;
                let depth = first..first + weights.len() / d_output;
                for tile in (0..d_output).step_by(COLUMNS) {
                    let columns = tile..d_output.min(tile + COLUMNS);
                    let weights = &weights[tile..];
                    if widen {
                        let rows = weights.chunks(d_output).zip(widened.chunks_mut(columns.len()));
                        for (weights, widened) in rows {
                            for (widened, weight) in widened.iter_mut().zip(weights) {
                                *widened = weight.to_f32();
                            }
                        }
                    }
                    for (x, sums) in x.chunks(d_input).zip(sums.chunks_mut(d_output)) {
                        let (x, sums) = (&x[depth.clone()], &mut sums[columns.clone()]);
                        match widen {
                            true => add_product(sums, x, &widened, columns.len()),
                            false => add_product(sums, x, weights, d_output),
                        }
                    }
                }
            }
        });
        sums
    });
    let sums = B::values_mut(&mut output);
    vectorized(|| of_tasks.iter().for_each(|of_task| add(sums, of_task)));
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
