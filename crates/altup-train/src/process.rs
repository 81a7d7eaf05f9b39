//! What a program that computes on the CPU sets up first: its memory and its threads. And how programs are started.

/// Sets up this process for speed; for programs, first in `main`.
pub fn set_up() {
    keep_freed_memory();
    compute_on_this_thread();
}

/// Makes the calling thread one of those that kernels run on, where there are several.
///
/// Otherwise it hands each operation over and sleeps until others have done it: waking them takes longer than
/// a small operation, of which decoding a token has dozens. With a single thread nothing changes:
/// other threads than this one could wait for it then, while it waits for them.
fn compute_on_this_thread() {
    let asked = std::env::var("RAYON_NUM_THREADS").ok().and_then(|count| count.parse().ok());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = asked.filter(|&count| count > 0).unwrap_or(cores);
    if threads > 1 {
        // It fails where the threads were started before, which then stay as they are.
        let _ = rayon::ThreadPoolBuilder::new().use_current_thread().build_global();
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
    use super::quoted;

    #[test]
    fn a_shell_takes_a_quoted_word_as_it_is() {
        let cases =
            [("runs/a-1", "runs/a-1"), ("", "''"), ("my run", "'my run'"), ("it's", r"'it'\''s'")];
        for (word, expected) in cases {
            assert_eq!(quoted(word), expected);
        }
    }
}
