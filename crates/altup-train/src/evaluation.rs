//! The loss of a model on a fixed set of examples.

use altup_data::{Mixture, PretrainingData};
use burn::tensor::Device;
use burn::train::InferenceStep;
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::sync::atomic::AtomicBool;

use crate::learner::{Learner, ToDevice};
use crate::metrics::{SourceScore, ValidRow};
use crate::replicas::{Exact, Replicas, Turns};

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
    let turns = Turns { replicas: &Replicas::lone(), stop: &AtomicBool::new(false) };
    let pass = Pass { learner, max_examples, batch_size, step, device, turns };
    pass.score(data).unwrap_or_else(|| unreachable!("nobody stops it"))
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
    let turns = Turns { replicas: &Replicas::lone(), stop: &AtomicBool::new(false) };
    let pass = Pass { learner, max_examples, batch_size, step, device, turns };
    pass.score_mixture(data).unwrap_or_else(|| unreachable!("nobody stops it"))
}

/// A pass over validation data, by all replicas, that can be ended between batches.
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
    /// Who takes which batch.
    pub turns: Turns<'a>,
}

/// What came of a batch.
#[derive(Serialize, Deserialize)]
struct Scored {
    loss: Exact,
    correct: u64,
    targets: u64,
}

impl Pass<'_> {
    /// Scores examples as [`evaluate`] does. None if it was ended.
    pub fn score(self, data: &PretrainingData) -> Option<ValidRow> {
        let examples = data.num_segments().min(self.max_examples);
        let batches: Vec<u64> = (0..examples).step_by(self.batch_size).collect();
        let Ok(scored) = self.turns.score(&batches, |&first| {
            let batch = data.batch(first, (examples - first).min(self.batch_size as u64) as usize);
            let targets = batch.num_targets();
            let scored = self.learner.step(batch.to_device(targets, self.device));
            let correct = scored.correct.map_or(0, |correct| correct.into_scalar::<u64>());
            Ok::<_, Infallible>(Scored {
                loss: Exact(scored.sum.into_scalar::<f64>()),
                correct,
                targets,
            })
        });
        let (mut loss, mut correct, mut targets) = (0.0, 0, 0);
        for batch in scored? {
            loss += batch.loss.0;
            correct += batch.correct;
            targets += batch.targets;
        }
        let loss = loss / targets as f64;
        Some(ValidRow {
            step: self.step,
            loss,
            perplexity: loss.exp(),
            accuracy: correct as f64 / targets as f64,
            tokens: targets,
            sources: Vec::new(),
            tasks: Vec::new(),
        })
    }

    /// Scores a mixture as [`evaluate_mixture`] does. None if it was ended.
    pub fn score_mixture(self, data: &Mixture) -> Option<ValidRow> {
        if let [source] = data.sources() {
            return self.score(&source.data);
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
            let ValidRow { loss, accuracy, tokens, .. } = self.score(&source.data)?;
            row.loss += source.rate * loss;
            row.accuracy += source.rate * accuracy;
            row.tokens += tokens;
            row.sources.push(SourceScore { name: source.name.clone(), loss, accuracy, tokens });
        }
        row.perplexity = row.loss.exp();
        Some(row)
    }
}
