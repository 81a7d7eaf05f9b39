//! Ours against Burn's own optimizers.

use burn::module::{Module, Param, ParamId};
use burn::optim::{AdafactorConfig, AdamWConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::{Device, Tensor, TensorData, Tolerance};

use crate::{OptimizerConfig, OptimizerKind};

#[derive(Module, Debug)]
struct Parameters {
    stack: Param<Tensor<3>>,
    wide: Param<Tensor<2>>,
    tall: Param<Tensor<2>>,
    vector: Param<Tensor<1>>,
}

#[derive(Module, Debug)]
struct Matrix {
    weight: Param<Tensor<2>>,
}

fn values<const D: usize>(shape: [usize; D], seed: usize, device: &Device) -> Tensor<D> {
    let value = |i: usize| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0;
    let values: Vec<f32> = (0..shape.iter().product()).map(value).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

fn parameters(device: &Device) -> Parameters {
    let param = |seed| values([3, 5, 7], seed, device);
    Parameters {
        stack: Param::initialized(ParamId::new(), param(1)),
        wide: Param::initialized(ParamId::new(), values([3, 40_000], 2, device)),
        tall: Param::initialized(ParamId::new(), values([700, 33], 3, device)),
        vector: Param::initialized(ParamId::new(), values([50], 4, device)),
    }
}

/// Five steps of ours, and of Burn's on a device that may be another, at shapes where vectors and tasks end anywhere.
fn steps_are_burns(
    ours: impl Fn() -> ModuleOptimizer,
    burns: impl Fn() -> ModuleOptimizer,
    device: &Device,
    device_of_burns: &Device,
) {
    let start = parameters(&device.clone().autodiff());
    let start_of_burns = parameters(&device_of_burns.clone().autodiff());
    let train = |mut optimizer: ModuleOptimizer, start: &Parameters, device: &Device| {
        let mut model = start.clone();
        for seed in 0..5 {
            let mut grads = GradientsParams::new();
            grads.register::<3>(model.stack.id, values([3, 5, 7], 10 + seed, device));
            grads.register::<2>(model.wide.id, values([3, 40_000], 20 + seed, device));
            grads.register::<2>(model.tall.id, values([700, 33], 30 + seed, device));
            grads.register::<1>(model.vector.id, values([50], 40 + seed, device));
            model = optimizer.step(0.1, model, grads);
        }
        model
    };
    let found = train(ours(), &start, device);
    let expected = train(burns(), &start_of_burns, device_of_burns);
    let tolerance = Tolerance::<f32>::rel_abs(1e-4, 1e-5);
    let check = |found: TensorData, expected: TensorData| {
        found.assert_approx_eq(&expected, tolerance);
    };
    check(found.stack.val().into_data(), expected.stack.val().into_data());
    check(found.wide.val().into_data(), expected.wide.val().into_data());
    check(found.tall.val().into_data(), expected.tall.val().into_data());
    check(found.vector.val().into_data(), expected.vector.val().into_data());
    // What another holds stays.
    let unchanged = parameters(device);
    check(start.tall.val().into_data(), unchanged.tall.val().into_data());
}

/// Beside gradients whose mean square makes that of a row without any vanish.
fn a_row_without_a_gradient_stays(device: &Device) {
    let weights = Tensor::from_data([[1.0, 2.0], [3.0, 4.0]], &device.clone().autodiff());
    let model = Matrix { weight: Param::initialized(ParamId::new(), weights) };
    let mut grads = GradientsParams::new();
    let grad = Tensor::<2>::from_data([[0.0, 0.0], [1e9, -1e9]], device);
    grads.register::<2>(model.weight.id, grad);
    let model = OptimizerConfig::default().init().step(0.1, model, grads);
    let found = model.weight.val().into_data().try_into_vec::<f32>().unwrap();
    assert_eq!(found[..2], [1.0, 2.0]);
    assert!(found[2] < 3.0 && found[3] > 4.0, "{found:?}");
}

fn on(device: &Device, device_of_burns: &Device) {
    a_row_without_a_gradient_stays(device);
    for weight_decay in [0.0, 0.05] {
        let config = |kind| OptimizerConfig {
            kind,
            weight_decay: f64::from(weight_decay),
            ..OptimizerConfig::default()
        };
        steps_are_burns(
            || config(OptimizerKind::AdamW).init(),
            || AdamWConfig::new().with_epsilon(1e-8).with_weight_decay(weight_decay).init(),
            device,
            device_of_burns,
        );
        let adafactor = || AdafactorConfig::new().with_relative_step(false);
        steps_are_burns(
            || config(OptimizerKind::Adafactor).init(),
            || adafactor().with_weight_decay(weight_decay).init(),
            device,
            device_of_burns,
        );
    }
}

#[cfg(feature = "flex")]
#[test]
fn on_flex() {
    on(&Device::flex(), &Device::flex());
}

#[cfg(feature = "ndarray")]
#[test]
#[allow(deprecated)] // Burn will drop ndarray; it is tested while it ships.
fn on_ndarray() {
    on(&Device::ndarray(), &Device::ndarray());
}

/// Burn's many kernels for a GPU take a driver in software long.
#[cfg(all(feature = "wgpu", feature = "flex"))]
#[test]
fn on_wgpu() {
    on(&Device::wgpu(burn::tensor::DeviceKind::DefaultDevice), &Device::flex());
}

#[cfg(all(feature = "cuda", feature = "flex"))]
#[test]
fn on_cuda() {
    on(&Device::cuda(0), &Device::flex());
}

/// Which runs the step as a chain of primitive operations.
#[cfg(feature = "tch")]
#[test]
#[allow(deprecated)] // As ndarray.
fn on_libtorch() {
    a_row_without_a_gradient_stays(&Device::libtorch());
}

/// The norm of gradients of all shapes, the same bits each time.
#[cfg(all(feature = "wgpu", feature = "flex"))]
#[test]
fn a_norm_on_wgpu_is_that_of_flex() {
    let norm = |device: &Device| {
        let model = parameters(device);
        let mut grads = GradientsParams::new();
        grads.register::<3>(model.stack.id, values([3, 5, 7], 10, device));
        grads.register::<2>(model.wide.id, values([3, 40_000], 20, device));
        grads.register::<2>(model.tall.id, values([700, 33], 30, device));
        grads.register::<1>(model.vector.id, values([50], 40, device));
        crate::global_norm(&model, &grads)
    };
    let wgpu = Device::wgpu(burn::tensor::DeviceKind::DefaultDevice);
    let (found, expected) = (norm(&wgpu), norm(&Device::flex()));
    assert!((found - expected).abs() < 1e-5 * expected, "{found} {expected}");
    assert_eq!(norm(&wgpu).to_bits(), found.to_bits());
}
