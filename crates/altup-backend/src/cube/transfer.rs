//! Copies from a device to the host that nobody waits for yet.

use burn::tensor::{Bytes, DType, ExecutionError, Shape, TensorData};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::future::{DynFut, block_on};
use cubecl::server::{CopyDescriptor, ServerError};
use std::future::poll_fn;
use std::task::{Context, Poll, Waker};

/// Tensors of one dimension that are being copied to the host, as they were when the copying began.
pub(crate) struct Transfer {
    tensors: Vec<(Shape, DType)>,
    /// Until somebody waits for them.
    bytes: Option<DynFut<Result<Vec<Bytes>, ServerError>>>,
}

impl Transfer {
    /// Tells the device to copy tensors of it. None if there are none.
    pub(crate) fn start(tensors: impl Iterator<Item = CubeTensor>) -> Option<Self> {
        let tensors: Vec<_> = tensors.map(into_contiguous).collect();
        let client = tensors.first()?.client.clone();
        let of_tensor = |tensor: &CubeTensor| (tensor.meta.shape().clone(), tensor.dtype);
        let described = tensors.iter().map(of_tensor).collect();
        let descriptors = tensors.into_iter().map(|tensor| {
            // The stride of a single value may be anything, of which the device knows only 1.
            let (shape, elem_size) = (tensor.meta.shape().clone(), tensor.elem_size());
            CopyDescriptor::new(tensor.handle.binding(), shape, [1].into(), elem_size)
        });
        let descriptors = descriptors.collect();
        let mut bytes: DynFut<_> = Box::pin(async move {
            // The device is told by this call. What it returns waits for the device where it is asked first, on CUDA.
            let reading = client.read_tensor_async(descriptors);
            let mut is_told = false;
            poll_fn(|_| match std::mem::replace(&mut is_told, true) {
                false => Poll::Pending,
                true => Poll::Ready(()),
            })
            .await;
            reading.await
        });
        let told = bytes.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        debug_assert!(told.is_pending());
        Some(Self { tensors: described, bytes: Some(bytes) })
    }

    /// What has come.
    ///
    /// # Errors
    ///
    /// If the device failed.
    pub(crate) fn wait(mut self) -> Result<Vec<TensorData>, ExecutionError> {
        let bytes = self.bytes.take().expect("nobody has waited before");
        let bytes =
            block_on(bytes).map_err(|error| ExecutionError::with_context(error.to_string()))?;
        let tensors = std::mem::take(&mut self.tensors).into_iter().zip(bytes);
        let data = |((shape, dtype), bytes)| TensorData::from_bytes(bytes, shape, dtype);
        Ok(tensors.map(data).collect())
    }
}

impl Drop for Transfer {
    /// Waits: the device may still write where the copy is to be, and CubeCL would give that memory to others.
    fn drop(&mut self) {
        if let Some(bytes) = self.bytes.take().filter(|_| !std::thread::panicking()) {
            drop(block_on(bytes));
        }
    }
}
