//! From the shards of a corpus to its token files, on several threads and beside other processes.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use rayon::ThreadPool;
use rayon::iter::{IntoParallelRefIterator, ParallelIterator};

use super::claim::{Claim, PATIENCE, remove_left_overs};
use super::identity::{Identities, ShardIdentity};
use super::token_file::{TokenFile, TokenFileWriter};
use super::{TOKENS_EXTENSION, TokenStore, store_error, written_if_allowed};
use crate::corpus::{OnError, Shard};
use crate::error::panic_message;
use crate::token_row::{Origin, ShardSource, TokenRow};
use crate::{Corpus, DataError, TextTokenizer};

/// Text handed to the tokenizer at once: enough for several threads to share, and little enough for
/// as many chunks as there are threads.
const CHUNK_BYTES: usize = 512 << 10;

/// How often progress is told.
const TICK: Duration = Duration::from_millis(100);

/// How a corpus is prepared.
#[derive(Debug, Clone, Copy)]
pub struct PrepareOptions {
    /// What to do about lines, rows and ends of files that can't be read.
    pub on_error: OnError,
    /// Threads that tokenise.
    pub workers: usize,
    /// Whether what is found prepared is read and compared with its hash. What is damaged is made anew.
    pub verify: bool,
    /// How long to wait for another process that is on a shard and writes nothing.
    pub patience: Duration,
}

impl Default for PrepareOptions {
    /// Stops at an error; as many threads as Rayon has; half an hour.
    fn default() -> Self {
        let workers = rayon::current_num_threads();
        Self { on_error: OnError::Stop, workers, verify: false, patience: PATIENCE }
    }
}

/// How far preparation has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PrepareProgress {
    /// Shards done.
    pub shards_done: u64,
    /// All shards.
    pub shards: u64,
    /// Bytes of source files done, as they lie on the disk.
    pub bytes_done: u64,
    /// Of these, bytes of shards that were found done.
    pub bytes_found: u64,
    /// Bytes of all source files.
    pub bytes: u64,
    /// Bytes of source files whose content was not remembered, and which were read to tell it by its hash.
    pub bytes_hashed: u64,
}

impl TokenStore {
    /// The tokens of a corpus: those of shards that are in the store, and of the others made anew.
    ///
    /// `progress` is called from time to time while this goes on, and at the end.
    ///
    /// # Errors
    ///
    /// Names the file that can't be read, and its line where it has lines. Shards that were
    /// finished before stay in the store.
    pub fn prepare(
        &self,
        corpus: &Corpus,
        tokenizer: &TextTokenizer,
        options: PrepareOptions,
        progress: &mut dyn FnMut(PrepareProgress),
    ) -> Result<TokenRow, DataError> {
        let folder = self.tokenizer_folder(tokenizer);
        fs::create_dir_all(&folder).map_err(|source| {
            let lacks = "any tokens that this tokenizer made".to_owned();
            DataError::not_written(&self.folder, lacks, source)
        })?;
        let removed = remove_left_overs(&folder).map(|_| ());
        written_if_allowed(removed).map_err(store_error(&folder))?;
        let identities = self.identities()?;

        let shards = corpus.shards();
        let work = Work {
            store: self,
            folder,
            shards,
            tokenizer,
            options: PrepareOptions { workers: options.workers.max(1), ..options },
            identities,
            next: AtomicUsize::new(0),
            deferred: Mutex::default(),
            results: Mutex::new(shards.iter().map(|_| None).collect()),
            failure: Mutex::new(None),
            failed: AtomicBool::new(false),
            busy: AtomicUsize::new(0),
            pool: OnceLock::new(),
            bytes_done: AtomicU64::new(0),
            bytes_found: AtomicU64::new(0),
            bytes_hashed: AtomicU64::new(0),
            shards_done: AtomicU64::new(0),
        };
        work.run(progress)?;
        if let Some(error) = lock(&work.failure).take() {
            return Err(error);
        }
        let results = std::mem::take(&mut *lock(&work.results));
        let done: Vec<Done> = results.into_iter().flatten().collect();

        let skipped = done.iter().zip(shards).flat_map(|(done, shard)| done.file.skipped(shard));
        let mut fingerprint = blake3::Hasher::new();
        fingerprint.update(tokenizer.fingerprint().as_bytes());
        for shard in &done {
            fingerprint.update(shard.key.as_bytes());
        }
        fingerprint.update(format!("{:?}", corpus.selection()).as_bytes());
        let sources = shards.iter().zip(&done);
        let not_noted = self.record(corpus, tokenizer, &done)?;
        let origin = Origin {
            fingerprint: fingerprint.finalize(),
            sources: sources.map(|(shard, done)| ShardSource::new(shard, done.key)).collect(),
            made: done.iter().filter(|done| done.made).count() as u64,
            skipped: skipped.collect(),
            not_noted: work.identities.into_not_noted().or(not_noted),
        };
        let files = done.into_iter().map(|done| done.file).collect();
        let row = TokenRow::new(files, corpus.selection(), origin)?;
        if row.is_empty() { Err(corpus.without_text()) } else { Ok(row) }
    }

    /// What the shards of a corpus are made of, without tokenising them. Files are read where they
    /// are new to the store or have changed.
    ///
    /// `progress` is called from time to time while this goes on, and at the end. What is remembered counts as found.
    ///
    /// # Errors
    ///
    /// Names the file that can't be read.
    pub fn identify(
        &self,
        corpus: &Corpus,
        progress: &mut dyn FnMut(PrepareProgress),
    ) -> Result<Vec<ShardSource>, DataError> {
        written_if_allowed(fs::create_dir_all(self.current()))
            .map_err(store_error(&self.current()))?;
        let identities = self.identities()?;
        let shards = corpus.shards();
        let so_far = Mutex::new(PrepareProgress {
            shards: shards.len() as u64,
            bytes: corpus.bytes(),
            ..PrepareProgress::default()
        });
        let identify = |shard: &Shard| {
            let identity = identities.of(shard)?;
            let mut so_far = lock(&so_far);
            so_far.shards_done += 1;
            so_far.bytes_done += shard.bytes();
            so_far.bytes_found += shard.bytes().saturating_sub(identity.bytes_hashed);
            so_far.bytes_hashed += identity.bytes_hashed;
            Ok(ShardSource::new(shard, identity.key))
        };
        let found = thread::scope(|scope| {
            let (running, ended) = channel::<()>();
            let found = scope.spawn(move || {
                let _running = running;
                shards.par_iter().map(identify).collect()
            });
            while ended.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
                progress(*lock(&so_far));
            }
            found.join().unwrap_or_else(|payload| panic::resume_unwind(payload))
        });
        progress(*lock(&so_far));
        found
    }
}

/// A shard whose tokens are at hand.
pub(super) struct Done {
    pub(super) key: blake3::Hash,
    pub(super) file: Arc<TokenFile>,
    made: bool,
}

/// What the threads share.
struct Work<'a> {
    store: &'a TokenStore,
    /// The tokenizer's folder in it.
    folder: PathBuf,
    shards: &'a [Shard],
    tokenizer: &'a TextTokenizer,
    options: PrepareOptions,
    identities: Identities,
    /// The next shard that no thread has looked at.
    next: AtomicUsize,
    /// Shards that another process or thread was on, to be looked at again.
    deferred: Mutex<VecDeque<(usize, ShardIdentity)>>,
    results: Mutex<Vec<Option<Done>>>,
    failure: Mutex<Option<DataError>>,
    failed: AtomicBool,
    /// Threads that are tokenising.
    busy: AtomicUsize,
    /// More threads for those that are left when others have nothing to do.
    pool: OnceLock<Option<ThreadPool>>,
    bytes_done: AtomicU64,
    bytes_found: AtomicU64,
    bytes_hashed: AtomicU64,
    shards_done: AtomicU64,
}

/// A value that a panic elsewhere leaves whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Work<'_> {
    /// Runs the threads to the end, and tells of their progress on this one.
    fn run(&self, progress: &mut dyn FnMut(PrepareProgress)) -> Result<(), DataError> {
        let workers = self.options.workers.min(self.shards.len());
        let reading: Vec<Arc<AtomicU64>> = (0..workers).map(|_| Arc::default()).collect();
        let so_far = || PrepareProgress {
            shards_done: self.shards_done.load(Ordering::Relaxed),
            shards: self.shards.len() as u64,
            bytes_done: self.bytes_done.load(Ordering::Relaxed)
                + reading.iter().map(|bytes| bytes.load(Ordering::Relaxed)).sum::<u64>(),
            bytes_found: self.bytes_found.load(Ordering::Relaxed),
            bytes: self.shards.iter().map(Shard::bytes).sum(),
            bytes_hashed: self.bytes_hashed.load(Ordering::Relaxed),
        };
        thread::scope(|scope| {
            // Closed when the last thread has ended, in whatever way.
            let (running, ended) = channel::<()>();
            for (number, reading) in reading.iter().enumerate() {
                let running = running.clone();
                let spawned = thread::Builder::new()
                    .name(format!("tokenise-{number}"))
                    .spawn_scoped(scope, move || {
                        let _running = running;
                        self.work(reading);
                    });
                if let Err(source) = spawned {
                    self.fail(DataError::StartWorker { source });
                    break;
                }
            }
            drop(running);
            while ended.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
                progress(so_far());
            }
        });
        progress(so_far());
        Ok(())
    }

    fn fail(&self, error: DataError) {
        self.failed.store(true, Ordering::Relaxed);
        lock(&self.failure).get_or_insert(error);
    }

    fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// Takes shards until there are none: first those that nobody is on, then those that others
    /// were on.
    fn work(&self, reading: &Arc<AtomicU64>) {
        while !self.has_failed() {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let (number, deferred) = match number < self.shards.len() {
                true => (number, None),
                false => match lock(&self.deferred).pop_front() {
                    Some((number, identity)) => (number, Some(identity)),
                    None => return,
                },
            };
            // Caught here, as a thread that has ended says nothing until all others have.
            let done = panic::catch_unwind(AssertUnwindSafe(|| {
                let waits = deferred.is_some();
                let identity = match deferred {
                    Some(identity) => identity,
                    None => {
                        let identity = self.identities.of(&self.shards[number])?;
                        self.bytes_hashed.fetch_add(identity.bytes_hashed, Ordering::Relaxed);
                        identity
                    }
                };
                self.shard(number, identity, waits, reading)
            }));
            let done = done.unwrap_or_else(|payload| {
                let (file, message) = (self.shards[number].name(), panic_message(&*payload));
                Err(DataError::ShardPanicked { file, message })
            });
            if let Err(error) = done {
                self.fail(error);
            }
        }
    }

    /// Finds or makes the tokens of a shard. One that another is on is put aside, or waited for.
    fn shard(
        &self,
        number: usize,
        identity: ShardIdentity,
        waits: bool,
        reading: &Arc<AtomicU64>,
    ) -> Result<(), DataError> {
        let shard = &self.shards[number];
        let name = format!("{}.{TOKENS_EXTENSION}", identity.key);
        let path = self.folder.join(name);
        let found =
            || self.store.open_tokens(&path, identity.key, self.tokenizer, self.options.verify);
        let (mut file, mut made) = (found()?, false);
        if file.is_none() {
            let claim = match waits {
                true => Claim::wait(&path, self.options.patience, || self.has_failed()),
                false => Claim::attempt(&path),
            };
            let lacking = |source| {
                let lacks = format!("the tokens of {}", shard.name());
                DataError::not_written(&self.store.folder, lacks, source)
            };
            let Some(claim) = claim.map_err(lacking)? else {
                lock(&self.deferred).push_back((number, identity));
                return Ok(());
            };
            // Another may have made it before the claim was had.
            file = found()?;
            if file.is_none() {
                self.tokenise(shard, &identity, claim, reading)?;
                if self.has_failed() {
                    return Ok(());
                }
                (file, made) = (found()?, true);
            }
        }
        let file = file.ok_or_else(|| DataError::DamagedTokens { path: path.clone() })?;
        if self.options.on_error == OnError::Stop
            && let Some(skipped) = file.skipped(shard).next()
            && let Some(defect) = skipped.first.into_iter().next()
        {
            return Err(defect.into());
        }

        reading.store(0, Ordering::Relaxed);
        self.bytes_done.fetch_add(shard.bytes(), Ordering::Relaxed);
        if !made {
            self.bytes_found.fetch_add(shard.bytes(), Ordering::Relaxed);
        }
        self.shards_done.fetch_add(1, Ordering::Relaxed);
        lock(&self.results)[number] = Some(Done { key: identity.key, file, made });
        Ok(())
    }

    fn tokenise(
        &self,
        shard: &Shard,
        identity: &ShardIdentity,
        claim: Claim,
        reading: &Arc<AtomicU64>,
    ) -> Result<(), DataError> {
        let _busy = Busy::new(&self.busy);
        let error = |source| DataError::Store { path: self.folder.clone(), source };
        let mut writer = TokenFileWriter::new(claim, &self.folder, identity.key, self.tokenizer)
            .map_err(error)?;
        let mut chunk = Chunk::default();
        let mut documents = shard.documents(Arc::clone(reading));
        while let Some(document) = documents.next() {
            match document {
                Ok(document) => chunk.push(document.index, document.text),
                Err(DataError::Defect(defect)) if self.options.on_error == OnError::Skip => {
                    writer.skip(documents.file(), defect);
                }
                Err(error) => return Err(error),
            }
            if chunk.bytes >= CHUNK_BYTES {
                self.append(shard, &mut chunk, &mut writer)?;
            }
            if self.has_failed() {
                return Ok(()); // The claim is dropped, and with it what is unfinished.
            }
        }
        self.append(shard, &mut chunk, &mut writer)?;
        identity.check_unchanged()?;
        writer.finish().map_err(error)
    }

    fn append(
        &self,
        shard: &Shard,
        chunk: &mut Chunk,
        writer: &mut TokenFileWriter,
    ) -> Result<(), DataError> {
        let encoded = match self.idle_threads() {
            Some(pool) => pool.install(|| self.tokenizer.encode_batch(&chunk.texts)),
            None => {
                let encode = |text: &String| self.tokenizer.encode(text);
                chunk.texts.iter().map(encode).collect()
            }
        };
        let encoded: Vec<Vec<u32>> = encoded.map_err(|error| match error {
            DataError::Tokenize { source } => {
                DataError::TokenizeShard { file: shard.name(), source }
            }
            error => error,
        })?;
        chunk
            .write(&encoded, writer)
            .map_err(|source| DataError::Store { path: self.folder.clone(), source })
    }

    /// Threads to share a chunk with, where fewer shards are left than threads.
    fn idle_threads(&self) -> Option<&ThreadPool> {
        let workers = self.options.workers;
        if self.busy.load(Ordering::Relaxed) >= workers {
            return None;
        }
        // Without them it goes on, on one thread.
        let build = || rayon::ThreadPoolBuilder::new().num_threads(workers).build().ok();
        self.pool.get_or_init(build).as_ref()
    }
}

/// Counts a thread as busy while it lives.
struct Busy<'a>(&'a AtomicUsize);

impl<'a> Busy<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Text that is tokenised together.
#[derive(Default)]
struct Chunk {
    texts: Vec<String>,
    /// For each text, whether a document starts with it.
    starts: Vec<bool>,
    bytes: usize,
    last_document: Option<u64>,
}

impl Chunk {
    fn push(&mut self, document: u64, text: String) {
        self.starts.push(self.last_document.replace(document) != Some(document));
        self.bytes += text.len();
        self.texts.push(text);
    }

    /// Writes the ids of the texts, and becomes empty.
    fn write(&mut self, encoded: &[Vec<u32>], writer: &mut TokenFileWriter) -> io::Result<()> {
        for ((text, ids), starts) in self.texts.iter().zip(encoded).zip(&self.starts) {
            if *starts {
                writer.start_document()?;
            }
            writer.append(text, ids)?;
        }
        self.texts.clear();
        self.starts.clear();
        self.bytes = 0;
        Ok(())
    }
}
