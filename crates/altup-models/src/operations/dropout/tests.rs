use altup_backend::philox::DropoutMask;
use burn::backend::TensorMetadata;
use burn::tensor::{Device, Shape, Tensor, TensorData};

use super::{DropoutBackend, dropout, primitive};
use crate::operations::testing::{data, on_each_backend, permuted, values};

on_each_backend! {
    the_same_values_are_dropped,
    what_is_held_stays,
}

/// The mask's definition on the host, bit for bit.
fn the_same_values_are_dropped<B: DropoutBackend>() {
    let mask = DropoutMask::new([11, 12], 13, 0.25);
    for shape in [&[1][..], &[3, 7], &[2, 3, 65], &[2, 2, 3, 130], &[70, 300], &[0, 5]] {
        let x = || values::<B>(shape, 1);
        let width = shape[shape.len() - 1];
        let mut expected = data::<B>(x()).try_to_vec::<f32>().unwrap();
        for (row, values) in expected.chunks_mut(width).enumerate() {
            mask.apply(row, values);
        }
        let expected = TensorData::new(expected, shape.to_vec());
        assert_eq!(data::<B>(B::dropout(x(), mask)), expected, "{shape:?}");
        assert_eq!(data::<B>(primitive::dropout::<B>(x(), mask)), expected, "{shape:?}");
        if shape.len() > 1 {
            assert_eq!(data::<B>(B::dropout(permuted::<B>(x()), mask)), expected, "{shape:?}");
        }
    }
}

fn what_is_held_stays<B: DropoutBackend>() {
    let held = values::<B>(&[4, 8], 1);
    let dropped = B::dropout(held.clone(), DropoutMask::new([1, 2], 3, 0.5));
    assert_eq!(dropped.shape(), Shape::new([4, 8]));
    assert_eq!(data::<B>(held), data::<B>(values::<B>(&[4, 8], 1)));
}

/// The backward pass drops what the forward pass dropped.
#[cfg(feature = "flex")]
#[test]
fn a_gradient_has_the_same_mask() {
    let x = Tensor::<2>::ones([5, 70], &Device::flex().autodiff()).require_grad();
    let output = dropout(x.clone(), DropoutMask::new([1, 2], 3, 0.5));
    let gradients = output.clone().sum().backward();
    assert_eq!(x.grad(&gradients).unwrap().into_data(), output.into_data());
}
