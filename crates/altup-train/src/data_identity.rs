//! What the data of a run is: each shard by the hash of its content, the tokenizer, the order of examples.

use altup_data::corpus::READER_VERSION;
use altup_data::pretraining::EXAMPLES_VERSION;
use altup_data::tokenizer::TOKENIZING_VERSION;
use altup_data::{Corpus, ShardSource, TextTokenizer};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::ffi::OsStr;
use std::path::Path;

/// What a run is trained and validated on, wherever it lies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataIdentity {
    /// altup-data's [`READER_VERSION`].
    #[serde(default = "first_version")]
    pub reader_version: u32,
    /// altup-data's [`EXAMPLES_VERSION`].
    pub examples_version: u32,
    /// altup-data's [`TOKENIZING_VERSION`].
    #[serde(default = "first_version")]
    pub tokenizing_version: u32,
    /// BLAKE3 of the tokenizer's JSON.
    pub tokenizer: String,
    /// The texts: one without a name, or those of a mixture.
    pub sources: Vec<SourceIdentity>,
}

/// That of records from before they were written down.
fn first_version() -> u32 {
    1
}

impl DataIdentity {
    /// A hash of all of it but for where the texts lie.
    pub fn fingerprint(&self) -> String {
        let mut content = self.clone();
        let texts = content.sources.iter_mut().flat_map(|of| [&mut of.train, &mut of.valid]);
        for shard in texts.flat_map(|text| &mut text.shards) {
            shard.file.clear();
        }
        let json = serde_json::to_vec(&content).expect("strings and numbers are JSON");
        blake3::hash(&json).to_string()
    }
}

/// A text, both parts of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceIdentity {
    /// Its name; empty where it has none.
    pub name: String,
    /// What is trained on.
    pub train: TextIdentity,
    /// What is validated on.
    pub valid: TextIdentity,
}

/// A text by its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TextIdentity {
    /// Which documents of the shards belong to it.
    pub documents: String,
    /// Its shards in order.
    pub shards: Vec<ShardIdentity>,
}

/// A shard by its content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardIdentity {
    /// Where its first file lay. It may lie elsewhere now.
    pub file: String,
    /// The number of its files.
    pub files: usize,
    /// BLAKE3 of the files' contents and of how they are read.
    pub blake3: String,
}

/// Why a run can't go on with some data. `text` is as in "the training text".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The tokenizer isn't the run's.
    #[error(
        "the tokenizer is another one than the run's: the run was started with that of BLAKE3 {was}, \
         and this one has {is}"
    )]
    Tokenizer {
        /// The run's.
        was: String,
        /// The other.
        is: String,
    },
    /// This release makes something else of the same text.
    #[error(
        "this release of altup makes other {what} of the same text (version {is}) than the one \
         that started the run (version {was}): go on with that one"
    )]
    Version {
        /// What it makes of text.
        what: &'static str,
        /// The run's version.
        was: u32,
        /// This release's.
        is: u32,
    },
    /// There are other texts.
    #[error("the run has the texts {was}, not {is}")]
    Sources {
        /// The names of the run's.
        was: String,
        /// The names of those at hand.
        is: String,
    },
    /// Other documents of the files.
    #[error("the {text} text has changed: it was {was} of its files, and is now {is}")]
    Documents {
        /// Which text.
        text: String,
        /// The run's.
        was: String,
        /// Those at hand.
        is: String,
    },
    /// A shard has other content.
    #[error("the {text} text has changed: {file} is not what it was when the run was started")]
    Changed {
        /// Which text.
        text: String,
        /// The shard.
        file: String,
    },
    /// A shard is another.
    #[error(
        "the {text} text has changed: its shard {number} is {is}, which is not the run's, {was}"
    )]
    Another {
        /// Which text.
        text: String,
        /// The shard's number, from 1.
        number: usize,
        /// The run's.
        was: String,
        /// The one at hand.
        is: String,
    },
    /// A shard is missing.
    #[error("the {text} text has changed: it no longer has {file}")]
    Missing {
        /// Which text.
        text: String,
        /// The shard.
        file: String,
    },
    /// A shard is new.
    #[error("the {text} text has changed: {file} is new")]
    Added {
        /// Which text.
        text: String,
        /// The shard.
        file: String,
    },
    /// The same shards in another order.
    #[error(
        "the {text} text has changed: its shards are in another order, of which {file} is the first"
    )]
    Reordered {
        /// Which text.
        text: String,
        /// The first shard that is at another place.
        file: String,
    },
}

impl TextIdentity {
    /// That of a corpus with these shards.
    pub fn new(corpus: &Corpus, shards: &[ShardSource]) -> Self {
        let shard = |shard: &ShardSource| ShardIdentity {
            file: shard.file.to_string_lossy().into_owned(),
            files: shard.files,
            blake3: shard.content.to_string(),
        };
        Self {
            documents: corpus.selection().to_string(),
            shards: shards.iter().map(shard).collect(),
        }
    }

    /// Checks that `now` is the same text.
    fn check(&self, now: &Self, text: &str) -> Result<(), IdentityError> {
        let text = text.to_owned();
        let differs = |(was, is): (&ShardIdentity, &ShardIdentity)| was.blake3 != is.blake3;
        let same = || self.shards.iter().zip(&now.shards);
        let number = same().position(differs).unwrap_or_else(|| same().len());
        let file = |shard: &ShardIdentity| shard.file.clone();
        let holds = |text: &Self, shard: &ShardIdentity| {
            let contents: HashSet<&str> = text.shards.iter().map(|s| s.blake3.as_str()).collect();
            contents.contains(shard.blake3.as_str())
        };
        match (self.shards.get(number), now.shards.get(number)) {
            (None, None) if self.documents == now.documents => Ok(()),
            (None, None) => {
                let (was, is) = (self.documents.clone(), now.documents.clone());
                Err(IdentityError::Documents { text, was, is })
            }
            (Some(was), None) => Err(IdentityError::Missing { text, file: file(was) }),
            (None, Some(is)) => Err(IdentityError::Added { text, file: file(is) }),
            (Some(was), Some(is)) => Err(match (holds(now, was), holds(self, is)) {
                (true, true) => IdentityError::Reordered { text, file: file(is) },
                (true, false) => IdentityError::Added { text, file: file(is) },
                (false, true) => IdentityError::Missing { text, file: file(was) },
                (false, false) if file_name(was) == file_name(is) => {
                    IdentityError::Changed { text, file: file(is) }
                }
                (false, false) => {
                    let (was, is) = (file(was), file(is));
                    IdentityError::Another { text, number: number + 1, was, is }
                }
            }),
        }
    }
}

/// A file that was moved has its name still.
fn file_name(shard: &ShardIdentity) -> Option<&OsStr> {
    Path::new(&shard.file).file_name()
}

/// Checks that texts are those of a run.
///
/// # Errors
///
/// Names the first text, and shard of it, that isn't.
pub fn check_texts(was: &[SourceIdentity], is: &[SourceIdentity]) -> Result<(), IdentityError> {
    let names = |sources: &[SourceIdentity]| {
        sources.iter().map(|source| source.name.as_str()).collect::<Vec<_>>().join(", ")
    };
    let (names_were, names_are) = (names(was), names(is));
    if was.len() != is.len() || names_were != names_are {
        return Err(IdentityError::Sources { was: names_were, is: names_are });
    }
    for (was, is) in was.iter().zip(is) {
        let text = |part: &str| match was.name.as_str() {
            "" => part.to_owned(),
            name => format!("{name} {part}"),
        };
        was.train.check(&is.train, &text("training"))?;
        was.valid.check(&is.valid, &text("validation"))?;
    }
    Ok(())
}

impl DataIdentity {
    /// That of these texts, with this release and a tokenizer.
    pub fn new(tokenizer: &TextTokenizer, sources: Vec<SourceIdentity>) -> Self {
        Self {
            reader_version: READER_VERSION,
            examples_version: EXAMPLES_VERSION,
            tokenizing_version: TOKENIZING_VERSION,
            tokenizer: tokenizer.fingerprint().to_string(),
            sources,
        }
    }

    /// Checks that `now` is the same data, wherever it lies.
    ///
    /// # Errors
    ///
    /// Names what isn't the same.
    pub fn check(&self, now: &Self) -> Result<(), IdentityError> {
        if self.tokenizer != now.tokenizer {
            let (was, is) = (self.tokenizer.clone(), now.tokenizer.clone());
            return Err(IdentityError::Tokenizer { was, is });
        }
        check_versions(self.versions(), now.versions())?;
        check_texts(&self.sources, &now.sources)
    }

    /// Checks that this release makes the same of the same text.
    ///
    /// # Errors
    ///
    /// Names what it makes otherwise.
    pub fn check_release(&self) -> Result<(), IdentityError> {
        check_versions(self.versions(), [READER_VERSION, TOKENIZING_VERSION, EXAMPLES_VERSION])
    }

    /// Those of documents, tokens and examples.
    fn versions(&self) -> [u32; 3] {
        [self.reader_version, self.tokenizing_version, self.examples_version]
    }
}

fn check_versions(were: [u32; 3], are: [u32; 3]) -> Result<(), IdentityError> {
    for (what, (was, is)) in
        ["documents", "tokens", "examples"].into_iter().zip(were.into_iter().zip(are))
    {
        if was != is {
            return Err(IdentityError::Version { what, was, is });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A text of shards, each a letter of content in a file.
    fn text(shards: &[(&str, char)]) -> TextIdentity {
        let shards = shards.iter().map(|(file, content)| ShardIdentity {
            file: (*file).to_owned(),
            files: 1,
            blake3: content.to_string(),
        });
        TextIdentity { documents: "all documents".into(), shards: shards.collect() }
    }

    fn data(train: TextIdentity, valid: TextIdentity) -> DataIdentity {
        let source = SourceIdentity { name: String::new(), train, valid };
        DataIdentity {
            reader_version: 1,
            examples_version: 1,
            tokenizing_version: 1,
            tokenizer: "t".into(),
            sources: vec![source],
        }
    }

    #[test]
    fn another_version_of_tokens_or_examples_is_named() {
        let was = data(text(&[("a", '1')]), text(&[("v", '2')]));
        let message = |is: &DataIdentity| was.check(is).unwrap_err().to_string();
        let tokens = DataIdentity { tokenizing_version: 2, ..was.clone() };
        assert!(message(&tokens).contains("makes other tokens of the same text (version 2)"));
        let examples = DataIdentity { examples_version: 3, ..was.clone() };
        assert!(message(&examples).contains("other examples of the same text (version 3)"));
        // Before the texts, whose shards are all others then.
        let documents = data(text(&[("a", '7')]), text(&[("v", '8')]));
        let documents = DataIdentity { reader_version: 2, ..documents };
        assert!(message(&documents).contains("makes other documents of the same text (version 2)"));
        let here = [READER_VERSION, TOKENIZING_VERSION, EXAMPLES_VERSION];
        let [reader_version, tokenizing_version, examples_version] = here;
        let of_here =
            DataIdentity { reader_version, tokenizing_version, examples_version, ..was.clone() };
        of_here.check_release().unwrap();
        let other = DataIdentity { examples_version: examples_version + 1, ..of_here };
        let message = other.check_release().unwrap_err().to_string();
        assert!(message.contains("makes other examples of the same text"), "{message}");
        // Records from before they were written down are of the first ones.
        let mut json = serde_json::to_value(&was).unwrap();
        for version in ["tokenizing_version", "reader_version"] {
            json.as_object_mut().unwrap().remove(version);
        }
        assert_eq!(serde_json::from_value::<DataIdentity>(json).unwrap(), was);
    }

    #[test]
    fn the_same_text_at_another_place_is_the_same() {
        let was = data(text(&[("a", '1'), ("b", '2')]), text(&[("v", '3')]));
        let is = data(text(&[("x/a", '1'), ("x/b", '2')]), text(&[("x/v", '3')]));
        was.check(&is).unwrap();
    }

    #[test]
    fn what_is_another_is_named() {
        let valid = text(&[("v", '9')]);
        let was = data(text(&[("a", '1'), ("b", '2'), ("c", '3')]), valid.clone());
        let message = |is: DataIdentity| was.check(&is).unwrap_err().to_string();
        for (shards, words) in [
            (
                &[("a", '1'), ("x/b", '7'), ("c", '3')][..],
                "x/b is not what it was when the run was started",
            ),
            (&[("a", '1'), ("x", '7'), ("c", '3')], "its shard 2 is x, which is not the run's, b"),
            (&[("a", '1'), ("c", '3')], "it no longer has b"),
            (&[("a", '1'), ("b", '2')], "it no longer has c"),
            (&[("a", '1'), ("b", '2'), ("bb", '8'), ("c", '3')], "bb is new"),
            (&[("a", '1'), ("b", '2'), ("c", '3'), ("d", '8')], "d is new"),
            (&[("a", '1'), ("c", '3'), ("d", '2')], "another order, of which c is the first"),
        ] {
            let message = message(data(text(shards), valid.clone()));
            assert!(message.starts_with("the training text has changed"), "{message}");
            assert!(message.ends_with(words), "{message}");
        }
        let train = was.sources[0].train.clone();
        let other = message(data(train.clone(), text(&[("v", '8')])));
        assert!(other.starts_with("the validation text has changed: v is not"), "{other}");

        let mut held_out = data(train, valid);
        held_out.sources[0].train.documents = "one of every 100 documents".into();
        assert!(message(held_out.clone()).contains("now one of every 100 documents"));
        held_out.tokenizer = "u".into();
        assert!(message(held_out).contains("tokenizer"));
    }
}
