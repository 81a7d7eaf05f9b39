//! On a CPU in one pass over the blocks, and the two loops that it and its gradients are made of.

use altup_backend::vector::sum;
use altup_backend::{HostTensors, for_each, map, vectorized};
use burn::backend::TensorMetadata;
use burn::backend::tensor::FloatTensor;

/// Positions that a task works on: as many of all blocks as stay in the first-level cache.
const CHUNK: usize = 1024;

pub(super) fn combine_blocks<B: HostTensors>(
    state: &FloatTensor<B>,
    computed: &FloatTensor<B>,
    coefs: &FloatTensor<B>,
) -> FloatTensor<B> {
    let num_blocks = state.shape()[0];
    let mut output = B::zeros(state.shape(), state);
    let [state, computed, coefs] = [state, computed, coefs].map(B::values);
    let inputs = [blocks(&state, num_blocks), vec![&*computed]].concat();
    combine(&coefs, &inputs, blocks_mut(B::values_mut(&mut output), num_blocks));
    output
}

pub(super) fn combine_blocks_backward<B: HostTensors>(
    inputs @ [state, _, _]: [&FloatTensor<B>; 3],
    output_grad: &FloatTensor<B>,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let num_blocks = state.shape()[0];
    let mut grads = inputs.map(|input| B::zeros(input.shape(), input));
    let [state, computed, coefs] = inputs.map(B::values);
    let output_grad = B::values(output_grad);
    let output_grad = blocks(&output_grad, num_blocks);
    let [state_grad, computed_grad, coefs_grad] = grads.each_mut().map(B::values_mut);

    let mut outputs = blocks_mut(state_grad, num_blocks);
    outputs.push(computed_grad);
    combine(&transposed(&coefs, num_blocks + 1), &output_grad, outputs);
    let inputs = [blocks(&state, num_blocks), vec![&*computed]].concat();
    coefs_grad.copy_from_slice(&inner_products(&output_grad, &inputs));
    grads.into()
}

/// Linear combinations of blocks: output i is Σⱼ cᵢⱼ · input j. All are of one length.
///
/// Every input is read from memory once and every output written once.
///
/// # Shapes
///
/// - coefs: `[outputs, inputs]`, row by row
fn combine(coefs: &[f32], inputs: &[&[f32]], outputs: Vec<&mut [f32]>) {
    let length = inputs[0].len();
    // Chunk c of every output, for each c.
    let mut tasks: Vec<Vec<&mut [f32]>> = Vec::new();
    tasks.resize_with(length.div_ceil(CHUNK), || Vec::with_capacity(outputs.len()));
    for output in outputs {
        for (task, chunk) in tasks.iter_mut().zip(output.chunks_mut(CHUNK)) {
            task.push(chunk);
        }
    }
    let run = |(number, outputs): (usize, Vec<&mut [f32]>)| {
        for (output, coefs) in outputs.into_iter().zip(coefs.chunks(inputs.len())) {
            vectorized(|| combine_chunk(output, coefs, inputs, number * CHUNK));
        }
    };
    for_each(tasks.into_iter().enumerate().collect(), length, run);
}

/// Adds up to three inputs in a pass, so that an output is seldom read again.
#[inline(always)]
fn combine_chunk(output: &mut [f32], coefs: &[f32], inputs: &[&[f32]], start: usize) {
    let range = start..start + output.len();
    let mut first = true;
    for (coefs, inputs) in coefs.chunks(3).zip(inputs.chunks(3)) {
        match (coefs, inputs) {
            (&[c0, c1, c2], &[x0, x1, x2]) => {
                let inputs =
                    x0[range.clone()].iter().zip(&x1[range.clone()]).zip(&x2[range.clone()]);
                for (output, ((x0, x1), x2)) in output.iter_mut().zip(inputs) {
                    let sum = c0 * x0 + c1 * x1 + c2 * x2;
                    *output = if first { sum } else { *output + sum };
                }
            }
            (&[c0, c1], &[x0, x1]) => {
                let inputs = x0[range.clone()].iter().zip(&x1[range.clone()]);
                for (output, (x0, x1)) in output.iter_mut().zip(inputs) {
                    let sum = c0 * x0 + c1 * x1;
                    *output = if first { sum } else { *output + sum };
                }
            }
            (coefs, inputs) => {
                for (c, x) in coefs.iter().zip(inputs) {
                    for (output, x) in output.iter_mut().zip(&x[range.clone()]) {
                        *output = if first { c * x } else { *output + c * x };
                    }
                }
            }
        }
        first = false;
    }
}

/// The inner products of every left block with every right block, `[left, right]`, row by row.
///
/// Sums of a chunk are f32, of chunks f64, in the order of the chunks whatever thread made them.
fn inner_products(left: &[&[f32]], right: &[&[f32]]) -> Vec<f32> {
    let length = left[0].len();
    let of_chunk = |number: usize| -> Vec<f32> {
        let range = number * CHUNK..length.min((number + 1) * CHUNK);
        let with = |a: &[f32]| -> Vec<f32> {
            vectorized(|| {
                right
                    .iter()
                    .map(|b| sum(range.len(), |i| a[range.start + i] * b[range.start + i]))
                    .collect()
            })
        };
        left.iter().flat_map(|a| with(a)).collect()
    };
    let numbers = (0..length.div_ceil(CHUNK)).collect();
    let mut sums = vec![0f64; left.len() * right.len()];
    for chunk in map(numbers, length, of_chunk) {
        for (sum, product) in sums.iter_mut().zip(chunk) {
            *sum += f64::from(product);
        }
    }
    sums.into_iter().map(|sum| sum as f32).collect()
}

/// The blocks of a state that lies row by row in memory.
fn blocks(state: &[f32], num_blocks: usize) -> Vec<&[f32]> {
    let length = state.len() / num_blocks;
    (0..num_blocks).map(|block| &state[block * length..][..length]).collect()
}

fn blocks_mut(state: &mut [f32], num_blocks: usize) -> Vec<&mut [f32]> {
    // Of an empty state there are no chunks, and nothing is written.
    state.chunks_mut((state.len() / num_blocks).max(1)).collect()
}

/// A matrix with rows and columns changed.
fn transposed(matrix: &[f32], columns: usize) -> Vec<f32> {
    let column = |column: usize| matrix.iter().skip(column).step_by(columns).copied();
    (0..columns).flat_map(column).collect()
}
