//! Runs that are stopped in the middle, by whatever means, and go on as if they had not been.

mod support;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::Duration;
use support::{
    Workspace, assert_same, contents, copy_folder, fails, losses, names_in, set, succeeds,
};

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
    send(&child, signal);
    let output = child.wait_with_output().unwrap();
    assert_unfinished(run);
    output
}

fn send(child: &Child, signal: &str) {
    let process = child.id().to_string();
    // The shell's own `kill`: the program of that name is not on every machine.
    let sent = Command::new("sh").args(["-c", r#"kill -s "$0" "$1""#, signal, &process]).status();
    assert!(sent.unwrap().success());
}

/// Checks that a run was stopped: by the exit code that says so, and not by an error.
#[track_caller]
fn stopped(output: Output) -> Output {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        output.status.code(),
        Some(75),
        "{}, with this on standard error:\n{errors}",
        output.status
    );
    assert!(!errors.contains("error: "), "{errors}");
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
fn a_run_that_is_killed_before_its_first_checkpoint_starts_from_step_0() {
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
        assert_eq!(newest_checkpoint(&run), None);
        let mut from = resume(&workspace, "killed", backend);
        let message = fails(from.args(["--from", "5", "--quiet"]).output().unwrap());
        let expected =
            "no checkpoint of step 5; there is none yet; --from 0 goes back to the start";
        assert!(message.contains(expected), "{message}");

        resume_to_the_end(&workspace, "killed", backend);
        assert_same(&workspace, "killed", "whole", backend);
    }
}

#[test]
#[allow(clippy::print_stderr)] // What is skipped is said.
fn a_run_that_is_told_to_stop_saves_itself_and_says_how_to_go_on() {
    for backend in BACKENDS {
        let workspace = Workspace::new();
        train_whole(&workspace, backend);
        let signals = [
            ("TERM", libc::SIGTERM),
            ("INT", libc::SIGINT),
            ("HUP", libc::SIGHUP),
            ("USR1", libc::SIGUSR1),
        ];
        for (signal, number) in signals {
            if altup_train::process::ignores(number) {
                eprintln!("not tried: this test was started to ignore SIG{signal}, as by nohup");
                continue;
            }
            let child = start(&workspace, signal, backend);
            let run = workspace.path(signal);
            let output = stopped(signal_behind(child, &run, 6, signal));
            let errors = String::from_utf8(output.stderr).unwrap();
            let step = newest_checkpoint(&run).unwrap();
            assert!(errors.contains(&format!("stopped at step {step}, saved")), "{errors}");
            assert!(errors.contains(&format!("--resume {signal}")), "{errors}");

            resume_to_the_end(&workspace, signal, backend);
            assert_same(&workspace, signal, "whole", &format!("{backend}, {signal}"));
        }
    }
}

/// As a terminal that is closed sends SIGHUP: its shell does, and then the system.
#[test]
#[allow(clippy::print_stderr)] // What is skipped is said.
fn two_signals_at_once_are_one_request() {
    if altup_train::process::ignores(libc::SIGHUP) {
        eprintln!("not tried: this test was started to ignore SIGHUP, as by nohup");
        return;
    }
    let workspace = Workspace::new();
    // Micro-batches that take longer than from one signal to the other.
    let slow =
        set(&["model.d_ff=16384", "training.gradient_accumulation=8", "training.steps=1000"]);
    let source = ["train", "--config", "config.toml", "--train", "corpus.txt", "--output", "run"];
    let mut child = spawn(workspace.altup(&[&source[..], &slow].concat()));
    let run = workspace.path("run");
    wait_for(&mut child, "its first steps", || {
        fs::read_to_string(run.join("metrics.jsonl"))
            .is_ok_and(|text| text.contains(r#""kind":"train""#))
    });
    send(&child, "HUP");
    sleep(Duration::from_millis(10));
    send(&child, "HUP");
    let output = stopped(child.wait_with_output().unwrap());
    let errors = String::from_utf8(output.stderr).unwrap();
    let step = newest_checkpoint(&run).unwrap();
    assert!(errors.contains(&format!("stopped at step {step}, saved")), "{errors}");
}

/// Nothing of what it was told is written down by then, so that `--resume` alone would lead elsewhere.
#[test]
fn a_resume_that_is_stopped_while_it_prepares_changes_nothing_and_says_so() {
    let workspace = Workspace::new();
    let text = fs::read_to_string(workspace.path("corpus.txt")).unwrap();
    workspace.write("large.txt", text.repeat(60));
    succeeds(workspace.train_on("large.txt", "run", &set(&["training.keep_last=10"])));
    let run = workspace.path("run");
    let before = contents(&run);
    fs::remove_dir_all(workspace.path("cache")).unwrap();
    let resume = ["train", "--resume", "run", "--from", "6", "--set", "training.log_every=3"];
    let mut child = spawn(workspace.altup(&resume));
    wait_for(&mut child, "its preparation", || workspace.path("cache").exists());
    send(&child, "TERM");
    let output = stopped(child.wait_with_output().unwrap());
    let errors = String::from_utf8(output.stderr).unwrap();
    let message =
        "stopped before training: the run in run is as it was; give the same command again";
    assert!(errors.contains(message), "{errors}");
    assert!(contents(&run) == before, "{:?}", contents(&run).keys());
}

/// The old run is half gone by then.
#[test]
fn a_run_that_is_stopped_while_it_replaces_another_does_not_say_that_it_is_there() {
    let workspace = Workspace::new();
    succeeds(workspace.train("run", &[]));
    let run = workspace.path("run");
    for number in 0..40_000 {
        workspace.write(&format!("run/abandoned/{}/{number}", number % 4), "");
    }
    let source = ["train", "--config", "config.toml", "--train", "corpus.txt"];
    let mut child =
        spawn(workspace.altup(&[&source[..], &["--output", "run", "--overwrite"]].concat()));
    wait_for(&mut child, "the end of the old run", || !run.join("config.toml").exists());
    send(&child, "TERM");
    let output = stopped(child.wait_with_output().unwrap());
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(errors.contains("stopped while run was replaced; start it again"), "{errors}");
    succeeds(workspace.train("run", &["--overwrite"]));
    assert!(run.join("summary.json").exists() && !run.join("abandoned").exists());
}

/// Its model is read before there is a folder.
#[test]
fn a_run_that_is_stopped_as_soon_as_it_has_its_folder_can_be_resumed_as_it_says() {
    let workspace = Workspace::new();
    let large = ["--variant", "dense", "--steps", "1", "--set", "model.d_ff=50000"];
    succeeds(workspace.train("large", &large));
    let source = ["train", "--train", "corpus.txt", "--init", "large/model", "--output", "run"];
    let short = set(&["data.input_length=32", "training.steps=2", "training.batch_size=2"]);
    let mut child = spawn(workspace.altup(&[&source[..], &short].concat()));
    let run = workspace.path("run");
    wait_for(&mut child, "its folder", || run.join("run.lock").exists());
    send(&child, "TERM");
    let output = stopped(child.wait_with_output().unwrap());
    let errors = String::from_utf8(output.stderr).unwrap();
    let advised = match errors.contains("go on with: altup train --resume run") {
        true => workspace.altup(&["train", "--resume", "run", "--quiet"]).output(),
        false => {
            assert!(errors.contains("start it again, by the same command"), "{errors}");
            workspace.altup(&[&source[..], &short].concat()).output()
        }
    };
    succeeds(advised.unwrap());
}

/// Stopped again and again, in the middle of steps and of validation, whose batches are many here.
#[test]
fn a_run_that_is_stopped_anywhere_ends_as_one_that_was_not() {
    let often = set(&[
        "training.eval_every=3",
        "training.eval_examples=64",
        "training.gradient_accumulation=8",
        "training.checkpoint_every=1000",
    ]);
    let workspace = Workspace::new();
    succeeds(long(&workspace, "whole", "flex").args(&often).output().unwrap());
    let run = workspace.path("stopped");
    let mut stops = 0;
    let mut command = long(&workspace, "stopped", "flex");
    command.args(&often);
    let mut child = spawn(command);
    let metrics = run.join("metrics.jsonl");
    let length = || fs::metadata(&metrics).map_or(0, |metrics| metrics.len());
    loop {
        let before = length();
        // Behind another row, of steps or of validation, and then at some moment or other.
        while child.try_wait().unwrap().is_none() && length() <= before {
            sleep(Duration::from_millis(1));
        }
        sleep(Duration::from_millis(stops * 7 % 40));
        if child.try_wait().unwrap().is_some() {
            succeeds(child.wait_with_output().unwrap());
            break;
        }
        let process = child.id().to_string();
        let sent = Command::new("sh").args(["-c", r#"kill -s TERM "$0""#, &process]).status();
        sent.unwrap();
        let output = child.wait_with_output().unwrap();
        if output.status.success() {
            break; // It was done.
        }
        stopped(output);
        stops += 1;
        child = spawn(resume(&workspace, "stopped", "flex"));
    }
    assert!(stops > 5, "stopped {stops} times only");
    assert_same(&workspace, "stopped", "whole", &format!("after {stops} stops"));
}

#[test]
fn a_run_that_is_stopped_while_it_prepares_can_be_resumed() {
    let workspace = Workspace::new();
    train_whole(&workspace, "flex");
    let text = fs::read_to_string(workspace.path("corpus.txt")).unwrap();
    workspace.write("large.txt", text.repeat(60));
    let tokenizer = ["--tokenizer", "whole/tokenizer.json"];
    let source = ["train", "--config", "config.toml", "--train", "large.txt", "--output", "run"];
    let mut child = spawn(workspace.altup(&[&source[..], &tokenizer].concat()));
    let run = workspace.path("run");
    wait_for(&mut child, "its configuration", || run.join("config.toml").exists());
    let process = child.id().to_string();
    assert!(Command::new("sh").args(["-c", r#"kill "$0""#, &process]).status().unwrap().success());
    let output = stopped(child.wait_with_output().unwrap());
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(
        errors.contains("stopped before training; go on with: altup train --resume run"),
        "{errors}"
    );
    assert_eq!(names_in(&run), ["config-history.jsonl", "config.toml", "run.json", "run.lock"]);
    resume_to_the_end(&workspace, "run", "flex");
    assert!(run.join("model/model.safetensors").exists());
}

/// As `nohup` starts one.
#[test]
fn a_signal_that_a_run_was_started_to_ignore_stays_ignored() {
    let workspace = Workspace::new();
    train_whole(&workspace, "flex");
    let script = r#"trap '' HUP; exec "$0" "$@""#;
    let mut command = Command::new("sh");
    command.args(["-c", script, env!("CARGO_BIN_EXE_altup")]).current_dir(workspace.path(""));
    command.args(long(&workspace, "run", "flex").get_args());
    command.env("ALTUP_CACHE", workspace.path("cache")).env("RAYON_NUM_THREADS", "1");
    let mut child = spawn(command);
    wait_for_checkpoint(&mut child, &workspace.path("run"), 6);
    let process = child.id().to_string();
    let sent = Command::new("sh").args(["-c", r#"kill -s HUP "$0""#, &process]).status();
    assert!(sent.unwrap().success());
    succeeds(child.wait_with_output().unwrap());
    assert_same(&workspace, "run", "whole", "ignoring SIGHUP");
}

#[test]
fn checkpoints_come_by_time_too() {
    let workspace = Workspace::new();
    let flags = set(&[
        "training.checkpoint_every=1000",
        "training.checkpoint_minutes=0.0001",
        "training.keep_last=1000",
    ]);
    succeeds(workspace.train("run", &flags));
    let checkpoints = names_in(&workspace.path("run/checkpoints"));
    assert!(checkpoints.len() > 2, "{checkpoints:?}");
}

#[test]
fn a_damaged_checkpoint_is_passed_over_for_the_one_before() {
    for backend in BACKENDS {
        let workspace = Workspace::new();
        train_whole(&workspace, backend);
        let stopped_run = workspace.path("stopped");
        stopped(signal_behind(start(&workspace, "stopped", backend), &stopped_run, 6, "TERM"));
        let newest = checkpoint_name(newest_checkpoint(&stopped_run).unwrap());

        for (run, damage) in DAMAGES {
            let folder = workspace.path(run);
            copy_folder(&stopped_run, &folder);
            damage(&folder.join("checkpoints").join(&newest));
            let output = succeeds(resume(&workspace, run, backend).output().unwrap());
            let errors = String::from_utf8(output.stderr).unwrap();
            let passed_over = errors.lines().find(|line| line.contains("passed over a checkpoint"));
            assert!(passed_over.is_some_and(|line| line.contains(&newest)), "{errors}");
            assert_same(&workspace, run, "whole", &format!("{backend}, {run}"));
        }
    }
}

/// Damaged checkpoints are neither counted nor kept: not those whose size tells, nor those that were found damaged
/// when the run was resumed.
#[test]
fn damaged_checkpoints_do_not_push_out_good_ones() {
    let flip = |path: &Path| {
        let mut bytes = fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(path, bytes).unwrap();
    };
    let workspace = Workspace::new();
    let flags = set(&["training.keep_last=3", "training.eval_every=100"]);
    succeeds(workspace.train("whole", &[&["--steps", "15"][..], &flags].concat()));
    succeeds(workspace.train("run", &flags));
    let checkpoints = workspace.path("run/checkpoints");
    let names = |steps: &[u64]| steps.iter().copied().map(checkpoint_name).collect::<Vec<_>>();
    assert_eq!(names_in(&checkpoints), names(&[6, 9, 12]));
    flip(&checkpoints.join("step-00000012/model.bpk"));
    let file =
        fs::File::options().write(true).open(checkpoints.join("step-00000009/optimizer.bpk"));
    file.unwrap().set_len(10).unwrap();

    let resume = ["train", "--resume", "run", "--quiet", "--steps", "15"];
    let keep_one = ["--set", "training.keep_last=1"];
    succeeds(workspace.altup(&[&resume[..], &keep_one].concat()).output().unwrap());
    assert_same(&workspace, "run", "whole", "from step 6");
    // The newest, the one before, which proved good, and the one of the only validation.
    assert_eq!(names_in(&checkpoints), names(&[12, 15]));
    succeeds(workspace.altup(&[&resume[..4], &["--from", "12"]].concat()).output().unwrap());
    assert_same(&workspace, "run", "whole", "from step 12");
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
            assert!(message.contains("; --from 0 goes back to the start"), "{message}");
            assert!(checkpoints.iter().all(|name| message.contains(name)), "{message}");
            assert_eq!(names_in(&folder), checkpoints, "{run}");
            let mut from_start = resume(&workspace, run, backend);
            succeeds(from_start.args(["--from", "0", "--quiet"]).output().unwrap());
            assert_same(&workspace, run, "whole", run);
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
fn what_a_run_learns_is_fixed() {
    let workspace = Workspace::new();
    succeeds(workspace.train("run", &[]));
    let before = fs::read(workspace.path("run/metrics.jsonl")).unwrap();
    let cases: [(&[&str], &str); 5] = [
        (&["--seed", "5"], "seed (0 → 5)"),
        (&["--set", "model.d_ff=64"], "model.d_ff (32 → 64)"),
        (&["--batch-size", "8"], "training.batch_size (4 → 8)"),
        (&["--variant", "dense"], "model.altup ("),
        (&["--precision", "bf16"], "training.precision (\"f32\" → \"bf16\")"),
    ];
    for (flags, change) in cases {
        let mut command = workspace.altup(&["train", "--resume", "run", "--quiet"]);
        let message = fails(command.args(flags).output().unwrap());
        assert!(message.contains("another configuration"), "{message}");
        assert!(message.contains(&format!(" {change}")), "{message}");
    }
    assert_eq!(fs::read(workspace.path("run/metrics.jsonl")).unwrap(), before);
}

/// The lines of a run's history, each with its step, and a value of its configuration.
fn history(run: &Path, pointer: &str) -> Vec<(u64, serde_json::Value)> {
    let text = fs::read_to_string(run.join("config-history.jsonl")).unwrap();
    let rows = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let value = |row: &serde_json::Value| row.pointer(pointer).unwrap().clone();
    rows.map(|row| (row["step"].as_u64().unwrap(), value(&row))).collect()
}

#[test]
fn a_run_may_go_further_and_faster_and_keeps_its_history() {
    let workspace = Workspace::new();
    succeeds(workspace.train("run", &[]));
    succeeds(workspace.train("whole", &["--steps", "24"]));
    let further = ["train", "--resume", "run", "--quiet", "--steps", "24"];
    succeeds(workspace.altup(&further).output().unwrap());
    // An inverse square root doesn't depend on the end.
    assert_same(&workspace, "run", "whole", "further");

    let faster =
        ["--steps", "30", "--set", "optimizer.learning_rate=0.5", "--set", "data.workers=2"];
    let resume = ["train", "--resume", "run"];
    let otherwise =
        set(&["training.gradient_checkpointing=true", "training.prompts=[\"The <extra_id_0>\"]"]);
    let faster = [&resume[..], &faster, &otherwise].concat();
    let output = workspace.altup(&faster).output().unwrap();
    let errors = String::from_utf8(succeeds(output).stderr).unwrap();
    assert!(errors.contains("from step 24 on: optimizer.learning_rate (1.0 → 0.5)"), "{errors}");
    let run = workspace.path("run");
    assert_eq!(
        history(&run, "/config/training/steps"),
        [(0, 12.into()), (12, 24.into()), (24, 30.into())]
    );
    assert!(fs::read_to_string(run.join("config.toml")).unwrap().contains("learning_rate = 0.5"));
    // What is not named stays as it was changed.
    succeeds(workspace.altup(&resume).arg("--quiet").output().unwrap());
    assert_eq!(history(&run, "/config/optimizer/learning_rate").len(), 3);

    let back = [&resume[..], &["--quiet", "--steps", "20"]].concat();
    let message = fails(workspace.altup(&back).output().unwrap());
    assert!(
        message.contains("training.steps is 20") && message.contains("has done 30"),
        "{message}"
    );
}

/// What is not the seed's alone is done again too.
#[test]
fn a_run_that_starts_again_starts_with_its_coefficients() {
    let workspace = Workspace::new();
    let flags = set(&["coefficients.prediction=uniform", "coefficients.correction=selected"]);
    succeeds(workspace.train("whole", &flags));
    for from in [&[][..], &["--from", "0"]] {
        copy_folder(&workspace.path("whole"), &workspace.path("run"));
        if from.is_empty() {
            fs::remove_dir_all(workspace.path("run/checkpoints")).unwrap();
        }
        let resume = [&["train", "--resume", "run", "--quiet"][..], from].concat();
        succeeds(workspace.altup(&resume).output().unwrap());
        assert_same(&workspace, "run", "whole", "from its start");
        fs::remove_dir_all(workspace.path("run")).unwrap();
    }
}

/// Its figures and its model were those of an earlier end.
#[test]
fn a_finished_run_that_goes_on_is_not_finished() {
    let workspace = Workspace::new();
    succeeds(workspace.train("run", &[]));
    let run = workspace.path("run");
    let evaluate = ["evaluate", "--model", "run", "--valid", "corpus.txt", "--examples", "2"];
    let said = |output: Output| String::from_utf8(succeeds(output).stderr).unwrap();
    assert!(!said(workspace.altup(&evaluate).output().unwrap()).contains("goes on"));
    let further = ["train", "--resume", "run", "--quiet", "--steps", "100000"];
    let mut child = spawn(workspace.altup(&further));
    wait_for_checkpoint(&mut child, &run, 15);
    kill(child, &run);
    let warning = "warning: the run run goes on: its model is that of an earlier end";
    assert!(said(workspace.altup(&evaluate).output().unwrap()).contains(warning));
}

/// Step 9 has a checkpoint, and neither a validation nor a row of its own.
#[test]
fn a_run_may_end_at_the_step_that_is_done() {
    let workspace = Workspace::new();
    let resume = ["train", "--resume", "run", "--quiet", "--steps", "9"];
    for (eval_every, log_every) in [("4", "2"), ("100", "100")] {
        let [eval, log] = [("eval", eval_every), ("log", log_every)]
            .map(|(what, every)| format!("training.{what}_every={every}"));
        let often = set(&[&eval, &log]);
        let whole = [&["--steps", "9", "--overwrite"][..], &often].concat();
        succeeds(workspace.train("whole", &whole));
        succeeds(workspace.train("run", &[&["--overwrite"][..], &often].concat()));
        let run = workspace.path("run");
        fs::remove_dir_all(run.join("checkpoints/step-00000012")).unwrap();
        succeeds(workspace.altup(&resume).output().unwrap());
        assert_same(&workspace, "run", "whole", "brought forward");
        let summary = fs::read_to_string(run.join("summary.json")).unwrap();
        let summary: serde_json::Value = serde_json::from_str(&summary).unwrap();
        let rows = support::rows(&run);
        let valid = rows.iter().rfind(|row| row["kind"] == "valid").unwrap();
        assert_eq!((&summary["steps"], &valid["step"]), (&9.into(), &9.into()));
        assert_eq!(summary["valid_loss"], valid["loss"]);
        // Once more changes nothing.
        succeeds(workspace.altup(&resume).output().unwrap());
        assert_same(&workspace, "run", "whole", "again");
    }
}

/// The last validation is another than those before, also where the step has had one of those.
#[test]
fn the_last_step_has_the_validation_of_a_last_step() {
    let workspace = Workspace::new();
    let often = ["training.eval_every=3", "training.eval_examples=4"];
    let with = |of_last| set(&[often[0], often[1], of_last]);
    let of_last = "training.final_eval_examples=6";
    succeeds(workspace.train("whole", &[&["--steps", "9"][..], &with(of_last)].concat()));
    succeeds(workspace.train("run", &with(of_last)));
    let run = workspace.path("run");
    fs::remove_dir_all(run.join("checkpoints/step-00000012")).unwrap();
    let resume = ["train", "--resume", "run", "--quiet"];
    for _ in 0..2 {
        succeeds(workspace.altup(&resume).args(["--steps", "9"]).output().unwrap());
        assert_same(&workspace, "run", "whole", "brought forward");
    }
    // Of a finished run, the number may change.
    let other = "training.final_eval_examples=8";
    succeeds(workspace.train("other", &[&["--steps", "9"][..], &with(other)].concat()));
    succeeds(workspace.altup(&resume).args(set(&[other])).output().unwrap());
    assert_same(&workspace, "run", "other", "with more examples");
    let summary = |run: &str| -> serde_json::Value {
        serde_json::from_slice(&fs::read(workspace.path(run).join("summary.json")).unwrap())
            .unwrap()
    };
    for figure in ["valid_loss", "unigram_loss"] {
        assert_eq!(summary("run")[figure], summary("other")[figure]);
        assert_ne!(summary("run")[figure], summary("whole")[figure]);
    }
}

/// A checkpoint whose validation is still due: its rows are written again, and stand there once.
#[test]
fn a_validation_that_is_done_again_is_written_once() {
    let workspace = Workspace::new();
    let flags = set(&["training.checkpoint_every=4"]);
    succeeds(workspace.train("whole", &flags));
    succeeds(workspace.train("run", &flags));
    let run = workspace.path("run");
    // As one that was stopped within the validation of step 8, resumed, and killed behind it.
    fs::remove_dir_all(run.join("checkpoints/step-00000012")).unwrap();
    let path = run.join("checkpoints/step-00000008/state.json");
    let text = fs::read_to_string(&path).unwrap();
    let mut state: serde_json::Value = serde_json::from_str(&text).unwrap();
    state["state"]["validation_is_due"] = true.into();
    state["state"]["valid_loss"] = serde_json::Value::Null;
    fs::write(&path, state.to_string()).unwrap();
    resume_to_the_end(&workspace, "run", "flex");
    assert_same(&workspace, "run", "whole", "validated again");
}

/// Files in the making, as kills leave them.
fn left_by_kills(run: &Path) {
    for name in [
        ".view-Ab12Cd",
        "charts/.view-Ab12Cd",
        ".tokenizer-Ab12Cd",
        "config.toml.partial",
        "metrics.jsonl.partial",
        "summary.json.partial",
        "model/.partial-Ab12Cd/tensors",
        "model/.tokenizer-Ab12Cd",
        "model/config.json.partial",
        "abandoned/7/checkpoints/step-00000009.partial/model.bpk",
        "abandoned/7/model.partial/model.safetensors",
    ] {
        fs::create_dir_all(run.join(name).parent().unwrap()).unwrap();
        fs::write(run.join(name), "half").unwrap();
    }
}

#[test]
fn what_kills_have_left_is_removed() {
    let workspace = Workspace::new();
    succeeds(workspace.train("run", &[]));
    let run = workspace.path("run");
    let left = || [&run, &run.join("model"), &run.join("charts")].map(|folder| names_in(folder));
    let before = left();
    left_by_kills(&run);
    // A user's own.
    fs::write(run.join("notes.partial"), "mine").unwrap();
    resume_to_the_end(&workspace, "run", "flex");
    assert_eq!(names_in(&run.join("abandoned/7")), ["checkpoints"]);
    assert_eq!(names_in(&run.join("abandoned/7/checkpoints")), [""; 0]);
    fs::remove_dir_all(run.join("abandoned")).unwrap();
    fs::remove_file(run.join("notes.partial")).unwrap();
    assert_eq!(left(), before);

    left_by_kills(&run);
    let source = ["train", "--config", "config.toml", "--train", "corpus.txt", "--output", "run"];
    let output = workspace.altup(&[&source[..], &["--overwrite"]].concat()).output().unwrap();
    let errors = String::from_utf8(succeeds(output).stderr).unwrap();
    assert!(!errors.contains("is no run's"), "{errors}");
    assert_eq!(left(), before);
}

#[test]
fn a_run_goes_back_to_a_step_and_keeps_what_lay_behind() {
    let workspace = Workspace::new();
    let keep = ["--set", "training.keep_last=10"];
    succeeds(workspace.train("run", &keep));
    copy_folder(&workspace.path("run"), &workspace.path("before"));
    let run = workspace.path("run");
    let resume = ["train", "--resume", "run", "--quiet", "--from"];
    let message = fails(workspace.altup(&[&resume[..], &["7"]].concat()).output().unwrap());
    assert!(
        message.contains("no checkpoint of step 7; there are those of steps 3, 6, 9, 12"),
        "{message}"
    );
    assert!(!run.join("abandoned").exists());
    left_by_kills(&run);
    for (number, step) in [(1, "6"), (2, "0")] {
        succeeds(workspace.altup(&[&resume[..], &[step]].concat()).output().unwrap());
        assert_same(&workspace, "run", "before", step);
        assert_eq!(names_in(&run.join("model")), names_in(&workspace.path("before/model")));
        let aside = run.join(format!("abandoned/{number}"));
        let kept = ["checkpoints", "metrics.jsonl", "model", "samples.jsonl", "summary.json"];
        assert_eq!(names_in(&aside), kept);
        let behind = names_in(&aside.join("checkpoints"));
        let first = step.parse::<u64>().unwrap() + 3;
        let steps: Vec<u64> = (first..=12).step_by(3).collect();
        assert_eq!(behind, steps.into_iter().map(checkpoint_name).collect::<Vec<_>>());
        assert_eq!(support::rows(&aside).len(), support::rows(&run).len());
    }
}

/// As where checkpoints lie on a larger disk. `/dev/shm` is another file system than that of temporary files on most
/// machines that have it.
#[cfg(target_os = "linux")]
#[test]
#[allow(clippy::print_stderr)] // What is skipped is said.
fn a_run_goes_back_though_its_checkpoints_lie_on_another_file_system() {
    use std::os::unix::fs::{MetadataExt, symlink};
    let workspace = Workspace::new();
    let Ok(disk) = tempfile::tempdir_in("/dev/shm") else {
        eprintln!("not tried: there is no /dev/shm");
        return;
    };
    let device = |path: &Path| fs::metadata(path).unwrap().dev();
    if device(disk.path()) == device(&workspace.path("")) {
        eprintln!("not tried: temporary files lie in /dev/shm");
        return;
    }
    succeeds(workspace.train("run", &set(&["training.keep_last=10"])));
    copy_folder(&workspace.path("run"), &workspace.path("before"));
    let run = workspace.path("run");
    let (here, there) = (run.join("checkpoints"), disk.path().join("checkpoints"));
    copy_folder(&here, &there);
    fs::remove_dir_all(&here).unwrap();
    symlink(&there, &here).unwrap();
    let resume = ["train", "--resume", "run", "--quiet", "--from", "6"];
    succeeds(workspace.altup(&resume).output().unwrap());
    assert_same(&workspace, "run", "before", "with its checkpoints elsewhere");
    let names = |steps: &[u64]| steps.iter().copied().map(checkpoint_name).collect::<Vec<_>>();
    assert_eq!(names_in(&run.join("abandoned/1/checkpoints")), names(&[9, 12]));
    assert_eq!(names_in(&there), names(&[3, 6, 9, 12]));
    for file in ["model.bpk", "optimizer.bpk", "state.json"] {
        let [aside, before] = ["run/abandoned/1", "before"]
            .map(|folder| workspace.path(folder).join("checkpoints/step-00000009").join(file));
        assert!(fs::read(aside).unwrap() == fs::read(before).unwrap(), "{file}");
    }
}

#[test]
fn a_run_goes_on_with_no_other_data() {
    let workspace = Workspace::new();
    let corpus = fs::read_to_string(workspace.path("corpus.txt")).unwrap();
    let documents: Vec<&str> = corpus.trim_end().split("\n\n").collect();
    let part = |range: std::ops::Range<usize>| documents[range].join("\n\n");
    for (name, range) in [("a", 0..100), ("b", 100..200), ("c", 200..280)] {
        workspace.write(&format!("shards/{name}.txt"), part(range));
    }
    workspace.write("valid.txt", part(280..310));
    succeeds(workspace.train_on("shards", "run", &["--valid", "valid.txt"]));
    succeeds(workspace.train("other", &["--set", "data.vocab_size=400", "--steps", "1"]));
    let before = fs::read(workspace.path("run/metrics.jsonl")).unwrap();
    let refused = |flags: &[&str], words: &[&str]| {
        let mut command = workspace.altup(&["train", "--resume", "run", "--quiet"]);
        let message = fails(command.args(flags).output().unwrap());
        for word in words {
            assert!(message.contains(word), "{message:?} doesn't say {word:?}");
        }
        assert_eq!(fs::read(workspace.path("run/metrics.jsonl")).unwrap(), before);
    };
    refused(
        &["--train", "corpus.txt"],
        &["the run in run", "training text has changed", "corpus.txt"],
    );
    refused(
        &["--valid", "corpus.txt"],
        &["validation text has changed", "corpus.txt", "valid.txt"],
    );
    refused(&["--tokenizer", "other/tokenizer.json"], &["tokenizer is another one"]);

    // The same text elsewhere is the same.
    fs::rename(workspace.path("shards"), workspace.path("moved")).unwrap();
    refused(&[], &["shards"]);
    fs::copy(workspace.path("run/tokenizer.json"), workspace.path("same.json")).unwrap();
    let moved = ["--train", "moved", "--tokenizer", "same.json", "--steps", "14"];
    let mut command = workspace.altup(&["train", "--resume", "run", "--quiet"]);
    succeeds(command.args(moved).output().unwrap());
    succeeds(workspace.altup(&["train", "--resume", "run", "--quiet"]).output().unwrap());

    let before = fs::read(workspace.path("run/metrics.jsonl")).unwrap();
    let refused = |words: &str| {
        let mut command = workspace.altup(&["train", "--resume", "run", "--quiet"]);
        let message = fails(command.output().unwrap());
        assert!(message.contains(words), "{message:?} doesn't say {words:?}");
        assert_eq!(fs::read(workspace.path("run/metrics.jsonl")).unwrap(), before);
    };
    workspace.write("moved/b.txt", part(100..200) + "\n\nThe river was in the garden.\n");
    refused("b.txt is not what it was when the run was started");
    workspace.write("moved/b.txt", part(100..200));
    workspace.write("moved/d.txt", "The river was in the garden.\n");
    refused("d.txt is new");
    fs::rename(workspace.path("moved/a.txt"), workspace.path("moved/d.txt")).unwrap();
    refused("its shards are in another order");
}

#[test]
fn a_run_goes_on_on_its_backend_unless_another_is_named() {
    let workspace = Workspace::new();
    succeeds(workspace.train("run", &["--backend", "ndarray"]));
    let run = workspace.path("run");
    let resume = ["train", "--resume", "run"];
    succeeds(workspace.altup(&resume).args(["--steps", "16", "--quiet"]).output().unwrap());
    let command = ["--steps", "20", "--backend", "flex"];
    let output = succeeds(workspace.altup(&resume).args(command).output().unwrap());
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(errors.contains("warning: the run was on ndarray and goes on on flex"), "{errors}");
    succeeds(workspace.altup(&resume).args(["--steps", "24", "--quiet"]).output().unwrap());
    let rows = support::rows(&run);
    let starts = rows.iter().filter(|row| row["kind"] == "start");
    let starts: Vec<(u64, &str)> = starts
        .map(|row| (row["step"].as_u64().unwrap(), row["backend"].as_str().unwrap()))
        .map(|(step, name)| (step, name.split(' ').next().unwrap()))
        .collect();
    assert_eq!(starts, [(0, "ndarray"), (16, "flex")]);
    let backends = history(&run, "/backend");
    let backends: Vec<(u64, &str)> =
        backends.iter().map(|(step, name)| (*step, name.as_str().unwrap())).collect();
    assert_eq!(backends, [(0, "ndarray"), (12, "ndarray"), (16, "flex"), (20, "flex")]);
}

#[test]
fn a_run_of_another_version_is_refused_by_name() {
    let workspace = Workspace::new();
    succeeds(workspace.train("run", &[]));
    let edit = |file: &str, old: &str, new: &str| {
        let text = fs::read_to_string(workspace.path(file)).unwrap();
        assert!(text.contains(old), "{text}");
        workspace.write(file, text.replacen(old, new, 1));
        let mut command = workspace.altup(&["train", "--resume", "run", "--quiet"]);
        let message = fails(command.output().unwrap());
        workspace.write(file, text);
        message
    };
    let checkpoint = "run/checkpoints/step-00000012/state.json";
    let numerics = format!("\"numerics\": {}", altup_train::run_record::NUMERICS);
    for (file, old, new, words) in [
        ("run/run.json", "\"format\": 1", "\"format\": 2", "format of files has version 2"),
        ("run/run.json", numerics.as_str(), "\"numerics\": 99", "arithmetic has version 99"),
        (checkpoint, "\"format\": 1", "\"format\": 0", "format of files has version 0"),
        (checkpoint, numerics.as_str(), "\"numerics\": 0", "arithmetic has version 0"),
    ] {
        let message = edit(file, old, new);
        assert!(message.contains(words) && message.contains("altup 0.1.0"), "{message}");
        assert!(message.contains(file.trim_end_matches("/state.json")), "{message}");
    }
    fs::rename(workspace.path("run/run.json"), workspace.path("elsewhere.json")).unwrap();
    let message =
        fails(workspace.altup(&["train", "--resume", "run", "--quiet"]).output().unwrap());
    assert!(message.contains("from before runs had a run.json"), "{message}");
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
