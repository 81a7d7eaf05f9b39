//! The memory of a training step: estimated, measured, and running out.

#![cfg(target_os = "linux")] // Others don't tell the memory of a process.

mod support;

use altup_models::{AltUpModelConfig, ModelDirectory, StepShape, T5Config, Widening, size};
use altup_optim::OptimizerKind;
use altup_train::bench::{BenchBatch, Measured, Work};
use altup_train::device;
use altup_train::memory_estimate::{MemoryEstimate, Workload};
use altup_train::precision::Precision;
use std::process::Command;
use support::{Workspace, fails, succeeds};

/// An estimate is between a measured peak divided by this and that times this, the program itself aside. What it
/// doesn't know of is what an allocator loses between tensors, and which of a few temporary ones overlap.
const FACTOR: f64 = 1.15;

fn dense(layers: usize) -> T5Config {
    T5Config {
        vocab_size: 4096,
        d_model: 192,
        d_kv: 64,
        num_heads: 3,
        d_ff: 768,
        num_layers: layers,
        num_decoder_layers: Some(layers),
        dropout_rate: 0.1,
        ..size("tiny").unwrap()
    }
}

/// The peak of AdamW's steps in bytes: measured in a process of its own, and estimated.
fn peaks(
    workspace: &Workspace,
    config: &T5Config,
    [rows, input_length, target_length]: [usize; 3],
    again: bool,
) -> [f64; 2] {
    let lengths = [input_length, target_length];
    let model = workspace.path("model");
    ModelDirectory::new(&model).save(config, &config.init(1, &device::cpu())).unwrap();
    let batch = BenchBatch::random(config.vocab_size, rows, lengths, 2, 1);
    let batch = workspace.write("batch.json", serde_json::to_vec(&batch).unwrap());
    let (model, batch) = (model.to_str().unwrap(), batch.to_str().unwrap());
    let options = ["measure", "--model", model, "--batch", batch, "--works", "train"];
    let options = [&options[..], &["--repeats", "1", "--dropout", "0.1"]].concat();
    let again_option: &[&str] = if again { &["--recompute-layers"] } else { &[] };
    let output = workspace.altup(&[&options, again_option].concat()).output().unwrap();
    let measured: Measured = serde_json::from_slice(&succeeds(output).stdout).unwrap();
    let workload = Workload {
        shape: StepShape {
            batch_size: rows as u64,
            input_length: input_length as u64,
            target_length: target_length as u64,
            padded: false,
            value_bytes: 4,
            on_gpu: false,
            recompute_layers: again,
        },
        precision: Precision::F32,
        optimizer: OptimizerKind::AdamW,
        gradient_accumulation: 1,
    };
    let estimate = MemoryEstimate::new(config, &workload, |_| true);
    [measured.measurements[&Work::Train].peak_bytes.unwrap() as f64, estimate.peak as f64]
}

#[test]
fn a_peak_is_as_estimated() {
    let workspace = Workspace::new();
    // One row of a model of one layer: what is left is the program.
    let [program, of_its_step] = peaks(&workspace, &dense(1), [1, 192, 48], false);
    let program = program - of_its_step;
    let altup = AltUpModelConfig::new(2, Widening::Embedding);
    let widened = T5Config { altup: Some(altup), ..dense(4) };
    let large_vocabulary = T5Config { vocab_size: 16_384, ..dense(1) };
    // The last number is the part of a peak that may be left where layers are computed again: that is what it is for.
    for (name, config, shape, left) in [
        ("dense", dense(4), [16, 192, 48], 0.6),
        ("AltUp", widened.clone(), [16, 192, 48], 0.65),
        ("dense, long targets", dense(4), [16, 96, 192], 0.5),
        ("AltUp, long targets", widened, [16, 96, 192], 0.55),
        ("a large vocabulary", large_vocabulary, [16, 64, 96], 0.9),
    ] {
        let [whole, again] = [false, true].map(|again| {
            let [measured, estimated] = peaks(&workspace, &config, shape, again);
            let measured = measured - program;
            let ratio = estimated / measured;
            assert!(
                (FACTOR.recip()..FACTOR).contains(&ratio),
                "{name}, layers again: {again}: {estimated} for {measured}"
            );
            measured
        });
        assert!(again < left * whole, "{name}: {again} of {whole}");
    }
}

/// With 1 GB of memory of its own, a batch of 8192 rows can't be had: one line says so, and what to do.
#[test]
fn running_out_of_memory_is_one_error() {
    let workspace = Workspace::new();
    let altup = workspace.altup(&[]);
    let program = altup.get_program().to_owned();
    let script = "ulimit -d 1000000; exec \"$0\" \"$@\"";
    let mut limited = Command::new("sh");
    limited.args(["-c", script]).arg(program);
    limited.args(["train", "--config", "config.toml", "--train", "corpus.txt", "--output", "run"]);
    limited.args(["--quiet", "--set", "training.batch_size=8192"]);
    for (name, value) in altup.get_envs() {
        limited.env(name, value.unwrap_or_default());
    }
    let message = fails(limited.current_dir(altup.get_current_dir().unwrap()).output().unwrap());
    assert!(message.contains("out of memory"), "{message}");
    assert!(message.contains("lower training.batch_size"), "{message}");
}
