//! Checkpoints: all that a run needs to go on exactly where it was.
//!
//! A checkpoint is a folder `step-00001200/` with `model.bpk`, `optimizer.bpk` and `state.json`,
//! which holds the checksums of the two. It is written under another name and renamed when it is
//! whole, so that neither a kill nor a full disk leaves half of one.

use altup_models::T5;
use burn::module::Module;
use burn::optim::ModuleOptimizer;
use burn::store::{ModuleRecord, RecordError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::learner::Learner;
use crate::metrics::RoutingRow;

const MODEL: &str = "model.bpk";
const OPTIMIZER: &str = "optimizer.bpk";
const STATE: &str = "state.json";
/// What the name of an unfinished checkpoint starts with.
const PARTIAL: &str = ".partial-";

/// Where a run is, beside its model and optimizer. The data position and every seed follow from the
/// step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunState {
    /// Optimizer steps done.
    pub step: u64,
    /// Input and target tokens seen.
    pub tokens: u64,
    /// Seconds of training, over all its starts.
    pub elapsed_seconds: f64,
    /// The steps since the last line of metrics.
    pub window: Window,
    /// The validation loss at this step, or another cost that checkpoints are compared by, if it was taken
    /// here.
    pub valid_loss: Option<f64>,
    /// What the training tokens are; a run goes on with no others.
    pub data: String,
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
    #[error("{}: no whole checkpoint to resume from{}", path.display(), reason(damaged))]
    None {
        /// The folder of the checkpoints.
        path: PathBuf,
        /// What is wrong with each that is there.
        damaged: Vec<String>,
    },
    /// A run has no checkpoint of a step.
    #[error("{}: no checkpoint of step {step}; there are those of steps {steps}", path.display())]
    NoSuchStep {
        /// The folder of the checkpoints.
        path: PathBuf,
        /// The step.
        step: u64,
        /// The steps that there are.
        steps: String,
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

fn reason(damaged: &[String]) -> String {
    if damaged.is_empty() {
        return ": the run ended before its first; start it again with --overwrite".into();
    }
    damaged.iter().map(|problem| format!("; {problem}")).collect()
}

/// The checkpoints of a run.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    folder: PathBuf,
    keep_last: usize,
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

/// The content of `state.json`.
#[derive(Serialize, Deserialize)]
struct Manifest {
    state: RunState,
    /// BLAKE3 of each of the other files.
    checksums: BTreeMap<String, String>,
}

impl Checkpoints {
    /// The checkpoints in `folder`, of which the newest `keep_last` and the one of the best
    /// validation loss are kept.
    pub fn new(folder: PathBuf, keep_last: usize) -> Self {
        Self { folder, keep_last }
    }

    /// Writes a checkpoint, then removes those that are no longer kept.
    ///
    /// # Errors
    ///
    /// If it can't be written whole. Earlier checkpoints stay as they are.
    pub fn save(
        &self,
        state: &RunState,
        learner: &Learner,
        optimizer: &ModuleOptimizer,
    ) -> Result<(), CheckpointError> {
        let path = self.path(state.step);
        self.write(&path, state, learner, optimizer)
            .map_err(|source| CheckpointError::Write { path, source })?;
        self.remove_old().map_err(|source| self.folder_error(source))
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
        let checksums = [MODEL, OPTIMIZER]
            .into_iter()
            .map(|name| Ok((name.to_owned(), checksum(&file(name))?)))
            .collect::<io::Result<_>>()?;
        let manifest = Manifest { state: state.clone(), checksums };
        let mut state_file = File::create(file(STATE))?;
        state_file.write_all(&serde_json::to_vec_pretty(&manifest)?)?;
        state_file.sync_all()?;
        if path.exists() {
            // A run that resumed from before this step writes it again; the new one counts.
            fs::remove_dir_all(path)?;
        }
        fs::rename(partial.keep(), path)?;
        #[cfg(unix)] // Windows opens no folder.
        File::open(&self.folder)?.sync_all()?;
        Ok(())
    }

    /// Reads the newest whole checkpoint into a learner and an optimizer of the same kind.
    ///
    /// # Errors
    ///
    /// If there is none, with what is wrong with each that is there.
    pub fn restore(
        &self,
        learner: Learner,
        optimizer: ModuleOptimizer,
    ) -> Result<Restored, CheckpointError> {
        self.remove_partial().map_err(|source| self.folder_error(source))?;
        let mut damaged = Vec::new();
        for (_, path) in self.list().map_err(|source| self.folder_error(source))?.into_iter().rev()
        {
            match read(&path, learner.clone(), optimizer.clone()) {
                Ok((state, learner, optimizer)) => {
                    return Ok(Restored { state, learner, optimizer, damaged });
                }
                Err(problem) => damaged.push(format!("{} {problem}", path.display())),
            }
        }
        Err(CheckpointError::None { path: self.folder.clone(), damaged })
    }

    /// Reads the model of a step's checkpoint, or of the newest whole one, into a model of the same
    /// kind.
    ///
    /// # Errors
    ///
    /// If it isn't there or isn't whole.
    pub fn model(&self, step: Option<u64>, model: T5) -> Result<T5, CheckpointError> {
        let checkpoints = self.list().map_err(|source| self.folder_error(source))?;
        let mut damaged = Vec::new();
        for (number, path) in checkpoints.iter().rev() {
            if step.is_some_and(|step| step != *number) {
                continue;
            }
            match read_learner(path, Learner { model: model.clone() }) {
                Ok((_, learner)) => return Ok(learner.model),
                Err(problem) => damaged.push(format!("{} {problem}", path.display())),
            }
        }
        Err(match step {
            Some(step) if damaged.is_empty() => {
                let steps: Vec<String> = checkpoints.keys().map(u64::to_string).collect();
                let (path, steps) = (self.folder.clone(), steps.join(", "));
                CheckpointError::NoSuchStep { path, step, steps }
            }
            _ => CheckpointError::None { path: self.folder.clone(), damaged },
        })
    }

    fn path(&self, step: u64) -> PathBuf {
        self.folder.join(format!("step-{step:08}"))
    }

    fn folder_error(&self, source: io::Error) -> CheckpointError {
        CheckpointError::Folder { path: self.folder.clone(), source }
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

    fn remove_old(&self) -> io::Result<()> {
        let checkpoints = self.list()?;
        let loss = |path: &Path| manifest(path).ok().and_then(|manifest| manifest.state.valid_loss);
        let best = checkpoints
            .values()
            .filter_map(|path| Some((loss(path)?, path)))
            .min_by(|(a, _), (b, _)| a.total_cmp(b))
            .map(|(_, path)| path);
        let newest = checkpoints.len().saturating_sub(self.keep_last);
        for path in checkpoints.values().take(newest).filter(|path| Some(*path) != best) {
            fs::remove_dir_all(path)?;
        }
        Ok(())
    }

    /// Removes what a killed run left half written.
    fn remove_partial(&self) -> io::Result<()> {
        if !self.folder.exists() {
            return Ok(());
        }
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(PARTIAL) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }
}

/// Why a checkpoint that is there can't be used.
#[derive(Debug, thiserror::Error)]
enum Damage {
    #[error("lacks a readable {STATE} ({0})")]
    Manifest(io::Error),
    #[error("has a damaged {0}")]
    Checksum(String),
    #[error("can't be read ({0})")]
    Record(#[from] RecordError),
    #[error("doesn't fit the model ({0})")]
    Model(String),
}

fn read(
    path: &Path,
    learner: Learner,
    optimizer: ModuleOptimizer,
) -> Result<(RunState, Learner, ModuleOptimizer), Damage> {
    let (state, learner) = read_learner(path, learner)?;
    Ok((state, learner, optimizer.load(path.join(OPTIMIZER))?))
}

fn read_learner(path: &Path, learner: Learner) -> Result<(RunState, Learner), Damage> {
    let manifest = manifest(path).map_err(Damage::Manifest)?;
    for name in [MODEL, OPTIMIZER] {
        let found = checksum(&path.join(name)).ok();
        if found.is_none() || found.as_ref() != manifest.checksums.get(name) {
            return Err(Damage::Checksum(name.to_owned()));
        }
    }
    let record = ModuleRecord::load(path.join(MODEL))?;
    let learner =
        learner.try_load_record(record).map_err(|error| Damage::Model(error.to_string()))?;
    Ok((manifest.state, learner))
}

fn manifest(path: &Path) -> io::Result<Manifest> {
    Ok(serde_json::from_slice(&fs::read(path.join(STATE))?)?)
}

fn checksum(path: &Path) -> io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path)?)?;
    Ok(hasher.finalize().to_string())
}
