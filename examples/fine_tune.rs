//! Fine-tunes a Hugging Face T5 in a loop of one's own, with altup-models and altup-optim alone: part of the weights
//! frozen, dropout, Adafactor at a constant rate, padding, and the result saved.
//!
//! The task, made up here so that nothing must be downloaded: a target is its input in reverse. Lengths differ, so rows
//! are padded.
//!
//! ```sh
//! cargo run --release -p altup-examples --bin fine_tune [STEPS] [DIR OUTPUT]
//! ```
//!
//! DIR is a Hugging Face directory of a T5, OUTPUT a folder for the fine-tuned one; without them a tiny T5 with fresh
//! weights is written and read in a temporary folder.

use altup_models::{
    GenerationConfig, ModelDirectory, Noise, Role, T5, T5Config, cross_entropy_sum, freeze,
    generate, size,
};
use altup_optim::OptimizerConfig;
use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const BATCH_SIZE: usize = 32;
/// Tokens of the longest input, without the end token.
const LENGTH: usize = 4;
/// Tokens that occur; 0 is padding and 1 the end.
const TOKENS: std::ops::Range<u32> = 2..12;
/// Relative to each parameter's size, as Adafactor takes it. T5 is fine-tuned at 1e-3; fresh weights take more.
const RATE: f64 = 0.01;

/// An input and what is to come of it, both with the end token.
fn example(rng: &mut ChaCha8Rng) -> (Vec<u32>, Vec<u32>) {
    let length = rng.random_range(LENGTH / 2..=LENGTH);
    let input: Vec<u32> = (0..length).map(|_| rng.random_range(TOKENS)).collect();
    let target = input.iter().rev().copied();
    let target: Vec<u32> = target.chain([1]).collect();
    ([input.as_slice(), &[1]].concat(), target)
}

/// Rows of `LENGTH + 1` tokens, padded with 0.
fn tensor(rows: &[Vec<u32>], device: &Device) -> Tensor<2, Int> {
    let mut ids = vec![0i32; rows.len() * (LENGTH + 1)];
    for (row, padded) in rows.iter().zip(ids.chunks_mut(LENGTH + 1)) {
        padded.iter_mut().zip(row).for_each(|(padded, &id)| *padded = id as i32);
    }
    Tensor::from_data(TensorData::new(ids, [rows.len(), LENGTH + 1]), device)
}

/// The share of targets that greedy decoding gets right to the last token.
fn exact_matches(model: &T5, rng: &mut ChaCha8Rng) -> anyhow::Result<f64> {
    let (inputs, targets): (Vec<_>, Vec<_>) = (0..100).map(|_| example(rng)).unzip();
    let generated = generate(model, &inputs, &GenerationConfig::greedy(LENGTH + 1))?;
    let right =
        generated.iter().zip(&targets).filter(|(found, target)| found[0].tokens == **target);
    Ok(right.count() as f64 / targets.len() as f64)
}

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let steps: u64 = arguments.next().map_or(Ok(400), |steps| steps.parse())?;
    let device = Device::flex().autodiff();
    let folder = tempfile::tempdir()?;
    let directory = match arguments.next() {
        Some(path) => ModelDirectory::new(path),
        None => {
            let config = T5Config { vocab_size: 64, ..size("tiny").expect("a named size") };
            let directory = ModelDirectory::new(folder.path());
            directory.save(&config, &config.init(0, &device))?;
            directory
        }
    };
    let config = T5Config { dropout_rate: 0.1, ..directory.config()? };
    let (config, model) = directory.load_as(config, &device)?;
    // Freeze the position biases. A rule may use name, shape, role, stack or layer.
    let mut model = freeze(model, |parameter| parameter.role == Role::PositionBias);
    let mut optimizer = OptimizerConfig::default().init();
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    for step in 0..=steps {
        let (inputs, targets): (Vec<_>, Vec<_>) =
            (0..BATCH_SIZE).map(|_| example(&mut rng)).unzip();
        let (input_ids, labels) = (tensor(&inputs, &device), tensor(&targets, &device));
        let padding = input_ids.clone().equal_elem(0);
        let tokens: usize = targets.iter().map(Vec::len).sum();
        let noise = Noise::training(0, step, 0); // what dropout draws
        let logits = model.forward_train(input_ids, Some(padding), labels.clone(), noise);
        let loss = cross_entropy_sum(logits, labels) / tokens as f64;
        if step % 100 == 0 {
            println!("step {step:>3}  loss {:.4}", loss.clone().into_scalar::<f32>());
        }
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        model = optimizer.step(RATE, model, gradients);
    }
    let model = model.valid();
    let right = exact_matches(&model, &mut rng)?;
    println!("exact matches {:.0} %", 100.0 * right);
    let output = arguments.next().map_or_else(|| folder.path().join("fine-tuned"), Into::into);
    ModelDirectory::new(output).save(&config, &model)?;
    Ok(())
}
