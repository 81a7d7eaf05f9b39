//! Cross-entropy over the vocabulary, a token at a time: no second tensor of the logits' size is made.

use altup_core::cpu::vector::{exp, max, sum};
use altup_core::cpu::{CpuBackend, for_each, vectorized};
use burn::backend::TensorMetadata;
use burn::backend::tensor::{FloatTensor, IntTensor};

pub(super) fn cross_entropy<B: CpuBackend>(
    logits: &FloatTensor<B>,
    labels: &IntTensor<B>,
) -> FloatTensor<B> {
    let mut losses = B::zeros(labels.shape(), logits);
    let vocab_size = logits.shape()[1];
    let (logits, labels) = (B::values(logits), B::indices(labels));
    let tasks = B::values_mut(&mut losses).iter_mut().zip(logits.chunks(vocab_size)).zip(labels);
    for_each(tasks.collect(), logits.len(), |((loss, logits), label)| match label {
        0 => *loss = 0.0,
        label => *loss = log_sum_exp(logits) - logits[label],
    });
    losses
}

/// The logits' gradient takes their place.
pub(super) fn cross_entropy_backward<B: CpuBackend>(
    logits: FloatTensor<B>,
    labels: &IntTensor<B>,
    output_grad: &FloatTensor<B>,
) -> FloatTensor<B> {
    let vocab_size = logits.shape()[1];
    let (labels, output_grad) = (B::indices(labels), B::values(output_grad));
    let mut grad = B::to_write(logits);
    let values = B::values_mut(&mut grad);
    let length = values.len();
    let tasks = values.chunks_mut(vocab_size).zip(labels).zip(output_grad.iter());
    for_each(tasks.collect(), length, |((logits, label), &grad)| match label {
        0 => logits.fill(0.0),
        label => {
            let log_sum = log_sum_exp(logits);
            vectorized(|| {
                for logit in logits.iter_mut() {
                    *logit = exp(*logit - log_sum) * grad;
                }
            });
            logits[label] -= grad;
        }
    });
    grad
}

/// ln Σ eˣ, shifted by the maximum so that no exponential overflows.
fn log_sum_exp(values: &[f32]) -> f32 {
    vectorized(|| {
        let max = max(values);
        max + sum(values.len(), |i| exp(values[i] - max)).ln()
    })
}
