//! On a GPU in one kernel each way, with a thread for each vector. The arithmetic is f32.

use altup_backend::cube::{Launch, empty_like, over};
use burn::backend::TensorMetadata;
use burn::backend::tensor::FloatTensor;
use burn_backend::cubecl::dtype_to_storage_type;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use cubecl::prelude::*;

use super::GatedGeluBackend;
use super::primitive::{GELU_CUBIC, GELU_SCALE};

impl GatedGeluBackend for CubeBackend {
    fn gated_gelu(gate: FloatTensor<Self>, linear: FloatTensor<Self>) -> FloatTensor<Self> {
        let output = empty_like(&gate);
        if gate.shape().num_elements() == 0 {
            return output;
        }
        let launch = Launch::new(&output);
        gated_gelu_kernel::launch(
            &output.client.clone(),
            launch.cubes,
            launch.threads,
            launch.vector_size,
            into_contiguous(gate).into_tensor_arg(),
            into_contiguous(linear).into_tensor_arg(),
            output.clone().into_tensor_arg(),
            dtype_to_storage_type(output.dtype),
        );
        output
    }

    /// The gradient of the gate takes the place of the output's.
    fn gated_gelu_backward(
        gate: FloatTensor<Self>,
        linear: FloatTensor<Self>,
        output_grad: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let linear_grad = empty_like(&gate);
        let [gate, linear, output_grad] = [gate, linear, output_grad].map(into_contiguous);
        let (gate_grad, gate_grad_arg) = over(&output_grad, 2);
        if gate.shape().num_elements() > 0 {
            let launch = Launch::new(&linear_grad);
            gated_gelu_backward_kernel::launch(
                &linear_grad.client.clone(),
                launch.cubes,
                launch.threads,
                launch.vector_size,
                gate.into_tensor_arg(),
                linear.into_tensor_arg(),
                output_grad.into_tensor_arg(),
                gate_grad_arg,
                linear_grad.clone().into_tensor_arg(),
                dtype_to_storage_type(linear_grad.dtype),
            );
        }
        (gate_grad, linear_grad)
    }
}

/// sigmoid(2 √(2/π) (x + 0.044715 x³)), of which gelu(x) is x times.
#[cube]
fn gelu_sigmoid<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    let scale = comptime!(GELU_SCALE as f32);
    let cubic = comptime!((GELU_CUBIC * GELU_SCALE) as f32);
    let inner = x * (Vector::new(scale) + x * x * Vector::new(cubic));
    let one = Vector::<f32, N>::new(1.0f32);
    // e⁸⁸ is the largest that is no infinity, and 1 / e⁸⁸ is as good as 0.
    let inner = max(inner, Vector::new(-88.0f32));
    one / (one + (-inner).exp())
}

#[cube(launch)]
fn gated_gelu_kernel<F: Float, N: Size>(
    gate: &Tensor<Vector<F, N>>,
    linear: &Tensor<Vector<F, N>>,
    output: &mut Tensor<Vector<F, N>>,
    #[define(F)] _dtype: ElemType,
) {
    let position = ABSOLUTE_POS;
    if position >= output.len() {
        terminate!();
    }
    let x = Vector::<f32, N>::cast_from(gate[position]);
    let linear = Vector::<f32, N>::cast_from(linear[position]);
    output[position] = Vector::cast_from(x * gelu_sigmoid(x) * linear);
}

/// With s the sigmoid: gelu' = s + gelu (1 − s) z', where z' = 2 √(2/π) (1 + 3 · 0.044715 x²).
#[cube(launch)]
fn gated_gelu_backward_kernel<F: Float, N: Size>(
    gate: &Tensor<Vector<F, N>>,
    linear: &Tensor<Vector<F, N>>,
    output_grad: &Tensor<Vector<F, N>>,
    gate_grad: &mut Tensor<Vector<F, N>>,
    linear_grad: &mut Tensor<Vector<F, N>>,
    #[define(F)] _dtype: ElemType,
) {
    let position = ABSOLUTE_POS;
    if position >= linear_grad.len() {
        terminate!();
    }
    let scale = comptime!(GELU_SCALE as f32);
    let cubic = comptime!((3.0 * GELU_CUBIC * GELU_SCALE) as f32);
    let x = Vector::<f32, N>::cast_from(gate[position]);
    let linear = Vector::<f32, N>::cast_from(linear[position]);
    let grad = Vector::<f32, N>::cast_from(output_grad[position]);
    let sigmoid = gelu_sigmoid(x);
    let gelu = x * sigmoid;
    let slope = Vector::new(scale) + x * x * Vector::new(cubic);
    let one = Vector::<f32, N>::new(1.0f32);
    let derivative = sigmoid + gelu * (one - sigmoid) * slope;
    linear_grad[position] = Vector::cast_from(grad * gelu);
    gate_grad[position] = Vector::cast_from(grad * linear * derivative);
}
