//! Sides in turns: every round starts each of them once, so that what else the machine does falls on all.

use altup_models::{ModelDirectory, T5Config};
use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use super::models::{self, floor};
use super::{BenchBatch, Measured, Timing, Work};
use crate::machine::Machine;
use crate::precision::Precision;

/// How close the losses of two right programs are, relatively: bf16 keeps 8 bits.
fn loss_tolerance(precision: Precision) -> f64 {
    match precision {
        Precision::F32 => 1e-4,
        Precision::Bf16 | Precision::Bf16Weights => 1e-2,
    }
}

/// What to compare.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// Named sizes of models.
    pub sizes: Vec<String>,
    /// Models at each size; figures relate to the first.
    pub models: Vec<String>,
    /// What is timed.
    pub works: Vec<Work>,
    /// Rows of a batch.
    pub batch_size: usize,
    /// Tokens of an input.
    pub input_length: usize,
    /// Tokens of a target.
    pub target_length: usize,
    /// Tokens that decoding makes.
    pub new_tokens: usize,
    /// The vocabulary, where it is not the size's own.
    #[serde(default)]
    pub vocab_size: Option<usize>,
    /// How often every side is started.
    pub rounds: usize,
    /// How often a started side repeats each work.
    pub repeats: usize,
    /// The type of weights and activations on the backends.
    pub precision: Precision,
    /// Of the weights and the batch.
    pub seed: u64,
}

/// A program that measures, and how it is called here.
#[derive(Clone, Debug)]
pub struct Side {
    /// Its name in tables.
    pub name: String,
    /// The program and its arguments before `--model DIR --batch FILE --works … --repeats N`.
    pub command: Vec<String>,
    /// Whether it may lack a model, as another program may; it is then left out there.
    pub may_lack_models: bool,
}

/// All that was measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Comparison {
    /// What was compared.
    pub plan: Plan,
    /// The machine.
    pub machine: Machine,
    /// The commit of the program, as the caller gave it.
    pub commit: Option<String>,
    /// One of each side, model and size, in this order.
    pub entries: Vec<Entry>,
    /// Sides without a model, and why.
    pub left_out: Vec<LeftOut>,
}

/// A side on a model.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// The size of the model.
    pub size: String,
    /// The model.
    pub model: String,
    /// The side.
    pub side: String,
    /// What the side measured, over all rounds.
    pub measured: Measured,
    /// What each work takes by its arithmetic: operations, or bytes of weights for decoding.
    pub floors: BTreeMap<Work, f64>,
}

/// A side that lacks a model.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LeftOut {
    /// The size of the model.
    pub size: String,
    /// The model.
    pub model: String,
    /// The side.
    pub side: String,
    /// What the side said.
    pub reason: String,
}

impl Plan {
    /// Runs the comparison. `note` is told what is measured.
    ///
    /// # Errors
    ///
    /// If a name is unknown, if a side fails, or if two sides do not compute the same loss: nothing
    /// is timed then.
    pub fn run(
        &self,
        sides: &[Side],
        commit: Option<String>,
        note: &mut dyn FnMut(&str),
    ) -> anyhow::Result<Comparison> {
        ensure!(!sides.is_empty(), "there is no side to measure");
        ensure!(self.rounds > 0 && self.repeats > 0, "rounds and repeats must be at least 1");
        let folder = tempfile::tempdir().context("cannot make a folder for the models")?;
        let mut comparison = Comparison {
            plan: self.clone(),
            machine: Machine::here(),
            commit,
            entries: Vec::new(),
            left_out: Vec::new(),
        };
        for size in &self.sizes {
            for name in &self.models {
                let config = self.config(size, name)?;
                let case = folder.path().join(format!("{size}-{name}"));
                self.write_case(&config, &case)?;
                note(&format!("{size} {name}: the loss on every side"));
                self.check(size, name, &config, &case, sides, &mut comparison)?;
            }
        }
        for round in 1..=self.rounds {
            for entry in &mut comparison.entries {
                let side = sides.iter().find(|side| side.name == entry.side);
                let side = side.expect("an entry is of a side");
                let (size, model) = (&entry.size, &entry.model);
                note(&format!("round {round} of {}: {size} {model} on {}", self.rounds, side.name));
                let case = folder.path().join(format!("{size}-{model}"));
                let (model, batch) = (case.join("model"), case.join("batch.json"));
                let measured = side.measure(&model, &batch, &self.works, self.repeats)?;
                entry.measured.add(measured);
            }
        }
        Ok(comparison)
    }

    /// Writes the model directory, the batch and the [floors](Entry::floors) of each size and model into
    /// `folder/SIZE-MODEL`, and measures nothing.
    ///
    /// # Errors
    ///
    /// If a name is unknown, or if a folder is there already or can't be written.
    pub fn prepare(&self, folder: &Path) -> anyhow::Result<()> {
        for size in &self.sizes {
            for name in &self.models {
                let config = self.config(size, name)?;
                let case = folder.join(format!("{size}-{name}"));
                ensure!(
                    !case.exists(),
                    "{} is there already; choose another folder",
                    case.display()
                );
                self.write_case(&config, &case)?;
                let floors = self.floors(
                    &config,
                    &BenchBatch::read(&case.join("batch.json"), config.vocab_size)?,
                );
                std::fs::write(case.join("floors.json"), serde_json::to_vec(&floors)?)?;
            }
        }
        Ok(())
    }

    /// The configuration of a model.
    ///
    /// # Errors
    ///
    /// If a name is unknown.
    pub fn config(&self, size: &str, model: &str) -> anyhow::Result<T5Config> {
        let config = models::model(size, model).with_context(|| {
            let sizes: Vec<&str> = altup_models::size_names().collect();
            format!(
                "there is no model {model:?} of size {size:?}; models are {}, with any number of blocks, \
                 sizes {}",
                models::MODELS.join(", "),
                sizes.join(", ")
            )
        })?;
        let vocab_size = self.vocab_size.unwrap_or(config.vocab_size);
        let config = T5Config { vocab_size, ..config };
        config.validate()?;
        Ok(config)
    }

    /// A model directory and a batch of random tokens that are neither padding nor the end.
    fn write_case(&self, config: &T5Config, folder: &Path) -> anyhow::Result<()> {
        let model = config.init(self.seed, &crate::device::cpu());
        ModelDirectory::new(folder.join("model")).save(config, &model)?;
        let batch = BenchBatch::random(
            config.vocab_size,
            self.batch_size,
            [self.input_length, self.target_length],
            self.new_tokens,
            self.seed,
        );
        std::fs::write(folder.join("batch.json"), serde_json::to_vec(&batch)?)?;
        Ok(())
    }

    /// What each work takes by its arithmetic.
    fn floors(&self, config: &T5Config, batch: &BenchBatch) -> BTreeMap<Work, f64> {
        self.works.iter().map(|&work| (work, floor(config, work, batch).amount())).collect()
    }

    /// The loss on every side; all must agree with the first.
    fn check(
        &self,
        size: &str,
        name: &str,
        config: &T5Config,
        case: &Path,
        sides: &[Side],
        comparison: &mut Comparison,
    ) -> anyhow::Result<()> {
        let (model, file) = (case.join("model"), case.join("batch.json"));
        let batch = BenchBatch::read(&file, config.vocab_size)?;
        let floors = self.floors(config, &batch);
        let mut first: Option<(String, f64)> = None;
        for side in sides {
            let measured = match side.measure(&model, &file, &self.works, 0) {
                Ok(measured) => measured,
                Err(error) if side.may_lack_models => {
                    comparison.left_out.push(LeftOut {
                        size: size.to_owned(),
                        model: name.to_owned(),
                        side: side.name.clone(),
                        reason: format!("{error:#}"),
                    });
                    continue;
                }
                Err(error) => return Err(error),
            };
            let loss = measured.loss;
            let (other, expected) = first.get_or_insert_with(|| (side.name.clone(), loss));
            if (loss - *expected).abs() > loss_tolerance(self.precision) * expected.abs()
                || !loss.is_finite()
            {
                bail!(
                    "{size} {name}: {} computes a loss of {loss}, {other} of {expected}: they don't run \
                     the same model, so nothing is timed",
                    side.name
                );
            }
            comparison.entries.push(Entry {
                size: size.to_owned(),
                model: name.to_owned(),
                side: side.name.clone(),
                measured,
                floors: floors.clone(),
            });
        }
        Ok(())
    }
}

impl Measured {
    /// Adds the times of another round.
    fn add(&mut self, round: Self) {
        self.tokens = round.tokens;
        self.counted = round.counted;
        for (part, seconds) in round.parts {
            self.parts.entry(part).or_default().extend(seconds);
        }
        for (work, Timing { seconds, peak_bytes }) in round.measurements {
            let timing = self.measurements.entry(work).or_default();
            timing.seconds.extend(seconds);
            timing.peak_bytes = timing.peak_bytes.max(peak_bytes);
        }
    }
}

impl Side {
    /// Measures a model directory on a batch, both given by their paths.
    pub(crate) fn measure(
        &self,
        model: &Path,
        batch: &Path,
        works: &[Work],
        repeats: usize,
    ) -> anyhow::Result<Measured> {
        let works: Vec<&str> = works.iter().map(|work| work.name()).collect();
        let [program, arguments @ ..] = self.command.as_slice() else {
            bail!("the side {} has no program", self.name);
        };
        let mut command = Command::new(program);
        // The terminal's Ctrl-C is for this program, which stops behind what is being measured.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let output = command
            .args(arguments)
            .arg("--model")
            .arg(model)
            .arg("--batch")
            .arg(batch)
            .args(["--works", &works.join(","), "--repeats", &repeats.to_string()])
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot start {program}, of the side {}", self.name))?;
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            let last = errors.lines().last().unwrap_or("it printed no error");
            bail!("{} failed, {}: {last}", self.name, output.status);
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let json = text.lines().rev().find(|line| line.starts_with('{')).unwrap_or_default();
        serde_json::from_str(json)
            .with_context(|| format!("{} did not print a measurement but {text:?}", self.name))
    }
}
