//! What joins processes, whoever does it.

use std::cell::Cell;
use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

use crate::{out_of_memory, process};

/// Where a replica is among all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its number, from 0.
    pub rank: usize,
    /// How many there are.
    pub size: usize,
    /// Its number among those on its machine, from 0.
    pub local_rank: usize,
    /// How many are on its machine.
    pub local_size: usize,
    /// The first of those on its machine, which stands for the machine.
    pub machine: usize,
}

/// What joins the processes of a run.
///
/// All replicas call the same methods in the same order, with buffers of the same lengths, and each method but `place`
/// and `end_all` returns when the replica has what it asked for. Meanwhile the engine calls [`Wait::look`] again and
/// again, which ends all of them when it takes too long. No length is 0.
pub trait Engine {
    /// Where this replica is.
    fn place(&self) -> Place;

    /// Sends piece n of `pieces` to replica n, and puts what replica n sends at piece n of `received`. Both are of one
    /// length, which the number of replicas divides.
    fn all_to_all(&self, pieces: &[f32], received: &mut [f32], wait: &Wait<'_>);

    /// Puts the pieces of all replicas into `all`, in the order of their ranks.
    fn gather_values(&self, piece: &[f32], all: &mut [f32], wait: &Wait<'_>);

    /// Puts the bytes of all replicas into `all`, in the order of their ranks.
    fn gather_bytes(&self, own: &[u8], all: &mut [u8], wait: &Wait<'_>);

    /// Gives the bytes of replica 0 to the others.
    fn broadcast(&self, bytes: &mut [u8], wait: &Wait<'_>);

    /// Ends all replicas, with an exit code other than 0, wherever they are.
    fn end_all(&self, code: i32) -> !;

    /// What does so on any thread, where the process has no memory left. Default: it exits, which a launcher notices.
    fn end_without_memory(&self) -> fn() -> ! {
        out_of_memory::exit
    }
}

/// A process alone: what it gets from all is its own.
pub(super) struct Lone;

impl Engine for Lone {
    fn place(&self) -> Place {
        Place { rank: 0, size: 1, local_rank: 0, local_size: 1, machine: 0 }
    }

    fn all_to_all(&self, pieces: &[f32], received: &mut [f32], _: &Wait<'_>) {
        received.copy_from_slice(pieces);
    }

    fn gather_values(&self, piece: &[f32], all: &mut [f32], _: &Wait<'_>) {
        all.copy_from_slice(piece);
    }

    fn gather_bytes(&self, own: &[u8], all: &mut [u8], _: &Wait<'_>) {
        all.copy_from_slice(own);
    }

    fn broadcast(&self, _: &mut [u8], _: &Wait<'_>) {}

    fn end_all(&self, code: i32) -> ! {
        std::process::exit(code)
    }
}

/// A wait for the other replicas.
#[derive(Clone, Debug)]
pub struct Wait<'a> {
    what: &'a str,
    limit: Duration,
    /// How long it has waited, without the time in which it was itself frozen.
    waited: Cell<Duration>,
    looked: Cell<Instant>,
}

impl<'a> Wait<'a> {
    /// For so long it only lets other threads go first: what is waited for is mostly on its way.
    const SPIN: Duration = Duration::from_millis(20);
    /// Then it sleeps between two looks.
    const SLEEP: Duration = Duration::from_micros(200);
    /// When a look comes so much later than the one before, this replica was frozen, and the others may be there.
    const LONGEST_GAP: Duration = Duration::from_secs(1);

    /// A wait from now on for `what`, as in "waited for the gradients of step 7".
    pub(super) fn new(what: &'a str, limit: Duration) -> Self {
        Self { what, limit, waited: Cell::default(), looked: Cell::new(Instant::now()) }
    }

    /// For the engine, while what it waits for has not come: gives the processor to others for a moment. When the wait
    /// takes too long, it says so and ends all replicas.
    pub fn look(&self, engine: &dyn Engine) {
        let now = Instant::now();
        let gap = now - self.looked.replace(now);
        let waited = self.waited.get() + gap.min(Self::LONGEST_GAP);
        self.waited.set(waited);
        if waited > self.limit.max(until_all_have_spoken(engine.place().size)) {
            let (seconds, what) = (self.limit.as_secs_f64(), self.what);
            let error = format!(
                "waited {seconds} s for {what}, and another replica is not there yet: it is stuck or gone \
                 (training.replica_timeout says how long to wait)"
            );
            end_all(engine, &error);
        }
        match waited < Self::SPIN {
            true => thread::yield_now(),
            false => thread::sleep(Self::SLEEP),
        }
    }
}

/// Ends all replicas, after `error` on standard error.
pub(super) fn end_all(engine: &dyn Engine, error: &str) -> ! {
    let Place { rank, size, .. } = engine.place();
    say_in_turn(rank, size, error);
    engine.end_all(1)
}

/// How much later than replica 0 replica `rank` says what is wrong. What is wrong on all of them is said once: by the
/// first, which ends the others meanwhile; if it is wrong on some, by the first of these.
pub(super) fn turn(rank: usize) -> Duration {
    const FIRST: Duration = Duration::from_secs(1);
    /// From here on all have one turn: an error must not take minutes to be said.
    const LAST: usize = 10;
    match rank {
        0 => Duration::ZERO,
        rank => FIRST + NEXT_TURN * rank.min(LAST) as u32,
    }
}

/// In this time the launcher ends a replica after another has spoken: Open MPI sends it SIGTERM after a second.
const NEXT_TURN: Duration = Duration::from_secs(2);

/// When each of `size` replicas has said what is wrong there: one that only waits for it says nothing before.
fn until_all_have_spoken(size: usize) -> Duration {
    turn(size - 1) + NEXT_TURN
}

/// Writes an error, after those whose turn is before.
pub(super) fn say_in_turn(rank: usize, size: usize, error: &str) {
    // By this the launcher ends those that wait when another has spoken. A run that listens for it would speak, too.
    process::end_at_sigterm();
    thread::sleep(turn(rank));
    // Nothing is left to do where even this can't be written.
    let _ = writeln!(std::io::stderr(), "{}", line(rank, size, error));
}

/// The line that says an error.
pub(super) fn line(rank: usize, size: usize, error: &str) -> String {
    format!("{}: error: {error}", name(rank, size))
}

/// What a replica is called in messages.
pub(super) fn name(rank: usize, size: usize) -> String {
    format!("replica {rank} of {size}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_speak_one_after_the_other_and_those_that_wait_last() {
        let seconds = |rank| turn(rank).as_secs();
        assert_eq!([0, 1, 2, 3, 10, 11, 4000].map(seconds), [0, 3, 5, 7, 21, 21, 21]);
        for size in 2..=20 {
            assert!(until_all_have_spoken(size) > turn(size - 1));
        }
    }
}
