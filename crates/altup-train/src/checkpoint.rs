//! Checkpoints: all that a run needs to go on exactly where it was.
//!
//! A checkpoint is a folder `step-00001200/` with `model.bpk`, `optimizer.bpk` and `state.json`,
//! which holds the versions of what wrote it, and sizes and checksums of the two. It is written under
//! another name and renamed when it is whole, and renamed again before it is removed, so that neither a
//! kill nor a full disk leaves half of one.

use altup_models::T5;
use burn::module::Module;
use burn::optim::ModuleOptimizer;
use burn::store::{ModuleRecord, RecordError};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::config::TrainingConfig;
use crate::durable::{move_whole, replace_file, sync_folder};
use crate::learner::Learner;
use crate::metrics::RoutingRow;
use crate::run_record::{VersionError, Versions};

/// The version of a checkpoint's layout.
const FORMAT: u32 = 1;
const MODEL: &str = "model.bpk";
const OPTIMIZER: &str = "optimizer.bpk";
const STATE: &str = "state.json";
/// What the name of an unfinished checkpoint starts with, and of one that is being removed.
const PARTIAL: &str = ".partial-";

/// Where a run is, beside its model and optimizer. The data position and every seed follow from the
/// step and how many were skipped.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunState {
    /// Optimizer steps done.
    pub step: u64,
    /// Steps' worth of batches that were passed over when training went back to a checkpoint.
    pub skipped_steps: u64,
    /// How often training went back to a checkpoint.
    pub rollbacks: u64,
    /// The step of the newest checkpoint, before this one, behind which a step went well.
    pub proven: Option<u64>,
    /// Input and target tokens seen.
    pub tokens: u64,
    /// Seconds of training, over all its starts.
    pub elapsed_seconds: f64,
    /// Seconds of it in which replicas exchanged gradients, or waited for each other's.
    #[serde(default)]
    pub exchange_seconds: f64,
    /// The steps since the last line of metrics.
    pub window: Window,
    /// The validation loss at this step, or another cost that checkpoints are compared by, if it was taken
    /// here.
    pub valid_loss: Option<f64>,
    /// How many examples of each source that was asked to score. Checkpoints of older versions don't say.
    #[serde(default)]
    pub valid_examples: Option<u64>,
    /// Whether the validation that belongs to this step is still to come.
    pub validation_is_due: bool,
}

impl RunState {
    /// How many steps' worth of batches the data has gone through: those of steps done and of skipped
    /// ones. Data and noise follow from it, so that neither comes a second time after a rollback.
    pub fn data_steps(&self) -> u64 {
        self.step + self.skipped_steps
    }

    /// If this is the last step of a run: its validation is still to come where none was taken at this step, or one of
    /// another number of examples. So it is where the end of a run was brought forward, or `final_eval_examples` changed.
    pub fn ask_for_the_last_validation(&mut self, training: &TrainingConfig) {
        let asked = Some(training.eval_examples_at(self.step));
        if self.step == training.steps && self.valid_examples != asked {
            (self.valid_loss, self.valid_examples) = (None, None);
            self.validation_is_due = true;
        }
    }

    /// The share of the time in which replicas exchanged gradients; none if they never did.
    pub fn exchange_share(&self) -> Option<f64> {
        (self.exchange_seconds > 0.0).then(|| self.exchange_seconds / self.elapsed_seconds)
    }
}

/// Sums over the steps since the last line of metrics.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Window {
    /// Summed cross-entropy, in nats.
    pub loss: f64,
    /// Target tokens that the loss is over.
    pub targets: u64,
    /// Input and target tokens.
    pub tokens: u64,
    /// Summed gradient norms.
    pub grad_norm: f64,
    /// Steps.
    pub steps: u64,
    /// Seconds.
    pub seconds: f64,
    /// Seconds of waiting for batches.
    #[serde(default)]
    pub data_wait: f64,
    /// Seconds of the exchange between replicas.
    #[serde(default)]
    pub exchange: f64,
    /// Operations of the model.
    #[serde(default)]
    pub flops: f64,
    /// Batches.
    #[serde(default)]
    pub batches: u64,
    /// Summed over the batches, how the layers with experts routed them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routing: Vec<RoutingRow>,
}

impl Window {
    /// Adds how the layers routed a batch.
    pub(crate) fn add_routing(&mut self, routing: Vec<RoutingRow>) {
        self.batches += 1;
        if self.routing.is_empty() {
            self.routing = routing;
            return;
        }
        for (sums, layer) in self.routing.iter_mut().zip(routing) {
            let mut layer = layer;
            for (sum, value) in sums.values_mut().zip(layer.values_mut()) {
                *sum += *value;
            }
        }
    }

    /// The means over the batches.
    pub(crate) fn mean_routing(mut routing: Vec<RoutingRow>, batches: u64) -> Vec<RoutingRow> {
        for layer in &mut routing {
            layer.values_mut().for_each(|value| *value /= batches as f64);
        }
        routing
    }
}

/// Why a checkpoint can't be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// Writing failed; earlier checkpoints are whole.
    #[error("the checkpoint {} can't be written (earlier ones are whole)", path.display())]
    Write {
        /// The checkpoint's folder.
        path: PathBuf,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No checkpoint of a run can be read.
    #[error("{}: no whole checkpoint{}", path.display(), reason(damaged))]
    None {
        /// The folder of the checkpoints.
        path: PathBuf,
        /// What is wrong with each that is there.
        damaged: Vec<String>,
    },
    /// A run has no checkpoint of a step.
    #[error("{}: no checkpoint of step {step}; there {}", path.display(), listed(steps))]
    NoSuchStep {
        /// The folder of the checkpoints.
        path: PathBuf,
        /// The step.
        step: u64,
        /// The steps that there are.
        steps: Vec<u64>,
    },
    /// A checkpoint was written by a release whose runs this one can't go on with.
    #[error("the checkpoint {} {problem}", path.display())]
    Version {
        /// The checkpoint.
        path: PathBuf,
        /// Which version is another.
        problem: VersionError,
    },
    /// A checkpoint that may well be whole can't be read at present.
    #[error("the checkpoint {} can't be read; it is left as it is", path.display())]
    Unreadable {
        /// The checkpoint.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The folder of the checkpoints can't be listed or cleaned.
    #[error("cannot use {}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

fn listed(steps: &[u64]) -> String {
    let steps: Vec<String> = steps.iter().map(u64::to_string).collect();
    match steps.is_empty() {
        true => "is none yet".into(),
        false => format!("are those of steps {}", steps.join(", ")),
    }
}

fn reason(damaged: &[String]) -> String {
    if damaged.is_empty() {
        return ": the run has not written one yet".into();
    }
    damaged.iter().map(|problem| format!("; {problem}")).collect()
}

/// The checkpoints of a run.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    folder: PathBuf,
    keep_last: usize,
    /// Those that were found damaged when the run was resumed.
    damaged: BTreeSet<u64>,
    /// What couldn't be removed.
    notes: Vec<String>,
}

/// A checkpoint read back.
pub struct Restored {
    /// Where the run was.
    pub state: RunState,
    /// The model.
    pub learner: Learner,
    /// The optimizer.
    pub optimizer: ModuleOptimizer,
    /// What is wrong with newer checkpoints, which were passed over.
    pub damaged: Vec<String>,
}

impl Restored {
    /// In place of a checkpoint, for a run that starts.
    pub fn fresh(learner: Learner, optimizer: ModuleOptimizer) -> Self {
        Self { state: RunState::default(), learner, optimizer, damaged: Vec::new() }
    }
}

/// The content of `state.json`.
#[derive(Serialize, Deserialize)]
struct Manifest {
    #[serde(flatten)]
    versions: Versions,
    state: RunState,
    /// The other files.
    files: BTreeMap<String, StoredFile>,
}

#[derive(PartialEq, Serialize, Deserialize)]
struct StoredFile {
    bytes: u64,
    blake3: String,
}

impl StoredFile {
    /// Reads the file whole.
    fn of(path: &Path) -> io::Result<Self> {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(File::open(path)?)?;
        Ok(Self { bytes: hasher.count(), blake3: hasher.finalize().to_string() })
    }
}

impl Checkpoints {
    /// The checkpoints in `folder`, of which the newest `keep_last` and the one of the best
    /// validation loss are kept.
    pub fn new(folder: PathBuf, keep_last: usize) -> Self {
        Self { folder, keep_last, damaged: BTreeSet::new(), notes: Vec::new() }
    }

    /// Writes a checkpoint, then removes those that are no longer kept.
    ///
    /// Kept are the newest that are whole, the one of the best validation loss, and the newest that is
    /// proven good. Whole is, for this, one whose files have their sizes: reading all of them at
    /// each save would take too long.
    ///
    /// What can't be removed is tried again at the next save; [`take_notes`](Self::take_notes) tells.
    ///
    /// # Errors
    ///
    /// If it can't be written whole. Earlier checkpoints stay as they are.
    pub fn save(
        &mut self,
        state: &RunState,
        learner: &Learner,
        optimizer: &ModuleOptimizer,
    ) -> Result<(), CheckpointError> {
        let path = self.path(state.step);
        self.write(&path, state, learner, optimizer)
            .map_err(|source| CheckpointError::Write { path, source })?;
        self.damaged.remove(&state.step);
        if let Err(error) = self.remove_old(state) {
            self.note(&self.folder.clone(), &error);
        }
        self.remove_partial();
        Ok(())
    }

    /// What couldn't be removed since this was asked last.
    pub fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    fn note(&mut self, path: &Path, error: &io::Error) {
        self.notes.push(format!("cannot clean {}: {error}", path.display()));
    }

    fn write(
        &self,
        path: &Path,
        state: &RunState,
        learner: &Learner,
        optimizer: &ModuleOptimizer,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        fs::create_dir_all(&self.folder)?;
        let partial = tempfile::Builder::new().prefix(PARTIAL).tempdir_in(&self.folder)?;
        let file = |name: &str| partial.path().join(name);
        learner.clone().into_record().save(file(MODEL))?;
        optimizer.save(file(OPTIMIZER))?;
        let files = [MODEL, OPTIMIZER]
            .into_iter()
            .map(|name| {
                File::open(file(name))?.sync_all()?;
                Ok((name.to_owned(), StoredFile::of(&file(name))?))
            })
            .collect::<io::Result<_>>()?;
        let manifest = Manifest { versions: Versions::here(FORMAT), state: state.clone(), files };
        replace_file(&file(STATE), &serde_json::to_vec_pretty(&manifest)?)?;
        if path.exists() {
            // Only a damaged one is written again.
            self.discard(path)?;
        }
        fs::rename(partial.keep(), path)?;
        self.sync()?;
        Ok(())
    }

    /// Replaces the state of the checkpoint of its step, whose model and optimizer stay.
    ///
    /// # Errors
    ///
    /// If it can't be written. What was there before stays.
    pub fn restate(&self, state: &RunState) -> Result<(), CheckpointError> {
        let path = self.path(state.step);
        let restate = || -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
            let stored = manifest(&path).map_err(|damage| damage.to_string())?;
            let manifest = Manifest { state: state.clone(), ..stored };
            Ok(replace_file(&path.join(STATE), &serde_json::to_vec_pretty(&manifest)?)?)
        };
        restate().map_err(|source| CheckpointError::Write { path, source })
    }

    /// Whether the run has no checkpoint, whole or damaged.
    ///
    /// # Errors
    ///
    /// If the folder can't be listed.
    pub fn is_empty(&self) -> Result<bool, CheckpointError> {
        Ok(self.list().map_err(|source| self.folder_error(source))?.is_empty())
    }

    /// Whether there is a checkpoint of a step, whole or damaged.
    pub fn has(&self, step: u64) -> bool {
        self.path(step).exists()
    }

    /// Reads the checkpoint of a step, or the newest whole one, into a learner and an optimizer of the
    /// same kind.
    ///
    /// # Errors
    ///
    /// If there is none that is whole, with what is wrong with each that is there.
    pub fn restore(
        &mut self,
        step: Option<u64>,
        learner: &Learner,
        optimizer: &ModuleOptimizer,
    ) -> Result<Restored, CheckpointError> {
        self.remove_partial();
        let mut damaged_steps = BTreeSet::new();
        let read = |number, path: &Path| {
            let read = read(path, learner.clone(), optimizer.clone());
            if read.is_err() {
                damaged_steps.insert(number);
            }
            read
        };
        let ((state, learner, optimizer), damaged) = self.newest(step, read)?;
        self.damaged.extend(damaged_steps);
        Ok(Restored { state, learner, optimizer, damaged })
    }

    /// Reads the model of a step's checkpoint, or of the newest whole one, into a model of the same
    /// kind.
    ///
    /// # Errors
    ///
    /// If it isn't there or isn't whole.
    pub fn model(&self, step: Option<u64>, model: T5) -> Result<T5, CheckpointError> {
        let read = |_, path: &Path| {
            let manifest = manifest(path)?;
            read_learner(path, &manifest, Learner { model: model.clone() })
        };
        Ok(self.newest(step, read)?.0.model)
    }

    /// What `read` makes of a step's checkpoint, or of the newest that is whole, and what is wrong with
    /// those passed over.
    fn newest<T>(
        &self,
        step: Option<u64>,
        mut read: impl FnMut(u64, &Path) -> Result<T, Damage>,
    ) -> Result<(T, Vec<String>), CheckpointError> {
        let checkpoints = self.list().map_err(|source| self.folder_error(source))?;
        let mut damaged = Vec::new();
        for (number, path) in checkpoints.iter().rev() {
            if step.is_some_and(|step| step != *number) {
                continue;
            }
            match read(*number, path) {
                Ok(read) => return Ok((read, damaged)),
                // One of another release is no damage: an older one must not take its place.
                Err(Damage::Version(problem)) => {
                    return Err(CheckpointError::Version { path: path.clone(), problem });
                }
                // Neither is one that another try might read.
                Err(Damage::Unreadable(source)) => {
                    return Err(CheckpointError::Unreadable { path: path.clone(), source });
                }
                Err(problem) => damaged.push(format!("{} {problem}", path.display())),
            }
        }
        Err(match step {
            Some(step) if damaged.is_empty() => {
                let (path, steps) = (self.folder.clone(), checkpoints.into_keys().collect());
                CheckpointError::NoSuchStep { path, step, steps }
            }
            _ => CheckpointError::None { path: self.folder.clone(), damaged },
        })
    }

    /// Moves the checkpoints behind `step` into the folder `target`, which may be on another file system, the newest
    /// first: if it is interrupted, those that are left are as a killed run leaves them.
    ///
    /// # Errors
    ///
    /// If one can't be moved.
    pub fn move_later(&self, step: u64, target: &Path) -> io::Result<()> {
        fs::create_dir_all(target)?;
        for (number, path) in self.list()?.range(step + 1..).rev() {
            move_whole(path, &target.join(checkpoint_name(*number)), |path| self.discard(path))?;
        }
        self.sync()
    }

    /// Removes the checkpoints behind `step`, the newest first.
    ///
    /// # Errors
    ///
    /// If one can't be removed.
    pub fn remove_later(&mut self, step: u64) -> Result<(), CheckpointError> {
        let remove =
            || self.list()?.range(step + 1..).rev().try_for_each(|(_, path)| self.discard(path));
        remove().map_err(|source| self.folder_error(source))?;
        self.remove_partial();
        Ok(())
    }

    fn path(&self, step: u64) -> PathBuf {
        self.folder.join(checkpoint_name(step))
    }

    fn folder_error(&self, source: io::Error) -> CheckpointError {
        CheckpointError::Folder { path: self.folder.clone(), source }
    }

    /// Makes renames last.
    fn sync(&self) -> io::Result<()> {
        match self.folder.exists() {
            true => sync_folder(&self.folder),
            false => Ok(()),
        }
    }

    /// The checkpoints by step, oldest first.
    fn list(&self) -> io::Result<BTreeMap<u64, PathBuf>> {
        let mut checkpoints = BTreeMap::new();
        if !self.folder.exists() {
            return Ok(checkpoints);
        }
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if let Some(step) = name.strip_prefix("step-").and_then(|step| step.parse().ok()) {
                checkpoints.insert(step, path);
            }
        }
        Ok(checkpoints)
    }

    /// Removes what is no longer kept once `state` is saved. Later checkpoints than that are damaged
    /// ones, which are written again in time. What can't be read at present may be whole, and is kept.
    fn remove_old(&mut self, state: &RunState) -> io::Result<()> {
        let (mut whole, mut discarded) = (Vec::new(), Vec::new());
        for (step, path) in self.list()?.into_iter().filter(|(step, _)| *step <= state.step) {
            let sized = manifest(&path).and_then(|found| Ok((has_sizes(&path, &found)?, found)));
            match sized {
                Ok((true, manifest)) if !self.damaged.contains(&step) => {
                    whole.push((step, manifest.state.valid_loss, path));
                }
                Err(Damage::Version(_) | Damage::Unreadable(_)) => {}
                _ => discarded.push(path),
            }
        }
        let losses = whole.iter().filter_map(|(step, loss, _)| Some(((*loss)?, *step)));
        let best = losses.min_by(|(a, _), (b, _)| a.total_cmp(b)).map(|(_, step)| step);
        let old = whole.len().saturating_sub(self.keep_last);
        let is_kept = |step: u64| Some(step) == best || Some(step) == state.proven;
        let old = whole.into_iter().take(old).filter(|(step, ..)| !is_kept(*step));
        discarded.extend(old.map(|(_, _, path)| path));
        for path in discarded {
            if let Err(error) = self.discard(&path) {
                self.note(&path, &error);
            }
        }
        Ok(())
    }

    /// Puts a checkpoint out of the sight of those who list them; [`remove_partial`](Self::remove_partial) removes it.
    fn discard(&self, path: &Path) -> io::Result<()> {
        let folder = tempfile::Builder::new().prefix(PARTIAL).tempdir_in(&self.folder)?;
        fs::rename(path, folder.path().join("removed"))?;
        let _ = folder.keep();
        Ok(())
    }

    /// Removes what a killed run left half written, and what was discarded. What stays is in nobody's way.
    fn remove_partial(&mut self) {
        let Ok(entries) = fs::read_dir(&self.folder) else { return };
        for entry in entries.flatten() {
            if !entry.file_name().to_string_lossy().starts_with(PARTIAL) {
                continue;
            }
            let path = entry.path();
            let removed = match entry.file_type() {
                Ok(kind) if kind.is_dir() => fs::remove_dir_all(&path),
                Ok(_) => fs::remove_file(&path),
                Err(error) => Err(error),
            };
            if let Err(error) = removed {
                self.note(&path, &error);
            }
        }
    }
}

fn checkpoint_name(step: u64) -> String {
    format!("step-{step:08}")
}

/// Why a checkpoint that is there can't be used.
#[derive(Debug, thiserror::Error)]
enum Damage {
    #[error("lacks a readable {STATE} ({0})")]
    Manifest(io::Error),
    #[error(transparent)]
    Version(#[from] VersionError),
    #[error("has a damaged {0}")]
    Checksum(String),
    #[error("doesn't fit the model ({0})")]
    Model(String),
    /// Reading failed for a reason that may pass.
    #[error("can't be read at present ({0})")]
    Unreadable(io::Error),
}

impl Damage {
    /// What a failure to read says: that something is damaged, or nothing of what is there.
    fn of(error: io::Error, damage: impl FnOnce(io::Error) -> Self) -> Self {
        use io::ErrorKind::{InvalidData, NotFound, UnexpectedEof};
        match error.kind() {
            NotFound | UnexpectedEof | InvalidData => damage(error),
            _ => Self::Unreadable(error),
        }
    }
}

impl From<RecordError> for Damage {
    /// Of a file whose hash is right, so that it isn't damaged.
    fn from(error: RecordError) -> Self {
        match error {
            RecordError::Io(problem) => Self::Unreadable(io::Error::other(problem)),
            error => Self::Model(error.to_string()),
        }
    }
}

fn read(
    path: &Path,
    learner: Learner,
    optimizer: ModuleOptimizer,
) -> Result<(RunState, Learner, ModuleOptimizer), Damage> {
    let manifest = manifest(path)?;
    manifest.versions.check_numerics()?;
    let learner = read_learner(path, &manifest, learner)?;
    Ok((manifest.state, learner, optimizer.load(path.join(OPTIMIZER))?))
}

fn read_learner(path: &Path, manifest: &Manifest, learner: Learner) -> Result<Learner, Damage> {
    for name in [MODEL, OPTIMIZER] {
        let damaged = || Damage::Checksum(name.to_owned());
        let found = StoredFile::of(&path.join(name));
        let found = found.map_err(|error| Damage::of(error, |_| damaged()))?;
        if Some(&found) != manifest.files.get(name) {
            return Err(damaged());
        }
    }
    let record = ModuleRecord::load(path.join(MODEL))?;
    learner.try_load_record(record).map_err(|error| Damage::Model(error.to_string()))
}

fn manifest(path: &Path) -> Result<Manifest, Damage> {
    let json = fs::read(path.join(STATE)).map_err(|error| Damage::of(error, Damage::Manifest))?;
    let damaged = |error: serde_json::Error| Damage::Manifest(error.into());
    let versions: Versions = serde_json::from_slice(&json).map_err(damaged)?;
    versions.check_format(FORMAT)?;
    serde_json::from_slice(&json).map_err(damaged)
}

/// Whether the files have the sizes that they were written with.
fn has_sizes(path: &Path, manifest: &Manifest) -> Result<bool, Damage> {
    for name in [MODEL, OPTIMIZER] {
        let path = path.join(name);
        match fs::metadata(&path) {
            Ok(file) if !file.is_file() => {
                return Err(Damage::Unreadable(io::ErrorKind::IsADirectory.into()));
            }
            Ok(file) => {
                if Some(file.len()) != manifest.files.get(name).map(|file| file.bytes) {
                    return Ok(false);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(Damage::Unreadable(error)),
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RunConfig;

    fn learner() -> (Learner, ModuleOptimizer) {
        let config = RunConfig::tiny_altup();
        let device = crate::device::cpu().autodiff();
        let model = config.model_config(64).unwrap().init(0, &device);
        let learner = Learner { model };
        let optimizer = learner.optimizer(&config.optimizer).unwrap();
        (learner, optimizer)
    }

    fn state(step: u64) -> RunState {
        RunState { step, ..RunState::default() }
    }

    fn steps(checkpoints: &Checkpoints) -> Vec<u64> {
        checkpoints.list().unwrap().into_keys().collect()
    }

    /// `model.bpk` is a folder: it can't be read, and that doesn't say that the checkpoint is damaged.
    #[cfg(unix)]
    #[test]
    fn what_cannot_be_read_at_present_ends_a_resume_and_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let (learner, optimizer) = learner();
        let mut checkpoints = Checkpoints::new(folder.path().join("checkpoints"), 1);
        checkpoints.save(&state(1), &learner, &optimizer).unwrap();
        checkpoints.save(&state(2), &learner, &optimizer).unwrap();
        assert_eq!(steps(&checkpoints), [2]);
        let model = checkpoints.path(2).join(MODEL);
        fs::remove_file(&model).unwrap();
        fs::create_dir(&model).unwrap();
        let error = checkpoints.restore(None, &learner, &optimizer).err().unwrap();
        assert!(matches!(error, CheckpointError::Unreadable { .. }), "{error}");
        checkpoints.save(&state(3), &learner, &optimizer).unwrap();
        checkpoints.save(&state(4), &learner, &optimizer).unwrap();
        assert_eq!(steps(&checkpoints), [2, 4]);

        // One that isn't there is lost, whoever reads.
        fs::remove_file(checkpoints.path(4).join(MODEL)).unwrap();
        let mut later = Checkpoints::new(folder.path().join("checkpoints"), 1);
        fs::remove_dir_all(later.path(2)).unwrap();
        let error = later.restore(None, &learner, &optimizer).err().unwrap();
        assert!(error.to_string().contains("has a damaged model.bpk"), "{error}");
    }

    #[test]
    fn what_stays_of_a_removed_checkpoint_ends_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (learner, optimizer) = learner();
        let mut checkpoints = Checkpoints::new(folder.path().to_owned(), 1);
        fs::write(folder.path().join(".partial-file"), "left").unwrap();
        fs::create_dir(folder.path().join(".partial-folder")).unwrap();
        checkpoints.save(&state(1), &learner, &optimizer).unwrap();
        checkpoints.save(&state(2), &learner, &optimizer).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert_eq!(checkpoints.take_notes(), [""; 0]);

        // As a folder that can't be removed.
        checkpoints.note(folder.path(), &io::ErrorKind::PermissionDenied.into());
        let notes = checkpoints.take_notes();
        assert!(notes.len() == 1 && notes[0].contains("cannot clean"), "{notes:?}");
        assert!(checkpoints.take_notes().is_empty());
    }
}
