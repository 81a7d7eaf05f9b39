//! What a run minimises, and which parameters its optimizer moves how far.

use altup_models::{CrossEntropyOptions, freeze, parameters};
use altup_optim::{GroupError, NamedParameter, OptimizerConfig, ParameterSettings};
use burn::optim::ModuleOptimizer;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

use crate::learner::Learner;

/// What is added to the cross-entropy that a run minimises. The losses in its metrics are without it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LossConfig {
    /// ε of label smoothing. Default: 0.0
    pub label_smoothing: f64,
    /// What the square of log Σ exp(logits) is multiplied by, T5X's `z_loss`. Default: 0.0
    pub z_loss: f64,
}

impl LossConfig {
    /// The options of the loss.
    pub fn options(&self) -> CrossEntropyOptions {
        CrossEntropyOptions { label_smoothing: self.label_smoothing, z_loss: self.z_loss }
    }
}

impl Learner {
    /// The optimizer of this learner's parameters, without any state yet. Patterns of groups are matched with
    /// the names of tensors in a model directory; weight decay is for the parameters whose
    /// [`Role`](altup_models::Role) decays.
    ///
    /// # Errors
    ///
    /// If the pattern of a group is not a regular expression or matches no parameter.
    pub fn optimizer(&self, config: &OptimizerConfig) -> Result<ModuleOptimizer, GroupError> {
        config.init_for(&self.named_parameters())
    }

    /// The learner without gradients for the parameters whose learning rate factor is 0: they keep their values.
    ///
    /// # Errors
    ///
    /// As those of [`optimizer`](Learner::optimizer).
    pub fn freeze(self, config: &OptimizerConfig) -> Result<Self, GroupError> {
        let names = self.named_parameters();
        let settings = config.settings(&names)?;
        let stays = |settings: &ParameterSettings| settings.learning_rate_factor == 0.0;
        let frozen: HashSet<String> = names
            .into_iter()
            .zip(settings)
            .filter_map(|(named, settings)| stays(&settings).then_some(named.name))
            .collect();
        if frozen.is_empty() {
            return Ok(self);
        }
        Ok(Self { model: freeze(self.model, |parameter| frozen.contains(&parameter.name)) })
    }

    /// The learner whose backward pass computes the activations of each layer again, or not:
    /// [`T5::recompute_layers`](altup_models::T5::recompute_layers).
    pub fn recompute_layers(self, recompute: bool) -> Self {
        Self { model: self.model.recompute_layers(recompute) }
    }

    fn named_parameters(&self) -> Vec<NamedParameter> {
        let named = parameters(&self.model).into_iter().map(|parameter| NamedParameter {
            path: format!("model.{}", parameter.path),
            decays: parameter.role.decays(),
            name: parameter.name,
        });
        named.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use altup_core::{BlockSelection, Widening};
    use altup_data::{Batch, Example};
    use altup_models::{AltUpModelConfig, T5Config, parameter_tensors, size};
    use altup_optim::{GroupConfig, OptimizerKind};
    use burn::tensor::Device;
    use burn::train::TrainStep;

    use crate::learner::{DeviceBatch, ToDevice};

    fn learner() -> Learner {
        let altup = AltUpModelConfig {
            num_blocks: 2,
            selection: BlockSelection::Alternating,
            widening: Widening::Embedding,
            encoder_sequence: None,
        };
        let config = T5Config {
            vocab_size: 32,
            d_model: 16,
            d_kv: 8,
            d_ff: 16,
            num_heads: 2,
            num_layers: 1,
            num_decoder_layers: Some(1),
            altup: Some(altup),
            ..size("tiny").unwrap()
        };
        Learner { model: config.init(3, &Device::flex().autodiff()) }
    }

    fn batch() -> DeviceBatch {
        let example = Example { inputs: vec![5, 6, 7, 1], targets: vec![8, 9, 1] };
        let batch = Batch::new(&[example], 4, 3);
        batch.to_device(batch.num_targets(), &Device::flex().autodiff())
    }

    /// The name of each parameter and whether a step of `config` changed it.
    fn moved(config: &OptimizerConfig) -> Vec<(String, bool)> {
        let learner = learner().freeze(config).unwrap();
        let mut optimizer = learner.optimizer(config).unwrap();
        let before = parameter_tensors(&learner.model);
        let gradients = TrainStep::step(&learner, batch()).grads;
        let after = parameter_tensors(&optimizer.step(0.01, learner, gradients).model);
        let pairs = before.into_iter().zip(after);
        pairs.map(|(before, after)| (before.name.clone(), before.values != after.values)).collect()
    }

    #[test]
    fn a_factor_of_zero_freezes_by_name() {
        let frozen = GroupConfig {
            pattern: r"altup\..*_coefs$|^shared".into(),
            learning_rate_factor: Some(0.0),
            weight_decay: None,
        };
        let config = OptimizerConfig { groups: vec![frozen], ..OptimizerConfig::default() };
        for (name, moved) in moved(&config) {
            let expected = !(name.contains("_coefs") || name.starts_with("shared"));
            assert_eq!(moved, expected, "{name}");
        }
    }

    /// At a gradient of 0, decay alone moves a parameter.
    #[test]
    fn norms_position_biases_and_coefficients_do_not_decay() {
        let config = OptimizerConfig {
            kind: OptimizerKind::AdamW,
            weight_decay: 0.5,
            ..OptimizerConfig::default()
        };
        let learner = learner();
        let settings = config.settings(&learner.named_parameters()).unwrap();
        for (named, settings) in learner.named_parameters().iter().zip(settings) {
            let small = ["layer_norm", "relative_attention_bias", "_coefs"];
            let decays = !small.iter().any(|part| named.name.contains(part));
            assert_eq!(settings.weight_decay, if decays { 0.5 } else { 0.0 }, "{}", named.name);
        }
    }

    #[test]
    fn the_reported_loss_is_the_cross_entropy_whatever_is_added_to_it() {
        let learner = learner();
        let loss = |loss: LossConfig| {
            let output = TrainStep::step(&learner, DeviceBatch { loss: loss.options(), ..batch() });
            let gradients = altup_optim::global_norm(&learner, &output.grads);
            (output.item.sum.into_scalar::<f32>(), gradients)
        };
        let (plain, plain_norm) = loss(LossConfig::default());
        let (with, norm) = loss(LossConfig { label_smoothing: 0.1, z_loss: 1e-2 });
        assert_eq!(plain, with);
        assert!((plain_norm - norm).abs() > 1e-3 * norm, "{plain_norm}, {norm}");
    }
}
