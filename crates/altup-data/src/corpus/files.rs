//! Which files a corpus is made of, in what order, and how each is read.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{self, Path, PathBuf};

use glob::{MatchOptions, Pattern};
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

impl SourceFile {
    /// The format that its name says it is compressed in, where it has so few bytes, `size`, that they can't say so
    /// themselves: it was cut short, and is no text that is short or empty.
    pub(crate) fn cut_short(&self, size: u64) -> Option<&'static str> {
        /// What tells Zstandard takes so many bytes, and what tells gzip two.
        const MARK_BYTES: u64 = 4;
        let name = self.path.extension().unwrap_or_default();
        match size {
            MARK_BYTES.. => None,
            _ if name.eq_ignore_ascii_case("gz") => Some("gzip"),
            _ if name.eq_ignore_ascii_case("zst") => Some("zstd"),
            _ => None,
        }
    }
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

/// The data files behind `sources`, source by source, those of one sorted by their paths: where a source lies has no
/// influence on the order. Of several names of one file, as links give it, the first
/// counts.
pub(crate) fn find_all(sources: &[String]) -> Result<Vec<SourceFile>, DataError> {
    let mut files = Vec::new();
    for source in sources {
        let start = files.len();
        find(source, &mut files)?;
        files[start..].sort_by(|a, b| a.path.cmp(&b.path));
    }
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

    find_matches(source, files)?;
    if files.len() == before {
        return Err(DataError::NoMatch { pattern: source.to_owned() });
    }
    Ok(())
}

fn find_below(folder: &Path, files: &mut Vec<SourceFile>) -> Result<(), DataError> {
    walk(folder, &is_visible, &mut |entry| add(entry, files))
}

fn add(entry: &DirEntry, files: &mut Vec<SourceFile>) -> Result<(), DataError> {
    if entry.file_type().is_file()
        && let Some(format) = Format::of(entry.path())
    {
        files.push(source_file(entry.path(), format)?);
    }
    Ok(())
}

/// Adds the data files that a glob matches, and those below the folders that it matches. What holds below a folder holds
/// here too, for the names that a wildcard stands for: hidden ones are passed over, and any others need not be UTF-8.
fn find_matches(source: &str, files: &mut Vec<SourceFile>) -> Result<(), DataError> {
    let bad = |source: &str| {
        let pattern = source.to_owned();
        move |error| DataError::BadPattern { pattern, source: error }
    };
    Pattern::new(source).map_err(bad(source))?;
    let parts = Path::new(source).components().map(|part| part.as_os_str());
    let (mut root, mut wild) = (PathBuf::new(), PathBuf::new());
    for part in parts {
        let is_wild = part.to_string_lossy().contains(['*', '?', '[']);
        if is_wild || wild != Path::new("") { wild.push(part) } else { root.push(part) }
    }
    let pattern = |part: &Path| Pattern::new(&part.to_string_lossy()).map_err(bad(source));
    let whole = pattern(&wild)?;
    let parts: Vec<Pattern> =
        wild.iter().map(|part| pattern(Path::new(part))).collect::<Result<_, _>>()?;
    let any_depth = parts.iter().any(|part| part.as_str() == "**");
    let options = MatchOptions {
        case_sensitive: true,
        require_literal_separator: true,
        require_literal_leading_dot: true,
    };
    if root == Path::new("") {
        root.push(".");
    }
    if !root.is_dir() {
        return Ok(());
    }
    let leads_on = |entry: &DirEntry| match entry.depth() {
        0 => true,
        _ if any_depth => is_visible(entry),
        depth => parts
            .get(depth - 1)
            .is_some_and(|part| part.matches_with(&entry.file_name().to_string_lossy(), options)),
    };
    walk(&root, &leads_on, &mut |entry| {
        let below = entry.path().strip_prefix(&root).unwrap_or(entry.path());
        let matches = match any_depth {
            true => whole.matches_with(&below.to_string_lossy(), options),
            false => entry.depth() == parts.len(),
        };
        match matches {
            true if entry.file_type().is_dir() => find_below(entry.path(), files),
            true => add(entry, files),
            false => Ok(()),
        }
    })
}

fn is_visible(entry: &DirEntry) -> bool {
    entry.depth() == 0 || !entry.file_name().as_encoded_bytes().starts_with(b".")
}

/// Calls `visit` with `folder` and everything below it that `leads_on`, and so do the folders that it lies in.
/// Links are followed, as download caches are made of them; one that leads back to a folder above
/// itself is passed over.
fn walk(
    folder: &Path,
    leads_on: &dyn Fn(&DirEntry) -> bool,
    visit: &mut dyn FnMut(&DirEntry) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let entries = WalkDir::new(folder).follow_links(true).into_iter();
    for entry in entries.filter_entry(leads_on) {
        match entry {
            Ok(entry) => visit(&entry)?,
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
        walk(folder, &is_visible, &mut |entry| {
            let path = entry.path();
            let is_code = path.extension().is_some_and(|name| name == "rs" || name == "md");
            if !is_code || !entry.file_type().is_file() {
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
