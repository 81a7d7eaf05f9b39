//! How long the models of a study take, side by side on this machine: every model alone in a process of its own, and all
//! of them in turns, so that what else the machine does falls on all.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use altup_models::{ModelDirectory, T5Config};
use serde::{Deserialize, Serialize};

use super::folder::{StudyFolder, StudyFolderError};
use super::plan::{Cell, MeasureConfig, StudyPlan};
use super::results::RunResult;
use crate::bench::comparison::Side;
use crate::bench::{BenchBatch, Work};
use crate::machine::Machine;
use crate::statistics::median;

/// What `latency.json` holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// What was measured, by what, where. Figures are side by side only where all of this is the same.
    pub setting: Setting,
    /// What each model took in each round.
    pub timed: Vec<Timed>,
}

/// What makes figures comparable.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Setting {
    /// The machine.
    pub machine: Machine,
    /// The backend.
    pub backend: String,
    /// The hash of the program that was timed.
    #[serde(default)]
    pub program: String,
    /// Its threads.
    #[serde(default)]
    pub threads: usize,
    /// Lengths, batch sizes, rounds.
    pub measure: MeasureConfig,
    /// The models: size and variant, and what they are.
    pub models: BTreeMap<String, T5Config>,
}

/// A model's turn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Timed {
    /// The round, from 0.
    pub round: usize,
    /// The model: size and variant.
    pub model: String,
    /// Rows of the batch.
    pub batch_size: usize,
    /// What was timed.
    pub work: Work,
    /// The median of the repeats.
    pub seconds: f64,
    /// The most memory in use.
    pub peak_bytes: Option<u64>,
}

/// Why models can't be measured.
#[derive(Debug, thiserror::Error)]
pub enum LatencyError {
    /// A file of the study can't be written.
    #[error(transparent)]
    Folder(#[from] StudyFolderError),
    /// The figures of before can't be read.
    #[error("cannot use {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The case that a model is measured on can't be made.
    #[error("cannot measure {model}")]
    Model {
        /// The model.
        model: String,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Models that can't be measured, each with its rows as in "tiny-dense, 32 rows", and the reason: running out of memory
/// at a large batch, say.
pub type NotMeasured = BTreeMap<String, String>;

/// Seconds by round.
pub type ByRound = BTreeMap<usize, f64>;

impl Latency {
    /// What was measured in the folder of a study, if anything was.
    ///
    /// # Errors
    ///
    /// If the file is there and can't be read.
    pub fn read(folder: &StudyFolder) -> Result<Option<Self>, LatencyError> {
        Self::read_file(&folder.latency())
    }

    fn read_file(path: &Path) -> Result<Option<Self>, LatencyError> {
        let error = |source| LatencyError::Read { path: path.to_owned(), source };
        match std::fs::read(path) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text).map_err(|e| error(e.into()))?)),
            Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(error(source)),
        }
    }

    fn write(&self, folder: &StudyFolder, path: &Path) -> Result<(), LatencyError> {
        let json = serde_json::to_vec_pretty(self).map_err(|source| LatencyError::Read {
            path: path.to_owned(),
            source: source.into(),
        })?;
        Ok(folder.write(path, &json)?)
    }

    /// What a model took, in the rounds in which it was measured.
    pub fn seconds(&self, model: &str, batch_size: usize, work: Work) -> ByRound {
        let of = |timed: &&Timed| {
            timed.model == model && timed.batch_size == batch_size && timed.work == work
        };
        self.timed.iter().filter(of).map(|timed| (timed.round, timed.seconds)).collect()
    }

    /// Without what was measured of models that those of the runs are no longer.
    pub(super) fn of_runs(mut self, runs: &[RunResult]) -> Self {
        let is_still = |model: &str| {
            let of_model = runs.iter().find(|run| run.cell.model() == model);
            of_model.is_none_or(|run| self.setting.models.get(model) == Some(&run.model))
        };
        self.timed.retain(|timed| is_still(&timed.model));
        self
    }

    fn has(&self, round: usize, model: &str, batch_size: usize, work: Work) -> bool {
        self.timed.iter().any(|timed| {
            (timed.round, timed.model.as_str()) == (round, model)
                && (timed.batch_size, timed.work) == (batch_size, work)
        })
    }
}

/// Measures a model of each size and variant that has a finished run, as long as `stop` isn't set. What an earlier call
/// has measured in the same setting stays; in another one all is measured anew, for it would not be side by side. What was
/// measured before is replaced when all rounds are done.
///
/// A model that can't be measured with so many rows is left out of these from there on, and all else goes on.
///
/// # Errors
///
/// If a file can't be read or written.
pub fn measure(
    plan: &StudyPlan,
    runs: &[RunResult],
    folder: &StudyFolder,
    side: &Side,
    note: &mut dyn FnMut(&str),
    stop: &AtomicBool,
) -> Result<NotMeasured, LatencyError> {
    let mut not_measured = NotMeasured::new();
    if plan.measure.rounds == 0 {
        return Ok(not_measured);
    }
    let mut models = BTreeMap::new();
    for run in runs {
        models.entry(run.cell.model()).or_insert_with(|| run.model.clone());
    }
    // In the order of tables, where the map has the names sorted.
    let mut order: Vec<String> = Vec::new();
    for model in plan.cells().iter().map(Cell::model) {
        if models.contains_key(&model) && !order.contains(&model) {
            order.push(model);
        }
    }

    let measure = &plan.measure;
    let setting = Setting {
        machine: Machine::here(),
        backend: side.name.clone(),
        program: hash_of(&side.command),
        threads: rayon::current_num_threads(),
        measure: measure.clone(),
        models: models.clone(),
    };
    let mut latency = Latency { setting, timed: Vec::new() };
    for path in [folder.latency_so_far(), folder.latency()] {
        let earlier = Latency::read_file(&path)?.filter(|of| of.setting == latency.setting);
        // Of both, that which has more.
        latency = earlier.filter(|of| of.timed.len() > latency.timed.len()).unwrap_or(latency);
    }
    let cases = tempfile::tempdir()
        .map_err(|source| LatencyError::Read { path: std::env::temp_dir(), source })?;
    let forward =
        measure.batch_sizes.iter().map(|&rows| (rows, vec![Work::Forward, Work::Prefill]));
    let turns: Vec<(usize, Vec<Work>)> =
        forward.chain([(measure.train_batch_size, vec![Work::Train])]).collect();
    for round in 0..measure.rounds {
        for (rows, works) in &turns {
            for model in &order {
                if stop.load(Ordering::Relaxed) {
                    return Ok(not_measured);
                }
                let turn = format!("{model}, {rows} rows");
                if not_measured.contains_key(&turn) {
                    continue;
                }
                if works.iter().all(|&work| latency.has(round, model, *rows, work)) {
                    continue;
                }
                note(&format!("round {} of {}: {turn}", round + 1, measure.rounds));
                let directory = cases.path().join(model);
                let batch = cases.path().join(format!("{model}-{rows}.json"));
                let error = |source: Box<dyn std::error::Error + Send + Sync>| {
                    LatencyError::Model { model: model.clone(), source }
                };
                write_case(&directory, &batch, &models[model], *rows, measure).map_err(error)?;
                let measured = match side.measure(&directory, &batch, works, measure.repeats) {
                    Ok(measured) => measured,
                    Err(source) => {
                        let reason = format!("{source:#}");
                        note(&format!("{turn} can't be measured: {reason}"));
                        not_measured.insert(turn, reason);
                        continue;
                    }
                };
                for (work, timing) in measured.measurements {
                    latency.timed.push(Timed {
                        round,
                        model: model.clone(),
                        batch_size: *rows,
                        work,
                        seconds: median(&timing.seconds),
                        peak_bytes: timing.peak_bytes,
                    });
                }
                latency.write(folder, &folder.latency_so_far())?;
            }
        }
        // Nobody is first in every round.
        if !order.is_empty() {
            order.rotate_left(1);
        }
    }
    // Of a measurement in which all failed, the one before is worth more.
    if !latency.timed.is_empty() {
        latency.write(folder, &folder.latency())?;
    }
    folder.remove_latency_so_far()?;
    Ok(not_measured)
}

/// The hash of a side's program; empty if it can't be read.
fn hash_of(command: &[String]) -> String {
    let program = command.first().and_then(|program| std::fs::read(program).ok());
    program.map_or(String::new(), |bytes| blake3::hash(&bytes).to_hex().to_string())
}

/// A model with weights as training starts with them, for what they are makes no difference to the time, and a batch of
/// random tokens. What is there already stays.
fn write_case(
    directory: &Path,
    batch: &Path,
    config: &T5Config,
    rows: usize,
    measure: &MeasureConfig,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    const SEED: u64 = 0;
    if !directory.exists() {
        ModelDirectory::new(directory).save(config, &config.init(SEED, &crate::device::cpu()))?;
    }
    if !batch.exists() {
        let lengths = [measure.input_length, measure.target_length];
        let random = BenchBatch::random(config.vocab_size, rows, lengths, 1, SEED);
        std::fs::write(batch, serde_json::to_vec(&random)?)?;
    }
    Ok(())
}
