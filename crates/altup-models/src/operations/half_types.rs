//! Kernels for GPUs in f16 and bf16, where the device has them, against f32 of the same numbers.

use altup_backend::philox::DropoutMask;
#[cfg(not(feature = "wgpu"))]
use burn::backend::Cuda as Gpu;
#[cfg(feature = "wgpu")]
use burn::backend::Wgpu as Gpu;
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::{DType, FloatDType, Tolerance};

use super::attention::AttentionBackend;
use super::cross_entropy::{CrossEntropyBackend, CrossEntropyOptions};
use super::gated_gelu::GatedGeluBackend;
use super::rms_norm::RmsNormBackend;
use super::testing::{data, labels, values};

type Float = FloatTensor<Gpu>;

fn full(tensor: Float) -> Float {
    Gpu::float_cast(tensor, FloatDType::F32)
}

/// Of numbers below 4: 8 bits of bf16, rounded a few times.
#[track_caller]
fn assert_near(dtype: DType, found: Float, expected: Float) {
    assert_eq!(found.dtype(), dtype);
    let tolerance = Tolerance::<f32>::rel_abs(3e-2, 3e-2);
    data::<Gpu>(full(found)).assert_approx_eq(&data::<Gpu>(expected), tolerance);
}

#[test]
#[allow(clippy::print_stderr)] // What is skipped is said.
fn half_types_are_f32_rounded() {
    for dtype in [DType::F16, DType::BF16] {
        if !Gpu::supports_dtype(&Default::default(), dtype) {
            eprintln!("skipped: this device has no {dtype:?}");
            continue;
        }
        operations(dtype);
    }
}

fn operations(dtype: DType) {
    let tensor = |shape: &[usize], seed| {
        Gpu::float_cast(values::<Gpu>(shape, seed), FloatDType::from(dtype))
    };
    let [x, y, grad] = [1, 2, 3].map(|seed| tensor(&[6, 24], seed));
    let gamma = tensor(&[24], 4);

    let output = Gpu::rms_norm(x.clone(), gamma.clone(), 1e-6);
    assert_near(dtype, output, Gpu::rms_norm(full(x.clone()), full(gamma.clone()), 1e-6));
    let found = Gpu::rms_norm_backward(x.clone(), gamma.clone(), grad.clone(), 1e-6);
    let expected = Gpu::rms_norm_backward(full(x.clone()), full(gamma), full(grad.clone()), 1e-6);
    assert_near(dtype, found.0, expected.0);
    assert_near(dtype, found.1, expected.1);

    let output = Gpu::gated_gelu(x.clone(), y.clone());
    assert_near(dtype, output, Gpu::gated_gelu(full(x.clone()), full(y.clone())));
    let found = Gpu::gated_gelu_backward(x.clone(), y.clone(), grad.clone());
    let expected = Gpu::gated_gelu_backward(full(x.clone()), full(y), full(grad));
    assert_near(dtype, found.0, expected.0);
    assert_near(dtype, found.1, expected.1);

    let options = CrossEntropyOptions { label_smoothing: 0.1, z_loss: 1e-3 };
    let labels = || labels::<Gpu>(6, 24);
    let output = Gpu::cross_entropy(x.clone(), labels(), options);
    assert_near(DType::F32, output, Gpu::cross_entropy(full(x.clone()), labels(), options));
    let ones = values::<Gpu>(&[6], 5);
    let found = Gpu::cross_entropy_backward(x.clone(), labels(), ones.clone(), options);
    let expected = Gpu::cross_entropy_backward(full(x), labels(), ones, options);
    assert_near(dtype, found, expected);

    let [query, key, value, grad] = [1, 2, 3, 4].map(|seed| tensor(&[2, 5, 3, 8], seed));
    let bias = values::<Gpu>(&[1, 3, 5, 5], 5);
    let mask = Some(DropoutMask::new([1, 2], 3, 0.3));
    let run = |[query, key, value, grad]: [Float; 4]| {
        let inputs = || (query.clone(), key.clone(), value.clone(), bias.clone());
        let (q, k, v, b) = inputs();
        let (output, saved) = Gpu::biased_attention(q, k, v, b, mask);
        let (q, k, v, b) = inputs();
        let kept = output.clone();
        let grads = Gpu::biased_attention_backward(q, k, v, b, kept, saved, grad, mask, true);
        (output, grads)
    };
    let inputs = [query, key, value, grad];
    let (output, grads) = run(inputs.clone());
    let (expected, expected_grads) = run(inputs.map(full));
    assert_near(dtype, output, expected);
    assert_near(dtype, grads.0, expected_grads.0);
    assert_near(dtype, grads.1, expected_grads.1);
    assert_near(dtype, grads.2, expected_grads.2);
    assert_near(DType::F32, grads.3, expected_grads.3);
}
