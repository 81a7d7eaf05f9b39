//! Clipping on every backend, against numbers by hand and against the body of primitive operations.

use burn::backend::Backend;
use burn::tensor::{TensorData, Tolerance};

use super::{ClipBackend, primitive};

fn tensor<B: Backend>(values: &[f32], shape: &[usize]) -> burn::backend::tensor::FloatTensor<B> {
    B::float_from_data(TensorData::new(values.to_vec(), shape.to_vec()), &B::Device::default())
}

/// Of norm 5: to a norm of 2.5 half of each value, and to one of 5 or 6 each as it is.
fn all<B: ClipBackend>() {
    let data = |tensor| burn::tensor::read_sync(B::float_into_data(tensor)).unwrap();
    let square_sum = || tensor::<B>(&[25.0], &[1]);
    for shape in [&[6][..], &[2, 3], &[1, 3, 2]] {
        let gradient = || tensor::<B>(&[3.0, 0.0, -4.0, 1.0, -0.5, 2.0], shape);
        for (max_norm, factor) in [(2.5, 0.5f32), (5.0, 1.0), (6.0, 1.0)] {
            let values = [3.0, 0.0, -4.0, 1.0, -0.5, 2.0].map(|value| value * factor);
            let expected = TensorData::new(values.to_vec(), shape.to_vec());
            let tolerance = Tolerance::<f32>::rel_abs(1e-6, 0.0);
            data(B::clip(gradient(), square_sum(), max_norm))
                .assert_approx_eq(&expected, tolerance);
            let by_primitives = primitive::clip::<B>(gradient(), square_sum(), max_norm);
            data(by_primitives).assert_approx_eq(&expected, tolerance);
        }
        // Who else holds the gradient finds it as it was.
        let held = gradient();
        let _ = B::clip(held.clone(), square_sum(), 0.5);
        data(held).assert_eq(&data(gradient()), true);
    }
    let empty = B::clip(tensor::<B>(&[], &[0, 3]), square_sum(), 1.0);
    assert_eq!(data(empty).num_elements(), 0);
}

#[cfg(feature = "flex")]
#[test]
fn on_flex() {
    all::<burn::backend::Flex>();
}

#[cfg(feature = "ndarray")]
#[test]
#[allow(deprecated)]
fn on_ndarray() {
    all::<burn::backend::NdArray>();
}

#[cfg(feature = "tch")]
#[test]
#[allow(deprecated)]
fn on_libtorch() {
    all::<burn::backend::LibTorch>();
}

#[cfg(feature = "wgpu")]
#[test]
fn on_wgpu() {
    all::<burn::backend::Wgpu>();
}

#[cfg(all(feature = "cuda", not(feature = "wgpu")))]
#[test]
fn on_cuda() {
    all::<burn::backend::Cuda>();
}
