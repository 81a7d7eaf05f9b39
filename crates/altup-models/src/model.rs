use burn::module::{Initializer, Module};
use burn::nn::{Embedding, EmbeddingConfig, Linear};
use burn::tensor::{Bool, Device, Int, Tensor};

use crate::initialization::{initialize, projection};
use crate::noise::Noise;
use crate::operations::embedding::embedding;
use crate::operations::project::{product, project};
use crate::{Decoder, DecoderCache, Encoder, LayerRouting, Memory, T5Config};

/// A T5 encoder-decoder, dense or with AltUp, as its [`T5Config`] describes it.
///
/// Should be created with [`T5Config::init`] or read with [`ModelDirectory`](crate::ModelDirectory).
#[derive(Module, Debug)]
pub struct T5 {
    /// The embedding table that encoder and decoder share, `[vocab_size, table_width]`.
    pub embedding: Embedding,
    /// The encoder.
    pub encoder: Encoder,
    /// The decoder.
    pub decoder: Decoder,
    /// The output layer, `[output_width, vocab_size]`, unless the embedding table serves as it.
    pub lm_head: Option<Linear>,
    /// What the decoder's output is multiplied by before the output layer.
    output_scale: f64,
    decoder_start_token: usize,
    eos_token: usize,
    load_balancing_coef: f64,
    router_z_coef: f64,
}

impl T5Config {
    /// A model with fresh parameters, the same for the same seed on every backend.
    ///
    /// # Panics
    ///
    /// Panics if the configuration is not [valid](T5Config::validate).
    pub fn init(&self, seed: u64, device: &Device) -> T5 {
        initialize(self.build(device), self, seed, device)
    }

    /// A model whose parameters are not allocated yet: to be filled, or to be counted.
    ///
    /// # Panics
    ///
    /// Panics if the configuration is not [valid](T5Config::validate).
    pub fn build(&self, device: &Device) -> T5 {
        if let Err(error) = self.validate() {
            panic!("The model's configuration can't be built: {error}");
        }
        T5 {
            embedding: EmbeddingConfig::new(self.vocab_size, self.table_width())
                .with_initializer(Initializer::Zeros)
                .init(device),
            encoder: Encoder::new(self, device),
            decoder: Decoder::new(self, device),
            lm_head: (!self.tie_word_embeddings).then(|| {
                let std = self.initializer_factor * (self.output_width() as f64).powf(-0.5);
                projection(self.output_width(), self.vocab_size, std, device)
            }),
            output_scale: if self.scales_outputs() {
                (self.d_model as f64).powf(-0.5)
            } else {
                1.0
            },
            decoder_start_token: self.decoder_start_token_id,
            eos_token: self.eos_token_id,
            load_balancing_coef: self.moe.as_ref().map_or(0.0, |moe| moe.load_balancing_coef),
            router_z_coef: self.moe.as_ref().map_or(0.0, |moe| moe.router_z_coef),
        }
    }
}

impl T5 {
    /// The logits of every target token, given those before it (teacher forcing), without dropout and router noise. To
    /// train, call [`forward_train`](Self::forward_train) or, with experts,
    /// [`forward_with_routing`](Self::forward_with_routing).
    ///
    /// # Shapes
    ///
    /// - input_ids: `[batch_size, input_length]`
    /// - padding: `[batch_size, input_length]`, true at padding; `None` if there is no padding. With `None`, tokens 0
    ///   are attended to as any others
    /// - labels: `[batch_size, target_length]`, padded with 0 or −100; experts do not compute on padding
    /// - output: `[batch_size, target_length, vocab_size]`
    pub fn forward(
        &self,
        input_ids: Tensor<2, Int>,
        padding: Option<Tensor<2, Bool>>,
        labels: Tensor<2, Int>,
    ) -> Tensor<3> {
        self.forward_logged(input_ids, padding, labels, Noise::none(), None)
    }

    /// As [`forward`](Self::forward), with the dropout of a training step: `noise` is [`Noise::training`]. For models
    /// without experts.
    ///
    /// # Panics
    ///
    /// Panics if the model has experts: their routers learn by [`auxiliary_loss`](Self::auxiliary_loss) of what
    /// [`forward_with_routing`](Self::forward_with_routing) returns.
    pub fn forward_train(
        &self,
        input_ids: Tensor<2, Int>,
        padding: Option<Tensor<2, Bool>>,
        labels: Tensor<2, Int>,
        noise: Noise,
    ) -> Tensor<3> {
        let (logits, routing) = self.forward_with_routing(input_ids, padding, labels, noise);
        assert!(routing.is_empty(), "Experts are trained by forward_with_routing");
        logits
    }

    /// As [`forward_train`](Self::forward_train), for any model: also returns how each layer with experts routed the
    /// tokens, the encoder's layers first.
    ///
    /// # Shapes
    ///
    /// As [`forward`](Self::forward).
    pub fn forward_with_routing(
        &self,
        input_ids: Tensor<2, Int>,
        padding: Option<Tensor<2, Bool>>,
        labels: Tensor<2, Int>,
        noise: Noise,
    ) -> (Tensor<3>, Vec<LayerRouting>) {
        let mut log = Vec::new();
        let logits = self.forward_logged(input_ids, padding, labels, noise, Some(&mut log));
        (logits, log)
    }

    /// What the routers' losses add to the training loss: their sums over the layers, each times its
    /// coefficient. None for a model without experts.
    ///
    /// # Shapes
    ///
    /// - output: `[1]`
    pub fn auxiliary_loss(&self, routing: &[LayerRouting]) -> Option<Tensor<1>> {
        let of_layer = |layer: &LayerRouting| {
            layer.auxiliary_loss(self.load_balancing_coef, self.router_z_coef)
        };
        routing.iter().map(of_layer).reduce(|sum, layer| sum + layer)
    }

    /// The model with layers of which the backward pass computes the activations anew, or with layers that keep them. A
    /// layer that is computed anew keeps its input alone: that is less memory for one more forward pass. Outputs and
    /// gradients are the same, bit for bit.
    ///
    /// This is for passes with a whole target, as those of training are; a [`Decoder`] with a cache keeps what it
    /// computes.
    pub fn recompute_layers(mut self, recompute: bool) -> Self {
        self.encoder.recomputes_layers = recompute;
        self.decoder.recomputes_layers = recompute;
        self
    }

    fn forward_logged(
        &self,
        input_ids: Tensor<2, Int>,
        padding: Option<Tensor<2, Bool>>,
        labels: Tensor<2, Int>,
        noise: Noise,
        mut log: Option<&mut Vec<LayerRouting>>,
    ) -> Tensor<3> {
        let [inputs, targets] = self.embed_both(input_ids, self.shift_right(labels.clone()));
        let (padding, of_encoder) = (padding.as_ref(), noise.in_stack(0));
        let memory = self.encoder.forward_logged(inputs, padding, of_encoder, log.as_deref_mut());
        self.decode_labels(&memory, targets, labels, noise, log)
    }

    /// The embeddings of inputs and of targets, from one lookup. The gradient of a lookup is as large as the table; two
    /// lookups would make two of them, to be added up.
    ///
    /// # Shapes
    ///
    /// - inputs, targets: `[rows, length]`
    /// - output: `[rows, length, table_width]` of each
    pub fn embed_both(&self, inputs: Tensor<2, Int>, targets: Tensor<2, Int>) -> [Tensor<3>; 2] {
        let shapes = [inputs.dims(), targets.dims()];
        let [of_inputs, of_targets] = shapes.map(|[rows, length]| rows * length);
        let ids = vec![inputs.reshape([1, of_inputs]), targets.reshape([1, of_targets])];
        let embedded = self.embed(Tensor::cat(ids, 1));
        let [_, _, width] = embedded.dims();
        let part = |first, count, [rows, length]: [usize; 2]| {
            embedded.clone().slice([0..1, first..first + count]).reshape([rows, length, width])
        };
        [part(0, of_inputs, shapes[0]), part(of_inputs, of_targets, shapes[1])]
    }

    /// The logits of every label, given those before it and an encoded input, outside of training.
    ///
    /// # Shapes
    ///
    /// - labels: `[batch_size, target_length]`, padded with 0 or −100; experts do not compute on padding
    /// - output: `[batch_size, target_length, vocab_size]`
    pub fn forward_decoder(&self, memory: &Memory, labels: Tensor<2, Int>) -> Tensor<3> {
        let targets = self.embed(self.shift_right(labels.clone()));
        self.decode_labels(memory, targets, labels, Noise::none(), None)
    }

    fn decode_labels(
        &self,
        memory: &Memory,
        targets: Tensor<3>,
        labels: Tensor<2, Int>,
        noise: Noise,
        log: Option<&mut Vec<LayerRouting>>,
    ) -> Tensor<3> {
        let routes = self.decoder.blocks.iter().any(|block| block.feed_forward.moe.is_some());
        let real = routes.then(|| labels.greater_elem(0));
        let (decoder, real, noise) = (&self.decoder, real.as_ref(), noise.in_stack(1));
        self.logits(match decoder.recomputes_layers {
            true => decoder.forward_recomputed(targets, memory, noise, real, log),
            false => decoder.forward_logged(targets, &mut decoder.start(memory), noise, real, log),
        })
    }

    /// Encodes a batch of inputs, outside of training.
    ///
    /// # Shapes
    ///
    /// - input_ids: `[batch_size, input_length]`
    /// - padding: `[batch_size, input_length]`, true where a token is padding
    pub fn encode(&self, input_ids: Tensor<2, Int>, padding: Option<&Tensor<2, Bool>>) -> Memory {
        self.encoder.forward(self.embed(input_ids), padding, Noise::none())
    }

    /// The logits of the token that follows each of `decoder_input_ids`, which follow those in
    /// `cache` (from [`Decoder::start`]) and are added to it.
    ///
    /// # Shapes
    ///
    /// - decoder_input_ids: `[batch_size, seq_length]`
    /// - output: `[batch_size, seq_length, vocab_size]`
    pub fn decode(&self, decoder_input_ids: Tensor<2, Int>, cache: &mut DecoderCache) -> Tensor<3> {
        let embedded = self.embed(decoder_input_ids);
        self.logits(self.decoder.forward(embedded, cache, Noise::none()))
    }

    fn embed(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        embedding(self.embedding.weight.val(), tokens)
    }

    /// The decoder's inputs for given targets: the start token, then all targets but the last. Padding of −100, as in
    /// Hugging Face's batches, becomes the padding token 0.
    ///
    /// # Shapes
    ///
    /// - labels: `[batch_size, target_length]`
    /// - output: `[batch_size, target_length]`
    pub fn shift_right(&self, labels: Tensor<2, Int>) -> Tensor<2, Int> {
        let [batch_size, target_length] = labels.dims();
        let start = self.start_tokens(batch_size);
        if target_length <= 1 {
            return start.slice([0..batch_size, 0..target_length]);
        }
        let before = labels.narrow(1, 0, target_length - 1).clamp_min(0);
        Tensor::cat(vec![start, before], 1)
    }

    /// The token that every target starts from, for a batch: `[batch_size, 1]`.
    pub(crate) fn start_tokens(&self, batch_size: usize) -> Tensor<2, Int> {
        Tensor::full([batch_size, 1], self.decoder_start_token as i64, &self.device())
    }

    /// The token that every target starts from. It is not a part of it.
    pub fn start_token(&self) -> u32 {
        self.decoder_start_token as u32
    }

    /// The token that ends a sequence.
    pub fn eos_token(&self) -> u32 {
        self.eos_token as u32
    }

    /// The device that the parameters are on.
    pub fn device(&self) -> Device {
        self.embedding.weight.device()
    }

    /// The logits of the decoder's output.
    ///
    /// # Shapes
    ///
    /// - hidden: `[batch_size, target_length, output_width]`, after the decoder's final norm
    /// - output: `[batch_size, target_length, vocab_size]`
    pub fn logits(&self, hidden: Tensor<3>) -> Tensor<3> {
        let hidden = if self.output_scale == 1.0 { hidden } else { hidden * self.output_scale };
        match &self.lm_head {
            Some(lm_head) => project(lm_head, hidden),
            None => product(hidden, self.embedding.weight.val().transpose()),
        }
    }
}
