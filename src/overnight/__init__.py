"""Train GPT-2-class language models from scratch: start it in the evening, have the model in the morning."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from overnight.api import Model, Stopped, load, preset, train
    from overnight.config import Config
    from overnight.errors import UserError

__version__ = "0.1.0"

_HOMES = {  # imported when first used: `import overnight` itself is instant
    "Config": "overnight.config",
    "Model": "overnight.api",
    "Stopped": "overnight.api",
    "UserError": "overnight.errors",
    "load": "overnight.api",
    "preset": "overnight.api",
    "train": "overnight.api",
}
__all__ = ["Config", "Model", "Stopped", "UserError", "load", "preset", "train"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'overnight' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
