//! Sums in an order that does not depend on who adds.
//!
//! What is numbered 0, 1, 2, … is added in pairs, (0 + 1), (2 + 3), …, then the sums in pairs, and so on; an odd one is
//! carried up. A block of 2ᵏ that begins at a multiple of 2ᵏ is a node of this tree, whoever computes it. So the sum of
//! A values is the same bits when each of N replicas first adds A / N of them, where A / N is a power of two.

/// The sum of values that come one by one, in the order of their numbers. Of A values it holds about log₂ A at a time.
#[derive(Debug)]
pub struct PairwiseSum<T> {
    /// The nodes without a partner yet, with their heights, which fall.
    nodes: Vec<(u32, T)>,
}

impl<T> Default for PairwiseSum<T> {
    fn default() -> Self {
        Self { nodes: Vec::new() }
    }
}

impl<T> PairwiseSum<T> {
    /// Adds the next value. `plus` adds what comes later to what comes earlier.
    pub fn push(&mut self, value: T, mut plus: impl FnMut(T, T) -> T) {
        let mut node = (0, value);
        while let Some((height, earlier)) = self.nodes.pop_if(|(height, _)| *height == node.0) {
            node = (height + 1, plus(earlier, node.1));
        }
        self.nodes.push(node);
    }

    /// The sum of all; none of nothing.
    pub fn total(self, mut plus: impl FnMut(T, T) -> T) -> Option<T> {
        let values = self.nodes.into_iter().rev().map(|(_, value)| value);
        values.reduce(|later, earlier| plus(earlier, later))
    }
}

/// The most sums that a [`PairwiseSum`] of so many values holds while one of them is computed.
pub fn most_held(count: usize) -> u32 {
    count.checked_ilog2().unwrap_or(0)
}

/// Adds the pieces of `values`, each of `length`, into the first.
pub(super) fn sum_pieces(values: &mut [f32], length: usize) {
    /// Elements whose pieces are added at a time: they stay in the cache over all heights of the tree.
    const BLOCK: usize = 2048;
    let pieces = values.len() / length;
    for first in (0..length).step_by(BLOCK) {
        let block = first..(first + BLOCK).min(length);
        let mut apart = 1;
        while apart < pieces {
            for earlier in (0..pieces - apart).step_by(2 * apart) {
                let (head, tail) = values.split_at_mut((earlier + apart) * length);
                let sums = &mut head[earlier * length..][block.clone()];
                for (sum, value) in sums.iter_mut().zip(&tail[block.clone()]) {
                    *sum += value;
                }
            }
            apart *= 2;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(count: usize) -> Option<String> {
        let plus = |a: String, b: String| format!("({a}+{b})");
        let mut sum = PairwiseSum::default();
        (0..count).for_each(|number| sum.push(number.to_string(), plus));
        sum.total(plus)
    }

    #[test]
    fn values_are_added_in_pairs_and_an_odd_one_is_carried_up() {
        assert_eq!(written(0), None);
        assert_eq!(written(1).unwrap(), "0");
        assert_eq!(written(3).unwrap(), "((0+1)+2)");
        assert_eq!(written(4).unwrap(), "((0+1)+(2+3))");
        assert_eq!(written(7).unwrap(), "(((0+1)+(2+3))+((4+5)+6))");
        assert_eq!(written(9).unwrap(), "((((0+1)+(2+3))+((4+5)+(6+7)))+8)");
    }

    #[test]
    fn it_holds_a_sum_for_each_height() {
        let mut sum = PairwiseSum::default();
        for number in 1..=64u32 {
            sum.push(1, |a: u64, b| a + b);
            assert_eq!(sum.nodes.len(), number.count_ones() as usize);
        }
    }

    #[test]
    fn most_are_held_before_a_power_of_two_is_full() {
        for count in 0..=40 {
            let (mut sum, mut most) = (PairwiseSum::default(), 0);
            for _ in 0..count {
                // Here the next one is computed.
                most = most.max(sum.nodes.len());
                sum.push(1, |a: u64, b| a + b);
            }
            assert_eq!(most_held(count), most as u32, "{count}");
        }
    }

    /// Of unlike sizes and signs, so that another order has other last bits.
    #[test]
    fn pieces_are_added_as_values_that_come_one_by_one() {
        for pieces in 1..=9usize {
            for length in [1, 5, 4100] {
                let value = |piece: usize, at: usize| {
                    let sign = if piece.is_multiple_of(2) { 1.0 } else { -1.0 };
                    sign * ((piece * 7919 + at * 104_729) % 1000) as f32
                        * 1.000_1f32.powi(at as i32 % 64)
                };
                let mut values: Vec<f32> = (0..pieces * length)
                    .map(|number| value(number / length, number % length))
                    .collect();
                sum_pieces(&mut values, length);
                for (at, summed) in values[..length].iter().enumerate() {
                    let mut sum = PairwiseSum::default();
                    (0..pieces).for_each(|piece| sum.push(value(piece, at), |a, b| a + b));
                    let expected = sum.total(|a, b| a + b).unwrap();
                    assert_eq!(summed.to_bits(), expected.to_bits(), "{pieces} pieces, {at}");
                }
            }
        }
    }
}
