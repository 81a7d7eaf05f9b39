//! Which files a corpus is made of, in what order, and how each is read.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{self, Path, PathBuf};

use walkdir::{DirEntry, WalkDir};

use crate::DataError;

/// A file with text in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SourceFile {
    /// As it was found, made absolute, its links as they are: what it is sorted and called by. A download cache is made
    /// of links, whose names say what order files have; the files behind them have the names of hashes.
    pub(crate) path: PathBuf,
    /// The same without links, so that a file is recognised however it was found: what is read.
    pub(crate) target: PathBuf,
    pub(crate) format: Format,
    /// In bytes, as it lies on the disk.
    pub(crate) size: u64,
}

/// What a file's name says of its contents. How they are compressed, they say themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Text,
    Json,
    Parquet,
    /// The whole file is one document, and a file that is not UTF-8 is none: crate sources.
    Whole,
}

const EXTENSIONS: [(&str, Format); 10] = [
    (".txt", Format::Text),
    (".txt.gz", Format::Text),
    (".txt.zst", Format::Text),
    (".json", Format::Json),
    (".json.gz", Format::Json),
    (".json.zst", Format::Json),
    (".jsonl", Format::Json),
    (".jsonl.gz", Format::Json),
    (".jsonl.zst", Format::Json),
    (".parquet", Format::Parquet),
];

impl Format {
    fn of(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_string_lossy().to_ascii_lowercase();
        let (_, format) = EXTENSIONS.iter().find(|(extension, _)| name.ends_with(extension))?;
        Some(*format)
    }

    fn accepted() -> String {
        EXTENSIONS.map(|(extension, _)| extension).join(", ")
    }

    /// A name that stays the same from release to release.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
            Self::Parquet => "parquet",
            Self::Whole => "whole",
        }
    }
}

/// The data files behind `sources`, sorted by their paths. Of several names of one file, as links give it, the first
/// counts.
pub(crate) fn find_all(sources: &[String]) -> Result<Vec<SourceFile>, DataError> {
    let mut files = Vec::new();
    for source in sources {
        find(source, &mut files)?;
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let mut found = HashSet::new();
    files.retain(|file| found.insert(file.target.clone()));
    Ok(files)
}

/// Adds the data files behind a file's name, a folder's or a glob.
fn find(source: &str, files: &mut Vec<SourceFile>) -> Result<(), DataError> {
    let path = Path::new(source);
    if path.is_file() {
        let format = Format::of(path).ok_or_else(|| DataError::UnsupportedExtension {
            file: path.to_owned(),
            accepted: Format::accepted(),
        })?;
        files.push(source_file(path, format)?);
        return Ok(());
    }
    let before = files.len();
    if path.is_dir() {
        find_below(path, files)?;
        if files.len() == before {
            return Err(DataError::NoReadableFiles {
                folder: path.to_owned(),
                accepted: Format::accepted(),
            });
        }
        return Ok(());
    }

    let matches = glob::glob(source)
        .map_err(|error| DataError::BadPattern { pattern: source.to_owned(), source: error })?;
    for found in matches {
        let found = found.map_err(|error| DataError::Read {
            file: error.path().to_owned(),
            source: error.into(),
        })?;
        if found.is_dir() {
            find_below(&found, files)?;
        } else if let Some(format) = Format::of(&found) {
            files.push(source_file(&found, format)?);
        }
    }
    if files.len() == before {
        return Err(DataError::NoMatch { pattern: source.to_owned() });
    }
    Ok(())
}

fn find_below(folder: &Path, files: &mut Vec<SourceFile>) -> Result<(), DataError> {
    walk(folder, &mut |path| {
        if let Some(format) = Format::of(path) {
            files.push(source_file(path, format)?);
        }
        Ok(())
    })
}

/// Calls `visit` with every file below `folder`, hidden ones and those in hidden folders aside.
/// Links are followed, as download caches are made of them; one that leads back to a folder above
/// itself is passed over.
fn walk(
    folder: &Path,
    visit: &mut dyn FnMut(&Path) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let is_hidden = |entry: &DirEntry| {
        entry.depth() > 0 && entry.file_name().as_encoded_bytes().starts_with(b".")
    };
    let entries = WalkDir::new(folder).follow_links(true).into_iter();
    for entry in entries.filter_entry(|entry| !is_hidden(entry)) {
        match entry {
            Ok(entry) if entry.file_type().is_file() => visit(entry.path())?,
            Ok(_) => {}
            Err(error) if error.loop_ancestor().is_some() || is_dangling(&error) => {}
            Err(error) => {
                let file = error.path().unwrap_or(folder).to_owned();
                return Err(DataError::Read { file, source: error.into() });
            }
        }
    }
    Ok(())
}

/// Whether what can't be read is a link to nothing.
fn is_dangling(error: &walkdir::Error) -> bool {
    error.path().is_some_and(|path| path.is_symlink() && !path.exists())
}

fn source_file(path: &Path, format: Format) -> Result<SourceFile, DataError> {
    let source_file = || {
        let target = fs::canonicalize(path)?;
        let size = fs::metadata(&target)?.len();
        Ok(SourceFile { path: path::absolute(path)?, target, format, size })
    };
    source_file().map_err(|source: io::Error| DataError::Read { file: path.to_owned(), source })
}

/// Sizes of the source files taken into the built-in corpus: shorter ones are mostly `mod` lines
/// and licence headers, longer ones mostly generated tables.
const CRATE_FILE_BYTES: std::ops::RangeInclusive<u64> = 1 << 10..=256 << 10;

/// Source files of crates below `folder`, up to `max_bytes` in all.
///
/// They come in the order of the hashes of their paths, which does not depend on the machine and
/// mixes all crates from the start.
pub(crate) fn crate_sources(folder: &Path, max_bytes: u64) -> Result<Vec<SourceFile>, DataError> {
    let mut found = Vec::new();
    if folder.is_dir() {
        walk(folder, &mut |path| {
            if !path.extension().is_some_and(|name| name == "rs" || name == "md") {
                return Ok(());
            }
            let size = fs::metadata(path)
                .map_err(|source| DataError::Read { file: path.to_owned(), source })?
                .len();
            if CRATE_FILE_BYTES.contains(&size) {
                // Without the folder of the index, whose name differs from machine to machine.
                let below_index = path.strip_prefix(folder).unwrap_or(path).iter().skip(1);
                let in_crate = below_index.collect::<PathBuf>();
                let hash = blake3::hash(in_crate.as_os_str().as_encoded_bytes());
                found.push((*hash.as_bytes(), path.to_owned(), size));
            }
            Ok(())
        })?;
    }
    if found.is_empty() {
        return Err(DataError::NoCrateSources { folder: folder.to_owned() });
    }
    found.sort();
    // The same release of a crate may have come from two indexes.
    found.dedup_by_key(|(hash, _, _)| *hash);

    let mut total = 0;
    found
        .into_iter()
        .take_while(|(_, _, size)| {
            total += size;
            total <= max_bytes
        })
        .map(|(_, path, _)| source_file(&path, Format::Whole))
        .collect()
}
