use super::*;
use crate::operations::testing::on_each_backend;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
use crate::operations::testing::on_gpus;
use burn::backend::Backend;
use burn::tensor::TensorData;

fn ints<B: Backend>(values: &[i32], shape: &[usize]) -> IntTensor<B> {
    B::int_from_data(TensorData::new(values.to_vec(), shape.to_vec()), &B::Device::default())
}

fn read<B: Backend>(tensor: IntTensor<B>) -> Vec<i64> {
    burn::tensor::read_sync(B::int_into_data(tensor)).unwrap().iter().collect()
}

fn read_all<B: Backend>((slots, tokens, experts, chosen): Slots<B>) -> [Vec<i64>; 4] {
    [slots, tokens, experts, chosen].map(read::<B>)
}

/// Four tokens with two choices of three experts each; token 2 is padding. In their order: 0 to 1, 1 to 1, 3 to 0; then
/// 0 to 0, 1 to 2, 3 to 1. There are 6 choices, 2 an expert: with a factor of 0.75 an expert takes ⌈1.5⌉ = 2.
fn by_hand<B: DispatchBackend>() {
    let room =
        Room { num_experts: 3, tiles: 3, tile: 2, capacity_factor: Some(0.75), most: usize::MAX };
    let experts = ints::<B>(&[1, 0, 1, 2, 3, 3, 0, 1], &[4, 2]);
    let [slots, tokens, experts, chosen] = read_all::<B>(B::dispatch(experts, room));
    assert_eq!(slots, [2, 1, 3, 4, -1, -1, 0, -1]);
    assert_eq!(tokens, [3, 0, 0, 1, 1, 0]);
    assert_eq!(experts, [0, 1, 2]);
    assert_eq!(chosen, [2, 3, 1]);
}

/// An expert has several tiles, and others none.
fn tiles_of_a_crowded_expert<B: DispatchBackend>() {
    let room = Room { num_experts: 4, tiles: 6, tile: 2, capacity_factor: None, most: usize::MAX };
    let experts = ints::<B>(&[2, 2, 0, 2, 2, 2], &[6, 1]);
    let [slots, tokens, experts, chosen] = read_all::<B>(B::dispatch(experts, room));
    assert_eq!(slots, [2, 3, 0, 4, 5, 6]);
    assert_eq!(tokens, [2, 0, 0, 1, 3, 4, 5, 0, 0, 0, 0, 0]);
    assert_eq!(experts, [0, 2, 2, 2, 0, 0]);
    assert_eq!(chosen, [1, 0, 5, 0]);
}

on_each_backend!(by_hand, tiles_of_a_crowded_expert);

#[cfg(any(feature = "wgpu", feature = "cuda"))]
mod kernels {
    use super::*;

    on_gpus!(as_on_the_host, more_experts_than_groups_in_a_row);

    /// More choices than a group has threads, and fewer; few and many experts; padding here and there, or all.
    fn as_on_the_host<B: DispatchBackend>() {
        let rooms = [(1, 1), (3, 2), (16, 1), (128, 2)];
        for ((num_experts, top_k), tokens) in
            rooms.into_iter().flat_map(|room| [1, 5, 256, 700].map(|tokens| (room, tokens)))
        {
            for padding in [None, Some(3), Some(1)] {
                let expert = |choice: usize| {
                    let (token, number) = (choice / top_k, choice % top_k);
                    match padding {
                        Some(every) if token % every == 0 => num_experts as i32,
                        _ => ((token * token * 7 + token / 3 + number) % num_experts) as i32,
                    }
                };
                let experts: Vec<i32> = (0..tokens * top_k).map(expert).collect();
                let even = (tokens * top_k).div_ceil(num_experts);
                for capacity_factor in [None, Some(1.25), Some(0.5)] {
                    let room = Room {
                        num_experts,
                        tiles: num_experts + (tokens * top_k).div_ceil(even),
                        tile: even,
                        capacity_factor,
                        most: usize::MAX,
                    };
                    let experts = || ints::<B>(&experts, &[tokens, top_k]);
                    let found = read_all::<B>(B::dispatch(experts(), room));
                    let expected = read_all::<B>(host::dispatch_tensor::<B>(experts(), room));
                    assert_eq!(found, expected, "{tokens} tokens, {padding:?}, {room:?}");
                }
            }
        }
    }

    /// A device has a limit to its groups of threads along one dimension, which is 65,535 often. Slots are not compared: a
    /// driver in software ends loops after as many turns.
    fn more_experts_than_groups_in_a_row<B: DispatchBackend>() {
        let num_experts = 70_000;
        let room = Room { num_experts, tiles: 3, tile: 1, capacity_factor: None, most: usize::MAX };
        let experts = || ints::<B>(&[69_999, 0, 65_536], &[3, 1]);
        let [.., found] = read_all::<B>(B::dispatch(experts(), room));
        let [.., expected] = read_all::<B>(host::dispatch_tensor::<B>(experts(), room));
        assert_eq!(found, expected);
    }
}
