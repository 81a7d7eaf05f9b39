//! The memory of a training step, by arithmetic.

use burn::tensor::Device;

use crate::mixture_of_experts::room;
use crate::{
    Activation, MoeConfig, MoeMode, ParameterInfo, Role, SequenceMethod, Stack, T5Config,
    parameters,
};

/// What the memory of a training step depends on, beside the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepShape {
    /// Rows of a batch.
    pub batch_size: u64,
    /// Tokens of an input.
    pub input_length: u64,
    /// Tokens of a target.
    pub target_length: u64,
    /// Whether inputs may be padded: attention then has a bias for each row of the batch.
    pub padded: bool,
    /// Bytes of a value in a pass: 4, or 2 for bf16 and f16.
    pub value_bytes: u64,
    /// Whether it runs on a GPU: attention then holds the scores of all heads at once, and logits stay in the type of
    /// the pass.
    pub on_gpu: bool,
    /// Whether the backward pass computes each layer again ([`T5::recompute_layers`](crate::T5::recompute_layers)).
    pub recompute_layers: bool,
}

/// The name of a step's last part.
pub const LOGITS: &str = "logits";

/// What a part of a training step holds, in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartMemory {
    /// The part, in the field's words.
    pub part: &'static str,
    /// What the forward pass leaves for the backward pass.
    pub kept: u64,
    /// What the backward pass computes again while it is at this part.
    pub recomputed: u64,
    /// What the backward pass has beside that at the most, gradients of parameters aside.
    pub working: u64,
    /// The number of values of the parameters that get their gradients here.
    pub gradients: u64,
}

/// What the parts of a training step hold, in the order of the forward pass: from the embeddings over each layer to the
/// output layer with the loss. It counts the tensors that the operations keep. `trains` says which parameters get
/// gradients; `device` is only named, nothing is allocated on it.
///
/// # Panics
///
/// Panics if the configuration is not [valid](T5Config::validate).
pub fn step_memory(
    config: &T5Config,
    shape: &StepShape,
    device: &Device,
    trains: impl Fn(&ParameterInfo) -> bool,
) -> Vec<PartMemory> {
    let trained: Vec<ParameterInfo> =
        parameters(&config.build(device)).into_iter().filter(trains).collect();
    let of_role = |role: Role| -> u64 {
        trained.iter().filter(|info| info.role == role).map(|info| info.size() as u64).sum()
    };
    // A layer's, or what a stack has once.
    let of_stack = |stack: Stack, layer: Option<usize>| -> u64 {
        let of_part = |info: &&ParameterInfo| (info.stack, info.layer) == (Some(stack), layer);
        trained.iter().filter(of_part).map(|info| info.size() as u64).sum()
    };
    let step = Step { config, shape };
    let with = |gradients: u64, part: PartMemory| PartMemory { gradients, ..part };
    let mut parts = vec![
        with(of_role(Role::EmbeddingTable), step.embeddings()),
        with(of_stack(Stack::Encoder, None), step.encoder_positions()),
    ];
    let mut length = shape.input_length;
    for layer in 0..config.num_layers {
        let (part, next) = step.encoder_layer(layer, length);
        length = next;
        parts.push(with(of_stack(Stack::Encoder, Some(layer)), part));
    }
    parts.push(step.encoder_output(length));
    parts.push(with(of_stack(Stack::Decoder, None), step.decoder_positions()));
    for layer in 0..config.decoder_layers() {
        let part = step.decoder_layer(layer, length);
        parts.push(with(of_stack(Stack::Decoder, Some(layer)), part));
    }
    parts.push(step.decoder_output());
    parts.push(with(of_role(Role::OutputTable), step.logits()));
    parts
}

/// The most bytes that parts hold at once while the backward pass goes through them from the last to the first, with
/// `gradient_bytes` for a value of a gradient: what is kept before a part, what is computed in it, and the gradients
/// from it on.
pub fn peak_of_backward(parts: &[PartMemory], gradient_bytes: u64) -> u64 {
    let mut kept: u64 = parts.iter().map(|part| part.kept).sum();
    let (mut gradients, mut peak) = (0, 0);
    for part in parts.iter().rev() {
        gradients += gradient_bytes * part.gradients;
        peak = peak.max(kept + part.recomputed + part.working + gradients);
        kept -= part.kept;
    }
    peak
}

struct Step<'a> {
    config: &'a T5Config,
    shape: &'a StepShape,
}

/// What a sub-layer holds, in bytes.
#[derive(Clone, Copy, Default)]
struct Held {
    kept: u64,
    working: u64,
}

impl Held {
    /// One sub-layer after another.
    fn then(self, next: Self) -> Self {
        Self { kept: self.kept + next.kept, working: self.working.max(next.working) }
    }
}

impl Step<'_> {
    fn width(&self) -> u64 {
        self.config.d_model as u64
    }

    /// Of all heads.
    fn inner(&self) -> u64 {
        (self.config.num_heads * self.config.d_kv) as u64
    }

    /// Blocks of the state between layers.
    fn state_blocks(&self) -> u64 {
        if self.config.updates_blocks() { self.config.num_blocks() as u64 } else { 1 }
    }

    /// The bytes of values of the pass's type.
    fn values(&self, count: u64) -> u64 {
        self.shape.value_bytes * count
    }

    /// The scores of all heads and rows for each pair of positions: their number.
    fn scores(&self, queries: u64, keys: u64) -> u64 {
        self.shape.batch_size * self.config.num_heads as u64 * queries * keys
    }

    fn part(name: &'static str, held: Held) -> PartMemory {
        let Held { kept, working } = held;
        PartMemory { part: name, kept, recomputed: 0, working, gradients: 0 }
    }

    /// The tokens alone are kept; the gradients of inputs and targets are put together.
    fn embeddings(&self) -> PartMemory {
        let StepShape { batch_size, input_length, target_length, .. } = *self.shape;
        let looked_up = batch_size * (input_length + target_length);
        let working = self.values(2 * looked_up * self.config.table_width() as u64);
        Self::part("embeddings", Held { kept: 0, working })
    }

    /// The bias that all layers share, f32; with padding one for each row too.
    fn encoder_positions(&self) -> PartMemory {
        let length = self.shape.input_length;
        let scores = self.config.num_heads as u64 * length * length;
        let rows = if self.shape.padded { self.shape.batch_size } else { 0 };
        Self::part("encoder positions", Held { kept: 4 * scores * (1 + rows), working: 0 })
    }

    /// The bias and its sum with the causal one, f32.
    fn decoder_positions(&self) -> PartMemory {
        let length = self.shape.target_length;
        let kept = 2 * 4 * self.config.num_heads as u64 * length * length;
        Self::part("decoder positions", Held { kept, working: 0 })
    }

    /// Kept: x and its norm; queries, keys, values and what the heads put out; two statistics of each row of scores, f32.
    /// At work: the gradients of these, and that of the bias twice, as it is added up.
    fn self_attention(&self, length: u64, padded: bool) -> Held {
        let (tokens, heads) = (self.shape.batch_size * length, self.config.num_heads as u64);
        let bias_rows = if padded { self.shape.batch_size } else { 1 };
        let scores = self.scores(length, length);
        let whole = if self.shape.on_gpu { self.values(2 * scores) } else { 0 };
        Held {
            kept: self.values(tokens * (2 * self.width() + 4 * self.inner())) + 8 * tokens * heads,
            working: self.values(tokens * (2 * self.width() + 4 * self.inner()))
                + 2 * 4 * bias_rows * heads * length * length
                + whole,
        }
    }

    /// As [`self_attention`](Self::self_attention), with keys and values of the memory.
    fn cross_attention(&self, memory_length: u64) -> Held {
        let StepShape { batch_size, target_length, .. } = *self.shape;
        let (tokens, memory) = (batch_size * target_length, batch_size * memory_length);
        let memory_width = self.config.output_width() as u64;
        let scores = self.scores(target_length, memory_length);
        let whole = if self.shape.on_gpu { self.values(2 * scores) } else { 0 };
        let own = tokens * (2 * self.width() + 2 * self.inner());
        Held {
            kept: self.values(own + memory * 2 * self.inner())
                + 8 * tokens * self.config.num_heads as u64,
            working: self.values(own + memory * (2 * self.inner() + memory_width)) + whole,
        }
    }

    /// x and its norm, with the network, the experts, or both.
    fn feed_forward(&self, length: u64, moe: Option<&MoeConfig>) -> Held {
        let tokens = self.shape.batch_size * length;
        let around = self.values(tokens * 2 * self.width());
        let mut held = Held { kept: around, working: around };
        if moe.is_none_or(|moe| moe.mode == MoeMode::Partial) {
            let (hidden, gradients) = match self.config.feed_forward_proj {
                // The gate, what it gates, and their product.
                Activation::GatedGelu => (3, 3),
                // Before and after dropout.
                Activation::Relu => (1 + u64::from(self.config.dropout_rate > 0.0), 2),
            };
            let of_width = self.values(tokens * self.config.d_ff as u64);
            held.kept += hidden * of_width;
            held.working += gradients * of_width;
        }
        if let Some(moe) = moe {
            let experts = self.experts(tokens, moe);
            held.kept += experts.kept;
            held.working += experts.working;
        }
        held
    }

    /// Logits, probabilities and what the losses make of them, f32; the slots that experts compute in, on a CPU of which up
    /// to half stay empty, on a GPU as many as an expert may take, with what is chosen from them; and the weights, gathered for each tile of slots.
    fn experts(&self, tokens: u64, moe: &MoeConfig) -> Held {
        let (experts, hidden) = (moe.num_experts as u64, moe.expert_d_ff as u64);
        let chosen = tokens * moe.top_k as u64;
        let (tiles, slots) = match self.shape.on_gpu && chosen > 0 {
            true => {
                let room =
                    room(tokens as usize, moe.top_k, moe.num_experts, Some(moe.capacity_factor));
                (room.tiles as u64, (room.tiles * room.tile) as u64)
            }
            false => (experts.min(chosen) * 3 / 2, chosen * 3 / 2),
        };
        let weights = self.values(2 * tiles * self.width() * hidden);
        let in_slots = self.values(slots * (2 * self.width() + hidden));
        let of_router = 4 * 6 * tokens * experts;
        Held {
            kept: of_router + in_slots + self.values(2 * chosen * self.width()) + weights,
            working: in_slots + 2 * weights,
        }
    }

    /// A layer whose sub-layers hold `held`, on `computed` of the `tokens` of its stack.
    fn layer(&self, name: &'static str, held: Held, tokens: u64, computed: u64) -> PartMemory {
        let state = self.values(self.state_blocks() * tokens * self.width());
        let mut kept = held.kept;
        if self.config.updates_blocks() {
            // The state in the place of the block that the layer reads, and what it computed.
            kept += state;
        }
        if computed < tokens {
            // What is computed on, what came of it, and the whole block.
            kept += self.values((2 * computed + tokens) * self.width());
        }
        let working = held.working.max(2 * state) + state;
        let (kept, recomputed) = match self.shape.recompute_layers {
            true => (state, kept - state.min(kept)),
            false => (kept, 0),
        };
        PartMemory { recomputed, ..Self::part(name, Held { kept, working }) }
    }

    /// The layer, and the number of tokens behind it.
    fn encoder_layer(&self, layer: usize, length: u64) -> (PartMemory, u64) {
        let sequence = self.config.encoder_sequence(layer);
        let computed = sequence
            .map_or(length, |sequence| self.shape.input_length.div_ceil(sequence.stride as u64));
        let pools = sequence.is_some_and(|s| s.method == SequenceMethod::AveragePool);
        let length = if pools { computed } else { length };
        let attention = self.self_attention(computed, self.shape.padded);
        let held = attention.then(self.feed_forward(computed, self.config.encoder_moe(layer)));
        let rows = self.shape.batch_size;
        (self.layer("encoder layer", held, rows * length, rows * computed), length)
    }

    fn decoder_layer(&self, layer: usize, memory_length: u64) -> PartMemory {
        let length = self.shape.target_length;
        let held = self
            .self_attention(length, false)
            .then(self.cross_attention(memory_length))
            .then(self.feed_forward(length, self.config.decoder_moe(layer)));
        let tokens = self.shape.batch_size * length;
        self.layer("decoder layer", held, tokens, tokens)
    }

    /// The last state as the norm reads it, and the memory.
    fn encoder_output(&self, length: u64) -> PartMemory {
        Self::part("encoder output", self.output(length))
    }

    fn decoder_output(&self) -> PartMemory {
        Self::part("decoder output", self.output(self.shape.target_length))
    }

    /// Before and behind the final norm.
    fn output(&self, length: u64) -> Held {
        let width = self.config.output_width() as u64;
        let kept = self.values(2 * self.shape.batch_size * length * width);
        Held { kept, working: kept }
    }

    /// Their gradient is written over them. On a CPU they are f32.
    fn logits(&self) -> PartMemory {
        let StepShape { batch_size, target_length, on_gpu, value_bytes, .. } = *self.shape;
        let logits = batch_size * target_length * self.config.vocab_size as u64;
        let (kept, working) = match on_gpu || value_bytes == 4 {
            true => (self.values(logits), 0),
            false => (4 * logits, self.values(logits)),
        };
        Self::part(LOGITS, Held { kept, working })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AltUpModelConfig, size};
    use altup_core::Widening;

    const SHAPE: StepShape = StepShape {
        batch_size: 2,
        input_length: 7,
        target_length: 4,
        padded: false,
        value_bytes: 4,
        on_gpu: false,
        recompute_layers: false,
    };

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

    fn memory(config: &T5Config, shape: &StepShape) -> Vec<PartMemory> {
        step_memory(config, shape, &Device::flex(), |_| true)
    }

    #[test]
    fn what_is_kept_by_hand() {
        let parts = memory(&small(), &SHAPE);
        let kept: Vec<u64> = parts.iter().map(|part| part.kept).collect();
        let self_attention = |tokens: u64| 4 * tokens * (2 * 2 + 4 * 3) + 8 * tokens;
        let network = |tokens: u64| 4 * tokens * (2 * 2 + 3 * 5);
        let cross_attention = 4 * (8 * (2 * 2 + 2 * 3) + 14 * 2 * 3) + 8 * 8;
        assert_eq!(
            kept,
            [
                0,
                4 * 7 * 7,
                self_attention(14) + network(14),
                4 * 2 * 14 * 2,
                2 * 4 * 4 * 4,
                self_attention(8) + cross_attention + network(8),
                4 * 2 * 8 * 2,
                4 * 8 * 11,
            ]
        );
        let weights = |config: &T5Config| -> u64 {
            parameters(&config.build(&Device::flex())).iter().map(|info| info.size() as u64).sum()
        };
        assert_eq!(parts.iter().map(|part| part.gradients).sum::<u64>(), weights(&small()));
    }

    /// A layer that is computed again keeps its input: 14 tokens of K = 2 blocks of width 2.
    #[test]
    fn a_recomputed_layer_keeps_its_input() {
        let altup = AltUpModelConfig::new(2, Widening::Recycled);
        let config = T5Config { altup: Some(altup), ..small() };
        let whole = memory(&config, &SHAPE);
        let again = memory(&config, &StepShape { recompute_layers: true, ..SHAPE });
        assert_eq!(again[2].kept, 4 * 2 * 14 * 2);
        assert_eq!(again[2].kept + again[2].recomputed, whole[2].kept);
        assert_eq!(whole[2].kept, memory(&small(), &SHAPE)[2].kept + 4 * 2 * 14 * 2);
        assert!(peak_of_backward(&again, 4) < peak_of_backward(&whole, 4));
    }

    /// 14 tokens choose among 4 experts, 3 times an even share at most: of more than twice 4, so in 6 tiles of 4 slots. A CPU
    /// has half more than the 14 that are chosen. Each slot has an input and an output of width 2, and 4 between them.
    #[test]
    fn experts_have_slots_for_the_worst_case() {
        let memory = |capacity_factor, on_gpu| {
            let moe = MoeConfig { capacity_factor, ..MoeConfig::new(4, 4, MoeMode::Partial) };
            let config = T5Config { moe: Some(moe), ..small() };
            memory(&config, &StepShape { on_gpu, ..SHAPE })[2].kept
        };
        assert_eq!(memory(3.0, true) - memory(3.0, false), 4 * (24 - 21) * (2 * 2 + 4));
        assert_eq!(memory(1e12, true), memory(4.0, true));
    }

    /// 5 and 7 are kept. At the second part: 5 + 7 + 1 with 10 gradients; at the first: 5 + 40 with 10 + 20.
    #[test]
    fn the_peak_is_where_the_sum_is_largest() {
        let part = |kept, working, gradients| PartMemory {
            part: "",
            kept,
            recomputed: 0,
            working,
            gradients,
        };
        assert_eq!(peak_of_backward(&[part(5, 40, 20), part(7, 1, 10)], 1), 75);
        assert_eq!(peak_of_backward(&[part(5, 0, 0), part(7, 1, 10)], 2), 33);
    }
}
