//! Wraps a layer of one's own in AltUp, and trains the stack to remember.
//!
//! The task: a sequence of random tokens goes in, and each position must say the token three
//! positions before it. The layer knows nothing of AltUp: it maps `[B, T, d]` to `[B, T, d]`.
//!
//! ```sh
//! cargo run --release -p altup-examples --bin wrap_your_layer
//! ```

use altup_core::{AltUp, AltUpConfig, BlockSelection, concatenate_blocks, split_blocks};
use burn::module::Module;
use burn::nn::conv::{Conv1d, Conv1dConfig};
use burn::nn::loss::CrossEntropyLossConfig;
use burn::nn::{
    Embedding, EmbeddingConfig, Linear, LinearConfig, PaddingConfig1d, RmsNorm, RmsNormConfig,
};
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::activation::gelu;
use burn::tensor::{Device, Distribution, Int, Tensor};

const NUM_BLOCKS: usize = 2;
const WIDTH: usize = 32;
const LAYERS: usize = 4;
const VOCABULARY: usize = 16;
const LAG: usize = 3;

/// The layer: each position mixes with the two before it.
#[derive(Module, Debug)]
struct MyLayer {
    norm: RmsNorm,
    convolution: Conv1d,
}

impl MyLayer {
    fn new(device: &Device) -> Self {
        let convolution = Conv1dConfig::new(WIDTH, WIDTH, 3)
            .with_padding(PaddingConfig1d::Explicit(2, 0))
            .init(device);
        Self { norm: RmsNormConfig::new(WIDTH).init(device), convolution }
    }

    /// `[B, T, d]` to `[B, T, d]`
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let channels_first = self.norm.forward(x.clone()).swap_dims(1, 2);
        x + gelu(self.convolution.forward(channels_first)).swap_dims(1, 2)
    }
}

/// A stack of them with a representation K times as wide as each layer.
#[derive(Module, Debug)]
struct MyModel {
    embedding: Embedding,
    layers: Vec<MyLayer>,
    altup: Vec<AltUp>,
    output: Linear,
}

impl MyModel {
    fn new(device: &Device) -> Self {
        Self {
            embedding: EmbeddingConfig::new(VOCABULARY, NUM_BLOCKS * WIDTH).init(device),
            layers: (0..LAYERS).map(|_| MyLayer::new(device)).collect(),
            altup: (0..LAYERS).map(|_| AltUpConfig::new(NUM_BLOCKS).init(device)).collect(),
            output: LinearConfig::new(NUM_BLOCKS * WIDTH, VOCABULARY).init(device),
        }
    }

    /// `[B, T]` to `[B, T, vocabulary]`
    fn forward(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        let mut state = split_blocks(self.embedding.forward(tokens), NUM_BLOCKS);
        for (index, (layer, altup)) in self.layers.iter().zip(&self.altup).enumerate() {
            let block = BlockSelection::Alternating.block(index, NUM_BLOCKS);
            state = altup.forward(state, block, |x| layer.forward(x));
        }
        self.output.forward(concatenate_blocks(state))
    }
}

fn main() {
    let device = Device::flex().autodiff();
    device.seed(0);
    let mut model = MyModel::new(&device);
    let mut optimizer = AdamWConfig::new().init();
    let loss_function = CrossEntropyLossConfig::new().init(&device);
    let (batch_size, length) = (16, 24);
    for step in 0..=300 {
        let uniform = Distribution::Uniform(0.0, VOCABULARY as f64);
        let tokens = Tensor::<2, Int>::random([batch_size, length], uniform, &device);
        let targets = tokens.clone().narrow(1, 0, length - LAG);
        let logits = model.forward(tokens).narrow(1, LAG, length - LAG);
        let count = batch_size * (length - LAG);
        let loss =
            loss_function.forward(logits.reshape([count, VOCABULARY]), targets.reshape([count]));
        if step % 50 == 0 {
            println!("step {step:>3}  loss {:.4}", loss.clone().into_scalar::<f32>());
        }
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        model = optimizer.step(3e-3, model, gradients);
    }
    for (layer, altup) in model.altup.iter().enumerate() {
        let p: Vec<f32> = altup.prediction_coefs.val().into_data().iter::<f32>().collect();
        let g: Vec<f32> = altup.correction_coefs.val().into_data().iter::<f32>().collect();
        println!("layer {layer}: p = {p:.3?}, g = {g:.3?}");
    }
}
