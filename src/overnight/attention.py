"""Causal attention, and the cache of keys and values of a generation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from overnight.model import LanguageModel

SHORT = 512  # tokens up to which attention on a CPU is written out in 16 bits
LONG = 2048  # the same for plain causal attention, which is written out QUERIES at a time
QUERIES = 128


class Cache:
    """Keys and values of the tokens seen so far, for one generation.

    Holds for each layer (2, B, n_head, block_size, head size); `length` positions of it are filled. `last` (B, 1) is
    the newest token.
    """

    def __init__(self, model: LanguageModel, batch: int) -> None:
        config = model.config
        shape = (config.n_layer, 2, batch, config.n_head, model.block_size, config.n_embd // config.n_head)
        self.layers = torch.empty(shape, device=model.wte.weight.device, dtype=model.wte.weight.dtype)
        self.length = 0
        self.last: Tensor | None = None

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Appends (B, n_head, t, head size) and returns all keys and values up to and with them."""
        end = self.length + keys.shape[2]
        self.layers[layer, 0, :, :, self.length : end] = keys
        self.layers[layer, 1, :, :, self.length : end] = values
        return self.layers[layer, 0, :, :, :end].to(keys.dtype), self.layers[layer, 1, :, :, :end].to(values.dtype)

    def advance(self, tokens: Tensor) -> None:
        """Counts tokens (B, t) whose keys and values every layer has."""
        self.length += tokens.shape[1]
        self.last = tokens[:, -1:]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, scale: float | None = None) -> Tensor:
    """Softmax attention of queries (B, n_head, T, head size) over keys and values (B, n_head, keys, head size).

    `mask` (B, 1, T, keys) bool says which keys each query sees. Without one the queries are the last of the keys'
    positions, and each sees those up to its own. `scale` multiplies the products; None: 1 / sqrt(head size).
    """
    T, past = q.shape[2], k.shape[2] - q.shape[2]
    if mask is None and past and T > 1:
        mask = torch.ones(T, past + T, dtype=torch.bool, device=q.device).tril(past)
    causal = mask is None and T > 1
    if q.device.type == "cpu" and q.dtype in (torch.bfloat16, torch.float16):
        if causal and not dropout and T <= LONG:
            heads = (x.reshape(-1, T, x.shape[-1]) for x in (q, k, v))
            found: Tensor = _CausalInRows.apply(*heads, q.shape[-1] ** -0.5 if scale is None else scale)  # type: ignore[no-untyped-call]
            return found.view_as(q)
        if T <= SHORT:
            return attend_in_products(q, k, v, mask, dropout, scale)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=scale)


def attend_in_products(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float, scale: float | None = None
) -> Tensor:
    """`attend` written out, causal without a mask: on a CPU in bfloat16 and for short sequences it is faster than
    `scaled_dot_product_attention`, its backward pass by far. One query sees all keys."""
    scores = (q * (q.shape[-1] ** -0.5 if scale is None else scale)) @ k.transpose(-1, -2)  # (B, n_head, T, keys)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    elif q.shape[2] > 1:
        scores = scores + torch.full(scores.shape[-2:], float("-inf"), device=q.device).triu(1)
    return F.dropout(scores.softmax(-1, dtype=torch.float32), dropout, dropout > 0).to(v.dtype) @ v


class _CausalInRows(torch.autograd.Function):
    """Causal attention of heads (n, T, head size), QUERIES of them at a time over the keys up to theirs, so that about
    half of the products that a mask would throw away are not computed. Keeps the weights for the backward pass."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        weights, outputs = [], []
        for start, rows in _rows(q):
            end = start + rows.shape[1]
            mask = q.new_full((end - start, end), float("-inf")).triu(start + 1)
            weights.append(torch.baddbmm(mask, rows, k[:, :end].mT, alpha=scale).softmax(-1))
            outputs.append(weights[-1] @ v[:, :end])
        ctx.save_for_backward(q, k, v, *weights)
        ctx.scale = scale
        return torch.cat(outputs, dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, *weights = ctx.saved_tensors
        grads_q = []
        grad_k, grad_v = torch.zeros_like(k, dtype=torch.float32), torch.zeros_like(v, dtype=torch.float32)
        for (start, rows), weight, (_, grad) in zip(_rows(q), weights, _rows(grads[0]), strict=True):
            end = start + rows.shape[1]
            grad_v[:, :end] += weight.mT @ grad
            grad_scores = torch._softmax_backward_data(grad @ v[:, :end].mT, weight, -1, weight.dtype)
            grads_q.append(grad_scores @ k[:, :end])
            grad_k[:, :end] += grad_scores.mT @ rows
        return torch.cat(grads_q, dim=1) * ctx.scale, (grad_k * ctx.scale).to(k.dtype), grad_v.to(v.dtype), None


def _rows(x: Tensor) -> list[tuple[int, Tensor]]:
    """Where each piece of QUERIES positions begins, and the piece."""
    return [(index * QUERIES, piece) for index, piece in enumerate(torch.split(x, QUERIES, dim=1))]
