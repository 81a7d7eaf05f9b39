//! Replicas that are threads of one process, for tests: all but the thin adapter to a launcher's processes is tried on
//! them.

use std::panic::resume_unwind;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use super::Replicas;
use super::engine::{Engine, Place, Wait};

/// What a replica has put down for the others, and in which round.
#[derive(Clone, Default)]
struct Post {
    round: u64,
    values: Vec<f32>,
    bytes: Vec<u8>,
}

struct Shared {
    /// A post for rounds of either parity: nobody begins round n + 2 before all have read round n.
    posts: [Mutex<Vec<Post>>; 2],
    is_over: AtomicBool,
}

struct OnThread {
    rank: usize,
    size: usize,
    round: Mutex<u64>,
    shared: Arc<Shared>,
}

impl OnThread {
    /// Puts something down, and reads what all have put down once they have.
    fn exchange(&self, values: &[f32], bytes: &[u8], wait: &Wait<'_>) -> Vec<Post> {
        let round = {
            let mut round = self.round.lock().unwrap();
            *round += 1;
            *round
        };
        let posts = &self.shared.posts[(round % 2) as usize];
        posts.lock().unwrap()[self.rank] =
            Post { round, values: values.into(), bytes: bytes.into() };
        loop {
            let all = posts.lock().unwrap().clone();
            if all.iter().all(|post| post.round == round) {
                return all;
            }
            assert!(!self.shared.is_over.load(Ordering::SeqCst), "another replica has ended all");
            wait.look(self);
        }
    }
}

impl Engine for OnThread {
    fn place(&self) -> Place {
        let (rank, size) = (self.rank, self.size);
        Place { rank, size, local_rank: rank, local_size: size, machine: 0 }
    }

    fn all_to_all(&self, pieces: &[f32], received: &mut [f32], wait: &Wait<'_>) {
        let length = pieces.len() / self.size;
        let all = self.exchange(pieces, &[], wait);
        for (from, piece) in all.iter().zip(received.chunks_mut(length)) {
            piece.copy_from_slice(&from.values[self.rank * length..][..length]);
        }
    }

    fn gather_values(&self, piece: &[f32], all: &mut [f32], wait: &Wait<'_>) {
        let posts = self.exchange(piece, &[], wait);
        all.copy_from_slice(&posts.into_iter().flat_map(|post| post.values).collect::<Vec<_>>());
    }

    fn gather_bytes(&self, own: &[u8], all: &mut [u8], wait: &Wait<'_>) {
        let posts = self.exchange(&[], own, wait);
        all.copy_from_slice(&posts.into_iter().flat_map(|post| post.bytes).collect::<Vec<_>>());
    }

    fn broadcast(&self, bytes: &mut [u8], wait: &Wait<'_>) {
        let posts = self.exchange(&[], bytes, wait);
        bytes.copy_from_slice(&posts[0].bytes);
    }

    fn end_all(&self, _code: i32) -> ! {
        self.shared.is_over.store(true, Ordering::SeqCst);
        panic!("replica {} has ended all", self.rank)
    }
}

/// Ends all replicas when one panics, as a launcher does.
struct EndsAll(Arc<Shared>);

impl Drop for EndsAll {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.is_over.store(true, Ordering::SeqCst);
        }
    }
}

/// What each of `size` replicas makes of `work`, in the order of their ranks.
///
/// # Panics
///
/// If one of them does.
pub(crate) fn on_threads<T: Send>(size: usize, work: impl Fn(Replicas) -> T + Sync) -> Vec<T> {
    let posts = || Mutex::new(vec![Post::default(); size]);
    let shared = Arc::new(Shared { posts: [posts(), posts()], is_over: AtomicBool::new(false) });
    thread::scope(|scope| {
        let start = |rank| {
            let shared = Arc::clone(&shared);
            let work = &work;
            scope.spawn(move || {
                let _ends_all = EndsAll(Arc::clone(&shared));
                let engine = OnThread { rank, size, round: Mutex::new(0), shared };
                work(Replicas::new(Rc::new(engine)))
            })
        };
        let threads: Vec<_> = (0..size).map(start).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
            .collect()
    })
}
