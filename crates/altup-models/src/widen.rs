use altup_core::Widening;
use burn::tensor::Device;
use std::collections::HashMap;
use std::convert::Infallible;

use crate::parameters::AttentionKind::{CrossAttention, SelfAttention};
use crate::parameters::{EMBEDDING_TABLE, ParameterInfo, Role, fill};
use crate::tensors::{NamedTensor, parameter_tensors};
use crate::{AltUpModelConfig, T5, T5Config};

/// Makes an AltUp model of a dense one, with the same outputs. So AltUp can start from a trained T5. With an
/// `encoder_sequence` the outputs differ: some layers then compute on fewer tokens.
///
/// | tensor | `embedding` | `recycled` | `sum` |
/// | --- | --- | --- | --- |
/// | embedding table | K copies of the dense one, side by side | as it is | the dense one, then zeros |
/// | cross-attention keys and values, output table | the dense one for block 0, zeros for the others | as they are | as they are |
/// | final norms | K copies | as they are | as they are |
/// | p and g | I and 1 | I and 1 | none |
///
/// Everything else is the dense model's. With p = I and g = 1 every block moves by what a layer adds to block j*, so
/// K equal blocks stay equal, and each is the dense model's state.
///
/// - `embedding` reads only the first block at the start: the weights that read the others are zero. They have
///   gradients, as those blocks are not zero, so training changes them.
/// - `recycled` reads the sum of the blocks. The final norms divide by K again, up to their ε.
///
/// A tied output layer is the embedding table, and can't read one block of a wider one. Where the table becomes wider,
/// the output layer gets a table of its own.
///
/// # Panics
///
/// Panics if the model is not dense, not the one that `config` describes, or can't be widened so (see
/// [`T5Config::validate`]).
pub fn widen(
    config: &T5Config,
    model: &T5,
    altup: AltUpModelConfig,
    device: &Device,
) -> (T5Config, T5) {
    assert!(config.altup.is_none(), "Only a dense model is widened. Got {:?}", config.altup);
    let mut widened = T5Config { altup: Some(altup), ..config.clone() };
    if widened.table_width() > config.table_width() && config.tie_word_embeddings {
        widened.tie_word_embeddings = false;
        widened.scale_decoder_outputs = Some(config.scales_outputs());
    }
    let dense: HashMap<String, NamedTensor> =
        parameter_tensors(model).into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect();
    let filled = fill(widened.build(device), device, |info| {
        Ok::<_, Infallible>(values(info, &dense, widened.widening()))
    });
    match filled {
        Ok(model) => (widened, model),
    }
}

/// What the blocks of a widened parameter are made of.
enum Blocks {
    /// Each is the dense parameter.
    Copies,
    /// The first is the dense parameter, the others are 0. Also what doesn't become wider.
    First,
    /// Nothing: a dense model has no such parameter, and it stays as it was built.
    New,
}

fn blocks(role: Role, widening: Widening) -> Blocks {
    match role {
        Role::EmbeddingTable => match widening {
            Widening::Embedding => Blocks::Copies,
            Widening::Recycled | Widening::Sum => Blocks::First,
        },
        Role::FinalNorm => Blocks::Copies,
        // Read the output of a stack, which may be wider.
        Role::OutputTable | Role::Key(CrossAttention) | Role::Value(CrossAttention) => {
            Blocks::First
        }
        // Of a layer, which stays as wide as it is.
        Role::SubLayerNorm
        | Role::PositionBias
        | Role::Query(_)
        | Role::Key(SelfAttention)
        | Role::Value(SelfAttention)
        | Role::AttentionOutput(_)
        | Role::FeedForwardInput
        | Role::FeedForwardOutput
        | Role::Router
        | Role::ExpertsInput
        | Role::ExpertsOutput => Blocks::First,
        Role::PredictionCoefs
        | Role::CorrectionCoefs
        | Role::SequencePredictionCoefs
        | Role::SequenceCorrectionCoef => Blocks::New,
    }
}

/// The values of a parameter of the widened model; none where it stays as it was built.
fn values(
    info: &ParameterInfo,
    dense: &HashMap<String, NamedTensor>,
    widening: Widening,
) -> Option<Vec<f32>> {
    let copies = match blocks(info.role, widening) {
        Blocks::Copies => true,
        Blocks::First => false,
        Blocks::New => return None,
    };
    // An output table that was tied is the embedding table.
    let tied = (info.role == Role::OutputTable).then_some(EMBEDDING_TABLE);
    let source = dense.get(&info.name).or_else(|| dense.get(tied?));
    let source = source.expect("a dense model has all parameters but the coefficients");
    let (narrow, wide) = (row_width(&source.shape), row_width(&info.shape));
    let mut values = Vec::with_capacity(info.size());
    for row in source.values.chunks(narrow) {
        for block in 0..wide / narrow {
            if block == 0 || copies {
                values.extend_from_slice(row);
            } else {
                values.extend(std::iter::repeat_n(0.0, narrow));
            }
        }
    }
    Some(values)
}

fn row_width(shape: &[usize]) -> usize {
    shape.last().copied().unwrap_or(1)
}
