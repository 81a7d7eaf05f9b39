//! The right to work in a folder, for one process at a time.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;

use crate::durable::is_at;
use crate::machine::host_name;
use crate::progress::format_duration;
use crate::run_record::seconds_since_1970;

/// The right to work in a folder, by the lock of a file in it, which says who holds it. The system takes it back when the
/// process ends, however it ends, and all processes that it shared it with.
#[derive(Clone, Debug)]
pub struct FolderLock {
    file: Arc<File>,
}

/// Why a lock can't be had.
#[derive(Debug)]
pub(crate) enum LockError {
    /// Another process holds it; who, in words.
    Held(String),
    /// Its file can't be used.
    File(io::Error),
}

impl From<io::Error> for LockError {
    fn from(source: io::Error) -> Self {
        Self::File(source)
    }
}

/// Who works in a folder, as its lock file says.
#[derive(Serialize, Deserialize)]
struct Holder {
    process: u32,
    host: Option<String>,
    command: String,
    /// Seconds since 1970.
    since: u64,
}

impl Holder {
    fn this_process() -> Self {
        let words = std::env::args_os().map(|word| word.to_string_lossy().into_owned());
        Self {
            process: std::process::id(),
            host: host_name(),
            command: words.collect::<Vec<_>>().join(" "),
            since: seconds_since_1970(),
        }
    }

    /// Writes it in the place of the one before.
    fn write(&self, file: &mut File) -> io::Result<()> {
        let holder = serde_json::to_string(self)?;
        file.set_len(0)?;
        file.seek(SeekFrom::Start(0))?;
        file.write_all(holder.as_bytes())
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { process, host, command, since } = self;
        let seconds = seconds_since_1970().saturating_sub(*since);
        write!(f, "process {process}")?;
        if let Some(host) = host {
            write!(f, " on {host}")?;
        }
        write!(f, " has worked in it for {} ({command})", format_duration(seconds as f64))
    }
}

impl FolderLock {
    /// Takes the lock of the file `path`, which is made where it isn't there.
    pub(crate) fn take(path: &Path) -> Result<Self, LockError> {
        loop {
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    let mut text = String::new();
                    let holder = match file.read_to_string(&mut text) {
                        Ok(_) => serde_json::from_str::<Holder>(&text).ok(),
                        Err(_) => None,
                    };
                    // Its holder may be about to write.
                    let other = || "another process works in it".to_owned();
                    let holder = holder.map_or_else(other, |holder| holder.to_string());
                    return Err(LockError::Held(holder));
                }
                Err(TryLockError::Error(source)) => return Err(source.into()),
            }
            // Its folder may have been removed before the lock was had.
            if is_at(&file, path)? {
                let is_new = file.metadata()?.len() == 0;
                if let Err(error) = Holder::this_process().write(&mut file) {
                    if is_new {
                        // While it is held, so that it is nobody else's.
                        let _ = fs::remove_file(path);
                    }
                    return Err(error.into());
                }
                return Ok(Self { file: Arc::new(file) });
            }
        }
    }

    /// The locked file, for processes that are to share the lock.
    pub fn file(&self) -> &File {
        &self.file
    }
}
