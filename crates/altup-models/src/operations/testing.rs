//! What the tests of all operations share.

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::{DType, Device, TensorData, Tolerance};

/// Values between −1 and 1 that repeat after no length used here.
pub(super) fn values<B: Backend>(shape: &[usize], seed: usize) -> FloatTensor<B> {
    let value = |i: usize| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0;
    let values: Vec<f32> = (0..shape.iter().product()).map(value).collect();
    B::float_from_data(TensorData::new(values, shape.to_vec()), &B::Device::default())
}

/// Labels that are tokens, padding and −100.
pub(super) fn labels<B: Backend>(tokens: usize, vocab_size: usize) -> IntTensor<B> {
    let label = |i: usize| if i % 5 == 3 { -100 } else { ((i * 7) % vocab_size) as i32 };
    let labels: Vec<i32> = (0..tokens).map(label).collect();
    B::int_from_data(TensorData::new(labels, [tokens]), &B::Device::default())
}

/// The same values in another order of memory.
pub(super) fn permuted<B: Backend>(tensor: FloatTensor<B>) -> FloatTensor<B> {
    let (a, b) = (tensor.shape().num_dims() - 2, tensor.shape().num_dims() - 1);
    let shape = B::float_swap_dims(tensor.clone(), a, b).shape();
    B::float_swap_dims(B::float_reshape(B::float_swap_dims(tensor, a, b), shape), a, b)
}

pub(super) fn data<B: Backend>(tensor: FloatTensor<B>) -> TensorData {
    burn::tensor::read_sync(B::float_into_data(tensor)).unwrap()
}

#[track_caller]
pub(super) fn assert_close<B: Backend>(found: FloatTensor<B>, expected: FloatTensor<B>) {
    let (found, expected) = (data::<B>(found), data::<B>(expected));
    assert_eq!(found.shape(), expected.shape());
    // The largest sums are over 40 000 values, in two orders.
    found.assert_approx_eq::<f32>(&expected, Tolerance::rel_abs(1e-4, 5e-5));
}

/// Of the sum of an operation's outputs, each times a number of its own: the gradients of all inputs against
/// (f(x + h) − f(x − h)) / 2h, at values spread over each of them.
pub(super) fn assert_gradients<B: Backend, const N: usize>(
    inputs: [FloatTensor<B>; N],
    grads: [FloatTensor<B>; N],
    output_grad: &FloatTensor<B>,
    operation: impl Fn([FloatTensor<B>; N]) -> FloatTensor<B>,
) {
    const H: f32 = 1e-2;
    let numbers =
        |tensor: &FloatTensor<B>| -> Vec<f64> { data::<B>(tensor.clone()).iter().collect() };
    let output_grad = numbers(output_grad);
    let loss = |inputs| -> f64 {
        numbers(&operation(inputs)).iter().zip(&output_grad).map(|(y, grad)| y * grad).sum()
    };
    for (input, grad) in grads.iter().enumerate() {
        let grad = numbers(grad);
        for place in (0..grad.len()).step_by(grad.len().div_ceil(7)) {
            let bumped = |step: f32| {
                let mut inputs = inputs.clone();
                let shape = inputs[input].shape();
                let mut values: Vec<f32> =
                    numbers(&inputs[input]).iter().map(|&value| value as f32).collect();
                values[place] += step;
                let data = TensorData::new(values, shape);
                inputs[input] = B::float_from_data(data, &B::Device::default());
                loss(inputs)
            };
            let numeric = (bumped(H) - bumped(-H)) / (2.0 * f64::from(H));
            let error = (grad[place] - numeric).abs();
            assert!(
                error < 2e-3 * (1.0 + numeric.abs()),
                "{input}, {place}: {} {numeric}",
                grad[place]
            );
        }
    }
}

/// A device of each backend.
#[allow(deprecated)] // Burn will drop ndarray and libtorch; they are tested while they ship.
pub(crate) fn devices() -> Vec<Device> {
    vec![
        #[cfg(feature = "flex")]
        Device::flex(),
        #[cfg(feature = "ndarray")]
        Device::ndarray(),
        #[cfg(feature = "tch")]
        Device::libtorch(),
        #[cfg(feature = "wgpu")]
        Device::wgpu(burn::tensor::DeviceKind::DefaultDevice),
        #[cfg(feature = "cuda")]
        Device::cuda(0),
    ]
}

/// Runs tests that are generic over a backend where operations are kernels: those that compare them with what runs on the
/// other backends.
macro_rules! on_gpus {
    ($($test:ident),* $(,)?) => {
        #[cfg(feature = "wgpu")]
        #[test]
        fn on_wgpu() {
            $($test::<burn::backend::Wgpu>();)*
        }

        // With both features there is one type for both, and it is run above.
        #[cfg(all(feature = "cuda", not(feature = "wgpu")))]
        #[test]
        fn on_cuda() {
            $($test::<burn::backend::Cuda>();)*
        }
    };
}

/// Runs tests that are generic over a backend on all of them.
macro_rules! on_each_backend {
    ($($test:ident),* $(,)?) => {
        #[cfg(feature = "flex")]
        #[test]
        fn on_flex() {
            $($test::<burn::backend::Flex>();)*
        }

        #[cfg(feature = "ndarray")]
        #[test]
        #[allow(deprecated)] // Burn will drop it; it is tested while it ships.
        fn on_ndarray() {
            $($test::<burn::backend::NdArray>();)*
        }

        #[cfg(feature = "tch")]
        #[test]
        #[allow(deprecated)] // As above.
        fn on_libtorch() {
            $($test::<burn::backend::LibTorch>();)*
        }

        crate::operations::testing::on_gpus!($($test),*);
    };
}

pub(super) use {on_each_backend, on_gpus};

/// Whether a backend computes in bf16. Where it doesn't, the test that asks is skipped, and that is said.
#[allow(clippy::print_stderr)]
pub(super) fn has_bf16<B: Backend>() -> bool {
    let has = B::supports_dtype(&B::Device::default(), DType::BF16);
    if !has {
        eprintln!("skipped: {} has no bf16", std::any::type_name::<B>());
    }
    has
}
