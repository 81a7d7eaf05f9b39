use burn::module::Module;
use burn::nn::{Dropout, Linear, RmsNorm};
use burn::tensor::activation::softmax;
use burn::tensor::{DType, Device, Int, Tensor};

use crate::T5Config;
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

/// Projected keys and values, `[batch_size, num_heads, length, d_kv]` each.
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
        KeyValue {
            key: self.split_heads(self.key.forward(memory.clone())),
            value: self.split_heads(self.value.forward(memory)),
        }
    }

    /// Attends from `x` to `memory`.
    ///
    /// # Shapes
    ///
    /// - x: `[batch_size, queries, d_model]`
    /// - bias: broadcastable to `[batch_size, num_heads, queries, keys]`, added to the scores
    /// - output: `[batch_size, queries, d_model]`
    pub fn forward(&self, x: Tensor<3>, memory: KeyValue, bias: Option<Tensor<4>>) -> Tensor<3> {
        let [batch_size, queries, _] = x.dims();
        let query = self.split_heads(self.query.forward(x));
        let dtype = query.dtype();
        // Biases are f32, and so is the softmax, whatever the weights are.
        let scores = query.matmul(memory.key.swap_dims(2, 3)).cast(DType::F32);
        let scores = match bias {
            Some(bias) => scores + bias,
            None => scores,
        };
        let weights = self.dropout.forward(softmax(scores, 3).cast(dtype));
        let attended = weights.matmul(memory.value).swap_dims(1, 2);
        self.output.forward(attended.reshape([batch_size, queries, self.inner_width()]))
    }

    fn split_heads(&self, projected: Tensor<3>) -> Tensor<4> {
        let [batch_size, length, inner] = projected.dims();
        projected
            .reshape([batch_size, length, self.num_heads, inner / self.num_heads])
            .swap_dims(1, 2) // [batch_size, num_heads, length, d_kv]
    }

    fn inner_width(&self) -> usize {
        self.output.weight.dims()[0]
    }
}

impl KeyValue {
    /// The given rows of the batch.
    pub(crate) fn select_rows(self, rows: &Tensor<1, Int>) -> KeyValue {
        KeyValue {
            key: self.key.select(0, rows.clone()),
            value: self.value.select(0, rows.clone()),
        }
    }

    /// Appends the positions of `next` behind these.
    pub(crate) fn append(self, next: KeyValue) -> KeyValue {
        KeyValue {
            key: Tensor::cat(vec![self.key, next.key], 2),
            value: Tensor::cat(vec![self.value, next.value], 2),
        }
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
        past: Option<&mut Option<KeyValue>>,
    ) -> Tensor<3> {
        let normed = self.norm.forward(x.clone());
        let present = self.attention.project_memory(normed.clone());
        let memory = match past {
            None => present,
            Some(past) => {
                let memory = match past.take() {
                    None => present,
                    Some(past) => past.append(present),
                };
                past.insert(memory).clone()
            }
        };
        x + self.dropout.forward(self.attention.forward(normed, memory, Some(bias)))
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
        let normed = self.norm.forward(x.clone());
        x + self.dropout.forward(self.attention.forward(normed, memory, bias))
    }
}
