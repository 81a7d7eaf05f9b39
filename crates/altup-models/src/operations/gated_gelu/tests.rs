use burn::backend::TensorMetadata;
use burn::backend::tensor::FloatTensor;
use burn::tensor::Shape;

use super::{GatedGeluBackend, primitive};
use crate::operations::testing::{
    assert_close, assert_gradients, on_each_backend, permuted, values,
};

on_each_backend! {
    kernels_are_the_default,
    gradients_agree_with_finite_differences,
    what_is_held_stays,
    an_empty_batch_stays_empty,
}

fn kernels_are_the_default<B: GatedGeluBackend>() {
    for shape in [[1, 1], [3, 7], [17, 16], [5, 300], [70, 512]] {
        for other_order in [false, true] {
            let order = |x: FloatTensor<B>| if other_order { permuted::<B>(x) } else { x };
            let tensor = |seed| order(values::<B>(&shape, seed));
            let gate = || B::float_mul_scalar(tensor(1), 4.0.into());
            let output = B::gated_gelu(gate(), tensor(2));
            assert_close::<B>(output, primitive::gated_gelu::<B>(gate(), tensor(2)));
            let found = B::gated_gelu_backward(gate(), tensor(2), tensor(3));
            let expected = primitive::gated_gelu_backward::<B>(gate(), tensor(2), tensor(3));
            assert_close::<B>(found.0, expected.0);
            assert_close::<B>(found.1, expected.1);
        }
    }
}

fn gradients_agree_with_finite_differences<B: GatedGeluBackend>() {
    let grad = values::<B>(&[3, 11], 3);
    let inputs = [values::<B>(&[3, 11], 1), values::<B>(&[3, 11], 2)];
    let [gate, linear] = inputs.clone();
    let grads = B::gated_gelu_backward(gate, linear, grad.clone()).into();
    assert_gradients::<B, 2>(inputs, grads, &grad, |[gate, linear]| B::gated_gelu(gate, linear));
}

/// The kernel writes over the output's gradient only where nobody else reads it.
fn what_is_held_stays<B: GatedGeluBackend>() {
    let held = values::<B>(&[4, 8], 1);
    B::gated_gelu_backward(values::<B>(&[4, 8], 2), values::<B>(&[4, 8], 3), held.clone());
    assert_close::<B>(held, values::<B>(&[4, 8], 1));
}

fn an_empty_batch_stays_empty<B: GatedGeluBackend>() {
    let empty = || values::<B>(&[0, 8], 1);
    assert_eq!(B::gated_gelu(empty(), empty()).shape(), Shape::new([0, 8]));
}

/// The square of 300 is no number of f16.
#[cfg(feature = "flex")]
#[test]
fn large_gates_have_a_gradient_in_f16() {
    use burn::tensor::{DType, Device, Tensor};

    let device = Device::flex().autodiff();
    let gate = Tensor::<1>::from_data([300.0, -300.0], &device).cast(DType::F16).require_grad();
    let linear = Tensor::<1>::from_data([2.0, 2.0], &device).cast(DType::F16);
    let grads = super::gated_gelu(gate.clone(), linear).sum().backward();
    let found: Vec<f32> = gate.grad(&grads).unwrap().into_data().iter::<f32>().collect();
    assert_eq!(found, [2.0, 0.0]);
}
