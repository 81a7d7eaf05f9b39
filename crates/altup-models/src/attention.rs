use burn::module::Module;
use burn::nn::{Dropout, Linear, RmsNorm};
use burn::tensor::activation::softmax;
use burn::tensor::{DType, Device, Int, Tensor, s};

use crate::T5Config;
use crate::fused::{attention, project, project_to_three, project_to_two, rms_norm as normalize};
use crate::initialization::{dropout, projection, rms_norm};

/// T5's multi-head attention: no biases in the projections, and no 1/√d_k (the initialisation of
/// the query projection takes its place).
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
    dropout: Dropout,
    num_heads: usize,
}

/// Projected keys and values, `[batch_size, length, num_heads, d_kv]` each.
#[derive(Clone, Debug)]
pub struct KeyValue {
    /// The keys.
    pub key: Tensor<4>,
    /// The values.
    pub value: Tensor<4>,
}

impl Attention {
    fn new(config: &T5Config, memory_width: usize, device: &Device) -> Self {
        let inner = config.num_heads * config.d_kv;
        Self {
            query: projection(config.d_model, inner, device),
            key: projection(memory_width, inner, device),
            value: projection(memory_width, inner, device),
            output: projection(inner, config.d_model, device),
            dropout: dropout(config),
            num_heads: config.num_heads,
        }
    }

    /// Projects what is attended to.
    ///
    /// # Shapes
    ///
    /// - memory: `[batch_size, length, memory_width]`
    pub fn project_memory(&self, memory: Tensor<3>) -> KeyValue {
        let [key, value] = project_to_two([&self.key, &self.value], memory);
        KeyValue { key: self.split_heads(key), value: self.split_heads(value) }
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
    /// - bias: broadcastable to `[batch_size, num_heads, queries, keys]`, added to the scores
    /// - output: `[batch_size, queries, d_model]`
    pub fn forward(&self, x: Tensor<3>, memory: KeyValue, bias: Option<Tensor<4>>) -> Tensor<3> {
        self.attend(self.split_heads(project(&self.query, x)), memory, bias)
    }

    /// Attends from projected queries, `[batch_size, queries, num_heads, d_kv]`, to `memory`.
    fn attend(&self, query: Tensor<4>, memory: KeyValue, bias: Option<Tensor<4>>) -> Tensor<3> {
        let [batch_size, queries, _, _] = query.dims();
        let KeyValue { key, value } = memory;
        let drops = self.dropout.prob > 0.0 && query.device().is_autodiff();
        let attended = if drops {
            self.attend_with_dropout(query, key, value, bias)
        } else {
            let none = || Tensor::zeros([1, 1, 1, 1], (&query.device(), DType::F32));
            let bias = bias.unwrap_or_else(none);
            attention(query, key, value, bias)
        };
        let inner = self.output.weight.dims()[0];
        project(&self.output, attended.reshape([batch_size, queries, inner]))
    }

    /// Attention with dropout of its weights, `[batch_size, queries, num_heads, d_kv]` as all tensors.
    fn attend_with_dropout(
        &self,
        query: Tensor<4>,
        key: Tensor<4>,
        value: Tensor<4>,
        bias: Option<Tensor<4>>,
    ) -> Tensor<4> {
        let [query, key, value] = [query, key, value].map(|x| x.swap_dims(1, 2));
        let dtype = query.dtype();
        // Biases are f32, and so is the softmax, whatever the weights are.
        let scores = query.matmul(key.swap_dims(2, 3)).cast(DType::F32);
        let scores = match bias {
            Some(bias) => scores + bias,
            None => scores,
        };
        let weights = self.dropout.forward(softmax(scores, 3).cast(dtype));
        weights.matmul(value).swap_dims(1, 2)
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
    pub(crate) fn select_rows(self, rows: &Tensor<1, Int>) -> KeyValue {
        self.map(|tensor| tensor.select(0, rows.clone()))
    }
}

/// The keys and values of the positions decoded so far, with room for more: a position is written into
/// place, and only when the room is full are those before it copied.
#[derive(Clone, Debug, Default)]
pub struct PastKeyValue {
    room: Option<KeyValue>,
    length: usize,
}

impl PastKeyValue {
    /// Appends positions, and returns all.
    pub(crate) fn append(&mut self, next: KeyValue) -> KeyValue {
        let [batch_size, added, heads, width] = next.key.dims();
        let length = self.length + added;
        let room = match self.room.take() {
            // The positions of a whole target need no room behind them.
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
        let all = room.clone().map(|tensor| tensor.narrow(1, 0, length));
        self.room = Some(room);
        all
    }

    /// Keeps the given rows of the batch.
    pub(crate) fn select_rows(&mut self, rows: &Tensor<1, Int>) {
        self.room = self.room.take().map(|room| room.select_rows(rows));
    }
}

/// An attention sub-layer: x + dropout(attention(norm(x), …)).
#[derive(Module, Debug)]
pub struct AttentionLayer {
    /// Normalises the queries, in self-attention also what is attended to.
    pub norm: RmsNorm,
    /// The attention.
    pub attention: Attention,
    dropout: Dropout,
}

impl AttentionLayer {
    /// Self-attention, within one block of width d_model.
    pub(crate) fn self_attention(config: &T5Config, device: &Device) -> Self {
        Self::new(config, config.d_model, device)
    }

    /// Cross-attention, from one block of width d_model to the encoder's whole output.
    pub(crate) fn cross_attention(config: &T5Config, device: &Device) -> Self {
        Self::new(config, config.output_width(), device)
    }

    fn new(config: &T5Config, memory_width: usize, device: &Device) -> Self {
        Self {
            norm: rms_norm(config.d_model, config, device),
            attention: Attention::new(config, memory_width, device),
            dropout: dropout(config),
        }
    }

    /// Attends from every position to all positions of `x` and to those before it in `past`, which
    /// is extended by them.
    ///
    /// # Shapes
    ///
    /// - x: `[batch_size, seq_length, d_model]`
    /// - bias: broadcastable to `[batch_size, num_heads, seq_length, past + seq_length]`
    /// - output: `[batch_size, seq_length, d_model]`
    pub fn attend_to_self(
        &self,
        x: Tensor<3>,
        bias: Tensor<4>,
        past: Option<&mut PastKeyValue>,
    ) -> Tensor<3> {
        let normed = normalize(&self.norm, x.clone());
        let (query, present) = self.attention.project_self(normed);
        let memory = match past {
            None => present,
            Some(past) => past.append(present),
        };
        x + self.dropout.forward(self.attention.attend(query, memory, Some(bias)))
    }

    /// Attends from every position to a projected memory.
    ///
    /// # Shapes
    ///
    /// - x: `[batch_size, seq_length, d_model]`
    /// - bias: broadcastable to `[batch_size, num_heads, seq_length, memory_length]`
    /// - output: `[batch_size, seq_length, d_model]`
    pub fn attend_to_memory(
        &self,
        x: Tensor<3>,
        memory: KeyValue,
        bias: Option<Tensor<4>>,
    ) -> Tensor<3> {
        let normed = normalize(&self.norm, x.clone());
        x + self.dropout.forward(self.attention.forward(normed, memory, bias))
    }
}
