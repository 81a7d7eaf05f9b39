//! A corpus as one long row of token ids.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use rayon::iter::{IntoParallelIterator, ParallelIterator};

use crate::DataError;
use crate::corpus::{Selection, Shard, SkippedInFile};
use crate::held_out::{HeldOut, Side};
use crate::store::TokenFile;

/// The tokens of a corpus: its documents one after the other, shard by shard in the order of the
/// files, whoever tokenised them and when.
///
/// The tokens themselves are in files that are mapped into memory. What is held beside them is some
/// 24 bytes a shard and what the shard is called; where documents are held out, 16 bytes for 64 of those.
pub struct TokenRow {
    parts: Vec<Part>,
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

/// The tokens of a shard in the row.
struct Part {
    file: Arc<TokenFile>,
    /// Which of its documents are in the row, unless all are.
    side: Option<(Side, Arc<HeldOut>)>,
    /// The first token's place in the row.
    place: u64,
}

impl Part {
    fn len(&self) -> u64 {
        match &self.side {
            Some((side, held_out)) => held_out.tokens(*side),
            None => self.file.len(),
        }
    }

    fn documents(&self) -> u64 {
        let documents = self.file.documents();
        match &self.side {
            Some((side, held_out)) => held_out.documents(*side, documents),
            None => documents,
        }
    }

    /// Appends the tokens in a range of positions to `ids`.
    fn read(&self, range: Range<u64>, ids: &mut Vec<u32>) {
        match &self.side {
            Some((side, held_out)) => held_out.read(&self.file, *side, range, ids),
            None => self.file.read(range, ids),
        }
    }
}

impl TokenRow {
    pub(crate) fn new(
        files: Vec<Arc<TokenFile>>,
        selection: Selection,
        origin: Origin,
    ) -> Result<Self, DataError> {
        let (side, every) = match selection {
            Selection::All => (None, 1),
            Selection::Except { every } => (Some(Side::Rest), every),
            Selection::Only { every } => (Some(Side::HeldOut), every),
        };
        let before = files.iter().scan(0, |next, file| {
            let before = *next;
            *next += file.documents();
            Some((Arc::clone(file), before))
        });
        let before: Vec<(Arc<TokenFile>, u64)> = before.collect();
        let parts = before.into_par_iter().map(|(file, before)| {
            // The documents held out are those with the index `every` - 1, 2 `every` - 1, …
            let held_out = side.map(|side| {
                let first = every - 1 - before % every;
                Ok::<_, DataError>((side, file.held_out(every, first)?))
            });
            Ok::<_, DataError>(Part { side: held_out.transpose()?, file, place: 0 })
        });
        let mut parts = parts.collect::<Result<Vec<Part>, _>>()?;
        let (mut len, mut documents) = (0, 0);
        for part in &mut parts {
            part.place = len;
            len += part.len();
            documents += part.documents();
        }
        Ok(Self { parts, len, documents, origin })
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
        let mut pairs = self.parts.iter().zip(&other.parts);
        pairs.all(|(own, others)| Arc::ptr_eq(&own.file, &others.file))
    }

    /// For each shard, how often it is remembered where documents lie that are held out.
    #[cfg(test)]
    pub(crate) fn stretches(&self) -> Vec<usize> {
        let sides = self.parts.iter().filter_map(|part| part.side.as_ref());
        sides.map(|(_, held_out)| held_out.stretches()).collect()
    }

    /// The number of documents.
    pub fn documents(&self) -> u64 {
        self.documents
    }

    /// The number of shards, those of documents that are not in the row included.
    pub fn shards(&self) -> u64 {
        self.parts.len() as u64
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
        self.parts.iter().map(|part| part.file.text_bytes()).sum()
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
        let mut next = self.parts.partition_point(|part| part.place <= range.start);
        let mut place = range.start;
        while place < range.end {
            let part = &self.parts[next - 1];
            let end = range.end.min(part.place + part.len());
            part.read(place - part.place..end - part.place, &mut ids);
            (place, next) = (end, next + 1);
        }
        ids
    }
}

impl fmt::Debug for TokenRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenRow")
            .field("len", &self.len)
            .field("documents", &self.documents)
            .field("shards", &self.parts.len())
            .field("fingerprint", &self.origin.fingerprint)
            .finish_non_exhaustive()
    }
}
