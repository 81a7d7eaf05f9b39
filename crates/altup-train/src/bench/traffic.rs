//! The bytes that a training step reads from a GPU's memory and writes to it, by arithmetic.
//!
//! **What is moved** are the tensors of each kernel in the chain as it is: once what it reads and once what it writes.
//! What a kernel reads a second time is taken to lie in a cache, so this is less than a profiler will show. `Kernels` lists
//! the chain, and a test holds it against the kernels that are launched.
//!
//! **The least** is one pass over what a part has from elsewhere and gives away, with everything in between in registers
//! and nothing kept for the backward pass but the inputs:
//!
//! ```text
//! forward    read inputs x and weights w             write outputs y
//! backward   read x, w and the gradient of y         write the gradients of x and w
//! ```
//!
//! that is 2 x + 2 w + y read and y + x + w written. A table of embeddings has a gradient of its own size, of which a
//! lookup reads rows alone. The output layer gives one number away; the optimizer reads a parameter, its gradient and two
//! moments, and writes all but the gradient.

use altup_models::{Activation, T5Config, parameters};
use serde::{Deserialize, Serialize};
use std::iter::Sum;
use std::ops::Add;

use super::breakdown::Part;
use crate::device;

/// Bytes between a GPU and its memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bytes {
    /// Read.
    pub read: u64,
    /// Written.
    pub written: u64,
}

/// The bytes of a part of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartTraffic {
    /// Of its kernels as they are.
    pub moved: Bytes,
    /// The least possible.
    pub least: Bytes,
}

impl Bytes {
    /// Read and written.
    pub fn total(self) -> u64 {
        self.read + self.written
    }

    /// Both in MB, for tables.
    pub fn megabytes(self) -> String {
        format!("{:.1} + {:.1}", self.read as f64 / 1e6, self.written as f64 / 1e6)
    }

    /// What inputs, weights and outputs of these bytes need at the least, forward and backward.
    fn least(inputs: u64, weights: u64, outputs: u64) -> Self {
        Self { read: 2 * (inputs + weights) + outputs, written: outputs + inputs + weights }
    }
}

impl Add for Bytes {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { read: self.read + other.read, written: self.written + other.written }
    }
}

impl Sum for Bytes {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), Add::add)
    }
}

/// A chain of kernels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kernels {
    /// How many.
    pub count: usize,
    /// What they move.
    pub bytes: Bytes,
}

impl Kernels {
    /// One more, that reads and writes so many bytes.
    fn kernel(&mut self, read: u64, written: u64) {
        self.count += 1;
        self.bytes = self.bytes + Bytes { read, written };
    }

    /// The sum of two gradients of one tensor.
    fn add_gradients(&mut self, size: u64) {
        self.kernel(2 * size, size);
    }
}

/// A training step in f32, without dropout and without padding.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// The model.
    pub config: &'a T5Config,
    /// Rows of the batch.
    pub batch_size: u64,
    /// Tokens of an input and of a target.
    pub lengths: [u64; 2],
}

/// Bytes of a value and of a token's number.
const WORD: u64 = 4;

impl Step<'_> {
    /// The bytes of a part; none of layers with experts.
    pub fn of_part(&self, part: Part) -> Option<PartTraffic> {
        let (kernels, least) = (self.kernels(part)?, self.least(part));
        // A copy from the host is no kernel, and moves what it must.
        let moved = if part == Part::Data { least } else { kernels.bytes };
        Some(PartTraffic { moved, least })
    }

    /// The least bytes of a part.
    fn least(&self, part: Part) -> Bytes {
        let [inputs, targets] = self.lengths.map(|length| self.batch_size * length);
        let d = self.width();
        let ids = WORD * (inputs + targets);
        match part {
            // They come from the host.
            Part::Data => Bytes { read: 0, written: ids },
            Part::Embedding => {
                let rows = values((inputs + targets) * self.config.table_width() as u64);
                Bytes { read: 2 * ids + 2 * rows, written: rows + self.table() }
            }
            Part::Attention => {
                let to_self = |tokens: u64| {
                    let x = values(tokens * d);
                    Bytes::least(x, values(4 * d * self.inner() + d), x)
                };
                let memory = values(inputs * self.memory_width());
                let x = values(targets * d);
                let weights = 2 * d * self.inner() + 2 * self.memory_width() * self.inner() + d;
                let to_memory = Bytes::least(x + memory, values(weights), x);
                self.over_layers(to_self(inputs), to_self(targets) + to_memory)
            }
            Part::FeedForward => {
                let matrices = match self.config.feed_forward_proj {
                    Activation::Relu => 2,
                    Activation::GatedGelu => 3,
                };
                let weights = values(matrices * d * self.config.d_ff as u64 + d);
                let of = |tokens: u64| {
                    let x = values(tokens * d);
                    Bytes::least(x, weights, x)
                };
                self.over_layers(of(inputs), of(targets))
            }
            Part::AltUp if !self.config.updates_blocks() => Bytes::default(),
            Part::AltUp => {
                let blocks = self.config.num_blocks() as u64;
                let coefs = values(blocks * blocks + blocks);
                let of = |tokens: u64| {
                    let block = values(tokens * d);
                    Bytes::least((blocks + 1) * block, coefs, blocks * block)
                };
                self.over_layers(of(inputs), of(targets))
            }
            Part::Loss => {
                let x = values(targets * self.memory_width());
                let least = Bytes::least(x, self.output_table(), 0);
                Bytes { read: least.read + 2 * WORD * targets, ..least }
            }
            Part::Optimizer => {
                let weights = values(self.weights());
                Bytes { read: 4 * weights, written: 3 * weights }
            }
        }
    }

    /// The kernels of a part; none of layers with experts.
    pub fn kernels(&self, part: Part) -> Option<Kernels> {
        let [inputs, targets] = self.lengths;
        let mut kernels = Kernels::default();
        let encoder_layers = self.config.num_layers;
        let decoder_layers = self.config.decoder_layers();
        match part {
            Part::Data => {}
            Part::Embedding => self.embeddings(&mut kernels),
            Part::Attention => {
                for (length, layers) in [(inputs, encoder_layers), (targets, decoder_layers)] {
                    self.position_bias(&mut kernels, length, layers);
                    (0..layers).for_each(|_| self.self_attention(&mut kernels, length));
                }
                (0..decoder_layers).for_each(|_| self.cross_attention(&mut kernels));
            }
            Part::FeedForward if self.config.moe.is_some() => return None,
            Part::FeedForward => {
                (0..encoder_layers).for_each(|_| self.feed_forward(&mut kernels, inputs));
                (0..decoder_layers).for_each(|_| self.feed_forward(&mut kernels, targets));
            }
            Part::AltUp if !self.config.updates_blocks() => {}
            Part::AltUp => {
                (0..encoder_layers).for_each(|_| self.altup(&mut kernels, inputs));
                (0..decoder_layers).for_each(|_| self.altup(&mut kernels, targets));
            }
            Part::Loss => self.output_and_loss(&mut kernels),
            Part::Optimizer => {
                for size in self.parameter_sizes() {
                    let size = values(size);
                    kernels.kernel(4 * size, 3 * size);
                }
            }
        }
        Some(kernels)
    }

    /// y = x w, and the gradients of both.
    fn projection(&self, kernels: &mut Kernels, rows: u64, from: u64, to: u64) {
        let [x, w, y] = [rows * from, from * to, rows * to].map(values);
        kernels.kernel(x + w, y);
        kernels.kernel(y + w, x);
        kernels.kernel(x + y, w);
    }

    /// One kernel forward; backward one over groups of rows, and one that sums the groups' gradients of γ.
    fn norm(&self, kernels: &mut Kernels, rows: u64, width: u64) {
        let (x, gamma) = (values(rows * width), values(width));
        let groups = WORD * width * rows.div_ceil(rows.div_ceil(1024).max(4));
        kernels.kernel(x + gamma, x);
        kernels.kernel(2 * x + gamma, x + groups);
        kernels.kernel(groups, gamma);
    }

    /// What surrounds a sub-layer: its norm, whose output `readers` projections read, and the sum with what it adds to.
    fn around(&self, kernels: &mut Kernels, rows: u64, readers: u64) {
        let x = values(rows * self.width());
        self.norm(kernels, rows, self.width());
        kernels.kernel(2 * x, x);
        (1..readers).for_each(|_| kernels.add_gradients(x));
        // That of the norm, and that of the sum.
        kernels.add_gradients(x);
    }

    fn self_attention(&self, kernels: &mut Kernels, length: u64) {
        let (rows, d, inner) = (self.batch_size * length, self.width(), self.inner());
        self.around(kernels, rows, 3);
        (0..3).for_each(|_| self.projection(kernels, rows, d, inner));
        let bias = WORD * self.heads() * length * length;
        self.attention(kernels, [length, length], bias);
        // The gradient of the bias, summed over the rows of the batch.
        if self.batch_size > 1 {
            kernels.kernel(self.scores(length, length), bias);
        }
        self.projection(kernels, rows, inner, d);
    }

    fn cross_attention(&self, kernels: &mut Kernels) {
        let (d, inner, memory_width) = (self.width(), self.inner(), self.memory_width());
        let [memory, rows] = self.lengths.map(|length| self.batch_size * length);
        self.around(kernels, rows, 1);
        self.projection(kernels, rows, d, inner);
        (0..2).for_each(|_| self.projection(kernels, memory, memory_width, inner));
        // Of the keys' and of the values' gradient of the memory.
        kernels.add_gradients(values(memory * memory_width));
        // No bias is one value.
        kernels.kernel(0, WORD);
        self.attention(kernels, [self.lengths[1], self.lengths[0]], WORD);
        self.projection(kernels, rows, inner, d);
    }

    /// Between the projections: heads are brought together, queries alone and keys with values; the scores, the weights
    /// in their place, the output. Backward the same in twos, the scores and the weights' gradients anew, and three
    /// products.
    fn attention(&self, kernels: &mut Kernels, [queries, keys]: [u64; 2], bias: u64) {
        let [query, key] =
            [queries, keys].map(|length| values(self.batch_size * length * self.inner()));
        let scores = self.scores(queries, keys);
        let statistics = 2 * WORD * self.batch_size * self.heads() * queries;
        kernels.kernel(query, query);
        kernels.kernel(2 * key, 2 * key);
        kernels.kernel(query + key, scores);
        kernels.kernel(scores + bias, scores + statistics);
        kernels.kernel(scores + key, query);

        kernels.kernel(2 * query, 2 * query);
        kernels.kernel(2 * key, 2 * key);
        (0..2).for_each(|_| kernels.kernel(query + key, scores));
        kernels.kernel(2 * scores + bias + statistics, 2 * scores);
        kernels.kernel(scores + query, key);
        kernels.kernel(scores + key, query);
        kernels.kernel(scores + query, key);
    }

    /// The rows of a table for the distances, and its gradient: the sums of the layers' gradients, of each distance, and
    /// of each bucket.
    fn position_bias(&self, kernels: &mut Kernels, length: u64, layers: usize) {
        let bias = WORD * self.heads() * length * length;
        let buckets = WORD * length * length;
        let table = values(self.config.relative_attention_num_buckets as u64 * self.heads());
        let distances = WORD * self.heads() * (2 * length - 1);
        kernels.kernel(table + buckets, bias);
        (1..layers).for_each(|_| kernels.add_gradients(bias));
        kernels.kernel(bias, distances);
        kernels.kernel(distances + buckets, table);
    }

    fn feed_forward(&self, kernels: &mut Kernels, length: u64) {
        let (rows, d, d_ff) = (self.batch_size * length, self.width(), self.config.d_ff as u64);
        let hidden = values(rows * d_ff);
        match self.config.feed_forward_proj {
            Activation::GatedGelu => {
                self.around(kernels, rows, 2);
                (0..2).for_each(|_| self.projection(kernels, rows, d, d_ff));
                kernels.kernel(2 * hidden, hidden);
                kernels.kernel(3 * hidden, 2 * hidden);
            }
            Activation::Relu => {
                self.around(kernels, rows, 1);
                self.projection(kernels, rows, d, d_ff);
                kernels.kernel(hidden, hidden);
                // Where it is 0, a byte each, and the gradient there.
                kernels.kernel(hidden, rows * d_ff);
                kernels.kernel(hidden + rows * d_ff, hidden);
            }
        }
        self.projection(kernels, rows, d_ff, d);
    }

    /// The matrix of coefficients, and the update; its gradients, and the coefficients'; the gradient of the layer's block.
    fn altup(&self, kernels: &mut Kernels, length: u64) {
        let block = values(self.batch_size * length * self.width());
        let blocks = self.config.num_blocks() as u64;
        let (coefs, folded) = (values(blocks * blocks + blocks), values(blocks * (blocks + 1)));
        // Of each group of 256 threads with 8 vectors of 4 values or more for each.
        let sums = folded * block.div_ceil(WORD * 4 * 8 * 256).min(1024);
        kernels.kernel(coefs, folded);
        kernels.kernel((blocks + 1) * block + folded, blocks * block);
        kernels.kernel((2 * blocks + 1) * block + folded, (blocks + 1) * block + sums);
        kernels.kernel(sums + coefs, coefs);
        kernels.add_gradients(block);
    }

    /// The tokens of inputs and targets are put together, and their rows taken apart.
    fn embeddings(&self, kernels: &mut Kernels) {
        let tokens = self.lengths.map(|length| self.batch_size * length);
        let width = self.config.table_width() as u64;
        let (ids, rows) = (tokens.map(values), tokens.map(|tokens| values(tokens * width)));
        let all = values(tokens[0] + tokens[1]);
        ids.into_iter().for_each(|ids| kernels.kernel(ids, ids));
        kernels.kernel(all + all * width, all * width);
        // The gradients of both, in zeros of the shape of all; their sum; and the gradient of the table.
        for rows in rows {
            kernels.kernel(0, all * width);
            kernels.kernel(rows, rows);
        }
        kernels.add_gradients(all * width);
        kernels.kernel(0, self.table());
        kernels.kernel(all + all * width, all * width);
    }

    /// The logits, over which their gradient is written, and the sum of the tokens' losses.
    fn output_and_loss(&self, kernels: &mut Kernels) {
        let rows = self.batch_size * self.lengths[1];
        let vocabulary = self.config.vocab_size as u64;
        let (logits, tokens) = (values(rows * vocabulary), values(rows));
        self.projection(kernels, rows, self.memory_width(), vocabulary);
        kernels.kernel(logits + tokens, tokens);
        kernels.kernel(logits + 2 * tokens, logits);
        // The sum, into a zero, and its gradient for each token: ones, times that of the sum.
        kernels.kernel(0, WORD);
        kernels.kernel(tokens, WORD);
        kernels.kernel(0, tokens);
        kernels.kernel(tokens + WORD, tokens);
    }

    /// Parameters, in values.
    fn parameter_sizes(&self) -> Vec<u64> {
        let model = self.config.build(&device::cpu());
        parameters(&model).iter().map(|info| info.size() as u64).collect()
    }

    fn weights(&self) -> u64 {
        self.parameter_sizes().iter().sum()
    }

    /// The table of embeddings, in bytes.
    fn table(&self) -> u64 {
        values((self.config.vocab_size * self.config.table_width()) as u64)
    }

    /// The weights of the output layer, in bytes.
    fn output_table(&self) -> u64 {
        values(self.config.vocab_size as u64 * self.memory_width())
    }

    /// The sum over the layers of encoder and decoder.
    fn over_layers(&self, of_encoder: Bytes, of_decoder: Bytes) -> Bytes {
        let encoder = (0..self.config.num_layers).map(|_| of_encoder);
        encoder.chain((0..self.config.decoder_layers()).map(|_| of_decoder)).sum()
    }

    fn width(&self) -> u64 {
        self.config.d_model as u64
    }

    fn heads(&self) -> u64 {
        self.config.num_heads as u64
    }

    /// Of all heads.
    fn inner(&self) -> u64 {
        (self.config.num_heads * self.config.d_kv) as u64
    }

    /// Of a stack's output.
    fn memory_width(&self) -> u64 {
        self.config.output_width() as u64
    }

    fn scores(&self, queries: u64, keys: u64) -> u64 {
        values(self.batch_size * self.heads() * queries * keys)
    }
}

/// The bytes of so many values.
fn values(count: u64) -> u64 {
    WORD * count
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::models::{MODELS, model};
    use altup_core::Widening;
    use altup_models::{AltUpModelConfig, size};

    /// One layer each, d = 2, one head of 3, d_ff = 5, vocabulary 11.
    fn small() -> T5Config {
        T5Config {
            d_model: 2,
            num_heads: 1,
            d_kv: 3,
            d_ff: 5,
            num_layers: 1,
            num_decoder_layers: None,
            vocab_size: 11,
            ..size("tiny").unwrap()
        }
    }

    /// 14 tokens of inputs and 8 of targets.
    fn traffic(config: &T5Config, part: Part) -> PartTraffic {
        Step { config, batch_size: 2, lengths: [7, 4] }.of_part(part).unwrap()
    }

    #[test]
    fn the_least_by_hand() {
        // Values of x, weights and y; then those of the decoder's.
        let least = |[x, w, y]: [u64; 3]| [4 * (2 * x + 2 * w + y), 4 * (y + x + w)];
        let sum = |parts: [[u64; 3]; 2]| {
            let [[a, b], [c, d]] = parts.map(least);
            Bytes { read: a + c, written: b + d }
        };
        let weights = 3 * 2 * 5 + 2;
        let expected = sum([[14 * 2, weights, 14 * 2], [8 * 2, weights, 8 * 2]]);
        assert_eq!(traffic(&small(), Part::FeedForward).least, expected);

        let altup = AltUpModelConfig::new(2, Widening::Recycled);
        let widened = T5Config { altup: Some(altup), ..small() };
        // Three blocks in, two out, six coefficients.
        let expected = sum([[3 * 14 * 2, 6, 2 * 14 * 2], [3 * 8 * 2, 6, 2 * 8 * 2]]);
        assert_eq!(traffic(&widened, Part::AltUp).least, expected);
        assert_eq!(traffic(&small(), Part::AltUp), PartTraffic::default());

        let [read, written] = least([8 * 2, 11 * 2, 0]);
        let expected = Bytes { read: read + 2 * 4 * 8, written };
        assert_eq!(traffic(&small(), Part::Loss).least, expected);
    }

    /// The update: coefficients; 3 blocks in, 2 out; 2 gradients and 3 blocks in, 3 gradients out; the coefficients'; and
    /// one block added to another.
    #[test]
    fn what_the_update_moves_by_hand() {
        let altup = AltUpModelConfig::new(2, Widening::Recycled);
        let widened = T5Config { altup: Some(altup), ..small() };
        let of = |tokens: u64| {
            let block = 4 * tokens * 2;
            let coefs = 4 * 6;
            Bytes {
                read: coefs + (3 * block + coefs) + (5 * block + coefs) + (2 * coefs) + 2 * block,
                written: coefs + 2 * block + (3 * block + coefs) + coefs + block,
            }
        };
        assert_eq!(traffic(&widened, Part::AltUp).moved, of(14) + of(8));
    }

    #[test]
    fn no_part_moves_less_than_the_least() {
        for size in altup_models::size_names() {
            for name in MODELS.into_iter().filter(|name| !name.starts_with("seq")) {
                let config = model(size, name).unwrap();
                let step = Step { config: &config, batch_size: 4, lengths: [512, 114] };
                for part in Part::ALL {
                    let experts = part == Part::FeedForward && config.moe.is_some();
                    let Some(PartTraffic { moved, least }) = step.of_part(part) else {
                        assert!(experts, "{size} {name} {part:?}");
                        continue;
                    };
                    let enough = moved.read >= least.read && moved.written >= least.written;
                    assert!(enough && !experts, "{size} {name} {part:?}: {moved:?}, {least:?}");
                }
            }
        }
    }
}
