use altup_core::{
    AltUp, AltUpConfig, SequenceAltUp, SequenceAltUpConfig, Widened, anchors, average_pool,
    stride_and_skip,
};
use burn::config::Config;
use burn::module::Module;
use burn::nn::{RmsNorm, RmsNormConfig};
use burn::tensor::{Bool, Device, Tensor};

use crate::attention::{AttentionLayer, AttentionLayerConfig};
use crate::feed_forward::{FeedForwardLayer, FeedForwardLayerConfig};
use crate::masks::padding_bias;
use crate::mixture_of_experts::{LayerContext, LayerRouting};
use crate::noise::{Noise, Place};
use crate::operations::rms_norm::rms_norm;
use crate::recomputation::run_layer;
use crate::relative_position_bias::RelativePositionBias;
use crate::{SequenceMethod, T5Config};

/// Configuration of [`EncoderBlock`].
#[derive(Config, Debug)]
pub struct EncoderBlockConfig {
    /// The self-attention sub-layer.
    pub self_attention: AttentionLayerConfig,
    /// The feed-forward sub-layer.
    pub feed_forward: FeedForwardLayerConfig,
    /// Predict and correct around the layer, which an [`Encoder`] applies and [`EncoderBlock::forward`] doesn't. Default:
    /// none
    pub altup: Option<AltUpConfig>,
    /// How the layer computes on fewer tokens, which an [`Encoder`] applies and [`EncoderBlock::forward`] doesn't.
    /// Default: on all
    pub reduction: Option<ReductionConfig>,
}

/// Configuration of [`Reduction`].
#[derive(Config, Debug)]
pub struct ReductionConfig {
    /// Which tokens the layer computes on, and what becomes of the others.
    pub method: SequenceMethod,
    /// One of this many tokens remains; at least 1.
    pub stride: usize,
}

/// One encoder layer: self-attention, then feed-forward.
///
/// Should be created with [`EncoderBlockConfig`].
#[derive(Module, Debug)]
pub struct EncoderBlock {
    /// The self-attention sub-layer.
    pub self_attention: AttentionLayer,
    /// The feed-forward sub-layer.
    pub feed_forward: FeedForwardLayer,
    /// Predict and correct around the layer, where the representation is widened.
    pub altup: Option<AltUp>,
    /// How the layer computes on fewer tokens, within predict and correct; none if it computes on all.
    pub reduction: Option<Reduction>,
}

/// How a layer of the encoder computes on fewer tokens.
#[derive(Module, Debug)]
pub enum Reduction {
    /// On every k-th; predict and correct along the sequence give the others.
    SequenceAltUp(SequenceAltUp),
    /// On every k-th; the others pass unchanged.
    StrideAndSkip(Stride),
    /// On means of k tokens, and so do all layers after it.
    AveragePool(Stride),
}

/// One of this many tokens remains.
#[derive(Module, Debug)]
pub struct Stride {
    stride: usize,
}

impl EncoderBlockConfig {
    /// Initializes [`EncoderBlock`] as T5 and AltUp do.
    ///
    /// # Panics
    ///
    /// As the configurations of its parts.
    pub fn init(&self, device: &Device) -> EncoderBlock {
        EncoderBlock {
            self_attention: self.self_attention.init(device),
            feed_forward: self.feed_forward.init(device),
            altup: self.altup.as_ref().map(|config| config.init(device)),
            reduction: self.reduction.as_ref().map(|config| config.init(device)),
        }
    }
}

impl ReductionConfig {
    /// Initializes [`Reduction`].
    ///
    /// # Panics
    ///
    /// Panics if the stride is 0.
    pub fn init(&self, device: &Device) -> Reduction {
        let stride = self.stride;
        assert!(stride > 0, "The stride must be at least 1. Got stride={stride}");
        match self.method {
            SequenceMethod::Altup => {
                Reduction::SequenceAltUp(SequenceAltUpConfig::new(stride).init(device))
            }
            SequenceMethod::StrideAndSkip => Reduction::StrideAndSkip(Stride { stride }),
            SequenceMethod::AveragePool => Reduction::AveragePool(Stride { stride }),
        }
    }
}

impl Stride {
    /// One of this many tokens remains.
    pub fn stride(&self) -> usize {
        self.stride
    }
}

impl Reduction {
    /// The stride between the tokens that remain in place; none where tokens are averaged.
    fn stride_of_anchors(&self) -> Option<usize> {
        match self {
            Self::SequenceAltUp(sequence) => Some(sequence.stride()),
            Self::StrideAndSkip(skip) => Some(skip.stride),
            Self::AveragePool(_) => None,
        }
    }
}

impl EncoderBlock {
    /// Runs the layer's two sub-layers on one block of the representation. Experts take every token, as if none were
    /// padding. AltUp and a reduction are applied around this, by [`Encoder::forward`].
    ///
    /// # Shapes
    ///
    /// - x: `[batch_size, seq_length, d_model]`
    /// - bias: broadcastable to `[batch_size, num_heads, seq_length, seq_length]`, in f32
    /// - output: `[batch_size, seq_length, d_model]`
    pub fn forward(&self, x: Tensor<3>, bias: Option<Tensor<4>>, noise: Noise) -> Tensor<3> {
        self.forward_logged(x, bias, &mut LayerContext::new(noise))
    }

    /// As [`forward`](Self::forward), but experts pass over padding, and with how they were chosen: see
    /// [`FeedForwardLayer::forward_with_routing`].
    pub fn forward_with_routing(
        &self,
        x: Tensor<3>,
        bias: Option<Tensor<4>>,
        real: Option<&Tensor<2, Bool>>,
        noise: Noise,
    ) -> (Tensor<3>, Option<LayerRouting>) {
        LayerContext::of_real(real, noise, |context| self.forward_logged(x, bias, context))
    }

    /// As [`forward`](Self::forward), with the tokens and the log of `context` for the experts.
    fn forward_logged(
        &self,
        x: Tensor<3>,
        bias: Option<Tensor<4>>,
        context: &mut LayerContext<'_>,
    ) -> Tensor<3> {
        let noise = context.noise;
        let x = self.self_attention.attend_to_self(x, bias, None, noise.in_sub_layer(0));
        context.noise = noise.in_sub_layer(2);
        self.feed_forward.forward_logged(x, context)
    }

    /// The state behind the layer with AltUp and a reduction around it.
    fn update(
        &self,
        widened: &Widened,
        state: Tensor<4>,
        bias: Tensor<4>,
        context: &mut LayerContext<'_>,
    ) -> Tensor<4> {
        let layer = context.layer;
        let compute = |x| self.forward_logged(x, Some(bias), context);
        widened.update(self.altup.as_ref(), state, layer, |x| match &self.reduction {
            Some(Reduction::SequenceAltUp(sequence)) => sequence.forward(x, compute),
            Some(Reduction::StrideAndSkip(skip)) => stride_and_skip(x, skip.stride, compute),
            Some(Reduction::AveragePool(_)) | None => compute(x),
        })
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
    dropout: f64,
    widened: Widened,
    /// Whether the backward pass computes each layer anew.
    pub(crate) recomputes_layers: bool,
}

/// The encoder's output for a batch, which the decoder attends to.
#[derive(Clone, Debug)]
pub struct Memory {
    /// `[batch_size, memory_length, output_width]`, after the final norm. It is as long as the input,
    /// or ⌈input_length / stride⌉ where the encoder pools.
    pub hidden: Tensor<3>,
    /// `[batch_size, memory_length]`, true at padding; `None` if there is no padding.
    pub padding: Option<Tensor<2, Bool>>,
}

/// The tokens that a layer computes on.
struct Positions {
    /// Broadcastable to `[batch_size, num_heads, length, length]`.
    bias: Tensor<4>,
    /// Whether each token is no padding, row by row; none if none is, or nobody asks.
    real: Option<Tensor<2, Bool>>,
}

impl Encoder {
    pub(crate) fn new(config: &T5Config, device: &Device) -> Self {
        Self {
            blocks: (0..config.num_layers)
                .map(|layer| config.encoder_block(layer).init(device))
                .collect(),
            position_bias: config.position_bias(true).init(device),
            final_norm: RmsNormConfig::new(config.output_width())
                .with_epsilon(config.layer_norm_epsilon)
                .init(device),
            dropout: config.dropout_rate,
            widened: config.widened(),
            recomputes_layers: false,
        }
    }

    /// Encodes looked-up embeddings.
    ///
    /// # Shapes
    ///
    /// - embedded: `[batch_size, seq_length, table_width]`
    /// - padding: `[batch_size, seq_length]`, true at padding; `None` if there is no padding
    pub fn forward(
        &self,
        embedded: Tensor<3>,
        padding: Option<&Tensor<2, Bool>>,
        noise: Noise,
    ) -> Memory {
        self.forward_logged(embedded, padding, noise, None)
    }

    /// As [`forward`](Self::forward); how experts are routed goes to `log`.
    pub(crate) fn forward_logged(
        &self,
        embedded: Tensor<3>,
        padding: Option<&Tensor<2, Bool>>,
        noise: Noise,
        mut log: Option<&mut Vec<LayerRouting>>,
    ) -> Memory {
        let [_, seq_length, _] = embedded.dims();
        let mut padding = padding.cloned();
        let mut whole = self.positions(seq_length, padding.as_ref(), 1, &embedded.device());
        let anchors = self.blocks.iter().find_map(|block| {
            let stride = block.reduction.as_ref()?.stride_of_anchors()?;
            let length = seq_length.div_ceil(stride);
            let padding = padding.clone().map(|padding| anchor_padding(padding, stride));
            Some(self.positions(length, padding.as_ref(), stride, &embedded.device()))
        });
        let mut state = self.widened.widen(noise.drop(embedded, Place::Embeddings, self.dropout));
        for (layer, block) in self.blocks.iter().enumerate() {
            let stride = block.reduction.as_ref().and_then(Reduction::stride_of_anchors);
            if let Some(Reduction::AveragePool(Stride { stride })) = block.reduction {
                (state, padding) = pool(state, padding, stride);
                let length = state.dims()[2];
                whole = self.positions(length, padding.as_ref(), stride, &state.device());
            }
            let positions = anchors.as_ref().filter(|_| stride.is_some()).unwrap_or(&whole);
            let context = LayerContext {
                noise: noise.in_layer(layer),
                stack: "encoder",
                layer,
                real: positions.real.as_ref(),
                log: log.as_deref_mut(),
            };
            let widened = self.widened.clone();
            let inputs = [state, positions.bias.clone()];
            state = run_layer(
                self.recomputes_layers,
                block,
                inputs,
                context,
                move |block, [state, bias], context| block.update(&widened, state, bias, context),
            );
        }
        let hidden = self.widened.narrow(state);
        let hidden = rms_norm(hidden, self.final_norm.gamma.val(), self.final_norm.epsilon);
        Memory { hidden: noise.drop(hidden, Place::StackOutput, self.dropout), padding }
    }

    /// `length` tokens, `stride` positions apart.
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
        let real = padding.filter(|_| routes).map(|padding| padding.clone().bool_not());
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
