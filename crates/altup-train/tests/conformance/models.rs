//! Every model variant against Hugging Face transformers for the dense cases, and an independent
//! PyTorch reference for the others.
//!
//! Regenerate the fixtures with `python scripts/reference/generate_fixtures.py`.

use altup_models::{
    GenerationConfig, LayerRouting, ModelDirectory, NamedTensor, Noise, T5, cross_entropy_sum,
    generate, gradient_tensors, parameter_tensors,
};
use altup_optim::OptimizerConfig;
use altup_train::precision::Precision;
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;

use crate::backends::Subject;
use crate::support::{CASES, Inputs, fixture, ids, read_json, read_tensors, values};

/// What `adafactor_step.safetensors` was made with.
const LEARNING_RATE: f64 = 1e-2;

/// Adafactor divides a gradient by the size of its row and column: where these are small, so is what
/// the difference of the gradient is relative to. And an update of a hundredth of a parameter is read off
/// the parameter's f32. In f64 the reference differs from itself by 2.4e-4 of the largest update.
const UPDATE_TOLERANCE_FACTOR: f32 = 10.0;

pub(crate) fn outputs_loss_gradients_and_an_optimizer_step(subject: &Subject, cases: &[&str]) {
    let device = subject.autodiff();
    for case in cases {
        let folder = fixture(case);
        let model = load_for_evaluation(&folder, &device);
        let inputs: Inputs = read_json(&folder.join("inputs.json"));
        let expected = read_tensors(&folder.join("expected.safetensors"));
        let close = |name: &str, found: &[f32]| {
            subject.assert_close(&format!("{case}: {name}"), found, &expected[name].1);
        };

        let input_ids = ids(&inputs.input_ids, &device);
        let labels = ids(&inputs.labels, &device);
        let padding = input_ids.clone().equal_elem(0);
        let encoded = model.encode(input_ids.clone(), Some(&padding));
        close("encoder_output", &values(encoded.hidden));
        let logits = model.forward(input_ids, Some(padding), labels.clone());
        close("logits", &values(logits.clone()));
        let loss = cross_entropy_sum(logits, labels) / inputs.targets() as f64;
        close("loss", &values(loss.clone()));

        let gradients = loss.backward();
        let expected = read_tensors(&folder.join("gradients.safetensors"));
        all_close(subject, case, &gradient_tensors(&model, &gradients), &expected);

        let gradients = GradientsParams::from_grads(gradients, &model);
        let stepped =
            OptimizerConfig::default().init().step(LEARNING_RATE, model.clone(), gradients);
        step_is_close(subject, case, &model, &stepped, &expected);
    }
}

/// Each loss is within 2 % of that in f32: bf16 keeps 8 bits, and a token whose expert changes by them is one of
/// a few. Gradients are passed through, and finite.
#[allow(clippy::print_stderr)] // What is skipped is said.
pub(crate) fn losses_in_bf16(subject: &Subject) {
    if Precision::Bf16.check(&subject.device).is_err() {
        eprintln!("skipped: this device does not compute in bf16");
        return;
    }
    let device = subject.autodiff();
    for case in CASES {
        let folder = fixture(case);
        let model = Precision::Bf16.to_compute(&load_for_evaluation(&folder, &device));
        let inputs: Inputs = read_json(&folder.join("inputs.json"));
        let input_ids = ids(&inputs.input_ids, &device);
        let labels = ids(&inputs.labels, &device);
        let padding = input_ids.clone().equal_elem(0);
        let logits = model.forward(input_ids, Some(padding), labels.clone());
        let loss = cross_entropy_sum(logits, labels) / inputs.targets() as f64;
        let expected = read_tensors(&folder.join("expected.safetensors"))["loss"].1[0];
        let found = values(loss.clone())[0];
        let what = format!("{case}: a loss of {found}, {expected} in f32");
        assert!((found - expected).abs() < 2e-2 * expected, "{what}");
        assert!(found != expected, "{what}: nothing was computed in bf16");
        for NamedTensor { name, values, .. } in gradient_tensors(&model, &loss.backward()) {
            assert!(values.iter().all(|value| value.is_finite()), "{case}: {name}");
        }
    }
}

#[derive(Deserialize)]
struct MaskedInputs {
    input_ids: Vec<Vec<i32>>,
    labels: Vec<Vec<i32>>,
    attention_mask: Vec<Vec<i32>>,
}

/// Tokens hidden here and there, and a row of which all are. Its tokens differ, so what they are is seen where a
/// mask lets any of the scores through.
pub(crate) fn masks_that_hide_whole_rows(subject: &Subject) {
    let device = subject.autodiff();
    for case in ["dense-empty-row", "altup-embedding-k2-empty-row"] {
        let folder = fixture(case);
        let model = load_for_evaluation(&folder, &device);
        let inputs: MaskedInputs = read_json(&folder.join("masked_inputs.json"));
        let expected = read_tensors(&folder.join("masked_expected.safetensors"));
        let close = |name: &str, found: &[f32]| {
            subject.assert_close(&format!("{case}: {name}"), found, &expected[name].1);
        };
        let (input_ids, labels) = (ids(&inputs.input_ids, &device), ids(&inputs.labels, &device));
        let padding = ids(&inputs.attention_mask, &device).equal_elem(0);
        let targets = inputs.labels.iter().flatten().filter(|&&label| label != 0).count();
        let encoded = model.encode(input_ids.clone(), Some(&padding));
        close("encoder_output", &values(encoded.hidden));
        let logits = model.forward(input_ids, Some(padding), labels.clone());
        close("logits", &values(logits.clone()));
        let loss = cross_entropy_sum(logits, labels) / targets as f64;
        close("loss", &values(loss.clone()));
        let expected = read_tensors(&folder.join("masked_gradients.safetensors"));
        all_close(subject, case, &gradient_tensors(&model, &loss.backward()), &expected);
    }
}

/// Compares what the step changed, which is a hundredth of the parameters.
///
/// The first step of a vector goes by the signs of its gradient: a value that is 0 but for rounding has none.
fn step_is_close(
    subject: &Subject,
    case: &str,
    model: &T5,
    stepped: &T5,
    gradients: &BTreeMap<String, (Vec<usize>, Vec<f32>)>,
) {
    let expected = read_tensors(&fixture(case).join("adafactor_step.safetensors"));
    let before = parameter_tensors(model);
    let after = parameter_tensors(stepped);
    assert_eq!(before.len(), after.len(), "{case}");
    for (before, after) in before.iter().zip(&after) {
        let what = format!("{case}: the step of {}", after.name);
        let Some((_, expected)) = expected.get(&after.name) else {
            assert_eq!(before.values, after.values, "{what}: it has no gradient");
            continue;
        };
        let (shape, gradient) = &gradients[&after.name];
        let largest = gradient.iter().fold(0f32, |max, value| max.max(value.abs()));
        let has_sign = |value: f32| shape.len() > 1 || value.abs() > 1e-3 * largest;
        let change = |after: &[f32]| -> Vec<f32> {
            let values = after.iter().zip(&before.values).zip(gradient);
            values
                .filter(|(_, g)| has_sign(**g))
                .map(|((after, before), _)| after - before)
                .collect()
        };
        crate::support::assert_close_within(
            UPDATE_TOLERANCE_FACTOR * subject.tolerance,
            &what,
            &change(&after.values),
            &change(expected),
        );
    }
}

pub(crate) fn the_routers_losses_and_their_gradients(subject: &Subject) {
    let device = subject.autodiff();
    let cases: Vec<&&str> = CASES.iter().filter(|case| case.contains("moe")).collect();
    assert_eq!(cases.len(), 6);
    for case in &cases {
        let folder = fixture(case);
        let model = load_for_evaluation(&folder, &device);
        let expected = read_tensors(&folder.join("auxiliary.safetensors"));
        let close = |name: &str, found: &[f32]| {
            subject.assert_close(&format!("{case}: {name}"), found, &expected[name].1);
        };
        let inputs: Inputs = read_json(&folder.join("inputs.json"));
        let input_ids = ids(&inputs.input_ids, &device);
        let labels = ids(&inputs.labels, &device);
        let padding = input_ids.clone().equal_elem(0);
        let (logits, routing) =
            model.forward_with_routing(input_ids, Some(padding), labels.clone(), Noise::none());
        let of_layers = |value: &dyn Fn(&LayerRouting) -> f64| -> Vec<f32> {
            routing.iter().map(|layer| value(layer) as f32).collect()
        };
        let scalar = |tensor: &Tensor<1>| tensor.clone().into_scalar::<f64>();
        close("load_balancing", &of_layers(&|layer| scalar(&layer.load_balancing_loss)));
        close("router_z", &of_layers(&|layer| scalar(&layer.z_loss)));
        close("entropy", &of_layers(&|layer| scalar(&layer.entropy)));
        let loads = routing.iter().map(|layer| layer.loads.clone()).collect();
        close("loads", &values(Tensor::cat(loads, 0)));
        assert!(routing.iter().all(|layer| scalar(&layer.dropped) == 0.0), "{case}");

        let auxiliary = model.auxiliary_loss(&routing).unwrap();
        let total = cross_entropy_sum(logits, labels) / inputs.targets() as f64 + auxiliary;
        close("total_loss", &values(total.clone()));
        let expected = read_tensors(&folder.join("total_gradients.safetensors"));
        all_close(subject, case, &gradient_tensors(&model, &total.backward()), &expected);
    }
}

/// Every tensor, each as close as the backend is.
fn all_close(
    subject: &Subject,
    case: &str,
    found: &[NamedTensor],
    expected: &BTreeMap<String, (Vec<usize>, Vec<f32>)>,
) {
    let names: Vec<&str> = found.iter().map(|tensor| tensor.name.as_str()).collect();
    for name in expected.keys() {
        assert!(names.contains(&name.as_str()), "{case}: {name} is missing");
    }
    for NamedTensor { name, shape, values } in found {
        let (expected_shape, expected) = &expected[name];
        assert_eq!(shape, expected_shape, "{case}: {name}");
        subject.assert_close(&format!("{case}: {name}"), values, expected);
    }
}

/// The fixtures were made in evaluation mode.
fn load_for_evaluation(folder: &Path, device: &Device) -> T5 {
    let directory = ModelDirectory::new(folder);
    directory.load_as(directory.config().unwrap().for_evaluation(), device).unwrap().1
}

#[derive(Deserialize)]
struct Generation {
    input_ids: Vec<Vec<u32>>,
    max_new_tokens: usize,
    sequences: Vec<Vec<u32>>,
}

pub(crate) fn greedy_tokens(subject: &Subject) {
    for case in CASES {
        let folder = fixture(case);
        let (_, model) = ModelDirectory::new(&folder).load(&subject.device).unwrap();
        let expected: Generation = read_json(&folder.join("generation.json"));
        let greedy = GenerationConfig::greedy(expected.max_new_tokens);
        let found = generate(&model, &expected.input_ids, &greedy).unwrap();
        let found: Vec<&Vec<u32>> = found.iter().map(|targets| &targets[0].tokens).collect();
        assert_eq!(found, expected.sequences.iter().collect::<Vec<_>>(), "{case}");
    }
}
