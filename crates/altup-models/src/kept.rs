use burn::tensor::Device;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

/// Tensors that follow from a few numbers, the key. The last ones are kept, on their devices: steps of training ask for
/// the same again and again. Clones of a model keep them together.
#[derive(Clone, Debug)]
pub(crate) struct Kept<K, T> {
    /// The one that was asked for last is at the end.
    last: Arc<Mutex<Vec<Entry<K, T>>>>,
}

/// An encoder that shortens its sequence asks for the position biases of two lengths in turns, and where it was evaluated
/// in between another two are asked for.
const COUNT: usize = 4;

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
    /// The tensor of a key on a device, made if it is none of the last ones.
    pub(crate) fn get(&self, key: K, device: &Device, make: impl FnOnce() -> T) -> T {
        // What a panic leaves are whole entries.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |entry: &Entry<K, T>| entry.key == key && is_alike(&entry.device, device);
        let entry = match last.iter().position(same) {
            Some(place) => last.remove(place),
            None => {
                let entry = Entry { key, device: device.clone(), tensor: make() };
                if last.len() == COUNT {
                    last.remove(0);
                }
                entry
            }
        };
        let tensor = entry.tensor.clone();
        last.push(entry);
        tensor
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
    fn the_last_ones_are_kept_for_their_keys_and_devices() {
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
        // All four, and then another in the place of the one that was asked for longest ago.
        assert_eq!([get(3, &plain), get(4, &checkpointing), get(5, &plain)], [1, 4, 5]);
        assert_eq!([get(4, &autodiff), get(4, &plain)], [3, 6]);
    }
}
