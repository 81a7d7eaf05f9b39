//! Gradients against finite differences, and where the coefficients start.
//!
//! Golden values, on every backend: `altup-train`'s conformance suite.

use altup_core::{AltUp, AltUpConfig, SequenceAltUpConfig};
use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};

/// d loss / d θ against (loss(θ + h) − loss(θ − h)) / 2h for every entry of p, g and the state, whichever block the
/// layer computes on.
#[test]
fn gradients_agree_with_finite_differences() {
    const H: f32 = 1e-2;
    let device = Device::flex().autodiff();
    let parameters = || -> [Vec<f32>; 3] {
        [
            vec![0.7, -0.4, 0.3, 1.1],
            vec![1.3, -0.6],
            (0..12).map(|i| ((i * 7) % 12) as f32 / 10.0 - 0.5).collect(),
        ]
    };
    for block in [0, 1] {
        let loss = |[p, g, state]: [Vec<f32>; 3]| {
            let p = Tensor::<2>::from_data(TensorData::new(p, [2, 2]), &device).require_grad();
            let g = Tensor::<1>::from_data(TensorData::new(g, [2]), &device).require_grad();
            let state = TensorData::new(state, [2, 1, 2, 3]);
            let state = Tensor::<4>::from_data(state, &device).require_grad();
            let layer = AltUp {
                prediction_coefs: Param::from_tensor(p),
                correction_coefs: Param::from_tensor(g),
            };
            let loss = layer.forward(state.clone(), block, |x| x.clone() * x).square().sum();
            (loss, layer, state)
        };
        let (found, layer, state) = loss(parameters());
        let gradients = found.backward();
        let vector = |data: TensorData| data.iter::<f32>().collect::<Vec<_>>();
        let analytic = [
            vector(layer.prediction_coefs.val().grad(&gradients).unwrap().into_data()),
            vector(layer.correction_coefs.val().grad(&gradients).unwrap().into_data()),
            vector(state.grad(&gradients).unwrap().into_data()),
        ];
        compare(&analytic, H, |parameter, place, step| {
            let mut parameters = parameters();
            parameters[parameter][place] += step;
            loss(parameters).0.into_scalar::<f32>()
        });
    }
}

fn compare(analytic: &[Vec<f32>], step: f32, loss: impl Fn(usize, usize, f32) -> f32) {
    for (parameter, grads) in analytic.iter().enumerate() {
        for (place, grad) in grads.iter().enumerate() {
            let numeric =
                (loss(parameter, place, step) - loss(parameter, place, -step)) / (2.0 * step);
            let bound = 2e-3 * (1.0 + numeric.abs());
            assert!((grad - numeric).abs() < bound, "{parameter}, {place}: {grad}, {numeric}");
        }
    }
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
    compare(&analytic, H, |parameter, place, step| {
        let mut parameters = parameters();
        parameters[parameter][place] += step;
        loss(parameters).0.into_scalar::<f32>()
    });
}

#[test]
fn coefficients_start_at_the_identity_and_one() {
    let altup = AltUpConfig::new(3).init(&Device::flex());
    let p = altup.prediction_coefs.val().into_data();
    p.assert_eq(&TensorData::from([[1f32, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]), true);
    altup.correction_coefs.val().into_data().assert_eq(&TensorData::from([1f32; 3]), true);
}
