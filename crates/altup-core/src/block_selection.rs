use serde::{Deserialize, Serialize};

/// Which block of the representation a layer computes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlockSelection {
    /// Layer `l` computes on block `l mod K`, so that every block is updated in turn: the paper's
    /// AltUp.
    #[default]
    Alternating,
    /// Every layer computes on block 0: the paper's SameUp.
    Same,
}

impl BlockSelection {
    /// The block j* that layer `layer` of a stack (counted from 0) computes on, of `num_blocks`
    /// (K).
    ///
    /// # Panics
    ///
    /// Panics if `num_blocks` is 0.
    pub fn block(self, layer: usize, num_blocks: usize) -> usize {
        assert!(num_blocks > 0, "AltUp needs at least one block. Got num_blocks=0");
        match self {
            Self::Alternating => layer % num_blocks,
            Self::Same => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alternating_visits_every_block_in_turn_and_same_stays() {
        let visit = |selection: BlockSelection| -> Vec<usize> {
            (0..6).map(|layer| selection.block(layer, 3)).collect()
        };
        assert_eq!(visit(BlockSelection::Alternating), [0, 1, 2, 0, 1, 2]);
        assert_eq!(visit(BlockSelection::Same), [0; 6]);
    }

    #[test]
    #[should_panic(expected = "num_blocks=0")]
    fn no_blocks_is_a_bug() {
        BlockSelection::Alternating.block(0, 0);
    }
}
