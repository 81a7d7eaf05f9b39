//! On a GPU in two kernels and a fill: the place of each choice among those of its expert, by a group of threads for each
//! expert that counts through all choices; then the slots. Nothing is read by the host, and nothing added atomically.

use altup_backend::cube::{Launch, cubes, empty, zeros};
use burn::backend::TensorMetadata;
use burn::backend::tensor::IntTensor;
use burn::tensor::Shape;
use burn_backend::cubecl::dtype_to_storage_type;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use cubecl::prelude::*;

use super::host::ROUNDING;
use super::{DispatchBackend, Room, Slots};

/// Threads that count for one expert, where the device has as many in a group.
const THREADS: u32 = 256;

impl DispatchBackend for CubeBackend {
    fn dispatch(experts: IntTensor<Self>, room: Room) -> Slots<Self> {
        let Room { num_experts, tiles, tile, capacity_factor, most } = room;
        let experts = into_contiguous(experts);
        let dtype = experts.dtype;
        let of = |shape: Shape| empty(shape, dtype, &experts);
        let [places, slots] = [experts.shape(), experts.shape()].map(of);
        let [expert_of_tile, chosen] = [tiles, num_experts].map(|count| of(Shape::new([count])));
        let token_of_slot = zeros(Shape::new([tiles * tile]), dtype, &experts);
        let client = experts.client.clone();
        let storage = dtype_to_storage_type(dtype);
        let threads = client.properties().hardware.max_units_per_cube.min(THREADS);
        place_kernel::launch(
            &client,
            cubes(&client, num_experts),
            CubeDim::new_1d(threads),
            experts.clone().into_tensor_arg(),
            places.clone().into_tensor_arg(),
            chosen.clone().into_tensor_arg(),
            threads as usize,
            storage,
        );
        let larger = if tiles > experts.shape().num_elements() { &expert_of_tile } else { &slots };
        let launch = Launch::of_values(larger);
        slot_kernel::launch(
            &client,
            launch.cubes,
            launch.threads,
            experts.clone().into_tensor_arg(),
            places.into_tensor_arg(),
            chosen.clone().into_tensor_arg(),
            slots.clone().into_tensor_arg(),
            token_of_slot.clone().into_tensor_arg(),
            expert_of_tile.clone().into_tensor_arg(),
            capacity_factor.unwrap_or(0.0),
            u32::try_from(most).unwrap_or(u32::MAX),
            tile as u32,
            storage,
        );
        (slots, token_of_slot, expert_of_tile, chosen)
    }
}

/// How many choices of its expert come before each choice, and how many each expert has.
///
/// # Shapes
///
/// - experts, places: `[tokens, top_k]`
/// - chosen: `[num_experts]`, for each a group of threads; there may be a few more, which count nothing
#[cube(launch)]
fn place_kernel<I: Int>(
    experts: &Tensor<I>,
    places: &mut Tensor<I>,
    chosen: &mut Tensor<I>,
    #[comptime] units: usize,
    #[define(I)] _dtype: ElemType,
) {
    let expert = u32::cast_from(CUBE_POS);
    let unit = UNIT_POS_X as usize;
    let choices = experts.len();
    let tokens = experts.shape(0);
    let top_k = experts.shape(1);
    // The part of the choices that a thread counts through, first choices of all tokens first.
    let share = choices.div_ceil(units);
    let first = min(unit * share, choices);
    let mut end = min(first + share, choices);
    if CUBE_POS >= chosen.len() {
        end = first;
    }
    let mut count = 0u32;
    for number in first..end {
        let choice = (number % tokens) * top_k + number / tokens;
        if u32::cast_from(experts[choice]) == expert {
            count += 1u32;
        }
    }
    let mut counts = Shared::<[u32]>::new_slice(units);
    counts[unit] = count;
    sync_cube();
    let mut place = 0u32;
    for before in 0..unit {
        place += counts[before];
    }
    for number in first..end {
        let choice = (number % tokens) * top_k + number / tokens;
        if u32::cast_from(experts[choice]) == expert {
            places[choice] = I::cast_from(place);
            place += 1u32;
        }
    }
    if unit == units - 1 && CUBE_POS < chosen.len() {
        chosen[CUBE_POS] = I::cast_from(place);
    }
}

/// The slot of each choice and the token of each slot, by a thread for each choice; the expert of each tile, by a thread
/// for each tile.
///
/// # Shapes
///
/// - experts, places, slots: `[tokens, top_k]`
/// - chosen: `[num_experts]`
/// - token_of_slot: `[tiles · tile]`, of zeros
/// - expert_of_tile: `[tiles]`
#[cube(launch)]
fn slot_kernel<I: Int>(
    experts: &Tensor<I>,
    places: &Tensor<I>,
    chosen: &Tensor<I>,
    slots: &mut Tensor<I>,
    token_of_slot: &mut Tensor<I>,
    expert_of_tile: &mut Tensor<I>,
    capacity_factor: f32,
    most: u32,
    tile: u32,
    #[define(I)] _dtype: ElemType,
) {
    let position = ABSOLUTE_POS;
    let num_experts = chosen.len();
    let mut choices = 0u32;
    for expert in 0..num_experts {
        choices += u32::cast_from(chosen[expert]);
    }
    let mut capacity = most;
    if capacity_factor > 0.0f32 {
        let share =
            capacity_factor * (f32::cast_from(choices) / f32::cast_from(num_experts as u32));
        let share = share * comptime!(1.0f32 - ROUNDING as f32);
        capacity = min(u32::cast_from(share.ceil()), most);
    }
    if position < slots.len() {
        let expert = u32::cast_from(experts[position]);
        let mut slot = I::cast_from(-1i32);
        if expert < num_experts as u32 {
            let place = u32::cast_from(places[position]);
            if place < capacity {
                let mut tiles_before = 0u32;
                for before in 0..expert {
                    let taken = min(u32::cast_from(chosen[before as usize]), capacity);
                    tiles_before += taken.div_ceil(tile);
                }
                let found = tiles_before * tile + place;
                slot = I::cast_from(found);
                token_of_slot[found as usize] = I::cast_from(position / experts.shape(1));
            }
        }
        slots[position] = slot;
    }
    if position < expert_of_tile.len() {
        let mut of_tile = 0u32;
        let mut end = 0u32;
        for expert in 0..num_experts {
            let taken = min(u32::cast_from(chosen[expert]), capacity);
            let first = end;
            end += taken.div_ceil(tile);
            if position as u32 >= first && (position as u32) < end {
                of_tile = expert as u32;
            }
        }
        expert_of_tile[position] = I::cast_from(of_tile);
    }
}
