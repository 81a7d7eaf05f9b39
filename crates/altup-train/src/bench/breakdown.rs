//! What the parts of a training step take, each alone: its forward and backward pass at the shapes that the
//! step has it at, over all layers.

use altup_core::AltUp;
use altup_data::Batch;
use altup_models::{Noise, T5, cross_entropy_sum};
use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::{GradientsParams, ModuleOptimizer};
use burn::tensor::{Device, Distribution, Tensor};
#[cfg(feature = "cube")]
use burn::train::TrainStep;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use super::BenchBatch;
use super::measure::{LEARNING_RATE, optimizer, seconds};
#[cfg(feature = "cube")]
use crate::learner::DeviceBatch;
use crate::learner::{Learner, ToDevice};

/// A part of a training step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// The batch's way from the host to the device. It is made ahead, on other threads
    Data,
    /// The tables of embeddings, of inputs and targets
    Embedding,
    /// The self-attention of encoder and decoder, and the cross-attention
    Attention,
    /// The feed-forward networks, experts included
    FeedForward,
    /// AltUp's predict and correct
    AltUp,
    /// The output layer and the cross-entropy
    Loss,
    /// AdamW's update of all weights. Not the norm of their gradients, nor clipping them
    Optimizer,
}

impl Part {
    /// All, in the order of a step.
    pub const ALL: [Self; 7] = [
        Self::Data,
        Self::Embedding,
        Self::Attention,
        Self::FeedForward,
        Self::AltUp,
        Self::Loss,
        Self::Optimizer,
    ];

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Embedding => "embeddings",
            Self::Attention => "attention",
            Self::FeedForward => "feed-forward",
            Self::AltUp => "AltUp update",
            Self::Loss => "output and loss",
            Self::Optimizer => "optimizer",
        }
    }
}

/// The seconds of every part of a model's step, as often as `repeats` says, after once to warm up.
///
/// The parts take turns, so that what else the machine does falls on all of them.
pub(super) fn measure(
    model: &T5,
    batch: &BenchBatch,
    device: &Device,
    repeats: usize,
) -> BTreeMap<Part, Vec<f64>> {
    let mut step = Step::new(model, batch, device);
    let mut seconds_of: BTreeMap<Part, Vec<f64>> = BTreeMap::new();
    for repeat in 0..=repeats {
        for part in Part::ALL {
            step.prepare(part);
            let taken = seconds(device, || step.run(part));
            if repeat > 0 {
                seconds_of.entry(part).or_default().push(taken);
            }
        }
    }
    seconds_of
}

/// The kernels that a step launches, by the names of their types.
#[cfg(feature = "cube")]
pub struct StepKernels {
    /// Those of each part.
    pub parts: BTreeMap<Part, Vec<&'static str>>,
    /// Those of the whole step. What belongs to no part is among them: the norms at the ends of the stacks, the widening
    /// and narrowing of states, the causal mask.
    pub step: Vec<&'static str>,
}

/// The kernels that a model's step launches. Each part, and the step, runs once before, in which Burn may try kernels
/// out.
#[cfg(feature = "cube")]
pub fn kernels(model: &T5, batch: &BenchBatch, device: &Device) -> StepKernels {
    let finish = || device.sync().expect("the device finishes what it was given");
    let launches = |run: &mut dyn FnMut()| {
        finish();
        let counted = || {
            run();
            finish();
        };
        altup_backend::cube::launches(counted).1
    };
    let mut step = Step::new(model, batch, device);
    let mut parts = BTreeMap::new();
    for part in Part::ALL {
        step.prepare(part);
        step.run(part);
        step.prepare(part);
        let mut launched = launches(&mut || step.run(part));
        // What begins the backward pass belongs to no part: it is counted from outputs that nothing computed.
        let outputs: Vec<Tensor<3>> = step.outputs(part).iter().map(tracked).collect();
        for name in launches(&mut || backward(outputs.clone())) {
            let place = launched.iter().position(|launched| *launched == name);
            launched.remove(place.expect("every part begins its backward pass so"));
        }
        parts.insert(part, launched);
    }
    step.whole();
    StepKernels { parts, step: launches(&mut || step.whole()) }
}

/// A model with inputs for each of its parts.
struct Step<'a> {
    model: &'a T5,
    batch: Batch,
    device: &'a Device,
    /// `[K, batch_size, length, d_model]`, of encoder and decoder.
    states: [Tensor<4>; 2],
    /// `[batch_size, length, output_width]`, of encoder and decoder.
    outputs: [Tensor<3>; 2],
    learner: Option<Learner>,
    optimizer: ModuleOptimizer,
    /// What the optimizer's next update takes.
    gradients: Option<GradientsParams>,
}

impl<'a> Step<'a> {
    fn new(model: &'a T5, batch: &BenchBatch, device: &'a Device) -> Self {
        let batch = batch.to_batch();
        let lengths = [batch.input_length, batch.target_length];
        let output_width = model.encoder.final_norm.gamma.dims()[0];
        let d_model = model.encoder.blocks[0].self_attention.norm.gamma.dims()[0];
        let blocks = model.encoder.blocks[0].altup.as_ref().map_or(1, |altup| altup.num_blocks());
        let random = Distribution::Normal(0.0, 1.0);
        let states = lengths.map(|length| {
            Tensor::random([blocks, batch.batch_size, length, d_model], random, device)
        });
        let outputs = lengths
            .map(|length| Tensor::random([batch.batch_size, length, output_width], random, device));
        Self {
            model,
            batch,
            device,
            states,
            outputs,
            learner: Some(Learner { model: model.clone() }),
            optimizer: optimizer(),
            gradients: None,
        }
    }

    /// Makes what a part finds when a step comes to it and takes with it. Comes before each run of the part.
    fn prepare(&mut self, part: Part) {
        if part == Part::Optimizer {
            self.gradients = Some(gradients_like(self.learner()));
        }
    }

    fn run(&mut self, part: Part) {
        match part {
            Part::Data => drop(self.batch.to_device(1, self.device)),
            Part::Optimizer => {
                let gradients = self.gradients.take().expect("prepared before");
                self.update(gradients);
            }
            _ => backward(self.outputs(part)),
        }
    }

    /// What a part puts out, with gradients for its weights and inputs.
    fn outputs(&self, part: Part) -> Vec<Tensor<3>> {
        let (model, none) = (self.model, Noise::none());
        let (encoder, decoder) = (&model.encoder.blocks, &model.decoder.blocks);
        match part {
            Part::Data | Part::Optimizer => Vec::new(),
            Part::Embedding => {
                let batch = self.batch.to_device(1, self.device);
                model.embed_both(batch.input_ids, batch.labels).into()
            }
            Part::Attention => self.attention(),
            Part::FeedForward => {
                let [of_encoder, of_decoder] = self.blocks();
                let encoder = encoder.iter().map(|b| b.feed_forward.forward(of_encoder(), none));
                let decoder = decoder.iter().map(|b| b.feed_forward.forward(of_decoder(), none));
                encoder.chain(decoder).collect()
            }
            Part::AltUp => {
                let [of_encoder, of_decoder] = &self.states;
                let encoder = encoder.iter().filter_map(|b| b.altup.as_ref());
                let decoder = decoder.iter().filter_map(|b| b.altup.as_ref());
                let encoder = encoder.map(|altup| update(altup, of_encoder));
                encoder.chain(decoder.map(|altup| update(altup, of_decoder))).collect()
            }
            Part::Loss => {
                let labels = self.batch.to_device(1, self.device).labels;
                let loss = cross_entropy_sum(model.logits(tracked(&self.outputs[1])), labels);
                vec![loss.reshape([1, 1, 1])]
            }
        }
    }

    /// Forward and backward pass, and the optimizer.
    #[cfg(feature = "cube")]
    fn whole(&mut self) {
        let batch = self.batch.to_device(1, self.device);
        let batch = DeviceBatch { noise: Noise::training(0, 1, 0), ..batch };
        let gradients = TrainStep::step(self.learner(), batch).grads;
        self.update(gradients);
    }

    fn learner(&self) -> &Learner {
        self.learner.as_ref().expect("every step puts it back")
    }

    fn update(&mut self, gradients: GradientsParams) {
        let learner = self.learner.take().expect("every step puts it back");
        self.learner = Some(self.optimizer.step(LEARNING_RATE, learner, gradients));
    }

    fn attention(&self) -> Vec<Tensor<3>> {
        let model = self.model;
        let [inputs, targets] = [self.batch.input_length, self.batch.target_length];
        let ([encoder, decoder], none) = (self.blocks(), Noise::none());
        let bias = model.encoder.position_bias.forward(0..inputs, 0..inputs, self.device);
        let of_encoder = model.encoder.blocks.iter().map(|block| {
            block.self_attention.attend_to_self(encoder(), Some(bias.clone()), None, none)
        });
        let bias = model.decoder.position_bias.forward(0..targets, 0..targets, self.device);
        let of_decoder = model.decoder.blocks.iter().flat_map(|block| {
            let memory = tracked(&self.outputs[0]);
            let memory = block.cross_attention.attention.project_memory(memory);
            let bias = Some(bias.clone());
            let to_self = block.self_attention.attend_to_self(decoder(), bias, None, none);
            let to_memory = block.cross_attention.attend_to_memory(decoder(), memory, None, none);
            [to_self, to_memory]
        });
        of_encoder.chain(of_decoder).collect()
    }

    /// What makes inputs of a layer, of the encoder and of the decoder.
    fn blocks(&self) -> [impl Fn() -> Tensor<3>; 2] {
        self.states
            .each_ref()
            .map(|state| move || tracked(&state.clone().narrow(0, 0, 1).squeeze_dim::<3>(0)))
    }
}

/// The values as an input of their own, that has a gradient.
fn tracked<const D: usize>(values: &Tensor<D>) -> Tensor<D> {
    values.clone().detach().require_grad()
}

/// Predict and correct around a layer that does nothing: block 0 is taken out of the state, and its gradient put back.
fn update(altup: &AltUp, state: &Tensor<4>) -> Tensor<3> {
    let shape @ [blocks, batch_size, length, width] = state.dims();
    let rows = [blocks * batch_size, length, width];
    // In a step the state is what the layer before put out, and never a leaf of the tape.
    let state = tracked(state).reshape(rows).reshape(shape);
    altup.forward(state, 0, |x| x).reshape(rows)
}

/// The backward pass from the sum of all outputs, where there are any.
fn backward(outputs: impl IntoIterator<Item = Tensor<3>>) {
    if let Some(sum) = outputs.into_iter().map(Tensor::sum).reduce(|sum, output| sum + output) {
        sum.backward();
    }
}

/// A gradient for every parameter, of its own values, which don't matter; in memory that nobody else holds, as that of a
/// step's gradients is.
fn gradients_like(learner: &Learner) -> GradientsParams {
    struct Collect(GradientsParams);
    impl ModuleVisitor for Collect {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0.register::<D>(param.id, param.val().inner() * 1.0);
        }
    }
    let mut collect = Collect(GradientsParams::new());
    learner.visit(&mut collect);
    collect.0
}
