//! Products with weights: those of many rows, with a backward pass, and those of a decoding step, which has few.

mod cpu;
mod few_rows;
mod primitive;

use altup_backend::record_asked;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Dispatch, DispatchTensor};
use burn::nn::Linear;
use burn::tensor::Tensor;

/// Rows of x up to which [`ProjectBackend::project`] is faster than [`ProjectBackend::product`].
const FEW_ROWS: usize = 8;

/// x · weight of a layer without bias. The weight may be of another type than x; the product is of x's.
///
/// # Shapes
///
/// - x: `[batch_size, seq_length, d_input]`
/// - output: `[batch_size, seq_length, d_output]`
///
/// # Panics
///
/// Panics if the layer has a bias, or isn't for x's width.
pub fn project(layer: &Linear, x: Tensor<3>) -> Tensor<3> {
    check(&[layer], &x);
    if !has_few_rows(&x) {
        return product(x, layer.weight.val());
    }
    let [batch_size, seq_length, _] = x.dims();
    let output = <Dispatch as ProjectBackend>::project(rows_of(x), weight_of(layer));
    unfold(output, batch_size, seq_length)
}

/// [`project`] by two layers, as if their weights were one matrix. It panics as `project` does.
pub fn project_to_two(layers: [&Linear; 2], x: Tensor<3>) -> [Tensor<3>; 2] {
    check(&layers, &x);
    if !has_few_rows(&x) {
        return layers.map(|layer| product(x.clone(), layer.weight.val()));
    }
    let [batch_size, seq_length, _] = x.dims();
    let [first, second] = layers.map(weight_of);
    let outputs = <Dispatch as ProjectBackend>::project_to_two(rows_of(x), first, second);
    <[_; 2]>::from(outputs).map(|output| unfold(output, batch_size, seq_length))
}

/// [`project`] by three layers, as if their weights were one matrix. It panics as `project` does.
pub fn project_to_three(layers: [&Linear; 3], x: Tensor<3>) -> [Tensor<3>; 3] {
    check(&layers, &x);
    if !has_few_rows(&x) {
        return layers.map(|layer| product(x.clone(), layer.weight.val()));
    }
    let [batch_size, seq_length, _] = x.dims();
    let [first, second, third] = layers.map(weight_of);
    let outputs = <Dispatch as ProjectBackend>::project_to_three(rows_of(x), first, second, third);
    <[_; 3]>::from(outputs).map(|output| unfold(output, batch_size, seq_length))
}

/// Whether reading the weights takes longer than computing with them, and no gradients are asked for.
fn has_few_rows(x: &Tensor<3>) -> bool {
    let [batch_size, seq_length, _] = x.dims();
    (1..=FEW_ROWS).contains(&(batch_size * seq_length)) && !x.device().is_autodiff()
}

/// The kernel for few rows would read past the rows of a weight that doesn't fit, into the next row of x.
fn check(layers: &[&Linear], x: &Tensor<3>) {
    let [_, _, width] = x.dims();
    for layer in layers {
        let weight = layer.weight.dims();
        assert!(
            weight[0] == width && layer.bias.is_none(),
            "A projection has a weight for x's width and no bias. Got x={:?}, weight={weight:?}, bias={:?}",
            x.dims(),
            layer.bias.as_ref().map(|bias| bias.dims())
        );
    }
}

/// x · weight in x's type: one product over all rows. A product for each row of the batch, as Burn's `linear` makes it
/// where the length suits it, would make a gradient of the whole weight for each of them, to be summed afterwards.
pub(crate) fn product(x: Tensor<3>, weight: Tensor<2>) -> Tensor<3> {
    let [batch_size, seq_length, _] = x.dims();
    if batch_size * seq_length == 0 {
        // ndarray's product divides by the number of rows.
        let [_, d_output] = weight.dims();
        return Tensor::zeros([batch_size, seq_length, d_output], (&x.device(), x.dtype()));
    }
    let weight = if weight.dtype() == x.dtype() { weight } else { weight.cast(x.dtype()) };
    let [width, _] = weight.dims();
    assert_eq!(x.dims()[2], width, "A product has a weight for x's width.");
    let output = <Dispatch as ProjectBackend>::product(rows_of(x), weight.into_dispatch());
    unfold(output, batch_size, seq_length)
}

fn weight_of(layer: &Linear) -> DispatchTensor {
    layer.weight.val().into_dispatch()
}

fn rows_of(x: Tensor<3>) -> DispatchTensor {
    let [batch_size, seq_length, width] = x.dims();
    x.reshape([batch_size * seq_length, width]).into_dispatch()
}

fn unfold(rows: DispatchTensor, batch_size: usize, seq_length: usize) -> Tensor<3> {
    let rows: Tensor<2> = Tensor::from_dispatch(rows);
    let [_, width] = rows.dims();
    rows.reshape([batch_size, seq_length, width])
}

altup_backend::operations! {
    /// [`project`] on a backend.
    pub trait ProjectBackend {
        /// x · weight
        ///
        /// # Shapes
        ///
        /// - x: `[rows, d_input]`, of at least one row
        /// - weight: `[d_input, d_output]`, of x's type
        /// - output: `[rows, d_output]`
        fn product(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
            match !Self::HAS_FAST_PRODUCTS && Self::on_host([&x, &weight]) {
                true => cpu::product::<Self>(&x, &weight),
                false => Self::float_matmul(x, weight),
            }
        }

        /// The gradient of x, `[rows, d_input]`: output_grad `[rows, d_output]` · weightᵀ.
        fn product_backward_x(
            weight: FloatTensor<Self>,
            output_grad: FloatTensor<Self>,
        ) -> FloatTensor<Self> {
            Self::product(output_grad, Self::float_transpose(weight))
        }

        /// The gradient of the weight, `[d_input, d_output]`: xᵀ · output_grad `[rows, d_output]`.
        fn product_backward_weight(
            x: FloatTensor<Self>,
            output_grad: FloatTensor<Self>,
        ) -> FloatTensor<Self> {
            Self::product(Self::float_transpose(x), output_grad)
        }

        // For the few rows of a decoding step. The weights may be stored in bf16 where x is f32.

        /// x · weight
        ///
        /// # Shapes
        ///
        /// - x: `[rows, d_input]`
        /// - weight: `[d_input, d_output]`
        /// - output: `[rows, d_output]`, of x's type
        fn project(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
            let [output] = few_rows::to_all::<Self, 1>(x, [weight]);
            output
        }

        /// x · first and x · second: a layer's gate and what it gates. The widths of the two may differ.
        ///
        /// # Shapes
        ///
        /// - x: `[rows, d_input]`
        /// - first, second: `[d_input, d_output]` each
        /// - outputs: `[rows, d_output]` each, of x's type
        fn project_to_two(
            x: FloatTensor<Self>,
            first: FloatTensor<Self>,
            second: FloatTensor<Self>,
        ) -> (FloatTensor<Self>, FloatTensor<Self>) {
            few_rows::to_all::<Self, 2>(x, [first, second]).into()
        }

        /// x · first, x · second and x · third: self-attention's queries, keys and values.
        ///
        /// # Shapes
        ///
        /// As in [`project_to_two`](Self::project_to_two).
        fn project_to_three(
            x: FloatTensor<Self>,
            first: FloatTensor<Self>,
            second: FloatTensor<Self>,
            third: FloatTensor<Self>,
        ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
            few_rows::to_all::<Self, 3>(x, [first, second, third]).into()
        }
    }
}

/// The operations for few rows are recorded as the primitive ones that they are made of there; decoding asks for no
/// gradients.
impl<B: ProjectBackend, C: CheckpointStrategy> ProjectBackend for Autodiff<B, C> {
    fn product(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        record_asked::<B, C, _, 2>(
            [x, weight],
            |[x, weight]| (B::product(x.clone(), weight.clone()), [x, weight]),
            |[x, weight], grad, [of_x, of_weight]| {
                // Where one isn't asked for, what is at hand.
                let x_grad = match of_x {
                    true => B::product_backward_x(weight, grad.clone()),
                    false => grad.clone(),
                };
                let weight_grad = match of_weight {
                    true => B::product_backward_weight(x, grad),
                    false => grad,
                };
                [x_grad, weight_grad]
            },
        )
    }
}

#[cfg(test)]
mod tests;
