//! Kernels on a CPU: the values of tensors that lie in this process's memory, and loops over them.
//!
//! [`CpuBackend`] is what kernels are written against, once for flex, ndarray and libtorch.

// Burn marks ndarray and libtorch as deprecated; while it ships them, they are supported here.
#![allow(deprecated)]

pub mod vector;

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::{DType, Shape, TensorData, bf16};
use rayon::prelude::*;
use std::borrow::Cow;
use std::marker::PhantomData;
#[cfg(feature = "tch")]
use std::slice;

/// A backend whose tensors a kernel can read and write as slices of f32.
///
/// # Panics
///
/// What reads or writes values panics if a kernel can't: ask [`has`](Self::has) before.
pub trait CpuBackend: Backend {
    /// Whether all tensors hold f32 in this process's memory.
    fn has<const N: usize>(tensors: [&FloatTensor<Self>; N]) -> bool {
        tensors.iter().all(|tensor| tensor.dtype() == DType::F32 && Self::in_memory(tensor))
    }

    /// Whether a tensor lies in this process's memory.
    fn in_memory(_tensor: &FloatTensor<Self>) -> bool {
        true
    }

    /// The values, if they lie row by row.
    fn slice(tensor: &FloatTensor<Self>) -> Option<&[f32]>;

    /// The values to change, if they lie row by row. Nobody else may hold them.
    fn slice_mut(tensor: &mut FloatTensor<Self>) -> Option<&mut [f32]>;

    /// The values row by row, if they are bf16 and lie so.
    fn bf16_slice(tensor: &FloatTensor<Self>) -> Option<&[bf16]>;

    /// The values where they lie.
    ///
    /// # Panics
    ///
    /// Panics if the tensor hasn't four dimensions.
    fn strided(tensor: &FloatTensor<Self>) -> Strided<'_>;

    /// The values row by row, copied only where they do not lie so.
    fn values(tensor: &FloatTensor<Self>) -> Cow<'_, [f32]> {
        match Self::slice(tensor) {
            Some(values) => Cow::Borrowed(values),
            None => {
                let data = burn::tensor::read_sync(Self::float_into_data(tensor.clone()));
                let data = data.expect("a CPU's tensors can be read");
                Cow::Owned(data.into_vec().expect("values of f32"))
            }
        }
    }

    /// The values of a tensor of indices, row by row.
    fn indices(tensor: &IntTensor<Self>) -> Vec<usize> {
        let data = burn::tensor::read_sync(Self::int_into_data(tensor.clone()));
        let data = data.expect("a CPU's tensors can be read");
        data.iter::<i64>().map(|index| index as usize).collect()
    }

    /// A tensor to write, beside another. Its values are made here: Burn's own zeros take longer.
    fn zeros(shape: Shape, beside: &FloatTensor<Self>) -> FloatTensor<Self> {
        let values = vec![0f32; shape.num_elements()];
        Self::float_from_data(TensorData::new(values, shape), &beside.device())
    }

    /// The same values in a tensor to write: itself where nobody else holds it and it lies row by row.
    fn to_write(mut tensor: FloatTensor<Self>) -> FloatTensor<Self> {
        if tensor.can_mut() && Self::slice_mut(&mut tensor).is_some() {
            return tensor;
        }
        let data = TensorData::new(Self::values(&tensor).into_owned(), tensor.shape());
        Self::float_from_data(data, &tensor.device())
    }

    /// The values of a tensor from [`zeros`](Self::zeros) or [`to_write`](Self::to_write).
    fn values_mut(tensor: &mut FloatTensor<Self>) -> &mut [f32] {
        Self::slice_mut(tensor).expect("a tensor made to be written")
    }
}

/// The values of a tensor of four dimensions, which may lie in any order.
#[derive(Clone, Copy, Debug)]
pub struct Strided<'a> {
    first: *const f32,
    /// The shape.
    pub shape: [usize; 4],
    /// How many values lie between neighbours, in each dimension.
    pub strides: [isize; 4],
    tensor: PhantomData<&'a [f32]>,
}

// SAFETY: it reads as a `&[f32]` does.
unsafe impl Send for Strided<'_> {}
// SAFETY: as above.
unsafe impl Sync for Strided<'_> {}

impl Strided<'_> {
    /// Where the value at `index` lies.
    ///
    /// # Panics
    ///
    /// Panics if `index` lies outside.
    pub fn at(&self, index: [usize; 4]) -> *const f32 {
        let inside = index.iter().zip(self.shape).all(|(&index, length)| index < length);
        assert!(inside, "Got index={index:?}, shape={:?}", self.shape);
        let offset = index.iter().zip(self.strides).map(|(&i, stride)| i as isize * stride);
        // SAFETY: the tensor holds all values within its shape.
        unsafe { self.first.offset(offset.sum()) }
    }
}

fn four<T: Copy>(dimensions: &[T]) -> [T; 4] {
    dimensions.try_into().expect("a tensor of four dimensions")
}

#[cfg(feature = "flex")]
impl CpuBackend for burn::backend::Flex {
    fn slice(tensor: &FloatTensor<Self>) -> Option<&[f32]> {
        tensor.as_slice()
    }

    fn slice_mut(tensor: &mut FloatTensor<Self>) -> Option<&mut [f32]> {
        let (start, end) = tensor.layout().contiguous_offsets()?;
        Some(&mut tensor.storage_mut()[start..end])
    }

    fn bf16_slice(tensor: &FloatTensor<Self>) -> Option<&[bf16]> {
        tensor.as_slice()
    }

    fn strided(tensor: &FloatTensor<Self>) -> Strided<'_> {
        let layout = tensor.layout();
        Strided {
            first: tensor.storage::<f32>()[layout.start_offset()..].as_ptr(),
            shape: four(layout.shape()),
            strides: four(layout.strides()),
            tensor: PhantomData,
        }
    }
}

#[cfg(feature = "ndarray")]
impl CpuBackend for burn::backend::NdArray {
    fn slice(tensor: &FloatTensor<Self>) -> Option<&[f32]> {
        let FloatTensor::<Self>::F32(storage) = tensor else { return None };
        storage.view().to_slice()
    }

    fn slice_mut(tensor: &mut FloatTensor<Self>) -> Option<&mut [f32]> {
        let FloatTensor::<Self>::F32(storage) = tensor else { return None };
        storage.ensure_owned().as_slice_mut()
    }

    /// Ndarray has no bf16.
    fn bf16_slice(_tensor: &FloatTensor<Self>) -> Option<&[bf16]> {
        None
    }

    fn strided(tensor: &FloatTensor<Self>) -> Strided<'_> {
        let FloatTensor::<Self>::F32(storage) = tensor else { panic!("a tensor of f32") };
        let view = storage.view();
        Strided {
            first: view.as_ptr(),
            shape: four(view.shape()),
            strides: four(view.strides()),
            tensor: PhantomData,
        }
    }
}

#[cfg(feature = "tch")]
impl CpuBackend for burn::backend::LibTorch {
    /// Libtorch's own: values of ours would be copied.
    fn zeros(shape: Shape, beside: &FloatTensor<Self>) -> FloatTensor<Self> {
        use burn::backend::ops::FloatTensorOps;
        Self::float_zeros(shape, &beside.device(), burn::tensor::FloatDType::F32)
    }

    fn in_memory(tensor: &FloatTensor<Self>) -> bool {
        tensor.device() == burn::backend::libtorch::LibTorchDevice::Cpu
    }

    fn slice(tensor: &FloatTensor<Self>) -> Option<&[f32]> {
        if !Self::has([tensor]) || !tensor.tensor.is_contiguous() {
            return None;
        }
        let (first, length) = (tensor.tensor.data_ptr() as *const f32, tensor.tensor.numel());
        // SAFETY: a contiguous tensor of f32 on the CPU, whose values live as long as the tensor.
        Some(if length == 0 { &[] } else { unsafe { slice::from_raw_parts(first, length) } })
    }

    fn slice_mut(tensor: &mut FloatTensor<Self>) -> Option<&mut [f32]> {
        if !Self::has([tensor]) || !tensor.tensor.is_contiguous() {
            return None;
        }
        let (first, length) = (tensor.tensor.data_ptr() as *mut f32, tensor.tensor.numel());
        // SAFETY: as above, and nobody else holds the values.
        Some(if length == 0 {
            &mut []
        } else {
            unsafe { slice::from_raw_parts_mut(first, length) }
        })
    }

    fn bf16_slice(tensor: &FloatTensor<Self>) -> Option<&[bf16]> {
        let readable = tensor.dtype() == DType::BF16 && Self::in_memory(tensor);
        if !readable || !tensor.tensor.is_contiguous() {
            return None;
        }
        let (first, length) = (tensor.tensor.data_ptr() as *const bf16, tensor.tensor.numel());
        // SAFETY: a contiguous tensor of bf16 on the CPU, whose values live as long as the tensor.
        Some(if length == 0 { &[] } else { unsafe { slice::from_raw_parts(first, length) } })
    }

    fn strided(tensor: &FloatTensor<Self>) -> Strided<'_> {
        assert!(Self::has([tensor]), "a tensor of f32 on the CPU");
        Strided {
            first: tensor.tensor.data_ptr() as *const f32,
            shape: four(&tensor.shape()),
            strides: four(&tensor.tensor.stride()).map(|stride| stride as isize),
            tensor: PhantomData,
        }
    }
}

/// Runs loops with the widest vectors of this processor that they are compiled for: `work` and all that
/// is inlined into it.
#[inline]
pub fn vectorized<T>(work: impl FnOnce() -> T) -> T {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,fma")]
        fn with_avx2<T>(work: impl FnOnce() -> T) -> T {
            work()
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the processor has both.
            return unsafe { with_avx2(work) };
        }
    }
    work()
}

/// Values from which threads pay: below, waking them takes longer than the work.
const PARALLEL_FROM: usize = 16 * 1024;

/// Runs all tasks, on all threads if together they work on enough `values`.
pub fn for_each<T: Send>(tasks: Vec<T>, values: usize, run: impl Fn(T) + Send + Sync) {
    match values < PARALLEL_FROM {
        true => tasks.into_iter().for_each(run),
        false => tasks.into_par_iter().for_each(run),
    }
}

/// What the tasks make, in their order; run as by [`for_each`].
pub fn map<T: Send, U: Send>(
    tasks: Vec<T>,
    values: usize,
    run: impl Fn(T) -> U + Send + Sync,
) -> Vec<U> {
    match values < PARALLEL_FROM {
        true => tasks.into_iter().map(run).collect(),
        false => tasks.into_par_iter().map(run).collect(),
    }
}
