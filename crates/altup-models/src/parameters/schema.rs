//! Which parameter lies at which path of module fields: its role, and its tensor's name, which is
//! Hugging Face's where T5 has it.
//!
//! A new parameter takes a line here. Where it needs a new [`Role`], the compiler names every other place
//! that must know of it.

use super::role::AttentionKind::{self, CrossAttention, SelfAttention};
use super::{ParameterInfo, Role, Stack};

pub(crate) const EMBEDDING_TABLE: &str = "shared.weight";
pub(crate) const OUTPUT_TABLE: &str = "lm_head.weight";

impl ParameterInfo {
    /// The parameter at a path of fields from the model on, of the shape that it has there.
    ///
    /// # Panics
    ///
    /// Panics at a path that no T5 parameter has.
    pub(crate) fn at(path: &[&str], shape: &[usize]) -> Self {
        let place = match path {
            ["embedding", "weight"] => {
                Some((None, None, Role::EmbeddingTable, EMBEDDING_TABLE.to_owned()))
            }
            ["lm_head", "weight"] => Some((None, None, Role::OutputTable, OUTPUT_TABLE.to_owned())),
            ["encoder", path @ ..] => in_stack(Stack::Encoder, path),
            ["decoder", path @ ..] => in_stack(Stack::Decoder, path),
            _ => None,
        };
        let Some((stack, layer, role, name)) = place else {
            panic!("No T5 parameter lies at {}", path.join("."));
        };
        let mut shape = shape.to_vec();
        if role.is_transposed() {
            shape.reverse();
        }
        Self { name, path: path.join("."), shape, role, stack, layer }
    }
}

fn in_stack(stack: Stack, path: &[&str]) -> Option<(Option<Stack>, Option<usize>, Role, String)> {
    let (layer, role, name) = match path {
        ["final_norm", "gamma"] => (None, Role::FinalNorm, "final_layer_norm.weight".to_owned()),
        ["position_bias", "weight"] => {
            let name = "block.0.layer.0.SelfAttention.relative_attention_bias.weight";
            (None, Role::PositionBias, name.to_owned())
        }
        ["blocks", layer, path @ ..] => {
            let (role, name) = in_layer(stack, path)?;
            (Some(layer.parse().ok()?), role, format!("block.{layer}.{name}"))
        }
        _ => return None,
    };
    Some((Some(stack), layer, role, format!("{stack}.{name}")))
}

fn in_layer(stack: Stack, path: &[&str]) -> Option<(Role, String)> {
    let (role, name) = match path {
        ["altup", "prediction_coefs"] => (Role::PredictionCoefs, "altup.prediction_coefs"),
        ["altup", "correction_coefs"] => (Role::CorrectionCoefs, "altup.correction_coefs"),
        ["reduction", "SequenceAltUp", "prediction_coefs"] => {
            (Role::SequencePredictionCoefs, "sequence_altup.prediction_coefs")
        }
        ["reduction", "SequenceAltUp", "correction_coef"] => {
            (Role::SequenceCorrectionCoef, "sequence_altup.correction_coef")
        }
        ["self_attention", path @ ..] => return in_attention(0, SelfAttention, path),
        ["cross_attention", path @ ..] => return in_attention(1, CrossAttention, path),
        ["feed_forward", path @ ..] => {
            let sub_layer = match stack {
                Stack::Encoder => 1,
                Stack::Decoder => 2,
            };
            return in_feed_forward(sub_layer, path);
        }
        _ => return None,
    };
    Some((role, name.to_owned()))
}

fn in_attention(sub_layer: usize, kind: AttentionKind, path: &[&str]) -> Option<(Role, String)> {
    let (role, name) = match path {
        ["norm", "gamma"] => {
            return Some((Role::SubLayerNorm, format!("layer.{sub_layer}.layer_norm.weight")));
        }
        ["attention", "query", "weight"] => (Role::Query(kind), "q.weight"),
        ["attention", "key", "weight"] => (Role::Key(kind), "k.weight"),
        ["attention", "value", "weight"] => (Role::Value(kind), "v.weight"),
        ["attention", "output", "weight"] => (Role::AttentionOutput(kind), "o.weight"),
        _ => return None,
    };
    let module = match kind {
        SelfAttention => "SelfAttention",
        CrossAttention => "EncDecAttention",
    };
    Some((role, format!("layer.{sub_layer}.{module}.{name}")))
}

fn in_feed_forward(sub_layer: usize, path: &[&str]) -> Option<(Role, String)> {
    let (role, name) = match path {
        ["norm", "gamma"] => (Role::SubLayerNorm, "layer_norm.weight"),
        ["feed_forward", "Relu", "wi", "weight"] => {
            (Role::FeedForwardInput, "DenseReluDense.wi.weight")
        }
        ["feed_forward", "GatedGelu", "wi_0", "weight"] => {
            (Role::FeedForwardInput, "DenseReluDense.wi_0.weight")
        }
        ["feed_forward", "GatedGelu", "wi_1", "weight"] => {
            (Role::FeedForwardInput, "DenseReluDense.wi_1.weight")
        }
        ["feed_forward", "Relu" | "GatedGelu", "wo", "weight"] => {
            (Role::FeedForwardOutput, "DenseReluDense.wo.weight")
        }
        ["moe", "router", "weight"] => (Role::Router, "moe.router.weight"),
        ["moe", "experts", "wi"] => (Role::ExpertsInput, "moe.experts.wi"),
        ["moe", "experts", "wo"] => (Role::ExpertsOutput, "moe.experts.wo"),
        _ => return None,
    };
    Some((role, format!("layer.{sub_layer}.{name}")))
}
