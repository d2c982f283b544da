"""Sampling with a cache of keys and values beside sampling without."""

from __future__ import annotations

from typing import Any

import torch

from overnight import generate
from overnight.attention import Cache
from overnight.training import Training

PROMPT = 5  # tokens
MORE = 8  # tokens past the context


@torch.no_grad()
def cached_beside_uncached(training: Training) -> dict[str, Any]:
    """Largest difference of logits, as a share of the largest of them, and how many greedily chosen tokens differ."""
    model, dataset = training.model, training.dataset
    tokens = torch.from_numpy(dataset.tokens(dataset.sequences(0, 4))[0]).to(training.device)  # (4, T)
    model.eval()
    plain = model(tokens)
    cache, parts = Cache(model, len(tokens)), torch.tensor_split(tokens, (PROMPT, PROMPT + 1, PROMPT + 2), dim=1)
    cached = torch.cat([model(part, cache=cache) for part in parts], dim=1)
    texts = [
        torch.cat(
            list(
                generate.stream(
                    model,
                    tokens[:, :PROMPT],
                    model.block_size - PROMPT + MORE,
                    temperature=0,
                    use_cache=use_cache,
                )
            ),
            dim=1,
        )
        for use_cache in (True, False)
    ]
    return {
        "logits": float((cached - plain).abs().max() / plain.abs().max()),
        "tokens": int((texts[0] != texts[1]).sum()),
        "of": texts[0].numel(),
    }
