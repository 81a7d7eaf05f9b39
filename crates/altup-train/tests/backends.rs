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

#[cfg(feature = "ndarray")]
#[test]
fn bf16_is_refused_by_a_backend_without_it() {
    let ws = Workspace::new();
    let without = |output: Output| {
        let error = fails(output);
        assert!(error.contains("does not compute in bf16"), "{error}");
    };
    let ndarray = ["--backend", "ndarray"];
    without(ws.train("run", &[&ndarray[..], &["--set", "training.precision=bf16"]].concat()));
    assert!(!ws.path("run").exists());
    succeeds(ws.train("run", &["--set", "training.steps=1"]));
    let generate = ["generate", "--model", "run", "--precision", "bf16-weights", "a b"];
    without(run(&ws, &[&generate[..], &ndarray].concat()));
}

#[test]
fn bf16_is_close_to_f32() {
    let ws = Workspace::new();
    let bf16 = ["--set", "training.precision=bf16"];
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

/// Weights stored in bf16 are for inference, and close to f32 there; training refuses them.
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
    fs::remove_file(ws.path("results/comparison.json")).unwrap();
    let error = fails(run(&ws, &args));
    assert!(error.contains("results/comparison.md is there already"), "{error}");
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

/// The kernels of a layer on a GPU, ours and Burn's, so that their number can't creep up unseen.
#[cfg(feature = "wgpu")]
mod kernels {
    use super::{Workspace, printed, run};
    use altup_backend::cube::launches;
    use altup_core::AltUpConfig;
    use altup_models::{Noise, T5Config, size};
    use altup_train::bench::breakdown::{self, Part};
    use altup_train::bench::traffic::Step;
    use altup_train::bench::{BenchBatch, models};
    use burn::tensor::{Device, DeviceKind, Distribution, Tensor};
    use serde_json::Value;
    use std::fs;
    use std::sync::{Mutex, PoisonError};

    /// Counts are of the whole process: nobody else may launch meanwhile.
    static ALONE: Mutex<()> = Mutex::new(());

    fn small(config: T5Config) -> T5Config {
        T5Config {
            vocab_size: 32,
            d_model: 16,
            d_ff: 32,
            num_heads: 2,
            d_kv: 8,
            num_layers: 2,
            num_decoder_layers: Some(2),
            ..config
        }
    }

    /// Forward and backward, and why.
    type Row = ([usize; 2], &'static str);

    /// Of self-attention.
    const TO_SELF: [Row; 8] = [
        ([1, 2], "norm; backward, the gradient of γ is added up by a kernel of its own"),
        ([3, 6], "projections to queries, keys and values; two products each backward"),
        ([2, 2], "heads brought together: queries, and keys with values"),
        ([1, 2], "scores; backward anew, and the gradient of the weights"),
        ([1, 1], "softmax with bias"),
        ([1, 3], "weights times values; backward, the gradients of queries, keys and values"),
        ([1, 2], "output projection"),
        (
            [1, 4],
            "sum with the input; backward, gradients of the norm twice, of the input, of the bias",
        ),
    ];

    /// Of cross-attention.
    const TO_MEMORY: [Row; 9] = [
        ([1, 2], "norm"),
        ([3, 6], "projections; two products each backward"),
        ([1, 0], "the zero that stands for no bias"),
        ([2, 2], "heads brought together"),
        ([1, 2], "scores"),
        ([1, 1], "softmax"),
        ([1, 3], "weights times values"),
        ([1, 2], "output projection"),
        ([1, 2], "sum with the input; backward, gradients of the input and of the memory"),
    ];

    const FEED_FORWARD: [Row; 4] = [
        ([1, 2], "norm"),
        ([3, 6], "projections; two products each backward"),
        ([1, 1], "gated GELU"),
        ([1, 2], "sum with the input; backward, gradients of the norm and of the input"),
    ];

    const ALTUP: [Row; 2] = [
        (
            [1, 1],
            "p and g folded into coefficients; backward, their gradients from all groups' sums",
        ),
        (
            [1, 2],
            "the update; backward, also the gradient of the layer's block added to the state's",
        ),
    ];

    fn sum(rows: &[&[Row]]) -> [usize; 2] {
        [0, 1].map(|pass| rows.iter().copied().flatten().map(|(counts, _)| counts[pass]).sum())
    }

    /// The kernels of a forward and of a backward pass, less the one that fills the output's gradient with ones.
    fn count(
        input: impl Fn() -> Tensor<4>,
        pass: impl Fn(Tensor<4>) -> Tensor<4>,
    ) -> [Vec<&'static str>; 2] {
        // Burn may try kernels out.
        pass(input()).backward();
        let input = input();
        let device = input.device();
        // Under Burn's fusion nothing is launched before somebody waits for it.
        let finish = || device.sync().unwrap();
        finish();
        let (output, forward) = launches(|| {
            let output = pass(input);
            finish();
            output
        });
        let (_, mut backward) = launches(|| {
            let gradients = output.backward();
            finish();
            gradients
        });
        backward.remove(0);
        [forward, backward]
    }

    #[test]
    fn a_layer_launches_few_kernels() {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let device = Device::wgpu(DeviceKind::DefaultDevice).autodiff();
        let model = small(size("tiny").unwrap()).init(0, &device);
        let (encoder, decoder) = (&model.encoder.blocks[0], &model.decoder.blocks[0]);
        let altup = AltUpConfig::new(2).init(&device);
        let random = |shape: [usize; 4]| Tensor::<4>::random(shape, Distribution::Default, &device);
        let bias = random([1, 2, 8, 8]).require_grad();
        let memory = random([1, 2, 16, 16]).squeeze_dim::<3>(0).require_grad();
        let run_encoder = |x: Tensor<3>| encoder.forward(x, Some(bias.clone()), Noise::none());
        let run_decoder = |x: Tensor<3>| {
            let cache = &mut decoder.start(memory.clone());
            decoder.forward(x, Some(bias.clone()), None, cache, Noise::none())
        };
        // As between layers: no leaf of the tape.
        let state = |blocks| {
            let leaf = random([blocks, 2, 8, 16]).require_grad();
            leaf.reshape([2 * blocks, 8, 16]).reshape([blocks, 2, 8, 16])
        };
        let of_encoder: &[&[Row]] = &[&TO_SELF, &FEED_FORWARD];
        let of_decoder: &[&[Row]] = &[&TO_SELF, &TO_MEMORY, &FEED_FORWARD];
        let layers: [(&str, &dyn Fn(Tensor<3>) -> Tensor<3>, &[&[Row]]); 2] =
            [("encoder", &run_encoder, of_encoder), ("decoder", &run_decoder, of_decoder)];
        for (name, layer, rows) in layers {
            let dense = count(|| state(1), |input| layer(input.squeeze_dim(0)).unsqueeze_dim(0));
            let counts = dense.each_ref().map(Vec::len);
            assert_eq!(counts, sum(rows), "{name}, dense: {dense:#?}");
            let widened = count(|| state(2), |input| altup.forward(input, 1, layer));
            let counts = widened.each_ref().map(Vec::len);
            let expected = sum(&[rows, &[&ALTUP[..]]].concat());
            assert_eq!(counts, expected, "{name}, AltUp: {widened:#?}");
        }
        // What AltUp costs beyond a dense layer.
        let [forward, backward] = sum(&[&ALTUP]);
        assert!(forward <= 3 && backward <= 3);
    }

    /// The arithmetic of bytes goes through the kernels of each part one by one.
    #[test]
    fn the_arithmetic_is_over_the_kernels_that_are_launched() {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let device = Device::wgpu(DeviceKind::DefaultDevice).autodiff();
        for name in ["dense", "altup-k2"] {
            let config = small(models::model("tiny", name).unwrap());
            let model = config.init(0, &device);
            let lengths = [16, 8];
            let batch = BenchBatch::random(config.vocab_size, 2, lengths, 1, 0);
            let launched = breakdown::kernels(&model, &batch, &device);
            let lengths = lengths.map(|length| length as u64);
            let step = Step { config: &config, batch_size: 2, lengths };
            for part in Part::ALL {
                let (names, expected) = (&launched.parts[&part], step.kernels(part).unwrap().count);
                assert_eq!(names.len(), expected, "{name}, {part:?}: {names:#?}");
            }
            let of_parts: usize = launched.parts.values().map(Vec::len).sum();
            assert!(launched.step.len() > of_parts, "{name}: {:#?}", launched.step);
        }
    }

    #[test]
    fn a_breakdown_counts_on_a_gpu_and_on_no_cpu() {
        let ws = Workspace::new();
        let args = "bench --quiet --works breakdown --backends flex,wgpu --models altup-k2 --vocab-size 64 \
                    --batch-size 2 --input-length 16 --target-length 8 --rounds 1 --repeats 1 --output results";
        let args: Vec<&str> = args.split_whitespace().collect();
        let text = printed(run(&ws, &args));
        let table = text.split_once("### tiny, kernels and memory traffic").unwrap().1;
        assert!(table.contains("| altup-k2 | wgpu | AltUp update |"), "{text}");
        assert!(!table.contains("flex"), "{text}");
        let json = fs::read(ws.path("results/comparison.json")).unwrap();
        let json: Value = serde_json::from_slice(&json).unwrap();
        let [flex, wgpu] = &json["entries"].as_array().unwrap()[..] else { panic!("{json}") };
        assert_eq!(flex["measured"]["counted"], Value::Null);
        let counted = &wgpu["measured"]["counted"];
        let layers = models::model("tiny", "altup-k2").unwrap();
        let layers = layers.num_layers + layers.decoder_layers();
        let expected = sum(&[&ALTUP]).iter().sum::<usize>() * layers;
        let update = &counted["parts"]["alt_up"];
        assert_eq!(update["kernels"], expected, "{counted}");
        let total =
            |bytes: &Value| bytes["read"].as_u64().unwrap() + bytes["written"].as_u64().unwrap();
        let traffic = &update["traffic"];
        assert!(total(&traffic["moved"]) > total(&traffic["least"]), "{counted}");
        assert!(counted["step_kernels"].as_u64().unwrap() > 100, "{counted}");
    }
}
