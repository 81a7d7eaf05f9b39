//! Text prepared ahead of time, broken lines, objectives and mixtures, by the command line.

mod support;

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::Duration;
use support::{Workspace, assert_same, fails, names_in, rows, set, succeeds};

const SHARDS: u64 = 24;

/// A workspace with the corpus in `shards/`, cut into files of several documents.
fn with_shards() -> Workspace {
    let workspace = Workspace::new();
    let corpus = fs::read_to_string(workspace.path("corpus.txt")).unwrap();
    let documents: Vec<&str> = corpus.trim_end().split("\n\n").collect();
    let per_shard = documents.len().div_ceil(SHARDS as usize);
    for (number, documents) in documents.chunks(per_shard).enumerate() {
        workspace.write(&format!("shards/{number:02}.txt"), documents.join("\n\n"));
    }
    succeeds(workspace.train("tokenizer", &["--steps", "1"]));
    workspace
}

/// The same with fifty times the text, so that a shard is a while in the making.
fn with_long_shards() -> Workspace {
    let workspace = with_shards();
    for name in names_in(&workspace.path("shards")) {
        let text = fs::read_to_string(workspace.path("shards").join(&name)).unwrap();
        workspace.write(&format!("shards/{name}"), vec![text; 50].join("\n\n"));
    }
    workspace
}

/// The names of the files below a folder that end in `ending`.
fn below(folder: &Path, ending: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut found = Vec::new();
    for path in entries.map(|entry| entry.unwrap().path()) {
        let name = path.to_string_lossy().into_owned();
        match path.is_dir() {
            true => found.extend(below(&path, ending)),
            false if name.ends_with(ending) => found.push(name),
            false => {}
        }
    }
    found
}

/// The arguments that prepare the shards into `cache`.
fn prepare(cache: &str) -> Vec<&str> {
    let text = ["data", "prepare", "--train", "shards", "--tokenizer", "tokenizer/tokenizer.json"];
    [&text[..], &["--cache-dir", cache, "--json"]].concat()
}

fn json_of(output: Output) -> Value {
    serde_json::from_slice(&succeeds(output).stdout).unwrap()
}

/// The contents of a cache's token files by their names.
fn token_files(workspace: &Workspace, cache: &str) -> BTreeMap<PathBuf, Vec<u8>> {
    let store = workspace.path(cache).join("tokens/v3");
    let mut files = BTreeMap::new();
    for tokenizer in fs::read_dir(store).unwrap().map(|entry| entry.unwrap().path()) {
        if tokenizer.is_dir() {
            for name in names_in(&tokenizer) {
                let path = tokenizer.join(&name);
                if name.ends_with(".tokens") {
                    files.insert(
                        path.strip_prefix(workspace.path(cache)).unwrap().into(),
                        fs::read(path).unwrap(),
                    );
                }
                assert!(!name.ends_with(".partial"), "a left-over: {name}");
            }
        }
    }
    files
}

fn spawn(workspace: &Workspace, args: &[&str]) -> Child {
    let mut command = workspace.altup(args);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn text_is_prepared_listed_used_and_removed() {
    let workspace = with_shards();
    let prepared = json_of(workspace.altup(&prepare("ahead")).output().unwrap());
    let text = &prepared["texts"][0];
    assert_eq!(
        (text["split"].as_str(), text["shards_made"].as_u64()),
        (Some("train"), Some(SHARDS))
    );
    assert_eq!(
        prepared["texts"][1]["shards_made"], 0,
        "the held-out documents are of the same files"
    );
    let again = json_of(workspace.altup(&prepare("ahead")).output().unwrap());
    assert_eq!(again["texts"][0]["shards_made"], 0);

    let list = ["data", "list", "--cache-dir", "ahead", "--json"];
    let contents = json_of(workspace.altup(&list).output().unwrap());
    let corpora = contents["corpora"].as_array().unwrap();
    assert_eq!((corpora.len(), corpora[0]["shards"].as_u64()), (1, Some(SHARDS)));
    let lines = succeeds(workspace.altup(&list[..4]).output().unwrap()).stdout;
    assert!(String::from_utf8(lines).unwrap().contains("24 shards, 310 documents"));

    let before = token_files(&workspace, "ahead");
    assert_eq!(before.len() as u64, SHARDS);
    let tokenizer = ["--tokenizer", "tokenizer/tokenizer.json", "--cache-dir", "ahead"];
    succeeds(workspace.train_on("shards", "run", &tokenizer));
    assert!(token_files(&workspace, "ahead") == before, "a run takes what is prepared");

    let prune = ["data", "prune", "--cache-dir", "ahead"];
    succeeds(workspace.altup(&prune).output().unwrap());
    assert!(token_files(&workspace, "ahead") == before, "it was used today");
    succeeds(workspace.altup(&[&prune[..], &["--all", "--dry-run"]].concat()).output().unwrap());
    assert!(token_files(&workspace, "ahead") == before);
    let pruned = succeeds(workspace.altup(&[&prune[..], &["--all"]].concat()).output().unwrap());
    assert!(String::from_utf8(pruned.stdout).unwrap().starts_with("removed 1 texts and 24 shards"));
    assert!(token_files(&workspace, "ahead").is_empty());
}

#[test]
fn four_processes_tokenise_each_shard_once() {
    let workspace = with_long_shards();
    json_of(workspace.altup(&prepare("alone")).output().unwrap());
    let children: Vec<Child> = (0..4).map(|_| spawn(&workspace, &prepare("shared"))).collect();
    let made: Vec<u64> = children
        .into_iter()
        .map(|child| {
            json_of(child.wait_with_output().unwrap())["texts"][0]["shards_made"].as_u64().unwrap()
        })
        .collect();
    assert_eq!(made.iter().sum::<u64>(), SHARDS, "{made:?}");
    assert!(made.iter().filter(|made| **made > 0).count() > 1, "one made all: {made:?}");
    assert!(token_files(&workspace, "shared") == token_files(&workspace, "alone"));
}

#[test]
fn a_preparation_that_is_killed_again_and_again_ends_with_the_same_files() {
    let workspace = with_long_shards();
    json_of(workspace.altup(&prepare("whole")).output().unwrap());
    let cache = workspace.path("killed");
    let (mut kills, mut left_behind) = (0, 0);
    loop {
        let before = below(&cache, ".tokens").len();
        let mut child = spawn(&workspace, &prepare("killed"));
        // Once it has made another shard, and somewhere within the next.
        let ended = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break Some(status);
            }
            let is_on_the_next = !below(&cache, ".partial").is_empty();
            if is_on_the_next && below(&cache, ".tokens").len() > before {
                sleep(Duration::from_millis(kills % 4 * 5));
                child.kill().unwrap();
                child.wait().unwrap();
                break None;
            }
            sleep(Duration::from_micros(200));
        };
        if let Some(status) = ended {
            assert!(status.success(), "{status}");
            break;
        }
        kills += 1;
        left_behind += u64::from(!below(&cache, ".partial").is_empty());
    }
    assert!(left_behind >= 3, "{kills} kills left {left_behind} shards in the making");
    assert!(token_files(&workspace, "killed") == token_files(&workspace, "whole"));
}

/// A program, as nobody where this is root, who may write anywhere.
#[cfg(unix)]
fn without_privileges(workspace: &Workspace, args: &[&str]) -> Command {
    use std::os::unix::process::CommandExt;
    let whole = workspace.altup(args);
    // Where nobody can reach it.
    let program = workspace.path("program");
    if !program.exists() {
        fs::copy(whole.get_program(), &program).unwrap();
    }
    let mut command = Command::new(program);
    command.args(whole.get_args()).current_dir(workspace.path(""));
    let set = whole.get_envs().filter_map(|(name, value)| Some((name, value?)));
    command.envs(set);
    // SAFETY: it only asks.
    if unsafe { libc::geteuid() } == 0 {
        command.uid(65534).gid(65534);
    }
    command
}

/// Gives everything in a folder these permissions, and those to enter them to folders.
#[cfg(unix)]
fn permit(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    let is_folder = path.is_dir();
    let set = |mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    set(if is_folder { mode | 0o700 } else { mode });
    if is_folder {
        names_in(path).iter().for_each(|name| permit(&path.join(name), mode));
        set(mode | 0o111);
    }
}

/// Lets everyone into the workspace.
#[cfg(unix)]
fn permit_to_enter(workspace: &Workspace) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(workspace.path(""), fs::Permissions::from_mode(0o755)).unwrap();
}

/// As one that a team prepares and all of it read.
#[cfg(unix)]
#[test]
fn a_cache_that_may_only_be_read_serves_while_it_has_everything() {
    let workspace = with_shards();
    json_of(workspace.altup(&prepare("team")).output().unwrap());
    permit(&workspace.path("shards"), 0o644);
    permit(&workspace.path("team"), 0o444);
    fs::create_dir(workspace.path("runs")).unwrap();
    permit(&workspace.path("runs"), 0o777);
    permit(&workspace.path("tokenizer/tokenizer.json"), 0o644);
    let mode = |name: &str, mode| {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(workspace.path(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    permit_to_enter(&workspace);
    mode("tokenizer", 0o755);
    let state = || -> Vec<(PathBuf, Vec<u8>, std::time::SystemTime)> {
        let tokens = workspace.path("team/tokens/v3");
        let entries = fs::read_dir(&tokens).unwrap().map(|entry| entry.unwrap().path());
        let files = entries.flat_map(|path| match path.is_dir() {
            true => names_in(&path).into_iter().map(|name| path.join(name)).collect(),
            false => vec![path],
        });
        let mut files: Vec<PathBuf> = files.collect();
        files.sort();
        let state = |path: PathBuf| {
            let modified = fs::metadata(&path).unwrap().modified().unwrap();
            let bytes = fs::read(&path).unwrap();
            (path, bytes, modified)
        };
        files.into_iter().map(state).collect()
    };
    let before = state();
    let run = |run: &str, more: &[&str]| {
        let text = ["train", "--config", "config.toml", "--train", "shards", "--cache-dir", "team"];
        let output = format!("runs/{run}");
        let args = [&text[..], &["--output", &output, "--quiet"], more].concat();
        without_privileges(&workspace, &args).output().unwrap()
    };
    let tokenizer = ["--tokenizer", "tokenizer/tokenizer.json"];
    succeeds(run("first", &tokenizer));
    assert!(state() == before, "nothing is written");
    // Hashes that aren't remembered are computed again.
    let touched = fs::File::options().write(true).open(workspace.path("shards/03.txt")).unwrap();
    touched.set_modified(std::time::SystemTime::now() - Duration::from_secs(3600)).unwrap();
    succeeds(run("second", &tokenizer));
    assert!(state() == before, "nothing is written");
    let list = ["data", "list", "--cache-dir", "team"];
    succeeds(without_privileges(&workspace, &list).output().unwrap());

    let says = |message: String, lacks: &str| {
        for words in ["team/tok", "can't be written to", lacks, "--cache-dir", "altup data prepare"]
        {
            assert!(message.contains(words), "{message:?} doesn't say {words:?}");
        }
    };
    says(fails(run("untrained", &[])), "lacks the tokenizer of this text and size");
    workspace.write("shards/99.txt", "A new text.\n\nAnd another.\n");
    let message = fails(run("more", &tokenizer));
    says(message.clone(), "lacks the tokens of ");
    assert!(message.contains("99.txt"), "{message}");
    assert!(state() == before, "nothing is written");
    let other = ["--tokenizer", "runs/first/tokenizer.json", "--cache-dir", "runs/own"];
    let args =
        ["train", "--config", "config.toml", "--train", "shards", "--output", "runs/own-run"];
    let own = without_privileges(&workspace, &[&args[..], &other, &["--quiet"]].concat()).output();
    succeeds(own.unwrap());
    permit(&workspace.path("team"), 0o755);
}

/// Where each has its own, files that a user makes are another's to read, and not to write.
#[cfg(unix)]
#[test]
fn what_another_user_has_in_the_making_is_waited_for_or_taken_over() {
    let workspace = with_shards();
    json_of(workspace.altup(&prepare("whole")).output().unwrap());
    let whole = token_files(&workspace, "whole");
    for path in whole.keys() {
        let partial = format!("shared/{}.partial", path.display());
        workspace.write(&partial, "left by a process of another user that died");
    }
    let (path, _) = whole.first_key_value().unwrap();
    let partial = workspace.path("shared").join(format!("{}.partial", path.display()));
    let in_the_making = fs::File::open(partial).unwrap();
    in_the_making.lock().unwrap();
    permit(&workspace.path("shared"), 0o777);
    for name in below(&workspace.path("shared"), ".partial") {
        permit(Path::new(&name), 0o644);
    }
    for name in ["shards", "tokenizer"] {
        permit(&workspace.path(name), 0o755);
    }
    permit_to_enter(&workspace);

    let mut command = without_privileges(&workspace, &prepare("shared"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let all_others = whole.len() - 1;
    while below(&workspace.path("shared"), ".tokens").len() < all_others {
        assert!(child.try_wait().unwrap().is_none(), "it doesn't wait for the last");
        sleep(Duration::from_millis(5));
    }
    sleep(Duration::from_millis(200));
    assert!(child.try_wait().unwrap().is_none(), "it doesn't wait for the last");
    drop(in_the_making);
    let prepared = json_of(child.wait_with_output().unwrap());
    assert_eq!(prepared["texts"][0]["shards_made"], SHARDS);
    assert!(token_files(&workspace, "shared") == whole);
}

#[cfg(unix)]
#[test]
fn a_resume_without_a_cache_and_the_right_to_make_one_says_so() {
    let workspace = with_shards();
    let tokenizer = ["--tokenizer", "tokenizer/tokenizer.json"];
    succeeds(workspace.train_on("shards", "run", &tokenizer));
    for name in ["shards", "run", "tokenizer"] {
        permit(&workspace.path(name), 0o777);
    }
    fs::create_dir(workspace.path("closed")).unwrap();
    permit(&workspace.path("closed"), 0o555);
    permit_to_enter(&workspace);
    let resume = ["train", "--resume", "run", "--steps", "14", "--quiet"];
    let resume = [&resume[..], &["--cache-dir", "closed/cache"]].concat();
    let message = fails(without_privileges(&workspace, &resume).output().unwrap());
    assert!(message.contains("closed/cache/tokens can't be written to"), "{message}");
    assert!(message.contains("--cache-dir"), "{message}");
}

/// The texts and the tokenizer that a run from a model directory needs are found prepared.
#[test]
fn text_is_prepared_with_the_tokenizer_of_the_model_that_a_run_starts_from() {
    let workspace = with_shards();
    workspace.write(
        "continued.toml",
        "[model]\ninit = \"tokenizer/model\"\n[data]\ninput_length = 32\n\
         [training]\nsteps = 1\nbatch_size = 4\neval_examples = 4\n",
    );
    let from = |more: &[&str], cache: &str| {
        let flags = ["--train", "shards", "--cache-dir", cache, "--json"];
        let args = [&["data", "prepare"][..], more, &flags].concat();
        json_of(workspace.altup(&args).output().unwrap())
    };
    from(&["--config", "continued.toml"], "by-file");
    from(&["--init", "tokenizer/model"], "by-flag");
    let prepared = token_files(&workspace, "by-file");
    assert_eq!(prepared.len() as u64, SHARDS);
    assert!(token_files(&workspace, "by-flag") == prepared);
    for cache in ["by-file", "by-flag"] {
        let run = format!("run-{cache}");
        let flags = ["--train", "shards", "--cache-dir", cache, "--output", &run, "--quiet"];
        let train = [&["train", "--config", "continued.toml"][..], &flags].concat();
        succeeds(workspace.altup(&train).output().unwrap());
        assert!(token_files(&workspace, cache) == prepared, "a run takes what is prepared");
        assert!(!workspace.path(cache).join("tokenizers").exists(), "no tokenizer is trained");
    }
}

#[test]
fn a_broken_line_stops_a_run_or_is_left_out_and_reported() {
    let workspace = with_shards();
    let mut broken = fs::read(workspace.path("shards/05.txt")).unwrap();
    broken.extend(b"\nbad \xff\n");
    let line = broken.iter().filter(|byte| **byte == b'\n').count();
    workspace.write("shards/05.txt", broken);
    let tokenizer = ["--tokenizer", "tokenizer/tokenizer.json"];
    let message = fails(workspace.train_on("shards", "run", &tokenizer));
    let place = format!("05.txt: line {line} is not valid UTF-8");
    assert!(message.contains(&place), "{message}");

    let skip = [&tokenizer[..], &["--set", "data.on_error=skip"]].concat();
    succeeds(workspace.train_on("shards", "run", &skip));
    let summary = fs::read(workspace.path("run/summary.json")).unwrap();
    let summary: Value = serde_json::from_slice(&summary).unwrap();
    let skipped = &summary["skipped"];
    assert_eq!((skipped.as_array().unwrap().len(), skipped[0]["count"].as_u64()), (1, Some(1)));
    assert!(skipped[0]["first"][0].as_str().unwrap().contains(&place), "{skipped}");
    let record: Value =
        serde_json::from_slice(&fs::read(workspace.path("run/run.json")).unwrap()).unwrap();
    assert_eq!(record["skipped"], *skipped);
    // While the run goes on, too: there is no summary yet.
    fs::remove_file(workspace.path("run/summary.json")).unwrap();
    fs::remove_file(workspace.path("run/report.html")).unwrap();
    succeeds(workspace.altup(&["report", "run"]).output().unwrap());
    let report = fs::read_to_string(workspace.path("run/report.html")).unwrap();
    assert!(report.contains("Left out"));
    assert!(report.contains(&format!("05.txt: line {line} is not valid")), "{report}");

    let flags = [&prepare("cache")[..], &["--on-error", "skip"]].concat();
    let prepared = json_of(workspace.altup(&flags).output().unwrap());
    assert_eq!(prepared["skipped"], *skipped);
}

#[test]
fn other_objectives_train_resume_and_are_scored() {
    let workspace = Workspace::new();
    for objective in ["prefix_lm", "fixed_prefix_lm", "ul2"] {
        let key = format!("data.objective={objective}");
        let flags = set(&[&key, "training.eval_every=30", "training.steps=60"]);
        succeeds(workspace.train(objective, &flags));
        let run = workspace.path(objective);
        let rows = rows(&run);
        let losses = |kind: &str| -> Vec<f64> {
            let of_kind = rows.iter().filter(|row| row["kind"] == kind);
            of_kind.map(|row| row["loss"].as_f64().unwrap()).collect()
        };
        let train = losses("train");
        assert!(train[0] > train[29], "{objective}: {train:?}");

        let flags =
            ["evaluate", "--model", objective, "--examples", "8", "--batch-size", "4", "--json"];
        let scores = json_of(workspace.altup(&flags).output().unwrap());
        let (found, expected) = (scores["loss"].as_f64().unwrap(), losses("valid")[1]);
        assert!((found - expected).abs() <= 1e-6 * expected, "{objective}: {found}, {expected}");
    }
}

/// The configuration of a mixture of two texts, one with text of its own to validate on.
fn with_mixture(workspace: &Workspace) {
    let corpus = fs::read_to_string(workspace.path("corpus.txt")).unwrap();
    let documents: Vec<&str> = corpus.trim_end().split("\n\n").collect();
    workspace.write("first.txt", documents[..220].join("\n\n"));
    workspace.write("second.txt", documents[220..300].join("\n\n"));
    workspace.write("second-valid.txt", documents[300..].join("\n\n"));
    let config = fs::read_to_string(workspace.path("config.toml")).unwrap();
    let sources = "
        [[data.sources]]
        name = \"first\"
        train = [\"first.txt\"]
        weight = 3.0
        [[data.sources]]
        name = \"second\"
        train = [\"second.txt\"]
        valid = [\"second-valid.txt\"]
        weight = 1.0
    ";
    workspace.write("mixture.toml", config + sources);
}

#[test]
fn a_mixture_has_losses_and_epochs_by_source_and_resumes_exactly() {
    let workspace = Workspace::new();
    with_mixture(&workspace);
    let long = [
        "train",
        "--config",
        "mixture.toml",
        "--steps",
        "60",
        "--set",
        "data.workers=2",
        "--set",
        "training.gradient_accumulation=2",
        "--output",
    ];
    let start = |run: &'static str| workspace.altup(&[&long[..], &[run]].concat());
    succeeds(start("whole").output().unwrap());
    let rows = rows(&workspace.path("whole"));
    let last = |kind: &str| rows.iter().rfind(|row| row["kind"] == kind).unwrap();
    let valid = last("valid");
    let scores = valid["sources"].as_array().unwrap();
    assert_eq!(
        scores.iter().map(|score| &score["name"]).collect::<Vec<_>>(),
        [&json!("first"), &json!("second")]
    );
    let of = |number: usize, key: &str| scores[number][key].as_f64().unwrap();
    let mean = 0.75 * of(0, "loss") + 0.25 * of(1, "loss");
    assert!((valid["loss"].as_f64().unwrap() - mean).abs() < 1e-9);
    let epochs = last("train")["epochs"].as_array().unwrap();
    let epochs = [0, 1].map(|number| epochs[number]["epochs"].as_f64().unwrap());
    // 480 examples: 360 of the first and 120 of the second, which is about a third as long.
    assert!(epochs.iter().all(|epochs| *epochs > 0.05), "{epochs:?}");
    let summary = fs::read(workspace.path("whole/summary.json")).unwrap();
    let summary: Value = serde_json::from_slice(&summary).unwrap();
    assert_eq!(summary["sources"], valid["sources"]);
    assert_eq!(summary["epochs"], last("train")["epochs"]);
    let report = fs::read_to_string(workspace.path("whole/report.html")).unwrap();
    assert!(report.contains("<h2>Sources</h2>"), "{report}");
    assert!(report.contains("Validation loss by source"), "{report}");
    assert!(workspace.path("whole/charts/source_epochs.svg").exists());

    let run = workspace.path("killed");
    let mut child = start("killed").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while !run.join("checkpoints/step-00000009").exists() {
        assert!(child.try_wait().unwrap().is_none(), "ended before its checkpoint");
        sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!run.join("summary.json").exists(), "finished before it was killed");
    succeeds(workspace.altup(&["train", "--resume", "killed", "--quiet"]).output().unwrap());
    assert_same(&workspace, "killed", "whole", "a mixture");

    let scored = ["evaluate", "--model", "whole", "--examples", "8", "--batch-size", "4", "--json"];
    let scored = json_of(workspace.altup(&scored).output().unwrap());
    let found = scored["sources"][1]["loss"].as_f64().unwrap();
    assert!((found - of(1, "loss")).abs() < 1e-6 * found, "{found}");
}

#[test]
fn files_that_are_both_trained_and_validated_on_are_warned_of() {
    let workspace = Workspace::new();
    let flags = ["train", "--config", "config.toml", "--train", "corpus.txt", "--valid", "*.txt"];
    let output =
        succeeds(workspace.altup(&[&flags[..], &["--output", "run"]].concat()).output().unwrap());
    let errors = String::from_utf8(output.stderr).unwrap();
    let warning = "warning: 1 of the validation files are trained on too";
    assert!(errors.contains(warning), "{errors}");
    let same =
        ["train", "--config", "config.toml", "--train", "corpus.txt", "--valid", "corpus.txt"];
    let output =
        succeeds(workspace.altup(&[&same[..], &["--output", "same"]].concat()).output().unwrap());
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(errors.contains(warning), "{errors}");
}

#[test]
fn a_mixture_is_warned_of_what_one_text_validates_on_and_another_trains_on() {
    let workspace = Workspace::new();
    with_mixture(&workspace);
    fs::copy(workspace.path("second.txt"), workspace.path("copy.txt")).unwrap();
    let config = fs::read_to_string(workspace.path("mixture.toml")).unwrap();
    let validated_on = |file: &str| {
        let train = "train = [\"first.txt\"]";
        assert!(config.contains(train));
        let config = config.replace(train, &format!("{train}\nvalid = [\"{file}\"]"));
        workspace.write("shared.toml", config);
        let prepare = ["data", "prepare", "--config", "shared.toml"];
        String::from_utf8(succeeds(workspace.altup(&prepare).output().unwrap()).stderr).unwrap()
    };
    let errors = validated_on("second-valid.txt");
    assert!(!errors.contains("warning"), "{errors}");
    let errors = validated_on("second.txt");
    assert!(errors.contains("warning: 1 of the validation files are trained on too"), "{errors}");
    let errors = validated_on("copy.txt");
    assert!(errors.contains("warning: 1 of the validation files are copies"), "{errors}");
    assert!(errors.contains("copy.txt of ") && errors.contains("second.txt among"), "{errors}");
}
