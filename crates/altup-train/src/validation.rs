//! What a run is validated on.

use altup_data::Mixture;
use burn::tensor::Device;

use crate::evaluation::evaluate_mixture;
use crate::learner::Learner;
use crate::metrics::ValidRow;
use crate::trainer::TrainError;

/// Scores a model in training.
pub trait Validation {
    /// Scores the model of `step`. It must not be on an autodiff device, and `device` is its device.
    ///
    /// # Errors
    ///
    /// If it can't be scored.
    fn score(
        &mut self,
        learner: &Learner,
        step: u64,
        device: &Device,
    ) -> Result<Validated, TrainError>;

    /// Whether the scores so far say that training should end. Default: never
    fn is_satisfied(&self) -> bool {
        false
    }
}

/// What came of a validation.
#[derive(Clone, Debug)]
pub struct Validated {
    /// The scores.
    pub row: ValidRow,
    /// What checkpoints are compared by: the lower the better.
    pub cost: f64,
}

/// The loss on the first examples of each source of a text; that is also what checkpoints are compared by.
#[derive(Clone, Debug)]
pub struct TextValidation {
    /// The sources.
    pub data: Mixture,
    /// Examples of each source that are scored at most.
    pub examples: u64,
    /// Examples that go through the model at once.
    pub batch_size: usize,
}

impl Validation for TextValidation {
    fn score(
        &mut self,
        learner: &Learner,
        step: u64,
        device: &Device,
    ) -> Result<Validated, TrainError> {
        let (examples, batch_size) = (self.examples, self.batch_size);
        let row = evaluate_mixture(learner, &self.data, examples, batch_size, step, device);
        Ok(Validated { cost: row.loss, row })
    }
}
