//! The loss of a model on a fixed set of examples.

use altup_data::{Mixture, PretrainingData};
use burn::tensor::Device;
use burn::train::InferenceStep;

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
    let examples = data.num_segments().min(max_examples);
    let (mut loss, mut correct, mut targets) = (0.0, 0u64, 0u64);
    for first in (0..examples).step_by(batch_size) {
        let batch = data.batch(first, (examples - first).min(batch_size as u64) as usize);
        let batch_targets = batch.num_targets();
        let scored = learner.step(batch.to_device(batch_targets, device));
        loss += scored.sum.into_scalar::<f64>();
        correct += scored.correct.map_or(0, |correct| correct.into_scalar::<u64>());
        targets += batch_targets;
    }
    let loss = loss / targets as f64;
    ValidRow {
        step,
        loss,
        perplexity: loss.exp(),
        accuracy: correct as f64 / targets as f64,
        tokens: targets,
        sources: Vec::new(),
        tasks: Vec::new(),
    }
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
    let score =
        |data: &PretrainingData| evaluate(learner, data, max_examples, batch_size, step, device);
    if let [source] = data.sources() {
        return score(&source.data);
    }
    let mut row = ValidRow {
        step,
        loss: 0.0,
        perplexity: 0.0,
        accuracy: 0.0,
        tokens: 0,
        sources: Vec::new(),
        tasks: Vec::new(),
    };
    for source in data.sources() {
        let ValidRow { loss, accuracy, tokens, .. } = score(&source.data);
        row.loss += source.rate * loss;
        row.accuracy += source.rate * accuracy;
        row.tokens += tokens;
        row.sources.push(SourceScore { name: source.name.clone(), loss, accuracy, tokens });
    }
    row.perplexity = row.loss.exp();
    row
}
