//! The configurations in `configs/`, which the documentation's commands name.

use altup_data::Batch;
use altup_models::ModelDirectory;
use altup_train::config::RunConfig;
use altup_train::learner::{Learner, ToDevice};
use burn::tensor::Device;
use burn::train::InferenceStep;
use std::fs;
use std::path::PathBuf;

fn folder() -> PathBuf {
    PathBuf::from("../../configs") // Cargo runs tests in the folder of their package.
}

fn load(name: &str) -> RunConfig {
    let path = folder().join(format!("{name}.toml"));
    RunConfig::default().with_file(&path).unwrap_or_else(|error| panic!("{name}: {error}"))
}

#[test]
fn every_configuration_loads_and_describes_a_model() {
    let mut names: Vec<String> = fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter_map(|name| Some(name.strip_suffix(".toml")?.to_owned()))
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "altup-b-c4",
            "altup-b-moe-c4",
            "altup-b-sequence-c4",
            "altup-s-c4",
            "altup-s-dense-c4",
            "altup-s-moe-c4",
            "altup-s-sequence-c4",
            "continue-c4",
            "hour-altup",
            "hour-dense",
            "hour-recycled",
            "tiny-altup",
            "tiny-dense",
            "tiny-moe",
            "tiny-sequence",
        ]
    );
    for name in names.iter().filter(|name| *name != "continue-c4") {
        let config = load(name);
        config.validate().unwrap_or_else(|error| panic!("{name}: {error}"));
        let model = config.model_config(32100).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(model.vocab_size, 32128, "{name}");
    }
}

/// It has no model: that of a directory is trained further.
#[test]
fn the_configuration_that_continues_is_one_for_init() {
    let folder = tempfile::tempdir().unwrap();
    let device = Device::flex();
    let model_config = load("tiny-altup").model_config(64).unwrap();
    let model = model_config.init(0, &device);
    let directory = ModelDirectory::new(folder.path());
    directory.save(&model_config, &model).unwrap();

    let mut config = load("continue-c4");
    config.model.init = Some(folder.path().to_owned());
    config.data.tokenizer = Some(directory.tokenizer());
    config.validate().unwrap();
    let found = config.model_config(64).unwrap();
    assert_eq!((found.d_model, found.altup), (model_config.d_model, model_config.altup));
}

#[test]
fn tiny_altup_is_what_a_run_without_flags_is() {
    assert_eq!(load("tiny-altup").differences(&RunConfig::tiny_altup()), []);
    assert_eq!(load("tiny-altup"), RunConfig::tiny_altup());
}

#[test]
fn a_dense_baseline_differs_from_its_altup_in_nothing_else() {
    for (altup, dense) in [
        ("tiny-altup", "tiny-dense"),
        ("hour-altup", "hour-dense"),
        ("hour-recycled", "hour-dense"),
        ("altup-s-c4", "altup-s-dense-c4"),
    ] {
        let mut without = load(altup);
        assert!(without.model.altup.take().is_some(), "{altup}");
        assert_eq!(without, load(dense), "{dense}");
    }
}

#[test]
fn configurations_on_c4_take_128_examples_a_step() {
    for name in ["s", "s-dense", "s-moe", "s-sequence", "b", "b-moe", "b-sequence"] {
        let training = load(&format!("altup-{name}-c4")).training;
        assert_eq!(training.batch_size * training.gradient_accumulation, 128, "{name}");
    }
}

#[test]
fn small_configurations_score_a_batch() {
    const BATCH_SIZE: usize = 2;
    const TARGET_LENGTH: usize = 24;
    let device = Device::flex();
    for name in [
        "tiny-altup",
        "tiny-dense",
        "tiny-moe",
        "tiny-sequence",
        "hour-altup",
        "hour-dense",
        "hour-recycled",
    ] {
        let config = load(name);
        let (vocabulary, input_length) = (config.data.vocab_size, config.data.input_length);
        let ids = |length: usize| -> Vec<i32> {
            (0..BATCH_SIZE * length).map(|n| (1 + n * 37 % (vocabulary - 1)) as i32).collect()
        };
        let batch = Batch {
            input_ids: ids(input_length),
            labels: ids(TARGET_LENGTH),
            batch_size: BATCH_SIZE,
            input_length,
            target_length: TARGET_LENGTH,
        };
        let learner =
            Learner { model: config.model_config(vocabulary).unwrap().init(config.seed, &device) };
        let targets = batch.num_targets();
        assert_eq!(targets, (BATCH_SIZE * TARGET_LENGTH) as u64);
        let scored = learner.step(batch.to_device(targets, &device));
        let loss = scored.losses.sum().into_scalar::<f64>() / targets as f64;
        assert!(loss.is_finite() && loss > 0.0, "{name}: {loss}");
    }
}
