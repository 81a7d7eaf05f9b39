//! A Hugging Face hub on loopback: serves models from memory under the hub's addresses, and fails on demand.

// Each test binary uses a part.
#![allow(dead_code)]

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// The commit of every model's `main`.
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// No test makes more requests.
const MAX_REQUESTS: usize = 1000;

/// What a model's files are, and who gets them.
#[derive(Clone, Default)]
pub(crate) struct HubModel {
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    /// The hashes of large files, which are served from another path, as from the hub's CDN.
    pub(crate) large: HashMap<String, String>,
    /// What opens its files; the list of them is open to all.
    pub(crate) token: Option<String>,
    /// Where large files lie that are on another host, which is open to all and must not see the token: its address.
    pub(crate) cdn: Option<String>,
    /// Whether this is that host.
    pub(crate) is_cdn: bool,
}

/// What goes wrong with the next download of a file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The connection ends after this many bytes.
    CutAfter(usize),
    /// So it does, and the answer doesn't say how many there are.
    CutAfterWithoutLength(usize),
    /// A byte is another.
    Damage,
    /// All comes, whatever was asked for.
    IgnoreRange,
    /// Every question for the file is answered with a redirect to the same address.
    RedirectToItself,
    /// Every question for the file is answered with this status, and nothing else.
    Status(u16),
}

#[derive(Default)]
struct State {
    models: HashMap<String, HubModel>,
    commit: String,
    faults: HashMap<String, Fault>,
    requests: Vec<String>,
    /// Where the whole hub has gone.
    moved_to: Option<String>,
    stopped: bool,
}

pub(crate) struct HubServer {
    pub(crate) endpoint: String,
    state: Arc<Mutex<State>>,
    thread: Option<JoinHandle<()>>,
}

impl HubServer {
    pub(crate) fn start(models: &[(&str, HubModel)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let models = models.iter().map(|(name, model)| ((*name).to_owned(), model.clone()));
        let state = State { models: models.collect(), commit: COMMIT.into(), ..State::default() };
        let state = Arc::new(Mutex::new(state));
        let shared = Arc::clone(&state);
        let thread = thread::spawn(move || {
            for connection in listener.incoming().take(MAX_REQUESTS).flatten() {
                if shared.lock().unwrap().stopped {
                    return;
                }
                connection.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                connection.set_write_timeout(Some(Duration::from_secs(10))).unwrap();
                let shared = Arc::clone(&shared);
                thread::spawn(move || drop(answer(connection, &shared)));
            }
        });
        Self { endpoint, state, thread: Some(thread) }
    }

    /// Lets the next download of a file go wrong.
    pub(crate) fn fail_once(&self, file: &str, fault: Fault) {
        self.state.lock().unwrap().faults.insert(file.to_owned(), fault);
    }

    /// Lets large files of a model lie on another host.
    pub(crate) fn set_cdn(&self, name: &str, address: &str) {
        self.state.lock().unwrap().models.get_mut(name).unwrap().cdn = Some(address.to_owned());
    }

    /// Answers everything by a redirect to another hub.
    pub(crate) fn move_to(&self, endpoint: &str) {
        self.state.lock().unwrap().moved_to = Some(endpoint.to_owned());
    }

    /// Moves `main` of every model to another commit, and changes files.
    pub(crate) fn push(&self, commit: &str, name: &str, file: &str, contents: &[u8]) {
        let mut state = self.state.lock().unwrap();
        state.commit = commit.to_owned();
        let files = &mut state.models.get_mut(name).unwrap().files;
        files.insert(file.to_owned(), contents.to_vec());
    }

    /// The requests since the last call: method, path, and the first byte if not all were asked for.
    pub(crate) fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().requests)
    }
}

impl Drop for HubServer {
    fn drop(&mut self) {
        self.state.lock().unwrap().stopped = true;
        // Wakes the thread.
        drop(TcpStream::connect(self.endpoint.trim_start_matches("http://")));
        self.thread.take().unwrap().join().unwrap();
    }
}

/// A request that was read: its path and headers, these by their names in small letters.
struct Request {
    path: String,
    headers: HashMap<String, String>,
}

impl Request {
    fn read(connection: &TcpStream) -> std::io::Result<Self> {
        let mut lines = BufReader::new(connection).lines();
        let first = lines.next().ok_or(std::io::ErrorKind::UnexpectedEof)??;
        let mut headers = HashMap::new();
        for line in lines {
            let line = line?;
            let Some((name, value)) = line.split_once(':') else { break };
            headers.insert(name.to_lowercase(), value.trim().to_owned());
        }
        let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
        Ok(Self { path, headers })
    }

    /// `bytes=FIRST-` or `bytes=FIRST-LAST`
    fn range(&self) -> Option<(usize, Option<usize>)> {
        let (first, last) = self.headers.get("range")?.strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()))
    }
}

/// Answers one request and closes the connection.
fn answer(mut connection: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let request = Request::read(&connection)?;
    let range = request.range();
    let path = request.path.trim_start_matches('/').to_owned();
    {
        let mut state = state.lock().unwrap();
        let range = range.map(|(first, _)| format!(" from {first}")).unwrap_or_default();
        state.requests.push(format!("{path}{range}"));
    }
    let (commit, models, moved_to) = {
        let state = state.lock().unwrap();
        (state.commit.clone(), state.models.clone(), state.moved_to.clone())
    };
    if let Some(endpoint) = moved_to {
        return write!(
            connection,
            "HTTP/1.1 301 Moved\r\nLocation: {endpoint}/{path}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
    }
    if let Some(rest) = path.strip_prefix("api/models/") {
        let (name, revision) = rest.split_once("/revision/").unwrap_or((rest, "main"));
        let Some(model) = models.get(name) else {
            return refuse(&mut connection, 404, "RepoNotFound");
        };
        if revision != "main" && revision != commit {
            return refuse(&mut connection, 404, "RevisionNotFound");
        }
        let names = model.files.keys().map(|file| format!(r#"{{"rfilename":"{file}"}}"#));
        let names = names.collect::<Vec<_>>().join(",");
        let body = format!(r#"{{"sha":"{commit}","siblings":[{names}]}}"#);
        return write!(
            connection,
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
    }

    let (name, file, from_cdn) = match path.strip_prefix("cdn/") {
        Some(rest) => {
            let (name, file) = rest.rsplit_once('/').unwrap_or_default();
            (name.to_owned(), file.to_owned(), true)
        }
        None => {
            let (name, rest) = path.split_once("/resolve/").unwrap_or_default();
            let (_, file) = rest.split_once('/').unwrap_or_default();
            (name.to_owned(), file.to_owned(), false)
        }
    };
    let Some(model) = models.get(&name) else {
        return refuse(&mut connection, 404, "RepoNotFound");
    };
    match state.lock().unwrap().faults.get(&file) {
        Some(Fault::RedirectToItself) => {
            return write!(
                connection,
                "HTTP/1.1 302 Found\r\nLocation: /{path}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
        }
        Some(Fault::Status(status)) => return refuse(&mut connection, *status, "No"),
        _ => {}
    }
    let on_other_host = from_cdn && (model.is_cdn || model.cdn.is_some());
    if on_other_host && request.headers.contains_key("authorization") {
        return refuse(&mut connection, 400, "TokenSeen");
    }
    let authorization = model.token.as_ref().map(|token| format!("Bearer {token}"));
    if !on_other_host
        && authorization.is_some()
        && request.headers.get("authorization") != authorization.as_ref()
    {
        return refuse(&mut connection, 401, "GatedRepo");
    }
    let Some(contents) = model.files.get(&file) else {
        return refuse(&mut connection, 404, "EntryNotFound");
    };
    if let (Some(hash), false) = (model.large.get(&file), from_cdn) {
        let here = format!("http://{}", connection.local_addr()?);
        let cdn = model.cdn.as_ref().unwrap_or(&here);
        return write!(
            connection,
            "HTTP/1.1 302 Found\r\nLocation: {}\r\nX-Linked-Etag: \"{hash}\"\r\nX-Linked-Size: {}\r\n\
             X-Repo-Commit: {commit}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            format_args!("{cdn}/cdn/{name}/{file}"),
            contents.len()
        );
    }
    serve(&mut connection, state, &file, contents.clone(), &commit, range)
}

fn refuse(connection: &mut TcpStream, status: u16, code: &str) -> std::io::Result<()> {
    write!(
        connection,
        "HTTP/1.1 {status} No\r\nX-Error-Code: {code}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    )
}

fn serve(
    connection: &mut TcpStream,
    state: &Mutex<State>,
    file: &str,
    mut contents: Vec<u8>,
    commit: &str,
    range: Option<(usize, Option<usize>)>,
) -> std::io::Result<()> {
    // Not of the question how large the file is, which asks for its first byte.
    let is_download = !matches!(range, Some((0, Some(0))));
    let fault = match is_download {
        true => state.lock().unwrap().faults.remove(file),
        false => None,
    };
    let sum: u64 = contents.iter().enumerate().map(|(i, &b)| (i as u64 + 1) * u64::from(b)).sum();
    let etag = format!("{:08x}{sum:032x}", contents.len());
    if fault == Some(Fault::Damage) {
        contents[0] ^= 1;
    }
    let range = range.filter(|_| fault != Some(Fault::IgnoreRange));
    let (first, end) = match range {
        None => (0, contents.len()),
        Some((first, last)) => (first, last.map_or(contents.len(), |last| last + 1)),
    };
    if first >= contents.len() {
        return refuse(connection, 416, "Range");
    }
    let body = &contents[first..end.min(contents.len())];
    match range {
        None => write!(connection, "HTTP/1.1 200 OK\r\n")?,
        Some(_) => write!(
            connection,
            "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {first}-{}/{}\r\n",
            first + body.len() - 1,
            contents.len()
        )?,
    }
    let (length, sent) = match fault {
        Some(Fault::CutAfter(count)) => (Some(body.len()), &body[..count]),
        Some(Fault::CutAfterWithoutLength(count)) => (None, &body[..count]),
        _ => (Some(body.len()), body),
    };
    if let Some(length) = length {
        write!(connection, "Content-Length: {length}\r\n")?;
    }
    write!(connection, "ETag: \"{etag}\"\r\nX-Repo-Commit: {commit}\r\nConnection: close\r\n\r\n")?;
    connection.write_all(sent)?;
    connection.flush()?;
    connection.shutdown(Shutdown::Write)
}
