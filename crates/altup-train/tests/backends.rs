//! Every backend of this build at the command line: listed, refused where it is missing, a run begun on
//! one and ended on another, and compared.

mod support;

use safetensors::SafeTensors;
use serde_json::{Value, json};
use std::fs;
use std::process::Output;
use support::{Workspace, copy_folder, fails, names_in, rows, succeeds};

/// The backends that this build has and that run without a GPU.
fn backends() -> Vec<&'static str> {
    let all = [
        ("flex", cfg!(feature = "flex")),
        ("ndarray", cfg!(feature = "ndarray")),
        ("tch", cfg!(feature = "tch")),
        ("wgpu", cfg!(feature = "wgpu")),
    ];
    all.into_iter().filter(|(_, compiled)| *compiled).map(|(name, _)| name).collect()
}

fn run(workspace: &Workspace, args: &[&str]) -> Output {
    workspace.altup(args).output().unwrap()
}

fn printed(output: Output) -> String {
    String::from_utf8(succeeds(output).stdout).unwrap()
}

#[test]
fn backends_are_listed_with_their_devices_or_with_what_is_missing() {
    let ws = Workspace::new();
    let text = printed(run(&ws, &["backends", "--json"]));
    let listed: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names: Vec<&str> = listed.iter().map(|row| row["backend"].as_str().unwrap()).collect();
    assert_eq!(names, ["flex", "ndarray", "tch", "wgpu", "vulkan", "cuda"]);
    for row in listed {
        let name = row["backend"].as_str().unwrap();
        let devices = row["devices"].as_array().unwrap();
        match backends().contains(&name) {
            true => {
                assert!(devices[0]["name"].as_str().unwrap().starts_with(name), "{row}");
                assert_eq!(row["missing"], Value::Null, "{row}");
            }
            false => {
                assert!(devices.is_empty(), "{row}");
                let missing = row["missing"].as_str().unwrap();
                assert!(missing.contains(&format!("`--features {name}`")), "{row}");
                assert!(missing.contains("It needs"), "{row}");
            }
        }
    }
    let text = printed(run(&ws, &["backends"]));
    assert!(text.starts_with("flex "), "{text}");
}

/// No other device takes the place of one that is not there, and one line says what to do.
#[test]
fn a_device_that_is_missing_is_one_line_that_tells_what_to_do() {
    let ws = Workspace::new();
    let forward = |backend: &str| {
        let args = ["forward", "--model", "m", "--inputs", "i", "--output", "o"];
        fails(run(&ws, &[&args[..], &["--backend", backend]].concat()))
    };
    for name in ["tch", "wgpu", "vulkan", "cuda"] {
        let device = format!("{name}:99");
        let error = forward(&device);
        match backends().contains(&name) {
            true => {
                assert!(
                    error.contains(&format!("there is no device {device}: {name} finds")),
                    "{error}"
                );
                assert!(error.contains("It needs"), "{error}");
            }
            false => assert!(error.contains(&format!("--features {name}")), "{error}"),
        }
    }
}

/// Two implementations round differently, and training multiplies the difference: after 9 steps the
/// losses still agree to a thousandth.
#[test]
fn a_run_begun_on_one_backend_ends_on_another_and_its_directory_loads_on_all() {
    let ws = Workspace::new();
    succeeds(ws.train("whole", &["--backend", "flex", "--set", "training.keep_last=9"]));
    let loss = |run: &str| valid_loss(&ws, run);
    let inputs = json!({"input_ids": [[9, 8, 7, 6, 1], [5, 1]], "labels": [[4, 3, 1], [20, 1, 0]]});
    ws.write("inputs.json", inputs.to_string());
    for backend in backends() {
        // What the run was at its first checkpoint.
        copy_folder(&ws.path("whole"), &ws.path(backend));
        fs::remove_dir_all(ws.path(backend).join("model")).unwrap();
        let checkpoints = ws.path(backend).join("checkpoints");
        for later in &names_in(&checkpoints)[1..] {
            fs::remove_dir_all(checkpoints.join(later)).unwrap();
        }
        succeeds(run(&ws, &["train", "--resume", backend, "--backend", backend]));
        let (found, expected) = (loss(backend), loss("whole"));
        assert!((found / expected - 1.0).abs() < 1e-3, "{backend}: {found} is not {expected}");

        let expected = logits(&ws, backend, "flex");
        for (found, expected) in logits(&ws, backend, backend).iter().zip(&expected) {
            assert!((found - expected).abs() < 1e-4, "{backend}: {found} is not {expected}");
        }
    }
}

/// The logits that the model of a run gives on a backend.
fn logits(ws: &Workspace, model: &str, backend: &str) -> Vec<f32> {
    let files = ["--inputs", "inputs.json", "--output", "outputs.safetensors", "--overwrite"];
    let model = ["forward", "--model", model, "--backend", backend];
    succeeds(run(ws, &[&model[..], &files].concat()));
    let bytes = fs::read(ws.path("outputs.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let logits = file.tensor("logits").unwrap().data().as_chunks::<4>().0;
    logits.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
}

#[test]
fn bf16_is_refused_by_a_backend_without_it_and_close_to_f32_on_one_with_it() {
    let ws = Workspace::new();
    let bf16 = ["--set", "training.precision=bf16"];
    let error = fails(ws.train("ndarray", &[&bf16[..], &["--backend", "ndarray"]].concat()));
    assert!(error.contains("does not compute in bf16"), "{error}");
    assert!(!ws.path("ndarray").exists());

    // Two steps: after a dozen at these rates rounding alone parts two runs by a few hundredths.
    let short = ["--set", "training.steps=2"];
    succeeds(ws.train("f32", &short));
    succeeds(ws.train("bf16", &[&bf16[..], &short].concat()));
    let loss = |run: &str| valid_loss(&ws, run);
    let (found, expected) = (loss("bf16"), loss("f32"));
    assert!((found / expected - 1.0).abs() < 0.01, "{found} is not {expected}");
    assert!(found != expected);
    let evaluate = |precision: &str| -> f64 {
        let args = ["evaluate", "--model", "f32", "--json", "--precision", precision];
        let scores: Value = serde_json::from_str(&printed(run(&ws, &args))).unwrap();
        scores["loss"].as_f64().unwrap()
    };
    let (found, expected) = (evaluate("bf16"), evaluate("f32"));
    assert!((found / expected - 1.0).abs() < 0.01 && found != expected, "{found}, {expected}");
}

/// Weights stored in bf16 are for inference: close to f32 where the backend has the type, refused where it
/// has not, and in training.
#[test]
fn weights_in_bf16_are_for_inference() {
    let ws = Workspace::new();
    let error = fails(ws.train("run", &["--set", "training.precision=bf16-weights"]));
    assert!(error.contains("training.precision must be f32 or bf16"), "{error}");
    assert!(!ws.path("run").exists());

    succeeds(ws.train("run", &[]));
    let loss = |precision: &str| -> f64 {
        let args = ["evaluate", "--model", "run", "--json", "--precision", precision];
        let scores: Value = serde_json::from_str(&printed(run(&ws, &args))).unwrap();
        scores["loss"].as_f64().unwrap()
    };
    let (found, expected) = (loss("bf16-weights"), loss("f32"));
    assert!((found / expected - 1.0).abs() < 0.005 && found != expected, "{found}, {expected}");

    let generate =
        ["generate", "--model", "run", "--precision", "bf16-weights", "a <extra_id_0> b"];
    succeeds(run(&ws, &generate));
    let error = fails(run(&ws, &[&generate[..], &["--backend", "ndarray"]].concat()));
    assert!(error.contains("does not compute in bf16"), "{error}");
}

/// The last validation loss of a run.
fn valid_loss(ws: &Workspace, run: &str) -> f64 {
    let row = rows(&ws.path(run)).into_iter().rfind(|row| row["kind"] == "valid");
    row.unwrap()["loss"].as_f64().unwrap()
}

const BENCH: [&str; 15] = [
    "bench",
    "--quiet",
    "--batch-size",
    "1",
    "--input-length",
    "9",
    "--target-length",
    "5",
    "--new-tokens",
    "4",
    "--rounds",
    "2",
    "--repeats",
    "1",
    "--models=dense,altup-k2",
];

#[test]
fn a_comparison_is_written_with_every_side_in_it() {
    let ws = Workspace::new();
    let peer = ws.write("lacks", "#!/bin/sh\necho 'error: no such model here' >&2\nexit 1\n");
    let peer = format!("other=sh {}", peer.file_name().unwrap().to_str().unwrap());
    let args = [&BENCH[..], &["--output", "results", "--peer", &peer]].concat();
    let text = printed(run(&ws, &args));
    assert!(text.contains("### tiny, decode"), "{text}");
    assert!(text.contains("- tiny dense: other failed") && text.contains("no such model here"));

    let json: Value =
        serde_json::from_slice(&fs::read(ws.path("results/comparison.json")).unwrap()).unwrap();
    let entries = json["entries"].as_array().unwrap();
    let cpus = backends().into_iter().filter(|name| *name != "wgpu");
    assert_eq!(entries.len(), 2 * cpus.count());
    for entry in entries {
        assert!((entry["measured"]["loss"].as_f64().unwrap() - 10.4).abs() < 1.0, "{entry}");
        for work in ["forward", "train", "prefill", "decode"] {
            let seconds = &entry["measured"]["measurements"][work]["seconds"];
            assert_eq!(seconds.as_array().unwrap().len(), 2, "{entry}");
        }
        let first = &entries[0]["measured"]["tokens"];
        if entry["model"] == "dense" {
            assert_eq!(&entry["measured"]["tokens"], first, "{entry}");
        }
    }
    for file in ["comparison.md", "tiny-forward.svg", "tiny-decode.svg"] {
        assert!(ws.path("results").join(file).exists(), "{file}");
    }
    let error = fails(run(&ws, &args));
    assert!(error.contains("results/comparison.json is there already"), "{error}");
}

/// A side that computes something else is never timed.
#[test]
fn a_side_with_another_loss_is_refused() {
    let ws = Workspace::new();
    let measured = json!({
        "program": "other 1.0", "device": "cpu", "threads": 1, "loss": 3.0, "measurements": {}
    });
    ws.write("wrong", format!("#!/bin/sh\necho '{measured}'\n"));
    let error = fails(run(&ws, &[&BENCH[..], &["--peer", "other=sh wrong"]].concat()));
    assert!(
        error.contains("other computes a loss of 3") && error.contains("nothing is timed"),
        "{error}"
    );

    let error = fails(run(&ws, &[&BENCH[..], &["--sizes", "giant"]].concat()));
    assert!(error.contains("of size \"giant\"") && error.contains("altup-s"), "{error}");
}

/// A driver that crashes as soon as it is loaded ends a process of its own, and is one line here.
#[cfg(all(feature = "wgpu", target_os = "linux"))]
#[test]
fn a_driver_that_crashes_is_one_line() {
    let ws = Workspace::new();
    let source = "__attribute__((constructor)) static void crash(void) { *(volatile int *)0 = 1; }";
    ws.write("driver.c", source);
    let compiled = std::process::Command::new("cc")
        .args(["-shared", "-fPIC", "-o", "driver.so", "driver.c"])
        .current_dir(ws.path(""))
        .status();
    assert!(compiled.is_ok_and(|status| status.success()), "this test needs a C compiler, `cc`");
    let library = ws.path("driver.so");
    let icd = json!({"library_path": library, "api_version": "1.3.0"});
    let manifest = json!({"file_format_version": "1.0.0", "ICD": icd});
    let manifest = ws.write("driver.json", manifest.to_string());

    let args = ["forward", "--model", "m", "--inputs", "i", "--output", "o", "--backend", "wgpu"];
    let output = ws.altup(&args).env("VK_ICD_FILENAMES", manifest).output().unwrap();
    let error = fails(output);
    assert!(error.contains("wgpu does not run on this machine: its driver ended"), "{error}");
    assert!(error.contains("segmentation fault"), "{error}");
}
