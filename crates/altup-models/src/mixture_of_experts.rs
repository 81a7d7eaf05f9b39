use burn::config::Config;
use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::activation::{relu, softmax};
use burn::tensor::module::linear;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use crate::initialization::{normal, projection};
use crate::noise::Noise;

/// Configuration of [`MixtureOfExperts`].
#[derive(Config, Debug)]
pub struct MixtureOfExpertsConfig {
    /// Width of inputs and outputs.
    pub d_model: usize,
    /// The number of experts E.
    pub num_experts: usize,
    /// Hidden width of an expert.
    pub expert_d_ff: usize,
    /// Experts that compute on a token. Default: 1
    #[config(default = 1)]
    pub top_k: usize,
    /// In training, an expert takes at most this many times its even share of a batch's tokens, and those beyond
    /// are dropped. Default: 1.25
    #[config(default = 1.25)]
    pub capacity_factor: f64,
    /// The same outside of training. Default: none, no token is dropped
    pub eval_capacity_factor: Option<f64>,
    /// In training, what the router reads is multiplied by noise between 1 − this and 1 + this. Default: 0.0
    #[config(default = 0.0)]
    pub jitter: f64,
    /// Scales every initial standard deviation. Default: 1.0
    #[config(default = 1.0)]
    pub initializer_factor: f64,
}

/// Experts of a feed-forward layer, and the router that chooses among them (after
/// [Switch Transformers](https://arxiv.org/abs/2101.03961)).
///
/// With router logits r = x W, each token gets the probabilities softmax(r) over the E experts. The
/// `top_k` likeliest compute relu(x wi) wo, and the output is their sum, each times its probability.
/// Tokens are gathered by expert, so the cost is that of the tokens routed, however many experts there
/// are and however unevenly they are chosen.
///
/// Should be created with [`MixtureOfExpertsConfig`].
#[derive(Module, Debug)]
pub struct MixtureOfExperts {
    /// W, `[d_model, num_experts]`.
    pub router: Linear,
    /// The experts.
    pub experts: Experts,
    top_k: usize,
    capacity_factor: f64,
    eval_capacity_factor: Option<f64>,
    jitter: f64,
}

/// The projections of all experts of a layer, without biases.
#[derive(Module, Debug)]
pub struct Experts {
    /// `[num_experts, d_model, expert_d_ff]`
    pub wi: Param<Tensor<3>>,
    /// `[num_experts, expert_d_ff, d_model]`
    pub wo: Param<Tensor<3>>,
}

/// How a layer routed the tokens of a batch; padding doesn't count.
#[derive(Clone, Debug)]
pub struct LayerRouting {
    /// `encoder` or `decoder`; empty for a layer on its own.
    pub stack: &'static str,
    /// The layer, counted from 0; 0 for a layer on its own.
    pub layer: usize,
    /// E Σₑ fₑ Pₑ with fₑ the share of choices that fall on expert e, before any is dropped, and Pₑ the
    /// mean probability of e: 1 if both are even. `[1]`
    pub load_balancing_loss: Tensor<1>,
    /// The mean of (log Σₑ exp rₑ)², which keeps logits small. `[1]`
    pub z_loss: Tensor<1>,
    /// fₑ of every expert.
    pub loads: Vec<f64>,
    /// The mean entropy of a token's probabilities, in nats.
    pub entropy: f64,
    /// The share of choices that were dropped, as their expert was full.
    pub dropped: f64,
}

impl LayerRouting {
    /// What the layer's router adds to the training loss: its two losses, each times its weight. Switch Transformers
    /// weigh the first by 1e-2; 1e-3 is common for the second.
    ///
    /// # Shapes
    ///
    /// - output: `[1]`
    pub fn auxiliary_loss(&self, load_balancing_coef: f64, router_z_coef: f64) -> Tensor<1> {
        self.load_balancing_loss.clone() * load_balancing_coef + self.z_loss.clone() * router_z_coef
    }

    /// Both losses: `[2]`.
    pub(crate) fn losses(&self) -> Tensor<1> {
        Tensor::cat(vec![self.load_balancing_loss.clone(), self.z_loss.clone()], 0)
    }

    /// The same with other [`losses`](Self::losses), of another tape.
    pub(crate) fn with_losses(self, losses: Tensor<1>) -> Self {
        let [load_balancing_loss, z_loss] = [0, 1].map(|loss| losses.clone().narrow(0, loss, 1));
        Self { load_balancing_loss, z_loss, ..self }
    }
}

/// What a layer is told of a pass and of the tokens that it computes on, and where it leaves how it routed them.
pub(crate) struct LayerContext<'a> {
    pub(crate) noise: Noise,
    pub(crate) stack: &'static str,
    pub(crate) layer: usize,
    /// Whether each token is no padding, row by row; none if none is.
    pub(crate) real: Option<&'a [bool]>,
    /// None where nobody asks.
    pub(crate) log: Option<&'a mut Vec<LayerRouting>>,
}

impl LayerContext<'_> {
    /// Of a layer on its own: no token is padding, and nobody asks how they are routed.
    pub(crate) fn new(noise: Noise) -> Self {
        Self { noise, stack: "", layer: 0, real: None, log: None }
    }

    /// Runs a layer on its own for the tokens that are `real`. How its experts routed them comes with its output.
    pub(crate) fn of_real<R>(
        real: Option<&[bool]>,
        noise: Noise,
        layer: impl FnOnce(&mut LayerContext<'_>) -> R,
    ) -> (R, Option<LayerRouting>) {
        let mut log = Vec::new();
        let output =
            layer(&mut LayerContext { real, log: Some(&mut log), ..LayerContext::new(noise) });
        (output, log.pop())
    }
}

impl MixtureOfExpertsConfig {
    /// Initializes [`MixtureOfExperts`] with standard deviations of width^−½, as the network of a T5 layer.
    ///
    /// # Panics
    ///
    /// Panics if there are fewer experts than compute on a token, or none does; if a capacity factor isn't above 0;
    /// and if the jitter isn't between 0 and 1.
    pub fn init(&self, device: &Device) -> MixtureOfExperts {
        let Self { d_model, num_experts, expert_d_ff, top_k, .. } = *self;
        assert!(
            (1..=num_experts).contains(&top_k),
            "A token has at least one expert. Got num_experts={num_experts}, top_k={top_k}"
        );
        let factors = [Some(self.capacity_factor), self.eval_capacity_factor];
        assert!(
            factors.into_iter().flatten().all(|factor| factor > 0.0)
                && (0.0..1.0).contains(&self.jitter),
            "Capacities are above 0 and the jitter is below 1. Got capacity_factor={}, eval_capacity_factor={:?}, \
             jitter={}",
            self.capacity_factor,
            self.eval_capacity_factor,
            self.jitter
        );
        let std = |fan_in: usize| self.initializer_factor * (fan_in as f64).powf(-0.5);
        let experts =
            |shape: [usize; 3]| -> Param<Tensor<3>> { normal(std(shape[1])).init(shape, device) };
        MixtureOfExperts {
            router: projection(d_model, num_experts, std(d_model), device),
            experts: Experts {
                wi: experts([num_experts, d_model, expert_d_ff]),
                wo: experts([num_experts, expert_d_ff, d_model]),
            },
            top_k,
            capacity_factor: self.capacity_factor,
            eval_capacity_factor: self.eval_capacity_factor,
            jitter: self.jitter,
        }
    }
}

impl MixtureOfExperts {
    /// Applies the experts to every token, as if none were padding. A token whose experts are all full gets 0.
    ///
    /// # Shapes
    ///
    /// - x: `[batch_size, seq_length, d_model]`
    /// - output: `[batch_size, seq_length, d_model]`
    pub fn forward(&self, x: Tensor<3>, noise: Noise) -> Tensor<3> {
        self.forward_logged(x, &mut LayerContext::new(noise))
    }

    /// As [`forward`](Self::forward), but padding gets 0 and takes no expert's capacity. Also returns how the tokens were
    /// routed, with the losses that train the router ([`LayerRouting::auxiliary_loss`]).
    ///
    /// # Shapes
    ///
    /// - x: `[batch_size, seq_length, d_model]`
    /// - real: `[batch_size · seq_length]`, false where a token is padding; `None` if there is no padding
    /// - output: `[batch_size, seq_length, d_model]`
    pub fn forward_with_routing(
        &self,
        x: Tensor<3>,
        real: Option<&[bool]>,
        noise: Noise,
    ) -> (Tensor<3>, LayerRouting) {
        match LayerContext::of_real(real, noise, |context| self.forward_logged(x, context)) {
            (output, Some(routing)) => (output, routing),
            (_, None) => unreachable!("experts log how they are chosen"),
        }
    }

    /// As [`forward`](Self::forward), with the tokens and the log of `context`; padding gets 0.
    pub(crate) fn forward_logged(&self, x: Tensor<3>, context: &mut LayerContext<'_>) -> Tensor<3> {
        let shape @ [batch_size, seq_length, width] = x.dims();
        let tokens = batch_size * seq_length;
        if tokens == 0 {
            // Nothing to choose from, and means over nothing are left to no backend.
            if let Some(log) = context.log.as_deref_mut() {
                let zero = || Tensor::zeros([1], (&x.device(), DType::F32));
                log.push(LayerRouting {
                    stack: context.stack,
                    layer: context.layer,
                    load_balancing_loss: zero(),
                    z_loss: zero(),
                    loads: vec![0.0; self.router.weight.dims()[1]],
                    entropy: 0.0,
                    dropped: 0.0,
                });
            }
            return x;
        }
        let x = x.reshape([tokens, width]);
        // The router is f32 whatever the rest is: rounded logits tie, and ties go to the first expert.
        let read = context.noise.jitter(x.clone().cast(DType::F32), self.jitter);
        let logits = linear(read, self.router.weight.val().cast(DType::F32), None);
        let probabilities = softmax(logits.clone(), 1);

        let on_host: Vec<f32> = probabilities.clone().into_data().iter::<f32>().collect();
        let [_, num_experts] = probabilities.dims();
        let choices = Choices::new(&on_host, num_experts, self.top_k, context.real);
        let capacity =
            self.capacity(choices.real_tokens(), num_experts, context.noise.is_training());
        let dispatch = Dispatch::new(&choices, num_experts, capacity);
        if let Some(log) = context.log.as_deref_mut() {
            let real = context.real;
            let mean = |values: Tensor<2>| choices.mean_over_real(values, real);
            let loads = choices.loads(num_experts);
            let f =
                TensorData::new(loads.iter().map(|&load| load as f32).collect(), [1, num_experts]);
            let f = Tensor::<2>::from_data(f, (&x.device(), DType::F32));
            let balance = (mean(probabilities.clone()) * f).sum() * num_experts as f64;
            let max = logits.clone().detach().max_dim(1);
            let log_sum = (logits - max.clone()).exp().sum_dim(1).log() + max;
            log.push(LayerRouting {
                stack: context.stack,
                layer: context.layer,
                load_balancing_loss: balance,
                z_loss: mean(log_sum.square()).sum(),
                loads,
                entropy: choices.entropy(&on_host, num_experts),
                dropped: dispatch.dropped(&choices),
            });
        }
        if dispatch.tile_experts.is_empty() {
            return x.zeros_like().reshape(shape);
        }

        let gates = gates(probabilities, &choices, &dispatch, self.top_k).cast(x.dtype());
        let outputs = self.experts.forward(x.clone(), &dispatch);
        let chosen = outputs.select(0, index(dispatch.slot_of_choice.clone(), &x.device()));
        let weighted = chosen.reshape([tokens, self.top_k, width]) * gates.unsqueeze_dim::<3>(2);
        weighted.sum_dim(1).reshape(shape)
    }

    /// Choices that an expert takes at most.
    fn capacity(&self, real_tokens: usize, num_experts: usize, training: bool) -> usize {
        let factor = match training {
            true => self.capacity_factor,
            false => self.eval_capacity_factor.unwrap_or(f64::MAX),
        };
        let even_share = (real_tokens * self.top_k) as f64 / num_experts as f64;
        (factor * even_share).ceil() as usize
    }
}

impl Experts {
    /// The outputs of all slots of a dispatch: `[slots, d_model]`.
    fn forward(&self, x: Tensor<2>, dispatch: &Dispatch) -> Tensor<2> {
        let [_, width] = x.dims();
        let device = x.device();
        let tiles = dispatch.tile_experts.len();
        let slots = dispatch.token_of_slot.len();
        let experts = index(dispatch.tile_experts.clone(), &device);
        let gathered = x.select(0, index(dispatch.token_of_slot.clone(), &device));
        let gathered = gathered.reshape([tiles, slots / tiles, width]);
        let hidden = relu(gathered.matmul(self.wi.val().select(0, experts.clone())));
        hidden.matmul(self.wo.val().select(0, experts)).reshape([slots, width])
    }
}

/// The probabilities of the chosen experts, 0 where a choice is dropped: `[tokens, top_k]`. Their
/// gradients run through the whole softmax.
fn gates(
    probabilities: Tensor<2>,
    choices: &Choices,
    dispatch: &Dispatch,
    top_k: usize,
) -> Tensor<2> {
    let device = probabilities.device();
    let [tokens, _] = probabilities.dims();
    let experts: Vec<i32> =
        choices.experts.iter().map(|expert| expert.unwrap_or_default() as i32).collect();
    let experts = Tensor::<2, Int>::from_data(TensorData::new(experts, [tokens, top_k]), &device);
    let kept: Vec<f32> = dispatch.kept.iter().map(|&kept| f32::from(u8::from(kept))).collect();
    let kept = TensorData::new(kept, [tokens, top_k]);
    let kept = Tensor::<2>::from_data(kept, (&device, DType::F32));
    probabilities.gather(1, experts) * kept
}

fn index(values: Vec<i32>, device: &Device) -> Tensor<1, Int> {
    let count = values.len();
    Tensor::from_data(TensorData::new(values, [count]), device)
}

/// The experts that tokens choose: `top_k` for each, the likeliest first, the lowest of equal ones.
struct Choices {
    /// `[tokens, top_k]`, none for padding.
    experts: Vec<Option<usize>>,
    top_k: usize,
}

impl Choices {
    fn new(probabilities: &[f32], num_experts: usize, top_k: usize, real: Option<&[bool]>) -> Self {
        let mut experts = Vec::with_capacity(probabilities.len() / num_experts * top_k);
        for (token, row) in probabilities.chunks(num_experts).enumerate() {
            if real.is_some_and(|real| !real[token]) {
                experts.extend(std::iter::repeat_n(None, top_k));
                continue;
            }
            let first = experts.len();
            for _ in 0..top_k {
                let mut best: Option<usize> = None;
                for (expert, probability) in row.iter().enumerate() {
                    let taken = experts[first..].contains(&Some(expert));
                    if !taken && best.is_none_or(|best| *probability > row[best]) {
                        best = Some(expert);
                    }
                }
                experts.push(best);
            }
        }
        Self { experts, top_k }
    }

    fn real_tokens(&self) -> usize {
        self.experts.iter().flatten().count() / self.top_k
    }

    fn loads(&self, num_experts: usize) -> Vec<f64> {
        let mut loads = vec![0.0; num_experts];
        for expert in self.experts.iter().flatten() {
            loads[*expert] += 1.0;
        }
        let choices = (self.real_tokens() * self.top_k).max(1) as f64;
        loads.into_iter().map(|load: f64| load / choices).collect()
    }

    fn entropy(&self, probabilities: &[f32], num_experts: usize) -> f64 {
        let rows = probabilities.chunks(num_experts).zip(self.experts.chunks(self.top_k));
        let of_row = |row: &[f32]| -> f64 {
            let terms = row.iter().map(|&p| f64::from(p)).filter(|&p| p > 0.0);
            -terms.map(|p| p * p.ln()).sum::<f64>()
        };
        let sum: f64 =
            rows.filter(|(_, choices)| choices[0].is_some()).map(|(row, _)| of_row(row)).sum();
        sum / self.real_tokens().max(1) as f64
    }

    /// The mean of each column over the rows of real tokens: `[1, columns]`.
    fn mean_over_real(&self, values: Tensor<2>, real: Option<&[bool]>) -> Tensor<2> {
        let [tokens, _] = values.dims();
        let values = match real {
            None => values,
            Some(real) => {
                let mask: Vec<f32> = real.iter().map(|&real| f32::from(u8::from(real))).collect();
                let mask = TensorData::new(mask, [tokens, 1]);
                values.clone() * Tensor::<2>::from_data(mask, (&values.device(), DType::F32))
            }
        };
        values.sum_dim(0) / self.real_tokens().max(1) as f64
    }
}

/// Where the choices are computed: in tiles of equally many slots, each tile of one expert. An expert
/// with more choices than a tile has slots gets several, so that a crowded expert doesn't make the tiles
/// of all others long.
struct Dispatch {
    tile_experts: Vec<i32>,
    /// The token that each slot computes on; token 0 in slots that nobody reads.
    token_of_slot: Vec<i32>,
    /// The slot that each choice reads; slot 0 where it is dropped.
    slot_of_choice: Vec<i32>,
    kept: Vec<bool>,
}

impl Dispatch {
    fn new(choices: &Choices, num_experts: usize, capacity: usize) -> Self {
        let tokens = choices.experts.len() / choices.top_k;
        let mut of_expert: Vec<Vec<usize>> = vec![Vec::new(); num_experts];
        let mut kept = vec![false; choices.experts.len()];
        // All first choices come before any second one, and earlier tokens before later ones.
        for number in 0..choices.top_k {
            for token in 0..tokens {
                let choice = token * choices.top_k + number;
                if let Some(expert) = choices.experts[choice]
                    && of_expert[expert].len() < capacity
                {
                    of_expert[expert].push(choice);
                    kept[choice] = true;
                }
            }
        }
        let active = of_expert.iter().filter(|choices| !choices.is_empty()).count();
        let total: usize = of_expert.iter().map(Vec::len).sum();
        // An even share: less than a share of an expert's slots stays empty, and a batched product of
        // fewer and longer tiles is faster than one of many short ones.
        let tile = total.div_ceil(active.max(1)).max(1);

        let mut dispatch = Self {
            tile_experts: Vec::new(),
            token_of_slot: Vec::new(),
            slot_of_choice: vec![0; choices.experts.len()],
            kept,
        };
        for (expert, of_expert) in of_expert.iter().enumerate() {
            for chunk in of_expert.chunks(tile) {
                dispatch.tile_experts.push(expert as i32);
                for &choice in chunk {
                    dispatch.slot_of_choice[choice] = dispatch.token_of_slot.len() as i32;
                    dispatch.token_of_slot.push((choice / choices.top_k) as i32);
                }
                dispatch.token_of_slot.extend(std::iter::repeat_n(0, tile - chunk.len()));
            }
        }
        dispatch
    }

    /// The share of choices that were dropped.
    fn dropped(&self, choices: &Choices) -> f64 {
        let chosen = choices.experts.iter().flatten().count();
        let kept = self.kept.iter().filter(|&&kept| kept).count();
        (chosen - kept) as f64 / chosen.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FeedForwardLayerConfig;

    /// Three tokens, two experts: tokens 0 and 1 choose expert 0, token 2 chooses expert 1.
    const PROBABILITIES: [f32; 6] = [0.9, 0.1, 0.6, 0.4, 0.3, 0.7];

    /// Two experts. Token (1, 0) has the logits (ln 3, 0), so p = (3/4, 1/4) and log Σ exp = ln 4; token
    /// (0, 1) has (0, 0), so p = (1/2, 1/2), log Σ exp = ln 2, and the tie goes to expert 0. All choices
    /// fall on expert 0: balance 2 (1 · (3/4 + 1/2)/2 + 0), z (ln² 4 + ln² 2)/2. A third token is padding.
    #[test]
    fn the_losses_by_hand() {
        let device = Device::flex();
        let mut moe = MixtureOfExpertsConfig::new(2, 2, 1).init(&device);
        let weight = TensorData::from([[3f32.ln(), 0.0], [0.0, 0.0]]);
        moe.router.weight = Param::from_tensor(Tensor::from_data(weight, &device));
        let x = TensorData::from([[[1f32, 0.0], [0.0, 1.0], [5.0, 5.0]]]);
        let mut log = Vec::new();
        let mut context = LayerContext {
            noise: Noise::none(),
            stack: "encoder",
            layer: 0,
            real: Some(&[true, true, false]),
            log: Some(&mut log),
        };
        let output = moe.forward_logged(Tensor::from_data(x, &device), &mut context);
        assert_eq!(output.dims(), [1, 3, 2]);
        let [routing] = &log[..] else { panic!("one layer") };
        let close = |found: f64, expected: f64| {
            assert!((found - expected).abs() < 1e-6, "{found} is not {expected}");
        };
        close(routing.load_balancing_loss.clone().into_scalar::<f64>(), 1.25);
        let z = (4f64.ln().powi(2) + 2f64.ln().powi(2)) / 2.0;
        close(routing.z_loss.clone().into_scalar::<f64>(), z);
        let entropy_of_first = -(0.75 * 0.75f64.ln() + 0.25 * 0.25f64.ln());
        close(routing.entropy, (entropy_of_first + 2f64.ln()) / 2.0);
        assert_eq!((routing.loads.as_slice(), routing.dropped), (&[1.0, 0.0][..], 0.0));
    }

    /// What a stack of one's own needs to train a router: padding left out, and losses with gradients.
    #[test]
    fn a_layer_on_its_own_tells_how_it_routes() {
        let device = Device::flex().autodiff();
        let moe = MixtureOfExpertsConfig::new(4, 3, 2).init(&device);
        let x = Tensor::<3>::ones([2, 3, 4], &device);
        let real = [true, true, true, true, false, false];
        let (output, routing) = moe.forward_with_routing(x.clone(), Some(&real), Noise::none());
        let padding = output.narrow(0, 1, 1).narrow(1, 1, 2);
        assert_eq!(padding.abs().sum().into_scalar::<f32>(), 0.0);
        // Equal tokens choose one expert: its share is 1, and the loss 3 times its probability.
        assert_eq!(routing.loads.iter().filter(|&&load| load == 1.0).count(), 1);
        let gradients = routing.auxiliary_loss(1e-2, 1e-3).backward();
        let of_router = moe.router.weight.grad(&gradients).unwrap();
        assert!(of_router.abs().sum().into_scalar::<f32>() > 0.0);

        let layer = FeedForwardLayerConfig::new(4)
            .with_moe(Some(MixtureOfExpertsConfig::new(4, 3, 2)))
            .init(&device);
        let (_, of_layer) = layer.forward_with_routing(x, Some(&real), Noise::none());
        assert_eq!(of_layer.unwrap().loads.len(), 3);
    }

    #[test]
    fn no_token_at_all_is_no_output() {
        let device = Device::flex();
        let moe = MixtureOfExpertsConfig::new(2, 3, 1).init(&device);
        for shape in [[0, 3, 2], [2, 0, 2]] {
            let mut log = Vec::new();
            let mut context =
                LayerContext { log: Some(&mut log), ..LayerContext::new(Noise::none()) };
            let output = moe.forward_logged(Tensor::zeros(shape, &device), &mut context);
            assert_eq!(output.dims(), shape);
            assert_eq!((log[0].loads.as_slice(), log[0].dropped), (&[0.0; 3][..], 0.0));
        }
    }

    #[test]
    fn a_full_expert_drops_later_tokens() {
        let choices = Choices::new(&PROBABILITIES, 2, 1, None);
        assert_eq!(choices.experts, [Some(0), Some(0), Some(1)]);
        let dispatch = Dispatch::new(&choices, 2, 1);
        assert_eq!(dispatch.kept, [true, false, true]);
        assert_eq!(dispatch.dropped(&choices), 1.0 / 3.0);
        let loads = choices.loads(2);
        assert!((loads[0] - 2.0 / 3.0).abs() < 1e-12 && (loads[1] - 1.0 / 3.0).abs() < 1e-12);
    }

    #[test]
    fn first_choices_come_before_second_ones() {
        // With two choices each, expert 0 has room for two: the first choices of tokens 0 and 1, and
        // not the second choice of token 2.
        let choices = Choices::new(&PROBABILITIES, 2, 2, None);
        assert_eq!(choices.experts, [0, 1, 0, 1, 1, 0].map(Some));
        let dispatch = Dispatch::new(&choices, 2, 2);
        assert_eq!(dispatch.kept, [true, true, true, false, true, false]);
    }

    #[test]
    fn ties_go_to_the_lowest_expert_and_padding_chooses_none() {
        let choices = Choices::new(&[0.5, 0.5, 0.5, 0.5], 2, 1, Some(&[true, false]));
        assert_eq!(choices.experts, [Some(0), None]);
        assert_eq!(choices.real_tokens(), 1);
        assert!((choices.entropy(&[0.5, 0.5, 1.0, 0.0], 2) - 2f64.ln()).abs() < 1e-7);
    }

    /// Tiles hold every kept choice once, and their number follows the choices, not the experts.
    #[test]
    fn tiles_follow_the_choices() {
        for crowded in [false, true] {
            let tokens = 64;
            let probabilities: Vec<f32> = (0..tokens)
                .flat_map(|token| {
                    let chosen = if crowded { 3 } else { token % 16 };
                    (0..16).map(move |expert| f32::from(u8::from(expert == chosen)))
                })
                .collect();
            let choices = Choices::new(&probabilities, 16, 1, None);
            let dispatch = Dispatch::new(&choices, 16, usize::MAX);
            assert!(dispatch.token_of_slot.len() <= 2 * tokens);
            assert_eq!(dispatch.tile_experts.len(), if crowded { 1 } else { 16 });
            for (choice, &slot) in dispatch.slot_of_choice.iter().enumerate() {
                assert_eq!(dispatch.token_of_slot[slot as usize], choice as i32);
            }
        }
    }
}
