//! A folder with a small corpus and the configuration of a tiny model, and the command `altup` in it.

// Each test binary uses a part.
#![allow(dead_code)]

use flate2::Compression;
use flate2::write::GzEncoder;
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use tempfile::TempDir;

/// An AltUp of two layers and two blocks: a step is a matter of milliseconds.
const CONFIG: &str = r#"
[model]
size = "tiny"
d_model = 16
d_kv = 8
num_heads = 2
d_ff = 32
num_layers = 2
num_decoder_layers = 2

[model.altup]
num_blocks = 2

[data]
vocab_size = 300
input_length = 32

[schedule]
warmup_steps = 100

[training]
steps = 12
batch_size = 4
log_every = 2
eval_every = 4
eval_examples = 8
checkpoint_every = 3
"#;

/// Every 100th document is held out, and the last one isn't: what is appended is trained on.
const DOCUMENTS: usize = 310;

const COMMON_WORDS: &str = "the of and a to in was that he it his her with as for had on at by \
    she not from but they which were there or one all be their so when out no up who would then \
    into river stone house light water morning winter mountain garden window shadow voice road";

/// A temporary folder with `corpus.txt` and `config.toml`, in which commands run.
pub(crate) struct Workspace {
    folder: TempDir,
}

impl Workspace {
    pub(crate) fn new() -> Self {
        // A name that is no glob of itself, and has a space.
        let folder = tempfile::Builder::new().prefix("altup [1] ").tempdir().unwrap();
        let workspace = Self { folder };
        workspace.write("corpus.txt", corpus());
        workspace.write("config.toml", CONFIG);
        workspace
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file, and the folders above it.
    pub(crate) fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, contents).unwrap();
        path
    }

    /// The command with `args`, not yet started.
    pub(crate) fn altup(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_altup"));
        command
            .args(args)
            .current_dir(self.folder.path())
            .env("ALTUP_CACHE", self.path("cache"))
            // A path that isn't there may be a name on the hub, which no test shall ask.
            .env("HF_HOME", self.path("hub"))
            .env("HF_HUB_OFFLINE", "1")
            .env("RAYON_NUM_THREADS", "1");
        command
    }

    /// A run of `config.toml` on `corpus.txt`, with its folder `run`.
    pub(crate) fn train(&self, run: &str, extra: &[&str]) -> Output {
        self.train_on("corpus.txt", run, extra)
    }

    /// A run of `config.toml` on `source` and nothing else: a second `--train` would add to the
    /// first.
    pub(crate) fn train_on(&self, source: &str, run: &str, extra: &[&str]) -> Output {
        let source = ["train", "--config", "config.toml", "--train", source];
        let target = ["--output", run, "--quiet"];
        self.altup(&[&source[..], &target[..], extra].concat()).output().unwrap()
    }
}

/// The flags that set keys of the configuration, each as `key=value`.
pub(crate) fn set<'a>(assignments: &[&'a str]) -> Vec<&'a str> {
    assignments.iter().flat_map(|&assignment| ["--set", assignment]).collect()
}

/// Checks that a command succeeded.
pub(crate) fn succeeds(output: Output) -> Output {
    assert!(
        output.status.success(),
        "{}, with this on standard error:\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Checks that a command failed and wrote nothing but a message of one line, and gives that message:
/// no success, no panic and no death by a signal.
#[track_caller]
pub(crate) fn fails(output: Output) -> String {
    let errors = String::from_utf8(output.stderr).unwrap();
    let code = output.status.code();
    assert!(
        code.is_some_and(|code| code != 0 && code != 101),
        "{}, with this on standard error:\n{errors}",
        output.status
    );
    let one_line = errors.lines().count() == 1 && errors.starts_with("error: ");
    assert!(one_line, "not one line of error:\n{errors}");
    assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    errors.trim_end().to_owned()
}

/// The names of what lies in a folder, sorted.
pub(crate) fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The names and contents of all files in a folder and those below it, but for its lock.
pub(crate) fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for name in names_in(folder).into_iter().filter(|name| name != "run.lock") {
        let path = folder.join(&name);
        if path.is_dir() {
            let below = contents(&path).into_iter();
            files.extend(below.map(|(file, bytes)| (format!("{name}/{file}"), bytes)));
        } else {
            files.insert(name, fs::read(path).unwrap());
        }
    }
    files
}

pub(crate) fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (path, copy) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy_folder(&path, &copy);
        } else {
            fs::copy(&path, &copy).unwrap();
        }
    }
}

/// The rows of a run's metrics.
pub(crate) fn rows(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What a machine and the time decide in the rows of a run's metrics.
const OF_THE_MACHINE: [&str; 8] = [
    "tokens_per_second",
    "elapsed_seconds",
    "data_wait_seconds",
    "exchange_seconds",
    "memory_bytes",
    "peak_memory_bytes",
    "flops_per_second",
    "peak_share",
];

/// The rows of a run's metrics without what the machine and the time decide, as the first row does.
pub(crate) fn losses(run: &Path) -> Vec<Value> {
    let mut rows = rows(run);
    rows.retain(|row| row["kind"] != "start");
    for row in &mut rows {
        let fields = row.as_object_mut().unwrap();
        OF_THE_MACHINE.iter().for_each(|name| drop(fields.remove(*name)));
    }
    rows
}

/// Checks that two runs have the same metrics, samples, events and model, bit for bit.
#[track_caller]
pub(crate) fn assert_same(workspace: &Workspace, run: &str, expected: &str, what: &str) {
    let [run, expected] = [run, expected].map(|run| workspace.path(run));
    assert_eq!(losses(&run), losses(&expected), "{what}");
    let samples = |run: &Path| fs::read_to_string(run.join("samples.jsonl")).unwrap_or_default();
    assert_eq!(samples(&run), samples(&expected), "{what}");
    assert_eq!(events(&run), events(&expected), "{what}");
    let [model, expected] =
        [run, expected].map(|run| fs::read(run.join("model/model.safetensors")).unwrap());
    assert!(model == expected, "{what}: the models differ");
}

/// The scalars of a run's event files in their order, without their times and what the machine decides: a step, a tag
/// and the bits of a value each.
fn events(run: &Path) -> Vec<(u64, String, u32)> {
    let folder = run.join("tensorboard");
    let mut scalars = Vec::new();
    for name in names_in(&folder) {
        let bytes = fs::read(folder.join(&name)).unwrap();
        let mut file = bytes.as_slice();
        // A record is its length, a checksum, the event and a checksum.
        while let Some((length, rest)) = file.split_first_chunk::<8>() {
            let length = u64::from_le_bytes(*length) as usize;
            scalars_of_event(&rest[4..4 + length], &mut scalars);
            file = &rest[8 + length..];
        }
        assert!(file.is_empty(), "{name} ends within a record");
    }
    scalars.retain(|(_, tag, _)| !tag.starts_with("speed/") && !tag.starts_with("memory/"));
    scalars
}

/// `Event` has the step as field 2 and a `Summary` as field 5. This has values as field 1, each with a tag and a number as
/// fields 1 and 2.
fn scalars_of_event(event: &[u8], scalars: &mut Vec<(u64, String, u32)>) {
    let fields = fields(event);
    let step = fields.iter().find(|(number, _)| *number == 2).unwrap().1.number();
    for (_, summary) in fields.iter().filter(|(number, _)| *number == 5) {
        for (_, value) in self::fields(summary.bytes()) {
            let parts = self::fields(value.bytes());
            let tag = String::from_utf8(parts[0].1.bytes().to_vec()).unwrap();
            scalars.push((step, tag, parts[1].1.number() as u32));
        }
    }
}

/// The value of a field of a protocol buffer.
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl Field<'_> {
    fn number(&self) -> u64 {
        match self {
            Self::Number(number) => *number,
            Self::Bytes(bytes) => panic!("no number: {bytes:?}"),
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Number(number) => panic!("no bytes: {number}"),
            Self::Bytes(bytes) => bytes,
        }
    }
}

/// The fields of a protocol buffer with their numbers.
fn fields(mut message: &[u8]) -> Vec<(u64, Field<'_>)> {
    fn varint(message: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let (byte, rest) = message.split_first().unwrap();
            *message = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return value;
            }
        }
        unreachable!()
    }
    let mut fields = Vec::new();
    while !message.is_empty() {
        let key = varint(&mut message);
        let length = match key & 7 {
            0 => {
                fields.push((key >> 3, Field::Number(varint(&mut message))));
                continue;
            }
            1 => 8,
            5 => 4,
            _ => varint(&mut message) as usize,
        };
        let (bytes, rest) = message.split_at(length);
        message = rest;
        fields.push((
            key >> 3,
            match key & 7 {
                1 => Field::Number(u64::from_le_bytes(bytes.try_into().unwrap())),
                5 => Field::Number(u32::from_le_bytes(bytes.try_into().unwrap()).into()),
                _ => Field::Bytes(bytes),
            },
        ));
    }
    fields
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A Parquet file of one string column.
pub(crate) fn parquet(column: &str, texts: &[String]) -> Vec<u8> {
    let schema = format!("message documents {{ REQUIRED BYTE_ARRAY {column} (UTF8); }}");
    let schema = Arc::new(parse_message_type(&schema).unwrap());
    let mut bytes = Vec::new();
    let mut file = SerializedFileWriter::new(&mut bytes, schema, Arc::default()).unwrap();
    let mut rows = file.next_row_group().unwrap();
    let mut column = rows.next_column().unwrap().unwrap();
    let values: Vec<ByteArray> = texts.iter().map(|text| text.as_str().into()).collect();
    column.typed::<ByteArrayType>().write_batch(&values, None, None).unwrap();
    column.close().unwrap();
    rows.close().unwrap();
    file.close().unwrap();
    bytes
}

/// Documents of made-up English: common words and some of two syllables, the first ones of the list
/// far more frequent than the last. The same on every call.
fn corpus() -> String {
    const STARTS: &str = "ba cor del fen gal har jun kel lor mar nor pel quin ras sol tan";
    const ENDS: &str = "ben dar est ing ith lan low mer net old ow rick sen ton va wick";
    let mut words: Vec<String> = COMMON_WORDS.split_whitespace().map(str::to_owned).collect();
    for end in ENDS.split(' ') {
        words.extend(STARTS.split(' ').map(|start| format!("{start}{end}")));
    }

    let mut state: u64 = 1;
    let mut below = |limit: usize| {
        // Knuth's linear congruential generator; its upper bits are the good ones.
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % limit
    };
    let mut text = String::new();
    for document in 0..DOCUMENTS {
        if document > 0 {
            text.push('\n');
        }
        for _line in 0..3 {
            for sentence in 0..3 {
                let length = 6 + below(7);
                for number in 0..length {
                    let word = &words[below(words.len()).min(below(words.len()))];
                    match number {
                        0 => text.push_str(&(word[..1].to_uppercase() + &word[1..])),
                        _ => text.push_str(word),
                    }
                    text.push_str(if number + 1 < length { " " } else { "." });
                }
                text.push_str(if sentence < 2 { " " } else { "\n" });
            }
        }
    }
    text
}
