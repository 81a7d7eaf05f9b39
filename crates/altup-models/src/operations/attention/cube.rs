//! On a GPU: two batched products, and between them one kernel that makes weights of the scores where they lie. Its
//! sums are f32. Nothing of the size of the scores is kept for the backward pass, which makes them anew: one product
//! more, against a tensor `[B, H, Q, M]` for each layer.
//!
//! cubek's products take no matrix whose rows lie further apart than those of the next head. So query, key and value
//! are copied head by head, once a pass; outputs are written where they belong.

use altup_backend::cube::{
    Launch, RowLaunch, assert_countable, empty, empty_like, largest_of_vector, max_over_row,
    row_memory, sum_of_vector, sum_over_row, sum_rows, zeros, zeros_like,
};
use altup_backend::philox::DropoutMask;
use altup_backend::to_f32;
use burn::backend::TensorMetadata;
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::tensor::{DType, Shape};
use burn_backend::cubecl::dtype_to_storage_type;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::kernel::matmul::{MatmulStrategy, matmul};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::AttentionBackend;
use crate::operations::dropout::cube::dropout_factor;

impl AttentionBackend for CubeBackend {
    fn biased_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        dropout: Option<DropoutMask>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let output = empty_like(&query);
        let [batch_size, length, heads, width] = query.shape().dims();
        let [_, memory, _, _] = key.shape().dims();
        let statistics_shape = Shape::new([2, batch_size, heads, length]);
        if batch_size * length * heads * width * memory == 0 {
            // Of no value, as a product over nothing gives it.
            return (zeros_like(&query), zeros(statistics_shape, DType::F32, &query));
        }
        let statistics = empty(statistics_shape, DType::F32, &query);
        let query = heads_first(query);
        let [key, value] = both_heads_first(key, value);
        let scores = scores(query, transposed(key));
        let launch = RowLaunch::new(&scores, batch_size * heads * length, memory);
        let bias = Bias::new(bias, &launch);
        let mask = Mask::new(dropout);
        weights_kernel::launch(
            &scores.client.clone(),
            launch.cubes,
            launch.threads,
            launch.vector_size,
            bias.vector_size,
            scores.clone().into_tensor_arg(),
            bias.tensor.into_tensor_arg(),
            statistics.clone().into_tensor_arg(),
            bias.of_row,
            bias.of_head,
            bias.of_query,
            mask.key_0,
            mask.key_1,
            mask.site,
            mask.dropped,
            mask.kept_factor,
            mask.drops,
            bias.shared,
            launch.units,
            launch.rows,
            dtype_to_storage_type(scores.dtype),
        );
        multiply(scores, value, Self::float_swap_dims(output.clone(), 1, 2));
        (output, statistics)
    }

    fn biased_attention_backward(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        _output: FloatTensor<Self>,
        saved: FloatTensor<Self>,
        output_grad: FloatTensor<Self>,
        dropout: Option<DropoutMask>,
        bias_grad_asked: bool,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let [batch_size, length, heads, width] = query.shape().dims();
        let [_, memory, _, _] = key.shape().dims();
        if batch_size * length * heads * width * memory == 0 {
            let [query, key, value, bias] = [&query, &key, &value, &bias].map(zeros_like);
            return (query, key, value, bias);
        }
        let grads = [&query, &key, &value].map(empty_like);
        let [query, output_grad] = both_heads_first(query, output_grad);
        let [key, value] = both_heads_first(key, value);
        let weights = scores(query.clone(), transposed(key.clone()));
        let scores_grad = scores(output_grad.clone(), transposed(value));
        let launch = RowLaunch::new(&weights, batch_size * heads * length, memory);
        let of_bias = Bias::new(bias.clone(), &launch);
        let mask = Mask::new(dropout);
        weights_backward_kernel::launch(
            &weights.client.clone(),
            launch.cubes,
            launch.threads,
            launch.vector_size,
            of_bias.vector_size,
            weights.clone().into_tensor_arg(),
            scores_grad.clone().into_tensor_arg(),
            of_bias.tensor.into_tensor_arg(),
            into_contiguous(saved).into_tensor_arg(),
            of_bias.of_row,
            of_bias.of_head,
            of_bias.of_query,
            mask.key_0,
            mask.key_1,
            mask.site,
            mask.dropped,
            mask.kept_factor,
            mask.drops,
            of_bias.shared,
            launch.units,
            launch.rows,
            dtype_to_storage_type(weights.dtype),
        );
        let [of_query, of_key, of_value] =
            grads.clone().map(|grad| Self::float_swap_dims(grad, 1, 2));
        multiply(transposed(weights), output_grad, of_value);
        multiply(scores_grad.clone(), key, of_query);
        multiply(transposed(scores_grad.clone()), query, of_key);
        let bias_grad = match bias_grad_asked {
            true => summed_to(scores_grad, bias.shape()),
            false => bias,
        };
        let [query_grad, key_grad, value_grad] = grads;
        (query_grad, key_grad, value_grad, bias_grad)
    }
}

/// `[B, T, H, d]` to `[B, H, T, d]`, row by row in memory.
fn heads_first(tensor: CubeTensor) -> CubeTensor {
    let tensor = into_contiguous(CubeBackend::float_swap_dims(tensor, 1, 2));
    // Where T or H is 1 nothing was copied, and the strides are those of the other order.
    let shape = tensor.shape();
    CubeTensor::new_contiguous(tensor.client, tensor.device, shape, tensor.handle, tensor.dtype)
}

/// As [`heads_first`], of two tensors of one shape and type in one kernel.
fn both_heads_first(first: CubeTensor, second: CubeTensor) -> [CubeTensor; 2] {
    let [batch_size, length, heads, width] = first.shape().dims();
    if length == 1 || heads == 1 {
        return [first, second].map(heads_first);
    }
    let shape = Shape::new([batch_size, heads, length, width]);
    let outputs = [&first, &second].map(|input| empty(shape.clone(), input.dtype, input));
    let launch = Launch::new(&outputs[0]);
    let [first, second] = [first, second].map(|input| {
        let strides: &[usize] = input.meta.strides();
        let in_vectors = strides[..3].iter().all(|stride| stride % launch.vector_size == 0);
        let input = if strides[3] == 1 && in_vectors { input } else { into_contiguous(input) };
        let places = input.meta.shape().iter().zip(input.meta.strides().iter());
        assert_countable("values", places.map(|(size, stride)| (size - 1) * stride).sum());
        input
    });
    let [first_output, second_output] = outputs.clone().map(CubeTensor::into_tensor_arg);
    heads_first_kernel::launch(
        &first.client.clone(),
        launch.cubes,
        launch.threads,
        launch.vector_size,
        first.clone().into_tensor_arg(),
        second.into_tensor_arg(),
        first_output,
        second_output,
        dtype_to_storage_type(first.dtype),
    );
    outputs
}

/// With the last two dimensions changed.
fn transposed(tensor: CubeTensor) -> CubeTensor {
    CubeBackend::float_swap_dims(tensor, 2, 3)
}

/// The products `[B, H, Q, d]` with `[B, H, d, M]`, row by row in memory.
fn scores(left: CubeTensor, right: CubeTensor) -> CubeTensor {
    let [batch_size, heads, length, _] = left.shape().dims();
    let memory = right.shape()[3];
    let scores = empty(Shape::new([batch_size, heads, length, memory]), left.dtype, &left);
    multiply(left, right, scores.clone());
    scores
}

/// Writes products of matrices into `output`, however it lies in memory.
fn multiply(left: CubeTensor, right: CubeTensor, output: CubeTensor) {
    let dtype = output.dtype;
    // It only fails for types or layouts that no product of this module has.
    matmul(left, right, Some(output), MatmulStrategy::default(), dtype)
        .expect("a batched product of floats");
}

/// Sums scores' gradients, `[B, H, Q, M]`, over the dimensions that the bias has once, in f32.
fn summed_to(mut grad: CubeTensor, bias: Shape) -> CubeTensor {
    for dim in (0..bias.num_dims()).rev() {
        let mut shape = grad.shape();
        if shape[dim] == bias[dim] {
            continue;
        }
        let (rows, width) = (shape[dim], shape.iter().skip(dim + 1).product());
        let outer = shape.iter().take(dim).product();
        shape[dim] = 1;
        grad = sum_rows(grad, [outer, rows, width], shape, DType::F32);
    }
    to_f32::<CubeBackend>(grad)
}

/// A bias as the kernels read it: the same for all keys, or vectors of a row of keys.
struct Bias {
    tensor: CubeTensor,
    /// Whether it is the same for all keys.
    shared: bool,
    vector_size: usize,
    /// What lies between two rows of the batch, in values; 0 where they share one. So for heads and queries.
    of_row: u32,
    of_head: u32,
    of_query: u32,
}

impl Bias {
    fn new(bias: CubeTensor, launch: &RowLaunch) -> Self {
        let tensor = into_contiguous(bias);
        assert_countable("values", tensor.shape().num_elements());
        let shape @ [_, heads, queries, keys] = tensor.shape().dims();
        let strides = [heads * queries * keys, queries * keys, keys];
        let [of_row, of_head, of_query] =
            [0, 1, 2].map(|dim| if shape[dim] == 1 { 0 } else { strides[dim] as u32 });
        let shared = keys == 1;
        let vector_size = if shared { 1 } else { launch.vector_size };
        Self { tensor, shared, vector_size, of_row, of_head, of_query }
    }
}

/// A dropout's mask as the kernels take it.
struct Mask {
    drops: bool,
    key_0: u32,
    key_1: u32,
    site: u32,
    dropped: u32,
    kept_factor: f32,
}

impl Mask {
    fn new(mask: Option<DropoutMask>) -> Self {
        let drops = mask.is_some();
        let mask = mask.unwrap_or_else(|| DropoutMask::new([0, 0], 0, 0.0));
        let [key_0, key_1] = mask.key();
        Self {
            drops,
            key_0,
            key_1,
            site: mask.site(),
            dropped: mask.dropped(),
            kept_factor: mask.kept_factor(),
        }
    }
}

/// Two tensors `[B, T, H, d]`, in which vectors may lie anywhere, to `[B, H, T, d]`.
#[cube(launch)]
fn heads_first_kernel<F: Float, N: Size>(
    first: &Tensor<Vector<F, N>>,
    second: &Tensor<Vector<F, N>>,
    first_output: &mut Tensor<Vector<F, N>>,
    second_output: &mut Tensor<Vector<F, N>>,
    #[define(F)] _dtype: ElemType,
) {
    let position = ABSOLUTE_POS;
    if position >= first_output.len() {
        terminate!();
    }
    let length = first.shape(1);
    let heads = first.shape(2);
    let width = first.shape(3) / N::value();
    let column = position % width;
    let token = position / width % length;
    let head = position / width / length % heads;
    let row = position / width / length / heads;
    let of_first = row * first.stride(0) + token * first.stride(1) + head * first.stride(2);
    let of_second = row * second.stride(0) + token * second.stride(1) + head * second.stride(2);
    first_output[position] = first[of_first / N::value() + column];
    second_output[position] = second[of_second / N::value() + column];
}

/// Where a row's bias begins, in values.
#[cube]
fn bias_of_row(
    row: usize,
    heads: usize,
    queries: usize,
    of_row: u32,
    of_head: u32,
    of_query: u32,
) -> usize {
    let query = row % queries;
    let head = row / queries % heads;
    let batch_row = row / queries / heads;
    batch_row * of_row as usize + head * of_head as usize + query * of_query as usize
}

/// Scores with their bias, of the keys of one vector. A bias without a dimension of keys is one value.
#[cube]
fn biased<F: Float, N: Size, M: Size>(
    scores: Vector<F, N>,
    bias: &Tensor<Vector<f32, M>>,
    first: usize,
    column: usize,
    #[comptime] shared: bool,
) -> Vector<f32, N> {
    let mut place = first;
    if comptime!(!shared) {
        place = (first + column * N::value()) / M::value();
    }
    Vector::<f32, N>::cast_from(scores) + Vector::<f32, N>::cast_from(bias[place])
}

/// The weights of one vector, rounded to the type of the scores.
#[cube]
fn weight<F: Float, N: Size>(score: Vector<f32, N>, largest: f32, sum: f32) -> Vector<F, N> {
    Vector::<F, N>::cast_from((score - Vector::new(largest)).exp() / Vector::new(sum))
}

/// What dropout multiplies the weights of one vector by.
#[cube]
fn factors<N: Size>(
    row: usize,
    column: usize,
    key_0: u32,
    key_1: u32,
    site: u32,
    dropped: u32,
    kept_factor: f32,
) -> Vector<f32, N> {
    let mut factors = Vector::<f32, N>::new(0.0f32);
    let first = column * N::value();
    #[unroll]
    for i in 0..N::value() {
        let factor = dropout_factor(
            u32::cast_from(row),
            first + i,
            key_0,
            key_1,
            site,
            dropped,
            kept_factor,
        );
        factors.insert(i, factor);
    }
    factors
}

/// dropout(softmax(scores + bias)) in the place of the scores, and of each row the largest and the sum of the
/// exponentials.
///
/// # Shapes
///
/// - scores: `[B, H, Q, M]`
/// - statistics: `[2, B, H, Q]`
#[cube(launch)]
fn weights_kernel<F: Float, N: Size, M: Size>(
    scores: &mut Tensor<Vector<F, N>>,
    bias: &Tensor<Vector<f32, M>>,
    statistics: &mut Tensor<f32>,
    of_row: u32,
    of_head: u32,
    of_query: u32,
    key_0: u32,
    key_1: u32,
    site: u32,
    dropped: u32,
    kept_factor: f32,
    #[comptime] drops: bool,
    #[comptime] shared_bias: bool,
    #[comptime] units: usize,
    #[comptime] rows: usize,
    #[define(F)] _dtype: ElemType,
) {
    let mut memory = row_memory(units, rows);
    let vectors = scores.shape(3) / N::value();
    let row = CUBE_POS * rows + UNIT_POS_Y as usize;
    let first = row * vectors;
    let unit = UNIT_POS_X as usize;
    // A row that isn't there has no keys.
    let mut end = vectors;
    if first >= scores.len() {
        end = 0usize;
    }
    let bias_first = bias_of_row(row, scores.shape(1), scores.shape(2), of_row, of_head, of_query);

    // The sum grows with the maximum so far, in one pass. The first maximum is below any score.
    let mut maxima = Vector::<f32, N>::new(f32::MIN);
    let mut sums = Vector::<f32, N>::new(0.0f32);
    let mut column = unit;
    while column < end {
        let score =
            biased::<F, N, M>(scores[first + column], bias, bias_first, column, shared_bias);
        let next = max(maxima, score);
        sums = sums * (maxima - next).exp() + (score - next).exp();
        maxima = next;
        column += units;
    }
    let largest = max_over_row(largest_of_vector(maxima), &mut memory, units);
    let sums = sums * (maxima - Vector::new(largest)).exp();
    let sum = sum_over_row(sum_of_vector(sums), &mut memory, units);
    if end > 0 && unit == 0 {
        let rows_in_all = statistics.len() / 2;
        statistics[row] = largest;
        statistics[rows_in_all + row] = sum;
    }
    let mut column = unit;
    while column < end {
        let score =
            biased::<F, N, M>(scores[first + column], bias, bias_first, column, shared_bias);
        let mut weight = weight::<F, N>(score, largest, sum);
        if comptime!(drops) {
            let factors = factors::<N>(row, column, key_0, key_1, site, dropped, kept_factor);
            weight = Vector::cast_from(Vector::<f32, N>::cast_from(weight) * factors);
        }
        scores[first + column] = weight;
        column += units;
    }
}

/// With P the softmax of scores and bias, M the dropout's factors, and dO Vᵀ in `grads`: P ⊙ M in the place of the
/// scores, and the gradient of the scores, P ⊙ (dP − Σ dP ⊙ P) with dP = dO Vᵀ ⊙ M, in the place of `grads`.
#[cube(launch)]
fn weights_backward_kernel<F: Float, N: Size, M: Size>(
    scores: &mut Tensor<Vector<F, N>>,
    grads: &mut Tensor<Vector<F, N>>,
    bias: &Tensor<Vector<f32, M>>,
    statistics: &Tensor<f32>,
    of_row: u32,
    of_head: u32,
    of_query: u32,
    key_0: u32,
    key_1: u32,
    site: u32,
    dropped: u32,
    kept_factor: f32,
    #[comptime] drops: bool,
    #[comptime] shared_bias: bool,
    #[comptime] units: usize,
    #[comptime] rows: usize,
    #[define(F)] _dtype: ElemType,
) {
    let mut memory = row_memory(units, rows);
    let vectors = scores.shape(3) / N::value();
    let row = CUBE_POS * rows + UNIT_POS_Y as usize;
    let first = row * vectors;
    let unit = UNIT_POS_X as usize;
    let mut end = vectors;
    let mut largest = 0.0f32;
    let mut sum = 1.0f32;
    if first >= scores.len() {
        end = 0usize;
    } else {
        largest = statistics[row];
        sum = statistics[statistics.len() / 2 + row];
    }
    let bias_first = bias_of_row(row, scores.shape(1), scores.shape(2), of_row, of_head, of_query);

    let mut products = Vector::<f32, N>::new(0.0f32);
    let mut column = unit;
    while column < end {
        let score =
            biased::<F, N, M>(scores[first + column], bias, bias_first, column, shared_bias);
        let weight = weight::<F, N>(score, largest, sum);
        let mut grad = Vector::<f32, N>::cast_from(grads[first + column]);
        if comptime!(drops) {
            grad *= factors::<N>(row, column, key_0, key_1, site, dropped, kept_factor);
        }
        products += Vector::<f32, N>::cast_from(weight) * grad;
        column += units;
    }
    let mean = sum_over_row(sum_of_vector(products), &mut memory, units);
    let mut column = unit;
    while column < end {
        let score =
            biased::<F, N, M>(scores[first + column], bias, bias_first, column, shared_bias);
        let weight = Vector::<f32, N>::cast_from(weight::<F, N>(score, largest, sum));
        let mut used = weight;
        let mut grad = Vector::<f32, N>::cast_from(grads[first + column]);
        if comptime!(drops) {
            let factors = factors::<N>(row, column, key_0, key_1, site, dropped, kept_factor);
            grad *= factors;
            used *= factors;
        }
        scores[first + column] = Vector::cast_from(used);
        grads[first + column] = Vector::cast_from(weight * (grad - Vector::new(mean)));
        column += units;
    }
}
