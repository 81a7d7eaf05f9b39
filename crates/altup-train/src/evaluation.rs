//! The loss of a model on a fixed set of examples.

use altup_data::{Mixture, PretrainingData};
use burn::tensor::Device;
use burn::train::InferenceStep;
use std::convert::Infallible;

use crate::learner::{Learner, ToDevice};
use crate::metrics::{SourceScore, ValidRow};

/// Scores the first `max_examples` examples of `data`, without dropout.
///
/// `learner` must not be on an autodiff device (see Burn's `Module::valid`), and `device` is its
/// device.
pub fn evaluate(
    learner: &Learner,
    data: &PretrainingData,
    max_examples: u64,
    batch_size: usize,
    step: u64,
    device: &Device,
) -> ValidRow {
    let pass = Pass { learner, max_examples, batch_size, step, device };
    let Ok(row) = pass.score(data, &mut || Ok::<_, Infallible>(()));
    row
}

/// Scores the first `max_examples` examples of each source of a mixture, as [`evaluate`] does.
///
/// The scores of the whole are means over the sources by their rates, so that they are those of the
/// mixture, however much text each source has to validate on.
pub fn evaluate_mixture(
    learner: &Learner,
    data: &Mixture,
    max_examples: u64,
    batch_size: usize,
    step: u64,
    device: &Device,
) -> ValidRow {
    let pass = Pass { learner, max_examples, batch_size, step, device };
    let Ok(row) = pass.score_mixture(data, &mut || Ok::<_, Infallible>(()));
    row
}

/// A pass over validation data that can be ended between batches.
#[derive(Clone, Copy, Debug)]
pub struct Pass<'a> {
    /// The model; not on an autodiff device.
    pub learner: &'a Learner,
    /// How many examples of each source are scored at most.
    pub max_examples: u64,
    /// Examples that go through the model at once.
    pub batch_size: usize,
    /// Optimizer steps done before the pass.
    pub step: u64,
    /// The model's device.
    pub device: &'a Device,
}

impl Pass<'_> {
    /// Scores examples as [`evaluate`] does. `before_batch` is called before each batch.
    ///
    /// # Errors
    ///
    /// That of `before_batch`, which ends the pass.
    pub fn score<E>(
        self,
        data: &PretrainingData,
        before_batch: &mut impl FnMut() -> Result<(), E>,
    ) -> Result<ValidRow, E> {
        let examples = data.num_segments().min(self.max_examples);
        let (mut loss, mut correct, mut targets) = (0.0, 0u64, 0u64);
        for first in (0..examples).step_by(self.batch_size) {
            before_batch()?;
            let batch = data.batch(first, (examples - first).min(self.batch_size as u64) as usize);
            let batch_targets = batch.num_targets();
            let scored = self.learner.step(batch.to_device(batch_targets, self.device));
            loss += scored.sum.into_scalar::<f64>();
            correct += scored.correct.map_or(0, |correct| correct.into_scalar::<u64>());
            targets += batch_targets;
        }
        let loss = loss / targets as f64;
        Ok(ValidRow {
            step: self.step,
            loss,
            perplexity: loss.exp(),
            accuracy: correct as f64 / targets as f64,
            tokens: targets,
            sources: Vec::new(),
            tasks: Vec::new(),
        })
    }

    /// Scores a mixture as [`evaluate_mixture`] does. `before_batch` is called before each batch.
    ///
    /// # Errors
    ///
    /// That of `before_batch`, which ends the pass.
    pub fn score_mixture<E>(
        self,
        data: &Mixture,
        before_batch: &mut impl FnMut() -> Result<(), E>,
    ) -> Result<ValidRow, E> {
        if let [source] = data.sources() {
            return self.score(&source.data, before_batch);
        }
        let mut row = ValidRow {
            step: self.step,
            loss: 0.0,
            perplexity: 0.0,
            accuracy: 0.0,
            tokens: 0,
            sources: Vec::new(),
            tasks: Vec::new(),
        };
        for source in data.sources() {
            let ValidRow { loss, accuracy, tokens, .. } = self.score(&source.data, before_batch)?;
            row.loss += source.rate * loss;
            row.accuracy += source.rate * accuracy;
            row.tokens += tokens;
            row.sources.push(SourceScore { name: source.name.clone(), loss, accuracy, tokens });
        }
        row.perplexity = row.loss.exp();
        Ok(row)
    }
}
