use altup_core::{
    AltUp, SequenceAltUp, SequenceAltUpConfig, anchors, average_pool, stride_and_skip,
};
use burn::module::{Initializer, Module};
use burn::nn::{Dropout, RmsNorm};
use burn::tensor::{Bool, Device, Tensor};

use crate::SequenceMethod::{Altup, AveragePool, StrideAndSkip};
use crate::attention::AttentionLayer;
use crate::feed_forward::FeedForwardLayer;
use crate::fused::rms_norm as normalize;
use crate::initialization::{dropout, rms_norm};
use crate::mixture_of_experts::{LayerRouting, RoutingContext};
use crate::relative_position_bias::RelativePositionBias;
use crate::widened::Widened;
use crate::{EncoderSequence, T5Config};

/// One encoder layer: self-attention, then feed-forward.
#[derive(Module, Debug)]
pub struct EncoderBlock {
    /// The self-attention sub-layer.
    pub self_attention: AttentionLayer,
    /// The feed-forward sub-layer.
    pub feed_forward: FeedForwardLayer,
    /// Predict and correct around the layer, where the representation is widened.
    pub altup: Option<AltUp>,
    /// Predict and correct along the sequence, within those of the blocks.
    pub sequence_altup: Option<SequenceAltUp>,
}

impl EncoderBlock {
    fn new(config: &T5Config, layer: usize, device: &Device) -> Self {
        let sequence = config.encoder_sequence(layer);
        let sequence = sequence.filter(|sequence| sequence.method == Altup);
        Self {
            self_attention: AttentionLayer::self_attention(config, device),
            feed_forward: FeedForwardLayer::new(config, config.encoder_moe(layer), device),
            altup: Widened::altup(config, device),
            sequence_altup: sequence
                .map(|sequence| SequenceAltUpConfig::new(sequence.stride).init(device)),
        }
    }

    /// Runs the layer on one block of the representation.
    ///
    /// # Shapes
    ///
    /// - x: `[batch_size, seq_length, d_model]`
    /// - bias: broadcastable to `[batch_size, num_heads, seq_length, seq_length]`
    /// - output: `[batch_size, seq_length, d_model]`
    fn forward(
        &self,
        x: Tensor<3>,
        bias: Tensor<4>,
        context: &mut RoutingContext<'_>,
    ) -> Tensor<3> {
        self.feed_forward.forward_routed(self.self_attention.attend_to_self(x, bias, None), context)
    }
}

/// T5's encoder.
#[derive(Module, Debug)]
pub struct Encoder {
    /// The layers.
    pub blocks: Vec<EncoderBlock>,
    /// The bias that all layers share.
    pub position_bias: RelativePositionBias,
    /// Normalises the output.
    pub final_norm: RmsNorm,
    dropout: Dropout,
    widened: Widened,
    #[module(skip)]
    sequence: Option<EncoderSequence>,
}

/// What an encoder makes of a batch, for the decoder to attend to.
#[derive(Clone, Debug)]
pub struct Memory {
    /// `[batch_size, memory_length, output_width]`, after the final norm. It is as long as the input,
    /// or ⌈input_length / stride⌉ where the encoder pools.
    pub hidden: Tensor<3>,
    /// `[batch_size, memory_length]`, true where a position is padding; none if nothing is.
    pub padding: Option<Tensor<2, Bool>>,
}

/// The tokens that a layer computes on.
struct Positions {
    /// Broadcastable to `[batch_size, num_heads, length, length]`.
    bias: Tensor<4>,
    /// Whether each token is no padding, row by row; none if none is, or nobody asks.
    real: Option<Vec<bool>>,
}

impl Encoder {
    pub(crate) fn new(config: &T5Config, device: &Device) -> Self {
        Self {
            blocks: (0..config.num_layers)
                .map(|layer| EncoderBlock::new(config, layer, device))
                .collect(),
            position_bias: RelativePositionBias::new(
                Initializer::Zeros
                    .init([config.relative_attention_num_buckets, config.num_heads], device),
                true,
                config.relative_attention_max_distance,
            ),
            final_norm: rms_norm(config.output_width(), config, device),
            dropout: dropout(config),
            widened: Widened::new(config),
            sequence: config.altup.as_ref().and_then(|altup| altup.encoder_sequence.clone()),
        }
    }

    /// Encodes looked-up embeddings.
    ///
    /// # Shapes
    ///
    /// - embedded: `[batch_size, seq_length, table_width]`
    /// - padding: `[batch_size, seq_length]`, true where a token is padding; none if nothing is
    pub fn forward(&self, embedded: Tensor<3>, padding: Option<&Tensor<2, Bool>>) -> Memory {
        self.forward_logged(embedded, padding, None)
    }

    /// As [`forward`](Self::forward); how experts are routed goes to `log`.
    pub(crate) fn forward_logged(
        &self,
        embedded: Tensor<3>,
        padding: Option<&Tensor<2, Bool>>,
        mut log: Option<&mut Vec<LayerRouting>>,
    ) -> Memory {
        let [_, seq_length, _] = embedded.dims();
        let mut padding = padding.cloned();
        let mut whole = self.positions(seq_length, padding.as_ref(), 1, &embedded.device());
        let strided = self.sequence.as_ref().filter(|sequence| sequence.method != AveragePool);
        let anchors = strided.map(|sequence| {
            let stride = sequence.stride;
            let length = seq_length.div_ceil(stride);
            let padding = padding.clone().map(|padding| anchor_padding(padding, stride));
            self.positions(length, padding.as_ref(), stride, &embedded.device())
        });
        let mut state = self.widened.widen(self.dropout.forward(embedded));
        for (layer, block) in self.blocks.iter().enumerate() {
            let sequence = self.sequence.as_ref();
            let sequence = sequence.filter(|s| s.layers(self.blocks.len()).contains(&layer));
            let method = sequence.map(|sequence| sequence.method);
            if let Some(EncoderSequence { method: AveragePool, stride, first_layer, .. }) = sequence
                && layer == *first_layer
            {
                (state, padding) = pool(state, padding, *stride);
                let length = state.dims()[2];
                whole = self.positions(length, padding.as_ref(), *stride, &state.device());
            }
            let positions = match (method, &anchors) {
                (Some(Altup | StrideAndSkip), Some(anchors)) => anchors,
                _ => &whole,
            };
            let mut context = RoutingContext {
                stack: "encoder",
                layer,
                real: positions.real.as_deref(),
                log: log.as_deref_mut(),
            };
            let mut compute = |x| block.forward(x, positions.bias.clone(), &mut context);
            state = self.widened.update(block.altup.as_ref(), state, layer, |x| {
                match (method, &block.sequence_altup, sequence) {
                    (Some(Altup), Some(sequence_altup), _) => sequence_altup.forward(x, compute),
                    (Some(StrideAndSkip), _, Some(s)) => stride_and_skip(x, s.stride, compute),
                    _ => compute(x),
                }
            });
        }
        let hidden = normalize(&self.final_norm, self.widened.narrow(state));
        Memory { hidden: self.dropout.forward(hidden), padding }
    }

    /// `length` tokens, each `stride` positions behind the one before it.
    fn positions(
        &self,
        length: usize,
        padding: Option<&Tensor<2, Bool>>,
        stride: usize,
        device: &Device,
    ) -> Positions {
        let mut bias = self.position_bias.strided(0..length, 0..length, stride, device);
        if let Some(padding) = padding {
            bias = bias + padding_bias(padding);
        }
        let routes = self.blocks.iter().any(|block| block.feed_forward.moe.is_some());
        let real = padding.filter(|_| routes).map(|padding| {
            padding.clone().into_data().iter::<bool>().map(|padding| !padding).collect()
        });
        Positions { bias, real }
    }
}

/// Which anchors are padding.
///
/// # Shapes
///
/// - padding: `[batch_size, seq_length]`
/// - output: `[batch_size, ⌈seq_length / stride⌉]`
fn anchor_padding(padding: Tensor<2, Bool>, stride: usize) -> Tensor<2, Bool> {
    let padding = padding.float().unsqueeze_dim::<3>(2);
    anchors(padding, stride).squeeze_dim::<2>(2).equal_elem(1.0)
}

/// Pools every block of the state: `[K, B, T, d]` and `[B, T]` to `[K, B, ⌈T/k⌉, d]` and `[B, ⌈T/k⌉]`.
fn pool(
    state: Tensor<4>,
    padding: Option<Tensor<2, Bool>>,
    stride: usize,
) -> (Tensor<4>, Option<Tensor<2, Bool>>) {
    let [num_blocks, batch_size, seq_length, width] = state.dims();
    let rows = num_blocks * batch_size;
    let padding = padding.map(|padding| Tensor::cat(vec![padding; num_blocks], 0));
    let (pooled, padding) = average_pool(state.reshape([rows, seq_length, width]), padding, stride);
    let [_, length, _] = pooled.dims();
    let padding = padding.map(|padding| padding.narrow(0, 0, batch_size));
    (pooled.reshape([num_blocks, batch_size, length, width]), padding)
}

/// What is added to a score that must not count. Large enough to vanish behind any score in the
/// softmax, small enough for every float type.
pub(crate) const HIDDEN: f32 = -1e9;

/// The attention bias that hides padding.
///
/// # Shapes
///
/// - padding: `[batch_size, keys]`
/// - output: `[batch_size, 1, 1, keys]`
pub(crate) fn padding_bias(padding: &Tensor<2, Bool>) -> Tensor<4> {
    let [batch_size, keys] = padding.dims();
    padding.clone().float().mul_scalar(HIDDEN).reshape([batch_size, 1, 1, keys])
}
