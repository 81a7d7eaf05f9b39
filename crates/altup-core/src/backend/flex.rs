//! Flex: one pass over the blocks in f32.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Flex, TensorMetadata};
use burn::tensor::{DType, Shape, TensorData};

use super::{AltUpBackend, cpu, primitive};

type FlexTensor = FloatTensor<Flex>;

impl AltUpBackend for Flex {
    fn altup_update(
        state: FloatTensor<Self>,
        computed: FloatTensor<Self>,
        prediction_coefs: FloatTensor<Self>,
        correction_coefs: FloatTensor<Self>,
        block: usize,
    ) -> FloatTensor<Self> {
        if state.dtype() != DType::F32 {
            let (p, g) = (prediction_coefs, correction_coefs);
            return primitive::altup_update::<Self>(state, computed, p, g, block);
        }
        let shape = state.shape();
        let [state, computed, p, g] =
            [state, computed, prediction_coefs, correction_coefs].map(|x| x.to_contiguous());
        tensor(cpu::update(values(&state), values(&computed), values(&p), values(&g), block), shape)
    }

    fn altup_update_backward(
        state: FloatTensor<Self>,
        computed: FloatTensor<Self>,
        prediction_coefs: FloatTensor<Self>,
        correction_coefs: FloatTensor<Self>,
        output_grad: FloatTensor<Self>,
        block: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        if state.dtype() != DType::F32 {
            let (p, g) = (prediction_coefs, correction_coefs);
            return primitive::altup_update_backward::<Self>(
                state,
                computed,
                p,
                g,
                output_grad,
                block,
            );
        }
        let inputs = [state, computed, prediction_coefs, correction_coefs];
        let [state, computed, p, g] = inputs.map(|x| x.to_contiguous());
        let output_grad = output_grad.to_contiguous();
        let shapes = [&state, &computed, &p, &g].map(|x| x.shape());
        let mut grads = cpu::update_backward(
            values(&state),
            values(&computed),
            values(&p),
            values(&g),
            values(&output_grad),
            block,
        )
        .into_iter()
        .zip(shapes)
        .map(|(grad, shape)| tensor(grad, shape));
        let mut next = || grads.next().expect("there are four gradients");
        (next(), next(), next(), next())
    }
}

/// The values of a contiguous tensor.
fn values(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice().expect("the tensor was made contiguous")
}

fn tensor(values: Vec<f32>, shape: Shape) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape))
}
