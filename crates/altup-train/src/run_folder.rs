//! The folder of a run: whose it is, and where everything in it lies.
//!
//! A folder belongs to one run and, while it goes on, to one process. `run.json` says that the folder is
//! a run's, and a lock on `run.lock`, which the system lifts when the process ends, that a process works
//! in it. Nothing here deletes a folder that it didn't make.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::checkpoint::Checkpoints;
use crate::config::{RunConfig, RunConfigError, RunConfiguration};
use crate::durable::{
    PARTIAL, UNFINISHED_TOKENIZER, UNFINISHED_VIEW, copy_whole, move_whole, remove, remove_named,
    remove_partial, remove_unfinished_views, replace_file, sync_folder,
};
use crate::fine_tuning::FineTuningConfig;
use crate::folder_lock::{FolderLock, LockError};
use crate::process::quoted;
use crate::run_record::{HistoryRow, RUN_FORMAT, RunRecord, VersionError, Versions};

/// The folder of a run:
///
/// ```text
/// run.json              what the run is; says that the folder is a run's
/// run.lock              locked while a process works in the folder, and says which
/// config.toml           the resolved configuration; there once the run is begun
/// config-history.jsonl  every configuration, with the step from which it held
/// tokenizer.json
/// metrics.jsonl         one line per row of metrics
/// samples.jsonl         what the model wrote for the same texts at each validation
/// checkpoints/          step-00001200/, …
/// abandoned/            what lay behind a step that the run was told to go back to
/// model/                the trained model, a Hugging Face directory
/// tasks/                in fine-tuning: scores.json, and the predictions for each task
/// summary.json          the figures of the finished run
/// report.html           the curves, and charts/*.svg
/// views.lock            locked while a process writes the report and the event files
/// tensorboard/          event files, made of the metrics
/// ```
#[derive(Clone, Debug)]
pub struct RunFolder {
    path: PathBuf,
}

const RECORD: &str = "run.json";
/// The record while it is written, which is the first file of a run.
const FIRST_PARTIAL: &str = "run.json.partial";
const LOCK: &str = "run.lock";
const CONFIG: &str = "config.toml";
const HISTORY: &str = "config-history.jsonl";
const CHECKPOINTS: &str = "checkpoints";

/// What a run writes into its folder, beside its record, lock and configuration.
const CONTENTS: [&str; 12] = [
    CHECKPOINTS,
    HISTORY,
    "tokenizer.json",
    "metrics.jsonl",
    "samples.jsonl",
    "abandoned",
    "model",
    "tasks",
    "summary.json",
    "report.html",
    "charts",
    "views.lock",
];

/// Why a run can't have its folder.
#[derive(Debug, thiserror::Error)]
pub enum RunFolderError {
    /// The folder of a new run exists already.
    #[error(
        "{} exists already: continue that run with --resume {}, replace it with --overwrite, or \
         name another folder with --output",
        path.display(), quoted(&path.to_string_lossy())
    )]
    Exists {
        /// The folder.
        path: PathBuf,
    },
    /// A process works in the folder.
    #[error("{} is in use: {holder}; nothing was changed", path.display())]
    Held {
        /// The folder.
        path: PathBuf,
        /// Who.
        holder: String,
    },
    /// The folder isn't that of a run.
    #[error("{} is not the folder of a run (it has no {RECORD}), and is left as it is", path.display())]
    NotARun {
        /// The folder.
        path: PathBuf,
    },
    /// The run was started by a release that wrote no record.
    #[error(
        "{} holds a run of altup 0.1.0-dev, from before runs had a {RECORD}: go on with that one, or start \
         a new run, from its model by --init if you like",
        path.display()
    )]
    BeforeRecords {
        /// The folder.
        path: PathBuf,
    },
    /// The run was killed before it had all that it needs to go on.
    #[error(
        "the run in {} was not yet begun when its process ended: start it again, by the command that started \
         it", path.display()
    )]
    NotBegun {
        /// The folder.
        path: PathBuf,
    },
    /// The configuration of a run that was begun is gone.
    #[error(
        "{} has a run's checkpoints, and no {CONFIG} any more: put that back (the last line of {HISTORY} has it, as JSON), \
         or replace the run with --overwrite", path.display()
    )]
    LostConfig {
        /// The folder.
        path: PathBuf,
    },
    /// A run would remove what it begins with.
    #[error(
        "{key} {} is a part of the run that --overwrite replaces: copy it to another place first, or name another folder \
         with --output", input.display()
    )]
    Input {
        /// The key, or the flag.
        key: &'static str,
        /// The file or folder.
        input: PathBuf,
    },
    /// The name of a new run's folder is that of a file.
    #[error("{} is a file: name a folder for the run", path.display())]
    NotAFolder {
        /// The file.
        path: PathBuf,
    },
    /// The run was started by a release whose runs this one can't go on with.
    #[error("{} {problem}", path.display())]
    Version {
        /// The run's record.
        path: PathBuf,
        /// Which version is another.
        problem: VersionError,
    },
    /// The record of a run is damaged.
    #[error("cannot use {}", path.display())]
    Record {
        /// The record.
        path: PathBuf,
        /// The cause.
        source: serde_json::Error,
    },
    /// The configuration of a run can't be read.
    #[error(transparent)]
    Config(#[from] RunConfigError),
    /// A file or folder can't be read or written.
    #[error("cannot use {}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> RunFolderError {
    let path = path.to_owned();
    move |source| RunFolderError::File { path, source }
}

impl RunFolder {
    /// The folder `path`, whether or not there is a run in it.
    pub fn at(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// The folder of a run, and its configuration, to read from.
    ///
    /// # Errors
    ///
    /// If `path` isn't the folder of a run.
    pub fn open(path: &Path) -> Result<(Self, RunConfig), RunFolderError> {
        Self::open_as(path)
    }

    /// The folder of a run of any kind, and its configuration, to read from.
    ///
    /// # Errors
    ///
    /// If `path` isn't the folder of a run of this kind.
    pub fn open_as<C: RunConfiguration>(path: &Path) -> Result<(Self, C), RunFolderError> {
        let folder = Self { path: path.to_owned() };
        if folder.holds(RECORD)? && !folder.holds(CONFIG)? {
            let path = path.to_owned();
            return Err(match folder.has_checkpoints()? {
                true => RunFolderError::LostConfig { path },
                false => RunFolderError::NotBegun { path },
            });
        }
        let config = C::default().with_file(&folder.config())?;
        Ok((folder, config))
    }

    /// The folder of a run of whatever kind, to read from.
    ///
    /// # Errors
    ///
    /// If `path` isn't the folder of a run.
    pub fn find(path: &Path) -> Result<Self, RunFolderError> {
        match FineTuningConfig::describes(path) {
            true => Self::open_as::<FineTuningConfig>(path).map(|(folder, _)| folder),
            false => Self::open(path).map(|(folder, _)| folder),
        }
    }

    /// Whether a run was begun in the folder, so that it can be resumed.
    ///
    /// # Errors
    ///
    /// Names what can't be looked at.
    pub fn is_begun(&self) -> Result<bool, RunFolderError> {
        Ok(self.holds(RECORD)? && self.holds(CONFIG)?)
    }

    /// Whether something lies under this name. What can't be told is an error: a run that isn't seen would be replaced.
    fn holds(&self, name: &str) -> Result<bool, RunFolderError> {
        let path = self.path.join(name);
        path.try_exists().map_err(at(&path))
    }

    fn has_checkpoints(&self) -> Result<bool, RunFolderError> {
        let path = self.path.join(CHECKPOINTS);
        match fs::read_dir(&path) {
            Ok(mut entries) => Ok(entries.next().is_some()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(RunFolderError::File { path, source }),
        }
    }

    /// Writes a file of the run, whole or not at all.
    ///
    /// # Errors
    ///
    /// Names the file.
    pub fn write(&self, path: &Path, contents: &[u8]) -> Result<(), RunFolderError> {
        replace_file(path, contents).map_err(at(path))
    }

    /// Reads what the run is.
    ///
    /// # Errors
    ///
    /// If it has no record, or one of another format.
    pub fn record(&self) -> Result<RunRecord, RunFolderError> {
        let path = self.record_path();
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(self.not_a_run()),
            Err(source) => return Err(RunFolderError::File { path, source }),
        };
        let damaged = |source| RunFolderError::Record { path: path.clone(), source };
        let versions: Versions = serde_json::from_slice(&bytes).map_err(damaged)?;
        versions
            .check_format(RUN_FORMAT)
            .map_err(|problem| RunFolderError::Version { path: path.clone(), problem })?;
        serde_json::from_slice(&bytes).map_err(damaged)
    }

    /// Writes what the run is.
    ///
    /// # Errors
    ///
    /// Names the file.
    pub fn write_record(&self, record: &RunRecord) -> Result<(), RunFolderError> {
        let path = self.record_path();
        let json = serde_json::to_vec_pretty(record)
            .map_err(|source| RunFolderError::Record { path: path.clone(), source })?;
        self.write(&path, &json)
    }

    /// Writes the configuration that holds now into `config.toml` and, unless it says nothing new, into
    /// the history.
    ///
    /// # Errors
    ///
    /// Names the file.
    pub fn write_config<C: RunConfiguration>(
        &self,
        row: &HistoryRow<C>,
    ) -> Result<(), RunFolderError> {
        let path = self.history();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(RunFolderError::File { path, source }),
        };
        let last = text.lines().last().and_then(|line| serde_json::from_str(line).ok());
        if !last.is_some_and(|last: HistoryRow<C>| row.repeats(&last)) {
            let line = serde_json::to_string(row)
                .map_err(|source| RunFolderError::Record { path: path.clone(), source })?;
            self.write(&path, format!("{text}{line}\n").as_bytes())?;
        }
        self.write(&self.config(), row.config.to_toml().as_bytes())
    }

    /// Puts what lies behind `step` into a new folder in `abandoned/`, which it returns: the later
    /// checkpoints, the metrics as they are, the trained model and its figures.
    ///
    /// A kill in between leaves a run that can be resumed, behind `step` or behind a later one.
    ///
    /// # Errors
    ///
    /// Names the file that can't be moved.
    pub fn set_aside(
        &self,
        step: u64,
        checkpoints: &Checkpoints,
    ) -> Result<PathBuf, RunFolderError> {
        let parent = self.path.join("abandoned");
        fs::create_dir_all(&parent).map_err(at(&parent))?;
        let mut number = 1;
        let folder = loop {
            let folder = parent.join(number.to_string());
            match fs::create_dir(&folder) {
                Ok(()) => break folder,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
                Err(source) => return Err(RunFolderError::File { path: folder, source }),
            }
        };
        for path in [self.metrics(), self.samples()] {
            if let Some(name) = path.file_name().filter(|_| path.exists()) {
                let copy = folder.join(name);
                copy_whole(&path, &copy).map_err(at(&copy))?;
            }
        }
        // What is dropped of them here must be there for good.
        for made_in in [&parent, &self.path] {
            sync_folder(made_in).map_err(at(made_in))?;
        }
        for path in [self.summary(), self.model(), self.tasks()] {
            if let Some(name) = path.file_name().filter(|_| path.exists()) {
                move_whole(&path, &folder.join(name), remove).map_err(at(&path))?;
            }
        }
        let target = folder.join("checkpoints");
        checkpoints.move_later(step, &target).map_err(at(&target))?;
        for made_in in [&target, &folder] {
            sync_folder(made_in).map_err(at(made_in))?;
        }
        Ok(folder)
    }

    /// Removes the figures of an end that the run goes on from.
    ///
    /// # Errors
    ///
    /// Names the file.
    pub fn remove_summary(&self) -> Result<(), RunFolderError> {
        remove(&self.summary()).map_err(at(&self.summary()))
    }

    /// Removes what processes that were killed have left of files in the making. The folder must be held.
    ///
    /// # Errors
    ///
    /// Names the folder in which something can't be removed.
    pub fn remove_left_overs(&self) -> Result<(), RunFolderError> {
        remove_named(&self.path, is_half_made).map_err(at(&self.path))?;
        let remove_in = |folder: &Path| remove_partial(folder).map_err(at(folder));
        remove_in(&self.model())?;
        remove_in(&self.tasks())?;
        for aside in self.all_set_aside()? {
            remove_in(&aside)?;
            remove_in(&aside.join("checkpoints"))?;
        }
        Ok(())
    }

    /// Removes what processes that were killed have left of the report and its charts. The lock of the views must be held.
    pub(crate) fn remove_unfinished_views(&self) -> Result<(), RunFolderError> {
        for folder in [self.path.clone(), self.path.join("charts")] {
            remove_unfinished_views(&folder).map_err(at(&folder))?;
        }
        Ok(())
    }

    /// The folders in `abandoned/`.
    fn all_set_aside(&self) -> Result<Vec<PathBuf>, RunFolderError> {
        let parent = self.path.join("abandoned");
        let entries = match fs::read_dir(&parent) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(at(&parent))?,
        };
        let folders = entries.map(|entry| entry.map(|entry| entry.path()));
        folders.collect::<io::Result<_>>().map_err(at(&parent))
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn record_path(&self) -> PathBuf {
        self.path.join(RECORD)
    }

    /// The resolved configuration.
    pub fn config(&self) -> PathBuf {
        self.path.join(CONFIG)
    }

    /// Every configuration that the run had.
    pub fn history(&self) -> PathBuf {
        self.path.join(HISTORY)
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> PathBuf {
        self.path.join("tokenizer.json")
    }

    /// The metrics.
    pub fn metrics(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    /// What the model wrote at each validation.
    pub fn samples(&self) -> PathBuf {
        self.path.join("samples.jsonl")
    }

    /// TensorBoard's event files.
    pub fn tensorboard(&self) -> PathBuf {
        self.path.join("tensorboard")
    }

    /// The checkpoints.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join(CHECKPOINTS)
    }

    /// The trained model.
    pub fn model(&self) -> PathBuf {
        self.path.join("model")
    }

    /// What came of each task in fine-tuning.
    pub fn tasks(&self) -> PathBuf {
        self.path.join("tasks")
    }

    /// What the best model of a fine-tuning run made of its tasks.
    pub fn scores(&self) -> PathBuf {
        self.tasks().join("scores.json")
    }

    /// The figures of the finished run.
    pub fn summary(&self) -> PathBuf {
        self.path.join("summary.json")
    }

    /// Locked while a process makes what people look at.
    pub(crate) fn views_lock(&self) -> PathBuf {
        self.path.join("views.lock")
    }

    /// What lies in the folder that no run writes.
    fn foreign(&self) -> io::Result<Vec<PathBuf>> {
        let mut foreign = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if !is_whole(&name) && !is_half_made(&name) && !is_view(&name) {
                foreign.push(path);
            }
        }
        foreign.sort();
        Ok(foreign)
    }

    /// Removes what a run writes, but for its record and lock. The configuration goes first, and then the checkpoints: a
    /// folder without both holds no run to go on with.
    fn remove_contents(&self) -> io::Result<()> {
        for name in [CONFIG].iter().chain(&CONTENTS) {
            remove(&self.path.join(name))?;
        }
        remove_named(&self.path, |name| is_half_made(name) || is_view(name))
    }
}

/// Whether something in the folder of a run is what a run writes.
fn is_whole(name: &str) -> bool {
    // TensorBoard's folder stays: what is ours in it is replaced, and others may write there.
    [RECORD, LOCK, CONFIG, "tensorboard"].contains(&name) || CONTENTS.contains(&name)
}

/// Whether it is what a run leaves that is killed while it writes.
fn is_half_made(name: &str) -> bool {
    name.starts_with(UNFINISHED_TOKENIZER) || name.strip_suffix(PARTIAL).is_some_and(is_whole)
}

/// Whether it is a view in the making, which may be another process's.
fn is_view(name: &str) -> bool {
    name.starts_with(UNFINISHED_VIEW)
}

/// Takes the lock of a run's folder.
fn take_lock(folder: &Path) -> Result<FolderLock, RunFolderError> {
    let path = folder.join(LOCK);
    FolderLock::take(&path).map_err(|error| match error {
        LockError::Held(holder) => RunFolderError::Held { path: folder.to_owned(), holder },
        LockError::File(source) => RunFolderError::File { path, source },
    })
}

/// A run that is about to start, with the folder that it will have. Until it is [begun](Self::begin), a run
/// that it replaces stays as it is; and a folder that was made for it goes when it is dropped.
#[derive(Debug)]
pub struct NewRun {
    folder: RunFolder,
    lock: FolderLock,
    /// Whether this process made the folder.
    is_made: bool,
    /// Whether the folder holds a run, or what is left of one.
    replaces: bool,
    is_begun: bool,
}

impl NewRun {
    /// Takes the folder `path` for a new run. It must not exist, or be empty, or hold a run that was
    /// never begun; with `overwrite` it may hold any run.
    ///
    /// # Errors
    ///
    /// If the folder is another's. It is left as it is.
    pub fn at(path: &Path, overwrite: bool) -> Result<Self, RunFolderError> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(at(parent))?;
        }
        match fs::create_dir(path) {
            Ok(()) => Self::made(path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Self::there(path, overwrite)
            }
            Err(source) => Err(RunFolderError::File { path: path.to_owned(), source }),
        }
    }

    /// Makes the first of the folders `base`, `base-2`, `base-3`, … that doesn't exist.
    ///
    /// # Errors
    ///
    /// Names the folder that can't be made.
    pub fn fresh(base: &Path) -> Result<Self, RunFolderError> {
        if let Some(parent) = base.parent() {
            fs::create_dir_all(parent).map_err(at(parent))?;
        }
        let mut path = base.to_owned();
        let mut number = 1;
        loop {
            match fs::create_dir(&path) {
                Ok(()) => return Self::made(&path),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    number += 1;
                    path = PathBuf::from(format!("{}-{number}", base.display()));
                }
                Err(source) => return Err(RunFolderError::File { path, source }),
            }
        }
    }

    fn made(path: &Path) -> Result<Self, RunFolderError> {
        // If it can't be locked, nothing is in it yet.
        let lock = take_lock(path).inspect_err(|_| drop(fs::remove_dir(path)))?;
        let folder = RunFolder { path: path.to_owned() };
        Ok(Self { folder, lock, is_made: true, replaces: false, is_begun: false })
    }

    fn there(path: &Path, overwrite: bool) -> Result<Self, RunFolderError> {
        if !path.is_dir() {
            return Err(RunFolderError::NotAFolder { path: path.to_owned() });
        }
        let folder = RunFolder { path: path.to_owned() };
        let is_run = || folder.holds(RECORD);
        // A lock is the first thing in a run's folder, and isn't put into a folder of other things. Another
        // process may be putting it there: what is in the folder is looked at before the lock.
        let is_empty = folder.is_empty().map_err(at(path))?;
        if !is_empty && !is_run()? && !folder.holds(LOCK)? {
            return Err(folder.not_a_run());
        }
        let lock = take_lock(path)?;
        // Now nobody else changes it.
        if !overwrite && folder.is_begun()? {
            return Err(RunFolderError::Exists { path: path.to_owned() });
        }
        if !overwrite && is_run()? && folder.has_checkpoints()? {
            return Err(RunFolderError::LostConfig { path: path.to_owned() });
        }
        let replaces = is_run()?;
        if !replaces && !folder.is_empty().map_err(at(path))? {
            return Err(folder.not_a_run());
        }
        Ok(Self { folder, lock, is_made: false, replaces, is_begun: false })
    }

    /// The folder.
    pub fn folder(&self) -> &RunFolder {
        &self.folder
    }

    /// Whether the folder holds a run that this one will replace.
    pub fn replaces(&self) -> bool {
        self.replaces
    }

    /// Files in the folder that no run writes. They stay.
    ///
    /// # Errors
    ///
    /// If the folder can't be listed.
    pub fn foreign(&self) -> Result<Vec<PathBuf>, RunFolderError> {
        self.folder.foreign().map_err(at(&self.folder.path))
    }

    /// Checks that the run would not remove what it begins with: `inputs`, each with the key or the flag that names it.
    ///
    /// # Errors
    ///
    /// Names the one that is a part of the run that is replaced.
    pub fn keep<'p>(
        &self,
        inputs: impl IntoIterator<Item = (&'static str, &'p Path)>,
    ) -> Result<(), RunFolderError> {
        let folder = self.folder.path.canonicalize().map_err(at(&self.folder.path))?;
        for (key, input) in inputs.into_iter().filter(|_| self.replaces) {
            // What isn't there is told of where it is read.
            let Ok(path) = input.canonicalize() else { continue };
            let Ok(within) = path.strip_prefix(&folder) else { continue };
            let first = within.components().next().map(|name| name.as_os_str().to_string_lossy());
            if first.is_none_or(|name| is_whole(&name)) {
                return Err(RunFolderError::Input { key, input: input.to_owned() });
            }
        }
        Ok(())
    }

    /// Writes what is known before the data is prepared, so that a run that is killed meanwhile can be
    /// resumed. Where a run is replaced, nothing is written yet.
    ///
    /// # Errors
    ///
    /// Names what can't be written.
    pub fn announce<C: RunConfiguration>(
        &self,
        record: &RunRecord,
        config: &HistoryRow<C>,
    ) -> Result<(), RunFolderError> {
        if self.replaces {
            return Ok(());
        }
        self.folder.write_record(record)?;
        self.folder.write_config(config)
    }

    /// Removes the run that is replaced, if any. `write_more` then writes what the new run starts with,
    /// and last come its record and its configuration: from there on it is begun.
    ///
    /// # Errors
    ///
    /// Names what can't be removed or written.
    pub fn begin<C: RunConfiguration, E: From<RunFolderError>>(
        mut self,
        record: &RunRecord,
        config: &HistoryRow<C>,
        write_more: impl FnOnce(&RunFolder) -> Result<(), E>,
    ) -> Result<(RunFolder, FolderLock), E> {
        if self.replaces {
            self.folder.remove_contents().map_err(at(&self.folder.path))?;
        }
        write_more(&self.folder)?;
        self.folder.write_record(record)?;
        self.folder.write_config(config)?;
        self.is_begun = true;
        Ok((self.folder.clone(), self.lock.clone()))
    }
}

impl RunFolder {
    /// Whether the folder has nothing in it but a lock, and what a run leaves that is killed with its
    /// first file.
    fn is_empty(&self) -> io::Result<bool> {
        for entry in fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            if name != LOCK && name != FIRST_PARTIAL {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn not_a_run(&self) -> RunFolderError {
        let path = self.path.clone();
        match self.config().exists() {
            true => RunFolderError::BeforeRecords { path },
            false => RunFolderError::NotARun { path },
        }
    }
}

impl Drop for NewRun {
    fn drop(&mut self) {
        if self.is_begun || self.replaces {
            return;
        }
        // While the folder is held. Where this fails, what is left is a run that was never begun.
        let _ = self.folder.remove_contents();
        let _ = remove(&self.folder.record_path());
        let _ = remove(&self.folder.path.join(LOCK));
        if self.is_made {
            let _ = fs::remove_dir(&self.folder.path);
        }
    }
}

/// A run that is to go on, with its folder.
#[derive(Debug)]
pub struct OpenRun<C = RunConfig> {
    /// The folder.
    pub folder: RunFolder,
    /// Keeps others out of it.
    pub lock: FolderLock,
    /// The configuration that holds.
    pub config: C,
    /// What the run is.
    pub record: RunRecord,
}

impl<C: RunConfiguration> OpenRun<C> {
    /// Takes the folder of a run to go on with it.
    ///
    /// # Errors
    ///
    /// If it isn't the folder of a run, or one that another process works in, or a run that this release
    /// can't go on with. It is left as it is.
    pub fn open(path: &Path) -> Result<Self, RunFolderError> {
        let folder = RunFolder { path: path.to_owned() };
        folder.record()?;
        let lock = take_lock(path)?;
        let record = folder.record()?;
        let versions = Versions {
            format: record.format,
            numerics: record.numerics,
            altup: record.altup.clone(),
        };
        versions
            .check_numerics()
            .map_err(|problem| RunFolderError::Version { path: folder.record_path(), problem })?;
        let (folder, config) = RunFolder::open_as(path)?;
        Ok(Self { folder, lock, config, record })
    }
}
