//! How a run starts AltUp's coefficients p and g, and how far they may go.

use altup_models::{AltUpModelConfig, ParameterInfo, ParameterMapper, Role, T5, map_parameters};
use burn::module::Param;
use burn::tensor::{Tensor, TensorData};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Normal};
use serde::{Deserialize, Serialize};

/// How AltUp's coefficients start, and how far they may go from p = I, g = 1. The defaults change nothing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CoefficientsConfig {
    /// How p starts: `identity`, `uniform`, or `{ noise = 0.02 }`. Default: identity
    pub prediction: PredictionStart,
    /// How g starts: `ones`, `selected`, or `{ constant = 0.5 }`. Default: ones
    pub correction: CorrectionStart,
    /// After each step p − I and g − 1 are clamped to ± this, as Gemma 3n's code clamps the weights of its
    /// coefficients. Default: none, they go where they will
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip: Option<f64>,
}

/// How p starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PredictionStart {
    /// p = I: every block is predicted to stay as it is.
    #[default]
    Identity,
    /// All p are 1/K: every block is predicted to be the mean of all.
    Uniform,
    /// p = I plus normal noise of this standard deviation.
    Noise(f64),
}

/// How g starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CorrectionStart {
    /// g = 1: every block moves by what the layer adds to its own.
    #[default]
    Ones,
    /// 1 for the block that the layer computes on, 0 for the others, which then stay.
    Selected,
    /// All g are this.
    Constant(f64),
}

impl CoefficientsConfig {
    /// Whether nothing differs from what a model starts with anyway.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// What is wrong with a value, and its key.
    pub fn problem(&self) -> Option<(&'static str, String)> {
        if let PredictionStart::Noise(deviation) = self.prediction
            && !(deviation >= 0.0 && deviation.is_finite())
        {
            return Some(("prediction.noise", format!("must be at least 0, not {deviation}")));
        }
        if let CorrectionStart::Constant(value) = self.correction
            && !value.is_finite()
        {
            return Some(("correction.constant", format!("must be a number, not {value}")));
        }
        let clip = self.clip.filter(|clip| !(*clip > 0.0 && clip.is_finite()));
        clip.map(|clip| ("clip", format!("must be above 0, not {clip}")))
    }

    /// The model with p and g as the run starts them. A model without AltUp stays as it is.
    pub fn start(&self, model: T5, altup: Option<&AltUpModelConfig>, seed: u64) -> T5 {
        let starts_as_built = (self.prediction, self.correction) == Default::default();
        match altup {
            Some(altup) if !starts_as_built => {
                self.clip(map_parameters(model, &mut Start { config: self, altup, seed }))
            }
            _ => model,
        }
    }

    /// The model with p and g brought back to where they may be.
    pub fn clip(&self, model: T5) -> T5 {
        match self.clip {
            Some(clip) => map_parameters(model, &mut Clip { clip }),
            None => model,
        }
    }
}

/// p = I or g = 1, as the file lays them out, if the parameter is one of these.
fn center(info: &ParameterInfo) -> Option<Vec<f32>> {
    let size = info.size();
    match info.role {
        Role::PredictionCoefs => {
            let blocks = info.shape[0];
            Some((0..size).map(|index| f32::from(index % (blocks + 1) == 0)).collect())
        }
        Role::CorrectionCoefs => Some(vec![1.0; size]),
        _ => None,
    }
}

struct Start<'a> {
    config: &'a CoefficientsConfig,
    altup: &'a AltUpModelConfig,
    seed: u64,
}

impl ParameterMapper for Start<'_> {
    fn map<const D: usize>(
        &mut self,
        info: &ParameterInfo,
        param: Param<Tensor<D>>,
    ) -> Param<Tensor<D>> {
        let Some(mut values) = center(info) else { return param };
        let blocks = self.altup.num_blocks;
        match (info.role, self.config.prediction, self.config.correction) {
            (Role::PredictionCoefs, PredictionStart::Uniform, _) => {
                values.fill(1.0 / blocks as f32);
            }
            (Role::PredictionCoefs, PredictionStart::Noise(deviation), _) => {
                let input = [&self.seed.to_le_bytes(), info.name.as_bytes()].concat();
                let key = blake3::derive_key("altup-train 2026 coefficients", &input);
                let mut rng = ChaCha8Rng::from_seed(key);
                // Of a deviation that makes no distribution, `problem` says so before.
                let noise = Normal::new(0.0, deviation as f32).ok();
                for value in &mut values {
                    *value += noise.map_or(0.0, |noise| noise.sample(&mut rng));
                }
            }
            (Role::CorrectionCoefs, _, CorrectionStart::Selected) => {
                let selected = self.altup.selection.block(info.layer.unwrap_or(0), blocks);
                for (block, value) in values.iter_mut().enumerate() {
                    *value = f32::from(block == selected);
                }
            }
            (Role::CorrectionCoefs, _, CorrectionStart::Constant(value)) => {
                values.fill(value as f32);
            }
            _ => return param,
        }
        param.map(|old| as_trained(&old, like(&old, values)))
    }
}

struct Clip {
    clip: f64,
}

impl ParameterMapper for Clip {
    fn map<const D: usize>(
        &mut self,
        info: &ParameterInfo,
        param: Param<Tensor<D>>,
    ) -> Param<Tensor<D>> {
        let Some(center) = center(info) else { return param };
        let clip = self.clip as f32;
        let moved = |by: f32| center.iter().map(|value| value + by).collect::<Vec<f32>>();
        param.map(|old| {
            // What is within the bounds keeps its bits.
            let (low, high) = (like(&old, moved(-clip)), like(&old, moved(clip)));
            as_trained(&old, old.clone().detach().max_pair(low).min_pair(high))
        })
    }
}

/// Values in the shape, in the type and on the device of a tensor.
fn like<const D: usize>(tensor: &Tensor<D>, values: Vec<f32>) -> Tensor<D> {
    let values = TensorData::new(values, tensor.dims());
    Tensor::<D>::from_data(values, &tensor.device()).cast(tensor.dtype())
}

/// The new values, which get gradients if the old ones did.
fn as_trained<const D: usize>(old: &Tensor<D>, new: Tensor<D>) -> Tensor<D> {
    new.detach().set_require_grad(old.is_require_grad())
}

#[cfg(test)]
mod tests {
    use super::*;
    use altup_core::{BlockSelection, Widening};
    use altup_models::{T5Config, freeze, size};
    use burn::tensor::Device;

    fn altup(selection: BlockSelection) -> AltUpModelConfig {
        AltUpModelConfig {
            num_blocks: 2,
            selection,
            widening: Widening::Embedding,
            encoder_sequence: None,
        }
    }

    fn model(selection: BlockSelection) -> T5 {
        let config = T5Config {
            vocab_size: 64,
            d_model: 8,
            d_kv: 4,
            num_heads: 2,
            d_ff: 8,
            altup: Some(altup(selection)),
            ..size("tiny").unwrap()
        };
        config.init(3, &Device::flex().autodiff())
    }

    fn coefficients(model: &T5, layer: usize) -> (Vec<f32>, Vec<f32>) {
        let altup = model.decoder.blocks[layer].altup.as_ref().unwrap();
        let p = altup.prediction_coefs.val().into_data().iter::<f32>().collect();
        (p, altup.correction_coefs.val().into_data().iter::<f32>().collect())
    }

    fn started(config: &str, selection: BlockSelection) -> T5 {
        let config: CoefficientsConfig = toml::from_str(config).unwrap();
        config.start(model(selection), Some(&altup(selection)), 3)
    }

    #[test]
    fn the_default_changes_nothing_and_writes_nothing() {
        let model = started("", BlockSelection::Alternating);
        assert_eq!(coefficients(&model, 1), (vec![1.0, 0.0, 0.0, 1.0], vec![1.0, 1.0]));
        assert!(CoefficientsConfig::default().is_default());
        let config = crate::config::RunConfig::tiny_altup();
        assert!(!config.to_toml().contains("coefficients"));
    }

    #[test]
    fn coefficients_start_as_they_are_asked_to() {
        let selection = BlockSelection::Alternating;
        let uniform =
            started("prediction = \"uniform\"\ncorrection = { constant = 0.25 }", selection);
        assert_eq!(coefficients(&uniform, 2), (vec![0.5; 4], vec![0.25; 2]));
        // Layer l computes on block l mod 2, or always on block 0.
        let selected = started("correction = \"selected\"", selection);
        assert_eq!(coefficients(&selected, 0).1, [1.0, 0.0]);
        assert_eq!(coefficients(&selected, 1).1, [0.0, 1.0]);
        let same = started("correction = \"selected\"", BlockSelection::Same);
        assert_eq!(coefficients(&same, 1).1, [1.0, 0.0]);

        let noisy =
            |layer| coefficients(&started("prediction = { noise = 0.02 }", selection), layer);
        let (p, g) = noisy(1);
        assert_eq!(g, [1.0, 1.0]);
        let off_identity = [p[0] - 1.0, p[1], p[2], p[3] - 1.0];
        assert!(off_identity.iter().all(|value| *value != 0.0 && value.abs() < 0.1), "{p:?}");
        assert_eq!(noisy(1).0, p, "the same from the same seed");
        assert_ne!(noisy(2).0, p, "and others in another layer");
    }

    /// 1 ± 0.3 and 0 ± 0.3 bound p, 1 ± 0.3 bounds g.
    #[test]
    fn a_clip_bounds_the_distance_from_identity_and_one() {
        let start = "prediction = \"uniform\"\ncorrection = { constant = 1.25 }\nclip = 0.3";
        let model = started(start, BlockSelection::Alternating);
        assert_eq!(coefficients(&model, 0), (vec![0.7, 0.3, 0.3, 0.7], vec![1.25, 1.25]));
        let far = "correction = { constant = -4.0 }\nclip = 0.3";
        let model = started(far, BlockSelection::Alternating);
        assert_eq!(coefficients(&model, 0), (vec![1.0, 0.0, 0.0, 1.0], vec![0.7, 0.7]));
    }

    #[test]
    fn changed_coefficients_train_on_and_frozen_ones_stay_frozen() {
        let config: CoefficientsConfig =
            toml::from_str("prediction = \"uniform\"\nclip = 0.3").unwrap();
        let is_p = |info: &ParameterInfo| info.role == Role::PredictionCoefs;
        let built = model(BlockSelection::Alternating);
        let built_id = built.encoder.blocks[0].altup.as_ref().unwrap().prediction_coefs.id;
        let started = config.start(built, Some(&altup(BlockSelection::Alternating)), 3);
        let started = config.clip(started);
        let p = &started.encoder.blocks[0].altup.as_ref().unwrap().prediction_coefs;
        assert!(p.val().is_require_grad() && p.id == built_id);
        let frozen = config.clip(freeze(started, is_p));
        let altup = frozen.encoder.blocks[0].altup.as_ref().unwrap();
        assert!(!altup.prediction_coefs.val().is_require_grad());
        assert!(altup.correction_coefs.val().is_require_grad());
    }

    #[test]
    fn values_out_of_range_are_named() {
        let problem = |text: &str| {
            let config: CoefficientsConfig = toml::from_str(text).unwrap();
            config.problem().map(|(key, problem)| format!("{key} {problem}"))
        };
        assert_eq!(problem("clip = 120.0"), None);
        assert_eq!(problem("clip = 0.0").unwrap(), "clip must be above 0, not 0");
        let noise = problem("prediction = { noise = -1.0 }");
        assert_eq!(noise.unwrap(), "prediction.noise must be at least 0, not -1");
        let constant = problem("correction = { constant = nan }");
        assert_eq!(constant.unwrap(), "correction.constant must be a number, not NaN");
        assert!(toml::from_str::<CoefficientsConfig>("prediction = \"ones\"").is_err());
    }
}
