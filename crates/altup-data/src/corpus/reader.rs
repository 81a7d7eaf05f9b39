//! How a file is read: its documents, in pieces where they are long.

use std::collections::VecDeque;
use std::error::Error;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::mem;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::read::MultiGzDecoder;
use parquet::basic::Type as PhysicalType;
use parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use parquet::data_type::ByteArrayType;
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use serde::Deserialize;

use super::files::{Format, SourceFile};
use super::{Defect, Place};
use crate::DataError;
use crate::error::panic_message;

/// The version of how files become shards of documents: raise it when the same files are read as other documents or in
/// other pieces, come in another order, or are joined into other shards. Prepared text of another version is passed over,
/// and a run that goes on refuses it.
pub const READER_VERSION: u32 = 3;

/// Longer documents are handed over in pieces, so that one huge file does not have to be held and
/// tokenised at once. Harmless to training: all tokens are concatenated before they are cut into
/// examples, and a cut at white space splits no word.
const MAX_PIECE_BYTES: usize = 1 << 20;

/// A JSON object has to be held whole. What is longer is no document.
const MAX_JSON_BYTES: usize = 256 << 20;

/// Zstandard's largest window, which `zstd --ultra --long=31` writes. A decoder holds as much as the file's own window.
const ZSTD_WINDOW_LOG: u32 = if usize::BITS < 64 { 30 } else { 31 };

/// A document, or one piece of a long one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// The number of the document within the whole corpus; pieces of one document share it.
    pub index: u64,
    /// The text.
    pub text: String,
}

/// A document of a file, or one piece of a long one.
pub(crate) struct Piece {
    pub(crate) text: String,
    pub(crate) starts_document: bool,
}

/// An open file.
pub(crate) struct Reader {
    documents: DocumentReader,
    /// What is left of a document that was read whole.
    pieces: VecDeque<Piece>,
}

enum DocumentReader {
    Text(TextReader),
    Json(JsonReader),
    Parquet(Box<ParquetReader>),
    Whole(Option<PathBuf>),
}

impl Reader {
    /// Opens a file. `bytes_read` grows by the bytes that are read from it.
    pub(crate) fn open(file: &SourceFile, bytes_read: &Arc<AtomicU64>) -> Result<Self, DataError> {
        let input = || Input::open(file, bytes_read);
        let documents = match file.format {
            Format::Text => DocumentReader::Text(TextReader::new(input()?)),
            Format::Json => DocumentReader::Json(JsonReader::new(input()?)),
            Format::Parquet => {
                DocumentReader::Parquet(Box::new(ParquetReader::open(file, bytes_read)?))
            }
            Format::Whole => {
                bytes_read.fetch_add(file.size, Ordering::Relaxed);
                DocumentReader::Whole(Some(file.path.clone()))
            }
        };
        Ok(Self { documents, pieces: VecDeque::new() })
    }

    /// The next piece of text; nothing at the end of the file. Behind a [`Defect`], reading goes on.
    pub(crate) fn next_piece(&mut self) -> Result<Option<Piece>, DataError> {
        loop {
            if let Some(piece) = self.pieces.pop_front() {
                return Ok(Some(piece));
            }
            let document = match &mut self.documents {
                DocumentReader::Text(reader) => return reader.next_piece(),
                DocumentReader::Json(reader) => reader.next_text()?,
                DocumentReader::Parquet(reader) => reader.next_text()?,
                DocumentReader::Whole(path) => match path.take() {
                    Some(path) => Some(read_whole(path)?),
                    None => None,
                },
            };
            match document {
                Some(text) if text.trim().is_empty() => {}
                Some(text) => cut(&text, &mut self.pieces),
                None => return Ok(None),
            }
        }
    }
}

/// Cuts a document into pieces of at most [`MAX_PIECE_BYTES`], see [`cut_place`].
fn cut(mut text: &str, pieces: &mut VecDeque<Piece>) {
    let mut starts_document = true;
    while !text.is_empty() {
        let end =
            if text.len() <= MAX_PIECE_BYTES { text.len() } else { cut_place(text.as_bytes()) };
        let (piece, rest) = text.split_at(end);
        pieces.push_back(Piece { text: piece.to_owned(), starts_document });
        (text, starts_document) = (rest, false);
    }
}

/// Where to cut off the first piece of a longer text: behind the last line that fits, or else the
/// last white space, or else the last whole character.
fn cut_place(text: &[u8]) -> usize {
    let limit = &text[..MAX_PIECE_BYTES.min(text.len())];
    let behind = |found: Option<usize>| found.map(|place| place + 1);
    behind(limit.iter().rposition(|byte| *byte == b'\n'))
        .or_else(|| behind(limit.iter().rposition(u8::is_ascii_whitespace)))
        .unwrap_or_else(|| {
            let starts_character = |byte: &u8| !(0x80..0xc0).contains(byte);
            // Where no character starts at all, the text isn't UTF-8, and the place is of no matter.
            match limit.iter().rposition(starts_character) {
                Some(start) if start > 0 => start,
                _ => limit.len(),
            }
        })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// What the first bytes of a file say. Neither format's are text.
    fn of(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // A skippable frame, which the decoder passes over: `pzstd` begins with one.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::None,
        }
    }
}

/// The bytes of a file, decompressed.
struct Input {
    file: PathBuf,
    compression: Compression,
    bytes: Box<dyn BufRead + Send>,
    /// The line that the next byte belongs to, counted from 1.
    line: u64,
    ended: bool,
}

/// Counts what goes through it.
struct Counted<R> {
    inner: R,
    bytes_read: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.bytes_read.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

const BUFFER_BYTES: usize = 64 << 10;

impl Input {
    fn open(source: &SourceFile, bytes_read: &Arc<AtomicU64>) -> Result<Self, DataError> {
        let path = source.path.clone();
        let read_error = |source| DataError::Read { file: path.clone(), source };
        let file = File::open(&source.target).map_err(read_error)?;
        let file = Counted { inner: file, bytes_read: Arc::clone(bytes_read) };
        let mut file = BufReader::with_capacity(BUFFER_BYTES, file);
        // A read returns few bytes only at the end of a file.
        let start = file.fill_buf().map_err(read_error)?;
        if let Some(format) = source.cut_short(start.len() as u64) {
            let problem = format!("is not a whole {format} file: it has {} bytes", start.len());
            return Err(Defect { file: path, place: Place::Rest, problem }.into());
        }
        let compression = Compression::of(start);
        let bytes: Box<dyn BufRead + Send> = match compression {
            Compression::None => Box::new(file),
            Compression::Gzip => {
                Box::new(BufReader::with_capacity(BUFFER_BYTES, MultiGzDecoder::new(file)))
            }
            Compression::Zstd => {
                let mut decoder =
                    zstd::stream::read::Decoder::with_buffer(file).map_err(read_error)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(read_error)?;
                Box::new(BufReader::with_capacity(BUFFER_BYTES, decoder))
            }
        };
        let mut input = Self { file: path, compression, bytes, line: 1, ended: false };
        input.skip_byte_order_mark()?;
        Ok(input)
    }

    fn skip_byte_order_mark(&mut self) -> Result<(), DataError> {
        if self.peek()?.starts_with("\u{feff}".as_bytes()) {
            self.bytes.consume("\u{feff}".len());
        }
        Ok(())
    }

    /// What is at hand of the bytes that follow; empty at the end, and only there.
    fn peek(&mut self) -> Result<&[u8], DataError> {
        if self.ended {
            return Ok(&[]);
        }
        // Filled first and looked at then: a reference would hold on to `self` where it fails too.
        if let Err(source) = self.bytes.fill_buf() {
            return Err(self.broken(source));
        }
        self.bytes.fill_buf().map_err(|source| DataError::Read { file: self.file.clone(), source })
    }

    /// Takes bytes that [`peek`](Self::peek) has shown.
    fn consume(&mut self, count: usize, lines: u64) {
        self.bytes.consume(count);
        self.line += lines;
    }

    /// The error of a read. Reading the file ends with it.
    fn broken(&mut self, source: io::Error) -> DataError {
        self.ended = true;
        let format = match self.compression {
            Compression::None => return DataError::Read { file: self.file.clone(), source },
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
        };
        // A disk that fails is no property of the file; decoders have no number for what they find.
        if source.raw_os_error().is_some() {
            return DataError::Read { file: self.file.clone(), source };
        }
        self.defect(Place::Rest, format!("is not a whole {format} file"), Some(&source))
    }

    /// Appends bytes to `line` up to the end of the line, which is left out; stops where `line` has
    /// `limit` bytes.
    fn read_line(&mut self, line: &mut Vec<u8>, limit: usize) -> Result<LineEnd, DataError> {
        loop {
            let room = limit.saturating_sub(line.len());
            if room == 0 {
                return Ok(LineEnd::Limit);
            }
            let bytes = self.peek()?;
            if bytes.is_empty() {
                return Ok(LineEnd::File);
            }
            let bytes = &bytes[..bytes.len().min(room)];
            if let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
                line.extend_from_slice(&bytes[..end]);
                self.consume(end + 1, 1);
                return Ok(LineEnd::Break);
            }
            let count = bytes.len();
            line.extend_from_slice(bytes);
            self.consume(count, 0);
        }
    }

    fn utf8<'a>(&self, line: u64, bytes: &'a [u8]) -> Result<&'a str, DataError> {
        str::from_utf8(bytes)
            .map_err(|error| self.defect(Place::Line(line), NOT_UTF8.to_owned(), Some(&error)))
    }

    fn defect(&self, place: Place, problem: String, cause: Option<&dyn Error>) -> DataError {
        let problem = match cause {
            Some(cause) => format!("{problem}: {cause}"),
            None => problem,
        };
        Defect { file: self.file.clone(), place, problem }.into()
    }
}

/// What [`Input::read_line`] stopped at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LineEnd {
    Break,
    File,
    Limit,
}

const NOT_UTF8: &str = "is not valid UTF-8, convert the file first";

/// Documents between blank lines.
struct TextReader {
    input: Input,
    /// What has been read of the document and not yet handed over.
    text: String,
    between_documents: bool,
    line: Vec<u8>,
    /// Whether the line is the rest of one whose start has been read.
    continues: bool,
}

impl TextReader {
    fn new(input: Input) -> Self {
        let (text, line) = (String::new(), Vec::new());
        Self { input, text, between_documents: true, line, continues: false }
    }

    fn next_piece(&mut self) -> Result<Option<Piece>, DataError> {
        loop {
            let number = self.input.line;
            let end = match self.input.read_line(&mut self.line, MAX_PIECE_BYTES) {
                Ok(end) => end,
                Err(error) => {
                    // The start of a line that is cut short is none.
                    (self.line, self.continues) = (Vec::new(), false);
                    return Err(error);
                }
            };
            let mut line = mem::take(&mut self.line);
            let cut = end == LineEnd::Limit;
            if cut {
                self.line = line.split_off(cut_place(&line));
            }
            let continues = mem::replace(&mut self.continues, cut);
            let line = self.input.utf8(number, &line)?.trim_end_matches('\r');

            let file_ends = end == LineEnd::File && line.is_empty();
            let is_blank = line.trim().is_empty() && !continues && !cut;
            let document_ends = file_ends || is_blank;
            if !document_ends {
                self.text.push_str(line);
                if !cut {
                    self.text.push('\n');
                }
            }
            if document_ends || cut || self.text.len() >= MAX_PIECE_BYTES {
                let starts_document = mem::replace(&mut self.between_documents, document_ends);
                if !self.text.is_empty() {
                    return Ok(Some(Piece { text: mem::take(&mut self.text), starts_document }));
                }
                if file_ends {
                    return Ok(None);
                }
            }
        }
    }
}

/// JSON objects with a `text`, one a line or in arrays.
struct JsonReader {
    input: Input,
    /// Whether the first value is an array, once it is known. Only then may others be: in a file of lines, `[` begins one
    /// that is broken, and no array that may reach to the end of the file.
    has_arrays: Option<bool>,
    /// The array that has been begun and not ended.
    array: Option<Array>,
    /// What no object is longer than, in bytes.
    limit: usize,
}

/// A JSON array.
#[derive(Debug, Clone, Copy)]
struct Array {
    /// The line of its bracket.
    line: u64,
    /// The number of elements begun.
    elements: u64,
}

impl JsonReader {
    fn new(input: Input) -> Self {
        Self { input, has_arrays: None, array: None, limit: MAX_JSON_BYTES }
    }

    fn next_text(&mut self) -> Result<Option<String>, DataError> {
        let text = self.next_object();
        if self.input.ended {
            self.array = None;
        }
        text
    }

    fn next_object(&mut self) -> Result<Option<String>, DataError> {
        loop {
            let Some(byte) = self.skip_white_space()? else {
                return match self.array {
                    Some(array) => Err(self.unfinished(array)),
                    None => Ok(None),
                };
            };
            let has_arrays = *self.has_arrays.get_or_insert(byte == b'[');
            match (self.array, byte) {
                (Some(array), _) => {
                    if byte == b']' {
                        self.input.consume(1, 0);
                        self.array = None;
                        continue;
                    }
                    if array.elements > 0 {
                        if byte != b',' {
                            self.input.ended = true;
                            let line = self.input.line;
                            let problem = format!(
                                "has no comma between elements of a JSON array in line {line}; \
                                 what follows is left out"
                            );
                            return Err(self.input.defect(Place::Rest, problem, None));
                        }
                        self.input.consume(1, 0);
                        self.skip_white_space()?;
                    }
                    return self.next_element(array).map(Some);
                }
                (None, b'[') if has_arrays => {
                    self.array = Some(Array { line: self.input.line, elements: 0 });
                    self.input.consume(1, 0);
                }
                (None, _) => return self.next_line().map(Some),
            }
        }
    }

    /// The byte behind white space, which is not taken yet; nothing at the end of the file.
    fn skip_white_space(&mut self) -> Result<Option<u8>, DataError> {
        loop {
            let bytes = self.input.peek()?;
            let count = bytes.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
            let lines = bytes[..count].iter().filter(|byte| **byte == b'\n').count() as u64;
            let next = bytes.get(count).copied();
            let at_end = bytes.is_empty();
            self.input.consume(count, lines);
            if next.is_some() || at_end {
                return Ok(next);
            }
        }
    }

    fn next_line(&mut self) -> Result<String, DataError> {
        let number = self.input.line;
        let mut line = Vec::new();
        if self.input.read_line(&mut line, self.limit)? == LineEnd::Limit {
            while self.input.read_line(&mut Vec::new(), BUFFER_BYTES)? == LineEnd::Limit {}
            return Err(self.too_long(number, ""));
        }
        self.text_of(number, "", &line)
    }

    fn too_long(&self, line: u64, element: &str) -> DataError {
        let problem = format!("{element}is longer than {} MiB", self.limit >> 20);
        self.input.defect(Place::Line(line), problem, None)
    }

    /// An element of an array, whose first byte comes next.
    fn next_element(&mut self, array: Array) -> Result<String, DataError> {
        let number = array.elements + 1;
        self.array = Some(Array { elements: number, ..array });
        let line = self.input.line;
        let (mut element, mut too_long) = (Vec::new(), false);
        let (mut depth, mut in_string, mut escaped) = (0u64, false, false);
        loop {
            let bytes = self.input.peek()?;
            if bytes.is_empty() {
                return Err(self.unfinished(array));
            }
            let (mut count, mut lines, mut ended) = (0, 0, false);
            for &byte in bytes {
                let opens = !in_string && matches!(byte, b'{' | b'[');
                let closes = !in_string && matches!(byte, b'}' | b']');
                if depth == 0 && !in_string && (closes || byte == b',') {
                    ended = true;
                    break;
                }
                count += 1;
                lines += u64::from(byte == b'\n');
                depth = depth + u64::from(opens) - u64::from(closes);
                if byte == b'"' && !escaped {
                    in_string = !in_string;
                }
                escaped = in_string && byte == b'\\' && !escaped;
                if closes && depth == 0 {
                    ended = true;
                    break;
                }
            }
            // Of one that is too long no more is held, but its end is looked for: others may follow.
            too_long |= element.len() + count > self.limit;
            if !too_long {
                element.extend_from_slice(&bytes[..count]);
            }
            self.input.consume(count, lines);
            if ended {
                break;
            }
        }
        let number = format!("(element {number}) ");
        if too_long {
            return Err(self.too_long(line, &number));
        }
        self.text_of(line, &number, &element)
    }

    fn unfinished(&mut self, array: Array) -> DataError {
        self.array = None;
        let problem = format!("ends within the JSON array that begins in line {}", array.line);
        self.input.defect(Place::Rest, problem, None)
    }

    fn text_of(&self, line: u64, element: &str, json: &[u8]) -> Result<String, DataError> {
        #[derive(Deserialize)]
        struct Row {
            text: String,
        }

        let json = self.input.utf8(line, json)?.trim();
        // Serde would also take an array for a struct.
        if !json.starts_with('{') {
            let problem = format!("{element}is not a JSON object");
            return Err(self.input.defect(Place::Line(line), problem, None));
        }
        serde_json::from_str(json).map(|row: Row| row.text).map_err(|error| {
            // The parser counts lines within what it was given.
            let what = error.to_string();
            let what = what.rsplit_once(" at line ").map_or(what.as_str(), |(what, _)| what);
            let problem = format!("{element}is not a JSON object with a string `text`: {what}");
            self.input.defect(Place::Line(line), problem, None)
        })
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
    texts: VecDeque<Result<String, Defect>>,
    bytes_read: Arc<AtomicU64>,
}

impl ParquetReader {
    const ROWS_AT_ONCE: usize = 64;

    fn open(source: &SourceFile, bytes_read: &Arc<AtomicU64>) -> Result<Self, DataError> {
        let path = source.path.as_path();
        let file = File::open(&source.target)
            .map_err(|source| DataError::Read { file: path.to_owned(), source })?;
        let file =
            SerializedFileReader::new(file).map_err(|source| broken_parquet(path, &source))?;

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
            bytes_read: Arc::clone(bytes_read),
        })
    }

    fn next_text(&mut self) -> Result<Option<String>, DataError> {
        loop {
            if let Some(text) = self.texts.pop_front() {
                return Ok(Some(text?));
            }
            match without_panic(|| self.read_rows()) {
                Ok(true) => {}
                Ok(false) => return Ok(None),
                Err(error) => {
                    self.rows_in_group = None;
                    self.next_row_group = self.file.num_row_groups();
                    return Err(broken_parquet(&self.path, &error));
                }
            }
        }
    }

    /// Reads the next rows, or moves on to the next row group; false at the end of the file.
    fn read_rows(&mut self) -> Result<bool, ParquetError> {
        let Some(reader) = &mut self.rows_in_group else {
            if self.next_row_group == self.file.num_row_groups() {
                return Ok(false);
            }
            let group = self.file.get_row_group(self.next_row_group)?;
            self.next_row_group += 1;
            let size = group.metadata().column(self.column).compressed_size();
            self.bytes_read.fetch_add(u64::try_from(size).unwrap_or(0), Ordering::Relaxed);
            // `open` has checked the type, which is the schema's and so that of every row group.
            if let ColumnReader::ByteArrayColumnReader(reader) =
                group.get_column_reader(self.column)?
            {
                self.rows_in_group = Some(reader);
            }
            return Ok(true);
        };

        let (mut levels, mut values) = (Vec::new(), Vec::new());
        let (rows, _, _) =
            reader.read_records(Self::ROWS_AT_ONCE, Some(&mut levels), None, &mut values)?;
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
            let text = str::from_utf8(value.data()).map(str::to_owned).map_err(|error| Defect {
                file: self.path.clone(),
                place: Place::Row(self.rows_read),
                problem: format!("has a text that {NOT_UTF8}: {error}"),
            });
            self.texts.push_back(text);
        }
        Ok(true)
    }
}

/// A panic as an error: the decoder panics at a page whose encoding needs a dictionary that isn't there.
fn without_panic<T>(read: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, ParquetError> {
    panic::catch_unwind(AssertUnwindSafe(read))
        .unwrap_or_else(|payload| Err(ParquetError::General(panic_message(&*payload))))
}

/// The error of a read from a Parquet file: a defect, unless it is the disk that failed.
fn broken_parquet(path: &Path, error: &ParquetError) -> DataError {
    let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
    match cause.and_then(io::Error::raw_os_error) {
        Some(code) => {
            let source = io::Error::from_raw_os_error(code);
            DataError::Read { file: path.to_owned(), source }
        }
        None => {
            let problem = format!("can't be read as Parquet: {error}");
            Defect { file: path.to_owned(), place: Place::Rest, problem }.into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_an_object_that_is_too_long_is_read() {
        let row = |text: &str| format!("{{\"text\": \"{text}\"}}");
        let rows = [row("a"), row(&"word ".repeat(300_000)), row("c")];
        for json in [format!("[{}]", rows.join(",\n")), rows.join("\n")] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("a.json");
            fs::write(&path, &json).unwrap();
            let size = json.len() as u64;
            let file = SourceFile { target: path.clone(), path, format: Format::Json, size };
            let input = Input::open(&file, &Arc::default()).unwrap();
            let mut reader = JsonReader { limit: 1 << 20, ..JsonReader::new(input) };
            let (mut texts, mut defects) = (Vec::new(), Vec::new());
            loop {
                match reader.next_text() {
                    Ok(Some(text)) => texts.push(text),
                    Ok(None) => break,
                    Err(DataError::Defect(defect)) => defects.push(defect),
                    Err(error) => panic!("{error}"),
                }
            }
            assert_eq!(texts, ["a", "c"]);
            let places: Vec<Place> = defects.iter().map(|defect| defect.place).collect();
            assert_eq!(places, [Place::Line(2)]);
            assert!(defects[0].problem.contains("is longer than 1 MiB"), "{}", defects[0]);
        }
    }
}
