//! The cross-entropy of labels over a vocabulary.

mod cpu;
#[cfg(feature = "cube")]
mod cube;
mod primitive;

use altup_backend::{cast, record, to_f32};
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Dispatch, TensorMetadata};
use burn::tensor::{Int, Tensor};

/// How far a loss is from the plain cross-entropy.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CrossEntropyOptions {
    /// ε of label smoothing: the target is 1 − ε for the label and ε / V for each of the V tokens, the label among
    /// them (as PyTorch's `label_smoothing`). Default: 0.0
    pub label_smoothing: f64,
    /// Weight of (log Σ exp(logits))² in the loss of a token, which keeps logits from drifting (T5X's `z_loss`).
    /// Default: 0.0
    pub z_loss: f64,
}

/// The loss of each token in nats. A label is ignored, and its loss is 0, if it is 0 (T5's padding) or negative (−100
/// in Hugging Face's batches).
///
/// With L = log Σ exp(logits): L − (1 − ε) · logit of the label − ε · mean of the logits + z · L². In f32 whatever the
/// type of the logits. The backward pass keeps only the logits. It writes their gradient over them, on a CPU and on a
/// GPU, where nobody else holds them: then there is no second tensor of their size.
///
/// # Shapes
///
/// - logits: `[tokens, vocab_size]`
/// - labels: `[tokens]`
/// - output: `[tokens]`
///
/// # Panics
///
/// Panics if there isn't a label for each token, or an option is out of its range. On a CPU, also if a label is beyond the vocabulary; on a GPU this is
/// not checked.
pub fn cross_entropy(
    logits: Tensor<2>,
    labels: Tensor<1, Int>,
    options: CrossEntropyOptions,
) -> Tensor<1> {
    let ([tokens, _], [count]) = (logits.dims(), labels.dims());
    assert_eq!(
        tokens, count,
        "There must be a label for each token. Got {tokens} tokens, {count} labels"
    );
    let CrossEntropyOptions { label_smoothing, z_loss } = options;
    assert!(
        (0.0..=1.0).contains(&label_smoothing) && z_loss >= 0.0 && z_loss.is_finite(),
        "Label smoothing is between 0 and 1, the weight of the z-loss at least 0. Got \
         label_smoothing={label_smoothing}, z_loss={z_loss}"
    );
    let output = <Dispatch as CrossEntropyBackend>::cross_entropy(
        logits.into_dispatch(),
        labels.into_dispatch(),
        options,
    );
    Tensor::from_dispatch(output)
}

altup_backend::operations! {
    gpu_kernels
    /// [`cross_entropy`] on a backend.
    pub trait CrossEntropyBackend {
        /// The logits as the backward pass gets them. By default they are f32, which its loops write over.
        #[fusion(dtype = logits, shape = logits)]
        fn logits_to_keep(logits: FloatTensor<Self>) -> FloatTensor<Self> {
            to_f32::<Self>(logits)
        }

        /// # Shapes
        ///
        /// - logits: `[tokens, vocab_size]`
        /// - labels: `[tokens]`
        /// - output: `[tokens]`, f32
        #[fusion(dtype = burn::tensor::DType::F32, shape = labels)]
        fn cross_entropy(
            logits: FloatTensor<Self>,
            labels: IntTensor<Self>,
            options: CrossEntropyOptions,
        ) -> FloatTensor<Self> {
            let logits = to_f32::<Self>(logits);
            match Self::on_host([&logits]) {
                true => cpu::cross_entropy::<Self>(&logits, &labels, options),
                false => primitive::cross_entropy::<Self>(logits, labels, options),
            }
        }

        /// The gradient of the logits, of their type; they are from [`logits_to_keep`](Self::logits_to_keep).
        #[fusion(dtype = logits, shape = logits)]
        fn cross_entropy_backward(
            logits: FloatTensor<Self>,
            labels: IntTensor<Self>,
            output_grad: FloatTensor<Self>,
            options: CrossEntropyOptions,
        ) -> FloatTensor<Self> {
            match Self::on_host([&logits, &output_grad]) {
                true => cpu::cross_entropy_backward::<Self>(logits, &labels, &output_grad, options),
                false => {
                    primitive::cross_entropy_backward::<Self>(logits, labels, output_grad, options)
                }
            }
        }
    }
}

impl<B: CrossEntropyBackend, C: CheckpointStrategy> CrossEntropyBackend for Autodiff<B, C> {
    fn cross_entropy(
        logits: FloatTensor<Self>,
        labels: IntTensor<Self>,
        options: CrossEntropyOptions,
    ) -> FloatTensor<Self> {
        // The gradient of logits that were not f32 is cast back here.
        record::<B, C, _, 1>(
            [logits],
            |[logits]| {
                let dtype = logits.dtype();
                let logits = B::logits_to_keep(logits);
                let output = B::cross_entropy(logits.clone(), labels.clone(), options);
                (output, (logits, labels, options, dtype))
            },
            |(logits, labels, options, dtype), grad| {
                [cast::<B>(B::cross_entropy_backward(logits, labels, grad, options), dtype)]
            },
        )
    }
}

#[cfg(test)]
mod tests;
