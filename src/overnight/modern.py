"""The modern model: what learns more from each token than GPT-2 does, each part because an ablation shows it."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from overnight.attention import Cache, attend
from overnight.config import ModelConfig
from overnight.errors import UserError
from overnight.model import LanguageModel, fill

ROTARY_BASE = 10_000.0
SHARPNESS = 1.35  # of attention: queries and keys have unit size, so their products are small
SOFTCAP = 15.0
FIRST, SECOND = 36_313, 27_191  # odd numbers that spread pairs of ids over the rows of the bigram table


def norm(x: Tensor) -> Tensor:
    """To a root mean square of 1 (Zhang & Sennrich 2019), without a weight."""
    return F.rms_norm(x, (x.shape[-1],))


def norm_heads(x: Tensor) -> Tensor:
    """Queries or keys of unit size (Henry et al. 2020): their products are bounded."""
    return norm(x)


def activate(x: Tensor) -> Tensor:
    """ReLU^2 (So et al. 2021)."""
    found: Tensor = _SquaredReLU.apply(x)  # type: ignore[no-untyped-call]
    return found


class _SquaredReLU(torch.autograd.Function):
    """In fewer passes over memory than its parts take."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        positive = F.relu(x)
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        return torch.mul(grads[0], positive).mul_(2.0)


def rotation(positions: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines, (1 or B, 1, T, size / 2), that rotate heads of `size` at positions (T,) or (B, T)."""
    frequencies = ROTARY_BASE ** (-torch.arange(0, size, 2, device=positions.device) / size)
    angles = (positions[..., None] * frequencies).view(-1, 1, positions.shape[-1], size // 2)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of (B, n_head, T, head size) (Su et al. 2021)."""
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    one, other = x.chunk(2, dim=-1)
    return torch.cat((torch.addcmul(one * cos, other, sin), torch.addcmul(other * cos, one, -sin)), dim=-1)


class ModernAttention(nn.Module):
    def __init__(self, config: ModelConfig, layer: int, has_values: bool) -> None:
        super().__init__()
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=False)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=False)
        if has_values:
            self.value_mix = nn.Parameter(torch.empty(1))
        self.n_head, self.size, self.layer = config.n_head, config.n_embd // config.n_head, layer
        self.dropout = config.dropout

    def forward(
        self, x: Tensor, values: Tensor | None, turn: tuple[Tensor, Tensor], cache: Cache | None, mask: Tensor | None
    ) -> Tensor:
        B, T, C = x.shape
        q, k, v = self.c_attn(x).view(B, T, 3 * self.n_head, self.size).transpose(1, 2).split(self.n_head, dim=1)
        q, k = rotate(norm_heads(q), *turn), rotate(norm_heads(k), *turn)  # (B, n_head, T, head size)
        if values is not None:
            values = values.view(B, T, self.n_head, self.size).transpose(1, 2).to(v.dtype)
            v = torch.addcmul(v, self.value_mix.to(v.dtype), values)
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)
        y = attend(q, k, v, mask, self.dropout if self.training else 0.0, SHARPNESS * self.size**-0.5)
        return cast(Tensor, self.c_proj(y.transpose(1, 2).reshape(B, T, C)))


class ModernBlock(nn.Module):
    """Attention and MLP, each on a normed stream into which the embeddings are mixed again."""

    def __init__(self, config: ModelConfig, layer: int, has_values: bool) -> None:
        super().__init__()
        self.stream_mix = nn.Parameter(torch.empty(1))
        self.attn = ModernAttention(config, layer, has_values)
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=False)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=False)
        self.dropout = config.dropout

    def forward(
        self,
        x: Tensor,
        embedded: Tensor,
        values: Tensor | None,
        turn: tuple[Tensor, Tensor],
        cache: Cache | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        x = torch.addcmul(x, self.stream_mix, embedded)
        x = x + self.dropped(self.attn(norm(x), values, turn, cache, mask))
        return x + self.dropped(self.c_proj(activate(self.c_fc(norm(x)))))

    def dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class Modern(LanguageModel):
    """RoPE, RMSNorm without weights, QK-norm, ReLU^2, no biases, an untied head with capped logits, value embeddings
    in every second block, and a table of pairs of tokens.

    The parts are those of modded-nanogpt (Jordan et al.) and nanochat (Karpathy). `config.bigram_rows` is the size of
    the table that a token and the one before it are looked up in together; with at least vocab_size^2 rows each pair
    has its own, with fewer they share (0: none).
    """

    VOCABULARY = ("wte.weight", "values.", "lm_head.weight")
    softcap = SOFTCAP

    def __init__(self, config: ModelConfig, block_size: int) -> None:
        super().__init__(config, block_size)
        if config.bias or config.activation != "relu2":
            raise UserError("model.block modern has no biases and the activation relu2: see its presets")
        if config.n_embd // config.n_head % 2:
            size = f"{config.n_embd // config.n_head} (--model.n-embd {config.n_embd} / --model.n-head {config.n_head})"
            raise UserError(f"model.block modern turns pairs of channels: heads of {size} must be of an even size")
        layers, width = range(config.n_layer), config.n_embd
        self.valued = [
            layer for layer in layers if layer % 2 == (config.n_layer - 1) % 2
        ]  # the last block is among them
        self.wte = nn.Embedding(self.rows, width)
        self.bigrams = nn.Embedding(config.bigram_rows, width) if config.bigram_rows else None
        self.values = nn.ModuleList(nn.Embedding(self.rows, width) for _ in self.valued)
        self.h = nn.ModuleList(ModernBlock(config, layer, layer in self.valued) for layer in layers)
        self.lm_head = nn.Linear(width, self.rows, bias=False)

    @property
    def head(self) -> Tensor:
        return self.lm_head.weight

    def features(
        self,
        tokens: Tensor,
        cache: Cache | None = None,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        previous: Tensor | None = None,
    ) -> Tensor:
        turn = rotation(self.placed(tokens, cache, positions), self.config.n_embd // self.config.n_head)
        x = self.wte(tokens)
        if self.bigrams is not None:
            x = x + self.bigrams(self.pairs(tokens, before(tokens, cache) if previous is None else previous))
        x = embedded = F.dropout(norm(x), self.config.dropout, self.training)
        tables = dict(zip(self.valued, self.values, strict=True))
        for layer, block in enumerate(self.h):
            values = tables[layer](tokens) if layer in tables else None
            x = self.through(block, x, embedded, values, turn, cache, mask)
        if cache is not None:
            cache.advance(tokens)
        return norm(x)

    def pairs(self, tokens: Tensor, previous: Tensor) -> Tensor:
        """The row of the bigram table of each token and the one before it (-1: none, for which row 0 stands)."""
        rows = self.config.bigram_rows
        exact = rows >= self.n_vocab**2
        found = previous * self.n_vocab + tokens if exact else (FIRST * tokens ^ SECOND * previous) % rows
        return torch.where(previous < 0, 0, found)

    def reset(self, generator: torch.Generator) -> None:
        """What adds to the stream starts at 0, so that the model begins as its embeddings alone.

        wte                     normal, deviation 1
        values                  normal, deviation 1, of which the mix at first takes nothing
        bigrams, head, c_proj   0, as the mixes
        c_attn, c_fc            uniform, deviation 1 / sqrt(n_embd)
        """
        bound = (3 / self.config.n_embd) ** 0.5
        for name, parameter in self.named_parameters():
            if name.startswith(("wte.", "values.")):
                fill(parameter, torch.empty(parameter.shape).normal_(generator=generator))
            elif name.endswith(("c_attn.weight", "c_fc.weight")):
                fill(parameter, torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))
            else:
                parameter.zero_()


def before(tokens: Tensor, cache: Cache | None) -> Tensor:
    """The token before each of tokens (B, T) that follow each other, and what a cache holds; -1: none."""
    first = cache.last if cache is not None and cache.last is not None else torch.full_like(tokens[:, :1], -1)
    return torch.cat((first, tokens[:, :-1]), dim=1)
