use burn::tensor::Device;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

/// A tensor that follows from a few numbers, the key. The last one is kept, on its device: steps of training ask for the
/// same again and again. Clones of a model keep one together.
#[derive(Clone, Debug)]
pub(crate) struct Kept<K, T> {
    last: Arc<Mutex<Option<Entry<K, T>>>>,
}

#[derive(Clone, Debug)]
struct Entry<K, T> {
    key: K,
    device: Device,
    tensor: T,
}

impl<K, T> Default for Kept<K, T> {
    fn default() -> Self {
        Self { last: Arc::default() }
    }
}

impl<K: PartialEq, T: Clone> Kept<K, T> {
    /// The tensor of a key on a device, made if it is another than the last one.
    pub(crate) fn get(&self, key: K, device: &Device, make: impl FnOnce() -> T) -> T {
        // What a panic leaves is a whole entry.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match last.as_ref().filter(|last| last.key == key && is_alike(&last.device, device)) {
            Some(last) => last.tensor.clone(),
            None => {
                let tensor = make();
                *last = Some(Entry { key, device: device.clone(), tensor: tensor.clone() });
                tensor
            }
        }
    }
}

/// Whether tensors of both go together: autodiff and how it keeps activations are a part of a device here.
fn is_alike(one: &Device, other: &Device) -> bool {
    let strategy = Device::gradient_checkpointing_strategy;
    one == other && strategy(one) == strategy(other)
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;

    #[test]
    fn the_last_one_is_kept_for_its_key_and_device() {
        let kept: Kept<usize, usize> = Kept::default();
        let plain = Device::flex();
        let autodiff = Device::flex().autodiff();
        let checkpointing = Device::flex().autodiff().gradient_checkpointing();
        let mut made = 0;
        let mut get = |key, device| {
            kept.clone().get(key, device, || {
                made += 1;
                made
            })
        };
        assert_eq!([get(3, &plain), get(3, &plain), get(4, &plain)], [1, 1, 2]);
        assert_eq!([get(4, &autodiff), get(4, &checkpointing)], [3, 4]);
        assert_eq!([get(4, &checkpointing), get(3, &plain)], [4, 5]);
    }
}
