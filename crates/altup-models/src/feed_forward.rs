use burn::module::Module;
use burn::nn::{Dropout, Linear, RmsNorm};
use burn::tensor::activation::{relu, sigmoid};
use burn::tensor::{Device, Tensor};

use crate::initialization::{dropout, projection, rms_norm};
use crate::{Activation, T5Config};

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
                let hidden = relu(layer.wi.forward(x));
                layer.wo.forward(dropout.forward(hidden))
            }
            Self::GatedGelu(layer) => {
                let gate = gelu_tanh(layer.wi_0.forward(x.clone()));
                layer.wo.forward(dropout.forward(gate * layer.wi_1.forward(x)))
            }
        }
    }
}

/// The tanh approximation of GELU, x/2 (1 + tanh(√(2/π) (x + 0.044715 x³))), written as
/// x · sigmoid(2 √(2/π) (x + 0.044715 x³)): the same function in fewer passes over memory than
/// Burn's own, which also raises to a power.
fn gelu_tanh(x: Tensor<3>) -> Tensor<3> {
    let scale = 2.0 * (2.0 / std::f64::consts::PI).sqrt();
    let inner = (x.clone() * x.clone() * (0.044715 * scale) + scale) * x.clone();
    x * sigmoid(inner)
}

/// A feed-forward sub-layer: x + dropout(feed_forward(norm(x))).
#[derive(Module, Debug)]
pub struct FeedForwardLayer {
    /// Normalises the input.
    pub norm: RmsNorm,
    /// The network.
    pub feed_forward: FeedForward,
    dropout: Dropout,
}

impl FeedForwardLayer {
    pub(crate) fn new(config: &T5Config, device: &Device) -> Self {
        Self {
            norm: rms_norm(config.d_model, config, device),
            feed_forward: FeedForward::new(config, device),
            dropout: dropout(config),
        }
    }

    /// Applies the sub-layer.
    ///
    /// # Shapes
    ///
    /// - x: `[batch_size, seq_length, d_model]`
    /// - output: `[batch_size, seq_length, d_model]`
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let hidden = self.feed_forward.forward(self.norm.forward(x.clone()), &self.dropout);
        x + self.dropout.forward(hidden)
    }
}
