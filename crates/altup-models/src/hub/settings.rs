use std::fmt;
use std::path::PathBuf;

use super::HubError;

/// Where models by name come from and where they are kept.
#[derive(Clone)]
pub struct HubSettings {
    /// The hub's address, without a slash at its end. Default: `https://huggingface.co`
    pub endpoint: String,
    /// The cache, in the layout of Python's `huggingface_hub`, which then shares it.
    pub cache: PathBuf,
    /// What opens gated and private models. Default: none
    pub token: Option<String>,
    /// Whether nothing is asked of the hub, and models are taken from the cache alone. Default: false
    pub offline: bool,
}

impl HubSettings {
    const ENDPOINT: &str = "https://huggingface.co";

    /// The settings that Python's `huggingface_hub` has in the same environment:
    ///
    /// - the cache is `HF_HUB_CACHE`, or `hub` in `HF_HOME`, which is `huggingface` in `XDG_CACHE_HOME` or
    ///   `~/.cache`;
    /// - the address is `HF_ENDPOINT`;
    /// - the token is `HF_TOKEN`, or in the file `HF_TOKEN_PATH` or `token` in `HF_HOME`, unless
    ///   `HF_HUB_DISABLE_IMPLICIT_TOKEN` is set;
    /// - `HF_HUB_OFFLINE`, or `TRANSFORMERS_OFFLINE`, is set if it is 1, ON, YES or TRUE.
    ///
    /// # Errors
    ///
    /// If there is neither a variable nor a home folder that says where the cache is.
    pub fn from_env() -> Result<Self, HubError> {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    /// As [`from_env`](Self::from_env), with the variables that `variable` knows.
    ///
    /// # Errors
    ///
    /// As [`from_env`](Self::from_env).
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self, HubError> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let user = variable("HOME").map(PathBuf::from).or_else(std::env::home_dir);
        let path = |name: &str| {
            let value = variable(name)?;
            match (value.strip_prefix("~/"), &user) {
                (Some(rest), Some(user)) => Some(user.join(rest)),
                _ => Some(PathBuf::from(value)),
            }
        };
        let home = path("HF_HOME").or_else(|| {
            let caches = path("XDG_CACHE_HOME").or_else(|| Some(user.clone()?.join(".cache")));
            Some(caches?.join("huggingface"))
        });
        let in_home = |name: &str| Some(home.clone()?.join(name));
        let is_set = |name: &str| {
            let value = variable(name).unwrap_or_default().to_uppercase();
            matches!(value.as_str(), "1" | "ON" | "YES" | "TRUE")
        };
        let from_file = || {
            let file = path("HF_TOKEN_PATH").or_else(|| in_home("token"))?;
            std::fs::read_to_string(file).ok()
        };
        let token = match is_set("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            true => None,
            false => variable("HF_TOKEN")
                .or_else(|| variable("HUGGING_FACE_HUB_TOKEN"))
                .or_else(from_file),
        };
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| Self::ENDPOINT.into());
        Ok(Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            cache: path("HF_HUB_CACHE")
                .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
                .or_else(|| in_home("hub"))
                .ok_or(HubError::NoCache)?,
            token: token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty()),
            offline: is_set("HF_HUB_OFFLINE") || is_set("TRANSFORMERS_OFFLINE"),
        })
    }
}

/// Leaves the token out.
impl fmt::Debug for HubSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubSettings")
            .field("endpoint", &self.endpoint)
            .field("cache", &self.cache)
            .field("has_token", &self.token.is_some())
            .field("offline", &self.offline)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> HubSettings {
        let find = |name: &str| variables.iter().find(|(known, _)| *known == name);
        HubSettings::from_variables(|name| find(name).map(|(_, value)| (*value).to_owned()))
            .unwrap()
    }

    #[test]
    fn the_cache_lies_where_python_has_it() {
        for (variables, cache) in [
            (&[("HOME", "/u")][..], "/u/.cache/huggingface/hub"),
            (&[("HOME", "/u"), ("XDG_CACHE_HOME", "/c")], "/c/huggingface/hub"),
            (&[("HOME", "/u"), ("XDG_CACHE_HOME", "/c"), ("HF_HOME", "~/hf")], "/u/hf/hub"),
            (&[("HOME", "/u"), ("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/models")], "/models"),
            (&[("HOME", "/u"), ("HUGGINGFACE_HUB_CACHE", "/old")], "/old"),
            (&[("HOME", "/u"), ("HF_HOME", "")], "/u/.cache/huggingface/hub"),
        ] {
            assert_eq!(settings(variables).cache, PathBuf::from(cache), "{variables:?}");
        }
    }

    #[test]
    fn the_token_is_a_variables_or_in_a_file() {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("token"), "of the file\n").unwrap();
        std::fs::write(home.path().join("other"), "of another\n").unwrap();
        let (hf_home, other) = (home.path().to_str().unwrap(), home.path().join("other"));
        let token = |more: &[(&str, &str)]| {
            settings(&[&[("HOME", "/u"), ("HF_HOME", hf_home)], more].concat()).token
        };
        assert_eq!(token(&[]).as_deref(), Some("of the file"));
        assert_eq!(token(&[("HF_TOKEN", "mine ")]).as_deref(), Some("mine"));
        assert_eq!(
            token(&[("HF_TOKEN_PATH", other.to_str().unwrap())]).as_deref(),
            Some("of another")
        );
        // The cache may be elsewhere; the token stays.
        assert_eq!(token(&[("HF_HUB_CACHE", "/c")]).as_deref(), Some("of the file"));
        assert_eq!(token(&[("HF_TOKEN", "mine"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), None);
        assert_eq!(settings(&[("HOME", "/u"), ("HF_HOME", "/nowhere")]).token, None);
    }

    #[test]
    fn switches_and_addresses() {
        assert_eq!(settings(&[("HOME", "/u")]).endpoint, "https://huggingface.co");
        assert_eq!(
            settings(&[("HF_ENDPOINT", "http://localhost:1/")]).endpoint,
            "http://localhost:1"
        );
        for (value, offline) in
            [("1", true), ("on", true), ("True", true), ("0", false), ("", false)]
        {
            assert_eq!(settings(&[("HF_HUB_OFFLINE", value)]).offline, offline, "{value}");
        }
        assert!(settings(&[("TRANSFORMERS_OFFLINE", "yes")]).offline);
    }

    #[test]
    fn a_token_is_never_printed() {
        let settings = settings(&[("HF_TOKEN", "secret")]);
        assert!(!format!("{settings:?}").contains("secret"));
    }
}
