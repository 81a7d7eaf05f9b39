//! What is in the store: manifests of corpora, their token files, trained tokenizers, and what is older.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, DirEntry};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::claim::{remove_left_overs, write_whole};
use super::prepare::Done;
use super::token_file::FORMAT_VERSION;
use super::{
    MANIFEST_EXTENSION, TOKENS_EXTENSION, TokenStore, noted_if_possible, store_error,
    written_if_allowed,
};
use crate::{Corpus, DataError, TextTokenizer};

/// A corpus in the store: which shards it has, in order. The file is written again at each use, and
/// so its time of modification is that of the last use.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    version: u32,
    tokenizer: String,
    vocab_size: usize,
    /// What the corpus was opened with last.
    sources: Vec<String>,
    shards: Vec<ShardEntry>,
}

#[derive(Debug, Serialize, Deserialize)]
struct ShardEntry {
    shard: String,
    tokens: u64,
    documents: u64,
    text_bytes: u64,
    /// The size of the token file.
    bytes: u64,
}

/// A corpus in the store, in figures.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CorpusEntry {
    /// What it was opened with last.
    pub sources: Vec<String>,
    /// The tokenizer's hash.
    pub tokenizer: String,
    /// The tokenizer's number of ids.
    pub vocab_size: usize,
    /// Its shards.
    pub shards: u64,
    /// Its documents.
    pub documents: u64,
    /// Its tokens.
    pub tokens: u64,
    /// The size of its text, decompressed.
    pub text_bytes: u64,
    /// The size of its token files, of which other corpora may use some too.
    pub bytes: u64,
    /// When it was last used.
    pub last_used: SystemTime,
}

/// What is in a store.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct StoreContents {
    /// The corpora, the one used last first.
    pub corpora: Vec<CorpusEntry>,
    /// Finished shards of corpora that aren't finished, or were removed.
    pub other_shards: u64,
    /// The size of these.
    pub other_bytes: u64,
    /// The size of what earlier releases have left, which this one doesn't read.
    pub older_bytes: u64,
    /// Tokenizers that were trained from texts.
    pub tokenizers: u64,
    /// The size of these.
    pub tokenizer_bytes: u64,
    /// The size of all but the tokenizers.
    pub bytes: u64,
}

/// What was removed from a store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// Corpora.
    pub corpora: u64,
    /// Token files.
    pub shards: u64,
    /// Tokenizers that were trained from texts.
    pub tokenizers: u64,
    /// Bytes, with those of left-overs and of what earlier releases had made.
    pub bytes: u64,
}

/// The folder of one tokenizer.
#[derive(Default)]
struct TokenizerFolder {
    manifests: Vec<(PathBuf, Manifest, SystemTime)>,
    /// Manifests that are damaged, or of another version.
    unreadable: Vec<DirEntry>,
    /// The token files by the names of their shards.
    tokens: BTreeMap<String, DirEntry>,
}

impl TokenizerFolder {
    fn read(path: &Path) -> io::Result<Self> {
        let mut folder = Self::default();
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            let path = entry.path();
            let extension = path.extension().and_then(OsStr::to_str);
            if extension == Some(TOKENS_EXTENSION) {
                let name = path.file_stem().unwrap_or_default().to_string_lossy();
                folder.tokens.insert(name.into_owned(), entry);
            } else if extension == Some(MANIFEST_EXTENSION)
                && let Some(contents) = unless_gone(fs::read(&path))?
                && let Some(metadata) = unless_gone(entry.metadata())?
            {
                match serde_json::from_slice::<Manifest>(&contents) {
                    Ok(manifest) if manifest.version == FORMAT_VERSION => {
                        folder.manifests.push((path, manifest, metadata.modified()?));
                    }
                    _ => folder.unreadable.push(entry),
                }
            }
        }
        Ok(folder)
    }

    /// The token files that none of its manifests names.
    fn unlisted(&self) -> impl Iterator<Item = &DirEntry> {
        let shards = self.manifests.iter().flat_map(|(_, manifest, _)| &manifest.shards);
        let listed: BTreeSet<&str> = shards.map(|shard| shard.shard.as_str()).collect();
        let unlisted = self.tokens.iter().filter(move |(name, _)| !listed.contains(name.as_str()));
        unlisted.map(|(_, entry)| entry)
    }
}

impl TokenStore {
    /// Writes down that a corpus has been prepared, or used again, unless nothing may be written. Returns why it isn't
    /// written down where it should be and can't.
    pub(super) fn record(
        &self,
        corpus: &Corpus,
        tokenizer: &TextTokenizer,
        done: &[Done],
    ) -> Result<Option<String>, DataError> {
        let mut name = blake3::Hasher::new();
        let entry = |done: &Done| ShardEntry {
            shard: done.key.to_string(),
            tokens: done.file.len(),
            documents: done.file.documents(),
            text_bytes: done.file.text_bytes(),
            bytes: done.file.bytes(),
        };
        let manifest = Manifest {
            version: FORMAT_VERSION,
            tokenizer: tokenizer.fingerprint().to_string(),
            vocab_size: tokenizer.vocab_size(),
            sources: corpus.sources().to_vec(),
            shards: done.iter().map(entry).collect(),
        };
        for shard in done {
            name.update(shard.key.as_bytes());
        }
        let name = format!("{}.{MANIFEST_EXTENSION}", name.finalize());
        let path = self.tokenizer_folder(tokenizer).join(name);
        let contents = serde_json::to_vec(&manifest).map_err(io::Error::from);
        let written = contents.and_then(|contents| write_whole(&path, &contents));
        noted_if_possible(&path, written_if_allowed(written))
    }

    /// What is in the store.
    ///
    /// # Errors
    ///
    /// If it can't be read. A store that isn't there is empty.
    pub fn contents(&self) -> Result<StoreContents, DataError> {
        let folders = self.tokenizer_folders().map_err(store_error(&self.folder))?;
        self.describe(&folders).map_err(store_error(&self.folder))
    }

    fn describe(&self, folders: &[TokenizerFolder]) -> io::Result<StoreContents> {
        let mut contents = StoreContents::default();
        for folder in folders {
            for (_, manifest, last_used) in &folder.manifests {
                let sum = |part: fn(&ShardEntry) -> u64| manifest.shards.iter().map(part).sum();
                contents.corpora.push(CorpusEntry {
                    sources: manifest.sources.clone(),
                    tokenizer: manifest.tokenizer.clone(),
                    vocab_size: manifest.vocab_size,
                    shards: manifest.shards.len() as u64,
                    documents: sum(|shard| shard.documents),
                    tokens: sum(|shard| shard.tokens),
                    text_bytes: sum(|shard| shard.text_bytes),
                    bytes: sum(|shard| shard.bytes),
                    last_used: *last_used,
                });
            }
            for entry in folder.unlisted() {
                if let Some(metadata) = unless_gone(entry.metadata())? {
                    contents.other_shards += 1;
                    contents.other_bytes += metadata.len();
                }
            }
        }
        contents.corpora.sort_by_key(|corpus| Reverse(corpus.last_used));
        for folder in self.older_folders()? {
            contents.older_bytes += size_of(&folder)?;
        }
        for path in self.trained_tokenizers()? {
            if let Some(metadata) = unless_gone(fs::metadata(path))? {
                contents.tokenizers += 1;
                contents.tokenizer_bytes += metadata.len();
            }
        }
        contents.bytes = match self.folder.exists() {
            true => size_of(&self.folder)?,
            false => 0,
        };
        Ok(contents)
    }

    /// Removes corpora that weren't used for a time, with token files that no other corpus has, trained tokenizers that are
    /// as old and of which no corpus is left, and what earlier releases and dead processes have left. Without `deletes` it
    /// only counts them.
    ///
    /// What a process has open stays open to it. Token files of a corpus in the making stay, unless
    /// they are that old.
    ///
    /// # Errors
    ///
    /// Names what can't be removed.
    pub fn prune(&self, unused_for: Duration, deletes: bool) -> Result<Removed, DataError> {
        let mut pruning = Pruning { unused_for, deletes, removed: Removed::default() };
        for path in self.folders_of_tokenizers().map_err(store_error(&self.folder))? {
            let read = || TokenizerFolder::read(&path).map_err(store_error(&path));
            let removed = pruning.remove_manifests(&read()?)?;
            // Read again: what was used again meanwhile keeps its tokens.
            pruning.remove_tokens(read()?, &removed)?;
        }
        self.prune_tokenizers(&mut pruning)?;
        for folder in self.older_folders().map_err(store_error(&self.folder))? {
            pruning.remove_old(&folder)?;
        }
        if deletes && self.current().is_dir() {
            let mut folders = self.folders_of_tokenizers().map_err(store_error(&self.folder))?;
            folders.push(self.current());
            for folder in folders {
                pruning.removed.bytes +=
                    remove_left_overs(&folder).map_err(store_error(&folder))?;
            }
            self.identities()?.compact().map_err(store_error(&self.sources()))?;
        }
        Ok(pruning.removed)
    }

    fn prune_tokenizers(&self, pruning: &mut Pruning) -> Result<(), DataError> {
        let trained = self.trained_tokenizers().map_err(store_error(&self.folder))?;
        if trained.is_empty() {
            return Ok(());
        }
        let folders = self.tokenizer_folders().map_err(store_error(&self.folder))?;
        let manifests = folders.iter().flat_map(|folder| &folder.manifests);
        let used: BTreeSet<&str> = manifests
            .filter(|(_, _, used)| !pruning.is_old(*used))
            .map(|(_, manifest, _)| manifest.tokenizer.as_str())
            .collect();
        for path in trained {
            // One that can't be read is trained anew where it is asked for.
            let is_used = TextTokenizer::load(&path)
                .is_ok_and(|tokenizer| used.contains(tokenizer.fingerprint().to_hex().as_str()));
            if !is_used {
                let count = pruning.remove_old(&path)?;
                pruning.removed.tokenizers += count;
            }
        }
        Ok(())
    }

    /// The tokenizers that were trained from texts, which are named by a hash.
    fn trained_tokenizers(&self) -> io::Result<Vec<PathBuf>> {
        let Some(folder) = &self.tokenizers else { return Ok(Vec::new()) };
        let Some(entries) = unless_gone(fs::read_dir(folder))? else { return Ok(Vec::new()) };
        let mut trained = Vec::new();
        for entry in entries {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.strip_suffix(".json").is_some_and(is_hash) {
                trained.push(path);
            }
        }
        Ok(trained)
    }

    fn folders_of_tokenizers(&self) -> io::Result<Vec<PathBuf>> {
        if !self.current().is_dir() {
            return Ok(Vec::new());
        }
        let mut folders = Vec::new();
        for entry in fs::read_dir(self.current())? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            }
        }
        Ok(folders)
    }

    fn tokenizer_folders(&self) -> io::Result<Vec<TokenizerFolder>> {
        self.folders_of_tokenizers()?.iter().map(|path| TokenizerFolder::read(path)).collect()
    }

    /// Folders of the layouts before: named by their version, and before that one for each corpus and tokenizer, named by
    /// a hash, or unfinished.
    fn older_folders(&self) -> io::Result<Vec<PathBuf>> {
        if !self.folder.is_dir() {
            return Ok(Vec::new());
        }
        let mut folders = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let is_of_store = is_hash(&name) || name.starts_with(".unfinished-");
            let version = name.strip_prefix('v').and_then(|version| version.parse::<u32>().ok());
            let is_older = version.is_some_and(|version| version < FORMAT_VERSION) && path.is_dir();
            if is_older || is_of_store && path.join("tokens.bin").is_file() {
                folders.push(path);
            }
        }
        Ok(folders)
    }
}

fn is_hash(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// What `prune` removes, or would remove.
struct Pruning {
    unused_for: Duration,
    deletes: bool,
    removed: Removed,
}

impl Pruning {
    /// Whether it is as long ago. A time that is yet to come, as of a clock that was set back, is now.
    fn is_old(&self, used: SystemTime) -> bool {
        used.elapsed().unwrap_or_default() >= self.unused_for
    }

    /// Removes the manifests that are old, and returns which.
    fn remove_manifests(
        &mut self,
        folder: &TokenizerFolder,
    ) -> Result<BTreeSet<PathBuf>, DataError> {
        let mut removed = BTreeSet::new();
        for (path, _, _) in &folder.manifests {
            if self.remove_old(path)? > 0 {
                removed.insert(path.clone());
            }
        }
        self.removed.corpora += removed.len() as u64;
        for entry in &folder.unreadable {
            self.remove_old(&entry.path())?;
        }
        Ok(removed)
    }

    /// Removes the token files that are old and that no manifest names, but for those that were `removed`.
    fn remove_tokens(
        &mut self,
        mut folder: TokenizerFolder,
        removed: &BTreeSet<PathBuf>,
    ) -> Result<(), DataError> {
        if !self.deletes {
            // They are still there.
            folder.manifests.retain(|(path, _, _)| !removed.contains(path));
        }
        for entry in folder.unlisted() {
            let count = self.remove_old(&entry.path())?;
            self.removed.shards += count;
        }
        Ok(())
    }

    /// Removes a file or folder that is old, and returns how many: 0 or 1.
    fn remove_old(&mut self, path: &Path) -> Result<u64, DataError> {
        let modified = fs::metadata(path).and_then(|metadata| metadata.modified());
        match unless_gone(modified).map_err(store_error(path))? {
            Some(modified) if self.is_old(modified) => self.remove(path),
            _ => Ok(0),
        }
    }

    /// Removes a file or folder, and returns how many: 0 where another was faster.
    fn remove(&mut self, path: &Path) -> Result<u64, DataError> {
        let remove = || -> io::Result<Option<u64>> {
            let Some(metadata) = unless_gone(fs::metadata(path))? else { return Ok(None) };
            let bytes = if metadata.is_dir() { size_of(path)? } else { metadata.len() };
            let removed = match self.deletes {
                true if metadata.is_dir() => fs::remove_dir_all(path),
                true => fs::remove_file(path),
                false => Ok(()),
            };
            Ok(unless_gone(removed)?.map(|()| bytes))
        };
        let removed = remove().map_err(store_error(path))?;
        self.removed.bytes += removed.unwrap_or(0);
        Ok(u64::from(removed.is_some()))
    }
}

/// What came of something, unless the file is gone: others may remove and rename files meanwhile.
fn unless_gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}

/// The size of all files in a folder and below it. What was renamed or removed since it was listed counts nothing: others
/// may prepare text meanwhile.
fn size_of(folder: &Path) -> io::Result<u64> {
    let Some(entries) = unless_gone(fs::read_dir(folder))? else { return Ok(0) };
    let mut bytes = 0;
    for entry in entries {
        let entry = entry?;
        bytes += match unless_gone(entry.metadata())? {
            Some(metadata) if metadata.is_dir() => size_of(&entry.path())?,
            Some(metadata) => metadata.len(),
            None => 0,
        };
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_gone_counts_nothing() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("below")).unwrap();
        fs::write(folder.path().join("below/a"), [0; 5]).unwrap();
        fs::write(folder.path().join("b"), [0; 3]).unwrap();
        assert_eq!(size_of(folder.path()).unwrap(), 8);
        assert_eq!(size_of(&folder.path().join("gone")).unwrap(), 0);
        assert!(size_of(&folder.path().join("b")).is_err());
    }

    #[test]
    fn a_corpus_that_is_used_while_others_are_removed_keeps_its_tokens() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let set_age = |name: &str, days: u32| {
            let file = fs::File::options().write(true).open(at(name)).unwrap();
            file.set_modified(SystemTime::now() - days * DAY).unwrap();
        };
        let shard = |name: &str| ShardEntry {
            shard: name.to_owned(),
            tokens: 1,
            documents: 1,
            text_bytes: 1,
            bytes: 1,
        };
        let prepare = |corpus: &str| {
            let manifest = Manifest {
                version: FORMAT_VERSION,
                tokenizer: String::new(),
                vocab_size: 1,
                sources: Vec::new(),
                shards: vec![shard(corpus)],
            };
            let (manifest_name, tokens) = (format!("{corpus}.json"), format!("{corpus}.tokens"));
            fs::write(at(&manifest_name), serde_json::to_vec(&manifest).unwrap()).unwrap();
            fs::write(at(&tokens), "x").unwrap();
            [manifest_name, tokens].iter().for_each(|name| set_age(name, 9));
        };
        let corpora = ["unused", "used-before", "used-after"];
        corpora.iter().for_each(|corpus| prepare(corpus));

        let mut pruning =
            Pruning { unused_for: 5 * DAY, deletes: true, removed: Removed::default() };
        let read = TokenizerFolder::read(folder.path()).unwrap();
        set_age("used-before.json", 0);
        let removed = pruning.remove_manifests(&read).unwrap();
        // Written anew at its use.
        prepare("used-after");
        set_age("used-after.json", 0);
        pruning.remove_tokens(TokenizerFolder::read(folder.path()).unwrap(), &removed).unwrap();
        assert_eq!((pruning.removed.corpora, pruning.removed.shards), (2, 1));
        for corpus in corpora {
            for name in [format!("{corpus}.json"), format!("{corpus}.tokens")] {
                assert_eq!(at(&name).exists(), corpus != "unused", "{name}");
            }
        }
    }

    const DAY: Duration = Duration::from_secs(86_400);
}
