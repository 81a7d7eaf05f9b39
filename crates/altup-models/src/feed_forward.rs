use burn::config::Config;
use burn::module::Module;
use burn::nn::{Linear, RmsNorm, RmsNormConfig};
use burn::tensor::activation::relu;
use burn::tensor::{Bool, Device, Tensor};

use crate::Activation;
use crate::initialization::projection;
use crate::mixture_of_experts::{
    LayerContext, LayerRouting, MixtureOfExperts, MixtureOfExpertsConfig,
};
use crate::noise::{Noise, Place, check_dropout};
use crate::operations::gated_gelu::gated_gelu;
use crate::operations::project::{project, project_to_two};
use crate::operations::rms_norm::rms_norm;

/// Configuration of [`FeedForward`].
#[derive(Config, Debug)]
pub struct FeedForwardConfig {
    /// Width of inputs and outputs.
    pub d_model: usize,
    /// Hidden width.
    pub d_ff: usize,
    /// The activation, and with it the number of projections.
    pub activation: Activation,
    /// Dropout rate of the hidden activations in training. Default: 0.0
    #[config(default = 0.0)]
    pub dropout: f64,
    /// Scales every initial standard deviation. Default: 1.0
    #[config(default = 1.0)]
    pub initializer_factor: f64,
}

/// T5's feed-forward network, without biases.
///
/// Should be created with [`FeedForwardConfig`].
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
    dropout: f64,
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
    dropout: f64,
}

impl FeedForwardConfig {
    /// Initializes [`FeedForward`] as T5 does, with standard deviations of d_model^−½ and d_ff^−½.
    ///
    /// # Panics
    ///
    /// Panics if a width is 0, or the dropout isn't at least 0 and below 1.
    pub fn init(&self, device: &Device) -> FeedForward {
        check_dropout(self.dropout);
        assert!(
            self.d_model > 0 && self.d_ff > 0,
            "A network has widths. Got d_model={}, d_ff={}",
            self.d_model,
            self.d_ff
        );
        let projection = |d_input: usize, d_output| {
            let std = self.initializer_factor * (d_input as f64).powf(-0.5);
            projection(d_input, d_output, std, device)
        };
        let into = || projection(self.d_model, self.d_ff);
        let out = || projection(self.d_ff, self.d_model);
        let dropout = self.dropout;
        match self.activation {
            Activation::Relu => {
                FeedForward::Relu(ReluFeedForward { wi: into(), wo: out(), dropout })
            }
            Activation::GatedGelu => FeedForward::GatedGelu(GatedGeluFeedForward {
                wi_0: into(),
                wi_1: into(),
                wo: out(),
                dropout,
            }),
        }
    }
}

impl FeedForward {
    /// Applies the network to each position.
    ///
    /// # Shapes
    ///
    /// - x: `[batch_size, seq_length, d_model]`
    /// - output: `[batch_size, seq_length, d_model]`
    pub fn forward(&self, x: Tensor<3>, noise: Noise) -> Tensor<3> {
        let (hidden, wo, dropout) = match self {
            Self::Relu(layer) => (relu(project(&layer.wi, x)), &layer.wo, layer.dropout),
            Self::GatedGelu(layer) => {
                let [gate, linear] = project_to_two([&layer.wi_0, &layer.wi_1], x);
                (gated_gelu(gate, linear), &layer.wo, layer.dropout)
            }
        };
        project(wo, noise.drop(hidden, Place::Inner, dropout))
    }
}

/// Configuration of [`FeedForwardLayer`].
#[derive(Config, Debug)]
pub struct FeedForwardLayerConfig {
    /// Width of inputs and outputs.
    pub d_model: usize,
    /// The network. Default: none, experts alone
    pub feed_forward: Option<FeedForwardConfig>,
    /// The experts. Default: none
    pub moe: Option<MixtureOfExpertsConfig>,
    /// Dropout rate of what the sub-layer adds, in training. Default: 0.0
    #[config(default = 0.0)]
    pub dropout: f64,
    /// ε of the norm. Default: 1e-6
    #[config(default = 1e-6)]
    pub epsilon: f64,
}

/// A feed-forward sub-layer: x + dropout(feed_forward(norm(x)) + moe(norm(x))), of which a mixture of
/// experts may be the second term or the only one.
///
/// Should be created with [`FeedForwardLayerConfig`].
#[derive(Module, Debug)]
pub struct FeedForwardLayer {
    /// Normalises the input.
    pub norm: RmsNorm,
    /// The network, unless experts replace it.
    pub feed_forward: Option<FeedForward>,
    /// The experts, where the layer has any.
    pub moe: Option<MixtureOfExperts>,
    dropout: f64,
}

impl FeedForwardLayerConfig {
    /// Initializes [`FeedForwardLayer`] as T5 does.
    ///
    /// # Panics
    ///
    /// Panics if there is neither a network nor experts, or the dropout isn't at least 0 and below 1.
    pub fn init(&self, device: &Device) -> FeedForwardLayer {
        assert!(
            self.feed_forward.is_some() || self.moe.is_some(),
            "A feed-forward layer has a network, experts, or both. Got {self:?}"
        );
        check_dropout(self.dropout);
        FeedForwardLayer {
            norm: RmsNormConfig::new(self.d_model).with_epsilon(self.epsilon).init(device),
            feed_forward: self.feed_forward.as_ref().map(|config| config.init(device)),
            moe: self.moe.as_ref().map(|config| config.init(device)),
            dropout: self.dropout,
        }
    }
}

impl FeedForwardLayer {
    /// Applies the sub-layer. Experts take every token, as if none were padding.
    ///
    /// # Shapes
    ///
    /// - x: `[batch_size, seq_length, d_model]`
    /// - output: `[batch_size, seq_length, d_model]`
    pub fn forward(&self, x: Tensor<3>, noise: Noise) -> Tensor<3> {
        self.forward_logged(x, &mut LayerContext::new(noise))
    }

    /// As [`forward`](Self::forward), but experts pass over padding, and with how they were chosen: see
    /// [`MixtureOfExperts::forward_with_routing`]. No routing from a layer without experts.
    pub fn forward_with_routing(
        &self,
        x: Tensor<3>,
        real: Option<&Tensor<2, Bool>>,
        noise: Noise,
    ) -> (Tensor<3>, Option<LayerRouting>) {
        LayerContext::of_real(real, noise, |context| self.forward_logged(x, context))
    }

    /// As [`forward`](Self::forward), with the tokens and the log of `context` for the experts.
    pub(crate) fn forward_logged(&self, x: Tensor<3>, context: &mut LayerContext<'_>) -> Tensor<3> {
        let noise = context.noise;
        let normed = rms_norm(x.clone(), self.norm.gamma.val(), self.norm.epsilon);
        let dense = self.feed_forward.as_ref();
        let dense = dense.map(|dense| dense.forward(normed.clone(), noise));
        let sparse = self.moe.as_ref().map(|moe| moe.forward_logged(normed, context));
        let hidden = match (dense, sparse) {
            (Some(dense), Some(sparse)) => dense + sparse,
            (Some(hidden), None) | (None, Some(hidden)) => hidden,
            (None, None) => unreachable!("a layer has a network, experts, or both"),
        };
        x + noise.drop(hidden, Place::Output, self.dropout)
    }
}
