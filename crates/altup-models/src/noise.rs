use altup_backend::for_each;
use altup_backend::philox::{DropoutMask, philox4x32_10};
use burn::tensor::{Tensor, TensorData};

use crate::operations::dropout::dropout;

/// The random numbers of one pass through a model, for dropout and for the noise of routers. Outside of training
/// there are none.
///
/// A number depends on the pass (a seed, a step and a micro-batch) and on the place in the model, and on nothing else.
/// So it is the same on every backend, and in a step that is repeated or resumed. No device's generator is used.
///
/// A model says where it is: `noise.in_stack(1).in_layer(3)`. Give every place its own coordinates: two places with the
/// same ones get the same numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Noise {
    key: Option<[u32; 2]>,
    stack: u32,
    layer: u32,
    sub_layer: u32,
}

/// What random numbers are used for within a sub-layer or a stack.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    /// Attention's weights, or the hidden activations of a feed-forward network.
    Inner = 0,
    /// What the sub-layer adds to the residual.
    Output = 1,
    /// What a router reads.
    Router = 2,
    /// A stack's output.
    StackOutput = 3,
    /// A stack's embeddings.
    Embeddings = 4,
}

const STACK_BITS: u32 = 4;
const LAYER_BITS: u32 = 20;
const SUB_LAYER_BITS: u32 = 4;

impl Noise {
    /// No random numbers: for use outside of training.
    pub fn none() -> Self {
        Self::default()
    }

    /// For one pass in training. If a step adds up the gradients of several micro-batches, number them from 0.
    pub fn training(seed: u64, step: u64, micro_batch: u32) -> Self {
        let halves = |value: u64| [value as u32, (value >> 32) as u32];
        let [low, high] = halves(step);
        let [first, second, _, _] = philox4x32_10([low, high, micro_batch, 0], halves(seed));
        Self { key: Some([first, second]), ..Self::default() }
    }

    /// Whether this is a pass in training.
    pub fn is_training(&self) -> bool {
        self.key.is_some()
    }

    /// The noise of a stack of layers: T5's encoder is 0, its decoder 1.
    ///
    /// # Panics
    ///
    /// Panics if the number is 16 or more.
    pub fn in_stack(self, stack: u32) -> Self {
        assert!(stack < 1 << STACK_BITS, "Got stack={stack}, more than noise tells apart");
        Self { stack, ..self }
    }

    /// The noise of a layer in its stack.
    ///
    /// # Panics
    ///
    /// Panics if the number is 2²⁰ or more.
    pub fn in_layer(self, layer: usize) -> Self {
        assert!(layer < 1 << LAYER_BITS, "Got layer={layer}, more than noise tells apart");
        Self { layer: layer as u32, ..self }
    }

    /// The noise of a sub-layer: T5's self-attention is 0, its cross-attention 1, its feed-forward network 2.
    ///
    /// # Panics
    ///
    /// Panics if the number is 16 or more.
    pub fn in_sub_layer(self, sub_layer: u32) -> Self {
        assert!(
            sub_layer < 1 << SUB_LAYER_BITS,
            "Got sub_layer={sub_layer}, more than noise tells apart"
        );
        Self { sub_layer, ..self }
    }

    /// The dropout mask of `place`; `None` outside of training or at rate 0.
    ///
    /// # Panics
    ///
    /// Panics if the rate isn't at least 0 and below 1.
    pub fn mask(&self, place: Place, rate: f64) -> Option<DropoutMask> {
        check_dropout(rate);
        let key = self.key.filter(|_| rate > 0.0)?;
        Some(DropoutMask::new(key, self.site(place), rate))
    }

    /// x after a dropout here: each value is 0 with probability `rate`, and times 1 / (1 − rate) otherwise. It panics as
    /// [`mask`](Self::mask) does.
    pub fn drop<const D: usize>(&self, x: Tensor<D>, place: Place, rate: f64) -> Tensor<D> {
        match self.mask(place, rate) {
            Some(mask) => dropout(x, mask),
            None => x,
        }
    }

    /// x times numbers drawn evenly between 1 − jitter and 1 + jitter.
    pub(crate) fn jitter(&self, x: Tensor<2>, jitter: f64) -> Tensor<2> {
        let Some(key) = self.key.filter(|_| jitter > 0.0) else { return x };
        let [rows, width] = x.dims();
        let site = self.site(Place::Router);
        let mut factors = vec![0f32; rows * width];
        let tasks = factors.chunks_mut(width.max(1)).enumerate().collect();
        for_each(tasks, rows * width, |(row, factors): (usize, &mut [f32])| {
            for (column, factors) in factors.chunks_mut(4).enumerate() {
                let words = philox4x32_10([column as u32, row as u32, site, 0], key);
                for (factor, word) in factors.iter_mut().zip(words) {
                    let uniform = f64::from(word) / f64::from(u32::MAX);
                    *factor = (1.0 + jitter * (2.0 * uniform - 1.0)) as f32;
                }
            }
        });
        let factors = Tensor::<2>::from_data(TensorData::new(factors, [rows, width]), &x.device());
        let dtype = x.dtype();
        x * factors.cast(dtype)
    }

    fn site(&self, place: Place) -> u32 {
        let layer = self.stack << LAYER_BITS | self.layer;
        let site = (layer << SUB_LAYER_BITS | self.sub_layer) << 4 | place as u32;
        #[cfg(test)]
        tests::USED.with_borrow_mut(|used| used.push(site));
        site
    }
}

/// Panics if `rate` isn't that of a dropout.
pub(crate) fn check_dropout(rate: f64) {
    assert!(
        (0.0..1.0).contains(&rate),
        "A dropout's rate is at least 0 and below 1. Got dropout={rate}"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::T5Config;
    use burn::tensor::{Device, Int};
    use std::cell::RefCell;

    const PLACES: [Place; 5] =
        [Place::Inner, Place::Output, Place::Router, Place::StackOutput, Place::Embeddings];

    thread_local! {
        /// The sites that this thread has drawn numbers for.
        pub(super) static USED: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
    }

    /// A pass through a whole model draws for no site twice: two dropouts with one mask would drop together.
    #[test]
    fn no_two_uses_of_a_pass_share_their_numbers() {
        let device = Device::flex();
        let config = serde_json::json!({
            "vocab_size": 12, "d_model": 8, "d_kv": 4, "num_heads": 2, "d_ff": 16, "num_layers": 2,
            "num_decoder_layers": 3, "dropout_rate": 0.1, "altup": {"num_blocks": 2},
            "moe": {"num_experts": 2, "expert_d_ff": 4, "mode": "partial", "router_jitter": 0.01},
        });
        let model = T5Config::from_json(config).unwrap().init(0, &device);
        let tokens = || Tensor::<2, Int>::from_data([[3, 4, 5, 1]], &device);
        USED.with_borrow_mut(Vec::clear);
        model.forward_with_routing(tokens(), None, tokens(), Noise::training(1, 2, 3));
        let mut used = USED.with_borrow(Vec::clone);
        // Of each stack its embeddings and output; of a sub-layer its weights or hidden activations and its output; of
        // each layer its router.
        let (encoder, decoder) = (2 + 2 * (2 * 2 + 1), 2 + 3 * (3 * 2 + 1));
        let count = used.len();
        assert_eq!(count, encoder + decoder);
        used.sort_unstable();
        used.dedup();
        assert_eq!(used.len(), count);
    }

    /// Random123's known answers and those of an independent program (`scripts/reference/philox.py`).
    #[test]
    fn words_are_the_references() {
        let text = std::fs::read("tests/fixtures/philox.json").unwrap();
        let reference: serde_json::Value = serde_json::from_slice(&text).unwrap();
        let words = |value: &serde_json::Value| -> Vec<u32> {
            let words = value.as_array().unwrap().iter();
            words.map(|word| u32::from_str_radix(word.as_str().unwrap(), 16).unwrap()).collect()
        };
        let vectors = reference["vectors"].as_array().unwrap();
        assert!(vectors.len() > 20);
        for vector in vectors {
            let counter = words(&vector["counter"]).try_into().unwrap();
            let key = words(&vector["key"]).try_into().unwrap();
            assert_eq!(philox4x32_10(counter, key).to_vec(), words(&vector["output"]));
        }
    }

    #[test]
    fn every_place_has_numbers_of_its_own() {
        let mut sites = Vec::new();
        for stack in [0, 1, 15] {
            for layer in [0, 1, 15, (1 << LAYER_BITS) - 1] {
                for sub_layer in [0, 1, 2, 15] {
                    for place in PLACES {
                        let noise = Noise::training(1, 2, 3).in_stack(stack).in_layer(layer);
                        sites.push(noise.in_sub_layer(sub_layer).site(place));
                    }
                }
            }
        }
        let count = sites.len();
        sites.sort_unstable();
        sites.dedup();
        assert_eq!(sites.len(), count);
    }

    #[test]
    fn a_pass_is_its_seed_step_and_micro_batch() {
        let mask = |noise: Noise| noise.mask(Place::Inner, 0.5);
        let pass = Noise::training(1, 2, 3);
        assert_eq!(mask(pass), mask(Noise::training(1, 2, 3)));
        for other in [(0, 2, 3), (1 << 40, 2, 3), (1, 3, 3), (1, 2 + (1 << 32), 3), (1, 2, 4)] {
            let other = Noise::training(other.0, other.1, other.2);
            assert_ne!(mask(pass), mask(other), "{other:?}");
        }
        assert_eq!(mask(Noise::none()), None);
        assert_eq!(pass.mask(Place::Inner, 0.0), None);
    }

    #[test]
    #[should_panic(expected = "Got dropout=1")]
    fn a_rate_of_one_is_a_bug() {
        crate::AttentionConfig::new(8, 4, 2).with_dropout(1.0).init(&Device::flex());
    }

    /// 4096 factors between 0.9 and 1.1 have a mean of 1 with a standard deviation of 0.0009.
    #[test]
    fn jitter_is_even_around_one() {
        let device = Device::flex();
        let ones = || Tensor::<2>::ones([64, 64], &device);
        let noise = Noise::training(1, 2, 3);
        let factors: Vec<f32> = noise.jitter(ones(), 0.1).into_data().iter().collect();
        assert!(factors.iter().all(|factor| (0.9..=1.1).contains(factor)));
        let mean = factors.iter().sum::<f32>() / 4096.0;
        assert!((mean - 1.0).abs() < 0.004, "{mean}");
        let spread = factors.iter().map(|f| (f - 1.0).abs()).fold(0.0, f32::max);
        assert!(spread > 0.099, "{spread}");
        let unchanged = Noise::none().jitter(ones(), 0.1);
        assert_eq!(unchanged.into_data(), ones().into_data());
    }
}
