//! Backends on a CPU, in f32: each operation in one pass over memory, by all threads.

mod altup;
mod sequence;

use burn::backend::TensorMetadata;
use burn::backend::tensor::FloatTensor;

use super::{AltUpBackend, primitive};
use crate::cpu::CpuBackend;

macro_rules! impl_altup_backend {
    ($backend:ty) => {
        impl AltUpBackend for $backend {
            fn altup_update(
                state: FloatTensor<Self>,
                computed: FloatTensor<Self>,
                prediction_coefs: FloatTensor<Self>,
                correction_coefs: FloatTensor<Self>,
                block: usize,
            ) -> FloatTensor<Self> {
                let (p, g) = (prediction_coefs, correction_coefs);
                if !Self::has([&state, &computed, &p, &g]) {
                    return primitive::altup_update::<Self>(state, computed, p, g, block);
                }
                let [x, computed, p, g] = [&state, &computed, &p, &g].map(Self::values);
                let mut output = Self::zeros(state.shape(), &state);
                altup::update(&x, &computed, &p, &g, block, Self::values_mut(&mut output));
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
                if !Self::has([&state, &computed, &p, &g, &output_grad]) {
                    return primitive::altup_update_backward::<Self>(
                        state,
                        computed,
                        p,
                        g,
                        output_grad,
                        block,
                    );
                }
                let inputs = [&state, &computed, &p, &g];
                let mut grads = inputs.map(|input| Self::zeros(input.shape(), input));
                altup::update_backward(
                    inputs.map(Self::values).each_ref().map(|values| &**values),
                    &Self::values(&output_grad),
                    block,
                    grads.each_mut().map(Self::values_mut),
                );
                grads.into()
            }

            fn sequence_update(
                x: FloatTensor<Self>,
                computed: FloatTensor<Self>,
                prediction_coefs: FloatTensor<Self>,
                correction_coef: FloatTensor<Self>,
                stride: usize,
            ) -> FloatTensor<Self> {
                let (a, b) = (prediction_coefs, correction_coef);
                if !Self::has([&x, &computed, &a, &b]) {
                    return primitive::sequence_update::<Self>(x, computed, a, b, stride);
                }
                let mut output = Self::zeros(x.shape(), &x);
                let shape = [x.shape()[1], x.shape()[2]];
                let inputs = [&x, &computed, &a, &b].map(Self::values);
                let inputs = inputs.each_ref().map(|values| &**values);
                sequence::update(inputs, shape, stride, Self::values_mut(&mut output));
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
                let (a, b) = (prediction_coefs, correction_coef);
                if !Self::has([&x, &computed, &a, &b, &output_grad]) {
                    return primitive::sequence_update_backward::<Self>(
                        x,
                        computed,
                        a,
                        b,
                        output_grad,
                        stride,
                    );
                }
                let inputs = [&x, &computed, &a, &b];
                let mut grads = inputs.map(|input| Self::zeros(input.shape(), input));
                sequence::update_backward(
                    inputs.map(Self::values).each_ref().map(|values| &**values),
                    &Self::values(&output_grad),
                    [x.shape()[1], x.shape()[2]],
                    stride,
                    grads.each_mut().map(Self::values_mut),
                );
                grads.into()
            }
        }
    };
}

#[cfg(feature = "flex")]
impl_altup_backend!(burn::backend::Flex);

#[cfg(feature = "ndarray")]
impl_altup_backend!(burn::backend::NdArray);

#[cfg(feature = "tch")]
impl_altup_backend!(burn::backend::LibTorch);
