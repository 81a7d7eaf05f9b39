//! Ndarray: one pass over the blocks in f32.

use burn::backend::tensor::FloatTensor;
use burn::backend::{NdArray, TensorMetadata};
use burn::tensor::{Shape, TensorData};
use std::borrow::Cow;

use super::{AltUpBackend, cpu, primitive};

type NdArrayTensor = FloatTensor<NdArray>;

impl AltUpBackend for NdArray {
    fn altup_update(
        state: FloatTensor<Self>,
        computed: FloatTensor<Self>,
        prediction_coefs: FloatTensor<Self>,
        correction_coefs: FloatTensor<Self>,
        block: usize,
    ) -> FloatTensor<Self> {
        let inputs = [&state, &computed, &prediction_coefs, &correction_coefs].map(values);
        let [Some(x), Some(computed_values), Some(p), Some(g)] = inputs else {
            let (p, g) = (prediction_coefs, correction_coefs);
            return primitive::altup_update::<Self>(state, computed, p, g, block);
        };
        tensor(cpu::update(&x, &computed_values, &p, &g, block), state.shape())
    }

    fn altup_update_backward(
        state: FloatTensor<Self>,
        computed: FloatTensor<Self>,
        prediction_coefs: FloatTensor<Self>,
        correction_coefs: FloatTensor<Self>,
        output_grad: FloatTensor<Self>,
        block: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let inputs =
            [&state, &computed, &prediction_coefs, &correction_coefs, &output_grad].map(values);
        let [Some(x), Some(computed_values), Some(p), Some(g), Some(grad)] = inputs else {
            let (p, g) = (prediction_coefs, correction_coefs);
            return primitive::altup_update_backward::<Self>(
                state,
                computed,
                p,
                g,
                output_grad,
                block,
            );
        };
        let [x, computed_grad, p, g] =
            cpu::update_backward(&x, &computed_values, &p, &g, &grad, block);
        (
            tensor(x, state.shape()),
            tensor(computed_grad, computed.shape()),
            tensor(p, prediction_coefs.shape()),
            tensor(g, correction_coefs.shape()),
        )
    }
}

/// The values row by row, copied where they do not lie so; none if they are no f32.
fn values(tensor: &NdArrayTensor) -> Option<Cow<'_, [f32]>> {
    let NdArrayTensor::F32(storage) = tensor else { return None };
    let view = storage.view();
    Some(match view.to_slice() {
        Some(values) => Cow::Borrowed(values),
        None => Cow::Owned(storage.view().iter().copied().collect()),
    })
}

fn tensor(values: Vec<f32>, shape: Shape) -> NdArrayTensor {
    NdArrayTensor::from_data(TensorData::new(values, shape))
}
