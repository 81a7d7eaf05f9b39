//! What a run is, as `run.json` in its folder says.

use altup_models::T5Config;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::config::{RunConfig, RunConfiguration};
use crate::data_identity::DataIdentity;
use crate::machine::Machine;
use crate::precision::Precision;
use crate::summary::SkippedLines;

/// The version of a run folder's layout: raise it when a folder of before can't be gone on with.
pub const RUN_FORMAT: u32 = 1;

/// The version of what a step computes: raise it when the same configuration, data and backend give other
/// weights or losses, in whatever bit. That is so after a change of the model's arithmetic or its initial
/// values, of the loss, of an optimizer, of dropout's numbers, or of a Burn release that computes
/// otherwise. What examples the data makes has a version of its own,
/// [`EXAMPLES_VERSION`](altup_data::pretraining::EXAMPLES_VERSION).
///
/// Sums in half types, and a GPU's Adafactor, have changed since 4 without another number: no release had them, and f32 on
/// a CPU is what it was.
pub const NUMERICS: u32 = 4;

/// The Burn that this release is built on.
pub const BURN_VERSION: &str = "0.22.1";

/// The content of `run.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// [`RUN_FORMAT`] of the release that started the run.
    pub format: u32,
    /// [`NUMERICS`] of the release that started the run.
    pub numerics: u32,
    /// The release of altup that started the run.
    pub altup: String,
    /// The Burn that it was built on.
    pub burn: String,
    /// When the run was started, in seconds since 1970.
    pub started: u64,
    /// The backend that it runs on, with the index of its device where there are several.
    pub backend: String,
    /// What it computes in.
    pub precision: Precision,
    /// The machine that it was started on.
    pub machine: Machine,
    /// The model; none until the data is prepared, which may decide its vocabulary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<T5Config>,
    /// Of a run that began with the model of a directory: the hash of its tensors, see
    /// [`ModelDirectory::fingerprint`](altup_models::ModelDirectory::fingerprint).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<String>,
    /// The data; none until it is prepared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<DataIdentity>,
    /// Lines, rows and ends of files that couldn't be read and were left out of the data, by file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<SkippedLines>,
    /// In fine-tuning, the hash of the training examples and of how they are mixed; none until they are prepared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub examples: Option<String>,
    /// In fine-tuning, for each task the hash of what it is validated on, and of how that is judged.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub validation: BTreeMap<String, String>,
}

/// Versions, as they stand in every record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// The version of the layout.
    #[serde(default)]
    pub format: u32,
    /// [`NUMERICS`].
    #[serde(default)]
    pub numerics: u32,
    /// The release of altup.
    #[serde(default = "before_versions")]
    pub altup: String,
}

/// What wrote records without versions.
fn before_versions() -> String {
    "0.1.0-dev".into()
}

/// Why a record can't be gone on with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "was written by altup {altup}, whose {what} has version {found}; this one, altup {here}, has version \
     {expected}: go on with the {}",
    advice(*.what, .found > .expected),
    here = env!("CARGO_PKG_VERSION")
)]
pub struct VersionError {
    /// What has a version.
    pub what: Versioned,
    /// Its version in the record.
    pub found: u32,
    /// That of this release.
    pub expected: u32,
    /// The release that wrote the record.
    pub altup: String,
}

fn advice(what: Versioned, is_newer: bool) -> &'static str {
    match (what, is_newer) {
        (Versioned::Format, true) => "newer one, or start a new run",
        (Versioned::Format, false) => "older one, or start a new run",
        (Versioned::Numerics, true) => "newer one, or start a new run from its model, by --init",
        (Versioned::Numerics, false) => "older one, or start a new run from its model, by --init",
    }
}

/// What has a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Versioned {
    /// The layout of files.
    Format,
    /// What a step computes.
    Numerics,
}

impl fmt::Display for Versioned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Format => "format of files",
            Self::Numerics => "arithmetic",
        })
    }
}

impl Versions {
    /// Those of this release, for a layout of version `format`.
    pub fn here(format: u32) -> Self {
        Self { format, numerics: NUMERICS, altup: env!("CARGO_PKG_VERSION").into() }
    }

    /// Checks that this release reads the layout.
    ///
    /// # Errors
    ///
    /// If it has another version.
    pub fn check_format(&self, expected: u32) -> Result<(), VersionError> {
        self.check(Versioned::Format, self.format, expected)
    }

    /// Checks that this release computes the same.
    ///
    /// # Errors
    ///
    /// If its arithmetic has another version.
    pub fn check_numerics(&self) -> Result<(), VersionError> {
        self.check(Versioned::Numerics, self.numerics, NUMERICS)
    }

    fn check(&self, what: Versioned, found: u32, expected: u32) -> Result<(), VersionError> {
        match found == expected {
            true => Ok(()),
            false => Err(VersionError { what, found, expected, altup: self.altup.clone() }),
        }
    }
}

impl RunRecord {
    /// That of a run that starts now, on `backend`.
    pub fn new(precision: Precision, backend: &str) -> Self {
        Self {
            format: RUN_FORMAT,
            numerics: NUMERICS,
            altup: env!("CARGO_PKG_VERSION").into(),
            burn: BURN_VERSION.into(),
            started: seconds_since_1970(),
            backend: backend.to_owned(),
            precision,
            machine: Machine::here(),
            model: None,
            init: None,
            data: None,
            skipped: Vec::new(),
            examples: None,
            validation: BTreeMap::new(),
        }
    }
}

/// A line of `config-history.jsonl`: the configuration from a step on, and what it ran on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HistoryRow<C = RunConfig> {
    /// The steps done before it held. A smaller step than in the line before says that the run went back.
    pub step: u64,
    /// When, in seconds since 1970.
    pub time: u64,
    /// The release of altup.
    pub altup: String,
    /// The Burn that it is built on.
    pub burn: String,
    /// The backend.
    pub backend: String,
    /// The machine.
    pub machine: Machine,
    /// The configuration.
    pub config: C,
}

impl<C: RunConfiguration> HistoryRow<C> {
    /// The configuration that holds from now on, behind `step`.
    pub fn now(step: u64, config: &C, backend: &str) -> Self {
        Self {
            step,
            time: seconds_since_1970(),
            altup: env!("CARGO_PKG_VERSION").into(),
            burn: BURN_VERSION.into(),
            backend: backend.to_owned(),
            machine: Machine::here(),
            config: config.clone(),
        }
    }

    /// Whether it says the same as another of another time.
    pub(crate) fn repeats(&self, other: &Self) -> bool {
        let timeless = Self { step: other.step, time: other.time, ..self.clone() };
        timeless == *other && self.step >= other.step
    }
}

/// The time, in seconds since 1970.
pub(crate) fn seconds_since_1970() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_and_newer_versions_are_refused_by_name() {
        Versions::here(1).check_format(1).unwrap();
        Versions::here(1).check_numerics().unwrap();
        let newer = Versions { format: 2, numerics: NUMERICS + 1, altup: "9.9.9".into() };
        let message = newer.check_format(1).unwrap_err().to_string();
        assert!(message.contains("altup 9.9.9, whose format of files has version 2"), "{message}");
        assert!(message.contains("go on with the newer one"), "{message}");
        let message = newer.check_numerics().unwrap_err().to_string();
        assert!(message.contains("arithmetic") && message.contains("--init"), "{message}");
        let older = Versions { format: 0, numerics: 0, altup: "0.0.1".into() };
        let message = older.check_format(1).unwrap_err().to_string();
        assert!(message.contains("go on with the older one"), "{message}");
    }

    #[test]
    fn a_record_survives_its_json() {
        let mut record = RunRecord::new(Precision::F32, "flex");
        record.model = Some(RunConfig::tiny_altup().model_config(2048).unwrap());
        let json = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<RunRecord>(&json).unwrap(), record);
    }
}
