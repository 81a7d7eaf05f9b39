//! GPUs, through CubeCL. AltUp's update is one kernel, in which a thread reads a vector of each block and of
//! x̃ and writes one of each new block; so is Sequence-AltUp's, with a thread for each vector of a token, or
//! of a window in the backward pass. Sums are f32 whatever the blocks are.

use burn::backend::TensorMetadata;
use burn::backend::tensor::FloatTensor;
use burn::tensor::Shape;
use burn_backend::cubecl::dtype_to_storage_type;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;
use cubecl::{calculate_cube_count_elemwise, tensor_vector_size_parallel};

use super::{AltUpBackend, primitive};

impl AltUpBackend for CubeBackend {
    fn altup_update(
        state: FloatTensor<Self>,
        computed: FloatTensor<Self>,
        prediction_coefs: FloatTensor<Self>,
        correction_coefs: FloatTensor<Self>,
        block: usize,
    ) -> FloatTensor<Self> {
        let coefs = primitive::folded_coefs::<Self>(prediction_coefs, correction_coefs, block);
        let output = empty_like(&state);
        let num_blocks = state.shape()[0];
        if computed.shape().num_elements() == 0 {
            return output;
        }
        let [state, computed, coefs] = [state, computed, coefs].map(into_contiguous);
        let launch = Launch::new(&computed);
        update_kernel::launch(
            &output.client.clone(),
            launch.cubes,
            launch.threads,
            launch.vector_size,
            state.into_tensor_arg(),
            computed.into_tensor_arg(),
            coefs.into_tensor_arg(),
            output.clone().into_tensor_arg(),
            num_blocks,
            dtype_to_storage_type(output.dtype),
        );
        output
    }

    fn altup_update_backward(
        state: FloatTensor<Self>,
        computed: FloatTensor<Self>,
        prediction_coefs: FloatTensor<Self>,
        correction_coefs: FloatTensor<Self>,
        output_grad: FloatTensor<Self>,
        block: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let (p, g) = (prediction_coefs, correction_coefs);
        let coefs = primitive::folded_coefs::<Self>(p.clone(), g.clone(), block);
        let (state_grad, computed_grad) = (empty_like(&state), empty_like(&computed));
        let num_blocks = state.shape()[0];
        let output_grad = into_contiguous(output_grad);
        if computed.shape().num_elements() > 0 {
            let launch = Launch::new(&computed_grad);
            spread_kernel::launch(
                &state_grad.client.clone(),
                launch.cubes,
                launch.threads,
                launch.vector_size,
                output_grad.clone().into_tensor_arg(),
                into_contiguous(coefs).into_tensor_arg(),
                state_grad.clone().into_tensor_arg(),
                computed_grad.clone().into_tensor_arg(),
                num_blocks,
                dtype_to_storage_type(state_grad.dtype),
            );
        }
        let coefs_grad = primitive::coefs_grad::<Self>(state, computed, output_grad);
        let (p_grad, g_grad) = primitive::unfolded_grads::<Self>(coefs_grad, p, g, block);
        (state_grad, computed_grad, p_grad, g_grad)
    }

    fn sequence_update(
        x: FloatTensor<Self>,
        computed: FloatTensor<Self>,
        prediction_coefs: FloatTensor<Self>,
        correction_coef: FloatTensor<Self>,
        stride: usize,
    ) -> FloatTensor<Self> {
        let output = empty_like(&x);
        if x.shape().num_elements() == 0 {
            return output;
        }
        let [x, computed] = [x, computed].map(into_contiguous);
        let [prediction_coefs, correction_coef] =
            [prediction_coefs, correction_coef].map(into_contiguous);
        let launch = Launch::new(&x);
        sequence_update_kernel::launch(
            &output.client.clone(),
            launch.cubes,
            launch.threads,
            launch.vector_size,
            x.into_tensor_arg(),
            computed.into_tensor_arg(),
            prediction_coefs.into_tensor_arg(),
            correction_coef.into_tensor_arg(),
            output.clone().into_tensor_arg(),
            stride,
            dtype_to_storage_type(output.dtype),
        );
        output
    }

    fn sequence_update_backward(
        x: FloatTensor<Self>,
        computed: FloatTensor<Self>,
        prediction_coefs: FloatTensor<Self>,
        correction_coef: FloatTensor<Self>,
        output_grad: FloatTensor<Self>,
        stride: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let x_grad = empty_like(&x);
        let [windows, anchors] = [empty_like(&computed), empty_like(&computed)];
        let [x, output_grad] = [x, output_grad].map(into_contiguous);
        let [prediction_coefs, correction_coef] =
            [prediction_coefs, correction_coef].map(into_contiguous);
        if x.shape().num_elements() > 0 {
            let launch = Launch::new(&windows);
            sequence_spread_kernel::launch(
                &x_grad.client.clone(),
                launch.cubes,
                launch.threads,
                launch.vector_size,
                x.clone().into_tensor_arg(),
                output_grad.clone().into_tensor_arg(),
                prediction_coefs.clone().into_tensor_arg(),
                correction_coef.clone().into_tensor_arg(),
                x_grad.clone().into_tensor_arg(),
                windows.clone().into_tensor_arg(),
                anchors.clone().into_tensor_arg(),
                stride,
                dtype_to_storage_type(x_grad.dtype),
            );
        }
        let coefs = primitive::sequence_coefs::<Self>(prediction_coefs, correction_coef);
        let (computed_grad, prediction_grad, correction_grad) = primitive::gathered_grads::<Self>(
            [x, output_grad],
            [windows, anchors, computed],
            coefs,
        );
        (x_grad, computed_grad, prediction_grad, correction_grad)
    }
}

fn empty_like(tensor: &CubeTensor) -> CubeTensor {
    let (client, device) = (tensor.client.clone(), tensor.device.clone());
    let shape: Shape = tensor.shape();
    empty_device_dtype(client, device, shape, tensor.dtype)
}

/// A thread for each vector of a block.
struct Launch {
    cubes: CubeCount,
    threads: CubeDim,
    vector_size: usize,
}

impl Launch {
    fn new(block: &CubeTensor) -> Self {
        let vector_size = tensor_vector_size_parallel(
            block.client.io_optimized_vector_sizes(block.dtype.size()),
            block.meta.shape(),
            block.meta.strides(),
            block.meta.num_dims() - 1,
        );
        let vectors = block.meta.num_elements() / vector_size;
        let threads = CubeDim::new(&block.client, vectors);
        let cubes = calculate_cube_count_elemwise(&block.client, vectors, threads);
        Self { cubes, threads, vector_size }
    }
}

/// output i = Σⱼ cᵢⱼ · state j + cᵢ_K · computed, with c `[K, K + 1]`.
#[cube(launch)]
fn update_kernel<F: Float, N: Size>(
    state: &Tensor<Vector<F, N>>,
    computed: &Tensor<Vector<F, N>>,
    coefs: &Tensor<F>,
    output: &mut Tensor<Vector<F, N>>,
    #[comptime] num_blocks: usize,
    #[define(F)] _dtype: ElemType,
) {
    let block_size = computed.len();
    let position = ABSOLUTE_POS;
    if position >= block_size {
        terminate!();
    }
    let computed = Vector::<f32, N>::cast_from(computed[position]);
    #[unroll]
    for i in 0..num_blocks {
        let row = i * (num_blocks + 1);
        let mut sum = computed * Vector::new(f32::cast_from(coefs[row + num_blocks]));
        #[unroll]
        for j in 0..num_blocks {
            let old = Vector::<f32, N>::cast_from(state[j * block_size + position]);
            sum += old * Vector::new(f32::cast_from(coefs[row + j]));
        }
        output[i * block_size + position] = Vector::cast_from(sum);
    }
}

/// The transpose of [`update_kernel`]: what of the output's gradient belongs to each old block and to x̃.
#[cube(launch)]
fn spread_kernel<F: Float, N: Size>(
    output_grad: &Tensor<Vector<F, N>>,
    coefs: &Tensor<F>,
    state_grad: &mut Tensor<Vector<F, N>>,
    computed_grad: &mut Tensor<Vector<F, N>>,
    #[comptime] num_blocks: usize,
    #[define(F)] _dtype: ElemType,
) {
    let block_size = computed_grad.len();
    let position = ABSOLUTE_POS;
    if position >= block_size {
        terminate!();
    }
    #[unroll]
    for j in 0..num_blocks + 1 {
        let mut sum = Vector::<f32, N>::new(0.0);
        #[unroll]
        for i in 0..num_blocks {
            let grad = Vector::<f32, N>::cast_from(output_grad[i * block_size + position]);
            sum += grad * Vector::new(f32::cast_from(coefs[i * (num_blocks + 1) + j]));
        }
        if comptime!(j < num_blocks) {
            state_grad[j * block_size + position] = Vector::cast_from(sum);
        } else {
            computed_grad[position] = Vector::cast_from(sum);
        }
    }
}

/// yᵢ = a₁ xᵢ + (a₂ − b (a₁ + a₂)) x_kA + b ỹ_A, of x `[B, T, d]` and ỹ `[B, ⌈T/k⌉, d]`.
#[cube(launch)]
fn sequence_update_kernel<F: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    computed: &Tensor<Vector<F, N>>,
    prediction_coefs: &Tensor<F>,
    correction_coef: &Tensor<F>,
    output: &mut Tensor<Vector<F, N>>,
    #[comptime] stride: usize,
    #[define(F)] _dtype: ElemType,
) {
    let position = ABSOLUTE_POS;
    if position >= x.len() {
        terminate!();
    }
    let seq_length = x.shape(1);
    let width = x.len() / (x.shape(0) * seq_length);
    let token = position / width % seq_length;
    let row = position / width / seq_length;
    let window = token / stride;
    let column = position % width;
    let anchor = (row * seq_length + window * stride) * width + column;
    let of_window = (row * computed.shape(1) + window) * width + column;

    let first = f32::cast_from(prediction_coefs[0]);
    let second = f32::cast_from(prediction_coefs[1]);
    let gain = f32::cast_from(correction_coef[0]);
    let mut sum = Vector::<f32, N>::cast_from(x[position]) * Vector::new(first);
    sum += Vector::<f32, N>::cast_from(x[anchor]) * Vector::new(second - gain * (first + second));
    sum += Vector::<f32, N>::cast_from(computed[of_window]) * Vector::new(gain);
    output[position] = Vector::cast_from(sum);
}

/// The transpose of [`sequence_update_kernel`] for x, with each window's sum of gradients, and its anchor.
#[cube(launch)]
fn sequence_spread_kernel<F: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    output_grad: &Tensor<Vector<F, N>>,
    prediction_coefs: &Tensor<F>,
    correction_coef: &Tensor<F>,
    x_grad: &mut Tensor<Vector<F, N>>,
    windows: &mut Tensor<Vector<F, N>>,
    anchors: &mut Tensor<Vector<F, N>>,
    #[comptime] stride: usize,
    #[define(F)] _dtype: ElemType,
) {
    let position = ABSOLUTE_POS;
    if position >= windows.len() {
        terminate!();
    }
    let (seq_length, num_windows) = (x.shape(1), windows.shape(1));
    let width = windows.len() / (windows.shape(0) * num_windows);
    let window = position / width % num_windows;
    let row = position / width / num_windows;
    let anchor = (row * seq_length + window * stride) * width + position % width;

    let first = f32::cast_from(prediction_coefs[0]);
    let second = f32::cast_from(prediction_coefs[1]);
    let gain = f32::cast_from(correction_coef[0]);
    let of_anchor = Vector::<f32, N>::cast_from(output_grad[anchor]);
    let mut sum = of_anchor;
    for i in 1..stride {
        if window * stride + i < seq_length {
            let grad = Vector::<f32, N>::cast_from(output_grad[anchor + i * width]);
            x_grad[anchor + i * width] = Vector::cast_from(grad * Vector::new(first));
            sum += grad;
        }
    }
    let to_anchor = sum * Vector::new(second - gain * (first + second));
    x_grad[anchor] = Vector::cast_from(of_anchor * Vector::new(first) + to_anchor);
    windows[position] = Vector::cast_from(sum);
    anchors[position] = x[anchor];
}
