//! A few rows times a matrix of weights, as decoding does for every token: the weights cross memory once,
//! read by all threads, and that is what it takes.
//!
//! They are read in blocks of a few rows and columns, whose sums stay in the first-level cache. Such short
//! pieces of rows start anew too often for a processor to foresee what comes next, so it is told: without,
//! a core reads little more than half as fast.

use altup_backend::vector::add;
use altup_backend::{HostTensors, map, vectorized};
use burn::backend::TensorMetadata;
use burn::backend::tensor::FloatTensor;
use burn::tensor::{Shape, bf16};
use pulp::{Arch, Simd, WithSimd};
use std::ops::Range;

use super::primitive;

/// Rows of weights in a block: a sum is read and written once for all of them.
const DEPTH: usize = 4;

/// Columns of a block.
const COLUMNS: usize = 512;

/// How long before it is used a byte of weights is asked for, in bytes.
const AHEAD: usize = 16 * 1024;

/// Bytes of a line of a cache.
const LINE: usize = 64;

/// Bytes of weights for which a task pays, and the most tasks, each with sums of its own.
const TASK: usize = 256 * 1024;
const MAX_TASKS: usize = 16;

/// A type that weights are stored in.
trait Weight: Copy + Send + Sync {
    fn to_f32(self) -> f32;

    /// As many weights as a vector holds.
    fn load<S: Simd>(weights: &[Self]) -> S::f32s;
}

impl Weight for f32 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }

    #[inline(always)]
    fn load<S: Simd>(weights: &[f32]) -> S::f32s {
        S::as_simd_f32s(weights).0[0]
    }
}

impl Weight for bf16 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn load<S: Simd>(weights: &[bf16]) -> S::f32s {
        let mut widened = [0.0; 16];
        let widened = &mut widened[..S::F32_LANES];
        for (widened, weight) in widened.iter_mut().zip(weights) {
            *widened = weight.to_f32();
        }
        S::as_simd_f32s(widened).0[0]
    }
}

/// x times each of the weights, in one turn of the threads.
pub(super) fn to_all<B: HostTensors, const N: usize>(
    x: FloatTensor<B>,
    weights: [FloatTensor<B>; N],
) -> [FloatTensor<B>; N] {
    let of_x = B::on_host([&x]) && x.shape()[0] > 0;
    if of_x && weights.iter().all(|weight| B::bf16_slice(weight).is_some()) {
        let stored = weights.each_ref().map(|weight| B::bf16_slice(weight).expect("as asked"));
        project::<B, bf16, N>(&x, stored, widths::<B, N>(&weights))
    } else if of_x && weights.iter().all(|weight| B::on_host([weight])) {
        let stored = weights.each_ref().map(B::values);
        let stored = stored.each_ref().map(|values| &**values);
        project::<B, f32, N>(&x, stored, widths::<B, N>(&weights))
    } else {
        weights.map(|weight| primitive::project::<B>(x.clone(), weight))
    }
}

fn widths<B: HostTensors, const N: usize>(weights: &[FloatTensor<B>; N]) -> [usize; N] {
    weights.each_ref().map(|weight| weight.shape()[1])
}

/// `[rows, d_input]` times matrices `[d_input, d_output]`, each row by row in `weights`.
fn project<B: HostTensors, W: Weight, const N: usize>(
    x: &FloatTensor<B>,
    weights: [&[W]; N],
    widths: [usize; N],
) -> [FloatTensor<B>; N] {
    let rows = x.shape()[0];
    let mut outputs = widths.map(|d_output| B::zeros(Shape::new([rows, d_output]), x));
    let x = B::values(x);
    let d_input = x.len() / rows;
    let mut tasks = Vec::new();
    for (matrix, (weights, d_output)) in weights.into_iter().zip(widths).enumerate() {
        // A task has whole rows of weights, so that it reads memory in one stream. As many whatever the
        // number of threads: their sums are added in the same order then.
        let count = (size_of_val(weights) / TASK).clamp(1, MAX_TASKS);
        let depth = d_input.div_ceil(count).next_multiple_of(DEPTH);
        for (task, weights) in weights.chunks(depth * d_output).enumerate() {
            tasks.push((matrix, &x[task * depth..], weights, d_output));
        }
    }
    let total = weights.iter().map(|weights| weights.len()).sum();
    let of_tasks = map(tasks, total, |(matrix, x, weights, d_output)| {
        let mut sums = vec![0.0; rows * d_output];
        Arch::new().dispatch(Product { sums: &mut sums, x, d_input, weights, d_output });
        (matrix, sums)
    });
    for (matrix, of_task) in &of_tasks {
        let sums = B::values_mut(&mut outputs[*matrix]);
        vectorized(|| add(sums, of_task));
    }
    outputs
}

/// What a task adds to its sums: x · weights.
struct Product<'a, W> {
    /// `[rows, d_output]`
    sums: &'a mut [f32],
    /// Rows that begin `d_input` apart, of which as many values count as the weights have rows.
    x: &'a [f32],
    d_input: usize,
    weights: &'a [W],
    d_output: usize,
}

impl<W: Weight> WithSimd for Product<'_, W> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let tiles = self.d_output.div_ceil(COLUMNS);
        let blocks_ahead = AHEAD / (DEPTH * COLUMNS * size_of::<W>());
        let depth = self.weights.len() / self.d_output;
        for (group, row) in (0..depth).step_by(DEPTH).enumerate() {
            for tile in 0..tiles {
                let start = tile * COLUMNS;
                let columns = start..self.d_output.min(start + COLUMNS);
                if depth - row < DEPTH {
                    self.add_columns(row..depth, columns);
                    continue;
                }
                let ahead = group * tiles + tile + blocks_ahead;
                let next = ahead / tiles * DEPTH * self.d_output + ahead % tiles * COLUMNS;
                self.add_block(simd, row, columns, next);
            }
        }
    }
}

impl<W: Weight> Product<'_, W> {
    /// Adds what `DEPTH` rows of weights from `row` on have in these columns, and asks for as many weights
    /// from `next` on, where the block begins that will be used by and by.
    #[inline(always)]
    fn add_block<S: Simd>(&mut self, simd: S, row: usize, columns: Range<usize>, next: usize) {
        // Two vectors of each row of weights stay in registers while all rows of x use them.
        let lanes = S::F32_LANES;
        let step = 2 * lanes;
        let whole = columns.len() / step * step;
        for offset in (0..whole).step_by(step) {
            let asked = offset * DEPTH..(offset + step) * DEPTH;
            for weight in asked.step_by(LINE / size_of::<W>()) {
                let weight = next + weight / COLUMNS * self.d_output + weight % COLUMNS;
                // Maybe past the end, where nothing is read.
                prefetch(self.weights.as_ptr().wrapping_add(weight));
            }
            let column = columns.start + offset;
            let mut weights = [[simd.splat_f32s(0.0); 2]; DEPTH];
            for (i, of_row) in weights.iter_mut().enumerate() {
                let stored = &self.weights[(row + i) * self.d_output + column..][..step];
                *of_row = [W::load::<S>(&stored[..lanes]), W::load::<S>(&stored[lanes..])];
            }
            let of_rows =
                self.sums.chunks_exact_mut(self.d_output).zip(self.x.chunks(self.d_input));
            for (sums, x) in of_rows {
                let x = &x[row..row + DEPTH];
                let (sums, _) = S::as_mut_simd_f32s(&mut sums[column..column + step]);
                let [mut first, mut second] = [sums[0], sums[1]];
                for (x, weights) in x.iter().zip(weights) {
                    let x = simd.splat_f32s(*x);
                    first = simd.mul_add_e_f32s(x, weights[0], first);
                    second = simd.mul_add_e_f32s(x, weights[1], second);
                }
                [sums[0], sums[1]] = [first, second];
            }
        }
        self.add_columns(row..row + DEPTH, columns.start + whole..columns.end);
    }

    /// Adds what some rows of weights have in these columns, one weight after the other.
    fn add_columns(&mut self, rows: Range<usize>, columns: Range<usize>) {
        let of_rows = self.sums.chunks_exact_mut(self.d_output).zip(self.x.chunks(self.d_input));
        for (sums, x) in of_rows {
            for row in rows.clone() {
                let weights = &self.weights[row * self.d_output..][..self.d_output];
                for column in columns.clone() {
                    sums[column] += x[row] * weights[column].to_f32();
                }
            }
        }
    }
}

/// Tells the processor that an address will be read, where it can be told.
#[inline(always)]
fn prefetch<T>(address: *const T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: every x86-64 has it, and any address may be asked for.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}
