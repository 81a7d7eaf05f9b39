//! The folder of a run, and where everything in it lies.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::config::{RunConfig, RunConfigError};
use crate::fine_tuning::FineTuningConfig;
use crate::metrics::replace_file;

/// The folder of a run:
///
/// ```text
/// config.toml      the resolved configuration, written first
/// tokenizer.json
/// metrics.jsonl    one line per row of metrics
/// checkpoints/     step-00001200/, …
/// model/           the trained model, a Hugging Face directory
/// tasks/           in fine-tuning: scores.json, and the predictions and worst mistakes for each task
/// summary.json     the figures of the finished run
/// report.html      the curves, and charts/*.svg
/// ```
#[derive(Clone, Debug)]
pub struct RunFolder {
    path: PathBuf,
}

/// Why a run can't have its folder.
#[derive(Debug, thiserror::Error)]
pub enum RunFolderError {
    /// The folder of a new run exists already.
    #[error(
        "{} exists already: continue that run with --resume {}, replace it with --overwrite, or \
         name another folder with --output",
        path.display(), path.display()
    )]
    Exists {
        /// The folder.
        path: PathBuf,
    },
    /// A folder that is to be replaced isn't that of a run.
    #[error("{} is not the folder of a run (it has no config.toml), so it is not replaced", path.display())]
    NotARun {
        /// The folder.
        path: PathBuf,
    },
    /// The name of a new run's folder is that of a file.
    #[error("{} is a file: name a folder for the run", path.display())]
    NotAFolder {
        /// The file.
        path: PathBuf,
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

impl RunFolder {
    /// Checks that a new run may have the folder `path`; nothing is written yet.
    ///
    /// # Errors
    ///
    /// If it exists and may not be replaced: without `overwrite`, or where it holds something other
    /// than a run.
    pub fn reserve(path: &Path, overwrite: bool) -> Result<Self, RunFolderError> {
        let folder = Self { path: path.to_owned() };
        let empty = || fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none());
        if path.is_file() {
            return Err(RunFolderError::NotAFolder { path: path.to_owned() });
        }
        if path.exists() && !empty() {
            if !overwrite {
                return Err(RunFolderError::Exists { path: path.to_owned() });
            }
            if !folder.config().exists() {
                return Err(RunFolderError::NotARun { path: path.to_owned() });
            }
        }
        Ok(folder)
    }

    /// The first of `base`, `base-2`, `base-3`, … that doesn't exist.
    pub fn fresh(base: &Path) -> Self {
        let numbered = (2..).map(|number| PathBuf::from(format!("{}-{number}", base.display())));
        let path = std::iter::once(base.to_owned()).chain(numbered).find(|path| !path.exists());
        Self { path: path.unwrap_or_else(|| base.to_owned()) }
    }

    /// Empties the folder and writes the configuration into it.
    ///
    /// # Errors
    ///
    /// Names what can't be written.
    pub fn create(&self, config: &RunConfig) -> Result<(), RunFolderError> {
        self.create_for(&config.to_toml())
    }

    /// Empties the folder and writes a configuration into it, that of any kind of run.
    ///
    /// # Errors
    ///
    /// Names what can't be written.
    pub fn create_for(&self, config_toml: &str) -> Result<(), RunFolderError> {
        let error = |source| RunFolderError::File { path: self.path.clone(), source };
        if self.path.exists() {
            fs::remove_dir_all(&self.path).map_err(error)?;
        }
        fs::create_dir_all(&self.path).map_err(error)?;
        self.write(&self.config(), config_toml.as_bytes())
    }

    /// The folder of a run that exists, and its configuration.
    ///
    /// # Errors
    ///
    /// If `path` isn't the folder of a run.
    pub fn open(path: &Path) -> Result<(Self, RunConfig), RunFolderError> {
        let folder = Self { path: path.to_owned() };
        let config = RunConfig::default().with_file(&folder.config())?;
        Ok((folder, config))
    }

    /// The folder of a fine-tuning run that exists, and its configuration.
    ///
    /// # Errors
    ///
    /// If `path` isn't the folder of a fine-tuning run.
    pub fn open_fine_tuning(path: &Path) -> Result<(Self, FineTuningConfig), RunFolderError> {
        let folder = Self { path: path.to_owned() };
        let config = FineTuningConfig::default().with_file(&folder.config())?;
        Ok((folder, config))
    }

    /// Writes a file of the run, whole or not at all.
    ///
    /// # Errors
    ///
    /// Names the file.
    pub fn write(&self, path: &Path, contents: &[u8]) -> Result<(), RunFolderError> {
        replace_file(path, contents)
            .map_err(|source| RunFolderError::File { path: path.to_owned(), source })
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The resolved configuration.
    pub fn config(&self) -> PathBuf {
        self.path.join("config.toml")
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> PathBuf {
        self.path.join("tokenizer.json")
    }

    /// The metrics.
    pub fn metrics(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    /// The checkpoints.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// The trained model.
    pub fn model(&self) -> PathBuf {
        self.path.join("model")
    }

    /// What came of each task in fine-tuning.
    pub fn tasks(&self) -> PathBuf {
        self.path.join("tasks")
    }

    /// The figures of the finished run.
    pub fn summary(&self) -> PathBuf {
        self.path.join("summary.json")
    }
}
