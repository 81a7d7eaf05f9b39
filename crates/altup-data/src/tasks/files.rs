//! Where the files of a task lie.

use std::path::{Path, PathBuf};

use super::TaskError;

/// The files of a task, by split.
#[derive(Clone, Debug)]
pub struct TaskFiles {
    /// Folders in which the files may lie, relative to the data folder and tried in this order; the data folder itself
    /// is tried first.
    pub folders: Vec<String>,
    /// The splits, training first.
    pub splits: Vec<Split>,
}

/// A split of a task.
#[derive(Clone, Debug)]
pub struct Split {
    /// Its name, such as `train` or `validation`. Only in a split called `test…` may labels be missing.
    pub name: String,
    /// Sets of files that can hold it, tried in this order. A set is one file, or the files that belong together line by
    /// line.
    pub files: Vec<Vec<String>>,
}

impl Split {
    /// A split in one of several files.
    pub fn new(name: &str, files: &[&str]) -> Self {
        let files = files.iter().map(|file| vec![String::from(*file)]).collect();
        Self { name: name.to_owned(), files }
    }
}

/// Whether labels may be missing in a split of this name.
pub(super) fn may_lack_labels(split: &str) -> bool {
    split.starts_with("test")
}

impl TaskFiles {
    /// Folders and splits by name.
    pub fn new(folders: &[&str], splits: Vec<Split>) -> Self {
        Self { folders: folders.iter().map(|folder| String::from(*folder)).collect(), splits }
    }

    /// The files of a task of SuperGLUE, whose folder has this name.
    pub(super) fn super_glue(folder: &str) -> Self {
        let splits =
            [("train", "train.jsonl"), ("validation", "val.jsonl"), ("test", "test.jsonl")];
        let splits = splits.map(|(name, file)| Split::new(name, &[file])).to_vec();
        Self::new(&[folder, &format!("superglue/{folder}")], splits)
    }

    /// The files of `split` in the data folder, which is the task's own folder or one that holds it.
    ///
    /// # Errors
    ///
    /// If the task has no such split, or no file of it is there.
    pub fn locate(&self, task: &str, data: &Path, split: &str) -> Result<Vec<PathBuf>, TaskError> {
        let Some(found) = self.splits.iter().find(|candidate| candidate.name == split) else {
            let known = self.splits.iter().map(|split| &*split.name).collect::<Vec<_>>().join(", ");
            let (task, split) = (task.to_owned(), split.to_owned());
            return Err(TaskError::UnknownSplit { task, split, known });
        };
        let here = String::new();
        let mut expected = Vec::new();
        for folder in [&here].into_iter().chain(&self.folders) {
            for set in &found.files {
                let relative = set.iter().map(|file| Path::new(folder).join(file));
                let paths: Vec<PathBuf> = relative.clone().map(|file| data.join(file)).collect();
                if paths.iter().all(|path| path.is_file()) {
                    return Ok(paths);
                }
                let names: Vec<String> = relative.map(|file| file.display().to_string()).collect();
                expected.push(names.join(" with "));
            }
        }
        Err(TaskError::NoFile {
            task: task.to_owned(),
            split: split.to_owned(),
            folder: data.to_owned(),
            expected: expected.join(", ").into(),
            held: held(data)?.into(),
        })
    }
}

/// What a folder holds, in a few words.
fn held(folder: &Path) -> Result<String, TaskError> {
    const SHOWN: usize = 8;
    let read = |source| TaskError::Read { file: folder.to_owned(), source };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(read)? {
        names.push(entry.map_err(read)?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    let more = names.len().saturating_sub(SHOWN);
    names.truncate(SHOWN);
    Ok(match (names.is_empty(), more) {
        (true, _) => "nothing".to_owned(),
        (false, 0) => names.join(", "),
        (false, more) => format!("{} and {more} more", names.join(", ")),
    })
}
