//! A corpus as one long row of token ids, made once and mapped into memory.
//!
//! ```text
//! <cache folder>/
//!   <fingerprint of sources and tokenizer>/
//!     tokens.bin     ids, little endian, 2 bytes each where the vocabulary allows it, else 4
//!     meta.json      lengths, fingerprints, and how often each id occurs
//! ```
//!
//! The folder is filled under another name and renamed when it is complete. So a build that is
//! killed leaves nothing that looks like a cache, and of two builds at once the later one finds the
//! other's result.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::mem;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::{Corpus, DataError, TextTokenizer};

/// Changes with the layout, so that older caches are not misread.
const FORMAT_VERSION: u32 = 1;

/// Text handed to the tokenizer at once: enough to keep all cores busy, and little enough for the
/// encodings, which take many times the memory of their text.
const CHUNK_BYTES: usize = 4 << 20;

const META_FILE: &str = "meta.json";
const TOKENS_FILE: &str = "tokens.bin";

/// How far the making of a cache has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheProgress {
    /// Documents done.
    pub documents: u64,
    /// Bytes of text done.
    pub text_bytes: u64,
    /// Tokens written.
    pub tokens: u64,
}

/// The tokens of a corpus, all documents one after the other.
#[derive(Debug)]
pub struct TokenCache {
    meta: Meta,
    bytes: Mmap,
    was_reused: bool,
}

#[derive(Debug, Serialize, Deserialize)]
struct Meta {
    version: u32,
    width: TokenWidth,
    tokens: u64,
    documents: u64,
    text_bytes: u64,
    sources: String,
    tokenizer: String,
    /// How often each id occurs; one entry for every id of the vocabulary.
    counts: Vec<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum TokenWidth {
    U16,
    U32,
}

impl TokenWidth {
    fn for_vocabulary(size: usize) -> Self {
        if size <= 1 << 16 { Self::U16 } else { Self::U32 }
    }

    fn bytes(self) -> usize {
        match self {
            Self::U16 => 2,
            Self::U32 => 4,
        }
    }
}

impl TokenCache {
    /// Opens the cache of this corpus and tokenizer below `cache_folder`, or makes it.
    ///
    /// A damaged cache is made anew. `progress` is called after each chunk of text while a cache
    /// is being made, and never where one is reused.
    pub fn open_or_build(
        cache_folder: &Path,
        corpus: &Corpus,
        tokenizer: &TextTokenizer,
        progress: &mut dyn FnMut(CacheProgress),
    ) -> Result<Self, DataError> {
        let sources = corpus.fingerprint()?;
        let mut key = blake3::Hasher::new();
        key.update(&FORMAT_VERSION.to_le_bytes());
        key.update(sources.as_bytes());
        key.update(tokenizer.fingerprint().as_bytes());
        let folder = cache_folder.join(key.finalize().to_hex().as_str());

        // Whatever keeps a cache from opening, missing or damaged, making it is the answer.
        if let Ok(cache) = Self::open(&folder) {
            return Ok(Self { was_reused: true, ..cache });
        }
        let cache_error = |source| DataError::Cache { folder: folder.clone(), source };
        fs::create_dir_all(cache_folder).map_err(cache_error)?;
        let unfinished = tempfile::Builder::new()
            .prefix(".unfinished-")
            .tempdir_in(cache_folder)
            .map_err(cache_error)?;

        let mut writer = TokenWriter::create(unfinished.path(), tokenizer).map_err(cache_error)?;
        let mut chunk = Vec::new();
        let mut chunk_bytes = 0;
        let mut last_document = None;
        for document in corpus.documents() {
            let document = document?;
            if last_document.replace(document.index) != Some(document.index) {
                writer.progress.documents += 1;
            }
            chunk_bytes += document.text.len();
            chunk.push(document.text);
            if chunk_bytes >= CHUNK_BYTES {
                writer.append(tokenizer, mem::take(&mut chunk))?;
                chunk_bytes = 0;
                progress(writer.progress);
            }
        }
        writer.append(tokenizer, chunk)?;
        progress(writer.progress);
        if writer.progress.tokens == 0 {
            return Err(corpus.without_text());
        }
        writer.finish(sources, tokenizer.fingerprint()).map_err(cache_error)?;

        install(unfinished, &folder).map_err(cache_error)?;
        Self::open(&folder).map_err(cache_error)
    }

    fn open(folder: &Path) -> io::Result<Self> {
        let meta: Meta = serde_json::from_slice(&fs::read(folder.join(META_FILE))?)?;
        let file = File::open(folder.join(TOKENS_FILE))?;
        let is_whole = meta.version == FORMAT_VERSION
            && meta.tokens > 0
            && file.metadata()?.len() == meta.tokens * meta.width.bytes() as u64
            && meta.width == TokenWidth::for_vocabulary(meta.counts.len())
            && meta.counts.iter().sum::<u64>() == meta.tokens;
        if !is_whole {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the token cache is damaged"));
        }
        // SAFETY: A mapping is sound as long as nobody writes to the file or cuts it short. This
        // module only ever writes to a file under its unfinished name, before any mapping of it,
        // and removes or renames finished ones, which leaves mappings intact.
        let bytes = unsafe { Mmap::map(&file)? };
        Ok(Self { meta, bytes, was_reused: false })
    }

    /// The number of tokens.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.meta.width.bytes()
    }

    /// Whether there are no tokens; never so, as an empty corpus is an error.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The number of documents.
    pub fn documents(&self) -> u64 {
        self.meta.documents
    }

    /// The size of the text in bytes, decompressed.
    pub fn text_bytes(&self) -> u64 {
        self.meta.text_bytes
    }

    /// Whether the cache was found, rather than made.
    pub fn was_reused(&self) -> bool {
        self.was_reused
    }

    /// How often each id of the vocabulary occurs.
    pub fn counts(&self) -> &[u64] {
        &self.meta.counts
    }

    /// The tokens in a range of positions.
    ///
    /// # Panics
    ///
    /// If the range reaches beyond [`len`](Self::len).
    pub fn slice(&self, range: Range<usize>) -> Vec<u32> {
        let width = self.meta.width.bytes();
        let bytes = &self.bytes[range.start * width..range.end * width];
        match self.meta.width {
            TokenWidth::U16 => {
                let (ids, _) = bytes.as_chunks::<2>();
                ids.iter().map(|id| u32::from(u16::from_le_bytes(*id))).collect()
            }
            TokenWidth::U32 => {
                let (ids, _) = bytes.as_chunks::<4>();
                ids.iter().map(|id| u32::from_le_bytes(*id)).collect()
            }
        }
    }
}

/// Gives a finished folder its name.
fn install(unfinished: TempDir, folder: &Path) -> io::Result<()> {
    if TokenCache::open(folder).is_ok() {
        return Ok(()); // Another build was faster, and made the same.
    }
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    match fs::rename(unfinished.path(), folder) {
        Ok(()) => {
            let _renamed = unfinished.keep();
            Ok(())
        }
        // Another build may have come in between.
        Err(error) => TokenCache::open(folder).map(|_| ()).map_err(|_| error),
    }
}

/// A cache in the making.
struct TokenWriter {
    folder: PathBuf,
    output: BufWriter<File>,
    width: TokenWidth,
    counts: Vec<u64>,
    /// Ids that shape an example and so must not come from text: a corpus that speaks of T5 may
    /// spell a sentinel, which would then mark a span where there is none.
    reserved: Vec<bool>,
    progress: CacheProgress,
}

impl TokenWriter {
    fn create(folder: &Path, tokenizer: &TextTokenizer) -> io::Result<Self> {
        let vocab_size = tokenizer.vocab_size();
        let mut reserved = vec![false; vocab_size];
        for id in tokenizer.sentinels().iter().chain(&[tokenizer.pad_id(), tokenizer.eos_id()]) {
            reserved[*id as usize] = true;
        }
        Ok(Self {
            folder: folder.to_owned(),
            output: BufWriter::new(File::create_new(folder.join(TOKENS_FILE))?),
            width: TokenWidth::for_vocabulary(vocab_size),
            counts: vec![0; vocab_size],
            reserved,
            progress: CacheProgress::default(),
        })
    }

    fn append(&mut self, tokenizer: &TextTokenizer, texts: Vec<String>) -> Result<(), DataError> {
        self.progress.text_bytes += texts.iter().map(|text| text.len() as u64).sum::<u64>();
        for ids in tokenizer.encode_batch(texts)? {
            self.write(&ids)
                .map_err(|source| DataError::Cache { folder: self.folder.clone(), source })?;
        }
        Ok(())
    }

    fn write(&mut self, ids: &[u32]) -> io::Result<()> {
        for &id in ids.iter().filter(|id| !self.reserved[**id as usize]) {
            match self.width {
                // Every id is below the size of the vocabulary, by which the width was chosen.
                TokenWidth::U16 => self.output.write_all(&(id as u16).to_le_bytes())?,
                TokenWidth::U32 => self.output.write_all(&id.to_le_bytes())?,
            }
            self.counts[id as usize] += 1;
            self.progress.tokens += 1;
        }
        Ok(())
    }

    fn finish(self, sources: blake3::Hash, tokenizer: blake3::Hash) -> io::Result<()> {
        self.output.into_inner()?.sync_all()?;
        let meta = Meta {
            version: FORMAT_VERSION,
            width: self.width,
            tokens: self.progress.tokens,
            documents: self.progress.documents,
            text_bytes: self.progress.text_bytes,
            sources: sources.to_string(),
            tokenizer: tokenizer.to_string(),
            counts: self.counts,
        };
        let mut file = File::create_new(self.folder.join(META_FILE))?;
        file.write_all(&serde_json::to_vec(&meta)?)?;
        file.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "one two three\n\nfour five six\n\nseven <extra_id_0> eight";

    struct Setup {
        folder: TempDir,
        corpus: Corpus,
        tokenizer: TextTokenizer,
    }

    impl Setup {
        fn new(text: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let corpus = Self::corpus(&folder, "corpus.txt", text);
            let training_text = Self::corpus(&folder, "train.txt", TEXT);
            let tokenizer = TextTokenizer::train(&training_text, 200, u64::MAX).unwrap();
            Self { folder, corpus, tokenizer }
        }

        fn corpus(folder: &TempDir, name: &str, text: &str) -> Corpus {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            Corpus::open(&[path.to_string_lossy().into_owned()]).unwrap()
        }

        fn open_or_build(&self) -> Result<TokenCache, DataError> {
            let caches = self.folder.path().join("caches");
            TokenCache::open_or_build(&caches, &self.corpus, &self.tokenizer, &mut |_| ())
        }

        fn entries(&self) -> Vec<PathBuf> {
            let entries = fs::read_dir(self.folder.path().join("caches")).unwrap();
            entries.map(|entry| entry.unwrap().path()).collect()
        }
    }

    #[test]
    fn cache_holds_the_tokens_of_all_documents_in_order() {
        let setup = Setup::new(TEXT);
        let cache = setup.open_or_build().unwrap();
        let expected = setup.tokenizer.encode(&TEXT.replace("<extra_id_0>", "")).unwrap();
        assert_eq!(cache.slice(0..cache.len()), expected);
        assert_eq!(cache.slice(2..5), expected[2..5]);
        assert_eq!(cache.documents(), 3);
        assert!(!cache.is_empty());

        let mut counts = vec![0u64; setup.tokenizer.vocab_size()];
        for id in expected {
            counts[id as usize] += 1;
        }
        assert_eq!(cache.counts(), counts);
    }

    #[test]
    fn second_opening_reuses_the_cache() {
        let setup = Setup::new(TEXT);
        let first = setup.open_or_build().unwrap();
        let second = setup.open_or_build().unwrap();
        assert!(!first.was_reused() && second.was_reused());
        assert_eq!(first.slice(0..first.len()), second.slice(0..second.len()));
        assert_eq!(setup.entries().len(), 1);
    }

    #[test]
    fn changed_text_makes_another_cache() {
        let mut setup = Setup::new(TEXT);
        setup.open_or_build().unwrap();
        setup.corpus = Setup::corpus(&setup.folder, "corpus.txt", "one two");
        assert!(!setup.open_or_build().unwrap().was_reused());
        assert_eq!(setup.entries().len(), 2);
    }

    #[test]
    fn damaged_caches_are_made_anew() {
        let setup = Setup::new(TEXT);
        let tokens = {
            let cache = setup.open_or_build().unwrap();
            cache.slice(0..cache.len())
        };
        let folder = setup.entries().remove(0);
        let cut_tokens = |path: &Path| {
            let bytes = fs::read(path).unwrap();
            fs::write(path, &bytes[..bytes.len() - 1]).unwrap();
        };
        let damages: [(&str, &dyn Fn(&Path)); 3] = [
            (TOKENS_FILE, &cut_tokens),
            (META_FILE, &|path| fs::write(path, "{").unwrap()),
            (META_FILE, &|path| fs::remove_file(path).unwrap()),
        ];
        for (name, damage) in damages {
            damage(&folder.join(name));
            let cache = setup.open_or_build().unwrap();
            assert!(!cache.was_reused());
            assert_eq!(cache.slice(0..cache.len()), tokens);
            assert_eq!(setup.entries().len(), 1);
        }
    }

    #[test]
    fn failed_build_leaves_nothing() {
        let setup = Setup::new("one\n\ntwo");
        fs::write(setup.folder.path().join("corpus.txt"), b"one\n\n\xff").unwrap();
        assert!(matches!(setup.open_or_build(), Err(DataError::InvalidUtf8Line { line: 3, .. })));
        assert_eq!(setup.entries().len(), 0);
    }

    #[test]
    fn corpus_without_text_is_an_error() {
        assert!(matches!(Setup::new(" \n\n").open_or_build(), Err(DataError::EmptyCorpus { .. })));
    }

    #[test]
    fn a_finished_cache_wins_over_a_later_build_of_it() {
        let setup = Setup::new(TEXT);
        setup.open_or_build().unwrap();
        let folder = setup.entries().remove(0);
        let late = tempfile::tempdir_in(setup.folder.path()).unwrap();
        install(late, &folder).unwrap();
        assert!(setup.open_or_build().unwrap().was_reused());
    }

    #[test]
    fn width_follows_the_vocabulary() {
        assert_eq!(TokenWidth::for_vocabulary(65_536), TokenWidth::U16);
        assert_eq!(TokenWidth::for_vocabulary(65_537), TokenWidth::U32);
    }
}
