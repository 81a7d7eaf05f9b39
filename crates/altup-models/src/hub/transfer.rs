//! One download, to a file that has its final name only when its contents are checked.

use sha2::{Digest, Sha256};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use ureq::http::header::{ACCEPT_ENCODING, CONTENT_RANGE, RANGE};
use ureq::http::{HeaderMap, StatusCode};

use super::HubError;
use super::client::{Client, Failure, Redirects};

/// A file to be downloaded.
pub(super) struct Transfer<'a> {
    /// The model and the file, for messages.
    pub(super) what: String,
    pub(super) endpoint: &'a str,
    pub(super) url: &'a str,
    /// The hub's name for the contents: their SHA-256, where the file is a large one.
    pub(super) etag: &'a str,
    pub(super) size: u64,
}

impl Transfer<'_> {
    /// Downloads to `blob`. What an earlier call has received, in `blob` with the ending `.part`, is gone on from if
    /// the whole can be checked.
    /// `report` is told how many bytes are there.
    pub(super) fn run(
        &self,
        client: &Client<'_>,
        blob: &Path,
        report: &mut dyn FnMut(u64),
    ) -> Result<(), HubError> {
        let part = blob.with_extension("part");
        let error = |source| HubError::Cache { path: part.clone(), source };
        if let Some(folder) = part.parent() {
            fs::create_dir_all(folder).map_err(error)?;
        }
        let mut options = OpenOptions::new();
        let mut file = options
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&part)
            .map_err(error)?;
        let mut received = file.metadata().map_err(error)?.len();
        if received > self.size || !self.is_sha256() {
            received = 0;
        }
        if received < self.size {
            let (start, mut body) = self.ask(client, received)?;
            file.set_len(start).and_then(|()| file.seek(SeekFrom::Start(start))).map_err(error)?;
            received = self.copy(&mut body, &mut file, start, report).map_err(
                |(received, end)| match end {
                    End::Body(source) => self.interrupted(received, Some(source)),
                    End::File(source) => error(source),
                },
            )?;
        }
        if received < self.size {
            return Err(self.interrupted(received, None));
        }
        if let Err(damage) = self.check(&mut file, error) {
            drop(fs::remove_file(&part)); // the next call starts anew
            return Err(damage);
        }
        file.sync_all().map_err(error)?;
        drop(file);
        fs::rename(&part, blob).map_err(|source| HubError::Cache { path: blob.to_owned(), source })
    }

    /// Asks for the bytes from `received` on. Gives the first one that comes and what they are read from: a server
    /// may send all instead.
    fn ask(
        &self,
        client: &Client<'_>,
        received: u64,
    ) -> Result<(u64, impl Read + use<>), HubError> {
        let answer = |problem: String| HubError::Answer {
            endpoint: self.endpoint.to_owned(),
            what: self.what.clone(),
            problem,
        };
        let mut headers = vec![(ACCEPT_ENCODING, "identity".to_owned())];
        if received > 0 {
            headers.push((RANGE, format!("bytes={received}-")));
        }
        let response = client.get(self.url.to_owned(), &headers, Redirects::All);
        let response = response.map_err(|failure| match failure {
            Failure::Answer(problem) => answer(problem),
            Failure::Unreachable(source) => HubError::Unreachable {
                endpoint: self.endpoint.to_owned(),
                what: self.what.clone(),
                source: source.into(),
            },
        })?;
        let start = match response.status() {
            StatusCode::OK => 0,
            StatusCode::PARTIAL_CONTENT if starts_at(response.headers(), received) => received,
            StatusCode::PARTIAL_CONTENT => {
                return Err(answer("bytes that were not asked for".into()));
            }
            status => return Err(answer(format!("status {}", status.as_u16()))),
        };
        Ok((start, response.into_body().into_reader()))
    }

    /// Copies at most the file's size. Gives the bytes that are there then, also when it fails.
    fn copy(
        &self,
        body: &mut impl Read,
        file: &mut File,
        start: u64,
        report: &mut dyn FnMut(u64),
    ) -> Result<u64, (u64, End)> {
        let mut received = start;
        let mut buffer = vec![0; 1 << 16];
        report(received);
        while received < self.size {
            let wanted = buffer.len().min((self.size - received) as usize);
            let count = match body.read(&mut buffer[..wanted]) {
                Ok(0) => break,
                Ok(count) => count,
                Err(source) if source.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err((received, End::Body(source))),
            };
            file.write_all(&buffer[..count]).map_err(|source| (received, End::File(source)))?;
            received += count as u64;
            report(received);
        }
        Ok(received)
    }

    fn interrupted(&self, received: u64, source: Option<io::Error>) -> HubError {
        HubError::Interrupted { what: self.what.clone(), received, size: self.size, source }
    }

    /// Whether the hub's name for the contents is their hash.
    fn is_sha256(&self) -> bool {
        self.etag.len() == 64 && self.etag.bytes().all(|byte| byte.is_ascii_hexdigit())
    }

    /// Checks the SHA-256 of the contents, where the hub gives one.
    fn check(
        &self,
        file: &mut File,
        error: impl Fn(io::Error) -> HubError,
    ) -> Result<(), HubError> {
        if !self.is_sha256() {
            return Ok(());
        }
        file.seek(SeekFrom::Start(0)).map_err(&error)?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 1 << 16];
        loop {
            match file.read(&mut buffer).map_err(&error)? {
                0 => break,
                count => hasher.update(&buffer[..count]),
            }
        }
        let found: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        if found.eq_ignore_ascii_case(self.etag) {
            return Ok(());
        }
        Err(HubError::Damaged { what: self.what.clone(), found, expected: self.etag.to_owned() })
    }
}

/// Where a copy failed.
enum End {
    Body(io::Error),
    File(io::Error),
}

fn starts_at(headers: &HeaderMap, first: u64) -> bool {
    let range = headers.get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
    range.is_some_and(|range| range.starts_with(&format!("bytes {first}-")))
}
