//! What a model writes for the same texts as it learns: `samples.jsonl` in the folder of a run.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use altup_data::{DataError, TextTokenizer};
use altup_models::Decode;
use serde::{Deserialize, Serialize};

use crate::filling::{FillError, fill};
use crate::metrics::replace_file;

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

/// The samples of a run; none if there is no file.
///
/// # Errors
///
/// Names the file, and the first line that is no sample.
pub fn read(path: &Path) -> Result<Vec<SampleRow>, SamplesError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(SamplesError::File { path: path.to_owned(), source }),
    };
    let row = |(index, line)| {
        serde_json::from_str(line).map_err(|source| SamplesError::Row {
            path: path.to_owned(),
            line: index + 1,
            source,
        })
    };
    text.lines().enumerate().map(row).collect()
}

/// Puts the samples of a step into the file, in the place of those of this step and later ones: a run that goes on
/// from an earlier step writes them a second time. The file is replaced whole.
///
/// # Errors
///
/// Names the file.
pub fn record(path: &Path, step: u64, rows: &[SampleRow]) -> Result<(), SamplesError> {
    let mut all = read(path)?;
    all.retain(|row| row.step < step);
    all.extend_from_slice(rows);
    let error = |source| SamplesError::File { path: path.to_owned(), source };
    let mut text = String::new();
    for row in &all {
        text.push_str(&serde_json::to_string(row).map_err(|source| error(source.into()))?);
        text.push('\n');
    }
    replace_file(path, text.as_bytes()).map_err(error)
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

    /// Fills the blanks of all texts.
    ///
    /// # Errors
    ///
    /// As [`fill`].
    pub fn fill<D: Decode>(
        &self,
        model: &D,
        tokenizer: &TextTokenizer,
        step: u64,
    ) -> Result<Vec<SampleRow>, FillError> {
        let tokens: Vec<Vec<u32>> = self.texts.iter().map(|(_, tokens)| tokens.clone()).collect();
        let filled = fill(model, tokenizer, &tokens, Self::NEW_TOKENS)?;
        let rows = self.texts.iter().zip(filled).map(|((prompt, _), filled)| {
            let filled = tokenizer.decode(&filled.text, false)?;
            Ok(SampleRow { step, prompt: prompt.clone(), filled })
        });
        rows.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(step: u64, filled: &str) -> SampleRow {
        SampleRow { step, prompt: "a <extra_id_0> c".into(), filled: filled.into() }
    }

    #[test]
    fn samples_of_a_step_that_is_done_again_replace_the_first_ones() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("samples.jsonl");
        assert_eq!(read(&path).unwrap(), []);
        record(&path, 10, &[row(10, "a b c")]).unwrap();
        record(&path, 20, &[row(20, "a b2 c")]).unwrap();
        record(&path, 30, &[row(30, "a b3 c")]).unwrap();
        // Resumed from step 15.
        record(&path, 20, &[row(20, "again")]).unwrap();
        assert_eq!(read(&path).unwrap(), [row(10, "a b c"), row(20, "again")]);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn a_broken_line_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("samples.jsonl");
        record(&path, 10, &[row(10, "a b c")]).unwrap();
        let text = fs::read_to_string(&path).unwrap() + "{}\n";
        fs::write(&path, text).unwrap();
        let message = read(&path).unwrap_err().to_string();
        assert!(message.ends_with("samples.jsonl, line 2: not a sample"), "{message}");
    }
}
