"""What is in a dataset folder, for people."""

from __future__ import annotations

from overnight.data.dataset import SPLITS, Manifest
from overnight.data.sizes import short, size


def summary(manifest: Manifest) -> list[str]:
    """A few lines on what a dataset holds."""
    lines = [
        f"{manifest.folder}: {manifest.tokenizer['name']}, {manifest.tokenizer['vocab_size']:,} ids, {manifest.dtype}"
    ]
    for name in SPLITS:
        split = manifest.splits[name]
        lines.append(
            f"  {name:<5} {split['tokens']:>15,} tokens, {split['documents']:>11,} documents, {size(split['bytes']):>8} of text, "
            f"{split['bytes'] / max(1, split['tokens']):.2f} bytes a token, {len(split['shards'])} shards"
        )
    return lines
