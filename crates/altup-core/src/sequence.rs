use burn::config::Config;
use burn::module::{Initializer, Module, Param};
use burn::tensor::{Bool, DType, Device, Tensor, TensorData};

use crate::operations::combine_windows::combine_windows;

/// Configuration of [`SequenceAltUp`].
#[derive(Config, Debug)]
pub struct SequenceAltUpConfig {
    /// The layer computes on every `stride`-th token; at least 1.
    pub stride: usize,
}

/// AltUp along the sequence around one layer: the layer computes on every k-th token, and the others
/// follow (after [Alternating Updates for Efficient Transformers](https://arxiv.org/abs/2301.13310)).
///
/// With stride k, token i has the anchor ⌊i/k⌋k, the computed token at or before it:
///
/// ```text
/// predict   ŷᵢ = a₁ xᵢ + a₂ x_⌊i/k⌋k             prediction_coefs (a₁, a₂), [2]
/// compute   ỹ₀, ỹ₁, … = L(x₀, x_k, x_2k, …)
/// correct   yᵢ = ŷᵢ + b (ỹ_⌊i/k⌋ − ŷ_⌊i/k⌋k)      correction_coef b, [1]
/// ```
///
/// They start at a₁ = 1, a₂ = 0, b = 1, our choice where the paper leaves it open: every token then
/// moves by what the layer adds to its anchor, and with stride 1 the result is the layer's.
///
/// `SequenceAltUp` doesn't know which layer it wraps: [`forward`](Self::forward) takes it as a closure.
///
/// Should be created with [`SequenceAltUpConfig`].
#[derive(Module, Debug)]
pub struct SequenceAltUp {
    /// (a₁, a₂), of shape `[2]`.
    pub prediction_coefs: Param<Tensor<1>>,
    /// b, of shape `[1]`.
    pub correction_coef: Param<Tensor<1>>,
    stride: usize,
}

impl SequenceAltUpConfig {
    /// Initializes [`SequenceAltUp`] with a₁ = 1, a₂ = 0 and b = 1.
    ///
    /// # Panics
    ///
    /// Panics if the stride is 0.
    pub fn init(&self, device: &Device) -> SequenceAltUp {
        check_stride(self.stride);
        let start = Tensor::from_data(TensorData::from([1f32, 0.0]), device);
        SequenceAltUp {
            prediction_coefs: Param::from_tensor(start),
            correction_coef: Initializer::Ones.init([1], device),
            stride: self.stride,
        }
    }
}

/// The tensor with enough bits for a coefficient.
fn at_least_f32<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    match tensor.dtype() {
        DType::F16 | DType::BF16 => tensor.cast(DType::F32),
        _ => tensor,
    }
}

impl SequenceAltUp {
    /// Updates all tokens by running `layer` on every k-th.
    ///
    /// If the layer uses positions, they must be the original ones: 0, k, 2k, …
    ///
    /// # Shapes
    ///
    /// - x: `[B, T, d]`
    /// - layer: `[B, ⌈T/k⌉, d]` to `[B, ⌈T/k⌉, d]`
    /// - output: `[B, T, d]`
    ///
    /// # Panics
    ///
    /// Panics if `layer` changes the shape or the type.
    pub fn forward(&self, x: Tensor<3>, layer: impl FnOnce(Tensor<3>) -> Tensor<3>) -> Tensor<3> {
        let computed = compute_on_anchors(&x, self.stride, layer);
        self.update(x, computed)
    }

    /// Predict and correct in one pass over the tokens: equal to `correct(predict(x), computed)`, as the
    /// linear combination [`combine_windows`] with the [coefficients](Self::coefficients) of both.
    ///
    /// # Shapes
    ///
    /// - x: `[B, T, d]`
    /// - computed: `[B, ⌈T/k⌉, d]`
    /// - output: `[B, T, d]`
    ///
    /// # Panics
    ///
    /// Panics if `computed` hasn't one token for each anchor, or is of another type than x.
    pub fn update(&self, x: Tensor<3>, computed: Tensor<3>) -> Tensor<3> {
        combine_windows(x, computed, self.coefficients(), self.stride)
    }

    /// The stride k: the layer computes on every k-th token.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Predict and correct folded into one combination of a token, its anchor and what was computed there:
    ///
    /// yᵢ = ŷᵢ + b (ỹ_A − ŷ_kA) = a₁ xᵢ + (a₂ − b (a₁ + a₂)) x_kA + b ỹ_A with A = ⌊i/k⌋.
    ///
    /// In f32 where a and b have fewer bits.
    ///
    /// # Shapes
    ///
    /// - output: `[3]`
    pub fn coefficients(&self) -> Tensor<1> {
        let a = at_least_f32(self.prediction_coefs.val());
        let b = at_least_f32(self.correction_coef.val());
        let (of_token, of_anchor) = (a.clone().narrow(0, 0, 1), a.clone().narrow(0, 1, 1));
        Tensor::cat(vec![of_token, of_anchor - b.clone() * a.sum(), b], 0)
    }

    /// The predicted tokens ŷᵢ = a₁ xᵢ + a₂ x_⌊i/k⌋k.
    ///
    /// # Shapes
    ///
    /// - x: `[B, T, d]`
    /// - output: `[B, T, d]`
    pub fn predict(&self, x: Tensor<3>) -> Tensor<3> {
        let [_, seq_length, _] = x.dims();
        let windows = windows(x, self.stride);
        let coefs = self.prediction_coefs.val().cast(windows.dtype());
        let coef = |index| coefs.clone().narrow(0, index, 1).reshape([1, 1, 1, 1]);
        let anchors = windows.clone().narrow(2, 0, 1);
        flatten(windows * coef(0) + anchors * coef(1), seq_length)
    }

    /// The corrected tokens yᵢ = ŷᵢ + b (ỹ_⌊i/k⌋ − ŷ_⌊i/k⌋k), from the predicted ones and the layer's
    /// output ỹ on the anchors.
    ///
    /// # Shapes
    ///
    /// - predicted: `[B, T, d]`
    /// - computed: `[B, ⌈T/k⌉, d]`
    /// - output: `[B, T, d]`
    pub fn correct(&self, predicted: Tensor<3>, computed: Tensor<3>) -> Tensor<3> {
        let [_, seq_length, _] = predicted.dims();
        let predicted = windows(predicted, self.stride);
        let error = computed.unsqueeze_dim::<4>(2) - predicted.clone().narrow(2, 0, 1);
        let gain = self.correction_coef.val().cast(error.dtype()).reshape([1, 1, 1, 1]);
        flatten(predicted + error * gain, seq_length)
    }
}

/// Runs `layer` on every `stride`-th token and lets the others pass unchanged: the baseline of
/// [`SequenceAltUp`] without predict and correct.
///
/// # Shapes
///
/// - x: `[B, T, d]`
/// - layer: `[B, ⌈T/k⌉, d]` to `[B, ⌈T/k⌉, d]`
/// - output: `[B, T, d]`
///
/// # Panics
///
/// Panics if the stride is 0 or `layer` changes the shape.
pub fn stride_and_skip(
    x: Tensor<3>,
    stride: usize,
    layer: impl FnOnce(Tensor<3>) -> Tensor<3>,
) -> Tensor<3> {
    check_stride(stride);
    let [_, seq_length, _] = x.dims();
    let computed = compute_on_anchors(&x, stride, layer);
    let windows = windows(x, stride);
    let [_, _, stride, _] = windows.dims();
    if stride == 1 {
        return computed;
    }
    let skipped = windows.narrow(2, 1, stride - 1);
    flatten(Tensor::cat(vec![computed.unsqueeze_dim::<4>(2), skipped], 2), seq_length)
}

/// Averages each window of `stride` tokens into one token. This baseline shortens the sequence; nothing lengthens it
/// again.
///
/// Sums are f32 if x is f16 or bf16. Padding doesn't count: a window with some padding averages its real tokens, and a
/// window of padding alone is padding.
///
/// # Shapes
///
/// - x: `[B, T, d]`
/// - padding: `[B, T]`, true at padding; `None` if there is no padding
/// - output: `[B, ⌈T/k⌉, d]` and `[B, ⌈T/k⌉]`
///
/// # Panics
///
/// Panics if the stride is 0.
pub fn average_pool(
    x: Tensor<3>,
    padding: Option<Tensor<2, Bool>>,
    stride: usize,
) -> (Tensor<3>, Option<Tensor<2, Bool>>) {
    check_stride(stride);
    let [batch_size, seq_length, _] = x.dims();
    let dtype = x.dtype();
    let x = at_least_f32(x);
    let real = match &padding {
        Some(padding) => padding.clone().bool_not().float().cast(x.dtype()),
        None => Tensor::ones([batch_size, seq_length], (&x.device(), x.dtype())),
    };
    let weights = windows(real.unsqueeze_dim::<3>(2), stride); // [B, ⌈T/k⌉, k, 1]
    let counts = weights.clone().sum_dim(2);
    let sums = (windows(x, stride) * weights).sum_dim(2);
    let pooled = (sums / counts.clone().clamp_min(1.0)).squeeze_dim(2).cast(dtype);
    let empty = counts.squeeze_dim::<3>(2).squeeze_dim::<2>(2).equal_elem(0.0);
    (pooled, padding.map(|_| empty))
}

/// The anchors, every `stride`-th token from the first.
///
/// # Shapes
///
/// - x: `[B, T, d]`
/// - output: `[B, ⌈T/k⌉, d]`
///
/// # Panics
///
/// Panics if the stride is 0.
pub fn anchors(x: Tensor<3>, stride: usize) -> Tensor<3> {
    check_stride(stride);
    windows(x, stride).narrow(2, 0, 1).squeeze_dim(2)
}

fn check_stride(stride: usize) {
    assert!(stride > 0, "The stride must be at least 1. Got stride={stride}");
}

fn compute_on_anchors(
    x: &Tensor<3>,
    stride: usize,
    layer: impl FnOnce(Tensor<3>) -> Tensor<3>,
) -> Tensor<3> {
    let anchors = anchors(x.clone(), stride);
    let shape = anchors.dims();
    let computed = layer(anchors);
    assert_eq!(
        computed.dims(),
        shape,
        "The layer must keep the shape of its input. Got {:?} for {shape:?}",
        computed.dims()
    );
    computed
}

/// `[B, T, d]` to `[B, ⌈T/k⌉, k, d]`; the last window is filled with zeros.
fn windows(x: Tensor<3>, stride: usize) -> Tensor<4> {
    let [batch_size, seq_length, width] = x.dims();
    let stride = stride.min(seq_length.max(1)); // A longer one has the same single window.
    let count = seq_length.div_ceil(stride);
    let missing = count * stride - seq_length;
    let whole = match missing {
        0 => x,
        _ => {
            let zeros = Tensor::zeros([batch_size, missing, width], (&x.device(), x.dtype()));
            Tensor::cat(vec![x, zeros], 1)
        }
    };
    whole.reshape([batch_size, count, stride, width])
}

/// `[B, ⌈T/k⌉, k, d]` to `[B, T, d]`
fn flatten(windows: Tensor<4>, seq_length: usize) -> Tensor<3> {
    let [batch_size, count, stride, width] = windows.dims();
    let whole = windows.reshape([batch_size, count * stride, width]);
    if count * stride == seq_length { whole } else { whole.narrow(1, 0, seq_length) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Distribution, Tolerance};

    /// Batch 1, width 1.
    fn tokens(values: &[f32]) -> Tensor<3> {
        Tensor::from_data(TensorData::new(values.to_vec(), [1, values.len(), 1]), &Device::flex())
    }

    fn values(tensor: Tensor<3>) -> Vec<f32> {
        tensor.into_data().iter::<f32>().collect()
    }

    /// a₁ = 2, a₂ = 3, b = 0.5, stride 2, L(x) = 10 x, on 1, 2, 3: ŷ = 5, 7, 15; ỹ = 10, 30;
    /// y = 5 + 0.5 (10 − 5), 7 + 0.5 (10 − 5), 15 + 0.5 (30 − 15).
    #[test]
    fn predict_and_correct_by_hand() {
        let mut sequence = SequenceAltUpConfig::new(2).init(&Device::flex());
        let device = Device::flex();
        sequence.prediction_coefs =
            Param::from_tensor(Tensor::from_data(TensorData::from([2f32, 3.0]), &device));
        sequence.correction_coef =
            Param::from_tensor(Tensor::from_data(TensorData::from([0.5f32]), &device));
        assert_eq!(values(sequence.predict(tokens(&[1.0, 2.0, 3.0]))), [5.0, 7.0, 15.0]);
        let output = sequence.forward(tokens(&[1.0, 2.0, 3.0]), |x| x * 10.0);
        assert_eq!(values(output), [7.5, 9.5, 22.5]);
    }

    #[test]
    fn stride_one_at_the_start_is_the_layer() {
        let device = Device::flex();
        device.seed(1);
        let x = Tensor::<3>::random([2, 7, 5], Distribution::Normal(0.0, 1.0), &device);
        let layer = |x: Tensor<3>| x.clone() * x;
        let sequence = SequenceAltUpConfig::new(1).init(&device);
        let output = sequence.forward(x.clone(), layer).into_data();
        output.assert_approx_eq(&layer(x.clone()).into_data(), Tolerance::<f32>::default());
        let skipped = stride_and_skip(x.clone(), 1, layer).into_data();
        skipped.assert_approx_eq(&layer(x).into_data(), Tolerance::<f32>::default());
    }

    #[test]
    fn skipped_tokens_pass_unchanged() {
        let output = stride_and_skip(tokens(&[1.0, 2.0, 3.0, 4.0, 5.0]), 2, |x| x * 10.0);
        assert_eq!(values(output), [10.0, 2.0, 30.0, 4.0, 50.0]);
        assert_eq!(values(anchors(tokens(&[1.0, 2.0, 3.0, 4.0, 5.0]), 3)), [1.0, 4.0]);
    }

    #[test]
    fn pooling_averages_what_is_no_padding() {
        let (pooled, none) = average_pool(tokens(&[1.0, 3.0, 5.0]), None, 2);
        assert_eq!(values(pooled), [2.0, 5.0]);
        assert!(none.is_none());
        let padding = [[false, false, false, true, true, true]];
        let padding = Tensor::<2, Bool>::from_data(TensorData::from(padding), &Device::flex());
        let (pooled, padding) =
            average_pool(tokens(&[1.0, 3.0, 5.0, 9.0, 9.0, 9.0]), Some(padding), 2);
        assert_eq!(values(pooled), [2.0, 5.0, 0.0]);
        let padding: Vec<bool> = padding.unwrap().into_data().iter::<bool>().collect();
        assert_eq!(padding, [false, false, true]);
    }

    /// At lengths that the stride divides and does not, and at a stride beyond the length.
    #[test]
    fn half_precision_is_f32_rounded() {
        let device = Device::flex();
        device.seed(1);
        for (length, stride) in [(6, 2), (5, 2), (5, 3), (3, usize::MAX)] {
            let x = Tensor::<3>::random([2, length, 4], Distribution::Normal(0.0, 1.0), &device);
            let layer = |x: Tensor<3>| x.clone() * x;
            let sequence = SequenceAltUpConfig::new(stride).init(&device);
            let check = |f: &dyn Fn(Tensor<3>) -> Tensor<3>| {
                let output = f(x.clone().cast(DType::BF16));
                assert_eq!(output.dtype(), DType::BF16);
                let expected = f(x.clone().cast(DType::BF16).cast(DType::F32)).into_data();
                let output = output.cast(DType::F32).into_data();
                output.assert_approx_eq(&expected, Tolerance::<f32>::rel_abs(0.03, 0.03));
            };
            check(&|x| sequence.forward(x, layer));
            check(&|x| {
                let computed = layer(anchors(x.clone(), stride));
                sequence.correct(sequence.predict(x), computed)
            });
            check(&|x| stride_and_skip(x, stride, layer));
            check(&|x| average_pool(x, None, stride).0);
        }
    }

    #[test]
    #[should_panic(expected = "Got stride=0")]
    fn a_stride_of_zero_is_a_bug() {
        SequenceAltUpConfig::new(0).init(&Device::flex());
    }

    #[test]
    #[should_panic(expected = "must keep the shape")]
    fn a_layer_that_changes_the_shape_is_a_bug() {
        stride_and_skip(tokens(&[1.0, 2.0, 3.0]), 2, |x| x.narrow(1, 0, 1));
    }
}
