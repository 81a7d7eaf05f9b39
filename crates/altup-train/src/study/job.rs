//! What the processes of a study do: runs, and fine-tunings of their models.

use super::fine_tuning::PlannedFineTuning;
use super::folder::{StudyFolder, StudyFolderError};
use super::plan::PlannedRun;
use crate::run_folder::RunFolder;

/// A process of a study.
#[derive(Clone, Debug)]
pub struct Job {
    /// Its name in the study.
    pub name: String,
    /// Jobs of a group differ by their seeds alone, and take about the same time.
    pub group: String,
    /// What this program is told to do.
    pub command: &'static str,
    /// The folder of its run.
    pub folder: RunFolder,
    /// Optimizer steps.
    pub steps: u64,
    /// Floating-point operations, nearly.
    pub cost: f64,
    /// Its configuration, as TOML.
    pub config: String,
}

impl PlannedRun {
    /// The run as a job.
    pub fn job(&self, folder: &StudyFolder) -> Job {
        Job {
            name: self.name.clone(),
            group: self.cell.to_string(),
            command: "train",
            folder: folder.run_folder(&self.name),
            steps: self.config.training.steps,
            cost: self.cost(),
            config: self.config.to_toml(),
        }
    }
}

impl PlannedFineTuning {
    /// The fine-tuning as a job.
    ///
    /// # Errors
    ///
    /// If the current folder, which a relative path of the study's is in, is not known.
    pub fn job(&self, folder: &StudyFolder) -> Result<Job, StudyFolderError> {
        let mut config = self.config.clone();
        config.model.path = folder.path().join(&config.model.path);
        config
            .make_absolute()
            .map_err(|source| StudyFolderError::File { path: config.model.path.clone(), source })?;
        let training = &config.training;
        let examples = training.batch_size * training.gradient_accumulation;
        Ok(Job {
            name: self.name(),
            group: format!("{}/{}", self.cell, self.task),
            command: "finetune",
            folder: folder.fine_tuning_folder(self),
            steps: training.steps,
            // Of models that differ, by their lengths alone: those of a group go by each other's time.
            cost: (examples * config.tasks.input_length) as f64 * training.steps as f64,
            config: config.to_toml(),
        })
    }
}
