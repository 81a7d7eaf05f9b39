//! Backends on a CPU, in f32: one pass over memory for each operation, by all threads. Sums are made in the
//! same order whatever the number of threads.

mod attention;
mod cross_entropy;
mod gated_gelu;
mod matrix;
mod project;
mod rms_norm;

use altup_core::cpu::CpuBackend;
use burn::backend::tensor::{FloatTensor, IntTensor};

use super::{T5Backend, primitive};

macro_rules! impl_t5_backend {
    ($backend:ty) => {
        impl T5Backend for $backend {
            fn biased_attention(
                query: FloatTensor<Self>,
                key: FloatTensor<Self>,
                value: FloatTensor<Self>,
                bias: FloatTensor<Self>,
            ) -> (FloatTensor<Self>, FloatTensor<Self>) {
                match Self::has([&query, &key, &value, &bias]) {
                    true => attention::attention::<Self>(&query, &key, &value, &bias),
                    false => primitive::attention::<Self>(query, key, value, bias),
                }
            }

            fn biased_attention_backward(
                query: FloatTensor<Self>,
                key: FloatTensor<Self>,
                value: FloatTensor<Self>,
                bias: FloatTensor<Self>,
                output: FloatTensor<Self>,
                saved: FloatTensor<Self>,
                output_grad: FloatTensor<Self>,
            ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
                match Self::has([&query, &key, &value, &bias]) {
                    true => attention::attention_backward::<Self>(
                        [&query, &key, &value, &output, &output_grad],
                        &bias,
                        &saved,
                    ),
                    false => primitive::attention_backward::<Self>(
                        query,
                        key,
                        value,
                        bias,
                        saved,
                        output_grad,
                    ),
                }
            }

            fn gated_gelu(gate: FloatTensor<Self>, linear: FloatTensor<Self>) -> FloatTensor<Self> {
                match Self::has([&gate, &linear]) {
                    true => gated_gelu::gated_gelu::<Self>(&gate, &linear),
                    false => primitive::gated_gelu::<Self>(gate, linear),
                }
            }

            fn gated_gelu_backward(
                gate: FloatTensor<Self>,
                linear: FloatTensor<Self>,
                output_grad: FloatTensor<Self>,
            ) -> (FloatTensor<Self>, FloatTensor<Self>) {
                match Self::has([&gate, &linear, &output_grad]) {
                    true => gated_gelu::gated_gelu_backward::<Self>(&gate, &linear, output_grad),
                    false => primitive::gated_gelu_backward::<Self>(gate, linear, output_grad),
                }
            }

            fn project(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
                let [output] = project::to_all::<Self, 1>(x, [weight]);
                output
            }

            fn project_to_two(
                x: FloatTensor<Self>,
                first: FloatTensor<Self>,
                second: FloatTensor<Self>,
            ) -> (FloatTensor<Self>, FloatTensor<Self>) {
                project::to_all::<Self, 2>(x, [first, second]).into()
            }

            fn project_to_three(
                x: FloatTensor<Self>,
                first: FloatTensor<Self>,
                second: FloatTensor<Self>,
                third: FloatTensor<Self>,
            ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
                project::to_all::<Self, 3>(x, [first, second, third]).into()
            }

            fn rms_norm(
                x: FloatTensor<Self>,
                gamma: FloatTensor<Self>,
                epsilon: f32,
            ) -> FloatTensor<Self> {
                match Self::has([&x, &gamma]) {
                    true => rms_norm::rms_norm::<Self>(&x, &gamma, epsilon),
                    false => primitive::rms_norm::<Self>(x, gamma, epsilon),
                }
            }

            fn rms_norm_backward(
                x: FloatTensor<Self>,
                gamma: FloatTensor<Self>,
                output_grad: FloatTensor<Self>,
                epsilon: f32,
            ) -> (FloatTensor<Self>, FloatTensor<Self>) {
                match Self::has([&x, &gamma, &output_grad]) {
                    true => rms_norm::rms_norm_backward::<Self>(&x, &gamma, output_grad, epsilon),
                    false => primitive::rms_norm_backward::<Self>(x, gamma, output_grad, epsilon),
                }
            }

            fn cross_entropy(
                logits: FloatTensor<Self>,
                labels: IntTensor<Self>,
            ) -> FloatTensor<Self> {
                match Self::has([&logits]) {
                    true => cross_entropy::cross_entropy::<Self>(&logits, &labels),
                    false => primitive::cross_entropy::<Self>(logits, labels),
                }
            }

            fn cross_entropy_backward(
                logits: FloatTensor<Self>,
                labels: IntTensor<Self>,
                output_grad: FloatTensor<Self>,
            ) -> FloatTensor<Self> {
                match Self::has([&logits, &output_grad]) {
                    true => {
                        cross_entropy::cross_entropy_backward::<Self>(logits, &labels, &output_grad)
                    }
                    false => primitive::cross_entropy_backward::<Self>(logits, labels, output_grad),
                }
            }
        }
    };
}

#[cfg(feature = "flex")]
impl_t5_backend!(burn::backend::Flex);

#[cfg(feature = "ndarray")]
impl_t5_backend!(burn::backend::NdArray);

#[cfg(feature = "tch")]
impl_t5_backend!(burn::backend::LibTorch);
