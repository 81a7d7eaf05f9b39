use burn::backend::Flex;
use burn::backend::tensor::FloatTensor;
use burn::tensor::{DType, bf16};

use crate::{HostTensors, Strided};

impl HostTensors for Flex {
    fn in_memory(_tensor: &FloatTensor<Self>) -> bool {
        true
    }

    fn slice(tensor: &FloatTensor<Self>) -> Option<&[f32]> {
        tensor.as_slice()
    }

    fn slice_mut(tensor: &mut FloatTensor<Self>) -> Option<&mut [f32]> {
        if tensor.dtype() != DType::F32 {
            return None;
        }
        let (start, end) = tensor.layout().contiguous_offsets()?;
        Some(&mut tensor.try_storage_mut()?[start..end])
    }

    fn bf16_slice(tensor: &FloatTensor<Self>) -> Option<&[bf16]> {
        tensor.as_slice()
    }

    fn try_strided<const D: usize>(tensor: &FloatTensor<Self>) -> Option<Strided<'_, D>> {
        if tensor.dtype() != DType::F32 {
            return None;
        }
        let layout = tensor.layout();
        let (shape, strides) = (layout.shape().as_slice(), layout.strides());
        let (shape, strides) = (shape.try_into().ok()?, strides.try_into().ok()?);
        Some(Strided::new(tensor.storage(), layout.start_offset(), shape, strides))
    }
}
