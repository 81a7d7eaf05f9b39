//! What a run is validated on.

use altup_data::Mixture;
use burn::tensor::Device;

use crate::config::TrainingConfig;
use crate::evaluation::Pass;
use crate::learner::Learner;
use crate::metrics::ValidRow;
use crate::replicas::Turns;
use crate::trainer::TrainError;

/// Scores a model in training.
pub trait Validation {
    /// Scores the model of `step`. It must not be on an autodiff device, and `device` is its device. All replicas score
    /// it in turns, and get the same. Once they are to stop, they end before the next batch, and get nothing.
    ///
    /// # Errors
    ///
    /// If it can't be scored.
    fn score(
        &mut self,
        learner: &Learner,
        step: u64,
        device: &Device,
        turns: Turns<'_>,
    ) -> Result<Option<Validated>, TrainError>;

    /// Training goes back to `step`: what was scored behind it never was. Default: nothing is remembered
    fn rewind(&mut self, step: u64) {
        let _ = step;
    }

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
    /// How many examples of each source are scored at most, and how many go through the model at once.
    pub training: TrainingConfig,
}

impl Validation for TextValidation {
    fn score(
        &mut self,
        learner: &Learner,
        step: u64,
        device: &Device,
        turns: Turns<'_>,
    ) -> Result<Option<Validated>, TrainError> {
        let max_examples = self.training.eval_examples_at(step);
        let batch_size = self.training.batch_size;
        let pass = Pass { learner, max_examples, batch_size, step, device, turns };
        let row = pass.score_mixture(&self.data);
        Ok(row.map(|row| Validated { cost: row.cost(), row }))
    }
}
