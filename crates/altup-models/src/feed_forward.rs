use burn::module::Module;
use burn::nn::{Dropout, Linear, RmsNorm};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor};

use crate::fused::{gated_gelu, project, project_to_two, rms_norm as normalize};
use crate::initialization::{dropout, projection, rms_norm};
use crate::mixture_of_experts::{MixtureOfExperts, RoutingContext};
use crate::{Activation, MoeConfig, MoeMode, T5Config};

/// T5's feed-forward network, without biases.
#[derive(Module, Debug)]
pub enum FeedForward {
    /// relu(x wi) wo: the original T5.
    Relu(ReluFeedForward),
    /// (gelu(x wi_0) ⊙ x wi_1) wo, with the tanh approximation of GELU: T5 v1.1.
    GatedGelu(GatedGeluFeedForward),
}

/// The projections of [`FeedForward::Relu`].
#[derive(Module, Debug)]
pub struct ReluFeedForward {
    /// `[d_model, d_ff]`
    pub wi: Linear,
    /// `[d_ff, d_model]`
    pub wo: Linear,
}

/// The projections of [`FeedForward::GatedGelu`].
#[derive(Module, Debug)]
pub struct GatedGeluFeedForward {
    /// The gate's projection, `[d_model, d_ff]`
    pub wi_0: Linear,
    /// The gated projection, `[d_model, d_ff]`
    pub wi_1: Linear,
    /// `[d_ff, d_model]`
    pub wo: Linear,
}

impl FeedForward {
    fn new(config: &T5Config, device: &Device) -> Self {
        let (width, hidden) = (config.d_model, config.d_ff);
        match config.feed_forward_proj {
            Activation::Relu => Self::Relu(ReluFeedForward {
                wi: projection(width, hidden, device),
                wo: projection(hidden, width, device),
            }),
            Activation::GatedGelu => Self::GatedGelu(GatedGeluFeedForward {
                wi_0: projection(width, hidden, device),
                wi_1: projection(width, hidden, device),
                wo: projection(hidden, width, device),
            }),
        }
    }

    /// Applies the network to each position, with `dropout` on the hidden activations.
    ///
    /// # Shapes
    ///
    /// - x: `[batch_size, seq_length, d_model]`
    /// - output: `[batch_size, seq_length, d_model]`
    pub fn forward(&self, x: Tensor<3>, dropout: &Dropout) -> Tensor<3> {
        match self {
            Self::Relu(layer) => {
                let hidden = relu(project(&layer.wi, x));
                project(&layer.wo, dropout.forward(hidden))
            }
            Self::GatedGelu(layer) => {
                let [gate, linear] = project_to_two([&layer.wi_0, &layer.wi_1], x);
                let hidden = gated_gelu(gate, linear);
                project(&layer.wo, dropout.forward(hidden))
            }
        }
    }
}

/// A feed-forward sub-layer: x + dropout(feed_forward(norm(x)) + moe(norm(x))), of which a mixture of
/// experts may be the second term or the only one.
#[derive(Module, Debug)]
pub struct FeedForwardLayer {
    /// Normalises the input.
    pub norm: RmsNorm,
    /// The network, unless experts replace it.
    pub feed_forward: Option<FeedForward>,
    /// The experts, where the layer has any.
    pub moe: Option<MixtureOfExperts>,
    dropout: Dropout,
}

impl FeedForwardLayer {
    /// A layer with the experts of `moe`, where it has any.
    pub(crate) fn new(config: &T5Config, moe: Option<&MoeConfig>, device: &Device) -> Self {
        let replaced = moe.is_some_and(|moe| moe.mode == MoeMode::Switch);
        Self {
            norm: rms_norm(config.d_model, config, device),
            feed_forward: (!replaced).then(|| FeedForward::new(config, device)),
            moe: moe.map(|moe| MixtureOfExperts::new(moe, config, device)),
            dropout: dropout(config),
        }
    }

    /// Applies the sub-layer to tokens of which none is padding.
    ///
    /// # Shapes
    ///
    /// - x: `[batch_size, seq_length, d_model]`
    /// - output: `[batch_size, seq_length, d_model]`
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let mut context = RoutingContext { stack: "", layer: 0, real: None, log: None };
        self.forward_routed(x, &mut context)
    }

    /// As [`forward`](Self::forward), with the tokens and the log of `context` for the experts.
    pub(crate) fn forward_routed(
        &self,
        x: Tensor<3>,
        context: &mut RoutingContext<'_>,
    ) -> Tensor<3> {
        let normed = normalize(&self.norm, x.clone());
        let dense = self.feed_forward.as_ref();
        let dense = dense.map(|dense| dense.forward(normed.clone(), &self.dropout));
        let sparse = self.moe.as_ref().map(|moe| moe.forward(normed, context));
        let hidden = match (dense, sparse) {
            (Some(dense), Some(sparse)) => dense + sparse,
            (Some(hidden), None) | (None, Some(hidden)) => hidden,
            (None, None) => unreachable!("a layer has a network, experts, or both"),
        };
        x + self.dropout.forward(hidden)
    }
}
