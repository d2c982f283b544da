"""Sampling: pure functions of logits and a generator, and generation with a cache of keys and values."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from overnight import hanging
from overnight.attention import Cache
from overnight.model import LanguageModel


def sample_token(
    logits: Tensor, generator: torch.Generator | None, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> Tensor:
    """One id for each row of logits (B, vocab): (B, 1) int64.

    temperature 0 takes the likeliest. top_k keeps the k likeliest (0: all). top_p keeps the fewest likeliest
    ids whose probabilities sum to at least p (Holtzman et al. 2020).
    """
    logits = logits.float()
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    probabilities = (logits / temperature).softmax(dim=-1)
    if not top_k and top_p >= 1:
        return torch.multinomial(probabilities, 1, generator=generator)
    kept, ids = probabilities.topk(min(top_k or logits.shape[-1], logits.shape[-1]), dim=-1)
    if top_p < 1:
        kept = kept / kept.sum(dim=-1, keepdim=True)
        before = kept.cumsum(dim=-1) - kept  # the mass of all likelier ids
        kept = kept.masked_fill(before >= top_p, 0.0)
    return ids.gather(-1, torch.multinomial(kept, 1, generator=generator))


@torch.no_grad()
def stream(
    model: LanguageModel,
    tokens: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
    use_cache: bool = True,
    vocab_size: int | None = None,
) -> Iterator[Tensor]:
    """Continues tokens (B, T) int64, one column (B, 1) at a time; with `vocab_size` by ids below that.

    The model sees the last `block_size` tokens. Keys and values are cached until the text is longer than that;
    from then on every token's position shifts with each new one, and the whole window is computed anew.
    """
    if tokens.shape[1] == 0:
        raise ValueError("generation needs at least one token to start from")
    window = tokens[:, -model.block_size :]
    training = model.training
    model.eval()
    try:
        cache, fresh = None, window
        for length in range(tokens.shape[1], tokens.shape[1] + max_new_tokens):
            hanging.beat()
            if use_cache and length <= model.block_size:
                cache = cache or Cache(model, len(tokens))
                features = model.features(fresh, cache)
            else:
                features = model.features(window)
            fresh = sample_token(model.logits(features[:, -1])[:, :vocab_size], generator, temperature, top_k, top_p)
            yield fresh
            window = torch.cat((window, fresh), dim=1)[:, -model.block_size :]
    finally:
        model.train(training)
