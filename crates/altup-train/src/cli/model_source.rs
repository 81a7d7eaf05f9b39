//! The model that a command works on: a model directory, the trained model of a run, or a model on the hub.

use altup_data::TextTokenizer;
use altup_models::{HubName, ModelDirectory, T5, T5Config};
use altup_train::checkpoint::Checkpoints;
use altup_train::fine_tuning::FineTuningConfig;
use altup_train::process::quoted;
use altup_train::run_folder::RunFolder;
use anyhow::Context;
use burn::tensor::Device;
use std::path::{Path, PathBuf};

use super::download::DownloadBars;
use super::output;

/// Where a model lies.
pub(super) struct ModelSource {
    /// Its directory.
    pub(super) directory: PathBuf,
    /// The folder of the run that trained it, if `--model` named one.
    pub(super) run: Option<PathBuf>,
}

impl ModelSource {
    /// The model at `path`: that of a run, where `path` is the folder of one; that of this name on the hub, where
    /// there is nothing.
    pub(super) fn find(path: &Path) -> anyhow::Result<Self> {
        if path.join("config.json").exists() {
            return Ok(Self { directory: path.to_owned(), run: None });
        }
        let name = path.to_str().filter(|name| !path.exists() && HubName::parse(name).is_some());
        if let Some(name) = name {
            let mut bars = DownloadBars::default();
            let directory = ModelDirectory::find(name, &mut |progress| bars.show(progress))?;
            return Ok(Self { directory: directory.path().to_owned(), run: None });
        }
        let run = RunFolder::find(path).with_context(|| {
            format!("{} is neither a model directory nor the folder of a run", path.display())
        })?;
        let command = if FineTuningConfig::describes(path) { "finetune" } else { "train" };
        anyhow::ensure!(
            run.model().exists(),
            "the run {} has no trained model yet: finish it with `altup {command} --resume {}`",
            path.display(),
            quoted(&path.to_string_lossy())
        );
        if !run.summary().exists() {
            output::note(&format!(
                "warning: the run {} goes on: its model is that of an earlier end (`altup convert --checkpoint last` has \
                 what it is at now)",
                path.display()
            ));
        }
        Ok(Self { directory: run.model(), run: Some(path.to_owned()) })
    }

    pub(super) fn load(&self, device: &Device) -> anyhow::Result<(T5Config, T5)> {
        Ok(ModelDirectory::new(&self.directory).load(device)?)
    }

    pub(super) fn tokenizer(&self) -> anyhow::Result<TextTokenizer> {
        Ok(TextTokenizer::load(&ModelDirectory::new(&self.directory).tokenizer())?)
    }
}

/// A checkpoint of a run: that of a step, or `last`. The run's folder has its tokenizer.
pub(super) fn from_checkpoint(
    run: &Path,
    checkpoint: &str,
    device: &Device,
) -> anyhow::Result<(T5Config, T5)> {
    let step = match checkpoint {
        "last" => None,
        step => Some(step.parse().with_context(|| {
            format!("--checkpoint {step}: must be the step of a checkpoint, or last")
        })?),
    };
    let folder = RunFolder::find(run).with_context(|| {
        format!("--checkpoint needs the folder of a run, and {} is none", run.display())
    })?;
    let record = folder.record()?;
    let config =
        record.model.with_context(|| format!("the run {} has no model yet", run.display()))?;
    // Nothing is removed where nothing is written.
    let checkpoints = Checkpoints::new(folder.checkpoints(), usize::MAX);
    let model = checkpoints.model(step, config.build(device))?;
    Ok((config, model))
}
