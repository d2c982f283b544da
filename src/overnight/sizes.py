"""What a model takes, also one without memory: parameters and floating-point operations."""

from __future__ import annotations

from overnight import optim
from overnight.model import LanguageModel


def parameters(model: LanguageModel) -> dict[str, int]:
    """Parameters by role (see `optim.roles`), rows that pad the vocabulary included."""
    return {role: sum(p.numel() for p in own.values()) for role, own in optim.roles(model).items()}


def flops_per_token(model: LanguageModel) -> dict[str, int]:
    """Floating-point operations of a training step for each token, by part: products of `blocks` and `head`, and
    `attention`'s of tokens with tokens. They stay the same where an implementation computes something twice, or leaves
    something out: activations that are computed again, the masked half of attention.

    6 N + 12 L H Q T (Chowdhery et al. 2022, "PaLM", appendix B; nanoGPT's estimate_mfu), where N is the parameters but
    for tables that are only looked up, L the layers, H Q heads times their size, which is the width, T the sequence
    length.
    """
    config, by_role = model.config, parameters(model)
    return {
        "blocks": 6 * (by_role["matrix"] + by_role["vector"]),
        "head": 6 * model.n_vocab * config.n_embd,  # also where it is one with an embedding
        "attention": 12 * config.n_layer * config.n_embd * model.block_size,
    }
