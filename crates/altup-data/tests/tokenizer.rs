//! T5's own tokenizer against the ids that Hugging Face gives (`scripts/reference/tokenizer_ids.py`), and what holds the
//! version of tokenising.

use altup_data::tokenizer::TOKENIZING_VERSION;
use altup_data::{DataError, TextTokenizer};
use flate2::Crc;
use serde::Deserialize;
use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::path::Path;

/// Neither the tokenizer nor the text is part of this repository.
const DATA: &str = "../../../shared/data";

/// Checksums of each line of the text and of its ids.
#[derive(Deserialize)]
struct Expected {
    tokens: usize,
    text_crc32: Vec<u32>,
    ids_crc32: Vec<u32>,
}

#[test]
fn t5_tokens_equal_hugging_face() {
    let data = Path::new(DATA);
    if !data.exists() {
        // Not `eprintln!`, which the test runner keeps to itself.
        writeln!(std::io::stderr(), "SKIPPED t5_tokens_equal_hugging_face: no {DATA}").unwrap();
        return;
    }
    let expected: Expected =
        serde_json::from_slice(&fs::read("tests/fixtures/t5_tokenizer_ids.json").unwrap()).unwrap();
    let tokenizer = TextTokenizer::load(&data.join("tokenizer/t5/tokenizer.json")).unwrap();
    let text = fs::read_to_string(data.join("corpus/valid.txt")).unwrap();
    let lines: Vec<&str> = text.split('\n').filter(|line| !line.is_empty()).take(1000).collect();
    let text_crc32: Vec<u32> = lines.iter().map(|line| crc32(line.bytes())).collect();
    assert!(text_crc32 == expected.text_crc32, "the checksums are of another text");

    let mut tokens = 0;
    for (line, &expected) in lines.iter().zip(&expected.ids_crc32) {
        let ids = tokenizer.encode(line).unwrap();
        tokens += ids.len();
        let found = crc32(ids.iter().flat_map(|id| id.to_le_bytes()));
        assert_eq!(found, expected, "{line:?} has the ids {ids:?}");
    }
    assert_eq!(tokens, expected.tokens);
}

fn crc32(bytes: impl Iterator<Item = u8>) -> u32 {
    let mut crc = Crc::new();
    crc.update(&bytes.collect::<Vec<u8>>());
    crc.sum()
}

/// The special tokens of a tokenizer with so many other pieces, behind which the sentinels follow.
fn added_tokens(pieces: usize) -> Vec<Value> {
    let token = |(id, content): (usize, &str)| {
        json!({"id": id, "content": content, "special": true, "single_word": false, "lstrip": false,
               "rstrip": false, "normalized": false})
    };
    let sentinels = ["<extra_id_1>", "<extra_id_0>"];
    let first = ["<pad>", "</s>", "<unk>"].into_iter().enumerate();
    first.chain((3 + pieces..).zip(sentinels)).map(token).collect()
}

/// A tokenizer of each model, with the normalizers that go with it.
fn tokenizers() -> [(&'static str, Value); 3] {
    const PIECES: [&str; 18] = [
        "\u{2581}",
        "\u{2581}the",
        "\u{2581}th",
        "e",
        "a",
        "b",
        "c",
        "\u{2581}a",
        "ab",
        "abc",
        "fi",
        "f",
        "i",
        "\u{e9}",
        "\u{301}",
        "1",
        "12",
        "\u{2581}\u{2581}",
    ];
    let special = ["<pad>", "</s>", "<unk>"].map(|name| json!([name, 0.0]));
    let scored =
        PIECES.iter().enumerate().map(|(n, piece)| json!([piece, -2.0 - (n % 5) as f64 / 3.0]));
    let sentinels = ["<extra_id_1>", "<extra_id_0>"].map(|name| json!([name, 0.0]));
    let unigram: Vec<Value> = special.into_iter().chain(scored).chain(sentinels).collect();
    let metaspace = json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always",
                           "split": true});
    let unigram = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added_tokens(PIECES.len()),
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "NFKC"},
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
        ]},
        "pre_tokenizer": metaspace, "post_processor": null, "decoder": metaspace,
        "model": {"type": "Unigram", "unk_id": 2, "vocab": unigram, "byte_fallback": false},
    });

    let vocabulary = |pieces: &[&str]| -> Value {
        let all = ["<pad>", "</s>", "<unk>"].into_iter().chain(pieces.iter().copied());
        let all = all.chain(["<extra_id_1>", "<extra_id_0>"]);
        Value::Object(all.enumerate().map(|(id, piece)| (piece.to_owned(), json!(id))).collect())
    };
    let pieces = [
        "\u{120}",
        "t",
        "h",
        "e",
        "a",
        "b",
        "c",
        "f",
        "i",
        "1",
        "2",
        "\u{c3}",
        "\u{a9}",
        "th",
        "the",
        "\u{120}the",
        "ab",
        "\u{c3}\u{a9}",
    ];
    let merges = ["t h", "th e", "\u{120} the", "a b", "\u{c3} \u{a9}"];
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                            "use_regex": true});
    let bpe = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added_tokens(pieces.len()),
        "normalizer": {"type": "NFC"}, "pre_tokenizer": byte_level, "post_processor": null,
        "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                  "vocab": vocabulary(&pieces), "merges": merges},
    });

    let pieces =
        ["the", "a", "##b", "##bc", "12", "##3", "e", "fi", "th", "##e", ".", ",", "\u{4e2d}"];
    let wordpiece = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added_tokens(pieces.len()),
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                       "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"}, "post_processor": null,
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "<unk>", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 20, "vocab": vocabulary(&pieces)},
    });
    [("Unigram", unigram), ("BPE", bpe), ("WordPiece", wordpiece)]
}

/// What a tokenizer may treat in one way or another: spaces, ligatures, accents of their own, special tokens, characters
/// that it doesn't know, and other scripts.
const TEXTS: [&str; 6] = [
    "the  abc\tth e\u{a0}the",
    "\u{fb01} caf\u{e9} cafe\u{301} 12 \u{216b}",
    "the<extra_id_0> a </s>b <extra_id_1>",
    "\u{4e2d}\u{4e2d}the \u{1f600}abc, The. 123",
    "  abcabc\r\n\nab\u{200d}ab ",
    "aa b\u{0}c",
];

/// If another release of the `tokenizers` crate fails this test, it gives other ids of the same text: raise
/// `TOKENIZING_VERSION`, so that text that was prepared before isn't mixed with it, and put the new ids here. (Python's
/// `tokenizers` 0.22.2 gives these.)
#[test]
fn the_version_of_tokenising_stands_for_these_ids() {
    assert_eq!(TOKENIZING_VERSION, 1, "the ids below are those of this version");
    let expected: [[&[u32]; 6]; 3] = [
        [
            &[4, 3, 12, 2, 3, 6, 4],
            &[3, 13, 3, 9, 7, 14, 16, 3, 9, 7, 14, 16, 3, 19, 3, 2],
            &[4, 22, 10, 3, 1, 3, 8, 3, 21],
            &[3, 2, 6, 3, 2, 12, 2, 3, 2, 6, 2, 3, 19, 2],
            &[3, 12, 12, 2, 11, 2, 11, 3],
            &[10, 7, 3, 8, 2, 9],
        ],
        [
            &[17, 3, 3, 19, 9, 2, 16, 3, 6, 2, 2, 17],
            &[2, 2, 2, 3, 9, 7, 10, 20, 3, 9, 7, 10, 20, 3, 12, 13, 3, 2, 2, 2],
            &[17, 22, 3, 7, 3, 1, 8, 3, 21],
            &[2, 2, 2, 2, 2, 2, 17, 3, 2, 2, 2, 2, 19, 9, 2, 3, 2, 5, 6, 2, 3, 12, 13, 2],
            &[3, 3, 19, 9, 19, 9, 2, 2, 2, 19, 2, 2, 2, 19, 3],
            &[7, 7, 3, 8, 2, 9],
        ],
        [
            &[3, 4, 6, 11, 9, 3],
            &[2, 2, 2, 7, 2],
            &[3, 17, 4, 1, 2, 16],
            &[15, 15, 3, 2, 14, 3, 13, 7, 8],
            &[2, 2],
            &[2, 2],
        ],
    ];
    let folder = tempfile::tempdir().unwrap();
    for ((name, json), expected) in tokenizers().into_iter().zip(expected) {
        let path = folder.path().join(name);
        fs::write(&path, json.to_string()).unwrap();
        let tokenizer = TextTokenizer::load(&path).unwrap();
        let ids = TEXTS.map(|text| tokenizer.encode(text).unwrap());
        assert_eq!(ids.each_ref().map(Vec::as_slice), expected, "{name}");
    }
}

#[test]
fn a_tokenizer_that_fails_at_unknown_characters_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for (name, mut json) in tokenizers() {
        let path = folder.path().join(name);
        let (key, value) = match name {
            "Unigram" => ("unk_id", Value::Null),
            _ => ("unk_token", json!("[UNK]")),
        };
        json["model"][key] = value;
        fs::write(&path, json.to_string()).unwrap();
        let error = TextTokenizer::load(&path).unwrap_err();
        assert!(matches!(error, DataError::UnknownCharacters { .. }), "{error}");
        assert!(error.to_string().contains(&path.display().to_string()), "{error}");
    }
}
