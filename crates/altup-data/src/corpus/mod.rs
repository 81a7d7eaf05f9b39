//! Text on disk as one stream of documents.
//!
//! | name ends in | a document is |
//! | --- | --- |
//! | `.txt`, `.txt.gz`, `.txt.zst` | a run of lines between blank lines |
//! | `.json`, `.jsonl`, and both with `.gz` or `.zst` | the `text` of a JSON object: one a line, or the elements of arrays |
//! | `.parquet` | the `text` column of a row |
//!
//! The name says what a file holds, its first bytes how it is compressed. Documents of white space
//! alone are skipped. Reading is lazy: what is held in memory is a document, or for Parquet a page,
//! and never a whole file.

mod defect;
mod files;
mod reader;
mod sample;

use std::collections::HashSet;
use std::env;
use std::fmt;
use std::mem;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use self::files::Found;
use self::reader::Reader;
use crate::DataError;

pub use self::defect::{Defect, OnError, Place, SkippedInFile};
pub(crate) use self::files::SourceFile;
pub use self::reader::{Document, READER_VERSION};

/// An ordered list of files with text in them, and which of their documents to read.
#[derive(Debug, Clone)]
pub struct Corpus {
    sources: Vec<String>,
    shards: Arc<[Shard]>,
    dangling: Arc<[PathBuf]>,
    selection: Selection,
}

/// The part of a corpus that is tokenised as one: a file, or some small files one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shard {
    pub(crate) files: Vec<SourceFile>,
}

/// Which documents of the files belong to a corpus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selection {
    /// All.
    All,
    /// All but the last of every `every` documents.
    Except {
        /// How many.
        every: u64,
    },
    /// Only the last of every `every` documents.
    Only {
        /// How many.
        every: u64,
    },
}

impl fmt::Display for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all documents"),
            Self::Except { every } => write!(f, "all but one of every {every} documents"),
            Self::Only { every } => write!(f, "one of every {every} documents"),
        }
    }
}

impl Selection {
    pub(crate) fn contains(self, index: u64) -> bool {
        match self {
            Self::All => true,
            Self::Except { every } => index % every != every - 1,
            Self::Only { every } => index % every == every - 1,
        }
    }
}

/// Up to this many files, each is a shard of its own.
const MAX_SINGLE_FILES: usize = 4096;

/// The mean size of a shard of small files, in bytes. A file as large ends its shard.
const SHARD_BYTES: u64 = 32 << 20;

/// A shard ends at this size at the latest, which less than one in a thousand reaches unless files have the same names and
/// sizes.
const MAX_SHARD_BYTES: u64 = 8 * SHARD_BYTES;

impl Corpus {
    /// Finds the files behind `sources`: each a file, a folder (searched with its subfolders) or a
    /// glob.
    ///
    /// The sources come in their order, and the files of one sorted by their paths as they were found: a link stands
    /// where its name says, wherever the file behind it lies. A file found twice is read once; of several names of it, the first in this order counts. In
    /// folders and globs, files with other extensions are passed over; a file that is named itself must have a known
    /// one. Hidden files and folders below a folder are passed over too, and [links to nothing](Self::dangling_links).
    ///
    /// # Errors
    ///
    /// Names the source that has no data file, or the file or folder that can't be read.
    pub fn open(sources: &[String]) -> Result<Self, DataError> {
        let Found { files, dangling } = files::find_all(sources)?;
        let corpus = Self::new(sources.to_vec(), files, MAX_SINGLE_FILES);
        Ok(Self { dangling: dangling.into(), ..corpus })
    }

    /// The corpus that every machine has that builds Rust: the crate sources under
    /// `$CARGO_HOME/registry/src`.
    ///
    /// It takes `.rs` and `.md` files, each one document, up to `max_bytes` in all. They come in
    /// the order of the hashes of their paths, which does not depend on the machine and mixes all
    /// crates from the start.
    ///
    /// # Errors
    ///
    /// If Cargo has unpacked no crate here.
    pub fn cargo_sources(max_bytes: u64) -> Result<Self, DataError> {
        let cargo_home = env::var_os("CARGO_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(env::home_dir()?.join(".cargo")))
            .unwrap_or_default();
        let folder = cargo_home.join("registry").join("src");
        let files = files::crate_sources(&folder, max_bytes)?;
        Ok(Self::new(vec![folder.to_string_lossy().into_owned()], files, 0))
    }

    fn new(sources: Vec<String>, files: Vec<SourceFile>, max_single_files: usize) -> Self {
        let shards = shards(files, max_single_files).into();
        Self { sources, shards, dangling: Arc::default(), selection: Selection::All }
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
        let held_out = Self { selection: Selection::Only { every }, ..self.clone() };
        let rest = Self { selection: Selection::Except { every }, ..self };
        (rest, held_out)
    }

    /// What the corpus was opened with.
    pub fn sources(&self) -> &[String] {
        &self.sources
    }

    /// The files as they were found, in the order in which they are read.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.source_files().map(|file| file.path.as_path())
    }

    /// Links that were passed over, as there is nothing where they lead: a part of the text may be missing.
    pub fn dangling_links(&self) -> &[PathBuf] {
        &self.dangling
    }

    /// Those of its files that another corpus has too, under whatever name.
    pub fn files_shared_with<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'a Path> {
        let others: HashSet<&Path> =
            other.source_files().map(|file| file.target.as_path()).collect();
        let shared = self.source_files().filter(move |file| others.contains(file.target.as_path()));
        shared.map(|file| file.path.as_path())
    }

    /// The size of the files in bytes, as they lie on the disk.
    pub fn bytes(&self) -> u64 {
        self.source_files().map(|file| file.size).sum()
    }

    fn source_files(&self) -> impl Iterator<Item = &SourceFile> {
        self.shards.iter().flat_map(|shard| &shard.files)
    }

    pub(crate) fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// Which documents of the files belong to it.
    pub fn selection(&self) -> Selection {
        self.selection
    }

    /// The error that the corpus holds no text.
    pub(crate) fn without_text(&self) -> DataError {
        let files = named(&mut self.files());
        match self.selection {
            Selection::Only { every } => DataError::NothingHeldOut { every, files },
            _ => DataError::EmptyCorpus { files },
        }
    }

    /// The documents, in order. A [`Defect`] is an error behind which the stream goes on; any other
    /// error ends it.
    pub fn documents(&self) -> impl Iterator<Item = Result<Document, DataError>> {
        let mut documents = Documents::new(self.source_files().cloned().collect(), Arc::default());
        let selection = self.selection;
        std::iter::from_fn(move || documents.next()).filter(move |document| {
            document.as_ref().map_or(true, |document| selection.contains(document.index))
        })
    }
}

/// Joins files into shards, in their order. Nearly all shards end where the file that ends them says so, so that a file that
/// is new or gone changes the shard it falls into and few others.
fn shards(files: Vec<SourceFile>, max_single_files: usize) -> Vec<Shard> {
    if files.len() <= max_single_files {
        return files.into_iter().map(|file| Shard { files: vec![file] }).collect();
    }
    let mut shards = Vec::new();
    let (mut shard, mut bytes) = (Vec::new(), 0);
    for file in files {
        bytes += file.size;
        let ends = bytes >= MAX_SHARD_BYTES || ends_shard(&file);
        shard.push(file);
        if ends {
            shards.push(Shard { files: mem::take(&mut shard) });
            bytes = 0;
        }
    }
    if !shard.is_empty() {
        shards.push(Shard { files: shard });
    }
    shards
}

/// Whether a small file ends its shard, by a hash of its name and size: as probable as its share of [`SHARD_BYTES`]. The
/// folders that it lies in have no say: they may be another's tomorrow.
fn ends_shard(file: &SourceFile) -> bool {
    let mut hasher = blake3::Hasher::new();
    hasher.update(file.path.file_name().unwrap_or_default().as_encoded_bytes());
    hasher.update(&file.size.to_le_bytes());
    let mut hash = [0; 8];
    hasher.finalize_xof().fill(&mut hash);
    u128::from(u64::from_le_bytes(hash)) * u128::from(SHARD_BYTES) < u128::from(file.size) << 64
}

impl Shard {
    /// The documents of the shard, counted from 0. `bytes_read` grows by the bytes read from disk.
    pub(crate) fn documents(&self, bytes_read: Arc<AtomicU64>) -> Documents {
        Documents::new(self.files.clone(), bytes_read)
    }

    /// The size of the files in bytes, as they lie on the disk.
    pub(crate) fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }

    /// What it is called where it is missed.
    pub(crate) fn name(&self) -> String {
        named(&mut self.files.iter().map(|file| file.path.as_path()))
    }
}

/// Some files in a few words.
fn named(files: &mut dyn Iterator<Item = &Path>) -> String {
    match (files.next(), files.count()) {
        (None, _) => "no file".to_owned(),
        (Some(file), 0) => file.display().to_string(),
        (Some(first), rest) => format!("{} and {rest} more", first.display()),
    }
}

/// The documents of some files, read one by one, in pieces where they are long. Behind a
/// [`Defect`] they go on; any other error ends them.
pub(crate) struct Documents {
    files: std::vec::IntoIter<SourceFile>,
    /// How many files have been opened.
    opened: usize,
    reader: Option<Reader>,
    bytes_read: Arc<AtomicU64>,
    /// How many documents have been begun.
    started: u64,
}

impl Documents {
    fn new(files: Vec<SourceFile>, bytes_read: Arc<AtomicU64>) -> Self {
        Self { files: files.into_iter(), opened: 0, reader: None, bytes_read, started: 0 }
    }

    fn next_piece(&mut self) -> Result<Option<Document>, DataError> {
        loop {
            if let Some(reader) = &mut self.reader
                && let Some(piece) = reader.next_piece()?
            {
                self.started += u64::from(piece.starts_document);
                return Ok(Some(Document { index: self.started - 1, text: piece.text }));
            }
            self.reader = None;
            match self.files.next() {
                Some(file) => {
                    self.opened += 1;
                    self.reader = Some(Reader::open(&file, &self.bytes_read)?);
                }
                None => return Ok(None),
            }
        }
    }

    /// The number of the file, from 0, that the last document or defect is of.
    pub(crate) fn file(&self) -> usize {
        self.opened.saturating_sub(1)
    }
}

impl Iterator for Documents {
    type Item = Result<Document, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.next_piece();
        if next.as_ref().is_err_and(|error| !matches!(error, DataError::Defect(_))) {
            self.files = Vec::new().into_iter();
            self.reader = None;
        }
        next.transpose()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use flate2::write::GzEncoder;
    use parquet::data_type::{ByteArray, ByteArrayType, Int32Type};
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;
    use tempfile::TempDir;

    use super::files::Format;
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

    /// The places of defects, and the problem of the first.
    fn defects(name: &str, bytes: &[u8]) -> (Vec<Place>, String) {
        let folder = folder_with(&[(name, bytes)]);
        let corpus = open(&folder, name).unwrap();
        let errors = corpus.documents().filter_map(Result::err);
        let defects: Vec<Defect> = errors
            .map(|error| match error {
                DataError::Defect(defect) => defect,
                error => panic!("{error}"),
            })
            .collect();
        (defects.iter().map(|defect| defect.place).collect(), defects[0].to_string())
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
        assert_eq!(read(&corpus).unwrap(), ["b\n", "y", "z\n"]);
        let names: Vec<_> = corpus.files().map(|path| path.file_name().unwrap()).collect();
        assert_eq!(names, ["b.txt", "y.jsonl", "z.txt"]);
    }

    #[test]
    fn sources_are_read_in_the_order_in_which_they_are_named_wherever_they_lie() {
        let folder = folder_with(&[("z/2.txt", b"z2"), ("z/1.txt", b"z1"), ("a/1.txt", b"a1")]);
        let named = |names: [&str; 2]| {
            let sources = names.map(|name| folder.path().join(name).to_string_lossy().into_owned());
            read(&Corpus::open(&sources).unwrap()).unwrap()
        };
        let expected = ["z1\n", "z2\n", "a1\n"];
        assert_eq!(named(["z", "a"]), expected);
        fs::rename(folder.path().join("a"), folder.path().join("zz")).unwrap();
        assert_eq!(named(["z", "zz"]), expected);
        fs::rename(folder.path().join("z"), folder.path().join("0")).unwrap();
        assert_eq!(named(["0", "zz"]), expected);
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
    fn defects_name_the_line_and_reading_goes_on_behind_them() {
        let text = b"fine\n\nbad \xff\nrest\n\n\xff\n\nlast";
        let (places, message) = defects("a.txt", text);
        assert_eq!(places, [Place::Line(3), Place::Line(6)]);
        assert!(message.contains("a.txt: line 3 is not valid UTF-8"), "{message}");
        let folder = folder_with(&[("a.txt", text)]);
        let texts: Vec<String> = open(&folder, "a.txt")
            .unwrap()
            .documents()
            .filter_map(|document| Some(document.ok()?.text))
            .collect();
        assert_eq!(texts, ["fine\n", "rest\n", "last\n"]);

        let rows = b"{\"text\": \"a\"}\n[\"b\"]\n\n{\"text\": \"c\"}\nd\n{\"text\": \"\xff\"}";
        let (places, message) = defects("a.jsonl", rows);
        assert_eq!(places, [2, 5, 6].map(Place::Line));
        assert!(message.ends_with("line 2 is not a JSON object"), "{message}");
        for (line, problem) in [
            ("{\"txt\": \"b\"}", "missing field `text`"),
            ("{\"text\": 1}", "expected a string"),
            ("{\"text\": \"b\"", "EOF while parsing"),
        ] {
            let (places, message) = defects("a.jsonl", line.as_bytes());
            assert_eq!(places, [Place::Line(1)]);
            assert!(message.contains("line 1 is not a JSON object with"), "{message}");
            assert!(message.contains(problem) && !message.contains(" at line"), "{message}");
        }
    }

    #[test]
    fn arrays_give_their_elements_wherever_lines_end() {
        let json = br#" [{"text": "a [\"]}\\"} ,{"text":"b", "more": [1, {"x": "]"}]},
            {"other": 1}, 5, {"text": "c"}]
            {"text": "d"}
            []"#;
        let folder = folder_with(&[("a.json", json)]);
        let corpus = open(&folder, "a.json").unwrap();
        let (texts, errors): (Vec<_>, Vec<_>) = corpus.documents().partition(Result::is_ok);
        let texts: Vec<String> = texts.into_iter().map(|document| document.unwrap().text).collect();
        assert_eq!(texts, ["a [\"]}\\", "b", "c", "d"]);
        let errors: Vec<String> =
            errors.into_iter().map(|error| error.unwrap_err().to_string()).collect();
        assert_eq!(errors.len(), 2, "{errors:?}");
        assert!(errors[0].contains("line 2 (element 3) is not a JSON object with"), "{errors:?}");
        assert!(errors[1].ends_with("line 2 (element 4) is not a JSON object"), "{errors:?}");

        for json in [
            &br#"[{"text": "a"},"#[..],
            br#"[{"text": "a"}"#,
            br#"[{"text": "a"} {"text": "b"}]"#,
            br#"[{"text": "a"#,
        ] {
            let (places, _) = defects("a.json", json);
            assert_eq!(places, [Place::Rest], "{}", String::from_utf8_lossy(json));
        }
        let (_, message) = defects("a.json", b"[{\"text\": \"a\"}\n{\"text\": \"b\"}]");
        assert!(message.ends_with("in line 2; what follows is left out"), "{message}");
    }

    #[test]
    fn a_bracket_begins_an_array_only_where_the_file_begins_with_one() {
        let rows = b"{\"text\":\"a\"}\n[\"b\n{\"text\":\"c\"}\n  [\n{\"text\":\"d\"}";
        let (places, message) = defects("a.jsonl", rows);
        assert_eq!(places, [2, 4].map(Place::Line));
        assert!(message.ends_with("line 2 is not a JSON object"), "{message}");
        let folder = folder_with(&[("a.jsonl", rows)]);
        let corpus = open(&folder, "a.jsonl").unwrap();
        let texts = corpus.documents().filter_map(|document| Some(document.ok()?.text));
        assert!(texts.eq(["a", "c", "d"]));

        let (_, message) = defects("a.json", b"[]\n\n[{\"text\": \"a\"},\n\n");
        assert!(message.ends_with("ends within the JSON array that begins in line 3"), "{message}");
    }

    #[test]
    fn a_large_array_in_one_line_streams() {
        let element = serde_json::json!({ "text": "word ".repeat(200) }).to_string();
        let json = format!("[{}]", vec![element; 2000].join(","));
        let folder = folder_with(&[("a.json", json.as_bytes())]);
        let read = Arc::new(AtomicU64::new(0));
        let corpus = open(&folder, "a.json").unwrap();
        let mut documents = corpus.shards()[0].documents(Arc::clone(&read));
        assert_eq!(documents.next().unwrap().unwrap().text, "word ".repeat(200));
        let read = read.load(std::sync::atomic::Ordering::Relaxed);
        assert!(read < 200_000 && json.len() > 2_000_000, "{read} of {}", json.len());
        assert_eq!(documents.count(), 1999);
    }

    #[test]
    fn what_is_whole_of_a_damaged_file_is_read() {
        // Each compressed block holds so much that half a file has a few.
        let text: String = (0..200_000u64).map(|n| format!("{}\n\n", n * n % 1_000_003)).collect();
        let short = |bytes: Vec<u8>| bytes[..bytes.len() / 2].to_vec();
        let zst = short(zstd::encode_all(text.as_bytes(), 1).unwrap());
        for (name, bytes) in [("a.txt.gz", short(gzip(text.as_bytes()))), ("a.txt.zst", zst)] {
            let (places, message) = defects(name, &bytes);
            assert_eq!(places, [Place::Rest], "{name}");
            assert!(message.contains(" is not a whole "), "{message}");
            assert_ends_with_whole_lines(name, &bytes, &text);
            let folder = folder_with(&[(name, &bytes), ("b.txt", b"fine")]);
            let corpus = open(&folder, "").unwrap();
            let texts: Vec<String> =
                corpus.documents().filter_map(|document| Some(document.ok()?.text)).collect();
            assert!(texts.len() > 20_000, "{name}: {}", texts.len());
            assert_eq!(texts[..2], ["0\n", "1\n"]);
            assert_eq!(texts[texts.len() - 1], "fine\n");
        }
        let (places, message) = defects("a.parquet", b"PAR1 this is not Parquet");
        assert_eq!(places, [Place::Rest]);
        assert!(message.contains("Parquet"), "{message}");
    }

    fn assert_ends_with_whole_lines(name: &str, bytes: &[u8], text: &str) {
        let folder = folder_with(&[(name, bytes)]);
        let documents = open(&folder, name).unwrap();
        let texts = documents.documents().filter_map(|document| Some(document.ok()?.text));
        let read: String = texts.map(|text| text + "\n").collect();
        assert!(text.starts_with(&read), "{name}: the start of a line is none");
    }

    #[test]
    fn a_file_that_is_cut_short_has_one_defect_wherever_it_is_cut() {
        // Stored, so that every byte is there up to the cut.
        let stored = |text: &str| {
            let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::none());
            encoder.write_all(text.as_bytes()).unwrap();
            encoder.finish().unwrap()
        };
        let text = "one\n\n\u{e9}\u{e9}\u{e9}";
        let array = "[{\"text\": \"one\"}, {\"text\": \"\u{e9}\u{e9}\u{e9}\"}]";
        for (name, text) in [("a.txt.gz", text), ("a.json.gz", array)] {
            // Eight bytes behind the text check it.
            let with_all_of_it = stored(text).len() - 8;
            for missing in 0..10 {
                let bytes = &stored(text)[..with_all_of_it - missing];
                let (places, message) = defects(name, bytes);
                assert_eq!(places, [Place::Rest], "{name}: {missing} bytes: {message}");
            }
        }
    }

    /// A table whose second page says that it needs a dictionary, and has none.
    fn parquet_without_its_dictionary() -> Vec<u8> {
        let schema = "message m { required binary text (UTF8); }";
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let properties = parquet::file::properties::WriterProperties::builder()
            .set_dictionary_enabled(false)
            .set_statistics_enabled(parquet::file::properties::EnabledStatistics::None)
            .build();
        let mut bytes = Vec::new();
        let mut file = SerializedFileWriter::new(&mut bytes, schema, properties.into()).unwrap();
        let mut group = file.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let texts = [ByteArray::from("one")];
        column.typed::<ByteArrayType>().write_batch(&texts, None, None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
        file.close().unwrap();
        // The page's header, in Thrift's compact protocol: an i32 of the number of values (1), then one of the encoding
        // (0 is plain, 8 a dictionary's).
        let (values, encoding) = ([0x15, 0x02], [0x15, 0x00]);
        let header = [values, encoding].concat();
        let place = bytes.windows(4).position(|window| window == header).unwrap();
        bytes[place + 3] = 2 * 8;
        bytes
    }

    #[test]
    fn a_parquet_file_that_makes_the_decoder_panic_is_a_defect() {
        let (places, message) = defects("a.parquet", &parquet_without_its_dictionary());
        assert_eq!(places, [Place::Rest]);
        assert!(message.contains("a.parquet: can't be read as Parquet"), "{message}");
    }

    #[test]
    fn a_compressed_file_that_was_cut_to_a_few_bytes_has_a_defect() {
        let text = b"one\n\ntwo\n";
        let json = b"{\"text\": \"one\"}";
        let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
        for (name, bytes) in [
            ("a.txt.gz", gzip(text)),
            ("a.txt.zst", zstd(text)),
            ("a.json.gz", gzip(json)),
            ("a.JSONL.ZST", zstd(json)),
        ] {
            for size in 0..12 {
                let folder = folder_with(&[(name, &bytes[..size]), ("b.txt", b"fine")]);
                let documents: Vec<_> = open(&folder, "").unwrap().documents().collect();
                let [Err(DataError::Defect(defect)), Ok(fine)] = documents.as_slice() else {
                    panic!("{name} of {size} bytes: {documents:?}")
                };
                assert_eq!((defect.place, fine.text.as_str()), (Place::Rest, "fine\n"));
                assert!(defect.to_string().contains(" is not a whole "), "{defect}");
            }
        }
        assert_eq!(read_one("a.txt", b"(").unwrap(), ["(\n"]);
    }

    #[test]
    fn compression_is_told_by_content() {
        let text = b"one\n\ntwo\n";
        let zst = zstd::encode_all(&text[..], 1).unwrap();
        for (name, bytes) in [
            ("a.txt", gzip(text)),
            ("a.txt", zst.clone()),
            ("a.txt.gz", text.to_vec()),
            ("a.txt.gz", zst),
            ("a.txt.zst", gzip(text)),
        ] {
            assert_eq!(read_one(name, &bytes).unwrap(), ["one\n", "two\n"], "{name}");
        }
    }

    /// `pzstd` begins a file with a skippable frame, and seekable files end with one.
    #[test]
    fn skippable_frames_of_zstandard_are_passed_over() {
        let skippable = [0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4];
        let [one, two] =
            ["one\n\n", "two\n"].map(|text| zstd::encode_all(text.as_bytes(), 1).unwrap());
        for frames in [
            [&skippable[..], &one, &two].concat(),
            [&one[..], &skippable, &two].concat(),
            [&skippable[..], &one, &skippable, &two, &skippable].concat(),
        ] {
            assert_eq!(read_one("a.txt.zst", &frames).unwrap(), ["one\n", "two\n"]);
        }
    }

    #[test]
    fn zstandard_windows_of_any_size_are_read() {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(28).unwrap();
        encoder.long_distance_matching(true).unwrap();
        // Streamed in parts: of a text whose length is known the window is no longer than it.
        encoder.write_all(b"one\n\n").unwrap();
        encoder.flush().unwrap();
        encoder.write_all(b"two\n").unwrap();
        assert_eq!(read_one("a.txt.zst", &encoder.finish().unwrap()).unwrap(), ["one\n", "two\n"]);
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
    fn text_without_lines_comes_in_pieces_cut_at_words_or_characters() {
        let words = "word ".repeat(500_000);
        let characters = "\u{e9}".repeat(1_000_000);
        for text in [words, characters] {
            let json = serde_json::json!({ "text": text }).to_string();
            for (name, bytes, end) in
                [("a.txt", text.as_bytes(), "\n"), ("a.jsonl", json.as_bytes(), "")]
            {
                let folder = folder_with(&[(name, bytes)]);
                let documents: Vec<Document> =
                    open(&folder, name).unwrap().documents().collect::<Result<_, _>>().unwrap();
                assert!(documents.len() >= 2 && documents.len() <= 4, "{}", documents.len());
                assert!(documents.iter().all(|piece| piece.index == 0));
                let joined: String = documents.iter().map(|piece| piece.text.as_str()).collect();
                assert_eq!(joined, text.clone() + end, "{name}");
                let pieces = &documents[..documents.len() - 1];
                assert!(pieces.iter().all(|piece| piece.text.len() <= 2 << 20));
                assert!(
                    pieces
                        .iter()
                        .all(|piece| !piece.text.contains(' ') || piece.text.ends_with(' '))
                );
            }
        }
    }

    #[test]
    fn hidden_files_are_passed_over_and_links_followed() {
        let folder = folder_with(&[
            (".hidden/a.txt", b"a"),
            ("data/.b.txt", b"b"),
            ("data/c.txt", b"c"),
            ("elsewhere/d.txt", b"d"),
        ]);
        #[cfg(unix)]
        {
            use std::os::unix::fs::symlink;
            let at = |name: &str| folder.path().join(name);
            symlink(at("elsewhere"), at("data/link")).unwrap();
            symlink(at("data"), at("data/circle")).unwrap();
            symlink(at("nowhere"), at("data/dangling.txt")).unwrap();
            symlink(at("nowhere"), at("data/.lock")).unwrap();
            let corpus = open(&folder, "data").unwrap();
            assert_eq!(read(&corpus).unwrap(), ["c\n", "d\n"]);
            assert_eq!(corpus.dangling_links(), [at("data/dangling.txt")]);
        }
        assert_eq!(read(&open(&folder, ".hidden").unwrap()).unwrap(), ["a\n"]);
        assert_eq!(read(&open(&folder, "").unwrap()).unwrap(), ["c\n", "d\n"]);
    }

    /// As a folder that may not be entered is, or a disk that fails.
    #[cfg(unix)]
    #[test]
    fn a_link_that_can_not_be_followed_is_an_error_unless_there_is_nothing() {
        use std::os::unix::fs::symlink;
        let folder = folder_with(&[("data/b.txt", b"b")]);
        let at = |name: &str| folder.path().join(name);
        symlink("a.txt", at("data/a.txt")).unwrap();
        symlink("circle", at("circle")).unwrap();
        for source in ["data", "data/*.txt", "*/a.txt", "data/a.txt", "circle/*.txt"] {
            let error = open(&folder, source).unwrap_err();
            let DataError::Read { file, .. } = &error else { panic!("{source}: {error}") };
            let names = ["data/a.txt", "circle/*.txt"];
            assert!(names.iter().any(|name| file.ends_with(name)), "{source}: {error}");
        }
        // What isn't asked for doesn't matter, nor what can't be a name.
        assert_eq!(read(&open(&folder, "data/b*").unwrap()).unwrap(), ["b\n"]);
        let long = format!("data/[{}]*", "b".repeat(300));
        assert_eq!(read(&open(&folder, &long).unwrap()).unwrap(), ["b\n"]);
    }

    #[test]
    fn globs_pass_over_and_follow_what_folders_do() {
        let folder = folder_with(&[
            ("a/en/1.json", b"{\"text\": \"1\"}"),
            ("a/en/._1.json", b"not text"),
            ("b/en/2.json", b"{\"text\": \"2\"}"),
            ("b/de/3.json", b"{\"text\": \"3\"}"),
            (".hidden/en/4.json", b"{\"text\": \"4\"}"),
        ]);
        #[cfg(unix)]
        for name in ["a/en/0.json", "a/en/0.txt"] {
            std::os::unix::fs::symlink("nowhere", folder.path().join(name)).unwrap();
        }
        #[cfg(unix)]
        assert_eq!(
            open(&folder, "a/en/*.json").unwrap().dangling_links(),
            [folder.path().join("a/en/0.json")]
        );
        for (glob, texts) in [
            ("a/en/*.json", &["1"][..]),
            ("*/en/*.json", &["1", "2"]),
            ("*/[ed][ne]", &["1", "3", "2"]),
            ("?", &["1", "3", "2"]),
            ("**/*.json", &["1", "3", "2"]),
            ("b/**/2.json", &["2"]),
            (".hidden/*/*.json", &["4"]),
            (".h*/en/*.json", &["4"]),
        ] {
            assert_eq!(read(&open(&folder, glob).unwrap()).unwrap(), texts, "{glob}");
        }
        assert!(matches!(open(&folder, "*/fr/*.json"), Err(DataError::NoMatch { .. })));
    }

    /// As Linux has them.
    #[cfg(target_os = "linux")]
    #[test]
    fn names_that_are_not_utf_8_are_found_by_folders_and_globs() {
        use std::os::unix::ffi::OsStrExt;
        let folder = folder_with(&[]);
        let name = std::ffi::OsStr::from_bytes(b"\xff.txt");
        fs::write(folder.path().join(name), b"text").unwrap();
        for source in ["", "*.txt"] {
            assert_eq!(read(&open(&folder, source).unwrap()).unwrap(), ["text\n"], "{source}");
        }
    }

    /// A folder of links to files that are named by hashes, as download caches are.
    #[cfg(unix)]
    #[test]
    fn links_stand_where_their_names_say_wherever_the_files_lie() {
        use std::os::unix::fs::symlink;
        let names = ["a.jsonl", "b.jsonl", "c.jsonl"];
        let row = |name: &str| format!("{{\"text\": \"{name}\"}}").into_bytes();
        for blobs in [["3f", "11", "a0"], ["09", "f0", "51"]] {
            let folder = folder_with(&[]);
            let at = |name: &str| folder.path().join(name);
            fs::create_dir_all(at("blobs")).unwrap();
            fs::create_dir_all(at("snapshot/en")).unwrap();
            for (name, blob) in names.iter().zip(blobs) {
                fs::write(at("blobs").join(blob), row(name)).unwrap();
                let target = Path::new("../../blobs").join(blob);
                symlink(target, at("snapshot/en").join(name)).unwrap();
            }
            for source in ["snapshot", "snapshot/en/*.jsonl"] {
                let corpus = open(&folder, source).unwrap();
                assert_eq!(read(&corpus).unwrap(), names, "{source}");
                assert!(corpus.files().eq(names.map(|name| at("snapshot/en").join(name))));
            }

            // A second name of a file is passed over: here the link, whose folder comes later.
            fs::rename(at("blobs").join(blobs[1]), at("snapshot/b.jsonl")).unwrap();
            let link = at("snapshot/en/b.jsonl");
            fs::remove_file(&link).unwrap();
            symlink("../b.jsonl", &link).unwrap();
            let corpus = open(&folder, "snapshot").unwrap();
            assert_eq!(read(&corpus).unwrap(), ["b.jsonl", "a.jsonl", "c.jsonl"]);
            let linked = open(&folder, "snapshot/en").unwrap();
            let shared: Vec<&Path> = linked.files_shared_with(&corpus).collect();
            assert!(shared.iter().eq(&names.map(|name| at("snapshot/en").join(name))));
        }
    }

    #[test]
    fn splits_of_c4_are_told_apart_by_their_globs() {
        let names = ["train.00000-of-01024", "train.00001-of-01024", "validation.00000-of-00008"];
        let files = names.map(|name| format!("en/c4-{name}.json.gz"));
        let row = |name: &str| gzip(format!("{{\"text\": \"{name}\"}}").as_bytes());
        let contents = names.map(row);
        let files: Vec<(&str, &[u8])> =
            files.iter().map(String::as_str).zip(contents.iter().map(Vec::as_slice)).collect();
        let folder = folder_with(&files);
        assert_eq!(read(&open(&folder, "en/c4-train.*.json.gz").unwrap()).unwrap(), names[..2]);
        assert_eq!(
            read(&open(&folder, "en/c4-validation.*.json.gz").unwrap()).unwrap(),
            names[2..]
        );
    }

    /// The number of shards of `after` that aren't shards of `before`.
    fn changed(before: &[Shard], after: &[Shard]) -> usize {
        let before: HashSet<Vec<&Path>> = before.iter().map(paths).collect();
        after.iter().filter(|shard| !before.contains(&paths(shard))).count()
    }

    fn paths(shard: &Shard) -> Vec<&Path> {
        shard.files.iter().map(|file| file.path.as_path()).collect()
    }

    #[test]
    fn small_files_share_shards_and_a_new_file_changes_few_whatever_their_size() {
        let named = |name: &str, size: u64| {
            let path = PathBuf::from(format!("/corpus/{name}.txt"));
            SourceFile { target: path.clone(), path, format: Format::Text, size }
        };
        for size in [100 << 10, 1 << 20, 16 << 20, 31 << 20] {
            let file = |number: u64| named(&format!("{number:06}"), size);
            let files: Vec<SourceFile> = (0..5000).map(file).collect();
            assert_eq!(shards(files[..100].to_vec(), 100).len(), 100);
            let before = shards(files.clone(), 100);
            let joined: Vec<SourceFile> =
                before.iter().flat_map(|shard| shard.files.clone()).collect();
            assert_eq!(joined, files);
            let mean = 5000 * size / before.len() as u64;
            // A shard has the file that ends it, however small the others are.
            assert!((SHARD_BYTES / 2..2 * SHARD_BYTES).contains(&mean), "{size}: {mean}");
            let largest = before.iter().map(Shard::bytes).max().unwrap();
            assert!(largest < MAX_SHARD_BYTES + size, "{size}: {largest}");

            let places = [10, 777, 2500, 3999];
            let new = places.map(|place| {
                let mut more = files.clone();
                more.insert(place, named(&format!("{place:06}b"), size));
                let after = shards(more, 100);
                changed(&before, &after) + changed(&after, &before)
            });
            assert!(new.iter().all(|new| *new <= 12), "{size}: {new:?}");
            assert!(new.iter().sum::<usize>() <= 20, "{size}: {new:?}");

            for folder in ["/moved", "/mnt/b/corpus", "/corpus/below/folders/of/its/own"] {
                let moved = files.iter().map(|file| {
                    let path = Path::new(folder).join(file.path.file_name().unwrap());
                    SourceFile { target: path.clone(), path, ..file.clone() }
                });
                let sizes = |shards: &[Shard]| -> Vec<usize> {
                    shards.iter().map(|shard| shard.files.len()).collect()
                };
                assert_eq!(sizes(&shards(moved.collect(), 100)), sizes(&before), "{folder}");
            }
        }

        let large = |number: u64| named(&number.to_string(), SHARD_BYTES);
        assert_eq!(shards((0..200).map(large).collect(), 100).len(), 200);
        // Files of one name and size, of which the hash lets all or none end a shard.
        let alike = (0..1000).map(|_| named("text", 1 << 20)).collect();
        assert_eq!(shards(alike, 100).len(), 4);
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
        let crate_sources = |folder: &Path, max_bytes| {
            let files = files::crate_sources(folder, max_bytes)?;
            Ok::<_, DataError>(Corpus::new(Vec::new(), files, 0))
        };
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
