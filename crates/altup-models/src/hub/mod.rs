//! Models by their names on the Hugging Face hub, in the cache that Python's `huggingface_hub` uses.

#[cfg(feature = "hub")]
mod cache;
#[cfg(feature = "hub")]
mod client;
mod error;
#[cfg(feature = "hub")]
mod fetch;
mod name;
#[cfg(feature = "hub")]
mod settings;
#[cfg(feature = "hub")]
mod transfer;

pub use error::HubError;
#[cfg(feature = "hub")]
pub use fetch::Hub;
pub use name::HubName;
#[cfg(feature = "hub")]
pub use settings::HubSettings;

use crate::ModelDirectory;
use std::path::Path;

/// How far the download of a file is.
#[derive(Clone, Copy, Debug)]
pub struct DownloadProgress<'a> {
    /// The file's name in the model.
    pub file: &'a str,
    /// Bytes that are there.
    pub received: u64,
    /// Bytes of the whole file.
    pub size: u64,
}

impl ModelDirectory {
    /// The directory at this path or, if there is none, the model of this name on the Hugging Face hub, as
    /// [`HubName`] writes it. What the cache lacks of it is downloaded; `progress` is told of each step.
    ///
    /// # Errors
    ///
    /// If there is neither, or the model can't be had; a name always is an error without the cargo feature `hub`.
    pub fn find(
        path_or_name: &str,
        progress: &mut dyn FnMut(DownloadProgress<'_>),
    ) -> Result<Self, HubError> {
        if Path::new(path_or_name).is_dir() {
            return Ok(Self::new(path_or_name));
        }
        let name = HubName::parse(path_or_name)
            .ok_or_else(|| HubError::NoName { name: path_or_name.to_owned() })?;
        Self::named(&name, progress)
    }

    #[cfg(feature = "hub")]
    fn named(
        name: &HubName,
        progress: &mut dyn FnMut(DownloadProgress<'_>),
    ) -> Result<Self, HubError> {
        Hub::new(HubSettings::from_env()?).model(name, progress)
    }

    #[cfg(not(feature = "hub"))]
    fn named(
        name: &HubName,
        _progress: &mut dyn FnMut(DownloadProgress<'_>),
    ) -> Result<Self, HubError> {
        Err(HubError::FeatureMissing { name: name.to_string() })
    }
}
