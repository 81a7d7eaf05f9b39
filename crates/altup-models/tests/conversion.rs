//! A dense model widened, and models written in every form.

mod support;

use altup_core::{BlockSelection, Widening};
use altup_models::{
    AltUpModelConfig, DirectoryError, EncoderSequence, FloatType, ModelDirectory, Reduction,
    SaveOptions, SequenceMethod, T5, T5Config, parameter_tensors, widen,
};
use burn::module::Param;
use burn::tensor::{Device, Tensor};
use std::fs;
use support::{
    CASES, Inputs, TOLERANCE, assert_close_within, dense_cases, fixture, ids, read_json,
    read_tensors, values,
};

fn outputs(model: &T5, inputs: &Inputs, device: &Device) -> Vec<f32> {
    let input_ids = ids(&inputs.input_ids, device);
    let padding = input_ids.clone().equal_elem(0);
    values(model.forward(input_ids, Some(padding), ids(&inputs.labels, device)))
}

#[test]
fn a_widened_model_computes_what_the_dense_one_does() {
    let device = Device::flex();
    for case in dense_cases() {
        let (config, dense) = ModelDirectory::new(fixture(case)).load(&device).unwrap();
        let inputs: Inputs = read_json(&fixture(case).join("inputs.json"));
        let expected = outputs(&dense, &inputs, &device);
        for widening in [Widening::Embedding, Widening::Recycled, Widening::Sum] {
            for selection in [BlockSelection::Alternating, BlockSelection::Same] {
                for num_blocks in [1, 2, 3] {
                    let altup = AltUpModelConfig {
                        num_blocks,
                        selection,
                        widening,
                        encoder_sequence: None,
                    };
                    let (widened, model) = widen(&config, &dense, altup.clone(), &device);
                    let what = format!("{case}, {altup:?}");
                    // The final norm divides the factor K of a sum away up to its ε, which one of the
                    // cases has at 1e-2 in place of T5's 1e-6.
                    let summed = widening == Widening::Recycled && num_blocks > 1;
                    let epsilon = if summed { config.layer_norm_epsilon as f32 } else { 0.0 };
                    let found = outputs(&model, &inputs, &device);
                    assert_close_within(TOLERANCE + epsilon, &what, &found, &expected);

                    // Also after a way through the disk.
                    let folder = tempfile::tempdir().unwrap();
                    let directory = ModelDirectory::new(folder.path());
                    directory.save(&widened, &model).unwrap();
                    let (config_again, again) = directory.load(&device).unwrap();
                    assert_eq!(config_again, widened, "{what}");
                    assert_eq!(parameter_tensors(&again), parameter_tensors(&model), "{what}");
                }
            }
        }
    }
}

/// What a dense model has no coefficients for starts as a fresh model's does.
#[test]
fn coefficients_along_the_sequence_start_at_their_start() {
    let device = Device::flex();
    let (config, dense) = load("dense-gated");
    let sequence = EncoderSequence {
        method: SequenceMethod::Altup,
        stride: 2,
        first_layer: 1,
        last_layer: Some(1),
    };
    let altup = AltUpModelConfig {
        num_blocks: 2,
        selection: BlockSelection::Alternating,
        widening: Widening::Embedding,
        encoder_sequence: Some(sequence),
    };
    let (_, model) = widen(&config, &dense, altup, &device);
    let Some(Reduction::SequenceAltUp(sequence)) = &model.encoder.blocks[1].reduction else {
        panic!("layer 1 has a reduction")
    };
    assert_eq!(values(sequence.prediction_coefs.val()), [1.0, 0.0]);
    assert_eq!(values(sequence.correction_coef.val()), [1.0]);
}

fn load(case: &str) -> (T5Config, T5) {
    ModelDirectory::new(fixture(case)).load(&Device::flex()).unwrap()
}

#[test]
fn shards_hold_what_one_file_does_and_neither_leaves_the_other() {
    let (config, model) = load("altup-embedding-k2");
    let folder = tempfile::tempdir().unwrap();
    let directory = ModelDirectory::new(folder.path());
    let sharded = SaveOptions { max_shard_bytes: Some(8_000), ..SaveOptions::default() };
    directory.save(&config, &model).unwrap();
    let fewer = SaveOptions { max_shard_bytes: Some(20_000), ..SaveOptions::default() };
    let mut counts = Vec::new();
    for options in [sharded, fewer, SaveOptions::default()] {
        directory.save_as(&config, &model, &options).unwrap();
        let (_, again) = directory.load(&Device::flex()).unwrap();
        assert_eq!(parameter_tensors(&again), parameter_tensors(&model));
        let names: Vec<String> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.ends_with(".safetensors"))
            .collect();
        let of_one_save =
            |name: &String| name.ends_with(&format!("-of-{:05}.safetensors", names.len()));
        assert!(names.len() == 1 || names.iter().all(of_one_save), "{names:?}");
        counts.push(names.len());
        let whole = names.contains(&"model.safetensors".to_owned());
        assert_eq!(whole, options.max_shard_bytes.is_none(), "{names:?}");
    }
    assert!(counts[0] > counts[1] && counts[1] > 1 && counts[2] == 1, "{counts:?}");
}

#[test]
fn narrower_types_round_and_halve_the_file() {
    let (config, model) = load("dense-gated");
    let folder = tempfile::tempdir().unwrap();
    let directory = ModelDirectory::new(folder.path());
    let size = || fs::metadata(folder.path().join("model.safetensors")).unwrap().len();
    directory.save(&config, &model).unwrap();
    let whole = size();
    for (dtype, tolerance) in [(FloatType::F16, 1.0 / 2048.0), (FloatType::BF16, 1.0 / 256.0)] {
        let options = SaveOptions { dtype, ..SaveOptions::default() };
        directory.save_as(&config, &model, &options).unwrap();
        assert!(size() < whole * 6 / 10);
        let (_, again) = directory.load(&Device::flex()).unwrap();
        for (a, b) in parameter_tensors(&again).iter().zip(&parameter_tensors(&model)) {
            for (a, b) in a.values.iter().zip(&b.values) {
                assert!((a - b).abs() <= tolerance * b.abs() + 1e-7, "{a} is not {b}");
            }
        }
    }
}

#[test]
fn a_value_too_large_for_its_type_is_refused_by_name() {
    let (config, mut model) = load("dense-gated");
    let norm = &mut model.encoder.final_norm.gamma;
    *norm = Param::from_tensor(Tensor::full(norm.dims(), 1e5, &Device::flex()));
    let folder = tempfile::tempdir().unwrap();
    let directory = ModelDirectory::new(folder.path());
    let options = SaveOptions { dtype: FloatType::F16, ..SaveOptions::default() };
    let error = directory.save_as(&config, &model, &options).unwrap_err();
    assert!(matches!(error, DirectoryError::Overflow { .. }), "{error}");
    let message = error.to_string();
    assert!(message.contains("encoder.final_layer_norm.weight"), "{message}");
    assert!(message.contains("100000") && message.contains("float16"), "{message}");
    assert!(!folder.path().join("model.safetensors").exists());
}

#[test]
fn a_saved_directory_holds_the_same_tensors() {
    for case in CASES {
        let folder = fixture(case);
        let (config, model) = load(case);
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

#[test]
fn a_directory_is_known_by_its_tensors() {
    let device = Device::flex();
    let (config, model) = load("dense-gated");
    let folder = tempfile::tempdir().unwrap();
    let directory = |name: &str| ModelDirectory::new(folder.path().join(name));
    let fingerprint = |name: &str| directory(name).fingerprint().unwrap();
    directory("whole").save(&config, &model).unwrap();
    let shards = SaveOptions { max_shard_bytes: Some(4096), ..SaveOptions::default() };
    directory("shards").save_as(&config, &model, &shards).unwrap();
    assert!(fs::read_dir(folder.path().join("shards")).unwrap().count() > 3);
    assert_eq!(fingerprint("whole"), fingerprint("shards"));

    // One value, by its last bit; and as another type, which rounds.
    let path = folder.path().join("whole/model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let whole = fingerprint("whole");
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, &bytes).unwrap();
    assert_ne!(fingerprint("whole"), whole);
    let half = SaveOptions { dtype: FloatType::BF16, ..SaveOptions::default() };
    directory("half").save_as(&config, &model, &half).unwrap();
    assert_ne!(fingerprint("half"), whole);
    // What was rounded already stays, whatever type it is in.
    let (_, rounded) = directory("half").load(&device).unwrap();
    directory("again").save(&config, &rounded).unwrap();
    assert_eq!(fingerprint("again"), fingerprint("half"));
}
