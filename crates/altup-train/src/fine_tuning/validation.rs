//! How the tasks of a run are scored while it trains.

use burn::tensor::Device;
use std::sync::Arc;

use altup_data::TextTokenizer;

use crate::learner::Learner;
use crate::metrics::{MetricsRow, SourceScore, ValidRow};
use crate::replicas::Turns;
use crate::task_evaluation::{AnswerConfig, TaskEvaluationError, TaskSplit, answer_in_turns};
use crate::trainer::TrainError;
use crate::validation::{Validated, Validation};

/// The metrics of each task on its validation split. Checkpoints are compared by their mean: that of a task's metrics,
/// then of the tasks.
pub struct TaskValidation {
    splits: Vec<Arc<TaskSplit>>,
    tokenizer: Arc<TextTokenizer>,
    answers: AnswerConfig,
    patience: Option<u64>,
    /// The costs of all validations so far, with their steps.
    costs: Vec<(u64, f64)>,
}

impl TaskValidation {
    /// Scores `splits`. A run that is resumed brings the rows of its metrics up to where it goes on.
    pub fn new(
        splits: Vec<Arc<TaskSplit>>,
        tokenizer: Arc<TextTokenizer>,
        answers: AnswerConfig,
        patience: Option<u64>,
        rows: &[MetricsRow],
    ) -> Self {
        let costs = valid_rows(rows).map(|row| (row.step, row.cost())).collect();
        Self { splits, tokenizer, answers, patience, costs }
    }
}

/// The step with the best scores; of equal ones the first.
pub fn best_step(rows: &[MetricsRow]) -> Option<u64> {
    let best = valid_rows(rows).min_by(|a, b| a.cost().total_cmp(&b.cost()));
    best.map(|row| row.step)
}

fn valid_rows(rows: &[MetricsRow]) -> impl Iterator<Item = &ValidRow> {
    rows.iter().filter_map(|row| match row {
        MetricsRow::Valid(row) => Some(row),
        _ => None,
    })
}

impl Validation for TaskValidation {
    fn score(
        &mut self,
        learner: &Learner,
        step: u64,
        _device: &Device,
        turns: Turns<'_>,
    ) -> Result<Option<Validated>, TrainError> {
        let mut row = ValidRow { step, ..ValidRow::default() };
        for split in &self.splits {
            let answers =
                answer_in_turns(&learner.model, &self.tokenizer, split, &self.answers, turns)?;
            let Some(answers) = answers else { return Ok(None) };
            let scores = split.score(&answers.texts()).map_err(TaskEvaluationError::from)?;
            let tokens = answers.tokens as f64;
            let score = SourceScore {
                name: scores.task.clone(),
                loss: answers.loss / tokens,
                accuracy: answers.correct as f64 / tokens,
                tokens: answers.tokens,
                text: None,
            };
            row.loss += score.loss / self.splits.len() as f64;
            row.accuracy += score.accuracy / self.splits.len() as f64;
            row.tokens += score.tokens;
            if self.splits.len() > 1 {
                row.sources.push(score);
            }
            row.tasks.push(scores.into());
        }
        row.perplexity = row.loss.exp();
        let cost = row.cost();
        self.costs.push((step, cost));
        Ok(Some(Validated { row, cost }))
    }

    fn rewind(&mut self, step: u64) {
        self.costs.retain(|(of, _)| *of <= step);
    }

    /// As soon as `patience` validations in a row are no better than the best before them.
    fn is_satisfied(&self) -> bool {
        let cost = |at: usize| self.costs[at].1;
        let best = (0..self.costs.len()).min_by(|&a, &b| cost(a).total_cmp(&cost(b)));
        match (self.patience, best) {
            (Some(patience), Some(best)) => (self.costs.len() - 1 - best) as u64 >= patience,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::TaskScore;

    fn row(step: u64, metrics: &[&[f64]]) -> MetricsRow {
        let task = |values: &&[f64]| TaskScore {
            task: "made".into(),
            split: "validation".into(),
            examples: 1,
            metrics: values.iter().enumerate().map(|(n, value)| (n.to_string(), *value)).collect(),
        };
        MetricsRow::Valid(ValidRow {
            step,
            loss: 9.0 - step as f64,
            tasks: metrics.iter().map(task).collect(),
            ..ValidRow::default()
        })
    }

    fn validation(rows: &[MetricsRow], patience: Option<u64>) -> TaskValidation {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("text.txt");
        std::fs::write(&path, "some words of a text\n".repeat(20)).unwrap();
        let corpus = altup_data::Corpus::open(&[path.to_string_lossy().into_owned()]).unwrap();
        let on_error = altup_data::OnError::Stop;
        let tokenizer = TextTokenizer::train(&corpus, 200, u64::MAX, on_error).unwrap();
        let answers = AnswerConfig::default();
        TaskValidation::new(Vec::new(), Arc::new(tokenizer), answers, patience, rows)
    }

    /// Two tasks, one of two metrics: means 0.5, 0.6, 0.6 and 0.55.
    #[test]
    fn the_best_step_has_the_best_mean_of_the_tasks() {
        let rows = [
            row(1, &[&[0.4], &[0.5, 0.7]]),
            row(2, &[&[0.4], &[0.8, 0.8]]),
            row(3, &[&[0.5], &[0.6, 0.8]]),
            row(4, &[&[0.5], &[0.6, 0.6]]),
        ];
        assert_eq!(best_step(&rows), Some(2));
        assert_eq!(best_step(&[]), None);
    }

    #[test]
    fn a_run_ends_when_its_patience_does() {
        let rows: Vec<MetricsRow> = [0.3, 0.5, 0.5, 0.4, 0.6]
            .iter()
            .zip(1..)
            .map(|(of, step)| row(step, &[&[*of]]))
            .collect();
        let is_over = |count: usize, patience| validation(&rows[..count], patience).is_satisfied();
        assert_eq!(
            [0, 1, 2, 3, 4, 5].map(|count| is_over(count, Some(2))),
            [false, false, false, false, true, false]
        );
        assert_eq!([2, 3, 5].map(|count| is_over(count, Some(1))), [false, true, false]);
        assert!(!is_over(4, None));
        // Back at step 2, it has its patience again.
        let mut validation = validation(&rows[..4], Some(2));
        validation.rewind(2);
        assert!(!validation.is_satisfied());
    }
}
