use altup_core::AltUp;
use burn::module::{Initializer, Module};
use burn::nn::{Dropout, RmsNorm};
use burn::tensor::{Bool, Device, Tensor};

use crate::T5Config;
use crate::attention::AttentionLayer;
use crate::feed_forward::FeedForwardLayer;
use crate::initialization::{dropout, rms_norm};
use crate::relative_position_bias::RelativePositionBias;
use crate::widened::Widened;

/// One encoder layer: self-attention, then feed-forward.
#[derive(Module, Debug)]
pub struct EncoderBlock {
    /// The self-attention sub-layer.
    pub self_attention: AttentionLayer,
    /// The feed-forward sub-layer.
    pub feed_forward: FeedForwardLayer,
    /// Predict and correct around the layer, where the representation is widened.
    pub altup: Option<AltUp>,
}

impl EncoderBlock {
    fn new(config: &T5Config, device: &Device) -> Self {
        Self {
            self_attention: AttentionLayer::self_attention(config, device),
            feed_forward: FeedForwardLayer::new(config, device),
            altup: Widened::altup(config, device),
        }
    }

    /// Runs the layer on one block of the representation.
    ///
    /// # Shapes
    ///
    /// - x: `[batch_size, seq_length, d_model]`
    /// - bias: broadcastable to `[batch_size, num_heads, seq_length, seq_length]`
    /// - output: `[batch_size, seq_length, d_model]`
    pub fn forward(&self, x: Tensor<3>, bias: Tensor<4>) -> Tensor<3> {
        self.feed_forward.forward(self.self_attention.attend_to_self(x, bias, None))
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
}

impl Encoder {
    pub(crate) fn new(config: &T5Config, device: &Device) -> Self {
        Self {
            blocks: (0..config.num_layers).map(|_| EncoderBlock::new(config, device)).collect(),
            position_bias: RelativePositionBias::new(
                Initializer::Zeros
                    .init([config.relative_attention_num_buckets, config.num_heads], device),
                true,
                config.relative_attention_max_distance,
            ),
            final_norm: rms_norm(config.output_width(), config, device),
            dropout: dropout(config),
            widened: Widened::new(config),
        }
    }

    /// Encodes looked-up embeddings.
    ///
    /// # Shapes
    ///
    /// - embedded: `[batch_size, seq_length, table_width]`
    /// - padding: `[batch_size, seq_length]`, true where a token is padding; none if nothing is
    /// - output: `[batch_size, seq_length, output_width]`, after the final norm
    pub fn forward(&self, embedded: Tensor<3>, padding: Option<&Tensor<2, Bool>>) -> Tensor<3> {
        let [_, seq_length, _] = embedded.dims();
        let positions = 0..seq_length;
        let mut bias = self.position_bias.forward(positions.clone(), positions, &embedded.device());
        if let Some(padding) = padding {
            bias = bias + padding_bias(padding);
        }
        let mut state = self.widened.widen(self.dropout.forward(embedded));
        for (layer, block) in self.blocks.iter().enumerate() {
            state = self
                .widened
                .update(block.altup.as_ref(), state, layer, |x| block.forward(x, bias.clone()));
        }
        self.dropout.forward(self.final_norm.forward(self.widened.narrow(state)))
    }
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
