//! One run on several processes, through the real binary. Without the feature `mpi`: that it refuses to be started as
//! several. With it: under Open MPI's `mpirun`, on this machine.

#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};
use support::{Workspace, fails, succeeds};

/// What a launcher tells the first of its processes.
const LAUNCHED: [(&str, &str); 2] = [("OMPI_COMM_WORLD_SIZE", "2"), ("OMPI_COMM_WORLD_RANK", "0")];

/// The one line of a process that refuses to be one of several, and how long it took to say it.
#[track_caller]
fn refuses(command: &mut Command) -> (String, Duration) {
    let since = Instant::now();
    let output = command.output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), message.lines().count()), (Some(1), 1), "{message}");
    assert!(message.contains("2 processes of this program were started together"), "{message}");
    (message, since.elapsed())
}

#[cfg(not(feature = "mpi"))]
#[test]
fn a_build_without_mpi_refuses_to_be_one_of_several() {
    let workspace = Workspace::new();
    for (command, output) in [("train", "run"), ("finetune", "tuned")] {
        let mut altup = workspace.altup(&[command, "--output", output]);
        let (message, _) = refuses(altup.envs(LAUNCHED));
        assert!(message.starts_with("replica 0 of 2: error: "), "{message}");
        assert!(message.contains("--features mpi"), "{message}");
        assert!(!workspace.path(output).exists());
    }
    assert_eq!(support::names_in(&workspace.path("")), ["config.toml", "corpus.txt"]);
}

#[test]
fn what_starts_its_own_processes_refuses_to_be_one_of_several() {
    let workspace = Workspace::new();
    let study = concat!(env!("CARGO_MANIFEST_DIR"), "/../../configs/studies/widths.toml");
    for (arguments, own) in [
        (&["study", study, "--output", "out"][..], "a study starts its own: start it alone"),
        (&["bench", "--output", "out"][..], "a comparison starts its own: start it alone"),
    ] {
        let (message, _) = refuses(workspace.altup(arguments).envs(LAUNCHED));
        assert!(message.starts_with("replica 0 of 2: error: "), "{message}");
        assert!(message.contains(own), "{message}");
        assert!(!workspace.path("out").exists());
    }
}

/// The launcher ends the others when the first has said why.
#[test]
fn the_second_leaves_the_first_to_refuse() {
    let workspace = Workspace::new();
    let mut second = workspace.altup(&["bench"]);
    second.envs([LAUNCHED[0], ("OMPI_COMM_WORLD_RANK", "1")]);
    let (message, time) = refuses(&mut second);
    assert!(message.starts_with("replica 1 of 2: error: "), "{message}");
    assert!(time >= Duration::from_secs(3), "{time:?}");
}

/// A try of a driver, and other children, inherit a launcher's variables.
#[test]
fn what_is_no_run_does_not_join() {
    let workspace = Workspace::new();
    for arguments in [&["backends", "--json"][..], &["backends", "--probe", "flex"], &["sizes"]] {
        succeeds(workspace.altup(arguments).envs(LAUNCHED).output().unwrap());
    }
    let one = [("OMPI_COMM_WORLD_SIZE", "1"), ("OMPI_COMM_WORLD_RANK", "0")];
    let alone = ["train", "--config", "config.toml", "--train", "corpus.txt", "--quiet"];
    let mut altup = workspace.altup(&[&alone[..], &["--steps", "1", "--output", "alone"]].concat());
    succeeds(altup.envs(one).output().unwrap());
}

#[test]
fn an_exchange_is_between_several() {
    let workspace = Workspace::new();
    let message = fails(workspace.altup(&["bench", "--works", "exchange"]).output().unwrap());
    assert!(message.contains("mpirun -n 2 altup bench --works exchange"), "{message}");
    let message = fails(workspace.altup(&["bench", "--works", "train,exchange"]).output().unwrap());
    assert!(message.contains("without other --works"), "{message}");
}

#[test]
fn a_timeout_is_a_time() {
    let workspace = Workspace::new();
    let flags = support::set(&["training.replica_timeout=0"]);
    let message = fails(workspace.train("run", &flags));
    assert!(
        message.contains("training.replica_timeout must be a number of seconds above 0"),
        "{message}"
    );
    assert!(fs::metadata(workspace.path("run")).is_err());
}

#[cfg(feature = "mpi")]
mod under_mpirun;
