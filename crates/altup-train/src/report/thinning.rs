//! Rows and points that come one by one, of which a bounded number is kept.

use crate::chart::Point;
use crate::statistics::median;

/// How many points or rows are kept at most. A chart is as many pixels wide.
pub(super) const POINTS: usize = 1000;

/// A curve over steps. Where there are too many points, neighbours become one: their mean, with the least and the largest
/// value.
#[derive(Clone, Debug)]
pub(super) struct Curve {
    buckets: Vec<Bucket>,
    /// How many values a full bucket has.
    size: u64,
}

/// Values of neighbouring steps.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    values: u64,
    steps: f64,
    sum: f64,
    low: f64,
    high: f64,
}

impl Bucket {
    fn and(self, other: Self) -> Self {
        Self {
            values: self.values + other.values,
            steps: self.steps + other.steps,
            sum: self.sum + other.sum,
            low: self.low.min(other.low),
            high: self.high.max(other.high),
        }
    }

    fn mean(&self) -> f64 {
        self.sum / self.values as f64
    }
}

impl Default for Curve {
    fn default() -> Self {
        Self { buckets: Vec::new(), size: 1 }
    }
}

impl Curve {
    pub(super) fn push(&mut self, step: u64, value: f64) {
        let one = Bucket { values: 1, steps: step as f64, sum: value, low: value, high: value };
        match self.buckets.last_mut().filter(|last| last.values < self.size) {
            Some(last) => *last = last.and(one),
            None => {
                if self.buckets.len() == POINTS {
                    // All are full, and two together are a full one of the new size.
                    let pairs = self.buckets.chunks(2).map(|pair| pair[0].and(pair[1]));
                    self.buckets = pairs.collect();
                    self.size *= 2;
                }
                self.buckets.push(one);
            }
        }
    }

    /// Its points, each value times `unit`. A point that stands for several has a range.
    pub(super) fn points(&self, unit: f64) -> Vec<Point> {
        let point = |bucket: &Bucket| {
            let (x, y) = (bucket.steps / bucket.values as f64, unit * bucket.mean());
            let range = (unit * bucket.low, unit * bucket.high);
            let y_range = (bucket.values > 1).then_some(range);
            Point { y_range, ..Point::from((x, y)) }
        };
        self.buckets.iter().map(point).collect()
    }

    /// The largest value; none without values.
    pub(super) fn highest(&self) -> Option<f64> {
        self.buckets.iter().map(|bucket| bucket.high).max_by(f64::total_cmp)
    }

    /// The median of the values; of many, that of the means of neighbours. NaN without values.
    pub(super) fn median(&self) -> f64 {
        let means: Vec<f64> = self.buckets.iter().map(Bucket::mean).collect();
        median(&means)
    }
}

/// Rows of which every so many-th is kept, and the newest.
#[derive(Clone, Debug)]
pub(super) struct Sampled<T> {
    /// Those whose number, from 0, is a multiple of `every`.
    kept: Vec<T>,
    every: usize,
    rows: usize,
    /// The newest, if it isn't among them.
    newest: Option<T>,
}

impl<T> Default for Sampled<T> {
    fn default() -> Self {
        Self { kept: Vec::new(), every: 1, rows: 0, newest: None }
    }
}

impl<T> Sampled<T> {
    pub(super) fn push(&mut self, row: T) {
        if self.rows.is_multiple_of(self.every) && self.kept.len() == POINTS {
            let mut number = 0..;
            self.kept
                .retain(|_| number.next().is_some_and(|number: usize| number.is_multiple_of(2)));
            self.every *= 2;
        }
        match self.rows.is_multiple_of(self.every) {
            true => {
                self.kept.push(row);
                self.newest = None;
            }
            false => self.newest = Some(row),
        }
        self.rows += 1;
    }

    /// Those that are kept, in their order.
    pub(super) fn rows(&self) -> impl Iterator<Item = &T> {
        self.kept.iter().chain(&self.newest)
    }

    pub(super) fn newest(&self) -> Option<&T> {
        self.newest.as_ref().or(self.kept.last())
    }
}

/// Up to `most` of some rows, spread evenly, the last one among them.
pub(super) fn evenly<T>(rows: &[T], most: usize) -> impl Iterator<Item = &T> {
    let stride = rows.len().div_ceil(most).max(1);
    let first = (rows.len().max(1) - 1) % stride;
    rows.iter().skip(first).step_by(stride)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_become_one_point_with_their_range() {
        let mut curve = Curve::default();
        (1..=POINTS as u64).for_each(|step| curve.push(step, step as f64));
        assert_eq!(curve.points(1.0).len(), POINTS);
        curve.push(1001, 7.0);
        let points = curve.points(2.0);
        assert_eq!(points.len(), POINTS / 2 + 1);
        // Steps 1 and 2 with their values, times 2.
        assert_eq!((points[0].x, points[0].y, points[0].y_range), (1.5, 3.0, Some((2.0, 4.0))));
        assert_eq!((points[500].x, points[500].y, points[500].y_range), (1001.0, 14.0, None));
        curve.push(1002, 9.0);
        let last = curve.points(1.0).pop().unwrap();
        assert_eq!((last.x, last.y, last.y_range), (1001.5, 8.0, Some((7.0, 9.0))));
        assert_eq!(curve.highest(), Some(1000.0));
    }

    #[test]
    fn every_so_many_th_row_is_kept_and_the_newest() {
        let mut rows = Sampled::default();
        for row in 0..10_000 {
            rows.push(row);
            assert_eq!(rows.newest(), Some(&row));
            assert_eq!(rows.rows().last(), Some(&row));
            assert_eq!(rows.rows().next(), Some(&0));
        }
        let kept: Vec<usize> = rows.rows().copied().collect();
        assert_eq!(kept[..3], [0, 16, 32]);
        assert_eq!(kept[kept.len() - 2..], [9984, 9999]);
        assert!(kept.len() <= POINTS + 1);
    }

    #[test]
    fn an_even_choice_ends_with_the_last_row() {
        let rows: Vec<usize> = (0..10).collect();
        let chosen = |most| evenly(&rows, most).copied().collect::<Vec<_>>();
        assert_eq!(chosen(3), [1, 5, 9]);
        assert_eq!(chosen(10), rows);
        assert_eq!(chosen(100), rows);
        assert_eq!(evenly(&rows[..0], 3).count(), 0);
    }
}
