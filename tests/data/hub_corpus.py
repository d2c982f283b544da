"""FineWeb-Edu in small, for a hub on this machine; and what is made of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from corpora import contents, write_parquet
from hub_server import Fault, Seen

from overnight.data.prepare import PrepareOptions, prepare
from overnight.data.sources import open_source

REPO = "HuggingFaceFW/fineweb-edu"
CARD = b"""---
license: odc-by
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*/*
- config_name: sample-10BT
  data_files:
  - split: train
    path: sample/10BT/*
---
# A card
"""
FILES, DOCUMENTS = 5, 40


def parquet(found: list[str], folder: Path) -> bytes:
    path = write_parquet(folder / "some.parquet", found, rows_per_group=10)
    content = path.read_bytes()
    path.unlink()
    return content


def made(out: Path, name: str = "fineweb-edu", source: dict[str, Any] | None = None, **options: Any) -> dict[str, str]:
    prepare(open_source(name, **(source or {})), out, PrepareOptions(**{"workers": 1, **options}))
    return contents(out)


def nth(*numbers: int, fault: Fault, **only: str) -> Callable[[Seen], Fault | None]:
    """The fault at these of the requests that are like `only`, counted from 0."""
    count = 0

    def at(seen: Seen) -> Fault | None:
        nonlocal count
        if any(getattr(seen, name) != value for name, value in only.items()):
            return None
        count += 1
        return fault if count - 1 in numbers else None

    return at
