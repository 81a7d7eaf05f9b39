// Burn marks ndarray as deprecated; while it ships it, it is supported here.
#![allow(deprecated)]

use burn::backend::NdArray;
use burn::backend::tensor::FloatTensor;

use crate::{HostTensors, Strided};

impl HostTensors for NdArray {
    fn in_memory(_tensor: &FloatTensor<Self>) -> bool {
        true
    }

    fn slice(tensor: &FloatTensor<Self>) -> Option<&[f32]> {
        let FloatTensor::<Self>::F32(storage) = tensor else { return None };
        storage.view().to_slice()
    }

    fn slice_mut(tensor: &mut FloatTensor<Self>) -> Option<&mut [f32]> {
        let FloatTensor::<Self>::F32(storage) = tensor else { return None };
        storage.ensure_owned().as_slice_mut()
    }

    fn try_strided<const D: usize>(tensor: &FloatTensor<Self>) -> Option<Strided<'_, D>> {
        let FloatTensor::<Self>::F32(storage) = tensor else { return None };
        let view = storage.view();
        let shape: [usize; D] = view.shape().try_into().ok()?;
        let strides: [isize; D] = view.strides().try_into().ok()?;
        if shape.contains(&0) {
            return Some(Strided::new(&[], 0, shape, strides));
        }
        // How far values lie before and behind the first one: a stride may be negative.
        let reach = |towards: fn(isize) -> bool| -> usize {
            let dims = shape.iter().zip(strides).filter(|(_, stride)| towards(*stride));
            dims.map(|(length, stride)| (length - 1) * stride.unsigned_abs()).sum()
        };
        let (before, behind) = (reach(|stride| stride < 0), reach(|stride| stride > 0));
        // SAFETY: an array's values within its shape and strides lie in one allocation, which lives as long
        // as the tensor, and what lies between them is initialised as they are.
        let values =
            unsafe { std::slice::from_raw_parts(view.as_ptr().sub(before), before + behind + 1) };
        Some(Strided::new(values, before, shape, strides))
    }
}
