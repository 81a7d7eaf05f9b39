//! Numbers on their way from a device to the host.

#[cfg(feature = "cube")]
use burn::backend::{DispatchTensor, DispatchTensorKind};
use burn::tensor::{ExecutionError, Tensor, TensorData, Transaction, read_sync};

#[cfg(feature = "cube")]
use crate::cube::Transfer;

/// Numbers that are being read. On a GPU with [kernels](crate::has_kernels) the copy stands behind the work that the GPU was
/// given before: later work doesn't change the numbers, and nobody waits for them before [`wait`](Self::wait) or the end of
/// this. A CPU has them at once; libtorch waits for its GPU.
pub struct Reading(State);

enum State {
    Here(Result<Vec<TensorData>, ExecutionError>),
    #[cfg(feature = "cube")]
    OnTheirWay(Transfer),
}

impl std::fmt::Debug for Reading {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reading").finish_non_exhaustive()
    }
}

impl Reading {
    /// Begins to read tensors of one device, in one transfer.
    pub fn start(tensors: impl IntoIterator<Item = Tensor<1>>) -> Self {
        let tensors: Vec<_> = tensors.into_iter().collect();
        #[cfg(feature = "cube")]
        if let Some(transfer) = start_transfer(&tensors) {
            return Self(State::OnTheirWay(transfer));
        }
        let transaction = tensors.into_iter().fold(Transaction::default(), Transaction::register);
        Self(State::Here(read_sync(transaction.execute_async())))
    }

    /// Their numbers, in their order.
    ///
    /// # Panics
    ///
    /// Panics if the device failed.
    #[allow(clippy::infallible_destructuring_match)] // Without kernels for GPUs there is one state.
    pub fn wait(self) -> impl Iterator<Item = f64> {
        let values = match self.0 {
            State::Here(values) => values,
            #[cfg(feature = "cube")]
            State::OnTheirWay(transfer) => transfer.wait(),
        };
        let values = values.unwrap_or_else(|error| panic!("the device can't be read: {error}"));
        values.into_iter().flat_map(|data| data.iter::<f64>().collect::<Vec<_>>())
    }
}

/// None if the tensors are on no device of CubeCL's. Burn's own asynchronous reading is not used there: on CUDA it waits
/// for the device as soon as it is polled, and before that nothing is copied.
#[cfg(feature = "cube")]
fn start_transfer(tensors: &[Tensor<1>]) -> Option<Transfer> {
    let of_cube = |tensor: &Tensor<1>| {
        let DispatchTensor { kind, .. } = tensor.clone().into_dispatch();
        match kind {
            DispatchTensorKind::Cube(tensor) => Some(tensor.float()),
            DispatchTensorKind::Autodiff(kind) => match *kind {
                DispatchTensorKind::Cube(tensor) => Some(tensor.autodiff_inner()),
                #[allow(unreachable_patterns)] // Without another backend.
                _ => None,
            },
            #[allow(unreachable_patterns)] // As above.
            _ => None,
        }
    };
    let tensors: Vec<_> = tensors.iter().map(of_cube).collect::<Option<_>>()?;
    #[cfg(feature = "fusion")]
    let tensors = tensors.into_iter().map(|tensor| {
        tensor.client.clone().resolve_tensor_float::<burn_cubecl::CubeBackend>(tensor)
    });
    Transfer::start(tensors.into_iter())
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    #[cfg(feature = "flex")]
    #[test]
    fn numbers_come_in_their_order() {
        let device = Device::flex();
        let number = |value: f32| Tensor::<1>::from_data([value], &device);
        let reading = Reading::start([number(1.5), number(-2.0), number(f32::INFINITY)]);
        assert_eq!(reading.wait().collect::<Vec<_>>(), [1.5, -2.0, f64::INFINITY]);
        assert_eq!(Reading::start([]).wait().count(), 0);
    }

    /// The values are those of when the reading began, whatever becomes of the memory; of a tensor with autodiff, and of one
    /// that lies apart in memory.
    #[cfg(feature = "wgpu")]
    #[test]
    fn what_a_gpu_does_later_changes_nothing() {
        use burn::tensor::DeviceKind;
        let device = Device::wgpu(DeviceKind::DefaultDevice);
        let mut number = Tensor::<1>::from_data([1.0f32], &device);
        let rows = Tensor::<2>::from_data([[1.0f32, 2.0, 3.0], [4.0, 5.0, 6.0]], &device);
        let column = rows.clone().swap_dims(0, 1).narrow(0, 1, 1).squeeze_dim::<1>(0);
        let tracked = Tensor::<1>::from_data([7.0f32], &device.clone().autodiff()).require_grad();
        let mut readings = vec![Reading::start([number.clone(), column, tracked * 2.0])];
        for _ in 0..4 {
            number = number * 2.0;
            readings.push(Reading::start([number.clone()]));
        }
        let found: Vec<f64> = readings.into_iter().flat_map(Reading::wait).collect();
        assert_eq!(found, [1.0, 2.0, 5.0, 14.0, 2.0, 4.0, 8.0, 16.0]);
        // Memory of one that nobody asks for is whole again, and so is a single value out of a column.
        for value in 0..10 {
            drop(Reading::start([number.clone()]));
            let single = rows.clone().slice([0..1, 2..3]).swap_dims(0, 1).reshape([1]);
            let reading = Reading::start([number.clone() + value, single]);
            assert_eq!(reading.wait().collect::<Vec<_>>(), [16.0 + f64::from(value), 3.0]);
        }
    }
}
