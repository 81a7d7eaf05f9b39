//! What a source file's content is, by its hash.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::claim::NOTE_PATIENCE;
use super::{noted_if_possible, written_if_allowed};
use crate::DataError;
use crate::corpus::{READER_VERSION, Shard, SourceFile};

/// The hashes of source files, remembered by path without links, size and time of modification.
///
/// A file of one JSON object a line, to which processes append under a lock. Of two lines for a path
/// the later counts. A line that can't be read is passed over: what it said is found out again.
#[derive(Debug)]
pub(crate) struct Identities {
    path: PathBuf,
    known: HashMap<PathBuf, (Stamp, blake3::Hash)>,
    hashed: Arc<Hashed>,
    /// Why nothing more is remembered in the file, once that is so.
    not_noted: OnceLock<String>,
    /// How long to wait for another process that is at the file.
    patience: Duration,
}

/// The hashes of files that this process has read, which a store may be unable to remember.
#[derive(Debug, Default)]
pub(crate) struct Hashed(Mutex<HashMap<PathBuf, (Stamp, blake3::Hash)>>);

impl Hashed {
    fn lock(&self) -> MutexGuard<'_, HashMap<PathBuf, (Stamp, blake3::Hash)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, path: &Path) -> Option<(Stamp, blake3::Hash)> {
        self.lock().get(path).copied()
    }
}

/// What changes when a file is written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    size: u64,
    /// Nanoseconds since 1970.
    modified: u64,
}

#[derive(Serialize, Deserialize)]
struct Line {
    path: PathBuf,
    #[serde(flatten)]
    stamp: Stamp,
    blake3: String,
}

/// How often a process looks whether another has let go of the file: soon, as what is written to it is little.
const POLL: Duration = Duration::from_millis(5);

/// A file may be written to again within one tick of the clock that stamps it: the hash of one that
/// has just been written is not remembered.
const SETTLED: Duration = Duration::from_secs(2);

impl Stamp {
    fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs::metadata(path)?;
        let since_1970 = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(Self { size: metadata.len(), modified: since_1970.as_nanos() as u64 })
    }

    fn is_settled(self) -> bool {
        let modified = UNIX_EPOCH + Duration::from_nanos(self.modified);
        SystemTime::now().duration_since(modified).is_ok_and(|age| age > SETTLED)
    }
}

/// The content of a shard, and how to tell that it is still the same.
pub(crate) struct ShardIdentity {
    /// Names the content and how it is read.
    pub(crate) key: blake3::Hash,
    /// Bytes that were read to find it out; what is remembered isn't read.
    pub(crate) bytes_hashed: u64,
    stamps: Vec<(SourceFile, Stamp)>,
}

impl ShardIdentity {
    /// Checks that no file has changed since its content was hashed.
    pub(crate) fn check_unchanged(&self) -> Result<(), DataError> {
        self.stamps.iter().try_for_each(|(file, stamp)| check_unchanged(file, *stamp))
    }
}

fn check_unchanged(file: &SourceFile, stamp: Stamp) -> Result<(), DataError> {
    match Stamp::of(&file.target).map_err(|source| read_error(file, source))? {
        now if now == stamp => Ok(()),
        _ => Err(DataError::ChangedMeanwhile { file: file.path.clone() }),
    }
}

impl Identities {
    /// Reads what is remembered at `path`, if anything; `hashed` has what isn't.
    pub(crate) fn open(path: PathBuf, hashed: Arc<Hashed>) -> io::Result<Self> {
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let lines = text.split(|byte| *byte == b'\n');
        let known = lines
            .filter_map(|line| {
                let Line { path, stamp, blake3 } = serde_json::from_slice(line).ok()?;
                Some((path, (stamp, blake3::Hash::from_hex(blake3).ok()?)))
            })
            .collect();
        Ok(Self { path, known, hashed, not_noted: OnceLock::new(), patience: NOTE_PATIENCE })
    }

    /// The identity of a shard; its files are read where they are new or have changed.
    pub(crate) fn of(&self, shard: &Shard) -> Result<ShardIdentity, DataError> {
        self.read_by(hash, shard)
    }

    fn read_by(
        &self,
        hash: fn(&Path) -> io::Result<blake3::Hash>,
        shard: &Shard,
    ) -> Result<ShardIdentity, DataError> {
        let mut key = blake3::Hasher::new();
        key.update(&READER_VERSION.to_le_bytes());
        let mut stamps = Vec::with_capacity(shard.files.len());
        let (mut lines, mut bytes_hashed) = (Vec::new(), 0);
        for file in &shard.files {
            let path = &file.target;
            let stamp = Stamp::of(path).map_err(|source| read_error(file, source))?;
            let known = self.known.get(path).copied().filter(|(known, _)| *known == stamp);
            let known =
                known.or_else(|| self.hashed.get(path).filter(|(known, _)| *known == stamp));
            let hash = match known {
                Some((_, hash)) => hash,
                None => {
                    // Now, as it may be written to again before it has been read.
                    let is_settled = stamp.is_settled();
                    let hash = hash(path).map_err(|source| read_error(file, source))?;
                    // What was written to meanwhile has another content than it was hashed by.
                    check_unchanged(file, stamp)?;
                    bytes_hashed += stamp.size;
                    if is_settled {
                        self.hashed.lock().insert(path.clone(), (stamp, hash));
                        let line = Line { path: path.clone(), stamp, blake3: hash.to_string() };
                        // A path that JSON can't hold is not written down.
                        if let Ok(json) = serde_json::to_vec(&line) {
                            lines.extend(json);
                            lines.push(b'\n');
                        }
                    }
                    hash
                }
            };
            key.update(file.format.name().as_bytes());
            // Its content is that of a short text, which it isn't read as.
            if let Some(format) = file.cut_short(stamp.size) {
                key.update(format!(" cut short as {format}").as_bytes());
            }
            key.update(hash.as_bytes());
            stamps.push((file.clone(), stamp));
        }
        if !lines.is_empty() && self.not_noted.get().is_none() {
            let appended = match self.append(&lines) {
                // There is no folder, as none could be made.
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                appended => written_if_allowed(appended),
            };
            if let Some(why) = noted_if_possible(&self.path, appended)? {
                self.not_noted.get_or_init(|| why);
            }
        }
        Ok(ShardIdentity { key: key.finalize(), bytes_hashed, stamps })
    }

    /// Why some hashes were not remembered, if that is so.
    pub(crate) fn into_not_noted(self) -> Option<String> {
        self.not_noted.into_inner()
    }

    fn append(&self, lines: &[u8]) -> io::Result<()> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&self.path)?;
        let since = Instant::now();
        while let Err(error) = file.try_lock() {
            match error {
                // It may have been stopped: what it holds is no more than this process can do without.
                TryLockError::WouldBlock if since.elapsed() > self.patience => {
                    return Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        "another process has it locked",
                    ));
                }
                TryLockError::WouldBlock => thread::sleep(POLL),
                TryLockError::Error(error) => return Err(error),
            }
        }
        let mut last = [b'\n'];
        if file.seek(SeekFrom::End(0))? > 0 {
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
        }
        // A process was killed while it wrote.
        if last != *b"\n" {
            file.write_all(b"\n")?;
        }
        file.write_all(lines)
    }

    /// Forgets files that have changed or gone, and what was said of others twice.
    pub(crate) fn compact(&self) -> io::Result<()> {
        let mut lines = Vec::new();
        for (path, (stamp, hash)) in &self.known {
            if Stamp::of(path).is_ok_and(|now| now == *stamp) {
                let line = Line { path: path.clone(), stamp: *stamp, blake3: hash.to_string() };
                serde_json::to_writer(&mut lines, &line)?;
                lines.push(b'\n');
            }
        }
        super::claim::write_whole(&self.path, &lines)
    }
}

fn hash(path: &Path) -> io::Result<blake3::Hash> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path)?)?;
    Ok(hasher.finalize())
}

fn read_error(file: &SourceFile, source: io::Error) -> DataError {
    DataError::Read { file: file.path.clone(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Corpus;
    use tempfile::TempDir;

    struct Setup {
        folder: TempDir,
    }

    impl Setup {
        fn new() -> Self {
            Self { folder: tempfile::tempdir().unwrap() }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        /// Writes a file that was last modified `age` seconds ago.
        fn write(&self, name: &str, text: &str, age: u64) {
            fs::write(self.path(name), text).unwrap();
            let modified = SystemTime::now() - Duration::from_secs(age);
            File::options()
                .write(true)
                .open(self.path(name))
                .unwrap()
                .set_modified(modified)
                .unwrap();
        }

        fn shard(&self, name: &str) -> Shard {
            let corpus = Corpus::open(&[self.path(name).to_string_lossy().into_owned()]).unwrap();
            corpus.shards()[0].clone()
        }

        fn identities(&self) -> Identities {
            Identities::open(self.path("identities"), Arc::default()).unwrap()
        }

        fn key(&self, name: &str) -> blake3::Hash {
            self.identities().of(&self.shard(name)).unwrap().key
        }

        fn remembered(&self) -> usize {
            self.identities().known.len()
        }
    }

    #[test]
    fn a_shard_is_known_by_content_and_format() {
        let setup = Setup::new();
        setup.write("a.txt", "{\"text\": \"one\"}", 100);
        setup.write("b.txt", "{\"text\": \"one\"}", 200);
        setup.write("c.json", "{\"text\": \"one\"}", 100);
        setup.write("d.txt", "{\"text\": \"two\"}", 100);
        let key = setup.key("a.txt");
        assert_eq!(setup.key("b.txt"), key, "at another place and time");
        assert_ne!(setup.key("c.json"), key, "read in another way");
        assert_ne!(setup.key("d.txt"), key, "of the same size");
    }

    #[test]
    fn a_compressed_file_that_was_cut_to_nothing_is_no_empty_text() {
        let setup = Setup::new();
        for (size, text) in ["", "(", "abc"].into_iter().enumerate() {
            let names = ["a.txt", "a.txt.gz", "a.TXT.ZST"];
            names.iter().for_each(|name| setup.write(name, text, 100));
            let keys: std::collections::HashSet<_> = names.map(|name| setup.key(name)).into();
            assert_eq!(keys.len(), 3, "{size}");
        }
    }

    #[test]
    fn a_hash_is_remembered_until_size_or_time_differs() {
        let setup = Setup::new();
        setup.write("a.txt", "one", 100);
        let modified = fs::metadata(setup.path("a.txt")).unwrap().modified().unwrap();
        let one = setup.key("a.txt");
        assert_eq!(setup.remembered(), 1);
        // As only a wrong clock makes it: what is remembered is believed.
        fs::write(setup.path("a.txt"), "two").unwrap();
        let file = File::options().write(true).open(setup.path("a.txt")).unwrap();
        file.set_modified(modified).unwrap();
        assert_eq!(setup.key("a.txt"), one);
        file.set_modified(modified + Duration::from_secs(1)).unwrap();
        assert_ne!(setup.key("a.txt"), one);
    }

    #[test]
    fn a_file_that_was_just_written_is_hashed_again() {
        let setup = Setup::new();
        setup.write("a.txt", "one", 0);
        setup.key("a.txt");
        assert_eq!(setup.remembered(), 0);
    }

    #[test]
    fn a_file_that_settles_while_it_is_hashed_is_hashed_again() {
        let setup = Setup::new();
        setup.write("a.txt", "one", 0);
        let slow = |path: &Path| {
            thread::sleep(SETTLED + Duration::from_millis(100));
            hash(path)
        };
        let identities = setup.identities();
        identities.read_by(slow, &setup.shard("a.txt")).unwrap();
        assert_eq!((setup.remembered(), identities.hashed.lock().len()), (0, 0));
    }

    #[test]
    fn a_process_that_is_stopped_holds_up_no_other() {
        let setup = Setup::new();
        ["a.txt", "b.txt", "c.txt"].iter().for_each(|name| setup.write(name, name, 100));
        setup.key("a.txt");
        let stopped = File::open(setup.path("identities")).unwrap();
        stopped.lock().unwrap();
        let identities = Identities { patience: Duration::from_millis(100), ..setup.identities() };
        let started = Instant::now();
        identities.of(&setup.shard("b.txt")).unwrap();
        // It is waited for once.
        let identities = Identities { patience: Duration::from_secs(3600), ..identities };
        identities.of(&setup.shard("c.txt")).unwrap();
        assert!(started.elapsed() < Duration::from_secs(60));
        assert_eq!(identities.hashed.lock().len(), 2);
        let why = identities.into_not_noted().unwrap();
        assert!(why.ends_with("identities: another process has it locked"), "{why}");

        stopped.unlock().unwrap();
        assert_eq!(setup.remembered(), 1);
        setup.key("b.txt");
        assert_eq!(setup.remembered(), 2);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_only_keeps_hashes_from_being_remembered() {
        let setup = Setup::new();
        setup.write("a.txt", "one", 100);
        let identities = setup.identities();
        std::os::unix::fs::symlink("/dev/full", setup.path("identities")).unwrap();
        let key = identities.of(&setup.shard("a.txt")).unwrap().key;
        let why = identities.into_not_noted().unwrap();
        assert!(why.contains("No space left on device"), "{why}");
        fs::remove_file(setup.path("identities")).unwrap();
        assert_eq!(setup.key("a.txt"), key);
    }

    #[test]
    fn a_torn_line_spoils_no_other() {
        let setup = Setup::new();
        for name in ["a.txt", "b.txt", "c.txt"] {
            setup.write(name, name, 100);
        }
        setup.key("a.txt");
        let mut file = OpenOptions::new().append(true).open(setup.path("identities")).unwrap();
        file.write_all(b"{\"path\":\"/b").unwrap();
        setup.key("b.txt");
        setup.key("c.txt");
        assert_eq!(setup.remembered(), 3);
    }

    #[test]
    fn compacting_forgets_what_is_gone() {
        let setup = Setup::new();
        setup.write("a.txt", "one", 100);
        setup.write("b.txt", "two", 100);
        setup.key("a.txt");
        setup.key("b.txt");
        fs::remove_file(setup.path("b.txt")).unwrap();
        setup.identities().compact().unwrap();
        assert_eq!(setup.remembered(), 1);
    }

    #[test]
    fn a_change_behind_the_hash_is_noticed() {
        let setup = Setup::new();
        setup.write("a.txt", "one", 100);
        let identity = setup.identities().of(&setup.shard("a.txt")).unwrap();
        identity.check_unchanged().unwrap();
        setup.write("a.txt", "three", 50);
        let error = identity.check_unchanged().unwrap_err();
        assert!(matches!(error, DataError::ChangedMeanwhile { .. }), "{error}");
    }

    #[test]
    fn a_change_while_it_is_hashed_is_noticed_and_nothing_is_remembered() {
        let setup = Setup::new();
        setup.write("a.txt", "one", 100);
        let changed_meanwhile = |path: &Path| {
            let found = hash(path)?;
            OpenOptions::new().append(true).open(path)?.write_all(b" more")?;
            Ok(found)
        };
        let identities = setup.identities();
        let identity = identities.read_by(changed_meanwhile, &setup.shard("a.txt"));
        let Err(error) = identity else { panic!("it has changed") };
        assert!(matches!(error, DataError::ChangedMeanwhile { .. }), "{error}");
        assert_eq!((setup.remembered(), identities.hashed.lock().len()), (0, 0));
    }

    #[test]
    fn what_can_not_be_written_down_is_hashed_once_by_a_process() {
        let setup = Setup::new();
        setup.write("a.txt", "one", 100);
        let nowhere = setup.path("no/folder/identities");
        let hashed = Arc::default();
        let first = Identities::open(nowhere.clone(), Arc::clone(&hashed)).unwrap();
        let key = first.of(&setup.shard("a.txt")).unwrap().key;
        let again = Identities::open(nowhere, hashed).unwrap();
        let not_read = |path: &Path| Err(io::Error::other(path.display().to_string()));
        assert_eq!(again.read_by(not_read, &setup.shard("a.txt")).unwrap().key, key);
    }
}
