//! `altup study` from end to end.

mod support;

use altup_train::config::RunConfig;
use altup_train::progress::{Progress, ProgressMode};
use altup_train::run_data::{DataCache, RunData};
use altup_train::study::StudyPlan;
use altup_train::study::plan::Overrides;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use support::{Workspace, fails, losses, names_in, succeeds};

/// Two variants of two seeds, a matter of milliseconds each.
const STUDY: &str = r#"
name = "made"
title = "A made study"
question = "Does AltUp learn anything from made words?"
baseline = "dense"
seeds = [3, 5]
budget = { steps = 4 }
metrics = ["valid_loss", "text_accuracy"]
measure = { batch_sizes = [1], train_batch_size = 1, input_length = 16, target_length = 8, rounds = 2, repeats = 1 }

[run]
model = { size = "tiny", d_model = 16, d_kv = 8, num_heads = 2, d_ff = 32, num_layers = 2 }
data = { train = ["corpus.txt"], vocab_size = 300, input_length = 32 }
schedule = { warmup_steps = 100 }
training = { batch_size = 4, log_every = 1, eval_every = 2, eval_examples = 4, final_eval_examples = 8, checkpoint_every = 1 }

[[variants]]
name = "dense"

[[variants]]
name = "altup2"
label = "AltUp <2>"
run = { model = { altup = { num_blocks = 2 } } }

[smoke]
seeds = [1]
budget = { steps = 2 }
"#;

/// What also fine-tunes its models.
const FINE_TUNING: &str = r#"
[fine_tuning]
tasks = ["sst2", "mrpc"]
steps = 4
seeds = [0, 1]
run = { answers = { by = "ranking" }, training = { batch_size = 2, log_every = 1, eval_every = 4, checkpoint_every = 2 } }
by_task = { mrpc = { training = { steps = 8 } } }

[smoke]"#;

const RUNS: [&str; 4] =
    ["tiny-dense-seed3", "tiny-altup2-seed3", "tiny-dense-seed5", "tiny-altup2-seed5"];

fn workspace() -> Workspace {
    let workspace = Workspace::new();
    workspace.write("study.toml", STUDY);
    workspace
}

fn study(workspace: &Workspace, extra: &[&str]) -> Command {
    let command = ["study", "study.toml", "--output", "out"];
    workspace.altup(&[&command[..], extra].concat())
}

fn run_study(workspace: &Workspace, extra: &[&str]) -> Output {
    study(workspace, extra).output().unwrap()
}

fn results(workspace: &Workspace) -> Value {
    let text = fs::read_to_string(workspace.path("out/results.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn run_folder(workspace: &Workspace, name: &str) -> PathBuf {
    workspace.path("out/runs").join(name)
}

fn errors(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn wait_for(what: impl Fn() -> bool) {
    let started = Instant::now();
    while !what() {
        assert!(started.elapsed() < Duration::from_secs(120), "it never happens");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_study_trains_its_runs_measures_them_and_reports() {
    let workspace = workspace();
    let output = succeeds(run_study(&workspace, &["--jobs", "2"]));
    let lines = errors(&output);
    let started: Vec<&str> =
        lines.lines().filter_map(|line| line.strip_prefix("started ")).collect();
    assert_eq!(started, RUNS, "all variants of a seed before the next seed:\n{lines}");
    assert!(lines.contains("4 of 4 runs done"), "{lines}");

    let results = results(&workspace);
    let runs = results["runs"].as_array().unwrap();
    let names: Vec<&str> = runs.iter().map(|run| run["name"].as_str().unwrap()).collect();
    assert_eq!(names, RUNS);
    for run in runs {
        let rows = losses(&run_folder(&workspace, run["name"].as_str().unwrap()));
        let last = rows.iter().rfind(|row| row["kind"] == "valid").unwrap();
        assert_eq!(run["valid_loss"], last["loss"]);
        assert_eq!(run["text"], last["text"]);
        assert_eq!(run["steps"], 4);
        assert_eq!(run["data"], runs[0]["data"], "the same text");
        let layers = run["coefficients"].as_array().unwrap();
        assert_eq!(layers.len(), if run["variant"] == "altup2" { 4 } else { 0 });
    }
    let loss = |name: &str| {
        let of = runs.iter().find(|run| run["name"] == name).unwrap();
        of["valid_loss"].as_f64().unwrap()
    };
    let cells = results["cells"].as_array().unwrap();
    let difference = &cells[1]["metrics"]["valid_loss"]["difference"];
    assert_eq!(difference["pairs"], 2);
    let expected = (loss(RUNS[1]) - loss(RUNS[0]) + loss(RUNS[3]) - loss(RUNS[2])) / 2.0;
    assert!((difference["mean"].as_f64().unwrap() - expected).abs() < 1e-12);
    let times = cells[1]["times"].as_array().unwrap();
    let works: Vec<&str> = times.iter().map(|times| times["work"].as_str().unwrap()).collect();
    assert_eq!(works, ["forward", "prefill", "train"]);
    assert_eq!(
        results["latency"]["timed"].as_array().unwrap().len(),
        2 * 2 * 3,
        "models, rounds, works"
    );

    let html = fs::read_to_string(workspace.path("out/report.html")).unwrap();
    assert!(html.contains("AltUp &lt;2&gt;") && html.contains("(2 seeds)"));
    assert!(
        !html.replace("http://www.w3.org/2000/svg", "").contains("http"),
        "it needs no other file"
    );
    let markdown = fs::read_to_string(workspace.path("out/report.md")).unwrap();
    for line in markdown.lines().filter_map(|line| line.split_once("](charts/")) {
        let chart = workspace.path("out/charts").join(line.1.trim_end_matches(')'));
        assert!(fs::read_to_string(&chart).unwrap().starts_with("<svg"), "{}", chart.display());
    }
    let charts = names_in(&workspace.path("out/charts"));
    for name in ["loss.svg", "difference.svg", "latency-batch1.svg", "coefficients-tiny-altup2.svg"]
    {
        assert!(charts.iter().any(|chart| chart == name), "{name} in {charts:?}");
    }
    let csv = fs::read_to_string(workspace.path("out/results.csv")).unwrap();
    let columns: Vec<usize> = csv.lines().map(|line| line.split(',').count()).collect();
    assert_eq!(columns, [19; 5]);

    // What another program had begun to measure is neither gone on with nor put in the place of what there is.
    let [whole, so_far] =
        ["out/latency.json", "out/latency.partial.json"].map(|name| workspace.path(name));
    let measured = fs::read_to_string(&whole).unwrap();
    assert!(!so_far.exists());
    fs::write(&so_far, measured.replace("\"backend\": \"flex\"", "\"backend\": \"cuda\"")).unwrap();
    let output = succeeds(run_study(&workspace, &["--only", "measure"]));
    assert!(!errors(&output).contains("round 1 of 2"), "{}", errors(&output));
    assert!(fs::read_to_string(&whole).unwrap() == measured && !so_far.exists());
    // A program that has half of it goes on from there.
    let mut half: Value = serde_json::from_str(&measured).unwrap();
    let timed = half["timed"].as_array_mut().unwrap();
    timed.retain(|timed| timed["round"] == 0);
    fs::rename(&whole, &so_far).unwrap();
    fs::write(&so_far, half.to_string()).unwrap();
    let output = succeeds(run_study(&workspace, &["--only", "measure"]));
    let notes = errors(&output);
    assert!(!notes.contains("round 1 of 2") && notes.contains("round 2 of 2"), "{notes}");
    assert!(whole.exists() && !so_far.exists());
}

#[test]
fn what_is_finished_is_not_repeated() {
    let workspace = workspace();
    succeeds(run_study(&workspace, &["--only", "runs"]));
    let written = |name: &str| {
        let path = run_folder(&workspace, name).join("model/model.safetensors");
        fs::metadata(path).unwrap().modified().unwrap()
    };
    let before = RUNS.map(written);
    fs::remove_dir_all(run_folder(&workspace, RUNS[2])).unwrap();
    let output = succeeds(run_study(&workspace, &["--only", "runs", "--json"]));
    assert!(errors(&output).contains(&format!("started {}\n", RUNS[2])));
    let started = errors(&output).lines().filter(|line| line.starts_with("started ")).count();
    assert_eq!(started, 1, "{}", errors(&output));
    for (number, name) in RUNS.iter().enumerate().filter(|(number, _)| *number != 2) {
        assert_eq!(written(name), before[number], "{name}");
    }
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(summary["finished"], 4);
    assert_eq!(summary["failed"], serde_json::json!([]));
}

/// The runs write down where the model is and the tokenizer that is its: the study knows them again.
#[test]
fn a_study_that_begins_with_a_model_goes_on() {
    let workspace = workspace();
    let keys = "vocab_size = 300, input_length = 32";
    let (head, tail) = STUDY.split_once("model = { size").unwrap();
    let (_, tail) = tail.split_once('\n').unwrap();
    let study = format!("{head}model = {{ init = \"base/model\" }}\n{tail}");
    let (study, variant) = study.split_once("\n[[variants]]\nname = \"altup2\"").unwrap();
    let smoke = variant.split_once("[smoke]").unwrap().1;
    assert!(study.contains(keys));
    let study = study.replace(keys, "input_length = 32");
    workspace.write("plans/study.toml", format!("{study}\n[smoke]{smoke}"));
    workspace.write("plans/corpus.txt", fs::read(workspace.path("corpus.txt")).unwrap());
    let base = "train --output plans/base --train corpus.txt --steps 1 --batch-size 2 --set data.vocab_size=300 --quiet";
    succeeds(workspace.altup(&base.split(' ').collect::<Vec<_>>()).output().unwrap());
    let run = || {
        let command = ["study", "plans/study.toml", "--output", "out", "--only", "runs"];
        errors(&succeeds(workspace.altup(&command).output().unwrap()))
    };
    assert!(run().contains("started tiny-dense-seed3\n"));
    let again = run();
    assert!(!again.contains("started "), "{again}");
}

#[test]
fn a_finished_run_needs_no_model() {
    let workspace = workspace();
    succeeds(run_study(&workspace, &[]));
    let before = results(&workspace);
    for name in RUNS {
        for part in ["model", "checkpoints"] {
            fs::remove_dir_all(run_folder(&workspace, name).join(part)).unwrap();
        }
    }
    fs::remove_file(workspace.path("out/results.json")).unwrap();
    // The text lies elsewhere by now.
    workspace.write("moved/corpus.txt", fs::read(workspace.path("corpus.txt")).unwrap());
    let moved = ["--train", "moved/corpus.txt"];
    let output = succeeds(run_study(&workspace, &moved));
    assert!(!errors(&output).contains("started "), "{}", errors(&output));
    assert_eq!(results(&workspace), before, "nothing trained or measured again");
    // Another run may be compared if it has the same tokens.
    let text = fs::read_to_string(workspace.path("corpus.txt")).unwrap();
    workspace.write("other.txt", text + "\nMore of it.\n");
    fs::remove_dir_all(run_folder(&workspace, RUNS[3])).unwrap();
    for train in ["other.txt", "moved/corpus.txt"] {
        let output = run_study(&workspace, &["--train", train, "--only", "runs"]);
        let is_other = train == "other.txt";
        assert_eq!(output.status.success(), !is_other, "{}", errors(&output));
        // Before any time is spent on it.
        assert_eq!(errors(&output).contains(&format!("started {}\n", RUNS[3])), !is_other);
        let said = format!("{} would not be trained on what {} was trained on", RUNS[3], RUNS[0]);
        assert_eq!(errors(&output).contains(&said), is_other, "{}", errors(&output));
        assert_eq!(errors(&output).contains("the training text has changed"), is_other);
    }
    let run = RUNS[1];
    let result = run_folder(&workspace, run).join("result.json");
    let kept = fs::read_to_string(&result).unwrap();

    // Of a run that had the folder before.
    let loss = serde_json::from_str::<Value>(&kept).unwrap()["valid_loss"].to_string();
    fs::write(&result, kept.replacen(&format!("\"valid_loss\": {loss}"), "\"valid_loss\": 1.5", 1))
        .unwrap();
    let message = fails(run_study(&workspace, &["--only", "report"]));
    assert!(message.contains(&format!("cannot use the model of the run {run}")), "{message}");
    fs::write(&result, kept).unwrap();

    // Runs on another backend would not be compared with these.
    fs::remove_dir_all(run_folder(&workspace, RUNS[3])).unwrap();
    let record = run_folder(&workspace, RUNS[0]).join("run.json");
    let text = fs::read_to_string(&record).unwrap();
    fs::write(&record, text.replace("\"backend\": \"flex\"", "\"backend\": \"cuda:1\"")).unwrap();
    let message = fails(run_study(&workspace, &["--only", "runs"]));
    let said = format!("{} would be computed by flex, arithmetic ", RUNS[3]);
    assert!(message.contains(&said), "{message}");
    assert!(message.contains(&format!(", {} was by cuda, arithmetic ", RUNS[0])), "{message}");

    let kept = run_folder(&workspace, RUNS[1]).join("result.json");
    fs::write(&kept, "{}").unwrap();
    let message = fails(run_study(&workspace, &["--only", "report"]));
    assert!(message.contains("altup2-seed3/result.json"), "{message}");
    assert!(message.contains("missing field `name`"), "{message}");
}

/// Long enough to be interrupted.
fn long_study(workspace: &Workspace) {
    workspace.write(
        "study.toml",
        STUDY.replace("steps = 4 }", "steps = 150 }").replace("eval_every = 2", "eval_every = 50"),
    );
}

fn interrupt_and_go_on(signal: &str) -> Output {
    let workspace = workspace();
    long_study(&workspace);
    succeeds(
        workspace
            .altup(&["study", "study.toml", "--output", "whole", "--only", "runs", "--quiet"])
            .output()
            .unwrap(),
    );

    let mut interrupted = study(&workspace, &["--only", "runs"]);
    let child = interrupted.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // The second run is under way.
    let checkpoints = run_folder(&workspace, RUNS[1]).join("checkpoints");
    let has_checkpoint = || {
        let entries = fs::read_dir(&checkpoints).into_iter().flatten().flatten();
        entries.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with("step-"))
    };
    wait_for(has_checkpoint);
    let pid = child.id().to_string();
    assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert!(!output.status.success());
    assert!(run_folder(&workspace, RUNS[0]).join("summary.json").exists());
    assert!(!run_folder(&workspace, RUNS[3]).join("summary.json").exists());

    let again = succeeds(run_study(&workspace, &["--only", "runs"]));
    let lines = errors(&again);
    assert!(!lines.contains(&format!("started {}", RUNS[0])), "{lines}");
    assert!(lines.contains(&format!("started {} after step ", RUNS[1])), "{lines}");
    for name in RUNS {
        let whole = workspace.path("whole/runs").join(name);
        assert_eq!(losses(&run_folder(&workspace, name)), losses(&whole), "{name}");
    }
    output
}

#[cfg(target_os = "linux")]
#[test]
fn a_study_that_was_killed_goes_on_where_its_runs_were() {
    interrupt_and_go_on("-KILL");
}

#[cfg(unix)]
#[test]
fn a_study_that_is_told_to_stop_saves_its_runs_and_says_how_to_go_on() {
    let output = interrupt_and_go_on("-TERM");
    let lines = errors(&output);
    assert!(lines.contains(&format!("stopped {}", RUNS[1])), "{lines}");
    let how = "stopped before the study was done: the same command goes on\n";
    assert!(lines.ends_with(how), "{lines}");
    assert_eq!(output.status.code(), Some(75));
}

#[test]
fn a_run_that_fails_is_named_and_the_others_go_on() {
    let workspace = workspace();
    let diverges = "name = \"wild\"\nrun = { optimizer = { kind = \"adamw\", learning_rate = 1e30 } }\n\n[smoke]";
    workspace.write("study.toml", STUDY.replace("[smoke]", &format!("[[variants]]\n{diverges}")));
    let output = run_study(&workspace, &["--only", "runs", "--quiet"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stdout).contains("4 of 6 runs finished"));
    let message = errors(&output);
    assert!(message.starts_with("error: 2 of 6 runs failed: tiny-wild-seed3: "), "{message}");
    assert!(message.contains("diverged"), "{message}");
    let results = results(&workspace);
    assert_eq!(results["runs"].as_array().unwrap().len(), 4);
    assert_eq!(results["missing"], serde_json::json!(["tiny-wild-seed3", "tiny-wild-seed5"]));
    let report = fs::read_to_string(workspace.path("out/report.md")).unwrap();
    assert!(report.contains("Not finished: tiny-wild-seed3, tiny-wild-seed5."));
    // A reader of the report must know that a mean is of those that didn't diverge, in a later call too.
    succeeds(run_study(&workspace, &["--only", "report", "--quiet"]));
    let report = fs::read_to_string(workspace.path("out/report.md")).unwrap();
    assert!(report.contains("Failed, and in no mean: tiny-wild-seed3: "), "{report}");
    let reason = self::results(&workspace)["failed"]["tiny-wild-seed5"].to_string();
    assert!(reason.contains("diverged"), "{reason}");
}

/// Of runs that are not comparable nothing is reported, and nothing is told of what is no longer the study's.
#[test]
fn what_was_computed_otherwise_is_not_compared() {
    let workspace = workspace();
    succeeds(run_study(&workspace, &["--quiet"]));
    let charts = workspace.path("out/charts");
    fs::write(charts.join("loss-of-another.svg"), "").unwrap();
    succeeds(run_study(&workspace, &["--only", "report", "--quiet"]));
    assert!(!charts.join("loss-of-another.svg").exists());
    assert!(charts.join("loss.svg").exists());

    // Its time was that of two blocks.
    let times = |results: &Value| results["cells"][1]["times"].as_array().unwrap().len();
    assert_eq!(times(&results(&workspace)), 3);
    workspace.write("study.toml", STUDY.replace("num_blocks = 2 }", "num_blocks = 3 }"));
    succeeds(run_study(&workspace, &["--only", "runs", "--quiet", "--prune"]));
    assert_eq!(times(&results(&workspace)), 0);

    let result = run_folder(&workspace, RUNS[0]).join("result.json");
    let kept = fs::read_to_string(&result).unwrap();
    let other = kept.replace("\"arithmetic\": \"flex, ", "\"arithmetic\": \"vulkan:0, ");
    assert_ne!(other, kept);
    fs::write(&result, other).unwrap();
    let message = fails(run_study(&workspace, &["--only", "report", "--quiet"]));
    assert!(message.contains(", tiny-dense-seed3 by vulkan:0, arithmetic "), "{message}");
    assert!(message.contains(" was computed by flex, "), "{message}");
}

#[test]
fn a_result_of_before_the_text_was_scored_apart_lacks_these_figures_alone() {
    let workspace = workspace();
    succeeds(run_study(&workspace, &["--only", "runs", "--quiet"]));
    let kept = run_folder(&workspace, RUNS[0]).join("result.json");
    let mut result: Value = serde_json::from_slice(&fs::read(&kept).unwrap()).unwrap();
    assert!(result.as_object_mut().unwrap().remove("text").is_some());
    fs::write(&kept, result.to_string()).unwrap();
    succeeds(run_study(&workspace, &["--only", "report", "--quiet"]));
    let results = results(&workspace);
    let counts = |metric: &str| {
        let [dense, altup] = [0, 1].map(|cell| &results["cells"][cell]["metrics"][metric]);
        [&dense["spread"]["count"], &altup["spread"]["count"], &altup["difference"]["pairs"]]
            .map(|count| count.as_u64().unwrap())
    };
    assert_eq!(counts("valid_loss"), [2, 2, 2]);
    assert_eq!(counts("text_accuracy"), [1, 2, 1]);
}

#[test]
fn a_changed_study_keeps_what_is_unchanged_and_refuses_the_rest_by_name() {
    let workspace = workspace();
    succeeds(run_study(&workspace, &["--only", "runs", "--quiet"]));
    let dense = run_folder(&workspace, RUNS[0]).join("model/model.safetensors");
    let before = fs::metadata(&dense).unwrap().modified().unwrap();

    // Another AltUp, and one seed less.
    let changed = STUDY.replace("num_blocks = 2 }", "num_blocks = 3 }").replace("[3, 5]", "[3]");
    workspace.write("study.toml", changed);
    let message = fails(run_study(&workspace, &["--only", "runs", "--quiet"]));
    for words in [
        "tiny-altup2-seed3 was run with model.altup.num_blocks (2 → 3)",
        "tiny-altup2-seed5 is not in the study",
        "tiny-dense-seed5 is not in the study",
        "--prune",
    ] {
        assert!(message.contains(words), "{message}");
    }
    assert!(!message.contains("tiny-dense-seed3"), "{message}");
    assert_eq!(names_in(&workspace.path("out/runs")).len(), 4, "nothing is removed unasked");
    let other_backend = ["--only", "runs", "--quiet", "--prune", "--backend", "ndarray"];
    let message = fails(run_study(&workspace, &other_backend));
    assert!(message.contains("would be computed by ndarray, "), "{message}");
    assert_eq!(names_in(&workspace.path("out/runs")).len(), 4, "nor for a study that is refused");
    // Whose runs all are to go.
    let slower =
        ["--prune", "--quiet", "--set", "optimizer.learning_rate=0.5", "--train", "missing.txt"];
    let message = fails(run_study(&workspace, &slower));
    assert!(message.contains("missing.txt"), "{message}");
    assert_eq!(names_in(&workspace.path("out/runs")).len(), 4, "nor without a text");

    succeeds(run_study(&workspace, &["--only", "runs", "--quiet", "--prune"]));
    assert_eq!(names_in(&workspace.path("out/runs")), ["tiny-altup2-seed3", "tiny-dense-seed3"]);
    assert_eq!(fs::metadata(&dense).unwrap().modified().unwrap(), before, "the dense run is kept");

    // Where none is finished, those that have begun go on as they began.
    for name in names_in(&workspace.path("out/runs")) {
        fs::remove_file(run_folder(&workspace, &name).join("summary.json")).unwrap();
    }
    let message = fails(run_study(&workspace, &["--only", "runs", "--backend", "ndarray"]));
    assert!(message.contains("would be computed by ndarray, "), "{message}");
}

#[test]
fn a_folder_that_is_no_studys_is_left_alone() {
    let workspace = workspace();
    workspace.write("out/thesis.txt", "years of work");
    let message = fails(run_study(&workspace, &["--prune"]));
    assert!(message.contains("out is not the folder of a study"), "{message}");
    assert_eq!(names_in(&workspace.path("out")), ["thesis.txt"]);
}

#[test]
fn a_dry_run_says_what_would_be_run_and_writes_nothing() {
    let workspace = workspace();
    let output = succeeds(workspace.altup(&["study", "study.toml", "--dry-run"]).output().unwrap());
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 5, "{text}");
    assert!(lines[1].starts_with("to run   tiny-dense-seed3  4 steps  "), "{text}");
    assert!(!workspace.path("out").exists());
    let smoke = ["study", "study.toml", "--dry-run", "--smoke"];
    let output = succeeds(workspace.altup(&smoke).output().unwrap());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("(smoke): 2 runs") && text.contains("tiny-altup2-seed1  2 steps"),
        "{text}"
    );
}

#[test]
fn a_study_that_makes_no_sense_is_refused_before_anything_runs() {
    let workspace = workspace();
    let refused = |from: &str, to: &str, words: &str| {
        let study = STUDY.replacen(from, to, 1);
        assert_ne!(study, STUDY, "{from}");
        workspace.write("study.toml", study);
        let message = fails(run_study(&workspace, &[]));
        assert!(message.contains("study.toml") && message.contains(words), "{words}: {message}");
    };
    refused("seeds = [3, 5]", "seedz = [3, 5]", "line 6: unknown field `seedz`");
    refused("batch_size = 4", "batchsize = 4", "line 15: unknown field `batchsize`");
    refused(
        "{ num_blocks = 2 }",
        "{ num_blocks = 2, blocks = 2 }",
        "line 23: unknown field `blocks`",
    );
    refused("steps = 4", "steps = \"four\"", "line 7: invalid type");
    refused("seeds = [3, 5]", "seeds = [3, 3]", "seeds of tiny-dense must be different numbers");
    refused(
        "baseline = \"dense\"",
        "baseline = \"dence\"",
        "baseline must be one of the variants dense, altup2",
    );
    refused("name = \"altup2\"", "name = \"dense\"", "variants[1].name \"dense\" is another's");
    refused("name = \"altup2\"", "name = \"../up\"", "variants[1].name must be a word");
    refused("steps = 4 }", "steps = 4, tokens = 100 }", "budget must be steps or tokens, not both");
    refused(
        "steps = 4 }",
        "steps = 4, multiples = [2, 2] }",
        "budget.multiples must be different numbers",
    );
    refused("repeats = 1", "repeats = 0", "measure.repeats must be at least 1, not 0");
    refused(
        "label = \"AltUp <2>\"",
        "sizes = [\"huge\"]",
        "variants.altup2.sizes \"huge\" is no size",
    );
    let contrast =
        |weights: &str| format!("[[contrasts]]\nlabel = \"a\"\nweights = {weights}\n\n[smoke]");
    refused("[smoke]", &contrast("{ dense = 1, altup = -1 }"), "weights \"altup\" is no variant");
    refused(
        "[smoke]",
        &contrast("{ dense = 1, altup2 = -0.5 }"),
        "weights must come to 0, not 0.5",
    );
    refused("[smoke]", &contrast("{ dense = nan, altup2 = 1 }"), "weights must come to 0, not NaN");
    // One folder for two runs, and one time for two models.
    let study = STUDY.replace("steps = 4 }", "steps = 4, multiples = [1, 2] }");
    workspace.write("study.toml", study.replace("\"altup2\"", "\"dense-2x\""));
    let message = fails(run_study(&workspace, &[]));
    assert!(message.contains("make two runs tiny-dense-2x-seed3"), "{message}");
    let sizes = "[[sizes]]\nname = \"a\"\n\n[[sizes]]\nname = \"a-b\"\n\n[[variants]]\nname = \"b-dense\"\n\n[smoke]";
    workspace.write("study.toml", STUDY.replace("[smoke]", sizes));
    let message = fails(run_study(&workspace, &[]));
    assert!(message.contains("make two "), "{message}");
    assert!(!workspace.path("out").exists());
}

#[test]
fn runs_that_can_not_be_compared_are_refused() {
    let workspace = workspace();
    let refused = |altup: &str, words: &str| {
        let study = STUDY.replace("{ model = { altup = { num_blocks = 2 } } }", altup);
        workspace.write("study.toml", study);
        let message = fails(run_study(&workspace, &[]));
        assert!(message.contains(words), "{words}: {message}");
        assert!(!workspace.path("out/runs").exists());
    };
    refused(
        "{ model = { altup = { num_blocks = 0 } } }",
        "the run tiny-altup2-seed3 can't be: model.altup.num_blocks must be between 1 and 1024, not 0",
    );
    refused(
        "{ data = { input_length = 64 } }",
        "they don't see the same batches: data.input_length (32 → 64)",
    );
    refused("{ training = { batch_size = 8 } }", "training.batch_size (4 → 8)");
    refused(
        "{ training = { precision = \"bf16\" } }",
        "training.precision must be one for all: tiny-dense-seed3 has f32, tiny-altup2-seed3 has bf16",
    );
    refused("{ seed = 4 }", "variants.altup2.run.seed can't be given");
    refused("{ training = { steps = 9 } }", "variants.altup2.run.training.steps can't be given");
    let refused = fails(run_study(&workspace, &["--set", "training.steps=9"]));
    assert!(refused.contains("--set training.steps can't be given"), "{refused}");
    workspace.write("study.toml", STUDY.split("[smoke]").next().unwrap());
    let refused = fails(run_study(&workspace, &["--smoke"]));
    assert!(refused.contains("smoke is missing"), "{refused}");
}

#[test]
fn a_text_that_is_not_there_is_one_error_before_any_run() {
    let workspace = workspace();
    let refused = fails(run_study(&workspace, &["--valid", "missing.txt"]));
    assert!(refused.contains("cannot run tiny-dense-seed3: no data at"), "{refused}");
    assert!(refused.contains("missing.txt"), "{refused}");
    assert_eq!(refused.matches("missing.txt").count(), 1, "{refused}");
    assert!(!workspace.path("out/runs").exists());

    // Nor is anything removed for it that another study has left.
    let left = run_folder(&workspace, "tiny-another-seed3");
    fs::create_dir_all(&left).unwrap();
    fails(run_study(&workspace, &["--valid", "missing.txt", "--prune"]));
    assert!(left.exists());
}

#[test]
fn a_budget_of_tokens_is_rounded_up_to_steps() {
    let workspace = workspace();
    // Inputs of 32 and targets of 8 tokens, 4 examples a step: 160 tokens.
    for (tokens, steps) in [(1, 1), (160, 1), (161, 2), (1600, 10)] {
        workspace.write("study.toml", STUDY.replace("steps = 4", &format!("tokens = {tokens}")));
        let plan = StudyPlan::read(&workspace.path("study.toml"), &Overrides::default()).unwrap();
        assert_eq!(plan.runs[0].config.training.steps, steps, "{tokens} tokens");
    }
}

/// What is left of a study is estimated by it. Beside 32 inputs are 8 targets by span corruption, and up to 32 in place of 8.
#[test]
fn a_run_costs_what_the_examples_of_its_objective_do() {
    let workspace = workspace();
    let cost = |study: &str| {
        workspace.write("study.toml", study);
        let plan = StudyPlan::read(&workspace.path("study.toml"), &Overrides::default()).unwrap();
        plan.runs[0].cost()
    };
    let objective = |name: &str| {
        STUDY.replace(
            "input_length = 32 }",
            &format!("input_length = 32, objective = \"{name}\" }}"),
        )
    };
    let span_corruption = cost(STUDY);
    assert!(cost(&objective("prefix_lm")) > 1.5 * span_corruption);
    assert!(cost(&objective("fixed_prefix_lm")) > cost(&objective("prefix_lm")));
    assert_eq!(cost(&objective("ul2")), span_corruption);
}

/// A fingerprint of the first batches that a run trains on.
fn batches_seen(workspace: &Workspace, config: &RunConfig) -> String {
    let progress = Progress::new(ProgressMode::Quiet, 1, 0);
    let cache = DataCache::new(&workspace.path("cache"));
    let data = RunData::prepare(config, None, &cache, &progress).unwrap();
    let size = config.training.batch_size;
    let batches = (0..20).map(|number| data.train.batch(number * size as u64, size));
    batches.map(|batch| format!("{:?} {:?}\n", batch.input_ids, batch.labels)).collect()
}

#[test]
fn variants_of_a_seed_see_the_same_batches_in_the_same_order() {
    let workspace = workspace();
    let plan = StudyPlan::read(&workspace.path("study.toml"), &Overrides::default()).unwrap();
    let seen: Vec<String> =
        plan.runs.iter().map(|run| batches_seen(&workspace, &run.config)).collect();
    assert_eq!(plan.runs[0].seed, plan.runs[1].seed);
    assert!(seen[0] == seen[1], "dense and AltUp of seed 3");
    assert!(seen[2] == seen[3], "dense and AltUp of seed 5");
    assert!(seen[0] != seen[2], "two seeds");
}

#[test]
fn every_shipped_study_runs_on_its_smoke_budget() {
    let folder = Path::new("../../configs/studies");
    let names = names_in(folder);
    let expected = [
        "budget",
        "coefficients",
        "encoder",
        "experts",
        "learning-rate-by-size",
        "learning-rate",
        "t5-vocabulary",
        "widths",
    ];
    assert_eq!(names, expected.map(|name| format!("{name}.toml")));
    let workspace = Workspace::new();
    for name in &names {
        let file = fs::canonicalize(folder.join(name)).unwrap();
        let plan = StudyPlan::read(&file, &Overrides::default()).unwrap();
        assert!(plan.expected.contains("two cores"), "{name} says its time");
        let output = workspace
            .altup(&["study", file.to_str().unwrap(), "--smoke", "--output", name, "--quiet"])
            .args(["--train", "corpus.txt", "--jobs", "2"])
            .output()
            .unwrap();
        succeeds(output);
        let text = fs::read_to_string(workspace.path(name).join("results.json")).unwrap();
        let results: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(results["missing"], serde_json::json!([]), "{name}");
        assert!(workspace.path(name).join("report.html").exists(), "{name}");
    }
}

/// A study of runs whose models are fine-tuned on tasks of made rows, and nothing that takes longer.
fn fine_tuning_study(workspace: &Workspace) {
    let study = STUDY.replace("rounds = 2", "rounds = 0").replace("\n[smoke]", FINE_TUNING);
    workspace.write("study.toml", study);
    for (folder, split) in
        [("SST-2", "train"), ("SST-2", "dev"), ("MRPC", "train"), ("MRPC", "dev")]
    {
        let rows = made_rows(folder, if split == "train" { 12 } else { 9 });
        workspace.write(&format!("glue/{folder}/{split}.tsv"), rows);
    }
}

fn made_rows(folder: &str, count: usize) -> String {
    let mut rows = String::from(match folder {
        "MRPC" => "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n",
        _ => "sentence\tlabel\n",
    });
    for number in 0..count {
        // Two of three have the first label.
        let label = usize::from(number % 3 == 0);
        let word = ["river", "stone", "light"][number % 3];
        rows.push_str(&match folder {
            "MRPC" => format!("{label}\t{number}\t{number}\tthe {word}\tthe {word} again\n"),
            _ => format!("the {word} of morning {number}\t{label}\n"),
        });
    }
    rows
}

const FINE_TUNE: [&str; 3] = ["--task-data", "glue", "--quiet"];

/// The folders of the fine-tunings, and when each of their models was written.
fn fine_tuned(workspace: &Workspace) -> Vec<(PathBuf, std::time::SystemTime)> {
    let mut found = Vec::new();
    for run in RUNS {
        let folder = run_folder(workspace, run).join("fine-tuning");
        for name in names_in(&folder) {
            let path = folder.join(name);
            let model = fs::metadata(path.join("model/model.safetensors")).unwrap();
            found.push((path, model.modified().unwrap()));
        }
    }
    found
}

#[test]
fn the_models_of_a_study_are_fine_tuned_on_its_tasks() {
    let workspace = workspace();
    fine_tuning_study(&workspace);
    let dry_run = [&FINE_TUNE[..], &["--dry-run"]].concat();
    let planned = succeeds(run_study(&workspace, &dry_run));
    let planned = String::from_utf8(planned.stdout).unwrap();
    assert_eq!(planned.lines().count(), 1 + 4 + 4 * 2 * 2, "{planned}");
    assert!(planned.contains("to run   tiny-dense-seed3/mrpc-seed1  8 steps\n"), "{planned}");

    let output = succeeds(run_study(&workspace, &[&FINE_TUNE[..], &["--json"]].concat()));
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(summary["fine_tunings"], serde_json::json!({"planned": 16, "finished": 16}));
    let folder = run_folder(&workspace, RUNS[1]).join("fine-tuning");
    assert_eq!(names_in(&folder), ["mrpc-seed0", "mrpc-seed1", "sst2-seed0", "sst2-seed1"]);

    // A score is the mean over the seeds of the means of metrics.
    let results = results(&workspace);
    let read = |run: &str, fine_tuning: &str| -> Value {
        let path = run_folder(&workspace, run).join("fine-tuning").join(fine_tuning);
        serde_json::from_slice(&fs::read(path.join("tasks/scores.json")).unwrap()).unwrap()
    };
    let scores = |run: &str, task: &str| -> Vec<f64> {
        let of_seed =
            |seed| read(run, &format!("{task}-seed{seed}"))["mean_score"].as_f64().unwrap();
        (0..2).map(of_seed).collect()
    };
    let mut expected = Vec::new();
    for (number, run) in RUNS.iter().enumerate() {
        let found = &results["runs"][number]["tasks"];
        for (place, task) in ["sst2", "mrpc"].iter().enumerate() {
            let mean = scores(run, task).iter().sum::<f64>() / 2.0;
            let figures = &found[place];
            assert_eq!(figures["task"], *task);
            assert!((figures["score"].as_f64().unwrap() - mean).abs() < 1e-12, "{figures}");
            assert_eq!(figures["seeds"], serde_json::json!([0, 1]));
            assert_eq!(figures["examples"], 9);
            expected.push(mean);
        }
        // Six of nine have the first label.
        assert!((found[0]["majority_score"].as_f64().unwrap() - 6.0 / 9.0).abs() < 1e-12);
    }
    let altup = &results["cells"][1]["fine_tuned"];
    let difference = &altup["tasks"]["sst2"]["difference"];
    let by_hand = (expected[2] - expected[0] + expected[6] - expected[4]) / 2.0;
    assert_eq!(difference["pairs"], 2);
    assert!((difference["mean"].as_f64().unwrap() - by_hand).abs() < 1e-12, "{difference}");
    let mean = &altup["mean"]["spread"]["mean"];
    let by_hand = (expected[2] + expected[3] + expected[6] + expected[7]) / 4.0;
    assert!((mean.as_f64().unwrap() - by_hand).abs() < 1e-12, "{mean}");

    let csv = fs::read_to_string(workspace.path("out/results.csv")).unwrap();
    assert!(csv.lines().next().unwrap().ends_with(",sst2_accuracy,mrpc_accuracy,mrpc_f1"), "{csv}");
    assert!(csv.lines().all(|line| line.split(',').count() == 22), "{csv}");
    let report = fs::read_to_string(workspace.path("out/report.md")).unwrap();
    for text in [
        "## Fine-tuned",
        "| sst2 | to the baseline | mrpc | to the baseline | mean of the tasks |",
        "| always the most frequent label | 66.67 |",
        "- Fine-tunings: 16, all finished",
    ] {
        assert!(report.contains(text), "{text}: {report}");
    }
    assert!(fs::read_to_string(workspace.path("out/report.html")).unwrap().contains("Fine-tuned"));

    // What is finished is not repeated, and needs neither the models of the runs nor their own.
    let before = without_models(&workspace);
    succeeds(run_study(&workspace, &FINE_TUNE));
    assert_eq!(self::results(&workspace), results);
    assert!(before.iter().all(|path| !path.join("model").exists()), "one was repeated");
}

/// Removes all models and checkpoints, and gives the folders of the fine-tunings.
fn without_models(workspace: &Workspace) -> Vec<PathBuf> {
    let folders: Vec<PathBuf> = fine_tuned(workspace).into_iter().map(|(path, _)| path).collect();
    let runs = RUNS.map(|run| run_folder(workspace, run));
    for folder in folders.iter().chain(&runs) {
        fs::remove_dir_all(folder.join("model")).unwrap();
        fs::remove_dir_all(folder.join("checkpoints")).unwrap();
    }
    folders
}

#[test]
fn fine_tunings_go_on_after_a_kill_and_are_kept_where_the_study_has_not_changed() {
    let workspace = workspace();
    fine_tuning_study(&workspace);
    succeeds(run_study(&workspace, &[&FINE_TUNE[..], &["--only", "runs"]].concat()));
    let results = || self::results(&workspace);
    assert_eq!(results()["missing_fine_tunings"].as_array().unwrap().len(), 16);
    let mut interrupted = study(&workspace, &FINE_TUNE);
    let mut child = interrupted.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let second = run_folder(&workspace, RUNS[0]).join("fine-tuning/mrpc-seed0");
    wait_for(|| second.join("checkpoints/step-00000002").exists() || second.join("tasks").exists());
    child.kill().unwrap();
    child.wait().unwrap();
    let first = run_folder(&workspace, RUNS[0]).join("fine-tuning/sst2-seed0/model");
    let written = || fs::metadata(first.join("model.safetensors")).unwrap().modified().unwrap();
    let before = written();
    succeeds(run_study(&workspace, &FINE_TUNE));
    assert_eq!(written(), before, "what is finished is not repeated");
    assert!(results().get("missing_fine_tunings").is_none());
    let all = fine_tuned(&workspace);
    assert_eq!(all.len(), 16);

    // What was computed otherwise is not compared, and nothing is begun that would be.
    let record = second.join("run.json");
    let kept = fs::read_to_string(&record).unwrap();
    let other = kept.replace("\"backend\": \"flex\"", "\"backend\": \"vulkan:0\"");
    assert_ne!(other, kept);
    fs::write(&record, other).unwrap();
    let message = fails(run_study(&workspace, &[&FINE_TUNE[..], &["--only", "report"]].concat()));
    assert!(message.contains("tiny-dense-seed3/mrpc-seed0 was computed by vulkan, "), "{message}");
    let summary = run_folder(&workspace, RUNS[0]).join("fine-tuning/mrpc-seed1/summary.json");
    fs::rename(&summary, summary.with_extension("away")).unwrap();
    let message = fails(run_study(&workspace, &FINE_TUNE));
    let words = "tiny-dense-seed3/mrpc-seed1 would be computed by flex, ";
    assert!(message.contains(words) && message.contains("mrpc-seed0 was by vulkan"), "{message}");
    fs::rename(summary.with_extension("away"), &summary).unwrap();
    fs::write(&record, kept).unwrap();

    // One task is trained for longer, and another is dropped.
    let text = fs::read_to_string(workspace.path("study.toml")).unwrap();
    let changed = text.replace("steps = 8", "steps = 12");
    workspace.write("study.toml", &changed);
    let message = fails(run_study(&workspace, &FINE_TUNE));
    let words = "tiny-dense-seed3/mrpc-seed0 was run with training.steps (8 → 12)";
    assert!(message.contains(words) && !message.contains("sst2-seed"), "{message}");
    let dropped = text.replace("[\"sst2\", \"mrpc\"]", "[\"sst2\"]");
    let dropped = dropped.replace("by_task = { mrpc = { training = { steps = 8 } } }", "");
    workspace.write("study.toml", dropped);
    let message = fails(run_study(&workspace, &FINE_TUNE));
    assert!(message.contains("tiny-altup2-seed5/mrpc-seed1 is not in the study"), "{message}");
    succeeds(run_study(&workspace, &[&FINE_TUNE[..], &["--prune"]].concat()));
    let kept = all.into_iter().filter(|(path, _)| path.to_string_lossy().contains("sst2-seed"));
    assert_eq!(fine_tuned(&workspace), kept.collect::<Vec<_>>());
}

#[test]
fn fine_tunings_that_make_no_sense_are_refused_before_anything_runs() {
    let workspace = workspace();
    let refused = |from: &str, to: &str, words: &str| {
        fine_tuning_study(&workspace);
        let study = fs::read_to_string(workspace.path("study.toml")).unwrap();
        let changed = study.replacen(from, to, 1);
        assert_ne!(study, changed, "{from}");
        workspace.write("study.toml", changed);
        let message = fails(run_study(&workspace, &FINE_TUNE));
        assert!(message.contains("study.toml") && message.contains(words), "{words}: {message}");
        assert!(!workspace.path("out/runs").exists());
    };
    refused("\"mrpc\"]", "\"mrcp\"]", "fine_tuning.tasks: there is no task `mrcp`");
    refused("\"mrpc\"]", "\"sst2\"]", "fine_tuning.tasks has sst2 twice");
    refused("[\"sst2\", \"mrpc\"]", "[]", "fine_tuning.tasks must name at least one");
    refused("steps = 4\nseeds", "seeds", "fine_tuning.steps is missing");
    refused("seeds = [0, 1]", "seeds = [1, 1]", "fine_tuning.seeds must be different numbers");
    refused("by_task = { mrpc", "by_task = { rte", "fine_tuning.by_task names \"rte\"");
    refused("answers = {", "epochs = 1.0, answers = {", "fine_tuning.run.epochs can't be given");
    refused("batch_size = 2,", "steps = 9,", "fine_tuning.run.training.steps can't be given");
    refused("by = \"ranking\"", "how = \"ranking\"", "unknown field `how`");
    refused(
        "eval_every = 4, checkpoint_every = 2",
        "eval_every = 4, checkpoint_every = 3",
        "the run tiny-dense-seed3/sst2-seed0 can't be: training.eval_every (4) must be a multiple",
    );
    fine_tuning_study(&workspace);
    let message = fails(run_study(&workspace, &["--quiet"]));
    assert!(message.contains("fine_tuning.data is missing"), "{message}");
}
