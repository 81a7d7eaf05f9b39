//! Fine-tuning on made rows: what is learned, what is kept, and how a run goes on.

mod support;

use altup_data::TextTokenizer;
use altup_data::tasks::Registry;
use altup_models::{ModelDirectory, T5Config};
use altup_train::fine_tuning::FineTuningConfig;
use burn::tensor::Device;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;
use support::{Workspace, assert_same, copy_folder, fails, losses, names_in, rows, set, succeeds};

/// A tiny dense T5 with fresh weights, 20 batches of the made rows, and PyTorch's losses on them.
const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/fine_tuning");
/// Made rows in the layout of SST-2.
const REVIEWS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/reviews");
/// A few made rows of every task.
const MADE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../altup-data/tests/fixtures/benchmarks");
/// A model of SentencePiece with sentinels of its own: the tiny model knows all of its ids.
const SENTENCEPIECE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../altup-data/tests/fixtures/sentencepiece/sentinels.model"
);

fn model() -> String {
    format!("{FIXTURE}/model")
}

/// A run on the made rows in the folder `run`, not yet started: its steps, those from one validation to the next, and
/// further arguments.
fn finetune(workspace: &Workspace, run: &str, steps: u64, every: u64, extra: &[&str]) -> Command {
    let (model, steps, every) = (model(), steps.to_string(), every.to_string());
    let source = ["finetune", "--model", &model, "--task", "sst2", "--data", REVIEWS];
    let target = ["--output", run, "--steps", &steps, "--eval-every", &every];
    let shared =
        set(&["training.batch_size=8", "training.log_every=2", "optimizer.learning_rate=0.01"]);
    workspace.altup(&[&source[..], &target[..], &shared, extra].concat())
}

fn json_lines(output: &[u8]) -> Vec<Value> {
    let text = String::from_utf8(output.to_vec()).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// `scripts/reference/finetune_parity.py` made the losses.
#[test]
fn the_first_steps_have_pytorchs_losses() {
    let workspace = Workspace::new();
    let exact = set(&["model.dropout_rate=0", "optimizer.learning_rate=0.001"]);
    let every = set(&["training.log_every=1", "training.eval_examples=1"]);
    let flags = ["--steps", "20", "--eval-every", "20", "--quiet"];
    let model = model();
    let source = ["finetune", "--model", &model, "--task", "sst2", "--data", REVIEWS];
    let target = ["--output", "run", "--batch-size", "8"];
    let args = [&source[..], &target, &flags, &exact, &every].concat();
    succeeds(workspace.altup(&args).output().unwrap());

    let batches = workspace.altup(&["tasks", "batches", "run", "--count", "20"]).output().unwrap();
    let expected = fs::read_to_string(format!("{FIXTURE}/batches.jsonl")).unwrap();
    assert_eq!(String::from_utf8(succeeds(batches).stdout).unwrap(), expected);

    let reference = read_json(&Path::new(FIXTURE).join("losses.json"));
    let expected: Vec<f64> = serde_json::from_value(reference["losses"].clone()).unwrap();
    let rows = rows(&workspace.path("run"));
    let train = rows.iter().filter(|row| row["kind"] == "train");
    let found: Vec<f64> = train.map(|row| row["loss"].as_f64().unwrap()).collect();
    assert_eq!((found.len(), expected.len()), (20, 20));
    for (step, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert!((found - expected).abs() < 1e-3, "step {}: {found}, {expected}", step + 1);
    }
    // The steps do something.
    assert!(expected[19] < expected[0] - 0.5, "{expected:?}");
}

#[test]
fn a_run_learns_and_keeps_its_best_model_and_what_it_made_of_the_task() {
    let workspace = Workspace::new();
    let flags = ["--evaluate-by", "ranking", "--json"];
    let output = succeeds(finetune(&workspace, "run", 300, 50, &flags).output().unwrap());
    let run = workspace.path("run");
    let summary = &json_lines(&output.stdout)[0];
    assert_eq!(*summary, read_json(&run.join("summary.json")));

    let scores = read_json(&run.join("tasks/scores.json"));
    let result = &scores["tasks"][0];
    assert_eq!((&result["task"], &result["examples"]), (&json!("sst2"), &json!(32)));
    let accuracy = result["metrics"]["accuracy"].as_f64().unwrap();
    // Of 32 rows 17 are positive, and of the 128 that it learns from 66.
    assert_eq!(result["majority"]["label"], "positive");
    assert_eq!(result["majority"]["metrics"]["accuracy"], 17.0 / 32.0);
    assert!(accuracy > 0.9, "{scores}");

    // The best step is the first of the best score, and the model is that of its checkpoint.
    let valid: Vec<(u64, f64)> = rows(&run)
        .iter()
        .filter(|row| row["kind"] == "valid")
        .map(|row| {
            let score = row["tasks"][0]["metrics"]["accuracy"].as_f64().unwrap();
            (row["step"].as_u64().unwrap(), score)
        })
        .collect();
    assert_eq!(valid.len(), 6);
    let best = valid.iter().rev().max_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    assert_eq!((best.0, best.1), (summary["best_step"].as_u64().unwrap(), accuracy));
    let best = best.0.to_string();
    let evaluate = |more: &[&str]| {
        let args = ["evaluate", "--task", "sst2", "--data", REVIEWS, "--model", "run", "--json"];
        let output = workspace.altup(&[&args[..], more].concat()).output().unwrap();
        json_lines(&succeeds(output).stdout).remove(0)
    };
    let expected = json!({
        "task": "sst2", "split": "validation", "examples": 32, "metrics": {"accuracy": accuracy}
    });
    assert_eq!(evaluate(&[]), expected);
    assert_eq!(evaluate(&["--checkpoint", &best]), expected);
    assert_eq!(evaluate(&["--checkpoint", &best, "--batch-size", "3"]), expected);
    assert_eq!(evaluate(&["--examples", "5"])["examples"], 5);

    // Every prediction is there, and the wrong ones among them are the mistakes.
    let predictions = fs::read(run.join("tasks/sst2.predictions.jsonl")).unwrap();
    let predictions = json_lines(&predictions);
    assert_eq!(predictions.len(), 32);
    let wrong = predictions.iter().filter(|of| of["answer"] != of["target"]).count();
    assert_eq!(result["mistakes"].as_array().unwrap().len(), wrong);
    assert_eq!(wrong, (32.0 * (1.0 - accuracy)).round() as usize);
    for prediction in &predictions {
        assert!((0.5..=1.0).contains(&prediction["confidence"].as_f64().unwrap()), "{prediction}");
        let is_right = prediction["answer"] == prediction["target"];
        assert_eq!(prediction["margin"].as_f64().unwrap() > 0.0, is_right, "{prediction}");
    }

    // Dropout is the run's alone: what describes the model is as it was.
    let describes = |path: &str| {
        let mut config = read_json(Path::new(path));
        config.as_object_mut().unwrap().remove("architectures");
        (config["dropout_rate"].clone(), config["d_model"].clone())
    };
    let saved = run.join("model/config.json");
    let [saved, source] =
        [saved.to_str().unwrap(), &format!("{}/config.json", model())].map(describes);
    assert_eq!(saved, source);
    assert_eq!(
        fs::read(run.join("model/tokenizer.json")).unwrap(),
        fs::read(format!("{}/tokenizer.json", model())).unwrap()
    );

    // What people look at, and the same made anew.
    let page = fs::read_to_string(run.join("report.html")).unwrap();
    for text in [
        "Finished after 300 steps",
        "<h3>sst2: 32 examples of validation</h3>",
        "all 32 examples</td>",
        "always “positive”</td><td>53.12</td>",
        "Training examples",
    ] {
        assert!(page.contains(text), "{text} is missing");
    }
    assert_eq!(page.matches("class=\"sample mistake\"").count(), wrong);
    let events = names_in(&run.join("tensorboard")).remove(0);
    let events = fs::read(run.join("tensorboard").join(events)).unwrap();
    let tag = b"sst2/accuracy";
    assert_eq!(events.windows(tag.len()).filter(|window| window == tag).count(), 6);
    fs::remove_file(run.join("report.html")).unwrap();
    succeeds(workspace.altup(&["report", "run"]).output().unwrap());
    assert_eq!(fs::read_to_string(run.join("report.html")).unwrap(), page);
    // Beside a run on text.
    succeeds(workspace.train("text", &["--steps", "4"]));
    succeeds(workspace.altup(&["report", "run", "text", "--output", "both"]).output().unwrap());
    let both = fs::read_to_string(workspace.path("both/report.html")).unwrap();
    assert!(both.contains("<th>sst2</th>") && both.contains("<td>text</td><td>–</td>"), "{both}");
}

#[test]
fn what_is_generated_is_scored_too() {
    let workspace = Workspace::new();
    succeeds(finetune(&workspace, "run", 300, 100, &["--quiet"]).output().unwrap());
    let scores = read_json(&workspace.path("run/tasks/scores.json"));
    assert!(scores["mean_score"].as_f64().unwrap() > 0.9, "{scores}");
    // A model that writes label words ranks them alike.
    let evaluate = |how: &str| {
        let args = ["evaluate", "--task", "sst2", "--data", REVIEWS, "--model", "run", "--json"];
        let output = workspace.altup(&[&args[..], &["--evaluate-by", how]].concat()).output();
        json_lines(&succeeds(output.unwrap()).stdout).remove(0)
    };
    assert_eq!(evaluate("generation"), evaluate("ranking"));

    // A file to hand in, for a split without labels too.
    let args = ["evaluate", "--task", "sst2", "--data", MADE, "--model", "run"];
    let test = workspace.altup(&[&args[..], &["--split", "test", "--output", "hand-in"]].concat());
    let output = succeeds({ test }.output().unwrap());
    assert!(output.stdout.is_empty());
    let handed_in = fs::read_to_string(workspace.path("hand-in/SST-2.tsv")).unwrap();
    assert_eq!(handed_in.lines().count(), 3, "{handed_in}");
    let unscored = workspace.altup(&[&args[..], &["--split", "test"]].concat()).output().unwrap();
    assert!(fails(unscored).contains("test split of sst2 has no labels"));
}

fn newest_checkpoint(run: &Path) -> Option<u64> {
    let names = run.join("checkpoints").exists().then(|| names_in(&run.join("checkpoints")))?;
    names.iter().filter_map(|name| name.strip_prefix("step-")?.parse().ok()).max()
}

#[test]
fn a_killed_run_ends_as_one_that_was_not() {
    let workspace = Workspace::new();
    let flags = ["--set", "training.gradient_accumulation=2", "--quiet"];
    succeeds(finetune(&workspace, "whole", 200, 4, &flags).output().unwrap());
    for (run, step) in [("early", 4), ("late", 40)] {
        let mut command = finetune(&workspace, run, 200, 4, &flags);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let folder = workspace.path(run);
        while newest_checkpoint(&folder).is_none_or(|newest| newest < step) {
            assert!(child.try_wait().unwrap().is_none(), "ended before step {step}");
            sleep(Duration::from_millis(2));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!folder.join("summary.json").exists());
        succeeds(workspace.altup(&["report", run]).output().unwrap());
        let page = fs::read_to_string(folder.join("report.html")).unwrap();
        assert!(page.contains("At step ") && page.contains("sst2: 32 examples"), "{page}");
        let resume = workspace.altup(&["finetune", "--resume", run, "--quiet"]).output().unwrap();
        succeeds(resume);
        assert_same(&workspace, run, "whole", run);
        let tasks = |run: &str| fs::read(workspace.path(run).join("tasks/scores.json")).unwrap();
        assert!(tasks(run) == tasks("whole"), "{run}");
    }
}

/// The made rows many times over, so that reading them takes a while.
fn many_rows(workspace: &Workspace) {
    for (split, times) in [("train", 300), ("dev", 1)] {
        let rows = fs::read_to_string(format!("{REVIEWS}/{split}.tsv")).unwrap();
        let (header, rows) = rows.split_once('\n').unwrap();
        workspace.write(&format!("many/{split}.tsv"), format!("{header}\n{}", rows.repeat(times)));
    }
}

#[test]
fn a_run_that_is_killed_before_its_first_checkpoint_starts_from_step_0() {
    let workspace = Workspace::new();
    many_rows(&workspace);
    let model = model();
    let start = |run: &str| {
        let source = ["finetune", "--model", &model, "--task", "sst2", "--data", "many"];
        let target = ["--output", run, "--epochs", "0.005", "--eval-every", "4", "--quiet"];
        workspace.altup(&[&source[..], &target, &["--batch-size", "8"]].concat())
    };
    let resume = |run: &str| {
        let resume = workspace.altup(&["finetune", "--resume", run, "--quiet"]).output().unwrap();
        succeeds(resume);
        assert_same(&workspace, run, "whole", run);
    };
    succeeds(start("whole").output().unwrap());
    // 38,400 rows, 8 at a time.
    let config = FineTuningConfig::default().with_file(&workspace.path("whole/config.toml"));
    let config = config.unwrap();
    assert_eq!((config.training.steps, config.epochs), (24, None));

    // While it reads the rows.
    let mut child = start("reading").stdout(Stdio::null()).spawn().unwrap();
    let run = workspace.path("reading");
    while !run.join("config.toml").exists() {
        assert!(child.try_wait().unwrap().is_none(), "ended before it began");
        sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(newest_checkpoint(&run), None);
    resume("reading");

    // When it has read them.
    copy_folder(&workspace.path("whole"), &workspace.path("begun"));
    let begun = workspace.path("begun");
    for name in ["checkpoints", "model", "tasks"] {
        fs::remove_dir_all(begun.join(name)).unwrap();
    }
    for name in ["metrics.jsonl", "summary.json"] {
        fs::remove_file(begun.join(name)).unwrap();
    }
    resume("begun");
    // Back to the start, whose checkpoint is no longer there.
    let back = ["finetune", "--resume", "begun", "--from", "0", "--quiet"];
    succeeds(workspace.altup(&back).output().unwrap());
    assert_same(&workspace, "begun", "whole", "from its start");
}

#[test]
fn auto_resume_starts_a_run_and_goes_on_with_it() {
    let workspace = Workspace::new();
    succeeds(finetune(&workspace, "whole", 60, 4, &["--quiet"]).output().unwrap());
    let auto = ["--auto-resume", "--quiet"];
    for step in [4, 24] {
        let mut child = finetune(&workspace, "run", 60, 4, &auto).spawn().unwrap();
        while newest_checkpoint(&workspace.path("run")).is_none_or(|newest| newest < step) {
            assert!(child.try_wait().unwrap().is_none(), "ended before step {step}");
            sleep(Duration::from_millis(2));
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    for _ in 0..2 {
        succeeds(finetune(&workspace, "run", 60, 4, &auto).output().unwrap());
        assert_same(&workspace, "run", "whole", "auto-resumed");
    }
    // Without the model that it began with.
    let gone = ["finetune", "--model", "gone", "--output", "run"];
    let output = succeeds(workspace.altup(&[&gone[..], &auto].concat()).output().unwrap());
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(errors.contains("going on without --model gone"), "{errors}");
    assert_same(&workspace, "run", "whole", "auto-resumed without its model");
    let other = [&auto[..], &["--seed", "9"]].concat();
    let message = fails(finetune(&workspace, "run", 60, 4, &other).output().unwrap());
    assert!(message.contains("seed (0 → 9)"), "{message}");
    let of_text = workspace.train("text", &["--steps", "1"]);
    succeeds(of_text);
    let message = fails(finetune(&workspace, "text", 60, 4, &auto).output().unwrap());
    assert!(message.contains("go on with `altup train --resume`"), "{message}");
}

#[test]
fn workers_change_no_loss() {
    let workspace = Workspace::new();
    succeeds(finetune(&workspace, "one", 24, 4, &["--quiet"]).output().unwrap());
    let flags = ["--quiet", "--set", "tasks.workers=3"];
    succeeds(finetune(&workspace, "three", 24, 4, &flags).output().unwrap());
    assert_same(&workspace, "three", "one", "workers");
    let flags = ["--quiet", "--seed", "1"];
    succeeds(finetune(&workspace, "other", 24, 4, &flags).output().unwrap());
    assert_ne!(losses(&workspace.path("other")), losses(&workspace.path("one")));
}

#[test]
fn a_run_ends_early_when_its_scores_no_longer_grow() {
    let workspace = Workspace::new();
    // A rate at which nothing is learned: the first scores stay the best.
    let flags = ["--patience", "2", "--set", "optimizer.learning_rate=1e-9", "--json"];
    let output = succeeds(finetune(&workspace, "run", 24, 4, &flags).output().unwrap());
    let summary = &json_lines(&output.stdout)[0];
    assert_eq!((&summary["steps"], &summary["best_step"]), (&json!(12), &json!(4)));
    copy_folder(&workspace.path("run"), &workspace.path("before"));
    let resume = workspace.altup(&["finetune", "--resume", "run", "--quiet"]).output().unwrap();
    succeeds(resume);
    assert_same(&workspace, "run", "before", "resumed");
}

/// The made rows as two tasks, in folders of their own.
fn two_tasks(workspace: &Workspace) -> PathBuf {
    for split in ["train", "dev"] {
        let rows = fs::read_to_string(format!("{REVIEWS}/{split}.tsv")).unwrap();
        workspace.write(&format!("data/SST-2/{split}.tsv"), &rows);
        let cola = rows.lines().skip(1).take(30).map(|row| {
            let (sentence, label) = row.split_once('\t').unwrap();
            format!("made\t{label}\t\t{sentence}\n")
        });
        workspace.write(&format!("data/CoLA/{split}.tsv"), cola.collect::<String>());
    }
    workspace.path("data")
}

#[test]
fn several_tasks_are_mixed_and_scored_each() {
    let workspace = Workspace::new();
    let data = two_tasks(&workspace);
    let flags = ["--task", "sst2,cola", "--data", data.to_str().unwrap(), "--json"];
    let model = model();
    let run = |name: &str, more: &[&str]| {
        let source = ["finetune", "--model", &model, "--output", name, "--batch-size", "8"];
        let steps = ["--epochs", "2", "--eval-every", "10"];
        let args = [&source[..], &flags, &steps, more].concat();
        let output = workspace.altup(&args).output().unwrap();
        json_lines(&succeeds(output).stdout).remove(0)
    };
    // 158 examples, twice, 8 at a time.
    let summary = run("mixed", &[]);
    assert_eq!(summary["steps"], 40);
    let names: Vec<&Value> =
        summary["tasks"].as_array().unwrap().iter().map(|task| &task["task"]).collect();
    assert_eq!(names, ["sst2", "cola"]);
    let rows = rows(&workspace.path("mixed"));
    let valid = rows.iter().rfind(|row| row["kind"] == "valid").unwrap();
    assert_eq!(valid["sources"].as_array().unwrap().len(), 2);
    let mean =
        |metric: &str, task: usize| valid["tasks"][task]["metrics"][metric].as_f64().unwrap();
    assert!(mean("accuracy", 0).is_finite() && mean("matthews", 1).is_finite());
    let epochs = |run: &str| -> Vec<f64> {
        let rows = support::rows(&workspace.path(run));
        let train = rows.into_iter().rfind(|row| row["kind"] == "train").unwrap();
        let of = train["epochs"].as_array().unwrap().iter();
        of.map(|task| task["epochs"].as_f64().unwrap()).collect()
    };
    for epochs in epochs("mixed") {
        assert!((epochs - 2.0).abs() < 0.05, "{epochs}");
    }
    run("equal", &set(&["tasks.mixing=equal"]));
    // 160 examples of each.
    let [sst2, cola] = epochs("equal")[..] else { panic!("two tasks") };
    assert!((sst2 - 160.0 / 128.0).abs() < 0.02 && (cola - 160.0 / 30.0).abs() < 0.1);
    // Only names that differ can be told apart in a folder of results.
    let names = names_in(&workspace.path("mixed/tasks"));
    assert_eq!(names, ["cola.predictions.jsonl", "scores.json", "sst2.predictions.jsonl"]);
}

#[test]
fn glue_has_an_average_where_all_of_it_is_scored() {
    let workspace = Workspace::new();
    let evaluate = |tasks: &str, model: &str, more: &[&str]| {
        let args = ["evaluate", "--task", tasks, "--data", MADE, "--model", model, "--json"];
        let output = workspace.altup(&[&args[..], more].concat()).output().unwrap();
        json_lines(&succeeds(output).stdout)
    };
    let glue = "cola,sst2,mrpc,stsb,qqp,mnli,qnli,rte";
    let lines = evaluate(glue, &model(), &["--max-new-tokens", "4"]);
    assert_eq!(lines.len(), 10, "{lines:?}");
    assert_eq!(lines[6]["split"], "validation_mismatched");
    assert_eq!(lines[9]["task"], "glue");
    let score = |line: &Value| {
        let metrics = line["metrics"].as_object().unwrap();
        metrics.values().map(|of| of.as_f64().unwrap()).sum::<f64>() / metrics.len() as f64
    };
    let tasks: Vec<f64> = lines[..9].iter().map(score).collect();
    let mnli = (tasks[5] + tasks[6]) / 2.0;
    let average = (tasks[..5].iter().sum::<f64>() + mnli + tasks[7] + tasks[8]) / 8.0;
    let found = lines[9]["metrics"]["average"].as_f64().unwrap();
    assert!((found - average).abs() < 1e-12, "{found}, {average}");
    // Not all of it.
    assert_eq!(evaluate("cola,mnli", &model(), &["--max-new-tokens", "4"]).len(), 2);
}

#[test]
fn a_sentencepiece_model_is_passed_on_as_it_was() {
    let workspace = Workspace::new();
    let folder = workspace.path("model");
    let config = ModelDirectory::new(model()).config().unwrap();
    let config = T5Config { vocab_size: 256, ..config }; // as many as the pieces and the sentinels
    let fresh = config.init(0, &Device::flex());
    ModelDirectory::new(&folder).save(&config, &fresh).unwrap();
    fs::copy(SENTENCEPIECE, folder.join("spiece.model")).unwrap();
    let steps = ["--steps", "1", "--eval-every", "1", "--output", "run", "--quiet"];
    let source = ["finetune", "--model", "model", "--task", "sst2", "--data", REVIEWS];
    let checkpoints = set(&["training.batch_size=8"]);
    let arguments = [&source[..], &steps, &checkpoints].concat();
    succeeds(workspace.altup(&arguments).output().unwrap());

    let trained = workspace.path("run/model");
    let spiece = trained.join("spiece.model");
    assert!(fs::read(&spiece).unwrap() == fs::read(SENTENCEPIECE).unwrap());
    let directory = ModelDirectory::new(&trained);
    assert_eq!(directory.tokenizer(), directory.tokenizer_json());
    let tokenizers =
        [spiece, directory.tokenizer()].map(|path| TextTokenizer::load(&path).unwrap());
    let [spiece, json] = tokenizers.map(|tokenizer| tokenizer.encode("a fine film").unwrap());
    assert_eq!(spiece, json);
    // It is all that a model may have.
    let scored = ["evaluate", "--task", "sst2", "--data", REVIEWS, "--model", "model"];
    let output = workspace.altup(&[&scored[..], &["--max-new-tokens", "1"]].concat()).output();
    let output = String::from_utf8(succeeds(output.unwrap()).stdout).unwrap();
    assert!(output.starts_with("sst2 · validation"), "{output}");
}

/// A copy of the model whose vocabulary is too small for its tokenizer.
fn narrow_model(workspace: &Workspace) -> String {
    let folder = workspace.path("narrow");
    copy_folder(Path::new(&model()), &folder);
    let path = folder.join("config.json");
    let mut config = read_json(&path);
    config["vocab_size"] = json!(100);
    fs::write(&path, config.to_string()).unwrap();
    folder.to_str().unwrap().to_owned()
}

#[test]
fn what_does_not_fit_is_one_error() {
    let workspace = Workspace::new();
    let (model, narrow) = (model(), narrow_model(&workspace));
    let data = two_tasks(&workspace);
    let data = data.to_str().unwrap();
    workspace.write("bad/train.tsv", "sentence\tlabel\nfine \t1\none\ttoo\tmany\n");
    workspace.write("bad/dev.tsv", "sentence\tlabel\nfine \t1\n");
    workspace.write("odd/train.tsv", "sentence\tlabel\nfine \tgood\n");
    let [bad, odd] = ["bad", "odd"].map(|name| workspace.path(name));
    let [bad, odd] = [bad.to_str().unwrap(), odd.to_str().unwrap()];
    let on = |data, task, model| ["--data", data, "--task", task, "--model", model];
    let sst2 = on(REVIEWS, "sst2", &model);
    let cases: &[(&[&str], &[&str])] = &[
        (&[], &["model.path", "--model"]),
        (&["--model", &model], &["tasks.names", "--task"]),
        (&["--model", &model, "--task", "sst2"], &["tasks.data", "--data"]),
        (&on(REVIEWS, "sst3", &model), &["no task `sst3`", "sst2, "]),
        (&on(REVIEWS, "sst2,sst2", &model), &["tasks.names", "sst2 twice"]),
        (&on(REVIEWS, "sst2", "nowhere"), &["no directory \"nowhere\"", "no model of this name"]),
        (&on(REVIEWS, "sst2", &narrow), &["tokenizer.json", "ids", "knows 100"]),
        (&on("nowhere", "sst2", &model), &["nowhere"]),
        (&on(data, "rte", &model), &["no file of the train split of rte", "holds CoLA, SST-2"]),
        (&on(MADE, "mrpc", &model), &["no file of the train split of mrpc", "train.tsv"]),
        (&on(bad, "sst2", &model), &["train.tsv: line 3", "3 columns"]),
        (&on(odd, "sst2", &model), &["train.tsv: line 2", "`good` is no label of sst2"]),
        (&on(MADE, "record", &model), &["--evaluate-by ranking", "record has no label words"]),
    ];
    for (flags, words) in cases {
        let by = if words[0].starts_with("--evaluate-by") {
            &["--evaluate-by", "ranking"][..]
        } else {
            &[]
        };
        let args = [&["finetune", "--output", "run"], *flags, by].concat();
        let message = fails(workspace.altup(&args).output().unwrap());
        for word in words.iter().filter(|word| !word.starts_with("--evaluate-by")) {
            assert!(message.contains(word), "{message:?} doesn't say {word:?}");
        }
        assert!(!workspace.path("run").exists(), "{message}");
    }
    let assignments = [
        ("training.checkpoint_every=3", "training.eval_every (100) must be a multiple"),
        ("training.steps=0", "training.steps must be at least 1"),
        ("model.dropout_rate=1.0", "model.dropout_rate must be at least 0 and below 1"),
        ("tasks.input_length=0", "tasks.input_length must be at least 1"),
        ("tasks.target_length=1", "128 targets of sst2 have more than the 1 tokens"),
        ("tasks.valid_split=dev", "no split `dev`"),
        ("tasks.temperature=0.0", "tasks.temperature must be above 0"),
        ("answers.by=guessing", "guessing"),
        ("patience=0", "patience must be at least 1"),
        ("epochs=0.0", "epochs must be above 0"),
        ("training.final_eval_examples=9", "final_eval_examples has no meaning here"),
        ("task.names=[]", "task"),
    ];
    for (assignment, words) in assignments {
        let args = [&["finetune", "--output", "run"], &sst2[..], &["--set", assignment]].concat();
        let message = fails(workspace.altup(&args).output().unwrap());
        assert!(message.contains(words), "{message:?} doesn't say {words:?}");
        assert!(!workspace.path("run").exists(), "{message}");
    }
}

#[test]
fn a_run_goes_on_as_it_was_started_or_not_at_all() {
    let workspace = Workspace::new();
    let data = two_tasks(&workspace);
    let data = data.to_str().unwrap();
    let model = model();
    let source = ["finetune", "--model", &model, "--task", "sst2", "--data", data];
    let target = ["--output", "run", "--steps", "8", "--eval-every", "4", "--quiet"];
    succeeds(workspace.altup(&[&source[..], &target].concat()).output().unwrap());
    let before = fs::read(workspace.path("run/metrics.jsonl")).unwrap();
    let refuses = |args: &[&str], words: &[&str]| {
        let message = fails(workspace.altup(args).output().unwrap());
        for word in words {
            assert!(message.contains(word), "{message:?} doesn't say {word:?}");
        }
    };
    refuses(
        &["finetune", "--resume", "run", "--set", "model.dropout_rate=0.2", "--quiet"],
        &["another configuration", "model.dropout_rate (0.1 → 0.2)"],
    );
    // Its validations are compared with each other.
    refuses(
        &["finetune", "--resume", "run", "--set", "training.eval_examples=1", "--quiet"],
        &["another configuration", "training.eval_examples"],
    );
    let groups = ["--overwrite", "--set", r#"optimizer.groups=[{pattern="nothing"}]"#];
    refuses(&[&source[..], &target, &groups].concat(), &["optimizer.groups", "nothing"]);
    let own = ["finetune", "--model", "run/model", "--task", "sst2", "--data", data];
    let over = ["--overwrite", "--quiet"];
    refuses(&[&own[..], &target[..2], &over].concat(), &["model.path", "a part of the run"]);
    refuses(&["train", "--resume", "run", "--quiet"], &["run of `altup finetune`"]);
    refuses(&["finetune", "--resume", "nowhere", "--quiet"], &["nowhere"]);
    refuses(
        &["finetune", "--output", "run", "--model", &model, "--task", "sst2", "--data", data],
        &["run exists already", "--resume"],
    );
    let dev = fs::read_to_string(workspace.path("data/SST-2/dev.tsv")).unwrap();
    workspace.write("data/SST-2/dev.tsv", format!("{dev}one more \t1\n"));
    refuses(
        &["finetune", "--resume", "run", "--quiet"],
        &["validation examples of sst2", "have changed"],
    );
    workspace.write("data/SST-2/dev.tsv", dev);
    let rows = fs::read_to_string(workspace.path("data/SST-2/train.tsv")).unwrap();
    workspace.write("data/SST-2/train.tsv", rows + "one more \t1\n");
    refuses(&["finetune", "--resume", "run", "--quiet"], &["examples", "have changed"]);
    refuses(&["evaluate", "--model", "run"], &["no validation text"]);
    refuses(
        &["evaluate", "--task", "sst2", "--data", data, "--model", "run", "--checkpoint", "5"],
        &["no checkpoint of step 5"],
    );
    refuses(
        &["evaluate", "--task", "sst2", "--data", data, "--model", &model, "--checkpoint", "last"],
        &["config.toml"],
    );
    assert_eq!(fs::read(workspace.path("run/metrics.jsonl")).unwrap(), before);
}

#[test]
fn shipped_configurations_describe_runs() {
    let folder = Path::new("../../configs/finetune"); // Cargo runs tests in the folder of their package.
    assert_eq!(names_in(folder), ["glue.toml", "hour", "sst2.toml", "tiny-sst2.toml"]);
    let hour = folder.join("hour");
    let of_hour = ["cola.toml", "mrpc.toml", "rte.toml", "squad.toml", "sst2.toml", "stsb.toml"];
    assert_eq!(names_in(&hour), of_hour);
    let others = names_in(folder).into_iter().filter(|name| name.ends_with(".toml"));
    let paths = others.map(|name| folder.join(name)).chain(of_hour.map(|name| hour.join(name)));
    for path in paths {
        let name = path.display();
        let config = FineTuningConfig::default().with_file(&path);
        let mut config = config.unwrap_or_else(|error| panic!("{name}: {error}"));
        (config.model.path, config.tasks.data) = ("model".into(), "data".into());
        config.validate().unwrap_or_else(|error| panic!("{name}: {error}"));
        for task in &config.tasks.names {
            Registry::standard().find(task).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }
}
