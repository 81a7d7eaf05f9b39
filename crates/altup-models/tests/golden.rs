//! Every model variant against golden values from outside this code: Hugging Face transformers for
//! the dense cases, an independent PyTorch reference for AltUp.
//!
//! Regenerate the fixtures with `python scripts/reference/generate_fixtures.py`.

mod support;

use altup_models::{
    GenerationConfig, LayerRouting, ModelDirectory, NamedTensor, T5, T5Config, cross_entropy_sum,
    generate, gradient_tensors, parameter_tensors,
};
use burn::tensor::{Device, Tensor};
use serde::Deserialize;
use std::path::Path;
use support::{
    CASES, Inputs, assert_close, devices, fixture, ids, read_json, read_tensors, values,
};

/// (encoder output, logits, mean loss)
fn run(model: &T5, inputs: &Inputs, device: &Device) -> (Tensor<3>, Tensor<3>, Tensor<1>) {
    let input_ids = ids(&inputs.input_ids, device);
    let labels = ids(&inputs.labels, device);
    let padding = input_ids.clone().equal_elem(0);
    let encoder_output = model.encode(input_ids.clone(), Some(&padding)).hidden;
    let logits = model.forward(input_ids, Some(padding), labels.clone());
    let targets = inputs.labels.iter().flatten().filter(|&&label| label != 0).count();
    let loss = cross_entropy_sum(logits.clone(), labels) / targets as f64;
    (encoder_output, logits, loss)
}

#[test]
fn outputs_loss_and_every_gradient_equal_the_reference() {
    for device in devices() {
        for case in CASES {
            let folder = fixture(case);
            let (config, model) = load_for_evaluation(&folder, &device.clone().autodiff());
            let expected = read_tensors(&folder.join("expected.safetensors"));
            let inputs: Inputs = read_json(&folder.join("inputs.json"));
            let (encoder_output, logits, loss) = run(&model, &inputs, &device.clone().autodiff());
            assert_close(case, &values(encoder_output), &expected["encoder_output"].1);
            assert_close(case, &values(logits), &expected["logits"].1);
            assert_close(case, &values(loss.clone()), &expected["loss"].1);

            let gradients = gradient_tensors(&model, &loss.backward());
            let expected = read_tensors(&folder.join("gradients.safetensors"));
            let names: Vec<&str> = gradients.iter().map(|tensor| tensor.name.as_str()).collect();
            for name in expected.keys() {
                assert!(names.contains(&name.as_str()), "{case}: {name} has no gradient");
            }
            for NamedTensor { name, shape, values } in &gradients {
                let (expected_shape, expected) = &expected[name];
                assert_eq!(shape, expected_shape, "{case}: {name}");
                assert_close(&format!("{case}: {name}"), values, expected);
            }
            assert_eq!(config.vocab_size, model.embedding.weight.dims()[0]);
        }
    }
}

#[test]
fn the_routers_losses_and_their_gradients_equal_the_reference() {
    let cases: Vec<&&str> = CASES.iter().filter(|case| case.contains("moe")).collect();
    assert_eq!(cases.len(), 6);
    for device in devices() {
        for case in &cases {
            let folder = fixture(case);
            let device = device.clone().autodiff();
            let (_, model) = load_for_evaluation(&folder, &device);
            let expected = read_tensors(&folder.join("auxiliary.safetensors"));
            let close = |name: &str, found: &[f32]| {
                assert_close(&format!("{case}: {name}"), found, &expected[name].1);
            };
            let inputs: Inputs = read_json(&folder.join("inputs.json"));
            let input_ids = ids(&inputs.input_ids, &device);
            let labels = ids(&inputs.labels, &device);
            let padding = input_ids.clone().equal_elem(0);
            let (logits, routing) =
                model.forward_with_routing(input_ids, Some(padding), labels.clone());
            let of_layers = |value: &dyn Fn(&LayerRouting) -> f64| -> Vec<f32> {
                routing.iter().map(|layer| value(layer) as f32).collect()
            };
            let scalar = |tensor: &Tensor<1>| tensor.clone().into_scalar::<f64>();
            close("load_balancing", &of_layers(&|layer| scalar(&layer.load_balancing_loss)));
            close("router_z", &of_layers(&|layer| scalar(&layer.z_loss)));
            close("entropy", &of_layers(&|layer| layer.entropy));
            let loads = routing.iter().flat_map(|layer| &layer.loads).map(|&load| load as f32);
            close("loads", &loads.collect::<Vec<f32>>());
            assert!(routing.iter().all(|layer| layer.dropped == 0.0), "{case}");

            let targets = inputs.labels.iter().flatten().filter(|&&label| label != 0).count();
            let auxiliary = model.auxiliary_loss(&routing).unwrap();
            let total = cross_entropy_sum(logits, labels) / targets as f64 + auxiliary;
            close("total_loss", &values(total.clone()));
            let expected = read_tensors(&folder.join("total_gradients.safetensors"));
            for NamedTensor { name, values, .. } in &gradient_tensors(&model, &total.backward()) {
                assert_close(&format!("{case}: {name}"), values, &expected[name].1);
            }
        }
    }
}

/// The fixtures were made in evaluation mode.
fn load_for_evaluation(folder: &Path, device: &Device) -> (T5Config, T5) {
    let directory = ModelDirectory::new(folder);
    directory.load_as(directory.config().unwrap().for_evaluation(), device).unwrap()
}

#[derive(Deserialize)]
struct Generation {
    input_ids: Vec<Vec<u32>>,
    max_new_tokens: usize,
    sequences: Vec<Vec<u32>>,
}

#[test]
fn greedy_tokens_equal_the_reference() {
    for device in devices() {
        for case in CASES {
            let folder = fixture(case);
            let (_, model) = ModelDirectory::new(&folder).load(&device).unwrap();
            let expected: Generation = read_json(&folder.join("generation.json"));
            let greedy = GenerationConfig::greedy(expected.max_new_tokens);
            let found = generate(&model, &expected.input_ids, &greedy);
            let found: Vec<&Vec<u32>> = found.iter().map(|targets| &targets[0].tokens).collect();
            assert_eq!(found, expected.sequences.iter().collect::<Vec<_>>(), "{case}");
        }
    }
}

#[test]
fn a_saved_directory_holds_the_same_tensors() {
    for case in CASES {
        let folder = fixture(case);
        let (config, model) = ModelDirectory::new(&folder).load(&Device::flex()).unwrap();
        let saved = tempfile::tempdir().unwrap();
        ModelDirectory::new(saved.path()).save(&config, &model).unwrap();
        let original = read_tensors(&folder.join("model.safetensors"));
        assert_eq!(read_tensors(&saved.path().join("model.safetensors")), original, "{case}");
        let (config_again, model_again) =
            ModelDirectory::new(saved.path()).load(&Device::flex()).unwrap();
        assert_eq!(config_again, config, "{case}");
        assert_eq!(parameter_tensors(&model_again), parameter_tensors(&model), "{case}");
    }
}
