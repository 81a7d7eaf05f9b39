use burn::backend::TensorMetadata;
use burn::tensor::{Shape, TensorData};

use super::{CrossEntropyBackend, CrossEntropyOptions, primitive};
use crate::operations::testing::{
    assert_close, assert_gradients, data, labels, on_each_backend, permuted, values,
};

on_each_backend! {
    kernels_are_the_default,
    gradients_agree_with_finite_differences,
    what_is_held_stays,
    what_is_ignored_may_be_anything,
    a_logit_of_minus_infinity_counts_for_nothing,
    an_empty_batch_stays_empty,
}

fn options() -> [CrossEntropyOptions; 4] {
    [(0.0, 0.0), (0.1, 0.0), (0.0, 1e-2), (0.2, 1e-3)]
        .map(|(label_smoothing, z_loss)| CrossEntropyOptions { label_smoothing, z_loss })
}

fn kernels_are_the_default<B: CrossEntropyBackend>() {
    for (tokens, vocab_size) in [(1, 1), (3, 7), (17, 16), (5, 300), (70, 512)] {
        for options in options() {
            let logits = || B::float_mul_scalar(values::<B>(&[tokens, vocab_size], 1), 4.0.into());
            let labels = || labels::<B>(tokens, vocab_size);
            let grad = || values::<B>(&[tokens], 4);
            for logits in [&logits as &dyn Fn() -> _, &|| permuted::<B>(logits())] {
                assert_close::<B>(
                    B::cross_entropy(logits(), labels(), options),
                    primitive::cross_entropy::<B>(logits(), labels(), options),
                );
                assert_close::<B>(
                    B::cross_entropy_backward(logits(), labels(), grad(), options),
                    primitive::cross_entropy_backward::<B>(logits(), labels(), grad(), options),
                );
            }
        }
    }
}

fn gradients_agree_with_finite_differences<B: CrossEntropyBackend>() {
    for options in options() {
        let grad = values::<B>(&[6], 3);
        let logits = values::<B>(&[6, 11], 1);
        let labels = || labels::<B>(6, 11);
        let grads = B::cross_entropy_backward(logits.clone(), labels(), grad.clone(), options);
        assert_gradients::<B, 1>([logits], [grads], &grad, |[logits]| {
            B::cross_entropy(logits, labels(), options)
        });
    }
}

/// The kernel writes over the logits only where nobody else reads them.
fn what_is_held_stays<B: CrossEntropyBackend>() {
    let held = values::<B>(&[4, 8], 1);
    let options = CrossEntropyOptions::default();
    B::cross_entropy_backward(held.clone(), labels::<B>(4, 8), values::<B>(&[4], 4), options);
    assert_close::<B>(held, values::<B>(&[4, 8], 1));
}

/// The second label is padding: neither an infinite nor an undefined logit reaches its loss or gradients.
fn what_is_ignored_may_be_anything<B: CrossEntropyBackend>() {
    let tensor = |values: &[f32], shape: &[usize]| {
        B::float_from_data(TensorData::new(values.to_vec(), shape.to_vec()), &B::Device::default())
    };
    for (ignored, label) in [(f32::NEG_INFINITY, 0), (f32::NAN, -100)] {
        let logits = || tensor(&[1.0, 2.0, 3.0, ignored, 2.0, 3.0], &[2, 3]);
        let labels = || {
            let labels = TensorData::new(vec![1i32, label], [2]);
            B::int_from_data(labels, &B::Device::default())
        };
        for options in options() {
            let losses = primitive::cross_entropy::<B>(logits(), labels(), options);
            assert_close::<B>(B::cross_entropy(logits(), labels(), options), losses.clone());
            let losses: Vec<f32> = data::<B>(losses).iter().collect();
            assert!(losses[0] > 0.0 && losses[1] == 0.0, "{losses:?}");
            let ones = || tensor(&[1.0, 1.0], &[2]);
            let grads = primitive::cross_entropy_backward::<B>(logits(), labels(), ones(), options);
            let found = B::cross_entropy_backward(logits(), labels(), ones(), options);
            assert_close::<B>(found, grads.clone());
            let grads: Vec<f32> = data::<B>(grads).iter().collect();
            assert_eq!(&grads[3..], [0.0; 3]);
        }
    }
}

/// As of ids that a padded vocabulary doesn't have: log(1 + e) − 1 = 0.3133 where the label's logit is 1 beside a 0.
fn a_logit_of_minus_infinity_counts_for_nothing<B: CrossEntropyBackend>() {
    let device = B::Device::default();
    let logits = TensorData::new(vec![0.0, 1.0, f32::NEG_INFINITY], [1, 3]);
    let labels = B::int_from_data(TensorData::new(vec![1i32], [1]), &device);
    let options = CrossEntropyOptions::default();
    let losses = B::cross_entropy(B::float_from_data(logits, &device), labels, options);
    let loss = data::<B>(losses).iter::<f32>().next().unwrap();
    assert!((loss - 0.313_261_7).abs() < 1e-5, "{loss}");
}

fn an_empty_batch_stays_empty<B: CrossEntropyBackend>() {
    let options = CrossEntropyOptions::default();
    let losses = B::cross_entropy(values::<B>(&[0, 8], 1), labels::<B>(0, 8), options);
    assert_eq!(losses.shape(), Shape::new([0]));
}

#[cfg(feature = "flex")]
#[test]
#[should_panic(expected = "label=8, vocab_size=8")]
fn a_label_beyond_the_vocabulary_is_a_bug() {
    use burn::tensor::{Device, Int, Tensor};

    let device = Device::flex();
    let labels = Tensor::<1, Int>::from_data([8], &device);
    super::cross_entropy(Tensor::zeros([1, 8], &device), labels, CrossEntropyOptions::default());
}
