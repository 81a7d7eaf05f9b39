use burn::backend::tensor::IntTensor;
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::{DType, FloatDType, TensorData};

use super::EmbeddingBackend;
use crate::operations::testing::{assert_gradients, data, has_bf16, on_each_backend, values};

on_each_backend! {
    gradients_agree_with_finite_differences,
    no_token_has_no_gradient,
    gradients_of_half_types_are_summed_in_f32,
}

/// Few kinds, so that most tokens are not the first of theirs.
fn tokens<B: Backend>([batch_size, seq_length]: [usize; 2]) -> IntTensor<B> {
    let tokens: Vec<i32> = (0..batch_size * seq_length).map(|i| (i * i % 11) as i32).collect();
    B::int_from_data(TensorData::new(tokens, [batch_size, seq_length]), &B::Device::default())
}

#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod kernels {
    use super::*;
    use crate::operations::testing::{assert_close, on_gpus};
    use burn::backend::ops::ModuleOps;

    on_gpus!(kernels_are_the_default);

    /// Among the widths are those of which CUDA pads the rows.
    fn kernels_are_the_default<B: EmbeddingBackend>() {
        for (shape @ [batch_size, seq_length], width) in
            [([1, 1], 1), ([2, 5], 7), ([3, 40], 16), ([1, 300], 33), ([2, 9], 4100), ([2, 9], 96)]
        {
            let weight = || values::<B>(&[12, width], 1);
            let grad = || values::<B>(&[batch_size, seq_length, width], 2);
            assert_close::<B>(
                B::embed(weight(), tokens::<B>(shape)),
                <B as ModuleOps<B>>::embedding(weight(), tokens::<B>(shape)),
            );
            assert_close::<B>(
                B::embed_backward(weight(), tokens::<B>(shape), grad()),
                <B as ModuleOps<B>>::embedding_backward(weight(), grad(), tokens::<B>(shape)),
            );
        }
    }
}

fn gradients_agree_with_finite_differences<B: EmbeddingBackend>() {
    let (shape, weight) = ([2, 5], values::<B>(&[12, 3], 1));
    let grad = values::<B>(&[2, 5, 3], 2);
    let found = B::embed_backward(weight.clone(), tokens::<B>(shape), grad.clone());
    assert_gradients::<B, 1>([weight], [found], &grad, |[weight]| {
        B::embed(weight, tokens::<B>(shape))
    });
}

fn no_token_has_no_gradient<B: EmbeddingBackend>() {
    let (weight, grad) = (values::<B>(&[12, 3], 1), values::<B>(&[0, 5, 3], 2));
    let found = B::embed_backward(weight, tokens::<B>([0, 5]), grad);
    assert!(data::<B>(found).iter::<f32>().all(|grad| grad == 0.0));
}

/// A token that is there a thousand times: in bf16, 256 + 1 is 256.
fn gradients_of_half_types_are_summed_in_f32<B: EmbeddingBackend>() {
    let device = B::Device::default();
    if !has_bf16::<B>() {
        return;
    }
    let bf16 = |tensor| B::float_cast(tensor, FloatDType::BF16);
    let tokens = B::int_from_data(TensorData::new(vec![3i32; 1000], [10, 100]), &device);
    let ones = B::float_from_data(TensorData::ones::<f32, _>([10, 100, 2]), &device);
    let grad = B::embed_backward(bf16(values::<B>(&[5, 2], 1)), tokens, bf16(ones));
    assert_eq!(grad.dtype(), DType::BF16);
    let grad: Vec<f32> = data::<B>(B::float_cast(grad, FloatDType::F32)).iter().collect();
    assert_eq!(&grad[4..], [0.0, 0.0, 1000.0, 1000.0, 0.0, 0.0]);
}
