//! The memory that a run will need, by arithmetic, before it starts.

use altup_backend::is_gpu;
use altup_models::{
    LOGITS, ParameterInfo, ParameterVisitor, StepShape, T5, T5Config, parameters, peak_of_backward,
    step_memory, visit_parameters,
};
use altup_optim::OptimizerKind;
use burn::module::Param;
use burn::tensor::{Device, Tensor};
use serde::Serialize;
use std::collections::HashSet;
use std::fmt;

use crate::config::TrainerConfig;
use crate::device;
use crate::memory;
use crate::precision::Precision;
use crate::progress::format_bytes;
use crate::replicas::tree;
use crate::training_batches::TrainingBatches;

/// What to do about too little memory, in the words of a configuration.
pub const WHAT_TO_LOWER: &str = "lower training.batch_size (training.gradient_accumulation keeps the examples of a \
                                 step, and its sums take memory too), shorten the inputs, or set training.recompute_layers=true or \
                                 training.precision=bf16";

/// The bytes that a run's steps will hold. The program, its tokenizer and its data are not among them, nor what an
/// allocator loses between tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct MemoryEstimate {
    /// The weights, and their copy in the type of a pass.
    pub weights: u64,
    /// The gradients of all of them.
    pub gradients: u64,
    /// The optimizer's state.
    pub optimizer: u64,
    /// What the forward pass keeps for the backward pass, without the logits.
    pub activations: u64,
    /// The logits.
    pub logits: u64,
    /// The most that a step holds at once, everything included. It is less than the sum of all: gradients come as
    /// activations go.
    pub peak: u64,
}

/// How a run computes, as far as its memory depends on it.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// The largest batch that goes through the model.
    pub shape: StepShape,
    /// The type of weights and activations in a pass.
    pub precision: Precision,
    /// The optimizer.
    pub optimizer: OptimizerKind,
    /// Batches of a step whose gradients are added up on the device.
    pub gradient_accumulation: usize,
}

impl Workload {
    /// The workload of a run, on each of so many replicas.
    pub fn of_run(
        config: &TrainerConfig,
        batches: &dyn TrainingBatches,
        on_gpu: bool,
        replicas: usize,
    ) -> Self {
        let training = &config.training;
        let longest = batches.longest();
        Self {
            shape: StepShape {
                batch_size: training.batch_size as u64,
                input_length: longest.input_length as u64,
                target_length: longest.target_length as u64,
                padded: longest.padded,
                value_bytes: training.precision.dtype().size() as u64,
                on_gpu,
                recompute_layers: training.recompute_layers,
            },
            precision: training.precision,
            optimizer: config.optimizer.kind,
            gradient_accumulation: training.gradient_accumulation / replicas,
        }
    }
}

impl MemoryEstimate {
    /// For the training of a model, of whose parameters those are trained that `trains` says.
    ///
    /// # Panics
    ///
    /// Panics if the configuration is not [valid](T5Config::validate).
    pub fn new(
        config: &T5Config,
        workload: &Workload,
        trains: impl Fn(&ParameterInfo) -> bool,
    ) -> Self {
        const F32: u64 = 4;
        let device = device::cpu();
        let all = parameters(&config.build(&device));
        let values: u64 = all.iter().map(|info| info.size() as u64).sum();
        let trained: Vec<&ParameterInfo> = all.iter().filter(|info| trains(info)).collect();
        let trained_values: u64 = trained.iter().map(|info| info.size() as u64).sum();
        let optimizer: u64 =
            trained.iter().map(|info| state_values(info, workload.optimizer)).sum();

        let parts = step_memory(config, &workload.shape, &device, &trains);
        let logits: u64 =
            parts.iter().filter(|part| part.part == LOGITS).map(|part| part.kept).sum();
        let again = parts.iter().map(|part| part.recomputed).max().unwrap_or(0);
        let kept: u64 = parts.iter().map(|part| part.kept).sum();

        let of_pass = workload.shape.value_bytes;
        let copy = if workload.precision == Precision::Bf16 { of_pass * values } else { 0 };
        let gradients = F32 * trained_values;
        let added_up = gradients * u64::from(tree::most_held(workload.gradient_accumulation));
        let always = F32 * (values + optimizer);
        // The weights before the step stay until those behind it are there.
        let update = gradients + F32 * values;
        let pass = copy + added_up + peak_of_backward(&parts, of_pass);
        Self {
            weights: F32 * values + copy,
            gradients,
            optimizer: F32 * optimizer,
            activations: kept - logits + again,
            logits,
            peak: always + pass.max(update),
        }
    }

    /// For a run with this model, whose frozen parameters are without gradients.
    pub fn of_run(config: &T5Config, model: &T5, workload: &Workload) -> Self {
        let trained = trained(model);
        Self::new(config, workload, |info| trained.contains(&info.name))
    }
}

/// The names of a model's parameters that get gradients.
fn trained(model: &T5) -> HashSet<String> {
    struct Trained(HashSet<String>);
    impl ParameterVisitor for Trained {
        fn visit<const D: usize>(&mut self, info: &ParameterInfo, param: &Param<Tensor<D>>) {
            if param.val().is_require_grad() {
                self.0.insert(info.name.clone());
            }
        }
    }
    let mut trained = Trained(HashSet::new());
    visit_parameters(model, &mut trained);
    trained.0
}

impl fmt::Display for MemoryEstimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [peak, weights, gradients, optimizer, activations, logits] = [
            self.peak,
            self.weights,
            self.gradients,
            self.optimizer,
            self.activations,
            self.logits,
        ]
        .map(format_bytes);
        write!(
            f,
            "a step holds about {peak} at once: weights {weights}, gradients {gradients}, optimizer {optimizer}, \
             activations {activations}, logits {logits}"
        )
    }
}

/// The values that an optimizer keeps for a parameter.
fn state_values(info: &ParameterInfo, optimizer: OptimizerKind) -> u64 {
    let size = info.size() as u64;
    match (optimizer, info.shape.as_slice()) {
        // The first and the second moment.
        (OptimizerKind::AdamW, _) => 2 * size,
        // The means of the squares over rows and over columns.
        (OptimizerKind::Adafactor, &[.., rows, columns]) => {
            size / (columns as u64).max(1) + size / (rows as u64).max(1)
        }
        (OptimizerKind::Adafactor, _) => size,
    }
}

/// The bytes that tensors may take on a device, where it tells: what its driver says of a GPU, and on a CPU the share of
/// each of so many processes that compute there.
pub fn available(device: &Device, processes: usize) -> Option<u64> {
    match is_gpu(device) {
        true => device::gpu_memory(device),
        false => memory::available(processes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use altup_models::{AltUpModelConfig, Widening, size};

    fn workload(optimizer: OptimizerKind) -> Workload {
        Workload {
            shape: StepShape {
                batch_size: 2,
                input_length: 7,
                target_length: 4,
                padded: false,
                value_bytes: 4,
                on_gpu: false,
                recompute_layers: false,
            },
            precision: Precision::F32,
            optimizer,
            gradient_accumulation: 1,
        }
    }

    /// One layer each, d = 2, one head of 3, d_ff = 5, vocabulary 11.
    fn small() -> T5Config {
        T5Config {
            d_model: 2,
            num_heads: 1,
            d_kv: 3,
            d_ff: 5,
            num_layers: 1,
            num_decoder_layers: None,
            vocab_size: 11,
            ..size("tiny").unwrap()
        }
    }

    /// Two tables of 22; of attention 4 · 6 three times, of networks 3 · 10 twice; 5 + 2 norms of 2; two tables of 32
    /// biases: 254 values. AdamW keeps two of each. Adafactor keeps of a matrix its rows and columns.
    #[test]
    fn states_by_hand() {
        let estimate = |kind| MemoryEstimate::new(&small(), &workload(kind), |_| true);
        let values = 2 * 22 + 3 * 24 + 2 * 30 + 7 * 2 + 2 * 32;
        let adamw = estimate(OptimizerKind::AdamW);
        assert_eq!(
            (adamw.weights, adamw.gradients, adamw.optimizer, adamw.logits),
            (4 * values, 4 * values, 8 * values, 4 * 8 * 11)
        );
        let adafactor = estimate(OptimizerKind::Adafactor);
        let rows_and_columns = 2 * 13 + 3 * 4 * 5 + 2 * 3 * 7 + 2 * 33;
        assert_eq!(adafactor.optimizer, 4 * (rows_and_columns + 7 * 2));
        assert_eq!(adamw.peak - adafactor.peak, adamw.optimizer - adafactor.optimizer);
    }

    #[test]
    fn what_is_frozen_has_neither_gradients_nor_states() {
        let all = MemoryEstimate::new(&small(), &workload(OptimizerKind::AdamW), |_| true);
        let tables = |info: &ParameterInfo| info.name.starts_with("shared");
        let some =
            MemoryEstimate::new(&small(), &workload(OptimizerKind::AdamW), |info| !tables(info));
        assert_eq!(all.gradients - some.gradients, 4 * 22);
        assert_eq!(all.optimizer - some.optimizer, 8 * 22);
        assert_eq!(all.weights, some.weights);
    }

    /// bf16 halves activations, and adds a copy of the weights; micro-batches add sums of gradients; recomputation is
    /// less than half of the activations at a size of the paper.
    #[test]
    fn what_lowers_the_peak_and_what_does_not() {
        let config = T5Config {
            altup: Some(AltUpModelConfig::new(2, Widening::Embedding)),
            ..size("altup-b").unwrap()
        };
        let shape = StepShape {
            batch_size: 16,
            input_length: 512,
            target_length: 114,
            ..workload(OptimizerKind::Adafactor).shape
        };
        let workload = Workload { shape, ..workload(OptimizerKind::Adafactor) };
        let estimate = |workload: &Workload| MemoryEstimate::new(&config, workload, |_| true);
        let plain = estimate(&workload);
        let half = Workload {
            shape: StepShape { value_bytes: 2, on_gpu: true, ..shape },
            precision: Precision::Bf16,
            ..workload
        };
        let half = estimate(&half);
        assert_eq!(half.weights, plain.weights * 3 / 2);
        assert!(half.activations < plain.activations * 11 / 20 && half.logits == plain.logits / 2);
        // 1, 2, 4 and 16 micro-batches hold no, one, two and four sums while the last one is computed.
        for (gradient_accumulation, sums) in [(1, 0), (2, 1), (4, 2), (16, 4)] {
            let added = estimate(&Workload { gradient_accumulation, ..workload });
            assert_eq!(added.peak, plain.peak + sums * plain.gradients, "{gradient_accumulation}");
        }
        let shape = StepShape { recompute_layers: true, ..shape };
        let again = estimate(&Workload { shape, ..workload });
        assert!(again.activations < plain.activations / 4, "{again:?} {plain:?}");
        assert!(again.peak < plain.peak);
    }

    #[test]
    fn it_is_said_in_a_line() {
        let estimate = MemoryEstimate {
            weights: 1_000_000_000,
            gradients: 1_000_000_000,
            optimizer: 2_000_000_000,
            activations: 6_500_000_000,
            logits: 234_000_000,
            peak: 9_800_000_000,
        };
        assert_eq!(
            estimate.to_string(),
            "a step holds about 9.8 GB at once: weights 1.0 GB, gradients 1.0 GB, optimizer 2.0 GB, activations 6.5 GB, \
             logits 234 MB"
        );
    }
}
