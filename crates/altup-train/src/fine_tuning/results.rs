//! What the best model of a run made of its tasks: the files in `tasks/` of the run folder.

use serde::{Deserialize, Serialize};

use super::TaskTraining;
use crate::metrics::TaskScore;
use crate::run_folder::{RunFolder, RunFolderError};
use crate::summary::{self, SummaryError};
use crate::task_evaluation::{Answers, TaskEvaluationError, TaskSplit};

/// Mistakes of a task that are kept.
const MISTAKES: usize = 20;

/// What a model made of the tasks of its run: the content of `tasks/scores.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskResults {
    /// The step of the model.
    pub step: u64,
    /// The mean of the tasks' scores, each the mean of its metrics.
    pub mean_score: f64,
    /// The tasks.
    pub tasks: Vec<TaskResult>,
}

/// What a model made of a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskResult {
    /// Its metrics on the whole validation split.
    #[serde(flatten)]
    pub score: TaskScore,
    /// The loss of the targets in nats per token.
    pub loss: f64,
    /// Examples that were trained on.
    pub training_examples: usize,
    /// Where there are label words: the one that training has most often, and the metrics of always answering it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub majority: Option<Majority>,
    /// Wrong answers, the most clearly wrong ones first.
    pub mistakes: Vec<Mistake>,
}

/// The baseline of one answer to all examples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Majority {
    /// The answer.
    pub label: String,
    /// Its metrics.
    #[serde(flatten)]
    pub score: TaskScore,
}

/// A wrong answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mistake {
    /// The example.
    pub id: String,
    /// What the model read.
    pub input: String,
    /// What it should have written.
    pub target: String,
    /// What it wrote.
    pub output: String,
    /// The loss of the target in nats per token.
    pub loss: Option<f64>,
    /// When label words are ranked: the probability of the one that was chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confidence: Option<f64>,
    /// When label words are ranked: the log-probability of the target minus that of the likeliest other, in nats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub margin: Option<f64>,
}

/// A line of `tasks/NAME.predictions.jsonl`.
#[derive(Serialize)]
struct Prediction<'a> {
    id: &'a str,
    target: Option<&'a str>,
    output: &'a str,
    answer: &'a str,
    loss: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    confidence: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    margin: Option<f64>,
}

/// Why results can't be had.
#[derive(Debug, thiserror::Error)]
pub enum TaskResultsError {
    /// A task can't be evaluated.
    #[error(transparent)]
    Task(#[from] TaskEvaluationError),
    /// A file can't be written.
    #[error(transparent)]
    Write(#[from] RunFolderError),
}

impl TaskResults {
    /// Writes what the model of `step` answered to whole splits into the run folder: `tasks/scores.json`, and for each
    /// task `tasks/NAME.predictions.jsonl`.
    ///
    /// # Errors
    ///
    /// If a task can't be scored or a file not be written.
    pub fn write(
        folder: &RunFolder,
        step: u64,
        splits: &[TaskSplit],
        answers: &[Answers],
        training: &[TaskTraining],
    ) -> Result<Self, TaskResultsError> {
        let tasks = folder.tasks();
        std::fs::create_dir_all(&tasks)
            .map_err(|source| RunFolderError::File { path: tasks.clone(), source })?;
        let mut results = Vec::new();
        for ((split, answers), training) in splits.iter().zip(answers).zip(training) {
            let predictions = predictions(split, answers);
            let path = tasks.join(format!("{}.predictions.jsonl", split.task().name()));
            folder.write(&path, predictions.as_bytes())?;
            results.push(TaskResult::new(split, answers, training)?);
        }
        let mean_score =
            results.iter().map(|of| of.score.mean()).sum::<f64>() / results.len().max(1) as f64;
        let results = Self { step, mean_score, tasks: results };
        folder.write(&folder.scores(), &to_json(&results))?;
        Ok(results)
    }

    /// The results of a run that has them.
    ///
    /// # Errors
    ///
    /// If there are some and they can't be read.
    pub fn read(folder: &RunFolder) -> Result<Option<Self>, SummaryError> {
        summary::read(&folder.scores())
    }
}

fn to_json(value: &impl Serialize) -> Vec<u8> {
    // Texts and numbers: nothing that JSON can't hold.
    serde_json::to_vec_pretty(value).unwrap_or_else(|error| unreachable!("not JSON: {error}"))
}

impl TaskResult {
    fn new(
        split: &TaskSplit,
        answers: &Answers,
        training: &TaskTraining,
    ) -> Result<Self, TaskEvaluationError> {
        let score = split.score(&answers.texts())?;
        let majority = training.majority.as_ref().map(|label| {
            let constant = vec![label.clone(); split.examples().len()];
            Ok::<_, TaskEvaluationError>(Majority {
                label: label.clone(),
                score: split.score(&constant)?.into(),
            })
        });
        let mistake = |place: usize| {
            let (example, answer) = (&split.examples()[place], &answers.answers[place]);
            Mistake {
                id: example.id.clone(),
                input: example.input.clone(),
                target: example.target.clone().unwrap_or_default(),
                output: answer.output.clone(),
                loss: answer.loss,
                confidence: answer.confidence,
                margin: answer.margin,
            }
        };
        Ok(Self {
            score: score.into(),
            loss: answers.loss / answers.tokens.max(1) as f64,
            training_examples: training.examples,
            majority: majority.transpose()?,
            mistakes: answers.mistakes(split).into_iter().take(MISTAKES).map(mistake).collect(),
        })
    }
}

/// A line of JSON for each example.
fn predictions(split: &TaskSplit, answers: &Answers) -> String {
    let line =
        |(example, answer): (&altup_data::tasks::Example, &crate::task_evaluation::Answer)| {
            let prediction = Prediction {
                id: &example.id,
                target: example.target.as_deref(),
                output: &answer.output,
                answer: &answer.text,
                loss: answer.loss,
                confidence: answer.confidence,
                margin: answer.margin,
            };
            serde_json::to_string(&prediction)
                .unwrap_or_else(|error| unreachable!("not JSON: {error}"))
                + "\n"
        };
    split.examples().iter().zip(&answers.answers).map(line).collect()
}
