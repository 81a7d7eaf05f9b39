//! Speed of models on backends and in other programs, side by side.
//!
//! Every side of a comparison is [measured](measure) in a process of its own: memory and threads of one
//! never touch another, a driver that crashes ends its own process alone, and a program in another
//! language is a side like any other. The [comparison] starts the sides in turns, checks that all of them
//! compute the same loss before it times any, and makes the [tables] of what they measured.

pub mod breakdown;
pub mod comparison;
pub mod counted;
pub mod exchange;
pub mod kernels;
pub mod measure;
pub mod models;
pub mod scaling;
pub mod tables;
pub mod traffic;

use breakdown::Part;
use clap::ValueEnum;
use counted::Counted;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Work {
    /// The logits of a batch, without gradients
    Forward,
    /// A training step: forward and backward pass, and AdamW
    Train,
    /// The encoder, the cross-attention's keys and values, and the first token
    Prefill,
    /// The tokens after the first, greedily, one by one with cached keys and values
    Decode,
    /// The parts of a training step, each alone
    Breakdown,
}

impl Work {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Train => "train",
            Self::Prefill => "prefill",
            Self::Decode => "decode",
            Self::Breakdown => "breakdown",
        }
    }
}

/// What a side computes on.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BenchBatch {
    /// Rows of input tokens, of one length.
    pub input_ids: Vec<Vec<u32>>,
    /// Rows of target tokens, of one length.
    pub labels: Vec<Vec<u32>>,
    /// How many tokens decoding makes for each row.
    pub new_tokens: usize,
}

impl BenchBatch {
    /// Rows of random tokens that are neither padding nor the end. `lengths` are those of an input and of a target.
    pub fn random(
        vocab_size: usize,
        batch_size: usize,
        lengths: [usize; 2],
        new_tokens: usize,
        seed: u64,
    ) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut rows = |length: usize| -> Vec<Vec<u32>> {
            let tokens = 2..vocab_size as u32;
            (0..batch_size)
                .map(|_| (0..length).map(|_| random.random_range(tokens.clone())).collect())
                .collect()
        };
        Self { input_ids: rows(lengths[0]), labels: rows(lengths[1]), new_tokens }
    }
}

/// What a side measured. A program that prints it as one line of JSON can be a side.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measured {
    /// The program and its version.
    pub program: String,
    /// The device, as it calls itself.
    pub device: String,
    /// Its threads, where it tells.
    pub threads: Option<usize>,
    /// The mean cross-entropy of the labels without dropout, in nats.
    pub loss: f64,
    /// The greedy tokens of every row, if they were asked for.
    #[serde(default)]
    pub tokens: Option<Vec<Vec<u32>>>,
    /// The seconds of each part of a training step, if they were asked for.
    #[serde(default)]
    pub parts: BTreeMap<Part, Vec<f64>>,
    /// What these parts launch and move on a GPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counted: Option<Counted>,
    /// What was timed.
    pub measurements: BTreeMap<Work, Timing>,
}

/// The times of a work.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Timing {
    /// Of every repeat.
    pub seconds: Vec<f64>,
    /// The most memory in use at once: that of the process on a CPU, that of the device on a GPU.
    pub peak_bytes: Option<u64>,
}
