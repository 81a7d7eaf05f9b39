//! How many kernels of ours a layer launches on a GPU, so that their number can't creep up unseen. What Burn launches,
//! products and sums of residuals, isn't counted.

use altup_backend::cube::launches;
use altup_core::AltUpConfig;
use burn::tensor::{Device, DeviceKind, Distribution, Tensor};

use crate::{
    Activation, AttentionConfig, AttentionLayerConfig, EncoderBlockConfig, FeedForwardConfig,
    FeedForwardLayerConfig, Noise,
};

/// Launches of a forward and of a backward pass.
fn count(output: impl FnOnce() -> Tensor<3>) -> [usize; 2] {
    let start = launches();
    let output = output();
    let forward = launches() - start;
    output.sum().backward();
    [forward, launches() - start - forward]
}

/// Forward: each norm, the heads of keys and values, the softmax, the gate. Backward: two for each norm, the heads twice,
/// the softmax, the gate, and the sum of the position bias's gradient over the batch.
#[test]
fn a_layer_launches_few_kernels() {
    let device = Device::wgpu(DeviceKind::DefaultDevice).autodiff();
    let attention = AttentionConfig::new(16, 2, 8);
    let feed_forward = FeedForwardConfig::new(16, 32, Activation::GatedGelu);
    let layer = EncoderBlockConfig::new(
        AttentionLayerConfig::new(attention),
        FeedForwardLayerConfig::new(16).with_feed_forward(Some(feed_forward)),
    )
    .init(&device);
    let x = || Tensor::<3>::random([2, 5, 16], Distribution::Default, &device).require_grad();
    let bias = || Tensor::<4>::random([1, 2, 5, 5], Distribution::Default, &device);
    let dense = count(|| layer.forward(x(), Some(bias().require_grad()), Noise::none()));
    assert_eq!(dense, [5, 9]);
    // Nobody asks for the gradient of a mask.
    assert_eq!(count(|| layer.forward(x(), Some(bias()), Noise::none())), [5, 8]);

    // AltUp adds its update, one kernel each way.
    let altup = AltUpConfig::new(2).init(&device);
    let state = Tensor::<4>::random([2, 2, 5, 16], Distribution::Default, &device).require_grad();
    let widened = count(|| {
        let bias = bias().require_grad();
        let state = altup.forward(state, 0, |x| layer.forward(x, Some(bias), Noise::none()));
        state.sum_dim(0).squeeze_dim(0)
    });
    assert_eq!(widened, [6, 10]);
}
