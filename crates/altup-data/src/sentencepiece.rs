//! SentencePiece's own files, `spiece.model`, as tokenizers that give the same ids. The files are untrusted.
//!
//! mT5 and older T5s have such a file and no `tokenizer.json`. It is a protocol buffer with the pieces of a Unigram
//! model and a table of characters for the normalization of text
//! ([sentencepiece_model.proto](https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto)).

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use prost::Message;
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeSet, HashSet};
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::sequence::Sequence as Decoders;
use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::replace::{Replace, ReplacePattern};
use tokenizers::normalizers::{NormalizerWrapper, Precompiled, Prepend, Sequence as Normalizers};
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::{AddedToken, Tokenizer};

use crate::tokenizer::{EOS, NUM_SENTINELS, WORD_START, end_of_text, sentinel, sentinel_number};

/// mT5's has 4 MB.
const MAX_BYTES: u64 = 64 << 20;
/// A larger file is no configuration.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// The fields that are used, under their numbers in `sentencepiece_model.proto`.
#[derive(Clone, PartialEq, Message)]
struct Model {
    #[prost(message, repeated, tag = "1")]
    pieces: Vec<Piece>,
    #[prost(message, optional, tag = "2")]
    trainer: Option<Trainer>,
    #[prost(message, optional, tag = "3")]
    normalizer: Option<Normalizer>,
}

#[derive(Clone, PartialEq, Message)]
struct Piece {
    #[prost(string, optional, tag = "1")]
    text: Option<String>,
    #[prost(float, optional, tag = "2")]
    score: Option<f32>,
    #[prost(enumeration = "PieceType", optional, tag = "3", default = "Normal")]
    kind: Option<i32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
enum PieceType {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

#[derive(Clone, PartialEq, Message)]
struct Trainer {
    #[prost(enumeration = "ModelType", optional, tag = "3", default = "Unigram")]
    model_type: Option<i32>,
    #[prost(bool, optional, tag = "22", default = "true")]
    split_by_whitespace: Option<bool>,
    #[prost(bool, optional, tag = "24", default = "false")]
    treat_whitespace_as_suffix: Option<bool>,
    #[prost(bool, optional, tag = "35", default = "false")]
    byte_fallback: Option<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
enum ModelType {
    Unigram = 1,
    Bpe = 2,
    Word = 3,
    Char = 4,
}

#[derive(Clone, PartialEq, Message)]
struct Normalizer {
    #[prost(bytes = "vec", optional, tag = "2")]
    precompiled_charsmap: Option<Vec<u8>>,
    #[prost(bool, optional, tag = "3", default = "true")]
    add_dummy_prefix: Option<bool>,
    #[prost(bool, optional, tag = "4", default = "true")]
    remove_extra_whitespaces: Option<bool>,
    #[prost(bool, optional, tag = "5", default = "true")]
    escape_whitespaces: Option<bool>,
}

/// What is used of the `tokenizer_config.json` beside it.
#[derive(Deserialize)]
struct TokenizerConfig {
    extra_ids: Option<usize>,
}

/// Reads a `spiece.model`. Sentinels that it doesn't have itself are appended, as T5's tokenizer does:
/// `<extra_id_0>` gets the highest id. There are as many as `extra_ids` in the `tokenizer_config.json` beside it says,
/// or 100.
pub(crate) fn read(path: &Path) -> tokenizers::Result<Tokenizer> {
    let model = Model::decode(&*read_at_most(path, MAX_BYTES)?)
        .map_err(|error| format!("it is no SentencePiece model: {error}"))?;
    let trainer = model.trainer.unwrap_or_default();
    let normalizer = model.normalizer.unwrap_or_default();
    match trainer.model_type() {
        ModelType::Unigram => {}
        other => return Err(format!("its model is of type {other:?}, and must be Unigram").into()),
    }
    if trainer.treat_whitespace_as_suffix() {
        return Err("it marks the ends of words, which is not supported".into());
    }

    let mut pieces = Pieces::read(model.pieces)?;
    if !pieces.has_sentinels {
        pieces.append_sentinels(extra_ids(path)?);
    }
    let unigram = Unigram::from(pieces.vocabulary, Some(pieces.unknown), trainer.byte_fallback())?;
    let space = if normalizer.escape_whitespaces() { WORD_START } else { ' ' };
    let words = |scheme| Metaspace::new(space, scheme, trainer.split_by_whitespace());
    let mut tokenizer = Tokenizer::new(unigram);
    tokenizer
        .with_normalizer(Some(Normalizers::new(normalization(&normalizer, space)?)))
        .with_pre_tokenizer(Some(words(PrependScheme::Never)));
    let eos = tokenizer.token_to_id(EOS).ok_or_else(|| format!("it has no piece {EOS}"))?;
    tokenizer.with_post_processor(Some(end_of_text(eos)?));
    let scheme = match normalizer.add_dummy_prefix() {
        true => PrependScheme::Always,
        false => PrependScheme::Never,
    };
    match trainer.byte_fallback() {
        false => tokenizer.with_decoder(Some(words(scheme))),
        true => tokenizer.with_decoder(Some(Decoders::new(vec![
            ByteFallback::default().into(),
            words(scheme).into(),
        ]))),
    };
    tokenizer.add_tokens(&pieces.user_defined);
    tokenizer.add_special_tokens(&pieces.special);
    Ok(tokenizer)
}

fn read_at_most(path: &Path, limit: u64) -> tokenizers::Result<Vec<u8>> {
    if !fs::metadata(path)?.is_file() {
        return Err("not a regular file".into());
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > limit {
        true => Err(format!("it has more than {limit} bytes").into()),
        false => Ok(bytes),
    }
}

fn extra_ids(spiece: &Path) -> tokenizers::Result<usize> {
    let path = spiece.with_file_name("tokenizer_config.json");
    if !path.exists() {
        return Ok(NUM_SENTINELS);
    }
    let named = |error: tokenizers::Error| format!("{}: {error}", path.display());
    let bytes = read_at_most(&path, MAX_CONFIG_BYTES).map_err(named)?;
    let mut json = serde_json::Deserializer::from_slice(&bytes);
    let config: TokenizerConfig =
        serde_path_to_error::deserialize(&mut json).map_err(|error| named(error.into()))?;
    match config.extra_ids.unwrap_or(NUM_SENTINELS) {
        count @ ..=10_000 => Ok(count),
        count => Err(named(format!("extra_ids must be at most 10000, not {count}").into()).into()),
    }
}

/// The pieces of a model.
struct Pieces {
    /// By their ids, with their scores.
    vocabulary: Vec<(String, f64)>,
    unknown: usize,
    user_defined: Vec<AddedToken>,
    special: Vec<AddedToken>,
    has_sentinels: bool,
}

impl Pieces {
    fn read(pieces: Vec<Piece>) -> tokenizers::Result<Self> {
        let (mut vocabulary, mut known) = (Vec::new(), HashSet::new());
        let (mut user_defined, mut special) = (Vec::new(), Vec::new());
        let (mut has_sentinels, mut unknown) = (false, None);
        for (id, piece) in pieces.into_iter().enumerate() {
            let (kind, score) = (piece.kind, f64::from(piece.score()));
            let mut text = piece.text.unwrap_or_default();
            let kind = match kind.map_or(Ok(PieceType::Normal), PieceType::try_from) {
                Ok(PieceType::Unused) | Err(_) => {
                    let kind = kind.unwrap_or_default();
                    let problem = format!("its piece {id}, {text:?}, is of type {kind}");
                    return Err(format!("{problem}, which is not supported").into());
                }
                Ok(kind) => kind,
            };
            // mT5's sentinels are pieces with the mark of a word before them, and lose it here.
            if let Some(number) = sentinel_number(text.trim_start_matches(WORD_START)) {
                text = sentinel(number);
                has_sentinels = true;
                // What is before it would be a piece of its own.
                special.push(AddedToken::from(text.clone(), true).lstrip(true));
            } else {
                match kind {
                    PieceType::Unknown if unknown.is_some() => {
                        return Err(
                            format!("its piece {id}, {text:?}, is a second unknown one").into()
                        );
                    }
                    PieceType::Unknown => {
                        unknown = Some(id);
                        special.push(AddedToken::from(text.clone(), true));
                    }
                    PieceType::Control => special.push(AddedToken::from(text.clone(), true)),
                    PieceType::UserDefined => {
                        user_defined.push(AddedToken::from(text.clone(), false).normalized(false))
                    }
                    PieceType::Normal | PieceType::Byte | PieceType::Unused => {}
                }
            }
            if text.is_empty() || !score.is_finite() {
                return Err(format!("its piece {id} is {text:?} with the score {score}").into());
            }
            if !known.insert(text.clone()) {
                return Err(format!("it has the piece {text:?} twice").into());
            }
            vocabulary.push((text, score));
        }
        let unknown = unknown.ok_or("it has no unknown piece")?;
        Ok(Self { vocabulary, unknown, user_defined, special, has_sentinels })
    }

    fn append_sentinels(&mut self, count: usize) {
        for number in (0..count).rev() {
            let text = sentinel(number);
            self.vocabulary.push((text.clone(), 0.0));
            self.special.push(AddedToken::from(text, true));
        }
    }
}

/// The steps from a text to what pieces are looked for in.
fn normalization(
    normalizer: &Normalizer,
    space: char,
) -> tokenizers::Result<Vec<NormalizerWrapper>> {
    let mut steps: Vec<NormalizerWrapper> = Vec::new();
    let charsmap = normalizer.precompiled_charsmap();
    if !charsmap.is_empty() {
        check_charsmap(charsmap).map_err(|problem| format!("its table of characters {problem}"))?;
        steps.push(Precompiled::from(charsmap)?.into());
    }
    if normalizer.remove_extra_whitespaces() {
        for (pattern, content) in [("^ +| +$", ""), (" {2,}", " ")] {
            let pattern = ReplacePattern::Regex(pattern.into());
            steps.push(Replace::new(pattern, content)?.into());
        }
    }
    if normalizer.add_dummy_prefix() {
        steps.push(Prepend::new(space.to_string()).into());
    }
    Ok(steps)
}

/// Checks the tables of characters of a `tokenizer.json`, wherever its normalizers have them, in base64.
pub(crate) fn check_charsmaps(json: &Value) -> Result<(), String> {
    let check = |text: &str| {
        let bytes = BASE64.decode(text).map_err(|error| format!("is no base64: {error}"))?;
        check_charsmap(&bytes)
    };
    match json {
        Value::Object(fields) => fields.iter().try_for_each(|(key, value)| match value {
            Value::String(text) if key == "precompiled_charsmap" => {
                check(text).map_err(|problem| format!("its precompiled_charsmap {problem}"))
            }
            value => check_charsmaps(value),
        }),
        Value::Array(values) => values.iter().try_for_each(check_charsmaps),
        _ => Ok(()),
    }
}

/// Checks that a table of characters can be searched: whoever searches it does so without looking.
///
/// It is the length of a trie in bytes, the trie, and the texts that characters become, each with a 0 behind it. The
/// trie is a double array: state s goes on with byte c to unit s ^ c if that is labelled c.
fn check_charsmap(bytes: &[u8]) -> Result<(), String> {
    let (length, rest) = bytes.split_first_chunk::<4>().ok_or("is cut off")?;
    let length = u32::from_le_bytes(*length) as usize;
    let (trie, texts) = rest.split_at_checked(length).ok_or("is cut off")?;
    let (units, odd) = trie.as_chunks::<4>();
    let texts = std::str::from_utf8(texts).map_err(|_| "has texts that are not UTF-8")?;
    if units.is_empty() || !odd.is_empty() {
        return Err(format!("has a trie of {length} bytes"));
    }
    let unit = |place: usize| {
        let bytes = units.get(place).ok_or("points out of itself")?;
        Ok::<_, String>(u32::from_le_bytes(*bytes))
    };
    let offset = |unit: u32| ((unit >> 10) << ((unit & (1 << 9)) >> 6)) as usize;
    let mut states = vec![offset(unit(0)?)];
    let mut seen: BTreeSet<usize> = states.iter().copied().collect();
    while let Some(state) = states.pop() {
        for byte in 1..=255 {
            let place = state ^ byte;
            let next = unit(place)?;
            if (next & ((1 << 31) | 0xff)) as usize != byte {
                continue;
            }
            let target = place ^ offset(next);
            if (next >> 8) & 1 == 1 {
                let text = (unit(target)? & !(1 << 31)) as usize;
                if !texts.is_char_boundary(text) {
                    return Err(format!("points to byte {text} of texts of {}", texts.len()));
                }
            }
            if seen.insert(target) {
                states.push(target);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(text: &str, kind: PieceType) -> Piece {
        Piece { text: Some(text.into()), score: Some(-1.0), kind: Some(kind.into()) }
    }

    /// Loads a model of `<pad>`, `</s>`, `<unk>` and these pieces.
    fn load(pieces: &[Piece], charsmap: &[u8]) -> tokenizers::Result<Tokenizer> {
        let control = |text| piece(text, PieceType::Control);
        let first = [control("<pad>"), control("</s>"), piece("<unk>", PieceType::Unknown)];
        let model = Model {
            pieces: [&first, pieces].concat(),
            trainer: None,
            normalizer: Some(Normalizer {
                precompiled_charsmap: Some(charsmap.to_vec()),
                ..Normalizer::default()
            }),
        };
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("spiece.model");
        fs::write(&path, model.encode_to_vec())?;
        read(&path)
    }

    #[test]
    fn fields_that_are_missing_have_their_defaults() {
        let tokenizer = load(
            &[
                piece("\u{2581}", PieceType::Normal),
                Piece { text: Some("a".into()), ..Piece::default() },
            ],
            &[],
        )
        .unwrap();
        let ids = |text: &str| tokenizer.encode(text, true).unwrap().get_ids().to_vec();
        assert_eq!(ids(" a  a "), [3, 4, 3, 4, 1]);
        assert_eq!(ids("b"), [3, 2, 1]);
        assert_eq!(tokenizer.token_to_id("<extra_id_0>"), Some(104));
    }

    #[test]
    fn pieces_that_make_no_sense_are_named() {
        let not_finite = Piece { score: Some(f32::NAN), ..piece("a", PieceType::Normal) };
        let of_no_type = Piece { kind: Some(9), ..piece("a", PieceType::Normal) };
        for (pieces, message) in [
            (
                vec![piece("a", PieceType::Normal), piece("a", PieceType::Normal)],
                "it has the piece \"a\" twice",
            ),
            (vec![piece("", PieceType::Normal)], "its piece 3 is \"\" with the score -1"),
            (vec![not_finite], "its piece 3 is \"a\" with the score NaN"),
            (vec![piece("?", PieceType::Unknown)], "its piece 3, \"?\", is a second unknown one"),
            (
                vec![piece("a", PieceType::Unused)],
                "its piece 3, \"a\", is of type 5, which is not supported",
            ),
            (vec![of_no_type], "its piece 3, \"a\", is of type 9, which is not supported"),
        ] {
            assert_eq!(load(&pieces, &[]).unwrap_err().to_string(), message);
        }
    }

    /// A trie without a way out of its root, of 256 units, and the text "b".
    fn charsmap(change: impl FnOnce(&mut [u32])) -> Vec<u8> {
        let mut units = vec![0u32; 256];
        // The root's offset is 0: byte c goes to unit c, which is labelled 0 and so not c.
        change(&mut units);
        let units: Vec<u8> = units.iter().flat_map(|unit| unit.to_le_bytes()).collect();
        [&(units.len() as u32).to_le_bytes()[..], &units, b"b\0"].concat()
    }

    #[test]
    fn a_table_of_characters_is_searched_only_if_it_is_whole() {
        let a = u32::from(b'a');
        // Byte a goes to unit a, whose value lies at unit a ^ 1.
        let whole = |text: u32| {
            charsmap(|units| {
                units[a as usize] = a | (1 << 8) | (1 << 10);
                units[(a ^ 1) as usize] = (1 << 31) | text;
            })
        };
        let b = piece("b", PieceType::Normal);
        let tokenizer =
            load(&[piece("\u{2581}", PieceType::Normal), b.clone()], &whole(0)).unwrap();
        assert_eq!(tokenizer.encode("a", false).unwrap().get_ids(), [3, 4]);

        let outside = charsmap(|units| units[0] = 1 << 10 << 9);
        for (bytes, problem) in [
            (vec![1, 2, 3], "is cut off"),
            (whole(0)[..100].to_vec(), "is cut off"),
            (vec![0; 4], "has a trie of 0 bytes"),
            (vec![3, 0, 0, 0, 1, 2, 3], "has a trie of 3 bytes"),
            ([&whole(0)[..], &[0xff]].concat(), "has texts that are not UTF-8"),
            (whole(3), "points to byte 3 of texts of 2"),
            (outside, "points out of itself"),
        ] {
            let message = load(std::slice::from_ref(&b), &bytes).unwrap_err().to_string();
            assert_eq!(message, format!("its table of characters {problem}"));
        }
    }
}
