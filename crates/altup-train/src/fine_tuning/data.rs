//! From a run's configuration to its tokenizer, batches and validation splits.

use altup_data::tasks::{
    Dataset, Reference, Registry, Task, TaskBatches, TaskError, TokenizedTask,
};
use altup_data::{Batch, DataError, TextTokenizer};
use altup_models::DirectoryError;
use std::sync::Arc;

use super::FineTuningConfig;
use crate::metrics::SourceEpochs;
use crate::task_evaluation::{Selection, TaskEvaluationError, TaskSplit};
use crate::training_batches::{Longest, TrainingBatches};

/// The data of a fine-tuning run.
pub struct FineTuningData {
    /// The model's tokenizer.
    pub tokenizer: Arc<TextTokenizer>,
    /// What is trained on.
    pub train: Arc<TaskBatches>,
    /// What is validated on, as far as the configuration says, for each task.
    pub valid: Vec<Arc<TaskSplit>>,
    /// What of each task is trained on, in figures.
    pub training: Vec<TaskTraining>,
    /// What the training tokens are and how they are mixed.
    pub fingerprint: String,
}

/// What of a task is trained on.
#[derive(Clone, Debug)]
pub struct TaskTraining {
    /// The task.
    pub task: String,
    /// Its training examples.
    pub examples: usize,
    /// Inputs that were cut.
    pub truncated: usize,
    /// Its share of what is trained on, from 0 to 1.
    pub rate: f64,
    /// The length of its longest target in tokens, the end token included.
    pub target_length: usize,
    /// The label word that occurs most often, where there are label words.
    pub majority: Option<String>,
}

/// Why a run's data can't be had.
#[derive(Debug, thiserror::Error)]
pub enum FineTuningDataError {
    /// The model's directory can't be read.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The tokenizer can't be read.
    #[error(transparent)]
    Tokenizer(#[from] DataError),
    /// The tokenizer has ids that the model doesn't know.
    #[error(
        "the tokenizer {tokenizer} has {ids} ids, and the model beside it knows {vocab_size}: they don't belong \
         together"
    )]
    Vocabulary {
        /// The tokenizer.
        tokenizer: String,
        /// Its ids.
        ids: usize,
        /// The model's vocabulary.
        vocab_size: usize,
    },
    /// A task's training examples can't be read.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// A task can't be validated on.
    #[error(transparent)]
    Validation(#[from] TaskEvaluationError),
    /// A validation split has no labels.
    #[error("the {split} split of {task} has no labels, so nothing can be validated on it")]
    NotLabelled {
        /// The task.
        task: String,
        /// The split.
        split: String,
    },
}

impl FineTuningData {
    /// Reads and tokenizes the tasks of a run, with the tokenizer of its model.
    ///
    /// # Errors
    ///
    /// Names the file, and its line where it has lines.
    pub fn prepare(
        config: &FineTuningConfig,
        tokenizer: TextTokenizer,
    ) -> Result<Self, FineTuningDataError> {
        let tokenizer = Arc::new(tokenizer);
        let tasks = config.tasks.names.iter().map(|name| Registry::standard().find(name));
        let tasks: Vec<Arc<dyn Task>> = tasks.collect::<Result<_, _>>()?;
        let (mut tokenized, mut majorities, mut valid) = (Vec::new(), Vec::new(), Vec::new());
        for task in tasks {
            let dataset = task.read(&config.tasks.data, &config.tasks.train_split)?;
            let lengths = config.tasks.lengths();
            tokenized.push(TokenizedTask::training(task.name(), &dataset, &tokenizer, lengths)?);
            majorities.push(majority(&*task, &dataset));
            let examples = Some(config.training.eval_examples);
            valid.push(Arc::new(validation_split(config, task, &tokenizer, examples)?));
        }
        let sizes: Vec<u64> = tokenized.iter().map(|task| task.examples.len() as u64).collect();
        let weighted = tokenized.into_iter().zip(config.tasks.weights(&sizes)).collect();
        let train = TaskBatches::new(weighted, config.training.batch_size, config.seed);
        let training = train.tasks().iter().zip(majorities).enumerate();
        let training = training.map(|(number, (task, majority))| TaskTraining {
            task: task.name.clone(),
            examples: task.examples.len(),
            truncated: task.truncated,
            rate: train.rate(number),
            target_length: task.target_length(),
            majority,
        });
        let training = training.collect();
        let fingerprint = train.fingerprint().to_string();
        Ok(Self { tokenizer, train: Arc::new(train), valid, training, fingerprint })
    }

    /// The tokenizer beside a run's model.
    ///
    /// # Errors
    ///
    /// If it can't be read, or has ids that the model doesn't know.
    pub fn tokenizer(config: &FineTuningConfig) -> Result<TextTokenizer, FineTuningDataError> {
        let directory = config.directory();
        let vocab_size = directory.config()?.vocab_size;
        let tokenizer = TextTokenizer::load(&directory.tokenizer())?;
        let ids = tokenizer.vocab_size();
        if ids > vocab_size {
            let tokenizer = directory.tokenizer().display().to_string();
            return Err(FineTuningDataError::Vocabulary { tokenizer, ids, vocab_size });
        }
        Ok(tokenizer)
    }

    /// The whole validation split of each task.
    ///
    /// # Errors
    ///
    /// As [`prepare`](Self::prepare).
    pub fn whole_validation(
        &self,
        config: &FineTuningConfig,
    ) -> Result<Vec<TaskSplit>, FineTuningDataError> {
        let read = |name: &String| {
            validation_split(config, Registry::standard().find(name)?, &self.tokenizer, None)
        };
        config.tasks.names.iter().map(read).collect()
    }

    /// The examples of all tasks together.
    pub fn num_examples(&self) -> u64 {
        self.training.iter().map(|task| task.examples as u64).sum()
    }
}

fn validation_split(
    config: &FineTuningConfig,
    task: Arc<dyn Task>,
    tokenizer: &TextTokenizer,
    max_examples: Option<u64>,
) -> Result<TaskSplit, FineTuningDataError> {
    let selection =
        Selection { input_length: config.tasks.input_length, max_examples, seed: config.seed };
    let (data, split) = (&config.tasks.data, &config.tasks.valid_split);
    let valid = TaskSplit::read(task, data, split, tokenizer, selection)?;
    if !valid.is_labelled() {
        let (task, split) = (valid.task().name().to_owned(), split.clone());
        return Err(FineTuningDataError::NotLabelled { task, split });
    }
    valid.check(config.answers.by)?;
    Ok(valid)
}

/// The label word of most examples; of equal ones the first.
fn majority(task: &dyn Task, dataset: &Dataset) -> Option<String> {
    let words = task.label_words();
    let mut counts = vec![0u64; words.len()];
    for example in &dataset.examples {
        if let Some(Reference::Class(class)) = example.reference
            && let Some(count) = counts.get_mut(class)
        {
            *count += 1;
        }
    }
    let most = counts.iter().max()?;
    let class = counts.iter().position(|count| count == most)?;
    Some(words[class].to_owned())
}

impl TrainingBatches for TaskBatches {
    fn batch(&self, number: u64) -> Batch {
        TaskBatches::batch(self, number)
    }

    fn longest(&self) -> Longest {
        let examples = || self.tasks().iter().flat_map(|task| &task.examples);
        Longest {
            input_length: examples().map(|example| example.inputs.len()).max().unwrap_or(0),
            target_length: examples().map(|example| example.targets.len()).max().unwrap_or(0),
            padded: true,
        }
    }

    fn epochs(&self, batches: u64) -> Vec<SourceEpochs> {
        let epochs = TaskBatches::epochs(self, batches);
        epochs.map(|(name, epochs)| SourceEpochs { name: name.to_owned(), epochs }).collect()
    }
}
