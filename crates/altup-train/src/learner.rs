//! T5 as something that Burn trains: one step's loss and gradients.
//!
//! [`Learner`] implements burn-train's [`TrainStep`] and [`InferenceStep`], [`FirstEpoch`]
//! burn-dataset's [`Dataset`] and [`LearnerBatcher`] Burn's [`Batcher`], so that the model and data
//! also run under Burn's own `SupervisedTraining`. The [trainer](crate::trainer) calls the same steps.

use altup_data::{Batch, Example, PretrainingData};
use altup_models::{
    CrossEntropyOptions, LayerRouting, Noise, T5, cross_entropy, cross_entropy_sum,
    cross_entropy_sum_with,
};
use burn::data::dataloader::batcher::Batcher;
use burn::data::dataset::{Dataset, DatasetError};
use burn::module::Module;
use burn::tensor::{Bool, Device, ExecutionError, Int, Tensor, TensorData};
use burn::train::metric::{Adaptor, LossInput};
use burn::train::{InferenceStep, ItemLazy, TrainOutput, TrainStep};
use std::sync::atomic::{AtomicU64, Ordering};

/// A model in training.
#[derive(Module, Debug)]
pub struct Learner {
    /// The model.
    pub model: T5,
}

/// A batch on a device.
#[derive(Clone, Debug)]
pub struct DeviceBatch {
    /// `[batch_size, input_length]`
    pub input_ids: Tensor<2, Int>,
    /// `[batch_size, input_length]`, true where an input token is padding; none if nothing is.
    pub padding: Option<Tensor<2, Bool>>,
    /// `[batch_size, target_length]`, padded with 0.
    pub labels: Tensor<2, Int>,
    /// The number of labels that are not padding.
    pub targets: u64,
    /// The number of labels that the loss is divided by: those of this batch that are not padding,
    /// or of all batches whose gradients are added up.
    pub loss_targets: u64,
    /// What dropout and routers draw in training.
    pub noise: Noise,
    /// What training adds to the cross-entropy.
    pub loss: CrossEntropyOptions,
}

/// The loss of a batch in training, as numbers still on the device.
#[derive(Clone, Debug)]
pub struct BatchLoss {
    /// The summed cross-entropy of the labels that are not padding, in nats, `[1]`.
    pub sum: Tensor<1>,
    /// What the sum is divided by, as in [`DeviceBatch`].
    pub loss_targets: u64,
    /// How each layer with experts routed the tokens.
    pub routing: Vec<LayerRouting>,
}

/// What a model makes of each label of a batch, still on the device, row by row.
#[derive(Clone, Debug)]
pub struct LabelScores {
    /// The cross-entropy in nats, 0 of padding, `[batch_size * target_length]`.
    pub losses: Tensor<1>,
    /// The token with the highest logit, `[batch_size * target_length]`.
    pub predictions: Tensor<1, Int>,
    /// What the sum of the losses is divided by, as in [`DeviceBatch`].
    pub loss_targets: u64,
}

impl ItemLazy for BatchLoss {
    fn sync(self) -> Result<Self, ExecutionError> {
        Ok(self)
    }
}

impl ItemLazy for LabelScores {
    fn sync(self) -> Result<Self, ExecutionError> {
        Ok(self)
    }
}

impl Adaptor<LossInput> for LabelScores {
    /// The mean loss of the batch, for burn-train's `LossMetric`.
    fn adapt(&self) -> LossInput {
        LossInput::new(self.losses.clone().sum() / self.loss_targets as f64)
    }
}

impl Adaptor<LossInput> for BatchLoss {
    /// The mean loss of the batch, for burn-train's `LossMetric`.
    fn adapt(&self) -> LossInput {
        LossInput::new(self.sum.clone() / self.loss_targets as f64)
    }
}

/// The first epoch of some examples, as a data set of Burn's.
#[derive(Clone, Debug)]
pub struct FirstEpoch(pub PretrainingData);

impl Dataset<Example> for FirstEpoch {
    fn get(&self, index: usize) -> Result<Example, DatasetError> {
        assert!(index < self.len(), "Got index={index}, len={}", self.len());
        Ok(self.0.example(index as u64))
    }

    fn len(&self) -> usize {
        self.0.num_segments() as usize
    }
}

/// A batch of plain integers that can be copied to a device.
pub trait ToDevice {
    /// Copies the batch to a device, without noise, for the plain cross-entropy. `loss_targets` as in [`DeviceBatch`].
    fn to_device(&self, loss_targets: u64, device: &Device) -> DeviceBatch;
}

impl ToDevice for Batch {
    fn to_device(&self, loss_targets: u64, device: &Device) -> DeviceBatch {
        let ids = |ids: &[i32], length| {
            Tensor::from_data(TensorData::new(ids.to_vec(), [self.batch_size, length]), device)
        };
        let input_ids: Tensor<2, Int> = ids(&self.input_ids, self.input_length);
        let padding = self.input_ids.contains(&0).then(|| input_ids.clone().equal_elem(0));
        let labels = ids(&self.labels, self.target_length);
        DeviceBatch {
            input_ids,
            padding,
            labels,
            targets: self.num_targets(),
            loss_targets,
            noise: Noise::none(),
            loss: CrossEntropyOptions::default(),
        }
    }
}

/// Makes device batches of examples, padded to fixed lengths, for Burn's data loader. Each has the noise of a training
/// step, numbered as the batches are made; evaluation doesn't use it.
#[derive(Debug)]
pub struct LearnerBatcher {
    input_length: usize,
    target_length: usize,
    seed: u64,
    batches: AtomicU64,
}

impl LearnerBatcher {
    /// Batches of inputs and labels of these lengths, with noise drawn from `seed`.
    pub fn new(input_length: usize, target_length: usize, seed: u64) -> Self {
        Self { input_length, target_length, seed, batches: AtomicU64::new(0) }
    }
}

impl Batcher<Example, DeviceBatch> for LearnerBatcher {
    fn batch(&self, examples: Vec<Example>, device: &Device) -> DeviceBatch {
        let batch = Batch::new(&examples, self.input_length, self.target_length);
        let noise = Noise::training(self.seed, self.batches.fetch_add(1, Ordering::Relaxed), 0);
        DeviceBatch { noise, ..batch.to_device(batch.num_targets(), device) }
    }
}

impl TrainStep for Learner {
    type Input = DeviceBatch;
    type Output = BatchLoss;

    fn step(&self, batch: DeviceBatch) -> TrainOutput<BatchLoss> {
        let loss_targets = batch.loss_targets;
        let (logits, routing) = self.model.forward_with_routing(
            batch.input_ids,
            batch.padding,
            batch.labels.clone(),
            batch.noise,
        );
        let (sum, minimised) = losses(logits, batch.labels, batch.loss);
        let mut loss = minimised / loss_targets as f64;
        if let Some(auxiliary) = self.model.auxiliary_loss(&routing) {
            // A mean over the batch, of which it has the batch's share.
            loss = loss + auxiliary * (batch.targets as f64 / loss_targets as f64);
        }
        let gradients = loss.backward();
        let routing = routing.into_iter().map(LayerRouting::without_tape).collect();
        TrainOutput::new(self, gradients, BatchLoss { sum, loss_targets, routing })
    }
}

/// The summed cross-entropy without a tape, and the sum that training minimises.
fn losses(
    logits: Tensor<3>,
    labels: Tensor<2, Int>,
    options: CrossEntropyOptions,
) -> (Tensor<1>, Tensor<1>) {
    if options == CrossEntropyOptions::default() {
        let sum = cross_entropy_sum(logits, labels);
        return (sum.clone().inner(), sum);
    }
    // First, so that the logits are held once when their gradient is written over them.
    let sum = cross_entropy_sum(logits.clone().inner(), labels.clone().inner());
    (sum, cross_entropy_sum_with(logits, labels, options))
}

impl InferenceStep for Learner {
    type Input = DeviceBatch;
    type Output = LabelScores;

    /// Scores each label, without dropout.
    fn step(&self, batch: DeviceBatch) -> LabelScores {
        let logits = self.model.forward(batch.input_ids, batch.padding, batch.labels.clone());
        let [batch_size, target_length, vocab_size] = logits.dims();
        let labels = batch_size * target_length;
        let logits = logits.reshape([labels, vocab_size]);
        let predictions = logits.clone().argmax(1).reshape([labels]);
        let losses = cross_entropy(logits, batch.labels.reshape([labels]), Default::default());
        LabelScores { losses, predictions, loss_targets: batch.loss_targets }
    }
}
