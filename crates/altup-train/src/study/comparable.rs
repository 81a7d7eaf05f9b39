//! Which runs may be compared: those that saw the same text, and were computed in the same way. That is found out before hours
//! are spent on a run that may not, and again of the results.

use std::collections::BTreeMap;

use altup_data::{DataError, TextTokenizer};

use super::fine_tuning::PlannedFineTuning;
use super::folder::{Changes, RunStatus, StudyFolder};
use super::plan::{PlannedRun, StudyPlan};
use super::results::RunResult;
use crate::config::RunConfig;
use crate::data_identity::{DataIdentity, IdentityError, check_texts};
use crate::precision::Precision;
use crate::progress::Progress;
use crate::run_data::{DataCache, identify_texts};
use crate::run_folder::{RunFolder, RunFolderError};
use crate::run_record::{NUMERICS, RunRecord};

/// Why runs may not be compared.
#[derive(Debug, thiserror::Error)]
pub enum Incomparable {
    /// A run that is to start would see other text than one that is finished.
    #[error(
        "{run} would not be trained on what {other} was trained on, and so not be compared with it"
    )]
    Text {
        /// The run.
        run: String,
        /// The finished one.
        other: String,
        /// What differs.
        source: Box<IdentityError>,
    },
    /// A text or a tokenizer of a run that is to start can't be read.
    #[error("cannot run {run}")]
    Data {
        /// The run.
        run: String,
        /// The cause.
        source: Box<DataError>,
    },
    /// The record of a finished run.
    #[error(transparent)]
    Record(#[from] RunFolderError),
    /// Runs that were to see the same text have seen other text.
    #[error(
        "{run} and {other} were trained on different tokens: the text, or the tokenizer made of it, has changed between \
         them; remove one of them"
    )]
    OtherData {
        /// A run.
        run: String,
        /// Another of its size.
        other: String,
    },
    /// A run that is to start would be computed otherwise than one that is finished.
    #[error(
        "{run} would be computed by {is}, {other} was by {was}: they are not compared; go on as it began, by --backend, \
         training.precision and the altup that it began with, or name a new folder"
    )]
    WouldBeOtherArithmetic {
        /// The run.
        run: String,
        /// What it would be computed by.
        is: String,
        /// The finished one.
        other: String,
        /// What that was computed by.
        was: String,
    },
    /// Runs that are compared were computed otherwise.
    #[error(
        "{run} was computed by {is}, {other} by {was}: they are not compared; remove one of them"
    )]
    OtherArithmetic {
        /// A run.
        run: String,
        /// What it was computed by.
        is: String,
        /// Another of the study.
        other: String,
        /// What that was computed by.
        was: String,
    },
}

/// What a run is computed by: the backend without the number of its device, the version of the arithmetic, and the type.
pub(super) fn arithmetic(backend: &str, numerics: u32, precision: Precision) -> String {
    let backend = backend.split(':').next().unwrap_or_default();
    format!("{backend}, arithmetic {numerics}, {}", precision.name())
}

/// That of what a record is of.
pub(super) fn arithmetic_of(record: &RunRecord) -> String {
    arithmetic(&record.backend, record.numerics, record.precision)
}

/// Where a run or fine-tuning is, that is not to be discarded.
fn status(files: &RunFolder, name: &str, discarded: &Changes) -> RunStatus {
    if discarded.has(name) { RunStatus::New } else { RunStatus::of(files) }
}

/// Checks that the runs which are left will be comparable with those that are finished, and be computed as those that have
/// begun, when the `discarded` ones are gone.
///
/// # Errors
///
/// Names the first that won't, with what differs.
pub fn check_planned(
    plan: &StudyPlan,
    folder: &StudyFolder,
    discarded: &Changes,
    backend: &str,
    cache: &DataCache,
    progress: &Progress,
) -> Result<(), Incomparable> {
    let status = |run: &PlannedRun| status(&folder.run_folder(&run.name), &run.name, discarded);
    let is_left = |run: &&PlannedRun| status(run) != RunStatus::Finished;
    let left: Vec<&PlannedRun> = plan.runs.iter().filter(is_left).collect();
    // Of each size the first that is finished.
    let mut of_size: BTreeMap<&str, (&str, DataIdentity)> = BTreeMap::new();
    for run in plan.runs.iter().filter(|run| status(run) != RunStatus::New) {
        let record = folder.run_folder(&run.name).record()?;
        for planned in &left {
            let precision = planned.config.training.precision;
            check_arithmetic(&planned.name, backend, precision, &run.name, &record)?;
        }
        if let (RunStatus::Finished, Some(data)) = (status(run), record.data) {
            of_size.entry(&run.cell.size).or_insert((&run.name, data));
        }
    }
    let mut checked: Vec<(&str, &RunConfig)> = Vec::new();
    for PlannedRun { name, cell, config, .. } in left {
        let Some((other, was)) = of_size.get(cell.size.as_str()) else { continue };
        let is_checked =
            |of: &(&str, &RunConfig)| of.0 == cell.size.as_str() && of.1.data == config.data;
        if checked.iter().any(is_checked) {
            continue;
        }
        let data = |source| Incomparable::Data { run: name.clone(), source: Box::new(source) };
        let text = |source| {
            let (run, other) = (name.clone(), (*other).to_owned());
            Incomparable::Text { run, other, source: Box::new(source) }
        };
        was.check_release().map_err(text)?;
        check_texts(&was.sources, &identify_texts(config, cache, progress).map_err(data)?)
            .map_err(text)?;
        // One that is trained is made of the same text.
        if let Some(file) = &config.data.tokenizer {
            let is = TextTokenizer::load(file).map_err(data)?.fingerprint().to_string();
            if is != was.tokenizer {
                return Err(text(IdentityError::Tokenizer { was: was.tokenizer.clone(), is }));
            }
        }
        checked.push((&cell.size, config));
    }
    Ok(())
}

/// Checks that the fine-tunings which are left will be computed as those that have begun, when the `discarded` ones are gone.
///
/// # Errors
///
/// Names the first that won't, with what differs.
pub fn check_planned_fine_tunings(
    plan: &StudyPlan,
    folder: &StudyFolder,
    discarded: &Changes,
    backend: &str,
) -> Result<(), Incomparable> {
    let status = |planned: &PlannedFineTuning| match discarded.has(&planned.run) {
        true => RunStatus::New,
        false => status(&folder.fine_tuning_folder(planned), &planned.name(), discarded),
    };
    let is_left = |planned: &&PlannedFineTuning| status(planned) != RunStatus::Finished;
    for begun in plan.fine_tunings.iter().filter(|planned| status(planned) != RunStatus::New) {
        let record = folder.fine_tuning_folder(begun).record()?;
        for planned in plan.fine_tunings.iter().filter(is_left) {
            let precision = planned.config.training.precision;
            check_arithmetic(&planned.name(), backend, precision, &begun.name(), &record)?;
        }
    }
    Ok(())
}

/// Checks that what is left will be computed as what has begun.
fn check_arithmetic(
    name: &str,
    backend: &str,
    precision: Precision,
    other: &str,
    record: &RunRecord,
) -> Result<(), Incomparable> {
    let (is, was) = (arithmetic(backend, NUMERICS, precision), arithmetic_of(record));
    if is == was {
        return Ok(());
    }
    let (run, other) = (name.to_owned(), other.to_owned());
    Err(Incomparable::WouldBeOtherArithmetic { run, is, other, was })
}

/// Checks that finished runs were trained on the same tokens, those of a size, so that those of a seed saw the same batches;
/// and that all were computed in the same way, where it is known.
///
/// # Errors
///
/// Names two that were not.
pub(super) fn check_results(runs: &[RunResult]) -> Result<(), Incomparable> {
    let mut seen: BTreeMap<&str, (&str, &str)> = BTreeMap::new();
    for run in runs {
        let data = run.data.as_str();
        let (other, first) = *seen.entry(&run.cell.size).or_insert((&run.name, data));
        if first != data {
            return Err(Incomparable::OtherData { run: run.name.clone(), other: other.into() });
        }
    }
    let mut known = runs.iter().filter(|run| !run.arithmetic.is_empty());
    let Some(first) = known.next() else { return Ok(()) };
    match known.find(|run| run.arithmetic != first.arithmetic) {
        None => Ok(()),
        Some(other) => Err(Incomparable::OtherArithmetic {
            run: other.name.clone(),
            is: other.arithmetic.clone(),
            other: first.name.clone(),
            was: first.arithmetic.clone(),
        }),
    }
}
