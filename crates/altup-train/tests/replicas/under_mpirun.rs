//! Under Open MPI's `mpirun`. Each start has a limit to its time: nothing here may hang.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::support::{Workspace, assert_same, copy_folder, names_in, rows, set, succeeds};

/// After a replica has died, all is over in this time.
const END: Duration = Duration::from_secs(10);
/// A start that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(240);

/// A run of 20 steps, with all that a step's number decides.
const RUN: &[&str] = &["--config", "config.toml", "--train", "corpus.txt", "--quiet"];

fn short() -> Vec<&'static str> {
    let keys = set(&[
        "training.steps=20",
        "training.gradient_accumulation=4",
        "training.batch_size=2",
        "model.dropout_rate=0.1",
    ]);
    [RUN, &keys].concat()
}

/// Processes that were started together.
struct Together {
    mpirun: Child,
    folder: PathBuf,
    said: PathBuf,
}

/// How they ended, and what they wrote to standard error.
struct Ended {
    status: ExitStatus,
    errors: String,
}

/// `mpirun` of `size` replicas of `altup` with `arguments`.
fn start(workspace: &Workspace, size: usize, arguments: &[&str]) -> Together {
    let size = size.to_string();
    let program = env!("CARGO_BIN_EXE_altup");
    start_as(workspace, &[&["-n", size.as_str(), program], arguments].concat())
}

/// `mpirun` of what `arguments` say.
fn start_as(workspace: &Workspace, arguments: &[&str]) -> Together {
    let said = workspace.path("said");
    let write = || File::create(&said).unwrap();
    let mut mpirun = Command::new("mpirun");
    // The environment and the folder of the workspace's own commands.
    let of_workspace = workspace.altup(&[]);
    for (name, value) in of_workspace.get_envs() {
        mpirun.env(name, value.unwrap());
    }
    mpirun
        .args(["--allow-run-as-root", "--oversubscribe", "--bind-to", "none"])
        .args(arguments)
        .current_dir(workspace.path(""))
        .env("OMPI_MCA_orte_tmpdir_base", std::env::temp_dir())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(write())
        // Open MPI ends a child's whole group, which is its own while the child is starting.
        .process_group(0);
    let folder = workspace.path("").canonicalize().unwrap();
    Together { mpirun: mpirun.spawn().unwrap(), folder, said }
}

impl Together {
    /// Their end, in at most `limit`.
    #[track_caller]
    fn end_within(mut self, limit: Duration) -> Ended {
        let since = Instant::now();
        let status = loop {
            if let Some(status) = self.mpirun.try_wait().unwrap() {
                break status;
            }
            if since.elapsed() > limit {
                let errors = fs::read_to_string(&self.said).unwrap();
                self.replicas().iter().for_each(|(process, _)| signal("KILL", *process));
                self.mpirun.kill().unwrap();
                panic!("not over after {limit:?}, with this on standard error:\n{errors}");
            }
            sleep(Duration::from_millis(20));
        };
        // Those that it has killed may take a moment to go.
        while !self.replicas().is_empty() {
            assert!(since.elapsed() < limit + END, "left: {:?}", self.replicas());
            sleep(Duration::from_millis(20));
        }
        Ended { status, errors: fs::read_to_string(&self.said).unwrap() }
    }

    /// The replicas that run, as process and rank: those whose folder is in the workspace.
    fn replicas(&self) -> Vec<(u32, usize)> {
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let of_replica = |process: u32| -> Option<(u32, usize)> {
            let folder = fs::read_link(format!("/proc/{process}/cwd")).ok()?;
            let mut variables = Vec::new();
            File::open(format!("/proc/{process}/environ"))
                .ok()?
                .read_to_end(&mut variables)
                .ok()?;
            let variables = String::from_utf8_lossy(&variables);
            let rank = variables
                .split('\0')
                .find_map(|variable| variable.strip_prefix("OMPI_COMM_WORLD_RANK="))?;
            folder.starts_with(&self.folder).then_some((process, rank.parse().ok()?))
        };
        processes
            .filter_map(|entry| of_replica(entry.file_name().to_str()?.parse().ok()?))
            .collect()
    }

    fn replica(&self, rank: usize) -> u32 {
        let found = self.replicas().into_iter().find(|(_, of)| *of == rank);
        found.unwrap_or_else(|| panic!("replica {rank} does not run")).0
    }

    /// Waits until the run has a row of metrics of `step`.
    #[track_caller]
    fn reach(&mut self, run: &Path, step: u64) {
        let since = Instant::now();
        let reached = || {
            let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
            let row = format!("\"kind\":\"train\",\"step\":{step},");
            text.contains(&row)
        };
        while !reached() {
            let ended = self.mpirun.try_wait().unwrap();
            let errors = || fs::read_to_string(&self.said).unwrap();
            assert!(ended.is_none(), "ended before step {step}:\n{}", errors());
            assert!(since.elapsed() < LIMIT, "step {step} does not come:\n{}", errors());
            sleep(Duration::from_millis(2));
        }
    }
}

impl Ended {
    /// The lines that replicas wrote: the launcher has a lot to say besides.
    fn said(&self) -> Vec<&str> {
        self.errors.lines().filter(|line| line.starts_with("replica ")).collect()
    }

    #[track_caller]
    fn well(self) {
        assert!(
            self.status.success(),
            "{}, with this on standard error:\n{}",
            self.status,
            self.errors
        );
    }

    /// The one message of a failure, which names its replica.
    #[track_caller]
    fn message(self) -> String {
        assert!(!self.status.success(), "{}", self.errors);
        let [message] = self.said()[..] else { panic!("not one message:\n{}", self.errors) };
        message.to_owned()
    }
}

fn signal(name: &str, process: u32) {
    // The shell's own `kill`: the program of that name is not on every machine.
    let sent = Command::new("sh")
        .args(["-c", r#"kill -s "$0" "$1""#, name, &process.to_string()])
        .status();
    assert!(sent.unwrap().success());
}

fn train_alone(workspace: &Workspace, run: &str, flags: &[&str]) {
    let arguments = [&["train", "--output", run][..], flags].concat();
    succeeds(workspace.altup(&arguments).output().unwrap());
}

#[test]
fn two_replicas_train_to_the_bits_of_one_process() {
    let workspace = Workspace::new();
    train_alone(&workspace, "alone", &short());
    let arguments = [&["train", "--output", "run"][..], &short()].concat();
    start(&workspace, 2, &arguments).end_within(LIMIT).well();
    assert_same(&workspace, "run", "alone", "two replicas");
    let run = workspace.path("run");
    let summary: serde_json::Value =
        serde_json::from_slice(&fs::read(run.join("summary.json")).unwrap()).unwrap();
    assert_eq!(summary["replicas"], 2);
    assert!(summary["exchange_share"].as_f64().unwrap() > 0.0, "{summary}");
    let start = &rows(&run)[0];
    assert_eq!((start["kind"].as_str(), start["replicas"].as_u64()), (Some("start"), Some(2)));
    let report = fs::read_to_string(run.join("report.html")).unwrap();
    assert!(report.contains("2 replicas, whose exchange took"), "the report knows of no replicas");
}

/// Replica 1, replica 0, and one of them inside of a checkpoint; then with other numbers of replicas.
#[test]
fn a_killed_replica_ends_all_and_the_run_goes_on() {
    let workspace = Workspace::new();
    train_alone(&workspace, "whole", &short());
    let run = workspace.path("run");
    let arguments = [&["train", "--output", "run", "--auto-resume"][..], &short()].concat();
    for (size, rank, step) in [(2, 1, 4), (4, 0, 8), (2, 1, 12)] {
        let mut together = start(&workspace, size, &arguments);
        together.reach(&run, step);
        sleep(Duration::from_millis(7 * step));
        signal("KILL", together.replica(rank));
        let ended = together.end_within(END);
        assert!(!ended.status.success(), "{}", ended.errors);
        assert!(!run.join("summary.json").exists());
    }
    let copy = workspace.path("copy");
    copy_folder(&run, &copy);
    start(&workspace, 4, &["train", "--resume", "run", "--quiet"]).end_within(LIMIT).well();
    assert_same(&workspace, "run", "whole", "killed, and ended by four");
    succeeds(workspace.altup(&["train", "--resume", "copy", "--quiet"]).output().unwrap());
    assert_same(&workspace, "copy", "whole", "killed, and ended by one");
}

#[test]
fn what_replicas_have_unlike_is_refused_by_name_and_nothing_is_written() {
    let workspace = Workspace::new();
    let program = env!("CARGO_BIN_EXE_altup");
    let arguments = [&["train", "--output", "run"][..], &short()].concat();
    let pair = |first: &[&str], second: &[&str]| {
        let one = [&["-n", "1", program], &arguments[..], first].concat();
        let other = [&[":", "-n", "1", program], &arguments[..], second].concat();
        let together = start_as(&workspace, &[one, other].concat());
        let message = together.end_within(LIMIT).message();
        let begun = workspace.path("run/checkpoints").exists();
        assert!(!begun, "{message}");
        message
    };
    let seed = pair(&[], &["--seed", "7"]);
    assert!(
        seed.starts_with("replica 0 of 2: error: the replicas differ: seed is 7 on replica 1"),
        "{seed}"
    );
    let backend = pair(&["--backend", "ndarray"], &[]);
    assert!(backend.contains("backend is \"flex\" on replica 1, and \"ndarray\" on"), "{backend}");

    let text = fs::read_to_string(workspace.path("corpus.txt")).unwrap();
    workspace.write("other.txt", text.replace("the ", "a "));
    let corpus = pair(&[], &["--set", "data.train=['other.txt']"]);
    assert!(corpus.contains("data.sources[0].train.shards[0].blake3 is "), "{corpus}");
    let tokenizer = pair(&["--tokenizer", "corpus.txt"], &[]);
    assert!(tokenizer.contains("data.tokenizer is unset on replica 1, and "), "{tokenizer}");

    let odd =
        [&["train", "--output", "run"][..], &short(), &set(&["training.gradient_accumulation=3"])];
    let message = start(&workspace, 2, &odd.concat()).end_within(LIMIT).message();
    let words = "is 3, which 2 replicas can't share evenly: 2 or 4 would do, or 1 or 3 replicas";
    assert!(message.contains(words), "{message}");
    assert!(!workspace.path("run").exists());
}

#[test]
fn an_error_in_the_data_of_one_replica_ends_all() {
    let workspace = Workspace::new();
    train_alone(&workspace, "first", &short());
    workspace.write("broken.jsonl", "{\"text\": \"whole\"}\n{\"text\": \n");
    let program = env!("CARGO_BIN_EXE_altup");
    let tokenizer = ["--tokenizer", "first/tokenizer.json"];
    let arguments = [&["train", "--output", "run"][..], &short(), &tokenizer].concat();
    let one = [&["-n", "1", program], &arguments[..]].concat();
    let broken = ["--set", "data.train=['broken.jsonl']"];
    let other = [&[":", "-n", "1", program], &arguments[..], &broken].concat();
    let message = start_as(&workspace, &[one, other].concat()).end_within(LIMIT).message();
    assert!(message.starts_with("replica 1 of 2: error: "), "{message}");
    assert!(message.contains("broken.jsonl: line 2"), "{message}");
}

/// A token beyond the vocabulary, written into the mapped tokens of one replica, is a panic in its embedding.
#[test]
fn a_panic_in_one_replica_ends_all() {
    let workspace = Workspace::new();
    let long = [&["train", "--output", "run", "--steps", "100000"][..], &short()].concat();
    let program = env!("CARGO_BIN_EXE_altup");
    let long: Vec<&str> = long.into_iter().filter(|flag| *flag != "training.steps=20").collect();
    let long: Vec<&str> = without_empty_set(&long);
    let of_one = |cache: &'static str| [&["-n", "1", "-x", cache, program], &long[..]].concat();
    let caches = ["ALTUP_CACHE=cache", "ALTUP_CACHE=other"];
    let both = [of_one(caches[0]), vec![":"], of_one(caches[1])].concat();
    let mut together = start_as(&workspace, &both);
    together.reach(&workspace.path("run"), 2);
    let tokens = workspace.path("other/tokens");
    let mut damaged = 0;
    for path in files_in(&tokens) {
        let length = fs::metadata(&path).unwrap().len();
        if length > 10_000 {
            let file = File::options().write(true).open(&path).unwrap();
            file.write_all_at(&vec![0xff; length as usize - 8_192], 4_096).unwrap();
            damaged += 1;
        }
    }
    assert!(damaged > 0, "no tokens in {}", tokens.display());
    let message = together.end_within(END).message();
    assert!(message.starts_with("replica 1 of 2: error: "), "{message}");
}

/// The flags without a `--set` that nothing follows.
fn without_empty_set<'a>(flags: &[&'a str]) -> Vec<&'a str> {
    let next = flags.iter().skip(1).copied().chain([""]);
    let pairs = flags.iter().copied().zip(next);
    pairs
        .filter(|(flag, next)| *flag != "--set" || *next != "--set")
        .map(|(flag, _)| flag)
        .collect()
}

fn files_in(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let of_entry = |path: PathBuf| if path.is_dir() { files_in(&path) } else { vec![path] };
    entries.flat_map(|entry| of_entry(entry.path())).collect()
}

#[test]
fn a_frozen_replica_ends_all_after_the_timeout() {
    let workspace = Workspace::new();
    let flags = set(&["training.replica_timeout=3"]);
    let arguments = [&["train", "--output", "run"][..], &short(), &["--steps", "100000"], &flags];
    let mut together = start(&workspace, 2, &without_steps(&arguments.concat()));
    together.reach(&workspace.path("run"), 2);
    signal("STOP", together.replica(1));
    let message = together.end_within(Duration::from_secs(3) + END).message();
    assert!(message.starts_with("replica 0 of 2: error: waited 3 s for "), "{message}");
    assert!(message.contains("training.replica_timeout"), "{message}");
}

/// `--set training.steps=20` would go over `--steps`.
fn without_steps<'a>(flags: &[&'a str]) -> Vec<&'a str> {
    without_empty_set(
        &flags.iter().copied().filter(|flag| *flag != "training.steps=20").collect::<Vec<_>>(),
    )
}

#[test]
fn a_signal_to_the_launcher_stops_all_at_one_step() {
    let workspace = Workspace::new();
    train_alone(&workspace, "whole", &short());
    let run = workspace.path("run");
    let arguments = [&["train", "--output", "run"][..], &short()].concat();
    let mut together = start(&workspace, 2, &arguments);
    together.reach(&run, 4);
    signal("USR1", together.mpirun.id());
    let ended = together.end_within(LIMIT);
    assert_eq!(ended.status.code(), Some(75), "{}", ended.errors);
    assert!(ended.said().is_empty(), "{}", ended.errors);
    assert!(!run.join("summary.json").exists());
    start(&workspace, 2, &["train", "--resume", "run", "--quiet"]).end_within(LIMIT).well();
    assert_same(&workspace, "run", "whole", "stopped and resumed");
}

/// As on two machines without a folder in common.
#[test]
fn replicas_in_folders_of_their_own_train_and_resume() {
    let workspace = Workspace::new();
    train_alone(&workspace, "alone", &short());
    for folder in ["a", "b"] {
        for name in ["corpus.txt", "config.toml"] {
            workspace.write(&format!("{folder}/{name}"), fs::read(workspace.path(name)).unwrap());
        }
    }
    let program = env!("CARGO_BIN_EXE_altup");
    let pair = |arguments: &[&str]| {
        let [a, b] = ["a", "b"].map(|folder| workspace.path(folder).to_string_lossy().into_owned());
        let one = [&["-n", "1", "--wdir", &a, "-x", "ALTUP_CACHE=cache-a", program], arguments];
        let other =
            [&[":", "-n", "1", "--wdir", &b, "-x", "ALTUP_CACHE=cache-b", program], arguments];
        start_as(&workspace, &[one.concat(), other.concat()].concat())
    };
    let mut together = pair(&[&["train", "--output", "run"][..], &short()].concat());
    together.reach(&workspace.path("a/run"), 8);
    signal("KILL", together.replica(1));
    assert!(!together.end_within(END).status.success());
    pair(&["train", "--resume", "run", "--quiet"]).end_within(LIMIT).well();
    assert_same(&workspace, "a/run", "alone", "in two folders");
    assert_eq!(names_in(&workspace.path("b")), ["cache-b", "config.toml", "corpus.txt"]);
}

/// The made rows of SST-2, on which the model is validated in turns.
#[test]
fn two_replicas_fine_tune_to_the_bits_of_one_process() {
    let workspace = Workspace::new();
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/fine_tuning/model");
    let reviews = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/reviews");
    let source = ["finetune", "--model", model, "--task", "sst2", "--data", reviews, "--quiet"];
    let keys = set(&[
        "training.batch_size=4",
        "training.gradient_accumulation=2",
        "training.log_every=2",
        "optimizer.learning_rate=0.01",
    ]);
    let flags = [&source[..], &["--steps", "12", "--eval-every", "4"], &keys].concat();
    let alone = [&flags[..], &["--output", "alone"]].concat();
    succeeds(workspace.altup(&alone).output().unwrap());
    let together = [&flags[..], &["--output", "run"]].concat();
    start(&workspace, 2, &together).end_within(LIMIT).well();
    assert_same(&workspace, "run", "alone", "two replicas");
    let scores = |run: &str| fs::read(workspace.path(run).join("tasks/scores.json")).unwrap();
    assert!(scores("run") == scores("alone"), "the scores differ");
}

#[test]
fn an_exchange_is_measured() {
    let workspace = Workspace::new();
    let small = ["--models", "altup-k2", "--vocab-size", "500", "--batch-size", "1"];
    let lengths =
        ["--input-length", "16", "--target-length", "8", "--rounds", "1", "--output", "cost"];
    let arguments = [&["bench", "--works", "exchange"][..], &small, &lengths].concat();
    start(&workspace, 2, &arguments).end_within(LIMIT).well();
    let measured: serde_json::Value =
        serde_json::from_slice(&fs::read(workspace.path("cost/exchange.json")).unwrap()).unwrap();
    assert_eq!(measured["replicas"], 2);
    let model = &measured["models"][0];
    assert_eq!(model["bytes"].as_u64(), model["parameters"].as_u64().map(|count| 4 * count));
    assert_eq!(model["exchange"].as_array().unwrap().len(), 3);
}
