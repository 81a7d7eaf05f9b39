//! On a GPU the gradient takes two kernels: the sums over all pairs of one distance, and over the distances of one
//! bucket. Burn adds values at indices one after another, with a thread for each head.

use altup_backend::cube::{Launch, assert_countable, empty, empty_like, zeros_like};
use burn::backend::TensorMetadata;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::tensor::{DType, Shape};
use burn_backend::cubecl::dtype_to_storage_type;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use cubecl::prelude::*;

use super::{PositionBiasBackend, primitive};

impl PositionBiasBackend for CubeBackend {
    fn position_bias(
        weight: FloatTensor<Self>,
        buckets: IntTensor<Self>,
        lengths: [usize; 2],
    ) -> FloatTensor<Self> {
        primitive::position_bias::<Self>(weight, buckets, lengths)
    }

    fn position_bias_backward(
        weight: FloatTensor<Self>,
        buckets: IntTensor<Self>,
        output_grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let [_, heads, queries, keys] = output_grad.shape().dims();
        if heads * queries * keys == 0 {
            return zeros_like(&weight);
        }
        assert_countable("values", heads * queries * keys);
        let weight_grad = empty_like(&weight);
        let distances = empty(Shape::new([heads, queries + keys - 1]), DType::F32, &weight);
        let launch = Launch::of_values(&distances);
        sum_distances_kernel::launch(
            &weight.client.clone(),
            launch.cubes,
            launch.threads,
            into_contiguous(output_grad).into_tensor_arg(),
            distances.clone().into_tensor_arg(),
        );
        let launch = Launch::of_values(&weight_grad);
        let dtypes = [weight_grad.dtype, buckets.dtype].map(dtype_to_storage_type);
        sum_buckets_kernel::launch(
            &weight.client.clone(),
            launch.cubes,
            launch.threads,
            distances.into_tensor_arg(),
            into_contiguous(buckets).into_tensor_arg(),
            weight_grad.clone().into_tensor_arg(),
            queries as u32,
            dtypes,
        );
        weight_grad
    }
}

/// The sums of the gradients of all pairs of key − query + queries − 1.
///
/// # Shapes
///
/// - grad: `[1, heads, queries, keys]`
/// - distances: `[heads, queries + keys − 1]`
#[cube(launch)]
fn sum_distances_kernel(grad: &Tensor<f32>, distances: &mut Tensor<f32>) {
    let position = ABSOLUTE_POS;
    if position >= distances.len() {
        terminate!();
    }
    let queries = grad.shape(2);
    let keys = grad.shape(3);
    let distance = position % distances.shape(1);
    let first = position / distances.shape(1) * queries * keys;
    let mut sum = 0.0f32;
    for query in 0..queries {
        // The key, plus queries − 1.
        let key = distance + query;
        if key + 1 >= queries && key + 1 < queries + keys {
            sum += grad[first + query * keys + key + 1 - queries];
        }
    }
    distances[position] = sum;
}

/// The sums over the distances of each bucket.
///
/// # Shapes
///
/// - distances: `[heads, queries + keys − 1]`
/// - buckets: `[queries · keys]`
/// - weight_grad: `[num_buckets, heads]`
#[cube(launch)]
fn sum_buckets_kernel<F: Float, I: Int>(
    distances: &Tensor<f32>,
    buckets: &Tensor<I>,
    weight_grad: &mut Tensor<F>,
    queries: u32,
    #[define(F, I)] _dtypes: [ElemType; 2],
) {
    let position = ABSOLUTE_POS;
    if position >= weight_grad.len() {
        terminate!();
    }
    let heads = weight_grad.shape(1);
    let count = distances.shape(1);
    let queries = queries as usize;
    let keys = count + 1 - queries;
    let head = position % heads;
    let bucket = u32::cast_from(position / heads);
    let mut sum = 0.0f32;
    for distance in 0..count {
        // A pair at this distance: the last queries with the first key, then the first query with all keys.
        let mut place = distance + 1 - min(distance + 1, queries);
        if distance + 1 < queries {
            place = (queries - 1 - distance) * keys;
        }
        if u32::cast_from(buckets[place]) == bucket {
            sum += distances[head * count + distance];
        }
    }
    weight_grad[position] = F::cast_from(sum);
}
