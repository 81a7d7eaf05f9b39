//! The AltUp update against the memory traffic that it needs: K+1 blocks read and K written.
//!
//! ```sh
//! cargo run --release -p altup-benches --bin altup_update
//! ```
//!
//! Every round measures each side once, one after the other, so that what else the machine does
//! falls on all of them; a figure is the median of the rounds. Rates count the bytes that an update
//! needs and no others, and stand beside that of a plain copy which moves as many: what an
//! implementation moves beyond them lowers its rate.

// Burn marks ndarray, which it will drop, as deprecated; while it ships it is compared here.
#![allow(deprecated)]

use altup_core::{AltUp, AltUpConfig};
use altup_train::statistics::median;
use burn::tensor::{Device, Distribution, Tensor};
use std::hint::black_box;
use std::time::Instant;

const BATCH_SIZE: usize = 2;
const SEQ_LENGTH: usize = 1024;
const WIDTH: usize = 512;
const ROUNDS: usize = 15;

fn main() {
    altup_train::process::set_up();
    println!("[K, {BATCH_SIZE}, {SEQ_LENGTH}, {WIDTH}] in f32, median of {ROUNDS} rounds\n");
    println!("| K | what | ms | GB/s | of the copy |\n|---|---|---|---|---|");
    for num_blocks in [1, 2, 4] {
        compare(num_blocks);
    }
}

/// Measures all sides at one number of blocks and prints a row for each.
fn compare(num_blocks: usize) {
    let bytes = (2 * num_blocks + 1) * BATCH_SIZE * SEQ_LENGTH * WIDTH * size_of::<f32>();
    let mut sides: Vec<(String, Box<dyn FnMut()>)> = vec![("copy".into(), copy(bytes))];
    for (backend, device) in [("flex", Device::flex()), ("ndarray", Device::ndarray())] {
        sides.push((format!("{backend}, update"), update(num_blocks, &device)));
        sides.push((format!("{backend}, predict then correct"), two_steps(num_blocks, &device)));
        sides.push((format!("{backend}, default body"), default_body(num_blocks, &device)));
    }
    let mut seconds = vec![Vec::new(); sides.len()];
    for round in 0..=ROUNDS {
        for ((_, run), seconds) in sides.iter_mut().zip(&mut seconds) {
            let started = Instant::now();
            run();
            // The first round warms up.
            if round > 0 {
                seconds.push(started.elapsed().as_secs_f64());
            }
        }
    }
    let medians: Vec<f64> = seconds.iter().map(|seconds| median(seconds)).collect();
    for ((name, _), seconds) in sides.iter().zip(&medians) {
        println!(
            "| {num_blocks} | {name} | {:.2} | {:.1} | {:.0} % |",
            1e3 * seconds,
            bytes as f64 / seconds / 1e9,
            100.0 * medians[0] / seconds
        );
    }
}

/// A copy on one thread that reads and writes `bytes` together.
fn copy(bytes: usize) -> Box<dyn FnMut()> {
    let source = vec![1u8; bytes / 2];
    let mut target = vec![0u8; bytes / 2];
    Box::new(move || {
        target.copy_from_slice(black_box(&source));
        black_box(&target);
    })
}

fn update(num_blocks: usize, device: &Device) -> Box<dyn FnMut()> {
    let (altup, state, computed) = inputs(num_blocks, device);
    Box::new(move || {
        black_box(altup.update(state.clone(), computed.clone(), num_blocks - 1));
    })
}

fn two_steps(num_blocks: usize, device: &Device) -> Box<dyn FnMut()> {
    let (altup, state, computed) = inputs(num_blocks, device);
    Box::new(move || {
        let predicted = altup.predict(state.clone());
        black_box(altup.correct(predicted, computed.clone(), num_blocks - 1));
    })
}

/// The primitive operations that a backend without a kernel runs: old blocks and x̃ concatenated, then
/// multiplied by the update's matrix.
fn default_body(num_blocks: usize, device: &Device) -> Box<dyn FnMut()> {
    let (_, state, computed) = inputs(num_blocks, device);
    let coefs = Tensor::<2>::ones([num_blocks, num_blocks + 1], device);
    Box::new(move || {
        let rows = |blocks: Tensor<4>| blocks.flatten::<2>(1, 3);
        let blocks = vec![rows(state.clone()), rows(computed.clone().unsqueeze_dim(0))];
        let updated = coefs.clone().matmul(Tensor::cat(blocks, 0));
        black_box(updated.reshape(state.dims()));
    })
}

fn inputs(num_blocks: usize, device: &Device) -> (AltUp, Tensor<4>, Tensor<3>) {
    let random = Distribution::Normal(0.0, 1.0);
    (
        AltUpConfig::new(num_blocks).init(device),
        Tensor::random([num_blocks, BATCH_SIZE, SEQ_LENGTH, WIDTH], random, device),
        Tensor::random([BATCH_SIZE, SEQ_LENGTH, WIDTH], random, device),
    )
}
