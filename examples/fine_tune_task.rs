//! Fine-tunes a T5 on a benchmark task in a loop of one's own, and scores it.
//!
//! ```sh
//! cargo run --release -p altup-examples --bin fine_tune_task [STEPS] [DATA] [DIR]
//! ```
//!
//! DATA holds SST-2's `train.tsv` and `dev.tsv`; without it they are made rows. DIR is a Hugging Face directory of a T5;
//! without one it is a tiny T5 with fresh weights, which knows no other words than those rows have.

use altup_data::TextTokenizer;
use altup_data::tasks::{MaxLengths, Registry, TaskBatches, TokenizedTask};
use altup_models::{ModelDirectory, Noise, T5Config, cross_entropy_sum};
use altup_optim::OptimizerConfig;
use altup_train::learner::{DeviceBatch, ToDevice};
use altup_train::task_evaluation::{AnswerConfig, Selection, TaskSplit, answer};
use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::Device;
use std::path::PathBuf;

/// T5's, relative to the size of each parameter, times ten: the tiny model starts from nothing.
const RATE: f64 = 1e-2;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let steps: u64 = arguments.next().map_or(Ok(200), |steps| steps.parse())?;
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let data = arguments.next().map_or_else(|| here.join("reviews"), PathBuf::from);
    let tiny = here.join("../crates/altup-train/tests/fixtures/fine_tuning/model");
    let directory = ModelDirectory::new(arguments.next().map_or(tiny, PathBuf::from));

    let device = Device::flex().autodiff();
    let config = T5Config { dropout_rate: 0.1, ..directory.config()? };
    let (_, mut model) = directory.load_as(config, &device)?;
    let tokenizer = TextTokenizer::load(&directory.tokenizer())?;
    let task = Registry::standard().find("sst2")?;
    let examples = task.read(&data, "train")?;
    let train = TokenizedTask::training("sst2", &examples, &tokenizer, MaxLengths::default())?;
    let batches = TaskBatches::new(vec![(train, 1.0)], 16, 0);
    let mut optimizer = OptimizerConfig::default().init();
    for step in 1..=steps {
        let batch = batches.batch(step - 1);
        let targets = batch.num_targets();
        let DeviceBatch { input_ids, padding, labels, .. } = batch.to_device(targets, &device);
        let noise = Noise::training(0, step, 0);
        let (logits, _) = model.forward_with_routing(input_ids, padding, labels.clone(), noise);
        let loss = cross_entropy_sum(logits, labels) / targets as f64;
        if step.is_multiple_of(50) {
            println!("step {step:>3}  loss {:.4}", loss.clone().into_scalar::<f32>());
        }
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        model = optimizer.step(RATE, model, gradients);
    }

    let valid = TaskSplit::read(task, &data, "validation", &tokenizer, Selection::default())?;
    let answers = answer(&model.valid(), &tokenizer, &valid, &AnswerConfig::default())?;
    let scores = valid.score(&answers.texts())?;
    println!("accuracy {:.3}", scores.metrics.get("accuracy").unwrap_or(0.0));
    if let Some(&worst) = answers.mistakes(&valid).first() {
        let (example, answer) = (&valid.examples()[worst], &answers.answers[worst]);
        println!("worst mistake: {:?} -> {:?}", example.input, answer.output);
    }
    Ok(())
}
