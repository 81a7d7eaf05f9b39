//! Loops over rows of f32 that a compiler turns into vector instructions, inside
//! [`vectorized`](crate::vectorized).

/// Sums and maxima kept at once: two vector registers, that the additions of one need not wait for
/// those of the other.
const LANES: usize = 16;

/// eˣ to a relative error of 2e-7 between −87 and 88; 0 below, e⁸⁸ above.
///
/// After Cephes' `expf`: x = n ln 2 + r, and a polynomial of r. The standard library's goes one number at
/// a time.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Adding 1.5 · 2²³ rounds to an integer, which stands in the last bits then.
    const ROUND: f32 = 12_582_912.0;
    let clamped = x.clamp(-87.0, 88.0);
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    // ln 2 in two parts, of which the first has few bits, so that n times it is exact.
    let r = (clamped - n * 0.693_359_4) + n * 2.121_944_4e-4;
    let p = 1.987_569_1e-4 * r + 1.398_2e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_58e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 5e-1;
    let power = (shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127)) << 23;
    let value = (p * r * r + r + 1.0) * f32::from_bits(power);
    if x < -87.0 { 0.0 } else { value }
}

/// 1 / (1 + e⁻ˣ)
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The largest value; minus infinity of none.
#[inline(always)]
pub fn max(values: &[f32]) -> f32 {
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = if value > *lane { value } else { *lane };
        }
    }
    rest.iter().chain(&lanes).copied().fold(f32::NEG_INFINITY, f32::max)
}

/// Σ f(i), for each i below `count`.
#[inline(always)]
pub fn sum(count: usize, f: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    for chunk in 0..count / LANES {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += f(chunk * LANES + lane);
        }
    }
    let rest: f32 = (count / LANES * LANES..count).map(f).sum();
    lanes.iter().sum::<f32>() + rest
}

/// Puts e^(x − shift) in the place of each x, and sums them.
#[inline(always)]
pub fn exp_and_sum(values: &mut [f32], shift: f32) -> f32 {
    let (chunks, rest) = values.as_chunks_mut::<LANES>();
    let mut lanes = [0.0; LANES];
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *value = exp(*value - shift);
            *lane += *value;
        }
    }
    let mut sum = lanes.iter().sum();
    for value in rest {
        *value = exp(*value - shift);
        sum += *value;
    }
    sum
}

/// Adds one row to another.
#[inline(always)]
pub fn add(row: &mut [f32], other: &[f32]) {
    for (value, other) in row.iter_mut().zip(other) {
        *value += other;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_the_standard_librarys() {
        for step in -8700..=8800 {
            let x = step as f32 / 100.0;
            let expected = f64::from(x).exp();
            let error = (f64::from(exp(x)) - expected).abs() / expected;
            assert!(error < 2e-7, "e^{x}: {error}");
        }
        assert_eq!([exp(0.0), exp(-1e9), exp(f32::NEG_INFINITY)], [1.0, 0.0, 0.0]);
    }

    #[test]
    fn rows_of_any_length() {
        for length in 0..40 {
            let values: Vec<f32> = (0..length).map(|i| ((i * 7) % 11) as f32 - 5.0).collect();
            let largest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(max(&values), largest, "{length}");
            assert_eq!(sum(length, |i| values[i]), values.iter().sum::<f32>(), "{length}");
            let mut exps = values.clone();
            let total = exp_and_sum(&mut exps, 5.0);
            let expected: f32 = values.iter().map(|x| (x - 5.0).exp()).sum();
            assert!((total - expected).abs() <= 1e-6 * expected, "{length}");
        }
    }
}
