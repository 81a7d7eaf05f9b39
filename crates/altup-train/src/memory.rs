//! The memory of this process, as Linux counts it. Other systems don't tell.

/// The bytes that are in memory now.
pub fn resident() -> Option<u64> {
    field("VmRSS:")
}

/// The most bytes that were in memory at once, since the process began or [`reset_peak`].
pub fn peak() -> Option<u64> {
    field("VmHWM:")
}

/// Lets the peak start at what is in use now.
pub fn reset_peak() {
    // Where that can't be done the peak stays that of the whole process.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// The most bytes that this process, which is one of so many alike on this machine, may have in memory: what it has
/// already, and its share of what the system has left. A limit of its control group (a container's) counts.
pub fn available(processes: usize) -> Option<u64> {
    let system = std::fs::read_to_string("/proc/meminfo").ok()?;
    let left = bytes_in(&system, "MemAvailable:")?;
    Some(share(resident()?, left, limits(), processes as u64))
}

fn share(resident: u64, left: u64, limits: impl Iterator<Item = u64>, processes: u64) -> u64 {
    limits.map(|limit| limit / processes).fold(resident + left / processes, u64::min)
}

/// The limits of the control groups that this process is in, the root's included.
fn limits() -> impl Iterator<Item = u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    // `0::/a/b`, of version 2; a container often sees its own group as the root.
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/").map(str::to_owned));
    let folders = own.into_iter().filter(|path| !path.is_empty()).chain([String::new()]);
    folders.filter_map(|folder| {
        let file = std::path::Path::new("/sys/fs/cgroup").join(folder).join("memory.max");
        std::fs::read_to_string(file).ok()?.trim().parse().ok()
    })
}

fn field(name: &str) -> Option<u64> {
    bytes_in(&std::fs::read_to_string("/proc/self/status").ok()?, name)
}

fn bytes_in(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(1024 * kibibytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_of_a_process_is_read() {
        let status = "Name:\taltup\nVmHWM:\t   12345 kB\nVmRSS:\t     678 kB\nThreads:\t2\n";
        assert_eq!(bytes_in(status, "VmHWM:"), Some(12_345 * 1024));
        assert_eq!(bytes_in(status, "VmRSS:"), Some(678 * 1024));
        assert_eq!(bytes_in(status, "VmSwap:"), None);
        assert_eq!(bytes_in(status, "Threads:"), None);
    }

    #[test]
    fn no_less_is_available_than_there_is_already() {
        if let (Some(resident), Some(available)) = (resident(), available(1)) {
            assert!(available >= resident / 2, "{available} {resident}");
            assert_eq!(
                bytes_in("MemTotal: 9 kB\nMemAvailable:  7 kB\n", "MemAvailable:"),
                Some(7168)
            );
        }
    }

    #[test]
    fn processes_share_what_is_left() {
        let share = |limit, processes| share(100, 800, [limit].into_iter(), processes);
        assert_eq!([1, 2, 8].map(|processes| share(u64::MAX, processes)), [900, 500, 200]);
        assert_eq!([1, 2].map(|processes| share(600, processes)), [600, 300]);
    }

    #[test]
    fn the_peak_is_no_less_than_what_is_there() {
        if let (Some(resident), Some(peak)) = (resident(), peak()) {
            assert!(resident > 1 << 20 && peak >= resident, "{resident} {peak}");
        }
    }
}
