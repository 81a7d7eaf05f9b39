//! The AltUp update against the memory traffic that it needs: K+1 blocks read and K written.
//!
//! ```sh
//! cargo bench -p altup-benches --bench altup_update
//! ```
//!
//! The rates count those bytes alone, so that they compare with `copy`, which reads and writes the
//! same number of bytes; what an implementation moves beyond them lowers its rate.

use altup_benches::{BACKENDS, device, random};
use altup_core::{AltUp, AltUpConfig};
use burn::tensor::Tensor;
use divan::Bencher;
use divan::counter::BytesCount;

const BATCH_SIZE: usize = 2;
const SEQ_LENGTH: usize = 1024;
const WIDTH: usize = 512;
const NUM_BLOCKS: [usize; 3] = [1, 2, 4];
const BLOCK_BYTES: usize = BATCH_SIZE * SEQ_LENGTH * WIDTH * size_of::<f32>();

fn main() {
    divan::main();
}

/// The bytes that an update of `num_blocks` blocks has to move.
fn update_bytes(num_blocks: usize) -> usize {
    (2 * num_blocks + 1) * BLOCK_BYTES
}

fn inputs(backend: &str, num_blocks: usize) -> (AltUp, Tensor<4>, Tensor<3>) {
    let device = device(backend);
    (
        AltUpConfig::new(num_blocks).init(&device),
        random([num_blocks, BATCH_SIZE, SEQ_LENGTH, WIDTH], &device),
        random([BATCH_SIZE, SEQ_LENGTH, WIDTH], &device),
    )
}

/// A plain copy that moves as many bytes as an update.
#[divan::bench(args = NUM_BLOCKS)]
fn copy(bencher: Bencher, num_blocks: usize) {
    let bytes = update_bytes(num_blocks);
    let source = vec![1u8; bytes / 2];
    let mut target = vec![0u8; bytes / 2];
    bencher.counter(BytesCount::new(bytes)).bench_local(|| {
        target.copy_from_slice(divan::black_box(&source));
        divan::black_box(&target);
    });
}

#[divan::bench(args = NUM_BLOCKS, consts = [0, 1])]
fn update<const BACKEND: usize>(bencher: Bencher, num_blocks: usize) {
    let (altup, state, computed) = inputs(BACKENDS[BACKEND], num_blocks);
    bencher
        .counter(BytesCount::new(update_bytes(num_blocks)))
        .with_inputs(|| (state.clone(), computed.clone()))
        .bench_local_values(|(state, computed)| altup.update(state, computed, num_blocks - 1));
}

/// Predict and correct one after the other.
#[divan::bench(args = NUM_BLOCKS, consts = [0, 1])]
fn predict_then_correct<const BACKEND: usize>(bencher: Bencher, num_blocks: usize) {
    let (altup, state, computed) = inputs(BACKENDS[BACKEND], num_blocks);
    bencher
        .counter(BytesCount::new(update_bytes(num_blocks)))
        .with_inputs(|| (state.clone(), computed.clone()))
        .bench_local_values(|(state, computed)| {
            altup.correct(altup.predict(state), computed, num_blocks - 1)
        });
}
