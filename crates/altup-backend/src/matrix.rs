//! Products of matrices that lie anywhere in memory.

use std::marker::PhantomData;
use std::ops::Range;

use crate::strided::lies_within;

/// A matrix to read.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    first: *const f32,
    rows: usize,
    columns: usize,
    row_stride: isize,
    column_stride: isize,
    values: PhantomData<&'a [f32]>,
}

/// A matrix to write.
#[derive(Debug)]
pub struct MatrixMut<'a> {
    first: *mut f32,
    rows: usize,
    columns: usize,
    row_stride: isize,
    column_stride: isize,
    values: PhantomData<&'a mut [f32]>,
}

impl<'a> Matrix<'a> {
    /// Values that lie row by row, `[values / columns, columns]`.
    ///
    /// # Panics
    ///
    /// Panics if `columns` is 0 or doesn't divide the number of values.
    pub fn new(values: &'a [f32], columns: usize) -> Self {
        let rows = whole_rows(values.len(), columns);
        Self {
            first: values.as_ptr(),
            rows,
            columns,
            row_stride: columns as isize,
            column_stride: 1,
            values: PhantomData,
        }
    }

    /// The value at (row, column) lies at `offset` + row · `strides[0]` + column · `strides[1]`.
    ///
    /// # Panics
    ///
    /// Panics if the shape is empty or a value lies outside of `values`.
    pub fn strided(
        values: &'a [f32],
        offset: usize,
        shape: [usize; 2],
        strides: [isize; 2],
    ) -> Self {
        let [rows, columns] = shape;
        assert!(rows > 0 && columns > 0, "Got shape={shape:?}");
        assert!(
            lies_within(values.len(), offset, &shape, &strides),
            "A matrix must lie in its values. Got {} values, offset={offset}, shape={shape:?}, \
             strides={strides:?}",
            values.len()
        );
        Self {
            // Not of `values[offset..]`, whose pointer may not reach back where strides are negative.
            first: values.as_ptr().wrapping_add(offset),
            rows,
            columns,
            row_stride: strides[0],
            column_stride: strides[1],
            values: PhantomData,
        }
    }

    /// The same matrix with rows and columns changed.
    pub fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }
}

impl<'a> MatrixMut<'a> {
    /// Values that lie row by row, `[values / columns, columns]`.
    ///
    /// # Panics
    ///
    /// Panics if `columns` is 0 or doesn't divide the number of values.
    pub fn new(values: &'a mut [f32], columns: usize) -> Self {
        let rows = whole_rows(values.len(), columns);
        Self::row_by_row(values.as_mut_ptr(), rows, columns)
    }

    fn row_by_row(first: *mut f32, rows: usize, columns: usize) -> Self {
        Self {
            first,
            rows,
            columns,
            row_stride: columns as isize,
            column_stride: 1,
            values: PhantomData,
        }
    }

    /// Puts left · right here, by the calling thread.
    ///
    /// # Panics
    ///
    /// Panics if the shapes do not fit.
    pub fn set(self, left: Matrix<'_>, right: Matrix<'_>) {
        // SAFETY: the values of this matrix may be written, and only it writes them.
        unsafe { self.product(left, right, false, gemm::Parallelism::None) };
    }

    /// Adds left · right to what is here, by the calling thread.
    ///
    /// # Panics
    ///
    /// As [`set`](Self::set).
    pub fn add(self, left: Matrix<'_>, right: Matrix<'_>) {
        // SAFETY: as above; and they are initialised.
        unsafe { self.product(left, right, true, gemm::Parallelism::None) };
    }

    /// # Safety
    ///
    /// The values of this matrix lie where they may be written, and nobody else does. To be added to, they are
    /// initialised.
    unsafe fn product(
        self,
        left: Matrix<'_>,
        right: Matrix<'_>,
        add: bool,
        threads: gemm::Parallelism,
    ) {
        assert_eq!(
            [left.rows, left.columns, right.columns],
            [self.rows, right.rows, self.columns],
            "a product's shapes"
        );
        // SAFETY: all values of the factors are there, as was checked when they were made, and this matrix's are, as the
        // caller says.
        unsafe {
            gemm::gemm(
                self.rows,
                self.columns,
                left.columns,
                self.first,
                self.column_stride,
                self.row_stride,
                add,
                left.first,
                left.column_stride,
                left.row_stride,
                right.first,
                right.column_stride,
                right.row_stride,
                1.0,
                1.0,
                false,
                false,
                false,
                threads,
            );
        }
    }
}

/// Multiplications from which threads pay.
const PARALLEL_FROM: usize = 192 * 192 * 192;

/// left · right, row by row; by all threads if it is large. Which threads there are changes no bit: each value is summed
/// by one.
///
/// # Panics
///
/// Panics if the shapes do not fit.
pub fn product(left: Matrix<'_>, right: Matrix<'_>) -> Vec<f32> {
    let (rows, columns) = (left.rows, right.columns);
    let count = rows.checked_mul(columns).expect("a product that fits into memory");
    if left.columns == 0 {
        assert_eq!(right.rows, 0, "a product's shapes");
        return vec![0.0; count]; // a sum over nothing
    }
    let threads = match count.saturating_mul(left.columns) < PARALLEL_FROM {
        true => gemm::Parallelism::None,
        false => gemm::Parallelism::Rayon(0),
    };
    // Not of zeros, which the product would only write over.
    let mut values = Vec::with_capacity(count);
    let output = MatrixMut::row_by_row(values.as_mut_ptr(), rows, columns);
    // SAFETY: there is room for all values, and a product that isn't added to what is there writes each of them.
    unsafe {
        output.product(left, right, false, threads);
        values.set_len(count);
    }
    values
}

fn whole_rows(values: usize, columns: usize) -> usize {
    assert!(
        columns > 0 && values.is_multiple_of(columns),
        "A matrix has whole rows. Got {values} values, columns={columns}"
    );
    values / columns
}

/// A tensor `[B, T, H, d]` that lies row by row and that tasks write, each at its own heads.
#[derive(Debug)]
pub struct HeadsMut<'a> {
    first: *mut f32,
    shape: [usize; 4],
    values: PhantomData<&'a mut [f32]>,
}

// SAFETY: what it points to may be written from any thread. That no two threads write the same place is the duty
// of those who call `head`.
unsafe impl Sync for HeadsMut<'_> {}

impl<'a> HeadsMut<'a> {
    /// The values of a tensor of this shape.
    ///
    /// # Panics
    ///
    /// Panics if there are more or fewer than the shape has.
    pub fn new(values: &'a mut [f32], shape: [usize; 4]) -> Self {
        let count = shape.iter().try_fold(1, |count: usize, &length| count.checked_mul(length));
        assert_eq!(count, Some(values.len()), "shape={shape:?}");
        Self { first: values.as_mut_ptr(), shape, values: PhantomData }
    }

    /// Positions of one head, `[positions, d]`.
    ///
    /// # Panics
    ///
    /// Panics if a position is outside of the tensor, or if there are no positions.
    ///
    /// # Safety
    ///
    /// Nobody else may hold these positions of this head at the same time.
    pub unsafe fn head(&self, row: usize, head: usize, positions: Range<usize>) -> MatrixMut<'a> {
        let [batch_size, length, heads, width] = self.shape;
        assert!(
            row < batch_size && head < heads && !positions.is_empty() && positions.end <= length,
            "Got row={row}, head={head}, positions={positions:?}, shape={:?}",
            self.shape
        );
        let first = ((row * length + positions.start) * heads + head) * width;
        MatrixMut {
            // SAFETY: it lies within the tensor.
            first: unsafe { self.first.add(first) },
            rows: positions.len(),
            columns: width,
            row_stride: (heads * width) as isize,
            column_stride: 1,
            values: PhantomData,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// [1 2; 3 4; 5 6] · [1 0 2; 0 1 1], both read from memory in another order, is
    /// [1 2 4; 3 4 10; 5 6 16].
    #[test]
    fn a_product_by_hand() {
        let columns = [1.0, 3.0, 5.0, 2.0, 4.0, 6.0];
        let left = Matrix::new(&columns, 3).transposed();
        // The rows from behind, so that a stride is negative.
        let backwards = [0.0, 1.0, 1.0, 1.0, 0.0, 2.0];
        let right = Matrix::strided(&backwards, 3, [2, 3], [-3, 1]);
        let mut product = [0.0; 9];
        MatrixMut::new(&mut product, 3).set(left, right);
        assert_eq!(product, [1.0, 2.0, 4.0, 3.0, 4.0, 10.0, 5.0, 6.0, 16.0]);
        assert_eq!(super::product(left, right), product);
        MatrixMut::new(&mut product, 3).add(left, right);
        assert_eq!(product, [2.0, 4.0, 8.0, 6.0, 8.0, 20.0, 10.0, 12.0, 32.0]);
    }

    /// Each value is summed by one thread, in one order.
    #[test]
    fn threads_change_no_bit() {
        let values: Vec<f32> = (0..300 * 301).map(|i| (i as f32 * 0.37).sin()).collect();
        let left = || Matrix::new(&values, 301);
        let mut alone = vec![0.0; 300 * 300];
        MatrixMut::new(&mut alone, 300).set(left(), left().transposed());
        assert_eq!(product(left(), left().transposed()), alone);
    }

    #[test]
    fn a_product_over_nothing_is_zeros() {
        let nothing = || Matrix::new(&[], 3);
        assert_eq!(product(nothing().transposed(), nothing()), [0.0; 9]);
        assert!(product(nothing(), Matrix::new(&[1.0; 6], 2)).is_empty());
    }

    #[test]
    #[should_panic(expected = "a product's shapes")]
    fn factors_that_do_not_fit_are_a_bug() {
        product(Matrix::new(&[0.0; 6], 3), Matrix::new(&[0.0; 6], 3));
    }

    #[test]
    #[should_panic(expected = "Got 6 values, offset=0, shape=[2, 3], strides=[-3, 1]")]
    fn values_outside_are_a_bug() {
        Matrix::strided(&[0.0; 6], 0, [2, 3], [-3, 1]);
    }

    #[test]
    #[should_panic(expected = "shape=[3, 1]")]
    fn strides_that_overflow_are_a_bug() {
        Matrix::strided(&[0.0; 6], 0, [3, 1], [isize::MIN, 1]);
    }

    #[test]
    #[should_panic(expected = "shape=[4294967296, 4294967296, 1, 1]")]
    fn a_shape_that_overflows_is_a_bug() {
        HeadsMut::new(&mut [], [1 << 32, 1 << 32, 1, 1]);
    }

    #[test]
    #[should_panic(expected = "Got 5 values, columns=2")]
    fn broken_rows_are_a_bug() {
        Matrix::new(&[0.0; 5], 2);
    }
}
