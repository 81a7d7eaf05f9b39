//! One run on several processes, each with a device and a copy of the model.
//!
//! A step adds the gradients of A micro-batches. Of N replicas each takes A / N of them, in a row, and the sum over all
//! is the same [tree] whatever N is: so are then the weights. Every replica computes all of a step but for the
//! passes of the others, on the same bits; only replica 0 reads and writes the folder of the run.
//!
//! What joins the processes is an [`Engine`]. A process alone has one that does nothing. The other is MPI, behind the
//! cargo feature `mpi`.

mod agreement;
mod engine;
mod exchange;
mod gradients;
mod launcher;
#[cfg(feature = "mpi")]
mod mpi;
mod restored;
mod share;
#[cfg(test)]
pub(crate) mod threads;
pub mod tree;

use std::cell::Cell;
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::out_of_memory::LastWords;

pub use agreement::{Agreement, Disagreement};
pub use engine::{Engine, Place, Wait};
pub use gradients::GradientSum;
pub use launcher::{JoinError, Launch};
pub use share::{MicroBatches, ShareError, Turns};

/// How long a replica waits for the others before its run says so: half an hour.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// All replicas of a run, as one of them sees them.
#[derive(Clone)]
pub struct Replicas {
    engine: Rc<dyn Engine>,
    timeout: Rc<Cell<Duration>>,
}

impl fmt::Debug for Replicas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&engine::name(self.place().rank, self.size()))
    }
}

/// A number that may be no number, on its way to other replicas bit by bit.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Exact(pub f64);

impl Serialize for Exact {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.to_bits().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Exact {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(f64::from_bits(u64::deserialize(deserializer)?)))
    }
}

impl Replicas {
    /// A process alone.
    pub fn lone() -> Self {
        Self::new(Rc::new(engine::Lone))
    }

    /// Those that an engine joins.
    pub fn new(engine: Rc<dyn Engine>) -> Self {
        Self { engine, timeout: Rc::new(Cell::new(DEFAULT_TIMEOUT)) }
    }

    /// From now on, a replica that waits so long for the others ends all of them.
    pub fn set_timeout(&self, timeout: Duration) {
        self.timeout.set(timeout);
    }

    /// Where this one is.
    pub fn place(&self) -> Place {
        self.engine.place()
    }

    /// How many there are.
    pub fn size(&self) -> usize {
        self.place().size
    }

    /// Whether there is only this one.
    pub fn is_lone(&self) -> bool {
        self.size() == 1
    }

    /// Whether this is replica 0, which has the folder of the run and shows how it goes.
    pub fn is_first(&self) -> bool {
        self.place().rank == 0
    }

    /// Ends all replicas, after `error` on standard error.
    pub fn end_all(&self, error: &str) -> ! {
        engine::end_all(&*self.engine, error)
    }

    /// What this process says and does where it runs out of memory: it ends all replicas.
    pub fn last_words(&self, error: &str) -> LastWords {
        let Place { rank, size, .. } = self.place();
        match self.is_lone() {
            true => LastWords::of_one_alone(error),
            false => LastWords {
                line: engine::line(rank, size, error) + "\n",
                after: engine::turn(rank),
                end: self.engine.end_without_memory(),
            },
        }
    }

    /// Waits until all replicas are here.
    pub fn meet(&self, what: &str) {
        self.any(false, what);
    }

    /// Whether any replica says so.
    pub fn any(&self, says: bool, what: &str) -> bool {
        if self.is_lone() {
            return says;
        }
        let mut all = vec![0; self.size()];
        self.gather_bytes(&[u8::from(says)], &mut all, what);
        all.contains(&1)
    }

    /// The sums of counts over all replicas.
    pub fn sum_counts<const N: usize>(&self, counts: [u64; N], what: &str) -> [u64; N] {
        let all = self.gather_words(&counts, what);
        std::array::from_fn(|at| all.iter().map(|of_one| of_one[at]).sum())
    }

    /// The numbers of all replicas, as many of each, in the order of their ranks, bit by bit.
    pub fn gather_numbers(&self, own: &[f64], what: &str) -> Vec<Vec<f64>> {
        let words: Vec<u64> = own.iter().map(|number| number.to_bits()).collect();
        let numbers = |words: Vec<u64>| words.into_iter().map(f64::from_bits).collect();
        self.gather_words(&words, what).into_iter().map(numbers).collect()
    }

    fn gather_words(&self, own: &[u64], what: &str) -> Vec<Vec<u64>> {
        if self.is_lone() || own.is_empty() {
            return vec![own.to_vec(); self.size()];
        }
        let bytes: Vec<u8> = own.iter().flat_map(|word| word.to_le_bytes()).collect();
        let mut all = vec![0; self.size() * bytes.len()];
        self.gather_bytes(&bytes, &mut all, what);
        let words = |bytes: &[u8]| {
            bytes.as_chunks::<8>().0.iter().map(|&bytes| u64::from_le_bytes(bytes)).collect()
        };
        all.chunks(bytes.len()).map(words).collect()
    }

    /// What each replica has, in the order of their ranks.
    pub fn gather<T: Serialize + DeserializeOwned>(&self, own: T, what: &str) -> Vec<T> {
        if self.is_lone() {
            return vec![own];
        }
        let mut bytes = to_bytes(&own);
        let lengths = self.gather_words(&[bytes.len() as u64], what);
        let lengths: Vec<usize> = lengths.iter().map(|length| length[0] as usize).collect();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        bytes.resize(longest, 0);
        let mut all = vec![0; longest * self.size()];
        self.gather_bytes(&bytes, &mut all, what);
        let of_each = all.chunks(longest).zip(lengths);
        of_each.map(|(bytes, length)| from_bytes(&bytes[..length])).collect()
    }

    /// What replica 0 has, on all of them. Only there is `value` asked for.
    ///
    /// # Errors
    ///
    /// That of `value`, which the others then wait for in vain: the caller ends them.
    pub fn from_first<T: Serialize + DeserializeOwned, E>(
        &self,
        what: &str,
        value: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        match (self.is_first(), self.is_lone()) {
            (true, true) => value(),
            (true, false) => {
                let value = value()?;
                self.broadcast(to_bytes(&value), what);
                Ok(value)
            }
            (false, _) => Ok(from_bytes(&self.broadcast(Vec::new(), what))),
        }
    }

    /// The bytes of replica 0, on all of them.
    pub fn broadcast(&self, mut bytes: Vec<u8>, what: &str) -> Vec<u8> {
        /// Bytes that are sent at a time.
        const CHUNK: usize = 16 << 20;
        if self.is_lone() {
            return bytes;
        }
        let mut length = (bytes.len() as u64).to_le_bytes();
        self.engine.broadcast(&mut length, &self.wait(what));
        bytes.resize(u64::from_le_bytes(length) as usize, 0);
        for chunk in bytes.chunks_mut(CHUNK) {
            self.engine.broadcast(chunk, &self.wait(what));
        }
        bytes
    }

    fn gather_bytes(&self, own: &[u8], all: &mut [u8], what: &str) {
        self.engine.gather_bytes(own, all, &self.wait(what));
    }

    fn all_to_all(&self, pieces: &[f32], received: &mut [f32], what: &str) {
        self.engine.all_to_all(pieces, received, &self.wait(what));
    }

    fn gather_values(&self, piece: &[f32], all: &mut [f32], what: &str) {
        self.engine.gather_values(piece, all, &self.wait(what));
    }

    fn wait<'a>(&self, what: &'a str) -> Wait<'a> {
        Wait::new(what, self.timeout.get())
    }
}

fn to_bytes(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_else(|error| unreachable!("not JSON: {error}"))
}

fn from_bytes<T: DeserializeOwned>(bytes: &[u8]) -> T {
    serde_json::from_slice(bytes)
        .unwrap_or_else(|error| unreachable!("of another version: {error}"))
}

#[cfg(test)]
mod tests {
    use super::threads::on_threads;
    use super::*;

    #[test]
    fn what_one_says_all_know() {
        for size in 1..=4 {
            for one in 0..size {
                let said = on_threads(size, |replicas| {
                    let rank = replicas.place().rank;
                    let sums = replicas.sum_counts([rank as u64, 1], "counts");
                    (replicas.any(rank == one, "a word"), replicas.any(false, "none"), sums)
                });
                let sum = (0..size as u64).sum();
                assert_eq!(said, vec![(true, false, [sum, size as u64]); size]);
            }
        }
    }

    #[test]
    fn what_is_gathered_is_in_the_order_of_ranks_and_bit_by_bit() {
        let gathered = on_threads(3, |replicas| {
            let rank = replicas.place().rank;
            let texts = replicas.gather("x".repeat(5 * rank), "texts");
            let number = if rank == 1 { f64::NAN } else { -0.0 };
            let exact: Vec<u64> = replicas
                .gather(Exact(number), "a number")
                .iter()
                .map(|exact| exact.0.to_bits())
                .collect();
            let numbers = replicas.gather_numbers(&[rank as f64, number], "numbers");
            let bits: Vec<u64> = numbers.iter().map(|of_one| of_one[1].to_bits()).collect();
            let first: Vec<f64> = numbers.iter().map(|of_one| of_one[0]).collect();
            (texts, exact == bits && bits[1] == f64::NAN.to_bits(), first)
        });
        let texts = ["", "xxxxx", "xxxxxxxxxx"].map(String::from).to_vec();
        assert_eq!(gathered, vec![(texts, true, vec![0.0, 1.0, 2.0]); 3]);
    }

    #[test]
    fn what_the_first_has_all_get() {
        let told = on_threads(3, |replicas| {
            let is_first = replicas.is_first();
            let value = replicas.from_first("a value", || match is_first {
                true => Ok(vec![1.5, -2.0]),
                false => Err("asked elsewhere"),
            });
            let bytes = if is_first { vec![7; 100_000] } else { vec![1, 2] };
            (value, replicas.broadcast(bytes, "bytes") == vec![7; 100_000])
        });
        assert_eq!(told, vec![(Ok(vec![1.5, -2.0]), true); 3]);
    }

    #[test]
    #[should_panic(expected = "replica 0 has ended all")]
    fn a_replica_that_waits_too_long_ends_all() {
        on_threads(2, |replicas| {
            replicas.set_timeout(Duration::from_millis(30));
            if replicas.is_first() {
                replicas.meet("the other, which never comes");
            }
        });
    }
}
