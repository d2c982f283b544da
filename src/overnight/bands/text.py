"""Whether two runs were measured on the same text, whatever their tokenizers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def same_text(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool | None:
    """Whether two entries of attempts.jsonl (or of bands) hold out the same text; None where nothing tells."""
    if one.get("fingerprint") == other.get("fingerprint"):
        return True
    a, b = one.get("validation"), other.get("validation")
    if not isinstance(a, Mapping) or not isinstance(b, Mapping):
        return None
    if any(a.get(key) != b.get(key) for key in ("head_bytes", "head_sha256")):
        return False
    size, its = a.get("bytes"), b.get("bytes")
    if not isinstance(size, int) or not isinstance(its, int):
        return True
    # a cap on validation tokens is reached a little earlier or later with another tokenizer
    return abs(size - its) <= 0.01 * max(size, its)
