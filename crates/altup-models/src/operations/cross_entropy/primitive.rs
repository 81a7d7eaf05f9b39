//! The operation as a chain of primitive tensor operations. Backends without a kernel run it; kernels are tested
//! against it.

use burn::backend::tensor::{BoolTensor, FloatTensor, IntTensor};
use burn::backend::{Backend, TensorMetadata, get_device_settings};
use burn::tensor::{IndexingUpdateOp, Shape};

use super::CrossEntropyOptions;

pub(super) fn cross_entropy<B: Backend>(
    logits: FloatTensor<B>,
    labels: IntTensor<B>,
    options: CrossEntropyOptions,
) -> FloatTensor<B> {
    let tokens = labels.shape();
    let flat = |column| B::float_reshape(column, tokens.clone());
    let ignored = ignored::<B>(labels.clone(), &logits);
    let log_weights = B::log_softmax(logits.clone(), 1);
    let of_label = flat(B::float_gather(1, log_weights.clone(), as_indices::<B>(labels)));
    let mut loss = B::float_neg(of_label.clone());
    if options.label_smoothing != 0.0 {
        let mean = flat(B::float_mean_dim(log_weights, 1));
        let smoothed = B::float_sub(of_label, mean);
        loss = B::float_add(loss, B::float_mul_scalar(smoothed, options.label_smoothing.into()));
    }
    if options.z_loss != 0.0 {
        let log_sum = flat(log_sum_exp::<B>(logits));
        let square = B::float_mul(log_sum.clone(), log_sum);
        loss = B::float_add(loss, B::float_mul_scalar(square, options.z_loss.into()));
    }
    // Filled, not multiplied by 0: what is ignored may be infinite.
    B::float_mask_fill(loss, ignored, 0.0.into())
}

pub(super) fn cross_entropy_backward<B: Backend>(
    logits: FloatTensor<B>,
    labels: IntTensor<B>,
    output_grad: FloatTensor<B>,
    options: CrossEntropyOptions,
) -> FloatTensor<B> {
    let shape = logits.shape();
    let vocab_size = shape[1];
    let column = Shape::new([labels.shape()[0], 1]);
    let ignored = ignored::<B>(labels.clone(), &logits);
    let grad = B::float_mask_fill(output_grad, ignored.clone(), 0.0.into());
    let grad = B::float_reshape(grad, column);
    let mut of_weights = grad.clone();
    if options.z_loss != 0.0 {
        let factor =
            B::float_mul_scalar(log_sum_exp::<B>(logits.clone()), (2.0 * options.z_loss).into());
        of_weights = B::float_mul(of_weights, B::float_add_scalar(factor, 1.0.into()));
    }
    let mut logits_grad = B::float_mul(B::softmax(logits, 1), of_weights);
    let smoothing = options.label_smoothing;
    if smoothing != 0.0 {
        let of_each = B::float_mul_scalar(grad.clone(), (smoothing / vocab_size as f64).into());
        logits_grad = B::float_sub(logits_grad, of_each);
    }
    let of_label = B::float_mul_scalar(grad, (smoothing - 1.0).into());
    let logits_grad =
        B::float_scatter(1, logits_grad, as_indices::<B>(labels), of_label, IndexingUpdateOp::Add);
    let ignored_rows = B::bool_expand(B::bool_reshape(ignored, Shape::new([shape[0], 1])), shape);
    B::float_mask_fill(logits_grad, ignored_rows, 0.0.into())
}

/// ln Σ eˣ of each row, `[tokens, 1]`.
fn log_sum_exp<B: Backend>(logits: FloatTensor<B>) -> FloatTensor<B> {
    let max = B::float_max_dim(logits.clone(), 1);
    let sum = B::float_sum_dim(B::float_exp(B::float_sub(logits, max.clone())), 1);
    B::float_add(B::float_log(sum), max)
}

/// Which labels are ignored: a label counts from 1 on.
fn ignored<B: Backend>(labels: IntTensor<B>, logits: &FloatTensor<B>) -> BoolTensor<B> {
    let settings = get_device_settings::<B>(&logits.device());
    B::int_lower_elem(labels, 1.into(), settings.bool_dtype)
}

/// The labels as places in the vocabulary, `[tokens, 1]`; any where a label is ignored.
fn as_indices<B: Backend>(labels: IntTensor<B>) -> IntTensor<B> {
    let column = Shape::new([labels.shape()[0], 1]);
    B::int_reshape(B::int_clamp_min(labels, 0.into()), column)
}
