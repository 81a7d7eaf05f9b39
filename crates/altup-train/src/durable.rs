//! Files and folders that are there whole or not at all, whatever ends the process that writes them.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use same_file::Handle;
use tempfile::TempPath;

/// A file in the making, beside the one whose place it takes when it is whole. Nobody else must write that one
/// meanwhile.
pub(crate) struct WholeFile {
    path: PathBuf,
    file: BufWriter<File>,
    /// Removed if it doesn't take its place.
    partial: TempPath,
}

impl WholeFile {
    /// Begins what is to be the file `path`.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let partial = partial(path);
        let file = BufWriter::new(File::create(&partial)?);
        Ok(Self { path: path.to_owned(), file, partial: TempPath::try_from_path(partial)? })
    }

    /// Puts it in its place: a reader finds the old file or the new one, never a part. The new one outlasts a power
    /// cut.
    pub(crate) fn finish(self) -> io::Result<()> {
        self.file.into_inner()?.sync_all()?;
        self.partial.persist(&self.path)?;
        sync_folder(folder_of(&self.path))
    }
}

impl Write for WholeFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Writes `contents` to `path`, see [`WholeFile`].
pub(crate) fn replace_file(path: &Path, contents: &[u8]) -> io::Result<()> {
    let mut file = WholeFile::create(path)?;
    file.write_all(contents)?;
    file.finish()
}

/// What the name of an unfinished tokenizer starts with, and of a folder with unfinished weights.
pub(crate) const UNFINISHED_TOKENIZER: &str = ".tokenizer-";
const UNFINISHED_WEIGHTS: &str = ".partial-";

/// What the names of unfinished views start with.
pub(crate) const UNFINISHED_VIEW: &str = ".view-";

/// A file that is to be [persisted](tempfile::NamedTempFile::persist) as `path` and is made of others: several
/// processes may write it at once, and a power cut may cost it.
pub(crate) fn new_view(path: &Path) -> io::Result<tempfile::NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(UNFINISHED_VIEW);
    #[cfg(unix)] // Else nobody but its owner could read it.
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(folder_of(path))
}

/// Writes `contents` to `path`, see [`new_view`].
pub(crate) fn replace_view(path: &Path, contents: &[u8]) -> io::Result<()> {
    let mut file = new_view(path)?;
    file.write_all(contents)?;
    file.persist(path)?;
    Ok(())
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Makes renames in a folder last.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    #[cfg(unix)] // Windows opens no folder.
    File::open(folder)?.sync_all()?;
    #[cfg(not(unix))]
    let _ = folder;
    Ok(())
}

/// Removes a file, a link or a folder with all that is in it, if it is there.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Gives a file or folder another name, on whatever file system that is. What can't be renamed, as it lies on another
/// one, is copied, and `discard` then removes it; the copy has its name when it is whole.
pub(crate) fn move_whole(
    from: &Path,
    to: &Path,
    discard: impl FnOnce(&Path) -> io::Result<()>,
) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            copy_whole(from, to)?;
            discard(from)
        }
        renamed => renamed,
    }
}

/// Copies a file or folder; the copy has its name when it is whole, and outlasts a power cut.
pub(crate) fn copy_whole(from: &Path, to: &Path) -> io::Result<()> {
    let partial = partial(to);
    remove(&partial)?;
    copy(from, &partial)?;
    fs::rename(&partial, to)?;
    sync_folder(folder_of(to))
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    if !from.is_dir() {
        fs::copy(from, to)?;
        return File::open(to)?.sync_all();
    }
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        copy(&entry.path(), &to.join(entry.file_name()))?;
    }
    sync_folder(to)
}

/// What the name of something in the making ends in.
pub(crate) const PARTIAL: &str = ".partial";

/// The name of what is in the making, beside its own name: a rename is atomic only within a file system.
fn partial(path: &Path) -> PathBuf {
    let mut partial = OsString::from(path);
    partial.push(PARTIAL);
    partial.into()
}

/// Removes what a process that was killed has left of files and folders in the making, in a folder that is all ours.
/// Nothing, where there is no such folder.
pub(crate) fn remove_partial(folder: &Path) -> io::Result<()> {
    const PREFIXES: [&str; 2] = [UNFINISHED_TOKENIZER, UNFINISHED_WEIGHTS];
    remove_named(folder, |name| {
        PREFIXES.iter().any(|prefix| name.starts_with(prefix)) || name.ends_with(PARTIAL)
    })
}

/// Removes what a process that was killed left of views in the making in a folder, if that is there. Nobody else must
/// write any there meanwhile.
pub(crate) fn remove_unfinished_views(folder: &Path) -> io::Result<()> {
    remove_named(folder, |name| name.starts_with(UNFINISHED_VIEW))
}

/// Removes what lies in a folder, if that is there, under such names.
pub(crate) fn remove_named(folder: &Path, is_wanted: impl Fn(&str) -> bool) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if is_wanted(&entry.file_name().to_string_lossy()) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// Whether `path` is the name of the open file.
pub(crate) fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let file = Handle::from_file(file.try_clone()?)?;
    match Handle::from_path(path) {
        Ok(named) => Ok(named == file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder_of_files(path: &Path) {
        fs::create_dir_all(path.join("below")).unwrap();
        fs::write(path.join("a"), "one").unwrap();
        fs::write(path.join("below/b"), "two").unwrap();
    }

    fn assert_whole(path: &Path) {
        assert_eq!(fs::read_to_string(path.join("a")).unwrap(), "one");
        assert_eq!(fs::read_to_string(path.join("below/b")).unwrap(), "two");
    }

    #[test]
    fn a_file_that_is_not_finished_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        replace_file(&path, b"old").unwrap();
        let mut file = WholeFile::create(&path).unwrap();
        file.write_all(b"new").unwrap();
        drop(file);
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        replace_file(&path, b"new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_copy_has_its_name_when_it_is_whole() {
        let parent = tempfile::tempdir().unwrap();
        let at = |name: &str| parent.path().join(name);
        folder_of_files(&at("from"));
        // Left by a process that was killed.
        fs::create_dir(at("to.partial")).unwrap();
        fs::write(at("to.partial/left"), "over").unwrap();
        copy_whole(&at("from"), &at("to")).unwrap();
        assert_whole(&at("to"));
        assert_whole(&at("from"));
        assert!(!at("to/left").exists() && !at("to.partial").exists());

        // What can't be copied stays as it is: here into a file.
        fs::write(at("file"), "").unwrap();
        copy_whole(&at("from"), &at("file/to")).unwrap_err();
        assert_whole(&at("from"));
    }

    /// `/dev/shm` is another file system than that of temporary files on most machines that have it.
    #[cfg(target_os = "linux")]
    #[test]
    #[allow(clippy::print_stderr)] // What is skipped is said.
    fn what_lies_on_another_file_system_is_moved_too() {
        use std::os::unix::fs::MetadataExt;
        let here = tempfile::tempdir().unwrap();
        let Ok(there) = tempfile::tempdir_in("/dev/shm") else {
            eprintln!("not tried: there is no /dev/shm");
            return;
        };
        let device = |folder: &tempfile::TempDir| fs::metadata(folder.path()).unwrap().dev();
        if device(&here) == device(&there) {
            eprintln!("not tried: temporary files lie in /dev/shm");
            return;
        }
        let (from, to) = (here.path().join("from"), there.path().join("to"));
        folder_of_files(&from);
        move_whole(&from, &to, remove).unwrap();
        assert_whole(&to);
        assert!(!from.exists());
        let file = there.path().join("to/a");
        move_whole(&file, &here.path().join("a"), remove).unwrap();
        assert_eq!(fs::read_to_string(here.path().join("a")).unwrap(), "one");
        assert!(!file.exists());
    }
}
