//! The models that are compared, at any size, and what their arithmetic costs.

use altup_models::{
    AttentionKind, ParameterInfo, Role, Stack, T5Config, forward_cost, parameters, size,
};

use super::{BenchBatch, Work};
use crate::variant::labelled;

/// The names of the models, the dense one first.
pub const MODELS: [&str; 6] = ["dense", "altup-k2", "altup-k4", "recycled-k2", "moe32", "seq4"];

/// A model of a size, by its [label](crate::variant::label), without dropout.
pub fn model(size_name: &str, label: &str) -> Option<T5Config> {
    labelled(T5Config { dropout_rate: 0.0, ..size(size_name)? }, label)
}

/// What a work takes if nothing but its arithmetic counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Floor {
    /// Floating-point operations.
    Operations(f64),
    /// Bytes of weights read, of which decoding a token does little with each.
    Bytes(f64),
}

impl Floor {
    /// Operations or bytes.
    pub fn amount(self) -> f64 {
        match self {
            Self::Operations(amount) | Self::Bytes(amount) => amount,
        }
    }
}

/// The floor of a work on a batch.
pub fn floor(config: &T5Config, work: Work, batch: &BenchBatch) -> Floor {
    let rows = batch.input_ids.len() as f64;
    let (inputs, targets) = (batch.input_ids[0].len() as u64, batch.labels[0].len() as u64);
    let operations = |targets: u64| -> f64 {
        let parts = forward_cost(config, inputs, targets);
        rows * parts.iter().map(|part| part.flops as f64).sum::<f64>()
    };
    match work {
        Work::Forward => Floor::Operations(operations(targets)),
        // A backward pass has two products for each of the forward pass.
        Work::Train | Work::Breakdown => Floor::Operations(3.0 * operations(targets)),
        Work::Prefill => Floor::Operations(operations(1)),
        Work::Decode => {
            let steps = batch.new_tokens.saturating_sub(1) as f64;
            Floor::Bytes(steps * 4.0 * decoded_weights(config))
        }
    }
}

/// The numbers of weights that decoding a token reads: the decoder without the cross-attention's keys
/// and values, which were projected before, and the output layer.
fn decoded_weights(config: &T5Config) -> f64 {
    let read = |parameter: &ParameterInfo| match parameter.role {
        Role::EmbeddingTable => config.tie_word_embeddings,
        Role::OutputTable => true,
        Role::Key(AttentionKind::CrossAttention) | Role::Value(AttentionKind::CrossAttention) => {
            false
        }
        _ => parameter.stack == Some(Stack::Decoder),
    };
    let parameters = parameters(&config.build(&crate::device::cpu()));
    parameters.iter().filter(|parameter| read(parameter)).map(|p| p.size() as f64).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_named_model_is_valid_at_every_size() {
        for size in altup_models::size_names() {
            for name in MODELS {
                model(size, name).unwrap().validate().unwrap();
            }
        }
        assert_eq!(model("tiny", "altup-k3").unwrap().num_blocks(), 3);
        for name in ["altup-k0", "altup-k", "recycled-kx", "wide"] {
            assert!(model("tiny", name).is_none(), "{name}");
        }
        assert!(model("giant", "dense").is_none());
    }

    /// A dense `altup-s` reads 4 layers of self-attention (4 · 512²), of cross-attention without keys
    /// and values (2 · 512²), and of a gated network (3 · 512 · 2048); the norms and one table of biases;
    /// and the output layer.
    #[test]
    fn decoded_weights_by_hand() {
        let config = model("altup-s", "dense").unwrap();
        let layer = 6 * 512 * 512 + 3 * 512 * 2048 + 3 * 512;
        assert_eq!(decoded_weights(&config), (4 * layer + 512 + 32 * 8 + 512 * 32128) as f64);
    }
}
