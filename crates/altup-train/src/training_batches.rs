//! What a run trains on: batches by number.

use altup_data::{Batch, Mixture};
use std::sync::Arc;

use crate::metrics::SourceEpochs;

/// The batches that a run trains on.
///
/// A batch is a pure function of the data and its number. So the number of steps done is the whole position of a run in
/// its data, and any number of threads makes the same batches.
pub trait TrainingBatches: Send + Sync {
    /// Batch `number`, counted from 0. There is no last one.
    fn batch(&self, number: u64) -> Batch;

    /// What no batch is longer than.
    fn longest(&self) -> Longest;

    /// How often the first `batches` batches go through each source; none where there is one source.
    fn epochs(&self, batches: u64) -> Vec<SourceEpochs>;
}

/// The lengths of a run's longest batches, in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Longest {
    /// Of the inputs.
    pub input_length: usize,
    /// Of the targets.
    pub target_length: usize,
    /// Whether inputs are padded to that length.
    pub padded: bool,
}

/// Examples of text, as many in every batch.
#[derive(Clone, Debug)]
pub struct TextBatches {
    /// The examples.
    pub data: Arc<Mixture>,
    /// How many a batch has.
    pub batch_size: usize,
}

impl TextBatches {
    /// The examples of the first `batches` batches.
    fn examples(&self, batches: u64) -> u64 {
        batches * self.batch_size as u64
    }
}

impl TrainingBatches for TextBatches {
    fn batch(&self, number: u64) -> Batch {
        self.data.batch(self.examples(number), self.batch_size)
    }

    /// All batches of text are equally long. Whether they are padded follows from the objective, so the first few examples
    /// tell: a whole batch may be larger than the memory.
    fn longest(&self) -> Longest {
        const FEW: usize = 64;
        let first = self.data.batch(0, self.batch_size.min(FEW));
        let Batch { input_ids, input_length, target_length, .. } = first;
        Longest { input_length, target_length, padded: input_ids.contains(&0) }
    }

    fn epochs(&self, batches: u64) -> Vec<SourceEpochs> {
        SourceEpochs::of(&self.data, self.examples(batches))
    }
}
