use burn::tensor::{Int, Tensor};

use crate::operations::cross_entropy::{CrossEntropyOptions, cross_entropy};

/// The summed cross-entropy, in nats, of the labels that are not padding (0 or negative, as −100).
///
/// In f32, whatever the logits are. A sum, so that batches, micro-batches and devices add up before
/// one division by the number of target tokens.
///
/// # Shapes
///
/// - logits: `[batch_size, target_length, vocab_size]`
/// - labels: `[batch_size, target_length]`
/// - output: `[1]`
///
/// # Panics
///
/// As [`cross_entropy`].
pub fn cross_entropy_sum(logits: Tensor<3>, labels: Tensor<2, Int>) -> Tensor<1> {
    cross_entropy_sum_with(logits, labels, CrossEntropyOptions::default())
}

/// [`cross_entropy_sum`] with label smoothing and z-loss: see [`cross_entropy`]. Shapes and panics as there.
pub fn cross_entropy_sum_with(
    logits: Tensor<3>,
    labels: Tensor<2, Int>,
    options: CrossEntropyOptions,
) -> Tensor<1> {
    let [batch_size, target_length, vocab_size] = logits.dims();
    let tokens = batch_size * target_length;
    cross_entropy(logits.reshape([tokens, vocab_size]), labels.reshape([tokens]), options).sum()
}

/// How many labels that are not padding get the highest logit.
///
/// # Shapes
///
/// - logits: `[batch_size, target_length, vocab_size]`
/// - labels: `[batch_size, target_length]`
/// - output: `[1]`
pub fn correct_tokens(logits: Tensor<3>, labels: Tensor<2, Int>) -> Tensor<1, Int> {
    let best: Tensor<2, Int> = logits.argmax(2).squeeze_dim(2);
    let counted = labels.clone().greater_elem(0).int();
    (best.equal(labels).int() * counted).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    /// Two tokens count: −ln(e² / (e² + 1 + e¹)) and −ln(1 / 3); the third is padding.
    #[test]
    fn loss_and_hits_by_hand() {
        let device = Device::flex();
        let logits =
            Tensor::<3>::from_data([[[0.0, 2.0, 1.0], [5.0, 5.0, 5.0], [9.0, 0.0, 0.0]]], &device);
        let labels = Tensor::<2, Int>::from_data([[1, 2, 0]], &device);
        let of_hugging_face = Tensor::<2, Int>::from_data([[1, 2, -100]], &device);
        let expected = (1.0 + (-2.0f64).exp() + (-1.0f64).exp()).ln() + 3.0f64.ln();
        let loss = cross_entropy_sum(logits.clone(), labels.clone()).into_scalar::<f64>();
        assert!((loss - expected).abs() < 1e-6, "{loss} is not {expected}");
        assert_eq!(correct_tokens(logits.clone(), labels).into_scalar::<i64>(), 1);
        let again = cross_entropy_sum(logits.clone(), of_hugging_face.clone());
        assert_eq!(again.into_scalar::<f64>(), loss);
        assert_eq!(correct_tokens(logits, of_hugging_face).into_scalar::<i64>(), 1);
    }

    #[test]
    fn huge_logits_do_not_overflow() {
        let device = Device::flex();
        let logits = Tensor::<3>::from_data([[[1000.0, 0.0]]], &device);
        let labels = Tensor::<2, Int>::from_data([[1]], &device);
        assert_eq!(cross_entropy_sum(logits, labels).into_scalar::<f64>(), 1000.0);
    }
}
