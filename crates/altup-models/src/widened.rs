use altup_core::{AltUp, AltUpConfig, BlockSelection, Widening};
use burn::module::Module;
use burn::tensor::{Device, Tensor};

use crate::T5Config;

/// How a stack carries its representation: as a block-major state, of a single block in a dense
/// model, so that every variant runs through the same stack.
#[derive(Module, Debug)]
pub(crate) struct Widened {
    num_blocks: usize,
    #[module(skip)]
    widening: Widening,
    #[module(skip)]
    selection: BlockSelection,
}

impl Widened {
    pub(crate) fn new(config: &T5Config) -> Self {
        Self {
            num_blocks: config.num_blocks(),
            widening: config.widening(),
            selection: config.altup.as_ref().map_or_else(Default::default, |altup| altup.selection),
        }
    }

    /// The predict and correct of one layer, where the configuration has them.
    pub(crate) fn altup(config: &T5Config, device: &Device) -> Option<AltUp> {
        config.updates_blocks().then(|| AltUpConfig::new(config.num_blocks()).init(device))
    }

    /// `[batch_size, seq_length, table_width]` to `[state_blocks, batch_size, seq_length, d_model]`
    pub(crate) fn widen(&self, embedded: Tensor<3>) -> Tensor<4> {
        self.widening.widen(embedded, self.num_blocks)
    }

    /// `[state_blocks, batch_size, seq_length, d_model]` to `[batch_size, seq_length, output_width]`
    pub(crate) fn narrow(&self, state: Tensor<4>) -> Tensor<3> {
        self.widening.narrow(state)
    }

    /// Runs layer number `layer` on its block and updates the others.
    pub(crate) fn update(
        &self,
        altup: Option<&AltUp>,
        state: Tensor<4>,
        layer: usize,
        compute: impl FnOnce(Tensor<3>) -> Tensor<3>,
    ) -> Tensor<4> {
        match altup {
            Some(altup) => {
                altup.forward(state, self.selection.block(layer, self.num_blocks), compute)
            }
            None => compute(state.squeeze_dim(0)).unsqueeze_dim(0),
        }
    }
}
