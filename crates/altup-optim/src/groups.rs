//! Settings that differ from parameter to parameter.

use burn::module::ParamGroup;
use burn::optim::ModuleOptimizer;
use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::OptimizerConfig;

/// What an optimizer does differently for the parameters whose names match a pattern.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupConfig {
    /// A regular expression that must occur in a parameter's name.
    pub pattern: String,
    /// What the learning rate is multiplied by; 0 leaves the parameters as they are. Default: 1.0
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learning_rate_factor: Option<f64>,
    /// Their weight decay. Default: that of the optimizer
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f64>,
}

/// A parameter as an optimizer is told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedParameter {
    /// The path of fields from the module that is optimized to the parameter, as in `layers.0.norm.gamma`.
    pub path: String,
    /// The name that patterns are matched with.
    pub name: String,
    /// Whether the optimizer's weight decay is for it, where no group says otherwise.
    pub decays: bool,
}

/// What an optimizer does to one parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ParameterSettings {
    /// What the learning rate is multiplied by.
    pub learning_rate_factor: f64,
    /// Decoupled weight decay, times the learning rate.
    pub weight_decay: f64,
}

impl ParameterSettings {
    pub(crate) fn check(self) {
        let Self { learning_rate_factor, weight_decay } = self;
        let allowed = |value: f64| value >= 0.0 && value.is_finite();
        assert!(
            allowed(weight_decay) && allowed(learning_rate_factor),
            "Weight decay and factors of the learning rate are at least 0 and finite. Got \
             weight_decay={weight_decay}, learning_rate_factor={learning_rate_factor}"
        );
    }
}

/// Why groups can't be formed.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// A pattern is not a regular expression.
    #[error("the pattern {pattern:?} is not a regular expression")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// The cause.
        source: Box<regex::Error>,
    },
    /// A pattern fits no parameter.
    #[error("no parameter's name matches the pattern {pattern:?}")]
    Unmatched {
        /// The pattern.
        pattern: String,
    },
}

impl GroupConfig {
    fn regex(&self) -> Result<Regex, GroupError> {
        Regex::new(&self.pattern).map_err(|source| GroupError::Pattern {
            pattern: self.pattern.clone(),
            source: Box::new(source),
        })
    }
}

impl OptimizerConfig {
    /// What the optimizer does to each of some parameters. If several groups match a name and give the same setting, the
    /// last one wins.
    ///
    /// # Errors
    ///
    /// If a pattern is not a regular expression, or matches none of the parameters.
    pub fn settings(
        &self,
        parameters: &[NamedParameter],
    ) -> Result<Vec<ParameterSettings>, GroupError> {
        let plain = |parameter: &NamedParameter| ParameterSettings {
            learning_rate_factor: 1.0,
            weight_decay: if parameter.decays { self.weight_decay } else { 0.0 },
        };
        let mut settings: Vec<ParameterSettings> = parameters.iter().map(plain).collect();
        for group in &self.groups {
            let regex = group.regex()?;
            let mut matched = false;
            for (parameter, settings) in parameters.iter().zip(&mut settings) {
                if !regex.is_match(&parameter.name) {
                    continue;
                }
                matched = true;
                if let Some(factor) = group.learning_rate_factor {
                    settings.learning_rate_factor = factor;
                }
                if let Some(weight_decay) = group.weight_decay {
                    settings.weight_decay = weight_decay;
                }
            }
            if !matched {
                return Err(GroupError::Unmatched { pattern: group.pattern.clone() });
            }
        }
        Ok(settings)
    }

    /// The optimizer of a module with these parameters, without any state yet: [`settings`](OptimizerConfig::settings)
    /// as Burn's parameter groups.
    ///
    /// # Errors
    ///
    /// As those of [`settings`](OptimizerConfig::settings).
    ///
    /// # Panics
    ///
    /// Panics if a weight decay or a factor is negative or not finite.
    pub fn init_for(&self, parameters: &[NamedParameter]) -> Result<ModuleOptimizer, GroupError> {
        let mut groups: Vec<(ParameterSettings, Vec<&str>)> = Vec::new();
        for (parameter, settings) in parameters.iter().zip(self.settings(parameters)?) {
            match groups.iter_mut().find(|(of_group, _)| *of_group == settings) {
                Some((_, paths)) => paths.push(&parameter.path),
                None => groups.push((settings, vec![&parameter.path])),
            }
        }
        let alike =
            ParameterSettings { learning_rate_factor: 1.0, weight_decay: self.weight_decay };
        let mut optimizer = self.with_settings(alike);
        for (settings, paths) in groups {
            if settings != alike {
                let group = ParamGroup::from_paths(paths);
                optimizer = self.add_group(optimizer, group, settings);
            }
        }
        Ok(optimizer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::OptimizerKind;
    use burn::module::{Module, Param};
    use burn::optim::GradientsParams;
    use burn::tensor::{Device, Tensor};

    #[derive(Module, Debug)]
    struct Layer {
        weight: Param<Tensor<2>>,
        gamma: Param<Tensor<1>>,
    }

    #[derive(Module, Debug)]
    struct Stack {
        layers: Vec<Layer>,
    }

    fn parameter(path: &str, name: &str, decays: bool) -> NamedParameter {
        NamedParameter { path: path.into(), name: name.into(), decays }
    }

    fn parameters() -> Vec<NamedParameter> {
        vec![
            parameter("layers.0.weight", "block.0.w", true),
            parameter("layers.0.gamma", "block.0.norm", false),
            parameter("layers.1.weight", "block.1.w", true),
            parameter("layers.1.gamma", "block.1.norm", false),
        ]
    }

    fn group(pattern: &str, factor: Option<f64>, weight_decay: Option<f64>) -> GroupConfig {
        GroupConfig { pattern: pattern.into(), learning_rate_factor: factor, weight_decay }
    }

    #[test]
    fn the_last_group_that_says_something_counts() {
        let config = OptimizerConfig {
            weight_decay: 0.5,
            groups: vec![
                group(r"^block\.1", Some(0.25), Some(0.1)),
                group(r"norm$", Some(2.0), None),
                group(r"^block\.0\.w$", Some(0.0), Some(0.0)),
            ],
            ..OptimizerConfig::default()
        };
        let found = config.settings(&parameters()).unwrap();
        let found: Vec<_> =
            found.iter().map(|of| (of.learning_rate_factor, of.weight_decay)).collect();
        assert_eq!(found, [(0.0, 0.0), (2.0, 0.0), (0.25, 0.1), (2.0, 0.1)]);
    }

    #[test]
    fn patterns_that_cannot_work_are_named() {
        let message = |pattern: &str| {
            let groups = vec![group(pattern, None, None)];
            let config = OptimizerConfig { groups, ..OptimizerConfig::default() };
            config.init_for(&parameters()).err().unwrap().to_string()
        };
        assert_eq!(message("blok"), "no parameter's name matches the pattern \"blok\"");
        assert_eq!(message("(w"), "the pattern \"(w\" is not a regular expression");
    }

    /// One step of AdamW at rate 0.1 from 2.0 with a gradient of 1: the step of a first gradient is the rate, decay
    /// takes rate · decay of the weight before it.
    #[test]
    fn factors_and_decay_reach_their_parameters_also_after_loading() {
        let device = Device::flex().autodiff();
        let layer = || Layer {
            weight: Param::from_tensor(Tensor::full([1, 1], 2.0, &device)),
            gamma: Param::from_tensor(Tensor::full([1], 2.0, &device)),
        };
        let mut stack = Stack { layers: vec![layer(), layer()] };
        let config = OptimizerConfig {
            kind: OptimizerKind::AdamW,
            weight_decay: 0.5,
            groups: vec![group(r"block\.1", Some(0.1), None), group("1.norm", Some(0.0), None)],
            ..OptimizerConfig::default()
        };
        let step = |optimizer: &mut ModuleOptimizer, stack: Stack| {
            let mut gradients = GradientsParams::new();
            for layer in &stack.layers {
                gradients.register::<2>(layer.weight.id, Tensor::ones([1, 1], &Device::flex()));
                gradients.register::<1>(layer.gamma.id, Tensor::ones([1], &Device::flex()));
            }
            optimizer.step(0.1, stack, gradients)
        };
        let values = |stack: &Stack| -> Vec<f32> {
            let of = |layer: &Layer| {
                let weight = layer.weight.val().into_scalar::<f32>();
                [weight, layer.gamma.val().into_scalar::<f32>()]
            };
            stack.layers.iter().flat_map(of).collect()
        };
        let close = |found: &[f32], expected: [f32; 4]| {
            let near =
                found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-5);
            assert!(near, "{found:?} is not {expected:?}");
        };
        let mut optimizer = config.init_for(&parameters()).unwrap();
        stack = step(&mut optimizer, stack);
        // 2 · (1 − 0.1 · 0.5) − 0.1;  2 − 0.1;  2 · (1 − 0.01 · 0.5) − 0.01;  as it was
        close(&values(&stack), [1.8, 1.9, 1.98, 2.0]);

        let bytes = optimizer.into_bytes().unwrap();
        let mut optimizer = config.init_for(&parameters()).unwrap().from_bytes(bytes).unwrap();
        stack = step(&mut optimizer, stack);
        // The moments of equal gradients keep steps at the rate.
        close(&values(&stack), [1.8 * 0.95 - 0.1, 1.8, 1.98 * 0.995 - 0.01, 2.0]);
    }
}
