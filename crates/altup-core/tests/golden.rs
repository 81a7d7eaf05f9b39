//! The bare operation against PyTorch, and its gradients against finite differences.
//!
//! Regenerate the fixture with `python scripts/reference/generate_fixtures.py`.

use altup_core::{AltUp, AltUpConfig, SequenceAltUpConfig, average_pool, stride_and_skip};
use burn::module::Param;
use burn::tensor::{Device, Distribution, Tensor, TensorData, Tolerance};
use safetensors::SafeTensors;

fn devices() -> [Device; 2] {
    #[allow(deprecated)] // Burn will drop ndarray; it is tested while it ships.
    let ndarray = Device::ndarray();
    [Device::flex(), ndarray]
}

struct Fixture {
    bytes: Vec<u8>,
}

impl Fixture {
    fn read(name: &str) -> Self {
        // Cargo runs tests in the folder of their package.
        Self { bytes: std::fs::read(format!("tests/fixtures/{name}.safetensors")).unwrap() }
    }

    fn data(&self, name: &str) -> TensorData {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let view = file.tensor(name).unwrap();
        let values: Vec<f32> =
            view.data().as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
        TensorData::new(values, view.shape().to_vec())
    }
}

fn altup(p: Tensor<2>, g: Tensor<1>) -> AltUp {
    AltUp { prediction_coefs: Param::from_tensor(p), correction_coefs: Param::from_tensor(g) }
}

#[test]
fn values_and_gradients_equal_pytorch() {
    let fixture = Fixture::read("altup");
    for device in devices() {
        let device = device.autodiff();
        for num_blocks in 1..=4 {
            let data = |name: &str| fixture.data(&format!("k{num_blocks}.{name}"));
            let close = |tensor: TensorData, name: &str| {
                tensor.assert_approx_eq::<f32>(&data(name), Tolerance::rel_abs(1e-5, 1e-5));
            };
            let altup = altup(
                Tensor::from_data(data("prediction_coefs"), &device),
                Tensor::from_data(data("correction_coefs"), &device),
            );
            let state = Tensor::<4>::from_data(data("state"), &device).require_grad();
            let weight = Tensor::<2>::from_data(data("layer_weight"), &device).require_grad();
            let block = num_blocks - 1;
            let layer = |x: Tensor<3>| x.matmul(weight.clone().unsqueeze()).tanh();

            let predicted = altup.predict(state.clone());
            close(predicted.clone().into_data(), "predicted");
            let computed = layer(state.clone().narrow(0, block, 1).squeeze_dim(0));
            close(altup.correct(predicted, computed, block).into_data(), "output");
            let output = altup.forward(state.clone(), block, layer);
            close(output.clone().into_data(), "output");

            let output_grad = Tensor::<4>::from_data(data("output_grad"), &device);
            let gradients = (output * output_grad).sum().backward();
            close(state.grad(&gradients).unwrap().into_data(), "grad.state");
            close(weight.grad(&gradients).unwrap().into_data(), "grad.layer_weight");
            let p = altup.prediction_coefs.val().grad(&gradients).unwrap();
            close(p.into_data(), "grad.prediction_coefs");
            let g = altup.correction_coefs.val().grad(&gradients).unwrap();
            close(g.into_data(), "grad.correction_coefs");
        }
    }
}

#[test]
fn the_sequence_and_its_gradients_equal_pytorch() {
    let fixture = Fixture::read("sequence");
    for device in devices() {
        let device = device.autodiff();
        for stride in 1..=4 {
            let data = |name: &str| fixture.data(&format!("s{stride}.{name}"));
            let close = |tensor: TensorData, name: &str| {
                tensor.assert_approx_eq::<f32>(&data(name), Tolerance::rel_abs(1e-5, 1e-5));
            };
            let mut sequence = SequenceAltUpConfig::new(stride).init(&device);
            sequence.prediction_coefs =
                Param::from_tensor(Tensor::from_data(data("prediction_coefs"), &device));
            sequence.correction_coef =
                Param::from_tensor(Tensor::from_data(data("correction_coef"), &device));
            let x = Tensor::<3>::from_data(data("x"), &device).require_grad();
            let weight = Tensor::<2>::from_data(data("weight"), &device).require_grad();
            let layer = |x: Tensor<3>| x.matmul(weight.clone().unsqueeze()).tanh();

            close(sequence.predict(x.clone()).into_data(), "predicted");
            let output = sequence.forward(x.clone(), layer);
            close(output.clone().into_data(), "output");
            let output_grad = Tensor::<3>::from_data(data("output_grad"), &device);
            let gradients = (output * output_grad).sum().backward();
            close(x.grad(&gradients).unwrap().into_data(), "grad.x");
            close(weight.grad(&gradients).unwrap().into_data(), "grad.weight");
            let a = sequence.prediction_coefs.val().grad(&gradients).unwrap();
            close(a.into_data(), "grad.prediction_coefs");
            let b = sequence.correction_coef.val().grad(&gradients).unwrap();
            close(b.into_data(), "grad.correction_coef");
        }
        for stride in [2, 3] {
            let tensor = |name: String| Tensor::<3>::from_data(fixture.data(&name), &device);
            let weight = fixture.data(&format!("skip{stride}.weight"));
            let weight = Tensor::<2>::from_data(weight, &device).unsqueeze::<3>();
            let layer = |x: Tensor<3>| x.matmul(weight.clone()).tanh();
            let skipped = stride_and_skip(tensor(format!("skip{stride}.x")), stride, layer);
            skipped.into_data().assert_approx_eq::<f32>(
                &fixture.data(&format!("skip{stride}.output")),
                Tolerance::rel_abs(1e-5, 1e-5),
            );

            let padding = fixture.data(&format!("pool{stride}.padding"));
            let padding = Tensor::<2>::from_data(padding, &device).equal_elem(1.0);
            let x = tensor(format!("pool{stride}.x"));
            let (pooled, padding) = average_pool(x, Some(padding), stride);
            pooled.into_data().assert_approx_eq::<f32>(
                &fixture.data(&format!("pool{stride}.output")),
                Tolerance::rel_abs(1e-5, 1e-5),
            );
            padding.unwrap().float().into_data().assert_approx_eq::<f32>(
                &fixture.data(&format!("pool{stride}.output_padding")),
                Tolerance::rel_abs(1e-5, 1e-5),
            );
        }
    }
}

/// The one-pass update is `correct(predict(…))` at any shape.
#[test]
fn the_update_is_correct_of_predict() {
    for device in devices() {
        device.seed(3);
        let random = Distribution::Normal(0.0, 1.0);
        for (num_blocks, batch_size, seq_length, width) in
            [(1, 1, 1, 1), (2, 3, 5, 7), (3, 1, 2, 33), (8, 2, 1, 5)]
        {
            let altup = altup(
                Tensor::random([num_blocks, num_blocks], random, &device),
                Tensor::random([num_blocks], random, &device),
            );
            let shape = [num_blocks, batch_size, seq_length, width];
            let state = Tensor::<4>::random(shape, random, &device);
            let computed = Tensor::<3>::random([batch_size, seq_length, width], random, &device);
            for block in 0..num_blocks {
                let expected = altup.correct(altup.predict(state.clone()), computed.clone(), block);
                altup
                    .update(state.clone(), computed.clone(), block)
                    .into_data()
                    .assert_approx_eq(&expected.into_data(), Tolerance::<f32>::rel_abs(1e-5, 1e-5));
            }
        }
    }
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

#[test]
fn coefficients_start_at_the_identity_and_one() {
    let altup = AltUpConfig::new(3).init(&Device::flex());
    let p = altup.prediction_coefs.val().into_data();
    p.assert_eq(&TensorData::from([[1f32, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]), true);
    altup.correction_coefs.val().into_data().assert_eq(&TensorData::from([1f32; 3]), true);
}
