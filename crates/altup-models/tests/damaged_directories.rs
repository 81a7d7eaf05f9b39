//! Model directories from anywhere: a damaged one is refused in one line that names the culprit,
//! without a panic, and without memory for what its files only claim to hold.

use altup_models::{DirectoryError, ModelDirectory, NamedTensor, T5, T5Config, parameter_tensors};
use burn::tensor::{Device, bf16, f16};
use safetensors::SafeTensors;
use serde_json::{Map, Value, json};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::error::Error;
use std::fs;
use std::iter::successors;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const SHARDS: [&str; 2] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
/// What a complaint about any of the weight files or their index says.
const SOME_WEIGHTS: &str = ".safetensors";

const DENSE: &str = "dense-gated";
const ALTUP: &str = "altup-embedding-k2";
const EXPERTS: &str = "moe-partial";
const SEQUENCE: &str = "sequence-altup-k2";
/// Its tables don't grow with the number of blocks.
const RECYCLED: &str = "altup-recycled-k2";

/// A tensor as it goes into a file.
#[derive(Clone)]
struct Stored {
    name: String,
    dtype: String,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

fn fixture(case: &str) -> PathBuf {
    Path::new("tests/fixtures").join(case) // Cargo runs tests in the folder of their package.
}

/// A fixture's tensors, by name.
fn stored(case: &str) -> Vec<Stored> {
    let bytes = fs::read(fixture(case).join(WEIGHTS)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Vec<Stored> = file
        .iter()
        .map(|(name, view)| Stored {
            name: name.into(),
            dtype: view.dtype().to_string(),
            shape: view.shape().to_vec(),
            bytes: view.data().to_vec(),
        })
        .collect();
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    tensors
}

fn find<'a>(tensors: &'a mut [Stored], name: &str) -> &'a mut Stored {
    tensors.iter_mut().find(|tensor| tensor.name == name).unwrap()
}

/// A safetensors file in its two parts, so that either can be damaged.
struct Weights {
    header: Value,
    data: Vec<u8>,
}

impl Weights {
    fn of(tensors: &[Stored]) -> Self {
        let (mut header, mut data) = (Map::new(), Vec::new());
        for Stored { name, dtype, shape, bytes } in tensors {
            let start = data.len();
            data.extend(bytes);
            let offsets = [start, data.len()];
            let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": offsets});
            header.insert(name.clone(), entry);
        }
        Self { header: header.into(), data }
    }

    fn bytes(&self) -> Vec<u8> {
        file(self.header.to_string().as_bytes(), &self.data)
    }
}

fn file(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header, data].concat()
}

/// Sets fields of a JSON object.
fn merge(object: &mut Value, fields: &Value) {
    object.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
}

/// A copy of a fixture, to be damaged.
struct Folder(TempDir);

impl Folder {
    fn copy(case: &str) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        for name in [CONFIG, WEIGHTS] {
            folder.write(name, fs::read(fixture(case).join(name)).unwrap());
        }
        folder
    }

    /// A copy in two shards, and its index.
    fn in_shards(case: &str) -> (Self, Value) {
        let folder = Self::copy(case);
        fs::remove_file(folder.path(WEIGHTS)).unwrap();
        let tensors = stored(case);
        let mut weight_map = Map::new();
        for (shard, tensors) in SHARDS.into_iter().zip(tensors.chunks(tensors.len().div_ceil(2))) {
            folder.write(shard, Weights::of(tensors).bytes());
            weight_map.extend(tensors.iter().map(|tensor| (tensor.name.clone(), shard.into())));
        }
        let index = json!({"metadata": {"total_size": 0}, "weight_map": weight_map});
        folder.write(INDEX, index.to_string());
        (folder, index)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, contents: impl AsRef<[u8]>) {
        fs::write(self.path(name), contents).unwrap();
    }

    /// Sets fields of `config.json`.
    fn configure(&self, fields: &Value) {
        let text = fs::read(self.path(CONFIG)).unwrap();
        let mut config: Value = serde_json::from_slice(&text).unwrap();
        merge(&mut config, fields);
        self.write(CONFIG, config.to_string());
    }

    fn load(&self) -> Result<(T5Config, T5), DirectoryError> {
        ModelDirectory::new(self.0.path()).load(&Device::flex())
    }

    fn tensors(&self) -> Vec<NamedTensor> {
        parameter_tensors(&self.load().unwrap().1)
    }

    /// What is wrong with how the folder is refused; nothing if it is by an error that says each of
    /// `words` in one line, and for little memory.
    fn complaint(&self, damage: &str, words: &[&str]) -> Option<String> {
        let (loaded, taken) = tally(|| catch_unwind(AssertUnwindSafe(|| self.load())));
        let message = match loaded {
            Err(_) => return Some(format!("{damage}: panics")),
            Ok(Ok(_)) => return Some(format!("{damage}: is accepted")),
            Ok(Err(error)) => chain(&error),
        };
        // The path could hold a word by chance.
        let said = message.replace(&*self.0.path().to_string_lossy(), "");
        let flaw = if said == message {
            "doesn't name the folder".to_owned()
        } else if said.contains(char::is_control) {
            "isn't one line of text".to_owned()
        } else if taken > MEMORY {
            format!("takes {taken} bytes")
        } else {
            let word = words.iter().find(|word| !said.contains(**word))?;
            format!("doesn't say {word:?}")
        };
        Some(format!("{damage}: {flaw}: {message:?}"))
    }
}

fn chain(error: &(dyn Error + 'static)) -> String {
    let links = successors(Some(error), |&error| error.source());
    links.map(|error| error.to_string()).collect::<Vec<_>>().join(": ")
}

/// Fails with all complaints at once.
#[track_caller]
fn none(complaints: impl IntoIterator<Item = String>) {
    let complaints: Vec<String> = complaints.into_iter().collect();
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

/// What a refusal may take: a few times the largest header here, and far less than any size that a
/// file only claims.
const MEMORY: isize = 1 << 20;

/// The system's allocator, with a tally of what each thread holds.
struct Tally;

#[global_allocator]
static ALLOCATOR: Tally = Tally;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(change: isize) {
    HELD.set(HELD.get() + change);
    PEAK.set(PEAK.get().max(HELD.get()));
}

// SAFETY: every request goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Tally {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: what the caller promises is what the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// What `work` gives, and the most that it held at once, in bytes.
fn tally<T>(work: impl FnOnce() -> T) -> (T, isize) {
    let before = HELD.get();
    PEAK.set(before);
    let result = work();
    (result, PEAK.get() - before)
}

#[test]
fn whole_by_hand_or_in_shards_a_model_is_the_same() {
    for case in [DENSE, ALTUP] {
        let folder = Folder::copy(case);
        let expected = folder.tensors();
        folder.write(WEIGHTS, Weights::of(&stored(case)).bytes());
        assert!(folder.tensors() == expected, "{case} by hand");
        let (folder, _) = Folder::in_shards(case);
        assert!(folder.tensors() == expected, "{case} in shards");
    }
}

#[test]
fn half_precision_is_read_as_it_was_rounded() {
    const NORM: &str = "decoder.final_layer_norm.weight";
    // By hand: 1 and its neighbour, the largest, the smallest, -0 and infinity.
    let f16_by_hand = [
        (0x3c00, 1.0),
        (0x3c01, 1.0 + 2f32.powi(-10)),
        (0xfbff, -65504.0),
        (0x0001, 2f32.powi(-24)),
        (0x8000, -0.0),
        (0x7c00, f32::INFINITY),
    ];
    let bf16_by_hand = [
        (0x3f80, 1.0),
        (0x3f81, 1.0 + 2f32.powi(-7)),
        (0xff7f, f32::from_bits(0xff7f_0000)),
        (0x0001, f32::from_bits(0x0001_0000)),
        (0x8000, -0.0),
        (0x7f80, f32::INFINITY),
    ];
    // What a file holds of a value, and what that is worth.
    let f16_round = |value| (f16::from_f32(value).to_bits(), f16::from_f32(value).to_f32());
    let bf16_round = |value| (bf16::from_f32(value).to_bits(), bf16::from_f32(value).to_f32());
    let cases: [(&str, fn(f32) -> (u16, f32), [(u16, f32); 6]); 2] =
        [("F16", f16_round, f16_by_hand), ("BF16", bf16_round, bf16_by_hand)];
    let folder = Folder::copy(DENSE);
    let originals = folder.tensors();
    for (dtype, round, by_hand) in cases {
        let mut halves = stored(DENSE);
        for tensor in &mut halves {
            tensor.dtype = dtype.into();
            let values = tensor.bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b));
            tensor.bytes = values.flat_map(|value| round(value).0.to_le_bytes()).collect();
        }
        let norm = &mut find(&mut halves, NORM).bytes;
        for (place, (bits, _)) in norm.as_chunks_mut().0.iter_mut().zip(by_hand) {
            *place = bits.to_le_bytes();
        }
        folder.write(WEIGHTS, Weights::of(&halves).bytes());
        for (found, original) in folder.tensors().into_iter().zip(&originals) {
            let mut expected: Vec<f32> = original.values.iter().map(|&v| round(v).1).collect();
            if found.name == NORM {
                let by_hand = by_hand.map(|(_, value)| value);
                expected[..by_hand.len()].copy_from_slice(&by_hand);
            }
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&found.values), bits(&expected), "{dtype}: {}", found.name);
        }
    }
}

#[test]
fn a_missing_file_is_named() {
    none([CONFIG, WEIGHTS].into_iter().filter_map(|name| {
        let folder = Folder::copy(DENSE);
        fs::remove_file(folder.path(name)).unwrap();
        folder.complaint("no file", &[name])
    }));
    none([CONFIG, WEIGHTS].into_iter().filter_map(|name| {
        let folder = Folder::copy(DENSE);
        fs::remove_file(folder.path(name)).unwrap();
        fs::create_dir(folder.path(name)).unwrap();
        folder.complaint("a folder in a file's place", &[name])
    }));
}

#[test]
fn weights_in_pytorch_s_format_alone_are_refused_with_what_to_do() {
    for file in ["pytorch_model.bin", "pytorch_model.bin.index.json"] {
        let folder = Folder::copy(DENSE);
        folder.write(file, "");
        folder.load().unwrap();
        fs::remove_file(folder.path(WEIGHTS)).unwrap();
        let words = [file, "PyTorch's own format", "save_pretrained"];
        none(folder.complaint("PyTorch's format", &words));
    }
}

#[test]
fn a_file_that_is_not_safetensors_is_named() {
    let whole = Weights::of(&stored(DENSE)).bytes();
    let with_length = |length: u64| [&length.to_le_bytes()[..], &whole[8..]].concat();
    let cases = [
        ("an empty file", vec![]),
        ("a cut length", whole[..7].to_vec()),
        ("a cut header", whole[..100].to_vec()),
        ("cut data", whole[..whole.len() - 1].to_vec()),
        ("a byte behind the data", [&whole[..], &b"!"[..]].concat()),
        ("a header one byte beyond the file", with_length(whole.len() as u64 - 7)),
        ("a header of no bytes", with_length(0)),
        ("a header of 10 GB", with_length(10_000_000_000)),
        ("a header of 2^64 - 1 bytes", with_length(u64::MAX)),
        ("a header that isn't JSON", file(b"{\"shared.weight\": ", b"")),
        ("a header that is a list", file(b"[]", b"")),
        ("a header that isn't UTF-8", file(b"{\"\xff\": 1}", b"")),
        ("a header whose sizes overflow", file(overflowing_header().as_bytes(), b"")),
        ("a Git LFS pointer", b"version https://git-lfs.github.com/spec/v1\nsize 64872\n".to_vec()),
    ];
    none(cases.iter().filter_map(|(damage, bytes)| {
        let folder = Folder::copy(DENSE);
        folder.write(WEIGHTS, bytes);
        folder.complaint(damage, &[WEIGHTS])
    }));
}

/// Eight tensors that end 8 bytes before 2^64, where adding the header's length overflows.
fn overflowing_header() -> String {
    let size = (1u64 << 61) - 1;
    let tensor = |i: u64| {
        let offsets = [i * size, (i + 1) * size];
        (i.to_string(), json!({"dtype": "U8", "shape": [size], "data_offsets": offsets}))
    };
    Value::from((0..8).map(tensor).collect::<Map<_, _>>()).to_string()
}

#[test]
fn a_damaged_entry_of_a_header_is_named() {
    // The last: what moves it moves no other.
    const NAME: &str = "shared.weight";
    let whole = Weights::of(&stored(DENSE));
    let [start, end] =
        [0, 1].map(|side: usize| whole.header[NAME]["data_offsets"][side].as_u64().unwrap());
    let far = 1u64 << 62;
    let cases = [
        ("past the end", json!({"shape": [97, 16], "data_offsets": [start, end + 64]})),
        ("far away", json!({"data_offsets": [far, far + end - start]})),
        ("over another tensor", json!({"data_offsets": [start - 4, end - 4]})),
        ("behind a gap", json!({"data_offsets": [start + 4, end + 4]})),
        ("reversed", json!({"data_offsets": [end, start]})),
        ("negative offsets", json!({"data_offsets": [-64, 0]})),
        ("one offset", json!({"data_offsets": [start]})),
        ("fewer bytes than the shape has", json!({"data_offsets": [start, end - 4]})),
        ("more bytes than the shape has", json!({"shape": [95, 16]})),
        ("twice the type", json!({"dtype": "F64"})),
        ("a shape that overflows", json!({"shape": [1u64 << 40, 1u64 << 40]})),
        ("a negative shape", json!({"shape": [-96, -16]})),
        ("a shape that is a number", json!({"shape": 1536})),
        ("half a byte", json!({"dtype": "F4", "shape": [3]})),
        ("an unknown type", json!({"dtype": "F33"})),
        ("no type", json!({"dtype": null})),
    ];
    none(cases.iter().filter_map(|(damage, fields)| {
        let mut weights = Weights::of(&stored(DENSE));
        merge(&mut weights.header[NAME], fields);
        let folder = Folder::copy(DENSE);
        folder.write(WEIGHTS, weights.bytes());
        folder.complaint(damage, &[WEIGHTS, NAME])
    }));
}

#[test]
fn a_wrong_shape_or_type_is_named() {
    let cases: &[(&str, &str, fn(&mut Stored), &str)] = &[
        (
            DENSE,
            "encoder.block.1.layer.1.DenseReluDense.wo.weight",
            |t| t.shape.reverse(),
            "[24, 16]",
        ),
        (DENSE, "lm_head.weight", |t| t.shape = vec![96 * 16], "[1536]"),
        (DENSE, "decoder.final_layer_norm.weight", |t| t.shape.push(1), "[16, 1]"),
        (
            DENSE,
            "shared.weight",
            |t| {
                t.shape = vec![95, 16];
                t.bytes.truncate(95 * 16 * 4);
            },
            "[95, 16]",
        ),
        (
            DENSE,
            "encoder.final_layer_norm.weight",
            |t| {
                t.shape.clear();
                t.bytes.truncate(4);
            },
            "[]",
        ),
        (
            DENSE,
            "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            |t| {
                t.shape = vec![0, 2];
                t.bytes.clear();
            },
            "[0, 2]",
        ),
        (ALTUP, "decoder.block.1.altup.prediction_coefs", |t| t.shape = vec![4], "[4]"),
        (ALTUP, "encoder.block.2.altup.correction_coefs", |t| t.shape = vec![1, 2], "[1, 2]"),
        (
            EXPERTS,
            "encoder.block.0.layer.1.moe.experts.wi",
            |t| t.shape = vec![6, 5, 16],
            "[6, 5, 16]",
        ),
        (EXPERTS, "decoder.block.0.layer.2.moe.router.weight", |t| t.shape.reverse(), "[16, 6]"),
        (
            SEQUENCE,
            "encoder.block.1.sequence_altup.prediction_coefs",
            |t| t.shape = vec![2, 1],
            "[2, 1]",
        ),
        (DENSE, "encoder.final_layer_norm.weight", |t| t.dtype = "I32".into(), "I32"),
        (
            DENSE,
            "decoder.block.1.layer.1.EncDecAttention.q.weight",
            |t| {
                t.dtype = "F64".into();
                t.bytes = t.bytes.repeat(2);
            },
            "F64",
        ),
        (
            ALTUP,
            "encoder.block.0.altup.prediction_coefs",
            |t| {
                t.dtype = "F8_E4M3".into();
                t.bytes.truncate(4);
            },
            "F8_E4M3",
        ),
    ];
    none(cases.iter().filter_map(|&(case, name, damage, found)| {
        let mut tensors = stored(case);
        damage(find(&mut tensors, name));
        let folder = Folder::copy(case);
        folder.write(WEIGHTS, Weights::of(&tensors).bytes());
        folder.complaint(found, &[WEIGHTS, name, found])
    }));
}

#[test]
fn a_missing_tensor_is_named() {
    let cases = [
        (DENSE, "shared.weight"),
        (DENSE, "lm_head.weight"),
        (DENSE, "decoder.block.1.layer.1.EncDecAttention.k.weight"),
        (ALTUP, "encoder.block.0.altup.prediction_coefs"),
        (EXPERTS, "encoder.block.1.layer.1.moe.experts.wo"),
        (SEQUENCE, "encoder.block.2.sequence_altup.correction_coef"),
    ];
    none(cases.into_iter().filter_map(|(case, name)| {
        let mut tensors = stored(case);
        tensors.retain(|tensor| tensor.name != name);
        let folder = Folder::copy(case);
        folder.write(WEIGHTS, Weights::of(&tensors).bytes());
        folder.complaint("a missing tensor", &[WEIGHTS, name])
    }));
    let folder = Folder::copy(DENSE);
    folder.write(WEIGHTS, Weights::of(&[]).bytes());
    none(folder.complaint("no tensor at all", &[WEIGHTS]));
}

#[test]
fn a_tensor_of_no_parameter_is_named() {
    let cases = [
        (DENSE, "encoder.block.3.layer.0.layer_norm.weight"),
        (DENSE, "decoder.block.0.altup.correction_coefs"),
        (ALTUP, "encoder.block.3.altup.correction_coefs"),
        (ALTUP, "optimizer"),
    ];
    none(cases.into_iter().filter_map(|(case, name)| {
        let mut tensors = stored(case);
        tensors.push(Stored { name: name.into(), ..tensors[0].clone() });
        let folder = Folder::copy(case);
        folder.write(WEIGHTS, Weights::of(&tensors).bytes());
        folder.complaint("one tensor too many", &[WEIGHTS, name])
    }));
}

/// transformers 5 leaves it to the tensors whether the output layer is tied; a sum's can't be.
#[test]
fn a_missing_output_layer_of_a_sum_is_named() {
    const SUM: &str = "sum-k2";
    let mut tensors = stored(SUM);
    tensors.retain(|tensor| tensor.name != "lm_head.weight");
    let folder = Folder::copy(SUM);
    folder.configure(&json!({"scale_decoder_outputs": false}));
    folder.write(WEIGHTS, Weights::of(&tensors).bytes());
    none(folder.complaint("a sum without an output layer", &["lm_head.weight"]));
}

#[test]
fn a_config_that_is_not_an_object_is_named() {
    // Field by field what the fixture's object says: a struct is easily read from a list, too.
    let list = br#"["t5", 96, 16, 6, 24, 3, 2, 2, 32, 128, 0.1, 1e-6, 1, "gated-gelu", false]"#;
    let cases: &[(&str, &[u8])] = &[
        ("an empty config", b""),
        ("half a config", b"{\"d_model\": "),
        ("a page", b"<!DOCTYPE html>"),
        ("bytes", b"{\"model_type\": \"\xff\"}"),
        ("null", b"null"),
        ("a number", b"3"),
        ("an empty list", b"[]"),
        ("a list of all values", list),
    ];
    none(cases.iter().filter_map(|(damage, text)| {
        let folder = Folder::copy(DENSE);
        folder.write(CONFIG, text);
        folder.complaint(damage, &[CONFIG])
    }));
}

#[test]
fn a_number_that_json_does_not_have_is_placed() {
    let numbers = ["NaN", "Infinity", "-Infinity", "1e999", "0x10", "01", "1."];
    none(numbers.into_iter().filter_map(|number| {
        let folder = Folder::copy(DENSE);
        folder.write(CONFIG, format!("{{\n\"dropout_rate\": {number}, \"d_model\": 16\n}}"));
        folder.complaint(number, &[CONFIG, "line 2"])
    }));
}

#[test]
fn a_wrong_field_of_a_config_is_named() {
    let cases = [
        ("vocab_size", json!(-96)),
        ("vocab_size", json!(1u64 << 63)),
        ("vocab_size", json!(1.8446744073709552e19)), // 2^64
        ("d_model", json!(0)),
        ("d_model", json!(-1.5)),
        ("d_model", json!(1e18)),
        ("d_model", json!(1_000_000_000_000_000_000u64)),
        ("d_kv", json!("6")),
        ("d_ff", json!(24.5)),
        ("num_heads", json!(null)),
        ("num_layers", json!(0)),
        ("num_layers", json!([3])),
        ("num_layers", json!(true)),
        ("num_decoder_layers", json!(0)),
        ("num_decoder_layers", json!("2")),
        ("relative_attention_num_buckets", json!(0)),
        ("relative_attention_num_buckets", json!(31)),
        ("relative_attention_num_buckets", json!(1u64 << 32)),
        ("relative_attention_max_distance", json!(16)),
        ("relative_attention_max_distance", json!(null)),
        ("dropout_rate", json!(1)),
        ("dropout_rate", json!(-0.1)),
        ("dropout_rate", json!("0.1")),
        ("layer_norm_epsilon", json!(0)),
        ("layer_norm_epsilon", json!([])),
        ("initializer_factor", json!(-1)),
        ("feed_forward_proj", json!("swiglu")),
        ("feed_forward_proj", json!(null)),
        ("tie_word_embeddings", json!("false")),
        ("scale_decoder_outputs", json!(0)),
        ("pad_token_id", json!(1)),
        ("eos_token_id", json!(96)),
        ("eos_token_id", json!([1])),
        ("decoder_start_token_id", json!(-1)),
        ("model_type", json!("bart")),
        ("model_type", json!(5)),
        ("moe", json!({})),
        ("altup", json!(2)),
        ("altup", json!([2])),
        ("altup", json!("alternating")),
    ];
    none(cases.iter().filter_map(|(field, value)| {
        let folder = Folder::copy(ALTUP);
        folder.configure(&json!({*field: value}));
        folder.complaint(&format!("{field}: {value}"), &[CONFIG, field])
    }));
}

#[test]
fn a_wrong_field_of_the_altup_object_is_named() {
    let cases = [
        ("num_blocks", json!({})),
        ("num_blocks", json!({"num_blocks": 0})),
        ("num_blocks", json!({"num_blocks": -1})),
        ("num_blocks", json!({"num_blocks": 2.5})),
        ("num_blocks", json!({"num_blocks": "2"})),
        ("num_blocks", json!({"num_blocks": null})),
        ("num_blocks", json!({"num_blocks": 1025})),
        ("num_blocks", json!({"num_blocks": 1u64 << 63})),
        ("selection", json!({"num_blocks": 2, "selection": "random"})),
        ("selection", json!({"num_blocks": 2, "selection": 0})),
        ("widening", json!({"num_blocks": 2, "widening": "table"})),
        ("encoder_sequence", json!({"num_blocks": 2, "encoder_sequence": {"stride": 4}})),
        ("blocks", json!({"num_blocks": 2, "blocks": 2})),
    ];
    none(cases.iter().filter_map(|(field, altup)| {
        let folder = Folder::copy(ALTUP);
        folder.configure(&json!({"altup": altup}));
        folder.complaint(&altup.to_string(), &[CONFIG, field])
    }));
}

/// Not all at once, unlike the other tables: what comes first takes megabytes where it should take
/// none, and is seen before what would take all that the machine has.
#[test]
fn sizes_that_the_files_do_not_hold_take_no_memory() {
    let most = 1 << 24;
    let blocks = json!({"num_blocks": 1024, "widening": "recycled"});
    let buckets = json!({
        "relative_attention_num_buckets": 1 << 16,
        "relative_attention_max_distance": 1 << 20,
    });
    let cases = [
        (RECYCLED, json!({"altup": blocks}), "altup"),
        (DENSE, json!({"num_layers": 20_000}), "layer"),
        (DENSE, json!({"num_decoder_layers": 20_000}), "layer"),
        (DENSE, json!({"vocab_size": most, "d_model": most}), "weight"),
        (DENSE, json!({"d_kv": most, "num_heads": most, "d_ff": most}), "weight"),
        (DENSE, buckets, "relative_attention"),
        (DENSE, json!({"num_layers": most, "num_decoder_layers": most}), "layer"),
        (RECYCLED, json!({"num_layers": most, "num_decoder_layers": most, "altup": blocks}), ""),
    ];
    for (case, fields, word) in cases {
        let folder = Folder::copy(case);
        folder.configure(&fields);
        none(folder.complaint(&fields.to_string(), &[word]));
    }
}

/// Each file holds the one tensor that is largest or last in a huge model, and none of the others.
#[test]
fn one_tensor_does_not_vouch_for_a_huge_model() {
    let zeros = |name: &str, length: usize| Stored {
        name: name.into(),
        dtype: "F32".into(),
        shape: vec![length],
        bytes: vec![0; length * 4],
    };
    let mut layers = stored(DENSE);
    layers.push(zeros("encoder.block.19999.layer.0.layer_norm.weight", 16));
    let mut blocks = stored(RECYCLED);
    let coefs = "encoder.block.0.altup.correction_coefs";
    *find(&mut blocks, coefs) = zeros(coefs, 1024);
    let huge = json!({"num_blocks": 1024, "widening": "recycled"});
    let cases = [
        (DENSE, json!({"num_layers": 20_000}), layers),
        (RECYCLED, json!({"altup": huge}), blocks),
    ];
    none(cases.iter().filter_map(|(case, fields, tensors)| {
        let folder = Folder::copy(case);
        folder.configure(fields);
        folder.write(WEIGHTS, Weights::of(tensors).bytes());
        folder.complaint(&fields.to_string(), &["block"])
    }));
}

#[test]
fn a_huge_description_is_not_read() {
    let (folder, _) = Folder::in_shards(DENSE);
    none([INDEX, CONFIG].into_iter().filter_map(|name| {
        // Zeros that take no room on the disk.
        let file = fs::File::options().write(true).open(folder.path(name)).unwrap();
        file.set_len(32 << 20).unwrap();
        folder.complaint("32 MiB", &[name])
    }));
}

/// The names of the fixture's first tensor and of its last: each is in another shard.
fn first_and_last(index: &Value) -> [String; 2] {
    let names: Vec<&String> = index["weight_map"].as_object().unwrap().keys().collect();
    [names[0].clone(), names[names.len() - 1].clone()]
}

#[test]
fn a_shard_outside_the_directory_is_refused() {
    let (folder, mut index) = Folder::in_shards(DENSE);
    fs::create_dir(folder.path("a")).unwrap();
    let [first, _] = first_and_last(&index);
    let [shard, _] = SHARDS;
    let itself = folder.0.path().file_name().unwrap().to_str().unwrap();
    // Many lead to a good shard all the same.
    let cases: [String; 12] = [
        "../x.safetensors".into(),
        format!("../{itself}/{shard}"),
        "/etc/passwd".into(),
        folder.path(shard).to_str().unwrap().into(),
        format!("a/../{shard}"),
        format!("./{shard}"),
        format!("{shard}/"),
        "a/../b".into(),
        "a/".into(),
        "..".into(),
        ".".into(),
        String::new(),
    ];
    none(cases.into_iter().filter_map(|shard| {
        index["weight_map"][&first] = shard.clone().into();
        folder.write(INDEX, index.to_string());
        let said = format!("{shard:?}").replace(folder.0.path().to_str().unwrap(), "");
        folder.complaint(&shard, &[INDEX, &said])
    }));
}

#[test]
fn an_index_that_does_not_fit_its_shards_is_named() {
    const NOWHERE: &str = "model-00003-of-00002.safetensors";
    const UNKNOWN: &str = "encoder.block.9.layer.0.layer_norm.weight";
    let (folder, index) = Folder::in_shards(ALTUP);
    let [first, last] = first_and_last(&index);
    let with = |name: &str, shard: &str| {
        let mut index = index.clone();
        index["weight_map"][name] = shard.into();
        index
    };
    let mut without = index.clone();
    without["weight_map"].as_object_mut().unwrap().remove(&first);
    let cases: [(&str, Value, [&str; 2]); 6] = [
        ("a missing shard", with(&first, NOWHERE), [NOWHERE, NOWHERE]),
        ("the first tensor in the last shard", with(&first, SHARDS[1]), [&first, SHARDS[1]]),
        ("the last tensor in the first shard", with(&last, SHARDS[0]), [&last, SHARDS[0]]),
        ("a tensor in no shard", with(UNKNOWN, SHARDS[0]), [UNKNOWN, SOME_WEIGHTS]),
        ("a tensor left out", without, [&first, SOME_WEIGHTS]),
        ("a weight file that is none", with(&first, CONFIG), [CONFIG, CONFIG]),
    ];
    none(cases.iter().filter_map(|(damage, index, words)| {
        folder.write(INDEX, index.to_string());
        folder.complaint(damage, words)
    }));
}

#[test]
fn a_tensor_in_two_shards_is_named() {
    let (folder, _) = Folder::in_shards(DENSE);
    let tensors = stored(DENSE);
    let (first, rest) = (&tensors[0], &tensors[tensors.len().div_ceil(2)..]);
    let mut twice = rest.to_vec();
    twice.push(Stored { bytes: vec![0; first.bytes.len()], ..first.clone() });
    folder.write(SHARDS[1], Weights::of(&twice).bytes());
    none(folder.complaint("a tensor in two shards", &[&first.name, SOME_WEIGHTS]));
}

#[test]
fn an_index_that_maps_nothing_is_named() {
    let (folder, index) = Folder::in_shards(DENSE);
    let cases = [
        ("an empty index", String::new()),
        ("half an index", "{\"weight_map\": ".into()),
        ("a list", json!([index["weight_map"]]).to_string()),
        ("null", "null".into()),
        ("no map", "{}".into()),
        ("an empty map", json!({"weight_map": {}}).to_string()),
        ("a list of shards", json!({"weight_map": SHARDS}).to_string()),
        ("a number for a shard", json!({"weight_map": {"shared.weight": 1}}).to_string()),
        ("null for a shard", json!({"weight_map": {"shared.weight": null}}).to_string()),
    ];
    none(cases.iter().filter_map(|(damage, text)| {
        folder.write(INDEX, text);
        folder.complaint(damage, &[INDEX])
    }));
}

/// A terminal obeys what it is shown: nothing of a file may reach it raw.
#[test]
fn control_characters_are_not_repeated() {
    const RAW: &str = "\u{1b}[2J\n";
    let whole = Weights::of(&stored(DENSE));
    let end = whole.data.len();
    let data = [&whole.data[..], &[0u8; 4][..]].concat();
    let entries = [
        json!({"dtype": "F32", "shape": [1], "data_offsets": [end, end + 4]}),
        json!({"dtype": "F32", "shape": [1], "data_offsets": [end + 4, end + 8]}),
        json!({"dtype": RAW, "shape": [1], "data_offsets": [end, end + 4]}),
    ];
    none(entries.iter().filter_map(|entry| {
        let mut header = whole.header.clone();
        header[RAW] = entry.clone();
        let folder = Folder::copy(DENSE);
        folder.write(WEIGHTS, file(header.to_string().as_bytes(), &data));
        folder.complaint(&entry.to_string(), &[WEIGHTS])
    }));
    let fields = [
        json!({"model_type": RAW}),
        json!({"feed_forward_proj": RAW}),
        json!({"d_model": RAW}),
        json!({"altup": {"num_blocks": 2, RAW: 1}}),
        json!({"altup": {"num_blocks": 2, "selection": RAW}}),
    ];
    none(fields.iter().filter_map(|fields| {
        let folder = Folder::copy(DENSE);
        folder.configure(fields);
        folder.complaint(&fields.to_string(), &[CONFIG])
    }));
    let (folder, mut index) = Folder::in_shards(DENSE);
    let [first, _] = first_and_last(&index);
    none([format!("{RAW}.safetensors"), "a\0b".into()].into_iter().filter_map(|shard| {
        index["weight_map"][&first] = shard.clone().into();
        folder.write(INDEX, index.to_string());
        folder.complaint(&format!("{shard:?}"), &[])
    }));
}
