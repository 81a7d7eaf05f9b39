use burn::backend::Dispatch;
use burn::config::Config;
use burn::module::{Initializer, Module, Param};
use burn::tensor::{Device, Tensor, TensorData};

use crate::operations::update_blocks::{Selection, primitive, select_block, update_blocks};

/// Configuration of [`AltUp`].
#[derive(Config, Debug)]
pub struct AltUpConfig {
    /// The number of blocks K of a token's representation, at least 1.
    pub num_blocks: usize,
}

/// Alternating updates around one layer: predict, compute, correct.
///
/// A token's representation is K blocks x¹..xᴷ, each as wide as the layer. The layer L computes on
/// one block j* only; the others follow by K² + K learned scalars (after
/// [Alternating Updates for Efficient Transformers](https://arxiv.org/abs/2301.13310)):
///
/// ```text
/// predict   x̂ⁱ = Σⱼ pᵢⱼ xʲ                   prediction_coefs p, [K, K]
/// compute   x̃  = L(xʲ*)                      the old xʲ*, not the prediction
/// correct   x'ⁱ = x̂ⁱ + gᵢ (x̃ − x̂ʲ*)          correction_coefs g, [K]
/// ```
///
/// They start at p = I, g = 1, our choice where the paper leaves it open: every block then moves by
/// what the layer adds to block j*.
///
/// `AltUp` doesn't know which layer it wraps: [`forward`](Self::forward) takes it as a closure.
///
/// Should be created with [`AltUpConfig`].
#[derive(Module, Debug)]
pub struct AltUp {
    /// p of shape `[K, K]`.
    pub prediction_coefs: Param<Tensor<2>>,
    /// g of shape `[K]`.
    pub correction_coefs: Param<Tensor<1>>,
}

impl AltUpConfig {
    /// Initializes [`AltUp`] with p = I and g = 1.
    ///
    /// # Panics
    ///
    /// Panics if `num_blocks` is 0.
    pub fn init(&self, device: &Device) -> AltUp {
        assert!(
            self.num_blocks > 0,
            "AltUp needs at least one block. Got num_blocks={}",
            self.num_blocks
        );
        AltUp {
            prediction_coefs: Param::from_tensor(identity(self.num_blocks, device)),
            correction_coefs: Initializer::Ones.init([self.num_blocks], device),
        }
    }
}

/// Lies row by row in memory on every backend, as a tensor from a checkpoint does. ndarray's `Tensor::eye` lies
/// transposed, and sums over it differ in the last bit.
fn identity(size: usize, device: &Device) -> Tensor<2> {
    let values =
        (0..size * size).map(|index| f32::from(index % (size + 1) == 0)).collect::<Vec<_>>();
    Tensor::from_data(TensorData::new(values, [size, size]), device)
}

impl AltUp {
    /// Updates all blocks by running `layer` on block `block` alone.
    ///
    /// # Shapes
    ///
    /// - state: `[K, B, T, d]`, block-major so that a block is one contiguous slice
    /// - layer: `[B, T, d]` to `[B, T, d]`
    /// - output: `[K, B, T, d]`
    ///
    /// # Panics
    ///
    /// Panics if the state doesn't have K blocks, `block` is not one of them, or `layer` changes the shape or the
    /// type.
    pub fn forward(
        &self,
        state: Tensor<4>,
        block: usize,
        layer: impl FnOnce(Tensor<3>) -> Tensor<3>,
    ) -> Tensor<4> {
        self.forward_with(state, block, |x| (layer(x), ())).0
    }

    /// As [`forward`](Self::forward), around a layer that returns more than its output.
    pub fn forward_with<R>(
        &self,
        state: Tensor<4>,
        block: usize,
        layer: impl FnOnce(Tensor<3>) -> (Tensor<3>, R),
    ) -> (Tensor<4>, R) {
        self.check(&state, block);
        let selection = Selection::new(block);
        let (computed, more) = layer(select_block(state.clone(), &selection));
        (self.update_selected(state, computed, selection), more)
    }

    /// The predicted blocks x̂ⁱ = Σⱼ pᵢⱼ xʲ.
    ///
    /// # Shapes
    ///
    /// - state: `[K, B, T, d]`
    /// - output: `[K, B, T, d]`
    ///
    /// # Panics
    ///
    /// Panics if the state doesn't have K blocks.
    pub fn predict(&self, state: Tensor<4>) -> Tensor<4> {
        let shape @ [num_blocks, batch_size, seq_length, width] = state.dims();
        if shape.contains(&0) {
            return state; // ndarray's product divides by the number of columns.
        }
        let blocks = state.reshape([num_blocks, batch_size * seq_length * width]);
        self.prediction_coefs.val().cast(blocks.dtype()).matmul(blocks).reshape(shape)
    }

    /// The corrected blocks x'ⁱ = x̂ⁱ + gᵢ (x̃ − x̂ʲ*), from the predicted ones and the layer's output
    /// x̃ = `computed` on block j* = `block`.
    ///
    /// # Shapes
    ///
    /// - predicted: `[K, B, T, d]`
    /// - computed: `[B, T, d]`
    /// - output: `[K, B, T, d]`
    ///
    /// # Panics
    ///
    /// Panics if the shapes don't fit, or `block` isn't below K.
    pub fn correct(&self, predicted: Tensor<4>, computed: Tensor<3>, block: usize) -> Tensor<4> {
        let error = computed.unsqueeze_dim::<4>(0) - predicted.clone().narrow(0, block, 1);
        let gains = self.correction_coefs.val().cast(error.dtype()).reshape([-1, 1, 1, 1]);
        predicted + gains * error
    }

    /// Predict and correct in one pass over the blocks: equal to
    /// `correct(predict(state), computed, block)`, as the linear combination
    /// [`combine_blocks`](crate::operations::combine_blocks::combine_blocks) with the
    /// [coefficients](Self::coefficients) of both.
    ///
    /// # Shapes
    ///
    /// - state: `[K, B, T, d]`
    /// - computed: `[B, T, d]`
    /// - output: `[K, B, T, d]`
    ///
    /// # Panics
    ///
    /// As [`forward`](Self::forward).
    pub fn update(&self, state: Tensor<4>, computed: Tensor<3>, block: usize) -> Tensor<4> {
        self.check(&state, block);
        self.update_selected(state, computed, Selection::new(block))
    }

    fn update_selected(
        &self,
        state: Tensor<4>,
        computed: Tensor<3>,
        selection: Selection,
    ) -> Tensor<4> {
        let [_, batch_size, seq_length, width] = state.dims();
        assert_eq!(
            computed.dims(),
            [batch_size, seq_length, width],
            "The layer must keep its block's shape. Got state={:?}, layer output={:?}",
            state.dims(),
            computed.dims()
        );
        assert_eq!(
            state.dtype(),
            computed.dtype(),
            "The layer must keep its block's type. Got state={:?}, computed={:?}",
            state.dtype(),
            computed.dtype()
        );
        let (p, g) = (self.prediction_coefs.val(), self.correction_coefs.val());
        update_blocks(state, computed, p, g, selection)
    }

    /// Predict and correct around a layer on block j* = `block`, folded into one matrix:
    ///
    /// x'ⁱ = x̂ⁱ + gᵢ (x̃ − x̂ʲ*) = Σⱼ (pᵢⱼ − gᵢ pⱼ*ⱼ) xʲ + gᵢ x̃.
    ///
    /// In f32 if p and g are f16 or bf16.
    ///
    /// # Shapes
    ///
    /// - output: `[K, K + 1]`
    ///
    /// # Panics
    ///
    /// Panics if `block` is not below K.
    pub fn coefficients(&self, block: usize) -> Tensor<2> {
        self.check_block(block);
        let (p, g) = (self.prediction_coefs.val(), self.correction_coefs.val());
        let folded = primitive::fold::<Dispatch>(p.into_dispatch(), g.into_dispatch(), block);
        Tensor::from_dispatch(folded)
    }

    /// The number of blocks K.
    pub fn num_blocks(&self) -> usize {
        self.correction_coefs.dims()[0]
    }

    fn check(&self, state: &Tensor<4>, block: usize) {
        let num_blocks = self.num_blocks();
        let p = self.prediction_coefs.dims();
        assert_eq!(
            p, [num_blocks; 2],
            "p must be a matrix of as many rows and columns as g has values. Got p={p:?}, g=[{num_blocks}]"
        );
        assert_eq!(
            state.dims()[0],
            num_blocks,
            "The state must have one block for each of AltUp's. Got state={:?}, \
             num_blocks={num_blocks}",
            state.dims()
        );
        self.check_block(block);
    }

    fn check_block(&self, block: usize) {
        let num_blocks = self.num_blocks();
        assert!(
            block < num_blocks,
            "The layer's block must be one of the state's. Got block={block}, \
             num_blocks={num_blocks}"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{DType, Distribution, Tolerance};

    fn altup(p: TensorData, g: TensorData, device: &Device) -> AltUp {
        AltUp {
            prediction_coefs: Param::from_tensor(Tensor::from_data(p, device)),
            correction_coefs: Param::from_tensor(Tensor::from_data(g, device)),
        }
    }

    /// K = 2, one token, d = 1, x = (1, 10), L(x) = 3x, j* = 1:
    /// x̂ = (0.5·1 + 0.1·10, 2·10) = (1.5, 20), x̃ = 30, error 10,
    /// x' = (1.5 + 0.3·10, 20 + 0.5·10) = (4.5, 25).
    #[test]
    fn predict_compute_correct_by_hand() {
        let device = Device::flex();
        let altup = altup(
            TensorData::from([[0.5f32, 0.1], [0.0, 2.0]]),
            TensorData::from([0.3f32, 0.5]),
            &device,
        );
        let state = Tensor::from_data([[[[1.0f32]]], [[[10.0]]]], &device);
        let expected = TensorData::from([[[[4.5f32]]], [[[25.0]]]]);
        altup
            .forward(state.clone(), 1, |x| x * 3.0)
            .into_data()
            .assert_approx_eq::<f32>(&expected, Tolerance::default());
        let predicted = altup.predict(state.clone());
        let computed = state.narrow(0, 1, 1).squeeze_dim::<3>(0) * 3.0;
        altup
            .correct(predicted, computed, 1)
            .into_data()
            .assert_approx_eq::<f32>(&expected, Tolerance::default());
    }

    #[test]
    fn one_block_at_the_start_is_the_plain_layer() {
        let device = Device::flex();
        let altup = AltUpConfig::new(1).init(&device);
        let x = Tensor::<4>::random([1, 2, 5, 7], Distribution::Default, &device);
        let plain = x.clone().squeeze_dim::<3>(0).tanh();
        altup
            .forward(x, 0, |x| x.tanh())
            .squeeze_dim::<3>(0)
            .into_data()
            .assert_approx_eq::<f32>(&plain.into_data(), Tolerance::absolute(1e-6));
    }

    #[test]
    #[should_panic(expected = "state=[3, 1, 1, 2], num_blocks=2")]
    fn a_state_of_other_blocks_is_a_bug() {
        let device = Device::flex();
        let state = Tensor::zeros([3, 1, 1, 2], &device);
        AltUpConfig::new(2).init(&device).forward(state, 0, |x| x);
    }

    #[test]
    #[should_panic(expected = "p=[3, 3], g=[2]")]
    fn coefficients_that_do_not_fit_are_a_bug() {
        let device = Device::flex();
        let mut altup = AltUpConfig::new(2).init(&device);
        altup.prediction_coefs = AltUpConfig::new(3).init(&device).prediction_coefs;
        altup.forward(Tensor::zeros([2, 1, 1, 2], &device), 0, |x| x);
    }

    #[test]
    #[should_panic(expected = "block=2, num_blocks=2")]
    fn a_block_outside_the_state_is_a_bug() {
        let device = Device::flex();
        let state = Tensor::zeros([2, 1, 1, 2], &device);
        AltUpConfig::new(2).init(&device).forward(state, 2, |x| x);
    }

    #[test]
    #[should_panic(expected = "layer output=[1, 1, 1]")]
    fn a_layer_that_changes_the_shape_is_a_bug() {
        let device = Device::flex();
        let state = Tensor::zeros([2, 1, 1, 2], &device);
        AltUpConfig::new(2).init(&device).forward(state, 0, |x| x.narrow(2, 0, 1));
    }

    #[test]
    #[should_panic(expected = "state=F32, computed=BF16")]
    fn a_layer_of_another_type_is_a_bug() {
        let device = Device::flex();
        let state = Tensor::zeros([2, 1, 1, 2], &device);
        AltUpConfig::new(2).init(&device).forward(state, 0, |x| x.cast(DType::BF16));
    }

    /// p − g ⊗ p_j* of K = 2, j* = 1: row 0 is (0.5, 0.1) − 0.3 (0, 2), row 1 is (0, 2) − 0.5 (0, 2); g behind.
    #[test]
    fn coefficients_by_hand() {
        let altup = altup(
            TensorData::from([[0.5f32, 0.1], [0.0, 2.0]]),
            TensorData::from([0.3f32, 0.5]),
            &Device::flex(),
        );
        let expected = TensorData::from([[0.5f32, -0.5, 0.3], [0.0, 1.0, 0.5]]);
        let found = altup.coefficients(1).into_data();
        found.assert_approx_eq(&expected, Tolerance::<f32>::default());
    }

    #[test]
    fn a_layer_may_give_more_than_its_output() {
        let device = Device::flex();
        let state = Tensor::<4>::ones([2, 1, 3, 2], &device);
        let altup = AltUpConfig::new(2).init(&device);
        let (_, length) = altup.forward_with(state, 0, |x| {
            let [_, length, _] = x.dims();
            (x, length)
        });
        assert_eq!(length, 3);
    }
}
