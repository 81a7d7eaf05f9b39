use std::time::Duration;
use ureq::Body;
use ureq::http::header::{AUTHORIZATION, HeaderName, LOCATION};
use ureq::http::{Response, Uri};

use super::HubSettings;

/// How long the hub may be silent.
const PATIENCE: Duration = Duration::from_secs(30);

/// Redirects that the way to a file may take.
const MAX_REDIRECTS: usize = 5;

/// The hub's name for contents that lie elsewhere, in its answer that leads there.
pub(super) const LINKED_ETAG: &str = "x-linked-etag";

/// Asks a hub, and whom it sends us to. The token goes to the hub's own scheme, host and port alone.
pub(super) struct Client<'a> {
    settings: &'a HubSettings,
    agent: ureq::Agent,
}

/// Why there is no answer to go on with.
pub(super) enum Failure {
    Unreachable(ureq::Error),
    /// An answer that makes no sense.
    Answer(String),
}

/// Where to follow a redirect to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Redirects {
    /// Within the hub. The last answer is one that leads out of it, or that describes the file which it leads to.
    OfHub,
    All,
}

impl<'a> Client<'a> {
    pub(super) fn new(settings: &'a HubSettings) -> Self {
        let agent = ureq::Agent::config_builder()
            .user_agent(concat!("altup/", env!("CARGO_PKG_VERSION")))
            // Here they are followed by hand.
            .max_redirects(0)
            .http_status_as_error(false)
            .timeout_connect(Some(PATIENCE))
            .timeout_recv_response(Some(PATIENCE))
            .timeout_per_read(Some(PATIENCE))
            .build()
            .new_agent();
        Self { settings, agent }
    }

    /// The last answer on the way that begins at an address.
    pub(super) fn get(
        &self,
        mut url: String,
        headers: &[(HeaderName, String)],
        redirects: Redirects,
    ) -> Result<Response<Body>, Failure> {
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self.agent.get(&url);
            for (name, value) in headers {
                request = request.header(name, value);
            }
            if let Some(token) = self.settings.token.as_ref().filter(|_| self.is_of_hub(&url)) {
                request = request.header(AUTHORIZATION, format!("Bearer {token}"));
            }
            let response = request.call().map_err(Failure::Unreachable)?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            let location = response.headers().get(LOCATION);
            let location = location.and_then(|location| location.to_str().ok());
            let location =
                location.ok_or_else(|| Failure::Answer("a redirect to nowhere".to_owned()))?;
            let next = resolved(&url, location)
                .ok_or_else(|| Failure::Answer(format!("a redirect to {location:?}")))?;
            let describes = response.headers().contains_key(LINKED_ETAG);
            if redirects == Redirects::OfHub && (describes || !self.is_of_hub(&next)) {
                return Ok(response);
            }
            url = next;
        }
        Err(Failure::Answer(format!("more than {MAX_REDIRECTS} redirects")))
    }

    fn is_of_hub(&self, url: &str) -> bool {
        matches!((origin(url), origin(&self.settings.endpoint)), (Some(a), Some(b)) if a == b)
    }
}

/// Scheme, host and port.
fn origin(url: &str) -> Option<(String, String, Option<u16>)> {
    let url: Uri = url.parse().ok()?;
    let scheme = url.scheme_str()?.to_lowercase();
    let port = match scheme.as_str() {
        "https" => Some(443),
        "http" => Some(80),
        _ => None,
    };
    Some((scheme, url.host()?.to_lowercase(), url.port_u16().or(port)))
}

/// The address that a redirect at `url` leads to.
fn resolved(url: &str, location: &str) -> Option<String> {
    let url: Uri = url.parse().ok()?;
    let scheme = url.scheme_str()?;
    let next = match location {
        path if path.starts_with("//") => format!("{scheme}:{path}"),
        path if path.starts_with('/') => format!("{scheme}://{}{path}", url.authority()?),
        address => address.to_owned(),
    };
    origin(&next).map(|_| next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hub_is_a_scheme_a_host_and_a_port() {
        let settings = HubSettings {
            endpoint: "https://hub.example".into(),
            cache: Default::default(),
            token: None,
            offline: false,
        };
        let client = Client::new(&settings);
        for url in ["https://hub.example/a/b", "https://HUB.example:443/", "HTTPS://hub.example"] {
            assert!(client.is_of_hub(url), "{url}");
        }
        for url in [
            "http://hub.example/a",
            "https://hub.example:8443/a",
            "https://cdn.hub.example/a",
            "https://hub.example.org/",
            "https://hub.example@other.example/",
            "/a",
        ] {
            assert!(!client.is_of_hub(url), "{url}");
        }
    }

    #[test]
    fn a_redirect_is_an_address_or_a_path() {
        let resolved = |location| resolved("https://hub.example/a/b?c", location);
        assert_eq!(resolved("/d").as_deref(), Some("https://hub.example/d"));
        assert_eq!(resolved("//cdn.example/d").as_deref(), Some("https://cdn.example/d"));
        assert_eq!(resolved("http://x.example/?y=z").as_deref(), Some("http://x.example/?y=z"));
        for nowhere in ["", "d", "https://", "no address"] {
            assert_eq!(resolved(nowhere), None, "{nowhere:?}");
        }
    }
}
