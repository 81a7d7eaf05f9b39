//! AltUp's operations against PyTorch.
//!
//! Regenerate the fixture with `python scripts/reference/generate_fixtures.py`.

use altup_core::operations::combine_blocks::{combine_blocks, combine_blocks_by_token};
use altup_core::operations::combine_windows::combine_windows;
use altup_core::{AltUp, SequenceAltUpConfig, average_pool, stride_and_skip};
use altup_models::CrossEntropyOptions;
use altup_models::operations::attention::attention;
use altup_models::operations::cross_entropy::cross_entropy;
use altup_models::operations::embedding::embedding;
use altup_models::operations::gated_gelu::gated_gelu;
use altup_models::operations::position_bias::position_bias;
use altup_models::operations::rms_norm::rms_norm;
use altup_optim::{OptimizerConfig, OptimizerKind, clip_gradients, global_square_sum};
use burn::module::{Module, Param, ParamId};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Distribution, Int, Tensor, TensorData};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;

use crate::backends::Subject;
use crate::support::{ids, read_json, read_tensors, values};

struct Fixture {
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

impl Fixture {
    fn read(name: &str) -> Self {
        let folder = Path::new("../altup-core/tests/fixtures");
        Self { tensors: read_tensors(&folder.join(name).with_extension("safetensors")) }
    }

    fn data(&self, name: &str) -> TensorData {
        let (shape, values) = &self.tensors[name];
        TensorData::new(values.clone(), shape.clone())
    }

    #[track_caller]
    fn assert_close<const D: usize>(&self, subject: &Subject, name: &str, found: Tensor<D>) {
        let (shape, expected) = &self.tensors[name];
        assert_eq!(&found.dims().to_vec(), shape, "{name}");
        subject.assert_close(name, &values(found), expected);
    }
}

pub(crate) fn altup_and_its_gradients(subject: &Subject) {
    let fixture = Fixture::read("altup");
    let device = subject.autodiff();
    for num_blocks in 1..=4 {
        let name = |name: &str| format!("k{num_blocks}.{name}");
        let data = |tensor: &str| fixture.data(&name(tensor));
        let altup = altup(
            Tensor::from_data(data("prediction_coefs"), &device),
            Tensor::from_data(data("correction_coefs"), &device),
        );
        let state = Tensor::<4>::from_data(data("state"), &device).require_grad();
        let weight = Tensor::<2>::from_data(data("layer_weight"), &device).require_grad();
        let block = num_blocks - 1;
        let layer = |x: Tensor<3>| x.matmul(weight.clone().unsqueeze()).tanh();

        let predicted = altup.predict(state.clone());
        fixture.assert_close(subject, &name("predicted"), predicted.clone());
        let computed = layer(state.clone().narrow(0, block, 1).squeeze_dim(0));
        let corrected = altup.correct(predicted, computed, block);
        fixture.assert_close(subject, &name("output"), corrected);
        let output = altup.forward(state.clone(), block, layer);
        fixture.assert_close(subject, &name("output"), output.clone());

        let output_grad = Tensor::<4>::from_data(data("output_grad"), &device);
        let gradients = (output * output_grad).sum().backward();
        fixture.assert_close(subject, &name("grad.state"), state.grad(&gradients).unwrap());
        let of_layer = weight.grad(&gradients).unwrap();
        fixture.assert_close(subject, &name("grad.layer_weight"), of_layer);
        let p = altup.prediction_coefs.val().grad(&gradients).unwrap();
        fixture.assert_close(subject, &name("grad.prediction_coefs"), p);
        let g = altup.correction_coefs.val().grad(&gradients).unwrap();
        fixture.assert_close(subject, &name("grad.correction_coefs"), g);
    }
}

pub(crate) fn sequence_altup_and_its_gradients(subject: &Subject) {
    let fixture = Fixture::read("sequence");
    let device = subject.autodiff();
    for stride in 1..=4 {
        let name = |name: &str| format!("s{stride}.{name}");
        let data = |tensor: &str| fixture.data(&name(tensor));
        let mut sequence = SequenceAltUpConfig::new(stride).init(&device);
        sequence.prediction_coefs =
            Param::from_tensor(Tensor::from_data(data("prediction_coefs"), &device));
        sequence.correction_coef =
            Param::from_tensor(Tensor::from_data(data("correction_coef"), &device));
        let x = Tensor::<3>::from_data(data("x"), &device).require_grad();
        let weight = Tensor::<2>::from_data(data("weight"), &device).require_grad();
        let layer = |x: Tensor<3>| x.matmul(weight.clone().unsqueeze()).tanh();

        fixture.assert_close(subject, &name("predicted"), sequence.predict(x.clone()));
        let output = sequence.forward(x.clone(), layer);
        fixture.assert_close(subject, &name("output"), output.clone());
        let output_grad = Tensor::<3>::from_data(data("output_grad"), &device);
        let gradients = (output * output_grad).sum().backward();
        fixture.assert_close(subject, &name("grad.x"), x.grad(&gradients).unwrap());
        fixture.assert_close(subject, &name("grad.weight"), weight.grad(&gradients).unwrap());
        let a = sequence.prediction_coefs.val().grad(&gradients).unwrap();
        fixture.assert_close(subject, &name("grad.prediction_coefs"), a);
        let b = sequence.correction_coef.val().grad(&gradients).unwrap();
        fixture.assert_close(subject, &name("grad.correction_coef"), b);
    }
}

/// Stride-and-skip and average pooling, which Sequence-AltUp is compared with.
pub(crate) fn reduced_sequences(subject: &Subject) {
    let fixture = Fixture::read("sequence");
    let device = subject.autodiff();
    for stride in [2, 3] {
        let tensor = |name: String| Tensor::<3>::from_data(fixture.data(&name), &device);
        let weight = fixture.data(&format!("skip{stride}.weight"));
        let weight = Tensor::<2>::from_data(weight, &device).unsqueeze::<3>();
        let layer = |x: Tensor<3>| x.matmul(weight.clone()).tanh();
        let skipped = stride_and_skip(tensor(format!("skip{stride}.x")), stride, layer);
        fixture.assert_close(subject, &format!("skip{stride}.output"), skipped);

        let padding = fixture.data(&format!("pool{stride}.padding"));
        let padding = Tensor::<2>::from_data(padding, &device).equal_elem(1.0);
        let x = tensor(format!("pool{stride}.x"));
        let (pooled, padding) = average_pool(x, Some(padding), stride);
        fixture.assert_close(subject, &format!("pool{stride}.output"), pooled);
        let padding = padding.unwrap().float();
        fixture.assert_close(subject, &format!("pool{stride}.output_padding"), padding);
    }
}

/// Coefficients of each token's own, `[B, T, K, K + 1]`.
pub(crate) fn a_combination_by_token_and_its_gradients(subject: &Subject) {
    let fixture = Fixture::read("token_coefficients");
    let device = subject.autodiff();
    for num_blocks in [1, 2, 4] {
        let name = |name: &str| format!("k{num_blocks}.{name}");
        let data = |tensor: &str| fixture.data(&name(tensor));
        let state = Tensor::<4>::from_data(data("state"), &device).require_grad();
        let computed = Tensor::<3>::from_data(data("computed"), &device).require_grad();
        let coefs = Tensor::<4>::from_data(data("coefficients"), &device).require_grad();
        let output = combine_blocks_by_token(state.clone(), computed.clone(), coefs.clone());
        fixture.assert_close(subject, &name("output"), output.clone());
        let output_grad = Tensor::<4>::from_data(data("output_grad"), &device);
        let gradients = (output * output_grad).sum().backward();
        fixture.assert_close(subject, &name("grad.state"), state.grad(&gradients).unwrap());
        fixture.assert_close(subject, &name("grad.computed"), computed.grad(&gradients).unwrap());
        fixture.assert_close(subject, &name("grad.coefficients"), coefs.grad(&gradients).unwrap());
    }
}

#[derive(Deserialize)]
struct CrossEntropyCases {
    labels: Vec<Vec<i32>>,
    cases: Vec<CrossEntropyCase>,
}

#[derive(Deserialize)]
struct CrossEntropyCase {
    name: String,
    label_smoothing: f64,
    z_loss: f64,
}

/// PyTorch's losses of labels that are tokens, padding and −100, and the gradients of their weighted sum.
pub(crate) fn cross_entropy_with_smoothing_and_z_loss(subject: &Subject) {
    let folder = Path::new("../altup-models/tests/fixtures");
    let fixture = Fixture { tensors: read_tensors(&folder.join("cross_entropy.safetensors")) };
    let reference: CrossEntropyCases = read_json(&folder.join("cross_entropy.json"));
    let device = subject.autodiff();
    let labels = ids(&reference.labels, &device).squeeze_dim::<1>(0);
    for CrossEntropyCase { name, label_smoothing, z_loss } in reference.cases {
        let logits = Tensor::<2>::from_data(fixture.data("logits"), &device).require_grad();
        let options = CrossEntropyOptions { label_smoothing, z_loss };
        let losses = cross_entropy(logits.clone(), labels.clone(), options);
        fixture.assert_close(subject, &format!("{name}.losses"), losses.clone());
        let weights = Tensor::<1>::from_data(fixture.data("weights"), &device);
        let gradients = (losses * weights).sum().backward();
        let of_logits = logits.grad(&gradients).unwrap();
        fixture.assert_close(subject, &format!("{name}.grad.logits"), of_logits);
    }
}

/// The one-pass update is `correct(predict(…))` at any shape.
pub(crate) fn the_update_at_any_shape(subject: &Subject) {
    let device = &subject.device;
    device.seed(3);
    let random = Distribution::Normal(0.0, 1.0);
    for (num_blocks, batch_size, seq_length, width) in
        [(1, 1, 1, 1), (2, 3, 5, 7), (3, 1, 2, 33), (8, 2, 1, 5)]
    {
        let altup = altup(
            Tensor::random([num_blocks, num_blocks], random, device),
            Tensor::random([num_blocks], random, device),
        );
        let shape = [num_blocks, batch_size, seq_length, width];
        let state = Tensor::<4>::random(shape, random, device);
        let computed = Tensor::<3>::random([batch_size, seq_length, width], random, device);
        for block in 0..num_blocks {
            let expected = altup.correct(altup.predict(state.clone()), computed.clone(), block);
            let found = altup.update(state.clone(), computed.clone(), block);
            let what = format!("K={num_blocks}, block {block}");
            subject.assert_close(&what, &values(found), &values(expected));
        }
    }
}

fn altup(p: Tensor<2>, g: Tensor<1>) -> AltUp {
    AltUp { prediction_coefs: Param::from_tensor(p), correction_coefs: Param::from_tensor(g) }
}

/// What our operations and their backward passes compute is the same from run to run, bit for bit, and so are the
/// optimizers' steps: each sums in one order. The sizes are such that several groups of threads take part. Burn may tune its
/// products in the first run.
pub(crate) fn the_same_from_run_to_run(subject: &Subject) {
    let device = subject.autodiff();
    let shapes: [[usize; 2]; 17] = [
        [1028, 96],
        [514, 96],
        [2, 3],
        [1, 96],
        [260, 24],
        [260, 24],
        [260, 24],
        [195, 65],
        [514, 300],
        [50, 32],
        [514, 96],
        [2, 2],
        [1, 2],
        [514, 96],
        [172, 96],
        [1, 3],
        [32, 3],
    ];
    let normal = Distribution::Normal(0.0, 1.0);
    let inputs =
        shapes.map(|shape| Tensor::<2>::random(shape, normal, &subject.device).into_data());
    let run = || {
        let mut results = run_operations(&inputs, &device);
        for kind in [OptimizerKind::Adafactor, OptimizerKind::AdamW] {
            results.extend(run_optimizer(kind, &inputs, &subject.device));
        }
        results
    };
    run();
    let (first, second) = (run(), run());
    for (number, (first, second)) in first.iter().zip(&second).enumerate() {
        assert!(first.iter().any(|&value| value != 0.0), "result {number} is zero");
        assert!(first == second, "result {number} is another in the second run");
    }
}

/// The outputs of all operations, and the gradients of a sum of them in which each value has a factor of its own.
fn run_operations(inputs: &[TensorData; 17], device: &Device) -> Vec<Vec<f32>> {
    let leaves =
        inputs.each_ref().map(|data| Tensor::<2>::from_data(data.clone(), device).require_grad());
    let [state, computed, coefs, gamma, query, key, value, bias, logits, table, gate, rest @ ..] =
        leaves.clone();
    let [p, g, sequence, windows, scalars, distances] = rest;
    let tokens = |count: usize, below: i32| -> Tensor<1, Int> {
        Tensor::arange(0..count as i64, device).mul_scalar(7).remainder_scalar(below)
    };
    let heads = |x: Tensor<2>| x.reshape([4, 65, 3, 8]);
    let bias = Some(bias.reshape([1, 3, 65, 65]));
    // Of distances from −64 to 64, five in one.
    let buckets = (0..65 * 65).map(|pair| (pair % 65 - pair / 65 + 64) / 5).collect::<Vec<i32>>();
    let buckets = Tensor::<1, Int>::from_data(TensorData::new(buckets, [65 * 65]), device);
    // Not as leaves of their own.
    let altup = AltUp {
        prediction_coefs: Param::initialized(ParamId::new(), p),
        correction_coefs: Param::initialized(ParamId::new(), g.reshape([2])),
    };
    let state = state.reshape([2, 2, 257, 96]);
    let of_block = computed.clone().reshape([2, 257, 96]);
    let outputs = [
        combine_blocks(state.clone(), of_block.clone(), coefs).flatten(0, 3),
        altup.update(state, of_block, 1).flatten(0, 3),
        combine_windows(
            sequence.reshape([2, 257, 96]),
            windows.reshape([2, 86, 96]),
            scalars.reshape([3]),
            3,
        )
        .flatten(0, 2),
        position_bias(distances, buckets, [65, 65]).flatten(0, 3),
        rms_norm(computed.clone(), gamma.reshape([96]), 1e-6).flatten(0, 1),
        gated_gelu(gate, computed).flatten(0, 1),
        attention(heads(query), heads(key), heads(value), bias, None).flatten(0, 3),
        cross_entropy(logits, tokens(514, 300), CrossEntropyOptions::default()),
        embedding(table, tokens(1028, 50).reshape([4, 257])).flatten::<1>(0, 2),
    ];
    let weighted = outputs.clone().map(|output: Tensor<1>| {
        let factors =
            Tensor::arange(0..output.dims()[0] as i64, device).remainder_scalar(13).float() - 6.0;
        (output * factors).sum()
    });
    let gradients = weighted.into_iter().reduce(|a, b| a + b).unwrap().backward();
    let gradients = leaves.iter().map(|leaf| values(leaf.grad(&gradients).unwrap()));
    outputs.into_iter().map(values).chain(gradients).collect()
}

#[derive(Module, Debug)]
struct Weights {
    matrix: Param<Tensor<2>>,
    row: Param<Tensor<2>>,
}

/// The squared norms of gradients that are too large, and weights after two steps with them.
fn run_optimizer(kind: OptimizerKind, inputs: &[TensorData; 17], device: &Device) -> Vec<Vec<f32>> {
    let [.., logits, _, gate, _, _, _, _, _, _] = inputs;
    let param = |data: &TensorData, device: &Device| Tensor::<2>::from_data(data.clone(), device);
    let autodiff = device.clone().autodiff();
    let mut weights = Weights {
        matrix: Param::from_tensor(param(logits, &autodiff)),
        row: Param::from_tensor(param(gate, &autodiff)),
    };
    let mut optimizer = OptimizerConfig { kind, ..Default::default() }.init();
    let mut norms = Vec::new();
    for step in 1..=2 {
        let mut gradients = GradientsParams::new();
        let gradient = |data| param(data, device) * f64::from(step);
        gradients.register::<2>(weights.matrix.id, gradient(logits));
        gradients.register::<2>(weights.row.id, gradient(gate));
        let square_sum = global_square_sum(&weights, &gradients).unwrap();
        clip_gradients(&weights, &mut gradients, &square_sum, 1.0);
        norms.extend(values(square_sum));
        weights = optimizer.step(0.1, weights, gradients);
    }
    vec![norms, values(weights.matrix.val()), values(weights.row.val())]
}
