use super::{ProjectBackend, primitive};
use crate::operations::testing::{
    assert_close, assert_gradients, on_each_backend, permuted, values,
};

on_each_backend! {
    products_are_burns,
    gradients_of_products_agree_with_finite_differences,
    kernels_are_the_default,
}

/// Products of the calling thread and of all, of factors that lie in any order.
fn products_are_burns<B: ProjectBackend>() {
    let shapes = [(1, 1, 1), (1, 20, 7), (9, 1, 5), (33, 17, 1), (70, 300, 41), (200, 210, 220)];
    for (rows, d_input, d_output) in shapes {
        let x = || values::<B>(&[rows, d_input], 1);
        let weight = || values::<B>(&[d_input, d_output], 2);
        let grad = || values::<B>(&[rows, d_output], 3);
        let expected = || B::float_matmul(x(), weight());
        assert_close::<B>(B::product(x(), weight()), expected());
        assert_close::<B>(B::product(permuted::<B>(x()), permuted::<B>(weight())), expected());
        let of_x = B::float_matmul(grad(), B::float_transpose(weight()));
        assert_close::<B>(B::product_backward_x(weight(), grad()), of_x);
        let of_weight = B::float_matmul(B::float_transpose(x()), grad());
        assert_close::<B>(B::product_backward_weight(permuted::<B>(x()), grad()), of_weight);
    }
}

fn gradients_of_products_agree_with_finite_differences<B: ProjectBackend>() {
    let grad = values::<B>(&[3, 5], 3);
    let inputs = [values::<B>(&[3, 4], 1), values::<B>(&[4, 5], 2)];
    let [x, weight] = inputs.clone();
    let grads =
        [B::product_backward_x(weight, grad.clone()), B::product_backward_weight(x, grad.clone())];
    assert_gradients::<B, 2>(inputs, grads, &grad, |[x, weight]| B::product(x, weight));
}

/// One row and several, depths and widths that end anywhere.
fn kernels_are_the_default<B: ProjectBackend>() {
    let shapes = [(1, 1, 1), (1, 20, 7), (3, 17, 300), (2, 512, 1000), (8, 9, 64), (5, 301, 1100)];
    for (rows, d_input, d_output) in shapes {
        let x = || values::<B>(&[rows, d_input], 1);
        let weight = || values::<B>(&[d_input, d_output], 2);
        let expected = || primitive::project::<B>(x(), weight());
        assert_close::<B>(B::project(x(), weight()), expected());
        assert_close::<B>(B::project(permuted::<B>(x()), permuted::<B>(weight())), expected());
        let other = || values::<B>(&[d_input, d_output + 3], 3);
        let expected_of_other = || primitive::project::<B>(x(), other());
        let (first, second) = B::project_to_two(x(), weight(), other());
        assert_close::<B>(first, expected());
        assert_close::<B>(second, expected_of_other());
        let (first, second, third) = B::project_to_three(x(), other(), weight(), weight());
        assert_close::<B>(first, expected_of_other());
        assert_close::<B>(second, expected());
        assert_close::<B>(third, expected());
    }
}

#[cfg(feature = "flex")]
mod layers {
    use super::super::{product, project, project_to_two};
    use burn::nn::LinearConfig;
    use burn::tensor::{Device, Distribution, Tensor};

    /// What isn't asked for is not in the way of what is: frozen weights, and inputs without gradients.
    #[test]
    fn each_gradient_alone_is_that_of_both() {
        let device = Device::flex().autodiff();
        let normal = Distribution::Normal(0.0, 1.0);
        let x = Tensor::<3>::random([2, 20, 6], normal, &device);
        let weight = Tensor::<2>::random([6, 7], normal, &device);
        let gradients = |of_x: bool, of_weight: bool| {
            let x = x.clone().set_require_grad(of_x);
            let weight = weight.clone().set_require_grad(of_weight);
            let grads = product(x.clone(), weight.clone()).sum().backward();
            let x_grad = x.grad(&grads).map(|grad| grad.into_data());
            (x_grad, weight.grad(&grads).map(|grad| grad.into_data()))
        };
        let (x_grad, weight_grad) = gradients(true, true);
        assert!(x_grad.is_some() && weight_grad.is_some());
        assert_eq!(gradients(true, false), (x_grad, None));
        assert_eq!(gradients(false, true), (None, weight_grad));
    }

    #[test]
    #[should_panic(expected = "x=[2, 1, 4], weight=[6, 3]")]
    fn a_weight_of_another_width_is_a_bug() {
        let device = Device::flex();
        let layer = LinearConfig::new(6, 3).with_bias(false).init(&device);
        project(&layer, Tensor::ones([2, 1, 4], &device));
    }

    #[test]
    #[should_panic(expected = "bias=Some([3])")]
    fn a_bias_is_not_dropped() {
        let device = Device::flex();
        let (without, with) = (LinearConfig::new(4, 3).with_bias(false), LinearConfig::new(4, 3));
        project_to_two(
            [&without.init(&device), &with.init(&device)],
            Tensor::ones([2, 1, 4], &device),
        );
    }
}

/// Weights in bf16 are multiplied as the f32 that they stand for.
#[cfg(feature = "flex")]
#[test]
fn weights_in_bf16_on_flex() {
    use burn::backend::Flex;
    use burn::backend::ops::FloatTensorOps;
    use burn::tensor::FloatDType;

    for (rows, d_input, d_output) in [(2, 33, 70), (1, 402, 1100)] {
        let weight = values::<Flex>(&[d_input, d_output], 2);
        let weight = Flex::float_cast(weight, FloatDType::BF16);
        let x = || values::<Flex>(&[rows, d_input], 1);
        let expected = Flex::float_matmul(x(), Flex::float_cast(weight.clone(), FloatDType::F32));
        assert_close::<Flex>(Flex::project(x(), weight), expected);
    }
}
