//! How the process keeps memory between steps.

/// Keeps freed memory for the next allocation instead of giving it back to the system.
///
/// A step frees and allocates tensors of the same sizes again and again. By default glibc maps a large one
/// anew each time, and the system fills every page with zeros before the tensor is written: more
/// traffic than many an operation needs. The process then holds its peak until it ends. Elsewhere than on
/// Linux with glibc this does nothing.
///
/// For programs; call it first in `main`.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const GIBIBYTE: i32 = 1 << 30;
        // SAFETY: mallopt only sets parameters of the allocator, under its lock.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, GIBIBYTE);
            libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
            libc::mallopt(libc::M_TOP_PAD, GIBIBYTE / 16);
        }
    }
}
