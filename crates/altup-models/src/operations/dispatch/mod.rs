//! Where the tokens are computed that have chosen experts.

#[cfg(feature = "cube")]
mod cube;
pub(crate) mod host;

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::IntTensor;
use burn::backend::{Autodiff, Dispatch};
use burn::tensor::{Int, Tensor};

/// How many tokens there is room for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Room {
    /// The number of experts.
    pub num_experts: usize,
    /// The number of tiles. Enough for all choices that an expert takes, each expert's in tiles of its own.
    pub tiles: usize,
    /// The slots of a tile.
    pub tile: usize,
    /// An expert takes at most this many times its even share of the choices, rounded up, but for what a product is off by.
    /// Above 0. None: it takes all.
    pub capacity_factor: Option<f32>,
    /// An expert takes at most so many choices, whatever its share.
    pub most: usize,
}

/// Slots for the choices of tokens, in tiles of equally many, each tile for one expert.
#[derive(Clone, Debug)]
pub struct Dispatched {
    /// The slot of each choice; −1 where it is dropped, as its expert is full, or where a token chooses none.
    /// `[tokens, top_k]`
    pub slots: Tensor<2, Int>,
    /// The token that each slot computes on; token 0 in slots of no choice. `[tiles · tile]`
    pub token_of_slot: Tensor<1, Int>,
    /// The expert of each tile; expert 0 of a tile without choices. `[tiles]`
    pub expert_of_tile: Tensor<1, Int>,
    /// How many choices fall on each expert, before any is dropped. `[num_experts]`
    pub chosen: Tensor<1, Int>,
}

/// Gives choices their slots, where the tensors are (the dispatch of Switch Transformers, [arXiv
/// 2101.03961](https://arxiv.org/abs/2101.03961), section 2.2, without its one-hot products). All first choices come before any second one, and earlier tokens
/// before later ones.
///
/// # Shapes
///
/// - experts: `[tokens, top_k]`, the expert of each choice, num_experts where a token chooses none
///
/// # Panics
///
/// Panics on a backend without kernels if there are fewer tiles than the choices need; kernels don't check.
pub fn dispatch(experts: Tensor<2, Int>, room: Room) -> Dispatched {
    let experts = experts.into_dispatch();
    let (slots, token_of_slot, expert_of_tile, chosen) =
        <Dispatch as DispatchBackend>::dispatch(experts, room);
    Dispatched {
        slots: Tensor::from_dispatch(slots),
        token_of_slot: Tensor::from_dispatch(token_of_slot),
        expert_of_tile: Tensor::from_dispatch(expert_of_tile),
        chosen: Tensor::from_dispatch(chosen),
    }
}

/// The tensors of [`Dispatched`], in the order of its fields.
pub type Slots<B> = (IntTensor<B>, IntTensor<B>, IntTensor<B>, IntTensor<B>);

altup_backend::operations! {
    gpu_kernels
    /// [`dispatch`] on a backend.
    pub trait DispatchBackend {
        /// Shapes as in [`dispatch`] and [`Dispatched`].
        #[fusion(meta = |experts, room| {
            let of = |count: usize| {
                let shape = burn::tensor::Shape::new([count]);
                burn::backend::fusion::custom::TensorSpec::new(shape, experts.dtype)
            };
            (experts.clone(), of(room.tiles * room.tile), of(room.tiles), of(room.num_experts))
        })]
        fn dispatch(
            experts: IntTensor<Self>,
            room: Room,
        ) -> (IntTensor<Self>, IntTensor<Self>, IntTensor<Self>, IntTensor<Self>) {
            host::dispatch_tensor::<Self>(experts, room)
        }
    }
}

impl<B: DispatchBackend, C: CheckpointStrategy> DispatchBackend for Autodiff<B, C> {
    fn dispatch(experts: IntTensor<Self>, room: Room) -> Slots<Self> {
        B::dispatch(experts, room)
    }
}

#[cfg(test)]
mod tests;
