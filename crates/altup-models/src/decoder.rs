use altup_core::AltUp;
use burn::module::{Initializer, Module};
use burn::nn::{Dropout, RmsNorm};
use burn::tensor::{Device, Int, Tensor, TensorData};
use std::ops::Range;

use crate::T5Config;
use crate::attention::{AttentionLayer, KeyValue, PastKeyValue};
use crate::encoder::{HIDDEN, Memory, padding_bias};
use crate::feed_forward::FeedForwardLayer;
use crate::fused::rms_norm as normalize;
use crate::initialization::{dropout, rms_norm};
use crate::mixture_of_experts::{LayerRouting, RoutingContext};
use crate::relative_position_bias::RelativePositionBias;
use crate::widened::Widened;

/// One decoder layer: causal self-attention, cross-attention to the encoder's output, feed-forward.
#[derive(Module, Debug)]
pub struct DecoderBlock {
    /// The self-attention sub-layer.
    pub self_attention: AttentionLayer,
    /// The cross-attention sub-layer. Its keys and values read the encoder's whole output.
    pub cross_attention: AttentionLayer,
    /// The feed-forward sub-layer.
    pub feed_forward: FeedForwardLayer,
    /// Predict and correct around the layer, where the representation is widened.
    pub altup: Option<AltUp>,
}

impl DecoderBlock {
    fn new(config: &T5Config, layer: usize, device: &Device) -> Self {
        Self {
            self_attention: AttentionLayer::self_attention(config, device),
            cross_attention: AttentionLayer::cross_attention(config, device),
            feed_forward: FeedForwardLayer::new(config, config.decoder_moe(layer), device),
            altup: Widened::altup(config, device),
        }
    }

    /// Runs the layer on one block of the representation, for positions that follow those in
    /// `cache`.
    ///
    /// # Shapes
    ///
    /// - x: `[batch_size, seq_length, d_model]`
    /// - bias: broadcastable to `[batch_size, num_heads, seq_length, past + seq_length]`
    /// - memory_bias: broadcastable to `[batch_size, num_heads, seq_length, memory_length]`
    /// - output: `[batch_size, seq_length, d_model]`
    fn forward(
        &self,
        x: Tensor<3>,
        bias: Tensor<4>,
        memory_bias: Option<Tensor<4>>,
        cache: &mut BlockCache,
        context: &mut RoutingContext<'_>,
    ) -> Tensor<3> {
        let x = self.self_attention.attend_to_self(x, bias, Some(&mut cache.past));
        let x = self.cross_attention.attend_to_memory(x, cache.memory.clone(), memory_bias);
        self.feed_forward.forward_routed(x, context)
    }
}

/// T5's decoder.
#[derive(Module, Debug)]
pub struct Decoder {
    /// The layers.
    pub blocks: Vec<DecoderBlock>,
    /// The causal bias that all self-attentions share; cross-attention has none.
    pub position_bias: RelativePositionBias,
    /// Normalises the output.
    pub final_norm: RmsNorm,
    dropout: Dropout,
    widened: Widened,
}

/// What a decoder remembers of the positions it has seen: the keys and values of every layer, the
/// encoder output's among them, which are projected once.
#[derive(Clone, Debug)]
pub struct DecoderCache {
    blocks: Vec<BlockCache>,
    memory_bias: Option<Tensor<4>>,
    length: usize,
}

#[derive(Clone, Debug)]
struct BlockCache {
    past: PastKeyValue,
    memory: KeyValue,
}

impl DecoderCache {
    /// The number of positions decoded so far.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether nothing is decoded yet.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Keeps the given rows of the batch, in their order; a row may come several times.
    ///
    /// # Shapes
    ///
    /// - rows: `[new_batch_size]`
    pub fn select_rows(&mut self, rows: &Tensor<1, Int>) {
        for block in &mut self.blocks {
            block.memory = block.memory.clone().select_rows(rows);
        }
        self.memory_bias = self.memory_bias.take().map(|bias| bias.select(0, rows.clone()));
        self.reorder(rows);
    }

    /// Puts what is decoded into another order, between rows that attend to the same memory.
    ///
    /// # Shapes
    ///
    /// - rows: `[batch_size]`
    pub(crate) fn reorder(&mut self, rows: &Tensor<1, Int>) {
        for block in &mut self.blocks {
            block.past.select_rows(rows);
        }
    }
}

impl Decoder {
    pub(crate) fn new(config: &T5Config, device: &Device) -> Self {
        Self {
            blocks: (0..config.decoder_layers())
                .map(|layer| DecoderBlock::new(config, layer, device))
                .collect(),
            position_bias: RelativePositionBias::new(
                Initializer::Zeros
                    .init([config.relative_attention_num_buckets, config.num_heads], device),
                false,
                config.relative_attention_max_distance,
            ),
            final_norm: rms_norm(config.output_width(), config, device),
            dropout: dropout(config),
            widened: Widened::new(config),
        }
    }

    /// An empty cache that attends to `memory`.
    pub fn start(&self, memory: &Memory) -> DecoderCache {
        let project = |block: &DecoderBlock| BlockCache {
            past: PastKeyValue::default(),
            memory: block.cross_attention.attention.project_memory(memory.hidden.clone()),
        };
        DecoderCache {
            blocks: self.blocks.iter().map(project).collect(),
            memory_bias: memory.padding.as_ref().map(padding_bias),
            length: 0,
        }
    }

    /// Decodes the positions that follow those in `cache`, and adds them to it: all of a target at
    /// once in training, one at a time in generation.
    ///
    /// # Shapes
    ///
    /// - embedded: `[batch_size, seq_length, table_width]`
    /// - output: `[batch_size, seq_length, output_width]`, after the final norm
    pub fn forward(&self, embedded: Tensor<3>, cache: &mut DecoderCache) -> Tensor<3> {
        self.forward_logged(embedded, cache, None, None)
    }

    /// As [`forward`](Self::forward), with experts for the positions that are `real`, all if none is
    /// given; how they are routed goes to `log`.
    pub(crate) fn forward_logged(
        &self,
        embedded: Tensor<3>,
        cache: &mut DecoderCache,
        real: Option<&[bool]>,
        mut log: Option<&mut Vec<LayerRouting>>,
    ) -> Tensor<3> {
        let [_, seq_length, _] = embedded.dims();
        let device = embedded.device();
        let queries = cache.length..cache.length + seq_length;
        let mut bias = self.position_bias.forward(queries.clone(), 0..queries.end, &device);
        if seq_length > 1 {
            bias = bias + causal_bias(queries.clone(), &device);
        }
        let mut state = self.widened.widen(self.dropout.forward(embedded));
        for (layer, (block, block_cache)) in self.blocks.iter().zip(&mut cache.blocks).enumerate() {
            let memory_bias = cache.memory_bias.clone();
            let log = log.as_deref_mut();
            let mut context = RoutingContext { stack: "decoder", layer, real, log };
            state = self.widened.update(block.altup.as_ref(), state, layer, |x| {
                block.forward(x, bias.clone(), memory_bias, block_cache, &mut context)
            });
        }
        cache.length = queries.end;
        self.dropout.forward(normalize(&self.final_norm, self.widened.narrow(state)))
    }
}

/// The attention bias that hides the future from each of `queries`.
///
/// # Shapes
///
/// - output: `[1, 1, queries, queries.end]`
fn causal_bias(queries: Range<usize>, device: &Device) -> Tensor<4> {
    let keys = queries.end;
    let rows = queries.len();
    let bias: Vec<f32> = queries
        .flat_map(|query| (0..keys).map(move |key| if key > query { HIDDEN } else { 0.0 }))
        .collect();
    Tensor::from_data(TensorData::new(bias, [1, 1, rows, keys]), device)
}
