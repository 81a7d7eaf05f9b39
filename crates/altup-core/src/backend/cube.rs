//! GPUs, through CubeCL: the update in one kernel, in which a thread reads a vector of each block and of x̃
//! and writes one of each new block. Sums are f32 whatever the blocks are.

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
