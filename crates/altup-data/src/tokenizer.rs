//! Text to token ids and back, with any Hugging Face `tokenizer.json`, or one trained here.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use rayon::prelude::*;
use serde::Deserialize;
use tokenizers::models::unigram::{Unigram, UnigramTrainer};
use tokenizers::normalizers::NFKC;
use tokenizers::pre_tokenizers::metaspace::Metaspace;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::whitespace::WhitespaceSplit;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, Model, NormalizedString, Tokenizer};

use crate::corpus::OnError;
use crate::store::{Claim, PATIENCE, remove_left_overs, written_if_allowed};
use crate::{Corpus, DataError, sentencepiece};

const PAD: &str = "<pad>";
pub(crate) const EOS: &str = "</s>";
const UNK: &str = "<unk>";

/// The special tokens of a trained tokenizer, at the ids 0, 1 and 2, as in T5.
const SPECIAL: [&str; 3] = [PAD, EOS, UNK];

/// Sentinels of a trained tokenizer, as in T5.
pub(crate) const NUM_SENTINELS: usize = 100;

/// Pieces that a trained tokenizer has room for at the least.
const MIN_PIECES: usize = 64;

/// SentencePiece's mark for a space before a word.
pub(crate) const WORD_START: char = '\u{2581}';

/// Share of the text whose characters get a piece of their own, SentencePiece's default. What is
/// left are many characters that each are too rare to learn.
const CHARACTER_COVERAGE: f64 = 0.9995;

/// Words that training looks at, the most frequent first. The time for training grows in
/// proportion, and rarer words hardly move a score.
const MAX_WORDS: usize = 100_000;

/// Longer words are data, not language: SentencePiece's limit.
const MAX_WORD_BYTES: usize = 4192;

pub(crate) fn sentinel(number: usize) -> String {
    format!("<extra_id_{number}>")
}

pub(crate) fn sentinel_number(token: &str) -> Option<usize> {
    token.strip_prefix("<extra_id_")?.strip_suffix('>')?.parse().ok()
}

/// The version of how text becomes ids: raise it when the same `tokenizer.json` gives other ids of some text, as it may
/// under another release of the `tokenizers` crate. Prepared text of another version is passed over, and a run that goes
/// on refuses it.
pub const TOKENIZING_VERSION: u32 = 1;

/// A tokenizer that can serve T5: it pads with 0, ends sequences, and has sentinels.
#[derive(Debug, Clone)]
pub struct TextTokenizer {
    inner: Tokenizer,
    vocab_size: usize,
    pad: u32,
    eos: u32,
    unk: u32,
    sentinels: Vec<u32>,
    fingerprint: blake3::Hash,
}

/// Reads a `tokenizer.json`, of which all tables of characters can be searched.
fn read_json(path: &Path) -> tokenizers::Result<Tokenizer> {
    // The file's normalizer alone: the vocabulary is large.
    #[derive(Deserialize)]
    struct Normalizing {
        #[serde(default)]
        normalizer: serde_json::Value,
    }
    let bytes = fs::read(path)?;
    let found = serde_json::from_slice::<Normalizing>(&bytes);
    if let Ok(Normalizing { normalizer }) = &found {
        sentencepiece::check_charsmaps(normalizer)?;
    }
    // Says better than the above what is wrong with the whole.
    let tokenizer = Tokenizer::from_bytes(&bytes)?;
    found?;
    Ok(tokenizer)
}

impl TextTokenizer {
    /// Loads a `tokenizer.json`, or SentencePiece's `spiece.model` (any file with the ending `.model`).
    ///
    /// A `spiece.model` gives the ids that Hugging Face's fast tokenizer does, and behind its pieces 100 sentinels where
    /// it has none of its own (or as many as `extra_ids` in the `tokenizer_config.json` beside it says). These are
    /// SentencePiece's ids, but for splits of equal scores, and for text that is not composed: the fast tokenizer
    /// replaces whole graphemes, by the shortest match in the table of characters, SentencePiece by the longest.
    ///
    /// It must have `<pad>` at 0, `</s>`, `<unk>`, and the sentinels `<extra_id_0>`,
    /// `<extra_id_1>`, … without a gap. Padding and truncation that it asks for are switched off:
    /// lengths are the business of the examples. One that fails at characters that it has no token for is refused, as a
    /// Unigram tokenizer whose `unk_id` is null.
    pub fn load(path: &Path) -> Result<Self, DataError> {
        let is_sentencepiece = path.extension().is_some_and(|ending| ending == "model");
        let inner = match is_sentencepiece {
            true => sentencepiece::read(path),
            false => read_json(path),
        };
        let inner =
            inner.map_err(|source| DataError::TokenizerFile { file: path.to_owned(), source })?;
        Self::new(inner, &format!("the tokenizer {}", path.display()))
    }

    /// Trains a Unigram tokenizer, as T5 has one, on up to `max_bytes` from all files of a corpus,
    /// held-out documents included: each file has its share by size.
    ///
    /// `vocab_size` counts everything. The ids are laid out as in T5: `<pad>` 0, `</s>` 1, `<unk>`
    /// 2, then the pieces, and on top the 100 sentinels, counted down: `<extra_id_0>` has the
    /// highest id. Where the corpus does not yield as many pieces as asked for, the vocabulary is
    /// that much smaller, and the sentinels still follow directly.
    ///
    /// The same text gives the same tokenizer on every run with the same number of threads. (The
    /// trainer adds up its expectations by thread, so another number may change the last bits.)
    pub fn train(
        corpus: &Corpus,
        vocab_size: usize,
        max_bytes: u64,
        on_error: OnError,
    ) -> Result<Self, DataError> {
        Self::train_on(Words::count(corpus, max_bytes, on_error)?, vocab_size)
    }

    /// The tokenizer that [`train`](Self::train) gives, taken from `folder` where it, or another
    /// process, has trained it before. `start` is called before it is trained.
    pub fn train_once(
        folder: &Path,
        corpus: &Corpus,
        vocab_size: usize,
        max_bytes: u64,
        on_error: OnError,
        start: impl FnOnce(),
    ) -> Result<Self, DataError> {
        let words = Words::count(corpus, max_bytes, on_error)?;
        let path = folder.join(format!("{}.json", words.key(vocab_size)));
        if let Ok(tokenizer) = Self::load(&path) {
            return Ok(tokenizer);
        }
        let error = |source| DataError::Store { path: path.clone(), source };
        let lacking = |source| {
            let lacks = "the tokenizer of this text and size".to_owned();
            DataError::not_written(folder, lacks, source)
        };
        fs::create_dir_all(folder).map_err(lacking)?;
        written_if_allowed(remove_left_overs(folder).map(|_| ())).map_err(error)?;
        let claim = Claim::wait(&path, PATIENCE, || false).map_err(lacking)?;
        // Another may have trained it before the claim was had.
        if let Ok(tokenizer) = Self::load(&path) {
            return Ok(tokenizer);
        }
        start();
        let tokenizer = Self::train_on(words, vocab_size)?;
        if let Some(mut claim) = claim {
            let json = tokenizer.to_json().map_err(error)?;
            claim.file().write_all(&json).and_then(|()| claim.finish()).map_err(error)?;
        }
        Ok(tokenizer)
    }

    fn train_on(Words(words): Words, vocab_size: usize) -> Result<Self, DataError> {
        let fixed = SPECIAL.len() + NUM_SENTINELS;
        let minimum = fixed + MIN_PIECES;
        if vocab_size < minimum {
            return Err(DataError::VocabularyTooSmall { vocab_size, minimum });
        }
        let max_pieces = vocab_size - fixed;

        let alphabet = alphabet(&words, max_pieces / 2);
        let failed = |source| DataError::TokenizerTraining { source };
        let pieces = train_pieces(words, &alphabet, max_pieces).map_err(failed)?;
        let num_ids = fixed + pieces.len();
        let trained = Self::new(assemble(pieces).map_err(failed)?, "the trained tokenizer")?;

        let top_down = (0..NUM_SENTINELS).map(|number| (num_ids - 1 - number) as u32);
        let as_planned = [trained.pad, trained.eos, trained.unk] == [0, 1, 2]
            && trained.vocab_size == num_ids
            && trained.sentinels.iter().copied().eq(top_down);
        if !as_planned {
            return Err(failed("the ids did not come out in T5's order".into()));
        }
        Ok(trained)
    }

    fn new(mut inner: Tokenizer, name: &str) -> Result<Self, DataError> {
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|source| DataError::Tokenize { source })?;

        let id = |token: &'static str| {
            inner
                .token_to_id(token)
                .ok_or(DataError::MissingToken { tokenizer: name.into(), token })
        };
        let (pad, eos, unk) = (id(PAD)?, id(EOS)?, id(UNK)?);
        if pad != 0 {
            return Err(DataError::PadNotZero { tokenizer: name.into(), id: pad });
        }

        let vocab = inner.get_vocab(true);
        let sentinels: BTreeMap<usize, u32> =
            vocab.iter().filter_map(|(token, id)| Some((sentinel_number(token)?, *id))).collect();
        let highest = sentinels.keys().next_back().copied().unwrap_or(0);
        let missing: Vec<String> =
            (0..=highest).filter(|number| !sentinels.contains_key(number)).map(sentinel).collect();
        if !missing.is_empty() {
            let missing = missing.join(", ");
            return Err(DataError::MissingSentinels { tokenizer: name.into(), missing });
        }

        // The highest code points are no characters: no vocabulary needs to have all of them.
        let mut unknown = ('\u{10FFF0}'..=char::MAX).rev().map(String::from);
        if let Some(unknown) = unknown.find(|unknown| inner.token_to_id(unknown).is_none()) {
            inner.get_model().tokenize(&unknown).map_err(|source| {
                DataError::UnknownCharacters { tokenizer: name.into(), source }
            })?;
        }

        let json = serde_json::to_vec(&inner)
            .map_err(|error| DataError::Tokenize { source: error.into() })?;
        Ok(Self {
            vocab_size: vocab.values().max().map_or(0, |highest| *highest as usize + 1),
            pad,
            eos,
            unk,
            sentinels: sentinels.into_values().collect(),
            fingerprint: blake3::hash(&json),
            inner,
        })
    }

    /// The highest id plus one.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The id of `<pad>`: always 0.
    pub fn pad_id(&self) -> u32 {
        self.pad
    }

    /// The id of `</s>`, the end of a sequence.
    pub fn eos_id(&self) -> u32 {
        self.eos
    }

    /// The id of `<unk>`, which stands for characters outside the vocabulary.
    pub fn unk_id(&self) -> u32 {
        self.unk
    }

    /// The ids of `<extra_id_0>`, `<extra_id_1>`, … in this order; at least one.
    pub fn sentinels(&self) -> &[u32] {
        &self.sentinels
    }

    /// The ids of a text, without `</s>`.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, DataError> {
        let encoding =
            self.inner.encode_fast(text, false).map_err(|source| DataError::Tokenize { source })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The ids of many texts, in their order, without `</s>`. Works on all threads of the current
    /// Rayon pool.
    pub fn encode_batch(&self, texts: &[String]) -> Result<Vec<Vec<u32>>, DataError> {
        texts.par_iter().map(|text| self.encode(text)).collect()
    }

    /// The text of some ids; `skip_special` leaves out padding, `</s>`, `<unk>` and sentinels.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, DataError> {
        self.inner.decode(ids, skip_special).map_err(|source| DataError::Tokenize { source })
    }

    /// Turns ids into text one by one: gives what each adds, or nothing while a character is not
    /// whole.
    pub fn stream_decoder(&self) -> impl FnMut(u32) -> Result<Option<String>, DataError> + '_ {
        let mut stream = self.inner.decode_stream(false);
        move |id| stream.step(id).map_err(|source| DataError::Tokenize { source })
    }

    /// Writes a `tokenizer.json`, whole or not at all.
    pub fn save(&self, path: &Path) -> Result<(), DataError> {
        self.write_whole(path)
            .map_err(|source| DataError::SaveTokenizer { file: path.to_owned(), source })
    }

    fn to_json(&self) -> io::Result<Vec<u8>> {
        Ok(serde_json::to_vec_pretty(&self.inner)?)
    }

    fn write_whole(&self, path: &Path) -> io::Result<()> {
        let json = self.to_json()?;
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        // `make_in` keeps the usual permissions, where a plain temporary file is its owner's alone.
        let mut file = tempfile::Builder::new()
            .prefix(".tokenizer-")
            .make_in(folder, |path| File::create_new(path))?;
        file.write_all(&json)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        Ok(())
    }

    /// A hash of everything in the tokenizer that decides how text becomes ids; the rest is [`TOKENIZING_VERSION`].
    pub fn fingerprint(&self) -> blake3::Hash {
        self.fingerprint
    }
}

/// Changes when the same words make another tokenizer.
const TRAINING_VERSION: u32 = 1;

/// The words of a corpus in the form in which the tokenizer sees them, with how often each occurs,
/// in the order of the words: no hash map's order may reach the trainer.
struct Words(BTreeMap<String, u64>);

impl Words {
    fn count(corpus: &Corpus, max_bytes: u64, on_error: OnError) -> Result<Self, DataError> {
        let mut raw: HashMap<String, u64> = HashMap::new();
        // The trainer counts in 32 bits.
        let max_bytes = max_bytes.min(u64::from(u32::MAX / 2));
        corpus.sample(max_bytes, on_error, &mut |text| {
            for word in text.split_whitespace().filter(|word| word.len() <= MAX_WORD_BYTES) {
                match raw.get_mut(word) {
                    Some(count) => *count += 1,
                    None => {
                        raw.insert(word.to_owned(), 1);
                    }
                }
            }
        })?;

        let mut words = BTreeMap::new();
        for (word, count) in raw {
            let mut normalized = NormalizedString::from(word);
            normalized.nfkc();
            // NFKC turns some characters into a space and something else.
            for word in normalized.get().split_whitespace() {
                *words.entry(format!("{WORD_START}{word}")).or_default() += count;
            }
        }
        if words.is_empty() { Err(corpus.without_text()) } else { Ok(Self(words)) }
    }

    /// Names the tokenizer that the words make.
    fn key(&self, vocab_size: usize) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&TRAINING_VERSION.to_le_bytes());
        hasher.update(&(vocab_size as u64).to_le_bytes());
        for (word, count) in &self.0 {
            hasher.update(&(word.len() as u64).to_le_bytes());
            hasher.update(word.as_bytes());
            hasher.update(&count.to_le_bytes());
        }
        hasher.finalize()
    }
}

/// The characters that get a piece: all of ASCII that occurs, then the most frequent others, until
/// [`CHARACTER_COVERAGE`] or `limit` is reached.
fn alphabet(words: &BTreeMap<String, u64>, limit: usize) -> HashSet<char> {
    let mut counts: BTreeMap<char, u64> = BTreeMap::new();
    for (word, count) in words {
        for character in word.chars().filter(|character| !character.is_control()) {
            *counts.entry(character).or_default() += count;
        }
    }
    let total: u64 = counts.values().sum();
    let mut ranked: Vec<(char, u64)> = counts.into_iter().collect();
    ranked.sort_by_key(|&(character, count)| {
        (character != WORD_START, !character.is_ascii(), Reverse(count), character)
    });

    let mut covered = 0;
    ranked
        .into_iter()
        .take(limit)
        .take_while(|&(character, count)| {
            let wanted =
                character.is_ascii() || (covered as f64) < CHARACTER_COVERAGE * total as f64;
            covered += count;
            wanted
        })
        .map(|(character, _)| character)
        .collect()
}

/// At most `max_pieces` pieces with their log probabilities, best first.
fn train_pieces(
    words: BTreeMap<String, u64>,
    alphabet: &HashSet<char>,
    max_pieces: usize,
) -> tokenizers::Result<Vec<(String, f64)>> {
    let mut words: Vec<(String, u64)> = words.into_iter().collect();
    words.sort_by_key(|(_, count)| Reverse(*count));
    words.truncate(MAX_WORDS);
    let sentences: Vec<(String, u32)> = words
        .iter()
        .flat_map(|(word, count)| {
            let count = u32::try_from(*count).unwrap_or(u32::MAX);
            let parts = word.split(move |character: char| !alphabet.contains(&character));
            parts.filter(|part| !part.is_empty()).map(move |part| (part.to_owned(), count))
        })
        .collect();

    let trainer = UnigramTrainer::builder()
        .show_progress(false)
        .vocab_size(u32::try_from(max_pieces)?)
        // Each round of pruning drops a quarter; the default of a million seeds costs a small
        // vocabulary many more rounds and ends at much the same pieces.
        .seed_size(max_pieces.saturating_mul(10).min(1_000_000))
        .initial_alphabet(alphabet.iter().copied().collect())
        .build()?;
    let mut model = Unigram::default();
    trainer.do_train(sentences, &mut model)?;
    let pieces = in_fixed_order(model.iter().cloned().collect());
    if pieces.len() > max_pieces {
        return Err(format!("{} pieces for {max_pieces} ids", pieces.len()).into());
    }
    Ok(pieces)
}

/// Undoes what the trainer leaves to chance.
///
/// It gives a character that has lost its own piece the lowest score plus a multiple of 0.0001, in
/// the order of a randomly seeded hash set, and leaves pieces of equal score in that order too.
/// Here all characters within reach of those multiples get the lowest score itself.
fn in_fixed_order(mut pieces: Vec<(String, f64)>) -> Vec<(String, f64)> {
    let is_character = |piece: &str| piece.chars().nth(1).is_none();
    let lowest = pieces.iter().map(|(_, score)| *score).fold(f64::INFINITY, f64::min);
    let characters = pieces.iter().filter(|(piece, _)| is_character(piece)).count();
    let reach = lowest + 0.0001 * characters as f64;
    for (piece, score) in &mut pieces {
        if is_character(piece) && *score <= reach {
            *score = lowest;
        }
    }
    // A corpus that speaks of T5 may have made a piece of a special token's name.
    pieces.retain(|(piece, _)| {
        !SPECIAL.contains(&piece.as_str()) && sentinel_number(piece).is_none()
    });
    pieces.sort_by(|(piece, score), (other, other_score)| {
        other_score.total_cmp(score).then_with(|| piece.cmp(other))
    });
    pieces
}

/// Puts `</s>` behind a text.
pub(crate) fn end_of_text(eos: u32) -> tokenizers::Result<TemplateProcessing> {
    Ok(TemplateProcessing::builder()
        .try_single(format!("$A {EOS}"))?
        .try_pair(format!("$A {EOS} $B {EOS}"))?
        .special_tokens(vec![(EOS, eos)])
        .build()?)
}

/// T5's pipeline around the pieces.
fn assemble(pieces: Vec<(String, f64)>) -> tokenizers::Result<Tokenizer> {
    let vocab = SPECIAL.iter().map(|token| (token.to_string(), 0.0)).chain(pieces).collect();
    let mut tokenizer = Tokenizer::new(Unigram::from(vocab, Some(2), false)?);
    tokenizer
        .with_normalizer(Some(NFKC))
        .with_pre_tokenizer(Some(Sequence::new(vec![
            WhitespaceSplit.into(),
            Metaspace::default().into(),
        ])))
        .with_decoder(Some(Metaspace::default()))
        .with_post_processor(Some(end_of_text(1)?));
    // New tokens get the next free id, so the last one added is the highest.
    let sentinels = (0..NUM_SENTINELS).rev().map(sentinel);
    let special: Vec<AddedToken> = SPECIAL
        .iter()
        .map(|token| token.to_string())
        .chain(sentinels)
        .map(|token| AddedToken::from(token, true))
        .collect();
    tokenizer.add_special_tokens(&special);
    Ok(tokenizer)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::{Value, json};
    use tempfile::TempDir;

    use super::*;

    const TEXT: &str = "the quick brown fox jumps over the lazy dog, and the lazy dog sleeps. \
                        quick foxes jump; lazy dogs doze near a caf\u{e9}.";

    fn corpus(text: &str) -> (TempDir, Corpus) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("corpus.txt");
        fs::write(&path, text).unwrap();
        let corpus = Corpus::open(&[path.to_string_lossy().into_owned()]).unwrap();
        (folder, corpus)
    }

    fn trained() -> TextTokenizer {
        let (_folder, corpus) = corpus(&TEXT.repeat(20));
        TextTokenizer::train(&corpus, 200, u64::MAX, OnError::Stop).unwrap()
    }

    /// Saves the trained tokenizer, changes its JSON, and loads it again.
    fn load_changed(change: impl FnOnce(&mut Value)) -> Result<TextTokenizer, DataError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        trained().save(&path).unwrap();
        let mut json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut json);
        fs::write(&path, json.to_string()).unwrap();
        TextTokenizer::load(&path)
    }

    #[test]
    fn trained_ids_are_laid_out_as_in_t5() {
        let tokenizer = trained();
        let size = tokenizer.vocab_size();
        assert!((103 + 26..=200).contains(&size), "{size}");
        assert_eq!([tokenizer.pad_id(), tokenizer.eos_id(), tokenizer.unk_id()], [0, 1, 2]);
        let expected: Vec<u32> = (size as u32 - 100..size as u32).rev().collect();
        assert_eq!(tokenizer.sentinels(), expected);
    }

    #[test]
    fn text_survives_encoding_and_decoding() {
        let tokenizer = trained();
        let text = "the lazy fox jumps over a caf\u{e9}";
        let ids = tokenizer.encode(text).unwrap();
        assert!(ids.len() < text.chars().count() && !ids.contains(&2), "{ids:?}");
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), text);
        let batch = tokenizer.encode_batch(&[text.into(), "dog".into()]).unwrap();
        assert_eq!(batch, [ids, tokenizer.encode("dog").unwrap()]);
    }

    #[test]
    fn sentinels_are_recognised_in_text_and_dropped_on_demand() {
        let tokenizer = trained();
        let ids = tokenizer.encode("the <extra_id_0> dog <extra_id_99>").unwrap();
        let sentinels = tokenizer.sentinels();
        assert_eq!(ids.iter().filter(|id| **id == sentinels[0]).count(), 1);
        assert_eq!(ids.last(), Some(&sentinels[99]));
        let with_padding = [&ids[..], &[1, 0, 0]].concat();
        assert_eq!(tokenizer.decode(&with_padding, true).unwrap(), "the dog");
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), "the<extra_id_0> dog<extra_id_99>");
    }

    #[test]
    fn training_is_deterministic() {
        // Rare characters that occur in one longer piece only: they lose a piece of their own, and
        // the trainer gives it back by chance.
        let rare: String = ('\u{100}'..'\u{130}').map(|c| format!("ab{c}cd zab{c}cd ")).collect();
        let (_folder, corpus) = corpus(&(TEXT.repeat(20) + &rare));
        let train =
            || TextTokenizer::train(&corpus, 400, u64::MAX, OnError::Stop).unwrap().fingerprint();
        assert_eq!(train(), train());
    }

    #[test]
    fn a_tokenizer_is_trained_once_for_the_same_text_and_size() {
        let (folder, corpus) = corpus(&TEXT.repeat(20));
        let kept = folder.path().join("tokenizers");
        let trained = |corpus: &Corpus, vocab_size| {
            let mut started = false;
            let start = || started = true;
            let stop = OnError::Stop;
            let tokenizer =
                TextTokenizer::train_once(&kept, corpus, vocab_size, u64::MAX, stop, start);
            (tokenizer.unwrap().fingerprint(), started)
        };
        let expected = self::trained().fingerprint();
        assert_eq!(trained(&corpus, 200), (expected, true));
        assert_eq!(trained(&corpus, 200), (expected, false));
        assert!(trained(&corpus, 190).1);
        let (_other_folder, same) = self::corpus(&TEXT.repeat(20));
        assert_eq!(trained(&same, 200), (expected, false));
        let (_other_folder, other) = self::corpus(&TEXT.repeat(21));
        assert!(trained(&other, 200).1);
    }

    #[test]
    fn special_names_in_the_corpus_take_no_ids() {
        let text = "x<pad> y<pad> x</s> y</s> x<extra_id_0> y<extra_id_0> ".repeat(50);
        let (_folder, corpus) = corpus(&text);
        let tokenizer = TextTokenizer::train(&corpus, 200, u64::MAX, OnError::Stop).unwrap();
        assert_eq!(tokenizer.sentinels().len(), 100);
    }

    #[test]
    fn rare_characters_become_unknown() {
        let (_folder, corpus) = corpus(&("\u{4e00} ".to_owned() + &TEXT.repeat(100)));
        let tokenizer = TextTokenizer::train(&corpus, 200, u64::MAX, OnError::Stop).unwrap();
        assert!(tokenizer.encode("\u{4e00}").unwrap().contains(&2));
    }

    #[test]
    fn too_little_room_or_text_is_an_error() {
        let (_folder, full) = corpus(TEXT);
        let error = TextTokenizer::train(&full, 166, u64::MAX, OnError::Stop).unwrap_err();
        assert!(matches!(error, DataError::VocabularyTooSmall { minimum: 167, .. }), "{error}");
        let (_folder, empty) = corpus(" \n\n");
        let error = TextTokenizer::train(&empty, 200, u64::MAX, OnError::Stop).unwrap_err();
        assert!(matches!(error, DataError::EmptyCorpus { .. }), "{error}");
    }

    #[test]
    fn saved_tokenizer_loads_as_the_same() {
        let tokenizer = load_changed(|_| {}).unwrap();
        assert_eq!(tokenizer.fingerprint(), trained().fingerprint());
        assert_eq!(tokenizer.sentinels(), trained().sentinels());
    }

    #[test]
    fn padding_and_truncation_of_the_file_are_ignored() {
        let tokenizer = load_changed(|json| {
            json["truncation"] = json!({
                "max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right",
            });
        })
        .unwrap();
        assert!(tokenizer.encode("the quick brown fox jumps over").unwrap().len() > 2);
    }

    #[test]
    fn tokenizers_unfit_for_t5_are_refused_with_the_reason() {
        let rename = |from: &'static str, to: &'static str| {
            load_changed(move |json| {
                let text = json.to_string().replace(&format!("\"{from}\""), &format!("\"{to}\""));
                *json = serde_json::from_str(&text).unwrap();
            })
        };
        let error = rename("<unk>", "[UNK]").unwrap_err();
        assert!(matches!(error, DataError::MissingToken { token: "<unk>", .. }), "{error}");
        let error = rename("<extra_id_7>", "<other>").unwrap_err();
        assert!(error.to_string().contains("sentinels <extra_id_7>,"), "{error}");

        let error = TextTokenizer::load(Path::new("nowhere/tokenizer.json")).unwrap_err();
        assert!(matches!(error, DataError::TokenizerFile { .. }), "{error}");
    }
}
