use altup_backend::philox::DropoutMask;
use burn::backend::TensorMetadata;
use burn::backend::tensor::FloatTensor;
use burn::tensor::{Shape, TensorData};

use super::{AttentionBackend, primitive};
use crate::operations::testing::{
    assert_close, assert_gradients, data, on_each_backend, permuted, values,
};

on_each_backend! {
    kernels_are_the_default,
    hidden_keys_have_no_weight,
    a_row_of_hidden_keys_is_even,
    gradients_agree_with_finite_differences,
    what_is_held_stays,
    part_of_a_memory,
    nothing_to_attend_to_is_of_no_value,
    an_empty_batch_stays_empty,
}

fn kernels_are_the_default<B: AttentionBackend>() {
    // Batch, queries, memory, heads, width: one token, a decoding step, blocks of queries that end anywhere.
    let shapes = [
        (1, 1, 1, 1, 1),
        (2, 1, 9, 3, 8),
        (1, 7, 5, 2, 3),
        (3, 130, 33, 2, 5),
        (2, 260, 70, 1, 16),
    ];
    for (batch, queries, memory, heads, width) in shapes {
        let biases = [
            [1, heads, queries, memory],
            [batch, 1, 1, memory],
            [batch, heads, queries, memory],
            [1, 1, 1, 1],
        ];
        for (number, bias_shape) in biases.into_iter().enumerate() {
            for other_order in [false, true] {
                let dropout = (number % 2 == 1).then(|| DropoutMask::new([3, 4], 5, 0.3));
                let order = |x: FloatTensor<B>| if other_order { permuted::<B>(x) } else { x };
                let query = || order(values::<B>(&[batch, queries, heads, width], 1));
                let key = || order(values::<B>(&[batch, memory, heads, width], 2));
                let value = || order(values::<B>(&[batch, memory, heads, width], 3));
                let bias = || order(values::<B>(&bias_shape, 4));
                let grad = || order(values::<B>(&[batch, queries, heads, width], 5));
                let (output, saved) = B::biased_attention(query(), key(), value(), bias(), dropout);
                let (expected, weights) =
                    primitive::attention::<B>(query(), key(), value(), bias(), dropout);
                assert_close::<B>(output.clone(), expected);
                let found = B::biased_attention_backward(
                    query(),
                    key(),
                    value(),
                    bias(),
                    output,
                    saved,
                    grad(),
                    dropout,
                    true,
                );
                let expected = primitive::attention_backward::<B>(
                    query(),
                    key(),
                    value(),
                    bias(),
                    weights,
                    grad(),
                    dropout,
                    true,
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
fn hidden_keys_have_no_weight<B: AttentionBackend>() {
    let device = B::Device::default();
    let hidden = crate::HIDDEN;
    let bias = TensorData::new(vec![0.0f32, hidden, hidden], [1, 1, 1, 3]);
    let value = TensorData::new(vec![2.0f32, f32::MAX, -f32::MAX], [1, 3, 1, 1]);
    let (output, _) = B::biased_attention(
        values::<B>(&[1, 1, 1, 1], 1),
        values::<B>(&[1, 3, 1, 1], 2),
        B::float_from_data(value, &device),
        B::float_from_data(bias, &device),
        None,
    );
    assert_close::<B>(output, B::float_from_data(TensorData::from([[[[2.0f32]]]]), &device));
}

/// Of a query that sees none of three keys, whatever its scores are: the mean of the values, 1, and gradients as
/// of constant weights 1/3.
fn a_row_of_hidden_keys_is_even<B: AttentionBackend>() {
    let device = B::Device::default();
    let tensor = |values: Vec<f32>, shape: [usize; 4]| {
        B::float_from_data(TensorData::new(values, shape), &device)
    };
    let inputs = || {
        (
            tensor(vec![40.0], [1, 1, 1, 1]),
            tensor(vec![-1.0, 0.5, 1.0], [1, 3, 1, 1]),
            tensor(vec![0.0, 1.0, 2.0], [1, 3, 1, 1]),
            tensor(vec![crate::HIDDEN; 3], [1, 1, 1, 3]),
        )
    };
    let (query, key, value, bias) = inputs();
    let (output, saved) = B::biased_attention(query, key, value, bias, None);
    let ones = |shape: [usize; 4]| tensor(vec![1.0; shape.iter().product()], shape);
    assert_close::<B>(output.clone(), ones([1, 1, 1, 1]));
    let (query, key, value, bias) = inputs();
    let grad = ones([1, 1, 1, 1]);
    let found =
        B::biased_attention_backward(query, key, value, bias, output, saved, grad, None, true);
    // With P = 1/3 and dP = V: dS = (V − 1) / 3 = (−1/3, 0, 1/3); dQ = Σ dS K, dK = dS Q, dV = P.
    let third = 1.0 / 3.0;
    assert_close::<B>(found.0, tensor(vec![2.0 * third], [1, 1, 1, 1]));
    assert_close::<B>(found.1, tensor(vec![-40.0 * third, 0.0, 40.0 * third], [1, 3, 1, 1]));
    assert_close::<B>(found.2, tensor(vec![third; 3], [1, 3, 1, 1]));
    assert_close::<B>(found.3, tensor(vec![-third, 0.0, third], [1, 1, 1, 3]));
}

fn gradients_agree_with_finite_differences<B: AttentionBackend>() {
    let tensor = |shape: &[usize], seed| values::<B>(shape, seed);
    for dropout in [None, Some(DropoutMask::new([1, 2], 3, 0.4))] {
        let grad = tensor(&[2, 5, 3, 4], 5);
        let inputs = [
            tensor(&[2, 5, 3, 4], 1),
            tensor(&[2, 6, 3, 4], 2),
            tensor(&[2, 6, 3, 4], 3),
            tensor(&[1, 3, 5, 6], 4),
        ];
        let [query, key, value, bias] = inputs.clone();
        let (output, saved) =
            B::biased_attention(query.clone(), key.clone(), value.clone(), bias.clone(), dropout);
        let grads = B::biased_attention_backward(
            query,
            key,
            value,
            bias,
            output,
            saved,
            grad.clone(),
            dropout,
            true,
        );
        assert_gradients::<B, 4>(inputs, grads.into(), &grad, |[query, key, value, bias]| {
            B::biased_attention(query, key, value, bias, dropout).0
        });
    }
}

/// Kernels write over scores of their own and over nothing else.
fn what_is_held_stays<B: AttentionBackend>() {
    let held = [1, 2, 3, 5].map(|seed| values::<B>(&[2, 3, 2, 4], seed));
    let bias = values::<B>(&[1, 2, 3, 3], 4);
    let [query, key, value, grad] = held.clone();
    let forward = || {
        let [query, key, value, _] = held.clone();
        B::biased_attention(query, key, value, bias.clone(), None)
    };
    let (output, saved) = forward();
    B::biased_attention_backward(query, key, value, bias.clone(), output, saved, grad, None, true);
    assert_close::<B>(
        forward().0,
        B::biased_attention(
            values::<B>(&[2, 3, 2, 4], 1),
            values::<B>(&[2, 3, 2, 4], 2),
            values::<B>(&[2, 3, 2, 4], 3),
            values::<B>(&[1, 2, 3, 3], 4),
            None,
        )
        .0,
    );
    for (held, seed) in held.into_iter().zip([1, 2, 3, 5]) {
        assert_eq!(data::<B>(held), data::<B>(values::<B>(&[2, 3, 2, 4], seed)));
    }
}

/// Keys and values with room for more behind them, as a cache has.
fn part_of_a_memory<B: AttentionBackend>() {
    let part = |seed| {
        let places = [0..2, 0..5, 0..3, 0..4].map(burn::tensor::Slice::from);
        B::float_slice(values::<B>(&[2, 9, 3, 4], seed), &places)
    };
    let query = || values::<B>(&[2, 2, 3, 4], 1);
    let bias = || values::<B>(&[1, 3, 2, 5], 4);
    let (output, _) = B::biased_attention(query(), part(2), part(3), bias(), None);
    let (expected, _) = primitive::attention::<B>(query(), part(2), part(3), bias(), None);
    assert_close::<B>(output, expected);
}

fn nothing_to_attend_to_is_of_no_value<B: AttentionBackend>() {
    let query = || values::<B>(&[2, 3, 2, 4], 1);
    let memory = || values::<B>(&[2, 0, 2, 4], 1);
    let bias = || values::<B>(&[1, 1, 1, 1], 1);
    let (output, _) = B::biased_attention(query(), memory(), memory(), bias(), None);
    assert_eq!(output.shape(), Shape::new([2, 3, 2, 4]));
    assert!(data::<B>(output).iter::<f32>().all(|value| value == 0.0));
}

/// Of no row, and of rows that have nothing to attend to.
fn an_empty_batch_stays_empty<B: AttentionBackend>() {
    let tokens = || values::<B>(&[0, 3, 2, 4], 1);
    let bias = || values::<B>(&[1, 2, 3, 3], 1);
    let (output, saved) = B::biased_attention(tokens(), tokens(), tokens(), bias(), None);
    assert_eq!(output.shape(), Shape::new([0, 3, 2, 4]));
    let grads = B::biased_attention_backward(
        tokens(),
        tokens(),
        tokens(),
        bias(),
        output,
        saved,
        tokens(),
        None,
        true,
    );
    assert_eq!(grads.1.shape(), Shape::new([0, 3, 2, 4]));
    assert!(data::<B>(grads.3).iter::<f32>().all(|grad| grad == 0.0));
}
