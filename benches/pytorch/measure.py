"""Times a T5 model directory in PyTorch: the peer of `altup bench`.

    python benches/pytorch/measure.py --model DIR --batch batch.json --works forward,train,prefill,decode

See the README beside this. Dense T5, AltUp and Sequence-AltUp, without experts. Module names are those of Hugging
Face's T5, so that a state dict carries the tensor names of a model directory. Shapes: B batch, T tokens, S source
tokens, K blocks, d = d_model, H heads, V vocabulary. The state of a stack is a sequence of K blocks, each [B, T, d].
"""

import argparse
import copy
import ctypes
import functools
import json
import os
import sys
import time
import traceback
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

PAD = 0


class Failure(Exception):
    """What the user can do something about, in one line."""


# --- config.json ---------------------------------------------------------------------------------

SIZES = {"vocab_size": 32128, "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8}
POSITIONS = {"relative_attention_num_buckets": 32, "relative_attention_max_distance": 128}
OUTPUT = {"tie_word_embeddings": True, "scale_decoder_outputs": None}
TOKENS = {"eos_token_id": 1, "decoder_start_token_id": 0}
REST = {"model_type": "t5", "layer_norm_epsilon": 1e-6, "feed_forward_proj": "relu", "altup": {}}
ALTUP = {"num_blocks": 1, "selection": "alternating", "widening": "embedding", "encoder_sequence": {}}
SEQUENCE = {"method": None, "stride": 4, "first_layer": 1, "last_layer": None}
KNOWN = {
    "model_type": ["t5"],
    "feed_forward_proj": ["relu", "gated-gelu"],
    "selection": ["alternating", "same"],
    "widening": ["embedding", "recycled", "sum"],
    "method": [None, "altup", "stride_and_skip", "average_pool"],
}


def filled(fields, defaults):
    """The fields of an object of config.json, with defaults for those that are missing or null."""
    fields = defaults | {field: value for field, value in fields.items() if value is not None}
    for field in KNOWN.keys() & fields.keys():
        if fields[field] not in KNOWN[field]:
            raise Failure(f"config.json: this peer does not know the {field} {fields[field]!r}")
    return SimpleNamespace(**fields)


def read_config(path):
    config = filled(json.loads(path.read_text()), SIZES | POSITIONS | OUTPUT | TOKENS | REST)
    if getattr(config, "moe", None):
        raise Failure("config.json has the object moe: this peer has no experts")
    config.num_decoder_layers = getattr(config, "num_decoder_layers", config.num_layers)
    altup = config.altup = filled(config.altup or {"widening": "sum"}, ALTUP)
    sequence = altup.encoder_sequence = filled(altup.encoder_sequence, SEQUENCE)
    if sequence.last_layer is None:
        sequence.last_layer = config.num_layers - 2
    wide = altup.num_blocks * config.d_model
    config.table_width = config.d_model if altup.widening == "recycled" else wide
    config.output_width = wide if altup.widening == "embedding" else config.d_model
    return config


# --- AltUp and Sequence-AltUp --------------------------------------------------------------------


class AltUp(nn.Module):
    """x'^i = sum_j (p_ij - g_i p_{j*j}) x^j + g_i x~: predict and correct in one."""

    def __init__(self, num_blocks):
        super().__init__()
        self.prediction_coefs = nn.Parameter(torch.empty(num_blocks, num_blocks))
        self.correction_coefs = nn.Parameter(torch.empty(num_blocks))

    def forward(self, blocks, computed, selected):
        p, g = self.prediction_coefs, self.correction_coefs[:, None]
        folded = torch.cat([p - g * p[selected], g], dim=1)  # [K, K + 1]
        # One matrix product: forward and backward together, it is faster than einsum, than chains of addcmul and
        # than a state that is one tensor. Chains take 0.7 of its time forward, but 1.4 with the backward pass.
        stacked = torch.stack([*blocks, computed])
        return (folded @ stacked.flatten(1)).unflatten(1, computed.shape).unbind()


class SequenceAltUp(nn.Module):
    """y_i = a1 x_i + (a2 - b (a1 + a2)) x_anchor + b y~_anchor: predict and correct in one."""

    def __init__(self):
        super().__init__()
        self.prediction_coefs = nn.Parameter(torch.empty(2))
        self.correction_coef = nn.Parameter(torch.empty(1))

    def forward(self, x, computed, stride):
        (a1, a2), b = self.prediction_coefs, self.correction_coef
        anchors = (a2 - b * (a1 + a2)) * x[:, ::stride] + b * computed
        return a1 * x + anchors[:, :, None].expand(-1, -1, stride, -1).flatten(1, 2)[:, : x.shape[1]]


def windows(x, stride):
    """[B, T, ...] -> [B, ceil(T / stride), stride, ...], the last window filled up with zeros"""
    missing = -x.shape[1] % stride
    return F.pad(x, (0, 0) * (x.dim() - 2) + (0, missing)).unflatten(1, (-1, stride))


def average_pool(x, real, stride):
    """The mean of each window's tokens that are not padding; 0 if there are none."""
    counted = windows(real, stride).to(x.dtype)[..., None]
    return (windows(x, stride) * counted).sum(2) / counted.sum(2).clamp(min=1)


# --- Layers --------------------------------------------------------------------------------------


def additive(allowed):
    return torch.zeros_like(allowed, dtype=torch.float32).masked_fill(~allowed, torch.finfo(torch.float32).min)


def padding_mask(real, padded):
    """[B, 1, 1, S], or None without padding: attention is faster then. Whether there is any is known beforehand, as a
    device would have to be waited for."""
    return additive(real)[:, None, None] if padded else None


def distance_bucket(distance, num_buckets, max_distance):
    """One bucket for each distance up to num_buckets / 2, then logarithmic ones; in integers, so that no edge moves."""
    exact = num_buckets // 2
    if distance < exact:
        return distance
    rest, distance = num_buckets - exact, min(distance, max_distance)
    reaches = lambda m: distance**rest * exact**m >= max_distance**m * exact**rest
    return exact + max(m for m in range(rest) if reaches(m))


class Attention(nn.Module):
    """Multi-head attention without 1/sqrt(d_kv) scaling."""

    def __init__(self, config, memory_width, owns_bias=False, bidirectional=False):
        super().__init__()
        inner = config.num_heads * config.d_kv
        self.q = nn.Linear(config.d_model, inner, bias=False)
        self.k = nn.Linear(memory_width, inner, bias=False)
        self.v = nn.Linear(memory_width, inner, bias=False)
        self.o = nn.Linear(inner, config.d_model, bias=False)
        self.num_heads, self.bidirectional = config.num_heads, bidirectional
        self.max_distance, self.buckets = config.relative_attention_max_distance, {}
        if owns_bias:
            self.relative_attention_bias = nn.Embedding(config.relative_attention_num_buckets, config.num_heads)

    def heads(self, x):
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # [B, H, T, d_kv]

    def keys_values(self, memory):
        return self.heads(self.k(memory)), self.heads(self.v(memory))

    def forward(self, x, bias, memory=None, cache=None):
        """`memory`: its keys and values, else those of x, behind those in the cache."""
        keys, values = memory or self.keys_values(x)
        if cache:
            keys, values = cache.append(keys, values)
        if bias is not None and bias.dtype != keys.dtype:
            bias = bias.clamp(min=torch.finfo(keys.dtype).min).to(keys.dtype)
        # 512 tokens, 8 heads, d = 512, on a CPU: half the time of matmul and softmax forward, 0.7 of it with the
        # backward pass, and the same where the bias has a gradient, which the fused kernel does not compute.
        attended = F.scaled_dot_product_attention(self.heads(self.q(x)), keys, values, attn_mask=bias, scale=1.0)
        return self.o(attended.transpose(1, 2).flatten(2))

    def position_bias(self, length):
        """[1, H, T, T]"""
        table = self.relative_attention_bias
        if length not in self.buckets:
            buckets = [self.bucket(offset) for offset in range(1 - length, length)]
            with torch.inference_mode(False):  # a training step may be the next to use them
                self.buckets[length] = torch.tensor(buckets, device=table.weight.device)
        by_offset = table(self.buckets[length]).t()  # [H, 2T - 1]
        # A view of sliding windows: the gradient of a T x T embedding lookup takes 5 times as long.
        return by_offset.unfold(1, length, 1).flip(1)[None]

    def bucket(self, offset):
        """Bucket of key position - query position; a causal stack has none for the future."""
        buckets = self.relative_attention_bias.num_embeddings
        if not self.bidirectional:
            return distance_bucket(max(-offset, 0), buckets, self.max_distance)
        half = buckets // 2
        return (half if offset > 0 else 0) + distance_bucket(abs(offset), half, self.max_distance)


class FeedForward(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gated = config.feed_forward_proj == "gated-gelu"
        for name in ("wi_0", "wi_1") if self.gated else ("wi",):
            self.add_module(name, nn.Linear(config.d_model, config.d_ff, bias=False))
        self.wo = nn.Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, x):
        if self.gated:
            return self.wo(F.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x))
        return self.wo(F.relu(self.wi(x)))


class SubLayer(nn.Module):
    """x + f(norm(x)), with f stored under the name Hugging Face gives it."""

    def __init__(self, name, inner, config):
        super().__init__()
        self.add_module(name, inner)
        self.layer_norm = nn.RMSNorm(config.d_model, config.layer_norm_epsilon)
        self.name = name

    def forward(self, x, *args):
        return x + getattr(self, self.name)(self.layer_norm(x), *args)


class Block(nn.Module):
    """The layer that AltUp wraps: self-attention, in the decoder cross-attention, feed-forward."""

    def __init__(self, config, is_decoder, index):
        super().__init__()
        attention = Attention(config, config.d_model, owns_bias=index == 0, bidirectional=not is_decoder)
        self.layer = nn.ModuleList([SubLayer("SelfAttention", attention, config)])
        if is_decoder:
            self.layer.append(SubLayer("EncDecAttention", Attention(config, config.output_width), config))
        self.layer.append(SubLayer("DenseReluDense", FeedForward(config), config))

    def forward(self, x, bias, memory=None, memory_bias=None, cache=None):
        x = self.layer[0](x, bias, None, cache)
        if memory:
            x = self.layer[1](x, memory_bias, memory)
        return self.layer[-1](x)


# --- Stacks --------------------------------------------------------------------------------------


class Stack(nn.Module):
    def __init__(self, config, num_layers, is_decoder):
        super().__init__()
        self.altup, self.d_model = config.altup, config.d_model
        self.block = nn.ModuleList(Block(config, is_decoder, index) for index in range(num_layers))
        if self.altup.widening != "sum":
            for block in self.block:
                block.altup = AltUp(self.altup.num_blocks)
        self.final_layer_norm = nn.RMSNorm(config.output_width, config.layer_norm_epsilon)

    def position_bias(self, length):
        return self.block[0].layer[0].SelfAttention.position_bias(length)

    def split(self, embedded):
        """[B, T, table_width] -> the blocks"""
        if self.altup.widening == "recycled":
            return [embedded] * self.altup.num_blocks
        slices = embedded.split(self.d_model, dim=-1)
        return slices if self.altup.widening == "embedding" else [sum(slices[1:], slices[0])]

    def merge(self, blocks):
        """The blocks -> [B, T, output_width]"""
        merged = torch.cat(blocks, dim=-1) if self.altup.widening == "embedding" else sum(blocks[1:], blocks[0])
        return self.final_layer_norm(merged)

    def through(self, index, blocks, compute):
        """The blocks after layer `index`, which computes x~ = compute(x^{j*})."""
        selected = index % len(blocks) if self.altup.selection == "alternating" else 0
        computed = compute(blocks[selected])
        return [computed] if self.altup.widening == "sum" else self.block[index].altup(blocks, computed, selected)


class Encoder(Stack):
    def __init__(self, config):
        super().__init__(config, config.num_layers, is_decoder=False)
        self.sequence = config.altup.encoder_sequence
        self.method, self.stride = self.sequence.method, self.sequence.stride
        for index, block in enumerate(self.block):
            if self.method == "altup" and self.strides(index):
                block.sequence_altup = SequenceAltUp()

    def strides(self, index):
        within = self.sequence.first_layer <= index <= self.sequence.last_layer
        return within and self.method in ("altup", "stride_and_skip")

    def pools_before(self, index):
        return self.method == "average_pool" and index == self.sequence.first_layer

    def memory_real(self, real):
        return windows(real, self.stride).any(2) if self.method == "average_pool" else real

    def forward(self, embedded, real, padded):
        """(the output, its `real`), where `real` [B, T] is True for tokens that are not padding, and `padded` says
        whether there is any"""
        blocks, bias = self.split(embedded), self.position_bias(embedded.shape[1])
        biases = self.masked(bias, real, padded)
        for index in range(len(self.block)):
            if self.pools_before(index):
                blocks = [average_pool(x, real, self.stride) for x in blocks]
                bias, real = bias[..., :: self.stride, :: self.stride], self.memory_real(real)
                biases = self.masked(bias, real, padded)
            blocks = self.through(index, blocks, lambda x: self.compute(index, x, *biases))
        return self.merge(blocks), real

    def masked(self, bias, real, padded):
        """The bias between all tokens, and between the tokens 0, k, 2k, ..., on which alone some layers run"""
        mask = padding_mask(real, padded)
        bias = bias.contiguous() if mask is None else bias + mask
        return bias, bias[..., :: self.stride, :: self.stride].contiguous()

    def compute(self, index, x, bias, strided_bias):
        block = self.block[index]
        if not self.strides(index):
            return block(x, bias)
        computed = block(x[:, :: self.stride], strided_bias)
        if self.method == "stride_and_skip":
            return x.slice_scatter(computed, dim=1, step=self.stride)
        return block.sequence_altup(x, computed, self.stride)


class Cache:
    """Keys and values of the decoder's tokens so far in one layer."""

    def __init__(self, like, length):
        batch, heads, _, width = like.shape
        self.buffers, self.length = like.new_empty(2, batch, heads, length, width), 0

    def append(self, *keys_values):
        for buffer, new in zip(self.buffers, keys_values):
            buffer[:, :, self.length] = new[:, :, 0]
        self.length += 1
        return self.buffers[:, :, :, : self.length].unbind()


class Decoder(Stack):
    def __init__(self, config):
        super().__init__(config, config.num_decoder_layers, is_decoder=True)

    def position_bias(self, length):
        """[1, H, T, T], with the causal mask in it"""
        bias = super().position_bias(length)
        return bias + additive(torch.ones_like(bias[0, 0], dtype=torch.bool).tril())

    def memories(self, encoder_output):
        """Keys and values of the encoder's output, for each layer"""
        return [block.layer[1].EncDecAttention.keys_values(encoder_output) for block in self.block]

    def forward(self, embedded, bias, memories, memory_bias, caches=None):
        blocks = self.split(embedded)
        for index, block in enumerate(self.block):
            cache = caches and caches[index]
            blocks = self.through(index, blocks, lambda x: block(x, bias, memories[index], memory_bias, cache))
        return self.merge(blocks)


# --- The model -----------------------------------------------------------------------------------


def shifted(labels, config):
    """What the decoder reads"""
    return F.pad(labels[:, :-1], (1, 0), value=config.decoder_start_token_id)


class T5(nn.Module):
    def __init__(self, config, tied, scales_outputs):
        super().__init__()
        self.shared = nn.Embedding(config.vocab_size, config.table_width)
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        if not tied:
            self.lm_head = nn.Linear(config.output_width, config.vocab_size, bias=False)
        self.config, self.tied = config, tied
        self.output_scale = config.d_model**-0.5 if scales_outputs else 1.0

    def encode(self, input_ids, padded):
        """(the decoder's keys and values of it for each layer, their mask)"""
        output, real = self.encoder(self.shared(input_ids), input_ids != PAD, padded)
        return self.decoder.memories(output), padding_mask(real, padded)

    def decode(self, tokens, *args):
        """What the output table is multiplied with, [B, T, output_width]"""
        output = self.decoder(self.shared(tokens), *args)
        return output if self.output_scale == 1 else output * self.output_scale

    def output_table(self):
        return self.shared.weight if self.tied else self.lm_head.weight

    def forward(self, input_ids, labels, padded):
        """The logits [B, T, V] of the labels"""
        tokens = shifted(labels, self.config)
        output = self.decode(tokens, self.decoder.position_bias(tokens.shape[1]), *self.encode(input_ids, padded))
        return F.linear(output, self.output_table())

    @torch.inference_mode()
    def prefill(self, input_ids, padded, new_tokens):
        """What decoding goes on from: all that stays of the inputs, and the first token."""
        memories, memory_bias = self.encode(input_ids, padded)
        memories = [[x.contiguous() for x in memory] for memory in memories]  # 0.7 of the time of every read
        caches = [Cache(keys, new_tokens) for keys, _ in memories]
        state = SimpleNamespace(memories=memories, memory_bias=memory_bias, caches=caches)
        state.bias = self.decoder.position_bias(new_tokens)
        start = torch.full_like(input_ids[:, 0], self.config.decoder_start_token_id)
        state.first = self.next_token(state, 0, start)
        return state

    def next_token(self, state, position, token):
        bias = state.bias[:, :, position, None, : position + 1]
        output = self.decode(token[:, None], bias, state.memories, state.memory_bias, state.caches)[:, 0]
        # [V, B]: on a CPU half the time of F.linear's [B, V] for two to four rows.
        logits = self.output_table() @ output.t()
        if self.config.eos_token_id is not None:
            logits[self.config.eos_token_id] = -torch.inf
        return logits.argmax(0)

    @torch.inference_mode()
    def greedy(self, state, new_tokens):
        """Rows of `new_tokens` tokens: the first of the prefill, and what follows."""
        for cache in state.caches:
            cache.length = 1
        token, columns = state.first, [state.first.tolist()]
        for position in range(1, new_tokens):
            token = self.next_token(state, position, token)
            columns.append(token.tolist())
        return [list(row) for row in zip(*columns)]


class Transformers(nn.Module):
    """The T5 of Hugging Face's transformers, as T5 is called, without decoding."""

    def __init__(self, directory, device):
        super().__init__()
        os.environ["HF_HUB_OFFLINE"] = "1"
        import transformers

        config = read_config(directory / "config.json")
        if config.altup.widening != "sum" or config.altup.num_blocks > 1 or config.altup.encoder_sequence.method:
            raise Failure("--transformers: transformers has no AltUp")
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        model = transformers.T5ForConditionalGeneration.from_pretrained(directory, dtype=torch.float32)
        self.model, self.config = model.eval().to(device), config
        self.program = f"transformers {transformers.__version__}, PyTorch"

    def forward(self, input_ids, labels, padded):
        mask = input_ids != PAD if padded else None
        tokens = shifted(labels, self.config)
        return self.model(input_ids=input_ids, attention_mask=mask, decoder_input_ids=tokens, use_cache=False).logits


# --- Files ---------------------------------------------------------------------------------------

UNUSED = [
    "encoder.embed_tokens.weight",
    "decoder.embed_tokens.weight",
    "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
]


def load_model(directory, device):
    config, path = read_config(directory / "config.json"), directory / "model.safetensors"
    # Copies, as the loaded tensors are a mapping of the file.
    tensors = {name: x.to(device, torch.float32, copy=True) for name, x in load_file(path).items()}
    tied, scales_outputs = config.tie_word_embeddings, config.scale_decoder_outputs
    if scales_outputs is None:
        scales_outputs = tied
    else:  # transformers 5 wrote it, whose `tie_word_embeddings` says nothing about the tables
        tied = "lm_head.weight" not in tensors
    if tied and config.table_width != config.output_width:
        raise Failure("config.json: tie_word_embeddings must be false, as the table is wider than the output")
    for name in UNUSED + ["lm_head.weight"] * tied:
        tensors.pop(name, None)
    with torch.device("meta"):
        model = T5(config, tied, scales_outputs)
    check_shapes(path, {name: list(x.shape) for name, x in tensors.items()}, model.state_dict())
    model.load_state_dict(tensors, assign=True)
    return model


def check_shapes(path, found, expected):
    expected = {name: list(x.shape) for name, x in expected.items()}
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            shapes = [shapes.get(name, "none") for shapes in (found, expected)]
            raise Failure(f"{path}: {name} is {shapes[0]} in the file, {shapes[1]} in this model")


def read_batch(path, vocab_size, device):
    fields = json.loads(path.read_text())
    if missing := {"input_ids", "labels", "new_tokens"} - fields.keys():
        raise Failure(f"{path}: {min(missing)} is missing")
    try:
        rows = {name: torch.tensor(fields[name], dtype=torch.long) for name in ("input_ids", "labels")}
    except (TypeError, ValueError) as error:
        raise Failure(f"{path}: {error}")
    for name, x in rows.items():
        if x.dim() != 2 or x.numel() == 0 or len(x) != len(rows["labels"]):
            raise Failure(f"{path}: {name} must be rows of tokens, as many as there are labels")
        if x.min() < 0 or x.max() >= vocab_size:
            raise Failure(f"{path}: {name} must be from 0 to {vocab_size - 1}")
    if not rows["labels"].any() or fields["new_tokens"] < 1:
        raise Failure(f"{path}: there must be labels other than {PAD}, and new_tokens")
    padded = bool((rows["input_ids"] == PAD).any())
    rows = {name: x.to(device) for name, x in rows.items()}
    return SimpleNamespace(**rows, padded=padded, new_tokens=fields["new_tokens"])


# --- Measuring -----------------------------------------------------------------------------------


def reset_peak(device):
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        ctypes.CDLL(None).malloc_trim(0)  # what other works have freed is not this one's
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device):
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def measure(work, repeats, device):
    """`work` runs once more, first and untimed."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    reset_peak(device)
    seconds = []
    for _ in range(1 + repeats):
        wait()
        started = time.perf_counter()
        work()
        wait()
        seconds.append(time.perf_counter() - started)
    return {"seconds": seconds[1:], "peak_bytes": peak_bytes(device)}


def cross_entropy(logits, labels):
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=PAD)


class Works:
    """Each method prepares a work and returns it."""

    def __init__(self, model, batch, dtype, compiles):
        self.model, self.batch, self.dtype, self.tokens = model, batch, dtype, None
        self.compile = torch.compile if compiles else lambda function: function
        self.inputs = (batch.input_ids, batch.labels, batch.padded)
        # Once, before copies and compilation: what a first pass keeps would be compiled in, and out again by the next.
        with torch.inference_mode():
            model(*self.inputs)

    @functools.cached_property
    def for_inference(self):
        """A model whose weights are of the type"""
        return self.model if self.dtype == torch.float32 else copy.deepcopy(self.model).to(self.dtype)

    @torch.inference_mode()
    def logits(self):
        return self.for_inference(*self.inputs)

    def forward(self):
        model = self.compile(self.for_inference)
        return torch.inference_mode()(lambda: model(*self.inputs))

    def prefill(self):
        batch = self.batch
        return lambda: self.for_inference.prefill(batch.input_ids, batch.padded, batch.new_tokens)

    def decode(self):
        state = self.prefill()()

        def work():
            self.tokens = self.for_inference.greedy(state, self.batch.new_tokens)

        return work

    def train(self):
        """As in altup, bf16 is that of a pass: of a copy of the weights, which stay f32."""
        self.__dict__.pop("for_inference", None)
        model, batch = self.model, self.batch
        fused = batch.labels.device.type == "cuda"
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=1e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, fused=fused
        )

        def loss():
            if self.dtype == torch.float32:
                return cross_entropy(model(*self.inputs), batch.labels)
            weights = {name: weight.to(self.dtype) for name, weight in model.named_parameters()}
            return cross_entropy(torch.func.functional_call(model, weights, self.inputs).float(), batch.labels)

        loss = self.compile(loss)

        def work():
            optimizer.zero_grad(set_to_none=True)
            loss().backward()
            optimizer.step()

        return work


WORKS = ["forward", "prefill", "decode", "train"]  # in this order, as `train` changes the weights


def run(args):
    works = args.works.split(",")
    if unknown := set(works) - set(WORKS):
        raise Failure(f"--works: {min(unknown)!r} is none of {', '.join(WORKS)}")
    for flag, is_given in [("--compile", args.compile), ("--transformers", args.transformers)]:
        if is_given and set(works) & {"prefill", "decode"}:
            raise Failure(f"{flag} is for the works forward and train")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise Failure("--device cuda: this PyTorch finds no CUDA device")
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    model = (Transformers if args.transformers else load_model)(args.model, device)
    batch = read_batch(args.batch, model.config.vocab_size, device)
    measured = Works(model, batch, {"f32": torch.float32, "bf16": torch.bfloat16}[args.precision], args.compile)
    mode = "compiled" if args.compile else "eager"
    report = {
        "program": f"{getattr(model, 'program', 'PyTorch')} {torch.__version__.split('+')[0]}, {mode}",
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "loss": cross_entropy(measured.logits().double(), batch.labels).item(),
    }
    names = [name for name in WORKS if name in works] if args.repeats > 0 else []
    measurements = {name: measure(getattr(measured, name)(), args.repeats, device) for name in names}
    tokens = {"tokens": measured.tokens} if measured.tokens else {}
    return report | tokens | {"measurements": measurements}


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise Failure(message)


def main():
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--batch", type=Path, required=True)
    parser.add_argument("--works", default=",".join(WORKS), help="default: all, %(default)s")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--optimizer", choices=["adamw"], default="adamw")
    parser.add_argument("--precision", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--compile", action="store_true", help="with torch.compile")
    parser.add_argument("--transformers", action="store_true", help="Hugging Face's T5, without AltUp")
    try:
        print(json.dumps(run(parser.parse_args())))
    except torch.OutOfMemoryError:
        sys.exit("error: out of memory")
    except (Failure, OSError, SafetensorError, json.JSONDecodeError) as error:
        sys.exit(f"error: {error}")
    except Exception as error:
        # PyTorch's and its compiler's, many lines long: the first says what, the traceback where.
        traceback.print_exc()
        sys.exit(f"error: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}")


if __name__ == "__main__":
    main()
