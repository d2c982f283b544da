"""The language model: what all have in common, and GPT-2."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from overnight.attention import Cache, attend
from overnight.config import ModelConfig
from overnight.distributed import placed, whole
from overnight.errors import UserError, suggestion
from overnight.loss import capped, linear_cross_entropy, token_cross_entropy
from overnight.plugins import imported, require_trust

PAD_TO = 64  # the vocabulary's rows in memory are a multiple of this, for the speed of the head's matrix product


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
            k, v = cache.extend(self.layer, k, v)
        y = attend(q, k, v, mask, self.dropout if self.training else 0.0)
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


class LanguageModel(nn.Module):
    """What every model here can do: tokens in, hidden states, logits or losses out.

    `block_size` is the longest sequence. Tables with a row for each id (`VOCABULARY`) have `n_vocab` of them; what
    follows is padding, which is never predicted. A model has its blocks in `h`, its token embedding in `wte`, and
    says with `features` what it computes and with `reset` what it starts from.
    """

    VOCABULARY: tuple[str, ...] = ("wte.weight",)  # names of parameters, or their beginnings
    softcap: float | None = None  # logits are bent to lie within this, as softcap * tanh(logit / softcap)
    wte: nn.Embedding
    h: nn.ModuleList

    def __init__(self, config: ModelConfig, block_size: int) -> None:
        super().__init__()
        if config.vocab_size is None:
            raise ValueError("vocab_size is not resolved")
        self.config, self.block_size, self.n_vocab = config, block_size, config.vocab_size
        self.rows = -(-config.vocab_size // PAD_TO) * PAD_TO  # of a table over the vocabulary
        self.recompute = False  # whether the backward pass computes the activations inside of blocks again

    @property
    def head(self) -> Tensor:
        """The weights (rows, n_embd) that turn hidden states into logits."""
        return self.wte.weight

    def features(
        self,
        tokens: Tensor,
        cache: Cache | None = None,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        previous: Tensor | None = None,
    ) -> Tensor:
        """The final hidden states, (B, T, n_embd), of tokens (B, T) int64. A cache holds what came before, and
        grows.

        Tokens follow each other, and see all before them, unless it is said otherwise: `positions` (B, T) int64, below
        block_size, is where each stands; `mask` (B, 1, T, all tokens) bool is which tokens each sees, itself included;
        `previous` (B, T) int64 is the token before each, -1 where there is none.
        """
        raise NotImplementedError

    def reset(self, generator: torch.Generator) -> None:
        """Fills all parameters but padding, drawing on the CPU, in the order of the parameters; with `fill`, since
        of each this process may have a part."""
        raise NotImplementedError

    def placed(self, tokens: Tensor, cache: Cache | None, positions: Tensor | None) -> Tensor:
        """Where each token stands, (T,) or (B, T) int64: `positions`, or behind what the cache holds."""
        if positions is not None:
            return positions
        T, past = tokens.shape[1], 0 if cache is None else cache.length
        if past + T > self.block_size:
            raise ValueError(f"{past + T} tokens, but the model sees at most {self.block_size}")
        return torch.arange(past, past + T, device=tokens.device)

    def through(self, block: nn.Module, *inputs: Any) -> Tensor:
        """A block's output; where so chosen, its activations are not kept for the backward pass."""
        if self.recompute and torch.is_grad_enabled():
            return cast(Tensor, checkpoint(block, *inputs, use_reentrant=False))
        return cast(Tensor, block(*inputs))

    def logits(self, features: Tensor) -> Tensor:
        """(..., n_embd) -> (..., vocab_size): real ids only."""
        return capped(F.linear(features, self.head)[..., : self.n_vocab], self.softcap)

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
            return token_cross_entropy(rows, self.head, labels, self.n_vocab, self.softcap).view_as(targets)
        return linear_cross_entropy(rows, self.head, labels, self.n_vocab, self.softcap)


class GPT(LanguageModel):
    """GPT-2: learned positions, and a head tied to the token embedding (Radford et al. 2019)."""

    def __init__(self, config: ModelConfig, block_size: int) -> None:
        super().__init__(config, block_size)
        self.wte = nn.Embedding(self.rows, config.n_embd)
        self.wpe = nn.Embedding(block_size, config.n_embd)
        self.h = nn.ModuleList(GPT2Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, bias=config.bias)

    def features(
        self,
        tokens: Tensor,
        cache: Cache | None = None,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        previous: Tensor | None = None,
    ) -> Tensor:
        x = self.wte(tokens) + self.wpe(self.placed(tokens, cache, positions))
        x = F.dropout(x, self.config.dropout, self.training)
        for block in self.h:
            x = self.through(block, x, cache, mask)
        if cache is not None:
            cache.advance(tokens)
        return cast(Tensor, self.ln_f(x))

    def reset(self, generator: torch.Generator) -> None:
        """Radford et al. 2019, as nanoGPT has it.

        embeddings, linear weights    normal, deviation 0.02
        c_proj weights                normal, deviation 0.02 / sqrt(2 n_layer): they add to the residual stream
        biases                        0
        layer norms                   1
        """
        residual = 0.02 / math.sqrt(2 * self.config.n_layer)
        for name, parameter in self.named_parameters():
            if parameter.dim() >= 2:
                deviation = residual if name.endswith("c_proj.weight") else 0.02
                drawn = torch.empty(parameter.shape).normal_(0.0, deviation, generator=generator)
                fill(parameter, drawn)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)


MODELS: dict[str, str] = {"gpt2": "overnight.model:GPT", "modern": "overnight.modern:Modern"}  # by the kind of block


def make_model(config: ModelConfig, block_size: int) -> LanguageModel:
    """The model of a configuration, its parameters not yet filled; a UserError for a block that is not known.

    A block with a colon in its name is the import path of a class with LanguageModel's constructor and methods.
    """
    if config.block not in MODELS and ":" not in config.block:
        raise UserError(f"model.block: there is no '{config.block}'{suggestion(config.block, MODELS)}")
    if config.block not in MODELS:  # a run folder may name it, which may be a stranger's
        require_trust("model.block", config.block)
    kind: type[LanguageModel] = imported("model.block", MODELS.get(config.block, config.block))
    return kind(config, block_size)


def without_memory(config: ModelConfig, block_size: int) -> LanguageModel:
    """The model of a configuration on the device `meta`: names and shapes."""
    with torch.device("meta"):
        return make_model(config, block_size)


def initialise(model: LanguageModel, seed: int) -> LanguageModel:
    """Fills all parameters, the same for a seed on every device; padding rows are 0."""
    with torch.no_grad():
        model.reset(torch.Generator().manual_seed(seed))
        for name, parameter in model.named_parameters():
            if name.startswith(model.VOCABULARY):
                table = whole(parameter.detach())
                table[model.n_vocab :] = 0.0
                fill(parameter, table)
    return model


def fill(parameter: Tensor, value: Tensor) -> None:
    """Gives a parameter its value, which is whole; where a process has a part, that of rank 0's value."""
    parameter.detach().copy_(placed(value, parameter.detach(), from_first=True))


def weights(model: LanguageModel) -> dict[str, Tensor]:
    """The parameters by name, tables over the vocabulary without their padding rows; views, not copies."""
    named = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return {
        name: tensor[: model.n_vocab] if name.startswith(model.VOCABULARY) else tensor for name, tensor in named.items()
    }


def load_weights(model: LanguageModel, named: dict[str, Tensor], where: str, from_first: bool = False) -> None:
    """Copies what `weights` gave into a model; what `check_weights` refuses is a UserError. With `from_first` it is
    what rank 0 has, where the model is in parts."""
    check_weights(model, named, where)
    for name, parameter in model.named_parameters():
        value = named[name]
        if name.startswith(model.VOCABULARY):
            value = F.pad(value, (0, 0, 0, len(parameter) - model.n_vocab))
        parameter.detach().copy_(placed(value, parameter.detach(), from_first))


def check_weights(model: LanguageModel, named: dict[str, Tensor], where: str) -> None:
    """A missing, unknown or misshapen tensor is a UserError that names it; the model may be one without memory."""
    own = weights(model)
    for name in sorted(own.keys() ^ named.keys()):
        raise UserError(f"{where}: {'unknown' if name in named else 'missing'} tensor '{name}'")
    for name, target in own.items():
        if target.shape != named[name].shape:
            raise UserError(f"{where}: '{name}' is {tuple(named[name].shape)}, expected {tuple(target.shape)}")
