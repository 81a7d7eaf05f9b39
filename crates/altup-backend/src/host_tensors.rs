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

    /// The values of a tensor of f32 with four dimensions, in the order in which they lie in memory.
    fn try_strided(_tensor: &FloatTensor<Self>) -> Option<Strided<'_>> {
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
    /// Panics if the tensor isn't f32 with four dimensions on the host.
    fn strided(tensor: &FloatTensor<Self>) -> Strided<'_> {
        Self::try_strided(tensor).expect("a tensor of f32 with four dimensions on the host")
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
        let values = vec![0f32; shape.num_elements()];
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
        let data = TensorData::new(Self::values(&tensor).into_owned(), tensor.shape());
        Self::float_from_data(data, &tensor.device())
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
