//! One run on several processes, through the real binary. Without the feature `mpi`: that it refuses to be started as
//! several. With it: under Open MPI's `mpirun`, on this machine.

#[path = "../support/mod.rs"]
mod support;

use std::fs;
use support::{Workspace, fails, succeeds};

/// What a launcher tells its processes.
const LAUNCHED: [(&str, &str); 2] = [("OMPI_COMM_WORLD_SIZE", "2"), ("OMPI_COMM_WORLD_RANK", "1")];

#[cfg(not(feature = "mpi"))]
#[test]
fn a_build_without_mpi_refuses_to_be_one_of_several() {
    let workspace = Workspace::new();
    for (command, output) in [("train", "run"), ("finetune", "tuned")] {
        let mut altup = workspace.altup(&[command, "--output", output]);
        let message = fails(altup.envs(LAUNCHED).output().unwrap());
        assert!(message.contains("2 processes of this program were started together"), "{message}");
        assert!(message.contains("--features mpi"), "{message}");
        assert!(!workspace.path(output).exists());
    }
    assert_eq!(support::names_in(&workspace.path("")), ["config.toml", "corpus.txt"]);
}

#[test]
fn a_study_refuses_to_be_one_of_several() {
    let workspace = Workspace::new();
    let study = concat!(env!("CARGO_MANIFEST_DIR"), "/../../configs/studies/widths.toml");
    let mut altup = workspace.altup(&["study", study, "--output", "study"]);
    let message = fails(altup.envs(LAUNCHED).output().unwrap());
    assert!(message.contains("a study starts its own: start it alone"), "{message}");
    assert!(!workspace.path("study").exists());
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
