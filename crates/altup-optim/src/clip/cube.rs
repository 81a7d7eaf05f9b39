//! On a GPU in one kernel, which writes over the gradient where nobody else holds it.

use altup_backend::cube::{Launch, over};
use burn::backend::TensorMetadata;
use burn::backend::tensor::FloatTensor;
use burn_backend::cubecl::dtype_to_storage_type;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use cubecl::prelude::*;

use super::ClipBackend;

impl ClipBackend for CubeBackend {
    fn clip(
        gradient: FloatTensor<Self>,
        square_sum: FloatTensor<Self>,
        max_norm: f64,
    ) -> FloatTensor<Self> {
        let gradient = into_contiguous(gradient);
        let (output, output_arg) = over(&gradient, 0);
        if gradient.shape().num_elements() == 0 {
            return output;
        }
        let launch = Launch::new(&gradient);
        let dtypes = [gradient.dtype, square_sum.dtype].map(dtype_to_storage_type);
        clip_kernel::launch(
            &output.client.clone(),
            launch.cubes,
            launch.threads,
            launch.vector_size,
            gradient.into_tensor_arg(),
            square_sum.into_tensor_arg(),
            output_arg,
            max_norm as f32,
            dtypes,
        );
        output
    }
}

#[cube(launch)]
fn clip_kernel<F: Float, G: Float, N: Size>(
    gradient: &Tensor<Vector<F, N>>,
    square_sum: &Tensor<G>,
    output: &mut Tensor<Vector<F, N>>,
    max_norm: f32,
    #[define(F, G)] _dtypes: [ElemType; 2],
) {
    let position = ABSOLUTE_POS;
    if position >= gradient.len() {
        terminate!();
    }
    let norm = f32::cast_from(square_sum[0]).sqrt();
    let mut factor = 1.0f32;
    if norm > max_norm {
        factor = max_norm / norm;
    }
    let value = Vector::<f32, N>::cast_from(gradient[position]);
    output[position] = Vector::cast_from(value * Vector::new(factor));
}
