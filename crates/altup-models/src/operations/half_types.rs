//! Kernels for GPUs in f16 and bf16, where the device has them, against f32 of the same numbers.

use altup_backend::philox::DropoutMask;
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata, Wgpu};
use burn::tensor::{DType, FloatDType, Tolerance};

use super::attention::AttentionBackend;
use super::cross_entropy::{CrossEntropyBackend, CrossEntropyOptions};
use super::gated_gelu::GatedGeluBackend;
use super::rms_norm::RmsNormBackend;
use super::testing::{data, labels, values};

type Float = FloatTensor<Wgpu>;

fn full(tensor: Float) -> Float {
    Wgpu::float_cast(tensor, FloatDType::F32)
}

/// Of numbers below 4: 8 bits of bf16, rounded a few times.
#[track_caller]
fn assert_near(dtype: DType, found: Float, expected: Float) {
    assert_eq!(found.dtype(), dtype);
    let tolerance = Tolerance::<f32>::rel_abs(3e-2, 3e-2);
    data::<Wgpu>(full(found)).assert_approx_eq(&data::<Wgpu>(expected), tolerance);
}

#[test]
#[allow(clippy::print_stderr)] // What is skipped is said.
fn half_types_are_f32_rounded() {
    for dtype in [DType::F16, DType::BF16] {
        if !Wgpu::supports_dtype(&Default::default(), dtype) {
            eprintln!("skipped: this device has no {dtype:?}");
            continue;
        }
        operations(dtype);
    }
}

fn operations(dtype: DType) {
    let tensor = |shape: &[usize], seed| {
        Wgpu::float_cast(values::<Wgpu>(shape, seed), FloatDType::from(dtype))
    };
    let [x, y, grad] = [1, 2, 3].map(|seed| tensor(&[6, 24], seed));
    let gamma = tensor(&[24], 4);

    let output = Wgpu::rms_norm(x.clone(), gamma.clone(), 1e-6);
    assert_near(dtype, output, Wgpu::rms_norm(full(x.clone()), full(gamma.clone()), 1e-6));
    let found = Wgpu::rms_norm_backward(x.clone(), gamma.clone(), grad.clone(), 1e-6);
    let expected = Wgpu::rms_norm_backward(full(x.clone()), full(gamma), full(grad.clone()), 1e-6);
    assert_near(dtype, found.0, expected.0);
    assert_near(dtype, found.1, expected.1);

    let output = Wgpu::gated_gelu(x.clone(), y.clone());
    assert_near(dtype, output, Wgpu::gated_gelu(full(x.clone()), full(y.clone())));
    let found = Wgpu::gated_gelu_backward(x.clone(), y.clone(), grad.clone());
    let expected = Wgpu::gated_gelu_backward(full(x.clone()), full(y), full(grad));
    assert_near(dtype, found.0, expected.0);
    assert_near(dtype, found.1, expected.1);

    let options = CrossEntropyOptions { label_smoothing: 0.1, z_loss: 1e-3 };
    let labels = || labels::<Wgpu>(6, 24);
    let output = Wgpu::cross_entropy(x.clone(), labels(), options);
    assert_near(DType::F32, output, Wgpu::cross_entropy(full(x.clone()), labels(), options));
    let ones = values::<Wgpu>(&[6], 5);
    let found = Wgpu::cross_entropy_backward(x.clone(), labels(), ones.clone(), options);
    let expected = Wgpu::cross_entropy_backward(full(x), labels(), ones, options);
    assert_near(dtype, found, expected);

    let [query, key, value, grad] = [1, 2, 3, 4].map(|seed| tensor(&[2, 5, 3, 8], seed));
    let bias = values::<Wgpu>(&[1, 3, 5, 5], 5);
    let mask = Some(DropoutMask::new([1, 2], 3, 0.3));
    let run = |[query, key, value, grad]: [Float; 4]| {
        let inputs = || (query.clone(), key.clone(), value.clone(), bias.clone());
        let (q, k, v, b) = inputs();
        let (output, saved) = Wgpu::biased_attention(q, k, v, b, mask);
        let (q, k, v, b) = inputs();
        let kept = output.clone();
        let grads = Wgpu::biased_attention_backward(q, k, v, b, kept, saved, grad, mask, true);
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
