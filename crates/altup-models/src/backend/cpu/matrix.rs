//! Products of matrices that lie anywhere in memory, by the calling thread.

use altup_core::cpu::Strided;
use std::marker::PhantomData;
use std::ops::Range;

/// A matrix to read.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    first: *const f32,
    rows: usize,
    columns: usize,
    row_stride: isize,
    column_stride: isize,
    values: PhantomData<&'a [f32]>,
}

/// A matrix to write.
pub(super) struct MatrixMut<'a> {
    first: *mut f32,
    rows: usize,
    columns: usize,
    row_stride: isize,
    column_stride: isize,
    values: PhantomData<&'a mut [f32]>,
}

impl<'a> Matrix<'a> {
    /// Positions of one head, of a tensor `[B, T, H, d]`: `[positions, d]`.
    pub(super) fn of_head(
        tensor: &Strided<'a>,
        row: usize,
        head: usize,
        positions: Range<usize>,
    ) -> Self {
        let [_, length, _, width] = tensor.shape;
        assert!(!positions.is_empty() && positions.end <= length && width > 0);
        Self {
            first: tensor.at([row, positions.start, head, 0]),
            rows: positions.len(),
            columns: width,
            row_stride: tensor.strides[1],
            column_stride: tensor.strides[3],
            values: PhantomData,
        }
    }

    /// Values that lie row by row.
    pub(super) fn new(values: &'a [f32], columns: usize) -> Self {
        Self {
            first: values.as_ptr(),
            rows: values.len() / columns,
            columns,
            row_stride: columns as isize,
            column_stride: 1,
            values: PhantomData,
        }
    }

    pub(super) fn transposed(self) -> Self {
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
    /// Values that lie row by row.
    pub(super) fn new(values: &'a mut [f32], columns: usize) -> Self {
        Self {
            first: values.as_mut_ptr(),
            rows: values.len() / columns,
            columns,
            row_stride: columns as isize,
            column_stride: 1,
            values: PhantomData,
        }
    }

    /// Puts left · right here.
    ///
    /// # Panics
    ///
    /// Panics if the shapes do not fit.
    pub(super) fn set(self, left: Matrix<'_>, right: Matrix<'_>) {
        self.product(left, right, false);
    }

    /// Adds left · right to what is here.
    ///
    /// # Panics
    ///
    /// As [`set`](Self::set).
    pub(super) fn add(self, left: Matrix<'_>, right: Matrix<'_>) {
        self.product(left, right, true);
    }

    fn product(self, left: Matrix<'_>, right: Matrix<'_>, add: bool) {
        assert_eq!(
            [left.rows, left.columns, right.columns],
            [self.rows, right.rows, self.columns],
            "a product's shapes"
        );
        // SAFETY: all values within the three shapes are there, and only this matrix writes its own.
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
                gemm::Parallelism::None,
            );
        }
    }
}

/// A tensor `[B, T, H, d]` that lies row by row and that tasks write, each at its own heads.
pub(super) struct HeadsMut<'a> {
    first: *mut f32,
    shape: [usize; 4],
    values: PhantomData<&'a mut [f32]>,
}

// SAFETY: what it points to may be written from any thread; that no two write at one place is for those
// to see who call `head`.
unsafe impl Sync for HeadsMut<'_> {}

impl<'a> HeadsMut<'a> {
    pub(super) fn new(values: &'a mut [f32], shape: [usize; 4]) -> Self {
        assert_eq!(values.len(), shape.iter().product::<usize>());
        Self { first: values.as_mut_ptr(), shape, values: PhantomData }
    }

    /// Positions of one head, `[positions, d]`.
    ///
    /// # Safety
    ///
    /// Nobody else may hold these positions of this head at the same time.
    pub(super) unsafe fn head(
        &self,
        row: usize,
        head: usize,
        positions: Range<usize>,
    ) -> MatrixMut<'a> {
        let [batch_size, length, heads, width] = self.shape;
        assert!(row < batch_size && head < heads && positions.end <= length);
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
