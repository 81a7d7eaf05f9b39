//! The fixtures, and how values are compared with them.

// Each test binary uses a part.
#![allow(dead_code)]

use burn::tensor::{Device, Int, Tensor, TensorData};
use safetensors::SafeTensors;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Largest difference relative to the largest value of a tensor. Two f32 implementations sum in
/// different orders: over these sizes 1e-5 apart at most, against the 1e-4 that would show an error.
pub(crate) const TOLERANCE: f32 = 5e-5;

pub(crate) const CASES: &[&str] = &[
    "dense-gated",
    "dense-relu-tied",
    "dense-long",
    "dense-hf5-tied",
    "dense-hf5-untied",
    "dense-unusual",
    "dense-empty-row",
    "altup-embedding-k2",
    "altup-embedding-k2-tied",
    "altup-embedding-k2-empty-row",
    "altup-embedding-k3-same",
    "altup-embedding-k4",
    "altup-recycled-k1",
    "altup-recycled-k2",
    "sum-k2",
    "moe-partial",
    "moe-switch",
    "moe-top2",
    "moe-altup-k2",
    "moe-altup-recycled-k2",
    "sequence-altup-k1",
    "sequence-altup-k2",
    "sequence-skip-k2",
    "sequence-pool-k1",
    "sequence-pool-k2",
    "sequence-moe-k2",
    "sequence-stride-3",
];

/// The cases among them that Hugging Face's T5 made.
pub(crate) fn dense_cases() -> impl Iterator<Item = &'static str> {
    CASES.iter().copied().filter(|case| case.starts_with("dense-"))
}

#[cfg(feature = "ndarray")] // altup-train's tests, which read this file too, also run without it.
pub(crate) fn devices() -> [Device; 2] {
    [Device::flex(), altup_ndarray()]
}

#[cfg(feature = "ndarray")]
#[allow(deprecated)] // Burn will drop ndarray; it is tested while it ships.
pub(crate) fn altup_ndarray() -> Device {
    Device::ndarray()
}

pub(crate) fn fixture(case: &str) -> PathBuf {
    // Cargo runs tests in the folder of their package; those of altup-train read these files too.
    Path::new("../altup-models/tests/fixtures").join(case)
}

pub(crate) fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> T {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// A safetensors file of f32 tensors.
pub(crate) fn read_tensors(path: &Path) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let decode = |bytes: &[u8]| -> Vec<f32> {
        bytes.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
    };
    file.iter().map(|(n, t)| (n.to_owned(), (t.shape().to_vec(), decode(t.data())))).collect()
}

#[derive(Deserialize)]
pub(crate) struct Inputs {
    pub(crate) input_ids: Vec<Vec<i32>>,
    pub(crate) labels: Vec<Vec<i32>>,
}

impl Inputs {
    /// The number of labels that are not padding.
    pub(crate) fn targets(&self) -> usize {
        self.labels.iter().flatten().filter(|&&label| label != 0).count()
    }
}

pub(crate) fn ids(rows: &[Vec<i32>], device: &Device) -> Tensor<2, Int> {
    let shape = [rows.len(), rows[0].len()];
    Tensor::from_data(TensorData::new(rows.concat(), shape), device)
}

#[track_caller]
pub(crate) fn assert_close(what: &str, found: &[f32], expected: &[f32]) {
    assert_close_within(TOLERANCE, what, found, expected);
}

#[track_caller]
pub(crate) fn assert_close_within(tolerance: f32, what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}: sizes differ");
    let scale = expected.iter().fold(1e-6f32, |max, value| max.max(value.abs()));
    let worst = found.iter().zip(expected).fold(0f32, |max, (a, b)| max.max((a - b).abs()));
    assert!(worst <= tolerance * scale, "{what}: off by {worst}, values reach {scale}");
}

pub(crate) fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}
