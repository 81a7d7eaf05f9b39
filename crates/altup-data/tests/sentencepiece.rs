//! SentencePiece's own model files against the ids that SentencePiece gives
//! (`scripts/reference/sentencepiece_models.py`), and T5's against its `tokenizer.json`.

use altup_data::TextTokenizer;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Neither the tokenizer nor the text is part of this repository.
const DATA: &str = "../../../shared/data";

#[derive(Deserialize)]
struct Expected {
    lines: Vec<String>,
    /// Lines that `sentinels.model` is asked for too.
    sentinel_lines: Vec<String>,
    ids: BTreeMap<String, Vec<Vec<u32>>>,
    texts: BTreeMap<String, Vec<String>>,
    pieces: BTreeMap<String, usize>,
}

fn fixture(name: &str) -> PathBuf {
    Path::new("tests/fixtures/sentencepiece").join(name)
}

fn expected() -> Expected {
    serde_json::from_slice(&fs::read(fixture("expected.json")).unwrap()).unwrap()
}

#[test]
fn ids_and_texts_are_those_of_sentencepiece() {
    let expected = expected();
    for (name, ids) in &expected.ids {
        let tokenizer = TextTokenizer::load(&fixture(&format!("{name}.model"))).unwrap();
        let lines = expected.lines.iter().chain(&expected.sentinel_lines);
        for ((line, ids), text) in lines.zip(ids).zip(&expected.texts[name]) {
            assert_eq!(&tokenizer.encode(line).unwrap(), ids, "{name}: {line:?}");
            // SentencePiece writes " ⁇ " for what it doesn't know, marks its sentinels as words, and drops all
            // spaces before the first word, where one was added.
            if !ids.contains(&tokenizer.unk_id()) && !line.contains(['<', '\u{2581}']) {
                assert_eq!(&tokenizer.decode(ids, true).unwrap(), text, "{name}: {line:?}");
            }
        }
    }
}

#[test]
fn special_ids_are_the_files_and_sentinels_follow_where_it_has_none() {
    let pieces = expected().pieces;
    for (name, count) in pieces {
        let tokenizer = TextTokenizer::load(&fixture(&format!("{name}.model"))).unwrap();
        assert_eq!([tokenizer.pad_id(), tokenizer.eos_id(), tokenizer.unk_id()], [0, 1, 2]);
        let count = count as u32;
        let sentinels: Vec<u32> = match name.as_str() {
            // Its pieces 3 to 5.
            "sentinels" => vec![5, 4, 3],
            _ => (count..count + 100).rev().collect(),
        };
        assert_eq!(tokenizer.sentinels(), sentinels, "{name}");
        let size = sentinels.iter().max().unwrap() + 1;
        assert_eq!(tokenizer.vocab_size() as u32, size.max(count), "{name}");
        let text = "the <extra_id_0> river <extra_id_1>";
        let ids = tokenizer.encode(text).unwrap();
        let found: Vec<u32> = ids.into_iter().filter(|id| sentinels.contains(id)).collect();
        assert_eq!(found, sentinels[..2], "{name}");
    }
}

#[test]
fn the_number_of_sentinels_is_the_configurations() {
    let folder = tempfile::tempdir().unwrap();
    let (model, config) =
        (folder.path().join("spiece.model"), folder.path().join("tokenizer_config.json"));
    fs::copy(fixture("t5.model"), &model).unwrap();
    let load = |text: &str| {
        fs::write(&config, text).unwrap();
        TextTokenizer::load(&model)
    };
    assert_eq!(load(r#"{"extra_ids": 7, "eos_token": {}}"#).unwrap().sentinels().len(), 7);
    assert_eq!(load("{}").unwrap().sentinels().len(), 100);
    for (text, words) in [
        ("{", "tokenizer_config.json"),
        (r#"{"extra_ids": "7"}"#, "extra_ids"),
        (r#"{"extra_ids": 10001}"#, "at most 10000, not 10001"),
    ] {
        let message = chain(&load(text).unwrap_err());
        assert!(message.contains(words) && message.contains("spiece.model"), "{message}");
    }
}

#[test]
fn it_saves_as_a_tokenizer_json_of_the_same_ids() {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("tokenizer.json");
    let tokenizer = TextTokenizer::load(&fixture("t5.model")).unwrap();
    tokenizer.save(&json).unwrap();
    let saved = TextTokenizer::load(&json).unwrap();
    assert_eq!(saved.fingerprint(), tokenizer.fingerprint());
    // Prepared text and runs know their tokenizer by it: a release of the `tokenizers` crate that writes the same tokenizer
    // in other words would make them foreign.
    let pinned = "babe1d73e40a10b180c5e7ec3d53e75454e955c5a6092027265c69cdcfcb87a1";
    assert_eq!(tokenizer.fingerprint().to_hex().as_str(), pinned);
    for line in expected().lines {
        assert_eq!(saved.encode(&line).unwrap(), tokenizer.encode(&line).unwrap());
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[test]
fn damaged_files_are_named_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let whole = fs::read(fixture("t5.model")).unwrap();
    let path = folder.path().join("spiece.model");
    let refused = |bytes: &[u8], words: &str| {
        fs::write(&path, bytes).unwrap();
        let message = chain(&TextTokenizer::load(&path).unwrap_err());
        assert!(message.contains("spiece.model") && message.contains(words), "{message}");
    };
    refused(b"", "unknown piece");
    refused(b"{\"version\": \"1.0\"}", "no SentencePiece model");
    refused(&whole[..whole.len() - 1], "no SentencePiece model");
    refused(&fs::read(fixture("pair.model")).unwrap(), "type Bpe, and must be Unigram");
    let message = chain(&TextTokenizer::load(&folder.path().join("none.model")).unwrap_err());
    assert!(message.contains("none.model"), "{message}");
}

/// The library looks its table up without a check.
#[test]
fn a_damaged_table_of_a_tokenizer_json_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    TextTokenizer::load(&fixture("t5.model")).unwrap().save(&path).unwrap();
    let mut json: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for (text, problem) in [
        // A trie of one unit, which leads out of itself.
        ("BAAAAAAAAQA=", "points out of itself"),
        ("BAAAAA==", "is cut off"),
    ] {
        let step = serde_json::json!({"type": "Precompiled", "precompiled_charsmap": text});
        json["normalizer"] =
            serde_json::json!({"type": "Sequence", "normalizers": [{"type": "NFC"}, step]});
        fs::write(&path, json.to_string()).unwrap();
        let error = TextTokenizer::load(&path).unwrap_err();
        let message = chain(&error);
        assert!(message.contains(path.to_str().unwrap()), "{message}");
        assert!(message.contains(&format!("its precompiled_charsmap {problem}")), "{message}");
    }
}

/// A file may be damaged in any byte: it is refused, or it is a tokenizer that gives ids without a panic.
#[test]
fn no_damage_makes_it_panic() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spiece.model");
    let whole = fs::read(fixture("t5.model")).unwrap();
    let mut refused = 0;
    for place in (0..whole.len()).step_by(7) {
        let mut damaged = whole.clone();
        damaged[place] ^= 0x55;
        fs::write(&path, damaged).unwrap();
        match TextTokenizer::load(&path) {
            Err(_) => refused += 1,
            Ok(tokenizer) => {
                for line in ["the light\tof e\u{301}\u{fb01}", "\u{ff21}\u{200b} \u{4e16}"] {
                    tokenizer.encode(line).unwrap();
                }
            }
        }
    }
    assert!(refused > 20, "{refused}");
}

#[test]
fn t5_tokens_equal_its_tokenizer_json() {
    let data = Path::new(DATA);
    if !data.exists() {
        // Not `eprintln!`, which the test runner keeps to itself.
        writeln!(std::io::stderr(), "SKIPPED t5_tokens_equal_its_tokenizer_json: no {DATA}")
            .unwrap();
        return;
    }
    let load = |name: &str| TextTokenizer::load(&data.join("tokenizer/t5").join(name)).unwrap();
    let (json, spiece) = (load("tokenizer.json"), load("spiece.model"));
    assert_eq!((spiece.vocab_size(), spiece.sentinels()), (json.vocab_size(), json.sentinels()));
    let text = fs::read_to_string(data.join("corpus/valid.txt")).unwrap();
    let lines: Vec<&str> = text.split('\n').filter(|line| !line.is_empty()).take(1000).collect();
    assert_eq!(lines.len(), 1000);
    let more = [
        "",
        "  a  b ",
        "a <extra_id_0> b<extra_id_1>",
        "\u{ff21} \u{fb01}\u{301} \u{1f389}\t\u{a0}x",
    ];
    for line in lines.into_iter().chain(more) {
        let (found, expected) = (spiece.encode(line).unwrap(), json.encode(line).unwrap());
        assert_eq!(found, expected, "{line:?}");
        assert_eq!(spiece.decode(&found, false).unwrap(), json.decode(&expected, false).unwrap());
    }
}
