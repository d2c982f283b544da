"""GGUF files in llama.cpp itself, through llama-cpp-python where that is installed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from overnight.errors import UserError


def load(path: Path, context: int) -> Any:
    """A `llama_cpp.Llama` that computes on the CPU, and keeps its keys and values, in float32 as far as it can.

    UserError without llama-cpp-python.
    """
    try:
        import llama_cpp
    except ImportError:
        raise UserError("llama.cpp is not here: pip install llama-cpp-python, which compiles it") from None
    return llama_cpp.Llama(
        model_path=str(path), n_ctx=context, n_batch=context, n_ubatch=context, logits_all=True, n_gpu_layers=0,
        type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32, verbose=False,
    )  # fmt: skip


def logits(path: Path, ids: Sequence[int]) -> Tensor:
    """What llama.cpp computes for the ids of one text, (len(ids), vocabulary) float32."""
    model = load(path, len(ids))
    model.eval(list(ids))
    found = torch.from_numpy(model.scores[: len(ids)].copy())
    model.close()
    return found
