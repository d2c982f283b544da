"""The GPT: token and position embeddings, a stack of blocks, a tied head."""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from overnight.config import ModelConfig
from overnight.distributed import placed
from overnight.errors import UserError, suggestion
from overnight.loss import linear_cross_entropy, token_cross_entropy

SHORT = 512  # tokens up to which attention on a CPU is written out in bfloat16
PAD_TO = 64  # the vocabulary's rows in memory are a multiple of this, for the speed of the head's matrix product


class Cache:
    """Keys and values of the tokens seen so far, for one generation.

    Holds for each layer (2, B, n_head, block_size, head size); `length` positions of it are filled.
    """

    def __init__(self, model: GPT, batch: int) -> None:
        config = model.config
        shape = (config.n_layer, 2, batch, config.n_head, model.block_size, config.n_embd // config.n_head)
        self.layers = torch.empty(shape, device=model.wte.weight.device, dtype=model.wte.weight.dtype)
        self.length = 0

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Appends (B, n_head, t, head size) and returns all keys and values up to and with them."""
        end = self.length + keys.shape[2]
        self.layers[layer, 0, :, :, self.length : end] = keys
        self.layers[layer, 1, :, :, self.length : end] = values
        return self.layers[layer, 0, :, :, :end].to(keys.dtype), self.layers[layer, 1, :, :, :end].to(values.dtype)


def attend_in_products(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """Attention of (B, n_head, T, head size) written out, causal without a mask: on a CPU in bfloat16 and for short
    sequences it is faster than `scaled_dot_product_attention`, its backward pass by far. One query sees all keys."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # (B, n_head, T, keys)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    elif q.shape[2] > 1:
        scores = scores + torch.full(scores.shape[-2:], float("-inf"), device=q.device).triu(1)
    return F.dropout(scores.softmax(-1, dtype=torch.float32), dropout, dropout > 0).to(v.dtype) @ v


class CausalSelfAttention(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.n_head, self.dropout, self.layer = config.n_head, config.dropout, layer

    def forward(self, x: Tensor, cache: Cache | None, mask: Tensor | None = None) -> Tensor:
        B, T, C = x.shape
        q, k, v = (
            part.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)  # (B, n_head, T, head size)
            for part in self.c_attn(x).split(C, dim=2)
        )
        if cache is not None:
            past = cache.length
            k, v = cache.extend(self.layer, k, v)
            if mask is None and past and T > 1:  # query i stands at position past + i
                mask = torch.ones(T, past + T, dtype=torch.bool, device=x.device).tril(past)
        dropout = self.dropout if self.training else 0.0
        if T <= SHORT and x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
            y = attend_in_products(q, k, v, mask, dropout)
        else:
            causal = mask is None and T > 1
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal)
        y = self.c_proj(y.transpose(1, 2).reshape(B, T, C))
        return F.dropout(y, self.dropout, self.training)


class MLP(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.activation = nn.GELU(approximate="tanh" if config.activation == "gelu_tanh" else "none")
        self.dropout = config.dropout

    def forward(self, x: Tensor) -> Tensor:
        x = self.c_proj(self.activation(self.c_fc(x)))
        return F.dropout(x, self.dropout, self.training)


class GPT2Block(nn.Module):
    """Pre-LayerNorm attention and MLP (Radford et al. 2019)."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attn = CausalSelfAttention(config, layer)
        self.ln_2 = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cache: Cache | None, mask: Tensor | None = None) -> Tensor:
        x = x + self.attn(self.ln_1(x), cache, mask)
        return x + cast(Tensor, self.mlp(self.ln_2(x)))


BLOCKS: dict[str, type[nn.Module]] = {"gpt2": GPT2Block}


class GPT(nn.Module):
    """A decoder-only language model with learned positions and a head tied to the token embedding.

    `block_size` is the longest sequence. Rows of `wte` from `config.vocab_size` on are padding.
    """

    def __init__(self, config: ModelConfig, block_size: int) -> None:
        super().__init__()
        if config.vocab_size is None:
            raise ValueError("vocab_size is not resolved")
        if config.block not in BLOCKS:
            raise UserError(f"model.block: there is no '{config.block}'{suggestion(config.block, BLOCKS)}")
        self.config, self.block_size, self.n_vocab = config, block_size, config.vocab_size
        self.wte = nn.Embedding(-(-config.vocab_size // PAD_TO) * PAD_TO, config.n_embd)
        self.wpe = nn.Embedding(block_size, config.n_embd)
        self.h = nn.ModuleList(BLOCKS[config.block](config, layer) for layer in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.recompute = False  # whether the backward pass computes the activations inside of blocks again

    def features(
        self,
        tokens: Tensor,
        cache: Cache | None = None,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """The final hidden states, (B, T, n_embd), of tokens (B, T) int64. A cache holds what came before, and
        grows.

        Tokens follow each other, and see all before them, unless it is said otherwise: `positions` (B, T) int64, below
        block_size, is where each stands; `mask` (B, 1, T, all tokens) bool is which tokens each sees, itself included.
        """
        T, past = tokens.shape[1], 0 if cache is None else cache.length
        if positions is None:
            if past + T > self.block_size:
                raise ValueError(f"{past + T} tokens, but the model sees at most {self.block_size}")
            positions = torch.arange(past, past + T, device=tokens.device)
        x = self.wte(tokens) + self.wpe(positions)
        x = F.dropout(x, self.config.dropout, self.training)
        for block in self.h:
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(block, x, cache, mask, use_reentrant=False)
            else:
                x = block(x, cache, mask)
        if cache is not None:
            cache.length += T
        normed: Tensor = self.ln_f(x)
        return normed

    def logits(self, features: Tensor) -> Tensor:
        """(..., n_embd) -> (..., vocab_size): real ids only."""
        return F.linear(features, self.wte.weight)[..., : self.n_vocab]

    def forward(
        self, tokens: Tensor, targets: Tensor | None = None, cache: Cache | None = None, per_token: bool = False
    ) -> Tensor:
        """Logits (B, T, vocab_size) of tokens (B, T); with targets (B, T) the summed cross entropy in nats instead.

        A target of -1 is ignored. `per_token` gives the loss of each target, (B, T), without gradients.
        """
        x = self.features(tokens, cache)
        if targets is None:
            return self.logits(x)
        rows, labels = x.flatten(0, 1), targets.flatten()
        if per_token:
            return token_cross_entropy(rows, self.wte.weight, labels, self.n_vocab).view_as(targets)
        return linear_cross_entropy(rows, self.wte.weight, labels, self.n_vocab)


def initialise(model: GPT, seed: int) -> GPT:
    """Fills all parameters, the same for a seed on every device (Radford et al. 2019; nanoGPT).

    embeddings, linear weights    normal, deviation 0.02
    c_proj weights                normal, deviation 0.02 / sqrt(2 n_layer): they add to the residual stream
    biases                        0
    layer norms                   1
    padding rows of wte           0
    """
    generator = torch.Generator().manual_seed(seed)
    residual = 0.02 / math.sqrt(2 * model.config.n_layer)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2:
                deviation = residual if name.endswith("c_proj.weight") else 0.02
                drawn = torch.empty(parameter.shape).normal_(0.0, deviation, generator=generator)
                parameter.copy_(drawn)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        model.wte.weight[model.n_vocab :] = 0.0
    return model


def weights(model: GPT) -> dict[str, Tensor]:
    """The parameters by name, the vocabulary without its padding rows; views, not copies."""
    named = {name: parameter.detach() for name, parameter in model.named_parameters()}
    named["wte.weight"] = named["wte.weight"][: model.n_vocab]
    return named


def load_weights(model: GPT, named: dict[str, Tensor], where: str) -> None:
    """Copies what `weights` gave into a model; what `check_weights` refuses is a UserError."""
    check_weights(model, named, where)
    for name, parameter in model.named_parameters():
        value = named[name]
        if name == "wte.weight":
            value = F.pad(value, (0, 0, 0, len(parameter) - model.n_vocab))
        parameter.detach().copy_(placed(value, parameter.detach()))


def check_weights(model: GPT, named: dict[str, Tensor], where: str) -> None:
    """A missing, unknown or misshapen tensor is a UserError that names it; the model may be one without memory."""
    own = weights(model)
    for name in sorted(own.keys() ^ named.keys()):
        raise UserError(f"{where}: {'unknown' if name in named else 'missing'} tensor '{name}'")
    for name, target in own.items():
        if target.shape != named[name].shape:
            raise UserError(f"{where}: '{name}' is {tuple(named[name].shape)}, expected {tuple(target.shape)}")
