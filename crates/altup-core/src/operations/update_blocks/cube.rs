//! On a GPU: p and g are folded in one kernel, before [`combine_blocks`](super::super::combine_blocks)'s; their gradients
//! are one kernel behind it, which adds up what its groups of threads summed. The gradient of a selected block is added
//! where the state's lies.

use altup_backend::cube::{
    Launch, RowLaunch, assert_countable, empty, empty_like, into_owned, row_memory, sum_over_row,
    zeros_like,
};
use burn::backend::TensorMetadata;
use burn::backend::tensor::FloatTensor;
use burn::tensor::{DType, Shape};
use burn_backend::cubecl::dtype_to_storage_type;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use cubecl::prelude::*;

use super::{Selection, UpdateBlocksBackend, primitive};
use crate::operations::combine_blocks::CombineBlocksBackend;
use crate::operations::combine_blocks::cube::{Spread, spread};

/// Blocks whose coefficients' gradients a group of threads has room for: 4 KiB of the 16 that WebGPU promises.
const MAX_BLOCKS: usize = 32;

impl UpdateBlocksBackend for CubeBackend {
    fn add_to_block(
        state: FloatTensor<Self>,
        added: FloatTensor<Self>,
        selection: Selection,
    ) -> FloatTensor<Self> {
        let state = into_owned(state);
        if added.shape().num_elements() == 0 {
            return state;
        }
        let added = into_contiguous(added);
        let launch = Launch::new(&added);
        assert_countable("vectors", state.shape().num_elements() / launch.vector_size);
        add_to_block_kernel::launch(
            &state.client.clone(),
            launch.cubes,
            launch.threads,
            launch.vector_size,
            state.clone().into_tensor_arg(),
            added.into_tensor_arg(),
            selection.block as u32,
            dtype_to_storage_type(state.dtype),
        );
        state
    }

    fn update_blocks(
        state: FloatTensor<Self>,
        computed: FloatTensor<Self>,
        p: FloatTensor<Self>,
        g: FloatTensor<Self>,
        selection: Selection,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let num_blocks = g.shape()[0];
        let coefs = empty(Shape::new([num_blocks, num_blocks + 1]), DType::F32, &g);
        let launch = Launch::of_values(&coefs);
        let dtypes = [p.dtype, g.dtype].map(dtype_to_storage_type);
        fold_kernel::launch(
            &coefs.client.clone(),
            launch.cubes,
            launch.threads,
            into_contiguous(p).into_tensor_arg(),
            into_contiguous(g).into_tensor_arg(),
            coefs.clone().into_tensor_arg(),
            selection.block as u32,
            dtypes,
        );
        (Self::combine_blocks(state, computed, coefs.clone()), coefs)
    }

    fn update_blocks_backward(
        state: FloatTensor<Self>,
        computed: FloatTensor<Self>,
        coefs: FloatTensor<Self>,
        p: FloatTensor<Self>,
        g: FloatTensor<Self>,
        output_grad: FloatTensor<Self>,
        selection: Selection,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        if computed.shape().num_elements() == 0 {
            let [p_grad, g_grad] = [&p, &g].map(zeros_like);
            return (state, computed, p_grad, g_grad);
        }
        let num_blocks = g.shape()[0];
        if num_blocks > MAX_BLOCKS {
            let (state_grad, computed_grad, coefs_grad) =
                Self::combine_blocks_backward(state, computed, coefs, output_grad);
            let (p_grad, g_grad) =
                primitive::fold_backward::<Self>(coefs_grad, p, g, selection.block);
            return (state_grad, computed_grad, p_grad, g_grad);
        }
        let Spread { state_grad, computed_grad, sums } =
            spread(state, computed, coefs, output_grad);
        let [groups, count] = sums.shape().dims();
        let (p_grad, g_grad) = (empty_like(&p), empty_like(&g));
        let launch = RowLaunch::new(&sums, 1, groups * count);
        let dtypes = [p.dtype, g.dtype].map(dtype_to_storage_type);
        fold_backward_kernel::launch(
            &sums.client.clone(),
            CubeCount::new_single(),
            launch.threads,
            sums.into_tensor_arg(),
            into_contiguous(p).into_tensor_arg(),
            into_contiguous(g).into_tensor_arg(),
            p_grad.clone().into_tensor_arg(),
            g_grad.clone().into_tensor_arg(),
            selection.block as u32,
            num_blocks,
            launch.units,
            dtypes,
        );
        (state_grad, computed_grad, p_grad, g_grad)
    }
}

#[cube(launch)]
fn add_to_block_kernel<F: Float, N: Size>(
    state: &mut Tensor<Vector<F, N>>,
    added: &Tensor<Vector<F, N>>,
    block: u32,
    #[define(F)] _dtype: ElemType,
) {
    let position = ABSOLUTE_POS;
    if position >= added.len() {
        terminate!();
    }
    let place = block as usize * added.len() + position;
    let old = Vector::<f32, N>::cast_from(state[place]);
    state[place] = Vector::cast_from(Vector::<f32, N>::cast_from(added[position]) + old);
}

/// cᵢⱼ = pᵢⱼ − gᵢ pⱼ*ⱼ, and cᵢ_K = gᵢ.
#[cube(launch)]
fn fold_kernel<F: Float, G: Float>(
    p: &Tensor<F>,
    g: &Tensor<G>,
    coefs: &mut Tensor<f32>,
    block: u32,
    #[define(F, G)] _dtypes: [ElemType; 2],
) {
    let position = ABSOLUTE_POS;
    if position >= coefs.len() {
        terminate!();
    }
    let num_blocks = g.len();
    let row = position / (num_blocks + 1);
    let column = position % (num_blocks + 1);
    let gain = f32::cast_from(g[row]);
    let mut value = gain;
    if column < num_blocks {
        let of_block = f32::cast_from(p[block as usize * num_blocks + column]);
        value = f32::cast_from(p[row * num_blocks + column]) - gain * of_block;
    }
    coefs[position] = value;
}

/// The sums over all groups, of which the gradients of p and g are made, by one group of threads.
///
/// # Shapes
///
/// - sums: `[groups, K · (K + 1)]`
#[cube(launch)]
fn fold_backward_kernel<F: Float, G: Float>(
    sums: &Tensor<f32>,
    p: &Tensor<F>,
    g: &Tensor<G>,
    p_grad: &mut Tensor<F>,
    g_grad: &mut Tensor<G>,
    block: u32,
    #[comptime] num_blocks: usize,
    #[comptime] units: usize,
    #[define(F, G)] _dtypes: [ElemType; 2],
) {
    let columns = comptime!(num_blocks + 1);
    let count = comptime!(num_blocks * (num_blocks + 1));
    let mut memory = row_memory(units, 1usize);
    let mut coefs_grad = Shared::<[f32]>::new_slice(comptime!(num_blocks * (num_blocks + 1)));
    let unit = UNIT_POS_X as usize;
    for coefficient in 0..count {
        let mut sum = 0.0f32;
        let mut place = unit * count + coefficient;
        while place < sums.len() {
            sum += sums[place];
            place += units * count;
        }
        let total = sum_over_row(sum, &mut memory, units);
        if unit == 0 {
            coefs_grad[coefficient] = total;
        }
    }
    sync_cube();
    let block = block as usize;
    let mut place = unit;
    while place < num_blocks * num_blocks {
        let row = place / num_blocks;
        let column = place % num_blocks;
        let mut grad = coefs_grad[row * columns + column];
        if row == block {
            for other in 0..num_blocks {
                grad -= coefs_grad[other * columns + column] * f32::cast_from(g[other]);
            }
        }
        p_grad[place] = F::cast_from(grad);
        place += units;
    }
    let mut row = unit;
    while row < num_blocks {
        let mut grad = coefs_grad[row * columns + num_blocks];
        for column in 0..num_blocks {
            let of_block = f32::cast_from(p[block * num_blocks + column]);
            grad -= coefs_grad[row * columns + column] * of_block;
        }
        g_grad[row] = G::cast_from(grad);
        row += units;
    }
}
