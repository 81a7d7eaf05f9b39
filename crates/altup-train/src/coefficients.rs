//! The learned scalars of AltUp and Sequence-AltUp, layer by layer, as a run records them.

use altup_models::{Reduction, T5};
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// The scalars of all layers that have some.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct CoefficientsRow {
    /// Optimizer steps done.
    pub step: u64,
    /// The layers, the encoder's first.
    pub layers: Vec<LayerCoefficients>,
}

/// The scalars of a layer.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct LayerCoefficients {
    /// `encoder` or `decoder`.
    pub stack: String,
    /// The layer, counted from 0.
    pub layer: usize,
    /// AltUp's p, row by row, `[K][K]`: row i says how block i is predicted from the blocks. Empty without AltUp.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub p: Vec<Vec<f64>>,
    /// AltUp's g, `[K]`: how far each block follows the layer's output. Empty without AltUp.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub g: Vec<f64>,
    /// Sequence-AltUp's a1, a2 and b. Empty without Sequence-AltUp.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sequence: Vec<f64>,
}

impl LayerCoefficients {
    /// Its name: the stack and the number.
    pub fn name(&self) -> String {
        format!("{} {}", self.stack, self.layer)
    }

    /// Every scalar with its name: `p11`, `p12`, …, `g1`, …, `a1`, `a2`, `b`, numbered from 1 as in the paper.
    pub fn named(&self) -> impl Iterator<Item = (String, f64)> {
        let p = self.p.iter().enumerate().flat_map(|(i, row)| {
            row.iter().enumerate().map(move |(j, _)| block_name('p', &[i, j]))
        });
        let g = self.g.iter().enumerate().map(|(i, _)| block_name('g', &[i]));
        let sequence = ["a1", "a2", "b"].map(str::to_owned);
        p.chain(g).chain(sequence).zip(self.values())
    }

    /// Every scalar, in the order of [`named`](Self::named).
    pub fn values(&self) -> impl Iterator<Item = f64> {
        self.p.iter().flatten().chain(&self.g).chain(&self.sequence).copied()
    }
}

/// Numbers of one digit stand beside each other; others need a comma between.
fn block_name(letter: char, blocks: &[usize]) -> String {
    let numbers: Vec<String> = blocks.iter().map(|block| (block + 1).to_string()).collect();
    let separator = if numbers.iter().all(|number| number.len() == 1) { "" } else { "," };
    format!("{letter}{}", numbers.join(separator))
}

impl CoefficientsRow {
    /// Those of a model after `step` steps; none if it has no such scalars.
    pub fn of(model: &T5, step: u64) -> Option<Self> {
        let encoder = model.encoder.blocks.iter().enumerate().map(|(layer, block)| {
            let sequence = match &block.reduction {
                Some(Reduction::SequenceAltUp(sequence)) => [
                    values(sequence.prediction_coefs.val()),
                    values(sequence.correction_coef.val()),
                ]
                .concat(),
                _ => Vec::new(),
            };
            coefficients("encoder", layer, block.altup.as_ref(), sequence)
        });
        let decoder =
            model.decoder.blocks.iter().enumerate().map(|(layer, block)| {
                coefficients("decoder", layer, block.altup.as_ref(), Vec::new())
            });
        let layers: Vec<LayerCoefficients> = encoder
            .chain(decoder)
            .filter(|layer| !layer.g.is_empty() || !layer.sequence.is_empty())
            .collect();
        (!layers.is_empty()).then_some(Self { step, layers })
    }
}

fn coefficients(
    stack: &str,
    layer: usize,
    altup: Option<&altup_core::AltUp>,
    sequence: Vec<f64>,
) -> LayerCoefficients {
    let g = altup.map(|altup| values(altup.correction_coefs.val())).unwrap_or_default();
    let p = altup.map(|altup| values(altup.prediction_coefs.val())).unwrap_or_default();
    let p = p.chunks(g.len().max(1)).map(<[f64]>::to_vec).collect();
    LayerCoefficients { stack: stack.to_owned(), layer, p, g, sequence }
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RunConfig;
    use altup_models::{EncoderSequence, SequenceMethod};
    use burn::module::Param;

    fn config() -> altup_models::T5Config {
        let config = RunConfig::tiny_altup().model_config(64).unwrap();
        altup_models::T5Config { num_layers: 2, num_decoder_layers: Some(1), ..config }
    }

    #[test]
    fn the_scalars_of_every_layer_have_their_names() {
        let device = crate::device::cpu();
        let mut model = config().init(0, &device);
        let p = Tensor::from_data([[1.0, 0.25], [0.5, 0.75]], &device);
        model.encoder.blocks[1].altup.as_mut().unwrap().prediction_coefs = Param::from_tensor(p);
        let row = CoefficientsRow::of(&model, 7).unwrap();
        let names: Vec<String> = row.layers.iter().map(LayerCoefficients::name).collect();
        assert_eq!(
            (row.step, names),
            (7, vec!["encoder 0".into(), "encoder 1".into(), "decoder 0".into()])
        );
        let named: Vec<(String, f64)> = row.layers[1].named().collect();
        let expected =
            [("p11", 1.0), ("p12", 0.25), ("p21", 0.5), ("p22", 0.75), ("g1", 1.0), ("g2", 1.0)];
        assert_eq!(named, expected.map(|(name, value)| (name.to_owned(), value)));
        let text = serde_json::to_string(&row).unwrap();
        assert!(text.contains(
            r#"{"stack":"encoder","layer":1,"p":[[1.0,0.25],[0.5,0.75]],"g":[1.0,1.0]}"#
        ));
        assert_eq!(serde_json::from_str::<CoefficientsRow>(&text).unwrap(), row);
    }

    #[test]
    fn those_along_the_sequence_are_there_too_and_a_dense_model_has_none() {
        let mut config = config();
        config.altup.as_mut().unwrap().encoder_sequence = Some(EncoderSequence {
            method: SequenceMethod::Altup,
            stride: 4,
            first_layer: 1,
            last_layer: Some(1),
        });
        let row = CoefficientsRow::of(&config.init(0, &crate::device::cpu()), 0).unwrap();
        assert_eq!(row.layers[1].sequence, [1.0, 0.0, 1.0]);
        assert!(row.layers[0].sequence.is_empty());
        let dense = altup_models::T5Config { altup: None, ..config };
        assert_eq!(CoefficientsRow::of(&dense.init(0, &crate::device::cpu()), 0), None);
    }

    #[test]
    fn many_blocks_are_told_apart() {
        assert_eq!(block_name('p', &[0, 11]), "p1,12");
        assert_eq!(block_name('g', &[11]), "g12");
    }
}
