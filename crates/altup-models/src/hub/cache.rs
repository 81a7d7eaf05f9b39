//! The folders of a model in the cache, as Python's `huggingface_hub` lays them out:
//!
//! ```text
//! models--google--flan-t5-small/
//!   refs/main                 the commit that the branch was at
//!   snapshots/COMMIT/         the files of a commit, links into blobs
//!   blobs/ETAG                their contents
//! .locks/models--google--flan-t5-small/ETAG.lock
//! ```

use hf_hub::{Cache, CacheRepo, Repo, RepoType};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::{HubError, HubName};

/// A model's part of the cache.
pub(super) struct CachedModel {
    root: PathBuf,
    repo: Repo,
    paths: CacheRepo,
}

impl CachedModel {
    pub(super) fn new(cache: &Path, name: &HubName) -> Self {
        let (repository, revision) = (name.repository().to_owned(), name.revision().to_owned());
        let repo = Repo::with_revision(repository, RepoType::Model, revision);
        let paths = Cache::new(cache.to_owned()).repo(repo.clone());
        Self { root: cache.to_owned(), repo, paths }
    }

    /// The commit that the revision was at when it was last asked for; a commit is its own.
    pub(super) fn commit(&self) -> Option<String> {
        let revision = self.repo.revision();
        let reference = self.root.join(self.repo.folder_name()).join("refs").join(revision);
        let commit = fs::read_to_string(reference).map(|commit| commit.trim().to_owned());
        commit.ok().filter(|commit| is_commit(commit)).or_else(|| {
            let is_there = is_commit(revision) && self.snapshot(revision).is_dir();
            is_there.then(|| revision.to_owned())
        })
    }

    /// Remembers the commit that the revision is at.
    pub(super) fn set_commit(&self, commit: &str) -> Result<(), HubError> {
        if self.repo.revision() == commit || self.commit().as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.root.join(self.repo.folder_name()).join("refs");
        self.paths.create_ref(commit).map_err(|source| HubError::Cache { path, source })
    }

    /// The folder of a commit's files.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.paths.pointer_path(commit)
    }

    /// Where contents lie.
    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.paths.blob_path(etag)
    }

    /// Keeps other programs from downloading the same contents, Python's among them, until the lock is dropped.
    pub(super) fn lock(&self, etag: &str) -> Result<File, HubError> {
        let folder = self.root.join(".locks").join(self.repo.folder_name());
        let path = folder.join(format!("{etag}.lock"));
        let locked = fs::create_dir_all(&folder)
            .and_then(|()| File::create(&path))
            .and_then(|file| file.lock().map(|()| file));
        locked.map_err(|source| HubError::Cache { path, source })
    }
}

/// Puts contents of the cache under a file's name into a snapshot, in place of what has the name. The name is there all
/// the while. Whoever calls this holds the lock of the contents.
pub(super) fn link(blob: &Path, pointer: &Path) -> Result<(), HubError> {
    let error = |source| HubError::Cache { path: pointer.to_owned(), source };
    if let Some(folder) = pointer.parent() {
        fs::create_dir_all(folder).map_err(error)?;
    }
    let name = pointer.file_name().unwrap_or_default().to_string_lossy();
    let partial = pointer.with_file_name(format!(".{name}.link"));
    // One may be left of a program that ended here.
    match fs::remove_file(&partial) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(error(source)),
        _ => {}
    }
    // A link from snapshots/COMMIT, relative, so that the cache may be moved.
    #[cfg(unix)]
    let linked = {
        let name = blob.file_name().unwrap_or_default();
        std::os::unix::fs::symlink(Path::new("../../blobs").join(name), &partial)
    };
    #[cfg(not(unix))]
    let linked = fs::hard_link(blob, &partial);
    linked.and_then(|()| fs::rename(&partial, pointer)).map_err(error)
}

/// Whether this is the name of a commit, and so safe as that of a folder.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn a_file_that_is_linked_again_is_there_all_the_while() {
        let cache = tempfile::tempdir().unwrap();
        let (blob, folder) = (cache.path().join("blobs/etag"), cache.path().join("snapshots/0"));
        fs::create_dir_all(cache.path().join("blobs")).unwrap();
        fs::create_dir_all(&folder).unwrap();
        fs::write(&blob, "contents").unwrap();
        let pointer = folder.join("config.json");
        // What a program left that ended in between.
        fs::write(folder.join(".config.json.link"), "").unwrap();
        link(&blob, &pointer).unwrap();
        thread::scope(|scope| {
            let links = scope.spawn(|| (0..2000).for_each(|_| link(&blob, &pointer).unwrap()));
            while !links.is_finished() {
                assert_eq!(fs::read_to_string(&pointer).unwrap(), "contents");
            }
        });
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    }
}
