//! The store of prepared text: a token file for each shard of a corpus, made once for each
//! tokenizer and shared by all processes of a machine.
//!
//! ```text
//! FOLDER/
//! └── v3/
//!     ├── sources.jsonl          hashes of source files, by path, size and time of modification
//!     └── <tokenizer>/           its hash, and the version of tokenising
//!         ├── <shard>.tokens     the hash of the shard's content: the tokens
//!         └── <corpus>.json      a manifest: which shards a corpus has, and what it was opened with
//! ```
//!
//! Every file is written as `NAME.partial` under a lock and renamed when it is complete. So what is
//! finished stays, whatever becomes of the process; of several processes at once each shard is
//! tokenised by one; and what a dead process has left is told by its missing lock. A shard is known
//! by its content: it is found again when it was moved, touched or mounted elsewhere, and of a corpus
//! that has changed, only what has changed is made anew.
//!
//! A store that may only be read, as one that others prepare and share, serves as any other while it has all that is
//! asked for. It then remembers neither hashes nor uses.

mod claim;
mod identity;
mod manifest;
mod prepare;
mod token_file;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use self::identity::{Hashed, Identities};
use crate::error::is_refused;
use crate::tokenizer::TOKENIZING_VERSION;
use crate::{DataError, TextTokenizer};

pub(crate) use self::claim::{Claim, PATIENCE, remove_left_overs};
pub use self::manifest::{CorpusEntry, Removed, StoreContents};
pub use self::prepare::{PrepareOptions, PrepareProgress};
pub(crate) use self::token_file::TokenFile;

const SOURCES: &str = "sources.jsonl";
const TOKENS_EXTENSION: &str = "tokens";
const MANIFEST_EXTENSION: &str = "json";

/// Prepared text in a folder.
#[derive(Debug, Clone)]
pub struct TokenStore {
    folder: PathBuf,
    /// Where tokenizers lie that were trained from texts.
    tokenizers: Option<PathBuf>,
    /// What this process has hashed and has open, so that rows of the same shards share it.
    hashed: Arc<Hashed>,
    open: Arc<Mutex<HashMap<PathBuf, Weak<TokenFile>>>>,
}

impl TokenStore {
    /// The store in a folder, which need not exist yet.
    pub fn new(folder: &Path) -> Self {
        let folder = folder.to_owned();
        Self { folder, tokenizers: None, hashed: Arc::default(), open: Arc::default() }
    }

    /// The same, which lists and prunes the tokenizers in a folder too, as
    /// [`TextTokenizer::train_once`] leaves them there.
    pub fn with_tokenizers(self, folder: &Path) -> Self {
        Self { tokenizers: Some(folder.to_owned()), ..self }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn current(&self) -> PathBuf {
        self.folder.join(format!("v{}", token_file::FORMAT_VERSION))
    }

    fn sources(&self) -> PathBuf {
        self.current().join(SOURCES)
    }

    fn identities(&self) -> Result<Identities, DataError> {
        let path = self.sources();
        Identities::open(path.clone(), Arc::clone(&self.hashed)).map_err(store_error(&path))
    }

    /// A shard's token file, if it is there and whole. Each is mapped once, and verified once, however many rows have it: a
    /// process may map so many files only.
    fn open_tokens(
        &self,
        path: &Path,
        shard: blake3::Hash,
        tokenizer: &TextTokenizer,
        verify: bool,
    ) -> Result<Option<Arc<TokenFile>>, DataError> {
        let open = || self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let known = open().get(path).and_then(Weak::upgrade);
        if let Some(known) = known.filter(|known| known.is_verified() || !verify) {
            return Ok(Some(known));
        }
        let Some(file) = TokenFile::open(path, shard, tokenizer, verify)? else { return Ok(None) };
        let file = Arc::new(file);
        open().insert(path.to_owned(), Arc::downgrade(&file));
        Ok(Some(file))
    }

    fn tokenizer_folder(&self, tokenizer: &TextTokenizer) -> PathBuf {
        self.current().join(format!("{}-{TOKENIZING_VERSION}", tokenizer.fingerprint()))
    }
}

fn store_error(path: &Path) -> impl FnOnce(io::Error) -> DataError {
    move |source| DataError::Store { path: path.to_owned(), source }
}

/// Whether something was written; not where nothing may be.
pub(crate) fn written_if_allowed(written: io::Result<()>) -> io::Result<()> {
    match written {
        Err(error) if is_refused(&error) => Ok(()),
        written => written,
    }
}

/// Why a note wasn't written at `path`, where the disk is full or another process keeps the note to itself. What is prepared
/// serves without it: hashes are computed again, and a use that isn't noted matters to `prune` alone.
fn noted_if_possible(path: &Path, written: io::Result<()>) -> Result<Option<String>, DataError> {
    use io::ErrorKind::{QuotaExceeded, StorageFull, TimedOut};
    match written {
        Err(error) if matches!(error.kind(), StorageFull | QuotaExceeded | TimedOut) => {
            Ok(Some(format!("{}: {error}", path.display())))
        }
        written => written.map(|()| None).map_err(store_error(path)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::{Duration, SystemTime};

    use tempfile::TempDir;

    use super::*;
    use crate::corpus::{Place, SkippedInFile};
    use crate::{Corpus, OnError, PrepareOptions, PrepareProgress, TokenRow};

    const TEXT: &str = "one two three\n\nfour five six\n\nseven <extra_id_0> eight";

    struct Setup {
        folder: TempDir,
        tokenizer: TextTokenizer,
    }

    impl Setup {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let text = folder.path().join("train.txt");
            fs::write(&text, TEXT).unwrap();
            let corpus = Corpus::open(&[text.to_string_lossy().into_owned()]).unwrap();
            let tokenizer = TextTokenizer::train(&corpus, 200, u64::MAX, OnError::Stop).unwrap();
            fs::create_dir(folder.path().join("corpus")).unwrap();
            Self { folder, tokenizer }
        }

        fn with(files: &[(&str, &str)]) -> Self {
            let setup = Self::new();
            files.iter().for_each(|(name, text)| setup.write(name, text));
            setup
        }

        fn write(&self, name: &str, text: impl AsRef<[u8]>) {
            fs::write(self.folder.path().join("corpus").join(name), text).unwrap();
        }

        fn corpus(&self) -> Corpus {
            let folder = self.folder.path().join("corpus");
            Corpus::open(&[folder.to_string_lossy().into_owned()]).unwrap()
        }

        fn store(&self) -> TokenStore {
            TokenStore::new(&self.folder.path().join("store"))
        }

        fn prepare_with(
            &self,
            corpus: &Corpus,
            options: PrepareOptions,
        ) -> Result<TokenRow, DataError> {
            self.store().prepare(corpus, &self.tokenizer, options, &mut |_| ())
        }

        fn prepare(&self) -> Result<TokenRow, DataError> {
            self.prepare_with(&self.corpus(), PrepareOptions::default())
        }

        /// The names of the files in the tokenizer's folder that end in `extension`.
        fn stored(&self, extension: &str) -> Vec<PathBuf> {
            let entries = fs::read_dir(self.store().tokenizer_folder(&self.tokenizer)).unwrap();
            let paths = entries.map(|entry| entry.unwrap().path());
            paths.filter(|path| path.extension().is_some_and(|end| end == extension)).collect()
        }
    }

    fn tokens(row: &TokenRow) -> Vec<u32> {
        row.slice(0..row.len())
    }

    /// Shards of one document each, and of several.
    fn many() -> Setup {
        let setup = Setup::new();
        for number in 0..9 {
            let documents = 1 + number % 4;
            let text: Vec<String> =
                (0..documents).map(|n| format!("{TEXT} {number}\n\n{n}{n}")).collect();
            setup.write(&format!("{number}.txt"), text.join("\n\n"));
        }
        setup
    }

    #[test]
    fn a_row_holds_the_tokens_of_all_documents_in_order() {
        let setup = Setup::with(&[("a.txt", TEXT), ("b.txt", ""), ("c.txt", "one two")]);
        let row = setup.prepare().unwrap();
        let expected = setup.tokenizer.encode(&TEXT.replace("<extra_id_0>", "")).unwrap();
        let last = setup.tokenizer.encode("one two").unwrap();
        let expected = [expected, last].concat();
        assert_eq!(tokens(&row), expected);
        for start in 0..expected.len() {
            for end in start..=expected.len() {
                assert_eq!(row.slice(start as u64..end as u64), expected[start..end]);
            }
        }
        assert_eq!((row.documents(), row.shards(), row.shards_made()), (4, 3, 3));
        assert_eq!(row.text_bytes(), TEXT.len() as u64 - 1 + 8);
        assert!(!row.is_empty());
    }

    #[test]
    fn documents_held_out_and_the_others_are_the_corpus() {
        let setup = many();
        let whole = setup.prepare().unwrap();
        for every in [2, 3, 5, 7, 100] {
            let (rest, held_out) = setup.corpus().split(every);
            let of_documents = |corpus: &Corpus| -> Vec<u32> {
                let texts = corpus.documents().map(|document| document.unwrap().text);
                let ids = texts
                    .map(|text| setup.tokenizer.encode(&text.replace("<extra_id_0>", "")).unwrap());
                ids.flatten().collect()
            };
            let mut documents = 0;
            for corpus in [&rest, &held_out] {
                match setup.prepare_with(corpus, PrepareOptions::default()) {
                    Ok(row) => {
                        assert_eq!(tokens(&row), of_documents(corpus), "{every}");
                        assert_ne!(row.fingerprint(), whole.fingerprint());
                        documents += row.documents();
                    }
                    Err(error) => {
                        assert!(matches!(error, DataError::NothingHeldOut { every: 100, .. }));
                    }
                }
            }
            assert_eq!(documents, whole.documents(), "{every}");
        }
        assert_eq!(setup.stored("tokens").len(), 9, "no shard is tokenised for a selection");
    }

    #[test]
    fn documents_held_out_are_found_among_many_with_little_memory() {
        const DOCUMENTS: [usize; 4] = [5000, 1, 0, 12_345];
        let setup = Setup::new();
        let word = |n: usize| ["one", "two three", "four", "five six seven"][n * n % 7 % 4];
        for (number, documents) in DOCUMENTS.into_iter().enumerate() {
            let text: Vec<&str> = (0..documents).map(|n| word(n + number)).collect();
            setup.write(&format!("{number}.txt"), text.join("\n\n"));
        }
        // Each document is encoded alone, and many are the same.
        let encoded: HashMap<&str, Vec<u32>> = (0..7)
            .map(|n| (word(n), setup.tokenizer.encode(&(word(n).to_owned() + "\n")).unwrap()))
            .collect();
        let of_documents = |is_taken: &dyn Fn(usize) -> bool| -> Vec<u32> {
            let numbers = DOCUMENTS.into_iter().enumerate();
            let words =
                numbers.flat_map(|(number, documents)| (0..documents).map(move |n| n + number));
            let taken = words.enumerate().filter(|(index, _)| is_taken(*index));
            taken.flat_map(|(_, n)| encoded[word(n)].clone()).collect()
        };
        for every in [2, 7, 100] {
            let (rest, held_out) = setup.corpus().split(every as u64);
            let prepare = |corpus| setup.prepare_with(corpus, PrepareOptions::default()).unwrap();
            let is_held_out = |index: usize| index % every == every - 1;
            let rows = [
                (prepare(&rest), of_documents(&|index| !is_held_out(index))),
                (prepare(&held_out), of_documents(&is_held_out)),
            ];
            for (row, expected) in rows {
                assert!(tokens(&row) == expected, "{every}");
                let len = expected.len();
                for start in (0..len).step_by(97) {
                    for end in [start, start + 1, start + 30, start + 5000] {
                        let range = start..end.min(len);
                        let found = row.slice(range.start as u64..range.end as u64);
                        assert!(found == expected[range], "{every}: {start}..{end}");
                    }
                }
                let most = DOCUMENTS.map(|documents| 1 + documents / every / 64);
                let stretches = row.stretches();
                assert!(stretches.iter().zip(most).all(|(have, most)| *have <= most + 1));
            }
        }
    }

    #[test]
    fn any_number_of_threads_makes_the_same_files() {
        let expected = many();
        let row = tokens(&expected.prepare().unwrap());
        let bytes = |setup: &Setup| -> Vec<(PathBuf, Vec<u8>)> {
            let mut paths = setup.stored("tokens");
            paths.sort();
            let name = |path: &Path| PathBuf::from(path.file_name().unwrap());
            paths.iter().map(|path| (name(path), fs::read(path).unwrap())).collect()
        };
        for workers in [1, 2, 5, 20] {
            let setup = many();
            let options = PrepareOptions { workers, ..PrepareOptions::default() };
            assert_eq!(tokens(&setup.prepare_with(&setup.corpus(), options).unwrap()), row);
            assert!(bytes(&setup) == bytes(&expected), "{workers}");
        }
    }

    #[test]
    fn what_is_prepared_is_found_again_wherever_it_lies() {
        let setup = many();
        let first = setup.prepare().unwrap();
        let again = setup.prepare().unwrap();
        assert_eq!((again.shards_made(), again.fingerprint()), (0, first.fingerprint()));

        let folder = setup.folder.path();
        fs::rename(folder.join("corpus"), folder.join("moved")).unwrap();
        let touched = fs::File::options().write(true).open(folder.join("moved/0.txt")).unwrap();
        touched.set_modified(SystemTime::now() + Duration::from_secs(9)).unwrap();
        let moved = Corpus::open(&[folder.join("moved").to_string_lossy().into_owned()]).unwrap();
        let moved = setup.prepare_with(&moved, PrepareOptions::default()).unwrap();
        assert_eq!((moved.shards_made(), moved.fingerprint()), (0, first.fingerprint()));
        assert_eq!(tokens(&moved), tokens(&first));
        assert_eq!(setup.stored("json").len(), 1);
    }

    #[test]
    fn shards_are_identified_by_content_without_being_tokenised() {
        let setup = many();
        let found = setup.store().identify(&setup.corpus(), &mut |_| ()).unwrap();
        assert!(!setup.store().tokenizer_folder(&setup.tokenizer).exists());
        assert_eq!(setup.prepare().unwrap().sources(), found);
        assert!(found[3].file.ends_with("3.txt") && found[3].files == 1, "{:?}", found[3]);

        setup.write("3.txt", "another text");
        let changed = setup.store().identify(&setup.corpus(), &mut |_| ()).unwrap();
        for (number, (before, after)) in found.iter().zip(&changed).enumerate() {
            assert_eq!(before.content == after.content, number != 3, "{number}");
        }
    }

    #[test]
    fn of_a_changed_corpus_only_what_changed_is_made_anew() {
        let setup = many();
        let before = setup.prepare().unwrap();
        setup.write("4.txt", "another text");
        setup.write("9.txt", "a new text");
        let after = setup.prepare().unwrap();
        assert_eq!((after.shards(), after.shards_made()), (10, 2));
        assert_ne!(after.fingerprint(), before.fingerprint());
        let of = |text: &str| setup.tokenizer.encode(text).unwrap();
        assert!(tokens(&after).ends_with(&of("a new text")));
    }

    #[test]
    fn files_of_the_same_content_are_tokenised_once() {
        let setup = Setup::new();
        (0..8).for_each(|number| setup.write(&format!("{number}.txt"), TEXT));
        let options = PrepareOptions { workers: 4, ..PrepareOptions::default() };
        let row = setup.prepare_with(&setup.corpus(), options).unwrap();
        assert_eq!((row.shards(), row.shards_made(), row.documents()), (8, 1, 24));
    }

    #[test]
    fn another_tokenizer_has_tokens_of_its_own() {
        let mut setup = many();
        setup.prepare().unwrap();
        setup.tokenizer =
            TextTokenizer::train(&setup.corpus(), 180, u64::MAX, OnError::Stop).unwrap();
        assert_eq!(setup.prepare().unwrap().shards_made(), 9);
        assert_eq!(setup.store().contents().unwrap().corpora.len(), 2);
    }

    #[test]
    fn damaged_files_are_made_anew() {
        let setup = Setup::with(&[("a.txt", TEXT)]);
        let expected = tokens(&setup.prepare().unwrap());
        let path = setup.stored("tokens").remove(0);
        let whole = fs::read(&path).unwrap();
        let shorter = [&whole[2..], &[]].concat();
        let damages: [&[u8]; 4] = [&whole[..whole.len() - 1], &shorter, b"", b"altup-tokens"];
        for damaged in damages {
            fs::write(&path, damaged).unwrap();
            let row = setup.prepare().unwrap();
            assert_eq!((row.shards_made(), tokens(&row)), (1, expected.clone()));
            assert!(fs::read(&path).unwrap() == whole);
        }
    }

    #[test]
    fn a_byte_that_is_another_is_found_where_it_is_asked_for() {
        let setup = Setup::with(&[("a.txt", TEXT)]);
        let expected = tokens(&setup.prepare().unwrap());
        let path = setup.stored("tokens").remove(0);
        let whole = fs::read(&path).unwrap();
        let verify = PrepareOptions { verify: true, ..PrepareOptions::default() };
        // In the ids, which take two bytes each, and in the documents' ends behind them.
        for place in [4, 2 * expected.len()] {
            let mut damaged = whole.clone();
            damaged[place] ^= 1;
            fs::write(&path, damaged).unwrap();
            assert_eq!(setup.prepare().unwrap().shards_made(), 0, "only its size is looked at");
            let row = setup.prepare_with(&setup.corpus(), verify).unwrap();
            assert_eq!((row.shards_made(), tokens(&row)), (1, expected.clone()));
            assert!(fs::read(&path).unwrap() == whole);
        }
        assert_eq!(setup.prepare_with(&setup.corpus(), verify).unwrap().shards_made(), 0);
    }

    #[test]
    fn ids_and_ends_that_can_not_be_reach_nobody() {
        let setup = Setup::with(&[("a.txt", TEXT)]);
        let ids = tokens(&setup.prepare().unwrap()).len();
        let path = setup.stored("tokens").remove(0);
        let whole = fs::read(&path).unwrap();
        let damaged = |place: usize| {
            let mut damaged = whole.clone();
            damaged[place] = 0xff;
            fs::write(&path, damaged).unwrap();
        };
        damaged(2 * ids + 7);
        let (rest, _) = setup.corpus().split(2);
        let error = setup.prepare_with(&rest, PrepareOptions::default()).unwrap_err();
        assert!(matches!(&error, DataError::DamagedTokens { path: named } if *named == path));
        assert!(error.to_string().contains("--verify"), "{error}");

        damaged(1);
        let row = setup.prepare().unwrap();
        let panic =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| row.slice(0..1))).unwrap_err();
        assert!(panic.downcast_ref::<String>().unwrap().contains("is damaged"));
    }

    /// A file that may not be read is not one that isn't there.
    #[test]
    fn what_keeps_a_file_from_opening_is_an_error() {
        let setup = Setup::with(&[("a.txt", TEXT)]);
        setup.prepare().unwrap();
        let path = setup.stored("tokens").remove(0);
        fs::remove_file(&path).unwrap();
        // It can be opened, and not be read, by whomever.
        fs::create_dir(&path).unwrap();
        let error = setup.prepare().unwrap_err();
        assert!(
            matches!(&error, DataError::Store { path: named, .. } if *named == path),
            "{error}"
        );
        assert!(path.is_dir() && setup.stored("partial").is_empty());
    }

    #[test]
    fn rows_of_the_same_shards_share_their_files() {
        let setup = many();
        let (train, valid) = setup.corpus().split(2);
        for verify in [false, true] {
            let store = setup.store();
            let prepare = |corpus: &Corpus| {
                let options = PrepareOptions { verify, ..PrepareOptions::default() };
                store.prepare(corpus, &setup.tokenizer, options, &mut |_| ()).unwrap()
            };
            let (train, valid) = (prepare(&train), prepare(&valid));
            assert!(train.shares_files_with(&valid), "verify: {verify}");
            assert!(!train.shares_files_with(&setup.prepare().unwrap()), "another store's");
        }
    }

    #[test]
    fn an_error_keeps_what_was_finished_and_leaves_nothing_else() {
        let setup = many();
        setup.write("5.txt", b"fine\n\n\xff");
        let options = PrepareOptions { workers: 1, ..PrepareOptions::default() };
        let error = setup.prepare_with(&setup.corpus(), options).unwrap_err();
        let DataError::Defect(defect) = error else { panic!("{error}") };
        assert!(defect.file.ends_with("5.txt") && defect.place == Place::Line(3), "{defect}");
        assert_eq!(setup.stored("tokens").len(), 5);
        assert_eq!(setup.stored("partial").len(), 0);

        setup.write("5.txt", "fine");
        assert_eq!(setup.prepare().unwrap().shards_made(), 4);
    }

    #[test]
    fn a_tokenizer_that_fails_names_the_shard() {
        let mut setup = Setup::with(&[("a.txt", ""), ("b.txt", "unknown")]);
        // It fails at what it doesn't know, and knows what it is tried with when it is loaded.
        let special = ["<pad>", "</s>", "<unk>", "<extra_id_0>"].map(str::to_owned);
        let tried = ('\u{10FFF0}'..=char::MAX).map(String::from);
        let vocab: HashMap<String, usize> =
            special.into_iter().chain(tried).enumerate().map(|(id, token)| (token, id)).collect();
        let model = serde_json::json!({"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"});
        let json = serde_json::json!({"version": "1.0", "added_tokens": [], "model": model});
        let path = setup.folder.path().join("tokenizer.json");
        fs::write(&path, json.to_string()).unwrap();
        setup.tokenizer = TextTokenizer::load(&path).unwrap();
        let error = setup.prepare().unwrap_err();
        let DataError::TokenizeShard { file, .. } = &error else { panic!("{error}") };
        assert!(file.ends_with("b.txt"), "{error}");
    }

    #[test]
    fn what_a_dead_process_left_is_removed() {
        let setup = many();
        setup.prepare().unwrap();
        let folder = setup.store().tokenizer_folder(&setup.tokenizer);
        fs::write(folder.join("0123.tokens.partial"), "half a file").unwrap();
        setup.prepare().unwrap();
        assert_eq!(setup.stored("partial").len(), 0);
    }

    #[test]
    fn what_can_not_be_noted_keeps_nobody_from_what_is_prepared() {
        let setup = many();
        let whole = setup.prepare().unwrap();
        assert_eq!(whole.not_noted(), None);
        // Another process, which has been stopped, is about to note its use of the corpus.
        let _claim = Claim::attempt(&setup.stored("json")[0]).unwrap().unwrap();
        let row = setup.prepare().unwrap();
        assert_eq!((row.shards_made(), tokens(&row)), (0, tokens(&whole)));
        assert!(row.not_noted().unwrap().contains("is stuck"), "{:?}", row.not_noted());

        let path = Path::new("/tokens/v3/note");
        for kind in [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded] {
            assert!(noted_if_possible(path, Err(kind.into())).unwrap().is_some());
        }
        assert!(noted_if_possible(path, Err(io::ErrorKind::NotADirectory.into())).is_err());
    }

    #[test]
    fn defects_are_skipped_and_counted_by_file_or_stop_it() {
        let setup = many();
        let mut lines = b"\xff\n".repeat(7);
        lines.extend(b"fine\n");
        setup.write("5.txt", lines);
        setup.write("7.jsonl", "{\"text\": \"fine\"}\n{\"text\": 1}\n{\"text\": \"too\"}\n");
        let skip = PrepareOptions { on_error: OnError::Skip, ..PrepareOptions::default() };
        let first = setup.prepare_with(&setup.corpus(), skip).unwrap();
        let found = setup.prepare_with(&setup.corpus(), skip).unwrap();
        assert_eq!(found.shards_made(), 0);
        for row in [first, found] {
            let [text, json] = row.skipped() else { panic!("{:?}", row.skipped()) };
            let SkippedInFile { file, count, first } = text;
            assert!(file.ends_with("5.txt"), "{}", file.display());
            assert_eq!((*count, first.len()), (7, 5));
            let places: Vec<Place> = first.iter().map(|defect| defect.place).collect();
            assert_eq!(places, [1, 2, 3, 4, 5].map(Place::Line));
            assert_eq!((json.count, json.first[0].place), (1, Place::Line(2)));
        }
        // Found again, the file stops a run that doesn't skip.
        let error = setup.prepare().unwrap_err();
        assert!(matches!(error, DataError::Defect(_)), "{error}");
    }

    #[test]
    fn a_corpus_without_text_is_an_error() {
        let setup = Setup::with(&[("a.txt", " \n\n")]);
        assert!(matches!(setup.prepare(), Err(DataError::EmptyCorpus { .. })));
    }

    #[test]
    fn progress_ends_with_everything_done() {
        let setup = many();
        for (run, found) in [("new", false), ("again", true)] {
            let mut last = PrepareProgress::default();
            let options = PrepareOptions::default();
            let corpus = setup.corpus();
            setup
                .store()
                .prepare(&corpus, &setup.tokenizer, options, &mut |so_far| last = so_far)
                .unwrap();
            let bytes = corpus.bytes();
            let bytes_found = if found { bytes } else { 0 };
            let done = PrepareProgress {
                shards_done: 9,
                shards: 9,
                bytes_done: bytes,
                bytes_found,
                bytes,
                // Files that have just been written.
                bytes_hashed: bytes,
            };
            assert_eq!(last, done, "{run}");
        }
    }

    #[test]
    fn what_a_store_has_hashed_it_does_not_hash_again() {
        let setup = many();
        let corpus = setup.corpus();
        let settled = SystemTime::now() - Duration::from_secs(100);
        for file in corpus.files() {
            fs::File::options().write(true).open(file).unwrap().set_modified(settled).unwrap();
        }
        let store = setup.store();
        for (run, hashed) in [("new", corpus.bytes()), ("again", 0)] {
            let mut last = PrepareProgress::default();
            store.identify(&corpus, &mut |so_far| last = so_far).unwrap();
            let bytes = corpus.bytes();
            let done = PrepareProgress {
                shards_done: 9,
                shards: 9,
                bytes_done: bytes,
                bytes_found: bytes - hashed,
                bytes,
                bytes_hashed: hashed,
            };
            assert_eq!(last, done, "{run}");
            // Where it may only be read, nothing but this store remembers.
            fs::remove_file(store.sources()).unwrap_or_default();
        }
        let mut last = PrepareProgress::default();
        let options = PrepareOptions::default();
        store.prepare(&corpus, &setup.tokenizer, options, &mut |so_far| last = so_far).unwrap();
        assert_eq!(last.bytes_hashed, 0);
    }

    #[test]
    fn tokenizers_stay_as_long_as_what_they_made() {
        let mut setup = many();
        let folder = setup.folder.path().join("tokenizers");
        let train = |corpus: &Corpus| {
            let stop = OnError::Stop;
            TextTokenizer::train_once(&folder, corpus, 200, u64::MAX, stop, || ()).unwrap()
        };
        let other = setup.folder.path().join("other.txt");
        fs::write(&other, "quite another text, of other words").unwrap();
        let other = Corpus::open(&[other.to_string_lossy().into_owned()]).unwrap();
        let (tokenizer, _unused) = (train(&setup.corpus()), train(&other));
        setup.tokenizer = tokenizer;
        setup.prepare().unwrap();
        fs::write(folder.join("mine.json"), "no name of a trained one").unwrap();
        fs::write(folder.join(format!("{}.json", "0".repeat(64))), "damaged").unwrap();

        let store = setup.store().with_tokenizers(&folder);
        let contents = store.contents().unwrap();
        assert_eq!(contents.tokenizers, 3);
        assert!(contents.tokenizer_bytes > 1000, "{}", contents.tokenizer_bytes);
        assert_eq!(setup.store().contents().unwrap().tokenizers, 0, "of another folder");

        let day = Duration::from_secs(86_400);
        assert_eq!(store.prune(day, true).unwrap(), Removed::default());
        for entry in fs::read_dir(&folder).unwrap() {
            let file = fs::File::options().write(true).open(entry.unwrap().path()).unwrap();
            file.set_modified(SystemTime::now() - 2 * day).unwrap();
        }
        let counted = store.prune(day, false).unwrap();
        assert_eq!((counted.tokenizers, counted.corpora), (2, 0));
        assert_eq!(store.prune(day, true).unwrap(), counted);
        assert_eq!(store.contents().unwrap().tokenizers, 1, "that of a text in use");

        let counted = store.prune(Duration::ZERO, false).unwrap();
        assert_eq!((counted.tokenizers, counted.corpora), (1, 1));
        let removed = store.prune(Duration::ZERO, true).unwrap();
        assert_eq!((removed.tokenizers, removed.corpora), (1, 1));
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "and what isn't the store's");
    }

    #[test]
    fn contents_are_listed_and_what_is_unused_is_removed() {
        let setup = many();
        assert_eq!(setup.store().contents().unwrap(), StoreContents::default());
        let row = setup.prepare().unwrap();
        let one = setup.folder.path().join("corpus/0.txt").to_string_lossy().into_owned();
        let one = Corpus::open(std::slice::from_ref(&one)).unwrap();
        setup.prepare_with(&one, PrepareOptions::default()).unwrap();

        let contents = setup.store().contents().unwrap();
        let [latest, first] = contents.corpora.as_slice() else { panic!("{contents:?}") };
        assert_eq!((latest.shards, &latest.sources[..]), (1, one.sources()));
        assert_eq!((first.shards, first.tokens), (9, row.len()));
        assert_eq!((first.documents, first.text_bytes), (row.documents(), row.text_bytes()));

        // An older layout's, and what isn't the store's.
        let folder = setup.store().folder().to_owned();
        let older = folder.join("0123456789abcdef".repeat(4));
        fs::create_dir(&older).unwrap();
        fs::write(older.join("tokens.bin"), "old").unwrap();
        fs::create_dir(folder.join("mine")).unwrap();
        fs::write(folder.join("mine/tokens.bin"), "mine").unwrap();
        fs::create_dir(folder.join("v2")).unwrap();
        fs::write(folder.join("v2/sources.jsonl"), "older").unwrap();
        assert_eq!(setup.store().contents().unwrap().older_bytes, 8);

        let day = Duration::from_secs(86_400);
        assert_eq!(setup.store().prune(day, true).unwrap(), Removed::default());
        // The larger corpus alone is old; the smaller one's shard stays.
        for path in setup.stored("tokens").iter().chain(&setup.stored("json")) {
            let latest = fs::read_to_string(path).is_ok_and(|text| text.contains("0.txt"));
            if !latest {
                let file = fs::File::options().write(true).open(path).unwrap();
                file.set_modified(SystemTime::now() - 2 * day).unwrap();
            }
        }
        let counted = setup.store().prune(day, false).unwrap();
        assert_eq!((counted.corpora, counted.shards), (1, 8));
        assert_eq!(setup.stored("tokens").len(), 9, "counted only");
        assert_eq!(setup.store().prune(day, true).unwrap(), counted);
        assert_eq!(setup.stored("tokens").len(), 1);
        assert_eq!(setup.prepare_with(&one, PrepareOptions::default()).unwrap().shards_made(), 0);

        // A manifest that says nothing, and times that are yet to come.
        let tokenizer = setup.store().tokenizer_folder(&setup.tokenizer);
        fs::write(tokenizer.join("damaged.json"), "{").unwrap();
        for path in setup.stored("tokens").iter().chain(&setup.stored("json")) {
            let file = fs::File::options().write(true).open(path).unwrap();
            file.set_modified(SystemTime::now() + day).unwrap();
        }
        assert_eq!(setup.store().prune(day, true).unwrap(), Removed::default());
        let all = setup.store().prune(Duration::ZERO, true).unwrap();
        assert_eq!((all.corpora, all.shards), (1, 1));
        assert!(setup.stored("json").is_empty() && !folder.join("v2").exists());
        assert!(!older.exists() && folder.join("mine/tokens.bin").exists());
        assert_eq!(row.slice(0..3).len(), 3, "what is open stays open");
    }
}
