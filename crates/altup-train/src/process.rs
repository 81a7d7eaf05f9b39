//! What a program that computes on the CPU sets up first: its memory and its threads. And how programs are started.

/// Sets up this process for speed; for programs, first in `main`.
pub fn set_up() {
    set_up_among(1);
}

/// Sets up this process for speed, as one of several on this machine that compute together: they share its cores. What
/// is returned is a warning, where a launcher has bound them to few cores.
pub fn set_up_among(processes: usize) -> Option<String> {
    keep_freed_memory();
    let cores = Cores::here();
    let share = cores.share(processes);
    compute_on_this_thread(share);
    #[cfg(feature = "tch")]
    if processes > 1 {
        // SAFETY: libtorch only writes the number down.
        unsafe { torch_sys::at_set_num_threads(share as i32) };
    }
    cores.idle(processes)
}

/// The threads that kernels on the CPU run on.
pub fn num_threads() -> usize {
    rayon::current_num_threads()
}

/// The cores of a machine, and those of this process.
#[derive(Clone, Copy, Debug)]
struct Cores {
    /// As many threads as can run at once.
    usable: usize,
    /// Cores that this process is bound to.
    bound: usize,
    /// Cores that its parent may use, which is the launcher's process: those of the machine, or of a container.
    all: usize,
}

impl Cores {
    fn here() -> Self {
        let usable = std::thread::available_parallelism().map_or(1, usize::from);
        #[cfg(target_os = "linux")]
        {
            // SAFETY: it only reads a number.
            let parent = unsafe { libc::getppid() };
            let bound = allowed_cores(0).unwrap_or(usable);
            Self { usable, bound, all: allowed_cores(parent).unwrap_or(bound).max(bound) }
        }
        #[cfg(not(target_os = "linux"))]
        Self { usable, bound: usable, all: usable }
    }

    fn is_bound(self) -> bool {
        self.bound < self.all
    }

    /// The threads for one of so many processes.
    fn share(self, processes: usize) -> usize {
        let all = if self.is_bound() { self.all } else { self.usable };
        self.usable.min((all / processes).max(1))
    }

    /// What to say where the binding of so many processes leaves most cores idle.
    fn idle(self, processes: usize) -> Option<String> {
        let Self { bound, all, .. } = self;
        let used = bound * processes;
        (self.is_bound() && 2 * used <= all).then(|| {
            let each = if bound == 1 { "one core".to_owned() } else { format!("{bound} cores") };
            format!(
                "warning: each replica is bound to {each}, so that at most {used} of {all} are used: start them with \
                 `mpirun --bind-to none`, or with `--map-by slot:PE={}`",
                all / processes
            )
        })
    }
}

/// How many cores a process is bound to; 0 stands for this one.
#[cfg(target_os = "linux")]
fn allowed_cores(process: libc::pid_t) -> Option<usize> {
    let mut set = std::mem::MaybeUninit::<libc::cpu_set_t>::zeroed();
    // SAFETY: sched_getaffinity writes at most the size that it is told; a set of zeros is a valid one.
    unsafe {
        let size = size_of::<libc::cpu_set_t>();
        let got = libc::sched_getaffinity(process, size, set.as_mut_ptr());
        (got == 0).then(|| libc::CPU_COUNT(&set.assume_init()) as usize)
    }
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

#[cfg(test)]
mod tests {
    use super::{Cores, quoted};

    #[test]
    fn processes_share_the_cores() {
        let unbound = Cores { usable: 8, bound: 8, all: 8 };
        assert_eq!([1, 2, 3, 16].map(|processes| unbound.share(processes)), [8, 4, 2, 1]);
        assert_eq!(unbound.idle(2), None);
        // A quota of a container: fewer threads than cores.
        assert_eq!(Cores { usable: 4, ..unbound }.share(2), 2);
        // Two processes share each socket of 16 cores.
        let on_socket = Cores { usable: 16, bound: 16, all: 32 };
        assert_eq!((on_socket.share(4), on_socket.idle(4)), (8, None));
    }

    #[test]
    fn cores_that_a_launcher_leaves_idle_are_told() {
        let on_core = Cores { usable: 1, bound: 1, all: 16 };
        assert_eq!(on_core.share(2), 1);
        let warning = on_core.idle(2).unwrap();
        assert!(warning.contains("at most 2 of 16 are used"), "{warning}");
        assert!(warning.contains("--bind-to none") && warning.contains("PE=8"), "{warning}");
        assert_eq!(Cores { all: 2, ..on_core }.idle(2), None);
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
