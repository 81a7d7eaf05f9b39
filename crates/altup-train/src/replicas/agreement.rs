//! What all replicas of a run must have alike, compared at its start.

use serde::Serialize;
use toml::{Table, Value};

use super::Replicas;
use crate::config::to_table;
use crate::config_changes::{Difference, UNSET, compare};

/// Keys and values that all replicas must have alike.
#[derive(Clone, Debug, Default)]
pub struct Agreement {
    table: Table,
}

/// A replica has another value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the replicas differ: {key} is {value} on replica {rank}, and {first} on replica 0")]
pub struct Disagreement {
    /// The first key, dotted, whose values differ.
    pub key: String,
    /// The first replica that has another value than replica 0.
    pub rank: usize,
    /// Its value.
    pub value: String,
    /// That of replica 0.
    pub first: String,
}

impl Agreement {
    /// On the keys of a configuration.
    pub fn on_config(config: &impl Serialize) -> Self {
        Self { table: to_table(config) }
    }

    /// Also on this.
    ///
    /// # Panics
    ///
    /// If TOML can't hold the value.
    pub fn and(mut self, key: &str, value: impl Serialize) -> Self {
        let value =
            Value::try_from(value).unwrap_or_else(|error| panic!("{key} is no TOML: {error}"));
        self.table.insert(key.to_owned(), value);
        self
    }

    /// Also on this, where there is one.
    ///
    /// # Panics
    ///
    /// As [`and`](Self::and).
    pub fn and_if_any(self, key: &str, value: Option<impl Serialize>) -> Self {
        match value {
            Some(value) => self.and(key, value),
            None => self,
        }
    }

    /// The first difference of this replica from replica 0, as the key and both values. Where files lie is no difference:
    /// their content is compared.
    fn difference(&self, first: &Table) -> Option<(String, String, String)> {
        let mut differences = Vec::new();
        compare("", &self.table, first, &mut differences);
        let counts = |difference: &Difference| {
            let Difference { key, was, is } = difference;
            let is_place = difference.is_place() || key.ends_with("].file");
            // Whether there is such a file is one.
            !is_place || was == UNSET || is == UNSET
        };
        let Difference { key, was, is } = differences.into_iter().find(counts)?;
        Some((key, in_short(&was), in_short(&is)))
    }
}

/// A value that may be long, as a list of shards is.
fn in_short(value: &str) -> String {
    const LONGEST: usize = 100;
    match value.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &value[..end]),
        None => value.to_owned(),
    }
}

impl Replicas {
    /// Checks that all replicas have the same.
    ///
    /// # Errors
    ///
    /// On every replica, if one of them has something else than replica 0.
    pub fn agree(&self, on: &Agreement) -> Result<(), Disagreement> {
        const WHAT: &str = "what they must have alike";
        if self.is_lone() {
            return Ok(());
        }
        let first = self.broadcast(on.table.to_string().into_bytes(), WHAT);
        let first = String::from_utf8_lossy(&first).parse::<Table>().unwrap_or_default();
        let differences = self.gather(on.difference(&first), WHAT);
        let of_one =
            differences.into_iter().enumerate().find_map(|(rank, found)| Some((rank, found?)));
        match of_one {
            Some((rank, (key, value, first))) => Err(Disagreement { key, rank, value, first }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::threads::on_threads;
    use super::*;
    use crate::config::RunConfig;

    #[test]
    fn the_first_difference_names_the_key_and_the_replica() {
        let compared = |change: fn(&mut RunConfig)| {
            let agreed = on_threads(3, |replicas| {
                let mut config = RunConfig::tiny_altup();
                if replicas.place().rank == 2 {
                    change(&mut config);
                }
                let agreement = Agreement::on_config(&config).and("version", "0.1.0");
                replicas.agree(&agreement)
            });
            assert!(agreed.windows(2).all(|pair| pair[0] == pair[1]), "{agreed:?}");
            agreed[0].clone().map_err(|error| error.to_string())
        };
        let same = compared(|_| {});
        assert_eq!(same, Ok(()));
        let seed = compared(|config| config.seed = 7);
        assert_eq!(
            seed.unwrap_err(),
            "the replicas differ: seed is 7 on replica 2, and 0 on replica 0"
        );
        let elsewhere = compared(|config| config.data.train = vec!["/elsewhere".into()]);
        assert_eq!(elsewhere, Ok(()));
        let tokenizer = compared(|config| config.data.tokenizer = Some("/elsewhere".into()));
        let message = tokenizer.unwrap_err();
        assert!(
            message.contains("data.tokenizer is \"/elsewhere\" on replica 2, and unset"),
            "{message}"
        );
        let prompts = compared(|config| config.training.prompts = vec!["x".repeat(200)]);
        let message = prompts.unwrap_err();
        assert!(
            message.contains("training.prompts is ") && message.contains("… on replica 2"),
            "{message}"
        );
    }
}
