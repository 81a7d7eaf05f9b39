//! The variants of a model by name, on the command line, in names of runs, in benchmarks and reports.

use altup_core::{BlockSelection, Widening};
use altup_models::{
    AltUpModelConfig, EncoderSequence, MoeConfig, MoeMode, SequenceMethod, T5Config,
};
use clap::ValueEnum;

/// How a T5's representation is widened, by the paper's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Variant {
    /// T5 as it is
    Dense,
    /// Widened tables; layers take the blocks in turn
    Altup,
    /// Widened tables; all layers take block 0
    Sameup,
    /// Recycled-AltUp: narrow tables, replicated at the input and summed at the output
    Recycled,
    /// Widened tables, summed at the input: a baseline
    Sum,
}

impl Variant {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dense => "dense",
            Self::Altup => "altup",
            Self::Sameup => "sameup",
            Self::Recycled => "recycled",
            Self::Sum => "sum",
        }
    }

    /// The `altup` object of the variant with K = `num_blocks`; none for a dense model.
    pub fn altup(self, num_blocks: usize) -> Option<AltUpModelConfig> {
        let (selection, widening) = match self {
            Self::Dense => return None,
            Self::Altup => (BlockSelection::Alternating, Widening::Embedding),
            Self::Sameup => (BlockSelection::Same, Widening::Embedding),
            Self::Recycled => (BlockSelection::Alternating, Widening::Recycled),
            Self::Sum => (BlockSelection::Alternating, Widening::Sum),
        };
        Some(AltUpModelConfig { num_blocks, selection, widening, encoder_sequence: None })
    }

    /// The variant of an `altup` object.
    fn of(altup: &AltUpModelConfig) -> Self {
        match (altup.widening, altup.selection) {
            (Widening::Recycled, _) => Self::Recycled,
            (Widening::Sum, _) => Self::Sum,
            (Widening::Embedding, BlockSelection::Same) => Self::Sameup,
            (Widening::Embedding, BlockSelection::Alternating) => Self::Altup,
        }
    }
}

/// What a model is called beside its size: `dense`, or words joined by hyphens. These are the variant with
/// its number of blocks (`altup-k2`, `sameup-k2`, `recycled-k4`, `sum-k2`), how the sequence is reduced, with
/// the stride (`seq4`, `skip4`, `pool4`), and what experts there are (`moe128`, `switch8`).
pub fn label(altup: Option<&AltUpModelConfig>, moe: Option<&MoeConfig>) -> String {
    let mut words = Vec::new();
    // A single block is there for the sequence's sake.
    if let Some(altup) = altup.filter(|a| a.num_blocks > 1 || a.encoder_sequence.is_none()) {
        words.push(format!("{}-k{}", Variant::of(altup).name(), altup.num_blocks));
    }
    if let Some(sequence) = altup.and_then(|altup| altup.encoder_sequence.as_ref()) {
        let word = match sequence.method {
            SequenceMethod::Altup => "seq",
            SequenceMethod::StrideAndSkip => "skip",
            SequenceMethod::AveragePool => "pool",
        };
        words.push(format!("{word}{}", sequence.stride));
    }
    if let Some(moe) = moe {
        let word = match moe.mode {
            MoeMode::Partial => "moe",
            MoeMode::Switch => "switch",
        };
        words.push(format!("{word}{}", moe.num_experts));
    }
    match words.is_empty() {
        true => Variant::Dense.name().to_owned(),
        false => words.join("-"),
    }
}

/// The model that a [`label`] names, over a dense one; none if it is no label. What a label doesn't say is
/// the paper's: experts have a hidden width of 16, and the encoder's inner layers are those with fewer tokens.
pub fn labelled(dense: T5Config, label: &str) -> Option<T5Config> {
    const EXPERT_WIDTH: usize = 16;
    let mut model = dense;
    let mut words = label.split('-').peekable();
    let first = *words.peek()?;
    let variants = Variant::value_variants().iter().copied();
    if let Some(variant) = variants.into_iter().find(|variant| variant.name() == first) {
        words.next();
        model.altup = match variant {
            Variant::Dense => None,
            variant => variant.altup(count(words.next()?, "k")?),
        };
    }
    for word in words {
        let sequence = |stride, method| {
            let sequence = EncoderSequence { method, stride, first_layer: 1, last_layer: None };
            let single = || Variant::Sum.altup(1);
            let altup = model.altup.clone().or_else(single)?;
            Some(AltUpModelConfig { encoder_sequence: Some(sequence), ..altup })
        };
        let experts = |number, mode| Some(MoeConfig::new(number, EXPERT_WIDTH, mode));
        if let Some(stride) = count(word, "seq") {
            model.altup = sequence(stride, SequenceMethod::Altup);
        } else if let Some(stride) = count(word, "skip") {
            model.altup = sequence(stride, SequenceMethod::StrideAndSkip);
        } else if let Some(stride) = count(word, "pool") {
            model.altup = sequence(stride, SequenceMethod::AveragePool);
        } else if let Some(number) = count(word, "moe") {
            model.moe = experts(number, MoeMode::Partial);
        } else {
            model.moe = experts(count(word, "switch")?, MoeMode::Switch);
        }
    }
    model.validate().is_ok().then_some(model)
}

/// The number behind a word.
fn count(text: &str, word: &str) -> Option<usize> {
    text.strip_prefix(word)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use altup_models::size;

    #[test]
    fn a_label_names_the_model_that_it_is_the_label_of() {
        for name in [
            "dense",
            "altup-k2",
            "sameup-k3",
            "recycled-k4",
            "sum-k2",
            "seq4",
            "moe32",
            "altup-k2-moe128",
            "recycled-k2-pool2-switch8",
            "altup-k2-skip4",
        ] {
            let model = labelled(size("tiny").unwrap(), name).unwrap();
            assert_eq!(label(model.altup.as_ref(), model.moe.as_ref()), name);
        }
    }

    #[test]
    fn what_is_no_label_names_nothing() {
        for name in ["", "altup", "altup2", "altup-k0", "altup-kx", "wide", "dense-", "k2", "moe"] {
            assert!(labelled(size("tiny").unwrap(), name).is_none(), "{name}");
        }
    }
}
