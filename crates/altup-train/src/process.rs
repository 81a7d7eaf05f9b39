//! What a program that computes on the CPU sets up first: its memory and its threads. And how programs are started and
//! end.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Sets up this process for speed; for programs, first in `main`.
pub fn set_up() {
    keep_freed_memory();
    compute_on_this_thread(usable_threads());
}

/// Sets up this process for speed, as number `own` of several that compute together, of each of which `cores` are those
/// that it may use: processes with the same cores share them. What is returned is a warning, where a launcher has bound
/// those of this machine to few cores.
pub fn set_up_among(own: usize, cores: &[Cores]) -> Option<String> {
    keep_freed_memory();
    let share = Cores::share(own, cores);
    compute_on_this_thread(share);
    #[cfg(feature = "tch")]
    if cores.len() > 1 {
        // SAFETY: libtorch only writes the number down.
        unsafe { torch_sys::at_set_num_threads(share as i32) };
    }
    Cores::idle(own, cores)
}

/// The threads that kernels on the CPU run on.
pub fn num_threads() -> usize {
    rayon::current_num_threads()
}

/// As many threads of this process as can run at once: the cores that it is bound to, or a container's quota.
fn usable_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The cores that a process may use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cores {
    /// A number of the machine.
    machine: usize,
    /// As many threads as can run at once.
    usable: usize,
    /// The numbers of the cores that it is bound to; empty where the system doesn't tell.
    bound: BTreeSet<usize>,
    /// How many it could be bound to: those of the machine, or of its container.
    all: usize,
}

impl Cores {
    /// Those of this process, whose machine has a number of its own among those of the processes that it computes with.
    pub fn here(machine: usize) -> Self {
        let usable = usable_threads();
        let bound = bound_cores();
        let all = std::thread::spawn(unbound_cores).join().unwrap_or_default();
        let all = all.len().max(bound.len()).max(usable);
        Self { machine, usable, bound, all }
    }

    fn shares_with(&self, other: &Self) -> bool {
        let untold = self.bound.is_empty() || other.bound.is_empty();
        self.machine == other.machine && (untold || !self.bound.is_disjoint(&other.bound))
    }

    /// The threads for process `own`.
    fn share(own: usize, of_each: &[Self]) -> usize {
        let sharing = of_each.iter().filter(|other| of_each[own].shares_with(other)).count();
        (of_each[own].usable / sharing.max(1)).max(1)
    }

    /// What to say where most cores of the machine of process `own` are idle because of the binding of those there.
    fn idle(own: usize, of_each: &[Self]) -> Option<String> {
        let Self { machine, all, .. } = of_each[own];
        let here: Vec<&Self> = of_each.iter().filter(|other| other.machine == machine).collect();
        if here.iter().any(|process| process.bound.is_empty()) {
            return None;
        }
        let used: BTreeSet<usize> =
            here.iter().flat_map(|process| &process.bound).copied().collect();
        let (used, each) = (used.len(), (all / here.len()).max(1));
        (2 * used <= all).then(|| {
            format!(
                "warning: the replicas of this machine are bound to {used} of its {all} cores, and the others are idle: \
                 start them with `mpirun --bind-to none`, or with `--map-by slot:PE={each}` (Slurm: `srun \
                 --cpus-per-task={each}`)"
            )
        })
    }
}

/// The numbers of the cores that the calling thread is bound to; none where the system doesn't tell.
fn bound_cores() -> BTreeSet<usize> {
    #[cfg(target_os = "linux")]
    {
        let mut set = std::mem::MaybeUninit::<libc::cpu_set_t>::zeroed();
        // SAFETY: sched_getaffinity writes at most the size that it is told, and a set of zeros is a valid one. Cores are
        // asked for below the size of a set alone.
        unsafe {
            if libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), set.as_mut_ptr()) == 0 {
                let set = set.assume_init();
                let is_bound = |core: &usize| libc::CPU_ISSET(*core, &set);
                return (0..libc::CPU_SETSIZE as usize).filter(is_bound).collect();
            }
        }
    }
    BTreeSet::new()
}

/// The cores that the calling thread could be bound to, and is from now on: all that its container has.
fn unbound_cores() -> BTreeSet<usize> {
    #[cfg(target_os = "linux")]
    {
        let mut set = std::mem::MaybeUninit::<libc::cpu_set_t>::zeroed();
        // SAFETY: as above; sched_setaffinity reads a set, and takes of it what there is. Where it fails, the thread stays
        // bound as it was.
        unsafe {
            let set = set.assume_init_mut();
            (0..libc::CPU_SETSIZE as usize).for_each(|core| libc::CPU_SET(core, set));
            libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), set);
        }
    }
    bound_cores()
}

/// Makes the calling thread one of those that kernels run on, where there are several.
///
/// Otherwise it hands each operation over and sleeps until others have done it: waking them takes longer than
/// a small operation, of which decoding a token has dozens. With a single thread nothing changes:
/// other threads than this one could wait for it then, while it waits for them.
fn compute_on_this_thread(share: usize) {
    let asked = std::env::var("RAYON_NUM_THREADS").ok().and_then(|count| count.parse().ok());
    let asked = asked.filter(|&count| count > 0);
    let threads = asked.unwrap_or(share);
    if threads > 1 {
        // It fails where the threads were started before, which then stay as they are.
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        let _ = pool.use_current_thread().build_global();
    } else if asked.is_none() {
        let _ = rayon::ThreadPoolBuilder::new().num_threads(1).build_global();
    }
}

/// Keeps freed memory for the next allocation instead of giving it back to the system.
///
/// A step frees and allocates tensors of the same sizes again and again. By default glibc maps a large one
/// anew each time, and the system fills every page with zeros before the tensor is written: more
/// traffic than many an operation needs. The process then holds its peak until it ends. Elsewhere than on
/// Linux with glibc this does nothing.
fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: mallopt only sets parameters of the allocator, under its lock.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, i32::MAX);
            // Never, however much of a step's memory is free at its end.
            libc::mallopt(libc::M_TRIM_THRESHOLD, -1);
            libc::mallopt(libc::M_TOP_PAD, 64 * 1024 * 1024);
        }
    }
}

/// A word as a shell takes it, for commands that are shown.
pub fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./,:=@%+".contains(c);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

/// Whether this process was started to ignore a signal, as `nohup` makes one ignore SIGHUP.
#[cfg(unix)]
pub fn ignores(signal: i32) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: with no new action, sigaction only writes the present one to where it is told; a struct of zeros is
    // a valid one.
    unsafe {
        libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) == 0
            && action.assume_init().sa_sigaction == libc::SIG_IGN
    }
}

/// From now on, SIGTERM ends this process at once, whatever listened for it.
pub fn end_at_sigterm() {
    #[cfg(unix)]
    {
        // SAFETY: what a signal does by default runs no code of this program.
        unsafe { libc::signal(libc::SIGTERM, libc::SIG_DFL) };
    }
}

/// From now on, this process has so many seconds left, at least 1: then a signal ends it.
pub fn end_within(time: Duration) {
    #[cfg(unix)]
    {
        // SAFETY: as above.
        unsafe {
            libc::signal(libc::SIGALRM, libc::SIG_DFL);
            libc::alarm(time.as_secs().max(1) as u32);
        }
    }
    #[cfg(not(unix))]
    let _ = time;
}

#[cfg(test)]
mod tests {
    use super::{Cores, quoted};
    use std::ops::Range;

    /// A process on a machine of 16 cores.
    fn on(machine: usize, bound: Range<usize>) -> Cores {
        Cores { machine, usable: bound.len(), bound: bound.collect(), all: 16 }
    }

    fn shares(cores: &[Cores]) -> Vec<usize> {
        (0..cores.len()).map(|own| Cores::share(own, cores)).collect()
    }

    #[test]
    fn processes_share_the_cores_that_they_have_in_common() {
        for count in [1, 2, 3, 16, 20] {
            let unbound = vec![on(0, 0..16); count];
            assert_eq!(shares(&unbound), vec![(16 / count).max(1); count]);
            assert_eq!(Cores::idle(0, &unbound), None);
        }
        let apart = [on(0, 0..8), on(0, 8..16)];
        assert_eq!((shares(&apart), Cores::idle(0, &apart)), (vec![8, 8], None));
        // Two processes share each socket.
        let on_sockets = [on(0, 0..8), on(0, 0..8), on(0, 8..16), on(0, 8..16)];
        assert_eq!((shares(&on_sockets), Cores::idle(3, &on_sockets)), (vec![4; 4], None));
        let nested = [on(0, 0..16), on(0, 0..4)];
        assert_eq!(shares(&nested), [8, 2]);
        // The same numbers on another machine are other cores.
        assert_eq!(shares(&[on(0, 0..16), on(1, 0..16)]), [16, 16]);
        // A quota of a container: fewer threads than cores.
        assert_eq!(shares(&vec![Cores { usable: 4, ..on(0, 0..16) }; 2]), [2, 2]);
        // A system that tells nothing.
        assert_eq!(shares(&vec![Cores { usable: 8, ..on(0, 0..0) }; 2]), [4, 4]);
    }

    #[test]
    fn cores_that_a_launcher_leaves_idle_are_told() {
        let on_cores = [on(0, 0..1), on(0, 1..2), on(1, 0..16)];
        assert_eq!(shares(&on_cores), [1, 1, 16]);
        let warning = Cores::idle(0, &on_cores).unwrap();
        assert!(warning.contains("bound to 2 of its 16 cores"), "{warning}");
        assert!(warning.contains("--bind-to none") && warning.contains("PE=8"), "{warning}");
        assert_eq!(Cores::idle(2, &on_cores), None);
        assert_eq!(Cores::idle(0, &[on(0, 0..9)]), None);
    }

    #[test]
    fn a_thread_may_have_no_more_cores_than_there_are() {
        let here = Cores::here(0);
        assert!(here.usable >= 1 && here.all >= here.usable, "{here:?}");
        // Looking has not changed what it may use.
        assert_eq!(Cores::here(0), here);
    }

    #[test]
    fn a_shell_takes_a_quoted_word_as_it_is() {
        let cases =
            [("runs/a-1", "runs/a-1"), ("", "''"), ("my run", "'my run'"), ("it's", r"'it'\''s'")];
        for (word, expected) in cases {
            assert_eq!(quoted(word), expected);
        }
    }
}
