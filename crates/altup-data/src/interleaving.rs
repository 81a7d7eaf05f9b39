//! The order in which the examples of several sources come.

use crate::permutation::Permutation;
use crate::pretraining::derive;

/// Which source example n comes from, and its number there.
///
/// Both follow from the seed and n alone: no counts are kept. Of each [`BLOCK`](Self::BLOCK) examples in a row every
/// source has its exact part, in a shuffled order.
#[derive(Debug, Clone)]
pub(crate) struct Interleaving {
    parts: Vec<Part>,
    seed: u64,
}

/// A source's part of a block.
#[derive(Debug, Clone, Copy)]
struct Part {
    /// How many examples of a block are its own, and the first of their places before the shuffle.
    examples: u64,
    first: u64,
}

impl Interleaving {
    /// Examples among which every source has its exact part.
    pub(crate) const BLOCK: u64 = 1 << 14;

    /// Sources with these weights. The rate of each is its share of all weights, rounded to
    /// [`BLOCK`](Self::BLOCK)ths, and at least one.
    ///
    /// # Panics
    ///
    /// If there is no source or a weight is not positive.
    pub(crate) fn new(weights: &[f64], seed: u64) -> Self {
        let mut first = 0;
        let parts = parts(weights).into_iter().map(|examples| {
            let part = Part { examples, first };
            first += examples;
            part
        });
        Self { parts: parts.collect(), seed }
    }

    /// A source's share of the examples, from 0 to 1.
    pub(crate) fn rate(&self, source: usize) -> f64 {
        self.parts[source].examples as f64 / Self::BLOCK as f64
    }

    /// The source of example `n`, and its number there.
    pub(crate) fn locate(&self, n: u64) -> (usize, u64) {
        if self.parts.len() == 1 {
            return (0, n);
        }
        let (block, place) = (n / Self::BLOCK, n % Self::BLOCK);
        let key = derive("altup-data 2026 mixture", &[self.seed, block]);
        let place = Permutation::new(Self::BLOCK, key).at(place);
        let source = self.parts.partition_point(|part| part.first <= place) - 1;
        let part = self.parts[source];
        (source, block * part.examples + place - part.first)
    }
}

/// How many of a block's examples each weight has.
fn parts(weights: &[f64]) -> Vec<u64> {
    const BLOCK: u64 = Interleaving::BLOCK;
    assert!(
        !weights.is_empty() && weights.iter().all(|weight| *weight > 0.0 && weight.is_finite()),
        "A mixture needs positive weights. Got weights={weights:?}"
    );
    let total: f64 = weights.iter().sum();
    let exact: Vec<f64> = weights.iter().map(|weight| weight / total * BLOCK as f64).collect();
    let mut parts: Vec<u64> = exact.iter().map(|exact| (exact.floor() as u64).max(1)).collect();
    // What rounding has left over goes where it is missed most, and comes from where it isn't.
    loop {
        let sum: u64 = parts.iter().sum();
        let missed = |number: &usize| exact[*number] - parts[*number] as f64;
        let by_missed = |a: &usize, b: &usize| missed(a).total_cmp(&missed(b)).then(b.cmp(a));
        let numbers = 0..parts.len();
        let (number, up) = match sum.cmp(&BLOCK) {
            std::cmp::Ordering::Equal => return parts,
            std::cmp::Ordering::Less => (numbers.max_by(by_missed), true),
            std::cmp::Ordering::Greater => {
                (numbers.filter(|number| parts[*number] > 1).min_by(by_missed), false)
            }
        };
        match number {
            Some(number) if up => parts[number] += 1,
            Some(number) => parts[number] -= 1,
            None => return parts,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_fill_a_block_and_leave_nobody_out() {
        const BLOCK: u64 = Interleaving::BLOCK;
        assert_eq!(parts(&[2.0]), [BLOCK]);
        assert_eq!(parts(&[1.0, 1.0, 1.0]), [5462, 5461, 5461]);
        assert_eq!(parts(&[1e-9, 1.0, 1e-9]), [1, BLOCK - 2, 1]);
        assert_eq!(parts(&[0.3; 7]).iter().sum::<u64>(), BLOCK);
    }
}
