"""Shards on the disk as arrays that are not loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from overnight.errors import UserError


def mapped_shard(path: Path, tokens: int | None = None) -> npt.NDArray[Any]:
    """A .npy file of ids, (tokens,) uint16 or uint32, mapped; UserError for anything else, or another number."""
    try:
        # unlike np.load it takes no zip archive, and it never unpickles
        shard: npt.NDArray[Any] = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # on damaged headers numpy raises what its tokenizer and parser come up with
        what = " ".join(str(error).split())
        raise UserError(f"{path}: cannot be read as a shard ({what}); `overnight data {path.parent} --check`") from None
    if shard.ndim != 1 or shard.dtype not in (np.uint16, np.uint32):
        raise UserError(f"{path}: a shard is one-dimensional uint16 or uint32, this is {shard.dtype} {shard.shape}")
    if tokens is not None and len(shard) != tokens:
        raise UserError(
            f"{path}: it holds {len(shard):,} tokens, and the manifest says {tokens:,}; prepare the dataset anew"
        )
    return shard
