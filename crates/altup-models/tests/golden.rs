//! Every model variant against golden values from outside this code: Hugging Face transformers for
//! the dense cases, an independent PyTorch reference for AltUp.
//!
//! Regenerate the fixtures with `python scripts/reference/generate_fixtures.py`.

use altup_models::{
    ModelDirectory, NamedTensor, T5, T5Config, cross_entropy_sum, generate_greedy,
    gradient_tensors, parameter_tensors,
};
use burn::tensor::{Device, Int, Tensor, TensorData};
use safetensors::SafeTensors;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Largest difference relative to the largest value of a tensor. Two f32 implementations sum in
/// different orders: over these sizes 1e-5 apart at most, against the 1e-4 that would show an error.
const TOLERANCE: f32 = 5e-5;

const CASES: &[&str] = &[
    "dense-gated",
    "dense-relu-tied",
    "dense-long",
    "dense-hf5-tied",
    "dense-hf5-untied",
    "altup-embedding-k2",
    "altup-embedding-k2-tied",
    "altup-embedding-k3-same",
    "altup-embedding-k4",
    "altup-recycled-k1",
    "altup-recycled-k2",
    "sum-k2",
];

fn devices() -> [Device; 2] {
    [Device::flex(), altup_ndarray()]
}

#[allow(deprecated)] // Burn will drop ndarray; it is tested while it ships.
fn altup_ndarray() -> Device {
    Device::ndarray()
}

fn fixture(case: &str) -> PathBuf {
    Path::new("tests/fixtures").join(case) // Cargo runs tests in the folder of their package.
}

fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> T {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// A safetensors file of f32 tensors.
fn read_tensors(path: &Path) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let decode = |bytes: &[u8]| -> Vec<f32> {
        bytes.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
    };
    file.iter().map(|(n, t)| (n.to_owned(), (t.shape().to_vec(), decode(t.data())))).collect()
}

#[derive(Deserialize)]
struct Inputs {
    input_ids: Vec<Vec<i32>>,
    labels: Vec<Vec<i32>>,
}

fn ids(rows: &[Vec<i32>], device: &Device) -> Tensor<2, Int> {
    let shape = [rows.len(), rows[0].len()];
    Tensor::from_data(TensorData::new(rows.concat(), shape), device)
}

#[track_caller]
fn assert_close(what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}: sizes differ");
    let scale = expected.iter().fold(1e-6f32, |max, value| max.max(value.abs()));
    let worst = found.iter().zip(expected).fold(0f32, |max, (a, b)| max.max((a - b).abs()));
    assert!(worst <= TOLERANCE * scale, "{what}: off by {worst}, values reach {scale}");
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

/// (encoder output, logits, mean loss)
fn run(model: &T5, inputs: &Inputs, device: &Device) -> (Tensor<3>, Tensor<3>, Tensor<1>) {
    let input_ids = ids(&inputs.input_ids, device);
    let labels = ids(&inputs.labels, device);
    let padding = input_ids.clone().equal_elem(0);
    let encoder_output = model.encode(input_ids.clone(), Some(&padding));
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
            // Autodiff without dropout: what is compared is the model itself.
            let (config, model) = load_without_dropout(&folder, &device.clone().autodiff());
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

/// The fixtures were made in evaluation mode; their configurations may carry a dropout rate.
fn load_without_dropout(folder: &Path, device: &Device) -> (T5Config, T5) {
    let (config, model) = ModelDirectory::new(folder).load(device).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let rewritten = ModelDirectory::new(directory.path());
    let config = T5Config { dropout_rate: 0.0, ..config };
    rewritten.save(&config, &model).unwrap();
    rewritten.load(device).unwrap()
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
            let (config, model) = ModelDirectory::new(&folder).load(&device).unwrap();
            let expected: Generation = read_json(&folder.join("generation.json"));
            let eos = config.eos_token_id as u32;
            let found = generate_greedy(&model, &expected.input_ids, eos, expected.max_new_tokens);
            assert_eq!(found, expected.sequences, "{case}");
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
