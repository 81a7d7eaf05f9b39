//! On a GPU in one kernel, with a thread for each value.

use altup_backend::cube::{Launch, empty_like};
use altup_backend::philox::DropoutMask;
use burn::backend::TensorMetadata;
use burn::backend::tensor::FloatTensor;
use burn_backend::cubecl::dtype_to_storage_type;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use cubecl::prelude::*;

use super::DropoutBackend;

impl DropoutBackend for CubeBackend {
    fn dropout(x: FloatTensor<Self>, mask: DropoutMask) -> FloatTensor<Self> {
        let output = empty_like(&x);
        if x.shape().num_elements() == 0 {
            return output;
        }
        let last = x.shape().num_dims() - 1;
        let launch = Launch::of_values(&output);
        let [key_0, key_1] = mask.key();
        dropout_kernel::launch(
            &output.client.clone(),
            launch.cubes,
            launch.threads,
            into_contiguous(x).into_tensor_arg(),
            output.clone().into_tensor_arg(),
            key_0,
            key_1,
            mask.site(),
            mask.dropped(),
            mask.kept_factor(),
            last,
            dtype_to_storage_type(output.dtype),
        );
        output
    }
}

/// Of fewer than 2³² rows.
#[cube(launch)]
fn dropout_kernel<F: Float>(
    x: &Tensor<F>,
    output: &mut Tensor<F>,
    key_0: u32,
    key_1: u32,
    site: u32,
    dropped: u32,
    kept_factor: f32,
    #[comptime] last: usize,
    #[define(F)] _dtype: ElemType,
) {
    let position = ABSOLUTE_POS;
    if position >= x.len() {
        terminate!();
    }
    let width = x.shape(last);
    let column = position % width;
    let row = u32::cast_from(position / width);
    let factor = dropout_factor(row, column, key_0, key_1, site, dropped, kept_factor);
    output[position] = F::cast_from(f32::cast_from(x[position]) * factor);
}

/// What a value is multiplied by, as [`DropoutMask`] defines it for rows below 2³².
#[cube]
pub(in crate::operations) fn dropout_factor(
    row: u32,
    column: usize,
    key_0: u32,
    key_1: u32,
    site: u32,
    dropped: u32,
    kept_factor: f32,
) -> f32 {
    let mut c0 = u32::cast_from(column / 64 * 8 + column % 8);
    let mut c1 = row;
    let mut c2 = site;
    let mut c3 = 0u32;
    let mut k0 = key_0;
    let mut k1 = key_1;
    for _round in 0..10u32 {
        let high_0 = c0.mul_hi(0xD251_1F53u32);
        let low_0 = c0 * 0xD251_1F53u32;
        let high_1 = c2.mul_hi(0xCD9E_8D57u32);
        let low_1 = c2 * 0xCD9E_8D57u32;
        c0 = high_1 ^ c1 ^ k0;
        c1 = low_1;
        c2 = high_0 ^ c3 ^ k1;
        c3 = low_0;
        k0 += 0x9E37_79B9u32;
        k1 += 0xBB67_AE85u32;
    }
    let of_word = column % 32 / 8;
    let mut word = c0;
    if of_word == 1 {
        word = c1;
    }
    if of_word == 2 {
        word = c2;
    }
    if of_word == 3 {
        word = c3;
    }
    // The low half of a word is that of the first 32 columns of 64.
    let shift = u32::cast_from(column % 64 / 32 * 16);
    let bits = (word >> shift) & 0xFFFFu32;
    let mut factor = kept_factor;
    if bits < dropped {
        factor = 0.0f32;
    }
    factor
}
