//! What joins processes, whoever does it.

use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

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
#[derive(Clone, Copy, Debug)]
pub struct Wait<'a> {
    what: &'a str,
    since: Instant,
    limit: Duration,
}

impl<'a> Wait<'a> {
    /// For so long it only lets other threads go first: what is waited for is mostly on its way.
    const SPIN: Duration = Duration::from_millis(20);
    /// Then it sleeps between two looks.
    const SLEEP: Duration = Duration::from_micros(200);

    /// A wait from now on for `what`, as in "waited for the gradients of step 7".
    pub(super) fn new(what: &'a str, limit: Duration) -> Self {
        Self { what, since: Instant::now(), limit }
    }

    /// For the engine, while what it waits for has not come: gives the processor to others for a moment. When the wait
    /// takes too long, it says so and ends all replicas.
    pub fn look(&self, engine: &dyn Engine) {
        let waited = self.since.elapsed();
        if waited > self.limit {
            let (seconds, what) = (self.limit.as_secs_f64(), self.what);
            say(
                engine.place(),
                &format!(
                    "waited {seconds} s for {what}, and another replica is not there yet: it is stuck or gone \
                     (training.replica_timeout says how long to wait)"
                ),
            );
            engine.end_all(1);
        }
        match waited < Self::SPIN {
            true => thread::yield_now(),
            false => thread::sleep(Self::SLEEP),
        }
    }
}

/// Writes the error that ends all replicas.
pub(super) fn say(place: Place, error: &str) {
    // Nothing is left to do where even this can't be written.
    let _ = writeln!(std::io::stderr(), "{}: error: {error}", name(place));
}

/// What a replica is called in messages.
pub(super) fn name(place: Place) -> String {
    format!("replica {} of {}", place.rank, place.size)
}
