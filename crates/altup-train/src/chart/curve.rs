//! What is done to the points of a curve before it is drawn.

/// Positions on both axes, see `Scale::position`.
pub(super) type Place = (f64, f64);

/// The mean of each point and its neighbours, over about a fiftieth of the curve. Towards the ends there are fewer
/// neighbours, on both sides alike, so that a curve which falls isn't pulled up by what lies behind.
pub(super) fn moving_mean(points: &[Place]) -> Vec<Place> {
    let half = points.len() / 100;
    let mean = |(index, &(x, _)): (usize, &Place)| {
        let reach = half.min(index).min(points.len() - 1 - index);
        let near = &points[index - reach..=index + reach];
        (x, near.iter().map(|point| point.1).sum::<f64>() / near.len() as f64)
    };
    points.iter().enumerate().map(mean).collect()
}

/// Fewer points for the same picture: where many share a pixel, their lowest and highest remain.
pub(super) fn thinned(points: &[Place]) -> Vec<Place> {
    const BUCKETS: usize = 600;
    if points.len() <= 2 * BUCKETS {
        return points.to_vec();
    }
    let mut kept = Vec::with_capacity(2 * BUCKETS);
    for bucket in points.chunks(points.len().div_ceil(BUCKETS)) {
        let low = bucket.iter().min_by(|a, b| a.1.total_cmp(&b.1));
        let high = bucket.iter().max_by(|a, b| a.1.total_cmp(&b.1));
        let mut extremes: Vec<Place> = low.into_iter().chain(high).copied().collect();
        extremes.sort_by(|a, b| a.0.total_cmp(&b.0));
        kept.extend(extremes);
    }
    kept
}

/// The pieces of a curve that lie below `ceiling`, cut where the curve crosses it.
pub(super) fn below(points: &[Place], ceiling: f64) -> Vec<Vec<Place>> {
    let mut pieces = Vec::new();
    let mut piece: Vec<Place> = Vec::new();
    let mut previous: Option<Place> = None;
    for &point in points {
        if let Some(before) = previous
            && (before.1 > ceiling) != (point.1 > ceiling)
        {
            let share = (ceiling - before.1) / (point.1 - before.1);
            piece.push((before.0 + share * (point.0 - before.0), ceiling));
        }
        if point.1 <= ceiling {
            piece.push(point);
        } else if !piece.is_empty() {
            pieces.push(std::mem::take(&mut piece));
        }
        previous = Some(point);
    }
    if !piece.is_empty() {
        pieces.push(piece);
    }
    pieces
}

/// The highest value worth showing: the highest there is, unless the topmost 2 % of many values
/// would take more than half of the axis for themselves.
pub(super) fn focus(sorted: &[f64]) -> f64 {
    let (Some(&low), Some(&high)) = (sorted.first(), sorted.last()) else { return 0.0 };
    let typical = match sorted.len() {
        0..20 => high,
        len => sorted[(len - 1) * 98 / 100],
    };
    if high - typical > typical - low { typical } else { high }
}

/// Intercept and slope of the line with the least squared vertical distances; none through fewer than two
/// points, or where all lie above each other.
pub(super) fn fitted(points: &[Place]) -> Option<(f64, f64)> {
    let count = points.len() as f64;
    let mean = |coordinate: fn(&Place) -> f64| points.iter().map(coordinate).sum::<f64>() / count;
    let (x_mean, y_mean) = (mean(|point| point.0), mean(|point| point.1));
    let products = points.iter().map(|(x, y)| (x - x_mean) * (y - y_mean)).sum::<f64>();
    let squares = points.iter().map(|(x, _)| (x - x_mean).powi(2)).sum::<f64>();
    let slope = products / squares;
    slope.is_finite().then_some((y_mean - slope * x_mean, slope))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_is_cut_where_it_crosses_the_ceiling() {
        let points = [(0.0, 4.0), (1.0, 0.0), (2.0, 0.0), (3.0, 8.0), (4.0, 4.0), (5.0, 1.0)];
        assert_eq!(
            below(&points, 2.0),
            [
                vec![(0.5, 2.0), (1.0, 0.0), (2.0, 0.0), (2.25, 2.0)],
                vec![(4.0 + 2.0 / 3.0, 2.0), (5.0, 1.0)],
            ]
        );
    }

    #[test]
    fn the_moving_mean_of_a_line_is_that_line() {
        let points: Vec<Place> = (0..500).map(|n| (f64::from(n), 3.0 * f64::from(n))).collect();
        assert_eq!(moving_mean(&points), points);
        let mut points = vec![(0.0, 0.0); 200];
        points[100].1 = 5.0;
        let mean = moving_mean(&points);
        let around: Vec<f64> = (97..=103).map(|index: usize| mean[index].1).collect();
        assert_eq!(around, [0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0], "the mean of five");
    }

    #[test]
    fn thinning_keeps_the_extremes() {
        let mut points: Vec<Place> = (0..10_000).map(|n| (f64::from(n), 1.0)).collect();
        points[1234].1 = 9.0;
        points[4321].1 = -9.0;
        let kept = thinned(&points);
        assert!(kept.len() <= 1200);
        assert!(kept.contains(&(1234.0, 9.0)) && kept.contains(&(4321.0, -9.0)));
    }

    #[test]
    fn an_even_spread_is_shown_whole() {
        let even: Vec<f64> = (0..100).map(f64::from).collect();
        assert_eq!(focus(&even), 99.0);
        let mut spiked = even;
        spiked[99] = 1000.0;
        assert_eq!(focus(&spiked), 97.0);
    }

    #[test]
    fn a_line_is_fitted_by_least_squares() {
        // y = 1 + 2x, and a pair of points a half above and below it.
        let points = [(0.0, 1.0), (1.0, 3.5), (1.0, 2.5), (2.0, 5.0)];
        assert_eq!(fitted(&points), Some((1.0, 2.0)));
        assert_eq!(fitted(&[(1.0, 2.0)]), None);
        assert_eq!(fitted(&[(1.0, 2.0), (1.0, 3.0)]), None);
        assert_eq!(fitted(&[]), None);
    }
}
