//! What a run has written down in its folder, and the reports that are made of it.

use std::path::{Path, PathBuf};

use super::history::{History, Quantity};
use super::thinning::Sampled;
use super::{Fact, Report, ReportError, RunCurves, Status, Tile, si_count};
use crate::config::{RunConfig, TrainerConfig};
use crate::fine_tuning::{FineTuningConfig, FineTuningSummary, TaskResults};
use crate::json_lines::{JsonLines, LineError};
use crate::metrics::{MetricsError, MetricsRow, RollbackRow};
use crate::progress::{format_bytes, format_count};
use crate::run_folder::{RunFolder, RunFolderError};
use crate::run_record::{BURN_VERSION, RunRecord};
use crate::samples::{SampleRow, SamplesError};
use crate::summary::{self, SkippedLines, Summary};

/// What a run has written down. Its metrics and samples are read as they grow, each row once.
pub struct Recording {
    folder: RunFolder,
    metrics: JsonLines<MetricsRow>,
    history: History,
    samples: JsonLines<SampleRow>,
    /// By their steps.
    sampled: Sampled<Vec<SampleRow>>,
    /// Those of the newest step, which may not be all yet.
    newest_samples: Vec<SampleRow>,
}

/// What a run was told, and what it came to.
struct Settled {
    kind: Kind,
    /// None of a run from before there were records.
    record: Option<RunRecord>,
}

enum Kind {
    /// A run on text.
    Text { config: Box<RunConfig>, summary: Option<Summary> },
    /// A run on tasks.
    Tasks {
        config: Box<FineTuningConfig>,
        summary: Option<FineTuningSummary>,
        results: Option<TaskResults>,
    },
}

impl Settled {
    fn read(folder: &RunFolder) -> Result<Self, ReportError> {
        let path = folder.path();
        let kind = match FineTuningConfig::describes(path) {
            true => Kind::Tasks {
                config: Box::new(RunFolder::open_as(path)?.1),
                summary: summary::read(&folder.summary())?,
                results: TaskResults::read(folder)?,
            },
            false => Kind::Text {
                config: Box::new(RunFolder::open(path)?.1),
                summary: summary::read(&folder.summary())?,
            },
        };
        let record = match folder.record() {
            Err(RunFolderError::NotARun { .. } | RunFolderError::BeforeRecords { .. }) => None,
            record => Some(record?),
        };
        Ok(Self { kind, record })
    }

    fn name(&self) -> String {
        match &self.kind {
            Kind::Text { config, .. } => config.name(),
            Kind::Tasks { config, .. } => config.name(),
        }
    }

    /// How the run trains.
    fn trainer(&self) -> TrainerConfig {
        match &self.kind {
            Kind::Text { config, .. } => config.trainer(),
            Kind::Tasks { config, .. } => config.trainer(),
        }
    }

    fn configuration(&self) -> String {
        match &self.kind {
            Kind::Text { config, .. } => config.to_toml(),
            Kind::Tasks { config, .. } => config.to_toml(),
        }
    }

    /// The model that the run began with, if not one from its seed.
    fn init(&self) -> Option<String> {
        let directory = match &self.kind {
            Kind::Text { config, .. } => config.model.init.as_ref()?,
            Kind::Tasks { config, .. } => &config.model.path,
        };
        let hash = self.record.as_ref().and_then(|record| record.init.as_deref());
        let hash = hash.map(|hash| format!(" (BLAKE3 of its tensors {:.16}…)", hash));
        Some(format!("{}{}", directory.display(), hash.unwrap_or_default()))
    }

    /// How far the run is. Summaries don't tell: a run that goes on past its old end has one.
    fn status(&self, history: &History) -> Status {
        let (step, total) = (history.step(), self.trainer().training.steps);
        let patience = match &self.kind {
            Kind::Text { .. } => None,
            Kind::Tasks { config, .. } => config.patience,
        };
        let is_satisfied =
            patience.is_some_and(|patience| history.validations_behind_the_best() >= patience);
        Status { step, total, is_finished: step >= total || is_satisfied }
    }

    /// What was special about a run of several processes.
    fn together(&self) -> Option<String> {
        match &self.kind {
            Kind::Text { summary, .. } => {
                let summary = summary.as_ref()?;
                summary::together(summary.replicas, summary.exchange_share)
            }
            Kind::Tasks { summary, .. } => {
                let summary = summary.as_ref()?;
                summary::together(summary.replicas, summary.exchange_share)
            }
        }
    }

    /// What its best model made of the tasks, once it is finished.
    fn results(&self, history: &History) -> Option<TaskResults> {
        match &self.kind {
            Kind::Tasks { results, .. } if self.status(history).is_finished => results.clone(),
            _ => None,
        }
    }
}

impl Recording {
    /// That of the run in `folder`, of which nothing is read yet.
    pub fn new(folder: RunFolder) -> Self {
        Self {
            metrics: JsonLines::at(&folder.metrics()),
            history: History::default(),
            samples: JsonLines::at(&folder.samples()),
            sampled: Sampled::default(),
            newest_samples: Vec::new(),
            folder,
        }
    }

    /// Whether what was read is still what the folder says: a run that goes on from an earlier step drops rows.
    ///
    /// # Errors
    ///
    /// If a file can't be looked at.
    pub fn is_current(&self) -> Result<bool, ReportError> {
        let metrics = self.metrics.is_current();
        let metrics = metrics.map_err(|error| self.metrics_error(LineError::File(error)))?;
        let samples = self.samples.is_current();
        let samples = samples.map_err(|error| self.samples_error(LineError::File(error)))?;
        Ok(metrics && samples)
    }

    /// Reads what is new, and calls `visit` with each new row of the metrics. Nothing is new of files that aren't there:
    /// a run that was killed before its first step may have none.
    ///
    /// # Errors
    ///
    /// If a file can't be read, or names its line that is no row.
    pub fn read(&mut self, visit: &mut dyn FnMut(&MetricsRow)) -> Result<(), ReportError> {
        while let Some(row) = self.metrics.next() {
            let row = row.map_err(|error| self.metrics_error(error))?;
            self.history.push(&row);
            visit(&row);
        }
        while let Some(row) = self.samples.next() {
            let row = row.map_err(|error| self.samples_error(error))?;
            if self.newest_samples.first().is_some_and(|newest| newest.step != row.step) {
                self.sampled.push(std::mem::take(&mut self.newest_samples));
            }
            self.newest_samples.push(row);
        }
        Ok(())
    }

    fn metrics_error(&self, error: LineError) -> ReportError {
        MetricsError::at(&self.folder.metrics(), error).into()
    }

    fn samples_error(&self, error: LineError) -> ReportError {
        SamplesError::at(&self.folder.samples(), error).into()
    }

    /// Writes the report of what was read into the run's folder; see [`write_report`].
    ///
    /// # Errors
    ///
    /// If the folder isn't that of a run, a file in it can't be read, or one can't be written.
    pub fn write_report(&self) -> Result<(), ReportError> {
        let settled = Settled::read(&self.folder)?;
        let path = self.folder.path();
        let name = path.canonicalize().ok();
        let name = name.as_deref().unwrap_or(path).file_name();
        let title = name.map_or_else(|| settled.name(), |name| name.to_string_lossy().into_owned());
        let unigram_loss = match &settled.kind {
            Kind::Text { summary, .. } => summary.as_ref().map(|summary| summary.unigram_loss),
            Kind::Tasks { .. } => None,
        };
        let run = self.curves(title.clone(), &settled);
        let samples = self.sampled.rows().flatten().chain(&self.newest_samples);
        let report = Report {
            title,
            status: Some(settled.status(&self.history)),
            facts: self.facts(&settled),
            tiles: Tile::summary(&run, unigram_loss),
            configuration: settled.configuration(),
            samples: samples.cloned().collect(),
            runs: vec![run],
        };
        report.write(path)
    }

    fn curves(&self, name: String, settled: &Settled) -> RunCurves {
        let history = self.history.clone();
        RunCurves { name, tasks: settled.results(&history), history }
    }

    fn facts(&self, settled: &Settled) -> Vec<Fact> {
        let mut facts = Vec::new();
        let mut add = |name: &str, value: String| {
            facts.push(Fact { name: name.to_owned(), value });
        };
        let (trainer, start) = (settled.trainer(), self.history.start());
        add(
            "Model",
            match start {
                Some(start) => {
                    format!("{}, {} parameters", settled.name(), format_count(start.parameters))
                }
                None => settled.name(),
            },
        );
        if let Some(init) = settled.init() {
            add("Begun with", init);
        }
        if let Some(start) = start.filter(|start| !start.text.is_empty()) {
            let name = match settled.kind {
                Kind::Text { .. } => "Training text",
                Kind::Tasks { .. } => "Training examples",
            };
            add(name, start.text.clone());
        }
        add("Optimization", trainer.optimization());
        if let Some(start) = start {
            let mut machine = format!("{}, {} threads", start.backend, start.threads);
            if let Some(peak) = start.matrix_flops_per_second {
                machine.push_str(&format!(", {}FLOP/s in matrix products", si_count(peak)));
            }
            let peak = self.history.curve(Quantity::PeakMemory).and_then(|curve| curve.highest());
            if let Some(bytes) = peak {
                machine.push_str(&format!(", peak memory {}", format_bytes(bytes as u64)));
            }
            if start.replicas > 1 {
                machine.push_str(&format!(", {} replicas", start.replicas));
            }
            add("Machine", machine);
        }
        if let Some(row) = self.history.last_rollback() {
            let RollbackRow { number, step, diverged_at, quantity, skipped_steps } = row;
            let last = format!("last from step {diverged_at} ({quantity}) to {step}");
            add("Went back", format!("{number} times, {last}; {skipped_steps} steps passed over"));
        }
        add("Seed", trainer.seed.to_string());
        if let Some(start) = start {
            add("Software", format!("altup {}, Burn {BURN_VERSION}", start.version));
        }
        if let Some(together) = settled.together() {
            add("Together", together);
        }
        let skipped = settled.record.iter().flat_map(|record| &record.skipped).map(|skipped| {
            let SkippedLines { file, count, first } = skipped;
            format!("{count} of {} ({})", file.display(), first.join("; "))
        });
        let skipped: Vec<String> = skipped.collect();
        if !skipped.is_empty() {
            add("Left out", skipped.join("; "));
        }
        facts
    }
}

/// Writes the report of a run into its folder, from what lies there: `report.html` and `charts/*.svg`, each whole or
/// not at all. The page of a run that isn't finished says how far it is, and loads itself again every half minute.
///
/// # Errors
///
/// If the folder isn't that of a run, a file in it can't be read, or one can't be written.
pub fn write_report(folder: &Path) -> Result<(), ReportError> {
    let mut recording = Recording::new(RunFolder::at(folder));
    recording.read(&mut |_| ())?;
    recording.write_report()
}

/// Writes a report that compares runs into the folder `output`, from what lies in theirs.
///
/// # Errors
///
/// As [`write_report`].
pub fn write_comparison(runs: &[PathBuf], title: &str, output: &Path) -> Result<(), ReportError> {
    let (mut curves, mut facts, mut configuration) = (Vec::new(), Vec::new(), String::new());
    for path in runs {
        let folder = RunFolder::at(path);
        let settled = Settled::read(&folder)?;
        let mut recording = Recording::new(folder);
        recording.read(&mut |_| ())?;
        let name = path.file_name();
        let name = name.map_or_else(|| settled.name(), |name| name.to_string_lossy().into_owned());
        let init = settled.init().map(|init| format!(", begun with {init}")).unwrap_or_default();
        let value = format!("{}{init}, {}", settled.name(), settled.trainer().optimization());
        facts.push(Fact { name: name.clone(), value });
        configuration.push_str(&format!("# {name}\n{}\n", settled.configuration()));
        curves.push(recording.curves(name, &settled));
    }
    let report = Report {
        title: title.to_owned(),
        status: None,
        runs: curves,
        facts,
        tiles: Vec::new(),
        samples: Vec::new(),
        configuration,
    };
    report.write(output)
}
