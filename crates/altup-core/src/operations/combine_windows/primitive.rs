//! The operation as a chain of primitive tensor operations. Backends without a kernel run it; kernels are tested
//! against it.

use altup_backend::{cast, to_f32};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::{DType, FloatDType, IndexingUpdateOp, Shape, Slice, TensorData};

/// As [`CombineWindowsBackend::combine_windows`](super::CombineWindowsBackend::combine_windows).
pub fn combine_windows<B: Backend>(
    x: FloatTensor<B>,
    computed: FloatTensor<B>,
    coefs: FloatTensor<B>,
    stride: usize,
) -> FloatTensor<B> {
    let places = Places::<B>::new(&x, stride);
    let [of_token, of_anchor, of_computed] = scalars::<B>(coefs, x.dtype());
    let anchors = B::float_select(x.clone(), 1, places.anchors_of_tokens);
    let computed = B::float_select(computed, 1, places.windows_of_tokens);
    let sum = B::float_add(B::float_mul(x, of_token), B::float_mul(anchors, of_anchor));
    B::float_add(sum, B::float_mul(computed, of_computed))
}

/// As [`CombineWindowsBackend::combine_windows_backward`](super::CombineWindowsBackend::combine_windows_backward).
pub fn combine_windows_backward<B: Backend>(
    x: FloatTensor<B>,
    computed: FloatTensor<B>,
    coefs: FloatTensor<B>,
    output_grad: FloatTensor<B>,
    stride: usize,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let places = Places::<B>::new(&x, stride);
    let [of_token, of_anchor, of_computed] = scalars::<B>(coefs.clone(), x.dtype());
    // Sums are f32 whatever the blocks are.
    let zeros = B::float_zeros(computed.shape(), &computed.device(), FloatDType::F32);
    let windows = B::float_select_assign(
        zeros,
        1,
        places.windows_of_tokens,
        to_f32::<B>(output_grad.clone()),
        IndexingUpdateOp::Add,
    );
    let windows = cast::<B>(windows, x.dtype());
    let x_grad = B::float_select_assign(
        B::float_mul(output_grad.clone(), of_token),
        1,
        places.anchors.clone(),
        B::float_mul(windows.clone(), of_anchor),
        IndexingUpdateOp::Add,
    );
    let anchors = B::float_select(x.clone(), 1, places.anchors);
    let dtype = coefs.dtype();
    let inner = |a: FloatTensor<B>, b: FloatTensor<B>| match a.shape().num_elements() {
        // A sum over nothing is left to no backend.
        0 => B::float_zeros(Shape::new([1]), &a.device(), dtype.into()),
        _ => {
            // A product of f16 may be more than f16 holds.
            let sum = B::float_sum(B::float_mul(cast::<B>(a, dtype), cast::<B>(b, dtype)));
            B::float_reshape(sum, Shape::new([1]))
        }
    };
    let products = vec![
        inner(output_grad, x),
        inner(windows.clone(), anchors),
        inner(windows.clone(), computed),
    ];
    (x_grad, B::float_mul(windows, of_computed), B::float_cat(products, 0))
}

/// The three coefficients, `[1, 1, 1]` each.
fn scalars<B: Backend>(coefs: FloatTensor<B>, dtype: DType) -> [FloatTensor<B>; 3] {
    let coefs = cast::<B>(coefs, dtype);
    [0, 1, 2].map(|index| {
        let coef = B::float_slice(coefs.clone(), &[Slice::from(index..index + 1)]);
        B::float_reshape(coef, Shape::new([1, 1, 1]))
    })
}

/// Where the tokens of a sequence are, in it and among its windows.
struct Places<B: Backend> {
    /// Of each token, `[T]`.
    anchors_of_tokens: IntTensor<B>,
    /// Of each token, `[T]`.
    windows_of_tokens: IntTensor<B>,
    /// Of each window, `[⌈T/k⌉]`.
    anchors: IntTensor<B>,
}

impl<B: Backend> Places<B> {
    fn new(x: &FloatTensor<B>, stride: usize) -> Self {
        let (length, device) = (x.shape()[1], x.device());
        let indices = |indices: Vec<i32>| {
            let count = indices.len();
            B::int_from_data(TensorData::new(indices, [count]), &device)
        };
        let tokens = || 0..length;
        Self {
            anchors_of_tokens: indices(tokens().map(|i| (i / stride * stride) as i32).collect()),
            windows_of_tokens: indices(tokens().map(|i| (i / stride) as i32).collect()),
            anchors: indices(tokens().step_by(stride).map(|i| i as i32).collect()),
        }
    }
}
