use burn::backend::tensor::IntTensor;
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::{DType, FloatDType, TensorData};

use super::PositionBiasBackend;
use crate::operations::testing::{assert_gradients, data, has_bf16, on_each_backend, values};

on_each_backend! {
    gradients_agree_with_finite_differences,
    no_position_has_no_gradient,
    gradients_of_half_types_are_summed_in_f32,
}

/// Five buckets: distances from −2 to 2, and beyond.
fn buckets<B: Backend>([queries, keys]: [usize; 2]) -> IntTensor<B> {
    let pairs = (0..queries).flat_map(|query| (0..keys).map(move |key| (query, key)));
    let buckets: Vec<i32> =
        pairs.map(|(query, key)| (key as i32 - query as i32).clamp(-2, 2) + 2).collect();
    B::int_from_data(TensorData::new(buckets, [queries * keys]), &B::Device::default())
}

#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod kernels {
    use super::*;
    use crate::operations::position_bias::primitive;
    use crate::operations::testing::{assert_close, on_gpus};

    on_gpus!(kernels_are_the_default);

    fn kernels_are_the_default<B: PositionBiasBackend>() {
        for lengths @ [queries, keys] in [[1, 1], [1, 9], [9, 1], [5, 5], [7, 40], [130, 33]] {
            for heads in [1, 3] {
                let weight = || values::<B>(&[5, heads], 1);
                let grad = || values::<B>(&[1, heads, queries, keys], 2);
                assert_close::<B>(
                    B::position_bias(weight(), buckets::<B>(lengths), lengths),
                    primitive::position_bias::<B>(weight(), buckets::<B>(lengths), lengths),
                );
                assert_close::<B>(
                    B::position_bias_backward(weight(), buckets::<B>(lengths), grad()),
                    primitive::position_bias_backward::<B>(weight(), buckets::<B>(lengths), grad()),
                );
            }
        }
    }
}

fn gradients_agree_with_finite_differences<B: PositionBiasBackend>() {
    let (lengths, weight) = ([4, 6], values::<B>(&[5, 2], 1));
    let grad = values::<B>(&[1, 2, 4, 6], 2);
    let found = B::position_bias_backward(weight.clone(), buckets::<B>(lengths), grad.clone());
    assert_gradients::<B, 1>([weight], [found], &grad, |[weight]| {
        B::position_bias(weight, buckets::<B>(lengths), lengths)
    });
}

fn no_position_has_no_gradient<B: PositionBiasBackend>() {
    let grad = values::<B>(&[1, 2, 0, 6], 2);
    let found = B::position_bias_backward(values::<B>(&[5, 2], 1), buckets::<B>([0, 6]), grad);
    assert!(data::<B>(found).iter::<f32>().all(|grad| grad == 0.0));
}

/// Of 64 × 64 pairs Σ (64 − d) over d from 2 to 63 = 1,953 have the last bucket: in bf16, 256 + 1 is 256.
fn gradients_of_half_types_are_summed_in_f32<B: PositionBiasBackend>() {
    if !has_bf16::<B>() {
        return;
    }
    let weight = B::float_cast(values::<B>(&[5, 1], 1), FloatDType::BF16);
    let ones = TensorData::ones::<f32, _>([1, 1, 64, 64]);
    let ones = B::float_from_data(ones, &B::Device::default());
    let grad = B::position_bias_backward(weight, buckets::<B>([64, 64]), ones);
    assert_eq!(grad.dtype(), DType::BF16);
    let grad: Vec<f32> = data::<B>(B::float_cast(grad, FloatDType::F32)).iter().collect();
    assert!((grad[4] / 1953.0 - 1.0).abs() < 0.005, "{grad:?}");
}
