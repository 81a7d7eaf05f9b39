"""Mixture of experts and Sequence-AltUp in plain PyTorch: the extensions of `altup_t5.py`.

Like it, they favour being obviously right over being fast: every expert runs on every token, and those that a token
did not choose are weighted with 0. Shapes are as there, with E experts of width h. `real` [B, T] is True for tokens
that are not padding.
"""

import torch
from torch import nn

# --- Mixture of experts --------------------------------------------------------------------------


def layer_moe(config, layer, is_decoder):
    """The `moe` object of config.json if this layer has experts, else None."""
    moe = getattr(config, "moe", None)
    layers = moe and moe.get("decoder_layers" if is_decoder else "encoder_layers")
    return moe if moe and (layers is None or layer in layers) else None


class Experts(nn.Module):
    """relu(n wi[e]) wo[e] of every expert e"""

    def __init__(self, num_experts, d_model, d_ff):
        super().__init__()
        self.wi = nn.Parameter(torch.empty(num_experts, d_model, d_ff))
        self.wo = nn.Parameter(torch.empty(num_experts, d_ff, d_model))

    def forward(self, n):
        """[B, T, d] -> [B, T, E, d]"""
        return torch.stack([torch.relu(n @ wi) @ wo for wi, wo in zip(self.wi, self.wo)], dim=2)


class Routing:
    """What a router made of the tokens of one pass."""

    def __init__(self, logits, top_k, real):
        self.logits, self.top_k, self.real = logits, top_k, real
        self.probabilities = logits.softmax(-1)
        # a stable sort leaves experts of equal probability in their order, so that the lowest index is chosen
        ranking = self.probabilities.sort(dim=-1, descending=True, stable=True).indices
        self.chosen = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, ranking[..., :top_k], True)

    def gates(self):
        """[B, T, E]: p_e of the chosen experts, not renormalised; 0 for the others and for padding"""
        return torch.where(self.chosen & self.real[..., None], self.probabilities, 0.0)

    def statistics(self):
        """Auxiliary losses and their company, over the tokens that are not padding."""
        logits, p = self.logits[self.real], self.probabilities[self.real]
        loads = self.chosen[self.real].to(p.dtype).sum(0) / (len(p) * self.top_k)
        return {
            "load_balancing": p.shape[-1] * (loads * p.mean(0)).sum(),
            "router_z": logits.logsumexp(-1).pow(2).mean(),
            "loads": loads,
            "entropy": -(p * p.log()).sum(-1).mean(),
        }

    def margin(self):
        """Smallest lead of the last chosen expert over the next: rounding cannot change a routing that is clear."""
        p = self.probabilities[self.real].sort(dim=-1, descending=True).values
        return (p[:, self.top_k - 1] - p[:, self.top_k]).min().item() if self.top_k < p.shape[-1] else 1.0


class MixtureOfExperts(nn.Module):
    def __init__(self, d_model, moe):
        super().__init__()
        self.router = nn.Linear(d_model, moe["num_experts"], bias=False)
        self.experts = Experts(moe["num_experts"], d_model, moe["expert_d_ff"])
        self.top_k = moe["top_k"]

    def forward(self, n, real):
        """m = the sum of p_e expert_e(n) over the chosen e, 0 for padding; keeps the `routing` of this pass"""
        self.routing = Routing(self.router(n), self.top_k, real)
        return (self.routing.gates()[..., None] * self.experts(n)).sum(2)


# --- Sequence-AltUp ------------------------------------------------------------------------------


class EncoderSequence:
    """Which encoder layers see a shorter sequence, and how: `encoder_sequence` of the `altup` object."""

    def __init__(self, config):
        altup = getattr(config, "altup", None) or {}
        options = altup.get("encoder_sequence") or {"method": None, "stride": 1, "first_layer": 0, "last_layer": 0}
        self.method, self.stride = options["method"], options["stride"]
        self.first, self.last = options["first_layer"], options["last_layer"]

    def strides(self, layer):
        """This layer runs on the tokens 0, k, 2k, ... alone."""
        return self.method in ("altup", "stride_and_skip") and self.first <= layer <= self.last

    def has_altup(self, layer):
        return self.method == "altup" and self.strides(layer)

    def pools_before(self, layer):
        """From this layer to the end of the encoder the sequence is short."""
        return self.method == "average_pool" and layer == self.first

    def memory_real(self, real):
        """Where the encoder's output, given its input's `real`, is not padding."""
        return pool_real(real, self.stride) if self.method == "average_pool" else real


def anchors(x, stride):
    """For each token i of [B, T, ...], token floor(i / k) k."""
    return x[:, torch.arange(x.shape[1]) // stride * stride]


def spread(short, length, stride):
    """For each token i of a sequence of this length, floor(i / k) of the short one."""
    return short[:, torch.arange(length) // stride]


class SequenceAltUp(nn.Module):
    """The three scalars of one layer: a1, a2 (`prediction_coefs`) and b (`correction_coef`)."""

    def __init__(self):
        super().__init__()
        self.prediction_coefs = nn.Parameter(torch.tensor([1.0, 0.0]))
        self.correction_coef = nn.Parameter(torch.ones(1))

    def predict(self, x, stride):
        """y_hat_i = a1 x_i + a2 x_{floor(i/k) k}"""
        a1, a2 = self.prediction_coefs
        return a1 * x + a2 * anchors(x, stride)

    def correct(self, predicted, computed, stride):
        """y_i = y_hat_i + b (y_tilde_{floor(i/k)} - y_hat_{floor(i/k) k})"""
        error = spread(computed, predicted.shape[1], stride) - anchors(predicted, stride)
        return predicted + self.correction_coef * error


def stride_and_skip(x, computed, stride):
    """The layer's output at multiples of k, x elsewhere."""
    is_anchor = torch.arange(x.shape[1]) % stride == 0
    return torch.where(is_anchor[:, None], spread(computed, x.shape[1], stride), x)


def pool_real(real, stride):
    """[B, T] -> [B, ceil(T / k)]: a window is padding if all of its tokens are."""
    return torch.stack([window.any(1) for window in real.split(stride, dim=1)], dim=1)


def average_pool(x, real, stride):
    """[B, T, d] -> [B, ceil(T / k), d]: the mean of each window's tokens that are not padding; 0 if there are none."""

    def mean(window, counted):
        counted = counted[..., None].to(window.dtype)
        return (window * counted).sum(1) / counted.sum(1).clamp(min=1)

    windows = zip(x.split(stride, dim=1), real.split(stride, dim=1))
    return torch.stack([mean(*window) for window in windows], dim=1)
