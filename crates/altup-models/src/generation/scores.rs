use burn::tensor::{Tensor, Transaction};
use std::cmp::Ordering;

/// The values of all rows, on the host.
pub(super) fn to_host(logits: Tensor<2>) -> Vec<f64> {
    logits.into_data().iter::<f64>().collect()
}

/// The index of the largest logit of each row, chosen on the device; only indices and one value a row
/// are read. None if a logit of a row that counts is not finite.
///
/// # Shapes
///
/// - logits: `[rows, vocab_size]`
pub(super) fn argmax_of_finite(
    logits: Tensor<2>,
    counts: impl Fn(usize) -> bool,
) -> Option<Vec<u32>> {
    // Backends differ in what they make of NaN in an argmax, but any sum with it is NaN.
    let sums = logits.clone().sum_dim(1);
    let read = Transaction::default().register(logits.argmax(1)).register(sums).execute();
    let [indices, sums] = read.try_into().expect("a transaction gives what it registered");
    let finite = sums.iter::<f64>().enumerate().all(|(row, sum)| sum.is_finite() || !counts(row));
    finite.then(|| indices.iter::<u32>().collect())
}

/// The order of tokens with their scores: the largest first, the lowest of equal ones.
pub(super) fn by_rank(a: &(usize, f64), b: &(usize, f64)) -> Ordering {
    b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0))
}

/// The index of the largest score, the lowest of several; none if all are -inf.
pub(super) fn argmax(scores: &[f64]) -> Option<usize> {
    let mut best = None;
    let mut best_score = f64::NEG_INFINITY;
    for (index, &score) in scores.iter().enumerate() {
        if score > best_score {
            (best, best_score) = (Some(index), score);
        }
    }
    best
}

/// Makes scores log-probabilities. Scores of +inf share all of the probability, which is the limit of
/// growing together; where all are -inf they stay so.
pub(super) fn log_softmax(scores: &mut [f64]) {
    resolve_infinity(scores);
    let max = max(scores);
    if max == f64::NEG_INFINITY {
        return;
    }
    let sum: f64 = scores.iter().map(|score| (score - max).exp()).sum();
    let log_sum = max + sum.ln();
    scores.iter_mut().for_each(|score| *score -= log_sum);
}

/// Makes scores of +inf 0 and all others beside them -inf.
pub(super) fn resolve_infinity(scores: &mut [f64]) {
    if scores.contains(&f64::INFINITY) {
        for score in scores {
            *score = if *score == f64::INFINITY { 0.0 } else { f64::NEG_INFINITY };
        }
    }
}

pub(super) fn max(scores: &[f64]) -> f64 {
    scores.iter().copied().fold(f64::NEG_INFINITY, f64::max)
}

pub(super) fn has_nan(scores: &[f64]) -> bool {
    scores.iter().any(|score| score.is_nan())
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    const NEVER: f64 = f64::NEG_INFINITY;

    #[test]
    fn log_softmax_by_hand() {
        let mut scores = [1000.0, 1000.0 + 3f64.ln(), NEVER];
        log_softmax(&mut scores);
        assert!((scores[0] - 0.25f64.ln()).abs() < 1e-12, "{scores:?}");
        assert!((scores[1] - 0.75f64.ln()).abs() < 1e-12, "{scores:?}");
        assert_eq!(scores[2], NEVER);
    }

    #[test]
    fn log_softmax_of_infinities() {
        let mut scores = [1e300, f64::INFINITY, NEVER, f64::INFINITY];
        log_softmax(&mut scores);
        assert_eq!(scores, [NEVER, 0.5f64.ln(), NEVER, 0.5f64.ln()]);
        let mut scores = [NEVER; 3];
        log_softmax(&mut scores);
        assert_eq!(scores, [NEVER; 3]);
    }

    #[test]
    fn the_first_of_the_largest_is_chosen() {
        assert_eq!(argmax(&[1.0, 2.0, 2.0]), Some(1));
        assert_eq!(argmax(&[NEVER, f64::INFINITY, f64::INFINITY]), Some(1));
        assert_eq!(argmax(&[NEVER, NEVER]), None);
    }

    #[test]
    fn no_value_that_is_not_finite_escapes_the_choice_on_the_device() {
        let choose = |value: f32, column: usize, counts: bool| {
            let mut logits = vec![1.0f32; 700];
            logits[3] = 2.0;
            logits[350 + column] = value;
            let data = burn::tensor::TensorData::new(logits, [2, 350]);
            let logits = Tensor::from_data(data, &Device::flex());
            argmax_of_finite(logits, |row| row == 0 || counts)
        };
        assert_eq!(choose(5.0, 349, true), Some(vec![3, 349]));
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for column in [0, 17, 349] {
                assert_eq!(choose(value, column, true), None);
                assert_eq!(choose(value, column, false).unwrap()[0], 3);
            }
        }
    }
}
