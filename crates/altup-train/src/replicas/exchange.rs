//! The sum over all replicas, the same bits on each of them.
//!
//! An engine's own sum promises no order. Here each replica gets a piece of the values of all, adds it in the order of
//! the [tree](super::tree), and gives the sum to the others: all-to-all, a local sum, all-gather. Of n bytes each
//! replica sends 2 (N − 1) / N · n, as in any good sum.

use std::ops::Range;

use super::Replicas;
use super::tree::sum_pieces;

/// Values that are exchanged at a time. What is staged is bounded by twice this and a piece: 36 MiB at most.
pub(super) const BUCKET: usize = 4 << 20;

/// Memory for a bucket on its way.
pub(super) struct Exchange<'a> {
    replicas: &'a Replicas,
    bucket: usize,
    sent: Vec<f32>,
    received: Vec<f32>,
}

impl<'a> Exchange<'a> {
    /// Exchanges at most so many values at a time.
    pub(super) fn new(replicas: &'a Replicas, bucket: usize) -> Self {
        Self { replicas, bucket, sent: Vec::new(), received: Vec::new() }
    }

    /// Replaces every value by its sum over all replicas. All of them have parts of the same lengths.
    pub(super) fn sum(&mut self, parts: &mut [Vec<f32>], what: &str) {
        let mut filled = 0;
        let mut staged: Vec<(usize, Range<usize>)> = Vec::new();
        for number in 0..parts.len() {
            let mut first = 0;
            while first < parts[number].len() {
                let end = parts[number].len().min(first + self.bucket - filled);
                staged.push((number, first..end));
                filled += end - first;
                first = end;
                if filled == self.bucket {
                    self.sum_staged(parts, &staged, what);
                    (filled, staged) = (0, Vec::new());
                }
            }
        }
        if filled > 0 {
            self.sum_staged(parts, &staged, what);
        }
    }

    fn sum_staged(&mut self, parts: &mut [Vec<f32>], staged: &[(usize, Range<usize>)], what: &str) {
        let size = self.replicas.place().size;
        self.sent.clear();
        for (number, range) in staged {
            self.sent.extend_from_slice(&parts[*number][range.clone()]);
        }
        // To pieces of one length.
        let padded = self.sent.len().next_multiple_of(size);
        self.sent.resize(padded, 0.0);
        self.received.resize(padded, 0.0);
        self.replicas.all_to_all(&self.sent, &mut self.received, what);
        let length = padded / size;
        sum_pieces(&mut self.received, length);
        self.replicas.gather_values(&self.received[..length], &mut self.sent, what);
        let mut summed = &self.sent[..];
        for (number, range) in staged {
            let (values, rest) = summed.split_at(range.len());
            parts[*number][range.clone()].copy_from_slice(values);
            summed = rest;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::threads::on_threads;
    use super::*;

    /// Values of a replica whose sums depend on the order.
    fn values(rank: usize, length: usize) -> Vec<f32> {
        let value = |at: usize| {
            ((rank + 1) as f32 * 1e-3 + at as f32).sin() * 10f32.powi((rank as i32 % 3) - 1)
        };
        (0..length).map(value).collect()
    }

    /// ((0 + 1) + (2 + 3)) + 4, written out.
    fn by_hand(all: &[Vec<f32>], at: usize) -> f32 {
        let value = |rank: usize| all[rank][at];
        match all.len() {
            1 => value(0),
            2 => value(0) + value(1),
            3 => (value(0) + value(1)) + value(2),
            4 => (value(0) + value(1)) + (value(2) + value(3)),
            5 => ((value(0) + value(1)) + (value(2) + value(3))) + value(4),
            size => unreachable!("{size}"),
        }
    }

    #[test]
    fn it_is_the_sum_by_hand_at_any_length_on_one_to_five_replicas() {
        const BUCKET: usize = 12;
        let lengths: [&[usize]; 9] = [
            &[],
            &[0],
            &[1],
            &[3],
            &[BUCKET - 1],
            &[BUCKET],
            &[BUCKET + 1],
            &[2, 0, 7, 5 * BUCKET + 4, 1],
            &[BUCKET, BUCKET, 1],
        ];
        for size in 1..=5 {
            for lengths in lengths {
                let parts = |rank: usize| -> Vec<Vec<f32>> {
                    lengths.iter().map(|&length| values(rank, length)).collect()
                };
                let summed = on_threads(size, |replicas| {
                    let mut parts = parts(replicas.place().rank);
                    Exchange::new(&replicas, BUCKET).sum(&mut parts, "a sum");
                    parts
                });
                let all: Vec<Vec<Vec<f32>>> = (0..size).map(parts).collect();
                for (rank, summed) in summed.iter().enumerate() {
                    for (part, summed) in summed.iter().enumerate() {
                        let of_part: Vec<Vec<f32>> =
                            all.iter().map(|parts| parts[part].clone()).collect();
                        for (at, value) in summed.iter().enumerate() {
                            let expected = by_hand(&of_part, at);
                            assert_eq!(
                                value.to_bits(),
                                expected.to_bits(),
                                "{size}, {lengths:?}, replica {rank}"
                            );
                        }
                    }
                }
            }
        }
    }
}
