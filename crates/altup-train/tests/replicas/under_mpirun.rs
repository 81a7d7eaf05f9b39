//! Under Open MPI's `mpirun`. Each start has a limit to its time: nothing here may hang.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

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
    since: SystemTime,
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
    let since = SystemTime::now();
    Together { mpirun: mpirun.spawn().unwrap(), folder, said, since }
}

/// Replicas that differ: for each of `parts`, as many as it says, with the options of the launcher and the arguments of
/// the program that it says.
fn start_apart(workspace: &Workspace, parts: &[(&str, &[&str], &[&str])]) -> Together {
    let program = env!("CARGO_BIN_EXE_altup");
    let words = parts.iter().enumerate().flat_map(|(number, &(count, options, arguments))| {
        let next: &[&str] = if number > 0 { &[":"] } else { &[] };
        [next, &["-n", count], options, &[program], arguments].concat()
    });
    start_as(workspace, &words.collect::<Vec<_>>())
}

/// Two replicas with `common` arguments, and some of their own.
fn start_pair(workspace: &Workspace, common: &[&str], first: &[&str], second: &[&str]) -> Together {
    let [first, second] = [first, second].map(|own| [common, own].concat());
    start_apart(workspace, &[("1", &[], &first), ("1", &[], &second)])
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

    fn runs(&mut self) -> bool {
        self.mpirun.try_wait().unwrap().is_none()
    }

    /// The process of the replica `rank`: waits until it has started.
    #[track_caller]
    fn replica(&mut self, rank: usize) -> u32 {
        let since = Instant::now();
        loop {
            if let Some((process, _)) = self.replicas().into_iter().find(|(_, of)| *of == rank) {
                return process;
            }
            assert!(self.runs() && since.elapsed() < LIMIT, "replica {rank} does not run");
            sleep(Duration::from_millis(5));
        }
    }

    /// Waits until the run has a row of metrics of `step`, and this start has written to them: an earlier one may have
    /// come as far.
    #[track_caller]
    fn reach(&mut self, run: &Path, step: u64) {
        let since = Instant::now();
        let metrics = run.join("metrics.jsonl");
        let started = self.since;
        let reached = || {
            let written = fs::metadata(&metrics).and_then(|metadata| metadata.modified());
            let text = fs::read_to_string(&metrics).unwrap_or_default();
            let row = format!("\"kind\":\"train\",\"step\":{step},");
            written.is_ok_and(|written| written > started) && text.contains(&row)
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
    assert!(send(name, process), "process {process} is gone");
}

/// Whether there is the process.
fn send(name: &str, process: u32) -> bool {
    // The shell's own `kill`: the program of that name is not on every machine.
    let sent = Command::new("sh")
        .args(["-c", r#"kill -s "$0" "$1" 2> /dev/null"#, name, &process.to_string()])
        .status();
    sent.unwrap().success()
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
    // As the workspace's environment says, however many cores there are.
    assert_eq!(start["threads"], 1);
    let report = fs::read_to_string(run.join("report.html")).unwrap();
    assert!(report.contains("2 replicas, whose exchange took"), "the report knows of no replicas");
}

/// Replica 1, replica 0, and replica 0 inside of a checkpoint; then with other numbers of replicas.
#[test]
fn a_killed_replica_ends_all_and_the_run_goes_on() {
    let workspace = Workspace::new();
    train_alone(&workspace, "whole", &short());
    let run = workspace.path("run");
    let arguments = [&["train", "--output", "run", "--auto-resume"][..], &short()].concat();
    let kill = |together: Together, process: u32| {
        signal("KILL", process);
        let ended = together.end_within(END);
        assert!(!ended.status.success(), "{}", ended.errors);
        assert!(!run.join("summary.json").exists());
    };
    for (size, rank, step) in [(2, 1, 4), (4, 0, 8)] {
        let mut together = start(&workspace, size, &arguments);
        let process = together.replica(rank);
        together.reach(&run, step);
        sleep(Duration::from_millis(step));
        kill(together, process);
    }
    let checkpoints = run.join("checkpoints");
    let is_partial = || names_in(&checkpoints).iter().any(|name| name.starts_with(".partial-"));
    // A checkpoint may be complete before the kill: then the run begins anew.
    let is_cut_off = (0..20).any(|_| {
        let mut together = start(&workspace, 2, &arguments);
        let process = together.replica(0);
        together.reach(&run, 12);
        while !is_partial() && together.runs() {}
        // It may have ended just now.
        send("KILL", process);
        together.end_within(END);
        let is_cut_off = is_partial() && !run.join("summary.json").exists();
        if !is_cut_off {
            fs::remove_dir_all(&run).unwrap();
        }
        is_cut_off
    });
    assert!(is_cut_off, "no checkpoint was cut off in the making");
    let copy = workspace.path("copy");
    copy_folder(&run, &copy);
    start(&workspace, 4, &["train", "--resume", "run", "--quiet"]).end_within(LIMIT).well();
    assert_same(&workspace, "run", "whole", "killed, and ended by four");
    succeeds(workspace.altup(&["train", "--resume", "copy", "--quiet"]).output().unwrap());
    assert_same(&workspace, "copy", "whole", "killed, and ended by one");
}

/// Replica 0 is held within the last checkpoint, and the other has nothing left to save.
#[test]
fn a_signal_waits_for_the_last_checkpoint() {
    let arguments = [&["train", "--output", "run"][..], &short()].concat();
    for _ in 0..20 {
        let workspace = Workspace::new();
        let checkpoints = workspace.path("run/checkpoints");
        let has = |step: u64| checkpoints.join(format!("step-{step:08}")).exists();
        let is_partial = || names_in(&checkpoints).iter().any(|name| name.starts_with(".partial-"));
        let mut together = start(&workspace, 2, &arguments);
        together.reach(&workspace.path("run"), 4);
        let [first, second] = [0, 1].map(|rank| together.replica(rank));
        while !(has(18) && is_partial()) && together.mpirun.try_wait().unwrap().is_none() {}
        let stopped = together.mpirun.try_wait().unwrap().is_none();
        if stopped {
            signal("STOP", first);
        }
        if !stopped || has(20) || !is_partial() {
            // It was over before.
            if stopped {
                signal("CONT", first);
            }
            together.end_within(LIMIT).well();
            continue;
        }
        signal("USR1", second);
        sleep(Duration::from_secs(1));
        assert!(together.mpirun.try_wait().unwrap().is_none(), "it did not wait");
        signal("CONT", first);
        let ended = together.end_within(LIMIT);
        assert_eq!(ended.status.code(), Some(75), "{}", ended.errors);
        assert!(has(20) && !is_partial(), "{:?}", names_in(&checkpoints));
        return;
    }
    panic!("the last checkpoint was never seen in the making");
}

#[test]
fn what_replicas_have_unlike_is_refused_by_name_and_nothing_is_written() {
    let workspace = Workspace::new();
    let arguments = [&["train", "--output", "run"][..], &short()].concat();
    let pair = |first: &[&str], second: &[&str]| {
        let together = start_pair(&workspace, &arguments, first, second);
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

    // As many pieces, two of them in each other's place: the texts are the same, and their tokens are not.
    train_alone(&workspace, "first", &short());
    let text = fs::read(workspace.path("first/tokenizer.json")).unwrap();
    let mut swapped: serde_json::Value = serde_json::from_slice(&text).unwrap();
    swapped["model"]["vocab"].as_array_mut().unwrap().swap(50, 51);
    workspace.write("swapped.json", swapped.to_string());
    let tokenizer =
        pair(&["--tokenizer", "first/tokenizer.json"], &["--tokenizer", "swapped.json"]);
    assert!(tokenizer.contains("the replicas differ: tokenizer (BLAKE3) is "), "{tokenizer}");

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
    let tokenizer = ["--tokenizer", "first/tokenizer.json"];
    let arguments = [&["train", "--output", "run"][..], &short(), &tokenizer].concat();
    let broken = ["--set", "data.train=['broken.jsonl']"];
    let together = start_pair(&workspace, &arguments, &[], &broken);
    let message = together.end_within(LIMIT).message();
    assert!(message.starts_with("replica 1 of 2: error: "), "{message}");
    assert!(message.contains("broken.jsonl: line 2"), "{message}");
}

/// What goes wrong on several replicas, and not on replica 0, is said by the first of these alone.
#[test]
fn an_error_of_two_replicas_of_three_is_said_once() {
    let workspace = Workspace::new();
    let keys = set(&["training.gradient_accumulation=3"]);
    let arguments = [&["train", "--output", "run"][..], &short(), &keys].concat();
    let others = [&arguments[..], &["--set", "data.train=['nowhere.txt']"]].concat();
    let together = start_apart(&workspace, &[("1", &[], &arguments), ("2", &[], &others)]);
    let message = together.end_within(LIMIT).message();
    assert!(message.starts_with("replica 1 of 3: error: "), "{message}");
    assert!(message.contains("nowhere.txt"), "{message}");
}

/// Tokens that three replicas validate on are damaged while the run goes on: where they are read is a panic of the thread
/// that trains.
#[test]
fn a_panic_in_three_replicas_of_four_ends_all() {
    let workspace = Workspace::new();
    let text = fs::read_to_string(workspace.path("corpus.txt")).unwrap();
    workspace.write("valid.txt", text.repeat(8));
    let long = endless(&["data.valid=['valid.txt']"]);
    let [first, others] = ["ALTUP_CACHE=cache", "ALTUP_CACHE=other"].map(|cache| ["-x", cache]);
    let mut together = start_apart(&workspace, &[("1", &first, &long), ("3", &others, &long)]);
    together.reach(&workspace.path("run"), 2);
    let tokens = workspace.path("other/tokens");
    let length = |path: &PathBuf| fs::metadata(path).unwrap().len();
    let of_valid = files_in(&tokens).into_iter().max_by_key(length).unwrap();
    let file = File::options().write(true).open(&of_valid).unwrap();
    file.write_all_at(&vec![0xff; length(&of_valid) as usize - 8_192], 4_096).unwrap();
    let message = together.end_within(LIMIT).message();
    assert!(message.starts_with("replica 1 of 4: error: "), "{message}");
    assert!(message.contains("damaged") && !message.contains("prepares batches"), "{message}");
}

/// What trains into `run` until something ends it.
fn endless<'a>(keys: &[&'a str]) -> Vec<&'a str> {
    let steps = ["training.steps=100000"];
    [&["train", "--output", "run"][..], &short(), &set(&[keys, &steps].concat())].concat()
}

fn files_in(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let of_entry = |path: PathBuf| if path.is_dir() { files_in(&path) } else { vec![path] };
    entries.flat_map(|entry| of_entry(entry.path())).collect()
}

/// Three others wait for it, and their waits are over together.
#[test]
fn a_frozen_replica_of_four_ends_all_after_the_timeout() {
    for (frozen, speaks) in [(3, "replica 0 of 4"), (0, "replica 1 of 4")] {
        let workspace = Workspace::new();
        let mut together = start(&workspace, 4, &endless(&["training.replica_timeout=3"]));
        together.reach(&workspace.path("run"), 2);
        signal("STOP", together.replica(frozen));
        // Each of the others has its turn first, and replica 1 speaks later than replica 0.
        let message = together.end_within(Duration::from_secs(3) + 2 * END).message();
        assert!(message.starts_with(&format!("{speaks}: error: waited 3 s for ")), "{message}");
        assert!(message.contains("training.replica_timeout"), "{message}");
    }
}

/// One of two prepares the text for both.
#[test]
fn a_replica_that_is_frozen_while_it_prepares_ends_all_after_the_timeout() {
    let workspace = Workspace::new();
    train_alone(&workspace, "first", &short());
    let text = fs::read_to_string(workspace.path("corpus.txt")).unwrap();
    workspace.write("long.txt", text.repeat(400));
    let keys = set(&["data.train=['long.txt']", "training.replica_timeout=3"]);
    let tokenizer = ["--tokenizer", "first/tokenizer.json", "--output", "run"];
    let arguments = [&["train"][..], &short(), &keys, &tokenizer].concat();
    let together = start(&workspace, 2, &arguments);
    let since = Instant::now();
    let (process, rank) = loop {
        let prepares = |&(process, _): &(u32, usize)| {
            let opened =
                fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
            let mut names = opened.filter_map(|entry| fs::read_link(entry.path()).ok());
            names.any(|name| name.to_string_lossy().ends_with(".tokens.partial"))
        };
        // Both look at the file, and one is on it.
        sleep(Duration::from_millis(200));
        if let [one] = together.replicas().into_iter().filter(prepares).collect::<Vec<_>>()[..] {
            break one;
        }
        assert!(since.elapsed() < LIMIT, "nobody prepares the text");
    };
    signal("STOP", process);
    let message = together.end_within(Duration::from_secs(3) + END).message();
    assert!(message.starts_with(&format!("replica {} of 2: error: ", 1 - rank)), "{message}");
    assert!(message.contains("waited 3 s for another process that makes "), "{message}");
}

/// With 1 GB of addresses, a batch of 8192 rows can't be had.
#[test]
fn a_replica_without_memory_ends_all() {
    let workspace = Workspace::new();
    let program = env!("CARGO_BIN_EXE_altup");
    let arguments =
        [&["train", "--output", "run"][..], &short(), &set(&["training.batch_size=8192"])];
    let arguments = arguments.concat();
    let one = [&["-n", "1", program], &arguments[..]].concat();
    let limited = ["-n", "1", "sh", "-c", "ulimit -d 1000000; exec \"$0\" \"$@\"", program];
    let other = [&[":"], &limited[..], &arguments].concat();
    // What the launcher says then is another each time: it too may lack the memory for its words.
    let message = start_as(&workspace, &[one, other].concat()).end_within(LIMIT).message();
    assert!(message.starts_with("replica 1 of 2: error: out of memory; "), "{message}");
    assert!(message.contains("lower training.batch_size"), "{message}");
}

/// Both on one core, by a program between the launcher and them.
#[test]
fn cores_that_the_binding_leaves_idle_are_told() {
    let workspace = Workspace::new();
    let bound = ["-n", "2", "taskset", "-c", "0", "sh", "-c", "\"$0\" \"$@\"; exit $?"];
    let arguments = [&["train", "--output", "run"][..], &short(), &set(&["training.steps=1"])];
    let arguments = [&bound[..], &[env!("CARGO_BIN_EXE_altup")], &arguments.concat()].concat();
    let ended = start_as(&workspace, &arguments).end_within(LIMIT);
    let cores = std::thread::available_parallelism().unwrap().get();
    let warning =
        format!("warning: the replicas of this machine are bound to 1 of its {cores} cores");
    assert_eq!(ended.errors.matches(&warning).count(), usize::from(cores > 1), "{}", ended.errors);
    ended.well();
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

/// As on two machines without a folder in common. The text is at one path on both: each replica's own folder.
#[test]
fn replicas_in_folders_of_their_own_train_and_resume() {
    let workspace = Workspace::new();
    train_alone(&workspace, "alone", &short());
    for folder in ["a", "b"] {
        for name in ["corpus.txt", "config.toml"] {
            workspace.write(&format!("{folder}/{name}"), fs::read(workspace.path(name)).unwrap());
        }
    }
    // Of that name on the other machine, and no business of this run's.
    workspace.write("b/run/config.toml", "[tasks]\n");
    let [a, b] = ["a", "b"].map(|folder| workspace.path(folder).to_string_lossy().into_owned());
    let options = |folder, cache| ["--wdir", folder, "-x", cache];
    let [a, b] = [options(&a, "ALTUP_CACHE=cache-a"), options(&b, "ALTUP_CACHE=cache-b")];
    let pair = |first: &[&str], second: &[&str]| {
        start_apart(&workspace, &[("1", &a, first), ("1", &b, second)])
    };
    let text = set(&["data.train=['/proc/self/cwd/corpus.txt']"]);
    let begin = [&["train", "--output", "run"][..], &short(), &text].concat();
    let mut together = pair(&begin, &begin);
    let process = together.replica(1);
    together.reach(&workspace.path("a/run"), 8);
    signal("KILL", process);
    assert!(!together.end_within(END).status.success());

    let resume = ["train", "--resume", "run", "--quiet"];
    fs::rename(workspace.path("b/corpus.txt"), workspace.path("b/moved.txt")).unwrap();
    let message = pair(&resume, &resume).end_within(LIMIT).message();
    assert!(message.starts_with("replica 1 of 2: error: "), "{message}");
    assert!(message.contains("/proc/self/cwd/corpus.txt"), "{message}");
    assert!(message.contains("name what lies elsewhere on this machine again"), "{message}");

    let moved = [&resume[..], &["--train", "moved.txt"]].concat();
    pair(&resume, &moved).end_within(LIMIT).well();
    assert_same(&workspace, "a/run", "alone", "in two folders");
    assert_eq!(names_in(&workspace.path("b")), ["cache-b", "config.toml", "moved.txt", "run"]);
    assert_eq!(names_in(&workspace.path("b/run")), ["config.toml"]);
}

/// Another configuration with parameters of the same shapes, and another weight.
#[test]
fn another_initial_model_is_refused() {
    let workspace = Workspace::new();
    train_alone(&workspace, "first", &[&short()[..], &set(&["training.steps=1"])].concat());
    let [config, weights] = ["config.json", "model.safetensors"];
    for (folder, name) in [("epsilon", config), ("weight", weights)] {
        let model = workspace.path(folder);
        copy_folder(&workspace.path("first/model"), &model);
        let mut bytes = fs::read(model.join(name)).unwrap();
        if name == weights {
            // The lowest bit of the last number.
            let last = bytes.len() - 4;
            bytes[last] ^= 1;
        } else {
            let text = String::from_utf8(bytes).unwrap();
            assert!(text.contains("\"layer_norm_epsilon\": 1e-6"), "{text}");
            bytes =
                text.replace("\"layer_norm_epsilon\": 1e-6", "\"layer_norm_epsilon\": 1e-3").into();
        }
        fs::write(model.join(name), bytes).unwrap();
    }
    let arguments = ["train", "--output", "run", "--train", "corpus.txt", "--quiet"];
    let keys =
        set(&["data.input_length=32", "training.steps=2", "training.gradient_accumulation=2"]);
    let arguments = [&arguments[..], &keys].concat();
    let refused = |other| {
        let init = ["--init", "first/model"];
        let together = start_pair(&workspace, &arguments, &init, &["--init", other]);
        let message = together.end_within(LIMIT).message();
        assert!(!workspace.path("run").exists(), "{message}");
        message
    };
    let epsilon = refused("epsilon");
    assert!(
        epsilon.contains("differ: model.layer_norm_epsilon is 0.001 on replica 1"),
        "{epsilon}"
    );
    let weight = refused("weight");
    assert!(weight.contains("differ: weights (BLAKE3) is "), "{weight}");
    assert!(weight.contains(" on replica 1, and "), "{weight}");
}

/// What `finetune` is told, but for its tasks and their files.
fn tuning() -> Vec<&'static str> {
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/fine_tuning/model");
    let source = ["finetune", "--model", model, "--quiet", "--output", "run"];
    let keys = set(&[
        "training.batch_size=4",
        "training.gradient_accumulation=2",
        "training.log_every=2",
        "optimizer.learning_rate=0.01",
        "training.steps=4",
        "training.eval_every=4",
        "training.checkpoint_every=4",
    ]);
    [&source[..], &keys].concat()
}

/// A row less, another row, and one that only the validation of the end has.
#[test]
fn other_validation_examples_are_refused() {
    let workspace = Workspace::new();
    let reviews = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/reviews");
    let rows = fs::read_to_string(reviews.join("dev.tsv")).unwrap();
    let (all_but_last, last) = rows.trim_end().rsplit_once('\n').unwrap();
    let (text, label) = last.rsplit_once('\t').unwrap();
    let label = 1 - label.parse::<u8>().unwrap();
    let other_label = format!("{all_but_last}\n{text}\t{label}\n");
    for (folder, dev) in [("fewer", all_but_last), ("other", other_label.as_str())] {
        copy_folder(&reviews, &workspace.path(folder));
        workspace.write(&format!("{folder}/dev.tsv"), dev);
    }
    let arguments = [&tuning()[..], &["--task", "sst2"]].concat();
    let reviews = reviews.to_string_lossy().into_owned();
    let refused = |other, few: &[&str]| {
        let arguments = [&arguments[..], few].concat();
        let (first, second) = (["--data", &reviews], ["--data", other]);
        let together = start_pair(&workspace, &arguments, &first, &second);
        let message = together.end_within(LIMIT).message();
        assert!(message.starts_with("replica 0 of 2: error: the replicas differ: "), "{message}");
        assert!(message.contains("validation.sst2 is "), "{message}");
        assert!(message.contains(" on replica 1, and "), "{message}");
    };
    for other in ["fewer", "other"] {
        refused(other, &[]);
        assert!(!workspace.path("run").exists(), "{other}");
    }
    refused("other", &set(&["training.eval_examples=1"]));
    assert!(workspace.path("run/checkpoints").exists());
    assert!(!workspace.path("run/tasks").exists());
}

/// A task's description may lie elsewhere on another machine, and says the same there.
#[test]
fn descriptions_of_tasks_are_compared_by_their_content() {
    let workspace = Workspace::new();
    let reviews = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/reviews");
    let sst2 =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../altup-data/src/tasks/descriptions/sst2.toml");
    let sst2 = fs::read_to_string(sst2).unwrap();
    workspace.write("a/sst2.toml", &sst2);
    workspace.write("b/sst2.toml", &sst2);
    workspace.write("c/sst2.toml", sst2.replace("sst2 sentence: ", "review: "));
    let arguments = [&tuning()[..], &["--data", reviews]].concat();
    let pair = |other| {
        let together =
            start_pair(&workspace, &arguments, &["--task", "a/sst2.toml"], &["--task", other]);
        together.end_within(LIMIT)
    };
    let message = pair("c/sst2.toml").message();
    assert!(message.contains("differ: tasks.names is [\"BLAKE3 "), "{message}");
    assert!(!workspace.path("run").exists());
    pair("b/sst2.toml").well();
}

#[test]
fn flags_of_no_configuration_are_compared() {
    let workspace = Workspace::new();
    let resume = ["train", "--resume", "run"];
    let together = start_pair(&workspace, &resume, &["--from", "4"], &["--from", "8"]);
    let message = together.end_within(LIMIT).message();
    assert!(message.contains("differ: --from is 8 on replica 1, and 4 on replica 0"), "{message}");
    let bench = ["bench", "--works", "exchange"];
    let together = start_pair(&workspace, &bench, &["--rounds", "1"], &["--rounds", "2"]);
    let message = together.end_within(LIMIT).message();
    assert!(message.contains("bench.rounds is 2 on replica 1, and 1 on replica 0"), "{message}");
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
