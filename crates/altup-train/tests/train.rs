//! Runs of `altup train` from end to end, and what the other subcommands make of them.

mod support;

use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Output, Stdio};
use support::{
    Workspace, assert_same, fails, gzip, losses, names_in, parquet, rows, set, succeeds,
};

/// What a command printed, which must be one line of JSON.
fn printed_json(output: &Output) -> Value {
    let text = std::str::from_utf8(&output.stdout).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    serde_json::from_str(text).unwrap()
}

fn printed_lines(output: &Output) -> Vec<String> {
    let text = std::str::from_utf8(&output.stdout).unwrap();
    text.lines().map(str::to_owned).collect()
}

fn train_losses(run: &Path) -> Vec<f64> {
    let rows = rows(run);
    let train = rows.iter().filter(|row| row["kind"] == "train");
    train.map(|row| row["loss"].as_f64().unwrap()).collect()
}

fn last_valid_row(run: &Path) -> Value {
    rows(run).into_iter().rfind(|row| row["kind"] == "valid").unwrap()
}

fn assert_close(found: &[f64], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (found, expected) in found.iter().zip(expected) {
        let difference = (found - expected).abs();
        assert!(difference <= tolerance * expected.abs(), "{what}: {found}, not {expected}");
    }
}

fn assert_self_contained(report: &Path) {
    let html = fs::read_to_string(report).unwrap();
    assert!(html.contains("<svg"), "{} has no chart", report.display());
    let rest = html.replace("http://www.w3.org/2000/svg", "");
    assert!(!rest.contains("http"), "{} links to the network", report.display());
}

#[test]
fn a_finished_run_leaves_its_model_its_metrics_and_a_report() {
    let workspace = Workspace::new();
    succeeds(workspace.train("run", &[]));
    let run = workspace.path("run");
    for name in [
        "config.toml",
        "tokenizer.json",
        "metrics.jsonl",
        "model/config.json",
        "model/model.safetensors",
        "model/tokenizer.json",
        "summary.json",
        "samples.jsonl",
        "report.html",
    ] {
        assert!(fs::metadata(run.join(name)).is_ok_and(|file| file.len() > 0), "{name}");
    }
    let charts = names_in(&run.join("charts"));
    assert!(!charts.is_empty() && charts.iter().all(|name| name.ends_with(".svg")), "{charts:?}");
    assert_self_contained(&run.join("report.html"));

    let steps = |kind: &str| -> Vec<u64> {
        let rows = rows(&run);
        let of_kind = rows.iter().filter(|row| row["kind"] == kind);
        of_kind.map(|row| row["step"].as_u64().unwrap()).collect()
    };
    assert_eq!(steps("start"), [0]);
    assert_eq!(steps("train"), [2, 4, 6, 8, 10, 12]);
    assert_eq!(steps("valid"), [4, 8, 12]);
    assert_eq!(steps("coefficients"), [4, 8, 12]);
    let rows = rows(&run);
    assert_eq!(rows[0]["kind"], "start");
    for row in rows.iter().filter(|row| row["kind"] == "train") {
        let [flops, share, waited] = ["flops_per_second", "peak_share", "data_wait_seconds"]
            .map(|field| row[field].as_f64().unwrap());
        let peak = rows[0]["matrix_flops_per_second"].as_f64().unwrap();
        assert!(flops > 0.0 && (flops / peak - share).abs() < 1e-9 && waited >= 0.0, "{row}");
    }
}

#[test]
fn samples_show_how_the_same_blanks_are_filled() {
    let workspace = Workspace::new();
    let prompts = "training.prompts=[\"The <extra_id_0> of the <extra_id_1>.\"]";
    succeeds(workspace.train("run", &set(&[prompts])));
    let text = fs::read_to_string(workspace.path("run/samples.jsonl")).unwrap();
    let samples: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let steps: Vec<u64> = samples.iter().map(|row| row["step"].as_u64().unwrap()).collect();
    // The prompt, and three of the validation examples.
    assert_eq!(steps, [4, 8, 12].map(|step| [step; 4]).concat());
    for sample in &samples {
        let [prompt, filled] = ["prompt", "filled"].map(|key| sample[key].as_str().unwrap());
        assert!(prompt.contains("<extra_id_0>") && !filled.contains("<extra_id_"), "{sample}");
    }
    assert_eq!(samples[0]["prompt"], "The <extra_id_0> of the <extra_id_1>.");
    let html = fs::read_to_string(workspace.path("run/report.html")).unwrap();
    assert!(html.contains("What the model writes") && html.contains("class=\"written\""));
}

#[test]
fn a_report_is_written_at_any_time_from_the_folder_alone() {
    let workspace = Workspace::new();
    succeeds(workspace.train("run", &[]));
    let run = workspace.path("run");
    let report = fs::read_to_string(run.join("report.html")).unwrap();
    assert!(report.contains("Finished after 12 steps") && !report.contains("refresh"));
    let events = names_in(&run.join("tensorboard"));
    assert_eq!(events.len(), 1, "{events:?}");

    // As if it were at step 8 of its 12.
    let metrics = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let begun: Vec<&str> = metrics.lines().filter(|line| !line.contains("\"step\":1")).collect();
    fs::write(run.join("metrics.jsonl"), begun.join("\n") + "\n").unwrap();
    fs::remove_file(run.join("summary.json")).unwrap();
    succeeds(workspace.altup(&["report", "run"]).output().unwrap());
    let report = fs::read_to_string(run.join("report.html")).unwrap();
    assert!(report.contains("At step 8 of 12") && report.contains("http-equiv=\"refresh\""));
    let again = names_in(&run.join("tensorboard"));
    assert!(again.len() == 1 && again != events, "{again:?}");

    let message = fails(workspace.altup(&["report", "run", "run"]).output().unwrap());
    assert!(message.contains("--output"), "{message}");
}

#[test]
fn the_newest_checkpoints_and_the_best_are_kept_and_others_removed() {
    let workspace = Workspace::new();
    // Steps that grow so long that the loss rises: the best is none of the last.
    let flags = set(&[
        "optimizer.kind=adamw",
        "optimizer.learning_rate=3.0",
        "schedule.kind=constant",
        "schedule.warmup_steps=12",
        "training.eval_every=2",
        "training.checkpoint_every=2",
    ]);
    succeeds(workspace.train("run", &flags));
    let rows = rows(&workspace.path("run"));
    let valid = rows.iter().filter(|row| row["kind"] == "valid");
    let best = valid.min_by(|a, b| {
        let [a, b] = [a, b].map(|row| row["loss"].as_f64().unwrap());
        a.total_cmp(&b)
    });
    let best = best.unwrap()["step"].as_u64().unwrap();
    assert!(best < 10, "the best is one of the newest, step {best}");
    let kept = [best, 10, 12].map(|step| format!("step-{step:08}"));
    assert_eq!(names_in(&workspace.path("run/checkpoints")), kept);
}

#[test]
fn json_prints_the_summary_of_the_run() {
    let workspace = Workspace::new();
    let summary = printed_json(&succeeds(workspace.train("run", &["--json"])));
    for (key, value) in summary.as_object().unwrap() {
        // JSON has null for what isn't a finite number, and for memory that the system doesn't tell.
        assert!(!value.is_null() || key == "peak_memory_bytes", "{key}");
    }
    for key in ["valid_loss", "unigram_loss"] {
        assert!(summary[key].as_f64().unwrap() > 0.0, "{key}");
    }
    assert_eq!(summary["steps"], 12);
    assert_eq!(summary["valid_loss"], last_valid_row(&workspace.path("run"))["loss"]);
    let stored = fs::read(workspace.path("run/summary.json")).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&stored).unwrap(), summary);
}

#[test]
fn the_loss_of_every_variant_falls() {
    let workspace = Workspace::new();
    for (variant, model, altup_layers) in [
        ("dense", "tiny-dense", 0),
        ("altup", "tiny-altup-k2", 4),
        ("sameup", "tiny-sameup-k2", 4),
        ("recycled", "tiny-recycled-k2", 4),
        ("sum", "tiny-sum-k2", 0),
    ] {
        let steps = ["--steps", "60", "--set", "training.eval_every=30"];
        let flags = ["--variant", variant, "--json"];
        let output = succeeds(workspace.train(variant, &[&steps[..], &flags[..]].concat()));
        assert_eq!(printed_json(&output)["model"], model);
        let losses = train_losses(&workspace.path(variant));
        assert_eq!(losses.len(), 30, "{variant}");
        assert!(losses[0] > losses[29], "{variant}: {losses:?}");

        let inspect = workspace.altup(&["inspect", "--model", variant, "--json"]).output().unwrap();
        let layers = printed_json(&succeeds(inspect));
        assert_eq!(layers["altup"].as_array().unwrap().len(), altup_layers, "{variant}");
    }
}

#[test]
fn experts_and_reduced_sequences_train_report_and_generate() {
    let workspace = Workspace::new();
    let experts = ["model.moe.num_experts=4", "model.moe.expert_d_ff=8", "model.moe.mode=switch"];
    let top_2 = [&experts[..], &["model.moe.top_k=2"]].concat();
    let reduced = |method: &'static str| {
        [
            method,
            "model.altup.encoder_sequence.stride=4",
            "model.altup.encoder_sequence.first_layer=0",
        ]
    };
    let pooled = reduced("model.altup.encoder_sequence.method=average_pool");
    let skipped = reduced("model.altup.encoder_sequence.method=stride_and_skip");
    let predicted = reduced("model.altup.encoder_sequence.method=altup");
    let both = [&predicted[..], &["model.altup.encoder_sequence.last_layer=1"], &experts].concat();
    for (name, model, assignments) in [
        ("experts", "tiny-altup-k2-switch4", &experts[..]),
        ("top-2", "tiny-altup-k2-switch4", &top_2),
        ("pooled", "tiny-altup-k2-pool4", &pooled),
        ("skipped", "tiny-altup-k2-skip4", &skipped),
        ("both", "tiny-altup-k2-seq4-switch4", &both),
    ] {
        let steps = ["--steps", "60", "--set", "training.eval_every=30", "--json"];
        let output = succeeds(workspace.train(name, &[&steps[..], &set(assignments)].concat()));
        assert_eq!(printed_json(&output)["model"], model);
        let run = workspace.path(name);
        let losses = train_losses(&run);
        assert!(losses[0] > losses[29], "{name}: {losses:?}");
        let has_experts = assignments.contains(&experts[0]);
        assert_eq!(run.join("charts/expert_load.svg").exists(), has_experts, "{name}");
        let report = fs::read_to_string(run.join("report.html")).unwrap();
        assert_eq!(report.contains("Never chosen"), has_experts, "{name}");

        succeeds(
            workspace.altup(&["generate", "--model", name, "The <extra_id_0>."]).output().unwrap(),
        );
        let inspect = workspace.altup(&["inspect", "--model", name, "--json"]).output().unwrap();
        let inspected = printed_json(&succeeds(inspect));
        let count = |field: &str| inspected[field].as_u64().unwrap();
        assert_eq!(count("active_parameters") < count("total_parameters"), has_experts, "{name}");
        let along_the_sequence = inspected["sequence_altup"].as_array().unwrap().len();
        assert_eq!(along_the_sequence, if name == "both" { 2 } else { 0 }, "{name}");
    }
}

#[test]
fn dropout_and_adamw_under_a_cosine_with_clipping_train_to_the_end() {
    let workspace = Workspace::new();
    succeeds(workspace.train("plain", &[]));
    let cases: [(&str, &[&str]); 2] = [
        ("dropout", &["model.dropout_rate=0.1"]),
        (
            "adamw",
            &[
                "optimizer.kind=adamw",
                "optimizer.learning_rate=1e-3",
                "optimizer.clip_norm=1.0",
                "schedule.kind=cosine",
                "schedule.warmup_steps=2",
            ],
        ),
    ];
    for (name, assignments) in cases {
        succeeds(workspace.train(name, &set(assignments)));
        let losses = train_losses(&workspace.path(name));
        assert_eq!(losses.len(), 6, "{name}");
        assert_ne!(losses, train_losses(&workspace.path("plain")), "{name}");
    }
}

#[test]
fn accumulated_gradients_are_those_of_one_larger_batch() {
    let workspace = Workspace::new();
    for variant in ["dense", "altup"] {
        let train = |name: &str, batches: &[&str]| {
            let run = format!("{variant}-{name}");
            let flags = ["--variant", variant, "--steps", "6", "--set", "training.log_every=1"];
            succeeds(workspace.train(&run, &[&flags[..], batches].concat()));
            train_losses(&workspace.path(&run))
        };
        let at_once = train("at-once", &["--batch-size", "8"]);
        let halves = ["--batch-size", "4", "--set", "training.gradient_accumulation=2"];
        assert_close(&train("in-halves", &halves), &at_once, 1e-4, variant);
    }
}

#[test]
fn gradient_checkpointing_changes_no_bit() {
    let workspace = Workspace::new();
    let dropout = "model.dropout_rate=0.1";
    succeeds(workspace.train("kept", &set(&[dropout])));
    let again = set(&[dropout, "training.gradient_checkpointing=true"]);
    succeeds(workspace.train("again", &again));
    assert_same(&workspace, "again", "kept", "computed again");
}

/// How the sequence is reduced is no part of a variant.
#[test]
fn a_variant_keeps_the_reduced_sequence_of_its_configuration() {
    let workspace = Workspace::new();
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../configs/tiny-sequence.toml");
    let train = |run: &str, variant: &str| {
        let source = ["train", "--config", file, "--train", "corpus.txt", "--output", run];
        let short = ["--steps", "1", "--variant", variant, "--quiet"];
        let small =
            set(&["data.vocab_size=300", "training.batch_size=1", "training.eval_examples=1"]);
        workspace.altup(&[&source[..], &short, &small].concat()).output().unwrap()
    };
    succeeds(train("run", "recycled"));
    let config = fs::read_to_string(workspace.path("run/config.toml")).unwrap();
    for key in ["num_blocks = 2", "widening = \"recycled\"", "stride = 4", "last_layer = 2"] {
        assert!(config.contains(key), "{config}");
    }
    let message = fails(train("refused", "dense"));
    assert!(message.contains("model.altup.encoder_sequence"), "{message}");
    assert!(!workspace.path("refused").exists());
}

/// Of 40 blanks, a target of 64 tokens has room for 32.
#[test]
fn no_blank_is_left_for_want_of_tokens() {
    let workspace = Workspace::new();
    let text = (0..40).map(|blank| format!("<extra_id_{blank}> and")).collect::<Vec<_>>().join(" ");
    let prompt = format!("training.prompts=[\"{text}\"]");
    succeeds(workspace.train("run", &["--steps", "4", "--set", &prompt]));
    let samples = fs::read_to_string(workspace.path("run/samples.jsonl")).unwrap();
    let sample: Value = serde_json::from_str(samples.lines().next().unwrap()).unwrap();
    assert!(sample["prompt"].as_str().unwrap().contains("<extra_id_39>"), "{sample}");
    assert!(!sample["filled"].as_str().unwrap().contains("<extra_id_"), "{sample}");

    let generate = ["generate", "--model", "run", &text];
    let message = fails(workspace.altup(&generate).output().unwrap());
    assert!(message.contains("40 blanks takes at least --max-new-tokens 80, not 64"), "{message}");
    let enough = [&generate[..], &["--max-new-tokens", "80"]].concat();
    let output = succeeds(workspace.altup(&enough).output().unwrap());
    let filled = String::from_utf8(output.stdout).unwrap();
    assert!(!filled.contains("<extra_id_"), "{filled}");
}

#[test]
fn recomputing_layers_changes_no_bit() {
    let workspace = Workspace::new();
    let train = |run: &str, recompute: &str| {
        let layers = format!("training.recompute_layers={recompute}");
        succeeds(workspace.train(run, &set(&["model.dropout_rate=0.1", &layers])));
    };
    train("kept", "false");
    train("recomputed", "true");
    assert_same(&workspace, "recomputed", "kept", "layers computed again");
}

#[test]
fn the_same_documents_train_the_same_in_every_format() {
    let workspace = Workspace::new();
    succeeds(workspace.train("expected", &[]));
    let expected = losses(&workspace.path("expected"));

    let corpus = fs::read_to_string(workspace.path("corpus.txt")).unwrap();
    let documents: Vec<String> =
        corpus.trim_end().split("\n\n").map(|text| format!("{text}\n")).collect();
    let (first, second) = documents.split_at(100);
    workspace.write("folder/a.txt", first.join("\n"));
    workspace.write("folder/b.txt", second.join("\n"));
    let lines: String =
        documents.iter().map(|text| json!({ "text": text }).to_string() + "\n").collect();
    workspace.write("documents.jsonl", &lines);
    workspace.write("documents.json.gz", gzip(lines.as_bytes()));
    workspace.write("documents.jsonl.gz", gzip(lines.as_bytes()));
    workspace.write("documents.jsonl.zst", zstd::encode_all(lines.as_bytes(), 1).unwrap());
    workspace.write("documents.parquet", parquet("text", &documents));

    for (number, source) in [
        "folder",
        "folder/*.txt",
        "documents.jsonl",
        "documents.json.gz",
        "documents.jsonl.gz",
        "documents.jsonl.zst",
        "documents.parquet",
    ]
    .into_iter()
    .enumerate()
    {
        let run = format!("run-{number}");
        succeeds(workspace.train_on(source, &run, &[]));
        assert_eq!(losses(&workspace.path(&run)), expected, "{source}");
    }
}

#[test]
fn a_tokenizer_that_is_given_is_taken_in_place_of_a_new_one() {
    let workspace = Workspace::new();
    succeeds(workspace.train("first", &[]));
    let given = ["--tokenizer", "first/tokenizer.json", "--set", "data.vocab_size=400"];
    succeeds(workspace.train("second", &given));
    assert_same(&workspace, "second", "first", "the tokenizer of the first run");
    let expected = fs::read(workspace.path("first/tokenizer.json")).unwrap();
    for name in ["second/tokenizer.json", "second/model/tokenizer.json"] {
        assert!(fs::read(workspace.path(name)).unwrap() == expected, "{name}");
    }
}

#[test]
fn tokens_are_kept_until_the_corpus_changes() {
    let workspace = Workspace::new();
    let kept = || {
        let store = workspace.path("cache/tokens/v3");
        let folders = names_in(&store).into_iter().filter(|name| !name.contains('.'));
        let names = folders.flat_map(|folder| names_in(&store.join(folder)));
        names.filter(|name| name.ends_with(".tokens")).collect::<Vec<_>>()
    };
    succeeds(workspace.train("first", &[]));
    let before = kept();
    assert_eq!(before.len(), 1, "held-out documents are in the same file: {before:?}");

    succeeds(workspace.train("second", &[]));
    assert_eq!(kept(), before);
    assert_eq!(losses(&workspace.path("second")), losses(&workspace.path("first")));

    let corpus = fs::read_to_string(workspace.path("corpus.txt")).unwrap();
    workspace.write("corpus.txt", corpus + "\nThe river was in the garden.\n");
    let tokenizer = ["--tokenizer", "first/tokenizer.json"];
    succeeds(workspace.train("third", &tokenizer));
    let after = kept();
    assert_eq!(after.len(), 2, "{after:?}");
    assert!(before.iter().all(|name| after.contains(name)), "{after:?}");
}

#[test]
fn generate_fills_blanks_from_arguments_and_from_standard_input() {
    const PROMPTS: [&str; 2] =
        ["The light of the <extra_id_0> was in the river.", "He had <extra_id_0> on the road."];
    let workspace = Workspace::new();
    succeeds(workspace.train("run", &["--steps", "100", "--set", "training.eval_every=50"]));
    let generate = ["generate", "--model", "run", "--max-new-tokens", "16"];

    let flags = [&generate[..], &["--json"][..], &PROMPTS[..]].concat();
    let json = succeeds(workspace.altup(&flags).output().unwrap());
    let mut filled = Vec::new();
    for (line, prompt) in printed_lines(&json).iter().zip(PROMPTS) {
        let generated: Value = serde_json::from_str(line).unwrap();
        let keys: Vec<&String> = generated.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["prompt", "target", "filled"]);
        assert_eq!(generated["prompt"], prompt);
        assert!(generated["target"].as_str().unwrap().starts_with("<extra_id_0>"), "{line}");
        let text = generated["filled"].as_str().unwrap();
        let (before, after) = prompt.split_once(" <extra_id_0> ").unwrap();
        assert!(text.starts_with(before) && text.ends_with(after), "{line}");
        assert!(!text.contains("<extra_id_0>"), "{line}");
        filled.push(text.to_owned());
    }
    assert_eq!(filled.len(), PROMPTS.len());

    let flags = [&generate[..], &PROMPTS[..]].concat();
    let from_arguments = succeeds(workspace.altup(&flags).output().unwrap());
    assert_eq!(printed_lines(&from_arguments), filled);

    let mut child = workspace
        .altup(&generate)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(PROMPTS.join("\n").as_bytes()).unwrap();
    let from_input = succeeds(child.wait_with_output().unwrap());
    assert_eq!(printed_lines(&from_input), filled);
}

#[test]
fn evaluate_scores_a_model_as_its_run_did() {
    let workspace = Workspace::new();
    let corpus = fs::read_to_string(workspace.path("corpus.txt")).unwrap();
    let documents: Vec<&str> = corpus.split("\n\n").take(20).collect();
    workspace.write("corpus-valid.txt", documents.join("\n\n"));
    // On text of its own, and on the part of its corpus that the run held out.
    for (run, valid) in [("own", &["--valid", "corpus-valid.txt"][..]), ("held-out", &[])] {
        succeeds(workspace.train(run, valid));
        let expected = last_valid_row(&workspace.path(run));
        let model = ["evaluate", "--model", run];
        let portion = ["--examples", "8", "--batch-size", "4", "--json"];
        let output = workspace.altup(&[&model[..], valid, &portion[..]].concat()).output().unwrap();
        let scores = printed_json(&succeeds(output));
        for key in ["loss", "perplexity", "accuracy"] {
            let [found, expected] = [&scores, &expected].map(|row| row[key].as_f64().unwrap());
            assert_close(&[found], &[expected], 1e-6, &format!("{run}, {key}"));
        }
        for key in ["loss", "accuracy"] {
            let text = [&scores, &expected].map(|row| row["text"][key].as_f64().unwrap());
            assert_close(&text[..1], &text[1..], 1e-6, &format!("{run}, {key} of the text"));
        }
        assert_eq!(scores["tokens"], expected["tokens"], "{run}");
        assert_eq!(scores["text"]["tokens"], expected["text"]["tokens"], "{run}");
    }
}

#[test]
fn inspect_counts_the_parameters_of_a_named_size() {
    let workspace = Workspace::new();
    let flags = ["inspect", "--size", "altup-s", "--blocks", "2", "--json"];
    let model = printed_json(&succeeds(workspace.altup(&flags).output().unwrap()));
    let parts = model["parameters"].as_object().unwrap();
    let total: u64 = parts.values().map(|count| count.as_u64().unwrap()).sum();
    assert_eq!(model["total_parameters"], total);
    let tables = ["embedding table", "output table"].map(|part| parts[part].as_u64().unwrap());
    // A vocabulary of 32128, and two blocks of 512.
    assert_eq!(tables.iter().sum::<u64>(), 2 * 32128 * 1024);
}

#[test]
fn inspect_shows_the_coefficients_of_a_trained_model() {
    let workspace = Workspace::new();
    succeeds(workspace.train("run", &[]));
    let flags = ["inspect", "--model", "run", "--json"];
    let model = printed_json(&succeeds(workspace.altup(&flags).output().unwrap()));
    let layers = model["altup"].as_array().unwrap();
    let places: Vec<(&str, u64)> = layers
        .iter()
        .map(|layer| (layer["stack"].as_str().unwrap(), layer["layer"].as_u64().unwrap()))
        .collect();
    assert_eq!(places, [("encoder", 0), ("encoder", 1), ("decoder", 0), ("decoder", 1)]);
    for layer in layers {
        let width = |values: &Value| values.as_array().unwrap().len();
        assert_eq!(layer["p"].as_array().unwrap().iter().map(width).collect::<Vec<_>>(), [2, 2]);
        assert_eq!(width(&layer["g"]), 2);
    }
}

#[test]
fn report_compares_runs() {
    let workspace = Workspace::new();
    succeeds(workspace.train("wide", &[]));
    succeeds(workspace.train("narrow", &["--variant", "dense"]));
    let flags = ["report", "wide", "narrow", "--output", "comparison"];
    succeeds(workspace.altup(&flags).output().unwrap());
    let report = workspace.path("comparison/report.html");
    assert_self_contained(&report);
    let html = fs::read_to_string(&report).unwrap();
    assert!(html.contains("wide") && html.contains("narrow"));
    assert!(!names_in(&workspace.path("comparison/charts")).is_empty());
    let message = fails(workspace.altup(&flags).output().unwrap());
    assert!(message.contains("comparison/report.html exists already"), "{message}");
    fs::remove_file(&report).unwrap();
    let message = fails(workspace.altup(&flags).output().unwrap());
    assert!(message.contains("comparison/charts exists already"), "{message}");
    succeeds(workspace.altup(&[&flags[..], &["--overwrite"]].concat()).output().unwrap());
}

#[test]
fn sizes_lists_the_named_models() {
    let workspace = Workspace::new();
    let output = succeeds(workspace.altup(&["sizes"]).output().unwrap());
    let lines = printed_lines(&output);
    for name in ["tiny ", "altup-s ", "altup-b "] {
        assert!(lines.iter().any(|line| line.starts_with(name)), "{name}: {lines:?}");
    }
}

#[test]
fn the_help_lists_what_people_use() {
    let workspace = Workspace::new();
    let help = printed_lines(&succeeds(workspace.altup(&["--help"]).output().unwrap()));
    let lists = |command: &str| help.iter().any(|line| line.trim_start().starts_with(command));
    assert!(lists("train ") && lists("bench "), "{help:?}");
    // One side of a comparison, for `altup bench` alone.
    assert!(!lists("measure "), "{help:?}");
    succeeds(workspace.altup(&["measure", "--help"]).output().unwrap());
}
