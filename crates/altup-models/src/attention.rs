use burn::config::Config;
use burn::module::Module;
use burn::nn::{Linear, RmsNorm, RmsNormConfig};
use burn::tensor::{Device, Int, Tensor, s};

use crate::initialization::projection;
use crate::noise::{Noise, Place, check_dropout};
use crate::operations::attention::attention;
use crate::operations::project::{project, project_to_three, project_to_two};
use crate::operations::rms_norm::rms_norm;

/// Configuration of [`Attention`].
#[derive(Config, Debug)]
pub struct AttentionConfig {
    /// Width of what attends.
    pub d_model: usize,
    /// The number of heads.
    pub num_heads: usize,
    /// Width of a head's queries, keys and values; all heads together need not be d_model wide.
    pub d_kv: usize,
    /// Width of what is attended to. Default: d_model
    pub memory_width: Option<usize>,
    /// Dropout rate of the attention weights in training. Default: 0.0
    #[config(default = 0.0)]
    pub dropout: f64,
    /// Scales every initial standard deviation. Default: 1.0
    #[config(default = 1.0)]
    pub initializer_factor: f64,
}

/// T5's multi-head attention: no biases in the projections, and no 1/√d_kv (the initialisation of
/// the query projection takes its place).
///
/// Should be created with [`AttentionConfig`].
#[derive(Module, Debug)]
pub struct Attention {
    /// `[d_model, num_heads · d_kv]`
    pub query: Linear,
    /// `[memory_width, num_heads · d_kv]`
    pub key: Linear,
    /// `[memory_width, num_heads · d_kv]`
    pub value: Linear,
    /// `[num_heads · d_kv, d_model]`
    pub output: Linear,
    num_heads: usize,
    dropout: f64,
}

/// Projected keys and values, `[batch_size, length, num_heads, d_kv]` each.
#[derive(Clone, Debug)]
pub struct KeyValue {
    /// The keys.
    pub key: Tensor<4>,
    /// The values.
    pub value: Tensor<4>,
}

impl AttentionConfig {
    /// Initializes [`Attention`] as T5 does: standard deviations of (d_model · d_kv)^−½ for queries, width^−½ for
    /// keys and values, (num_heads · d_kv)^−½ for the output.
    ///
    /// # Panics
    ///
    /// Panics if there is no head, a width is 0, or the dropout isn't at least 0 and below 1.
    pub fn init(&self, device: &Device) -> Attention {
        check_dropout(self.dropout);
        let Self { d_model, num_heads, d_kv, .. } = *self;
        let memory_width = self.memory_width.unwrap_or(d_model);
        assert!(
            num_heads > 0 && d_kv > 0 && d_model > 0 && memory_width > 0,
            "Attention needs heads and widths. Got num_heads={num_heads}, d_kv={d_kv}, \
             d_model={d_model}, memory_width={memory_width}"
        );
        let inner = num_heads * d_kv;
        let projection = |d_input, d_output, fan_in: usize| {
            let std = self.initializer_factor * (fan_in as f64).powf(-0.5);
            projection(d_input, d_output, std, device)
        };
        Attention {
            query: projection(self.d_model, inner, self.d_model * self.d_kv),
            key: projection(memory_width, inner, memory_width),
            value: projection(memory_width, inner, memory_width),
            output: projection(inner, self.d_model, inner),
            num_heads: self.num_heads,
            dropout: self.dropout,
        }
    }
}

impl Attention {
    /// Projects what is attended to.
    ///
    /// # Shapes
    ///
    /// - memory: `[batch_size, length, memory_width]`
    /// - output: `[batch_size, length, num_heads, d_kv]` each
    pub fn project_memory(&self, memory: Tensor<3>) -> KeyValue {
        let [key, value] = project_to_two([&self.key, &self.value], memory);
        KeyValue { key: self.split_heads(key), value: self.split_heads(value) }
    }

    /// Projects to keys what is first and to values what is second, both `[batch_size, length, memory_width]`.
    pub(crate) fn project_memories(&self, [for_keys, for_values]: [Tensor<3>; 2]) -> KeyValue {
        KeyValue {
            key: self.split_heads(project(&self.key, for_keys)),
            value: self.split_heads(project(&self.value, for_values)),
        }
    }

    /// Projects positions that attend to each other: their queries, and their keys and values.
    fn project_self(&self, x: Tensor<3>) -> (Tensor<4>, KeyValue) {
        let [query, key, value] = project_to_three([&self.query, &self.key, &self.value], x)
            .map(|projected| self.split_heads(projected));
        (query, KeyValue { key, value })
    }

    /// Attends from `x` to `memory`.
    ///
    /// # Shapes
    ///
    /// - x: `[batch_size, queries, d_model]`
    /// - bias: broadcastable to `[batch_size, num_heads, queries, length]`, in f32, added to the scores
    /// - output: `[batch_size, queries, d_model]`
    pub fn forward(
        &self,
        x: Tensor<3>,
        memory: KeyValue,
        bias: Option<Tensor<4>>,
        noise: Noise,
    ) -> Tensor<3> {
        self.attend(self.split_heads(project(&self.query, x)), memory, bias, noise)
    }

    /// Attends from projected queries, `[batch_size, queries, num_heads, d_kv]`, to `memory`.
    fn attend(
        &self,
        query: Tensor<4>,
        memory: KeyValue,
        bias: Option<Tensor<4>>,
        noise: Noise,
    ) -> Tensor<3> {
        let [batch_size, queries, heads, width] = query.dims();
        let KeyValue { key, value } = memory;
        let attended = attention(query, key, value, bias, noise.mask(Place::Inner, self.dropout));
        project(&self.output, attended.reshape([batch_size, queries, heads * width]))
    }

    /// `[batch_size, length, num_heads · d_kv]` to `[batch_size, length, num_heads, d_kv]`
    fn split_heads(&self, projected: Tensor<3>) -> Tensor<4> {
        let [batch_size, length, inner] = projected.dims();
        projected.reshape([batch_size, length, self.num_heads, inner / self.num_heads])
    }
}

impl KeyValue {
    fn map(self, mut change: impl FnMut(Tensor<4>) -> Tensor<4>) -> KeyValue {
        KeyValue { key: change(self.key), value: change(self.value) }
    }

    /// The given rows of the batch.
    pub fn select_rows(self, rows: &Tensor<1, Int>) -> KeyValue {
        self.map(|tensor| tensor.select(0, rows.clone()))
    }
}

/// The keys and values of the positions decoded so far, with space for more. A new position is written into that
/// space; all are copied only when it is full.
#[derive(Clone, Debug, Default)]
pub struct PastKeyValue {
    room: Option<KeyValue>,
    length: usize,
}

impl PastKeyValue {
    /// Appends positions, and returns all.
    pub fn append(&mut self, next: KeyValue) -> KeyValue {
        let [batch_size, added, heads, width] = next.key.dims();
        let length = self.length + added;
        let room = match self.room.take() {
            // A whole target needs no space after it.
            None => next,
            Some(room) => {
                let [_, capacity, _, _] = room.key.dims();
                let room = match length <= capacity {
                    true => room,
                    false => room.map(|tensor| {
                        let shape = [batch_size, (2 * length).max(64) - capacity, heads, width];
                        let more = Tensor::zeros(shape, (&tensor.device(), tensor.dtype()));
                        Tensor::cat(vec![tensor, more], 1)
                    }),
                };
                let place = s![.., self.length..length];
                KeyValue {
                    key: room.key.slice_assign(place, next.key),
                    value: room.value.slice_assign(place, next.value),
                }
            }
        };
        self.length = length;
        // Narrowed to all that it has, a tensor's gradient would be copied into zeros.
        let all = match room.key.dims()[1] == length {
            true => room.clone(),
            false => room.clone().map(|tensor| tensor.narrow(1, 0, length)),
        };
        self.room = Some(room);
        all
    }

    /// Keeps the given rows of the batch.
    pub fn select_rows(&mut self, rows: &Tensor<1, Int>) {
        self.room = self.room.take().map(|room| room.select_rows(rows));
    }
}

/// Configuration of [`AttentionLayer`].
#[derive(Config, Debug)]
pub struct AttentionLayerConfig {
    /// The attention. Its dropout rate is also that of what the sub-layer adds.
    pub attention: AttentionConfig,
    /// ε of the norm. Default: 1e-6
    #[config(default = 1e-6)]
    pub epsilon: f64,
}

/// An attention sub-layer: x + dropout(attention(norm(x), …)).
///
/// Should be created with [`AttentionLayerConfig`].
#[derive(Module, Debug)]
pub struct AttentionLayer {
    /// Normalises the queries, in self-attention also what is attended to.
    pub norm: RmsNorm,
    /// The attention.
    pub attention: Attention,
}

impl AttentionLayerConfig {
    /// Initializes [`AttentionLayer`] as T5 does.
    ///
    /// # Panics
    ///
    /// As [`AttentionConfig::init`].
    pub fn init(&self, device: &Device) -> AttentionLayer {
        AttentionLayer {
            norm: RmsNormConfig::new(self.attention.d_model)
                .with_epsilon(self.epsilon)
                .init(device),
            attention: self.attention.init(device),
        }
    }
}

impl AttentionLayer {
    /// Attends from every position to all positions of `x` and to those before it in `past`, which
    /// is extended by them.
    ///
    /// # Shapes
    ///
    /// - x: `[batch_size, seq_length, d_model]`
    /// - bias: broadcastable to `[batch_size, num_heads, seq_length, past + seq_length]`, in f32
    /// - output: `[batch_size, seq_length, d_model]`
    pub fn attend_to_self(
        &self,
        x: Tensor<3>,
        bias: Option<Tensor<4>>,
        past: Option<&mut PastKeyValue>,
        noise: Noise,
    ) -> Tensor<3> {
        let (query, present) = self.attention.project_self(self.normed(x.clone()));
        let memory = match past {
            None => present,
            Some(past) => past.append(present),
        };
        self.add(x, self.attention.attend(query, memory, bias, noise), noise)
    }

    /// Attends from every position to a projected memory.
    ///
    /// # Shapes
    ///
    /// - x: `[batch_size, seq_length, d_model]`
    /// - bias: broadcastable to `[batch_size, num_heads, seq_length, memory_length]`, in f32
    /// - output: `[batch_size, seq_length, d_model]`
    pub fn attend_to_memory(
        &self,
        x: Tensor<3>,
        memory: KeyValue,
        bias: Option<Tensor<4>>,
        noise: Noise,
    ) -> Tensor<3> {
        let attended = self.attention.forward(self.normed(x.clone()), memory, bias, noise);
        self.add(x, attended, noise)
    }

    fn normed(&self, x: Tensor<3>) -> Tensor<3> {
        rms_norm(x, self.norm.gamma.val(), self.norm.epsilon)
    }

    fn add(&self, x: Tensor<3>, attended: Tensor<3>, noise: Noise) -> Tensor<3> {
        x + noise.drop(attended, Place::Output, self.attention.dropout)
    }
}
