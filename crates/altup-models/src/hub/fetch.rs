use hf_hub::api::RepoInfo;
use hf_hub::{Repo, RepoType};
use std::fs;
use std::path::PathBuf;
use ureq::http::header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG, RANGE};
use ureq::http::{HeaderMap, StatusCode};

use super::cache::{CachedModel, is_commit, link};
use super::client::{Client, Failure, LINKED_ETAG, Redirects};
use super::transfer::Transfer;
use super::{DownloadProgress, HubError, HubName, HubSettings};
use crate::ModelDirectory;
use crate::directory::{CONFIG, SENTENCEPIECE, TOKENIZER};
use crate::weight_files::{INDEX, PYTORCH_WEIGHTS, WEIGHTS, shards_of_index};

/// Small files that a directory is passed on with.
const COMPANIONS: [&str; 3] =
    ["tokenizer_config.json", "special_tokens_map.json", "generation_config.json"];

/// A Hugging Face hub, and the cache of what came from it.
///
/// ```no_run
/// use altup_models::{Hub, HubName, HubSettings};
///
/// let name = HubName::parse("google/flan-t5-small").expect("it is well-formed");
/// let directory = Hub::new(HubSettings::from_env()?).model(&name, &mut |_| {})?;
/// # Ok::<(), altup_models::HubError>(())
/// ```
#[derive(Debug)]
pub struct Hub {
    settings: HubSettings,
}

impl Hub {
    /// A hub as the settings say. Nothing is asked of it yet.
    pub fn new(settings: HubSettings) -> Self {
        Self { settings }
    }

    /// The directory of a model in the cache: its `config.json`, weights in safetensors, tokenizer and the small files
    /// beside it. What is missing is downloaded, one file after the other. A branch is looked up each time, so that its
    /// newest commit is taken. Of a commit nothing is asked whose configuration, tokenizer and weights are in the cache.
    /// `progress` is told of each step of a download.
    ///
    /// A file is in the cache whole or not at all. A download that was cut off goes on where it stopped, when the model
    /// is asked for again.
    ///
    /// # Errors
    ///
    /// If the hub does not know the model, does not give it out, or can't be reached; if the model is no T5 in
    /// safetensors; if a download fails.
    pub fn model(
        &self,
        name: &HubName,
        progress: &mut dyn FnMut(DownloadProgress<'_>),
    ) -> Result<ModelDirectory, HubError> {
        let cached = CachedModel::new(&self.settings.cache, name);
        let in_cache = || self.offline(&cached, name);
        let folder = match self.settings.offline {
            true => in_cache()?,
            false => match in_cache().ok().filter(|_| is_commit(name.revision())) {
                Some(folder) => folder,
                None => Online::new(self, name).fetch(&cached, progress)?,
            },
        };
        Ok(ModelDirectory::new(folder))
    }

    fn offline(&self, cached: &CachedModel, name: &HubName) -> Result<PathBuf, HubError> {
        let cache = || self.settings.cache.clone();
        let Some(commit) = cached.commit() else {
            return Err(HubError::Offline { name: name.to_string(), cache: cache() });
        };
        let folder = cached.snapshot(&commit);
        let has = |file: &str| folder.join(file).exists();
        let has_sentencepiece_alone = has(SENTENCEPIECE) && !has(TOKENIZER);
        let tokenizer = if has_sentencepiece_alone { SENTENCEPIECE } else { TOKENIZER };
        let mut needed = vec![CONFIG.to_owned(), tokenizer.to_owned()];
        match !has(WEIGHTS) && has(INDEX) {
            true => needed.extend(shards_of_index(&folder.join(INDEX))?),
            false => needed.push(WEIGHTS.to_owned()),
        }
        match needed.into_iter().find(|file| !has(file)) {
            None => Ok(folder),
            Some(file) => {
                Err(HubError::PartlyCached { name: name.to_string(), cache: cache(), file })
            }
        }
    }
}

/// A model that is asked for.
struct Online<'a> {
    settings: &'a HubSettings,
    name: &'a HubName,
    client: Client<'a>,
}

impl<'a> Online<'a> {
    fn new(hub: &'a Hub, name: &'a HubName) -> Self {
        let settings = &hub.settings;
        Self { settings, name, client: Client::new(settings) }
    }

    fn fetch(
        &self,
        cached: &CachedModel,
        progress: &mut dyn FnMut(DownloadProgress<'_>),
    ) -> Result<PathBuf, HubError> {
        let RepoInfo { siblings, sha: commit } = self.info()?;
        let files: Vec<String> = siblings.into_iter().map(|file| file.rfilename).collect();
        let wanted = self.wanted(&files)?;
        for file in &wanted {
            self.file(cached, &commit, file, progress)?;
        }
        let folder = cached.snapshot(&commit);
        if wanted.contains(&INDEX) {
            for shard in shards_of_index(&folder.join(INDEX))? {
                if !files.contains(&shard) {
                    return Err(self.missing(&shard));
                }
                self.file(cached, &commit, &shard, progress)?;
            }
        }
        cached.set_commit(&commit)?;
        Ok(folder)
    }

    /// The commit that the revision is at, and its files.
    fn info(&self) -> Result<RepoInfo, HubError> {
        let (name, endpoint) = (self.name, &self.settings.endpoint);
        let repository = name.repository().to_owned();
        let repo = Repo::with_revision(repository, RepoType::Model, name.revision().to_owned());
        let what = format!("{:?}, which is no directory,", name.to_string());
        let unreachable = |source: ureq::Error| self.unreachable(what.clone(), source.into());
        let url = format!("{endpoint}/api/{}", repo.api_url());
        let response = self.client.get(url, &[], Redirects::OfHub);
        let mut response = response.map_err(|failure| self.failed(&what, failure))?;
        let code = response.headers().get("x-error-code").and_then(|code| code.to_str().ok());
        match (response.status().as_u16(), code) {
            (200, _) => {}
            (404, Some("RevisionNotFound")) => {
                return Err(HubError::UnknownRevision {
                    repository: name.repository().to_owned(),
                    endpoint: endpoint.clone(),
                    revision: name.revision().to_owned(),
                });
            }
            (404, _) => {
                let (name, endpoint) = (name.to_string(), endpoint.clone());
                return Err(HubError::Unknown { name, endpoint });
            }
            (status @ (401 | 403), _) => return Err(self.denied(status)),
            (300..=399, _) => {
                let location = text(response.headers(), "location").unwrap_or("nowhere");
                let problem =
                    format!("a redirect to {location}; if that is the hub, set HF_ENDPOINT");
                return Err(self.answer(what, problem));
            }
            (status, _) => return Err(unreachable(ureq::Error::StatusCode(status))),
        }
        let info: RepoInfo = response.body_mut().read_json().map_err(unreachable)?;
        match is_commit(&info.sha) {
            true => Ok(info),
            false => Err(self.answer(name.to_string(), "a commit that is none".into())),
        }
    }

    /// The files of a model that are needed, of those that it has.
    fn wanted(&self, files: &[String]) -> Result<Vec<&'static str>, HubError> {
        let has = |file: &str| files.iter().any(|name| name == file);
        let weights = if has(WEIGHTS) {
            WEIGHTS
        } else if has(INDEX) {
            INDEX
        } else {
            return Err(match PYTORCH_WEIGHTS.into_iter().find(|file| has(file)) {
                None => self.missing(WEIGHTS),
                Some(file) => HubError::PyTorchOnly {
                    name: self.name.to_string(),
                    repository: self.name.repository().to_owned(),
                    file: file.to_owned(),
                },
            });
        };
        let tokenizer = match has(TOKENIZER) {
            true => TOKENIZER,
            false => SENTENCEPIECE,
        };
        for needed in [CONFIG, tokenizer] {
            if !has(needed) {
                return Err(self.missing(needed));
            }
        }
        // The weights last: what is small is refused before what is large is fetched.
        let companions = COMPANIONS.into_iter().filter(|file| has(file));
        Ok([CONFIG, tokenizer].into_iter().chain(companions).chain([weights]).collect())
    }

    /// Has a file in its snapshot.
    fn file(
        &self,
        cached: &CachedModel,
        commit: &str,
        file: &str,
        progress: &mut dyn FnMut(DownloadProgress<'_>),
    ) -> Result<(), HubError> {
        let pointer = cached.snapshot(commit).join(file);
        if pointer.exists() {
            return Ok(());
        }
        let what = format!("{} of {}", file, self.name);
        let (endpoint, repository) = (&self.settings.endpoint, self.name.repository());
        let url = format!("{endpoint}/{repository}/resolve/{commit}/{file}");
        let Metadata { etag, size } = self.metadata(file, &what, &url)?;
        // It becomes the name of a file.
        let etag = etag.trim_start_matches("W/").trim_matches('"');
        let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if etag.is_empty() || etag.len() > 128 || !etag.chars().all(is_plain) {
            return Err(self.answer(what, format!("the ETag {etag:?}")));
        }
        let blob = cached.blob(etag);
        let _lock = cached.lock(etag)?;
        // Another program may have put it there by now, and uses it.
        if pointer.exists() {
            return Ok(());
        }
        // Another program may have it by now, or another commit has the same.
        let is_whole = fs::metadata(&blob).is_ok_and(|blob| blob.len() == size);
        if !is_whole {
            let transfer = Transfer { what, endpoint, url: &url, etag, size };
            let mut report = |received| progress(DownloadProgress { file, received, size });
            transfer.run(&self.client, &blob, &mut report)?;
        }
        link(&blob, &pointer)
    }

    /// What the hub says about a file. It is asked for the first byte, and the way to it is followed as long as it
    /// stays on the hub: where the contents lie on another host, the hub's own answer describes them.
    fn metadata(&self, file: &str, what: &str, url: &str) -> Result<Metadata, HubError> {
        let answer = |problem: String| self.answer(what.to_owned(), problem);
        let first_byte = [(RANGE, "bytes=0-0".to_owned())];
        let response = self.client.get(url.to_owned(), &first_byte, Redirects::OfHub);
        let response = response.map_err(|failure| self.failed(what, failure))?;
        match response.status().as_u16() {
            200 | 206 | 301 | 302 | 303 | 307 | 308 => {}
            404 => return Err(self.missing(file)),
            status @ (401 | 403) => return Err(self.denied(status)),
            status => return Err(answer(format!("status {status}"))),
        }
        let headers = response.headers();
        let etag = text(headers, LINKED_ETAG).or_else(|| text(headers, ETAG.as_str()));
        let etag = etag.ok_or_else(|| answer("no ETag".into()))?.to_owned();
        let size = size(response.status(), headers).ok_or_else(|| answer("no size".into()))?;
        Ok(Metadata { etag, size })
    }

    fn failed(&self, what: &str, failure: Failure) -> HubError {
        match failure {
            Failure::Unreachable(source) => self.unreachable(what.to_owned(), source.into()),
            Failure::Answer(problem) => self.answer(what.to_owned(), problem),
        }
    }

    fn unreachable(
        &self,
        what: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    ) -> HubError {
        HubError::Unreachable { endpoint: self.settings.endpoint.clone(), what, source }
    }

    fn denied(&self, status: u16) -> HubError {
        let (name, endpoint) = (self.name.to_string(), self.settings.endpoint.clone());
        HubError::Denied { name, endpoint, status }
    }

    fn missing(&self, file: &str) -> HubError {
        let (name, endpoint) = (self.name.to_string(), self.settings.endpoint.clone());
        HubError::MissingFile { name, endpoint, file: file.to_owned() }
    }

    fn answer(&self, what: String, problem: String) -> HubError {
        HubError::Answer { endpoint: self.settings.endpoint.clone(), what, problem }
    }
}

/// What the hub says about a file.
struct Metadata {
    /// Its name for the contents, as it stands in the answer.
    etag: String,
    /// Bytes.
    size: u64,
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The size of a whole file, of which the answer may hold a part only, or none.
fn size(status: StatusCode, headers: &HeaderMap) -> Option<u64> {
    let of_range = || text(headers, CONTENT_RANGE.as_str())?.rsplit_once('/').map(|(_, size)| size);
    let of_answer = || match status {
        StatusCode::OK => text(headers, CONTENT_LENGTH.as_str()),
        _ => None,
    };
    text(headers, "x-linked-size").or_else(of_range).or_else(of_answer)?.parse().ok()
}
