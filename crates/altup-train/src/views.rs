//! The files that people look at while a run goes on and after it: its report and TensorBoard's event file.
//!
//! They are made of what lies in the folder of the run, at any time and by any process.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::PathBuf;

use crate::report::{Recording, ReportError};
use crate::run_folder::{RunFolder, RunFolderError};
use crate::tensorboard::EventFile;

/// The files that people look at, kept up with a run: each row of its metrics is read once.
pub struct Views {
    folder: RunFolder,
    recording: Recording,
    /// None until there are metrics: a run that was killed before its first step may have none.
    events: Option<EventFile>,
}

/// Why the files that people look at can't be written.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// The report can't be made.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// What a killed process has left of them can't be removed.
    #[error(transparent)]
    LeftOvers(RunFolderError),
    /// The lock of these files can't be had.
    #[error("cannot use {}", path.display())]
    Lock {
        /// The lock.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// TensorBoard's files can't be written.
    #[error("cannot write {}", path.display())]
    TensorBoard {
        /// Their folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

impl Views {
    /// Those of the run in `folder`, of which nothing is read yet.
    pub fn new(folder: RunFolder) -> Self {
        let recording = Recording::new(folder.clone());
        Self { folder, recording, events: None }
    }

    /// Makes the files anew, of what is there now. Where another process makes them, it waits for that one.
    ///
    /// # Errors
    ///
    /// If a file of the run can't be read, or one can't be written.
    pub fn write(&mut self) -> Result<(), ViewError> {
        let lock = self.lock_file()?;
        lock.lock().map_err(|source| self.lock_error(source))?;
        self.write_with(&lock)
    }

    /// Makes the files anew, of what is there now, unless another process does.
    ///
    /// # Errors
    ///
    /// If a file of the run can't be read, or one can't be written.
    pub fn write_unless_busy(&mut self) -> Result<(), ViewError> {
        let lock = self.lock_file()?;
        match lock.try_lock() {
            Ok(()) => self.write_with(&lock),
            Err(TryLockError::WouldBlock) => Ok(()),
            Err(TryLockError::Error(source)) => Err(self.lock_error(source)),
        }
    }

    fn lock_file(&self) -> Result<File, ViewError> {
        let path = self.folder.views_lock();
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(path);
        file.map_err(|source| self.lock_error(source))
    }

    fn lock_error(&self, source: io::Error) -> ViewError {
        ViewError::Lock { path: self.folder.views_lock(), source }
    }

    /// Makes the files, with the lock that keeps others from them.
    fn write_with(&mut self, _lock: &File) -> Result<(), ViewError> {
        let written = self.write_locked();
        if written.is_err() {
            // What was read may not be written: all of it is read again next time.
            *self = Self::new(self.folder.clone());
        }
        written
    }

    fn write_locked(&mut self) -> Result<(), ViewError> {
        self.folder.remove_unfinished_views().map_err(ViewError::LeftOvers)?;
        let has_events = self.events.as_ref().is_none_or(EventFile::is_current);
        if !has_events || !self.recording.is_current()? {
            *self = Self::new(self.folder.clone());
        }
        let path = self.folder.tensorboard();
        let error = |source| ViewError::TensorBoard { path: path.clone(), source };
        if self.events.is_none() && self.folder.metrics().exists() {
            self.events = Some(EventFile::open(&path).map_err(error)?);
        }
        let mut pushed = Ok(());
        self.recording.read(&mut |row| {
            if let (Ok(()), Some(events)) = (&pushed, &mut self.events) {
                pushed = events.push(row);
            }
        })?;
        pushed.map_err(error)?;
        if let Some(events) = &mut self.events {
            events.flush().map_err(error)?;
        }
        Ok(self.recording.write_report()?)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::config::RunConfig;
    use crate::metrics::{MetricsLog, MetricsRow, TrainRow};

    fn train(step: u64) -> MetricsRow {
        MetricsRow::Train(TrainRow {
            step,
            loss: 3.0,
            tokens_per_second: 1.0,
            ..TrainRow::default()
        })
    }

    #[test]
    fn what_is_new_is_added_and_a_return_to_an_earlier_step_is_noticed() {
        let parent = tempfile::tempdir().unwrap();
        let folder = RunFolder::at(parent.path());
        fs::write(folder.config(), RunConfig::tiny_altup().to_toml()).unwrap();
        let mut views = Views::new(folder.clone());
        views.write().unwrap();
        let html = || fs::read_to_string(parent.path().join("report.html")).unwrap();
        assert!(html().contains("At step 0 of"), "{}", html());

        let mut log = MetricsLog::create(&folder.metrics()).unwrap();
        (1..=5).for_each(|step| log.append(&train(step)).unwrap());
        views.write().unwrap();
        log.append(&train(6)).unwrap();
        views.write_unless_busy().unwrap();
        assert!(html().contains("At step 6 of"), "{}", html());
        let events = || {
            let mut files = fs::read_dir(folder.tensorboard()).unwrap();
            let file = files.next().unwrap().unwrap().path();
            assert!(files.next().is_none(), "one file");
            fs::read(file).unwrap()
        };
        let whole = events();
        // The same as by a process that reads everything at once.
        Views::new(folder.clone()).write().unwrap();
        assert_eq!(events(), whole);

        let state = crate::checkpoint::RunState { step: 4, ..Default::default() };
        let mut log = MetricsLog::resume(&folder.metrics(), &state).unwrap();
        views.write().unwrap();
        assert!(html().contains("At step 4 of"), "{}", html());
        assert!(whole.starts_with(&events()) && events().len() < whole.len());
        (5..=6).for_each(|step| log.append(&train(step)).unwrap());
        views.write().unwrap();
        assert_eq!(events(), whole);

        // Somebody else is at it.
        let lock = fs::File::open(folder.views_lock()).unwrap();
        lock.lock().unwrap();
        log.append(&train(7)).unwrap();
        views.write_unless_busy().unwrap();
        assert!(html().contains("At step 6 of"), "{}", html());
        drop(lock);
        views.write().unwrap();
        assert!(html().contains("At step 7 of"), "{}", html());
    }
}
