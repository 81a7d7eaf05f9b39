//! The folder of a study, and where its runs are.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use altup_models::{DirectoryError, ModelDirectory};

use super::fine_tuning::PlannedFineTuning;
use super::job::Job;
use super::plan::{PlannedRun, StudyPlan};
use crate::config::{RunConfig, RunConfigError};
use crate::config_changes::{Difference, UNSET};
use crate::durable::{self, replace_file};
use crate::fine_tuning::FineTuningConfig;
use crate::folder_lock::{FolderLock, LockError};
use crate::run_folder::RunFolder;

/// The folder of a study:
///
/// ```text
/// study.toml       the file of the study, as it was last run
/// runs/            a run folder for each run; a finished one has its result.json, and a folder fine-tuning/ with a run
///                  folder for each task and seed that its model is fine-tuned on
/// logs/            what the processes of the runs wrote
/// configs/         the configuration of each run
/// latency.json     what was measured side by side, and latency.partial.json while that is done
/// results.json     a row for each run, and what they come to; results.csv has the rows
/// report.html      report.md, and charts/*.svg
/// lock             held while a study or one of its runs is at work
/// ```
#[derive(Clone, Debug)]
pub struct StudyFolder {
    path: PathBuf,
}

/// Where a run of a study, or a fine-tuning, is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunStatus {
    /// Not started, or without a checkpoint to go on from.
    New,
    /// It has checkpoints to go on from.
    Started,
    /// It is done.
    Finished,
}

impl RunStatus {
    /// That of the run in a folder.
    pub fn of(run: &RunFolder) -> Self {
        let is_step = |entry: io::Result<fs::DirEntry>| {
            entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with("step-"))
        };
        let has_checkpoint =
            || fs::read_dir(run.checkpoints()).is_ok_and(|mut entries| entries.any(is_step));
        if run.summary().exists() {
            Self::Finished
        } else if run.config().exists() && has_checkpoint() {
            Self::Started
        } else {
            Self::New
        }
    }
}

/// Why a study can't have its folder.
#[derive(Debug, thiserror::Error)]
pub enum StudyFolderError {
    /// A folder that is not a study's.
    #[error("{} is not the folder of a study (it has no study.toml): name a new folder", path.display())]
    NotAStudy {
        /// The folder.
        path: PathBuf,
    },
    /// Another study works in it, or runs that it started.
    #[error("{} is in use by a study, or by runs that it started: {holder}", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
        /// Who started it.
        holder: String,
    },
    /// Runs in the folder are no runs of this study any more.
    #[error(
        "{}: {}. Remove these runs with --prune, or name a new folder",
        path.display(), runs.join("; ")
    )]
    Changed {
        /// The folder.
        path: PathBuf,
        /// The runs, each with what has changed.
        runs: Vec<String>,
    },
    /// The configuration of a run can't be read.
    #[error(transparent)]
    Config(#[from] RunConfigError),
    /// The model that a run begins with can't be read.
    #[error(transparent)]
    Model(#[from] DirectoryError),
    /// A file or folder can't be read or written.
    #[error("cannot use {}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

impl StudyFolder {
    /// The folder `path`, whether or not it exists.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// Makes the folder, or takes one that is a study's, and locks it. Where it is locked, waits for as long as `patience`:
    /// the runs of a study that was killed are saving themselves.
    ///
    /// # Errors
    ///
    /// If it holds something else, if another process works in it, or if it can't be written.
    pub fn lock(&self, patience: Duration) -> Result<FolderLock, StudyFolderError> {
        let error = |source| StudyFolderError::File { path: self.path.clone(), source };
        let has_entries =
            fs::read_dir(&self.path).is_ok_and(|mut entries| entries.next().is_some());
        if has_entries && !self.study_file().exists() && !self.lock_file().exists() {
            return Err(StudyFolderError::NotAStudy { path: self.path.clone() });
        }
        fs::create_dir_all(&self.path).map_err(error)?;
        let started = Instant::now();
        loop {
            match FolderLock::take(&self.lock_file()) {
                Ok(lock) => return Ok(lock),
                Err(LockError::Held(_)) if started.elapsed() < patience => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(LockError::Held(holder)) => {
                    return Err(StudyFolderError::InUse { path: self.path.clone(), holder });
                }
                Err(LockError::File(source)) => return Err(error(source)),
            }
        }
    }

    /// The runs and fine-tunings that are not the plan's: that have another configuration than it says, or that it doesn't
    /// have.
    ///
    /// # Errors
    ///
    /// If one can't be looked at.
    pub fn changed(&self, plan: &StudyPlan) -> Result<Changes, StudyFolderError> {
        let (mut changed, mut models) = (Vec::new(), BTreeMap::new());
        remove_discarded(&self.runs())?;
        for name in names_in(&self.runs())? {
            remove_discarded(&self.fine_tunings(&name))?;
            let stored = self.run_folder(&name);
            let is_planned = |run: &&PlannedRun| run.name == name;
            let what = if !stored.config().exists() {
                match self.has_results(&name) {
                    true => Some("has results, and no config.toml that says what of".to_owned()),
                    false => continue, // Nothing was computed in it yet.
                }
            } else if let Some(planned) = plan.runs.iter().find(is_planned) {
                difference(&stored, &planned.config, &mut models)?
            } else {
                Some("is not in the study".to_owned())
            };
            match what {
                Some(what) => changed.push(Changed { folder: self.run(&name), name, what }),
                None => changed.extend(self.changed_fine_tunings(plan, &name)?),
            }
        }
        Ok(Changes(changed))
    }

    /// Refuses a folder with runs or fine-tunings that are not the plan's.
    ///
    /// # Errors
    ///
    /// Names them.
    pub fn refuse(&self, Changes(changed): &Changes) -> Result<(), StudyFolderError> {
        if changed.is_empty() {
            return Ok(());
        }
        let runs = changed.iter().map(|Changed { name, what, .. }| format!("{name} {what}"));
        Err(StudyFolderError::Changed { path: self.path.clone(), runs: runs.collect() })
    }

    /// Removes runs and fine-tunings that are not the plan's.
    ///
    /// # Errors
    ///
    /// Names what can't be removed.
    pub fn discard(&self, Changes(changed): Changes) -> Result<(), StudyFolderError> {
        for Changed { folder, name, .. } in changed {
            // What a removed run said is nothing that the next one of its name says. First, as nothing leads to it afterwards.
            for log in [self.log(&name), self.path.join("logs").join(&name)] {
                remove(&log)?;
            }
            discard(&folder)?;
        }
        Ok(())
    }

    /// Whether something in the folder of a run would be taken for what it came to.
    fn has_results(&self, name: &str) -> bool {
        let files = self.run_folder(name);
        [files.summary(), self.result(name), self.fine_tunings(name)]
            .iter()
            .any(|path| path.exists())
    }

    /// The fine-tunings of a run that are not the plan's.
    fn changed_fine_tunings(
        &self,
        plan: &StudyPlan,
        run: &str,
    ) -> Result<Vec<Changed>, StudyFolderError> {
        let mut changed = Vec::new();
        for name in names_in(&self.fine_tunings(run))? {
            let folder = self.fine_tunings(run).join(&name);
            let stored = RunFolder::at(&folder);
            let name = format!("{run}/{name}");
            let is_planned = |planned: &&PlannedFineTuning| planned.name() == name;
            let what = if !stored.config().exists() {
                if !stored.summary().exists() {
                    continue;
                }
                "has results, and no config.toml that says what of".to_owned()
            } else if let Some(planned) = plan.fine_tunings.iter().find(is_planned) {
                let config = FineTuningConfig::default().with_file(&stored.config())?;
                let mut differences = config.differences(&planned.config);
                // The model is the run's wherever the study lies, and examples are compared by content.
                differences.retain(|difference| !difference.is_place());
                if differences.is_empty() {
                    continue;
                }
                format!("was run with {}", joined(&differences))
            } else {
                "is not in the study".to_owned()
            };
            changed.push(Changed { folder, name, what });
        }
        Ok(changed)
    }

    /// Where a run is.
    pub fn status(&self, name: &str) -> RunStatus {
        RunStatus::of(&self.run_folder(name))
    }

    /// Writes the configuration of a job where its process reads it.
    ///
    /// # Errors
    ///
    /// Names what can't be written.
    pub fn write_config(&self, job: &Job) -> Result<PathBuf, StudyFolderError> {
        let path = self.path.join("configs").join(format!("{}.toml", job.name));
        self.write(&path, job.config.as_bytes())?;
        Ok(path)
    }

    /// Writes a file of the study, whole or not at all, and the folders above it.
    ///
    /// # Errors
    ///
    /// Names what can't be written.
    pub fn write(&self, path: &Path, contents: &[u8]) -> Result<(), StudyFolderError> {
        let write = || {
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder)?;
            }
            replace_file(path, contents)
        };
        write().map_err(|source| StudyFolderError::File { path: path.to_owned(), source })
    }

    /// Where the runs are.
    fn runs(&self) -> PathBuf {
        self.path.join("runs")
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder of a run.
    pub fn run(&self, name: &str) -> PathBuf {
        self.runs().join(name)
    }

    /// The folder of a run, and where everything in it lies.
    pub fn run_folder(&self, name: &str) -> RunFolder {
        RunFolder::at(&self.run(name))
    }

    /// Where the model of a run is fine-tuned.
    fn fine_tunings(&self, run: &str) -> PathBuf {
        self.run(run).join("fine-tuning")
    }

    /// The run folder of a fine-tuning.
    pub fn fine_tuning_folder(&self, planned: &PlannedFineTuning) -> RunFolder {
        RunFolder::at(&self.fine_tunings(&planned.run).join(planned.folder_name()))
    }

    /// What a finished run came to.
    pub fn result(&self, name: &str) -> PathBuf {
        self.run(name).join("result.json")
    }

    /// What the process of a run wrote.
    pub fn log(&self, name: &str) -> PathBuf {
        self.path.join("logs").join(format!("{name}.log"))
    }

    /// Removes charts that are none of these: of variants that the study no longer has.
    ///
    /// # Errors
    ///
    /// If the folder can't be read or a file not be removed.
    pub(super) fn keep_charts(&self, names: BTreeSet<&str>) -> Result<(), StudyFolderError> {
        let folder = self.path.join("charts");
        for name in names_in(&folder)? {
            if name.ends_with(".svg") && !names.contains(name.as_str()) {
                let path = folder.join(&name);
                fs::remove_file(&path).map_err(|source| StudyFolderError::File { path, source })?;
            }
        }
        Ok(())
    }

    /// Why the last process of a run has failed, as it said at its end.
    pub(super) fn failure(&self, name: &str) -> Option<String> {
        let log = fs::read_to_string(self.log(name)).ok()?;
        let last = log.lines().rev().find(|line| !line.trim().is_empty())?;
        last.strip_prefix("error: ").map(str::to_owned)
    }

    /// The file of the study.
    pub fn study_file(&self) -> PathBuf {
        self.path.join("study.toml")
    }

    /// What was measured side by side.
    pub fn latency(&self) -> PathBuf {
        self.path.join("latency.json")
    }

    /// The same while it is measured.
    pub(super) fn latency_so_far(&self) -> PathBuf {
        self.path.join("latency.partial.json")
    }

    /// Removes what was measured so far, when all of it is elsewhere.
    pub(super) fn remove_latency_so_far(&self) -> Result<(), StudyFolderError> {
        remove(&self.latency_so_far())
    }

    /// The results.
    pub fn results(&self) -> PathBuf {
        self.path.join("results.json")
    }

    fn lock_file(&self) -> PathBuf {
        self.path.join("lock")
    }
}

/// Runs and fine-tunings in a folder that are not a plan's.
#[derive(Debug)]
pub struct Changes(Vec<Changed>);

impl Changes {
    /// Whether a run, or a fine-tuning, is among them.
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|changed| changed.name == name)
    }
}

/// A run, or a fine-tuning, that is not the plan's any more.
#[derive(Debug)]
struct Changed {
    folder: PathBuf,
    name: String,
    /// Why, as in "is not in the study".
    what: String,
}

/// What the names of folders begin with that are being removed.
const DISCARDED: &str = ".discarded-";

/// Removes the folder of a run. It loses its name first: half removed, it would pass for a run that has less to show, and so
/// for one that is done.
fn discard(folder: &Path) -> Result<(), StudyFolderError> {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let discarded = folder.with_file_name(format!("{DISCARDED}{name}"));
    match fs::rename(folder, &discarded) {
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(StudyFolderError::File { path: folder.to_owned(), source }),
        Ok(()) => {}
    }
    remove(&discarded)
}

/// Removes what is left of discarded runs in a folder.
fn remove_discarded(folder: &Path) -> Result<(), StudyFolderError> {
    for name in all_names_in(folder)? {
        if name.starts_with(DISCARDED) {
            remove(&folder.join(name))?;
        }
    }
    Ok(())
}

fn remove(path: &Path) -> Result<(), StudyFolderError> {
    durable::remove(path).map_err(|source| StudyFolderError::File { path: path.to_owned(), source })
}

/// The names of what lies in a folder, sorted, but for what is being removed; none if it isn't there, or is a file.
fn names_in(folder: &Path) -> Result<Vec<String>, StudyFolderError> {
    let mut names = all_names_in(folder)?;
    names.retain(|name| !name.starts_with(DISCARDED));
    Ok(names)
}

fn all_names_in(folder: &Path) -> Result<Vec<String>, StudyFolderError> {
    let error = |source| StudyFolderError::File { path: folder.to_owned(), source };
    let mut names = Vec::new();
    match fs::read_dir(folder) {
        Ok(entries) => {
            for entry in entries {
                names.push(entry.map_err(error)?.file_name().to_string_lossy().into_owned());
            }
        }
        Err(source)
            if [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory].contains(&source.kind()) => {
        }
        Err(source) => return Err(error(source)),
    }
    names.sort();
    Ok(names)
}

/// What makes a stored run another one than that with the planned configuration, as in "was run with …"; none if it is
/// that one. `models` holds the hashes of model directories that are known already.
fn difference(
    stored: &RunFolder,
    planned: &RunConfig,
    models: &mut BTreeMap<PathBuf, String>,
) -> Result<Option<String>, StudyFolderError> {
    let config = RunConfig::default().with_file(&stored.config())?;
    let mut differences = config.differences(planned);
    // Texts may lie elsewhere by now: what runs were trained on is compared by content. Whether a tokenizer is named or trained
    // is no matter of where it lies, but a run that begins with a model names the model's.
    differences.retain(|difference| {
        let is_named = difference.was != UNSET && difference.is != UNSET;
        let is_of_model = config.model.init.is_some();
        !difference.is_place() || difference.key == "data.tokenizer" && !is_named && !is_of_model
    });
    if !differences.is_empty() {
        return Ok(Some(format!("was run with {}", joined(&differences))));
    }
    let begun_with = stored.record().ok().and_then(|record| record.init);
    let (Some(directory), Some(was)) = (&config.model.init, begun_with) else { return Ok(None) };
    if !models.contains_key(directory) {
        let is = ModelDirectory::new(directory).fingerprint()?.to_string();
        models.insert(directory.clone(), is);
    }
    let differs = models.get(directory) != Some(&was);
    let directory = directory.display();
    Ok(differs.then(|| format!("was begun with another model than is in {directory} now")))
}

/// Keys with both their values, in a line.
pub(super) fn joined(differences: &[Difference]) -> String {
    differences.iter().map(Difference::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::precision::Precision;
    use crate::run_record::RunRecord;
    use crate::study::plan::Overrides;

    #[test]
    fn one_study_works_in_a_folder_and_in_no_other_kind_of_folder() {
        let parent = tempfile::tempdir().unwrap();
        let folder = StudyFolder::new(&parent.path().join("study"));
        let lock = folder.lock(Duration::ZERO).unwrap();
        let refused = folder.lock(Duration::ZERO).unwrap_err();
        assert!(matches!(refused, StudyFolderError::InUse { .. }), "{refused}");
        let holder = format!("process {}", std::process::id());
        assert!(refused.to_string().contains(&holder), "{refused}");
        drop(lock);
        folder.lock(Duration::ZERO).unwrap();

        let other = parent.path().join("other");
        fs::create_dir(&other).unwrap();
        fs::write(other.join("notes.txt"), "mine").unwrap();
        let refused = StudyFolder::new(&other).lock(Duration::ZERO).unwrap_err();
        assert!(matches!(refused, StudyFolderError::NotAStudy { .. }), "{refused}");
        assert_eq!(fs::read_dir(&other).unwrap().count(), 1, "nothing is written there");
    }

    fn plan() -> StudyPlan {
        let file = Path::new("../../configs/studies/widths.toml");
        StudyPlan::read(file, &Overrides::default()).unwrap()
    }

    /// However far a removal got before it was cut off, what is left is no run of the study.
    #[test]
    fn a_run_that_is_half_removed_counts_for_nothing() {
        let parent = tempfile::tempdir().unwrap();
        let (folder, plan) = (StudyFolder::new(parent.path()), plan());
        let PlannedRun { name, config, .. } = &plan.runs[0];
        let run = folder.run_folder(name);
        let mut other = config.clone();
        other.optimizer.learning_rate *= 2.0;
        fs::create_dir_all(folder.run(name)).unwrap();
        run.write(&run.config(), other.to_toml().as_bytes()).unwrap();
        run.write(&run.summary(), b"{}").unwrap();
        let discarded = folder.runs().join(format!("{DISCARDED}tiny-dense-seed9"));
        fs::create_dir_all(&discarded).unwrap();
        let refused = || folder.refuse(&folder.changed(&plan).unwrap()).unwrap_err().to_string();
        let said = refused();
        assert!(said.contains("optimizer.learning_rate"), "{said}");
        assert!(!discarded.exists(), "what an earlier call was removing");

        for part in [run.summary(), folder.result(name), folder.fine_tunings(name)] {
            remove(&folder.run(name)).unwrap();
            fs::create_dir_all(&part).unwrap();
            let (said, what) = (refused(), format!("{name} has results, and no config.toml"));
            assert!(said.contains(&what) && said.contains("--prune"), "{said}");
            folder.write(&folder.log(name), b"error: diverged\n").unwrap();
            folder.discard(folder.changed(&plan).unwrap()).unwrap();
            assert_eq!(fs::read_dir(folder.runs()).unwrap().count(), 0);
            assert_eq!(folder.failure(name), None, "nor has the next run of this name failed");
        }
        fs::create_dir_all(folder.run(name)).unwrap();
        folder.refuse(&folder.changed(&plan).unwrap()).unwrap();
        // What a file manager leaves is no run.
        fs::write(folder.runs().join(".DS_Store"), "").unwrap();
        folder.refuse(&folder.changed(&plan).unwrap()).unwrap();
    }

    #[test]
    fn a_tokenizer_that_is_named_is_another_than_one_that_is_trained() {
        let parent = tempfile::tempdir().unwrap();
        let stored = RunFolder::at(parent.path());
        let mut config = plan().runs.remove(0).config;
        let stored_as = |config: &RunConfig| {
            stored.write(&stored.config(), config.to_toml().as_bytes()).unwrap();
        };
        let mut named = config.clone();
        named.data.tokenizer = Some("one.json".into());
        stored_as(&config);
        let of = |planned: &RunConfig| difference(&stored, planned, &mut BTreeMap::new()).unwrap();
        assert_eq!(of(&config), None);
        assert!(of(&named).unwrap().contains("data.tokenizer"));
        stored_as(&named);
        config.data.tokenizer = Some("moved/one.json".into());
        assert_eq!(of(&config), None, "contents are compared elsewhere");
    }

    #[test]
    fn a_run_that_began_with_another_model_is_another_run() {
        let parent = tempfile::tempdir().unwrap();
        let directory = ModelDirectory::new(parent.path().join("model"));
        let model = RunConfig::tiny_altup().model_config(64).unwrap();
        let save = |seed| directory.save(&model, &model.init(seed, &crate::device::cpu())).unwrap();
        let mut config = RunConfig::default();
        config.model.init = Some(directory.path().to_owned());
        let stored = RunFolder::at(parent.path());
        stored.write(&stored.config(), config.to_toml().as_bytes()).unwrap();
        save(0);
        let mut record = RunRecord::new(Precision::F32, "flex");
        record.init = Some(directory.fingerprint().unwrap().to_string());
        stored.write_record(&record).unwrap();
        let difference = || difference(&stored, &config, &mut BTreeMap::new()).unwrap();
        assert_eq!(difference(), None);
        save(1);
        let what = difference().unwrap();
        assert!(what.contains("begun with another model than is in "), "{what}");
    }
}
