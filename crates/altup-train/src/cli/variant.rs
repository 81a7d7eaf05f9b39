use altup_core::{BlockSelection, Widening};
use altup_models::AltUpModelConfig;
use clap::ValueEnum;

/// The model's variant, by the paper's names.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub(super) enum Variant {
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
    /// The `altup` object of the variant with K = `num_blocks`; none for a dense model.
    pub(super) fn altup(self, num_blocks: usize) -> Option<AltUpModelConfig> {
        let (selection, widening) = match self {
            Self::Dense => return None,
            Self::Altup => (BlockSelection::Alternating, Widening::Embedding),
            Self::Sameup => (BlockSelection::Same, Widening::Embedding),
            Self::Recycled => (BlockSelection::Alternating, Widening::Recycled),
            Self::Sum => (BlockSelection::Alternating, Widening::Sum),
        };
        Some(AltUpModelConfig { num_blocks, selection, widening, encoder_sequence: None })
    }
}
