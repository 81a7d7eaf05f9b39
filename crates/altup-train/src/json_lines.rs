//! Files of one JSON object a line, read as they grow.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use crate::durable::is_at;

/// The rows of a file of one JSON object a line. It gives each row once: at the end of the file it gives none, and goes
/// on where more has been appended. A file that isn't there yet has no rows.
#[derive(Debug)]
pub(crate) struct JsonLines<T> {
    path: PathBuf,
    file: Option<BufReader<File>>,
    /// What has been read of all lines.
    bytes: u64,
    lines: usize,
    /// The start of a line whose end isn't there yet.
    rest: Vec<u8>,
    row: PhantomData<fn() -> T>,
}

/// Why a row can't be read.
#[derive(Debug)]
pub(crate) enum LineError {
    /// The file system refused.
    File(io::Error),
    /// A line is no row.
    Row {
        /// Line number, from 1.
        line: usize,
        /// What is wrong with the line.
        source: serde_json::Error,
    },
}

impl<T: DeserializeOwned> JsonLines<T> {
    /// The rows of the file `path`, whether or not it exists.
    pub(crate) fn at(path: &Path) -> Self {
        let path = path.to_owned();
        Self { path, file: None, bytes: 0, lines: 0, rest: Vec::new(), row: PhantomData }
    }

    /// Whether what was read is still the beginning of the file: another file may have its name, or its end may have
    /// been cut off.
    pub(crate) fn is_current(&self) -> io::Result<bool> {
        match &self.file {
            None => Ok(true),
            Some(file) => {
                let file = file.get_ref();
                Ok(file.metadata()?.len() >= self.bytes && is_at(file, &self.path)?)
            }
        }
    }

    /// The row of a last line that is whole but for its line break: the process that writes it was killed, or is about
    /// to write the rest.
    pub(crate) fn unfinished(&self) -> Option<T> {
        serde_json::from_slice(&self.rest).ok()
    }

    /// Whether the file ends within a line.
    pub(crate) fn is_torn(&self) -> bool {
        !self.rest.is_empty()
    }

    fn read_line(&mut self) -> io::Result<bool> {
        if self.file.is_none() {
            match File::open(&self.path) {
                Ok(file) => self.file = Some(BufReader::with_capacity(64 << 10, file)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        let Some(file) = &mut self.file else { return Ok(false) };
        self.bytes += file.read_until(b'\n', &mut self.rest)? as u64;
        Ok(self.rest.last() == Some(&b'\n'))
    }
}

impl<T: DeserializeOwned> Iterator for JsonLines<T> {
    type Item = Result<T, LineError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.read_line() {
            Ok(true) => {}
            Ok(false) => return None,
            Err(error) => return Some(Err(LineError::File(error))),
        }
        self.lines += 1;
        let row = serde_json::from_slice(&self.rest);
        self.rest.clear();
        Some(row.map_err(|source| LineError::Row { line: self.lines, source }))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, OpenOptions};
    use std::io::Write;

    use super::*;
    use crate::durable::replace_file;

    fn numbers(lines: &mut JsonLines<u64>) -> Vec<u64> {
        lines.by_ref().map(Result::unwrap).collect()
    }

    #[test]
    fn each_row_is_given_once_as_the_file_grows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        let mut lines = JsonLines::<u64>::at(&path);
        assert_eq!(numbers(&mut lines), [0; 0], "there is no file yet");
        let append = |text: &str| {
            let mut file = OpenOptions::new().create(true).append(true).open(&path).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        };
        append("1\n2\n3");
        assert_eq!(numbers(&mut lines), [1, 2]);
        assert_eq!((lines.is_torn(), lines.unfinished()), (true, Some(3)));
        append("4\n5\n");
        assert_eq!(numbers(&mut lines), [34, 5]);
        assert!(!lines.is_torn() && lines.is_current().unwrap());
        append("x\n");
        let Some(Err(LineError::Row { line: 5, .. })) = lines.next() else { panic!("line 5") };
    }

    #[test]
    fn a_file_that_was_replaced_or_cut_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        for change in [
            (|path| replace_file(path, b"1\n2\n3\n").unwrap()) as fn(&Path),
            |path| fs::write(path, "1\n").unwrap(),
            |path| fs::remove_file(path).unwrap(),
        ] {
            fs::write(&path, "1\n2\n").unwrap();
            let mut lines = JsonLines::<u64>::at(&path);
            assert_eq!(numbers(&mut lines), [1, 2]);
            assert!(lines.is_current().unwrap());
            change(&path);
            assert!(!lines.is_current().unwrap());
        }
    }
}
