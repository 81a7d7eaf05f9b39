//! Figures of several measurements.

/// The middle value; the mean of the two middle ones of an even number. Of none it is NaN.
pub fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => values[middle],
        _ => (values[middle - 1] + values[middle]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 20.0]), 3.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 20.0]), 3.0);
        assert!(median(&[]).is_nan());
    }
}
