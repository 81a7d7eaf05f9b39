//! What experts and a reduced sequence cost, beside what their arithmetic does.
//!
//! ```sh
//! cargo run --release -p altup-benches --bin extensions
//! ```
//!
//! At the size `altup-s`, on each CPU backend. Every round measures each side once, one after the other, so
//! that what else the machine does falls on all of them; a figure is the median of the rounds. The floor
//! is the ratio of the operations (`forward_cost`): what a side would take if time followed them alone.

// Burn marks ndarray, which it will drop, as deprecated; while it ships it is compared here.
#![allow(deprecated)]

use altup_core::{BlockSelection, Widening};
use altup_models::{
    AltUpModelConfig, EncoderSequence, MoeConfig, MoeMode, Noise, SequenceMethod, T5, T5Config,
    cross_entropy_sum, forward_cost, size,
};
use altup_train::statistics::median;
use burn::tensor::{Device, Distribution, Int, Tensor};
use std::hint::black_box;
use std::time::Instant;

const ROUNDS: usize = 5;
const BATCH_SIZE: usize = 2;
const INPUT_LENGTH: usize = 512;
const TARGET_LENGTH: usize = 114;

/// One side of a comparison.
struct Side {
    name: String,
    floor: f64,
    run: Box<dyn FnMut()>,
}

fn main() {
    altup_train::process::set_up();
    for (backend, device) in [("flex", Device::flex()), ("ndarray", Device::ndarray())] {
        encoders(backend, device.clone());
        experts(backend, device.autodiff());
    }
}

fn base() -> T5Config {
    T5Config { vocab_size: 4096, dropout_rate: 0.0, ..size("altup-s").unwrap_or_default() }
}

/// The encoder's forward pass: whole, and with its inner layers on every fourth token.
fn encoders(backend: &str, device: Device) {
    let whole = base();
    let reduced = |method| {
        let sequence = EncoderSequence { method, stride: 4, first_layer: 1, last_layer: None };
        let altup = AltUpModelConfig {
            num_blocks: 1,
            selection: BlockSelection::Alternating,
            widening: Widening::Sum,
            encoder_sequence: Some(sequence),
        };
        T5Config { altup: Some(altup), ..whole.clone() }
    };
    let encoder_flops = |config: &T5Config| -> f64 {
        let parts = forward_cost(config, INPUT_LENGTH as u64, 1);
        let of_encoder = |part: &str| part.starts_with("encoder") || part.starts_with("Sequence");
        parts.iter().filter(|part| of_encoder(part.part)).map(|part| part.flops as f64).sum()
    };
    let ids = ids(INPUT_LENGTH, &device);
    let side = |name: &str, config: T5Config| {
        let model = config.init(0, &device);
        let ids = ids.clone();
        Side {
            name: name.to_owned(),
            floor: encoder_flops(&config) / encoder_flops(&whole),
            run: Box::new(move || finish(model.encode(ids.clone(), None).hidden)),
        }
    };
    let sides = vec![
        side("whole", whole.clone()),
        side("Sequence-AltUp", reduced(SequenceMethod::Altup)),
        side("stride and skip", reduced(SequenceMethod::StrideAndSkip)),
        side("average pooling", reduced(SequenceMethod::AveragePool)),
    ];
    compare(
        &format!(
            "{backend}: encoder forward, [{BATCH_SIZE}, {INPUT_LENGTH}], stride 4, layers 1 to 2"
        ),
        sides,
    );
}

/// The forward and backward pass of the whole model, with experts of width 16 beside every network.
fn experts(backend: &str, device: Device) {
    let dense = base();
    let flops = |config: &T5Config| -> f64 {
        let parts = forward_cost(config, INPUT_LENGTH as u64, TARGET_LENGTH as u64);
        parts.iter().map(|part| part.flops as f64).sum()
    };
    let (inputs, labels) = (ids(INPUT_LENGTH, &device), ids(TARGET_LENGTH, &device));
    let side = |name: String, config: T5Config| {
        let model = config.init(0, &device);
        let (inputs, labels) = (inputs.clone(), labels.clone());
        Side {
            name,
            floor: flops(&config) / flops(&dense),
            run: Box::new(move || step(&model, inputs.clone(), labels.clone())),
        }
    };
    let mut sides = vec![side("dense".into(), dense.clone())];
    for num_experts in [8, 32, 128, 256] {
        let moe = MoeConfig::new(num_experts, 16, MoeMode::Partial);
        let config = T5Config { moe: Some(moe), ..dense.clone() };
        sides.push(side(format!("{num_experts} experts of width 16"), config));
    }
    let shape = format!("[{BATCH_SIZE}, {INPUT_LENGTH}] and [{BATCH_SIZE}, {TARGET_LENGTH}]");
    compare(&format!("{backend}: forward and backward, {shape}"), sides);
}

fn step(model: &T5, inputs: Tensor<2, Int>, labels: Tensor<2, Int>) {
    let (logits, routing) =
        model.forward_with_routing(inputs, None, labels.clone(), Noise::training(0, 1, 0));
    let mut loss = cross_entropy_sum(logits, labels) / (BATCH_SIZE * TARGET_LENGTH) as f64;
    if let Some(auxiliary) = model.auxiliary_loss(&routing) {
        loss = loss + auxiliary;
    }
    let gradients = loss.backward();
    if let Some(gradient) = model.embedding.weight.val().grad(&gradients) {
        finish(gradient);
    }
}

/// Random tokens that are neither padding nor the end: `[BATCH_SIZE, length]`.
fn ids(length: usize, device: &Device) -> Tensor<2, Int> {
    Tensor::random([BATCH_SIZE, length], Distribution::Uniform(2.0, 4096.0), device)
}

/// Waits until a tensor is computed.
fn finish<const D: usize>(tensor: Tensor<D>) {
    black_box(tensor.into_data());
}

/// Measures the sides in turns and prints a row for each.
fn compare(title: &str, mut sides: Vec<Side>) {
    let mut seconds = vec![Vec::new(); sides.len()];
    for round in 0..=ROUNDS {
        for (side, seconds) in sides.iter_mut().zip(&mut seconds) {
            let started = Instant::now();
            (side.run)();
            // The first round warms up.
            if round > 0 {
                seconds.push(started.elapsed().as_secs_f64());
            }
        }
    }
    let medians: Vec<f64> = seconds.iter().map(|seconds| median(seconds)).collect();
    println!(
        "\n{title}, median of {ROUNDS} rounds\n\n| | ms | to the first | floor |\n|---|---|---|---|"
    );
    for (side, seconds) in sides.iter().zip(&medians) {
        let ratio = seconds / medians[0];
        println!("| {} | {:.0} | {ratio:.2} | {:.2} |", side.name, 1e3 * seconds, side.floor);
    }
}
