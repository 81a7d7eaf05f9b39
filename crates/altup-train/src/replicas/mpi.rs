//! MPI, as an engine: the only file that names it.
//!
//! Every operation is one that doesn't block, looked at until it is done. So a wait can end, and gives its processor to
//! others meanwhile: MPI's own waits take a core each.

use std::time::Duration;

use mpi::Threading;
use mpi::collective::Root;
use mpi::environment::Universe;
use mpi::request::{Request, Scope, scope};
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives};

use super::engine::{Engine, Place, Wait};
use super::launcher::{JoinError, Launch};
use crate::process;

/// The processes of an MPI job. When it is dropped, MPI waits until all of them have dropped theirs.
pub(super) struct Mpi {
    place: Place,
    world: SimpleCommunicator,
    /// Last, so that it is dropped last.
    _universe: Universe,
}

impl Mpi {
    /// Joins the job.
    pub(super) fn start(launch: Launch) -> Result<Self, JoinError> {
        // Only the main thread calls MPI.
        let started = mpi::initialize_with_threading(Threading::Funneled);
        let (universe, _) = started.ok_or(JoinError::NotStarted)?;
        let world = universe.world();
        let found = world.size() as usize;
        if found != launch.size {
            let version = mpi::environment::library_version().unwrap_or_default();
            let mpi = version.lines().next().unwrap_or_default().to_owned();
            return Err(JoinError::Apart { launch, found, mpi });
        }
        let rank = world.rank();
        let machine = world.split_shared(rank);
        let mut first_there = rank;
        machine.process_at_rank(0).broadcast_into(&mut first_there);
        let place = Place {
            rank: rank as usize,
            size: found,
            local_rank: machine.rank() as usize,
            local_size: machine.size() as usize,
            machine: first_there as usize,
        };
        Ok(Self { place, world, _universe: universe })
    }

    /// Waits until an operation is done.
    fn finish<'a, D: ?Sized, S: Scope<'a>>(&self, request: Request<'a, D, S>, wait: &Wait<'_>) {
        let mut request = request;
        while let Err(unfinished) = request.test() {
            request = unfinished;
            // It does not return once the wait takes too long, so that no operation is left behind.
            wait.look(self);
        }
    }
}

impl Engine for Mpi {
    fn place(&self) -> Place {
        self.place
    }

    fn all_to_all(&self, pieces: &[f32], received: &mut [f32], wait: &Wait<'_>) {
        scope(|scope| {
            self.finish(self.world.immediate_all_to_all_into(scope, pieces, received), wait);
        });
    }

    fn gather_values(&self, piece: &[f32], all: &mut [f32], wait: &Wait<'_>) {
        scope(|scope| {
            self.finish(self.world.immediate_all_gather_into(scope, piece, all), wait);
        });
    }

    fn gather_bytes(&self, own: &[u8], all: &mut [u8], wait: &Wait<'_>) {
        scope(|scope| {
            self.finish(self.world.immediate_all_gather_into(scope, own, all), wait);
        });
    }

    fn broadcast(&self, bytes: &mut [u8], wait: &Wait<'_>) {
        let first = self.world.process_at_rank(0);
        scope(|scope| self.finish(first.immediate_broadcast_into(scope, bytes), wait));
    }

    fn end_all(&self, code: i32) -> ! {
        self.world.abort(code)
    }

    fn end_without_memory(&self) -> fn() -> ! {
        abort_without_memory
    }
}

/// Ends all replicas from whatever thread ran out of memory. MPI may need some for that: where it gets no further, this
/// process ends by a signal, which the launcher notices.
fn abort_without_memory() -> ! {
    process::end_within(Duration::from_secs(10));
    SimpleCommunicator::world().abort(1)
}
