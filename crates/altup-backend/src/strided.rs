//! Tensors whose values may lie in any order.

use std::ops::Range;

use crate::Matrix;

/// The values of a tensor, where they lie.
#[derive(Clone, Copy, Debug)]
pub struct Strided<'a, const D: usize> {
    values: &'a [f32],
    offset: usize,
    shape: [usize; D],
    strides: [isize; D],
}

impl<'a, const D: usize> Strided<'a, D> {
    /// A tensor whose value at an index lies at `offset` plus, for each dimension, the index times the stride. A
    /// stride may be 0 or negative.
    ///
    /// # Panics
    ///
    /// Panics if a value within the shape lies outside of `values`.
    pub fn new(values: &'a [f32], offset: usize, shape: [usize; D], strides: [isize; D]) -> Self {
        assert!(
            shape.contains(&0) || lies_within(values.len(), offset, &shape, &strides),
            "A tensor's values must lie in its memory. Got {} values, offset={offset}, shape={shape:?}, \
             strides={strides:?}",
            values.len()
        );
        Self { values, offset, shape, strides }
    }

    /// The shape.
    pub fn shape(&self) -> [usize; D] {
        self.shape
    }
}

impl<'a> Strided<'a, 2> {
    /// The tensor as a matrix.
    ///
    /// # Panics
    ///
    /// Panics if it is empty.
    pub fn matrix(&self) -> Matrix<'a> {
        Matrix::strided(self.values, self.offset, self.shape, self.strides)
    }
}

impl<'a> Strided<'a, 4> {
    /// Positions of one head, of a tensor `[B, T, H, d]`: `[positions, d]`.
    ///
    /// # Panics
    ///
    /// Panics if a position is outside of the tensor, or if there are no positions.
    pub fn head(&self, row: usize, head: usize, positions: Range<usize>) -> Matrix<'a> {
        let [batch_size, length, heads, width] = self.shape;
        assert!(
            row < batch_size
                && head < heads
                && !positions.is_empty()
                && positions.end <= length
                && width > 0,
            "Got row={row}, head={head}, positions={positions:?}, shape={:?}",
            self.shape
        );
        let [of_row, of_position, of_head, of_column] = self.strides;
        let offset = self.offset as isize
            + row as isize * of_row
            + positions.start as isize * of_position
            + head as isize * of_head;
        Matrix::strided(
            self.values,
            offset as usize,
            [positions.len(), width],
            [of_position, of_column],
        )
    }
}

/// Whether all values at `offset` plus the sum of each index times its stride are among `count`. No length is 0.
pub(crate) fn lies_within(count: usize, offset: usize, shape: &[usize], strides: &[isize]) -> bool {
    let ends = |towards: fn(isize) -> isize| {
        let offset = isize::try_from(offset).ok();
        shape.iter().zip(strides).fold(offset, |at, (&length, &stride)| {
            let end = isize::try_from(length - 1).ok()?.checked_mul(stride)?;
            at?.checked_add(towards(end))
        })
    };
    let (lowest, highest) = (ends(|end| end.min(0)), ends(|end| end.max(0)));
    lowest.is_some_and(|lowest| lowest >= 0)
        && highest.is_some_and(|highest| (highest as usize) < count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "offset=0, shape=[1, 2, 1, 3], strides=[6, -3, 3, 1]")]
    fn values_before_the_first_are_a_bug() {
        Strided::new(&[0.0; 6], 0, [1, 2, 1, 3], [6, -3, 3, 1]);
    }

    #[test]
    #[should_panic(expected = "Got 5 values")]
    fn values_behind_the_last_are_a_bug() {
        Strided::new(&[0.0; 5], 0, [1, 2, 1, 3], [6, 3, 3, 1]);
    }

    #[test]
    #[should_panic(expected = "shape=[1, 2, 1, 3]")]
    fn strides_that_overflow_are_a_bug() {
        Strided::new(&[0.0; 6], 0, [1, 2, 1, 3], [6, isize::MAX, isize::MAX, isize::MAX]);
    }

    #[test]
    fn an_empty_tensor_needs_no_values() {
        assert_eq!(Strided::new(&[], 7, [0, 2, 1, 3], [6, 3, 3, 1]).shape(), [0, 2, 1, 3]);
    }

    #[test]
    #[should_panic(expected = "positions=1..3")]
    fn positions_outside_are_a_bug() {
        Strided::new(&[0.0; 6], 0, [1, 2, 1, 3], [6, 3, 3, 1]).head(0, 0, 1..3);
    }
}
