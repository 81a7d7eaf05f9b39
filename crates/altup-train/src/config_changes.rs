//! What differs between two configurations of a run, and what of it may change when the run is resumed.

use std::collections::BTreeSet;
use std::fmt;
use toml::{Table, Value};

use crate::config::RunConfig;

/// A key with another value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The key, dotted.
    pub key: String,
    /// Its value, as TOML.
    pub was: String,
    /// The other value.
    pub is: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} → {})", self.key, self.was, self.is)
    }
}

/// Shown for a key without a value.
pub(crate) const UNSET: &str = "unset";

/// Keys, or tables of them, that may change when a run is resumed: how far it goes, how fast it learns, and
/// how it is watched and kept.
const CHANGEABLE: [&str; 23] = [
    "answers.batch_size",
    "data.on_error",
    "data.workers",
    "epochs",
    "optimizer.clip_norm",
    "optimizer.learning_rate",
    "patience",
    "schedule",
    "tasks.workers",
    "training.checkpoint_every",
    "training.checkpoint_minutes",
    "training.eval_every",
    "training.eval_examples",
    "training.final_eval_examples",
    "training.gradient_checkpointing",
    "training.keep_last",
    "training.log_every",
    "training.max_rollbacks",
    "training.on_divergence",
    "training.prompts",
    "training.recompute_layers",
    "training.replica_timeout",
    "training.steps",
];

impl Difference {
    /// Whether a run may be resumed with the other value.
    pub fn may_change(&self) -> bool {
        let within = |key: &str| {
            let rest = self.key.strip_prefix(key);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        CHANGEABLE.iter().any(|key| within(key)) || self.is_place()
    }

    /// Whether a fine-tuning run may be resumed with the other value. Its validations are compared with each other, and so
    /// are of the same examples all along.
    pub fn may_change_in_fine_tuning(&self) -> bool {
        self.may_change() && self.key != "training.eval_examples"
    }

    /// Whether it only says where something lies. What lies there is compared by its content.
    pub(crate) fn is_place(&self) -> bool {
        let of_source = self.key.strip_prefix("data.sources[");
        let of_source = of_source.and_then(|key| key.split_once("].")).map(|(_, key)| key);
        match self.key.as_str() {
            "data.train" | "data.valid" | "data.tokenizer" | "model.path" | "tasks.data" => true,
            // Without one, other keys say what the model is.
            "model.init" => self.was != UNSET && self.is != UNSET,
            _ => matches!(of_source, Some("train" | "valid")),
        }
    }
}

impl RunConfig {
    /// The keys whose values differ in `other`.
    pub fn differences(&self, other: &Self) -> Vec<Difference> {
        let mut differences = Vec::new();
        compare("", &self.to_table(), &other.to_table(), &mut differences);
        differences
    }
}

pub(crate) fn compare(prefix: &str, a: &Table, b: &Table, differences: &mut Vec<Difference>) {
    let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    for key in keys {
        let dotted = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        compare_values(dotted, a.get(key), b.get(key), differences);
    }
}

fn compare_values(
    key: String,
    a: Option<&Value>,
    b: Option<&Value>,
    differences: &mut Vec<Difference>,
) {
    let is_table = |value: &Value| value.is_table();
    match (a, b) {
        (a, b) if a == b => {}
        (Some(Value::Table(a)), Some(Value::Table(b))) => compare(&key, a, b, differences),
        (Some(Value::Array(a)), Some(Value::Array(b)))
            if a.len() == b.len() && a.iter().chain(b).all(is_table) =>
        {
            for (number, (a, b)) in a.iter().zip(b).enumerate() {
                compare_values(format!("{key}[{number}]"), Some(a), Some(b), differences);
            }
        }
        (a, b) => {
            let show = |value: Option<&Value>| value.map_or(UNSET.to_owned(), Value::to_string);
            differences.push(Difference { key, was: show(a), is: show(b) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{DataConfig, SourceConfig};

    fn assign(assignments: &[&str]) -> RunConfig {
        let assignments: Vec<String> = assignments.iter().map(|&text| text.into()).collect();
        RunConfig::tiny_altup().with_assignments(&assignments).unwrap()
    }

    #[test]
    fn differences_name_keys_and_values() {
        let other = assign(&["training.steps=9"]);
        let differences = RunConfig::tiny_altup().differences(&other);
        let shown: Vec<String> = differences.iter().map(Difference::to_string).collect();
        assert_eq!(shown, ["training.steps (1200 → 9)"]);
        let mut dense = RunConfig::tiny_altup();
        dense.model.altup = None;
        assert_eq!(RunConfig::tiny_altup().differences(&dense).len(), 1);
    }

    #[test]
    fn a_run_may_change_how_far_and_how_fast_it_goes_and_where_its_text_lies() {
        let may_change = |assignment: &str| {
            let other = assign(&[assignment]);
            let [difference] = &RunConfig::tiny_altup().differences(&other)[..] else {
                panic!("{assignment}");
            };
            difference.may_change()
        };
        for assignment in [
            "training.steps=9",
            "training.checkpoint_minutes=1.5",
            "training.on_divergence=rollback",
            "training.prompts=[]",
            "training.gradient_checkpointing=true",
            "optimizer.learning_rate=0.5",
            "schedule.kind=linear",
            "data.workers=2",
            "data.train=[\"elsewhere\"]",
            "data.tokenizer=elsewhere.json",
        ] {
            assert!(may_change(assignment), "{assignment}");
        }
        for assignment in [
            "seed=1",
            "model.d_ff=7",
            "model.dropout_rate=0.1",
            "model.init=elsewhere",
            "data.input_length=64",
            "optimizer.kind=adamw",
            "optimizer.weight_decay=0.1",
            "training.batch_size=4",
            "training.gradient_accumulation=2",
            "training.precision=bf16",
        ] {
            assert!(!may_change(assignment), "{assignment}");
        }
        let with_sources = |train: &str, weight: f64| {
            let source = SourceConfig {
                name: "a".into(),
                train: vec![train.into()],
                valid: Vec::new(),
                weight: Some(weight),
            };
            let data = DataConfig { sources: vec![source], ..DataConfig::default() };
            RunConfig { data, ..RunConfig::default() }
        };
        let differences = with_sources("here", 1.0).differences(&with_sources("there", 2.0));
        let changes = differences.iter().map(|d| (d.key.as_str(), d.may_change()));
        let expected = [("data.sources[0].train", true), ("data.sources[0].weight", false)];
        assert_eq!(changes.collect::<Vec<_>>(), expected);
    }
}
