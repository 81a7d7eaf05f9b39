use burn::module::Module;
use burn::tensor::{Device, Tensor};

use crate::{AltUp, AltUpConfig, BlockSelection, Widening};

/// Carries the state through a stack of layers: makes it, picks the block of each layer, reads it at the end.
///
/// In a dense stack the state has one block, so every variant runs the same code.
///
/// ```
/// use altup_core::{BlockSelection, Widened, Widening};
/// use burn::tensor::{Device, Tensor};
///
/// let device = Device::flex();
/// let widened = Widened::new(2, Widening::Embedding, BlockSelection::Alternating);
/// let altups: Vec<_> = (0..4).map(|_| widened.altup(&device)).collect(); // one a layer
///
/// let embedded = Tensor::<3>::ones([3, 5, 2 * 8], &device); // 3 sequences of 5 tokens, blocks of width 8
/// let mut state = widened.widen(embedded);
/// for (layer, altup) in altups.iter().enumerate() {
///     state = widened.update(altup.as_ref(), state, layer, |x| x.tanh());
/// }
/// assert_eq!(widened.narrow(state).dims(), [3, 5, 16]);
/// ```
#[derive(Module, Debug)]
pub struct Widened {
    num_blocks: usize,
    #[module(skip)]
    widening: Widening,
    #[module(skip)]
    selection: BlockSelection,
}

impl Widened {
    /// For a state of `num_blocks` blocks. `selection` says which block a layer computes on.
    ///
    /// # Panics
    ///
    /// Panics if there is no block.
    pub fn new(num_blocks: usize, widening: Widening, selection: BlockSelection) -> Self {
        assert!(num_blocks > 0, "A state has at least one block. Got num_blocks={num_blocks}");
        Self { num_blocks, widening, selection }
    }

    /// For a dense stack: a state of one block, and no predict and correct.
    pub fn dense() -> Self {
        Self::new(1, Widening::Sum, BlockSelection::Same)
    }

    /// Width of the embedding table for blocks of `width` (d).
    pub fn table_width(&self, width: usize) -> usize {
        self.widening.table_width(width, self.num_blocks)
    }

    /// Width of a stack's output for blocks of `width` (d).
    pub fn output_width(&self, width: usize) -> usize {
        self.widening.output_width(width, self.num_blocks)
    }

    /// Predict and correct for one layer. None with [`Widening::Sum`], which does not wrap its layers.
    pub fn altup(&self, device: &Device) -> Option<AltUp> {
        let wraps = match self.widening {
            Widening::Embedding | Widening::Recycled => true,
            Widening::Sum => false,
        };
        wraps.then(|| AltUpConfig::new(self.num_blocks).init(device))
    }

    /// The state of looked-up embeddings.
    ///
    /// # Shapes
    ///
    /// - embedded: `[B, T, table_width]`
    /// - output: `[state_blocks, B, T, d]`
    pub fn widen(&self, embedded: Tensor<3>) -> Tensor<4> {
        self.widening.widen(embedded, self.num_blocks)
    }

    /// The output of a stack, from its last state.
    ///
    /// # Shapes
    ///
    /// - state: `[state_blocks, B, T, d]`
    /// - output: `[B, T, output_width]`
    pub fn narrow(&self, state: Tensor<4>) -> Tensor<3> {
        self.widening.narrow(state)
    }

    /// Runs layer number `layer`, counted from 0, on its block, and updates all blocks. Without `altup` the state
    /// has one block.
    ///
    /// # Shapes
    ///
    /// - state, output: `[state_blocks, B, T, d]`
    /// - compute: `[B, T, d]` to `[B, T, d]`
    ///
    /// # Panics
    ///
    /// As [`AltUp::forward`]; without `altup`, if the state has several blocks.
    pub fn update(
        &self,
        altup: Option<&AltUp>,
        state: Tensor<4>,
        layer: usize,
        compute: impl FnOnce(Tensor<3>) -> Tensor<3>,
    ) -> Tensor<4> {
        self.update_with(altup, state, layer, |x| (compute(x), ())).0
    }

    /// As [`update`](Self::update), around a layer that returns more than its output.
    pub fn update_with<R>(
        &self,
        altup: Option<&AltUp>,
        state: Tensor<4>,
        layer: usize,
        compute: impl FnOnce(Tensor<3>) -> (Tensor<3>, R),
    ) -> (Tensor<4>, R) {
        match altup {
            Some(altup) => {
                altup.forward_with(state, self.selection.block(layer, self.num_blocks), compute)
            }
            None => {
                let (computed, more) = compute(state.squeeze_dim(0));
                (computed.unsqueeze_dim(0), more)
            }
        }
    }
}
