// Burn marks libtorch as deprecated; while it ships it, it is supported here.
#![allow(deprecated)]

use burn::backend::LibTorch;
use burn::backend::TensorMetadata;
use burn::backend::libtorch::LibTorchDevice;
use burn::backend::ops::FloatTensorOps;
use burn::backend::tensor::FloatTensor;
use burn::tensor::{Element, FloatDType, Shape, bf16};
use std::slice;

use crate::{HostTensors, Strided};

impl HostTensors for LibTorch {
    const HAS_FAST_PRODUCTS: bool = true;

    fn in_memory(tensor: &FloatTensor<Self>) -> bool {
        tensor.device() == LibTorchDevice::Cpu
    }

    fn slice(tensor: &FloatTensor<Self>) -> Option<&[f32]> {
        contiguous(tensor)
    }

    fn slice_mut(tensor: &mut FloatTensor<Self>) -> Option<&mut [f32]> {
        if !tensor.can_mut() {
            return None;
        }
        let (first, length) = place::<f32>(tensor)?;
        // SAFETY: as in `contiguous`; and nobody else holds the values, as Burn counts their holders.
        Some(if length == 0 {
            &mut []
        } else {
            unsafe { slice::from_raw_parts_mut(first, length) }
        })
    }

    fn bf16_slice(tensor: &FloatTensor<Self>) -> Option<&[bf16]> {
        contiguous(tensor)
    }

    fn try_strided<const D: usize>(tensor: &FloatTensor<Self>) -> Option<Strided<'_, D>> {
        if !Self::on_host([tensor]) {
            return None;
        }
        let shape = tensor.shape();
        let shape: [usize; D] = shape.as_slice().try_into().ok()?;
        let strides: [i64; D] = tensor.tensor.stride().try_into().ok()?;
        let strides = strides.map(|stride| stride as isize);
        if shape.contains(&0) {
            return Some(Strided::new(&[], 0, shape, strides));
        }
        let dims = shape.iter().zip(strides);
        let behind: usize = dims.map(|(length, stride)| (length - 1) * stride as usize).sum();
        let first = tensor.tensor.data_ptr() as *const f32;
        // SAFETY: libtorch's strides are never negative, and all values within a tensor's shape and strides lie
        // in one allocation, which lives as long as the tensor.
        let values = unsafe { slice::from_raw_parts(first, behind + 1) };
        Some(Strided::new(values, 0, shape, strides))
    }

    /// Libtorch's own: values of ours would be copied.
    fn zeros(shape: Shape, beside: &FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_zeros(shape, &beside.device(), FloatDType::F32)
    }
}

/// The values row by row, if they are of this type, lie so, and on the CPU.
fn contiguous<T: Element>(tensor: &FloatTensor<LibTorch>) -> Option<&[T]> {
    let (first, length) = place::<T>(tensor)?;
    // SAFETY: a contiguous tensor of this type on the CPU, whose values live as long as the tensor.
    Some(if length == 0 { &[] } else { unsafe { slice::from_raw_parts(first, length) } })
}

/// Where the values lie and how many they are, under the same conditions.
fn place<T: Element>(tensor: &FloatTensor<LibTorch>) -> Option<(*mut T, usize)> {
    let readable = tensor.dtype() == T::dtype() && LibTorch::in_memory(tensor);
    (readable && tensor.tensor.is_contiguous())
        .then(|| (tensor.tensor.data_ptr() as *mut T, tensor.tensor.numel()))
}
