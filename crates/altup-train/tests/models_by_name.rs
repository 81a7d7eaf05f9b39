//! Models by their names, from a hub on loopback, in every command that takes a model.

#![cfg(feature = "hub")]

#[path = "../../altup-models/tests/support/hub_server.rs"]
mod hub_server;
mod support;

use hub_server::{COMMIT, Fault, HubModel, HubServer};
use std::fs;
use std::process::Output;
use support::{Workspace, fails, names_in, succeeds};

const NAME: &str = "someone/altup-tiny";

/// A workspace with a run in `run`, whose model a hub has under [`NAME`].
struct Site {
    workspace: Workspace,
    server: HubServer,
}

impl Site {
    fn new() -> Self {
        let workspace = Workspace::new();
        succeeds(workspace.train("run", &["--steps", "2"]));
        let folder = workspace.path("run/model");
        let files = names_in(&folder).into_iter().map(|name| {
            let contents = fs::read(folder.join(&name)).unwrap();
            (name, contents)
        });
        let model = HubModel { files: files.collect(), ..HubModel::default() };
        Self { workspace, server: HubServer::start(&[(NAME, model)]) }
    }

    /// What `altup` does with an empty cache of its own.
    fn altup(&self, args: &[&str], variables: &[(&str, &str)]) -> Output {
        let mut command = self.workspace.altup(args);
        command
            .env_remove("HF_HUB_OFFLINE")
            .env("HF_ENDPOINT", &self.server.endpoint)
            .env("NO_PROXY", "127.0.0.1")
            .envs(variables.iter().copied());
        command.output().unwrap()
    }
}

#[test]
fn every_command_takes_a_name_for_a_model() {
    let site = Site::new();
    let ws = &site.workspace;
    ws.write("inputs.json", r#"{"input_ids": [[5, 6, 1]], "labels": [[7, 1]]}"#);
    let revision = format!("{NAME}@{COMMIT}");
    let run = |model: &str, flags: &[&str]| {
        let args = [&flags[..1], &["--model", model][..], &flags[1..]].concat();
        let output = succeeds(site.altup(&args, &[]));
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    for flags in [
        &["generate", "--max-new-tokens", "4", "The light <extra_id_0>."][..],
        &["inspect", "--json"],
        &["evaluate", "--valid", "corpus.txt", "--input-length", "32", "--examples", "8", "--json"],
    ] {
        let expected = run("run/model", flags);
        assert_eq!(run(NAME, flags), expected, "{flags:?}");
        assert_eq!(run(&revision, flags), expected, "{flags:?}");
    }
    for (model, output) in [("run/model", "expected"), (NAME, "found")] {
        run(model, &["forward", "--inputs", "inputs.json", "--output", output]);
        run(model, &["convert", "--output", &format!("copy-of-{output}")]);
    }
    let read = |path: &str| fs::read(ws.path(path)).unwrap();
    assert!(read("found") == read("expected"));
    assert_eq!(names_in(&ws.path("copy-of-found")), names_in(&ws.path("copy-of-expected")));
    for file in names_in(&ws.path("copy-of-found")) {
        assert!(
            read(&format!("copy-of-found/{file}")) == read(&format!("copy-of-expected/{file}"))
        );
    }
}

#[test]
fn a_directory_wins_over_a_name() {
    let site = Site::new();
    let ws = &site.workspace;
    support::copy_folder(&ws.path("run/model"), &ws.path(NAME));
    succeeds(site.altup(&["inspect", "--model", NAME], &[]));
    assert!(site.server.requests().is_empty());
}

#[test]
fn what_cannot_be_had_is_one_error_and_a_cut_off_download_goes_on() {
    let site = Site::new();
    let inspect = |model: &str, variables: &[(&str, &str)]| {
        site.altup(&["inspect", "--model", model], variables)
    };
    let offline = [("HF_HUB_OFFLINE", "1")];
    let message = fails(inspect(NAME, &offline));
    assert!(message.contains(NAME) && message.contains("HF_HUB_OFFLINE is set"), "{message}");
    let message = fails(inspect("someone/else", &[]));
    assert!(
        message.contains("no directory \"someone/else\", and no model of this name"),
        "{message}"
    );
    let message = fails(inspect("runs/not/there", &[]));
    assert!(message.contains("runs/not/there is neither a model directory nor"), "{message}");

    site.server.fail_once("model.safetensors", Fault::CutAfter(1000));
    let message = fails(inspect(NAME, &[]));
    assert!(message.contains("model.safetensors of someone/altup-tiny ended after"), "{message}");
    fails(inspect(NAME, &offline));
    succeeds(inspect(NAME, &[]));
    succeeds(inspect(NAME, &offline));
}
