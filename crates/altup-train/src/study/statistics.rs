//! What a few seeds say: means over seeds, paired differences, and speed at equal quality, each with its interval.
//!
//! All intervals are of 95 %, and none is adjusted for how many of them a study looks at.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, StudentsT};

/// The share of intervals that hold the true value, where the differences over seeds are normal.
pub const CONFIDENCE: f64 = 0.95;

/// A figure of a variant by seed.
pub type BySeed = BTreeMap<u64, f64>;

/// Values of several seeds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// How many values.
    pub count: usize,
    /// Their mean.
    pub mean: f64,
    /// Their standard deviation, with count − 1 in the denominator; of one value there is none.
    pub standard_deviation: Option<f64>,
}

impl Spread {
    /// That of `values`; of none there is none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let values: Vec<f64> = values.into_iter().collect();
        let count = values.len();
        let mean = values.iter().sum::<f64>() / count as f64;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let standard_deviation = (count > 1).then(|| (squares / (count - 1) as f64).sqrt());
        (count > 0).then_some(Self { count, mean, standard_deviation })
    }

    /// Half the width of the interval of the mean by Student's t; of one value there is none.
    fn half_width(&self) -> Option<f64> {
        let standard_deviation = self.standard_deviation?;
        Some(t_quantile(self.count) * standard_deviation / (self.count as f64).sqrt())
    }
}

/// The factor of the standard error in an interval of `count` values, at least 2.
fn t_quantile(count: usize) -> f64 {
    StudentsT::new(0.0, 1.0, (count - 1) as f64)
        .map_or(f64::NAN, |student| student.inverse_cdf(0.5 + CONFIDENCE / 2.0))
}

/// From where to where a value lies.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Its lower end.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
}

/// How a variant differs from the baseline on the same seeds, which are the same batches in the same order.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PairedDifference {
    /// Seeds of which both are there. With fewer than 3 the interval, if there is one, says little.
    pub pairs: usize,
    /// Seeds of which one of the two is missing. They count for nothing.
    pub unpaired: usize,
    /// The mean of variant minus baseline.
    pub mean: f64,
    /// The standard deviation of the differences; of one pair there is none.
    pub standard_deviation: Option<f64>,
    /// The interval of the mean by Student's t over the differences; of one pair there is none.
    pub interval: Option<Interval>,
}

/// What an interval says about the sign of a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The whole interval is below zero.
    Below,
    /// The whole interval is above zero.
    Above,
    /// The interval holds zero, or there is none.
    Undecided,
}

impl PairedDifference {
    /// The least number of pairs from which an interval is worth something.
    pub const FEW: usize = 3;

    /// Of a variant and the baseline; nothing where they have no seed in common.
    pub fn of(variant: &BySeed, baseline: &BySeed) -> Option<Self> {
        let pairs = variant.iter().filter_map(|(seed, value)| Some(value - baseline.get(seed)?));
        let spread = Spread::of(pairs)?;
        let half = spread.half_width();
        Some(Self {
            pairs: spread.count,
            unpaired: variant.len() + baseline.len() - 2 * spread.count,
            mean: spread.mean,
            standard_deviation: spread.standard_deviation,
            interval: half
                .map(|half| Interval { low: spread.mean - half, high: spread.mean + half }),
        })
    }

    /// Whether there are too few pairs for the interval to say much.
    pub fn is_of_few(&self) -> bool {
        self.pairs < Self::FEW
    }

    /// What the interval says about the sign.
    pub fn verdict(&self) -> Verdict {
        match self.interval {
            Some(interval) if interval.high < 0.0 => Verdict::Below,
            Some(interval) if interval.low > 0.0 => Verdict::Above,
            _ => Verdict::Undecided,
        }
    }
}

/// A model in the plane of quality and latency.
#[derive(Clone, Debug, PartialEq)]
pub struct Placed {
    /// Seconds of a forward pass by round.
    pub seconds: BTreeMap<usize, f64>,
    /// The validation loss by seed.
    pub losses: BySeed,
}

/// How much faster a variant is than the dense model that has its loss.
///
/// The dense models of several sizes make a line: the loss between two neighbours is interpolated
/// in the logarithm of the latency. The speed-up is the least latency at which this line comes down to the variant's
/// mean loss, over the variant's own latency: the geometric mean of the rounds' ratios, as what else the machine does
/// falls on all models of a round.
///
/// The interval is Fieller's: a latency x belongs to it where the paired differences over seeds,
/// each seed's dense losses interpolated at x minus its loss of the variant, don't differ from
/// zero by their t test. It is exact for normal differences, however flat the line is, and has no
/// end where the line is too flat or too short to give one. Half the width of the interval of the rounds' ratios, by
/// Student's t, is added to both ends in quadrature. With one round there is no interval.
///
/// Nothing is ever extrapolated: a loss that the line doesn't reach is
/// [beyond](Self::BetterThanLine) the dense models measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum SpeedUp {
    /// The loss lies on the line.
    OnLine {
        /// Latency of the dense model of the same loss over the variant's: above 1 the variant is faster.
        ratio: f64,
        /// The lower end of its interval; none where no dense model measured bounds it, or with one seed or round.
        low: Option<f64>,
        /// The upper end.
        high: Option<f64>,
        /// The seeds that all models have.
        seeds: usize,
        /// The rounds that all models have.
        rounds: usize,
    },
    /// No dense model measured is as good.
    BetterThanLine {
        /// The ratio is larger than this: the lower end of the interval, or where no point of the line is in it, that of
        /// the slowest dense model; with one seed or round none.
        above: Option<f64>,
        /// The seeds that all models have.
        seeds: usize,
        /// The rounds that all models have.
        rounds: usize,
    },
    /// The fastest dense model measured is better.
    WorseThanLine {
        /// The ratio is smaller than this: the upper end of the interval, or where no point of the line is in it, that of
        /// the fastest dense model; with one seed or round none.
        below: Option<f64>,
        /// The seeds that all models have.
        seeds: usize,
        /// The rounds that all models have.
        rounds: usize,
    },
}

impl SpeedUp {
    /// That of `variant` against dense models; nothing with fewer than two of these, with a latency that is missing, or
    /// without a seed that all have.
    pub fn of(variant: &Placed, dense: &[Placed]) -> Option<Self> {
        let mut dense: Vec<&Placed> = dense.iter().collect();
        let is_time = |seconds: &f64| seconds.is_finite() && *seconds > 0.0;
        let all_have = |round: &&usize| {
            let models = dense.iter().copied().chain([variant]);
            models.map(|model| model.seconds.get(round)).all(|of| of.is_some_and(is_time))
        };
        let rounds: Vec<usize> = variant.seconds.keys().filter(all_have).copied().collect();
        if dense.len() < 2 || rounds.is_empty() {
            return None;
        }
        // By the same rounds, as ratios are.
        let log_seconds =
            |model: &Placed| -> f64 { rounds.iter().map(|round| model.seconds[round].ln()).sum() };
        dense.sort_by(|a, b| log_seconds(a).total_cmp(&log_seconds(b)));
        let has = |seed: &&u64| dense.iter().all(|dense| dense.losses.contains_key(seed));
        let seeds: Vec<u64> = variant.losses.keys().filter(has).copied().collect();
        if seeds.is_empty() {
            return None;
        }
        // How much worse than the variant each dense model is, by seed.
        let gap = |dense: &Placed| -> Vec<f64> {
            seeds.iter().map(|seed| dense.losses[seed] - variant.losses[seed]).collect()
        };
        let line = Line { gaps: dense.iter().map(|dense| gap(dense)).collect() };
        // The logarithm of the ratio at a place.
        let ratio_at = |place: Place| Spread::of(log_ratios(variant, &dense, &rounds, place));
        let several = seeds.len() > 1 && rounds.len() > 1;
        let accepted = several.then(|| line.not_differing()).flatten();
        let at = |place: Place| ratio_at(place).map_or(f64::NAN, |ratio| ratio.mean);
        let spread =
            |place: Place| ratio_at(place).and_then(|ratio| ratio.half_width()).unwrap_or(0.0);
        let (first, last) = (0.0, (dense.len() - 1) as f64);
        let end = |place: Place, from: f64, sign: f64| {
            let far = (at(place) - from).abs().hypot(spread(place));
            (from + sign * far).exp()
        };
        let (seeds, rounds) = (seeds.len(), rounds.len());
        Some(match line.crossing() {
            Crossing::At(place) => {
                let x = at(place);
                let ratio = x.exp();
                // Where all seeds agree to the last digit, rounding may leave no place but this.
                let accepted = several.then(|| {
                    let (low, high) = accepted.unwrap_or((place, place));
                    (low.min(place), high.max(place))
                });
                let low =
                    accepted.filter(|(low, _)| *low > first).map(|(low, _)| end(low, x, -1.0));
                let high =
                    accepted.filter(|(_, high)| *high < last).map(|(_, high)| end(high, x, 1.0));
                Self::OnLine { ratio, low, high, seeds, rounds }
            }
            Crossing::Beyond => {
                let place = accepted.map_or(last, |(low, _)| low);
                let above = (several && (accepted.is_none() || place > first))
                    .then(|| (at(place) - spread(place)).exp());
                Self::BetterThanLine { above, seeds, rounds }
            }
            Crossing::Before => {
                let place = accepted.map_or(first, |(_, high)| high);
                let below = (several && (accepted.is_none() || place < last))
                    .then(|| (at(place) + spread(place)).exp());
                Self::WorseThanLine { below, seeds, rounds }
            }
        })
    }
}

/// A point of the line: the number of a dense model, and how far it is to the next.
type Place = f64;

/// The dense models beside a variant, by latency.
struct Line {
    /// Their losses minus the variant's, by seed.
    gaps: Vec<Vec<f64>>,
}

/// Where a line comes down to a loss.
enum Crossing {
    /// Here first.
    At(Place),
    /// Before its first point.
    Before,
    /// Nowhere.
    Beyond,
}

impl Line {
    /// Where the mean loss first comes down to the variant's.
    fn crossing(&self) -> Crossing {
        let means: Vec<f64> = self.gaps.iter().map(|gaps| mean(gaps)).collect();
        if means[0] <= 0.0 {
            return if means[0] == 0.0 { Crossing::At(0.0) } else { Crossing::Before };
        }
        let reaches = means.windows(2).position(|pair| pair[1] <= 0.0);
        reaches.map_or(Crossing::Beyond, |number| {
            let (above, below) = (means[number], means[number + 1]);
            Crossing::At(number as f64 + above / (above - below))
        })
    }

    /// From where to where the interpolated gaps don't differ from zero, by their t test. Between two models the gap
    /// of each seed is linear in the place, so that mean² ≤ t²·variance/n is a quadratic inequality.
    fn not_differing(&self) -> Option<(Place, Place)> {
        let count = self.gaps[0].len();
        let factor = t_quantile(count).powi(2) / count as f64;
        let mut places: Vec<Place> = Vec::new();
        for number in 0..self.gaps.len() - 1 {
            let start = &self.gaps[number];
            let slope: Vec<f64> =
                start.iter().zip(&self.gaps[number + 1]).map(|(a, b)| b - a).collect();
            let (a, b) = (mean(start), mean(&slope));
            let square = b * b - factor * covariance(&slope, &slope);
            let linear = 2.0 * (a * b - factor * covariance(start, &slope));
            let constant = a * a - factor * covariance(start, start);
            let holds = |x: f64| square * x * x + linear * x + constant <= 0.0;
            let ends = [0.0, 1.0].into_iter().filter(|&x| holds(x));
            let roots =
                roots(square, linear, constant).into_iter().filter(|x| (0.0..=1.0).contains(x));
            places.extend(ends.chain(roots).map(|x| number as f64 + x));
        }
        let low = places.iter().copied().min_by(f64::total_cmp)?;
        let high = places.iter().copied().max_by(f64::total_cmp)?;
        Some((low, high))
    }
}

/// The real roots of a·x² + b·x + c, none where all is zero.
fn roots(a: f64, b: f64, c: f64) -> Vec<f64> {
    if a == 0.0 {
        return if b == 0.0 { Vec::new() } else { vec![-c / b] };
    }
    let discriminant = b * b - 4.0 * a * c;
    if discriminant < 0.0 {
        return Vec::new();
    }
    // Without the difference of two near numbers.
    let larger = -0.5 * (b + discriminant.sqrt().copysign(b));
    if larger == 0.0 { vec![0.0] } else { vec![larger / a, c / larger] }
}

/// Of each of these rounds, the logarithm of the line's latency at a place over the variant's.
fn log_ratios(
    variant: &Placed,
    dense: &[&Placed],
    rounds: &[usize],
    place: Place,
) -> impl Iterator<Item = f64> {
    rounds.iter().map(move |round| {
        let places: Vec<f64> = dense.iter().map(|dense| dense.seconds[round].ln()).collect();
        interpolate(&places, place) - variant.seconds[round].ln()
    })
}

fn interpolate(values: &[f64], place: Place) -> f64 {
    let number = (place.floor() as usize).min(values.len() - 2);
    let share = place - number as f64;
    values[number] * (1.0 - share) + values[number + 1] * share
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn covariance(a: &[f64], b: &[f64]) -> f64 {
    let (mean_a, mean_b) = (mean(a), mean(b));
    let products = a.iter().zip(b).map(|(a, b)| (a - mean_a) * (b - mean_b));
    products.sum::<f64>() / (a.len() - 1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;
    use rand_distr::{Distribution, Normal};

    fn by_seed(values: &[f64]) -> BySeed {
        (1..).zip(values.iter().copied()).collect()
    }

    fn close(found: f64, expected: f64) {
        assert!(
            (found - expected).abs() < 1e-4 * expected.abs().max(1e-3),
            "{found}, not {expected}"
        );
    }

    /// Differences −0.033, −0.036, −0.038, −0.038: mean −0.03625, sum of squares of 3.25e-3, 0.25e-3, −1.75e-3,
    /// −1.75e-3 is 1.675e-5, so s = √(1.675e-5 / 3) = 2.3629e-3, and 3.1824 · s / 2 = 3.7599e-3.
    #[test]
    fn a_paired_interval_by_hand() {
        let dense = by_seed(&[4.1, 4.2, 4.0, 4.3]);
        let altup = by_seed(&[4.1 - 0.033, 4.2 - 0.036, 4.0 - 0.038, 4.3 - 0.038]);
        let difference = PairedDifference::of(&altup, &dense).unwrap();
        assert_eq!((difference.pairs, difference.unpaired), (4, 0));
        close(difference.mean, -0.03625);
        close(difference.standard_deviation.unwrap(), 2.3629e-3);
        let interval = difference.interval.unwrap();
        close(interval.low, -0.03625 - 3.7599e-3);
        close(interval.high, -0.03625 + 3.7599e-3);
        assert_eq!(difference.verdict(), Verdict::Below);
        // Unpaired, the spread of the seeds (0.13) would drown it.
        assert!(Spread::of(dense.into_values()).unwrap().standard_deviation.unwrap() > 0.12);
    }

    /// t of 1, 2, 4 and 30 degrees of freedom, from a table.
    #[test]
    fn quantiles_are_students() {
        for (count, expected) in [(2, 12.7062), (3, 4.30265), (5, 2.77645), (31, 2.04227)] {
            close(t_quantile(count), expected);
        }
    }

    #[test]
    fn one_seed_has_no_interval_and_two_are_few() {
        let one = PairedDifference::of(&by_seed(&[1.0]), &by_seed(&[1.5])).unwrap();
        assert_eq!((one.mean, one.standard_deviation, one.interval), (-0.5, None, None));
        assert_eq!((one.verdict(), one.is_of_few()), (Verdict::Undecided, true));
        // 0.1 ± 12.7062 · 0.01414 / √2 = 0.1 ± 0.12706
        let two = PairedDifference::of(&by_seed(&[1.09, 2.11]), &by_seed(&[1.0, 2.0])).unwrap();
        close(two.interval.unwrap().low, 0.1 - 0.127062);
        assert_eq!((two.verdict(), two.is_of_few()), (Verdict::Undecided, true));
    }

    #[test]
    fn ties_and_equal_differences_have_intervals_of_no_width() {
        let dense = by_seed(&[4.0, 4.5, 4.25]);
        let tie = PairedDifference::of(&dense, &dense).unwrap();
        assert_eq!(tie.interval, Some(Interval { low: 0.0, high: 0.0 }));
        assert_eq!(tie.verdict(), Verdict::Undecided);
        let lower = by_seed(&[3.75, 4.25, 4.0]);
        let shifted = PairedDifference::of(&lower, &dense).unwrap();
        assert_eq!(shifted.interval, Some(Interval { low: -0.25, high: -0.25 }));
        assert_eq!(shifted.verdict(), Verdict::Below);
    }

    #[test]
    fn seeds_without_their_pair_are_left_out_and_counted() {
        let dense = BySeed::from([(1, 4.0), (2, 4.5), (3, 9.0)]);
        let altup = BySeed::from([(1, 3.5), (2, 4.25), (4, 0.0)]);
        let difference = PairedDifference::of(&altup, &dense).unwrap();
        assert_eq!((difference.pairs, difference.unpaired, difference.mean), (2, 2, -0.375));
        assert_eq!(PairedDifference::of(&altup, &BySeed::from([(9, 1.0)])), None);
        assert_eq!(Spread::of([]), None);
    }

    /// Draws from a normal distribution of standard deviation 1.
    struct Draws(ChaCha8Rng, Normal<f64>);

    impl Draws {
        fn new(seed: u64) -> Self {
            Self(ChaCha8Rng::seed_from_u64(seed), Normal::new(0.0, 1.0).unwrap())
        }

        fn next(&mut self) -> f64 {
            self.1.sample(&mut self.0)
        }
    }

    /// Studies of 5 seeds: a seed moves all variants by 0.03 in common, and each by 0.01 on its own.
    #[test]
    #[allow(clippy::print_stdout)] // The coverage is to be read, not only to pass.
    fn the_paired_interval_holds_the_true_effect_in_95_of_100_studies() {
        let mut draws = Draws::new(17);
        for effect in [-0.035, 0.0] {
            let mut covered = 0;
            for _ in 0..1000 {
                let (mut dense, mut altup) = (BySeed::new(), BySeed::new());
                for seed in 0..5 {
                    let common = 4.1 + 0.03 * draws.next();
                    dense.insert(seed, common + 0.01 * draws.next());
                    altup.insert(seed, common + effect + 0.01 * draws.next());
                }
                let difference = PairedDifference::of(&altup, &dense).unwrap();
                let interval = difference.interval.unwrap();
                covered += usize::from(interval.low <= effect && effect <= interval.high);
            }
            println!("effect {effect}: {covered} of 1000 intervals hold it");
            assert!((930..=970).contains(&covered), "{covered} of 1000");
        }
    }

    fn by_round(seconds: impl IntoIterator<Item = f64>) -> BTreeMap<usize, f64> {
        seconds.into_iter().enumerate().collect()
    }

    fn placed(seconds: f64, losses: &[f64]) -> Placed {
        Placed { seconds: by_round([seconds; 3]), losses: by_seed(losses) }
    }

    /// From 1 s and 4.4 to 4 s and 4.0 the line reaches 4.2 halfway in log latency: at 2 s. A variant that takes 1.25 s
    /// is 1.6 times as fast.
    #[test]
    fn a_speed_up_by_hand() {
        let dense = [placed(4.0, &[4.0]), placed(1.0, &[4.4]), placed(16.0, &[3.9])];
        let SpeedUp::OnLine { ratio, low, high, seeds, .. } =
            SpeedUp::of(&placed(1.25, &[4.2]), &dense).unwrap()
        else {
            panic!("4.2 is on the line");
        };
        close(ratio, 1.6);
        assert_eq!((low, high, seeds), (None, None, 1));
        assert_eq!(SpeedUp::of(&placed(1.25, &[4.2]), &dense[..1]), None);
    }

    /// Two seeds, gaps at 1 s of 0.2 ± 0.01 and at 4 s of −0.2 ± 0.01, the same seed above in both: at a share x of the
    /// way the gaps are 0.2 − 0.4 x ± 0.01, and |0.2 − 0.4 x| ≤ 12.7062 · 0.01 leaves x in 0.5 ± 0.31766. The ratios
    /// are 4^x: 2 · 4^±0.31766.
    #[test]
    fn the_interval_of_a_speed_up_by_hand() {
        let variant = placed(1.0, &[4.0, 4.0]);
        let dense = [placed(1.0, &[4.21, 4.19]), placed(4.0, &[3.81, 3.79])];
        let SpeedUp::OnLine { ratio, low, high, .. } = SpeedUp::of(&variant, &dense).unwrap()
        else {
            panic!("4.0 is on the line");
        };
        close(ratio, 2.0);
        close(low.unwrap(), 2.0 * 4f64.powf(-0.317655));
        close(high.unwrap(), 2.0 * 4f64.powf(0.317655));
    }

    #[test]
    fn seeds_that_agree_give_a_speed_up_without_width() {
        let dense = [placed(1.0, &[4.5, 4.6]), placed(4.0, &[4.1, 4.2])];
        let SpeedUp::OnLine { ratio, low, high, .. } =
            SpeedUp::of(&placed(1.0, &[4.3, 4.4]), &dense).unwrap()
        else {
            panic!("4.3 is on the line");
        };
        close(ratio, 2.0);
        close(low.unwrap(), 2.0);
        close(high.unwrap(), 2.0);
    }

    #[test]
    fn what_the_line_does_not_reach_is_not_extrapolated() {
        let dense = [
            placed(1.0, &[4.41, 4.40, 4.39]),
            placed(2.0, &[4.21, 4.20, 4.19]),
            placed(4.0, &[4.11, 4.10, 4.09]),
        ];
        let of = |losses: &[f64]| SpeedUp::of(&placed(1.0, losses), &dense).unwrap();
        // Far better than all: more than 4 times, for the slowest dense model is worse.
        let SpeedUp::BetterThanLine { above, seeds, rounds } = of(&[3.51, 3.5, 3.49]) else {
            panic!()
        };
        close(above.unwrap(), 4.0);
        assert_eq!((seeds, rounds), (3, 3));
        let SpeedUp::WorseThanLine { below, .. } = of(&[4.61, 4.6, 4.59]) else { panic!() };
        close(below.unwrap(), 1.0);
        // Better by less than the seeds spread: the lower end is on the line.
        let SpeedUp::BetterThanLine { above, .. } = of(&[4.08, 4.13, 4.07]) else { panic!() };
        assert!((2.0..4.0).contains(&above.unwrap()), "{above:?}");
        // One seed can't say how sure that is.
        let SpeedUp::BetterThanLine { above, .. } = of(&[3.5]) else { panic!() };
        assert_eq!(above, None);
        // So noisy that no dense model is excluded.
        let SpeedUp::OnLine { low, high, .. } = of(&[5.0, 4.2, 3.4]) else { panic!() };
        assert_eq!((low, high), (None, None));
    }

    #[test]
    fn a_line_that_goes_up_again_is_read_where_it_first_comes_down() {
        let dense =
            [placed(1.0, &[4.4]), placed(2.0, &[4.0]), placed(4.0, &[4.5]), placed(8.0, &[3.5])];
        let SpeedUp::OnLine { ratio, .. } = SpeedUp::of(&placed(1.0, &[4.2]), &dense).unwrap()
        else {
            panic!()
        };
        close(ratio, 2f64.sqrt());
    }

    #[test]
    fn seeds_that_a_dense_model_lacks_are_left_out_of_a_speed_up() {
        let dense = [placed(1.0, &[4.4, 4.4]), placed(4.0, &[4.0])];
        let Some(SpeedUp::OnLine { ratio, seeds, .. }) =
            SpeedUp::of(&placed(1.0, &[4.2, 9.0]), &dense)
        else {
            panic!()
        };
        close(ratio, 2.0);
        assert_eq!(seeds, 1);
        let other = Placed { losses: BySeed::from([(7, 4.2)]), ..dense[0].clone() };
        assert_eq!(SpeedUp::of(&other, &dense), None);
        let unmeasured = Placed { seconds: BTreeMap::new(), ..dense[0].clone() };
        assert_eq!(SpeedUp::of(&unmeasured, &dense), None);
    }

    /// One round says nothing of how latencies spread.
    #[test]
    fn one_round_has_no_interval() {
        let one_round = |seconds: f64, losses: &[f64]| Placed {
            seconds: by_round([seconds]),
            losses: by_seed(losses),
        };
        let dense = [one_round(1.0, &[4.5, 4.6]), one_round(4.0, &[4.1, 4.2])];
        let SpeedUp::OnLine { ratio, low, high, seeds, rounds } =
            SpeedUp::of(&one_round(1.0, &[4.3, 4.4]), &dense).unwrap()
        else {
            panic!("4.3 is on the line");
        };
        close(ratio, 2.0);
        assert_eq!((low, high, seeds, rounds), (None, None, 2, 1));
    }

    /// A round in which the machine does something else falls on all models.
    #[test]
    fn a_slow_round_changes_no_ratio() {
        let in_rounds = |seconds: f64, losses: &[f64]| Placed {
            seconds: by_round([1.0, 9.0, 1.5].map(|slow| seconds * slow)),
            losses: by_seed(losses),
        };
        let dense = [in_rounds(1.0, &[4.5, 4.6]), in_rounds(4.0, &[4.1, 4.2])];
        let SpeedUp::OnLine { ratio, low, high, .. } =
            SpeedUp::of(&in_rounds(1.0, &[4.3, 4.4]), &dense).unwrap()
        else {
            panic!("4.3 is on the line");
        };
        [ratio, low.unwrap(), high.unwrap()].into_iter().for_each(|found| close(found, 2.0));
    }

    /// A model that lacks a round, as one that ran out of memory there, has its ratios from the others.
    #[test]
    fn ratios_are_of_the_same_round() {
        let in_rounds = |seconds: [Option<f64>; 3], losses: &[f64]| Placed {
            seconds: (0..).zip(seconds).filter_map(|(round, of)| Some((round, of?))).collect(),
            losses: by_seed(losses),
        };
        let dense = [
            in_rounds([Some(1.0), Some(9.0), Some(1.5)], &[4.5, 4.6]),
            in_rounds([Some(4.0), Some(36.0), Some(6.0)], &[4.1, 4.2]),
        ];
        let variant = in_rounds([None, Some(9.0), Some(1.5)], &[4.3, 4.4]);
        let Some(SpeedUp::OnLine { ratio, rounds, .. }) = SpeedUp::of(&variant, &dense) else {
            panic!("4.3 is on the line");
        };
        close(ratio, 2.0);
        assert_eq!(rounds, 2);
        // A dense model that has slow rounds alone stays where it is on the line.
        let of_slow = [in_rounds([None, Some(9.0), None], &[4.5, 4.6]), dense[1].clone()];
        let Some(SpeedUp::OnLine { ratio, rounds, .. }) = SpeedUp::of(&variant, &of_slow) else {
            panic!("4.3 is on the line");
        };
        close(ratio, 2.0);
        assert_eq!(rounds, 1);
        let of_another = in_rounds([Some(1.0), None, None], &[4.3, 4.4]);
        let of_others = [in_rounds([None, Some(1.0), None], &[4.5, 4.6]), dense[1].clone()];
        assert_eq!(SpeedUp::of(&of_another, &of_others), None, "no round in common");
    }

    /// What falls on all models of a seed or round, and on each alone.
    struct Noise {
        common_loss: f64,
        loss: f64,
        common_latency: f64,
        latency: f64,
    }

    /// Fieller's interval is exact for the seeds and Student's for the rounds; their sum in quadrature is wider than it need
    /// be where both count. So at least 93 of 100 and, since an interval that is far too wide would be no result
    /// either, at most 99. Open ends count: they are true. One of the losses is the line's end, where most are open.
    #[test]
    #[allow(clippy::print_stdout)] // The coverage is to be read, not only to pass.
    fn the_interval_of_a_speed_up_holds_the_true_one() {
        let noises = [
            // Seeds decide, both do, rounds do, on a quiet machine and on a noisy one.
            Noise { common_loss: 0.03, loss: 0.015, common_latency: 0.05, latency: 0.02 },
            Noise { common_loss: 0.03, loss: 0.006, common_latency: 0.1, latency: 0.05 },
            Noise { common_loss: 0.03, loss: 0.0002, common_latency: 0.05, latency: 0.02 },
            Noise { common_loss: 0.03, loss: 0.003, common_latency: 0.5, latency: 0.05 },
        ];
        // The line: 1, 2, 4 s with losses 4.3, 4.1, 3.95. A loss of 4.15 is 3/4 of the way to the second: 2^0.75 s. One of
        // 3.96 is 14/15 of the way to the third.
        let losses = [(4.15, 2f64.powf(0.75)), (3.96, 2.0 * 2f64.powf(14.0 / 15.0))];
        let mut draws = Draws::new(23);
        for noise in noises {
            for (loss, seconds) in losses {
                let truth = seconds / 1.1;
                let (mut covered, mut open, mut off_line) = (0, 0, 0);
                for _ in 0..1000 {
                    let commons: Vec<f64> =
                        (0..5).map(|_| noise.common_loss * draws.next()).collect();
                    let machine: Vec<f64> =
                        (0..5).map(|_| noise.common_latency * draws.next()).collect();
                    let mut model =
                        |seconds: f64, loss: f64| Placed {
                            seconds: by_round(machine.iter().map(|common| {
                                seconds * (common + noise.latency * draws.next()).exp()
                            })),
                            losses: (0..)
                                .zip(
                                    commons
                                        .iter()
                                        .map(|common| loss + common + noise.loss * draws.next()),
                                )
                                .collect(),
                        };
                    let dense = [model(1.0, 4.3), model(2.0, 4.1), model(4.0, 3.95)];
                    match SpeedUp::of(&model(1.1, loss), &dense).unwrap() {
                        SpeedUp::OnLine { low, high, .. } => {
                            open += usize::from(low.is_none() || high.is_none());
                            let above = low.is_none_or(|low| low <= truth);
                            let below = high.is_none_or(|high| truth <= high);
                            covered += usize::from(above && below);
                        }
                        SpeedUp::BetterThanLine { above, .. } => {
                            off_line += 1;
                            covered += usize::from(above.is_none_or(|above| above <= truth));
                        }
                        SpeedUp::WorseThanLine { below, .. } => {
                            off_line += 1;
                            covered += usize::from(below.is_none_or(|below| truth <= below));
                        }
                    }
                }
                println!(
                    "{loss} with noise {}, {}: {covered} of 1000 hold it; {open} without an end, {off_line} off the line",
                    noise.loss, noise.latency
                );
                assert!((930..=990).contains(&covered), "{loss}: {covered} of 1000");
            }
        }
    }
}
