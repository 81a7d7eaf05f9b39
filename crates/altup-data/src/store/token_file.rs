//! The tokens of one shard, in one file that is mapped into memory.
//!
//! ```text
//! ids              little endian, 2 bytes each where the vocabulary allows it, else 4
//! document ends    for each document the number of ids up to its end, 8 bytes, little endian
//! description      JSON, see [`Description`]
//! its length       4 bytes, little endian
//! mark             the 12 bytes `altup-tokens`
//! ```

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use memmap2::Mmap;
use serde::{Deserialize, Serialize};

use super::claim::Claim;
use crate::corpus::{Defect, Place, Shard, SkippedInFile};
use crate::held_out::HeldOut;
use crate::{DataError, TextTokenizer};

/// Changes with the layout, so that older files are not misread. It is in the store's folder name too.
pub(crate) const FORMAT_VERSION: u32 = 3;

const MARK: &[u8; 12] = b"altup-tokens";

/// Defects that are described; the others are counted.
const DEFECTS_DESCRIBED: usize = 5;

/// The tokens of a shard, all documents one after the other.
#[derive(Debug)]
pub(crate) struct TokenFile {
    path: PathBuf,
    description: Description,
    bytes: Mmap,
    vocab_size: u32,
    /// Whether all of it was read and compared with its hash.
    verified: bool,
    held_out: Mutex<Option<Arc<HeldOut>>>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Description {
    version: u32,
    width: TokenWidth,
    tokens: u64,
    documents: u64,
    /// Bytes of text, decompressed.
    text_bytes: u64,
    /// BLAKE3 of the ids and document ends.
    blake3: String,
    /// The shard's key.
    shard: String,
    /// The tokenizer's hash.
    tokenizer: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    skipped: Vec<Skipped>,
}

/// Defects of a file, which is named by its number in the shard: it may lie elsewhere next time.
#[derive(Debug, Serialize, Deserialize)]
struct Skipped {
    file: usize,
    count: u64,
    first: Vec<(Place, String)>,
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

    fn bytes(self) -> u64 {
        match self {
            Self::U16 => 2,
            Self::U32 => 4,
        }
    }
}

impl TokenFile {
    /// Opens the file of a shard and a tokenizer; nothing if it isn't there, is damaged, or is another's. All of it is
    /// read and compared with its hash only where that is asked for.
    ///
    /// # Errors
    ///
    /// If it can't be read, or not be mapped.
    pub(crate) fn open(
        path: &Path,
        shard: blake3::Hash,
        tokenizer: &TextTokenizer,
        verify: bool,
    ) -> Result<Option<Self>, DataError> {
        let unreadable = |source| DataError::Store { path: path.to_owned(), source };
        let mut file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(unreadable)?,
        };
        // Read, as touching a mapping would bring in the pages around for every shard of a corpus.
        let Some(description) = describe(&mut file).map_err(unreadable)? else { return Ok(None) };
        let is_as_named = description.shard == shard.to_hex().as_str()
            && description.tokenizer == tokenizer.fingerprint().to_hex().as_str()
            && description.width == TokenWidth::for_vocabulary(tokenizer.vocab_size());
        if !is_as_named || (verify && !is_whole(&mut file, &description).map_err(unreadable)?) {
            return Ok(None);
        }
        // SAFETY: A mapping is sound as long as nobody writes to the file or cuts it short. Token
        // files are written under another name, before any mapping of them; finished ones are only
        // ever removed or replaced by a rename, which leaves mappings intact.
        let mapped = unsafe { Mmap::map(&file) };
        let bytes = mapped.map_err(|source| match source.kind() {
            io::ErrorKind::OutOfMemory => {
                DataError::TooManyMappings { path: path.to_owned(), source }
            }
            _ => unreadable(source),
        })?;
        // Ids are below it, and so is it: they are u32.
        let vocab_size = u32::try_from(tokenizer.vocab_size()).unwrap_or(u32::MAX);
        Ok(Some(Self {
            path: path.to_owned(),
            description,
            bytes,
            vocab_size,
            verified: verify,
            held_out: Mutex::default(),
        }))
    }

    /// Whether it was compared with its hash when it was opened.
    pub(crate) fn is_verified(&self) -> bool {
        self.verified
    }

    /// The number of tokens.
    pub(crate) fn len(&self) -> u64 {
        self.description.tokens
    }

    /// The number of documents.
    pub(crate) fn documents(&self) -> u64 {
        self.description.documents
    }

    /// The size of the text in bytes, decompressed.
    pub(crate) fn text_bytes(&self) -> u64 {
        self.description.text_bytes
    }

    /// The size of the file in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// The tokens of some documents, by their positions.
    ///
    /// # Errors
    ///
    /// If the file is damaged, or has fewer documents.
    pub(crate) fn tokens_of(&self, documents: Range<u64>) -> Result<Range<u64>, DataError> {
        if documents.start > documents.end || documents.end > self.documents() {
            return Err(self.damaged());
        }
        let tokens = self.end_of(documents.start)..self.end_of(documents.end);
        if tokens.start > tokens.end || tokens.end > self.len() {
            return Err(self.damaged());
        }
        Ok(tokens)
    }

    fn damaged(&self) -> DataError {
        DataError::DamagedTokens { path: self.path.clone() }
    }

    /// Calls `visit` with each document and the number of tokens up to its end, in order. They are read, as the pages of a
    /// mapping would count as memory.
    ///
    /// # Errors
    ///
    /// If the file can't be read, or is damaged.
    pub(crate) fn for_each_end(&self, mut visit: impl FnMut(u64, u64)) -> Result<(), DataError> {
        const DOCUMENTS_AT_ONCE: usize = 8192;
        let unreadable = |source| DataError::Store { path: self.path.clone(), source };
        let mut file = File::open(&self.path).map_err(unreadable)?;
        let start = self.len() * self.description.width.bytes();
        file.seek(SeekFrom::Start(start)).map_err(unreadable)?;
        let mut buffer = vec![0; 8 * DOCUMENTS_AT_ONCE];
        let (mut document, mut last) = (0, 0);
        while document < self.documents() {
            let left = usize::try_from(self.documents() - document).unwrap_or(usize::MAX);
            let bytes = &mut buffer[..8 * left.min(DOCUMENTS_AT_ONCE)];
            file.read_exact(bytes).map_err(unreadable)?;
            let (ends, _) = bytes.as_chunks::<8>();
            for end in ends {
                let end = u64::from_le_bytes(*end);
                document += 1;
                let is_last = document == self.documents();
                if end < last || end > self.len() || is_last && end != self.len() {
                    return Err(self.damaged());
                }
                visit(document - 1, end);
                last = end;
            }
        }
        Ok(())
    }

    /// Where the documents lie of which every `every`-th is held out from the `first` one on. What is known of them is kept,
    /// as what is held out is asked for behind the rest.
    ///
    /// # Errors
    ///
    /// If the file can't be read, or is damaged.
    pub(crate) fn held_out(&self, every: u64, first: u64) -> Result<Arc<HeldOut>, DataError> {
        let mut held_out = self.held_out.lock().unwrap_or_else(PoisonError::into_inner);
        match &*held_out {
            Some(known) if known.is_of(every, first) => Ok(Arc::clone(known)),
            _ => {
                let new = Arc::new(HeldOut::new(self, every, first)?);
                *held_out = Some(Arc::clone(&new));
                Ok(new)
            }
        }
    }

    /// The number of tokens in the first `documents` documents, as the file says.
    fn end_of(&self, documents: u64) -> u64 {
        if documents == self.documents() {
            return self.len();
        }
        let Some(last) = documents.checked_sub(1) else { return 0 };
        let start = (self.len() * self.description.width.bytes() + last * 8) as usize;
        let mut end = [0; 8];
        end.copy_from_slice(&self.bytes[start..start + 8]);
        u64::from_le_bytes(end)
    }

    /// Appends the tokens in a range of positions to `ids`.
    ///
    /// # Panics
    ///
    /// If the file is damaged: an id that a model has no embedding for must not reach it.
    pub(crate) fn read(&self, range: Range<u64>, ids: &mut Vec<u32>) {
        let before = ids.len();
        let width = self.description.width.bytes();
        let bytes = &self.bytes[(range.start * width) as usize..(range.end * width) as usize];
        match self.description.width {
            TokenWidth::U16 => {
                let (tokens, _) = bytes.as_chunks::<2>();
                ids.extend(tokens.iter().map(|id| u32::from(u16::from_le_bytes(*id))));
            }
            TokenWidth::U32 => {
                let (tokens, _) = bytes.as_chunks::<4>();
                ids.extend(tokens.iter().map(|id| u32::from_le_bytes(*id)));
            }
        }
        let damaged = ids[before..].iter().any(|id| *id >= self.vocab_size);
        assert!(!damaged, "{}", self.damaged());
    }

    /// What was left out of each file of the shard, as whose the files are named.
    pub(crate) fn skipped<'a>(
        &'a self,
        shard: &'a Shard,
    ) -> impl Iterator<Item = SkippedInFile> + 'a {
        self.description.skipped.iter().filter_map(|skipped| {
            let file = &shard.files.get(skipped.file)?.path;
            let defect = |(place, problem): &(Place, String)| Defect {
                file: file.clone(),
                place: *place,
                problem: problem.clone(),
            };
            Some(SkippedInFile {
                file: file.clone(),
                count: skipped.count,
                first: skipped.first.iter().map(defect).collect(),
            })
        })
    }
}

/// The description at the end of a token file; nothing if the file is not a whole one.
fn describe(file: &mut File) -> io::Result<Option<Description>> {
    const END_BYTES: u64 = 4 + MARK.len() as u64;
    let size = file.metadata()?.len();
    let Some(start_of_end) = size.checked_sub(END_BYTES) else { return Ok(None) };
    let mut end = [0; END_BYTES as usize];
    file.seek(SeekFrom::Start(start_of_end))?;
    file.read_exact(&mut end)?;
    let Some((length, mark)) = end.split_first_chunk::<4>() else { return Ok(None) };
    let length = u64::from(u32::from_le_bytes(*length));
    let Some(data) = start_of_end.checked_sub(length).filter(|_| mark == MARK) else {
        return Ok(None);
    };
    let mut json = vec![0; length as usize];
    file.seek(SeekFrom::Start(data))?;
    file.read_exact(&mut json)?;
    let description: Option<Description> = serde_json::from_slice(&json).ok();
    Ok(description.filter(|description| {
        let ids = description.tokens.checked_mul(description.width.bytes());
        let ends = description.documents.checked_mul(8);
        let expected = ids.zip(ends).and_then(|(ids, ends)| ids.checked_add(ends));
        description.version == FORMAT_VERSION && expected == Some(data)
    }))
}

/// Whether the ids and document ends are those that were written. Read, as a mapping's pages would count as memory.
fn is_whole(file: &mut File, description: &Description) -> io::Result<bool> {
    let data = description.tokens * description.width.bytes() + description.documents * 8;
    file.rewind()?;
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(file.take(data))?;
    Ok(description.blake3 == hasher.finalize().to_hex().as_str())
}

/// Hashes what is written through it.
struct Hashing<W> {
    inner: W,
    hasher: blake3::Hasher,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// A token file in the making.
pub(crate) struct TokenFileWriter {
    claim: Claim,
    ids: BufWriter<Hashing<File>>,
    /// Written apart, as they stand behind the ids, and there may be many.
    ends: BufWriter<File>,
    /// Ids that shape an example and so must not come from text: a corpus that speaks of T5 may
    /// spell a sentinel, which would then mark a span where there is none.
    reserved: Vec<bool>,
    in_document: bool,
    description: Description,
}

impl TokenFileWriter {
    pub(crate) fn new(
        mut claim: Claim,
        folder: &Path,
        shard: blake3::Hash,
        tokenizer: &TextTokenizer,
    ) -> io::Result<Self> {
        let vocab_size = tokenizer.vocab_size();
        let mut reserved = vec![false; vocab_size];
        for id in tokenizer.sentinels().iter().chain(&[tokenizer.pad_id(), tokenizer.eos_id()]) {
            reserved[*id as usize] = true;
        }
        let ids = Hashing { inner: claim.file().try_clone()?, hasher: blake3::Hasher::new() };
        Ok(Self {
            ids: BufWriter::with_capacity(256 << 10, ids),
            ends: BufWriter::new(tempfile::tempfile_in(folder)?),
            claim,
            reserved,
            in_document: false,
            description: Description {
                version: FORMAT_VERSION,
                width: TokenWidth::for_vocabulary(vocab_size),
                tokens: 0,
                documents: 0,
                text_bytes: 0,
                blake3: String::new(),
                shard: shard.to_string(),
                tokenizer: tokenizer.fingerprint().to_string(),
                skipped: Vec::new(),
            },
        })
    }

    /// Begins the next document.
    pub(crate) fn start_document(&mut self) -> io::Result<()> {
        self.end_document()?;
        self.in_document = true;
        self.description.documents += 1;
        Ok(())
    }

    fn end_document(&mut self) -> io::Result<()> {
        match self.in_document {
            true => self.ends.write_all(&self.description.tokens.to_le_bytes()),
            false => Ok(()),
        }
    }

    /// Appends the ids of a piece of text to the document.
    pub(crate) fn append(&mut self, text: &str, ids: &[u32]) -> io::Result<()> {
        self.description.text_bytes += text.len() as u64;
        for &id in ids.iter().filter(|id| !self.reserved[**id as usize]) {
            match self.description.width {
                // Every id is below the size of the vocabulary, by which the width was chosen.
                TokenWidth::U16 => self.ids.write_all(&(id as u16).to_le_bytes())?,
                TokenWidth::U32 => self.ids.write_all(&id.to_le_bytes())?,
            }
            self.description.tokens += 1;
        }
        Ok(())
    }

    /// Counts a defect that was left out of a file, which is named by its number in the shard.
    pub(crate) fn skip(&mut self, number: usize, defect: Defect) {
        let skipped = &mut self.description.skipped;
        if skipped.last().is_none_or(|last| last.file != number) {
            skipped.push(Skipped { file: number, count: 0, first: Vec::new() });
        }
        if let Some(last) = skipped.last_mut() {
            last.count += 1;
            if last.first.len() < DEFECTS_DESCRIBED {
                last.first.push((defect.place, defect.problem));
            }
        }
    }

    /// Completes the file and gives it its name.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.end_document()?;
        let mut ends = self.ends.into_inner()?;
        ends.rewind()?;
        io::copy(&mut ends, &mut self.ids)?;
        let Hashing { inner: mut file, hasher } = self.ids.into_inner()?;
        self.description.blake3 = hasher.finalize().to_string();
        let mut end = serde_json::to_vec(&self.description)?;
        end.extend((end.len() as u32).to_le_bytes());
        end.extend(MARK);
        file.write_all(&end)?;
        self.claim.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn width_follows_the_vocabulary() {
        assert_eq!(TokenWidth::for_vocabulary(65_536), TokenWidth::U16);
        assert_eq!(TokenWidth::for_vocabulary(65_537), TokenWidth::U32);
    }
}
