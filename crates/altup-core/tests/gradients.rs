//! Gradients against finite differences, and where the coefficients start.
//!
//! Golden values, on every backend: `altup-train`'s conformance suite.

use altup_core::{AltUp, AltUpConfig, SequenceAltUpConfig};
use burn::module::Param;
use burn::tensor::{Device, Distribution, Tensor, TensorData};

fn altup(p: Tensor<2>, g: Tensor<1>) -> AltUp {
    AltUp { prediction_coefs: Param::from_tensor(p), correction_coefs: Param::from_tensor(g) }
}

/// d loss / d θ against (loss(θ + h) − loss(θ − h)) / 2h for p, g and an input.
#[test]
fn gradients_agree_with_finite_differences() {
    const H: f32 = 1e-2;
    let device = Device::flex().autodiff();
    device.seed(9);
    let random = Distribution::Normal(0.0, 0.5);
    let p = Tensor::<2>::random([2, 2], random, &device);
    let g = Tensor::<1>::random([2], random, &device);
    let state = Tensor::<4>::random([2, 1, 2, 3], random, &device);
    // Detached: the numeric side needs values alone.
    let loss = |p: Tensor<2>, g: Tensor<1>, state: Tensor<4>| {
        altup(p.detach(), g.detach()).forward(state, 1, |x| x.clone() * x).square().sum()
    };
    let (p, g, state) = (p.require_grad(), g.require_grad(), state.require_grad());
    let layer = altup(p.clone(), g.clone());
    let gradients = layer.forward(state.clone(), 1, |x| x.clone() * x).square().sum().backward();
    let check = |analytic: f32, plus: Tensor<1>, minus: Tensor<1>| {
        let numeric = (plus - minus).into_scalar::<f32>() / (2.0 * H);
        let bound = 1e-3 * (1.0 + numeric.abs());
        assert!((analytic - numeric).abs() < bound, "{analytic} against {numeric}");
    };
    let first = |data: TensorData| data.iter::<f32>().next().unwrap();
    let bump2 = Tensor::<2>::from_data([[H, 0.0], [0.0, 0.0]], &device);
    check(
        first(layer.prediction_coefs.val().grad(&gradients).unwrap().into_data()),
        loss(p.clone() + bump2.clone(), g.clone(), state.clone()),
        loss(p.clone() - bump2, g.clone(), state.clone()),
    );
    let bump1 = Tensor::<1>::from_data([H, 0.0], &device);
    check(
        first(layer.correction_coefs.val().grad(&gradients).unwrap().into_data()),
        loss(p.clone(), g.clone() + bump1.clone(), state.clone()),
        loss(p.clone(), g.clone() - bump1, state.clone()),
    );
    let mut bump = vec![0.0; 12];
    bump[0] = H;
    let bump = Tensor::<4>::from_data(TensorData::new(bump, [2, 1, 2, 3]), &device);
    check(
        first(state.grad(&gradients).unwrap().into_data()),
        loss(p.clone(), g.clone(), state.clone() + bump.clone()),
        loss(p, g, state - bump),
    );
}

/// The same for a₁, a₂, b and an anchor of Sequence-AltUp: 5 tokens at stride 2.
#[test]
fn gradients_along_the_sequence_agree_with_finite_differences() {
    const H: f32 = 1e-2;
    let device = Device::flex().autodiff();
    let parameters = || -> [Vec<f32>; 3] {
        [vec![0.7, -0.4], vec![1.3], (0..10).map(|i| ((i * 7) % 10) as f32 / 10.0 - 0.4).collect()]
    };
    let loss = |[a, b, x]: [Vec<f32>; 3]| {
        let mut layer = SequenceAltUpConfig::new(2).init(&device);
        let a = Tensor::<1>::from_data(TensorData::new(a, [2]), &device).require_grad();
        let b = Tensor::<1>::from_data(TensorData::new(b, [1]), &device).require_grad();
        let x = Tensor::<3>::from_data(TensorData::new(x, [1, 5, 2]), &device).require_grad();
        layer.prediction_coefs = Param::from_tensor(a);
        layer.correction_coef = Param::from_tensor(b);
        let loss = layer.forward(x.clone(), |x| x.clone() * x).square().sum();
        (loss, layer, x)
    };
    let (found, layer, x) = loss(parameters());
    let gradients = found.backward();
    let vector = |data: TensorData| data.iter::<f32>().collect::<Vec<_>>();
    let analytic = [
        vector(layer.prediction_coefs.val().grad(&gradients).unwrap().into_data()),
        vector(layer.correction_coef.val().grad(&gradients).unwrap().into_data()),
        vector(x.grad(&gradients).unwrap().into_data()),
    ];
    for (parameter, grads) in analytic.iter().enumerate() {
        for (place, grad) in grads.iter().enumerate() {
            let bumped = |step: f32| {
                let mut parameters = parameters();
                parameters[parameter][place] += step;
                loss(parameters).0.into_scalar::<f32>()
            };
            let numeric = (bumped(H) - bumped(-H)) / (2.0 * H);
            let bound = 2e-3 * (1.0 + numeric.abs());
            assert!((grad - numeric).abs() < bound, "{parameter}, {place}: {grad}, {numeric}");
        }
    }
}

#[test]
fn coefficients_start_at_the_identity_and_one() {
    let altup = AltUpConfig::new(3).init(&Device::flex());
    let p = altup.prediction_coefs.val().into_data();
    p.assert_eq(&TensorData::from([[1f32, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]), true);
    altup.correction_coefs.val().into_data().assert_eq(&TensorData::from([1f32; 3]), true);
}
