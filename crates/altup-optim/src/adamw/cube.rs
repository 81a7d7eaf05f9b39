//! On a GPU in one kernel, which writes over a parameter and its moments where nobody else holds them.

use altup_backend::cube::{Launch, over};
use burn::backend::TensorMetadata;
use burn::backend::tensor::FloatTensor;
use burn::tensor::DType;
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use cubecl::prelude::*;

use super::{AdamWBackend, AdamWStep, primitive};

impl AdamWBackend for CubeBackend {
    fn adamw_step(
        param: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        moment_1: FloatTensor<Self>,
        moment_2: FloatTensor<Self>,
        step: AdamWStep,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let tensors = [&param, &grad, &moment_1, &moment_2];
        if tensors.iter().any(|tensor| tensor.dtype != DType::F32) {
            return primitive::adamw_step::<Self>(param, grad, moment_1, moment_2, step);
        }
        let [param, grad, moment_1, moment_2] =
            [param, grad, moment_1, moment_2].map(into_contiguous);
        let (new_param, param_arg) = over(&param, 0);
        let (new_moment_1, moment_1_arg) = over(&moment_1, 2);
        let (new_moment_2, moment_2_arg) = over(&moment_2, 3);
        if param.shape().num_elements() > 0 {
            let launch = Launch::new(&param);
            adamw_kernel::launch(
                &param.client.clone(),
                launch.cubes,
                launch.threads,
                launch.vector_size,
                param.into_tensor_arg(),
                grad.into_tensor_arg(),
                moment_1.into_tensor_arg(),
                moment_2.into_tensor_arg(),
                param_arg,
                moment_1_arg,
                moment_2_arg,
                step.beta_1,
                step.beta_2,
                step.correction_1,
                step.correction_2,
                step.epsilon,
                step.kept,
                step.rate,
            );
        }
        (new_param, new_moment_1, new_moment_2)
    }
}

/// The numbers are those of [`AdamWStep`].
#[cube(launch)]
fn adamw_kernel<N: Size>(
    param: &Tensor<Vector<f32, N>>,
    grad: &Tensor<Vector<f32, N>>,
    moment_1: &Tensor<Vector<f32, N>>,
    moment_2: &Tensor<Vector<f32, N>>,
    new_param: &mut Tensor<Vector<f32, N>>,
    new_moment_1: &mut Tensor<Vector<f32, N>>,
    new_moment_2: &mut Tensor<Vector<f32, N>>,
    beta_1: f32,
    beta_2: f32,
    correction_1: f32,
    correction_2: f32,
    epsilon: f32,
    kept: f32,
    rate: f32,
) {
    let position = ABSOLUTE_POS;
    if position >= param.len() {
        terminate!();
    }
    let grad = grad[position];
    let first = moment_1[position] * Vector::new(beta_1) + grad * Vector::new(1.0f32 - beta_1);
    let second =
        moment_2[position] * Vector::new(beta_2) + grad * grad * Vector::new(1.0f32 - beta_2);
    let root = (second / Vector::new(correction_2)).sqrt() + Vector::new(epsilon);
    let update = first / Vector::new(correction_1) / root;
    let old = param[position];
    new_moment_1[position] = first;
    new_moment_2[position] = second;
    new_param[position] = old * Vector::new(kept) - update * Vector::new(rate);
}
