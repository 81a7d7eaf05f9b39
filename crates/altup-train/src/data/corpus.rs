//! Text on disk as one stream of documents.
//!
//! | name ends in | a document is |
//! | --- | --- |
//! | `.txt`, `.txt.gz`, `.txt.zst` | a run of lines between blank lines |
//! | `.json`, `.jsonl`, and both with `.gz` or `.zst` | the `text` of a line's JSON object |
//! | `.parquet` | the `text` column of a row |
//!
//! Documents of white space alone are skipped. Reading is lazy: what is held in memory is a
//! document, or for Parquet a page, and never a whole file.

use std::collections::VecDeque;
use std::env;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::mem;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use flate2::read::MultiGzDecoder;
use parquet::basic::Type as PhysicalType;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::ByteArrayType;
use parquet::file::reader::{FileReader, SerializedFileReader};
use serde::Deserialize;

use super::DataError;

/// Longer documents are handed over in pieces, so that one huge file does not have to be held and
/// tokenised at once. Harmless to training: all tokens are concatenated before they are cut into
/// examples, and a cut at the end of a line splits no word.
const MAX_PIECE_BYTES: usize = 1 << 20;

/// Sizes of the source files taken into the built-in corpus: shorter ones are mostly `mod` lines
/// and licence headers, longer ones mostly generated tables.
const CRATE_FILE_BYTES: std::ops::RangeInclusive<u64> = 1 << 10..=256 << 10;

/// An ordered list of files with text in them, and which of their documents to read.
#[derive(Debug, Clone)]
pub struct Corpus {
    files: Vec<SourceFile>,
    selection: Selection,
}

/// A document, or one piece of a long one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// The number of the document within the whole corpus; pieces of one document share it.
    pub index: u64,
    /// The text.
    pub text: String,
}

/// Which documents of the files belong to a corpus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Selection {
    All,
    /// All but the last of every `every` documents.
    Except {
        every: u64,
    },
    /// Only the last of every `every` documents.
    Only {
        every: u64,
    },
}

impl Selection {
    fn contains(self, index: u64) -> bool {
        match self {
            Self::All => true,
            Self::Except { every } => index % every != every - 1,
            Self::Only { every } => index % every == every - 1,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct SourceFile {
    path: PathBuf,
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Format {
    Text(Compression),
    Json(Compression),
    Parquet,
    /// The whole file is one document, and a file that is not UTF-8 is none: crate sources.
    Whole,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Compression {
    None,
    Gzip,
    Zstd,
}

const EXTENSIONS: [(&str, Format); 10] = [
    (".txt", Format::Text(Compression::None)),
    (".txt.gz", Format::Text(Compression::Gzip)),
    (".txt.zst", Format::Text(Compression::Zstd)),
    (".json", Format::Json(Compression::None)),
    (".json.gz", Format::Json(Compression::Gzip)),
    (".json.zst", Format::Json(Compression::Zstd)),
    (".jsonl", Format::Json(Compression::None)),
    (".jsonl.gz", Format::Json(Compression::Gzip)),
    (".jsonl.zst", Format::Json(Compression::Zstd)),
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
}

impl Corpus {
    /// Finds the files behind `sources`: each a file, a folder (searched with its subfolders) or a
    /// glob.
    ///
    /// The files are sorted, and a file found twice is read once. In folders and globs, files with
    /// other extensions are passed over; a file that is named itself must have a known one.
    pub fn open(sources: &[String]) -> Result<Self, DataError> {
        let mut files = Vec::new();
        for source in sources {
            find_files(source, &mut files)?;
        }
        files.sort();
        files.dedup();
        Ok(Self { files, selection: Selection::All })
    }

    /// The corpus that every machine has that builds Rust: the crate sources under
    /// `$CARGO_HOME/registry/src`.
    ///
    /// It takes `.rs` and `.md` files, each one document, up to `max_bytes` in all. They come in
    /// the order of the hashes of their paths, which does not depend on the machine and mixes all
    /// crates from the start.
    pub fn cargo_sources(max_bytes: u64) -> Result<Self, DataError> {
        let cargo_home = env::var_os("CARGO_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(env::home_dir()?.join(".cargo")))
            .unwrap_or_default();
        crate_sources(&cargo_home.join("registry").join("src"), max_bytes)
    }

    /// Splits off every `every`-th document, for validation where no other text is given.
    ///
    /// Returns the rest and the documents held out. Which ones these are depends on their position
    /// in the corpus alone.
    ///
    /// # Panics
    ///
    /// If `every` is less than 2, which would leave nothing to train on.
    pub fn split(self, every: u64) -> (Self, Self) {
        assert!(
            every >= 2,
            "Holding out every document leaves none to train on. Got every={every}"
        );
        let held_out = Self { files: self.files.clone(), selection: Selection::Only { every } };
        let rest = Self { files: self.files, selection: Selection::Except { every } };
        (rest, held_out)
    }

    /// The files, in the order in which they are read.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|file| file.path.as_path())
    }

    /// The error that the corpus holds no text.
    pub(crate) fn without_text(&self) -> DataError {
        let files = match self.files.as_slice() {
            [] => "no file".to_owned(),
            [file] => file.path.display().to_string(),
            [first, rest @ ..] => format!("{} and {} more", first.path.display(), rest.len()),
        };
        match self.selection {
            Selection::Only { every } => DataError::NothingHeldOut { every, files },
            _ => DataError::EmptyCorpus { files },
        }
    }

    /// The documents, in order. After an error the stream ends.
    pub fn documents(&self) -> Documents<'_> {
        Documents {
            files: self.files.iter(),
            selection: self.selection,
            reader: None,
            started: 0,
            pieces: VecDeque::new(),
        }
    }

    /// A hash of what identifies the text without reading it: each file's path, size and time of
    /// modification, and the selection of documents.
    pub fn fingerprint(&self) -> Result<blake3::Hash, DataError> {
        let mut hasher = blake3::Hasher::new();
        for SourceFile { path, format } in &self.files {
            let read_error = |source| DataError::Read { file: path.clone(), source };
            let metadata = fs::metadata(path).map_err(read_error)?;
            let modified = metadata.modified().map_err(read_error)?;
            let nanoseconds = modified.duration_since(UNIX_EPOCH).map_or(0, |age| age.as_nanos());

            let path = path.as_os_str().as_encoded_bytes();
            hasher.update(&(path.len() as u64).to_le_bytes());
            hasher.update(path);
            hasher.update(format!("{format:?}").as_bytes());
            hasher.update(&metadata.len().to_le_bytes());
            hasher.update(&nanoseconds.to_le_bytes());
        }
        hasher.update(format!("{:?}", self.selection).as_bytes());
        Ok(hasher.finalize())
    }
}

fn find_files(source: &str, files: &mut Vec<SourceFile>) -> Result<(), DataError> {
    let path = Path::new(source);
    if path.is_file() {
        let format = Format::of(path).ok_or_else(|| DataError::UnsupportedExtension {
            file: path.to_owned(),
            accepted: Format::accepted(),
        })?;
        return push_file(path, format, files);
    }
    let before = files.len();
    if path.is_dir() {
        find_data_files(path, files)?;
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
            find_data_files(&found, files)?;
        } else if let Some(format) = Format::of(&found) {
            push_file(&found, format, files)?;
        }
    }
    if files.len() == before {
        return Err(DataError::NoMatch { pattern: source.to_owned() });
    }
    Ok(())
}

fn find_data_files(folder: &Path, files: &mut Vec<SourceFile>) -> Result<(), DataError> {
    walk(folder, &mut |path| match Format::of(path) {
        Some(format) => push_file(path, format, files),
        None => Ok(()),
    })
}

/// Paths are kept in canonical form, so that a file is recognised however it was named and a token
/// cache is found again from another working directory.
fn push_file(path: &Path, format: Format, files: &mut Vec<SourceFile>) -> Result<(), DataError> {
    let path = fs::canonicalize(path)
        .map_err(|source| DataError::Read { file: path.to_owned(), source })?;
    files.push(SourceFile { path, format });
    Ok(())
}

/// Calls `visit` with every file below `folder`. Links to files are followed, as download caches
/// are made of them; links to folders are not, as they can lead in a circle.
fn walk(
    folder: &Path,
    visit: &mut dyn FnMut(&Path) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let read_error = |source| DataError::Read { file: folder.to_owned(), source };
    for entry in fs::read_dir(folder).map_err(read_error)? {
        let entry = entry.map_err(read_error)?;
        let path = entry.path();
        if entry.file_type().map_err(read_error)?.is_dir() {
            walk(&path, visit)?;
        } else if path.is_file() {
            visit(&path)?;
        }
    }
    Ok(())
}

fn crate_sources(folder: &Path, max_bytes: u64) -> Result<Corpus, DataError> {
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
    let files = found
        .into_iter()
        .take_while(|(_, _, size)| {
            total += size;
            total <= max_bytes
        })
        .map(|(_, path, _)| SourceFile { path, format: Format::Whole })
        .collect();
    Ok(Corpus { files, selection: Selection::All })
}

/// The documents of a [`Corpus`], read one by one. See [`Corpus::documents`].
pub struct Documents<'a> {
    files: std::slice::Iter<'a, SourceFile>,
    selection: Selection,
    reader: Option<Reader>,
    /// How many documents have been begun, selected or not.
    started: u64,
    /// What is left of the current document.
    pieces: VecDeque<String>,
}

impl Iterator for Documents<'_> {
    type Item = Result<Document, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(text) = self.pieces.pop_front() {
                return Some(Ok(Document { index: self.started - 1, text }));
            }
            match self.next_fragment() {
                Ok(Some(fragment)) => {
                    self.started += u64::from(fragment.starts_document);
                    if self.selection.contains(self.started - 1) {
                        cut_at_lines(fragment.text, &mut self.pieces);
                    }
                }
                Ok(None) => return None,
                Err(error) => {
                    self.files = Default::default();
                    self.reader = None;
                    return Some(Err(error));
                }
            }
        }
    }
}

impl Documents<'_> {
    fn next_fragment(&mut self) -> Result<Option<Fragment>, DataError> {
        loop {
            if let Some(reader) = &mut self.reader
                && let Some(fragment) = reader.next_fragment()?
            {
                return Ok(Some(fragment));
            }
            match self.files.next() {
                Some(file) => self.reader = Some(Reader::open(file)?),
                None => return Ok(None),
            }
        }
    }
}

/// Cuts text into pieces: each ends with the line in which it reaches [`MAX_PIECE_BYTES`].
fn cut_at_lines(text: String, pieces: &mut VecDeque<String>) {
    if text.len() <= MAX_PIECE_BYTES {
        pieces.push_back(text);
        return;
    }
    let mut piece = String::new();
    for line in text.split_inclusive('\n') {
        piece.push_str(line);
        if piece.len() >= MAX_PIECE_BYTES {
            pieces.push_back(mem::take(&mut piece));
        }
    }
    if !piece.is_empty() {
        pieces.push_back(piece);
    }
}

/// What a reader returns at a time: a document, or a part of one that is too long to hold.
struct Fragment {
    text: String,
    starts_document: bool,
}

/// An open file.
enum Reader {
    Text(TextReader),
    Json(Lines),
    Parquet(Box<ParquetReader>),
    Whole(Option<PathBuf>),
}

impl Reader {
    fn open(file: &SourceFile) -> Result<Self, DataError> {
        let path = file.path.as_path();
        Ok(match file.format {
            Format::Text(compression) => Self::Text(TextReader {
                lines: Lines::open(path, compression)?,
                between_documents: true,
            }),
            Format::Json(compression) => Self::Json(Lines::open(path, compression)?),
            Format::Parquet => Self::Parquet(Box::new(ParquetReader::open(path)?)),
            Format::Whole => Self::Whole(Some(path.to_owned())),
        })
    }

    fn next_fragment(&mut self) -> Result<Option<Fragment>, DataError> {
        loop {
            let document = match self {
                Self::Text(reader) => return reader.next_fragment(),
                Self::Json(lines) => next_json_text(lines)?,
                Self::Parquet(reader) => reader.next_text()?,
                Self::Whole(path) => match path.take() {
                    Some(path) => Some(read_whole(path)?),
                    None => None,
                },
            };
            match document {
                Some(text) if text.trim().is_empty() => {}
                Some(text) => return Ok(Some(Fragment { text, starts_document: true })),
                None => return Ok(None),
            }
        }
    }
}

/// The lines of a file, decompressed and checked to be UTF-8.
struct Lines {
    file: PathBuf,
    compression: Compression,
    input: Box<dyn BufRead>,
    number: u64,
    line: Vec<u8>,
}

impl Lines {
    fn open(path: &Path, compression: Compression) -> Result<Self, DataError> {
        let read_error = |source| DataError::Read { file: path.to_owned(), source };
        let file = File::open(path).map_err(read_error)?;
        let input: Box<dyn BufRead> = match compression {
            Compression::None => Box::new(BufReader::new(file)),
            Compression::Gzip => Box::new(BufReader::new(MultiGzDecoder::new(file))),
            Compression::Zstd => {
                let decoder = zstd::stream::read::Decoder::new(file).map_err(read_error)?;
                Box::new(BufReader::new(decoder))
            }
        };
        Ok(Self { file: path.to_owned(), compression, input, number: 0, line: Vec::new() })
    }

    /// The next line, without its end.
    fn next_line(&mut self) -> Result<Option<&str>, DataError> {
        self.line.clear();
        let length = self
            .input
            .read_until(b'\n', &mut self.line)
            .map_err(|source| read_error(&self.file, self.compression, source))?;
        if length == 0 {
            return Ok(None);
        }
        self.number += 1;
        let line = str::from_utf8(&self.line).map_err(|source| DataError::InvalidUtf8Line {
            file: self.file.clone(),
            line: self.number,
            source,
        })?;
        let line = if self.number == 1 { line.trim_start_matches('\u{feff}') } else { line };
        Ok(Some(line.trim_end_matches(['\n', '\r'])))
    }
}

fn read_error(file: &Path, compression: Compression, source: io::Error) -> DataError {
    let file = file.to_owned();
    match compression {
        Compression::None => DataError::Read { file, source },
        Compression::Gzip => DataError::BrokenGzip { file, source },
        Compression::Zstd => DataError::BrokenZstd { file, source },
    }
}

struct TextReader {
    lines: Lines,
    between_documents: bool,
}

impl TextReader {
    fn next_fragment(&mut self) -> Result<Option<Fragment>, DataError> {
        let mut text = String::new();
        loop {
            let line = self.lines.next_line()?;
            let document_ends = line.is_none_or(|line| line.trim().is_empty());
            if let Some(line) = line.filter(|_| !document_ends) {
                text.push_str(line);
                text.push('\n');
            }
            let file_ends = line.is_none();

            if document_ends || text.len() >= MAX_PIECE_BYTES {
                let starts_document = mem::replace(&mut self.between_documents, document_ends);
                if !text.is_empty() {
                    return Ok(Some(Fragment { text, starts_document }));
                }
                if file_ends {
                    return Ok(None);
                }
            }
        }
    }
}

fn next_json_text(lines: &mut Lines) -> Result<Option<String>, DataError> {
    #[derive(Deserialize)]
    struct Row {
        text: String,
    }

    loop {
        let Some(line) = lines.next_line()?.map(str::trim) else {
            return Ok(None);
        };
        if line.is_empty() {
            continue;
        }
        // Serde would also take an array for a struct.
        let row = line.starts_with('{').then(|| serde_json::from_str::<Row>(line));
        let (file, line) = (&lines.file, lines.number);
        return match row {
            Some(Ok(row)) => Ok(Some(row.text)),
            Some(Err(source)) => Err(DataError::JsonText { file: file.clone(), line, source }),
            None => Err(DataError::JsonNotObject { file: file.clone(), line }),
        };
    }
}

/// A whole file as one document; empty where it is not UTF-8, which some test inputs in crates are
/// on purpose.
fn read_whole(path: PathBuf) -> Result<String, DataError> {
    let bytes = fs::read(&path).map_err(|source| DataError::Read { file: path, source })?;
    Ok(String::from_utf8(bytes).unwrap_or_default())
}

/// The `text` column of a Parquet file, decoded a few rows at a time.
struct ParquetReader {
    path: PathBuf,
    file: SerializedFileReader<File>,
    column: usize,
    /// The definition level of a row whose text is not null.
    present: i16,
    next_row_group: usize,
    rows_in_group: Option<ColumnReaderImpl<ByteArrayType>>,
    rows_read: u64,
    texts: VecDeque<String>,
}

impl ParquetReader {
    const ROWS_AT_ONCE: usize = 64;

    fn open(path: &Path) -> Result<Self, DataError> {
        let file =
            File::open(path).map_err(|source| DataError::Read { file: path.to_owned(), source })?;
        let file = SerializedFileReader::new(file)
            .map_err(|source| DataError::BrokenParquet { file: path.to_owned(), source })?;

        let columns = file.metadata().file_metadata().schema_descr().columns();
        let names = || columns.iter().map(|column| column.path().string());
        let Some(column) = names().position(|name| name == "text") else {
            let columns = names().collect::<Vec<_>>().join(", ");
            return Err(DataError::NoTextColumn { file: path.to_owned(), columns });
        };
        let description = &columns[column];
        if description.physical_type() != PhysicalType::BYTE_ARRAY
            || description.max_rep_level() != 0
        {
            let found = match description.max_rep_level() {
                0 => description.physical_type().to_string(),
                _ => format!("a list of {}", description.physical_type()),
            };
            return Err(DataError::TextColumnType { file: path.to_owned(), found });
        }
        Ok(Self {
            path: path.to_owned(),
            column,
            present: description.max_def_level(),
            file,
            next_row_group: 0,
            rows_in_group: None,
            rows_read: 0,
            texts: VecDeque::new(),
        })
    }

    fn next_text(&mut self) -> Result<Option<String>, DataError> {
        loop {
            if let Some(text) = self.texts.pop_front() {
                return Ok(Some(text));
            }
            if !self.read_rows()? {
                return Ok(None);
            }
        }
    }

    /// Reads the next rows, or moves on to the next row group; false at the end of the file.
    fn read_rows(&mut self) -> Result<bool, DataError> {
        let broken = |source| DataError::BrokenParquet { file: self.path.clone(), source };
        let Some(reader) = &mut self.rows_in_group else {
            if self.next_row_group == self.file.num_row_groups() {
                return Ok(false);
            }
            let group = self.file.get_row_group(self.next_row_group).map_err(broken)?;
            self.next_row_group += 1;
            // `open` has checked the type, which is the schema's and so that of every row group.
            if let ColumnReader::ByteArrayColumnReader(reader) =
                group.get_column_reader(self.column).map_err(broken)?
            {
                self.rows_in_group = Some(reader);
            }
            return Ok(true);
        };

        let (mut levels, mut values) = (Vec::new(), Vec::new());
        let (rows, _, _) = reader
            .read_records(Self::ROWS_AT_ONCE, Some(&mut levels), None, &mut values)
            .map_err(broken)?;
        if rows == 0 {
            self.rows_in_group = None;
            return Ok(true);
        }
        // Only present texts have a value; a column that cannot be null has no levels either.
        let mut values = values.iter();
        for row in 0..rows {
            self.rows_read += 1;
            if levels.get(row).is_some_and(|level| *level != self.present) {
                continue;
            }
            let Some(value) = values.next() else { break };
            let text = str::from_utf8(value.data()).map_err(|source| {
                DataError::InvalidUtf8Row { file: self.path.clone(), row: self.rows_read, source }
            })?;
            self.texts.push_back(text.to_owned());
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use flate2::write::GzEncoder;
    use parquet::data_type::{ByteArray, Int32Type};
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;
    use tempfile::TempDir;

    use super::*;

    fn folder_with(files: &[(&str, &[u8])]) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        folder
    }

    fn open(folder: &TempDir, name: &str) -> Result<Corpus, DataError> {
        Corpus::open(&[folder.path().join(name).to_string_lossy().into_owned()])
    }

    fn read(corpus: &Corpus) -> Result<Vec<String>, DataError> {
        corpus.documents().map(|document| Ok(document?.text)).collect()
    }

    fn read_one(name: &str, bytes: &[u8]) -> Result<Vec<String>, DataError> {
        let folder = folder_with(&[(name, bytes)]);
        read(&open(&folder, name)?)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn parquet(schema: &str, texts: &[Option<&str>]) -> Vec<u8> {
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let mut bytes = Vec::new();
        let mut file = SerializedFileWriter::new(&mut bytes, schema, Default::default()).unwrap();
        for rows in texts.chunks(2) {
            let mut group = file.next_row_group().unwrap();
            let mut column = group.next_column().unwrap().unwrap();
            let numbers = vec![7; rows.len()];
            column.typed::<Int32Type>().write_batch(&numbers, None, None).unwrap();
            column.close().unwrap();
            let mut column = group.next_column().unwrap().unwrap();
            let levels: Vec<i16> = rows.iter().map(|text| i16::from(text.is_some())).collect();
            let texts: Vec<ByteArray> =
                rows.iter().flatten().copied().map(ByteArray::from).collect();
            column.typed::<ByteArrayType>().write_batch(&texts, Some(&levels), None).unwrap();
            column.close().unwrap();
            group.close().unwrap();
        }
        file.close().unwrap();
        bytes
    }

    #[test]
    fn text_documents_are_separated_by_blank_lines() {
        let text = "\u{feff}one\r\ntwo\n\n \t\n\nthree\n";
        assert_eq!(read_one("a.txt", text.as_bytes()).unwrap(), ["one\ntwo\n", "three\n"]);
        assert_eq!(read_one("a.TXT", b"no line end").unwrap(), ["no line end\n"]);
        assert_eq!(read_one("a.txt", b"").unwrap(), [""; 0]);
    }

    #[test]
    fn every_format_holds_the_same_documents() {
        let text = "one\n\ntwo\n".as_bytes();
        let json = b"{\"text\": \"one\\n\", \"url\": 1}\n\n{\"text\": \"\"}\n{\"text\":\"two\\n\"}";
        let table = parquet(
            "message m { required int32 id; optional binary text (UTF8); }",
            &[Some("one\n"), None, Some(" "), Some("two\n")],
        );
        let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
        for (name, bytes) in [
            ("a.txt", text.to_vec()),
            ("a.txt.gz", gzip(text)),
            ("a.txt.zst", zstd(text)),
            ("a.json", json.to_vec()),
            ("a.json.gz", gzip(json)),
            ("a.json.zst", zstd(json)),
            ("a.jsonl", json.to_vec()),
            ("a.jsonl.gz", gzip(json)),
            ("a.jsonl.zst", zstd(json)),
            ("a.parquet", table),
        ] {
            assert_eq!(read_one(name, &bytes).unwrap(), ["one\n", "two\n"], "{name}");
        }
    }

    #[test]
    fn files_folders_and_globs_are_sorted_and_read_once() {
        let folder = folder_with(&[
            ("b.txt", b"b"),
            ("a/z.txt", b"z"),
            ("a/y.jsonl", b"{\"text\": \"y\"}"),
            ("a/notes.pdf", b"skipped"),
        ]);
        let sources = ["b.txt", "", "*.txt", "a/*"]
            .map(|name| folder.path().join(name).to_string_lossy().into_owned());
        let corpus = Corpus::open(&sources).unwrap();
        assert_eq!(read(&corpus).unwrap(), ["y", "z\n", "b\n"]);
        let names: Vec<_> = corpus.files().map(|path| path.file_name().unwrap()).collect();
        assert_eq!(names, ["y.jsonl", "z.txt", "b.txt"]);
    }

    #[test]
    fn sources_without_data_are_errors() {
        let folder = folder_with(&[("a.pdf", b"x"), ("empty/b.bin", b"x")]);
        assert!(matches!(open(&folder, "a.pdf"), Err(DataError::UnsupportedExtension { .. })));
        assert!(matches!(open(&folder, "empty"), Err(DataError::NoReadableFiles { .. })));
        assert!(matches!(open(&folder, "missing.txt"), Err(DataError::NoMatch { .. })));
        assert!(matches!(open(&folder, "*.txt"), Err(DataError::NoMatch { .. })));
        assert!(matches!(open(&folder, "a***"), Err(DataError::BadPattern { .. })));
    }

    #[test]
    fn errors_name_the_line() {
        let error = read_one("a.txt", b"fine\n\nbad \xff\n").unwrap_err();
        assert!(matches!(error, DataError::InvalidUtf8Line { line: 3, .. }), "{error}");
        let error = read_one("a.jsonl", b"{\"text\": \"a\"}\n[\"b\"]\n").unwrap_err();
        assert!(matches!(error, DataError::JsonNotObject { line: 2, .. }), "{error}");
        for line in ["{\"txt\": \"b\"}", "{\"text\": 1}", "{\"text\": \"b\""] {
            let error = read_one("a.jsonl", line.as_bytes()).unwrap_err();
            assert!(matches!(error, DataError::JsonText { line: 1, .. }), "{error}");
        }
    }

    #[test]
    fn damaged_files_are_errors_after_which_the_stream_ends() {
        let text = "word ".repeat(1000);
        let short = |mut bytes: Vec<u8>| {
            bytes.truncate(bytes.len() / 2);
            bytes
        };
        let gz = read_one("a.txt.gz", &short(gzip(text.as_bytes()))).unwrap_err();
        assert!(matches!(gz, DataError::BrokenGzip { .. }), "{gz}");
        let zst = short(zstd::encode_all(text.as_bytes(), 1).unwrap());
        let zst = read_one("a.txt.zst", &zst).unwrap_err();
        assert!(matches!(zst, DataError::BrokenZstd { .. }), "{zst}");
        let table = read_one("a.parquet", b"PAR1 this is not Parquet").unwrap_err();
        assert!(matches!(table, DataError::BrokenParquet { .. }), "{table}");

        let folder = folder_with(&[("a.txt", b"\xff"), ("b.txt", b"fine")]);
        let corpus = open(&folder, "").unwrap();
        let outcomes: Vec<bool> = corpus.documents().map(|document| document.is_ok()).collect();
        assert_eq!(outcomes, [false]);
    }

    #[test]
    fn parquet_without_a_string_column_text_is_an_error() {
        let schema = "message m { required int32 id; optional binary body (UTF8); }";
        let error = read_one("a.parquet", &parquet(schema, &[Some("x")])).unwrap_err();
        assert!(error.to_string().ends_with("its columns are id, body"), "{error}");
        let schema = "message m { required int32 text; optional binary body (UTF8); }";
        let error = read_one("a.parquet", &parquet(schema, &[Some("x")])).unwrap_err();
        assert!(matches!(error, DataError::TextColumnType { .. }), "{error}");
    }

    #[test]
    fn long_documents_come_in_pieces_cut_at_line_ends() {
        let long = "a line of text\n".repeat(200_000);
        let json = serde_json::json!({ "text": long }).to_string();
        for (name, bytes) in [("a.txt", long.as_bytes()), ("a.jsonl", json.as_bytes())] {
            let folder = folder_with(&[(name, bytes), ("b.txt", b"next")]);
            let documents: Vec<Document> =
                open(&folder, "").unwrap().documents().collect::<Result<_, _>>().unwrap();
            let (last, pieces) = documents.split_last().unwrap();
            assert_eq!(pieces.len(), 3, "{name}");
            assert!(pieces.iter().all(|piece| piece.index == 0 && piece.text.ends_with('\n')));
            assert_eq!(pieces.iter().map(|piece| piece.text.as_str()).collect::<String>(), long);
            assert_eq!(*last, Document { index: 1, text: "next\n".into() });
        }
    }

    #[test]
    fn split_holds_out_every_nth_document() {
        let folder = folder_with(&[("a.txt", b"0\n\n1\n\n2"), ("b.txt", b"3\n\n4\n\n5\n\n6")]);
        let (rest, held_out) = open(&folder, "").unwrap().split(3);
        assert_eq!(read(&rest).unwrap(), ["0\n", "1\n", "3\n", "4\n", "6\n"]);
        assert_eq!(read(&held_out).unwrap(), ["2\n", "5\n"]);
    }

    #[test]
    fn fingerprint_follows_files_and_selection() {
        let folder = folder_with(&[("a.txt", b"one")]);
        let corpus = open(&folder, "a.txt").unwrap();
        let before = corpus.fingerprint().unwrap();
        assert_eq!(open(&folder, "").unwrap().fingerprint().unwrap(), before);
        let (rest, held_out) = corpus.clone().split(2);
        assert_ne!(rest.fingerprint().unwrap(), before);
        assert_ne!(rest.fingerprint().unwrap(), held_out.fingerprint().unwrap());
        fs::write(folder.path().join("a.txt"), "longer").unwrap();
        assert_ne!(corpus.fingerprint().unwrap(), before);
    }

    #[test]
    fn crate_sources_are_sampled_in_an_order_that_ignores_the_index() {
        let code = "fn main() {}\n\n".repeat(100).into_bytes();
        let mut binary = code.clone();
        binary[0] = 0xff;
        let files: [(&str, &[u8]); 6] = [
            ("index-1/a-1.0.0/src/lib.rs", &code),
            ("index-1/b-1.0.0/README.md", &code),
            ("index-2/b-1.0.0/README.md", &code),
            ("index-1/b-1.0.0/src/tests.rs", &binary),
            ("index-1/b-1.0.0/src/short.rs", b"mod a;"),
            ("index-1/b-1.0.0/data.bin", &code),
        ];
        let folder = folder_with(&files);
        let corpus = crate_sources(folder.path(), u64::MAX).unwrap();
        assert_eq!(corpus.files().count(), 3);
        // One document a file: blank lines do not separate, and what is not UTF-8 is passed over.
        assert_eq!(read(&corpus).unwrap().len(), 2);
        assert_eq!(crate_sources(folder.path(), 3000).unwrap().files().count(), 2);

        let renamed =
            folder_with(&files.map(|(name, bytes)| (name.trim_start_matches("index"), bytes)));
        let order = |corpus: &Corpus, folder: &TempDir| -> Vec<PathBuf> {
            let below = |path: &Path| path.strip_prefix(folder.path()).unwrap().to_owned();
            corpus.files().map(|path| below(path).iter().skip(1).collect()).collect()
        };
        let other = crate_sources(renamed.path(), u64::MAX).unwrap();
        assert_eq!(order(&corpus, &folder), order(&other, &renamed));

        let empty = tempfile::tempdir().unwrap();
        let error = crate_sources(&empty.path().join("src"), 1).unwrap_err();
        assert!(error.to_string().contains("--train"), "{error}");
    }
}
