//! Bad input: one clear error that names the culprit, and nothing lost or half written.

mod support;

use serde_json::Value;
use std::fs;
use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::Duration;
use support::{Workspace, assert_same, fails, gzip, losses, names_in, parquet, set, succeeds};

/// Trains on `source` and expects an error that says each of `words`; no run folder may be left.
fn refuses_corpus(workspace: &Workspace, source: &str, words: &[&str]) {
    says(workspace.train_on(source, "run", &[]), words);
    assert!(!workspace.path("run").exists(), "{source} left a run folder");
}

/// Trains with further flags and expects an error that says each of `words`.
fn refuses_flags(workspace: &Workspace, flags: &[&str], words: &[&str]) {
    says(workspace.train("run", flags), words);
    assert!(!workspace.path("run").exists(), "{flags:?} left a run folder");
}

#[track_caller]
fn says(output: Output, words: &[&str]) {
    contains(&fails(output), words);
}

/// Expects one error of any number of lines that says each of `words`.
#[track_caller]
fn explains(output: Output, words: &[&str]) {
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(matches!(output.status.code(), Some(1 | 2)), "{}: {errors}", output.status);
    assert!(errors.starts_with("error: ") && errors.matches("error: ").count() == 1, "{errors}");
    contains(&errors, words);
}

#[track_caller]
fn contains(message: &str, words: &[&str]) {
    for word in words {
        assert!(message.contains(word), "{message:?} doesn't say {word:?}");
    }
}

#[test]
fn a_bad_corpus_is_named_with_its_file_and_line() {
    let ws = Workspace::new();
    refuses_corpus(&ws, "nowhere.txt", &["nowhere.txt"]);
    ws.write("empty.txt", "");
    refuses_corpus(&ws, "empty.txt", &["no text", "empty.txt"]);
    ws.write("few.txt", "one\n\ntwo\n\nthree\n".repeat(9));
    refuses_corpus(&ws, "few.txt", &["few.txt", "one of every 100 documents", "--valid"]);
    ws.write("folder/readme.bin", "x");
    refuses_corpus(&ws, "folder", &["folder", ".txt"]);
    ws.write("notes.doc", "some text");
    refuses_corpus(&ws, "notes.doc", &["notes.doc", ".txt"]);
    ws.write("latin.txt", b"fine\nnot \xe9 fine\n");
    refuses_corpus(&ws, "latin.txt", &["latin.txt", "line 2", "UTF-8"]);
    let whole = gzip(&fs::read(ws.path("corpus.txt")).unwrap());
    ws.write("cut.txt.gz", &whole[..whole.len() / 2]);
    refuses_corpus(&ws, "cut.txt.gz", &["cut.txt.gz", "gzip"]);
    ws.write("cut.parquet", "PAR1, but not really");
    refuses_corpus(&ws, "cut.parquet", &["cut.parquet", "Parquet"]);
    ws.write("body.parquet", parquet("body", &["a document".into()]));
    refuses_corpus(&ws, "body.parquet", &["body.parquet", "`text`", "body"]);
    ws.write("rows.jsonl", "{\"text\": \"fine\"}\n{\"body\": \"not fine\"}\n");
    refuses_corpus(&ws, "rows.jsonl", &["rows.jsonl", "line 2", "`text`"]);
    ws.write("torn.jsonl", "{\"text\": \"fine\"}\n{\"text\": \"not\n");
    refuses_corpus(&ws, "torn.jsonl", &["torn.jsonl", "line 2", "JSON"]);
}

#[test]
fn a_corpus_too_small_for_one_example_is_refused() {
    let ws = Workspace::new();
    succeeds(ws.train("first", &["--steps", "1"]));
    ws.write("small.txt", "A few words.");
    let flags = ["--valid", "corpus.txt", "--tokenizer", "first/tokenizer.json"];
    says(
        ws.train_on("small.txt", "run", &flags),
        &["the training text holds", "one example needs"],
    );
    assert!(!ws.path("run").exists());
}

#[test]
fn a_tokenizer_that_does_not_fit_is_named() {
    let ws = Workspace::new();
    succeeds(ws.train("first", &["--steps", "1"]));
    let json = fs::read(ws.path("first/tokenizer.json")).unwrap();
    let mut json: Value = serde_json::from_slice(&json).unwrap();
    let is_sentinel = |token: &Value| {
        let content = token["content"].as_str().or(token[0].as_str());
        content.is_some_and(|content| content.starts_with("<extra_id_"))
    };
    json["added_tokens"].as_array_mut().unwrap().retain(|token| !is_sentinel(token));
    json["model"]["vocab"].as_array_mut().unwrap().retain(|token| !is_sentinel(token));
    ws.write("bare.json", json.to_string());
    refuses_flags(&ws, &["--tokenizer", "bare.json"], &["bare.json", "sentinels"]);
    ws.write("broken.json", "{");
    refuses_flags(&ws, &["--tokenizer", "broken.json"], &["broken.json"]);
    refuses_flags(&ws, &["--set", "model.vocab_size=128"], &["model.vocab_size", "tokenizer's"]);
    refuses_flags(&ws, &["--set", "data.vocab_size=50"], &["vocabulary of 50 is too small"]);
}

#[test]
fn a_bad_configuration_is_named_by_its_key() {
    let ws = Workspace::new();
    let bare = "[model]\nsize = \"tiny\"\nd_model = 15\nnum_heads = 2\n";
    for (file, contents, words) in [
        ("unknown.toml", "[training]\nstep = 3\n", &["unknown.toml", "step"][..]),
        ("broken.toml", "[training\n", &["broken.toml", "line 1"]),
        ("odd.toml", bare, &["model.d_model (15)", "num_heads (2)"]),
    ] {
        ws.write(file, contents);
        let args = ["train", "--config", file, "--train", "corpus.txt", "--output", "run"];
        explains(ws.altup(&args).output().unwrap(), words);
        assert!(!ws.path("run").exists(), "{file} left a run folder");
    }
    explains(ws.train("run", &["--backend", "candle"]), &["candle", "flex, ndarray"]);
    for (assignment, words) in [
        ("training.stepz=7", &["stepz", "training"][..]),
        ("training.steps=many", &["many", "training.steps"]),
        ("optimizer.kind=sgd", &["sgd", "adafactor", "optimizer.kind"]),
        ("schedule.final_share=2.0", &["schedule.final_share", "not 2"]),
        ("model.moe.num_experts=4", &["model.moe", "expert_d_ff"]),
        ("model.altup.encoder_sequence.method=skip", &["skip", "stride_and_skip"]),
    ] {
        refuses_flags(&ws, &["--set", assignment], words);
    }
    refuses_flags(&ws, &["--set", "training.steps"], &["training.steps", "KEY=VALUE"]);
    refuses_flags(&ws, &["--blocks", "0"], &["model.altup.num_blocks", "not 0"]);
    let moe = ["num_experts=4", "expert_d_ff=8", "mode=partial", "top_k=5"];
    let moe = moe.map(|field| format!("model.moe.{field}"));
    let moe: Vec<&str> = moe.iter().map(String::as_str).collect();
    refuses_flags(&ws, &set(&moe), &["model.moe.top_k", "num_experts (4), not 5"]);
    let method = "model.altup.encoder_sequence.method=altup";
    let flags = set(&[method, "model.altup.encoder_sequence.stride=0"]);
    refuses_flags(&ws, &flags, &["model.altup.encoder_sequence.stride", "not 0"]);
    refuses_flags(&ws, &["--size", "huge"], &["model.size", "altup-s", "huge"]);
    refuses_flags(&ws, &["--steps", "0"], &["training.steps"]);
    for flag in ["--steps", "--batch-size", "--blocks"] {
        explains(ws.train("run", &[flag, "18446744073709551615"]), &[flag, "is not in"]);
    }
    let most = i64::MAX.to_string();
    refuses_flags(&ws, &["--steps", &most], &["training.steps must be at most 2251799813685248"]);
    refuses_flags(&ws, &["--batch-size", "4000000000"], &["training.batch_size", "4000000000"]);
    refuses_flags(&ws, &["--batch-size", &most], &["training.batch_size", &most]);
    let accumulation = ["--set", "training.gradient_accumulation=4000000000"];
    refuses_flags(&ws, &accumulation, &["training.gradient_accumulation", "4000000000"]);
    #[cfg(not(feature = "cuda"))]
    refuses_flags(&ws, &["--backend", "cuda"], &["cuda", "--features cuda"]);
}

#[test]
fn an_existing_folder_is_neither_replaced_nor_touched() {
    let ws = Workspace::new();
    succeeds(ws.train("run", &[]));
    let before = losses(&ws.path("run"));
    says(ws.train("run", &[]), &["run", "--resume", "--overwrite"]);
    assert_eq!(losses(&ws.path("run")), before);
    ws.write("mine/thesis.txt", "years of work");
    says(ws.train("mine/thesis.txt", &[]), &["thesis.txt is a file"]);
    says(ws.train("mine", &["--overwrite"]), &["mine", "not the folder of a run"]);
    assert!(ws.path("mine/thesis.txt").exists());
    // A run that can't start leaves the one it was to replace.
    says(ws.train_on("nowhere.txt", "run", &["--overwrite"]), &["nowhere.txt"]);
    assert_eq!(losses(&ws.path("run")), before);
    succeeds(ws.train("run", &["--overwrite", "--steps", "2"]));
    assert_ne!(losses(&ws.path("run")), before);
}

#[test]
fn what_is_no_run_and_no_model_is_said_to_be_none() {
    let ws = Workspace::new();
    fs::create_dir(ws.path("nothing")).unwrap();
    for args in [
        &["train", "--resume", "nothing", "--quiet"][..],
        &["generate", "--model", "nothing", "text"],
        &["inspect", "--model", "nothing"],
        &["evaluate", "--model", "nothing", "--valid", "corpus.txt"],
    ] {
        says(ws.altup(args).output().unwrap(), &["nothing"]);
    }
}

#[test]
fn a_diverging_run_stops_and_keeps_its_last_checkpoint_whole() {
    let ws = Workspace::new();
    let flags = set(&[
        "optimizer.kind=adamw",
        "optimizer.learning_rate=1e30",
        "schedule.kind=linear",
        "schedule.warmup_steps=0",
        "training.checkpoint_every=1",
    ]);
    let words = ["at step 2", "diverged", "No checkpoint before it is good"];
    says(ws.train("run", &flags), &words);
    // Read back, it goes the same way.
    says(ws.altup(&["train", "--resume", "run", "--quiet"]).output().unwrap(), &words);
    assert_eq!(names_in(&ws.path("run/checkpoints")), ["step-00000001"]);
    assert!(!ws.path("run/model").exists());
}

/// Runs a command under a limit of `blocks` KiB to the size of a file: writing beyond it fails, as
/// on a full disk.
fn with_file_limit(ws: &Workspace, blocks: u64, args: &[&str]) -> Output {
    let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
    let mut command = Command::new("bash");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_altup")]).args(args);
    command.current_dir(ws.path("")).env("ALTUP_CACHE", ws.path("cache"));
    command.env("RAYON_NUM_THREADS", "1").output().unwrap()
}

/// Not even who works in it can be written down.
#[test]
fn a_full_disk_at_the_start_leaves_no_folder() {
    let ws = Workspace::new();
    let source = ["train", "--config", "config.toml", "--train", "corpus.txt"];
    let args = [&source[..], &["--output", "run", "--quiet"]].concat();
    says(with_file_limit(&ws, 0, &args), &["run.lock"]);
    assert!(!ws.path("run").exists());
}

#[test]
fn a_full_disk_while_saving_leaves_the_checkpoint_before_whole() {
    let ws = Workspace::new();
    let long = ["--steps", "120"];
    succeeds(ws.train("whole", &long));

    let source = ["train", "--config", "config.toml", "--train", "corpus.txt"];
    let args = [&source[..], &["--output", "run"], &long[..]].concat();
    let mut child = ws.altup(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while !ws.path("run/checkpoints/step-00000006").exists() {
        assert!(child.try_wait().unwrap().is_none(), "ended before its checkpoint");
        sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!ws.path("run/summary.json").exists(), "finished before it was killed");

    let checkpoints = ws.path("run/checkpoints");
    let mut before = names_in(&checkpoints);
    // The kill may have come while one was written.
    before.retain(|name| name.starts_with("step-"));
    let weights = checkpoints.join(before.last().unwrap()).join("model.bpk");
    // The report and all else is smaller than the weights.
    let too_small = (fs::metadata(weights).unwrap().len() - 1) / 1024;
    let resume = ["train", "--resume", "run", "--quiet"];
    says(with_file_limit(&ws, too_small, &resume), &["checkpoint", "earlier ones are whole"]);
    assert_eq!(names_in(&checkpoints), before);

    succeeds(ws.altup(&resume).output().unwrap());
    assert_same(&ws, "run", "whole", "after a full disk");
}

/// TOML and JSON hold UTF-8 alone.
#[cfg(unix)]
#[test]
fn paths_that_are_not_utf_8_are_refused_by_key_and_folders_are_taken() {
    use std::os::unix::ffi::OsStrExt;
    let workspace = Workspace::new();
    let odd = std::ffi::OsStr::from_bytes(b"\xff.json");
    for (flag, key) in [("--tokenizer", "data.tokenizer"), ("--init", "model.init")] {
        let mut command = workspace.altup(&["train", "--train", "corpus.txt", "--quiet", flag]);
        let message = fails(command.arg(odd).output().unwrap());
        assert!(message.contains(key) && message.contains("UTF-8"), "{message}");
    }
    let source = ["train", "--config", "config.toml", "--train", "corpus.txt", "--quiet"];
    let output = workspace.altup(&source).arg("--output").arg(odd).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let folder = workspace.path("").join(odd);
    assert!(folder.join("summary.json").exists() && folder.join("report.html").exists());
}

#[test]
fn a_text_that_is_too_short_is_named() {
    let workspace = Workspace::new();
    workspace.write("short.txt", "The river.\n");
    let message = fails(workspace.train("run", &["--valid", "short.txt"]));
    assert!(message.contains("the validation text holds"), "{message}");
}
