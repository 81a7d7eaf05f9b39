//! A corpus as one long row of token ids.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use crate::DataError;
use crate::corpus::{Selection, Shard, SkippedInFile};
use crate::store::TokenFile;

/// The tokens of a corpus: its documents one after the other, shard by shard in the order of the
/// files, whoever tokenised them and when.
///
/// The tokens themselves are in files that are mapped into memory. What is held beside them is 24
/// bytes a shard and what the shard is called; where documents are held out, 24 bytes for each of
/// those.
pub struct TokenRow {
    files: Vec<Arc<TokenFile>>,
    /// Where the row is put together from, in its order; none is empty.
    runs: Vec<Run>,
    len: u64,
    documents: u64,
    pub(crate) origin: Origin,
}

/// Where the tokens of a row come from.
#[derive(Debug)]
pub(crate) struct Origin {
    /// Names the tokens, see [`TokenRow::fingerprint`].
    pub(crate) fingerprint: blake3::Hash,
    /// What each shard was made of.
    pub(crate) sources: Vec<ShardSource>,
    /// Shards that were tokenised for this row, rather than found.
    pub(crate) made: u64,
    pub(crate) skipped: Vec<SkippedInFile>,
    /// Why the store doesn't know all that it should of it.
    pub(crate) not_noted: Option<String>,
}

/// What a shard of a corpus is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardSource {
    /// Its first file.
    pub file: PathBuf,
    /// The number of its files.
    pub files: usize,
    /// A hash of their contents and of how they are read. It changes with the text, but not with when
    /// or where the files lie.
    pub content: blake3::Hash,
}

impl ShardSource {
    pub(crate) fn new(shard: &Shard, content: blake3::Hash) -> Self {
        let file = shard.files.first().map(|file| file.path.clone()).unwrap_or_default();
        Self { file, files: shard.files.len(), content }
    }
}

/// Tokens that follow each other in a file and in the row.
#[derive(Debug, Clone, Copy)]
struct Run {
    file: usize,
    /// The first token's place in the file.
    start: u64,
    /// The first token's place in the row.
    place: u64,
}

impl TokenRow {
    pub(crate) fn new(
        files: Vec<Arc<TokenFile>>,
        selection: Selection,
        origin: Origin,
    ) -> Result<Self, DataError> {
        let mut row = Self { files: Vec::new(), runs: Vec::new(), len: 0, documents: 0, origin };
        let mut before = 0;
        for (number, file) in files.iter().enumerate() {
            let documents = file.documents();
            match selection {
                Selection::All => row.push(number, file, 0..documents)?,
                Selection::Except { every } | Selection::Only { every } => {
                    // The documents held out are those with the index `every` - 1, 2 `every` - 1, …
                    let mut start = 0;
                    let mut held_out = every - 1 - before % every;
                    while start < documents {
                        let end = held_out.min(documents);
                        match selection {
                            Selection::Only { .. } if end < documents => {
                                row.push(number, file, end..end + 1)?;
                            }
                            Selection::Only { .. } => {}
                            _ => row.push(number, file, start..end)?,
                        }
                        start = end + 1;
                        held_out += every;
                    }
                }
            }
            before += documents;
        }
        row.files = files;
        Ok(row)
    }

    fn push(
        &mut self,
        number: usize,
        file: &TokenFile,
        documents: Range<u64>,
    ) -> Result<(), DataError> {
        let tokens = file.tokens_of(documents.clone())?;
        self.documents += documents.end - documents.start;
        if !tokens.is_empty() {
            self.runs.push(Run { file: number, start: tokens.start, place: self.len });
            self.len += tokens.end - tokens.start;
        }
        Ok(())
    }

    /// The number of tokens.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are no tokens; never so, as an empty corpus is an error.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[cfg(test)]
    pub(crate) fn shares_files_with(&self, other: &Self) -> bool {
        self.files.iter().zip(&other.files).all(|(own, others)| Arc::ptr_eq(own, others))
    }

    /// The number of documents.
    pub fn documents(&self) -> u64 {
        self.documents
    }

    /// The number of shards, those of documents that are not in the row included.
    pub fn shards(&self) -> u64 {
        self.files.len() as u64
    }

    /// What each shard is made of, in order, those of documents that are not in the row included.
    pub fn sources(&self) -> &[ShardSource] {
        &self.origin.sources
    }

    /// The number of shards that were tokenised for this row, rather than found.
    pub fn shards_made(&self) -> u64 {
        self.origin.made
    }

    /// The size in bytes, decompressed, of the text of all shards.
    pub fn text_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.text_bytes()).sum()
    }

    /// What was left out of each file that has defects.
    pub fn skipped(&self) -> &[SkippedInFile] {
        &self.origin.skipped
    }

    /// Why the store has no note of this use, or none of the hashes of all files, where it should have: its disk is full, or
    /// another process is stuck. The files are then hashed again next time.
    pub fn not_noted(&self) -> Option<&str> {
        self.origin.not_noted.as_deref()
    }

    /// A hash of the tokenizer, the content of each shard in order, and which documents are taken.
    /// It changes with the tokens, but not with when or where the files lie.
    pub fn fingerprint(&self) -> blake3::Hash {
        self.origin.fingerprint
    }

    /// The tokens in a range of places.
    ///
    /// # Panics
    ///
    /// If the range reaches beyond [`len`](Self::len), or a token file is damaged there.
    pub fn slice(&self, range: Range<u64>) -> Vec<u32> {
        assert!(range.end <= self.len, "Got range={range:?}, len={}", self.len);
        let mut ids = Vec::with_capacity((range.end - range.start) as usize);
        let mut run = self.runs.partition_point(|run| run.place <= range.start);
        let mut place = range.start;
        while place < range.end {
            let Run { file, start, place: run_place } = self.runs[run - 1];
            let run_end = self.runs.get(run).map_or(self.len, |next| next.place);
            let end = range.end.min(run_end);
            let in_file = |place| start + place - run_place;
            self.files[file].read(in_file(place)..in_file(end), &mut ids);
            (place, run) = (end, run + 1);
        }
        ids
    }
}

impl fmt::Debug for TokenRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenRow")
            .field("len", &self.len)
            .field("documents", &self.documents)
            .field("shards", &self.files.len())
            .field("fingerprint", &self.origin.fingerprint)
            .finish_non_exhaustive()
    }
}
