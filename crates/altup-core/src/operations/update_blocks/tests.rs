//! Kernels against the bodies of primitive operations, at shapes where vectors and groups of threads end anywhere; and the
//! backward pass of a layer between selection and update against Burn's own.

use burn::backend::tensor::FloatTensor;
use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};

use super::super::AltUpBackend;
use super::super::tests::{assert_close, permuted, values};
use super::{Selection, primitive};
use crate::AltUp;
use crate::operations::combine_blocks::{self, combine_blocks};

/// Of every number of blocks and every block, against the folded matrix applied by primitive operations.
fn updates<B: AltUpBackend>() {
    for num_blocks in 1..=8 {
        let shape = [num_blocks, 2, 1 + 2 * num_blocks, 5 + num_blocks];
        for block in [0, num_blocks / 2, num_blocks - 1] {
            update::<B>(shape, block);
        }
    }
    // More blocks than have a kernel of the backward pass.
    update::<B>([33, 1, 2, 3], 20);
    // Several groups of threads, and sums over many tokens.
    update::<B>([2, 2, 600, 17], 1);
    update::<B>([2, 3, 700, 32], 0);
}

fn update<B: AltUpBackend>(shape: [usize; 4], block: usize) {
    let what = format!("{shape:?}, block {block}");
    let num_blocks = shape[0];
    let (p, g) = (values::<B>(&[num_blocks, num_blocks], 4), values::<B>(&[num_blocks], 5));
    let contiguous =
        [values::<B>(&shape, 1), values::<B>(&shape[1..], 2), values::<B>(&shape, 3), p];
    let other = contiguous.clone().map(permuted::<B>);
    for [state, computed, grad, p] in [contiguous, other] {
        let of_fold = || primitive::fold::<B>(p.clone(), g.clone(), block);
        let selection = || Selection::new(block);
        let (output, coefs) =
            B::update_blocks(state.clone(), computed.clone(), p.clone(), g.clone(), selection());
        assert_close::<B>(&what, coefs.clone(), of_fold());
        let expected = combine_blocks::primitive::combine_blocks::<B>(
            state.clone(),
            computed.clone(),
            of_fold(),
        );
        assert_close::<B>(&what, output, expected);

        let (of_state, of_computed, of_p, of_g) = B::update_blocks_backward(
            state.clone(),
            computed.clone(),
            coefs,
            p.clone(),
            g.clone(),
            grad.clone(),
            selection(),
        );
        let expected = combine_blocks::primitive::combine_blocks_backward::<B>(
            state.clone(),
            computed.clone(),
            of_fold(),
            grad.clone(),
        );
        assert_close::<B>(&what, of_state, expected.0);
        assert_close::<B>(&what, of_computed, expected.1);
        let (expected_p, expected_g) =
            primitive::fold_backward::<B>(expected.2, p.clone(), g.clone(), block);
        assert_close::<B>(&what, of_p, expected_p);
        assert_close::<B>(&what, of_g, expected_g);

        let selected = B::select_block(state.clone(), selection());
        assert_close::<B>(&what, selected, primitive::select_block::<B>(state.clone(), block));
        // The state is held here too: it must not change.
        let before = B::float_mul_scalar(state.clone(), 1.0.into());
        let added = B::add_to_block(state.clone(), computed.clone(), selection());
        let expected = primitive::add_to_block::<B>(before.clone(), computed, block);
        assert_close::<B>(&what, added, expected);
        assert_close::<B>(&what, state, before);
    }
}

/// Of an empty batch: gradients of coefficients are zeros.
fn an_empty_batch<B: AltUpBackend>() {
    let shape = [2, 0, 4, 8];
    let (state, computed) = (values::<B>(&shape, 1), values::<B>(&shape[1..], 2));
    let (p, g) = (values::<B>(&[2, 2], 3), values::<B>(&[2], 4));
    let zeros = |tensor: &FloatTensor<B>| B::float_mul_scalar(tensor.clone(), 0.0.into());
    let (output, coefs) =
        B::update_blocks(state.clone(), computed.clone(), p.clone(), g.clone(), Selection::new(1));
    let (_, _, of_p, of_g) = B::update_blocks_backward(
        state.clone(),
        computed.clone(),
        coefs,
        p.clone(),
        g.clone(),
        output,
        Selection::new(1),
    );
    assert_close::<B>("p", of_p, zeros(&p));
    assert_close::<B>("g", of_g, zeros(&g));
    let added = B::add_to_block(state.clone(), computed, Selection::new(1));
    assert_close::<B>("added", added, state);
}

fn all<B: AltUpBackend>() {
    updates::<B>();
    an_empty_batch::<B>();
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

/// Two layers, of which the second finds a state that is no leaf of the tape. What Burn's own operations do on the same
/// device: slices, products, sums, and `combine_blocks`.
fn gradients(
    device: &Device,
    layers: impl Fn(&AltUp, Tensor<4>, usize) -> Tensor<4>,
) -> Vec<TensorData> {
    let tensor = |shape: [usize; 4], seed: usize| {
        let count: usize = shape.iter().product();
        let value = |i: usize| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0;
        let values: Vec<f32> = (0..count).map(value).collect();
        Tensor::<4>::from_data(TensorData::new(values, shape), device)
    };
    let num_blocks = 3;
    let altups = [1, 2].map(|seed| AltUp {
        prediction_coefs: Param::from_tensor(
            tensor([1, 1, num_blocks, num_blocks], seed).reshape([num_blocks, num_blocks]),
        ),
        correction_coefs: Param::from_tensor(
            tensor([1, 1, 1, num_blocks], seed + 2).reshape([num_blocks]),
        ),
    });
    let input = tensor([num_blocks, 2, 5, 7], 5).require_grad();
    let state = layers(&altups[0], input.clone(), 2);
    let state = layers(&altups[1], state, 1);
    let grads = (state * tensor([num_blocks, 2, 5, 7], 6)).sum().backward();
    let mut all = vec![input.grad(&grads).unwrap().into_data()];
    for altup in &altups {
        all.push(altup.prediction_coefs.val().grad(&grads).unwrap().into_data());
        all.push(altup.correction_coefs.val().grad(&grads).unwrap().into_data());
    }
    all
}

/// Reads its input twice, as a layer with a residual does.
fn layer(x: Tensor<3>) -> Tensor<3> {
    x.clone() + x.tanh()
}

fn by_burn(altup: &AltUp, state: Tensor<4>, block: usize) -> Tensor<4> {
    let computed = layer(state.clone().narrow(0, block, 1).squeeze_dim(0));
    let num_blocks = altup.num_blocks();
    let p = altup.prediction_coefs.val();
    let gains = altup.correction_coefs.val().reshape([num_blocks, 1]);
    let of_blocks = p.clone() - gains.clone() * p.narrow(0, block, 1);
    combine_blocks(state, computed, Tensor::cat(vec![of_blocks, gains], 1))
}

/// On a CPU the same bits: a run of before goes on as it was.
#[cfg(any(feature = "flex", feature = "ndarray"))]
#[test]
#[allow(deprecated)]
fn gradients_are_those_of_burns_operations_bit_for_bit() {
    let devices = [
        #[cfg(feature = "flex")]
        Device::flex(),
        #[cfg(feature = "ndarray")]
        Device::ndarray(),
    ];
    for device in devices.map(Device::autodiff) {
        let found = gradients(&device, |altup, state, block| altup.forward(state, block, layer));
        for (found, expected) in found.iter().zip(&gradients(&device, by_burn)) {
            assert_eq!(found, expected, "{device:?}");
        }
    }
}

#[cfg(feature = "wgpu")]
#[test]
fn gradients_are_those_of_burns_operations_on_wgpu() {
    use burn::tensor::{DeviceKind, Tolerance};
    let device = Device::wgpu(DeviceKind::DefaultDevice).autodiff();
    let found = gradients(&device, |altup, state, block| altup.forward(state, block, layer));
    for (found, expected) in found.iter().zip(&gradients(&device, by_burn)) {
        found.assert_approx_eq::<f32>(expected, Tolerance::rel_abs(1e-5, 1e-5));
    }
}

/// The update is not asked for, and so the state has no gradient but that of its block.
#[cfg(feature = "flex")]
#[test]
fn a_layer_alone_gives_its_block_a_gradient() {
    let device = Device::flex().autodiff();
    let altup = crate::AltUpConfig::new(2).init(&device);
    let input = Tensor::<4>::ones([2, 1, 1, 3], &device).require_grad();
    let state = input.clone() * 2.0;
    let (_, beside) = altup.forward_with(state, 1, |x| (x.clone(), (x * 5.0).sum()));
    let grads = beside.backward();
    let expected = TensorData::from([[[[0f32; 3]]], [[[10f32; 3]]]]);
    input.grad(&grads).unwrap().into_data().assert_eq(&expected, true);
}
