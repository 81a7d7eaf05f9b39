//! Which part of a step, and of a validation, is a replica's.

use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Replicas;

/// The micro-batches of each step that a replica takes: as many in a row as every other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MicroBatches {
    /// The number of the first, from 0.
    pub first: u64,
    /// How many.
    pub count: u64,
    /// How many a step has.
    pub of: u64,
}

/// The replicas of a run can't share the micro-batches of a step evenly.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "training.gradient_accumulation is {micro_batches}, which {replicas} replicas can't share evenly: {} would do, \
     or {}",
    or(&nearest_multiples(*micro_batches, *replicas), "", ""),
    or(&nearest_divisors(*micro_batches, *replicas), " replica", " replicas")
)]
pub struct ShareError {
    /// The micro-batches of a step.
    pub micro_batches: u64,
    /// The replicas.
    pub replicas: u64,
}

/// The numbers of micro-batches nearest to so many that the replicas can share.
fn nearest_multiples(micro_batches: u64, replicas: u64) -> Vec<u64> {
    let below = micro_batches / replicas * replicas;
    [below, below + replicas].into_iter().filter(|&number| number > 0).collect()
}

/// The numbers of replicas nearest to so many that can share the micro-batches.
fn nearest_divisors(micro_batches: u64, replicas: u64) -> Vec<u64> {
    let shares = |number: &u64| micro_batches.is_multiple_of(*number);
    let below = (1..replicas).rev().find(shares);
    below.into_iter().chain((replicas + 1..=micro_batches).find(shares)).collect()
}

fn or(numbers: &[u64], one: &str, several: &str) -> String {
    let words: Vec<String> = numbers.iter().map(u64::to_string).collect();
    format!("{}{}", words.join(" or "), if numbers == [1] { one } else { several })
}

impl MicroBatches {
    /// Those of this replica where a step has `micro_batches`.
    ///
    /// # Errors
    ///
    /// If the replicas can't share them evenly.
    pub fn of(replicas: &Replicas, micro_batches: u64) -> Result<Self, ShareError> {
        let place = replicas.place();
        let size = place.size as u64;
        if !micro_batches.is_multiple_of(size) {
            return Err(ShareError { micro_batches, replicas: size });
        }
        let count = micro_batches / size;
        Ok(Self { first: place.rank as u64 * count, count, of: micro_batches })
    }

    /// Whether the sum over a step is the same bits as that of one process.
    pub fn sums_as_one(&self) -> bool {
        self.count == self.of || self.count.is_power_of_two()
    }

    /// The number, in the run, of the `nth` batch that this replica takes.
    pub fn batch(&self, nth: u64) -> u64 {
        nth / self.count * self.of + self.first + nth % self.count
    }
}

/// Batches that are scored, not trained on: batch b is replica b mod N's.
#[derive(Clone, Copy, Debug)]
pub struct Turns<'a> {
    /// Those who take turns.
    pub replicas: &'a Replicas,
    /// Once it is set on any of them, they all end before the next round.
    pub stop: &'a AtomicBool,
}

impl Turns<'_> {
    /// What `score` says of each batch, in their order, on every replica. None once they are to stop.
    ///
    /// # Errors
    ///
    /// That of `score`, which the others then wait for in vain: the caller ends them.
    pub fn score<B, R: Serialize + DeserializeOwned, E>(
        &self,
        batches: &[B],
        mut score: impl FnMut(&B) -> Result<R, E>,
    ) -> Result<Option<Vec<R>>, E> {
        const WHAT: &str = "the validation";
        let place = self.replicas.place();
        let mut own = Vec::new();
        for round in batches.chunks(place.size) {
            if self.replicas.any(self.stop.load(Ordering::Relaxed), WHAT) {
                return Ok(None);
            }
            if let Some(batch) = round.get(place.rank) {
                own.push(score(batch)?);
            }
        }
        let mut of_each: Vec<_> =
            self.replicas.gather(own, WHAT).into_iter().map(Vec::into_iter).collect();
        let in_order = (0..batches.len()).filter_map(|number| of_each[number % place.size].next());
        Ok(Some(in_order.collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::threads::on_threads;
    use super::*;

    #[test]
    fn replicas_share_a_step_in_order_and_leave_nothing_out() {
        for size in [1, 2, 3, 6] {
            let batches = on_threads(size, |replicas| {
                let own = MicroBatches::of(&replicas, 6).unwrap();
                (0..2 * own.count).map(|nth| own.batch(nth)).collect::<Vec<_>>()
            });
            let each = 6 / size;
            let step =
                |from: usize| batches.iter().flat_map(move |own| own[from..from + each].to_vec());
            let all: Vec<u64> = step(0).chain(step(each)).collect();
            assert_eq!(all, (0..12).collect::<Vec<u64>>(), "{size} replicas");
        }
    }

    #[test]
    fn what_cannot_be_shared_is_refused_with_what_can() {
        let message = |micro_batches, replicas| ShareError { micro_batches, replicas }.to_string();
        assert_eq!(
            message(6, 4),
            "training.gradient_accumulation is 6, which 4 replicas can't share evenly: 4 or 8 would do, or 3 or 6 \
             replicas"
        );
        assert!(message(1, 2).ends_with(": 2 would do, or 1 replica"), "{}", message(1, 2));
        assert!(
            message(4, 3).ends_with(": 3 or 6 would do, or 2 or 4 replicas"),
            "{}",
            message(4, 3)
        );
        let refused = on_threads(2, |replicas| MicroBatches::of(&replicas, 3).is_err());
        assert_eq!(refused, [true, true]);
    }

    #[test]
    fn sums_are_those_of_one_process_at_powers_of_two() {
        let sums = |size, micro_batches| {
            on_threads(size, |replicas| {
                MicroBatches::of(&replicas, micro_batches).unwrap().sums_as_one()
            })[0]
        };
        assert!(sums(1, 6) && sums(3, 3) && sums(3, 6) && sums(2, 8));
        assert!(!sums(2, 6) && !sums(2, 12));
    }

    #[test]
    fn scores_are_in_the_order_of_batches_whoever_takes_them() {
        for size in 1..=4 {
            for count in [0, 1, 5, 8] {
                let batches: Vec<u64> = (0..count).collect();
                let scored = on_threads(size, |replicas| {
                    let turns = Turns { replicas: &replicas, stop: &AtomicBool::new(false) };
                    let mut taken = 0;
                    let scores = turns.score(&batches, |batch| {
                        taken += 1;
                        Ok::<_, ()>(batch * batch)
                    });
                    (scores.unwrap().unwrap(), taken)
                });
                let squares: Vec<u64> = batches.iter().map(|batch| batch * batch).collect();
                assert!(scored.iter().all(|(scores, _)| *scores == squares), "{scored:?}");
                assert_eq!(scored.iter().map(|(_, taken)| taken).sum::<u64>(), count);
            }
        }
    }

    #[test]
    fn all_stop_when_one_is_told_to() {
        let scored = on_threads(3, |replicas| {
            let stop = AtomicBool::new(replicas.place().rank == 1);
            let turns = Turns { replicas: &replicas, stop: &stop };
            turns.score(&[1, 2, 3, 4], |batch| Ok::<_, ()>(*batch)).unwrap()
        });
        assert_eq!(scored, [None, None, None]);
    }
}
