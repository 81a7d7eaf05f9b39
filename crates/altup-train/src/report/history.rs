//! What a report shows of a run's metrics: as many points as a chart has room for, however long the run.

use std::collections::BTreeMap;

use super::thinning::{Curve, Sampled};
use crate::coefficients::CoefficientsRow;
use crate::metrics::{MetricsRow, RollbackRow, RoutingRow, StartRow, TrainRow, ValidRow};

/// The rows of a run's metrics, thinned, and what they came to.
///
/// It takes rows one by one and holds a bounded number of points: of training the means of neighbouring rows, with the
/// least and the largest of them; of validations and coefficients every so many-th row and the newest.
#[derive(Clone, Debug, Default)]
pub struct History {
    step: u64,
    start: Option<StartRow>,
    last_train: Option<TrainRow>,
    train: BTreeMap<Quantity, Curve>,
    validations: u64,
    /// The best validation over each number of targets, as a loss over others is not compared, with the number of
    /// validations up to it.
    best_valid: BTreeMap<u64, (ValidRow, u64)>,
    last_rollback: Option<RollbackRow>,
    valid: Sampled<ValidRow>,
    coefficients: Sampled<CoefficientsRow>,
}

/// The number of targets that a validation is compared over. Scores of tasks are of the same examples, whatever the loss is
/// over.
fn compared_over(row: &ValidRow) -> u64 {
    if row.tasks.is_empty() { row.tokens } else { 0 }
}

/// What rows of training say in a number. Those of layers and sources are counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Quantity {
    Loss,
    LearningRate,
    GradientNorm,
    TokensPerSecond,
    PeakShare,
    DataWait,
    Memory,
    PeakMemory,
    PeakLoad(usize),
    RouterEntropy(usize),
    Dropped(usize),
    Epochs(usize),
}

impl Quantity {
    /// Those of a row.
    fn of(row: &TrainRow) -> impl Iterator<Item = (Self, f64)> {
        let bytes = |bytes: Option<u64>| bytes.map(|bytes| bytes as f64);
        let always = [
            (Self::Loss, Some(row.loss)),
            (Self::LearningRate, Some(row.learning_rate)),
            (Self::GradientNorm, Some(row.grad_norm)),
            (Self::TokensPerSecond, Some(row.tokens_per_second)),
            (Self::PeakShare, row.peak_share),
            (Self::DataWait, row.data_wait_seconds),
            (Self::Memory, bytes(row.memory_bytes)),
            (Self::PeakMemory, bytes(row.peak_memory_bytes)),
        ];
        let always = always.into_iter().filter_map(|(quantity, value)| Some((quantity, value?)));
        let routing = row.routing.iter().enumerate().flat_map(|(number, layer)| {
            [
                (Self::PeakLoad(number), layer.peak_load()),
                (Self::RouterEntropy(number), layer.entropy),
                (Self::Dropped(number), layer.dropped),
            ]
        });
        let epochs = row.epochs.iter().enumerate();
        let epochs = epochs.map(|(number, source)| (Self::Epochs(number), source.epochs));
        always.chain(routing).chain(epochs)
    }
}

impl History {
    /// That of some rows.
    pub fn of<'a>(rows: impl IntoIterator<Item = &'a MetricsRow>) -> Self {
        let mut history = Self::default();
        rows.into_iter().for_each(|row| history.push(row));
        history
    }

    /// Takes the next row.
    pub fn push(&mut self, row: &MetricsRow) {
        self.step = self.step.max(row.step());
        match row {
            MetricsRow::Start(row) => self.start = Some(row.clone()),
            MetricsRow::Train(row) => {
                for (quantity, value) in Quantity::of(row) {
                    self.train.entry(quantity).or_default().push(row.step, value);
                }
                self.last_train = Some(row.clone());
            }
            MetricsRow::Valid(row) => {
                self.validations += 1;
                let over = compared_over(row);
                let is_better = |(best, _): &(ValidRow, u64)| row.cost() < best.cost();
                if self.best_valid.get(&over).is_none_or(is_better) {
                    self.best_valid.insert(over, (row.clone(), self.validations));
                }
                self.valid.push(row.clone());
            }
            MetricsRow::Coefficients(row) => self.coefficients.push(row.clone()),
            MetricsRow::Rollback(row) => self.last_rollback = Some(row.clone()),
        }
    }

    /// The newest step that a row speaks of; 0 without rows.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// What the run was begun, or gone on with, on.
    pub fn start(&self) -> Option<&StartRow> {
        self.start.as_ref()
    }

    /// The newest row of training.
    pub fn last_train(&self) -> Option<&TrainRow> {
        self.last_train.as_ref()
    }

    /// The newest validation.
    pub fn last_valid(&self) -> Option<&ValidRow> {
        self.valid.newest()
    }

    /// The best validation: the first of the lowest loss, of those over as many targets as the newest one, or in
    /// fine-tuning of the highest mean score.
    pub fn best_valid(&self) -> Option<&ValidRow> {
        self.best().map(|(row, _)| row)
    }

    fn best(&self) -> Option<&(ValidRow, u64)> {
        self.best_valid.get(&compared_over(self.last_valid()?))
    }

    /// How many validations came after the best one.
    pub(super) fn validations_behind_the_best(&self) -> u64 {
        self.best().map_or(0, |(_, number)| self.validations - number)
    }

    /// How training went back to a checkpoint last.
    pub(super) fn last_rollback(&self) -> Option<&RollbackRow> {
        self.last_rollback.as_ref()
    }

    /// The validations in the order of their steps: all of a run that has few, else some of them, the newest and the
    /// best among these.
    pub fn validations(&self) -> Vec<&ValidRow> {
        let mut rows: Vec<&ValidRow> = self.valid.rows().collect();
        if let Some(best) = self.best_valid()
            && let Err(place) = rows.binary_search_by_key(&best.step, |row| row.step)
        {
            rows.insert(place, best);
        }
        rows
    }

    /// The learned scalars in the order of their steps, thinned as validations are.
    pub(super) fn coefficients(&self) -> impl Iterator<Item = &CoefficientsRow> {
        self.coefficients.rows()
    }

    /// How the layers with experts routed the newest row's tokens; none without such layers.
    pub(super) fn routing(&self) -> &[RoutingRow] {
        self.last_train.as_ref().map_or(&[], |row| &row.routing)
    }

    /// The names of a mixture's sources; none of a run on one text.
    pub(super) fn sources(&self) -> impl Iterator<Item = &str> {
        let sources = self.last_valid().map_or(&[][..], |row| &row.sources);
        sources.iter().map(|score| score.name.as_str())
    }

    /// What training said of a quantity; nothing if it is in no row.
    pub(super) fn curve(&self, quantity: Quantity) -> Option<&Curve> {
        self.train.get(&quantity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coefficients::LayerCoefficients;
    use crate::report::thinning::POINTS;

    fn train(step: u64) -> MetricsRow {
        // A saw tooth around 3, one spike, and a speed that drops once.
        let loss = if step == 654_321 { 50.0 } else { 3.0 + (step % 5) as f64 / 10.0 - 0.2 };
        MetricsRow::Train(TrainRow {
            step,
            loss,
            tokens_per_second: if step < 600_000 { 5000.0 } else { 4000.0 },
            peak_memory_bytes: Some(step),
            ..TrainRow::default()
        })
    }

    fn valid(step: u64, loss: f64) -> MetricsRow {
        MetricsRow::Valid(ValidRow {
            step,
            loss,
            perplexity: loss.exp(),
            accuracy: 0.5,
            tokens: 9,
            ..ValidRow::default()
        })
    }

    #[test]
    fn a_million_rows_are_a_bounded_number_of_points_and_say_the_same() {
        const ROWS: u64 = 1_000_000;
        let mut history = History::default();
        for step in 1..=ROWS {
            history.push(&train(step));
            if step % 100 == 0 {
                let loss = if step == 123_400 { 1.0 } else { 2.0 };
                history.push(&valid(step, loss));
                let layers = vec![LayerCoefficients {
                    stack: "encoder".into(),
                    layer: 0,
                    p: Vec::new(),
                    g: vec![step as f64],
                    sequence: Vec::new(),
                }];
                history.push(&MetricsRow::Coefficients(CoefficientsRow { step, layers }));
            }
        }
        assert_eq!(history.train.len(), 5);
        for curve in history.train.values() {
            let points = curve.points(1.0).len();
            assert!(points > POINTS / 2 - 1 && points <= POINTS, "{points}");
        }
        let loss = history.curve(Quantity::Loss).unwrap();
        assert_eq!(loss.highest(), Some(50.0), "the spike is there");
        let points = loss.points(1.0);
        // All but the newest stand for as many rows: their mean is that of the rows.
        let whole = &points[..points.len() - 1];
        let mean = whole.iter().map(|point| point.y).sum::<f64>() / whole.len() as f64;
        assert!((mean - 3.0).abs() < 1e-3, "{mean}");
        assert!(whole.iter().all(|point| (point.y - 3.0).abs() < 0.1), "{points:?}");
        let ranges = points.iter().filter_map(|point| point.y_range);
        assert_eq!(ranges.filter(|range| range.1 == 50.0).count(), 1);
        assert_eq!(history.curve(Quantity::PeakMemory).unwrap().highest(), Some(ROWS as f64));
        let speed = history.curve(Quantity::TokensPerSecond).unwrap();
        assert_eq!(speed.median(), 5000.0);

        let validations = history.validations();
        assert!(validations.len() <= POINTS + 2, "{}", validations.len());
        assert!(validations.is_sorted_by(|a, b| a.step < b.step));
        assert_eq!(validations.last().unwrap().step, ROWS);
        assert_eq!(history.best_valid().unwrap().step, 123_400);
        assert!(validations.iter().any(|row| row.step == 123_400));
        let coefficients: Vec<u64> = history.coefficients().map(|row| row.step).collect();
        assert!(coefficients.len() <= POINTS + 1 && coefficients.last() == Some(&ROWS));
        assert_eq!(history.step(), ROWS);
    }

    /// The last pass is over more examples, where the configuration says so: 1.0 at step 2 is no better than that.
    #[test]
    fn the_best_loss_is_of_as_many_targets_as_the_last() {
        let MetricsRow::Valid(mut last) = valid(3, 1.5) else { unreachable!() };
        last.tokens = 40;
        let mut rows = vec![valid(1, 2.0), valid(2, 1.0)];
        assert_eq!(History::of(&rows).best_valid().unwrap().step, 2);
        rows.push(MetricsRow::Valid(last));
        assert_eq!(History::of(&rows).best_valid().unwrap().step, 3);
        // The run goes on: what was best before its old end still is.
        rows.push(valid(4, 1.2));
        let history = History::of(&rows);
        assert_eq!(history.best_valid().unwrap().step, 2);
        assert_eq!(history.validations_behind_the_best(), 2);
    }

    #[test]
    fn of_a_short_run_everything_is_there() {
        let rows: Vec<MetricsRow> =
            (1..=300).flat_map(|step| [train(step), valid(step, 400.0 - step as f64)]).collect();
        let history = History::of(&rows);
        let points = history.curve(Quantity::Loss).unwrap().points(100.0);
        assert_eq!(points.len(), 300);
        for (point, step) in points.iter().zip(1..) {
            let MetricsRow::Train(row) = train(step) else { unreachable!() };
            assert_eq!((point.x, point.y, point.y_range), (step as f64, 100.0 * row.loss, None));
        }
        assert!(history.validations().iter().map(|row| row.step).eq(1..=300));
        assert_eq!(history.curve(Quantity::DataWait).map(|_| ()), None, "no row speaks of it");
    }
}
