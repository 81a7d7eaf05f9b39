//! On the host: what the kernels are tested against, and what a CPU runs.

use burn::backend::tensor::IntTensor;
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::TensorData;

use super::{Room, Slots};

/// The places of choices within their experts.
pub(crate) struct Places {
    /// By choice: how many choices of its expert come before it; none where it is dropped or a token chooses none.
    pub(crate) of_choice: Vec<Option<usize>>,
    /// By expert: the choices that it takes.
    pub(crate) taken: Vec<usize>,
    /// By expert: the choices that fall on it.
    pub(crate) chosen: Vec<usize>,
}

impl Places {
    /// `experts` are `[tokens, top_k]`.
    pub(crate) fn new(
        experts: &[Option<usize>],
        top_k: usize,
        num_experts: usize,
        capacity: usize,
    ) -> Self {
        let tokens = experts.len() / top_k;
        let mut of_choice = vec![None; experts.len()];
        let mut chosen = vec![0; num_experts];
        let in_order = (0..top_k).flat_map(|number| (0..tokens).map(move |token| (token, number)));
        for choice in in_order.map(|(token, number)| token * top_k + number) {
            if let Some(expert) = experts[choice] {
                of_choice[choice] = (chosen[expert] < capacity).then_some(chosen[expert]);
                chosen[expert] += 1;
            }
        }
        let taken = chosen.iter().map(|&chosen| chosen.min(capacity)).collect();
        Self { of_choice, taken, chosen }
    }
}

/// What [`Dispatched`](super::Dispatched) holds, but for the choices of each expert.
pub(crate) struct Layout {
    /// −1 where a choice has no slot.
    pub(crate) slots: Vec<i32>,
    pub(crate) token_of_slot: Vec<i32>,
    pub(crate) expert_of_tile: Vec<i32>,
}

impl Layout {
    /// As many tiles as the choices need.
    pub(crate) fn new(
        experts: &[Option<usize>],
        top_k: usize,
        places: &Places,
        tile: usize,
    ) -> Self {
        let mut expert_of_tile = Vec::new();
        let mut first_slots = Vec::with_capacity(places.taken.len());
        for (expert, taken) in places.taken.iter().enumerate() {
            first_slots.push(expert_of_tile.len() * tile);
            expert_of_tile.extend(std::iter::repeat_n(expert as i32, taken.div_ceil(tile)));
        }
        let mut token_of_slot = vec![0; expert_of_tile.len() * tile];
        let mut slots = vec![-1; experts.len()];
        for (choice, (expert, place)) in experts.iter().zip(&places.of_choice).enumerate() {
            if let (Some(expert), Some(place)) = (expert, place) {
                let slot = first_slots[*expert] + place;
                slots[choice] = slot as i32;
                token_of_slot[slot] = (choice / top_k) as i32;
            }
        }
        Self { slots, token_of_slot, expert_of_tile }
    }
}

/// The next whole number, but for what a product in f32 is off by: 1.1 times 10 is 11.
pub(crate) fn rounded_up(share: f64) -> usize {
    (share * (1.0 - ROUNDING)).ceil() as usize
}

/// What a product and a quotient in f32 may be off by, on a GPU too, as a share.
pub(super) const ROUNDING: f64 = 1e-6;

/// [`dispatch`](super::dispatch) by reading the choices.
pub(super) fn dispatch_tensor<B: Backend>(experts: IntTensor<B>, room: Room) -> Slots<B> {
    let (device, dtype) = (experts.device(), experts.dtype());
    let [tokens, top_k] = experts.shape().dims();
    let Room { num_experts, tiles, tile, capacity_factor, most } = room;
    let read = burn::tensor::read_sync(B::int_into_data(experts)).expect("a tensor can be read");
    let experts: Vec<Option<usize>> = read
        .iter::<i64>()
        .map(|expert| usize::try_from(expert).ok().filter(|&expert| expert < num_experts))
        .collect();
    let choices = experts.iter().flatten().count();
    let capacity = capacity_factor.map_or(most, |factor| {
        let share = f64::from(factor) * (choices as f64 / num_experts as f64);
        rounded_up(share).min(most)
    });
    let places = Places::new(&experts, top_k, num_experts, capacity);
    let mut layout = Layout::new(&experts, top_k, &places, tile);
    let needed = layout.expert_of_tile.len();
    assert!(needed <= tiles, "{needed} tiles are needed. Got {room:?}");
    layout.expert_of_tile.resize(tiles, 0);
    layout.token_of_slot.resize(tiles * tile, 0);
    let tensor = |values: Vec<i32>, shape: Vec<usize>| {
        B::int_from_data(TensorData::new(values, shape).convert_dtype(dtype), &device)
    };
    let chosen = places.chosen.iter().map(|&chosen| chosen as i32).collect();
    (
        tensor(layout.slots, vec![tokens, top_k]),
        tensor(layout.token_of_slot, vec![tiles * tile]),
        tensor(layout.expert_of_tile, vec![tiles]),
        tensor(chosen, vec![num_experts]),
    )
}
