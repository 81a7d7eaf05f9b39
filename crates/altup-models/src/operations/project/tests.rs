use super::{ProjectBackend, primitive};
use crate::operations::testing::{assert_close, on_each_backend, permuted, values};

on_each_backend! { kernels_are_the_default }

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
    use super::super::{project, project_to_two};
    use burn::nn::LinearConfig;
    use burn::tensor::{Device, Tensor};

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
