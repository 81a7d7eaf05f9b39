//! Working with trained models: convert, forward, and every way to generate.

mod support;

use safetensors::SafeTensors;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Output, Stdio};
use support::{Workspace, fails, succeeds};

const PROMPT: &str = "The light of the <extra_id_0> was in the river.";

/// A workspace with a dense run in `run`.
fn with_dense_run() -> Workspace {
    let workspace = Workspace::new();
    succeeds(workspace.train("run", &["--variant", "dense"]));
    workspace
}

fn run(workspace: &Workspace, args: &[&str]) -> Output {
    workspace.altup(args).output().unwrap()
}

fn printed(output: Output) -> Vec<String> {
    let text = String::from_utf8(succeeds(output).stdout).unwrap();
    text.lines().map(str::to_owned).collect()
}

fn tensors(path: &Path) -> BTreeMap<String, Vec<f32>> {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let values = |bytes: &[u8]| -> Vec<f32> {
        bytes.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
    };
    file.iter().map(|(name, view)| (name.to_owned(), values(view.data()))).collect()
}

/// What a model makes of a batch of rows of different lengths.
fn outputs(workspace: &Workspace, model: &str) -> BTreeMap<String, Vec<f32>> {
    let inputs = json!({"input_ids": [[9, 8, 7, 6, 1], [5, 1]], "labels": [[4, 3, 1], [20, 1, 0]]});
    workspace.write("inputs.json", inputs.to_string());
    let files = ["--inputs", "inputs.json", "--output", "outputs.safetensors", "--overwrite"];
    succeeds(run(workspace, &[&["forward", "--model", model][..], &files].concat()));
    tensors(&workspace.path("outputs.safetensors"))
}

fn assert_close(what: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let scale = expected.iter().fold(0f32, |max, value| max.max(value.abs()));
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= tolerance * scale, "{what}: {found} is not {expected}");
    }
}

#[test]
fn a_dense_model_becomes_every_variant_without_changing_its_outputs() {
    let ws = with_dense_run();
    let expected = outputs(&ws, "run");
    for (variant, blocks) in
        [("recycled", "2"), ("altup", "2"), ("altup", "3"), ("sameup", "2"), ("sum", "2")]
    {
        let name = format!("{variant}{blocks}");
        let target = ["--variant", variant, "--blocks", blocks, "--output", &name];
        let said = printed(run(&ws, &[&["convert", "--model", "run"][..], &target].concat()));
        assert!(
            said[0].starts_with(&format!("{name}: T5, AltUp with {blocks} blocks")),
            "{said:?}"
        );
        let found = outputs(&ws, &name);
        for tensor in ["logits", "loss"] {
            assert_close(&format!("{name}: {tensor}"), &found[tensor], &expected[tensor], 1e-5);
        }
        // It is whole: it has its tokenizer too.
        printed(run(&ws, &["generate", "--model", &name, PROMPT]));
    }
}

#[test]
fn checkpoints_narrower_types_and_shards_become_directories() {
    let ws = with_dense_run();
    let expected = outputs(&ws, "run");
    let convert = |output: &str, flags: &[&str]| {
        let common = ["convert", "--model", "run", "--output", output];
        succeeds(run(&ws, &[&common[..], flags].concat()));
        outputs(&ws, output)
    };
    // The last checkpoint is that of the last step.
    assert!(convert("last", &["--checkpoint", "last"]) == expected);
    assert!(convert("same", &["--checkpoint", "12"]) == expected);
    assert!(convert("before", &["--checkpoint", "9"]) != expected);
    assert!(convert("copy", &["--max-shard-size", "1"]) == expected);
    for (dtype, tolerance) in [("f16", 0.01), ("bf16", 0.05)] {
        let found = convert(dtype, &["--dtype", dtype]);
        assert!(found != expected, "{dtype}");
        assert_close(dtype, &found["logits"], &expected["logits"], tolerance);
    }
    let config: Value =
        serde_json::from_slice(&fs::read(ws.path("bf16/config.json")).unwrap()).unwrap();
    assert_eq!(config["torch_dtype"], "bfloat16");
}

#[test]
fn a_directory_for_python_opens_here_as_before() {
    let ws = Workspace::new();
    succeeds(ws.train("run", &[]));
    let expected = outputs(&ws, "run");
    succeeds(run(&ws, &["convert", "--model", "run", "--with-python", "--output", "python"]));
    assert!(outputs(&ws, "python") == expected);
    let module = fs::read_to_string(ws.path("python/modeling_altup_t5.py")).unwrap();
    assert!(module == altup_models::PYTHON_MODULE);
    let config: Value =
        serde_json::from_slice(&fs::read(ws.path("python/config.json")).unwrap()).unwrap();
    assert_eq!(config["auto_map"]["AutoConfig"], "modeling_altup_t5.AltUpT5Config");
    // What is converted again is a plain directory.
    succeeds(run(&ws, &["convert", "--model", "python", "--output", "plain"]));
    assert!(!support::names_in(&ws.path("plain")).iter().any(|name| name.ends_with(".py")));
}

#[test]
fn what_cannot_be_converted_is_refused_and_nothing_is_left() {
    let ws = with_dense_run();
    let convert = |flags: &[&str]| {
        let message = fails(run(&ws, &[&["convert", "--model", "run"][..], flags].concat()));
        let left: Vec<String> = support::names_in(&ws.path(""));
        assert!(!left.iter().any(|name| name.starts_with(".partial")), "{left:?}");
        message
    };
    let message = convert(&["--output", "new", "--checkpoint", "10"]);
    assert!(message.contains("step 10") && message.contains("9, 12"), "{message}");
    let message = convert(&["--output", "new", "--checkpoint", "soon"]);
    assert!(message.contains("--checkpoint soon"), "{message}");
    let message = convert(&["--output", "new", "--to", "altup", "--blocks", "0"]);
    assert!(message.contains("altup.num_blocks"), "{message}");
    let message = convert(&["--output", "corpus.txt", "--overwrite"]);
    assert!(message.contains("corpus.txt is no model directory"), "{message}");
    assert!(!ws.path("new").exists());

    let to_recycled = ["convert", "--model", "run", "--to", "recycled", "--output", "recycled"];
    succeeds(run(&ws, &to_recycled));
    let message = fails(run(&ws, &to_recycled));
    assert!(message.contains("recycled exists already"), "{message}");
    succeeds(run(&ws, &[&to_recycled[..], &["--overwrite"]].concat()));
    let again = ["convert", "--model", "recycled", "--to", "altup", "--output", "new"];
    let message = fails(run(&ws, &again));
    assert!(message.contains("widened already"), "{message}");
}

#[test]
fn forward_writes_a_gradient_for_every_parameter() {
    let ws = Workspace::new();
    succeeds(ws.train("run", &["--set", "model.dropout_rate=0.5"]));
    let first = outputs(&ws, "run");
    assert!(outputs(&ws, "run") == first, "there is dropout");
    let args = ["--inputs", "inputs.json", "--output", "o.safetensors"];
    let gradients = ["--gradients", "gradients.safetensors"];
    succeeds(run(&ws, &[&["forward", "--model", "run"][..], &args, &gradients].concat()));
    let with_gradients = tensors(&ws.path("o.safetensors"));
    for (name, values) in &first {
        assert_close(name, &with_gradients[name], values, 1e-5);
    }
    // What is there stays, unless it is to be replaced.
    let before = fs::read(ws.path("o.safetensors")).unwrap();
    let message = fails(run(&ws, &[&["forward", "--model", "run"][..], &args].concat()));
    assert!(message.contains("o.safetensors exists already"), "{message}");
    assert_eq!(fs::read(ws.path("o.safetensors")).unwrap(), before);
    let args = [&args[..], &["--overwrite"]].concat();

    let gradients = tensors(&ws.path("gradients.safetensors"));
    let parameters = tensors(&ws.path("run/model/model.safetensors"));
    assert!(gradients.keys().eq(parameters.keys()));
    assert!(gradients.values().flatten().any(|&value| value != 0.0));

    for (inputs, words) in [
        (r#"{"input_ids": [[3, 99999]], "labels": [[1]]}"#, "input_ids[0] holds the id 99999"),
        (r#"{"input_ids": [[3]], "labels": [[1], [1]]}"#, "1 rows and labels has 2"),
        (r#"{"input_ids": [[3]], "labels": [[0]]}"#, "only padding"),
        (r#"{"input_ids": [[]], "labels": [[1]]}"#, "input_ids holds no token"),
        (r#"{"input_ids": [[3]], "label": [[1]]}"#, "unknown field `label`"),
    ] {
        ws.write("inputs.json", inputs);
        let message = fails(run(&ws, &[&["forward", "--model", "run"][..], &args].concat()));
        assert!(message.contains("inputs.json") && message.contains(words), "{message}");
    }
}

fn generate(ws: &Workspace, flags: &[&str]) -> Vec<String> {
    printed(run(
        ws,
        &[&["generate", "--model", "run", "--max-new-tokens", "12"][..], flags].concat(),
    ))
}

#[test]
fn a_beam_search_prints_the_best_with_their_scores() {
    let ws = with_dense_run();
    let flags = ["--num-beams", "3", "--num-return-sequences", "2", "--json", PROMPT];
    let lines = generate(&ws, &flags);
    let answers: Vec<Value> =
        lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers.len(), 2);
    let score = |answer: &Value| answer["score"].as_f64().unwrap();
    assert!(score(&answers[0]) >= score(&answers[1]) && score(&answers[0]) < 0.0, "{lines:?}");
    assert_ne!(answers[0]["target"], answers[1]["target"]);
}

#[test]
fn samples_follow_their_seed() {
    let ws = with_dense_run();
    let sample = |seed: &str| {
        let flags = ["--sample", "--top-k", "50", "--seed", seed, "--num-return-sequences", "2"];
        generate(&ws, &[&flags[..], &[PROMPT]].concat())
    };
    let first = sample("1");
    assert_eq!(first.len(), 2);
    assert_eq!(sample("1"), first);
    assert_ne!(sample("2"), first);
}

#[test]
fn texts_from_a_file_go_through_together_and_a_stream_gives_the_target() {
    let ws = with_dense_run();
    let prompts = [PROMPT, "He had <extra_id_0> on the road.", "Short.", ""];
    ws.write("prompts.txt", prompts.join("\n") + "\n");
    let whole = generate(&ws, &["--file", "prompts.txt", "--json"]);
    assert_eq!(whole.len(), prompts.len());
    assert_eq!(generate(&ws, &["--file", "prompts.txt", "--json", "--batch-size", "1"]), whole);
    let streamed = generate(&ws, &["--file", "prompts.txt", "--stream"]);
    let targets: Vec<String> = whole
        .iter()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["target"].as_str().unwrap().into())
        .collect();
    assert_eq!(streamed, targets);
}

#[test]
fn bad_settings_and_texts_are_named() {
    let ws = with_dense_run();
    let refuse = |flags: &[&str]| {
        let output = run(&ws, &[&["generate", "--model", "run"][..], flags].concat());
        assert!(!output.status.success(), "{flags:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    for (flags, words) in [
        (&["--temperature", "0.5", PROMPT][..], "--sample"),
        (&["--sample", "--temperature", "0", PROMPT], "temperature must be a positive number"),
        (&["--num-return-sequences", "2", PROMPT], "num_return_sequences must be 1"),
        (&["--num-beams", "2", "--stream", PROMPT], "--stream"),
        (&["--num-beams", "9999", PROMPT], "num_beams must be at most half"),
        (&["--min-new-tokens", "65", PROMPT], "min_new_tokens must be at most max_new_tokens"),
        (&["--file", "nowhere.txt"], "nowhere.txt"),
    ] {
        let message = refuse(flags);
        assert!(message.contains(words), "{flags:?}: {message}");
    }

    let mut child = ws
        .altup(&["generate", "--model", "run"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"fine\nnot \xe9 fine\n").unwrap();
    let output = child.wait_with_output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert!(message.contains("line 2 of standard input") && message.contains("UTF-8"), "{message}");
}

#[test]
fn a_model_with_nan_is_an_error_that_names_the_text() {
    let ws = with_dense_run();
    let path = ws.path("run/model/model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let tensors: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let norm = &tensors["decoder.final_layer_norm.weight"];
    assert_eq!(norm["dtype"], "F32");
    let first = 8 + header + norm["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[first..first + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&path, bytes).unwrap();

    for flags in
        [&[PROMPT][..], &["--stream", PROMPT], &["--sample", PROMPT], &["--num-beams", "2", PROMPT]]
    {
        let message = fails(run(&ws, &[&["generate", "--model", "run"][..], flags].concat()));
        let expected = format!(
            "cannot answer {PROMPT:?}: the model's logits for inputs[0] hold NaN at step 0"
        );
        assert!(message.contains(&expected), "{flags:?}: {message}");
    }
}
