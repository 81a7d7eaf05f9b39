//! Fine-tunes a Hugging Face T5 in a loop of one's own, with altup-models and altup-optim alone: part of the weights
//! frozen, dropout, Adafactor at T5's constant rate.
//!
//! The task, made up here so that nothing must be downloaded: a target is its input in reverse.
//!
//! ```sh
//! cargo run --release -p altup-examples --bin fine_tune [STEPS] [DIR]
//! ```
//!
//! DIR is a Hugging Face directory of a T5; without one a tiny T5 with fresh weights is written and read as one.

use altup_models::{
    GenerationConfig, ModelDirectory, Noise, T5, T5Config, cross_entropy_sum, freeze, generate,
    size,
};
use altup_optim::OptimizerConfig;
use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const BATCH_SIZE: usize = 32;
const LENGTH: usize = 4;
/// Tokens that occur; 0 is padding and 1 the end.
const TOKENS: std::ops::Range<u32> = 2..12;
const RATE: f64 = 1e-3;

/// An input and what is to come of it, both with the end token.
fn example(rng: &mut ChaCha8Rng) -> (Vec<u32>, Vec<u32>) {
    let input: Vec<u32> = (0..LENGTH).map(|_| rng.random_range(TOKENS)).collect();
    let target = input.iter().rev().copied();
    let target: Vec<u32> = target.chain([1]).collect();
    ([input.as_slice(), &[1]].concat(), target)
}

fn tensor(rows: &[Vec<u32>], device: &Device) -> Tensor<2, Int> {
    let ids: Vec<i32> = rows.iter().flatten().map(|&id| id as i32).collect();
    Tensor::from_data(TensorData::new(ids, [rows.len(), rows[0].len()]), device)
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
    let (_, model) = directory.load_as(config, &device)?;
    // Position biases stay as they are; any rule over names, shapes and roles of parameters does.
    let mut model = freeze(model, |parameter| parameter.name.contains("relative_attention_bias"));
    let mut optimizer = OptimizerConfig::default().init();
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    for step in 0..=steps {
        let (inputs, targets): (Vec<_>, Vec<_>) =
            (0..BATCH_SIZE).map(|_| example(&mut rng)).unzip();
        let (input_ids, labels) = (tensor(&inputs, &device), tensor(&targets, &device));
        let noise = Noise::training(0, step, 0);
        let (logits, _) = model.forward_with_routing(input_ids, None, labels.clone(), noise);
        let loss = cross_entropy_sum(logits, labels) / (BATCH_SIZE * (LENGTH + 1)) as f64;
        if step % 100 == 0 {
            println!("step {step:>3}  loss {:.4}", loss.clone().into_scalar::<f32>());
        }
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        // Relative to the size of each parameter, as Adafactor takes it.
        model = optimizer.step(10.0 * RATE, model, gradients);
    }
    let right = exact_matches(&model.valid(), &mut rng)?;
    println!("exact matches {:.0} %", 100.0 * right);
    Ok(())
}
