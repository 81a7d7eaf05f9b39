#![doc = include_str!("../README.md")]

pub mod adafactor;
pub mod adamw;
pub mod clip;
mod gradients;
mod groups;
pub mod square_sum;

pub use gradients::{
    GradientMap, clip_gradients, global_norm, global_square_sum, make_contiguous, map_gradients,
    scale_gradients,
};
pub use groups::{GroupConfig, GroupError, NamedParameter, ParameterSettings};

use adafactor::Adafactor;
use adamw::AdamW;
use burn::backend::Backend;
use burn::backend::tensor::FloatTensor;
use burn::module::ParamGroup;
use burn::optim::ModuleOptimizer;
use serde::{Deserialize, Serialize};

/// Settings of an optimizer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerConfig {
    /// The algorithm. Default: adafactor
    pub kind: OptimizerKind,
    /// The base learning rate, for your training loop: [`init`](OptimizerConfig::init) doesn't use it, a step takes its
    /// rate. With `adafactor` it is relative to the size of each parameter; T5's pre-training has 1.0 and an inverse_sqrt
    /// schedule. Default: 1.0
    pub learning_rate: f64,
    /// Decoupled weight decay, times the learning rate. Default: 0.0
    pub weight_decay: f64,
    /// If the joint norm of all gradients is larger than this, they are scaled down to it; 0 never scales.
    /// [`init`](OptimizerConfig::init) doesn't do this: the training loop does, with [`clip_gradients`]. Default: 0.0,
    /// as in T5, where Adafactor clips each update itself
    pub clip_norm: f64,
    /// Parameters with settings of their own. Default: none
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<GroupConfig>,
}

/// The algorithm of an optimizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// Adafactor ([Shazeer and Stern, 2018](https://arxiv.org/abs/1804.04235)) as T5 was pre-trained: parameter scaling,
    /// no momentum, decay 1 − t^−0.8, updates clipped to an RMS of 1, ε₁ 1e-30, ε₂ 1e-3.
    Adafactor,
    /// AdamW ([Loshchilov and Hutter, 2019](https://arxiv.org/abs/1711.05101)) with β₁ 0.9, β₂ 0.999, ε 1e-8.
    AdamW,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            kind: OptimizerKind::Adafactor,
            learning_rate: 1.0,
            weight_decay: 0.0,
            clip_norm: 0.0,
            groups: Vec::new(),
        }
    }
}

impl OptimizerConfig {
    /// The optimizer, without any state yet, that treats all parameters alike.
    ///
    /// # Panics
    ///
    /// Panics if there are groups, which need the parameters' names ([`init_for`](OptimizerConfig::init_for)), or if the
    /// weight decay is negative or not finite.
    pub fn init(&self) -> ModuleOptimizer {
        assert!(
            self.groups.is_empty(),
            "Groups need the parameters' names: use init_for. Got groups={:?}",
            self.groups
        );
        let weight_decay = self.weight_decay;
        self.with_settings(ParameterSettings { learning_rate_factor: 1.0, weight_decay })
    }

    fn with_settings(&self, settings: ParameterSettings) -> ModuleOptimizer {
        settings.check();
        match self.kind {
            OptimizerKind::Adafactor => Adafactor { settings }.into(),
            OptimizerKind::AdamW => AdamW { settings }.into(),
        }
    }

    fn add_group(
        &self,
        optimizer: ModuleOptimizer,
        group: ParamGroup,
        settings: ParameterSettings,
    ) -> ModuleOptimizer {
        settings.check();
        match self.kind {
            OptimizerKind::Adafactor => optimizer.with_group(group, Adafactor { settings }, None),
            OptimizerKind::AdamW => optimizer.with_group(group, AdamW { settings }, None),
        }
    }
}

/// a · x + b · y
fn weighted<B: Backend>(x: FloatTensor<B>, a: f32, y: FloatTensor<B>, b: f32) -> FloatTensor<B> {
    B::float_add(B::float_mul_scalar(x, a.into()), B::float_mul_scalar(y, b.into()))
}

#[cfg(test)]
mod against_burn;

#[cfg(test)]
mod tests {
    use super::*;
    use burn::module::{Module, Param};
    use burn::optim::GradientsParams;
    use burn::tensor::{Device, Tensor, TensorData, Tolerance};
    use safetensors::SafeTensors;

    #[derive(Module, Debug)]
    struct Parameters {
        matrix: Param<Tensor<2>>,
        vector: Param<Tensor<1>>,
    }

    fn parameters(matrix: TensorData, vector: TensorData, device: &Device) -> Parameters {
        let (of_matrix, of_vector) = (matrix.dtype(), vector.dtype());
        Parameters {
            matrix: Param::from_tensor(Tensor::from_data(matrix, (device, of_matrix))),
            vector: Param::from_tensor(Tensor::from_data(vector, (device, of_vector))),
        }
    }

    fn gradients(model: &Parameters, matrix: TensorData, vector: TensorData) -> GradientsParams {
        let device = Device::flex();
        let mut gradients = GradientsParams::new();
        let (of_matrix, of_vector) = (matrix.dtype(), vector.dtype());
        gradients.register::<2>(model.matrix.id, Tensor::from_data(matrix, (&device, of_matrix)));
        gradients.register::<1>(model.vector.id, Tensor::from_data(vector, (&device, of_vector)));
        gradients
    }

    /// Four steps of Hugging Face's `Adafactor(relative_step=False, scale_parameter=True)`
    /// (`scripts/reference/generate_fixtures.py`).
    #[test]
    fn adafactor_is_t5s() {
        let folder = "tests/fixtures"; // Cargo runs tests in the folder of their package.
        let bytes = std::fs::read(format!("{folder}/adafactor.safetensors")).unwrap();
        let settings = std::fs::read(format!("{folder}/adafactor.json")).unwrap();
        let settings: serde_json::Value = serde_json::from_slice(&settings).unwrap();
        let rate = settings["lr"].as_f64().unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let data = |name: &str| {
            let view = file.tensor(name).unwrap();
            let values = view.data().as_chunks::<4>().0;
            let values: Vec<f32> = values.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
            TensorData::new(values, view.shape().to_vec())
        };
        let device = Device::flex().autodiff();
        let mut model = parameters(data("matrix.param.0"), data("vector.param.0"), &device);
        let mut optimizer = OptimizerConfig::default().init();
        for step in 1..=4 {
            let matrix = data(&format!("matrix.grad.{step}"));
            let vector = data(&format!("vector.grad.{step}"));
            let gradients = gradients(&model, matrix, vector);
            model = optimizer.step(rate, model, gradients);
            let tolerance = Tolerance::<f32>::rel_abs(1e-5, 1e-7);
            let expected = data(&format!("matrix.param.{step}"));
            model.matrix.val().into_data().assert_approx_eq(&expected, tolerance);
            let expected = data(&format!("vector.param.{step}"));
            model.vector.val().into_data().assert_approx_eq(&expected, tolerance);
        }
    }

    /// The square of a gradient of 1e-4 is 0 in f16.
    #[test]
    fn adafactor_steps_in_f32() {
        use burn::tensor::DType;
        let device = Device::flex();
        let half = |values: [[f32; 2]; 2]| {
            Tensor::<2>::from_data(values, &device).cast(DType::F16).into_data()
        };
        let vector = || TensorData::from([1f32]);
        let model =
            parameters(half([[1.0, 2.0], [3.0, 4.0]]), vector(), &device.clone().autodiff());
        let grads = gradients(&model, half([[1e-4, -1e-4], [1e-4, -1e-4]]), vector());
        let model = OptimizerConfig::default().init().step(0.01, model, grads);
        let found = model.matrix.val();
        assert_eq!(found.dtype(), DType::F16);
        // A step's size is 0.01 · √((1 + 4 + 9 + 16) / 4).
        let step = 0.01 * 7.5f32.sqrt();
        let expected = [[1.0 - step, 2.0 + step], [3.0 - step, 4.0 + step]];
        let tolerance = Tolerance::<f32>::absolute(2e-3);
        found.cast(DType::F32).into_data().assert_approx_eq(&TensorData::from(expected), tolerance);
    }

    /// What is loaded on a device of another type is of that type.
    #[test]
    fn adafactor_goes_on_from_a_state_of_another_type() {
        use burn::optim::Optimizer;
        use burn::tensor::DType;
        let device = Device::flex();
        let optimizer = Adafactor {
            settings: ParameterSettings { learning_rate_factor: 1.0, weight_decay: 0.0 },
        };
        let param = || Tensor::<2>::from_data([[1f32, 2.0], [3.0, 4.0]], &device);
        let grad = || Tensor::<2>::from_data([[0.5f32, -0.5], [0.25, 1.0]], &device);
        let (_, state) = optimizer.step(0.01, param(), grad(), None);
        let (expected, _) = optimizer.step(0.01, param(), grad(), state.clone());
        let mut state = state.unwrap();
        state.second_moment = state.second_moment.cast(DType::F16);
        state.column_second_moment = state.column_second_moment.map(|of| of.cast(DType::F16));
        let (found, state) = optimizer.step(0.01, param(), grad(), Some(state));
        assert_eq!(state.unwrap().second_moment.dtype(), DType::F32);
        let tolerance = Tolerance::<f32>::absolute(1e-4);
        found.into_data().assert_approx_eq(&expected.into_data(), tolerance);
    }

    /// In f16, ε is 0 and so is the square of 1e-4; in bf16, 0.999 is 1. Each step is the rate, as all gradients of a
    /// value are equal; at a gradient of 0 there is none.
    #[test]
    fn adamw_steps_in_f32() {
        use burn::tensor::DType;
        let device = Device::flex();
        for dtype in [DType::F16, DType::BF16] {
            let narrow = |values: [[f32; 2]; 2]| {
                Tensor::<2>::from_data(values, &device).cast(dtype).into_data()
            };
            let vector = || TensorData::from([1f32]);
            let start = narrow([[1.0, 2.0], [3.0, 4.0]]);
            let mut model = parameters(start, vector(), &device.clone().autodiff());
            let config =
                OptimizerConfig { kind: OptimizerKind::AdamW, ..OptimizerConfig::default() };
            let mut optimizer = config.init();
            for _ in 0..3 {
                let grads = gradients(&model, narrow([[0.0, 1e-3], [1.0, -1.0]]), vector());
                model = optimizer.step(0.125, model, grads);
            }
            let found = model.matrix.val();
            assert_eq!(found.dtype(), dtype);
            let expected = TensorData::from([[1.0, 1.625], [2.625, 4.375]]);
            let tolerance = Tolerance::<f32>::absolute(0.02);
            found.cast(DType::F32).into_data().assert_approx_eq(&expected, tolerance);
        }
    }

    /// √(3² + 4² + 12²) = 13.
    #[test]
    fn the_norm_is_over_all_parameters_and_scales_with_them() {
        let device = Device::flex();
        let zeros = || (TensorData::from([[0f32, 0.0]]), TensorData::from([0f32]));
        let (matrix, vector) = zeros();
        let model = parameters(matrix, vector, &device);
        let mut gradients =
            gradients(&model, TensorData::from([[3f32, 4.0]]), TensorData::from([12f32]));
        assert_eq!(global_norm(&model, &gradients), 13.0);
        scale_gradients(&model, &mut gradients, 1.0 / 13.0);
        assert!((global_norm(&model, &gradients) - 1.0).abs() < 1e-6);
    }
}
