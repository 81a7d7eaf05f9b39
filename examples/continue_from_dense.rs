//! Makes a Recycled-AltUp of a trained dense T5, which loses nothing by it, and trains on.
//!
//! ```sh
//! cargo run --release -p altup-examples --bin continue_from_dense
//! cargo run --release -p altup-examples --bin continue_from_dense 150 DIR
//! ```
//!
//! The first argument is the number of steps. DIR is a dense Hugging Face directory with a `tokenizer.json`. Without
//! one, a tiny T5 is trained first.

use altup_data::{
    Corpus, OnError, PrepareOptions, PretrainingData, SpanCorruption, TextTokenizer, TokenStore,
};
use altup_models::{AltUpModelConfig, ModelDirectory, T5, T5Config, Widening, size, widen};
use altup_optim::OptimizerConfig;
use altup_train::evaluation::evaluate;
use altup_train::learner::{Learner, ToDevice};
use burn::module::Module;
use burn::tensor::Device;
use burn::train::TrainStep;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

const BATCH_SIZE: usize = 8;
const LEARNING_RATE: f64 = 0.01; // relative to each parameter's size, as Adafactor takes it

fn main() -> anyhow::Result<()> {
    let device = Device::flex().autodiff();
    let corpus = Corpus::cargo_sources(4 << 20)?;
    let mut arguments = std::env::args().skip(1);
    let steps = arguments.next().map_or(Ok(150), |steps| steps.parse())?;
    let path = arguments.next();
    let (tokenizer, config, dense) = match &path {
        Some(path) => {
            let directory = ModelDirectory::new(path);
            let tokenizer = TextTokenizer::load(&directory.tokenizer())?;
            let (config, model) = directory.load(&device)?;
            (tokenizer, config, model)
        }
        None => {
            let tokenizer = TextTokenizer::train(&corpus, 1024, 1 << 20, OnError::Stop)?;
            let vocab_size = tokenizer.vocab_size().next_multiple_of(64);
            let config =
                T5Config { vocab_size, dropout_rate: 0.0, ..size("tiny").expect("a named size") };
            let model = config.init(0, &device);
            (tokenizer, config, model)
        }
    };
    let folder = tempfile::tempdir()?; // of the tokens, which stay mapped from it
    let (train, valid) = data(&corpus, &tokenizer, folder.path())?;

    let dense = match path {
        Some(_) => dense,
        None => train_on(dense, &train, 0..steps, &device),
    };
    println!("dense               validation loss {:.4}", loss(&dense, &valid, &device));

    let recycled = AltUpModelConfig::new(2, Widening::Recycled);
    let (_, recycled) = widen(&config, &dense, recycled, &device);
    println!("Recycled-AltUp K=2  validation loss {:.4}", loss(&recycled, &valid, &device));

    // Both go on for as many steps, on the same examples.
    let dense = train_on(dense, &train, steps..2 * steps, &device);
    let recycled = train_on(recycled, &train, steps..2 * steps, &device);
    println!("\n{steps} steps later");
    println!("dense               validation loss {:.4}", loss(&dense, &valid, &device));
    println!("Recycled-AltUp K=2  validation loss {:.4}", loss(&recycled, &valid, &device));
    if let Some(altup) = &recycled.encoder.blocks[0].altup {
        let p: Vec<f32> = altup.prediction_coefs.val().into_data().iter::<f32>().collect();
        let g: Vec<f32> = altup.correction_coefs.val().into_data().iter::<f32>().collect();
        println!("first encoder layer: p = {p:.4?}, g = {g:.4?}");
    }
    Ok(())
}

/// Examples to train on and to validate on.
fn data(
    corpus: &Corpus,
    tokenizer: &TextTokenizer,
    folder: &Path,
) -> anyhow::Result<(PretrainingData, PretrainingData)> {
    let corruption = Arc::new(SpanCorruption { input_length: 64, ..SpanCorruption::default() });
    let store = TokenStore::new(folder);
    let (train, valid) = corpus.clone().split(10);
    let tokens = |corpus: &Corpus| {
        store.prepare(corpus, tokenizer, PrepareOptions::default(), &mut |_| ()).map(Arc::new)
    };
    let train = PretrainingData::training(tokens(&train)?, tokenizer, corruption.clone(), 0)?;
    let valid = PretrainingData::validation(tokens(&valid)?, tokenizer, corruption, 0)?;
    Ok((train, valid))
}

/// Trains on the batches of these steps.
fn train_on(model: T5, data: &PretrainingData, steps: Range<u64>, device: &Device) -> T5 {
    let mut learner = Learner { model };
    let mut optimizer = OptimizerConfig::default().init();
    for step in steps {
        let batch = data.batch(step * BATCH_SIZE as u64, BATCH_SIZE);
        let output = learner.step(batch.to_device(batch.num_targets(), device));
        learner = learner.optimize(&mut optimizer, LEARNING_RATE.into(), output.grads);
    }
    learner.model
}

fn loss(model: &T5, data: &PretrainingData, device: &Device) -> f64 {
    let learner = Learner { model: model.clone() }.valid();
    evaluate(&learner, data, 64, BATCH_SIZE, 0, &device.clone().without_autodiff()).loss
}
