use altup_core::{AltUp, AltUpConfig, Widened};
use burn::config::Config;
use burn::module::Module;
use burn::nn::{RmsNorm, RmsNormConfig};
use burn::tensor::{Bool, Device, Int, Tensor};
use std::ops::Range;

use crate::T5Config;
use crate::attention::{AttentionLayer, AttentionLayerConfig, KeyValue, PastKeyValue};
use crate::encoder::Memory;
use crate::feed_forward::{FeedForwardLayer, FeedForwardLayerConfig};
use crate::kept::Kept;
use crate::masks::{causal_bias, padding_bias};
use crate::mixture_of_experts::{LayerContext, LayerRouting};
use crate::noise::{Noise, Place};
use crate::operations::rms_norm::rms_norm;
use crate::recomputation::run_layer;
use crate::relative_position_bias::RelativePositionBias;

/// Configuration of [`DecoderBlock`].
#[derive(Config, Debug)]
pub struct DecoderBlockConfig {
    /// The self-attention sub-layer.
    pub self_attention: AttentionLayerConfig,
    /// The cross-attention sub-layer.
    pub cross_attention: AttentionLayerConfig,
    /// The feed-forward sub-layer.
    pub feed_forward: FeedForwardLayerConfig,
    /// Predict and correct around the layer, which a [`Decoder`] applies and [`DecoderBlock::forward`] doesn't. Default:
    /// none
    pub altup: Option<AltUpConfig>,
}

/// One decoder layer: causal self-attention, cross-attention to the encoder's output, feed-forward.
///
/// Should be created with [`DecoderBlockConfig`].
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

/// The keys and values of one decoder layer: of the positions before, and of the memory, projected once.
#[derive(Clone, Debug)]
pub struct DecoderBlockCache {
    past: PastKeyValue,
    memory: KeyValue,
}

impl DecoderBlockCache {
    /// Keeps the given rows of the batch, in their order; a row may come several times.
    ///
    /// # Shapes
    ///
    /// - rows: `[new_batch_size]`
    pub fn select_rows(&mut self, rows: &Tensor<1, Int>) {
        self.memory = self.memory.clone().select_rows(rows);
        self.reorder(rows);
    }

    /// Puts the positions before into another order, between rows that attend to the same memory.
    ///
    /// # Shapes
    ///
    /// - rows: `[batch_size]`
    pub fn reorder(&mut self, rows: &Tensor<1, Int>) {
        self.past.select_rows(rows);
    }
}

impl DecoderBlockConfig {
    /// Initializes [`DecoderBlock`] as T5 and AltUp do.
    ///
    /// # Panics
    ///
    /// As the configurations of its parts.
    pub fn init(&self, device: &Device) -> DecoderBlock {
        DecoderBlock {
            self_attention: self.self_attention.init(device),
            cross_attention: self.cross_attention.init(device),
            feed_forward: self.feed_forward.init(device),
            altup: self.altup.as_ref().map(|config| config.init(device)),
        }
    }
}

impl DecoderBlock {
    /// A cache without positions, for a memory `[batch_size, memory_length, memory_width]`.
    pub fn start(&self, memory: Tensor<3>) -> DecoderBlockCache {
        let memory = self.cross_attention.attention.project_memory(memory);
        DecoderBlockCache { past: PastKeyValue::default(), memory }
    }

    /// Runs the layer's three sub-layers on one block of the representation, for the positions that follow those in
    /// `cache`. Experts take every token, as if none were padding. AltUp is applied around this, by
    /// [`Decoder::forward`].
    ///
    /// # Shapes
    ///
    /// - x: `[batch_size, seq_length, d_model]`
    /// - bias: broadcastable to `[batch_size, num_heads, seq_length, past + seq_length]`, in f32
    /// - memory_bias: broadcastable to `[batch_size, num_heads, seq_length, memory_length]`, in f32
    /// - output: `[batch_size, seq_length, d_model]`
    pub fn forward(
        &self,
        x: Tensor<3>,
        bias: Option<Tensor<4>>,
        memory_bias: Option<Tensor<4>>,
        cache: &mut DecoderBlockCache,
        noise: Noise,
    ) -> Tensor<3> {
        self.forward_logged(x, bias, memory_bias, cache, &mut LayerContext::new(noise))
    }

    /// As [`forward`](Self::forward), but experts pass over padding, and with how they were chosen: see
    /// [`FeedForwardLayer::forward_with_routing`].
    pub fn forward_with_routing(
        &self,
        x: Tensor<3>,
        bias: Option<Tensor<4>>,
        memory_bias: Option<Tensor<4>>,
        cache: &mut DecoderBlockCache,
        real: Option<&Tensor<2, Bool>>,
        noise: Noise,
    ) -> (Tensor<3>, Option<LayerRouting>) {
        LayerContext::of_real(real, noise, |context| {
            self.forward_logged(x, bias, memory_bias, cache, context)
        })
    }

    /// As [`forward`](Self::forward), with the tokens and the log of `context` for the experts.
    fn forward_logged(
        &self,
        x: Tensor<3>,
        bias: Option<Tensor<4>>,
        memory_bias: Option<Tensor<4>>,
        cache: &mut DecoderBlockCache,
        context: &mut LayerContext<'_>,
    ) -> Tensor<3> {
        let (noise, past) = (context.noise, Some(&mut cache.past));
        let x = self.self_attention.attend_to_self(x, bias, past, noise.in_sub_layer(0));
        let memory = cache.memory.clone();
        let noise_of_cross = noise.in_sub_layer(1);
        let x = self.cross_attention.attend_to_memory(x, memory, memory_bias, noise_of_cross);
        context.noise = noise.in_sub_layer(2);
        self.feed_forward.forward_logged(x, context)
    }

    /// The state behind the layer with AltUp around it.
    fn update(
        &self,
        widened: &Widened,
        state: Tensor<4>,
        bias: Tensor<4>,
        memory_bias: Option<Tensor<4>>,
        cache: &mut DecoderBlockCache,
        context: &mut LayerContext<'_>,
    ) -> Tensor<4> {
        let layer = context.layer;
        widened.update(self.altup.as_ref(), state, layer, |x| {
            self.forward_logged(x, Some(bias), memory_bias, cache, context)
        })
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
    dropout: f64,
    widened: Widened,
    /// What hides the future from these queries.
    #[module(skip)]
    future: Kept<Range<usize>, Tensor<4>>,
    /// Whether the backward pass computes each layer anew.
    pub(crate) recomputes_layers: bool,
}

/// What a decoder keeps of the positions it has seen: the keys and values of every layer. Those of the encoder's
/// output are among them, and are projected once.
#[derive(Clone, Debug)]
pub struct DecoderCache {
    blocks: Vec<DecoderBlockCache>,
    memory_bias: Option<Tensor<4>>,
    length: usize,
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
        self.memory_bias = self.memory_bias.take().map(|bias| bias.select(0, rows.clone()));
        self.blocks.iter_mut().for_each(|block| block.select_rows(rows));
    }

    /// Puts what is decoded into another order, between rows that attend to the same memory.
    ///
    /// # Shapes
    ///
    /// - rows: `[batch_size]`
    pub fn reorder(&mut self, rows: &Tensor<1, Int>) {
        self.blocks.iter_mut().for_each(|block| block.reorder(rows));
    }
}

impl Decoder {
    pub(crate) fn new(config: &T5Config, device: &Device) -> Self {
        Self {
            blocks: (0..config.decoder_layers())
                .map(|layer| config.decoder_block(layer).init(device))
                .collect(),
            position_bias: config.position_bias(false).init(device),
            final_norm: RmsNormConfig::new(config.output_width())
                .with_epsilon(config.layer_norm_epsilon)
                .init(device),
            dropout: config.dropout_rate,
            widened: config.widened(),
            future: Kept::default(),
            recomputes_layers: false,
        }
    }

    /// An empty cache that attends to `memory`.
    pub fn start(&self, memory: &Memory) -> DecoderCache {
        let start = |block: &DecoderBlock| block.start(memory.hidden.clone());
        DecoderCache {
            blocks: self.blocks.iter().map(start).collect(),
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
    pub fn forward(
        &self,
        embedded: Tensor<3>,
        cache: &mut DecoderCache,
        noise: Noise,
    ) -> Tensor<3> {
        self.forward_logged(embedded, cache, noise, None, None)
    }

    /// As [`forward`](Self::forward), with experts for the positions that are `real`, all if none is
    /// given; how they are routed goes to `log`.
    pub(crate) fn forward_logged(
        &self,
        embedded: Tensor<3>,
        cache: &mut DecoderCache,
        noise: Noise,
        real: Option<&Tensor<2, Bool>>,
        mut log: Option<&mut Vec<LayerRouting>>,
    ) -> Tensor<3> {
        let [_, seq_length, _] = embedded.dims();
        let queries = cache.length..cache.length + seq_length;
        let bias = self.causal_bias(queries.clone(), &embedded.device());
        let mut state = self.widened.widen(noise.drop(embedded, Place::Embeddings, self.dropout));
        for (layer, (block, block_cache)) in self.blocks.iter().zip(&mut cache.blocks).enumerate() {
            let mut context = LayerContext {
                noise: noise.in_layer(layer),
                stack: "decoder",
                layer,
                real,
                log: log.as_deref_mut(),
            };
            let (bias, memory_bias) = (bias.clone(), cache.memory_bias.clone());
            let widened = &self.widened;
            state = block.update(widened, state, bias, memory_bias, block_cache, &mut context);
        }
        cache.length = queries.end;
        self.read(state, noise)
    }

    /// As [`forward_logged`](Self::forward_logged), for a whole target and in a way that the backward pass computes each
    /// layer anew, its keys and values of the memory among it.
    pub(crate) fn forward_recomputed(
        &self,
        embedded: Tensor<3>,
        memory: &Memory,
        noise: Noise,
        real: Option<&Tensor<2, Bool>>,
        mut log: Option<&mut Vec<LayerRouting>>,
    ) -> Tensor<3> {
        let [_, seq_length, _] = embedded.dims();
        let bias = self.causal_bias(0..seq_length, &embedded.device());
        let memory_bias = memory.padding.as_ref().map(padding_bias);
        let memory = memory.hidden.clone().unsqueeze_dim::<4>(0);
        let mut state = self.widened.widen(noise.drop(embedded, Place::Embeddings, self.dropout));
        for (layer, block) in self.blocks.iter().enumerate() {
            let context = LayerContext {
                noise: noise.in_layer(layer),
                stack: "decoder",
                layer,
                real,
                log: log.as_deref_mut(),
            };
            // Once for the keys and once for the values: see `recomputed`.
            let inputs = [state, bias.clone(), memory.clone(), memory.clone()];
            let (widened, memory_bias) = (self.widened.clone(), memory_bias.clone());
            state = run_layer(
                true,
                block,
                inputs,
                context,
                move |block: &DecoderBlock, [state, bias, for_keys, for_values], context| {
                    let memory = [for_keys, for_values].map(|memory| memory.squeeze_dim(0));
                    let memory = block.cross_attention.attention.project_memories(memory);
                    let cache = &mut DecoderBlockCache { past: PastKeyValue::default(), memory };
                    block.update(&widened, state, bias, memory_bias.clone(), cache, context)
                },
            );
        }
        self.read(state, noise)
    }

    /// What self-attention adds to the scores of positions that follow all before them.
    fn causal_bias(&self, queries: Range<usize>, device: &Device) -> Tensor<4> {
        let bias = self.position_bias.forward(queries.clone(), 0..queries.end, device);
        match queries.len() {
            0 | 1 => bias,
            _ => bias + self.future.get(queries.clone(), device, || causal_bias(queries, device)),
        }
    }

    /// The output of the last state.
    fn read(&self, state: Tensor<4>, noise: Noise) -> Tensor<3> {
        let hidden = self.widened.narrow(state);
        let hidden = rms_norm(hidden, self.final_norm.gamma.val(), self.final_norm.epsilon);
        noise.drop(hidden, Place::StackOutput, self.dropout)
    }
}
