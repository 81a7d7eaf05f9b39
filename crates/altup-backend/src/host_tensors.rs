//! Tensors whose values lie in this process's memory.

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, TensorMetadata};
use burn::tensor::{DType, Shape, TensorData, bf16};
use std::borrow::Cow;

use crate::Strided;

/// A backend whose tensors may lie in this process's memory, where a kernel reads and writes them as slices of f32.
///
/// An operation asks [`on_host`](Self::on_host) first. If the answer is no, it runs its body of primitive
/// operations. flex, ndarray and libtorch implement this trait's methods. Any other backend implements the trait with
/// an empty body; its answer is always no.
pub trait HostTensors: Backend {
    /// Whether the backend's own products are to be preferred to [`product`](crate::product) of its values, as libtorch's
    /// are. Burn's flex fills each output with zeros first and copies it afterwards, and its ndarray knows no AVX-512.
    const HAS_FAST_PRODUCTS: bool = false;

    /// The values, if they are f32 and lie row by row.
    fn slice(_tensor: &FloatTensor<Self>) -> Option<&[f32]> {
        None
    }

    /// The values to change, if they are f32 and lie row by row. If the tensor shares its values with another, ndarray
    /// copies them first; flex and libtorch return `None`.
    fn slice_mut(_tensor: &mut FloatTensor<Self>) -> Option<&mut [f32]> {
        None
    }

    /// The values, if they are bf16 and lie row by row.
    fn bf16_slice(_tensor: &FloatTensor<Self>) -> Option<&[bf16]> {
        None
    }

    /// The values of a tensor of f32 with D dimensions, in the order in which they lie in memory.
    fn try_strided<const D: usize>(_tensor: &FloatTensor<Self>) -> Option<Strided<'_, D>> {
        None
    }

    /// Whether a tensor lies in this process's memory.
    fn in_memory(_tensor: &FloatTensor<Self>) -> bool {
        false
    }

    /// Whether all tensors hold f32 in this process's memory.
    fn on_host<const N: usize>(tensors: [&FloatTensor<Self>; N]) -> bool {
        tensors.iter().all(|tensor| tensor.dtype() == DType::F32 && Self::in_memory(tensor))
    }

    /// The values in the order in which they lie in memory.
    ///
    /// # Panics
    ///
    /// Panics if the tensor isn't f32 with D dimensions on the host.
    fn strided<const D: usize>(tensor: &FloatTensor<Self>) -> Strided<'_, D> {
        Self::try_strided(tensor).unwrap_or_else(|| {
            let (dtype, shape) = (tensor.dtype(), tensor.shape());
            panic!(
                "A tensor of f32 with {D} dimensions on the host. Got {dtype:?}, shape={shape:?}"
            )
        })
    }

    /// The values row by row, copied only where they do not lie so.
    ///
    /// # Panics
    ///
    /// Panics if the values aren't f32.
    fn values(tensor: &FloatTensor<Self>) -> Cow<'_, [f32]> {
        match Self::slice(tensor) {
            Some(values) => Cow::Borrowed(values),
            None => Cow::Owned(read::<Self>(tensor).try_into_vec().expect("values of f32")),
        }
    }

    /// The values of a tensor of indices, row by row.
    fn indices(tensor: &IntTensor<Self>) -> Vec<i64> {
        let data = burn::tensor::read_sync(Self::int_into_data(tensor.clone()));
        data.expect("a tensor that can be read").iter::<i64>().collect()
    }

    /// A tensor of zeros to write, on the device of `beside`.
    fn zeros(shape: Shape, beside: &FloatTensor<Self>) -> FloatTensor<Self> {
        Self::of_values(vec![0f32; shape.num_elements()], shape, beside)
    }

    /// A tensor of these values, on the device of `beside`.
    fn of_values(values: Vec<f32>, shape: Shape, beside: &FloatTensor<Self>) -> FloatTensor<Self> {
        Self::float_from_data(TensorData::new(values, shape), &beside.device())
    }

    /// The same values in a tensor that can be written. This is `tensor` itself if nobody else holds it and it lies
    /// row by row, otherwise a copy.
    ///
    /// # Panics
    ///
    /// Panics if the values aren't f32.
    fn to_write(mut tensor: FloatTensor<Self>) -> FloatTensor<Self> {
        if Self::slice_mut(&mut tensor).is_some() {
            return tensor;
        }
        Self::of_values(Self::values(&tensor).into_owned(), tensor.shape(), &tensor)
    }

    /// The values of a tensor from [`zeros`](Self::zeros) or [`to_write`](Self::to_write).
    ///
    /// # Panics
    ///
    /// Panics if the tensor comes from elsewhere and can't be written.
    fn values_mut(tensor: &mut FloatTensor<Self>) -> &mut [f32] {
        Self::slice_mut(tensor).expect("a tensor made to be written")
    }
}

fn read<B: Backend>(tensor: &FloatTensor<B>) -> TensorData {
    let data = burn::tensor::read_sync(B::float_into_data(tensor.clone()));
    data.expect("a tensor that can be read")
}

/// Its operations record what they do and hand it to the backend inside.
impl<B: Backend, C: CheckpointStrategy> HostTensors for Autodiff<B, C> {}

/// It hands every operation to the backend of its tensors.
impl HostTensors for burn::backend::Dispatch {}

#[cfg(feature = "cube")]
impl HostTensors for burn_cubecl::CubeBackend {}

#[cfg(feature = "fusion")]
impl<B: burn::backend::fusion::FusionBackend> HostTensors for burn::backend::fusion::Fusion<B> {}

#[cfg(all(test, any(feature = "flex", feature = "ndarray")))]
#[allow(deprecated)]
mod tests {
    use super::*;

    fn tensor<B: HostTensors>() -> FloatTensor<B> {
        B::float_from_data(TensorData::new(vec![1f32, 2.0, 3.0], [3]), &Default::default())
    }

    /// What nobody else holds is written where it lies; what somebody holds stays as it is.
    fn writes_in_place<B: HostTensors>() {
        let alone = tensor::<B>();
        let place = B::slice(&alone).unwrap().as_ptr();
        let mut written = B::to_write(alone);
        assert_eq!(B::values_mut(&mut written).as_ptr(), place.cast_mut());
        let held = tensor::<B>();
        let mut copy = B::to_write(held.clone());
        B::values_mut(&mut copy)[0] = 7.0;
        assert_eq!(&*B::values(&held), [1.0, 2.0, 3.0]);
        assert_eq!(&*B::values(&copy), [7.0, 2.0, 3.0]);
    }

    #[cfg(feature = "flex")]
    #[test]
    fn writes_in_place_on_flex() {
        writes_in_place::<burn::backend::Flex>();
    }

    #[cfg(feature = "ndarray")]
    #[test]
    fn writes_in_place_on_ndarray() {
        writes_in_place::<burn::backend::NdArray>();
    }
}
