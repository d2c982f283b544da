"""Cross entropy over a large vocabulary without ever holding all the logits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

IGNORE = -1  # a target that does not count


def capped(logits: Tensor, softcap: float | None) -> Tensor:
    """Logits bent to lie within `softcap`: softcap * tanh(logits / softcap) (Gemma Team 2024); None: as they are."""
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, n_vocab: int, softcap: float | None = None
) -> Tensor:
    """The summed cross entropy of softmax(hidden @ weight.T) against targets, in nats, computed in chunks of rows.

    hidden (N, C), weight (V, C), targets (N,) int64, IGNORE where nothing is to be predicted. Rows of `weight`
    from `n_vocab` on are padding: they get no probability and no gradient. With `softcap` the logits are `capped`.
    Returns a float32 scalar. Matrix products run in the autocast dtype where autocast is on; softmax and all sums are
    float32. The gradients are computed along with the loss, chunk by chunk, so memory beyond them is one chunk of
    logits (as in Hsu et al. 2024, "Liger Kernel").
    """
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, targets, n_vocab, softcap)  # type: ignore[no-untyped-call]
        return loss
    return token_cross_entropy(hidden, weight, targets, n_vocab, softcap).sum()


def token_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, n_vocab: int, softcap: float | None = None
) -> Tensor:
    """As `linear_cross_entropy`, but the loss of each target, (N,) float32; without gradients."""
    return torch.cat([_nats(*found) for found in _predictions(hidden, weight, targets, n_vocab, softcap)])


def token_scores(
    hidden: Tensor, weight: Tensor, targets: Tensor, n_vocab: int, softcap: float | None = None
) -> tuple[Tensor, Tensor]:
    """As `token_cross_entropy`, and whether each target is the likeliest id, (N,) bool."""
    losses, likeliest = [], []
    for logits, log_sum, labels in _predictions(hidden, weight, targets, n_vocab, softcap):
        losses.append(_nats(logits, log_sum, labels))
        likeliest.append(logits.argmax(dim=1) == labels)
    return torch.cat(losses), torch.cat(likeliest)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, n_vocab: int, softcap: float | None
    ) -> Tensor:
        dtype = _product_dtype(hidden)
        # the gradient scaler has not scaled these gradients yet: float16 would lose the small ones
        back = torch.float32 if dtype == torch.float16 else dtype
        matrix = weight.to(dtype)
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_weight = None
        grads_hidden = []
        for rows, labels in zip(*_chunks(hidden, targets, weight), strict=True):
            rows = rows.to(dtype)
            products = (rows @ matrix.T).to(back)
            for part, own in zip(*_parts(products, labels), strict=True):
                loss += _turn_into_gradient(part, own, n_vocab, softcap)
            grads_hidden.append((products @ matrix.to(back)).to(hidden.dtype))
            added = products.T @ rows.to(back)
            grad_weight = added if grad_weight is None else grad_weight.float().add_(added)
        assert grad_weight is not None
        ctx.save_for_backward(torch.cat(grads_hidden), grad_weight.to(weight.dtype))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return (
            grad_hidden * grads[0].to(grad_hidden.dtype),
            grad_weight * grads[0].to(grad_weight.dtype),
            None,
            None,
            None,
        )


def _turn_into_gradient(products: Tensor, labels: Tensor, n_vocab: int, softcap: float | None) -> Tensor:
    """Puts d loss / d product in the place of each product of hidden states and weights; returns the summed loss."""
    logits, log_sum = _logits(products, n_vocab, softcap)
    loss = _nats(logits, log_sum, labels).sum()
    # d loss / d logits = softmax - one-hot of the target, and 0 where the target is ignored
    slope = None if softcap is None else 1.0 - (logits / softcap).square()  # of tanh
    grad = logits.sub_(log_sum[:, None]).exp_()
    grad.scatter_add_(1, labels.clamp_min(0)[:, None], grad.new_full((len(labels), 1), -1.0))
    grad.mul_((labels != IGNORE)[:, None])
    if slope is not None:
        grad[:, :n_vocab] *= slope[:, :n_vocab]
    products.copy_(grad)
    return loss


def _product_dtype(hidden: Tensor) -> torch.dtype:
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def _chunks(hidden: Tensor, targets: Tensor, weight: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Rows whose products with the weights are there at once."""
    # a GPU wants products large enough to fill it; so does a CPU in 16 bits, which turns them into gradients in parts
    few = hidden.device.type == "cpu" and not _in_parts(_product_dtype(hidden), hidden.device)
    rows = max(128, (2**22 if few else 2**26 if hidden.device.type == "cpu" else 2**28) // weight.shape[0])
    return torch.split(hidden, rows), torch.split(targets, rows)


def _parts(products: Tensor, targets: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Rows of products in reach of a CPU's cache: each is passed over many times, in float32."""
    parted = _in_parts(products.dtype, products.device) and not torch.compiler.is_compiling()  # which makes it one pass
    rows = max(16, 2**20 // products.shape[1]) if parted else len(products)
    return torch.split(products, rows), torch.split(targets, rows)


def _in_parts(dtype: torch.dtype, device: torch.device) -> bool:
    return device.type == "cpu" and dtype != torch.float32


def _predictions(
    hidden: Tensor, weight: Tensor, targets: Tensor, n_vocab: int, softcap: float | None
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Logits, their logsumexp and the targets, chunk by chunk; without gradients."""
    dtype = _product_dtype(hidden)
    matrix = weight.detach().to(dtype)
    for rows, labels in zip(*_chunks(hidden.detach(), targets, weight), strict=True):
        for part, own in zip(*_parts(rows.to(dtype) @ matrix.T, labels), strict=True):
            yield *_logits(part, n_vocab, softcap), own


def _logits(products: Tensor, n_vocab: int, softcap: float | None) -> tuple[Tensor, Tensor]:
    logits = capped(products.float(), softcap)
    if n_vocab < logits.shape[1]:
        logits[:, n_vocab:] = float("-inf")
    return logits, logits.logsumexp(dim=1)


def _nats(logits: Tensor, log_sum: Tensor, labels: Tensor) -> Tensor:
    picked = logits.gather(1, labels.clamp_min(0)[:, None]).squeeze(1)
    return torch.where(labels != IGNORE, log_sum - picked, 0.0)
