//! Bytes as a model directory. Whatever they are, [`ModelDirectory::load`] gives a model, or an
//! error in one line; it doesn't panic, and takes no memory that the files don't account for. What
//! loads can be saved and is the same when loaded again.
//!
//! An input is three lengths, little-endian, and what they measure:
//!
//! | length | of |
//! |---|---|
//! | u16 | `config.json` |
//! | u16 | the index; if 0 there is none, and both shards together are `model.safetensors` |
//! | u32 | the first shard; what is left is the second |
//!
//! A length beyond the end means the end, so that every input is a directory.

#![no_main]

use altup_models::{ModelDirectory, T5, T5Config, parameter_tensors, parameters};
use burn::tensor::Device;
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use serde_json::{Map, Value, json};
use std::error::Error;
use std::fs;
use std::iter::successors;
use std::path::Path;
use tempfile::TempDir;

const LENGTHS: usize = 2 + 2 + 4;
const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const SHARDS: [&str; 2] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];

thread_local! {
    /// Where an input is written, and where what loads is saved.
    static FOLDERS: [TempDir; 2] = [temporary(), temporary()];
}

fn temporary() -> TempDir {
    let memory = Path::new("/dev/shm"); // where there is one, files cost no disk
    let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    tempfile::Builder::new().prefix("altup-fuzz-").tempdir_in(parent).expect("a temporary folder")
}

fuzz_target!(|input: &[u8]| {
    FOLDERS.with(|[folder, saved]| {
        write(folder.path(), split(input));
        let device = Device::flex();
        match ModelDirectory::new(folder.path()).load(&device) {
            Ok((config, model)) => {
                let saved = ModelDirectory::new(saved.path());
                saved.save(&config, &model).expect("a temporary folder can be written");
                let (config_again, model_again) = saved.load(&device).expect("saved, so it loads");
                assert_eq!(config_again, config);
                assert!(bits(&model_again) == bits(&model), "a tensor changed");
            }
            Err(error) => {
                let message = chain(&error);
                assert!(!message.contains(char::is_control), "not one line: {message:?}");
            }
        }
    });
});

/// Nothing of an earlier input may stay: the same bytes must always be the same directory.
fn write(folder: &Path, [config, index, first, second]: [&[u8]; 4]) {
    let write = |name: &str, contents: &[u8]| {
        fs::write(folder.join(name), contents).expect("a temporary folder can be written");
    };
    let remove = |name: &str| drop(fs::remove_file(folder.join(name))); // it may not be there
    write(CONFIG, config);
    if index.is_empty() {
        [INDEX, SHARDS[0], SHARDS[1]].into_iter().for_each(remove);
        write(WEIGHTS, &[first, second].concat());
    } else {
        remove(WEIGHTS);
        write(INDEX, index);
        write(SHARDS[0], first);
        write(SHARDS[1], second);
    }
}

/// A model's tensors; a NaN equals itself.
fn bits(model: &T5) -> Vec<(String, Vec<usize>, Vec<u32>)> {
    let tensors = parameter_tensors(model).into_iter();
    tensors.map(|t| (t.name, t.shape, t.values.into_iter().map(f32::to_bits).collect())).collect()
}

fn chain(error: &(dyn Error + 'static)) -> String {
    let links = successors(Some(error), |&error| error.source());
    links.map(|error| error.to_string()).collect::<Vec<_>>().join(": ")
}

/// `[config, index, first shard, second shard]`
fn split(input: &[u8]) -> [&[u8]; 4] {
    let (head, rest) = cut(input, LENGTHS);
    let mut lengths = [0; LENGTHS];
    lengths[..head.len()].copy_from_slice(head);
    let (config, rest) = cut(rest, number(&lengths[..2]));
    let (index, rest) = cut(rest, number(&lengths[2..4]));
    let (first, second) = cut(rest, number(&lengths[4..]));
    [config, index, first, second]
}

fn join(parts: &[Vec<u8>; 4]) -> Vec<u8> {
    let [config, index, first, _] = parts;
    let mut input = Vec::new();
    input.extend((config.len() as u16).to_le_bytes());
    input.extend((index.len() as u16).to_le_bytes());
    input.extend((first.len() as u32).to_le_bytes());
    input.extend(parts.iter().flatten());
    input
}

fn cut(bytes: &[u8], length: usize) -> (&[u8], &[u8]) {
    bytes.split_at(length.min(bytes.len()))
}

/// A little-endian number of at most 8 bytes.
fn number(bytes: &[u8]) -> usize {
    bytes.iter().rev().fold(0, |number, &byte| (number << 8) | usize::from(byte))
}

// An inserted byte shifts all that lies behind it, and a file whose lengths don't fit is refused at
// once. So most mutations change one part and correct the lengths; some make the parts fit again, to
// get behind the checks.
fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let mut parts = split(&data[..size]).map(<[u8]>::to_vec);
    let [config, index, first, second] = &mut parts;
    match seed % 16 {
        0 => return fuzzer_mutate(data, size, max_size),
        1..=4 => mutate(config),
        5 => mutate(first), // its length, its data
        6..=8 if !index.is_empty() => mutate(index),
        9..=10 if !second.is_empty() => with_header(second, mutate),
        11 => [first, second].into_iter().for_each(lay_out),
        12..=13 => {
            if let Some(weights) = fitting(config) {
                (*first, *second, *index) = (weights, Vec::new(), Vec::new());
            }
        }
        _ => with_header(first, mutate),
    }
    // What their lengths can say.
    config.truncate(u16::MAX.into());
    index.truncate(u16::MAX.into());
    let input = join(&parts);
    let (input, _) = cut(&input, max_size);
    data[..input.len()].copy_from_slice(input);
    input.len()
});

/// One of libFuzzer's own mutations.
fn mutate(part: &mut Vec<u8>) {
    const ROOM: usize = 128; // twice the longest word of a dictionary
    let size = part.len();
    part.resize(size + ROOM, 0);
    let size = fuzzer_mutate(part, size, size + ROOM);
    part.truncate(size);
}

/// A safetensors file's header and data, by the length that it claims.
fn header_and_data(file: &[u8]) -> (&[u8], &[u8]) {
    let (length, rest) = cut(file, 8);
    cut(rest, number(length))
}

fn file(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header, data].concat()
}

/// Changes a safetensors file's header, and its length with it.
fn with_header(whole: &mut Vec<u8>, change: impl FnOnce(&mut Vec<u8>)) {
    let (header, data) = header_and_data(whole);
    let mut header = header.to_vec();
    change(&mut header);
    *whole = file(&header, data);
}

/// Puts a safetensors file's tensors one behind the other, each as long as its type and shape say.
fn lay_out(whole: &mut Vec<u8>) {
    let (header, data) = header_and_data(whole);
    let laid_out = serde_json::from_slice(header).ok().and_then(|header| laid_out(header, data));
    if let Some(laid_out) = laid_out {
        *whole = laid_out;
    }
}

fn laid_out(mut header: Map<String, Value>, data: &[u8]) -> Option<Vec<u8>> {
    const MOST: usize = 1 << 16; // a longer input only slows the search
    let mut end = 0;
    for (_, entry) in header.iter_mut().filter(|(name, _)| *name != "__metadata__") {
        let width = match entry["dtype"].as_str()? {
            "F32" | "I32" => 4,
            "F16" | "BF16" => 2,
            "F64" => 8,
            _ => 1,
        };
        let mut size: usize = width;
        for length in entry["shape"].as_array()? {
            size = size.checked_mul(length.as_u64()?.try_into().ok()?)?;
        }
        let start: usize = end;
        end = start.checked_add(size).filter(|&end| end <= MOST)?;
        entry.as_object_mut()?.insert("data_offsets".into(), json!([start, end]));
    }
    let mut data = data.to_vec();
    data.resize(end, 0);
    Some(file(&serde_json::to_vec(&header).ok()?, &data))
}

/// A file of the tensors that a `config.json` asks for, if it can be built and they are small.
fn fitting(config: &[u8]) -> Option<Vec<u8>> {
    let config: T5Config = serde_json::from_slice(config).ok()?;
    config.validate().ok()?;
    let widths = [
        config.vocab_size,
        config.d_model * config.num_blocks(),
        config.d_kv * config.num_heads,
        config.d_ff,
        config.relative_attention_num_buckets,
    ];
    let layers = config.num_layers + config.decoder_layers();
    if layers > 4 || widths.iter().any(|&width| width > 32) {
        return None;
    }
    let entries = parameters(&config.build(&Device::flex()))
        .into_iter()
        .map(|parameter| (parameter.name, json!({"dtype": "F32", "shape": parameter.shape})));
    laid_out(entries.collect(), &[])
}
