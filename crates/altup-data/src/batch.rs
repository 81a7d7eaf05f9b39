//! Examples side by side.

use crate::Example;

/// Examples of equal length, row by row, as the model takes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// What the encoder reads, `[batch_size, input_length]`, padded with 0.
    pub input_ids: Vec<i32>,
    /// What the decoder is to write, `[batch_size, target_length]`, padded with 0.
    pub labels: Vec<i32>,
    /// The number of examples.
    pub batch_size: usize,
    /// The length of the inputs.
    pub input_length: usize,
    /// The length of the labels.
    pub target_length: usize,
}

impl Batch {
    /// The number of labels that are not padding.
    pub fn num_targets(&self) -> u64 {
        self.labels.iter().filter(|&&label| label != 0).count() as u64
    }

    /// The number of input tokens that are not padding.
    pub fn num_inputs(&self) -> u64 {
        self.input_ids.iter().filter(|&&token| token != 0).count() as u64
    }

    /// Lays out examples in rows, padded to the longest.
    pub fn of(examples: &[Example]) -> Self {
        let longest = |length: fn(&Example) -> usize| examples.iter().map(length).max();
        let input_length = longest(|example| example.inputs.len()).unwrap_or(0);
        let target_length = longest(|example| example.targets.len()).unwrap_or(0);
        Self::new(examples, input_length, target_length)
    }

    /// The number of tokens, padding included.
    pub fn num_positions(&self) -> u64 {
        (self.input_ids.len() + self.labels.len()) as u64
    }

    /// Lays out examples in rows, padded to the lengths given.
    ///
    /// # Panics
    ///
    /// If an example is longer than that.
    pub fn new(examples: &[Example], input_length: usize, target_length: usize) -> Self {
        let inputs = examples.iter().map(|example| example.inputs.as_slice());
        let targets = examples.iter().map(|example| example.targets.as_slice());
        Self {
            input_ids: padded(inputs, input_length),
            labels: padded(targets, target_length),
            batch_size: examples.len(),
            input_length,
            target_length,
        }
    }
}

fn padded<'a>(rows: impl Iterator<Item = &'a [u32]>, length: usize) -> Vec<i32> {
    let mut ids = Vec::new();
    for (number, row) in rows.enumerate() {
        assert!(row.len() <= length, "Got a row of {} for a length of {length}", row.len());
        // Backends index with signed integers; no vocabulary comes near their limit.
        ids.extend(row.iter().map(|id| *id as i32));
        ids.resize((number + 1) * length, 0);
    }
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_examples_are_padded_with_zeros() {
        let examples = [
            Example { inputs: vec![5, 6, 7], targets: vec![8] },
            Example { inputs: vec![9], targets: vec![] },
        ];
        let batch = Batch::new(&examples, 4, 2);
        assert_eq!(batch.input_ids, [5, 6, 7, 0, 9, 0, 0, 0]);
        assert_eq!(batch.labels, [8, 0, 0, 0]);
        assert_eq!((batch.num_inputs(), batch.num_targets()), (4, 1));
        assert_eq!(batch.num_positions(), 12);
        let tight = Batch::of(&examples);
        assert_eq!((tight.input_length, tight.target_length), (3, 1));
    }
}
