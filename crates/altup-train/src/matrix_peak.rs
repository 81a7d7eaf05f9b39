//! How fast a device computes at best, to hold a model's speed against.

use burn::tensor::{DType, Device, Distribution, Tensor};
use std::time::{Duration, Instant};

/// What a device does on its strongest work.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MatrixPeak {
    /// Floating-point operations a second, a multiply-add counting two.
    pub flops_per_second: f64,
    /// The width of the square matrices that were multiplied.
    pub width: usize,
}

/// From this on a product is long enough to be timed.
const LONG: Duration = Duration::from_millis(40);
/// No further product is begun after this.
const BUDGET: Duration = Duration::from_millis(600);
/// 16 MiB in f32, which every device has room for.
const WIDEST: usize = 2048;

/// Measures how many operations a second a device does in products of square matrices of `dtype`: the best of
/// the products that begin within 0.6 s. The matrices grow until a product takes 40 ms, or has a width of 2048. None if the device
/// can't do it.
///
/// It is what the device reaches with the backend's own product, not what its maker promises: a model's share
/// of it says how much of the time its products take, at their shapes, beside all else that it does.
pub fn matrix_peak(device: &Device, dtype: DType) -> Option<MatrixPeak> {
    let began = Instant::now();
    let mut width = 256;
    let mut peak: Option<MatrixPeak> = None;
    let mut factors = None;
    while began.elapsed() < BUDGET {
        let (a, b) = match factors.take() {
            Some(factors) => factors,
            None => {
                let uniform = Distribution::Uniform(-1.0, 1.0);
                let factor = || Tensor::<2>::random([width, width], uniform, device).cast(dtype);
                let (a, b): (Tensor<2>, Tensor<2>) = (factor(), factor());
                // Kernels are compiled and memory is taken outside of the time.
                product(&a, &b)?;
                (a, b)
            }
        };
        let started = Instant::now();
        product(&a, &b)?;
        let time = started.elapsed();
        let flops_per_second = 2.0 * (width as f64).powi(3) / time.as_secs_f64();
        if peak.is_none_or(|peak| flops_per_second > peak.flops_per_second) {
            peak = Some(MatrixPeak { flops_per_second, width });
        }
        if time < LONG && width < WIDEST {
            width *= 2;
        } else {
            factors = Some((a, b));
        }
    }
    peak
}

/// Multiplies, and waits until that is done: one number of the product is read. None if the device can't.
fn product(a: &Tensor<2>, b: &Tensor<2>) -> Option<()> {
    let product = a.clone().matmul(b.clone());
    let number = product.narrow(0, 0, 1).narrow(1, 0, 1).try_into_data().ok()?;
    std::hint::black_box(number);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peak_is_a_rate_of_a_product() {
        let peak = matrix_peak(&crate::device::cpu(), DType::F32).unwrap();
        assert!(peak.flops_per_second.is_finite() && peak.flops_per_second > 1e6, "{peak:?}");
        assert!((256..=WIDEST).contains(&peak.width) && peak.width.is_power_of_two(), "{peak:?}");
    }
}
