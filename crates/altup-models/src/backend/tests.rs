//! Kernels against the default bodies at shapes that end anywhere, and gradients against finite differences.
//!
//! Golden values of whole models, on every backend: `altup-train`'s conformance suite.

use super::*;
use burn::backend::TensorMetadata;
use burn::tensor::{Shape, TensorData, Tolerance};

/// Values between −1 and 1 that repeat after no length used here.
fn values<B: Backend>(shape: &[usize], seed: usize) -> FloatTensor<B> {
    let value = |i: usize| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0;
    let values: Vec<f32> = (0..shape.iter().product()).map(value).collect();
    B::float_from_data(TensorData::new(values, shape.to_vec()), &B::Device::default())
}

fn labels<B: Backend>(tokens: usize, vocab_size: usize) -> IntTensor<B> {
    let labels: Vec<i32> = (0..tokens).map(|i| ((i * 7) % vocab_size) as i32).collect();
    B::int_from_data(TensorData::new(labels, [tokens]), &B::Device::default())
}

/// The same values in another order of memory.
fn permuted<B: Backend>(tensor: FloatTensor<B>) -> FloatTensor<B> {
    let (a, b) = (tensor.shape().num_dims() - 2, tensor.shape().num_dims() - 1);
    let shape = B::float_swap_dims(tensor.clone(), a, b).shape();
    B::float_swap_dims(B::float_reshape(B::float_swap_dims(tensor, a, b), shape), a, b)
}

#[track_caller]
fn assert_close<B: Backend>(found: FloatTensor<B>, expected: FloatTensor<B>) {
    let data = |tensor| burn::tensor::read_sync(B::float_into_data(tensor)).unwrap();
    let (found, expected) = (data(found), data(expected));
    assert_eq!(found.shape(), expected.shape());
    found.assert_approx_eq::<f32>(&expected, Tolerance::rel_abs(1e-4, 2e-5));
}

fn attention_is_the_default<B: T5Backend>() {
    // Batch, queries, memory, heads, width: one token, a decoding step, blocks of queries that end anywhere.
    let shapes = [
        (1, 1, 1, 1, 1),
        (2, 1, 9, 3, 8),
        (1, 7, 5, 2, 3),
        (3, 130, 33, 2, 5),
        (2, 260, 40, 1, 16),
    ];
    for (batch, queries, memory, heads, width) in shapes {
        let biases = [
            [1, heads, queries, memory],
            [batch, 1, 1, memory],
            [batch, heads, queries, memory],
            [1, 1, 1, 1],
        ];
        for bias_shape in biases {
            for other_order in [false, true] {
                let order = |x: FloatTensor<B>| if other_order { permuted::<B>(x) } else { x };
                let query = || order(values::<B>(&[batch, queries, heads, width], 1));
                let key = || order(values::<B>(&[batch, memory, heads, width], 2));
                let value = || order(values::<B>(&[batch, memory, heads, width], 3));
                let bias = || order(values::<B>(&bias_shape, 4));
                let grad = || order(values::<B>(&[batch, queries, heads, width], 5));
                let (output, saved) = B::biased_attention(query(), key(), value(), bias());
                let (expected, weights) =
                    primitive::attention::<B>(query(), key(), value(), bias());
                assert_close::<B>(output.clone(), expected);
                let found = B::biased_attention_backward(
                    query(),
                    key(),
                    value(),
                    bias(),
                    output,
                    saved,
                    grad(),
                );
                let expected = primitive::attention_backward::<B>(
                    query(),
                    key(),
                    value(),
                    bias(),
                    weights,
                    grad(),
                );
                assert_close::<B>(found.0, expected.0);
                assert_close::<B>(found.1, expected.1);
                assert_close::<B>(found.2, expected.2);
                assert_close::<B>(found.3, expected.3);
            }
        }
    }
}

/// A hidden key has no weight, however few are left.
fn hidden_keys_have_no_weight<B: T5Backend>() {
    let device = B::Device::default();
    let bias = TensorData::new(vec![0.0f32, -1e9, -1e9], [1, 1, 1, 3]);
    let value = TensorData::new(vec![2.0f32, f32::MAX, -f32::MAX], [1, 3, 1, 1]);
    let (output, _) = B::biased_attention(
        values::<B>(&[1, 1, 1, 1], 1),
        values::<B>(&[1, 3, 1, 1], 2),
        B::float_from_data(value, &device),
        B::float_from_data(bias, &device),
    );
    assert_close::<B>(output, B::float_from_data(TensorData::from([[[[2.0f32]]]]), &device));
}

fn rows_are_the_default<B: T5Backend>() {
    for (rows, width) in [(1, 1), (3, 7), (17, 16), (2, 33), (5, 300), (70, 512)] {
        for other_order in [false, true] {
            let order = |x: FloatTensor<B>| if other_order { permuted::<B>(x) } else { x };
            let tensor = |seed| order(values::<B>(&[rows, width], seed));
            let scaled = |seed| B::float_mul_scalar(tensor(seed), 4.0.into());
            let gamma = || values::<B>(&[width], 3);

            let output = B::rms_norm(tensor(1), gamma(), 1e-6);
            assert_close::<B>(output, primitive::rms_norm::<B>(tensor(1), gamma(), 1e-6));
            let found = B::rms_norm_backward(tensor(1), gamma(), tensor(2), 1e-6);
            let expected = primitive::rms_norm_backward::<B>(tensor(1), gamma(), tensor(2), 1e-6);
            assert_close::<B>(found.0, expected.0);
            assert_close::<B>(found.1, expected.1);

            let output = B::gated_gelu(scaled(1), tensor(2));
            assert_close::<B>(output, primitive::gated_gelu::<B>(scaled(1), tensor(2)));
            let found = B::gated_gelu_backward(scaled(1), tensor(2), tensor(3));
            let expected = primitive::gated_gelu_backward::<B>(scaled(1), tensor(2), tensor(3));
            assert_close::<B>(found.0, expected.0);
            assert_close::<B>(found.1, expected.1);

            let labels = || labels::<B>(rows, width);
            let grad = || values::<B>(&[rows], 4);
            let losses = B::cross_entropy(scaled(1), labels());
            assert_close::<B>(losses, primitive::cross_entropy::<B>(scaled(1), labels()));
            assert_close::<B>(
                B::cross_entropy_backward(scaled(1), labels(), grad()),
                primitive::cross_entropy_backward::<B>(scaled(1), labels(), grad()),
            );
        }
    }
}

/// One row and several, depths and widths that end anywhere.
fn projections_are_the_default<B: T5Backend>() {
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

/// Of the sum of an operation's outputs, each times a number of its own: the gradients for all inputs against
/// (f(x + h) − f(x − h)) / 2h, at values spread over each of them.
fn assert_gradients<B: Backend, const N: usize>(
    inputs: [FloatTensor<B>; N],
    grads: [FloatTensor<B>; N],
    output_grad: &FloatTensor<B>,
    operation: impl Fn([FloatTensor<B>; N]) -> FloatTensor<B>,
) {
    const H: f32 = 1e-2;
    let numbers = |tensor: &FloatTensor<B>| -> Vec<f64> {
        let data = burn::tensor::read_sync(B::float_into_data(tensor.clone())).unwrap();
        data.iter::<f64>().collect()
    };
    let output_grad = numbers(output_grad);
    let loss = |inputs| -> f64 {
        numbers(&operation(inputs)).iter().zip(&output_grad).map(|(y, grad)| y * grad).sum()
    };
    for (input, grad) in grads.iter().enumerate() {
        let grad = numbers(grad);
        for place in (0..grad.len()).step_by(grad.len().div_ceil(7)) {
            let bumped = |step: f32| {
                let mut inputs = inputs.clone();
                let shape = inputs[input].shape();
                let mut values: Vec<f32> =
                    numbers(&inputs[input]).iter().map(|&value| value as f32).collect();
                values[place] += step;
                let data = TensorData::new(values, shape);
                inputs[input] = B::float_from_data(data, &B::Device::default());
                loss(inputs)
            };
            let numeric = (bumped(H) - bumped(-H)) / (2.0 * f64::from(H));
            let error = (grad[place] - numeric).abs();
            assert!(
                error < 2e-3 * (1.0 + numeric.abs()),
                "{input}, {place}: {} {numeric}",
                grad[place]
            );
        }
    }
}

fn gradients_agree_with_finite_differences<B: T5Backend>() {
    let tensor = |shape: &[usize], seed| values::<B>(shape, seed);
    let grad = tensor(&[2, 5, 3, 4], 5);
    let inputs = [
        tensor(&[2, 5, 3, 4], 1),
        tensor(&[2, 6, 3, 4], 2),
        tensor(&[2, 6, 3, 4], 3),
        tensor(&[1, 3, 5, 6], 4),
    ];
    let [query, key, value, bias] = inputs.clone();
    let (output, saved) =
        B::biased_attention(query.clone(), key.clone(), value.clone(), bias.clone());
    let grads =
        B::biased_attention_backward(query, key, value, bias, output, saved, grad.clone()).into();
    assert_gradients::<B, 4>(inputs, grads, &grad, |[query, key, value, bias]| {
        B::biased_attention(query, key, value, bias).0
    });

    let grad = tensor(&[3, 11], 3);
    let inputs = [tensor(&[3, 11], 1), tensor(&[3, 11], 2)];
    let [gate, linear] = inputs.clone();
    let grads = B::gated_gelu_backward(gate, linear, grad.clone()).into();
    assert_gradients::<B, 2>(inputs, grads, &grad, |[gate, linear]| B::gated_gelu(gate, linear));

    let inputs = [tensor(&[3, 11], 1), tensor(&[11], 2)];
    let [x, gamma] = inputs.clone();
    let grads = B::rms_norm_backward(x, gamma, grad.clone(), 1e-6).into();
    assert_gradients::<B, 2>(inputs, grads, &grad, |[x, gamma]| B::rms_norm(x, gamma, 1e-6));

    let grad = tensor(&[3], 3);
    let logits = tensor(&[3, 11], 1);
    let grads = [B::cross_entropy_backward(logits.clone(), labels::<B>(3, 11), grad.clone())];
    assert_gradients::<B, 1>([logits], grads, &grad, |[logits]| {
        B::cross_entropy(logits, labels::<B>(3, 11))
    });
}

/// Kernels write where nobody else reads.
fn inputs_that_are_held_stay<B: T5Backend>() {
    let held = values::<B>(&[4, 8], 1);
    let gamma = || values::<B>(&[8], 3);
    B::rms_norm_backward(values::<B>(&[4, 8], 2), gamma(), held.clone(), 1e-6);
    B::gated_gelu_backward(values::<B>(&[4, 8], 2), values::<B>(&[4, 8], 3), held.clone());
    B::cross_entropy_backward(held.clone(), labels::<B>(4, 8), values::<B>(&[4], 4));
    assert_close::<B>(held, values::<B>(&[4, 8], 1));
}

/// Of no token at all.
fn an_empty_batch_stays_empty<B: T5Backend>() {
    let empty = || values::<B>(&[0, 8], 1);
    assert_eq!(B::rms_norm(empty(), values::<B>(&[8], 1), 1e-6).shape(), Shape::new([0, 8]));
    assert_eq!(B::gated_gelu(empty(), empty()).shape(), Shape::new([0, 8]));
    assert_eq!(B::cross_entropy(empty(), labels::<B>(0, 8)).shape(), Shape::new([0]));
    let tokens = || values::<B>(&[0, 3, 2, 4], 1);
    let (output, _) =
        B::biased_attention(tokens(), tokens(), tokens(), values::<B>(&[1, 2, 3, 3], 1));
    assert_eq!(output.shape(), Shape::new([0, 3, 2, 4]));
}

fn kernels<B: T5Backend>() {
    gradients_agree_with_finite_differences::<B>();
    attention_is_the_default::<B>();
    hidden_keys_have_no_weight::<B>();
    rows_are_the_default::<B>();
    projections_are_the_default::<B>();
    inputs_that_are_held_stay::<B>();
    an_empty_batch_stays_empty::<B>();
}

#[cfg(feature = "flex")]
#[test]
fn on_flex() {
    kernels::<burn::backend::Flex>();
}

#[cfg(feature = "tch")]
#[test]
fn on_libtorch() {
    kernels::<burn::backend::LibTorch>();
}

#[cfg(feature = "ndarray")]
#[test]
fn on_ndarray() {
    kernels::<burn::backend::NdArray>();
}
