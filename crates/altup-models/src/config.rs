use altup_core::{AltUpConfig, BlockSelection, Widened, Widening};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::attention::{AttentionConfig, AttentionLayerConfig};
use crate::decoder::DecoderBlockConfig;
use crate::encoder::{EncoderBlockConfig, ReductionConfig};
use crate::feed_forward::{FeedForwardConfig, FeedForwardLayerConfig};
use crate::mixture_of_experts::MixtureOfExpertsConfig;
use crate::relative_position_bias::RelativePositionBiasConfig;

/// What describes a model, whole: the fields of Hugging Face's `T5Config`, and the objects
/// `altup` and `moe`.
///
/// It is the `config.json` of a model directory, as [`from_json`](T5Config::from_json) reads it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct T5Config {
    /// `"t5"`, or `"mt5"`, whose models are those of T5 v1.1.
    pub model_type: String,
    /// Rows of the embedding table, at least the tokenizer's vocabulary. Default: 32128
    pub vocab_size: usize,
    /// Width of a layer, d. Default: 512
    pub d_model: usize,
    /// Width of an attention head, for keys, queries and values alike. Default: 64
    pub d_kv: usize,
    /// Hidden width of the feed-forward layer. Default: 2048
    pub d_ff: usize,
    /// Layers of the encoder. Default: 6
    pub num_layers: usize,
    /// Layers of the decoder. Default: as many as in the encoder
    pub num_decoder_layers: Option<usize>,
    /// Attention heads; their joint width need not be d_model. Default: 8
    pub num_heads: usize,
    /// Buckets of the relative position bias. Default: 32
    pub relative_attention_num_buckets: usize,
    /// Distance from which on all positions share the last bucket. Default: 128
    pub relative_attention_max_distance: usize,
    /// Dropout rate in training. Default: 0.1
    pub dropout_rate: f64,
    /// ε of the RMS norms. Default: 1e-6
    pub layer_norm_epsilon: f64,
    /// Scales every initial standard deviation. Default: 1.0
    pub initializer_factor: f64,
    /// The feed-forward layer's activation. Default: ReLU
    pub feed_forward_proj: Activation,
    /// Whether the output layer is the embedding table (the original T5) or a table of its own
    /// (T5 v1.1). Default: tied
    pub tie_word_embeddings: bool,
    /// Whether the decoder's output is scaled by d_model^−½ before the output layer. Default: where
    /// the output layer is tied, as in the original T5
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale_decoder_outputs: Option<bool>,
    /// The token that fills short sequences. Default: 0
    pub pad_token_id: usize,
    /// The token that ends a sequence. Default: 1
    pub eos_token_id: usize,
    /// The token that the decoder starts from. Default: 0
    pub decoder_start_token_id: usize,
    /// AltUp, or none for a dense T5. Default: none
    #[serde(skip_serializing_if = "Option::is_none")]
    pub altup: Option<AltUpModelConfig>,
    /// Mixture of experts in feed-forward layers, or none. Default: none
    #[serde(skip_serializing_if = "Option::is_none")]
    pub moe: Option<MoeConfig>,
}

/// The activation of T5's feed-forward layer, by its Hugging Face name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activation {
    /// relu(x wi) wo: the original T5.
    #[serde(rename = "relu")]
    Relu,
    /// (gelu(x wi_0) ⊙ x wi_1) wo with the tanh approximation of GELU: T5 v1.1.
    #[serde(rename = "gated-gelu")]
    GatedGelu,
}

/// The `altup` object of a `config.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AltUpModelConfig {
    /// The number of blocks K of a token's representation, at least 1.
    pub num_blocks: usize,
    /// Which block a layer computes on. Default: alternating
    #[serde(default)]
    pub selection: BlockSelection,
    /// How the representation is widened and read. Default: embedding
    #[serde(default)]
    pub widening: Widening,
    /// How encoder layers compute on fewer tokens, or none. Default: none
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoder_sequence: Option<EncoderSequence>,
}

impl AltUpModelConfig {
    /// K = `num_blocks` blocks in turn: the paper's AltUp, Recycled-AltUp or the baseline that sums, by `widening`.
    pub fn new(num_blocks: usize, widening: Widening) -> Self {
        Self {
            num_blocks,
            selection: BlockSelection::Alternating,
            widening,
            encoder_sequence: None,
        }
    }
}

/// The `altup.encoder_sequence` object: layers of the encoder that compute on fewer tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EncoderSequence {
    /// How.
    pub method: SequenceMethod,
    /// The layers compute on every `stride`-th token. Default: 4
    #[serde(default = "default_stride")]
    pub stride: usize,
    /// The first such layer, counted from 0. Default: 1
    #[serde(default = "default_first_layer")]
    pub first_layer: usize,
    /// The last such layer; without meaning for `average_pool`, which shortens the sequence for good.
    /// Default: the last but one
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_layer: Option<usize>,
}

/// The kind of a [`Reduction`](crate::Reduction), as `config.json` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SequenceMethod {
    /// Sequence-AltUp: on every k-th token; the others are predicted and corrected.
    Altup,
    /// On every k-th token; the others pass unchanged.
    StrideAndSkip,
    /// On means of k tokens, from the first such layer to the end of the encoder.
    AveragePool,
}

fn default_stride() -> usize {
    4
}

fn default_first_layer() -> usize {
    1
}

/// The `moe` object of a `config.json`: a mixture of experts in feed-forward layers.
///
/// A router gives each token a softmax over the experts; the `top_k` likeliest compute
/// relu(x wi) wo, and their outputs are summed, each times its probability (after
/// [Switch Transformers](https://arxiv.org/abs/2101.03961)).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoeConfig {
    /// The number of experts E.
    pub num_experts: usize,
    /// Hidden width of an expert.
    pub expert_d_ff: usize,
    /// Whether the experts add to the feed-forward network or replace it.
    pub mode: MoeMode,
    /// Experts that compute on a token. Default: 1
    #[serde(default = "default_top_k")]
    pub top_k: usize,
    /// The encoder layers that have experts. Default: all
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoder_layers: Option<Vec<usize>>,
    /// The decoder layers that have experts. Default: all
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decoder_layers: Option<Vec<usize>>,
    /// In training, an expert takes at most this many times its even share of a batch's tokens, and
    /// those beyond are dropped: they get nothing from it. Default: 1.25
    #[serde(default = "default_capacity_factor")]
    pub capacity_factor: f64,
    /// The same outside of training. In generation it counts the rows that have ended, too. Default: none, no token is
    /// dropped
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval_capacity_factor: Option<f64>,
    /// In training, what the router reads is multiplied by uniform noise between 1 − this and 1 + this.
    /// Default: 0.0
    #[serde(default)]
    pub router_jitter: f64,
    /// Weight of the load-balancing loss in the training loss, summed over layers. Default: 0.01
    #[serde(default = "default_load_balancing")]
    pub load_balancing_coef: f64,
    /// Weight of the router's z-loss in the training loss, summed over layers. Default: 0.001
    #[serde(default = "default_router_z")]
    pub router_z_coef: f64,
}

/// What the experts do in a feed-forward layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MoeMode {
    /// Their output is added to that of the feed-forward network, of the same normalised input (the
    /// AltUp paper's: many experts of small width).
    Partial,
    /// They replace the feed-forward network.
    Switch,
}

fn default_top_k() -> usize {
    1
}

fn default_capacity_factor() -> f64 {
    1.25
}

fn default_load_balancing() -> f64 {
    1e-2
}

fn default_router_z() -> f64 {
    1e-3
}

impl MoeConfig {
    /// `num_experts` experts of width `expert_d_ff` in every layer, with the defaults of all else.
    pub fn new(num_experts: usize, expert_d_ff: usize, mode: MoeMode) -> Self {
        Self {
            num_experts,
            expert_d_ff,
            mode,
            top_k: default_top_k(),
            encoder_layers: None,
            decoder_layers: None,
            capacity_factor: default_capacity_factor(),
            eval_capacity_factor: None,
            router_jitter: 0.0,
            load_balancing_coef: default_load_balancing(),
            router_z_coef: default_router_z(),
        }
    }

    fn validate(&self, num_layers: usize, decoder_layers: usize) -> Result<(), ConfigError> {
        let error = |field: &str, problem: String| {
            Err(ConfigError { field: format!("moe.{field}"), problem })
        };
        for (field, size) in [("num_experts", self.num_experts), ("expert_d_ff", self.expert_d_ff)]
        {
            if !(1..=1 << 24).contains(&size) {
                return error(field, format!("must be between 1 and {}, not {size}", 1 << 24));
            }
        }
        if !(1..=self.num_experts).contains(&self.top_k) {
            let (experts, top_k) = (self.num_experts, self.top_k);
            return error(
                "top_k",
                format!("must be between 1 and num_experts ({experts}), not {top_k}"),
            );
        }
        for (field, layers, count) in [
            ("encoder_layers", &self.encoder_layers, num_layers),
            ("decoder_layers", &self.decoder_layers, decoder_layers),
        ] {
            let layers = layers.as_deref().unwrap_or_default();
            if let Some(layer) = layers.iter().find(|&&layer| layer >= count) {
                return error(
                    field,
                    format!("must be layers below {count}, counted from 0, not {layer}"),
                );
            }
        }
        for (field, factor) in [
            ("capacity_factor", Some(self.capacity_factor)),
            ("eval_capacity_factor", self.eval_capacity_factor),
        ] {
            if let Some(factor) = factor.filter(|factor| !(*factor > 0.0 && factor.is_finite())) {
                return error(field, format!("must be a positive number, not {factor}"));
            }
        }
        if !(0.0..1.0).contains(&self.router_jitter) {
            let jitter = self.router_jitter;
            return error("router_jitter", format!("must be at least 0 and below 1, not {jitter}"));
        }
        for (field, coef) in [
            ("load_balancing_coef", self.load_balancing_coef),
            ("router_z_coef", self.router_z_coef),
        ] {
            if !(coef >= 0.0 && coef.is_finite()) {
                return error(field, format!("must be at least 0, not {coef}"));
            }
        }
        Ok(())
    }
}

impl EncoderSequence {
    /// The layers of an encoder of `num_layers` that compute on fewer tokens.
    pub fn layers(&self, num_layers: usize) -> std::ops::RangeInclusive<usize> {
        let last = match self.method {
            SequenceMethod::AveragePool => num_layers.saturating_sub(1),
            SequenceMethod::Altup | SequenceMethod::StrideAndSkip => {
                self.last_layer.unwrap_or(num_layers.saturating_sub(2))
            }
        };
        self.first_layer..=last
    }

    fn validate(&self, num_layers: usize) -> Result<(), ConfigError> {
        let error = |field: &str, problem: String| {
            Err(ConfigError { field: format!("altup.encoder_sequence.{field}"), problem })
        };
        if !(1..=1 << 16).contains(&self.stride) {
            return error(
                "stride",
                format!("must be between 1 and {}, not {}", 1 << 16, self.stride),
            );
        }
        if self.first_layer >= num_layers {
            return error(
                "first_layer",
                format!("must be below num_layers ({num_layers}), not {}", self.first_layer),
            );
        }
        let layers = self.layers(num_layers);
        let last = *layers.end();
        if layers.is_empty() || last >= num_layers {
            return error(
                "last_layer",
                format!(
                    "must be between first_layer ({}) and num_layers - 1 ({}), not {last}",
                    self.first_layer,
                    num_layers - 1
                ),
            );
        }
        Ok(())
    }
}

/// A configuration that can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} {problem}")]
pub struct ConfigError {
    /// The field, as it is written in JSON, with those it lies in: `altup.num_blocks`.
    pub field: String,
    /// What is wrong with its value.
    pub problem: String,
}

impl Default for T5Config {
    fn default() -> Self {
        Self {
            model_type: "t5".into(),
            vocab_size: 32128,
            d_model: 512,
            d_kv: 64,
            d_ff: 2048,
            num_layers: 6,
            num_decoder_layers: None,
            num_heads: 8,
            relative_attention_num_buckets: 32,
            relative_attention_max_distance: 128,
            dropout_rate: 0.1,
            layer_norm_epsilon: 1e-6,
            initializer_factor: 1.0,
            feed_forward_proj: Activation::Relu,
            tie_word_embeddings: true,
            scale_decoder_outputs: None,
            pad_token_id: 0,
            eos_token_id: 1,
            decoder_start_token_id: 0,
            altup: None,
            moe: None,
        }
    }
}

impl T5Config {
    /// Reads a `config.json`.
    ///
    /// Fields that are missing take the values that Hugging Face gives them, which for mT5 are not
    /// those of T5. Fields that change nothing here are ignored.
    ///
    /// # Errors
    ///
    /// Names the field that has a value of another type, or that asks for a computation which isn't
    /// this one. Values out of range are found by [`validate`](Self::validate).
    pub fn from_json(mut json: Value) -> Result<Self, ConfigError> {
        if json.get("model_type").is_some_and(|model_type| model_type == "mt5") {
            for (field, value) in mt5_defaults() {
                if json.get(field).is_none_or(Value::is_null) {
                    json[field] = value;
                }
            }
        }
        // Serde would read the fields of an object from a list too.
        let altup = json.get("altup");
        let objects = [
            ("config.json", Some(&json)),
            ("altup", altup),
            ("altup.encoder_sequence", altup.and_then(|altup| altup.get("encoder_sequence"))),
            ("moe", json.get("moe")),
        ];
        for (field, value) in objects {
            if value.is_some_and(|value| !value.is_object() && !value.is_null()) {
                return Err(ConfigError {
                    field: field.into(),
                    problem: "must be an object".into(),
                });
            }
        }
        let config: Self = serde_path_to_error::deserialize(&json).map_err(|error| {
            let problem = format!("can't be read: {}", error.inner());
            ConfigError { field: escaped(&error.path().to_string()), problem: escaped(&problem) }
        })?;
        let (is_gated, activation) = match config.feed_forward_proj {
            Activation::Relu => (false, "relu"),
            Activation::GatedGelu => (true, "gelu_new"),
        };
        // What feed_forward_proj says already, or what other models than this one have.
        for (field, value) in [
            ("is_gated_act", Value::from(is_gated)),
            ("dense_act_fn", activation.into()),
            ("is_encoder_decoder", true.into()),
            ("is_decoder", false.into()),
            ("tie_encoder_decoder", false.into()),
        ] {
            match json.get(field) {
                None | Some(Value::Null) => {}
                Some(found) if *found == value => {}
                Some(found) => {
                    let problem = format!("must be {value} for this model, not {found}");
                    return Err(ConfigError { field: field.into(), problem: escaped(&problem) });
                }
            }
        }
        Ok(config)
    }

    /// Layers of the decoder.
    pub fn decoder_layers(&self) -> usize {
        self.num_decoder_layers.unwrap_or(self.num_layers)
    }

    /// Whether the decoder's output is scaled by d_model^−½ (of the narrow d_model) before the output
    /// layer.
    pub fn scales_outputs(&self) -> bool {
        self.scale_decoder_outputs.unwrap_or(self.tie_word_embeddings)
    }

    /// The number of blocks K that a token's representation is widened to; 1 for a dense model.
    pub fn num_blocks(&self) -> usize {
        self.altup.as_ref().map_or(1, |altup| altup.num_blocks)
    }

    /// How the representation is widened; a dense model is the narrow `Sum` of one block.
    pub(crate) fn widening(&self) -> Widening {
        self.altup.as_ref().map_or(Widening::Sum, |altup| altup.widening)
    }

    /// Whether the layers are wrapped in predict and correct.
    pub fn updates_blocks(&self) -> bool {
        self.altup.as_ref().is_some_and(|altup| altup.widening != Widening::Sum)
    }

    /// The same model as it computes outside of training, wherever it runs: without dropout and router
    /// noise, and with the experts' capacity in evaluation.
    pub fn for_evaluation(&self) -> Self {
        let mut config = Self { dropout_rate: 0.0, ..self.clone() };
        if let Some(moe) = &mut config.moe {
            moe.router_jitter = 0.0;
            moe.capacity_factor = moe.eval_capacity_factor.unwrap_or(f64::MAX);
        }
        config
    }

    /// How the stacks carry the representation.
    pub(crate) fn widened(&self) -> Widened {
        match &self.altup {
            Some(altup) => Widened::new(altup.num_blocks, altup.widening, altup.selection),
            None => Widened::dense(),
        }
    }

    /// The encoder's layer number `layer`.
    pub(crate) fn encoder_block(&self, layer: usize) -> EncoderBlockConfig {
        let moe = self.encoder_moe(layer);
        EncoderBlockConfig::new(self.self_attention(), self.feed_forward_layer(moe))
            .with_altup(self.altup_of_layer())
            .with_reduction(self.reduction(layer))
    }

    /// The decoder's layer number `layer`.
    pub(crate) fn decoder_block(&self, layer: usize) -> DecoderBlockConfig {
        let moe = self.decoder_moe(layer);
        let mut cross_attention = self.self_attention();
        cross_attention.attention.memory_width = Some(self.output_width());
        let feed_forward = self.feed_forward_layer(moe);
        DecoderBlockConfig::new(self.self_attention(), cross_attention, feed_forward)
            .with_altup(self.altup_of_layer())
    }

    /// The position bias of a stack.
    pub(crate) fn position_bias(&self, bidirectional: bool) -> RelativePositionBiasConfig {
        RelativePositionBiasConfig::new(bidirectional, self.num_heads)
            .with_num_buckets(self.relative_attention_num_buckets)
            .with_max_distance(self.relative_attention_max_distance)
            .with_initial_std(self.initializer_factor * (self.d_model as f64).powf(-0.5))
    }

    fn self_attention(&self) -> AttentionLayerConfig {
        let attention = AttentionConfig::new(self.d_model, self.num_heads, self.d_kv)
            .with_dropout(self.dropout_rate)
            .with_initializer_factor(self.initializer_factor);
        AttentionLayerConfig::new(attention).with_epsilon(self.layer_norm_epsilon)
    }

    fn feed_forward_layer(&self, moe: Option<&MoeConfig>) -> FeedForwardLayerConfig {
        let replaced = moe.is_some_and(|moe| moe.mode == MoeMode::Switch);
        let network = FeedForwardConfig::new(self.d_model, self.d_ff, self.feed_forward_proj)
            .with_dropout(self.dropout_rate)
            .with_initializer_factor(self.initializer_factor);
        let experts = moe.map(|moe| {
            MixtureOfExpertsConfig::new(self.d_model, moe.num_experts, moe.expert_d_ff)
                .with_top_k(moe.top_k)
                .with_capacity_factor(moe.capacity_factor)
                .with_eval_capacity_factor(moe.eval_capacity_factor)
                .with_jitter(moe.router_jitter)
                .with_initializer_factor(self.initializer_factor)
        });
        FeedForwardLayerConfig::new(self.d_model)
            .with_feed_forward((!replaced).then_some(network))
            .with_moe(experts)
            .with_dropout(self.dropout_rate)
            .with_epsilon(self.layer_norm_epsilon)
    }

    fn altup_of_layer(&self) -> Option<AltUpConfig> {
        self.updates_blocks().then(|| AltUpConfig::new(self.num_blocks()))
    }

    /// How the encoder's layer number `layer` computes on fewer tokens. Pooling is that of one layer: those after it
    /// find a short sequence.
    fn reduction(&self, layer: usize) -> Option<ReductionConfig> {
        let sequence = self.encoder_sequence(layer)?;
        let pooled =
            sequence.method == SequenceMethod::AveragePool && layer != sequence.first_layer;
        (!pooled).then(|| ReductionConfig::new(sequence.method, sequence.stride))
    }

    /// The experts of a layer, where it has any.
    fn moe_of_layer(
        &self,
        layer: usize,
        layers: impl Fn(&MoeConfig) -> &Option<Vec<usize>>,
    ) -> Option<&MoeConfig> {
        let has =
            |moe: &&MoeConfig| layers(moe).as_ref().is_none_or(|layers| layers.contains(&layer));
        self.moe.as_ref().filter(has)
    }

    /// The experts of a layer of the encoder, where it has any.
    pub(crate) fn encoder_moe(&self, layer: usize) -> Option<&MoeConfig> {
        self.moe_of_layer(layer, |moe| &moe.encoder_layers)
    }

    /// The experts of a layer of the decoder, where it has any.
    pub(crate) fn decoder_moe(&self, layer: usize) -> Option<&MoeConfig> {
        self.moe_of_layer(layer, |moe| &moe.decoder_layers)
    }

    /// How the encoder's layer number `layer` computes on fewer tokens, if it does.
    pub(crate) fn encoder_sequence(&self, layer: usize) -> Option<&EncoderSequence> {
        let sequence = self.altup.as_ref()?.encoder_sequence.as_ref()?;
        sequence.layers(self.num_layers).contains(&layer).then_some(sequence)
    }

    /// Width of the embedding table.
    pub fn table_width(&self) -> usize {
        self.widening().table_width(self.d_model, self.num_blocks())
    }

    /// Width of a stack's output, which the decoder's cross-attention and the output layer read.
    pub fn output_width(&self) -> usize {
        self.widening().output_width(self.d_model, self.num_blocks())
    }

    /// Checks that a model can be built.
    ///
    /// # Errors
    ///
    /// Names the first field that can't be.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let error = |field: &str, problem| Err(ConfigError { field: field.into(), problem });
        match self.model_type.as_str() {
            "t5" | "mt5" => {}
            "umt5" => {
                let problem = "\"umt5\" is not supported: it has a position bias in every layer";
                return error("model_type", problem.into());
            }
            other => {
                return error("model_type", format!("must be \"t5\" or \"mt5\", not {other:?}"));
            }
        }
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("d_model", self.d_model),
            ("d_kv", self.d_kv),
            ("d_ff", self.d_ff),
            ("num_heads", self.num_heads),
        ];
        // Far above any model; keeps sizes from untrusted files from overflowing products.
        let sizes = sizes.map(|(field, size)| (field, size, 1 << 24));
        // As many as noise tells apart.
        let layers = [
            ("num_layers", self.num_layers, 1 << 20),
            ("num_decoder_layers", self.decoder_layers(), 1 << 20),
        ];
        for (field, size, most) in sizes.into_iter().chain(layers) {
            if !(1..=most).contains(&size) {
                return error(field, format!("must be between 1 and {most}, not {size}"));
            }
        }
        if !(4..=1 << 16).contains(&self.relative_attention_num_buckets)
            || !self.relative_attention_num_buckets.is_multiple_of(2)
        {
            return error(
                "relative_attention_num_buckets",
                format!("must be even and at least 4, not {}", self.relative_attention_num_buckets),
            );
        }
        // The decoder's exact buckets reach half the table; the logarithmic ones need room above.
        if self.relative_attention_max_distance <= self.relative_attention_num_buckets / 2 {
            return error(
                "relative_attention_max_distance",
                format!(
                    "must be greater than half of relative_attention_num_buckets ({}), not {}",
                    self.relative_attention_num_buckets / 2,
                    self.relative_attention_max_distance
                ),
            );
        }
        if !(0.0..1.0).contains(&self.dropout_rate) {
            return error(
                "dropout_rate",
                format!("must be at least 0 and less than 1, not {}", self.dropout_rate),
            );
        }
        for (field, value) in [
            ("layer_norm_epsilon", self.layer_norm_epsilon),
            ("initializer_factor", self.initializer_factor),
        ] {
            if !(value.is_finite() && value > 0.0) {
                return error(field, format!("must be a positive number, not {value}"));
            }
        }
        for (field, token) in [
            ("pad_token_id", self.pad_token_id),
            ("eos_token_id", self.eos_token_id),
            ("decoder_start_token_id", self.decoder_start_token_id),
        ] {
            if token >= self.vocab_size {
                return error(
                    field,
                    format!("must be less than vocab_size ({}), not {token}", self.vocab_size),
                );
            }
        }
        if self.pad_token_id != 0 {
            return error("pad_token_id", format!("must be 0, not {}", self.pad_token_id));
        }
        if let Some(moe) = &self.moe {
            moe.validate(self.num_layers, self.decoder_layers())?;
        }
        let Some(altup) = &self.altup else { return Ok(()) };
        if !(1..=1024).contains(&altup.num_blocks) {
            return error(
                "altup.num_blocks",
                format!("must be between 1 and 1024, not {}", altup.num_blocks),
            );
        }
        if let Some(sequence) = &altup.encoder_sequence {
            sequence.validate(self.num_layers)?;
        }
        if self.tie_word_embeddings && altup.widening == Widening::Sum && altup.num_blocks > 1 {
            return error(
                "tie_word_embeddings",
                "must be false for widening \"sum\": the table is wider than the decoder's output"
                    .into(),
            );
        }
        Ok(())
    }
}

/// What a file says is repeated in messages, but not its control characters.
fn escaped(text: &str) -> String {
    let escape = |c: char| match c.is_control() {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    };
    text.chars().map(escape).collect()
}

/// Where Hugging Face's `MT5Config` differs from its `T5Config`. mT5 never scales the decoder's
/// output.
fn mt5_defaults() -> [(&'static str, Value); 6] {
    [
        ("vocab_size", 250112.into()),
        ("d_ff", 1024.into()),
        ("num_layers", 8.into()),
        ("num_heads", 6.into()),
        ("feed_forward_proj", "gated-gelu".into()),
        ("scale_decoder_outputs", false.into()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_altup_object_reads_the_altup_object_of_a_config_json() {
        let config: T5Config = serde_json::from_str(
            r#"{"d_model": 8, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": false,
                "architectures": ["T5ForConditionalGeneration"],
                "altup": {"num_blocks": 3, "selection": "same", "widening": "recycled"}}"#,
        )
        .unwrap();
        assert_eq!(config.feed_forward_proj, Activation::GatedGelu);
        assert_eq!(
            config.altup,
            Some(AltUpModelConfig {
                num_blocks: 3,
                selection: BlockSelection::Same,
                widening: Widening::Recycled,
                encoder_sequence: None
            })
        );
        assert_eq!((config.table_width(), config.output_width()), (8, 8));
        config.validate().unwrap();
    }

    #[test]
    fn a_wrong_value_is_named() {
        let refused = |json: &str| {
            serde_json::from_str::<T5Config>(json).unwrap().validate().unwrap_err().to_string()
        };
        assert_eq!(
            refused(r#"{"altup": {"num_blocks": 0}}"#),
            "altup.num_blocks must be between 1 and 1024, not 0"
        );
        assert_eq!(
            refused(r#"{"model_type": "bart"}"#),
            "model_type must be \"t5\" or \"mt5\", not \"bart\""
        );
        assert!(refused(r#"{"model_type": "umt5"}"#).contains("position bias in every layer"));
        assert!(refused(r#"{"d_kv": 0}"#).starts_with("d_kv must be between 1 and"));
        let moe = |fields: &str| {
            format!(
                r#"{{"num_layers": 4, "moe": {{"num_experts": 8, "expert_d_ff": 4, "mode": "switch",
                    {fields}}}}}"#
            )
        };
        for (fields, message) in [
            ("\"top_k\": 9", "moe.top_k must be between 1 and num_experts (8), not 9"),
            ("\"capacity_factor\": 0.0", "moe.capacity_factor must be a positive number, not 0"),
            (
                "\"decoder_layers\": [4]",
                "moe.decoder_layers must be layers below 4, counted from 0, not 4",
            ),
            ("\"router_jitter\": 1.0", "moe.router_jitter must be at least 0 and below 1, not 1"),
        ] {
            assert_eq!(refused(&moe(fields)), message);
        }
        let sequence = |fields: &str| {
            format!(
                r#"{{"num_layers": 4, "altup": {{"num_blocks": 1, "encoder_sequence":
                    {{"method": "altup", {fields}}}}}}}"#
            )
        };
        for (fields, message) in [
            ("\"stride\": 0", "stride must be between 1 and 65536, not 0"),
            ("\"first_layer\": 4", "first_layer must be below num_layers (4), not 4"),
            (
                "\"first_layer\": 2, \"last_layer\": 1",
                "last_layer must be between first_layer (2) and num_layers - 1 (3), not 1",
            ),
            (
                // Without one, the last but one.
                "\"first_layer\": 3",
                "last_layer must be between first_layer (3) and num_layers - 1 (3), not 2",
            ),
            (
                "\"last_layer\": 4",
                "last_layer must be between first_layer (1) and num_layers - 1 (3), not 4",
            ),
        ] {
            let expected = format!("altup.encoder_sequence.{message}");
            assert_eq!(refused(&sequence(fields)), expected);
        }
        assert!(
            refused(r#"{"altup": {"num_blocks": 2, "widening": "sum"}}"#)
                .starts_with("tie_word_embeddings")
        );
    }

    fn from_json(json: &str) -> Result<T5Config, String> {
        T5Config::from_json(serde_json::from_str(json).unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn what_cannot_be_read_or_is_another_computation_is_named() {
        for (json, start) in [
            (r#"{"altup": {"num_blocks": 2, "k": 2}}"#, "altup.k can't be read: unknown field `k`"),
            (r#"{"altup": {"num_blocks": -1}}"#, "altup.num_blocks can't be read: invalid value"),
            (r#"{"d_model": "512"}"#, "d_model can't be read: invalid type"),
            (r#"{"d_ff": 1e99}"#, "d_ff can't be read"),
            (r#"{"feed_forward_proj": "gated-silu"}"#, "feed_forward_proj can't be read: unknown"),
            (r#"[]"#, "config.json must be an object"),
            (r#"{"is_gated_act": true}"#, "is_gated_act must be false for this model, not true"),
            (
                "{\"dense_act_fn\": \"\u{7f}\"}",
                "dense_act_fn must be \"relu\" for this model, not \"\\u{7f}",
            ),
            (r#"{"dense_act_fn": "gelu"}"#, "dense_act_fn must be \"relu\""),
            (r#"{"is_encoder_decoder": false}"#, "is_encoder_decoder must be true"),
        ] {
            let message = from_json(json).unwrap_err();
            assert!(message.starts_with(start), "{json}: {message}");
        }
        let published = r#"{"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu_new",
            "is_gated_act": true, "is_decoder": false, "use_cache": true, "n_positions": 512}"#;
        assert_eq!(from_json(published).unwrap().feed_forward_proj, Activation::GatedGelu);
    }

    #[test]
    fn mt5_has_defaults_of_its_own() {
        let config = from_json(r#"{"model_type": "mt5", "d_ff": 2048}"#).unwrap();
        assert_eq!((config.vocab_size, config.d_ff, config.num_layers), (250112, 2048, 8));
        assert!(!config.scales_outputs());
        config.validate().unwrap();
    }
}
