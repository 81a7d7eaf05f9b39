//! On a GPU the first token of each kind sums the gradients of all of its kind, in their order and in f32. Burn adds
//! one token after another, with a thread for each column.

use altup_backend::cube::{RowLaunch, assert_countable, row_memory, sum_over_row, zeros};
use burn::backend::TensorMetadata;
use burn::backend::ops::ModuleOps;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn_backend::cubecl::dtype_to_storage_type;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use cubecl::prelude::*;

use super::EmbeddingBackend;

impl EmbeddingBackend for CubeBackend {
    fn embed(weight: FloatTensor<Self>, tokens: IntTensor<Self>) -> FloatTensor<Self> {
        <Self as ModuleOps<Self>>::embedding(weight, tokens)
    }

    fn embed_backward(
        weight: FloatTensor<Self>,
        tokens: IntTensor<Self>,
        output_grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let grad = zeros(weight.shape(), output_grad.dtype, &weight);
        let (width, count) = (weight.shape()[1], tokens.shape().num_elements());
        if width * count == 0 {
            return grad;
        }
        let (tokens, output_grad) = (into_contiguous(tokens), into_contiguous(output_grad));
        let launch = RowLaunch::new(&output_grad, count, width);
        assert_countable("vectors", weight.shape().num_elements() / launch.vector_size);
        let of_unit = (width / launch.vector_size).div_ceil(launch.units);
        let dtypes = [grad.dtype, tokens.dtype].map(dtype_to_storage_type);
        sum_tokens_kernel::launch(
            &grad.client.clone(),
            launch.cubes,
            launch.threads,
            launch.vector_size,
            output_grad.into_tensor_arg(),
            tokens.into_tensor_arg(),
            grad.clone().into_tensor_arg(),
            launch.units,
            launch.rows,
            of_unit,
            dtypes,
        );
        grad
    }
}

/// The sums of the rows of each kind of token.
///
/// # Shapes
///
/// - output_grad: `[tokens, width]`
/// - tokens: `[tokens]`
/// - grad: `[vocab_size, width]`, zeros
#[cube(launch)]
fn sum_tokens_kernel<F: Float, I: Int, N: Size>(
    output_grad: &Tensor<Vector<F, N>>,
    tokens: &Tensor<I>,
    grad: &mut Tensor<Vector<F, N>>,
    #[comptime] units: usize,
    #[comptime] rows: usize,
    #[comptime] of_unit: usize,
    #[define(F, I)] _dtypes: [ElemType; 2],
) {
    let mut memory = row_memory(units, rows);
    let count = tokens.len();
    let vectors = output_grad.len() / count;
    let own = CUBE_POS * rows + UNIT_POS_Y as usize;
    let unit = UNIT_POS_X as usize;
    let mut token = 0u32;
    let mut earlier = 0.0f32;
    if own < count {
        token = u32::cast_from(tokens[own]);
        let mut place = unit;
        while place < own {
            if u32::cast_from(tokens[place]) == token {
                earlier = 1.0f32;
            }
            place += units;
        }
    }
    let earlier = sum_over_row(earlier, &mut memory, units);
    if own < count && earlier == 0.0f32 {
        let mut sums = Array::<Vector<f32, N>>::new(of_unit);
        #[unroll(of_unit <= 8)]
        for i in 0..of_unit {
            sums[i] = Vector::new(0.0f32);
        }
        for place in own..count {
            if u32::cast_from(tokens[place]) == token {
                #[unroll(of_unit <= 8)]
                for i in 0..of_unit {
                    let column = i * units + unit;
                    if column < vectors {
                        sums[i] += Vector::cast_from(output_grad[place * vectors + column]);
                    }
                }
            }
        }
        #[unroll(of_unit <= 8)]
        for i in 0..of_unit {
            let column = i * units + unit;
            if column < vectors {
                grad[token as usize * vectors + column] = Vector::cast_from(sums[i]);
            }
        }
    }
}
