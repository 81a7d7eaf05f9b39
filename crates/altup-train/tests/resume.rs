//! Runs that are stopped in the middle, by whatever means, and go on as if they had not been.

mod support;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::Duration;
use support::{Workspace, assert_same, copy_folder, fails, losses, names_in, set, succeeds};

/// Backends whose results are the same bits from run to run.
const BACKENDS: [&str; 2] = ["flex", "ndarray"];

/// A run that is long enough to be stopped in its middle, with all that a step's number decides.
const LONG: &[&str] = &[
    "--steps",
    "120",
    "--set",
    "training.eval_every=20",
    "--set",
    "training.gradient_accumulation=2",
    "--set",
    "model.dropout_rate=0.1",
];

/// Ways to damage a checkpoint, each with a name.
const DAMAGES: [(&str, fn(&Path)); 3] = [
    ("half-a-model", |checkpoint: &Path| {
        let bytes = fs::read(checkpoint.join("model.bpk")).unwrap();
        fs::write(checkpoint.join("model.bpk"), &bytes[..bytes.len() / 2]).unwrap();
    }),
    ("no-state", |checkpoint: &Path| {
        fs::write(checkpoint.join("state.json"), "garbage").unwrap();
    }),
    ("no-optimizer", |checkpoint: &Path| {
        fs::remove_file(checkpoint.join("optimizer.bpk")).unwrap();
    }),
];

/// The long run without interruption, which the others are compared with.
fn train_whole(workspace: &Workspace, backend: &str) {
    let flags = [LONG, &["--backend", backend][..]].concat();
    succeeds(workspace.train("whole", &flags));
}

/// The long run in the folder `run`, not yet started.
fn long(workspace: &Workspace, run: &str, backend: &str) -> Command {
    let source = ["train", "--config", "config.toml", "--train", "corpus.txt"];
    let target = ["--output", run, "--backend", backend];
    workspace.altup(&[&source[..], &target[..], LONG].concat())
}

fn start(workspace: &Workspace, run: &str, backend: &str) -> Child {
    spawn(long(workspace, run, backend))
}

fn spawn(mut command: Command) -> Child {
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

fn resume(workspace: &Workspace, run: &str, backend: &str) -> Command {
    workspace.altup(&["train", "--resume", run, "--backend", backend])
}

fn resume_to_the_end(workspace: &Workspace, run: &str, backend: &str) {
    succeeds(resume(workspace, run, backend).arg("--quiet").output().unwrap());
}

fn checkpoint_name(step: u64) -> String {
    format!("step-{step:08}")
}

fn newest_checkpoint(run: &Path) -> Option<u64> {
    let entries = fs::read_dir(run.join("checkpoints")).ok()?;
    let step = |name: &str| name.strip_prefix("step-")?.parse::<u64>().ok();
    entries.filter_map(|entry| step(&entry.ok()?.file_name().to_string_lossy())).max()
}

fn wait_for(child: &mut Child, what: &str, reached: impl Fn() -> bool) {
    while !reached() {
        assert!(child.try_wait().unwrap().is_none(), "ended before {what}");
        sleep(Duration::from_millis(2));
    }
}

fn wait_for_checkpoint(child: &mut Child, run: &Path, step: u64) {
    let reached = || newest_checkpoint(run).is_some_and(|newest| newest >= step);
    wait_for(child, &format!("the checkpoint of step {step}"), reached);
}

fn assert_unfinished(run: &Path) {
    assert!(!run.join("summary.json").exists(), "{} was finished", run.display());
}

/// Kills the process once the run has a checkpoint of `step` or a later one.
fn kill_behind(mut child: Child, run: &Path, step: u64) {
    wait_for_checkpoint(&mut child, run, step);
    kill(child, run);
}

fn kill(mut child: Child, run: &Path) {
    child.kill().unwrap();
    child.wait().unwrap();
    assert_unfinished(run);
}

/// Sends `signal` once the run has a checkpoint of `step` or a later one, and waits for the end.
fn signal_behind(mut child: Child, run: &Path, step: u64, signal: &str) -> Output {
    wait_for_checkpoint(&mut child, run, step);
    let process = child.id().to_string();
    // The shell's own `kill`: the program of that name is not on every machine.
    let sent = Command::new("sh").args(["-c", r#"kill -s "$0" "$1""#, signal, &process]).status();
    assert!(sent.unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_unfinished(run);
    output
}

#[test]
fn a_killed_run_ends_as_one_that_was_not() {
    for backend in BACKENDS {
        let workspace = Workspace::new();
        train_whole(&workspace, backend);
        for step in [3, 9] {
            let run = format!("killed-{step}");
            kill_behind(start(&workspace, &run, backend), &workspace.path(&run), step);
            resume_to_the_end(&workspace, &run, backend);
            assert_same(&workspace, &run, "whole", &format!("{backend}, step {step}"));
        }
    }
}

#[test]
fn a_run_that_is_killed_again_after_each_resume_ends_as_one_that_was_not() {
    for backend in BACKENDS {
        let workspace = Workspace::new();
        train_whole(&workspace, backend);
        let run = workspace.path("killed");
        kill_behind(start(&workspace, "killed", backend), &run, 3);
        for step in [21, 48] {
            kill_behind(spawn(resume(&workspace, "killed", backend)), &run, step);
        }
        resume_to_the_end(&workspace, "killed", backend);
        assert_same(&workspace, "killed", "whole", backend);
    }
}

/// Router noise, crowded experts and a reduced sequence: all state that there is beside a dense model's.
#[test]
fn a_killed_run_with_experts_and_a_reduced_sequence_ends_as_one_that_was_not() {
    let extensions = set(&[
        "model.moe.num_experts=4",
        "model.moe.expert_d_ff=8",
        "model.moe.mode=partial",
        "model.moe.router_jitter=0.1",
        "model.altup.encoder_sequence.method=altup",
        "model.altup.encoder_sequence.last_layer=1",
    ]);
    for backend in BACKENDS {
        let workspace = Workspace::new();
        succeeds(long(&workspace, "whole", backend).args(&extensions).output().unwrap());
        let run = workspace.path("killed");
        let mut command = long(&workspace, "killed", backend);
        command.args(&extensions);
        kill_behind(spawn(command), &run, 21);
        resume_to_the_end(&workspace, "killed", backend);
        assert_same(&workspace, "killed", "whole", backend);
        let last = losses(&run).into_iter().rfind(|row| row["kind"] == "train").unwrap();
        let routing = last["routing"].as_array().unwrap();
        assert_eq!(routing.len(), 4, "two layers in each stack");
        assert_eq!(routing[0]["loads"].as_array().unwrap().len(), 4);
        assert!(routing.iter().any(|layer| layer["dropped"].as_f64().unwrap() > 0.0));
    }
}

#[test]
fn a_run_that_is_killed_before_its_first_checkpoint_can_be_started_anew() {
    for backend in BACKENDS {
        let workspace = Workspace::new();
        train_whole(&workspace, backend);
        let run = workspace.path("killed");
        let mut command = long(&workspace, "killed", backend);
        command.args(["--set", "training.checkpoint_every=1000"]);
        let mut child = spawn(command);
        let metrics = run.join("metrics.jsonl");
        let has_row = || fs::metadata(&metrics).is_ok_and(|metrics| metrics.len() > 0);
        wait_for(&mut child, "the first metrics", has_row);
        kill(child, &run);

        let message = fails(resume(&workspace, "killed", backend).arg("--quiet").output().unwrap());
        assert!(message.contains("before its first"), "{message}");
        assert!(message.contains("--overwrite"), "{message}");
        succeeds(long(&workspace, "killed", backend).arg("--overwrite").output().unwrap());
        assert_same(&workspace, "killed", "whole", backend);
    }
}

#[test]
fn a_run_that_is_told_to_stop_saves_itself_and_says_how_to_go_on() {
    for backend in BACKENDS {
        let workspace = Workspace::new();
        train_whole(&workspace, backend);
        for signal in ["TERM", "INT"] {
            let child = start(&workspace, signal, backend);
            let run = workspace.path(signal);
            let output = succeeds(signal_behind(child, &run, 6, signal));
            let errors = String::from_utf8(output.stderr).unwrap();
            let step = newest_checkpoint(&run).unwrap();
            assert!(errors.contains(&format!("stopped at step {step},")), "{errors}");
            assert!(errors.contains(&format!("--resume {signal}")), "{errors}");

            resume_to_the_end(&workspace, signal, backend);
            assert_same(&workspace, signal, "whole", &format!("{backend}, {signal}"));
        }
    }
}

#[test]
fn a_damaged_checkpoint_is_passed_over_for_the_one_before() {
    for backend in BACKENDS {
        let workspace = Workspace::new();
        train_whole(&workspace, backend);
        let stopped = workspace.path("stopped");
        succeeds(signal_behind(start(&workspace, "stopped", backend), &stopped, 6, "TERM"));
        let newest = checkpoint_name(newest_checkpoint(&stopped).unwrap());

        for (run, damage) in DAMAGES {
            let folder = workspace.path(run);
            copy_folder(&stopped, &folder);
            damage(&folder.join("checkpoints").join(&newest));
            let output = succeeds(resume(&workspace, run, backend).output().unwrap());
            let errors = String::from_utf8(output.stderr).unwrap();
            let passed_over = errors.lines().find(|line| line.contains("passed over a checkpoint"));
            assert!(passed_over.is_some_and(|line| line.contains(&newest)), "{errors}");
            assert_same(&workspace, run, "whole", &format!("{backend}, {run}"));
        }
    }
}

#[test]
fn a_run_without_a_whole_checkpoint_is_refused() {
    for backend in BACKENDS {
        let workspace = Workspace::new();
        succeeds(workspace.train("whole", &["--backend", backend]));
        for (run, damage) in DAMAGES {
            copy_folder(&workspace.path("whole"), &workspace.path(run));
            let folder = workspace.path(run).join("checkpoints");
            let checkpoints = names_in(&folder);
            checkpoints.iter().for_each(|name| damage(&folder.join(name)));
            let message = fails(resume(&workspace, run, backend).arg("--quiet").output().unwrap());
            assert!(message.contains("no whole checkpoint"), "{message}");
            assert!(checkpoints.iter().all(|name| message.contains(name)), "{message}");
            assert_eq!(names_in(&folder), checkpoints, "{run}");
        }
    }
}

#[test]
fn a_run_goes_on_from_any_folder_and_under_the_flags_that_started_it() {
    let workspace = Workspace::new();
    succeeds(workspace.train("whole", &[]));
    copy_folder(&workspace.path("whole"), &workspace.path("run"));
    fs::create_dir(workspace.path("elsewhere")).unwrap();
    let mut from_elsewhere = workspace.altup(&["train", "--resume", "../run"]);
    from_elsewhere.current_dir(workspace.path("elsewhere"));
    let flags = ["--config", "config.toml", "--train", "corpus.txt", "--steps", "12"];
    let mut with_flags = workspace.altup(&["train", "--resume", "run"]);
    with_flags.args(flags);
    for mut command in [from_elsewhere, with_flags] {
        succeeds(command.arg("--quiet").output().unwrap());
        assert_same(&workspace, "run", "whole", &format!("{command:?}"));
    }
}

#[test]
fn a_run_goes_on_with_no_other_configuration() {
    let workspace = Workspace::new();
    succeeds(workspace.train("run", &[]));
    let before = fs::read(workspace.path("run/metrics.jsonl")).unwrap();
    let cases: [(&[&str], &str); 3] = [
        (&["--steps", "99"], "training.steps"),
        (&["--seed", "5"], "seed"),
        (&["--set", "model.d_ff=64"], "model.d_ff"),
    ];
    for (flags, key) in cases {
        let mut command = workspace.altup(&["train", "--resume", "run", "--quiet"]);
        let message = fails(command.args(flags).output().unwrap());
        assert!(message.contains("another configuration"), "{message}");
        assert!(message.contains(&format!(" {key} (")), "{message}");
    }
    assert_eq!(fs::read(workspace.path("run/metrics.jsonl")).unwrap(), before);
}

#[test]
fn a_run_goes_on_with_no_other_corpus() {
    let workspace = Workspace::new();
    succeeds(workspace.train("run", &[]));
    let before = fs::read(workspace.path("run/metrics.jsonl")).unwrap();
    let corpus = fs::read_to_string(workspace.path("corpus.txt")).unwrap();
    workspace.write("corpus.txt", corpus + "\nThe river was in the garden.\n");
    let mut command = workspace.altup(&["train", "--resume", "run", "--quiet"]);
    let message = fails(command.output().unwrap());
    assert!(message.contains("has changed"), "{message}");
    assert_eq!(fs::read(workspace.path("run/metrics.jsonl")).unwrap(), before);
}

#[test]
fn resuming_a_finished_run_changes_nothing() {
    for backend in BACKENDS {
        let workspace = Workspace::new();
        succeeds(workspace.train("run", &["--backend", backend]));
        copy_folder(&workspace.path("run"), &workspace.path("before"));
        resume_to_the_end(&workspace, "run", backend);
        assert_same(&workspace, "run", "before", backend);
    }
}

#[test]
fn the_number_of_threads_changes_no_loss_on_flex() {
    let workspace = Workspace::new();
    let flags = ["--steps", "24", "--set", "model.dropout_rate=0.1", "--backend", "flex"];
    succeeds(workspace.train("one", &flags));
    // The tokenizer comes from the cache: only its training depends on the number of threads.
    let source = ["train", "--config", "config.toml", "--train", "corpus.txt"];
    let target = ["--output", "two", "--quiet"];
    let mut command = workspace.altup(&[&source[..], &target[..], &flags[..]].concat());
    succeeds(command.env("RAYON_NUM_THREADS", "2").output().unwrap());
    assert_eq!(losses(&workspace.path("two")), losses(&workspace.path("one")));
}
