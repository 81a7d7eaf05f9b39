use altup_backend::has_kernels;
use burn::config::Config;
use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::activation::{relu, softmax};
use burn::tensor::module::linear;
use burn::tensor::{Bool, DType, Device, FloatDType, Int, Tensor, TensorData};

use crate::initialization::{normal, projection};
use crate::noise::Noise;
use crate::operations::dispatch::host::{Layout, Places, rounded_up};
use crate::operations::dispatch::{Dispatched, Room, dispatch};

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

/// How a layer routed the tokens of a batch; padding doesn't count. All in f32, and still on the device.
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
    /// fₑ of every expert. `[num_experts]`
    pub loads: Tensor<1>,
    /// The mean entropy of a token's probabilities, in nats. `[1]`
    pub entropy: Tensor<1>,
    /// The share of choices that were dropped, as their expert was full. `[1]`
    pub dropped: Tensor<1>,
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

    /// The same numbers, without the tape that they were computed on.
    pub fn without_tape(self) -> Self {
        Self {
            load_balancing_loss: self.load_balancing_loss.inner(),
            z_loss: self.z_loss.inner(),
            loads: self.loads.inner(),
            entropy: self.entropy.inner(),
            dropped: self.dropped.inner(),
            ..self
        }
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
    /// Whether each token is no padding, `[batch_size, seq_length]`; none if none is.
    pub(crate) real: Option<&'a Tensor<2, Bool>>,
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
        real: Option<&Tensor<2, Bool>>,
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
    /// - real: `[batch_size, seq_length]`, false where a token is padding; `None` if there is no padding
    /// - output: `[batch_size, seq_length, d_model]`
    pub fn forward_with_routing(
        &self,
        x: Tensor<3>,
        real: Option<&Tensor<2, Bool>>,
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
                let zeros = |count| Tensor::zeros([count], (&x.device(), DType::F32));
                log.push(LayerRouting {
                    stack: context.stack,
                    layer: context.layer,
                    load_balancing_loss: zeros(1),
                    z_loss: zeros(1),
                    loads: zeros(self.router.weight.dims()[1]),
                    entropy: zeros(1),
                    dropped: zeros(1),
                });
            }
            return x;
        }
        let x = x.reshape([tokens, width]);
        // The router is f32 whatever the rest is: rounded logits tie, and ties go to the first expert.
        let read = context.noise.jitter(x.clone().cast(DType::F32), self.jitter);
        let logits = linear(read, self.router.weight.val().cast(DType::F32), None);
        let probabilities = softmax(logits.clone(), 1);

        let capacity_factor = match context.noise.is_training() {
            true => Some(self.capacity_factor),
            false => self.eval_capacity_factor,
        };
        let real = context.real.map(|real| real.clone().reshape([tokens, 1]));
        let routed = Routed::new(&probabilities, real.as_ref(), self.top_k, capacity_factor);
        let place = (context.stack, context.layer);
        if let Some(log) = context.log.as_deref_mut() {
            log.push(routed.logged(logits, probabilities.clone(), real, place));
        }
        self.compute(x, probabilities, routed).reshape(shape)
    }

    /// The outputs of the chosen experts, each times its probability, 0 where all choices of a token are dropped.
    ///
    /// # Shapes
    ///
    /// - x, output: `[tokens, d_model]`
    /// - probabilities: `[tokens, num_experts]`
    fn compute(&self, x: Tensor<2>, probabilities: Tensor<2>, routed: Routed) -> Tensor<2> {
        let Routed { experts, slots } = routed;
        if slots.expert_of_tile.dims() == [0] {
            return x.zeros_like();
        }
        let ([tokens, width], [_, num_experts]) = (x.dims(), probabilities.dims());
        // Their gradients run through the whole softmax.
        let gates = probabilities.gather(1, experts.clamp_max(num_experts as i64 - 1));
        let gates = (gates * slots.kept()).cast(x.dtype());
        let outputs = self.experts.forward(x, &slots);
        // A choice without a slot reads any.
        let slot_of_choice = slots.slots.clamp_min(0).reshape([tokens * self.top_k]);
        let chosen = outputs.select(0, slot_of_choice).reshape([tokens, self.top_k, width]);
        (chosen * gates.unsqueeze_dim::<3>(2)).sum_dim(1).reshape([tokens, width])
    }
}

impl Experts {
    /// The outputs of all slots: `[slots, d_model]`.
    fn forward(&self, x: Tensor<2>, dispatched: &Dispatched) -> Tensor<2> {
        let [_, width] = x.dims();
        let [tiles] = dispatched.expert_of_tile.dims();
        let [slots] = dispatched.token_of_slot.dims();
        let experts = &dispatched.expert_of_tile;
        let gathered = x.select(0, dispatched.token_of_slot.clone());
        let gathered = gathered.reshape([tiles, slots / tiles, width]);
        let hidden = relu(gathered.matmul(self.wi.val().select(0, experts.clone())));
        hidden.matmul(self.wo.val().select(0, experts.clone())).reshape([slots, width])
    }
}

/// Which experts compute on which tokens.
struct Routed {
    /// The expert of each choice, num_experts where a token chooses none: `[tokens, top_k]`.
    experts: Tensor<2, Int>,
    slots: Dispatched,
}

impl Routed {
    /// Tokens choose the `top_k` likeliest experts, of which each takes at most `capacity_factor` times its even share.
    ///
    /// # Shapes
    ///
    /// - probabilities: `[tokens, num_experts]`
    /// - real: `[tokens, 1]`, false where a token is padding, which chooses none
    fn new(
        probabilities: &Tensor<2>,
        real: Option<&Tensor<2, Bool>>,
        top_k: usize,
        capacity_factor: Option<f64>,
    ) -> Self {
        // Elsewhere the operation reads the choices all the same.
        match has_kernels(&probabilities.device()) {
            true => Self::on_device(probabilities, real, top_k, capacity_factor),
            false => Self::on_host(probabilities, real, top_k, capacity_factor),
        }
    }

    /// Nothing is read by the host. There are slots for as many choices as may fall on an expert, of which some stay empty.
    fn on_device(
        probabilities: &Tensor<2>,
        real: Option<&Tensor<2, Bool>>,
        top_k: usize,
        capacity_factor: Option<f64>,
    ) -> Self {
        let [tokens, num_experts] = probabilities.dims();
        // The likeliest, the lowest of equal ones. Under autodiff Burn has no kernel for values with indices, and sorts on the
        // host.
        let probabilities = probabilities.clone().detach();
        // Which refuses to choose all there are: behind them is one that is never chosen.
        let candidates = match top_k == num_experts {
            true => {
                let never = probabilities.clone().narrow(1, 0, 1).full_like(-1.0);
                Tensor::cat(vec![probabilities, never], 1)
            }
            false => probabilities,
        };
        let experts = candidates.argtopk(top_k, 1);
        // Of probabilities that are NaN the choice may be anything.
        let experts = experts.clamp(0, num_experts as i64 - 1);
        let experts = match real {
            Some(real) => {
                let padding = real.clone().bool_not().expand([tokens, top_k]);
                experts.mask_fill(padding, num_experts as i64)
            }
            None => experts,
        };
        let room = room(tokens, top_k, num_experts, capacity_factor);
        let slots = dispatch(experts.clone(), room);
        Self { experts, slots }
    }

    /// As many slots as the choices need: what stays empty costs a CPU as much as what doesn't.
    fn on_host(
        probabilities: &Tensor<2>,
        real: Option<&Tensor<2, Bool>>,
        top_k: usize,
        capacity_factor: Option<f64>,
    ) -> Self {
        let [tokens, num_experts] = probabilities.dims();
        let read: Vec<f32> = probabilities.clone().into_data().iter::<f32>().collect();
        let real: Option<Vec<bool>> =
            real.map(|real| real.clone().into_data().iter::<bool>().collect());
        let choices = choose(&read, num_experts, top_k, real.as_deref());
        let even_share = choices.iter().flatten().count() as f64 / num_experts as f64;
        let factor = capacity_factor.unwrap_or(f64::MAX);
        let capacity = rounded_up(factor * even_share);
        let places = Places::new(&choices, top_k, num_experts, capacity);
        // An even share: less than a share of an expert's slots stays empty, and a batched product of fewer and longer
        // tiles is faster than one of many short ones.
        let active = places.taken.iter().filter(|&&taken| taken > 0).count();
        let total: usize = places.taken.iter().sum();
        let tile = total.div_ceil(active.max(1)).max(1);
        let layout = Layout::new(&choices, top_k, &places, tile);

        let device = probabilities.device();
        let choice = |expert: &Option<usize>| expert.unwrap_or(num_experts) as i32;
        let experts = TensorData::new(choices.iter().map(choice).collect(), [tokens, top_k]);
        let slots = TensorData::new(layout.slots, [tokens, top_k]);
        let slots = Dispatched {
            slots: Tensor::from_data(slots, &device),
            token_of_slot: index(layout.token_of_slot, &device),
            expert_of_tile: index(layout.expert_of_tile, &device),
            chosen: index(places.chosen.iter().map(|&chosen| chosen as i32).collect(), &device),
        };
        Self { experts: Tensor::from_data(experts, &device), slots }
    }

    /// What is told of it, with the losses that train the router.
    ///
    /// # Shapes
    ///
    /// - logits, probabilities: `[tokens, num_experts]`
    /// - real: `[tokens, 1]`
    fn logged(
        &self,
        logits: Tensor<2>,
        probabilities: Tensor<2>,
        real: Option<Tensor<2, Bool>>,
        (stack, layer): (&'static str, usize),
    ) -> LayerRouting {
        let [tokens, num_experts] = probabilities.dims();
        let real = real.map(|real| real.float().cast(DType::F32));
        // The mean of each column over the tokens that are no padding.
        let mean = |values: Tensor<2>| match &real {
            Some(real) => {
                let count = real.clone().sum_dim(0).clamp_min(1.0);
                (values * real.clone()).sum_dim(0) / count
            }
            None => values.sum_dim(0) / tokens as f64,
        };
        // Not by way of the device's own type: f16 counts no further than 2,048.
        let chosen = self.slots.chosen.clone().cast(FloatDType::F32);
        let choices = chosen.clone().sum();
        let at_least_one = choices.clone().clamp_min(1.0);
        let loads = chosen / at_least_one.clone();
        let balance = (mean(probabilities.clone()) * loads.clone().unsqueeze_dim::<2>(0)).sum();
        let max = logits.clone().detach().max_dim(1);
        let log_sum = (logits - max.clone()).exp().sum_dim(1).log() + max;
        let probabilities = probabilities.detach();
        let information = probabilities.clone() * probabilities.clamp_min(f32::MIN_POSITIVE).log();
        LayerRouting {
            stack,
            layer,
            load_balancing_loss: balance * num_experts as f64,
            z_loss: mean(log_sum.square()).sum(),
            loads,
            entropy: -mean(information.sum_dim(1)).sum(),
            dropped: (choices - self.slots.kept().sum()) / at_least_one,
        }
    }
}

impl Dispatched {
    /// 1 where a choice has a slot, 0 elsewhere: `[tokens, top_k]`, in f32.
    fn kept(&self) -> Tensor<2> {
        self.slots.clone().greater_equal_elem(0).float().cast(DType::F32)
    }
}

/// Room for as many choices as may fall on an expert: a tile for each one that may be chosen if it is not much longer than an
/// even share, and otherwise tiles of that length, as many as the worst case needs.
pub(crate) fn room(
    tokens: usize,
    top_k: usize,
    num_experts: usize,
    capacity_factor: Option<f64>,
) -> Room {
    let choices = tokens * top_k;
    let even = choices.div_ceil(num_experts);
    // An expert is chosen by a token once.
    let limit = |factor: f64| rounded_up(factor * (choices as f64 / num_experts as f64));
    let most = capacity_factor.map_or(tokens, |factor| limit(factor).clamp(1, tokens));
    // Σ ⌈n / even⌉ over the experts that are chosen is at most Σ (n + even − 1) / even.
    let active = num_experts.min(choices);
    let (tiles, tile) = match most <= 2 * even {
        true => (active, most),
        false => ((choices + active * (even - 1)) / even, even),
    };
    let capacity_factor = capacity_factor.filter(|&factor| limit(factor) < tokens);
    let capacity_factor = capacity_factor.map(|factor| (factor as f32).max(f32::MIN_POSITIVE));
    Room { num_experts, tiles, tile, capacity_factor, most }
}

fn index(values: Vec<i32>, device: &Device) -> Tensor<1, Int> {
    let count = values.len();
    Tensor::from_data(TensorData::new(values, [count]), device)
}

/// The experts that tokens choose: `top_k` for each, the likeliest first, the lowest of equal ones; none for padding.
/// `[tokens, top_k]`
fn choose(
    probabilities: &[f32],
    num_experts: usize,
    top_k: usize,
    real: Option<&[bool]>,
) -> Vec<Option<usize>> {
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
    experts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FeedForwardLayerConfig;
    use crate::operations::testing::devices;
    use burn::tensor::{Distribution, Tolerance};

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
        let real = Tensor::from_data(TensorData::from([[true, true, false]]), &device);
        let mut log = Vec::new();
        let mut context = LayerContext {
            noise: Noise::none(),
            stack: "encoder",
            layer: 0,
            real: Some(&real),
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
        close(routing.entropy.clone().into_scalar::<f64>(), (entropy_of_first + 2f64.ln()) / 2.0);
        assert_eq!(numbers(&routing.loads), [1.0, 0.0]);
        assert_eq!(numbers(&routing.dropped), [0.0]);
    }

    /// What a stack of one's own needs to train a router: padding left out, and losses with gradients.
    #[test]
    fn a_layer_on_its_own_tells_how_it_routes() {
        let device = Device::flex().autodiff();
        let moe = MixtureOfExpertsConfig::new(4, 3, 2).with_top_k(2).init(&device);
        let x = Tensor::<3>::ones([2, 3, 4], &device);
        let real = TensorData::from([[true, true, true], [true, false, false]]);
        let real = Tensor::from_data(real, &device);
        let (output, routing) = moe.forward_with_routing(x.clone(), Some(&real), Noise::none());
        let padding = output.narrow(0, 1, 1).narrow(1, 1, 2);
        assert_eq!(padding.abs().sum().into_scalar::<f32>(), 0.0);
        // Equal tokens choose the same two experts.
        let loads = numbers(&routing.loads);
        assert_eq!(loads.iter().filter(|&&load| load == 0.5).count(), 2);
        let gradients = routing.auxiliary_loss(1e-2, 1e-3).backward();
        let of_router = moe.router.weight.grad(&gradients).unwrap();
        assert!(of_router.abs().sum().into_scalar::<f32>() > 0.0);

        let layer = FeedForwardLayerConfig::new(4)
            .with_moe(Some(MixtureOfExpertsConfig::new(4, 3, 2)))
            .init(&device);
        let (_, of_layer) = layer.forward_with_routing(x, Some(&real), Noise::none());
        assert_eq!(of_layer.unwrap().loads.dims(), [3]);
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
            assert_eq!(numbers(&log[0].loads), [0.0; 3]);
            assert_eq!(numbers(&log[0].dropped), [0.0]);
        }
    }

    /// With two choices each, expert 0 has room for two: the first choices of tokens 0 and 1, and not the second choice of
    /// token 2.
    #[test]
    fn first_choices_come_before_second_ones_and_a_full_expert_drops_later_ones() {
        let choices = choose(&PROBABILITIES, 2, 2, None);
        assert_eq!(choices, [0, 1, 0, 1, 1, 0].map(Some));
        let places = Places::new(&choices, 2, 2, 2);
        let kept = places.of_choice.iter().map(Option::is_some);
        assert_eq!(kept.collect::<Vec<_>>(), [true, true, true, false, true, false]);
        assert_eq!((places.taken, places.chosen), (vec![2, 2], vec![3, 3]));
    }

    #[test]
    fn ties_go_to_the_lowest_expert_and_padding_chooses_none() {
        let choices = choose(&[0.5, 0.5, 0.5, 0.5], 2, 1, Some(&[true, false]));
        assert_eq!(choices, [Some(0), None]);
    }

    /// On the host, slots follow the choices, not the experts.
    #[test]
    fn as_many_slots_as_the_choices_need() {
        for crowded in [false, true] {
            let tokens = 64;
            let probability = |place: usize| {
                let (token, expert) = (place / 16, place % 16);
                f32::from(u8::from(expert == if crowded { 3 } else { token % 16 }))
            };
            let probabilities: Vec<f32> = (0..tokens * 16).map(probability).collect();
            let probabilities = TensorData::new(probabilities, [tokens, 16]);
            let probabilities = Tensor::from_data(probabilities, &Device::flex());
            let Dispatched { token_of_slot, expert_of_tile, .. } =
                Routed::on_host(&probabilities, None, 1, None).slots;
            assert!(token_of_slot.dims()[0] <= 2 * tokens);
            assert_eq!(expert_of_tile.dims(), [if crowded { 1 } else { 16 }]);
        }
    }

    /// There are tiles enough, also for the worst case.
    #[test]
    fn there_is_room_for_all_choices() {
        for tokens in 1..40 {
            for (num_experts, top_k) in [(1, 1), (3, 1), (3, 2), (8, 2), (50, 1), (50, 3)] {
                for factor in
                    [None, Some(1e-46), Some(0.5), Some(1.0), Some(1.25), Some(4.0), Some(1e9)]
                {
                    let Room { tiles, tile, most, .. } = room(tokens, top_k, num_experts, factor);
                    let choices = tokens * top_k;
                    // As many of the choices as fit on one expert, and one on each of the others that are left.
                    for crowded in 1..=most.min(tokens) {
                        let others = (choices - crowded).min(num_experts - 1);
                        let needed = crowded.div_ceil(tile) + others;
                        assert!(
                            needed <= tiles,
                            "{tokens}, {num_experts}, {top_k}, {factor:?}: {needed}"
                        );
                    }
                    assert!(
                        tiles * tile <= 2 * (choices + num_experts),
                        "{tiles} of {tile}: {choices}"
                    );
                }
            }
        }
    }

    /// On every backend, by the host and where the tensors are: outputs, gradients and what is told of them.
    #[test]
    fn where_experts_are_chosen_changes_nothing() {
        for device in devices().into_iter().map(Device::autodiff) {
            for (num_experts, top_k, capacity_factor) in
                [(4, 1, Some(1.25)), (5, 2, Some(0.6)), (3, 2, None), (16, 1, None), (1, 1, None)]
            {
                let config = MixtureOfExpertsConfig::new(8, num_experts, 12);
                let moe = config.with_top_k(top_k).init(&device);
                let x = Tensor::<3>::random([3, 7, 8], Distribution::Default, &device);
                let x = x.reshape([21, 8]).require_grad();
                for padded in [0, 5, 21] {
                    let real =
                        TensorData::new((0..21).map(|token| token >= padded).collect(), [21, 1]);
                    let real = Tensor::<2, Bool>::from_data(real, &device);
                    let real = (padded > 0).then_some(&real);
                    let [by_host, by_device] = [Routed::on_host, Routed::on_device].map(|route| {
                        let logits = linear(x.clone(), moe.router.weight.val(), None);
                        let probabilities = softmax(logits.clone(), 1);
                        let routed = route(&probabilities, real, top_k, capacity_factor);
                        let log =
                            routed.logged(logits, probabilities.clone(), real.cloned(), ("", 0));
                        let output = moe.compute(x.clone(), probabilities, routed);
                        let loss = output.clone().square().sum() + log.auxiliary_loss(1.0, 1.0);
                        let grads = loss.backward();
                        let router = moe.router.weight.grad(&grads).unwrap();
                        let grads = [x.grad(&grads).unwrap(), router];
                        let [input, router] = grads.map(|grad| grad.into_data());
                        let LayerRouting { loads, entropy, dropped, .. } = log.without_tape();
                        let told = Tensor::cat(vec![loads, entropy, dropped], 0).into_data();
                        [output.into_data(), input, router, told]
                    });
                    for (by_device, by_host) in by_device.iter().zip(&by_host) {
                        by_device.assert_approx_eq::<f32>(by_host, Tolerance::rel_abs(1e-4, 1e-5));
                    }
                }
            }
        }
    }

    fn numbers(tensor: &Tensor<1>) -> Vec<f64> {
        tensor.clone().into_data().iter::<f64>().collect()
    }
}
