//! Examples as tokens.

use rayon::prelude::*;

use super::{Dataset, Example, TaskError};
use crate::{DataError, TextTokenizer};

/// The examples of a task as tokens, inputs and targets each with the end token behind them.
#[derive(Clone, Debug)]
pub struct TokenizedTask {
    /// The task.
    pub name: String,
    /// The examples, in the order of the files.
    pub examples: Vec<crate::Example>,
    /// How many inputs were longer than they may be. What is too much is missing at their end, as in T5.
    pub truncated: usize,
}

/// How long examples may be, in tokens, the end token included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxLengths {
    /// Inputs are cut to this.
    pub input: usize,
    /// Targets are never cut: longer ones are an error. `None` takes them as they come.
    pub target: Option<usize>,
}

impl Default for MaxLengths {
    /// T5's 512 for inputs, targets as they come.
    fn default() -> Self {
        Self { input: 512, target: None }
    }
}

impl MaxLengths {
    /// The tokens of an input, and whether it was cut.
    ///
    /// # Errors
    ///
    /// If the text can't be tokenized.
    ///
    /// # Panics
    ///
    /// If inputs may have no token at all.
    pub fn input(
        self,
        text: &str,
        tokenizer: &TextTokenizer,
    ) -> Result<(Vec<u32>, bool), DataError> {
        assert!(self.input > 0, "An input has its end token at least. Got input=0");
        let mut tokens = tokenizer.encode(text)?;
        let is_cut = tokens.len() >= self.input;
        tokens.truncate(self.input - 1);
        tokens.push(tokenizer.eos_id());
        Ok((tokens, is_cut))
    }
}

/// The tokens of a target.
fn target(text: &str, tokenizer: &TextTokenizer) -> Result<Vec<u32>, DataError> {
    let mut tokens = tokenizer.encode(text)?;
    tokens.push(tokenizer.eos_id());
    Ok(tokens)
}

impl TokenizedTask {
    /// Examples to learn from: all of the data set, so that an example with several right targets is there with each.
    ///
    /// # Errors
    ///
    /// If an example has no target, or one that is longer than it may be; if a text can't be tokenized.
    ///
    /// # Panics
    ///
    /// If inputs may have no token at all.
    pub fn training(
        name: &str,
        dataset: &Dataset,
        tokenizer: &TextTokenizer,
        lengths: MaxLengths,
    ) -> Result<Self, TaskError> {
        let tokens = |example: &Example| {
            let text = example.target.as_deref().ok_or_else(|| TaskError::NoTarget {
                task: name.to_owned(),
                id: example.id.clone(),
            })?;
            let tokenize =
                || Ok((lengths.input(&example.input, tokenizer)?, target(text, tokenizer)?));
            let ((inputs, is_cut), targets) =
                tokenize().map_err(|source| tokenize_error(name, source))?;
            Ok((crate::Example { inputs, targets }, is_cut))
        };
        let tokenized = dataset.examples.par_iter().map(tokens);
        let tokenized = tokenized.collect::<Result<Vec<_>, TaskError>>()?;
        check_targets(name, dataset, &tokenized, lengths)?;
        let truncated = tokenized.iter().filter(|(_, is_cut)| *is_cut).count();
        let examples = tokenized.into_iter().map(|(example, _)| example).collect();
        Ok(Self { name: name.to_owned(), examples, truncated })
    }

    /// Examples to judge a model by: the first of each id. Targets are empty where the files do not tell.
    ///
    /// # Errors
    ///
    /// If a text can't be tokenized.
    ///
    /// # Panics
    ///
    /// If inputs may have no token at all.
    pub fn judged(
        name: &str,
        dataset: &Dataset,
        tokenizer: &TextTokenizer,
        lengths: MaxLengths,
    ) -> Result<Self, TaskError> {
        let judged: Vec<&Example> = dataset.judged().collect();
        let tokens = |example: &&Example| {
            let (inputs, is_cut) = lengths.input(&example.input, tokenizer)?;
            let targets = match &example.target {
                Some(text) => target(text, tokenizer)?,
                None => Vec::new(),
            };
            Ok((crate::Example { inputs, targets }, is_cut))
        };
        let tokenized: Vec<(crate::Example, bool)> = judged
            .par_iter()
            .map(tokens)
            .collect::<Result<_, DataError>>()
            .map_err(|source| tokenize_error(name, source))?;
        let truncated = tokenized.iter().filter(|(_, is_cut)| *is_cut).count();
        let examples = tokenized.into_iter().map(|(example, _)| example).collect();
        Ok(Self { name: name.to_owned(), examples, truncated })
    }

    /// The length of the longest target.
    pub fn target_length(&self) -> usize {
        self.examples.iter().map(|example| example.targets.len()).max().unwrap_or(0)
    }
}

fn tokenize_error(task: &str, source: DataError) -> TaskError {
    TaskError::Tokenize { task: task.to_owned(), source: Box::new(source) }
}

fn check_targets(
    task: &str,
    dataset: &Dataset,
    tokenized: &[(crate::Example, bool)],
    lengths: MaxLengths,
) -> Result<(), TaskError> {
    let Some(maximum) = lengths.target else { return Ok(()) };
    let length = |number: usize| tokenized[number].0.targets.len();
    let too_long: Vec<usize> = (0..tokenized.len()).filter(|&at| length(at) > maximum).collect();
    match too_long.iter().copied().max_by_key(|&at| length(at)) {
        None => Ok(()),
        Some(longest) => Err(TaskError::TargetTooLong {
            task: task.to_owned(),
            count: too_long.len(),
            maximum,
            id: dataset.examples[longest].id.clone(),
            found: length(longest),
        }),
    }
}
