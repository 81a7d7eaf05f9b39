//! Models by their names, from a hub on loopback.

#![cfg(feature = "hub")]

#[path = "support/hub_server.rs"]
mod hub_server;

use altup_models::{DownloadProgress, Hub, HubError, HubName, HubSettings, ModelDirectory};
use hub_server::{COMMIT, Fault, HubModel, HubServer};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use tempfile::TempDir;

const NAME: &str = "google/flan-t5-tiny";
const FOLDER: &str = "models--google--flan-t5-tiny";

fn sha256(contents: &[u8]) -> String {
    Sha256::digest(contents).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn weights() -> Vec<u8> {
    (0..100_000u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

fn model(files: &[(&str, &[u8])]) -> HubModel {
    let files = files.iter().map(|(name, contents)| ((*name).to_owned(), contents.to_vec()));
    HubModel { files: files.collect(), ..HubModel::default() }
}

/// A model with its weights in a large file, and files that nobody here needs.
fn whole() -> HubModel {
    let weights = weights();
    let mut model = model(&[
        ("config.json", b"{}"),
        ("generation_config.json", b"{ }"),
        ("tokenizer.json", b"{\"version\": \"1.0\"}"),
        ("spiece.model", b"not needed"),
        ("README.md", b"not needed"),
        ("pytorch_model.bin", b"not needed"),
        ("model.safetensors", &weights),
    ]);
    model.large = HashMap::from([("model.safetensors".into(), sha256(&weights))]);
    model
}

/// A hub and an empty cache.
struct Site {
    server: HubServer,
    cache: TempDir,
}

impl Site {
    fn new(models: &[(&str, HubModel)]) -> Self {
        Self { server: HubServer::start(models), cache: tempfile::tempdir().unwrap() }
    }

    fn settings(&self) -> HubSettings {
        HubSettings {
            endpoint: self.server.endpoint.clone(),
            cache: self.cache.path().to_owned(),
            token: None,
            offline: false,
        }
    }

    fn get_with(&self, name: &str, settings: HubSettings) -> Result<PathBuf, HubError> {
        let name = HubName::parse(name).unwrap();
        Hub::new(settings).model(&name, &mut |_| {}).map(|directory| directory.path().to_owned())
    }

    fn get(&self, name: &str) -> Result<PathBuf, HubError> {
        self.get_with(name, self.settings())
    }

    fn get_offline(&self, name: &str) -> Result<PathBuf, HubError> {
        self.get_with(name, HubSettings { offline: true, ..self.settings() })
    }

    fn path(&self, path: &str) -> PathBuf {
        self.cache.path().join(FOLDER).join(path)
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_model_is_fetched_once_and_lies_as_python_lays_it() {
    let site = Site::new(&[(NAME, whole())]);
    let folder = site.get(NAME).unwrap();
    assert_eq!(folder, site.path("snapshots").join(COMMIT));
    let needed = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"];
    assert_eq!(names(&folder), needed);
    assert!(fs::read(folder.join("model.safetensors")).unwrap() == weights());
    assert_eq!(fs::read_to_string(site.path("refs/main")).unwrap(), COMMIT);
    #[cfg(unix)]
    assert_eq!(
        fs::read_link(folder.join("model.safetensors")).unwrap(),
        Path::new("../../blobs").join(sha256(&weights()))
    );
    site.server.requests();

    assert_eq!(site.get(NAME).unwrap(), folder);
    assert_eq!(site.server.requests(), [format!("api/models/{NAME}/revision/main")]);
    // A commit stays what it is.
    assert_eq!(site.get(&format!("{NAME}@{COMMIT}")).unwrap(), folder);
    for name in [NAME.to_owned(), format!("{NAME}@{COMMIT}")] {
        assert_eq!(site.get_offline(&name).unwrap(), folder);
    }
    assert!(site.server.requests().is_empty());
}

#[test]
fn progress_counts_the_bytes_of_each_file() {
    let site = Site::new(&[(NAME, whole())]);
    let mut seen: Vec<(String, u64, u64)> = Vec::new();
    let mut report = |progress: DownloadProgress<'_>| {
        seen.push((progress.file.to_owned(), progress.received, progress.size));
    };
    let name = HubName::parse(NAME).unwrap();
    Hub::new(site.settings()).model(&name, &mut report).unwrap();
    let of_weights: Vec<u64> =
        seen.iter().filter(|(file, ..)| file == "model.safetensors").map(|seen| seen.1).collect();
    assert_eq!((of_weights[0], *of_weights.last().unwrap()), (0, 400_000));
    assert!(of_weights.is_sorted() && of_weights.len() > 3, "{of_weights:?}");
    assert!(seen.iter().all(|(_, received, size)| received <= size));
}

#[test]
fn a_download_that_was_cut_off_goes_on_where_it_stopped() {
    for (number, fault) in
        [Fault::CutAfter(123_456), Fault::CutAfterWithoutLength(123_456)].into_iter().enumerate()
    {
        let site = Site::new(&[(NAME, whole())]);
        site.server.fail_once("model.safetensors", fault);
        let error = site.get(NAME).unwrap_err();
        let HubError::Interrupted { received, size, .. } = &error else { panic!("{error}") };
        assert!(*received <= 123_456 && *received > 0, "{received}");
        assert_eq!(*size, 400_000);
        let message = error.to_string();
        let said = format!("model.safetensors of {NAME} ended after {received} of 400000 bytes");
        assert!(message.contains(&said), "{message}");

        // What came is no file of the model, and nothing is there offline.
        let folder = site.path("snapshots").join(COMMIT);
        assert!(!folder.join("model.safetensors").exists());
        let offline = site.get_offline(NAME).unwrap_err();
        assert!(matches!(offline, HubError::Offline { .. }), "{offline}");

        site.server.requests();
        assert_eq!(site.get(NAME).unwrap(), folder, "{number}");
        let asked = site.server.requests();
        assert!(
            asked.contains(&format!("cdn/{NAME}/model.safetensors from {received}")),
            "{asked:?}"
        );
        assert!(fs::read(folder.join("model.safetensors")).unwrap() == weights());
        assert!(!names(&site.path("blobs")).iter().any(|name| name.ends_with(".part")));
    }
}

#[test]
fn a_server_that_sends_all_again_is_fine() {
    let site = Site::new(&[(NAME, whole())]);
    site.server.fail_once("model.safetensors", Fault::CutAfter(200_000));
    site.get(NAME).unwrap_err();
    site.server.fail_once("model.safetensors", Fault::IgnoreRange);
    let folder = site.get(NAME).unwrap();
    assert!(fs::read(folder.join("model.safetensors")).unwrap() == weights());
}

#[test]
fn what_an_interrupted_process_left_is_checked() {
    let whole_part = weights();
    let longer = [&whole_part[..], b"more"].concat();
    for (part, is_good) in [
        (whole_part.clone(), true),
        (longer, true),
        (vec![7; 1000], false),
        (vec![7; 400_000], false),
    ] {
        let site = Site::new(&[(NAME, whole())]);
        let path = site.path("blobs").join(sha256(&weights())).with_extension("part");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, &part).unwrap();
        if !is_good {
            let error = site.get(NAME).unwrap_err();
            assert!(matches!(error, HubError::Damaged { .. }), "{error}");
            assert!(
                error.to_string().contains("model.safetensors of google/flan-t5-tiny was damaged")
            );
        }
        let folder = site.get(NAME).unwrap();
        assert!(fs::read(folder.join("model.safetensors")).unwrap() == weights(), "{}", part.len());
    }
}

#[test]
fn what_cannot_be_checked_is_downloaded_from_the_start() {
    let site = Site::new(&[(NAME, whole())]);
    let folder = site.get(NAME).unwrap();
    let link = folder.join("config.json");
    let blob = fs::canonicalize(&link).unwrap();
    for part in ["[]", "[", "[1, 2]"] {
        fs::remove_file(&link).unwrap();
        fs::rename(&blob, blob.with_extension("part")).unwrap();
        fs::write(blob.with_extension("part"), part).unwrap();
        assert_eq!(site.get(NAME).unwrap(), folder);
        assert_eq!(fs::read_to_string(&link).unwrap(), "{}");
    }
}

#[test]
fn two_at_once_have_one_download() {
    let site = Site::new(&[(NAME, whole())]);
    let get = || {
        let folder = site.get(NAME).unwrap();
        assert!(fs::read(folder.join("model.safetensors")).unwrap() == weights());
        fs::read(folder.join("config.json")).unwrap()
    };
    thread::scope(|scope| {
        let threads = [scope.spawn(get), scope.spawn(get)];
        threads.into_iter().for_each(|thread| assert_eq!(thread.join().unwrap(), b"{}"));
    });
    let asked = site.server.requests();
    let downloads =
        asked.iter().filter(|path| **path == format!("cdn/{NAME}/model.safetensors")).count();
    assert_eq!(downloads, 1, "{asked:?}");
}

#[test]
fn a_damaged_download_is_thrown_away() {
    let site = Site::new(&[(NAME, whole())]);
    site.server.fail_once("model.safetensors", Fault::Damage);
    let error = site.get(NAME).unwrap_err();
    assert!(matches!(error, HubError::Damaged { .. }), "{error}");
    assert!(!site.path("snapshots").join(COMMIT).join("model.safetensors").exists());
    let folder = site.get(NAME).unwrap();
    assert!(fs::read(folder.join("model.safetensors")).unwrap() == weights());
}

#[test]
fn a_new_commit_is_followed_and_costs_what_changed() {
    let site = Site::new(&[(NAME, whole())]);
    let old = site.get(NAME).unwrap();
    let commit = "fedcba9876543210fedcba9876543210fedcba98";
    site.server.push(commit, NAME, "config.json", b"{\"d_model\": 8}");
    site.server.requests();
    let new = site.get(NAME).unwrap();
    assert_eq!(new, site.path("snapshots").join(commit));
    assert_eq!(fs::read_to_string(new.join("config.json")).unwrap(), "{\"d_model\": 8}");
    assert!(fs::read(new.join("model.safetensors")).unwrap() == weights());
    // The weights are asked for their first byte, which is how their hash is learnt, and are there already.
    let asked = site.server.requests();
    let weights: Vec<&String> = asked.iter().filter(|path| path.contains("safetensors")).collect();
    assert!(
        !weights.is_empty() && weights.iter().all(|path| path.ends_with(" from 0")),
        "{asked:?}"
    );
    // The old commit can still be named.
    assert_eq!(site.get_offline(&format!("{NAME}@{COMMIT}")).unwrap(), old);
    assert_eq!(site.get_offline(NAME).unwrap(), new);
}

#[test]
fn shards_and_sentencepiece_models_are_fetched() {
    let index = br#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;
    let sharded = model(&[
        ("config.json", b"{}"),
        ("spiece.model", b"pieces"),
        ("model.safetensors.index.json", index),
        ("model-1.safetensors", b"first"),
        ("model-2.safetensors", b"second"),
        ("model-3.safetensors", b"of no index"),
    ]);
    let mut lacking = sharded.clone();
    lacking.files.remove("model-2.safetensors");
    let site = Site::new(&[("sharded", sharded), ("lacking", lacking)]);
    let folder = site.get("sharded").unwrap();
    let expected = [
        "config.json",
        "model-1.safetensors",
        "model-2.safetensors",
        "model.safetensors.index.json",
        "spiece.model",
    ];
    assert_eq!(names(&folder), expected);
    assert_eq!(ModelDirectory::new(&folder).tokenizer(), folder.join("spiece.model"));
    fs::remove_file(folder.join("model-2.safetensors")).unwrap();
    let error = site.get_offline("sharded").unwrap_err();
    assert!(
        error.to_string().contains("lacks model-2.safetensors; HF_HUB_OFFLINE is set"),
        "{error}"
    );
    let error = site.get("lacking").unwrap_err();
    assert!(error.to_string().contains("has no model-2.safetensors"), "{error}");
}

#[test]
fn what_cannot_be_had_is_said_with_the_reason() {
    let gated = HubModel { token: Some("hf_mine".into()), ..whole() };
    let site = Site::new(&[
        (NAME, whole()),
        ("a/gated", gated),
        (
            "a/torch",
            model(&[
                ("config.json", b"{}"),
                ("tokenizer.json", b"{}"),
                ("pytorch_model.bin", b"0"),
            ]),
        ),
        ("a/bert", model(&[("model.safetensors", b""), ("vocab.txt", b"")])),
    ]);
    let says = |error: HubError, words: &[&str]| {
        let message = error.to_string();
        assert!(
            words.iter().all(|word| message.contains(word)),
            "{message:?} does not say {words:?}"
        );
        assert!(!message.contains("hf_mine"), "{message}");
    };
    let endpoint = site.server.endpoint.as_str();
    says(
        site.get("a/b").unwrap_err(),
        &["no directory \"a/b\"", "no model of this name on", endpoint],
    );
    says(
        site.get(&format!("{NAME}@v2")).unwrap_err(),
        &["google/flan-t5-tiny on", "no branch, tag or commit \"v2\""],
    );
    says(site.get("a/gated").unwrap_err(), &["a/gated", "401", "HF_TOKEN", "accept its terms"]);
    says(site.get("a/torch").unwrap_err(), &["a/torch", "pytorch_model.bin", "save_pretrained"]);
    says(site.get("a/bert").unwrap_err(), &["a/bert on", "has no config.json"]);
    says(
        site.get_offline(NAME).unwrap_err(),
        &["no model of this name in", "HF_HUB_OFFLINE is set"],
    );

    let with_token = |token: &str| HubSettings { token: Some(token.to_owned()), ..site.settings() };
    says(site.get_with("a/gated", with_token("hf_other")).unwrap_err(), &["a/gated", "401"]);
    site.get_with("a/gated", with_token("hf_mine")).unwrap();

    let nobody = {
        // A port that was just free.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    let settings = HubSettings { endpoint: nobody.clone(), ..site.settings() };
    says(site.get_with(NAME, settings).unwrap_err(), &[&nobody, "cannot get", "HF_HUB_OFFLINE=1"]);
    assert!(!site.path("snapshots").exists());
}

/// Another port is another server, and so is another name of the same one.
#[test]
fn the_token_is_not_sent_to_another_host_or_port() {
    let token = Some("hf_mine".to_owned());
    let gated = || HubModel { token: token.clone(), ..whole() };
    let other_port = HubServer::start(&[(NAME, HubModel { is_cdn: true, ..gated() })]);
    let other_name = |site: &Site| site.server.endpoint.replace("127.0.0.1", "localhost");
    for on_other_port in [false, true] {
        let site = Site::new(&[(NAME, gated())]);
        let cdn = if on_other_port { other_port.endpoint.clone() } else { other_name(&site) };
        site.server.set_cdn(NAME, &cdn);
        let settings = HubSettings { token: token.clone(), ..site.settings() };
        let folder = site.get_with(NAME, settings).unwrap();
        assert!(fs::read(folder.join("model.safetensors")).unwrap() == weights());
        // The other host is asked for the contents alone.
        let asked = if on_other_port { &other_port } else { &site.server }.requests();
        let of_other_host: Vec<&String> =
            asked.iter().filter(|path| path.starts_with("cdn/")).collect();
        assert_eq!(of_other_host, [&format!("cdn/{NAME}/model.safetensors")]);
    }
}

/// Before a model is read, and not when a text is to be tokenised.
#[test]
fn a_cache_without_a_tokenizer_is_no_whole_model() {
    let site = Site::new(&[(NAME, whole())]);
    let folder = site.get(NAME).unwrap();
    fs::remove_file(folder.join("tokenizer.json")).unwrap();
    let error = site.get_offline(NAME).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json"), "{error}");
    // Of a commit too, what is missing is asked for.
    assert_eq!(site.get(&format!("{NAME}@{COMMIT}")).unwrap(), folder);
    assert!(folder.join("tokenizer.json").exists());
}

#[test]
fn answers_that_lead_nowhere_are_errors() {
    for (fault, problem) in [
        (Fault::RedirectToItself, "more than 5 redirects"),
        (Fault::Status(304), "status 304"),
        (Fault::Status(302), "a redirect to nowhere"),
        (Fault::Status(500), "status 500"),
    ] {
        let site = Site::new(&[(NAME, whole())]);
        site.server.fail_once("config.json", fault);
        let error = site.get(NAME).unwrap_err();
        assert!(matches!(error, HubError::Answer { .. }), "{error}");
        let message = format!("answers for config.json of {NAME} with {problem}");
        assert!(error.to_string().contains(&message), "{error}");
        assert!(site.server.requests().len() <= 7);
    }
}

/// As of a hub that is only there by https.
#[test]
fn a_hub_that_is_elsewhere_is_said() {
    let site = Site::new(&[(NAME, whole())]);
    site.server.move_to("https://hub.invalid");
    let error = site.get(NAME).unwrap_err().to_string();
    let location = format!("https://hub.invalid/api/models/{NAME}/revision/main");
    for part in [&format!("a redirect to {location};"), "set HF_ENDPOINT"] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn a_directory_wins_over_a_name_and_a_path_is_no_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let found = ModelDirectory::find(path, &mut |_| unreachable!("nothing is fetched")).unwrap();
    assert_eq!(found.path(), folder.path());
    let missing = folder.path().join("nothing");
    let error = ModelDirectory::find(missing.to_str().unwrap(), &mut |_| {}).unwrap_err();
    assert!(matches!(error, HubError::NoName { .. }), "{error}");
}
