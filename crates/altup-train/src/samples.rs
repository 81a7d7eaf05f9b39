//! What a model writes for the same texts as it learns: `samples.jsonl` in the folder of a run.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use altup_data::{DataError, TextTokenizer};
use altup_models::Decode;
use serde::{Deserialize, Serialize};

use crate::checkpoint::RunState;
use crate::durable::replace_file;
use crate::filling::{FillError, fill};
use crate::json_lines::{JsonLines, LineError};

/// A text with blanks, and what the model made of it at a step. A line of `samples.jsonl`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampleRow {
    /// Optimizer steps done.
    pub step: u64,
    /// The text that the model was given, a sentinel such as `<extra_id_0>` for each blank.
    pub prompt: String,
    /// The same text with its blanks filled.
    pub filled: String,
}

/// Why samples can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SamplesError {
    /// The file system refused.
    #[error("cannot use {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A line is no sample.
    #[error("{}, line {line}: not a sample", path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// What is wrong with the line.
        source: serde_json::Error,
    },
}

impl SamplesError {
    pub(crate) fn at(path: &Path, error: LineError) -> Self {
        let path = path.to_owned();
        match error {
            LineError::File(source) => Self::File { path, source },
            LineError::Row { line, source } => Self::Row { path, line, source },
        }
    }
}

/// The samples of a run; none if there is no file. A last line that isn't whole is left out.
///
/// # Errors
///
/// Names the file, and the first line that is no sample.
pub fn read(path: &Path) -> Result<Vec<SampleRow>, SamplesError> {
    let mut lines = JsonLines::at(path);
    let mut rows: Vec<SampleRow> =
        lines.by_ref().collect::<Result<_, _>>().map_err(|error| SamplesError::at(path, error))?;
    rows.extend(lines.unfinished());
    Ok(rows)
}

/// The file of a run's samples, which grows.
#[derive(Debug)]
pub struct SamplesLog {
    path: PathBuf,
    /// The step of the last samples; none without any.
    last: Option<u64>,
    /// To append to; none where the file ends within a line.
    file: Option<File>,
}

impl SamplesLog {
    /// Opens the file `path` of a run that is where `state` says; it need not exist. Samples of later steps are dropped, and
    /// those of this step if its validation is still due: they come again.
    ///
    /// # Errors
    ///
    /// Names the file, and the first line that is no sample.
    pub fn open(path: &Path, state: &RunState) -> Result<Self, SamplesError> {
        let mut log = Self { path: path.to_owned(), last: None, file: None };
        let first_to_come = state.step + u64::from(!state.validation_is_due);
        let mut lines = JsonLines::<SampleRow>::at(path);
        let mut is_whole = true;
        for row in lines.by_ref() {
            let step = row.map_err(|error| SamplesError::at(path, error))?.step;
            match step < first_to_come {
                true => log.last = Some(step),
                false => is_whole = false,
            }
        }
        match is_whole && !lines.is_torn() {
            true => log.file = Some(log.open_end().map_err(|source| log.error(source))?),
            false => log.replace(first_to_come, &[])?,
        }
        Ok(log)
    }

    /// Replaces the samples of `step` and later ones.
    fn replace(&mut self, step: u64, rows: &[SampleRow]) -> Result<(), SamplesError> {
        let mut all = read(&self.path)?;
        all.retain(|row| row.step < step);
        all.extend_from_slice(rows);
        let replaced = text(&all)
            .and_then(|text| replace_file(&self.path, text.as_bytes()))
            .and_then(|()| self.open_end());
        self.file = Some(replaced.map_err(|source| self.error(source))?);
        Ok(())
    }

    fn open_end(&self) -> io::Result<File> {
        OpenOptions::new().create(true).append(true).open(&self.path)
    }

    fn error(&self, source: io::Error) -> SamplesError {
        SamplesError::File { path: self.path.clone(), source }
    }

    /// Puts the samples of a step into the file, in the place of those of this step and later ones: a run that goes on
    /// from an earlier step writes them a second time.
    ///
    /// # Errors
    ///
    /// Names the file.
    pub fn record(&mut self, step: u64, rows: &[SampleRow]) -> Result<(), SamplesError> {
        // Until they are written, the file may end within a line.
        match self.file.take().filter(|_| self.last.is_none_or(|last| last < step)) {
            Some(mut file) => {
                let appended = text(rows)
                    .and_then(|text| file.write_all(text.as_bytes()))
                    .and_then(|()| file.sync_data());
                appended.map_err(|source| self.error(source))?;
                self.file = Some(file);
            }
            None => self.replace(step, rows)?,
        }
        self.last = Some(step);
        Ok(())
    }
}

/// Rows as lines.
fn text(rows: &[SampleRow]) -> io::Result<String> {
    let mut text = String::new();
    for row in rows {
        text.push_str(&serde_json::to_string(row)?);
        text.push('\n');
    }
    Ok(text)
}

/// The texts that a run's samples are made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SamplePrompts {
    /// Each as people see it, and as tokens without an end token.
    texts: Vec<(String, Vec<u32>)>,
}

impl SamplePrompts {
    /// How many tokens of a text are shown to the model at most.
    const LONGEST: usize = 48;
    /// How many tokens the model may write.
    const NEW_TOKENS: usize = 48;

    /// `written` are texts with `<extra_id_0>` and so on for their blanks, `examples` inputs of validation examples,
    /// of which the beginning is taken.
    ///
    /// # Errors
    ///
    /// If a text can't be tokenised.
    pub fn new(
        written: &[String],
        examples: impl IntoIterator<Item = Vec<u32>>,
        tokenizer: &TextTokenizer,
    ) -> Result<Self, DataError> {
        let mut texts = Vec::new();
        for text in written {
            texts.push((text.clone(), tokenizer.encode(text)?));
        }
        for mut input in examples {
            input.truncate(Self::LONGEST);
            input.retain(|&token| token != tokenizer.eos_id());
            texts.push((tokenizer.decode(&input, false)?, input));
        }
        Ok(Self { texts })
    }

    /// Fills the blanks of all texts. Once it is to stop, it ends before the next token, and gives nothing.
    ///
    /// # Errors
    ///
    /// As [`fill`].
    pub fn fill<D: Decode>(
        &self,
        model: &D,
        tokenizer: &TextTokenizer,
        step: u64,
        stop: &AtomicBool,
    ) -> Result<Option<Vec<SampleRow>>, FillError> {
        let tokens: Vec<Vec<u32>> = self.texts.iter().map(|(_, tokens)| tokens.clone()).collect();
        let filled = fill(model, tokenizer, &tokens, Self::NEW_TOKENS, stop)?;
        let Some(filled) = filled else { return Ok(None) };
        let rows = self.texts.iter().zip(filled).map(|((prompt, _), filled)| {
            let filled = tokenizer.decode(&filled.text, false)?;
            Ok(SampleRow { step, prompt: prompt.clone(), filled })
        });
        rows.collect::<Result<_, _>>().map(Some)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn row(step: u64, filled: &str) -> SampleRow {
        SampleRow { step, prompt: "a <extra_id_0> c".into(), filled: filled.into() }
    }

    fn open(path: &Path, step: u64) -> SamplesLog {
        SamplesLog::open(path, &RunState { step, ..RunState::default() }).unwrap()
    }

    #[test]
    fn samples_of_a_step_that_is_done_again_replace_the_first_ones() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("samples.jsonl");
        assert_eq!(read(&path).unwrap(), []);
        let mut log = open(&path, 0);
        for (step, filled) in [(10, "a b c"), (20, "a b2 c"), (30, "a b3 c")] {
            log.record(step, &[row(step, filled)]).unwrap();
        }
        assert_eq!(read(&path).unwrap().len(), 3);
        // Gone back to step 15.
        log.record(20, &[row(20, "again"), row(20, "and another")]).unwrap();
        log.record(30, &[row(30, "a b4 c")]).unwrap();
        let expected =
            [row(10, "a b c"), row(20, "again"), row(20, "and another"), row(30, "a b4 c")];
        assert_eq!(read(&path).unwrap(), expected);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn a_run_that_goes_on_drops_what_lies_behind_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("samples.jsonl");
        let mut log = open(&path, 0);
        (1..=4).for_each(|n| log.record(10 * n, &[row(10 * n, "a b c")]).unwrap());
        let steps = || read(&path).unwrap().iter().map(|row| row.step).collect::<Vec<_>>();
        let mut log = open(&path, 35);
        assert_eq!(steps(), [10, 20, 30]);
        log.record(50, &[row(50, "a d c")]).unwrap();
        assert_eq!(steps(), [10, 20, 30, 50]);
        open(&path, 30);
        assert_eq!(steps(), [10, 20, 30], "its validation is done");
        let state = RunState { step: 30, validation_is_due: true, ..RunState::default() };
        SamplesLog::open(&path, &state).unwrap();
        assert_eq!(steps(), [10, 20]);
    }

    #[test]
    fn a_torn_line_is_left_out_and_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("samples.jsonl");
        open(&path, 0).record(10, &[row(10, "a b c")]).unwrap();
        let whole = fs::read_to_string(&path).unwrap();
        fs::write(&path, whole.clone() + &whole[..20]).unwrap();
        assert_eq!(read(&path).unwrap(), [row(10, "a b c")]);
        open(&path, 10).record(20, &[row(20, "a d c")]).unwrap();
        assert_eq!(read(&path).unwrap(), [row(10, "a b c"), row(20, "a d c")]);
        assert!(fs::read_to_string(&path).unwrap().starts_with(&whole));
    }

    #[test]
    fn a_broken_line_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("samples.jsonl");
        open(&path, 0).record(10, &[row(10, "a b c")]).unwrap();
        let text = fs::read_to_string(&path).unwrap() + "{}\n";
        fs::write(&path, text).unwrap();
        let message = read(&path).unwrap_err().to_string();
        assert!(message.ends_with("samples.jsonl, line 2: not a sample"), "{message}");
        let message = SamplesLog::open(&path, &RunState::default()).unwrap_err().to_string();
        assert!(message.ends_with("samples.jsonl, line 2: not a sample"), "{message}");
    }
}
