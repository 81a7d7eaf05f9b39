//! Batches of examples that are about equally long.

use std::sync::{Arc, Mutex, PoisonError};

use super::TokenizedTask;
use crate::interleaving::Interleaving;
use crate::permutation::Permutation;
use crate::pretraining::derive;
use crate::{Batch, Example};

/// Batches of the examples of one task or of several, for training.
///
/// Example n of the stream is a function of the data, the seed and n: each task goes through its examples in an order of
/// its own in each epoch, and tasks are mixed at their rates. The stream is cut into windows of as many batches as an epoch
/// of the smallest task has, at most [`WINDOW`](Self::WINDOW). In a window the examples are put together by length, so that
/// there is little to pad, and the batches come in a shuffled order. So batch n is a function of the data, the seed and n too,
/// whoever asks and when, and every example is seen once in an epoch. Where a window holds the end of an epoch and the
/// beginning of the next, the two copies of an example come in two batches of it, if it has two.
///
/// A window is sorted by the lengths of inputs and cut into strips, which are sorted by the lengths of targets. A single
/// strip is a window sorted by targets first; with a strip for each batch, targets don't count. The number of strips is
/// the one that pads least.
///
/// A batch is as long as its longest example.
#[derive(Debug)]
pub struct TaskBatches {
    tasks: Vec<TokenizedTask>,
    order: Interleaving,
    batch_size: usize,
    seed: u64,
    /// The batches of a window.
    window: u64,
    /// The windows used last, with their numbers.
    windows: Mutex<Vec<(u64, Arc<Window>)>>,
}

/// The examples of a window's batches, each by its task and its place there.
type Window = Vec<Vec<(usize, usize)>>;

impl TaskBatches {
    /// Batches at most whose examples are put together by length.
    pub const WINDOW: u64 = 128;

    /// Mixes tasks by their weights; a task's rate is its share of all weights
    /// ([`weights_by_size`](crate::mixture::weights_by_size) are T5's).
    ///
    /// # Panics
    ///
    /// If there is no task, a task has no example, a weight is not positive, or a batch has no place.
    pub fn new(tasks: Vec<(TokenizedTask, f64)>, batch_size: usize, seed: u64) -> Self {
        assert!(batch_size > 0, "A batch has examples. Got batch_size=0");
        let (tasks, weights): (Vec<TokenizedTask>, Vec<f64>) = tasks.into_iter().unzip();
        if let Some(empty) = tasks.iter().find(|task| task.examples.is_empty()) {
            panic!("Every task has examples. Got none of {}", empty.name);
        }
        let order = Interleaving::new(&weights, seed);
        // Of more than an epoch, the copies of an example, which are equally long, would come in one batch.
        let epochs = tasks.iter().enumerate().map(|(number, task)| {
            task.examples.len() as f64 / (batch_size as f64 * order.rate(number))
        });
        let window = epochs.fold(Self::WINDOW as f64, f64::min).max(1.0) as u64;
        Self { tasks, order, batch_size, seed, window, windows: Mutex::default() }
    }

    /// The tasks.
    pub fn tasks(&self) -> &[TokenizedTask] {
        &self.tasks
    }

    /// A task's share of the examples, from 0 to 1.
    pub fn rate(&self, task: usize) -> f64 {
        self.order.rate(task)
    }

    /// Batch `number`, counted from 0.
    pub fn batch(&self, number: u64) -> Batch {
        let window = self.window(number / self.window);
        let examples = window[(number % self.window) as usize].iter();
        let examples: Vec<Example> =
            examples.map(|&(task, place)| self.tasks[task].examples[place].clone()).collect();
        Batch::of(&examples)
    }

    /// For each task, how many times the first `batches` batches go through it.
    pub fn epochs(&self, batches: u64) -> impl Iterator<Item = (&str, f64)> {
        let examples = batches as f64 * self.batch_size as f64;
        self.tasks.iter().enumerate().map(move |(number, task)| {
            let seen = examples * self.order.rate(number);
            (task.name.as_str(), seen / task.examples.len() as f64)
        })
    }

    /// A hash of all examples and of how they are mixed: batches are the same where it and the seed are.
    pub fn fingerprint(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new_derive_key("altup-data 2026 task batches, apart");
        hasher.update(&(self.batch_size as u64).to_le_bytes());
        for (number, task) in self.tasks.iter().enumerate() {
            hasher.update(&self.order.rate(number).to_le_bytes());
            hasher.update(&(task.examples.len() as u64).to_le_bytes());
            for tokens in task.examples.iter().flat_map(|of| [&of.inputs, &of.targets]) {
                hasher.update(&(tokens.len() as u64).to_le_bytes());
                let bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
                hasher.update(&bytes);
            }
        }
        hasher.finalize()
    }

    /// The window of this number, from memory where it was used just now.
    fn window(&self, number: u64) -> Arc<Window> {
        // Workers ahead are in the next window while others are in this one.
        const KEPT: usize = 2;
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, window)) = windows.iter().find(|(known, _)| *known == number) {
            return Arc::clone(window);
        }
        let window = Arc::new(self.make_window(number));
        if windows.len() == KEPT {
            windows.remove(0);
        }
        windows.push((number, Arc::clone(&window)));
        window
    }

    fn make_window(&self, number: u64) -> Window {
        let size = self.window * self.batch_size as u64;
        let examples: Vec<(usize, usize)> =
            (number * size..(number + 1) * size).map(|n| self.locate(n)).collect();
        let lengths: Vec<Lengths> = examples
            .iter()
            .map(|&(task, place)| {
                let example = &self.tasks[task].examples[place];
                Lengths { input: example.inputs.len(), target: example.targets.len() }
            })
            .collect();
        let mut batches = put_together(&lengths, self.batch_size);
        keep_apart(&mut batches, &examples);
        let key = derive("altup-data 2026 order of task batches", &[self.seed, number]);
        let order = Permutation::new(self.window, key);
        let batch = |place| batches[order.at(place) as usize].iter().map(|&at| examples[at]);
        (0..self.window).map(|place| batch(place).collect()).collect()
    }

    /// The task of example `n` of the stream, and its place there.
    fn locate(&self, n: u64) -> (usize, usize) {
        let (task, number) = self.order.locate(n);
        let examples = self.tasks[task].examples.len() as u64;
        let (epoch, place) = (number / examples, number % examples);
        let key = derive("altup-data 2026 task order", &[self.seed, task as u64, epoch]);
        (task, Permutation::new(examples, key).at(place) as usize)
    }
}

/// The lengths of an example.
#[derive(Clone, Copy, Debug)]
struct Lengths {
    input: usize,
    target: usize,
}

/// Puts as many examples as fill whole batches together so that batches have little to pad: for each batch, the
/// examples' places.
fn put_together(lengths: &[Lengths], batch_size: usize) -> Vec<Vec<usize>> {
    let batches = lengths.len() / batch_size;
    let strips = std::iter::successors(Some(1), |strips| Some(2 * strips));
    let candidates = strips.take_while(|strips| *strips <= batches).map(|strips| {
        let mut places: Vec<usize> = (0..lengths.len()).collect();
        places.sort_by_key(|&at| (lengths[at].input, lengths[at].target));
        for strip in places.chunks_mut(batches.div_ceil(strips) * batch_size) {
            strip.sort_by_key(|&at| (lengths[at].target, lengths[at].input));
        }
        places
    });
    let best = candidates.min_by_key(|places| {
        places.chunks(batch_size).map(|batch| num_positions(batch, lengths)).sum::<usize>()
    });
    best.unwrap_or_default().chunks(batch_size).map(<[usize]>::to_vec).collect()
}

/// Exchanges examples between batches, so that none has an example twice where another one can take it: the nearest, whose
/// examples are about as long. `examples` are those that the places of the batches stand for.
fn keep_apart<E: PartialEq>(batches: &mut [Vec<usize>], examples: &[E]) {
    let has = |places: &[usize], example: &E| places.iter().any(|&at| examples[at] == *example);
    for number in 0..batches.len() {
        for row in 0..batches[number].len() {
            let example = &examples[batches[number][row]];
            if !has(&batches[number][..row], example) {
                continue;
            }
            let may_come = |at: &usize| !has(&batches[number], &examples[*at]);
            let place_in = |other: usize| match batches.get(other)? {
                places if has(places, example) => None,
                places if other > number => places.iter().position(may_come),
                places => places.iter().rposition(may_come),
            };
            let found = (1..batches.len())
                .flat_map(|away| [Some(number + away), number.checked_sub(away)])
                .flatten()
                .find_map(|other| Some((other, place_in(other)?)));
            if let Some((other, place)) = found {
                let comes = batches[other][place];
                batches[other][place] = std::mem::replace(&mut batches[number][row], comes);
            }
        }
    }
}

/// Tokens of a batch, padding included.
fn num_positions(batch: &[usize], lengths: &[Lengths]) -> usize {
    let longest =
        |of: fn(&Lengths) -> usize| batch.iter().map(|&at| of(&lengths[at])).max().unwrap_or(0);
    batch.len() * (longest(|of| of.input) + longest(|of| of.target))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// A task whose example k has k as the first token of its input, and lengths by k.
    fn task(name: &str, first: u32, examples: u32) -> TokenizedTask {
        let example = |k: u32| {
            let (input, target) = (3 + (k * 7919 % 23) as usize, 1 + (k * 31 % 3) as usize);
            let mut inputs = vec![2; input];
            inputs[0] = first + k;
            Example { inputs, targets: vec![5; target] }
        };
        TokenizedTask {
            name: name.into(),
            examples: (0..examples).map(example).collect(),
            truncated: 0,
        }
    }

    fn batches(sizes: &[u32], weights: &[f64], seed: u64) -> TaskBatches {
        let tasks = sizes.iter().zip(weights).zip(0..);
        let tasks = tasks.map(|((size, weight), number)| {
            (task(&format!("task {number}"), 1000 * (number + 1), *size), *weight)
        });
        TaskBatches::new(tasks.collect(), 4, seed)
    }

    /// The examples of a batch, by their first token.
    fn names(batch: &Batch) -> Vec<i32> {
        (0..batch.batch_size).map(|row| batch.input_ids[row * batch.input_length]).collect()
    }

    #[test]
    fn every_example_comes_once_in_an_epoch() {
        // 384 batches of 4 are exactly 4 epochs.
        let batches = batches(&[384], &[1.0], 7);
        let mut seen = BTreeMap::<i32, u32>::new();
        for number in 0..384 {
            for name in names(&batches.batch(number)) {
                *seen.entry(name).or_default() += 1;
            }
        }
        assert!(seen.keys().copied().eq(1000..1384));
        assert!(seen.values().all(|times| *times == 4), "{seen:?}");
        assert_eq!(batches.epochs(384).collect::<Vec<_>>(), [("task 0", 4.0)]);
    }

    /// Also where windows and epochs end at different places. In a mixture, which shuffles the epochs of a task, a tiny task's
    /// examples may come more often in a window than it has batches.
    #[test]
    fn no_batch_has_an_example_twice() {
        for (sizes, weights, most) in [
            (&[4][..], &[1.0][..], 0),
            (&[8], &[1.0], 0),
            (&[11], &[1.0], 0),
            (&[30], &[1.0], 0),
            (&[250], &[1.0], 0),
            (&[40, 9, 300], &[4.0, 1.0, 4.0], 0),
            (&[7, 1000], &[1.0, 1.0], 10),
        ] {
            let batches = batches(sizes, weights, 3);
            let has_copies = |number: &u64| {
                let mut names = names(&batches.batch(*number));
                names.sort_unstable();
                names.dedup();
                names.len() < 4
            };
            let found = (0..500).filter(has_copies).count();
            assert!(found <= most, "{found} of 500 batches of {sizes:?}");
        }
        // Fewer than a batch has rows, and fewer than two have.
        for size in [3, 5] {
            assert_eq!(names(&batches(&[size], &[1.0], 3).batch(9)).len(), 4);
        }
    }

    #[test]
    fn a_batch_is_the_same_whoever_asks_and_when() {
        let (one, other) = (batches(&[90, 50], &[2.0, 1.0], 7), batches(&[90, 50], &[2.0, 1.0], 7));
        let forwards: Vec<Batch> = (0..200).map(|number| one.batch(number)).collect();
        let mut backwards: Vec<Batch> = (0..200).rev().map(|number| other.batch(number)).collect();
        backwards.reverse();
        assert_eq!(forwards, backwards);
        let (threads, other) = (Arc::new(one), batches(&[90, 50], &[2.0, 1.0], 8));
        for workers in [1, 3] {
            let shared = Arc::clone(&threads);
            let made = crate::Prefetcher::start(40, workers, 2, move |number| shared.batch(number));
            let made: Vec<Batch> = made.unwrap().take(60).map(Result::unwrap).collect();
            assert_eq!(made, forwards[40..100]);
        }
        assert_ne!(other.batch(0), forwards[0]);
        assert_eq!(threads.fingerprint(), batches(&[90, 50], &[2.0, 1.0], 8).fingerprint());
        assert_ne!(threads.fingerprint(), batches(&[90, 51], &[2.0, 1.0], 7).fingerprint());
        assert_ne!(threads.fingerprint(), batches(&[90, 50], &[1.0, 1.0], 7).fingerprint());
    }

    #[test]
    fn tasks_are_mixed_at_their_rates() {
        let batches = batches(&[390, 130], &[3.0, 1.0], 7);
        assert_eq!((batches.rate(0), batches.rate(1)), (0.75, 0.25));
        // A block of the mixture is 16,384 examples: 32 windows.
        let of_first =
            (0..4096).flat_map(|number| names(&batches.batch(number))).filter(|name| *name < 2000);
        assert_eq!(of_first.count(), 3 * 4096);
    }

    #[test]
    fn examples_of_a_batch_are_about_as_long() {
        let batches = batches(&[384], &[1.0], 7);
        let made: Vec<Batch> = (0..96).map(|number| batches.batch(number)).collect();
        let tokens: u64 = made.iter().map(|of| of.num_inputs() + of.num_targets()).sum();
        let positions: u64 = made.iter().map(Batch::num_positions).sum();
        assert!(tokens as f64 > 0.95 * positions as f64, "{tokens} of {positions}");
        // Not from short to long.
        let lengths: Vec<usize> = made[..64].iter().map(|batch| batch.input_length).collect();
        assert!(!lengths.is_sorted());
    }

    /// Inputs of 2 and 3 tokens, targets of 1 and 9.
    #[test]
    fn like_lengths_come_together() {
        let lengths = [(2, 9), (3, 1), (2, 1), (3, 9), (3, 1), (2, 9), (3, 9), (2, 1)]
            .map(|(input, target)| Lengths { input, target });
        let batches = put_together(&lengths, 2);
        let positions: usize = batches.iter().map(|batch| num_positions(batch, &lengths)).sum();
        // Two batches with targets of 1 and two with targets of 9, of inputs of 2 and of 3 each.
        assert_eq!(positions, 2 * (3 + 4 + 11 + 12));
        let mut places = batches.concat();
        places.sort_unstable();
        assert_eq!(places, [0, 1, 2, 3, 4, 5, 6, 7]);
    }
}
