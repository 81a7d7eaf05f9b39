//! Files that are made by one process, and appear whole or not at all.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use same_file::Handle;

use crate::error::is_refused;

/// What a file in the making ends in, behind its own name.
const PARTIAL: &str = ".partial";

/// How often a process looks whether another has let go of a file.
const POLL: Duration = Duration::from_millis(50);

/// How long a process waits, unless it is told otherwise, for another that has a file and does nothing to it: half an
/// hour. That is longer than what a file takes that is written at the end of its making.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30 * 60);

/// How long a process waits for another that is at a note, such as what a corpus is made of, and can be done without.
pub(super) const NOTE_PATIENCE: Duration = Duration::from_secs(5);

/// The right to make a file, for one process and thread at a time.
///
/// It is a lock on `NAME.partial`, which the system lifts when the process ends, however it ends. The
/// file is written there and renamed when it is complete. So a `.partial` file that can be locked
/// is what a dead process has left, and the next to claim the file removes it, whosever it was.
#[derive(Debug)]
pub(crate) struct Claim {
    file: File,
    partial: PathBuf,
    target: PathBuf,
    finished: bool,
}

impl Claim {
    /// Claims `target`; nothing if another process or thread has it. The file at `target` may have
    /// been made in between: look again before making it.
    pub(crate) fn attempt(target: &Path) -> io::Result<Option<Self>> {
        let partial = partial(target);
        loop {
            let created = OpenOptions::new().read(true).write(true).create_new(true).open(&partial);
            let (file, is_new) = match created {
                Ok(file) => (file, true),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    let Some(file) = open_to_lock(&partial)? else { continue };
                    (file, false)
                }
                Err(error) => return Err(error),
            };
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
            }
            // It may have been renamed or removed before the lock was had.
            if !is_at(&file, &partial)? {
                continue;
            }
            if is_new {
                let target = target.to_owned();
                return Ok(Some(Self { file, partial, target, finished: false }));
            }
            fs::remove_file(&partial)?;
        }
    }

    /// Claims `target`, as soon as no other process has it. Gives up, with nothing, once `gives_up`
    /// says so.
    ///
    /// # Errors
    ///
    /// If another process has it that has written nothing for as long as `patience`: it may be frozen, and never let go.
    pub(crate) fn wait(
        target: &Path,
        patience: Duration,
        gives_up: impl Fn() -> bool,
    ) -> io::Result<Option<Self>> {
        let partial = partial(target);
        let mut so_far = Progress::of(&partial);
        let mut since = Instant::now();
        loop {
            if let Some(claim) = Self::attempt(target)? {
                return Ok(Some(claim));
            }
            if gives_up() {
                return Ok(None);
            }
            let now = Progress::of(&partial);
            if now != so_far {
                (so_far, since) = (now, Instant::now());
            }
            if since.elapsed() > patience {
                let (name, seconds) = (partial.display(), patience.as_secs_f64());
                let problem = format!(
                    "waited {seconds} s for another process that makes {name} and writes nothing more: it is stuck"
                );
                return Err(io::Error::new(io::ErrorKind::TimedOut, problem));
            }
            thread::sleep(POLL);
        }
    }

    /// The file to write, empty at first.
    pub(crate) fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Gives the file its name, replacing what has it.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.partial, &self.target)?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.finished {
            // While it is locked, so that nobody else's is removed. If it can't be, it is a left-over.
            let _ = fs::remove_file(&self.partial);
        }
    }
}

/// How far a file in the making has come; nothing where there is none.
#[derive(PartialEq)]
struct Progress(Option<(u64, Option<SystemTime>)>);

impl Progress {
    fn of(partial: &Path) -> Self {
        Self(fs::metadata(partial).ok().map(|found| (found.len(), found.modified().ok())))
    }
}

/// Writes a note, whole or not at all.
pub(crate) fn write_whole(target: &Path, contents: &[u8]) -> io::Result<()> {
    if let Some(mut claim) = Claim::wait(target, NOTE_PATIENCE, || false)? {
        claim.file().write_all(contents)?;
        claim.finish()?;
    }
    Ok(())
}

/// Removes what dead processes have left in a folder, and returns its size in bytes.
pub(crate) fn remove_left_overs(folder: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if !path.as_os_str().as_encoded_bytes().ends_with(PARTIAL.as_bytes()) {
            continue;
        }
        // Gone in between, or another user's who shows it to nobody.
        let Ok(Some(file)) = open_to_lock(&path) else { continue };
        if file.try_lock().is_ok() && is_at(&file, &path)? {
            bytes += file.metadata()?.len();
            fs::remove_file(&path)?;
        }
    }
    Ok(bytes)
}

/// Opens a file to lock it; nothing if it is gone. Another user's may often be read only. That is enough, but on network
/// file systems, which lock for those who may write.
fn open_to_lock(path: &Path) -> io::Result<Option<File>> {
    let opened = match OpenOptions::new().read(true).write(true).open(path) {
        Err(error) if is_refused(&error) => File::open(path),
        opened => opened,
    };
    match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        opened => opened.map(Some),
    }
}

fn partial(target: &Path) -> PathBuf {
    let mut path = target.as_os_str().to_owned();
    path.push(PARTIAL);
    path.into()
}

/// Whether `path` is the name of the open file.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let file = Handle::from_file(file.try_clone()?)?;
    match Handle::from_path(path) {
        Ok(named) => Ok(named == file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn a_claimed_file_is_no_one_elses_until_it_is_finished() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("file");
        let mut claim = Claim::attempt(&target).unwrap().unwrap();
        assert!(Claim::attempt(&target).unwrap().is_none());
        assert!(Claim::wait(&target, PATIENCE, || true).unwrap().is_none());
        assert_eq!(remove_left_overs(folder.path()).unwrap(), 0);
        claim.file().write_all(b"whole").unwrap();
        assert!(!target.exists());
        claim.finish().unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"whole");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn one_who_writes_nothing_is_not_waited_for_forever() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("file");
        let mut claim = Claim::attempt(&target).unwrap().unwrap();
        let patience = Duration::from_millis(400);
        let started = Instant::now();
        // It gets on for longer than that.
        let last = Cell::new(Duration::ZERO);
        let gets_on = || {
            let now = started.elapsed();
            if now < 3 * patience {
                claim.file.try_clone().unwrap().write_all(b"more").unwrap();
                last.set(now);
            }
            false
        };
        let error = Claim::wait(&target, patience, gets_on).unwrap_err();
        // It has patience from the last bytes on.
        let (ended, last) = (started.elapsed(), last.get());
        assert!(last > patience && ended >= last + patience, "{ended:?}, {last:?}");
        let message = error.to_string();
        assert!(message.starts_with("waited 0.4 s for another process that makes "), "{message}");
        assert!(message.contains("file.partial"), "{message}");
        claim.file().write_all(b"whole").unwrap();
        claim.finish().unwrap();
    }

    #[test]
    fn what_is_not_finished_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut claim = Claim::attempt(&folder.path().join("file")).unwrap().unwrap();
        claim.file().write_all(b"half").unwrap();
        drop(claim);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_a_dead_process_left_is_taken_over_or_removed() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("file");
        fs::write(partial(&target), "left behind").unwrap();
        write_whole(&target, b"new").unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"new");

        fs::write(partial(&target), "left behind").unwrap();
        assert_eq!(remove_left_overs(folder.path()).unwrap(), 11);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn of_many_who_want_a_file_one_makes_it() {
        for _ in 0..50 {
            let folder = tempfile::tempdir().unwrap();
            let target = folder.path().join("file");
            let made = AtomicU64::new(0);
            thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        let mut claim = Claim::wait(&target, PATIENCE, || false).unwrap().unwrap();
                        if !target.exists() {
                            made.fetch_add(1, Ordering::SeqCst);
                            claim.file().write_all(b"whole").unwrap();
                            claim.finish().unwrap();
                        }
                    });
                }
            });
            assert_eq!(made.into_inner(), 1);
            assert_eq!(fs::read(&target).unwrap(), b"whole");
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        }
    }
}
