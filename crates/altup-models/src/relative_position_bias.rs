use burn::config::Config;
use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor, TensorData};
use std::ops::Range;

use crate::initialization::normal;
use crate::kept::Kept;
use crate::operations::position_bias::position_bias;

/// Configuration of [`RelativePositionBias`].
#[derive(Config, Debug)]
pub struct RelativePositionBiasConfig {
    /// Whether positions also attend to later ones, as in an encoder.
    pub bidirectional: bool,
    /// The number of heads.
    pub num_heads: usize,
    /// The number of buckets; distances in one bucket share a bias. Default: 32
    #[config(default = 32)]
    pub num_buckets: usize,
    /// Distance from which on all positions share the last bucket. Default: 128
    #[config(default = 128)]
    pub max_distance: usize,
    /// Standard deviation of the initial table; T5's is d_model^−½. Default: 0.0
    #[config(default = 0.0)]
    pub initial_std: f64,
}

/// T5's relative position bias: a learned number per head and bucket of distances, added to the
/// attention scores. Layer 0 owns the table; all layers of the stack share it.
///
/// Should be created with [`RelativePositionBiasConfig`].
#[derive(Module, Debug)]
pub struct RelativePositionBias {
    /// `[num_buckets, num_heads]`.
    pub weight: Param<Tensor<2>>,
    bidirectional: bool,
    max_distance: usize,
    /// The buckets of whole stretches of positions, as in training: those of queries and keys, and the stride.
    #[module(skip)]
    buckets: Kept<(Range<usize>, Range<usize>, [usize; 2]), Tensor<1, Int>>,
}

impl RelativePositionBiasConfig {
    /// Initializes [`RelativePositionBias`].
    ///
    /// # Panics
    ///
    /// Panics if there are fewer than two buckets in a direction, or no distance for the logarithmic ones.
    pub fn init(&self, device: &Device) -> RelativePositionBias {
        let Self { bidirectional, num_buckets, max_distance, .. } = *self;
        let of_direction = if bidirectional { num_buckets / 2 } else { num_buckets };
        assert!(
            of_direction >= 2 && max_distance > of_direction / 2,
            "Buckets must cover distances. Got num_buckets={num_buckets}, max_distance={max_distance}, \
             bidirectional={bidirectional}"
        );
        RelativePositionBias {
            weight: normal(self.initial_std).init([num_buckets, self.num_heads], device),
            bidirectional,
            max_distance,
            buckets: Kept::default(),
        }
    }
}

impl RelativePositionBias {
    /// The bias of each query position on each key position, in f32.
    ///
    /// # Shapes
    ///
    /// - output: `[1, num_heads, queries, keys]`
    pub fn forward(&self, queries: Range<usize>, keys: Range<usize>, device: &Device) -> Tensor<4> {
        self.strided(queries, keys, 1, device)
    }

    /// The bias where only every `stride`-th position is there: those of `queries` and `keys`, times
    /// `stride`.
    ///
    /// # Shapes
    ///
    /// - output: `[1, num_heads, queries, keys]`
    pub fn strided(
        &self,
        queries: Range<usize>,
        keys: Range<usize>,
        stride: usize,
        device: &Device,
    ) -> Tensor<4> {
        let lengths = [queries.len(), keys.len()];
        let make = || self.buckets(&queries, &keys, stride, device);
        let buckets = match queries.len() {
            // Of a token that is decoded there are others each time.
            0 | 1 => make(),
            _ => {
                let [num_buckets, _] = self.weight.dims();
                self.buckets.get(
                    (queries.clone(), keys.clone(), [stride, num_buckets]),
                    device,
                    make,
                )
            }
        };
        position_bias(self.weight.val(), buckets, lengths)
    }

    /// The bucket of each query and key, `[queries · keys]`.
    fn buckets(
        &self,
        queries: &Range<usize>,
        keys: &Range<usize>,
        stride: usize,
        device: &Device,
    ) -> Tensor<1, Int> {
        let [num_buckets, _] = self.weight.dims();
        // A bucket depends on the distance alone: they are computed once a distance.
        let bucket_of: Vec<i32> = (keys.start as i64 + 1 - queries.end as i64
            ..keys.end as i64 - queries.start as i64)
            .map(|distance| {
                relative_position_bucket(
                    distance * stride as i64,
                    self.bidirectional,
                    num_buckets,
                    self.max_distance,
                ) as i32
            })
            .collect();
        let buckets: Vec<i32> = (0..queries.len())
            .flat_map(|query| {
                let first = queries.len() - 1 - query;
                bucket_of[first..first + keys.len()].iter().copied()
            })
            .collect();
        let size = buckets.len();
        Tensor::from_data(TensorData::new(buckets, [size]), device)
    }
}

/// The bucket of a relative position (key position − query position).
///
/// Half of a direction's buckets hold one distance each, the other half ranges that grow
/// logarithmically up to `max_distance`; what lies beyond shares the last. `bidirectional` (the
/// encoder) gives each direction half of the buckets; otherwise (the decoder) all belong to the
/// past and the future falls into bucket 0.
///
/// As Mesh TensorFlow's `_relative_position_bucket`.
///
/// # Panics
///
/// Panics if a direction has fewer than two buckets, or `max_distance` is within its buckets of one distance each.
pub fn relative_position_bucket(
    relative_position: i64,
    bidirectional: bool,
    num_buckets: usize,
    max_distance: usize,
) -> usize {
    let (first, num_buckets, distance) = if bidirectional {
        let half = num_buckets / 2;
        let first = if relative_position > 0 { half } else { 0 };
        (first, half, relative_position.unsigned_abs() as usize)
    } else {
        (0, num_buckets, relative_position.min(0).unsigned_abs() as usize)
    };
    assert!(num_buckets >= 2, "Got {num_buckets} buckets in a direction");
    let num_exact = num_buckets / 2;
    assert!(
        max_distance > num_exact,
        "Got max_distance={max_distance}, within the {num_exact} buckets of one distance each"
    );
    if distance < num_exact {
        return first + distance;
    }
    let log_ratio = |a: usize, b: usize| (a as f64 / b as f64).ln();
    let position = log_ratio(distance, num_exact) / log_ratio(max_distance, num_exact)
        * (num_buckets - num_exact) as f64;
    // The edges are exact integers (at 16, 32 and 64 of 128): what rounding takes from one must not
    // move it into the bucket below. No other distance comes this close to an edge.
    let logarithmic = (position + 1e-9).floor() as usize;
    first + (num_exact + logarithmic).min(num_buckets - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoder_buckets_are_pinned() {
        let bucket = |position| relative_position_bucket(position, true, 32, 128);
        let past: Vec<usize> =
            [0, -1, -7, -8, -11, -12, -15, -16, -22, -23, -31, -32, -63, -64, -90, -91, -127, -500]
                .map(bucket)
                .into();
        assert_eq!(past, [0, 1, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 13, 14, 14, 15, 15, 15]);
        assert_eq!([1, 8, 16, 64, 500].map(bucket), [17, 24, 26, 30, 31]);
    }

    #[test]
    fn decoder_buckets_are_pinned() {
        let bucket = |position| relative_position_bucket(position, false, 32, 128);
        assert_eq!([3, 1, 0].map(bucket), [0, 0, 0]);
        assert_eq!(
            [-1, -15, -16, -18, -19, -32, -63, -64, -127, -500].map(bucket),
            [1, 15, 16, 16, 17, 21, 26, 26, 31, 31]
        );
    }

    #[test]
    #[should_panic(expected = "Got max_distance=8")]
    fn a_maximum_within_the_exact_buckets_is_refused() {
        relative_position_bucket(-9, true, 32, 8);
    }

    /// Buckets of a larger table are no rows of a smaller one.
    #[test]
    fn another_table_has_its_own_buckets() {
        let device = Device::flex();
        let table = |rows: i64| {
            Param::from_tensor(Tensor::<1, Int>::arange(0..rows, &device).float().reshape([-1, 1]))
        };
        let mut bias = RelativePositionBiasConfig::new(true, 1).init(&device);
        let largest = |bias: &RelativePositionBias| {
            bias.forward(0..100, 0..100, &device).max().into_scalar::<f32>()
        };
        bias.weight = table(32);
        assert_eq!(largest(&bias), 31.0);
        bias.weight = table(16);
        assert_eq!(largest(&bias), 15.0);
    }

    #[test]
    fn every_query_sees_its_own_distances() {
        let device = Device::flex();
        let weight = Tensor::<1, Int>::arange(0..32, &device).float().reshape([32, 1]);
        let mut bias = RelativePositionBiasConfig::new(true, 1).init(&device);
        bias.weight = Param::from_tensor(weight);
        let bias = bias.forward(2..4, 0..5, &device);
        assert_eq!(bias.dims(), [1, 1, 2, 5]);
        bias.reshape([2, 5]).into_data().assert_eq(
            &TensorData::from([[2.0f32, 1.0, 0.0, 17.0, 18.0], [3.0, 2.0, 1.0, 0.0, 17.0]]),
            true,
        );
    }
}
