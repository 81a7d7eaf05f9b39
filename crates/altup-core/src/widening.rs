use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// How a token's representation becomes K blocks wide, and how it is read at the end of a stack.
///
/// | | embedding table | state | read by the output layer |
/// |---|---|---|---|
/// | `Embedding` | K·d wide | its K slices | the K blocks concatenated, K·d wide |
/// | `Recycled` | d wide | K copies | the K blocks summed, d wide |
/// | `Sum` | K·d wide | the sum of its K slices, one block | that block, d wide |
///
/// `Embedding` is the paper's AltUp, `Recycled` its Recycled-AltUp, which adds no parameters to the
/// tables; `Sum` is the baseline that enlarges the table and nothing else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Widening {
    /// Widened tables: block i of the state is columns i·d..(i+1)·d of the embedding.
    #[default]
    Embedding,
    /// The narrow embedding, replicated K times; the blocks are summed at the end.
    Recycled,
    /// A widened embedding whose K slices are summed at the input; an ordinary layer stack follows.
    Sum,
}

impl Widening {
    /// Width of the embedding table for blocks of `width` (d).
    pub fn table_width(self, width: usize, num_blocks: usize) -> usize {
        match self {
            Self::Embedding | Self::Sum => num_blocks * width,
            Self::Recycled => width,
        }
    }

    /// Width of a stack's output for blocks of `width` (d).
    pub fn output_width(self, width: usize, num_blocks: usize) -> usize {
        match self {
            Self::Embedding => num_blocks * width,
            Self::Recycled | Self::Sum => width,
        }
    }

    /// Number of blocks the layers of a stack carry along.
    pub fn state_blocks(self, num_blocks: usize) -> usize {
        match self {
            Self::Embedding | Self::Recycled => num_blocks,
            Self::Sum => 1,
        }
    }

    /// Makes the block-major state out of looked-up embeddings.
    ///
    /// # Shapes
    ///
    /// - embedded: `[B, T, table_width]`
    /// - output: `[state_blocks, B, T, d]`
    pub fn widen(self, embedded: Tensor<3>, num_blocks: usize) -> Tensor<4> {
        match self {
            Self::Embedding => split_blocks(embedded, num_blocks),
            Self::Recycled => replicate_blocks(embedded, num_blocks),
            Self::Sum => sum_blocks(split_blocks(embedded, num_blocks)).unsqueeze_dim(0),
        }
    }

    /// Reads the state at the end of a stack.
    ///
    /// # Shapes
    ///
    /// - state: `[state_blocks, B, T, d]`
    /// - output: `[B, T, output_width]`
    pub fn narrow(self, state: Tensor<4>) -> Tensor<3> {
        match self {
            Self::Embedding => concatenate_blocks(state),
            Self::Recycled => sum_blocks(state),
            Self::Sum => state.squeeze_dim(0),
        }
    }
}

/// Cuts a wide representation into its blocks: block i is columns i·d..(i+1)·d.
///
/// # Shapes
///
/// - input: `[B, T, K·d]`
/// - output: `[K, B, T, d]`
///
/// # Panics
///
/// Panics if the width is not divisible by `num_blocks`.
pub fn split_blocks(input: Tensor<3>, num_blocks: usize) -> Tensor<4> {
    let [batch_size, seq_length, width] = input.dims();
    assert!(
        num_blocks > 0 && width.is_multiple_of(num_blocks),
        "The width must be divisible by the number of blocks. Got width={width}, \
         num_blocks={num_blocks}"
    );
    if num_blocks == 1 {
        return input.unsqueeze_dim(0);
    }
    input.reshape([batch_size, seq_length, num_blocks, width / num_blocks]).permute([2, 0, 1, 3])
}

/// Puts the blocks of a state side by side; the inverse of [`split_blocks`].
///
/// # Shapes
///
/// - state: `[K, B, T, d]`
/// - output: `[B, T, K·d]`
pub fn concatenate_blocks(state: Tensor<4>) -> Tensor<3> {
    let [num_blocks, batch_size, seq_length, width] = state.dims();
    if num_blocks == 1 {
        return state.squeeze_dim(0);
    }
    state.permute([1, 2, 0, 3]).reshape([batch_size, seq_length, num_blocks * width])
}

/// Copies a narrow representation into each of K blocks.
///
/// # Shapes
///
/// - input: `[B, T, d]`
/// - output: `[K, B, T, d]`
pub fn replicate_blocks(input: Tensor<3>, num_blocks: usize) -> Tensor<4> {
    let [batch_size, seq_length, width] = input.dims();
    input.unsqueeze_dim::<4>(0).expand([num_blocks, batch_size, seq_length, width])
}

/// Sums the blocks of a state.
///
/// # Shapes
///
/// - state: `[K, B, T, d]`
/// - output: `[B, T, d]`
pub fn sum_blocks(state: Tensor<4>) -> Tensor<3> {
    if state.dims()[0] == 1 {
        return state.squeeze_dim(0);
    }
    state.sum_dim(0).squeeze_dim(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, TensorData};

    /// One token of width 4, batch 1: the blocks are [1, 2] and [3, 4].
    fn wide() -> Tensor<3> {
        Tensor::from_data([[[1.0, 2.0, 3.0, 4.0]]], &Device::flex())
    }

    #[test]
    fn block_i_is_columns_i_d_to_the_next() {
        let state = split_blocks(wide(), 2);
        state
            .clone()
            .into_data()
            .assert_eq(&TensorData::from([[[[1.0f32, 2.0]]], [[[3.0, 4.0]]]]), true);
        concatenate_blocks(state).into_data().assert_eq(&wide().into_data(), true);
    }

    #[test]
    fn each_widening_reads_what_its_table_says() {
        let ends = |widening: Widening, embedded: Tensor<3>| {
            let state = widening.widen(embedded, 2);
            assert_eq!(state.dims()[0], widening.state_blocks(2));
            let output = widening.narrow(state);
            assert_eq!(output.dims()[2], widening.output_width(2, 2));
            output.into_data()
        };
        ends(Widening::Embedding, wide()).assert_eq(&wide().into_data(), true);
        // 2 copies of [1, 2, 3, 4], summed.
        Widening::Recycled
            .narrow(Widening::Recycled.widen(wide(), 2))
            .into_data()
            .assert_eq(&TensorData::from([[[2.0f32, 4.0, 6.0, 8.0]]]), true);
        // [1, 2] + [3, 4].
        ends(Widening::Sum, wide()).assert_eq(&TensorData::from([[[4.0f32, 6.0]]]), true);
    }

    #[test]
    #[should_panic(expected = "width=4, num_blocks=3")]
    fn an_indivisible_width_is_a_bug() {
        split_blocks(wide(), 3);
    }
}
