//! Trains an AltUp T5 with Burn's own `SupervisedTraining`, its data loader and its metrics, instead
//! of this workspace's trainer: for those who have a Burn training setup already.
//!
//! ```sh
//! cargo run --release -p altup-examples --bin train_with_burn
//! ```

use altup_core::{BlockSelection, Widening};
use altup_data::{
    Corpus, OnError, PrepareOptions, PretrainingData, SpanCorruption, TextTokenizer, TokenStore,
};
use altup_models::{AltUpModelConfig, T5Config, size};
use altup_optim::OptimizerConfig;
use altup_train::learner::{FirstEpoch, Learner, LearnerBatcher};
use burn::data::dataloader::DataLoaderBuilder;
use burn::data::dataset::Dataset;
use burn::data::dataset::transform::PartialDataset;
use burn::tensor::Device;
use burn::train::metric::LossMetric;
use burn::train::{ExecutionStrategy, SupervisedTraining};
use std::sync::Arc;

const TRAIN_EXAMPLES: usize = 320;
const VALID_EXAMPLES: usize = 32;
const BATCH_SIZE: usize = 8;

fn main() -> anyhow::Result<()> {
    let device = Device::flex().autodiff();
    let folder = tempfile::tempdir()?;

    // Text that is on every machine which has built this: the crate sources Cargo has unpacked.
    let corpus = Corpus::cargo_sources(2 << 20)?;
    let tokenizer = TextTokenizer::train(&corpus, 1024, 1 << 20, OnError::Stop)?;
    let store = TokenStore::new(folder.path());
    let tokens = store.prepare(&corpus, &tokenizer, PrepareOptions::default(), &mut |_| ())?;
    let corruption = Arc::new(SpanCorruption { input_length: 64, ..SpanCorruption::default() });
    let data = PretrainingData::training(Arc::new(tokens), &tokenizer, corruption, 0)?;

    let config = T5Config {
        vocab_size: tokenizer.vocab_size().next_multiple_of(64),
        dropout_rate: 0.0,
        altup: Some(AltUpModelConfig {
            num_blocks: 2,
            selection: BlockSelection::Alternating,
            widening: Widening::Embedding,
            encoder_sequence: None,
        }),
        ..size("tiny").expect("a named size")
    };
    let learner = Learner { model: config.init(0, &device) };

    let (input_length, target_length) = (data.input_length(), data.target_length());
    let batcher = || LearnerBatcher::new(input_length, target_length, 0);
    let data = FirstEpoch(data);
    let loader = |examples: std::ops::Range<usize>| {
        let part = PartialDataset::new(data.clone(), examples.start, examples.end);
        DataLoaderBuilder::new(batcher())
            .batch_size(BATCH_SIZE)
            .set_device(device.clone())
            .build(part)
    };
    let last = TRAIN_EXAMPLES + VALID_EXAMPLES;
    anyhow::ensure!(data.len() >= last, "the corpus has only {} examples", data.len());
    let train = loader(0..TRAIN_EXAMPLES);
    let valid = loader(TRAIN_EXAMPLES..last);

    const LEARNING_RATE: f64 = 0.03;
    let result = SupervisedTraining::new(folder.path(), train, valid)
        .metric_train_numeric(LossMetric::new())
        .metric_valid_numeric(LossMetric::new())
        .num_epochs(2)
        .with_training_strategy(ExecutionStrategy::single(device).into())
        .with_application_logger(None)
        .summary()
        .launch(burn::train::Learner::new(
            learner,
            OptimizerConfig::default().init(),
            LEARNING_RATE,
        ));
    if let Some(error) = result.error {
        anyhow::bail!("training stopped: {error}");
    }
    Ok(())
}
