"""T5 with Alternating Updates (AltUp) for Hugging Face transformers 5, in one file.

AltUp ("Alternating Updates for Efficient Transformers", Baykal et al., NeurIPS 2023, https://arxiv.org/abs/2301.13310)
makes the representation of a token K times as wide, while each layer still computes on one block of the old width d.
A token is K blocks x^1, ..., x^K. A layer L computes on block j* alone, and K^2 + K scalars carry its result over to
the others:

    predict    x^i_hat = sum_j p_ij x^j                      what the blocks would become
    compute    x_tilde = L(x^j*)                             the whole T5 layer, on one block
    correct    x^i_new = x^i_hat + g_i (x_tilde - x^j*_hat)  by how wrong the prediction of block j* was

Read `AltUp` first, then `Widening` (how tokens become blocks) and `Stack` (which block a layer computes on). The rest
is T5, with two extensions: `SequenceAltUp` and its baselines, for layers of the encoder that compute on every k-th token,
and `MixtureOfExperts`, for feed-forward layers.

    model = AutoModelForSeq2SeqLM.from_pretrained(FOLDER, trust_remote_code=True)

Padding is token 0: it is masked in inputs unless `attention_mask` says otherwise, and labels of 0 or -100 have no loss.

In shapes: B sequences, T tokens (S of the input), K blocks, d = d_model, H heads, E experts, V vocabulary. The state of
a stack is one tensor [K, B, T, d].
"""

import copy
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache, EncoderDecoderCache, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput

# --- Configuration -------------------------------------------------------------------------------------------------


class AltUpT5Config(PreTrainedConfig):
    """The `config.json` of a model: the fields of T5, and the objects `altup` and `moe`.

    altup: `num_blocks` K; `selection`, "alternating" or "same"; `widening`, "embedding", "recycled" or "sum";
        `encoder_sequence`, with `method` ("altup", "stride_and_skip" or "average_pool"), `stride`, `first_layer` and
        `last_layer`, counted from 0, the last one included. Without `altup` the model is a plain T5.
    moe: `num_experts` E, `expert_d_ff`, `mode` ("partial" or "switch"), `top_k`, `encoder_layers` and `decoder_layers`
        (all if absent), `capacity_factor`, `eval_capacity_factor`, `router_jitter`, `load_balancing_coef` and
        `router_z_coef`. Without `moe` no layer has experts.
    """

    model_type = "t5"
    keys_to_ignore_at_inference = ["past_key_values", "encoder_last_hidden_state", "auxiliary_loss"]
    attribute_map = {
        "hidden_size": "d_model",
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "num_layers",
        "head_dim": "d_kv",
    }

    def __init__(
        self,
        vocab_size=32128,
        d_model=512,
        d_kv=64,
        d_ff=2048,
        num_layers=6,
        num_decoder_layers=None,
        num_heads=8,
        relative_attention_num_buckets=32,
        relative_attention_max_distance=128,
        dropout_rate=0.1,
        layer_norm_epsilon=1e-6,
        initializer_factor=1.0,
        feed_forward_proj="relu",
        tie_word_embeddings=True,
        scale_decoder_outputs=None,
        use_cache=True,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
        altup=None,
        moe=None,
        is_encoder_decoder=True,
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.d_model = d_model
        self.d_kv = d_kv
        self.d_ff = d_ff
        self.num_layers = num_layers
        self.num_decoder_layers = num_layers if num_decoder_layers is None else num_decoder_layers
        self.num_heads = num_heads
        self.relative_attention_num_buckets = relative_attention_num_buckets
        self.relative_attention_max_distance = relative_attention_max_distance
        self.dropout_rate = dropout_rate
        self.layer_norm_epsilon = layer_norm_epsilon
        self.initializer_factor = initializer_factor
        self.feed_forward_proj = feed_forward_proj
        # The original T5 ties the output layer to the embedding table, and then scales what it reads.
        self.scale_decoder_outputs = tie_word_embeddings if scale_decoder_outputs is None else scale_decoder_outputs
        self.use_cache = use_cache
        self.altup = altup
        self.moe = moe
        super().__init__(
            pad_token_id=pad_token_id,
            eos_token_id=eos_token_id,
            decoder_start_token_id=decoder_start_token_id,
            is_encoder_decoder=is_encoder_decoder,
            tie_word_embeddings=tie_word_embeddings,
            **kwargs,
        )

    def get_text_config(self, decoder=None, encoder=None):
        """As `generate` asks for it, to make a cache for each layer of the decoder."""
        config = super().get_text_config(decoder=decoder, encoder=encoder)
        if decoder and not encoder:
            config = copy.deepcopy(config)
            config.num_layers = config.num_decoder_layers
        return config

    def layer_moe(self, layer, is_decoder):
        """The `moe` object if this layer has experts, else None."""
        layers = (self.moe or {}).get("decoder_layers" if is_decoder else "encoder_layers")
        return self.moe if layers is None or layer in layers else None


# --- AltUp: wider tokens -------------------------------------------------------------------------------------------


class AltUp(nn.Module):
    """The K^2 + K scalars of one layer: p, `prediction_coefs`, and g, `correction_coefs`."""

    def __init__(self, num_blocks):
        super().__init__()
        self.prediction_coefs = nn.Parameter(torch.eye(num_blocks))
        self.correction_coefs = nn.Parameter(torch.ones(num_blocks))

    def forward(self, blocks, j, layer):
        """[K, B, T, d] -> [K, B, T, d], with `layer` on block j* = `j`."""
        predicted = self.predict(blocks)
        computed = layer(blocks[j])
        return self.correct(predicted, computed, j)

    def predict(self, blocks):
        """x^i_hat = sum_j p_ij x^j"""
        with torch.autocast(blocks.device.type, enabled=False):  # the state keeps its precision
            return torch.einsum("ij,jbtd->ibtd", self.prediction_coefs.to(blocks.dtype), blocks)

    def correct(self, predicted, computed, j):
        """x^i_new = x^i_hat + g_i (x_tilde - x^j*_hat)"""
        error = computed - predicted[j]
        return predicted + self.correction_coefs[:, None, None, None] * error


class Widening:
    """How tokens become K blocks, and K blocks the vector that a stack gives out.

    embedding    AltUp: the table is K d wide, and so is what the output layer and cross-attention read
    recycled     Recycled-AltUp: the table is d wide, blocks start as copies and are summed up at the end
    sum          a baseline: the table is K d wide, its blocks are summed up at once, and the layers are plain
    """

    def __init__(self, config):
        altup = config.altup or {"num_blocks": 1, "widening": "sum"}
        self.kind = altup.get("widening", "embedding")
        self.alternates = altup.get("selection", "alternating") == "alternating"
        self.updates_blocks = self.kind != "sum"
        self.num_blocks = altup["num_blocks"] if self.updates_blocks else 1
        self.d_model = config.d_model
        self.table_width = config.d_model * (1 if self.kind == "recycled" else altup["num_blocks"])
        self.output_width = config.d_model * (self.num_blocks if self.kind == "embedding" else 1)

    def widen(self, embedded):
        """[B, T, table_width] -> [K, B, T, d]"""
        if self.kind == "recycled":
            return embedded.expand(self.num_blocks, *embedded.shape)
        blocks = torch.stack(embedded.split(self.d_model, dim=-1))
        return blocks if self.kind == "embedding" else blocks.sum(0, keepdim=True)

    def narrow(self, blocks):
        """[K, B, T, d] -> [B, T, output_width]"""
        return torch.cat(list(blocks), dim=-1) if self.kind == "embedding" else blocks.sum(0)

    def selected(self, layer):
        """The block j* that this layer computes on."""
        return layer % self.num_blocks if self.alternates else 0


# --- Sequence-AltUp: fewer tokens ----------------------------------------------------------------------------------


class SequenceAltUp(nn.Module):
    """AltUp along the sequence. The layer computes on the tokens 0, k, 2k, ...; A = floor(i / k) is token i's anchor.

    predict    y_i_hat = a1 x_i + a2 x_kA
    compute    y_tilde = L(x_0, x_k, x_2k, ...)
    correct    y_i     = y_i_hat + b (y_A_tilde - y_kA_hat)
    """

    def __init__(self):
        super().__init__()
        self.prediction_coefs = nn.Parameter(torch.tensor([1.0, 0.0]))  # a1, a2
        self.correction_coef = nn.Parameter(torch.ones(1))  # b

    def forward(self, x, stride, layer):
        """[B, T, d] -> [B, T, d]"""
        length = x.shape[1]
        a1, a2 = self.prediction_coefs
        predicted = a1 * x + a2 * spread(x[:, ::stride], stride, length)
        computed = layer(x[:, ::stride])
        error = computed - predicted[:, ::stride]
        return predicted + self.correction_coef * spread(error, stride, length)


def stride_and_skip(x, stride, layer):
    """A baseline: the tokens 0, k, 2k, ... are computed, the others pass unchanged."""
    is_anchor = torch.arange(x.shape[1], device=x.device) % stride == 0
    return torch.where(is_anchor[:, None], spread(layer(x[:, ::stride]), stride, x.shape[1]), x)


def average_pool(blocks, real, stride):
    """A baseline: every window of k tokens becomes the mean of those that are not padding.

    blocks: [K, B, T, d], real: [B, T] -> [K, B, ceil(T / k), d], [B, ceil(T / k)]
    """
    gap = -blocks.shape[2] % stride
    blocks = F.pad(blocks * real[..., None], (0, 0, 0, gap)).unflatten(2, (-1, stride))
    real = F.pad(real, (0, gap)).unflatten(1, (-1, stride))
    counts = real.sum(2, dtype=blocks.dtype).clamp(min=1)
    return blocks.sum(3) / counts[..., None], real.any(2)


def spread(anchors, stride, length):
    """[B, ceil(T / k), d] -> [B, T, d]: for each token what its anchor has."""
    return anchors.repeat_interleave(stride, dim=1)[:, :length]


class EncoderSequence:
    """Which layers of the encoder compute on fewer tokens, and how."""

    def __init__(self, config):
        options = (config.altup or {}).get("encoder_sequence") or {"method": None}
        self.method, self.stride = options["method"], options.get("stride", 4)
        self.first, last = options.get("first_layer", 1), options.get("last_layer")
        self.last = config.num_layers - 2 if last is None else last

    def strides(self, layer):
        """Whether this layer computes on the tokens 0, k, 2k, ... alone."""
        return self.method in ("altup", "stride_and_skip") and self.first <= layer <= self.last

    def pools_before(self, layer):
        """Whether the sequence is short from this layer on, to the end of the encoder."""
        return self.method == "average_pool" and layer == self.first


# --- Mixture of experts --------------------------------------------------------------------------------------------


class Experts(nn.Module):
    def __init__(self, num_experts, d_model, d_ff):
        super().__init__()
        self.wi = nn.Parameter(torch.empty(num_experts, d_model, d_ff))
        self.wo = nn.Parameter(torch.empty(num_experts, d_ff, d_model))


class MixtureOfExperts(nn.Module):
    """Experts relu(n wi[e]) wo[e]. Each token gets those to which the router gives the highest probabilities.

    Their outputs are summed up, each times its probability (Switch Transformers, https://arxiv.org/abs/2101.03961).
    """

    def __init__(self, config, moe):
        super().__init__()
        self.num_experts, self.top_k = moe["num_experts"], moe.get("top_k", 1)
        self.capacity_factor = moe.get("capacity_factor", 1.25)
        self.eval_capacity_factor = moe.get("eval_capacity_factor")
        self.jitter = moe.get("router_jitter", 0.0)
        self.router = projection(config.d_model, self.num_experts)
        self.experts = Experts(self.num_experts, config.d_model, moe["expert_d_ff"])

    def forward(self, n, real, losses):
        """n: [B, T, d], real: [B, T] -> [B, T, d], 0 for padding; appends the router's two losses to `losses`."""
        shape, n, real = n.shape, n.flatten(0, 1), real.flatten()
        read = n.float()  # the router is f32: rounded logits tie, and ties go to the first expert
        if self.training and self.jitter > 0:
            read = read * torch.empty_like(read).uniform_(1 - self.jitter, 1 + self.jitter)
        with torch.autocast(read.device.type, enabled=False):
            logits = F.linear(read, self.router.weight.float())
        probabilities = logits.softmax(-1)
        chosen = probabilities.sort(dim=-1, descending=True, stable=True).indices[:, : self.top_k]  # [B T, top_k]
        losses.append(self.losses(logits, probabilities, chosen, real))

        kept = self.within_capacity(chosen, real)
        gates = (probabilities.gather(1, chosen) * kept).to(n.dtype)
        output = torch.zeros_like(n)
        for expert in chosen[kept].unique().tolist():
            token, choice = (kept & (chosen == expert)).nonzero(as_tuple=True)
            hidden = torch.relu(n[token] @ self.experts.wi[expert])
            output = output.index_add(0, token, gates[token, choice, None] * (hidden @ self.experts.wo[expert]))
        return output.view(shape)

    def within_capacity(self, chosen, real):
        """[B T, top_k]: choices that their expert has room for. All first choices come before any second one."""
        is_choice = real[:, None].expand_as(chosen)
        factor = self.capacity_factor if self.training else self.eval_capacity_factor
        if factor is None:
            return is_choice
        # Of a factor such as 1.1 the product may be rounded up to just above a whole number.
        capacity = math.ceil(factor * (int(real.sum()) * self.top_k / self.num_experts) * (1 - 1e-6))
        by_rank = F.one_hot(chosen, self.num_experts).mul(is_choice[..., None]).transpose(0, 1)  # [top_k, B T, E]
        place = by_rank.flatten(0, 1).cumsum(0).view_as(by_rank).transpose(0, 1)
        return is_choice & (place.gather(2, chosen[..., None]).squeeze(2) <= capacity)

    def losses(self, logits, probabilities, chosen, real):
        """Over tokens that are not padding: E sum_e f_e P_e, with the share f_e of choices that fall on expert e and
        its mean probability P_e, which is 1 if both are even; and the mean of (log sum exp logits)^2."""
        count = real.sum().clamp(min=1)
        shares = F.one_hot(chosen[real], self.num_experts).sum((0, 1)) / (count * self.top_k)
        load_balancing = self.num_experts * (shares * probabilities[real].sum(0) / count).sum()
        return load_balancing, logits[real].logsumexp(-1).pow(2).sum() / count


# --- T5 ------------------------------------------------------------------------------------------------------------


def projection(inputs, outputs, width=None):
    """A linear layer without bias, whose weights start with a standard deviation of inputs^-1/2, or width^-1/2."""
    layer = nn.Linear(inputs, outputs, bias=False)
    layer.initial_std = (width or inputs) ** -0.5
    return layer


def table(rows, columns, width):
    """Rows to be looked up, which start with a standard deviation of width^-1/2."""
    layer = nn.Embedding(rows, columns)
    layer.initial_std = width**-0.5
    return layer


class RMSNorm(nn.Module):
    def __init__(self, width, epsilon):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x):
        scale = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.epsilon)
        return self.weight * (x * scale).to(self.weight.dtype)


def relative_position_bucket(relative_position, bidirectional, num_buckets, max_distance):
    """The bucket of key position - query position. Half of a direction's buckets hold one distance each, the others
    ranges that grow logarithmically up to `max_distance`. A causal stack has no buckets for the future."""
    if bidirectional:
        num_buckets //= 2
        offset = (relative_position > 0) * num_buckets
        distance = relative_position.abs()
    else:
        offset = 0
        distance = (-relative_position).clamp(min=0)
    exact = num_buckets // 2
    logarithm = (distance.clamp(min=1).double() / exact).log() / math.log(max_distance / exact)
    # Edges of ranges are whole numbers, which must not be rounded down.
    far = exact + (logarithm * (num_buckets - exact) + 1e-9).floor().long()
    return offset + torch.where(distance < exact, distance, far.clamp(max=num_buckets - 1))


def hide(hidden, dtype):
    """What is added to attention scores: 0, or so much below it that a score is lost in rounding. So a row that hides
    everything is uniform, as in T5; and two can be added without overflow."""
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill(hidden, torch.finfo(dtype).min / 2)


class Attention(nn.Module):
    """T5's attention: scores are not scaled, and have a bias that all layers of a stack share."""

    def __init__(self, config, memory_width, layer, owns_bias=False):
        super().__init__()
        inner = config.num_heads * config.d_kv
        self.q = projection(config.d_model, inner, width=config.d_model * config.d_kv)  # scores are not scaled
        self.k = projection(memory_width, inner)
        self.v = projection(memory_width, inner)
        self.o = projection(inner, config.d_model)
        if owns_bias:
            self.relative_attention_bias = table(
                config.relative_attention_num_buckets, config.num_heads, width=config.d_model
            )
        self.num_heads, self.layer = config.num_heads, layer
        self.dropout = nn.Dropout(config.dropout_rate)

    def keys_and_values(self, memory):
        return self.heads(self.k(memory)), self.heads(self.v(memory))

    def heads(self, x):
        """[B, T, H d_kv] -> [B, H, T, d_kv]"""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def attend(self, x, keys, values, bias):
        scores = (self.heads(self.q(x)) @ keys.transpose(2, 3)).float() + bias
        weights = self.dropout(scores.softmax(-1).to(values.dtype))
        return self.o((weights @ values).transpose(1, 2).flatten(2))


class SelfAttention(Attention):
    def __init__(self, config, layer):
        super().__init__(config, config.d_model, layer, owns_bias=layer == 0)

    def forward(self, x, bias, cache):
        keys, values = self.keys_and_values(x)
        if cache is not None:
            keys, values = cache.self_attention_cache.update(keys, values, self.layer)
        return self.attend(x, keys, values, bias)


class CrossAttention(Attention):
    """Its keys and values read the encoder's whole output, K d wide in AltUp."""

    def forward(self, x, memory, bias, cache):
        if cache is not None and cache.is_updated.get(self.layer):
            projected = cache.cross_attention_cache.layers[self.layer]
            return self.attend(x, projected.keys, projected.values, bias)
        keys, values = self.keys_and_values(memory)
        if cache is not None:
            keys, values = cache.cross_attention_cache.update(keys, values, self.layer)
            cache.is_updated[self.layer] = True
        return self.attend(x, keys, values, bias)


class FeedForward(nn.Module):
    """relu(n wi) wo, or gelu(n wi_0) * (n wi_1) wo."""

    def __init__(self, config):
        super().__init__()
        self.is_gated = {"relu": False, "gated-gelu": True}[config.feed_forward_proj]
        for name in ("wi_0", "wi_1") if self.is_gated else ("wi",):
            self.add_module(name, projection(config.d_model, config.d_ff))
        self.wo = projection(config.d_ff, config.d_model)
        self.dropout = nn.Dropout(config.dropout_rate)

    def forward(self, n):
        if self.is_gated:
            hidden = F.gelu(self.wi_0(n), approximate="tanh") * self.wi_1(n)
        else:
            hidden = F.relu(self.wi(n))
        return self.wo(self.dropout(hidden))


class SubLayer(nn.Module):
    """x + dropout(f(norm(x))), with f under the name that Hugging Face's T5 has for it."""

    def __init__(self, config, **parts):
        super().__init__()
        self.layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)
        self.dropout = nn.Dropout(config.dropout_rate)
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x, f):
        return x + self.dropout(f(self.layer_norm(x)))


class Layer(nn.Module):
    """The layer L that AltUp wraps: self-attention, in the decoder cross-attention, feed-forward."""

    def __init__(self, config, memory_width, is_decoder, layer):
        super().__init__()
        moe = config.layer_moe(layer, is_decoder)
        feed_forward = {}
        if not moe or moe["mode"] == "partial":  # in mode "switch", experts take its place
            feed_forward["DenseReluDense"] = FeedForward(config)
        if moe:
            feed_forward["moe"] = MixtureOfExperts(config, moe)
        self.layer = nn.ModuleList([SubLayer(config, SelfAttention=SelfAttention(config, layer))])
        if is_decoder:
            cross_attention = CrossAttention(config, memory_width, layer)
            self.layer.append(SubLayer(config, EncDecAttention=cross_attention))
        self.layer.append(SubLayer(config, **feed_forward))

    def compute(self, x, bias, real, losses, memory=None, memory_bias=None, cache=None):
        """[B, T, d] -> [B, T, d]"""
        of_self, *of_memory, feed_forward = self.layer
        x = of_self(x, lambda n: of_self.SelfAttention(n, bias, cache))
        for sub_layer in of_memory:
            x = sub_layer(x, lambda n: sub_layer.EncDecAttention(n, memory, memory_bias, cache))

        def network_and_experts(n):
            outputs = []
            if hasattr(feed_forward, "DenseReluDense"):
                outputs.append(feed_forward.DenseReluDense(n))
            if hasattr(feed_forward, "moe"):
                outputs.append(feed_forward.moe(n, real, losses))
            return sum(outputs)

        return feed_forward(x, network_and_experts)


class Stack(nn.Module):
    """What encoder and decoder share: layers, each with predict and correct around it, and a position bias."""

    def __init__(self, config, shared, num_layers, is_decoder):
        super().__init__()
        self.config, self.is_decoder, self.widening = config, is_decoder, Widening(config)
        self.use_embeddings(shared)
        width = self.widening.output_width
        self.block = nn.ModuleList(Layer(config, width, is_decoder, layer) for layer in range(num_layers))
        if self.widening.updates_blocks:
            for block in self.block:
                block.altup = AltUp(self.widening.num_blocks)
        self.final_layer_norm = RMSNorm(width, config.layer_norm_epsilon)
        self.dropout = nn.Dropout(config.dropout_rate)

    def use_embeddings(self, shared):
        # Not as a part of this stack: in a file the table is there once, as the model's.
        self.__dict__["shared"] = shared

    def start(self, input_ids):
        """[B, T] -> [K, B, T, d]"""
        return self.widening.widen(self.dropout(self.shared(input_ids)))

    def update(self, blocks, layer, compute):
        """[K, B, T, d] -> [K, B, T, d]: all blocks, by computing on one."""
        j, block = self.widening.selected(layer), self.block[layer]
        if self.widening.updates_blocks:
            return block.altup(blocks, j, compute)
        return compute(blocks[j])[None]

    def finish(self, blocks):
        """[K, B, T, d] -> [B, T, output_width]"""
        return self.dropout(self.final_layer_norm(self.widening.narrow(blocks)))

    def position_bias(self, queries, keys):
        """Positions [T] and [S] -> [1, H, T, S]"""
        bucket = relative_position_bucket(
            keys[None, :] - queries[:, None],
            bidirectional=not self.is_decoder,
            num_buckets=self.config.relative_attention_num_buckets,
            max_distance=self.config.relative_attention_max_distance,
        )
        table = self.block[0].layer[0].SelfAttention.relative_attention_bias
        return table(bucket).permute(2, 0, 1)[None].float()  # as scores are, which f16 has no room for


@dataclass
class EncoderOutput(BaseModelOutput):
    """memory_mask: [B, S'], which positions of the output are not padding; S' is less than S if the encoder pools"""

    memory_mask: torch.BoolTensor | None = None


class Encoder(Stack):
    main_input_name = "input_ids"  # what `generate` gives it

    def __init__(self, config, shared):
        super().__init__(config, shared, config.num_layers, is_decoder=False)
        self.sequence = EncoderSequence(config)
        for layer, block in enumerate(self.block):
            if self.sequence.method == "altup" and self.sequence.strides(layer):
                block.sequence_altup = SequenceAltUp()

    def forward(self, input_ids, attention_mask=None, losses=None, return_dict=True, **_unused):
        """[B, S] -> [B, S, output_width], or [B, ceil(S / k), output_width] if the encoder pools"""
        losses = [] if losses is None else losses
        blocks, stride = self.start(input_ids), self.sequence.stride
        real = input_ids != self.config.pad_token_id if attention_mask is None else attention_mask.bool()
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        bias = self.bias(positions, real)

        for layer, block in enumerate(self.block):
            if self.sequence.pools_before(layer):
                blocks, real = average_pool(blocks, real, stride)
                positions = positions[::stride]
                bias = self.bias(positions, real)

            def compute(x):
                if not self.sequence.strides(layer):
                    return block.compute(x, bias, real, losses)

                def on_anchors(x):  # which see each other as they do in the whole sequence
                    return block.compute(x, bias[..., ::stride, ::stride], real[:, ::stride], losses)

                if self.sequence.method == "altup":
                    return block.sequence_altup(x, stride, on_anchors)
                return stride_and_skip(x, stride, on_anchors)

            blocks = self.update(blocks, layer, compute)
        return EncoderOutput(last_hidden_state=self.finish(blocks), memory_mask=real)

    def bias(self, positions, real):
        """[1, H, S, S] + [B, 1, 1, S]"""
        bias = self.position_bias(positions, positions)
        return bias + hide(~real[:, None, None, :], bias.dtype)


class Decoder(Stack):
    def __init__(self, config, shared):
        super().__init__(config, shared, config.num_decoder_layers, is_decoder=True)

    def forward(self, input_ids, memory, memory_mask, real=None, attention_mask=None, cache=None, losses=None):
        """The positions [B, T] that follow those in `cache` -> [B, T, output_width]

        memory: [B, S, output_width], with `memory_mask`: [B, S]
        real: [B, T], positions that experts compute on; all if none are given
        attention_mask: [B, all positions]; none are hidden but the future if it is not given
        """
        past, length = 0 if cache is None else cache.get_seq_length(), input_ids.shape[1]
        keys = torch.arange(past + length, device=input_ids.device)
        queries = keys[past:]
        bias = self.position_bias(queries, keys)
        bias = bias + hide(keys[None, :] > queries[:, None], bias.dtype)
        if attention_mask is not None:
            bias = bias + hide(~attention_mask[:, None, None, :].bool(), bias.dtype)
        memory_bias = hide(~memory_mask[:, None, None, :], bias.dtype)
        real = torch.ones_like(input_ids, dtype=torch.bool) if real is None else real
        losses = [] if losses is None else losses

        blocks = self.start(input_ids)
        for layer, block in enumerate(self.block):

            def compute(x):
                return block.compute(x, bias, real, losses, memory, memory_bias, cache)

            blocks = self.update(blocks, layer, compute)
        return self.finish(blocks)


# --- The model -----------------------------------------------------------------------------------------------------


@dataclass
class AltUpT5Output(Seq2SeqLMOutput):
    """auxiliary_loss: what routers of experts add to the loss in training; None without experts"""

    auxiliary_loss: torch.FloatTensor | None = None


class AltUpT5PreTrainedModel(PreTrainedModel):
    config_class = AltUpT5Config
    base_model_prefix = "transformer"
    _no_split_modules = ["Layer"]

    @torch.no_grad()
    def _init_weights(self, module):
        """T5's initialisation; AltUp starts at p = I and g = 1, where every block moves by what the layer adds."""
        factor = self.config.initializer_factor
        if hasattr(module, "initial_std"):
            nn.init.normal_(module.weight, std=factor * module.initial_std)
        elif isinstance(module, RMSNorm):
            nn.init.constant_(module.weight, factor)
        elif isinstance(module, Experts):
            for weight in (module.wi, module.wo):
                nn.init.normal_(weight, std=factor * weight.shape[1] ** -0.5)
        elif isinstance(module, AltUp):
            nn.init.eye_(module.prediction_coefs)
            nn.init.ones_(module.correction_coefs)
        elif isinstance(module, SequenceAltUp):
            nn.init.constant_(module.prediction_coefs, 1.0)
            module.prediction_coefs[1] = 0.0
            nn.init.ones_(module.correction_coef)


class AltUpT5ForConditionalGeneration(AltUpT5PreTrainedModel, GenerationMixin):
    """T5 with AltUp, with experts or with both, as its configuration says."""

    def __init__(self, config):
        super().__init__(config)
        widening = Widening(config)
        self.shared = table(config.vocab_size, widening.table_width, width=1)
        self.encoder = Encoder(config, self.shared)
        self.decoder = Decoder(config, self.shared)
        if config.tie_word_embeddings:
            if widening.table_width != widening.output_width:
                raise ValueError("tie_word_embeddings: the table is wider than what the output layer reads")
            self.lm_head = None
        else:
            self.lm_head = projection(widening.output_width, config.vocab_size)
        self.post_init()

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        decoder_input_ids=None,
        decoder_attention_mask=None,
        encoder_outputs=None,
        past_key_values=None,
        labels=None,
        use_cache=None,
        return_dict=None,
        output_attentions=None,
    ):
        """Logits [B, T, V] of the tokens that follow `decoder_input_ids`; without these, of `labels` [B, T].

        The loss is the mean cross-entropy of the labels that are not padding; in training, plus the routers' losses.
        `encoder_outputs` without a `memory_mask` are read where `attention_mask` says so, or everywhere.
        """
        if output_attentions:
            raise ValueError("output_attentions: attention weights are not given out")
        if past_key_values is not None and getattr(past_key_values, "is_compileable", False):
            raise ValueError("past_key_values: a static cache is not supported, use a DynamicCache")
        for stack in (self.encoder, self.decoder):
            if stack.shared is not self.shared:  # this is a replica of DataParallel, whose stacks hold the original's
                stack.use_embeddings(self.shared)
        losses, real = [], None
        if labels is not None:
            labels = labels.masked_fill(labels == self.config.pad_token_id, -100)
            if decoder_input_ids is None:
                decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
            real = labels != -100
        if encoder_outputs is None:
            encoder_outputs = self.encoder(input_ids, attention_mask, losses)
        memory = encoder_outputs[0]
        memory_mask = getattr(encoder_outputs, "memory_mask", None)
        if memory_mask is None:
            memory_mask = torch.ones(memory.shape[:2]) if attention_mask is None else attention_mask
            memory_mask = memory_mask.to(memory.device).bool()
            if memory_mask.shape != memory.shape[:2]:
                raise ValueError("encoder_outputs: memory_mask is needed where the encoder shortens the sequence")
        if decoder_attention_mask is not None:
            real = decoder_attention_mask[:, -decoder_input_ids.shape[1] :].bool()
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if past_key_values is None and use_cache and labels is None:
            past_key_values = EncoderDecoderCache(DynamicCache(), DynamicCache())
        hidden = self.decoder(
            decoder_input_ids, memory, memory_mask, real, decoder_attention_mask, past_key_values, losses
        )
        logits = self.logits(hidden)

        loss, auxiliary_loss = None, self.auxiliary_loss(losses)
        if labels is not None:
            count = (labels != -100).sum().clamp(min=1)
            loss = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="sum") / count
            if self.training and auxiliary_loss is not None:
                loss = loss + auxiliary_loss
        output = AltUpT5Output(
            loss=loss,
            logits=logits,
            past_key_values=past_key_values,
            encoder_last_hidden_state=memory,
            auxiliary_loss=auxiliary_loss,
        )
        return output.to_tuple() if return_dict is False else output

    def logits(self, hidden):
        """[B, T, output_width] -> [B, T, V]"""
        if self.config.scale_decoder_outputs:
            hidden = hidden * self.config.d_model**-0.5
        return F.linear(hidden, self.get_output_embeddings().weight)

    def auxiliary_loss(self, losses):
        """Sums over all layers with experts, each times its coefficient."""
        if not losses:
            return None
        load_balancing, router_z = (sum(loss) for loss in zip(*losses))
        moe = self.config.moe
        return moe.get("load_balancing_coef", 1e-2) * load_balancing + moe.get("router_z_coef", 1e-3) * router_z

    def prepare_decoder_input_ids_from_labels(self, labels):
        """[B, T]: the start token, then all labels but the last"""
        labels = labels.masked_fill(labels == -100, self.config.pad_token_id)
        return F.pad(labels[:, :-1], (1, 0), value=self.config.decoder_start_token_id)

    def get_input_embeddings(self):
        return self.shared

    def set_input_embeddings(self, embeddings):
        self.shared = embeddings
        self.encoder.use_embeddings(embeddings)
        self.decoder.use_embeddings(embeddings)

    def get_output_embeddings(self):
        return self.shared if self.lm_head is None else self.lm_head

    def set_output_embeddings(self, embeddings):
        if self.lm_head is None:
            self.set_input_embeddings(embeddings)
        else:
            self.lm_head = embeddings
