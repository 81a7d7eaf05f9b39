//! Numbers on their way from a device to the host.

use burn::tensor::{ExecutionError, Tensor, TensorData, Transaction};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

type Values = Result<Vec<TensorData>, ExecutionError>;

/// Numbers that are being read: the device copies them when it gets to where the reading began, whatever it is told to do
/// after that. A CPU has them at once.
pub(crate) struct Reading(State);

enum State {
    OnTheirWay(Pin<Box<dyn Future<Output = Values> + Send>>),
    Here(Values),
}

impl Reading {
    /// Begins to read tensors, in one transfer.
    pub(crate) fn start(tensors: impl IntoIterator<Item = Tensor<1>>) -> Self {
        let transaction = tensors.into_iter().fold(Transaction::default(), Transaction::register);
        let mut reading = Box::pin(transaction.execute_async());
        // Asked once, a device is told to copy.
        match reading.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(values) => Self(State::Here(values)),
            Poll::Pending => Self(State::OnTheirWay(reading)),
        }
    }

    /// Their numbers, in their order.
    ///
    /// # Panics
    ///
    /// Panics if the device failed.
    pub(crate) fn wait(self) -> impl Iterator<Item = f64> {
        let values = match self.0 {
            State::Here(values) => values,
            State::OnTheirWay(reading) => wait_for(reading),
        };
        let values = values.unwrap_or_else(|error| panic!("the device can't be read: {error}"));
        values.into_iter().flat_map(|data| data.iter::<f64>().collect::<Vec<_>>())
    }
}

/// Sleeps until a future is done.
fn wait_for<T>(mut future: Pin<Box<dyn Future<Output = T> + Send>>) -> T {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            // Woken in between, this returns at once.
            Poll::Pending => std::thread::park(),
        }
    }
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

    /// The values are those of when the reading began, whatever becomes of the memory.
    #[cfg(feature = "wgpu")]
    #[test]
    fn what_a_gpu_does_later_changes_nothing() {
        use burn::tensor::DeviceKind;
        let device = Device::wgpu(DeviceKind::DefaultDevice);
        let mut number = Tensor::<1>::from_data([1.0f32], &device);
        let mut readings = Vec::new();
        for _ in 0..5 {
            readings.push(Reading::start([number.clone()]));
            number = number * 2.0;
        }
        let found: Vec<f64> = readings.into_iter().flat_map(Reading::wait).collect();
        assert_eq!(found, [1.0, 2.0, 4.0, 8.0, 16.0]);
    }

    #[test]
    fn a_future_that_is_woken_by_another_thread_is_waited_for() {
        let (sender, receiver) = std::sync::mpsc::channel::<Waker>();
        let waking = std::thread::spawn(move || receiver.recv().unwrap().wake());
        let mut sender = Some(sender);
        let future = std::future::poll_fn(move |context| match sender.take() {
            Some(sender) => {
                sender.send(context.waker().clone()).unwrap();
                Poll::Pending
            }
            None => Poll::Ready(7),
        });
        assert_eq!(wait_for(Box::pin(future)), 7);
        waking.join().unwrap();
    }
}
