//! TensorBoard's event files, made of the rows of `metrics.jsonl`.
//!
//! An event file is a sequence of records (TensorFlow's TFRecord): the length of the data as a little-endian u64,
//! a masked CRC-32C of these eight bytes, the data, a masked CRC-32C of the data. The data of a record is a
//! protocol buffer, `tensorflow.Event`, of which a run needs few fields:
//!
//! ```text
//! Event    1: wall_time (double)   2: step (int64)   3: file_version (string)   5: summary (Summary)
//! Summary  1: value (repeated Value)
//! Value    1: tag (string)         2: simple_value (float)
//! ```
//!
//! The file says what the rows say and nothing else: its bytes are a function of the rows. So a run that goes on
//! after a kill, from an earlier step, never has events that its metrics contradict.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::durable::{new_view, remove_unfinished_views};
use crate::metrics::MetricsRow;

/// The start of the name of an event file. TensorBoard looks for `tfevents`.
const NAME: &str = "events.out.tfevents.";

/// The event file of a run, kept up with its rows.
///
/// What is new is appended, so that a TensorBoard that watches sees it. Where the file that is there isn't the beginning
/// of what the rows say, as after a return to an earlier step, a new one takes its place.
#[derive(Debug)]
pub struct EventFile {
    folder: PathBuf,
    clock: Clock,
    /// None once a write has failed.
    target: Option<Target>,
    /// Bytes of all events so far.
    bytes: u64,
}

/// Where events are written.
#[derive(Debug)]
enum Target {
    /// A file without a name yet.
    New(BufWriter<NamedTempFile>),
    /// The end of the event file.
    End(PathBuf, BufWriter<File>),
}

impl EventFile {
    /// The event file in `folder`, which is made. It takes all rows of the run anew; a file that is there is compared
    /// with them. Nobody else must write it meanwhile.
    ///
    /// # Errors
    ///
    /// That of the file system.
    pub fn open(folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        remove_unfinished_views(folder)?;
        let new = BufWriter::new(new_view(&folder.join(NAME))?);
        let (folder, target) = (folder.to_owned(), Some(Target::New(new)));
        Ok(Self { folder, clock: Clock::default(), target, bytes: 0 })
    }

    /// Takes the next row. What it says is in the file after [`flush`](Self::flush).
    ///
    /// # Errors
    ///
    /// That of the file system. After one, rows are refused.
    pub fn push(&mut self, row: &MetricsRow) -> io::Result<()> {
        let events = self.clock.events(row);
        self.bytes += events.len() as u64;
        match &mut self.target {
            Some(Target::New(file)) => file.write_all(&events),
            Some(Target::End(_, file)) => file.write_all(&events),
            None => Err(io::Error::other("an earlier write failed")),
        }
    }

    /// Brings the file up to the rows so far.
    ///
    /// # Errors
    ///
    /// That of the file system. After one, rows are refused.
    pub fn flush(&mut self) -> io::Result<()> {
        self.target = Some(match self.target.take() {
            Some(Target::New(new)) if self.bytes > 0 => {
                let path = place(&self.folder, new.into_inner()?)?;
                let file = OpenOptions::new().append(true).open(&path)?;
                Target::End(path, BufWriter::new(file))
            }
            Some(Target::End(path, mut file)) => {
                file.flush()?;
                Target::End(path, file)
            }
            Some(unnamed) => unnamed,
            None => return Err(io::Error::other("an earlier write failed")),
        });
        Ok(())
    }

    /// Whether the file is as it was left.
    pub(crate) fn is_current(&self) -> bool {
        match &self.target {
            Some(Target::New(_)) => true,
            Some(Target::End(path, _)) => {
                fs::metadata(path).is_ok_and(|file| file.len() == self.bytes)
            }
            None => false,
        }
    }
}

/// Gives a run's events the place of those that are there, and returns it.
fn place(folder: &Path, new: NamedTempFile) -> io::Result<PathBuf> {
    let mut others = event_files(folder)?;
    let (number, path) = match others.pop() {
        Some((number, path)) => (number, Some(path)),
        None => (0, None),
    };
    let path = match path {
        Some(path) if append_rest(new.path(), &path)? => path,
        present => {
            // TensorBoard goes on in a file where it stopped reading: other contents need another name.
            let path = folder.join(format!("{NAME}{:010}.altup", number + 1));
            new.persist(&path)?;
            others.extend(present.map(|path| (number, path)));
            path
        }
    };
    others.iter().try_for_each(|(_, path)| fs::remove_file(path))?;
    Ok(path)
}

/// Appends what `whole` has behind what `path` has. False, and nothing is done, if `path` isn't the beginning of `whole`.
fn append_rest(whole: &Path, path: &Path) -> io::Result<bool> {
    let mut whole = BufReader::new(File::open(whole)?);
    let mut present = BufReader::new(OpenOptions::new().read(true).append(true).open(path)?);
    loop {
        let (there, wanted) = (present.fill_buf()?, whole.fill_buf()?);
        let length = there.len().min(wanted.len());
        if there[..length] != wanted[..length] || (wanted.is_empty() && !there.is_empty()) {
            return Ok(false);
        }
        if length == 0 {
            break;
        }
        present.consume(length);
        whole.consume(length);
    }
    io::copy(&mut whole, present.get_mut())?;
    Ok(true)
}

/// The event files of this program in a folder, by their numbers.
fn event_files(folder: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(NAME)?.strip_suffix(".altup"));
        if let Some(number) = number.and_then(|number| number.parse().ok()) {
            files.push((number, entry.path()));
        }
    }
    files.sort();
    Ok(files)
}

/// When the events of rows happened.
#[derive(Debug, Default)]
struct Clock {
    has_begun: bool,
    /// When the run began, in seconds since 1970.
    start: Option<f64>,
    wall_time: f64,
}

impl Clock {
    /// The events of the next row as bytes, behind those that every file begins with if it is the first.
    fn events(&mut self, row: &MetricsRow) -> Vec<u8> {
        match (row, self.start) {
            (MetricsRow::Start(row), None) => {
                self.start = Some(row.unix_seconds);
                self.wall_time = row.unix_seconds;
            }
            (MetricsRow::Train(row), Some(start)) => self.wall_time = start + row.elapsed_seconds,
            _ => {}
        }
        let wall_time = self.wall_time;
        let mut bytes = Vec::new();
        if !self.has_begun {
            self.has_begun = true;
            append_record(&mut bytes, &Event { wall_time, step: 0, body: Body::Version }.encoded());
        }
        let scalars = scalars(row);
        if !scalars.is_empty() {
            let body = Body::Scalars(&scalars);
            append_record(&mut bytes, &Event { wall_time, step: row.step(), body }.encoded());
        }
        bytes
    }
}

/// What TensorBoard shows of a row, by tags whose first part groups the charts.
fn scalars(row: &MetricsRow) -> Vec<(String, f64)> {
    let mut scalars: Vec<(String, f64)> = Vec::new();
    let mut add = |tag: &str, value: f64| scalars.push((tag.to_owned(), value));
    match row {
        MetricsRow::Train(row) => {
            add("loss/training", row.loss);
            add("optimization/learning_rate", row.learning_rate);
            add("optimization/gradient_norm", row.grad_norm);
            add("speed/tokens_per_second", row.tokens_per_second);
            for (tag, value) in [
                ("speed/data_wait_seconds", row.data_wait_seconds),
                ("speed/exchange_seconds", row.exchange_seconds),
                ("speed/model_flops_per_second", row.flops_per_second),
                ("speed/share_of_peak", row.peak_share),
                ("memory/resident_bytes", row.memory_bytes.map(|bytes| bytes as f64)),
                ("memory/peak_bytes", row.peak_memory_bytes.map(|bytes| bytes as f64)),
            ] {
                if let Some(value) = value {
                    add(tag, value);
                }
            }
            for layer in &row.routing {
                let name = format!("{}_{}", layer.stack, layer.layer);
                add(&format!("most_chosen_expert/{name}"), layer.peak_load());
                add(&format!("router_entropy/{name}"), layer.entropy);
                add(&format!("dropped_by_full_experts/{name}"), layer.dropped);
            }
            for source in &row.epochs {
                add(&format!("epochs/{}", source.name), source.epochs);
            }
        }
        MetricsRow::Valid(row) => {
            add("loss/validation", row.loss);
            add("validation/perplexity", row.perplexity);
            add("validation/accuracy", row.accuracy);
            if let Some(text) = &row.text {
                add("validation/text_loss", text.loss);
                add("validation/text_accuracy", text.accuracy);
            }
            for source in &row.sources {
                add(&format!("validation_loss/{}", source.name), source.loss);
                add(&format!("validation_accuracy/{}", source.name), source.accuracy);
                if let Some(text) = &source.text {
                    add(&format!("validation_text_accuracy/{}", source.name), text.accuracy);
                }
            }
            for task in &row.tasks {
                for (metric, value) in &task.metrics {
                    add(&format!("{}/{metric}", task.task), *value);
                }
            }
        }
        MetricsRow::Coefficients(row) => {
            for layer in &row.layers {
                for (name, value) in layer.named() {
                    add(&format!("coefficients_{}_{}/{name}", layer.stack, layer.layer), value);
                }
            }
        }
        MetricsRow::Rollback(row) => {
            add("optimization/rollbacks", row.number as f64);
            add("optimization/skipped_steps", row.skipped_steps as f64);
        }
        MetricsRow::Start(_) => {}
    }
    scalars
}

struct Event<'a> {
    /// Seconds since 1970.
    wall_time: f64,
    step: u64,
    body: Body<'a>,
}

enum Body<'a> {
    /// What every file begins with.
    Version,
    Scalars(&'a [(String, f64)]),
}

impl Event<'_> {
    fn encoded(&self) -> Vec<u8> {
        let mut event = Vec::new();
        put_key(&mut event, 1, WireType::Fixed64);
        event.extend(self.wall_time.to_le_bytes());
        put_key(&mut event, 2, WireType::Varint);
        put_varint(&mut event, self.step);
        match self.body {
            Body::Version => put_bytes(&mut event, 3, b"brain.Event:2"),
            Body::Scalars(scalars) => {
                let mut summary = Vec::new();
                for (tag, scalar) in scalars {
                    let mut value = Vec::new();
                    put_bytes(&mut value, 1, tag.as_bytes());
                    put_key(&mut value, 2, WireType::Fixed32);
                    value.extend((*scalar as f32).to_le_bytes());
                    put_bytes(&mut summary, 1, &value);
                }
                put_bytes(&mut event, 5, &summary);
            }
        }
        event
    }
}

/// How a field of a protocol buffer is laid out.
#[derive(Clone, Copy)]
enum WireType {
    Varint = 0,
    Fixed64 = 1,
    Bytes = 2,
    Fixed32 = 5,
}

fn put_key(buffer: &mut Vec<u8>, field: u64, wire_type: WireType) {
    put_varint(buffer, (field << 3) | wire_type as u64);
}

/// Seven bits a byte, the lowest first; all but the last have their highest bit set.
fn put_varint(buffer: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        buffer.push(value as u8 | 0x80);
        value >>= 7;
    }
    buffer.push(value as u8);
}

fn put_bytes(buffer: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    put_key(buffer, field, WireType::Bytes);
    put_varint(buffer, bytes.len() as u64);
    buffer.extend(bytes);
}

fn append_record(file: &mut Vec<u8>, data: &[u8]) {
    let length = (data.len() as u64).to_le_bytes();
    file.extend(length);
    file.extend(masked_crc(&length).to_le_bytes());
    file.extend(data);
    file.extend(masked_crc(data).to_le_bytes());
}

/// A CRC-32C that is no longer a CRC of data with CRCs in it (TensorFlow's `crc32c.h`).
fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{StartRow, TokenScore, TrainRow, ValidRow};

    fn start() -> MetricsRow {
        MetricsRow::Start(StartRow { unix_seconds: 1000.0, ..StartRow::default() })
    }

    fn train(step: u64, loss: f64) -> MetricsRow {
        MetricsRow::Train(TrainRow {
            step,
            loss,
            elapsed_seconds: step as f64,
            ..TrainRow::default()
        })
    }

    fn valid(step: u64) -> MetricsRow {
        MetricsRow::Valid(ValidRow {
            step,
            loss: 2.5,
            perplexity: 12.0,
            accuracy: 0.5,
            tokens: 9,
            text: Some(TokenScore { loss: 3.5, accuracy: 0.25, tokens: 6 }),
            ..ValidRow::default()
        })
    }

    /// Brings the event file in a folder up to the rows of a run, as a process does that is new to them.
    fn write(folder: &Path, rows: &[MetricsRow]) {
        let mut file = EventFile::open(folder).unwrap();
        rows.iter().for_each(|row| file.push(row).unwrap());
        file.flush().unwrap();
        assert!(file.is_current());
    }

    fn events(rows: &[MetricsRow]) -> Vec<u8> {
        let mut clock = Clock::default();
        rows.iter().flat_map(|row| clock.events(row)).collect()
    }

    fn names(folder: &Path) -> Vec<String> {
        let files = event_files(folder).unwrap().into_iter();
        files.map(|(_, path)| path.file_name().unwrap().to_str().unwrap().to_owned()).collect()
    }

    /// By hand. `scripts/tensorboard/check.py` has TensorBoard itself read a whole file.
    #[test]
    fn records_are_laid_out_as_tensorflow_does() {
        let mut file = Vec::new();
        let event = Event { wall_time: 1.5, step: 300, body: Body::Version };
        append_record(&mut file, &event.encoded());
        // 1: 1.5 as a double; 2: 300 = 0b10_0101100; 3: thirteen letters.
        let data = b"\x09\x00\x00\x00\x00\x00\x00\xf8\x3f\x10\xac\x02\x1a\x0dbrain.Event:2";
        assert_eq!(file[..8], 27u64.to_le_bytes());
        assert_eq!(&file[12..39], data);
        // The check value of CRC-32C, "123456789" to 0xe3069283, masked by hand:
        // rotated right by 15 it is 0x2507c60d, plus 0xa282ead8.
        assert_eq!(masked_crc(b"123456789"), 0xc78a_b0e5);
        assert_eq!(file.len(), 8 + 4 + 27 + 4);

        let scalars = [("a".to_owned(), 1.0)];
        let event = Event { wall_time: 0.0, step: 0, body: Body::Scalars(&scalars) };
        let data = b"\x09\0\0\0\0\0\0\0\0\x10\x00\x2a\x0a\x0a\x08\x0a\x01a\x15\x00\x00\x80\x3f";
        assert_eq!(event.encoded(), data);
    }

    #[test]
    fn new_rows_are_appended_by_this_process_and_by_others() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(".view-killed"), "left over").unwrap();
        let rows = [start(), train(1, 3.0), valid(1), train(2, 2.0), train(3, 1.5)];
        let mut file = EventFile::open(folder.path()).unwrap();
        file.flush().unwrap();
        assert!(names(folder.path()).is_empty(), "there is nothing to say yet");
        rows[..2].iter().for_each(|row| file.push(row).unwrap());
        file.flush().unwrap();
        let before = names(folder.path());
        let contents = || fs::read(folder.path().join(&before[0])).unwrap();
        assert_eq!(contents(), events(&rows[..2]));
        file.push(&rows[2]).unwrap();
        file.flush().unwrap();
        assert_eq!(contents(), events(&rows[..3]));
        assert!(file.is_current());

        write(folder.path(), &rows);
        assert_eq!((names(folder.path()), contents()), (before.clone(), events(&rows)));
        assert!(!file.is_current(), "another process has gone on with it");
        write(folder.path(), &rows);
        assert_eq!((names(folder.path()), contents()), (before.clone(), events(&rows)));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn rows_that_are_done_again_are_in_a_new_file() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &[start(), train(1, 3.0), train(2, 2.0)]);
        let before = names(folder.path());
        // The beginning of the old ones, and others.
        for resumed in [vec![start(), train(1, 3.0)], vec![start(), train(1, 2.0), valid(1)]] {
            write(folder.path(), &resumed);
            let after = names(folder.path());
            assert_eq!(after.len(), 1, "the old one is gone");
            assert_ne!(after, before);
            assert_eq!(fs::read(folder.path().join(&after[0])).unwrap(), events(&resumed));
        }

        // A torn end, as of a full disk, is no beginning either.
        let resumed = [start(), train(1, 3.0)];
        fs::write(folder.path().join(&names(folder.path())[0]), b"torn").unwrap();
        write(folder.path(), &resumed);
        let path = folder.path().join(&names(folder.path())[0]);
        assert_eq!(fs::read(path).unwrap(), events(&resumed));
    }

    #[test]
    fn files_of_other_programs_stay() {
        let folder = tempfile::tempdir().unwrap();
        let other = folder.path().join("events.out.tfevents.1700000000.host");
        fs::write(&other, "theirs").unwrap();
        write(folder.path(), &[train(1, 3.0)]);
        assert_eq!(fs::read_to_string(other).unwrap(), "theirs");
    }
}
