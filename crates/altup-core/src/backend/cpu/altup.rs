//! The update in one pass over the blocks, and the two loops that it and its gradients are made of.

use crate::cpu::{for_each, map, vectorized};

/// Positions that a task works on: as many of all blocks as stay in the first-level cache.
const CHUNK: usize = 1024;

/// The update, `[K, length]`, of a state `[K, length]`.
pub(super) fn update(
    state: &[f32],
    computed: &[f32],
    prediction_coefs: &[f32],
    correction_coefs: &[f32],
    block: usize,
    output: &mut [f32],
) {
    let num_blocks = correction_coefs.len();
    let coefs = folded_coefs(prediction_coefs, correction_coefs, block);
    let inputs = [blocks(state, num_blocks), vec![computed]].concat();
    combine(&coefs, &inputs, blocks_mut(output, num_blocks));
}

/// The gradients of a state, of what was computed, of p and of g, into `grads`.
pub(super) fn update_backward(
    [state, computed, prediction_coefs, correction_coefs]: [&[f32]; 4],
    output_grad: &[f32],
    block: usize,
    [state_grad, computed_grad, prediction_grad, correction_grad]: [&mut [f32]; 4],
) {
    let num_blocks = correction_coefs.len();
    let coefs = folded_coefs(prediction_coefs, correction_coefs, block);
    let output_grad = blocks(output_grad, num_blocks);

    let mut grads = blocks_mut(state_grad, num_blocks);
    grads.push(computed_grad);
    combine(&transposed(&coefs, num_blocks + 1), &output_grad, grads);

    let inputs = [blocks(state, num_blocks), vec![computed]].concat();
    let coefs_grad = inner_products(&output_grad, &inputs);
    let (prediction, correction) =
        unfolded_grads(&coefs_grad, prediction_coefs, correction_coefs, block);
    prediction_grad.copy_from_slice(&prediction);
    correction_grad.copy_from_slice(&correction);
}

/// As [`primitive::folded_coefs`](super::super::primitive::folded_coefs), row by row.
fn folded_coefs(prediction_coefs: &[f32], correction_coefs: &[f32], block: usize) -> Vec<f32> {
    let num_blocks = correction_coefs.len();
    let selected = &prediction_coefs[block * num_blocks..][..num_blocks];
    let row = |(p, &g): (&[f32], &f32)| -> Vec<f32> {
        let old = p.iter().zip(selected).map(|(p, selected)| p - g * selected);
        old.chain([g]).collect()
    };
    prediction_coefs.chunks(num_blocks).zip(correction_coefs).flat_map(row).collect()
}

/// As [`primitive::unfolded_grads`](super::super::primitive::unfolded_grads).
fn unfolded_grads(
    coefs_grad: &[f32],
    prediction_coefs: &[f32],
    correction_coefs: &[f32],
    block: usize,
) -> (Vec<f32>, Vec<f32>) {
    let num_blocks = correction_coefs.len();
    let selected = &prediction_coefs[block * num_blocks..][..num_blocks];
    let mut prediction_grad = Vec::with_capacity(num_blocks * num_blocks);
    let mut correction_grad = Vec::with_capacity(num_blocks);
    for row in coefs_grad.chunks(num_blocks + 1) {
        let (old, direct) = row.split_at(num_blocks);
        let through: f32 = old.iter().zip(selected).map(|(grad, p)| grad * p).sum();
        prediction_grad.extend_from_slice(old);
        correction_grad.push(direct[0] - through);
    }
    for (column, own) in (block * num_blocks..).take(num_blocks).enumerate() {
        let gained = correction_coefs.iter().zip(coefs_grad.chunks(num_blocks + 1));
        prediction_grad[own] -= gained.map(|(g, row)| g * row[column]).sum::<f32>();
    }
    (prediction_grad, correction_grad)
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
            vectorized(|| right.iter().map(|b| dot(&a[range.clone()], &b[range.clone()])).collect())
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

/// Sixteen sums at once, which the compiler keeps in vector registers.
#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a, a_rest) = a.as_chunks::<16>();
    let (b, b_rest) = b.as_chunks::<16>();
    let mut sums = [0f32; 16];
    for (a, b) in a.iter().zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
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
