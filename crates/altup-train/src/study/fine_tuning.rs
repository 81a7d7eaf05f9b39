//! The benchmark tasks that a study fine-tunes its models on: the table `[fine_tuning]` of its file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use altup_data::tasks::Registry;
use serde::Deserialize;
use toml::{Table, Value};

use super::plan::{Cell, PlanError, PlannedRun};
use crate::fine_tuning::FineTuningConfig;

/// The table, as a file says it. `K` is what holds keys of a fine-tuning run's configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FineTuningEntry<K> {
    /// The tasks, each of which is fine-tuned on alone.
    #[serde(default)]
    tasks: Option<Vec<String>>,
    /// The folder of original files.
    #[serde(default)]
    data: Option<PathBuf>,
    #[serde(default)]
    steps: Option<u64>,
    /// Without any, a run's model is fine-tuned with the run's own seed.
    #[serde(default)]
    seeds: Option<Vec<u64>>,
    #[serde(default = "Option::default")]
    run: Option<K>,
    /// Keys of the runs on one task.
    #[serde(default = "BTreeMap::new")]
    by_task: BTreeMap<String, K>,
}

/// The fine-tuning of a run's model on a task.
#[derive(Clone, Debug)]
pub struct PlannedFineTuning {
    /// The run.
    pub run: String,
    /// What the run has in common with those of other seeds.
    pub cell: Cell,
    /// The seed of the run. That of the fine-tuning is in its configuration.
    pub run_seed: u64,
    /// The task.
    pub task: String,
    /// Its whole configuration. The model's path is relative to the folder of the study.
    pub config: FineTuningConfig,
}

impl PlannedFineTuning {
    /// The name of its folder among those of its run: `{task}-seed{n}`.
    pub fn folder_name(&self) -> String {
        format!("{}-seed{}", self.task, self.config.seed)
    }

    /// Its name in the study.
    pub fn name(&self) -> String {
        format!("{}/{}", self.run, self.folder_name())
    }
}

/// Makes a plan of the table.
pub(super) struct Reader<'a> {
    /// The file of the study.
    pub(super) file: &'a Path,
    /// The folder that paths in it are relative to.
    pub(super) folder: &'a Path,
    /// The table.
    pub(super) entry: &'a FineTuningEntry<Table>,
    /// The one that goes over it in a smoke run.
    pub(super) smoke: Option<&'a FineTuningEntry<Table>>,
    /// The folder of original files, in place of the table's.
    pub(super) data: Option<&'a Path>,
}

impl Reader<'_> {
    fn error<T>(&self, key: &str, problem: impl Into<String>) -> Result<T, PlanError> {
        let (path, key) = (self.file.to_owned(), format!("fine_tuning.{key}"));
        Err(PlanError::Value { path, key, problem: problem.into() })
    }

    /// The tables, those that go over others last.
    fn entries(&self) -> impl DoubleEndedIterator<Item = &FineTuningEntry<Table>> {
        std::iter::once(self.entry).chain(self.smoke)
    }

    /// What the models of `runs` are fine-tuned on: all tasks of a run before those of the next.
    ///
    /// # Errors
    ///
    /// Names the key of the table that makes no sense, or the fine-tuning that can't be.
    pub(super) fn plan(&self, runs: &[PlannedRun]) -> Result<Vec<PlannedFineTuning>, PlanError> {
        let tasks = self.tasks()?;
        let data = self.data()?;
        if self.entry.steps.is_none() {
            return self.error("steps", "is missing");
        }
        self.check_keys(&tasks)?;
        let seeds = self.entries().rev().find_map(|entry| entry.seeds.as_ref());
        if let Some(seeds) = seeds {
            let distinct: BTreeSet<&u64> = seeds.iter().collect();
            if seeds.is_empty() || distinct.len() < seeds.len() {
                return self.error("seeds", "must be different numbers, at least one");
            }
            if seeds.iter().any(|&seed| seed > i64::MAX as u64) {
                return self.error("seeds", "must be below 2^63");
            }
        }
        let mut planned = Vec::new();
        for run in runs {
            let own = [run.seed];
            for &seed in seeds.map_or(&own[..], Vec::as_slice) {
                for (task, path) in &tasks {
                    let mut config = FineTuningConfig { seed, ..FineTuningConfig::default() };
                    config.tasks.names = vec![path.clone()];
                    config.tasks.data.clone_from(&data);
                    config.model.path = Path::new("runs").join(&run.name).join("model");
                    planned.push(self.with_keys(PlannedFineTuning {
                        run: run.name.clone(),
                        cell: run.cell.clone(),
                        run_seed: run.seed,
                        task: task.clone(),
                        config,
                    })?);
                }
            }
        }
        Ok(planned)
    }

    /// The folder of original files.
    fn data(&self) -> Result<PathBuf, PlanError> {
        let named = self.entries().rev().find_map(|entry| entry.data.as_ref());
        let data = match (self.data, named) {
            (Some(data), _) => data.to_owned(),
            (None, Some(data)) => self.folder.join(data),
            (None, None) => {
                return self.error("data", "is missing: name the folder by --task-data");
            }
        };
        std::path::absolute(&data).map_err(|source| PlanError::Read { path: data, source })
    }

    /// The names of the tasks, each with what a configuration calls it: of a described one that is the path.
    fn tasks(&self) -> Result<Vec<(String, String)>, PlanError> {
        let mut tasks: Vec<(String, String)> = Vec::new();
        let named = self.entries().rev().find_map(|entry| entry.tasks.as_ref());
        for named in named.into_iter().flatten() {
            let path = match named.ends_with(".toml") {
                true => self.folder.join(named).to_string_lossy().into_owned(),
                false => named.clone(),
            };
            let task = Registry::standard().find(&path).map_err(|source| PlanError::Task {
                path: self.file.to_owned(),
                source: Box::new(source),
            })?;
            let name = task.name().to_owned();
            if tasks.iter().any(|(known, _)| *known == name) {
                return self.error("tasks", format!("has {name} twice"));
            }
            tasks.push((name, path));
        }
        match tasks.is_empty() {
            true => self.error("tasks", "must name at least one"),
            false => Ok(tasks),
        }
    }

    /// Checks that keys belong to a task, and are not those that the study sets itself.
    fn check_keys(&self, tasks: &[(String, String)]) -> Result<(), PlanError> {
        for entry in self.entries() {
            self.check_managed("run", entry.run.as_ref(), &["training.steps"])?;
            for (task, keys) in &entry.by_task {
                let is_asked = tasks.iter().any(|(name, _)| name == task);
                // A smoke run may leave tasks out.
                if !is_asked && self.smoke.is_none() {
                    let problem = format!("names {task:?}, which is none of the tasks");
                    return self.error("by_task", problem);
                }
                self.check_managed(&format!("by_task.{task}"), Some(keys), &[])?;
            }
        }
        Ok(())
    }

    fn check_managed(
        &self,
        place: &str,
        keys: Option<&Table>,
        more: &[&str],
    ) -> Result<(), PlanError> {
        let managed = ["seed", "epochs", "model.path", "tasks.names", "tasks.data"];
        let Some(keys) = keys else { return Ok(()) };
        let is_set = |key: &str| match key.split_once('.') {
            Some((table, key)) => keys
                .get(table)
                .and_then(Value::as_table)
                .is_some_and(|table| table.contains_key(key)),
            None => keys.contains_key(key),
        };
        match managed.iter().chain(more).find(|key| is_set(key)) {
            Some(key) => {
                let problem = "can't be given: it is the study's to set";
                self.error(&format!("{place}.{key}"), problem)
            }
            None => Ok(()),
        }
    }

    /// A fine-tuning with the keys of the tables.
    fn with_keys(&self, planned: PlannedFineTuning) -> Result<PlannedFineTuning, PlanError> {
        let error = |source| PlanError::Run {
            path: self.file.to_owned(),
            run: planned.name(),
            source: Box::new(source),
        };
        let mut config = planned.config.clone();
        for entry in self.entries() {
            config.training.steps = entry.steps.unwrap_or(config.training.steps);
            let layers = [entry.run.as_ref(), entry.by_task.get(&planned.task)];
            for keys in layers.into_iter().flatten() {
                config = config.with_keys(keys.clone()).map_err(error)?;
            }
        }
        config.validate().map_err(error)?;
        Ok(PlannedFineTuning { config, ..planned })
    }
}
