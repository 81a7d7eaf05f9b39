//! Folders that belong to one run, runs that start from a model, and runs that diverge.

mod support;

use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::Duration;
use support::{
    Workspace, assert_same, contents, copy_folder, fails, losses, names_in, rows, set, succeeds,
};

fn spawn(mut command: Command) -> Child {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn wait_for(child: &mut Child, what: &str, reached: impl Fn() -> bool) {
    while !reached() {
        assert!(child.try_wait().unwrap().is_none(), "ended before {what}");
        sleep(Duration::from_millis(2));
    }
}

#[track_caller]
fn says(output: Output, words: &[&str]) {
    let message = fails(output);
    for word in words {
        assert!(message.contains(word), "{message:?} doesn't say {word:?}");
    }
}

#[test]
fn a_folder_is_one_process_at_a_time() {
    let workspace = Workspace::new();
    succeeds(workspace.train("whole", &["--steps", "200"]));
    let source = ["train", "--config", "config.toml", "--train", "corpus.txt", "--steps", "200"];
    let mut child = spawn(workspace.altup(&[&source[..], &["--output", "run"]].concat()));
    let run = workspace.path("run");
    wait_for(&mut child, "its first checkpoint", || run.join("checkpoints/step-00000003").exists());
    let holder = format!("process {}", child.id());
    let words = ["run is in use", &holder, "--output run", "nothing was changed"];
    says(workspace.altup(&["train", "--resume", "run", "--quiet"]).output().unwrap(), &words);
    says(workspace.train("run", &["--overwrite"]), &words);
    let auto = [&source[..], &["--output", "run", "--auto-resume", "--quiet"]].concat();
    says(workspace.altup(&auto).output().unwrap(), &words);
    succeeds(child.wait_with_output().unwrap());
    assert_same(&workspace, "run", "whole", "others wanted it");

    // The lock ends with the process, however it ends.
    let mut child = spawn(workspace.altup(&[&source[..], &["--output", "killed"]].concat()));
    let killed = workspace.path("killed");
    wait_for(&mut child, "its first checkpoint", || {
        killed.join("checkpoints/step-00000003").exists()
    });
    child.kill().unwrap();
    child.wait().unwrap();
    succeeds(workspace.altup(&["train", "--resume", "killed", "--quiet"]).output().unwrap());
    assert_same(&workspace, "killed", "whole", "killed");
}

#[test]
fn runs_that_start_together_have_folders_of_their_own() {
    let workspace = Workspace::new();
    let args =
        ["train", "--config", "config.toml", "--train", "corpus.txt", "--steps", "4", "--quiet"];
    let children: Vec<Child> = (0..6).map(|_| spawn(workspace.altup(&args))).collect();
    for child in children {
        succeeds(child.wait_with_output().unwrap());
    }
    let runs = names_in(&workspace.path("runs"));
    let name = |number: u64| match number {
        1 => "tiny-altup-k2-seed0".to_owned(),
        number => format!("tiny-altup-k2-seed0-{number}"),
    };
    assert_eq!(runs, (1..=6).map(name).collect::<Vec<_>>());
    for run in &runs {
        assert_same(&workspace, &format!("runs/{run}"), &format!("runs/{}", runs[0]), run);
    }

    // Of those that want one folder, one has it.
    let args = [&args[..], &["--output", "one"]].concat();
    let children: Vec<Child> = (0..6).map(|_| spawn(workspace.altup(&args))).collect();
    let outputs = children.into_iter().map(|child| child.wait_with_output().unwrap());
    let (done, others): (Vec<_>, Vec<_>) = outputs.partition(|output| output.status.success());
    assert_eq!(done.len(), 1);
    for output in others {
        let message = fails(output);
        assert!(
            message.contains("one is in use") || message.contains("one exists already"),
            "{message}"
        );
    }
    assert_same(&workspace, "one", &format!("runs/{}", runs[0]), "wanted by six");
}

#[test]
fn a_report_may_be_made_beside_a_run() {
    let workspace = Workspace::new();
    let source = ["train", "--config", "config.toml", "--train", "corpus.txt", "--output", "run"];
    let often = set(&["training.steps=40", "training.eval_every=1"]);
    let command = [&source[..], &["--quiet"], &often].concat();
    let mut child = spawn(workspace.altup(&command));
    let run = workspace.path("run");
    wait_for(&mut child, "its metrics", || run.join("metrics.jsonl").exists());
    let mut reports = 0;
    while child.try_wait().unwrap().is_none() {
        succeeds(workspace.altup(&["report", "run"]).output().unwrap());
        reports += 1;
    }
    let output = succeeds(child.wait_with_output().unwrap());
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(errors.is_empty() && reports > 0, "{reports} reports, and {errors}");
    let left = names_in(&run).into_iter().chain(names_in(&run.join("tensorboard")));
    let left: Vec<String> = left.filter(|name| name.starts_with('.')).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn what_people_look_at_is_there_from_the_start() {
    let workspace = Workspace::new();
    succeeds(workspace.train("run", &[]));
    let run = workspace.path("run");
    let page = |run: &Path| fs::read_to_string(run.join("report.html")).unwrap_or_default();
    assert!(page(&run).contains("Finished after 12 steps"), "{}", page(&run));
    let slow = ["training.eval_every=100000", "training.log_every=100000", "training.steps=100000"];
    let mut resumed =
        spawn(workspace.altup(&[&["train", "--resume", "run"][..], &set(&slow)].concat()));
    wait_for(&mut resumed, "a page that goes on", || page(&run).contains("At step 12 of 100"));
    resumed.kill().unwrap();
    resumed.wait().unwrap();

    let source = ["train", "--config", "config.toml", "--train", "corpus.txt", "--output", "new"];
    let mut begun = spawn(workspace.altup(&[&source[..], &set(&slow)].concat()));
    let new = workspace.path("new");
    wait_for(&mut begun, "a page and events of its start", || {
        page(&new).contains("At step 0 of") && new.join("tensorboard").exists()
    });
    begun.kill().unwrap();
    begun.wait().unwrap();
}

#[test]
fn overwriting_replaces_what_a_run_wrote_and_nothing_else() {
    let workspace = Workspace::new();
    succeeds(workspace.train("run", &[]));
    succeeds(workspace.train("dense", &["--variant", "dense"]));
    workspace.write("run/notes.md", "what I saw");
    let before = contents(&workspace.path("run"));
    // What can't start leaves the run as it is.
    for flags in [
        &["--tokenizer", "nowhere.json"][..],
        &["--set", "data.input_length=100000"],
        &["--set", "training.steps=0"],
        &["--init", "nowhere"],
        &["--backend", "flex:7"],
        &["--set", r#"optimizer.groups=[{pattern="nothing"}]"#],
        // What is only known of a model directory.
        &["--variant", "dense", "--set", r#"optimizer.groups=[{pattern="altup"}]"#],
        // What would be replaced with the run.
        &["--tokenizer", "run/tokenizer.json"],
    ] {
        let output = workspace.train("run", &[&["--overwrite"], flags].concat());
        assert!(!output.status.success(), "{flags:?}");
        assert!(contents(&workspace.path("run")) == before, "{flags:?}");
    }
    let source = ["train", "--config", "config.toml", "--train", "corpus.txt", "--output", "run"];
    let flags = ["--overwrite", "--variant", "dense"];
    let output = succeeds(workspace.altup(&[&source[..], &flags].concat()).output().unwrap());
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(errors.contains("run/notes.md is no run's, and stays"), "{errors}");
    assert_eq!(errors.matches("is no run's").count(), 1, "{errors}");
    assert_same(&workspace, "run", "dense", "replaced");
    assert_eq!(fs::read_to_string(workspace.path("run/notes.md")).unwrap(), "what I saw");
    let names = |run: &str| names_in(&workspace.path(run));
    let expected: Vec<String> = names("dense");
    assert_eq!(
        names("run").into_iter().filter(|name| name != "notes.md").collect::<Vec<_>>(),
        expected
    );

    // A folder that no run made is left alone.
    workspace.write("mine/config.json", "{}");
    let words = ["mine is not the folder of a run", "left as it is"];
    says(workspace.train("mine", &["--overwrite"]), &words);
    says(workspace.train("mine", &[]), &words);
    says(workspace.train("mine", &["--auto-resume"]), &words);
    assert_eq!(names("mine"), ["config.json"]);
    fs::create_dir(workspace.path("empty")).unwrap();
    succeeds(workspace.train("empty", &["--variant", "dense"]));
    assert_same(&workspace, "empty", "dense", "in an empty folder");
}

#[test]
fn a_run_that_is_killed_while_it_replaces_another_is_started_again() {
    let workspace = Workspace::new();
    succeeds(workspace.train("whole", &[]));
    copy_folder(&workspace.path("whole"), &workspace.path("run"));
    // As far as it comes first, and no further: of a run with checkpoints, a configuration may be missing for any reason.
    fs::remove_file(workspace.path("run/config.toml")).unwrap();
    let before = contents(&workspace.path("run"));
    let words = ["run has a run's checkpoints", "no config.toml", "config-history.jsonl"];
    says(workspace.altup(&["train", "--resume", "run", "--quiet"]).output().unwrap(), &words);
    says(workspace.train("run", &[]), &words);
    says(workspace.train("run", &["--auto-resume"]), &words);
    assert!(contents(&workspace.path("run")) == before);
    // Then come the checkpoints.
    fs::remove_dir_all(workspace.path("run/checkpoints")).unwrap();
    let resumed = workspace.altup(&["train", "--resume", "run", "--quiet"]).output().unwrap();
    says(resumed, &["run was not yet begun", "start it again"]);
    says(workspace.altup(&["inspect", "--model", "run"]).output().unwrap(), &["not yet begun"]);
    succeeds(workspace.train("run", &[]));
    assert_same(&workspace, "run", "whole", "started again");
}

#[test]
fn auto_resume_starts_a_run_and_goes_on_with_it() {
    let workspace = Workspace::new();
    succeeds(workspace.train("whole", &["--steps", "60"]));
    let flags = ["--steps", "60", "--auto-resume"];
    let source = ["train", "--config", "config.toml", "--train", "corpus.txt", "--output", "run"];
    let run = workspace.path("run");
    for step in ["step-00000003", "step-00000024"] {
        let mut child = spawn(workspace.altup(&[&source[..], &flags].concat()));
        wait_for(&mut child, step, || {
            let newest = names_in_if_there(&run.join("checkpoints")).into_iter().max();
            newest.is_some_and(|newest| newest.as_str() >= step)
        });
        child.kill().unwrap();
        child.wait().unwrap();
    }
    for _ in 0..2 {
        succeeds(workspace.train("run", &flags));
        assert_same(&workspace, "run", "whole", "auto-resumed");
    }
    says(workspace.train("run", &["--auto-resume", "--seed", "9"]), &["seed (0 → 9)"]);
}

fn names_in_if_there(folder: &Path) -> Vec<String> {
    match folder.exists() {
        true => names_in(folder).into_iter().filter(|name| name.starts_with("step-")).collect(),
        false => Vec::new(),
    }
}

#[test]
fn a_run_starts_from_a_model_and_needs_its_directory_no_more() {
    let workspace = Workspace::new();
    succeeds(workspace.train("dense", &["--variant", "dense", "--steps", "40"]));
    let convert = ["convert", "--model", "dense", "--to", "recycled", "--output", "recycled"];
    succeeds(workspace.altup(&convert).output().unwrap());
    let valid = |run: &str| -> Vec<f64> {
        let rows = rows(&workspace.path(run)).into_iter().filter(|row| row["kind"] == "valid");
        rows.map(|row| row["loss"].as_f64().unwrap()).collect()
    };
    let dense = *valid("dense").last().unwrap();

    // It begins where the dense model was: a learning rate of almost 0 leaves it there.
    let source = ["train", "--train", "corpus.txt", "--init", "recycled", "--quiet"];
    let short = set(&[
        "data.input_length=32",
        "data.noise_density=0.15", // as config.toml has it: a run without one has another
        "training.batch_size=4",
        "training.steps=12",
        "training.eval_every=4",
        "training.eval_examples=8",
        "training.checkpoint_every=3",
        "training.keep_last=10",
        "training.log_every=2",
    ]);
    let train = |run: &str, flags: &[&str]| {
        let args = [&source[..], &["--output", run], &short, flags].concat();
        workspace.altup(&args).output().unwrap()
    };
    succeeds(train("still", &set(&["optimizer.learning_rate=1e-9"])));
    let still = valid("still");
    assert!((still[0] - dense).abs() < 1e-4 * dense, "{still:?}, and {dense} of the dense model");
    let config = fs::read_to_string(workspace.path("still/model/config.json")).unwrap();
    assert!(config.contains("\"recycled\""), "{config}");
    let config = fs::read_to_string(workspace.path("still/config.toml")).unwrap();
    assert!(config.contains("init = ") && !config.contains("\nsize = "), "{config}");

    succeeds(train("whole", &[]));
    copy_folder(&workspace.path("whole"), &workspace.path("run"));
    for name in ["step-00000009", "step-00000012"] {
        let _ = fs::remove_dir_all(workspace.path("run/checkpoints").join(name));
    }
    fs::rename(workspace.path("recycled"), workspace.path("gone")).unwrap();
    let resume = ["train", "--resume", "run", "--quiet"];
    succeeds(workspace.altup(&resume).output().unwrap());
    assert_same(&workspace, "run", "whole", "without the directory");
    fs::rename(workspace.path("gone"), workspace.path("recycled")).unwrap();

    // As one that was killed before its first checkpoint: the model must still be the one that the run was started with.
    copy_folder(&workspace.path("whole"), &workspace.path("killed"));
    fs::remove_dir_all(workspace.path("killed/checkpoints")).unwrap();
    let weights = workspace.path("recycled/model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    let mut other = bytes.clone();
    *other.last_mut().unwrap() ^= 1;
    fs::write(&weights, &other).unwrap();
    let resume = ["train", "--resume", "killed", "--quiet"];
    let words = ["the run in killed", "recycled is another one than the run was started with"];
    says(workspace.altup(&resume).output().unwrap(), &words);
    let record = |run: &str| -> Value {
        serde_json::from_slice(&fs::read(workspace.path(run).join("run.json")).unwrap()).unwrap()
    };
    succeeds(train("changed", &[]));
    assert_ne!(record("changed")["init"], record("whole")["init"]);
    fs::write(&weights, &bytes).unwrap();
    succeeds(workspace.altup(&resume).output().unwrap());
    assert_same(&workspace, "killed", "whole", "from the same model");
    assert!(workspace.path("killed/checkpoints/step-00000000").exists(), "it needs the directory");
    let report = fs::read_to_string(workspace.path("killed/report.html")).unwrap();
    let hash = record("whole")["init"].as_str().unwrap()[..16].to_owned();
    assert!(report.contains("Begun with") && report.contains(&hash), "{report}");

    // The model of a run is called as the run.
    let named = [&["train", "--train", "corpus.txt", "--quiet"][..], &["--init", "dense/model"]];
    let named = [&named.concat()[..], &short, &["--steps", "1"]].concat();
    succeeds(workspace.altup(&named).output().unwrap());
    assert_eq!(names_in(&workspace.path("runs")), ["dense-seed0"]);

    for flags in [&["--size", "altup-s"][..], &["--variant", "dense"], &["--blocks", "4"]] {
        let output = train("refused", flags);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(errors.contains("cannot be used with") && errors.contains(flags[0]), "{errors}");
    }
    let set_beside = train("refused", &set(&["model.d_ff=8"]));
    says(set_beside, &["model.d_ff can't be set beside model.init"]);
    succeeds(workspace.train("large", &["--steps", "1", "--set", "data.vocab_size=400"]));
    let tokenizer = train("refused", &["--tokenizer", "large/tokenizer.json"]);
    says(tokenizer, &["model.init", "has a vocabulary of 320", "400 ids"]);
    fs::remove_file(workspace.path("recycled/tokenizer.json")).unwrap();
    says(train("refused", &[]), &["recycled/tokenizer.json"]);
    assert!(!workspace.path("refused").exists());
}

/// What is read of a model directory is tried before the run that is replaced goes, and is no part of that one.
#[test]
fn a_run_from_a_model_replaces_another_when_it_can_begin() {
    let workspace = Workspace::new();
    succeeds(workspace.train("run", &["--steps", "1"]));
    succeeds(workspace.train("dense", &["--variant", "dense", "--steps", "1"]));
    copy_folder(&workspace.path("config.toml").with_file_name("run"), &workspace.path("old"));
    let before = contents(&workspace.path("run"));
    let source = ["train", "--train", "corpus.txt", "--quiet", "--steps", "1"];
    let train = |flags: &[&str]| workspace.altup(&[&source[..], flags].concat()).output().unwrap();
    let init = ["--init", "dense/model", "--set", "data.input_length=32"];
    let groups = ["--set", r#"optimizer.groups=[{pattern="nothing"}]"#];
    let over = ["--output", "run", "--overwrite"];
    says(train(&[&init[..], &groups, &over].concat()), &["optimizer.groups", "nothing"]);
    says(train(&[&init[..], &groups, &["--output", "new"]].concat()), &["optimizer.groups"]);
    assert!(!workspace.path("new").exists());
    let own = ["--init", "run/model", "--set", "data.input_length=32"];
    says(train(&[&own[..], &over].concat()), &["model.init", "run/model", "a part of the run"]);
    let own = ["--config", "run/config.toml"];
    says(train(&[&own[..], &over].concat()), &["--config run/config.toml", "a part of the run"]);
    assert!(contents(&workspace.path("run")) == before);
    workspace.write("run/mine.toml", fs::read(workspace.path("config.toml")).unwrap());
    succeeds(train(&[&["--config", "run/mine.toml"][..], &over].concat()));
}

/// The words of a command in a message, from `altup` on.
fn command_in(message: &str) -> Vec<&str> {
    let command = message.split_once("more slowly: altup ").unwrap().1;
    command.split_once(" (or ").unwrap().0.split(' ').collect()
}

#[test]
fn the_advice_of_a_run_that_diverged_leads_on() {
    let workspace = Workspace::new();
    let flags = set(&[
        "optimizer.kind=adamw",
        "optimizer.learning_rate=40.0",
        "schedule.kind=constant",
        "schedule.warmup_steps=40",
        "training.steps=60",
        "training.checkpoint_every=4",
    ]);
    let mut message = fails(workspace.train("run", &flags));
    let mut followed = 0;
    // Each time it is followed, the rate is half as high.
    loop {
        assert!(message.contains("training has diverged. The checkpoint of step"), "{message}");
        let command = command_in(&message);
        assert_eq!(command[..3], ["train", "--resume", "run"], "{message}");
        let output = workspace.altup(&command).arg("--quiet").output().unwrap();
        followed += 1;
        assert!(followed < 12, "it leads nowhere");
        if output.status.success() {
            break;
        }
        message = fails(output);
    }
    let history = fs::read_to_string(workspace.path("run/config-history.jsonl")).unwrap();
    assert_eq!(history.lines().count(), 1 + followed);
    assert_eq!(rows(&workspace.path("run")).last().unwrap()["step"], 60);
}

/// A model directory `model` whose embedding of the token ☃ is no number, and a corpus `snow.txt` in which a few
/// documents have it: a batch with one of them makes the loss no number, and no other batch does.
fn with_a_token_that_is_no_number(workspace: &Workspace) {
    let corpus = fs::read_to_string(workspace.path("corpus.txt")).unwrap();
    let mut documents: Vec<String> = corpus.trim_end().split("\n\n").map(str::to_owned).collect();
    let valid = documents.split_off(280).join("\n\n");
    for number in (5..documents.len()).step_by(25) {
        documents[number].push_str("\nThe ☃ was ☃ in the ☃ garden.");
    }
    workspace.write("snow.txt", documents.join("\n\n"));
    workspace.write("valid.txt", valid);
    let text = ["--valid", "valid.txt", "--variant", "dense", "--steps", "1"];
    succeeds(workspace.train_on("snow.txt", "seed-of-model", &text));
    let model = workspace.path("model");
    copy_folder(&workspace.path("seed-of-model/model"), &model);
    let tokenizer: Value =
        serde_json::from_slice(&fs::read(model.join("tokenizer.json")).unwrap()).unwrap();
    let pieces = tokenizer["model"]["vocab"].as_array().unwrap();
    let is_snow = |piece: &Value| piece[0].as_str().is_some_and(|piece| piece.contains('☃'));
    let mut ids: Vec<usize> =
        pieces.iter().enumerate().filter(|(_, piece)| is_snow(piece)).map(|(id, _)| id).collect();
    if ids.is_empty() {
        ids.push(2); // <unk>
    }
    let path = model.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut changed: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, view)| (name.to_owned(), view.shape().to_vec(), view.data().to_vec()))
        .collect();
    for (name, shape, data) in &mut changed {
        if name == "shared.weight" {
            let row = 4 * shape[1];
            for id in &ids {
                let no_number = f32::NAN.to_le_bytes().repeat(shape[1]);
                data[id * row..(id + 1) * row].copy_from_slice(&no_number);
            }
        }
    }
    let views = changed.iter().map(|(name, shape, data)| {
        (name.as_str(), TensorView::new(safetensors::Dtype::F32, shape.clone(), data).unwrap())
    });
    let metadata = Some([("format".to_owned(), "pt".to_owned())].into());
    fs::write(&path, safetensors::serialize(views, metadata).unwrap()).unwrap();
}

/// A run of that model.
fn snowy(workspace: &Workspace, run: &str, assignments: &[&str]) -> Command {
    let source = ["train", "--train", "snow.txt", "--valid", "valid.txt", "--init", "model"];
    let settings = set(&[
        "data.input_length=32",
        "optimizer.kind=adamw", // Adafactor scales by the whole table's size, which is no number.
        "optimizer.learning_rate=1e-3",
        "schedule.kind=constant",
        "schedule.warmup_steps=1",
        "model.dropout_rate=0.1",
        "training.steps=60",
        "training.batch_size=4",
        "training.gradient_accumulation=2",
        "training.log_every=2",
        "training.eval_every=10",
        "training.eval_examples=8",
        "training.checkpoint_every=3",
        "training.on_divergence=rollback",
        "training.max_rollbacks=40",
    ]);
    workspace
        .altup(&[&source[..], &["--output", run, "--quiet"], &settings, &set(assignments)].concat())
}

fn rollbacks(run: &Path) -> Vec<Value> {
    losses(run).into_iter().filter(|row| row["kind"] == "rollback").collect()
}

#[test]
fn a_run_that_diverges_goes_back_passes_over_the_batches_and_ends() {
    let workspace = Workspace::new();
    with_a_token_that_is_no_number(&workspace);
    succeeds(snowy(&workspace, "whole", &[]).output().unwrap());
    let whole = workspace.path("whole");
    let found = rollbacks(&whole);
    assert!(found.len() >= 2, "{found:?}");
    let mut skipped = 0;
    for (number, row) in (1..).zip(&found) {
        let field = |name: &str| row[name].as_u64().unwrap();
        assert_eq!(field("number"), number);
        assert_eq!(field("step") % 3, 0, "{row}");
        skipped += field("diverged_at") - field("step");
        assert_eq!(field("skipped_steps"), skipped, "{row}");
        assert_eq!(row["quantity"], "loss");
    }
    let steps: Vec<u64> = rows(&whole)
        .iter()
        .filter(|row| row["kind"] == "train")
        .map(|row| row["step"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, (2..=60).step_by(2).collect::<Vec<_>>(), "each step once");
    let report = fs::read_to_string(whole.join("report.html")).unwrap();
    let times = format!("{} times, last from step", found.len());
    assert!(report.contains("Went back") && report.contains(&times), "{report}");

    // Killed behind its next row of metrics, and at some moment after it, it ends as one that was not.
    for delay in [0, 3, 7] {
        let run = format!("killed-{delay}");
        let folder = workspace.path(&run);
        let length =
            || fs::metadata(folder.join("metrics.jsonl")).map_or(0, |metrics| metrics.len());
        let mut child = spawn(snowy(&workspace, &run, &[]));
        let (mut kills, mut behind_a_rollback) = (0, 0);
        loop {
            let before = length();
            while child.try_wait().unwrap().is_none() && length() <= before {
                sleep(Duration::from_millis(1));
            }
            sleep(Duration::from_millis(delay * kills % 40));
            if child.try_wait().unwrap().is_some() || kills == 12 {
                succeeds(child.wait_with_output().unwrap());
                break;
            }
            child.kill().unwrap();
            child.wait().unwrap();
            kills += 1;
            let text = fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
            behind_a_rollback += u64::from(text.contains(r#""kind":"rollback""#));
            child = spawn(workspace.altup(&["train", "--resume", &run, "--quiet"]));
        }
        assert!(kills > 3 && behind_a_rollback > 0, "{behind_a_rollback} of {kills} kills");
        assert_same(&workspace, &run, "whole", &format!("killed {kills} times"));
    }

    // Killed while it goes back: the later checkpoints are gone and the metrics say so, the checkpoint that it goes back
    // to doesn't yet.
    let until_then = ["training.on_divergence=stop", "training.keep_last=1000"];
    ends_with(snowy(&workspace, "within", &until_then).output().unwrap());
    let (within, step) = (workspace.path("within"), found[0]["step"].as_u64().unwrap());
    for name in names_in(&within.join("checkpoints")) {
        if name.strip_prefix("step-").unwrap().parse::<u64>().unwrap() > step {
            fs::remove_dir_all(within.join("checkpoints").join(name)).unwrap();
        }
    }
    let mut kept = rows(&within);
    kept.retain(|row| row["step"].as_u64().unwrap() <= step);
    kept.push(found[0].clone());
    let lines: String = kept.iter().map(|row| format!("{row}\n")).collect();
    fs::write(within.join("metrics.jsonl"), lines).unwrap();
    let mut resume = workspace.altup(&["train", "--resume", "within", "--quiet"]);
    resume.args(set(&["training.on_divergence=rollback"]));
    succeeds(resume.output().unwrap());
    assert_same(&workspace, "within", "whole", "killed within a rollback");
}

/// What a run ended with, behind its warnings.
#[track_caller]
fn ends_with(output: Output) -> String {
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{errors}");
    let others: Vec<&str> = errors.lines().filter(|line| !line.starts_with("warning: ")).collect();
    assert!(others.len() == 1 && others[0].starts_with("error: "), "{errors}");
    others[0].to_owned()
}

/// The token of the prompts' unknown characters is no number: there are no samples, and the run goes on.
#[test]
fn what_a_run_shows_ends_no_run() {
    let workspace = Workspace::new();
    with_a_token_that_is_no_number(&workspace);
    let source = ["train", "--train", "corpus.txt", "--valid", "valid.txt", "--init", "model"];
    let settings = set(&[
        "data.input_length=32",
        "optimizer.kind=adamw",
        "training.steps=4",
        "training.batch_size=4",
        "training.eval_every=2",
        "training.eval_examples=8",
        "training.prompts=[\"The ☃ <extra_id_0>\"]",
    ]);
    let command = [&source[..], &["--output", "run", "--quiet"], &settings].concat();
    let output = succeeds(workspace.altup(&command).output().unwrap());
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(errors.contains("warning: no samples of step 2: "), "{errors}");
    assert_eq!(rows(&workspace.path("run")).last().unwrap()["step"], 4);
    assert!(workspace.path("run/report.html").exists());

    succeeds(workspace.train("damaged", &[]));
    workspace.write("damaged/samples.jsonl", "{}\n");
    let resume = ["train", "--resume", "damaged", "--quiet", "--steps", "14"];
    let output = succeeds(workspace.altup(&resume).output().unwrap());
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(errors.contains("samples.jsonl, line 1: not a sample"), "{errors}");
    assert!(workspace.path("damaged/summary.json").exists());
}

#[test]
fn a_run_goes_back_no_more_often_than_it_may() {
    let workspace = Workspace::new();
    with_a_token_that_is_no_number(&workspace);
    let mut once = snowy(&workspace, "run", &["training.max_rollbacks=1"]);
    let message = ends_with(once.output().unwrap());
    assert!(message.contains("the loss is NaN") && message.contains("diverged"), "{message}");
    assert_eq!(rollbacks(&workspace.path("run")).len(), 1);
    let mut more = workspace.altup(&["train", "--resume", "run", "--quiet"]);
    more.args(set(&["training.max_rollbacks=40"]));
    succeeds(more.output().unwrap());
    succeeds(snowy(&workspace, "whole", &[]).output().unwrap());
    assert_same(&workspace, "run", "whole", "allowed more");
}
