//! Which files a corpus is made of, in what order, and how each is read.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, Metadata};
use std::io::{self, ErrorKind};
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

/// What was found behind sources.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) files: Vec<SourceFile>,
    /// Links to nothing, which were passed over.
    pub(crate) dangling: Vec<PathBuf>,
}

/// The data files behind `sources`, source by source, those of one sorted by their paths: where a source lies has no
/// influence on the order. Of several names of one file, as links give it, the first
/// counts.
pub(crate) fn find_all(sources: &[String]) -> Result<Found, DataError> {
    let mut found = Found::default();
    for source in sources {
        let start = found.files.len();
        find(source, &mut found)?;
        found.files[start..].sort_by(|a, b| a.path.cmp(&b.path));
    }
    let mut targets = HashSet::new();
    found.files.retain(|file| targets.insert(file.target.clone()));
    found.dangling.sort();
    found.dangling.dedup();
    Ok(found)
}

/// What lies at a path; nothing where nothing does. Any other reason not to see it is an error: a disk that fails must not
/// look like less text.
fn metadata(path: &Path) -> Result<Option<Metadata>, DataError> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        // A glob may be longer than a name can be, or have characters that no name has.
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::InvalidFilename
            ) =>
        {
            Ok(None)
        }
        Err(source) => Err(DataError::Read { file: path.to_owned(), source }),
    }
}

fn is_folder(path: &Path) -> Result<bool, DataError> {
    Ok(metadata(path)?.is_some_and(|metadata| metadata.is_dir()))
}

/// Adds the data files behind a file's name, a folder's or a glob.
fn find(source: &str, found: &mut Found) -> Result<(), DataError> {
    let path = Path::new(source);
    let metadata = metadata(path)?;
    if metadata.as_ref().is_some_and(Metadata::is_file) {
        let format = Format::of(path).ok_or_else(|| DataError::UnsupportedExtension {
            file: path.to_owned(),
            accepted: Format::accepted(),
        })?;
        found.files.push(source_file(path, format)?);
        return Ok(());
    }
    let before = found.files.len();
    if metadata.is_some_and(|metadata| metadata.is_dir()) {
        find_below(path, found)?;
        if found.files.len() == before {
            return Err(DataError::NoReadableFiles {
                folder: path.to_owned(),
                accepted: Format::accepted(),
            });
        }
        return Ok(());
    }

    find_matches(source, found)?;
    if found.files.len() == before {
        return Err(DataError::NoMatch { pattern: source.to_owned() });
    }
    Ok(())
}

fn find_below(folder: &Path, found: &mut Found) -> Result<(), DataError> {
    let Found { files, dangling } = found;
    walk(folder, &is_visible, dangling, &mut |entry| add(entry, files))
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
fn find_matches(source: &str, found: &mut Found) -> Result<(), DataError> {
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
    if !is_folder(&root)? {
        return Ok(());
    }
    let leads_on = |depth: usize, name: &OsStr| match depth {
        0 => true,
        _ if any_depth => is_visible(depth, name),
        depth => parts
            .get(depth - 1)
            .is_some_and(|part| part.matches_with(&name.to_string_lossy(), options)),
    };
    let mut dangling = Vec::new();
    walk(&root, &leads_on, &mut dangling, &mut |entry| {
        let below = entry.path().strip_prefix(&root).unwrap_or(entry.path());
        let matches = match any_depth {
            true => whole.matches_with(&below.to_string_lossy(), options),
            false => entry.depth() == parts.len(),
        };
        match matches {
            true if entry.file_type().is_dir() => find_below(entry.path(), found),
            true => add(entry, &mut found.files),
            false => Ok(()),
        }
    })?;
    found.dangling.append(&mut dangling);
    Ok(())
}

/// Whether a name at some depth below a folder isn't hidden; the folder itself may be.
fn is_visible(depth: usize, name: &OsStr) -> bool {
    depth == 0 || !name.as_encoded_bytes().starts_with(b".")
}

/// Calls `visit` with `folder` and everything below it whose depth and name `leads_on`, and so do those of the folders that
/// it lies in. Links are followed, as download caches are made of them; one that leads back to a folder above itself is
/// passed over, and so is one to nothing, which `dangling` is told of.
fn walk(
    folder: &Path,
    leads_on: &dyn Fn(usize, &OsStr) -> bool,
    dangling: &mut Vec<PathBuf>,
    visit: &mut dyn FnMut(&DirEntry) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let entries = WalkDir::new(folder).follow_links(true).into_iter();
    for entry in entries.filter_entry(|entry| leads_on(entry.depth(), entry.file_name())) {
        let error = match entry {
            Ok(entry) => {
                visit(&entry)?;
                continue;
            }
            Err(error) => error,
        };
        let path = error.path().unwrap_or(folder);
        // The filter sees none of what can't be read. Where the rest of a folder can't be listed, there is no path.
        let is_passed_over = error
            .path()
            .is_some_and(|path| !leads_on(error.depth(), path.file_name().unwrap_or_default()));
        if is_passed_over || error.loop_ancestor().is_some() {
            continue;
        }
        let is_missing = error.io_error().is_some_and(|error| error.kind() == ErrorKind::NotFound);
        if is_missing && path.is_symlink() {
            dangling.push(path.to_owned());
            continue;
        }
        return Err(DataError::Read { file: path.to_owned(), source: error.into() });
    }
    Ok(())
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
    if is_folder(folder)? {
        walk(folder, &is_visible, &mut Vec::new(), &mut |entry| {
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
