/// The name of a model on the Hugging Face hub: `google/flan-t5-small`, or `google/flan-t5-small@REVISION` with the
/// name of a branch or a tag, or a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubName {
    repository: String,
    revision: String,
}

impl HubName {
    /// The branch of a name without a revision.
    const DEFAULT_REVISION: &str = "main";

    /// Longer names there are none of.
    const MAX_LENGTH: usize = 96;

    /// Reads a name; none if the hub could not have a model of this name. The rules are those of Python's
    /// `huggingface_hub`.
    pub fn parse(name: &str) -> Option<Self> {
        let (repository, revision) = name.split_once('@').unwrap_or((name, Self::DEFAULT_REVISION));
        let mut parts = repository.split('/');
        let well_formed = parts.by_ref().take(2).all(|part| {
            let inner = |c: char| c.is_ascii_alphanumeric() || c == '_';
            part.starts_with(inner) && part.ends_with(inner) && part.chars().all(is_name_character)
        }) && parts.next().is_none();
        let forbidden = repository.contains("--")
            || repository.contains("..")
            || repository.ends_with(".git")
            || repository.len() > Self::MAX_LENGTH;
        // It becomes a path in the cache.
        let is_revision = revision.split('/').all(|part| {
            !part.is_empty() && !part.starts_with('.') && part.chars().all(is_name_character)
        });
        (well_formed && !forbidden && is_revision)
            .then(|| Self { repository: repository.into(), revision: revision.into() })
    }

    /// `google/flan-t5-small`
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The branch, tag or commit. Default: `main`
    pub fn revision(&self) -> &str {
        &self.revision
    }
}

impl std::fmt::Display for HubName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.repository)?;
        match self.revision.as_str() {
            Self::DEFAULT_REVISION => Ok(()),
            revision => write!(f, "@{revision}"),
        }
    }
}

fn is_name_character(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_hub_are_told_from_paths() {
        for (name, repository, revision) in [
            ("google/flan-t5-small", "google/flan-t5-small", "main"),
            ("t5-small", "t5-small", "main"),
            ("google/t5-v1_1-small@refs/pr/3", "google/t5-v1_1-small", "refs/pr/3"),
            ("a/b@v1.0", "a/b", "v1.0"),
        ] {
            let parsed = HubName::parse(name).unwrap();
            assert_eq!((parsed.repository(), parsed.revision()), (repository, revision));
            assert_eq!(parsed.to_string(), name);
        }
        let long = "a".repeat(97);
        for path in [
            "",
            ".",
            "..",
            "./t5",
            "../t5",
            "/models/t5",
            "runs/a/b",
            "runs/",
            "~/t5",
            "a--b",
            "a..b",
            "-a",
            "a.",
            "a b",
            "a/b.git",
            "a/b@",
            "a/b@../c",
            "a/b@/c",
            "a/b@.hidden",
            "a\\b",
            "é",
            &long,
        ] {
            assert_eq!(HubName::parse(path), None, "{path}");
        }
    }
}
