"""GGUF files in llama.cpp itself, through llama-cpp-python where that is installed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from overnight.errors import UserError
from overnight.exchange.certificate import CertificateError, Text, compare_ids
from overnight.exchange.runtimes import Overnight
from overnight.pretrained import Pretrained

# Of the largest logit. What llama.cpp rounds changed at most 0.02 of it (benchmarks/results/gguf.md), and a wrong
# layout changes it as much as it is; that the weights are right is proven by reading them back.
FAR = 0.1


def version() -> str | None:
    """That of llama-cpp-python; None where it is not installed."""
    if importlib.util.find_spec("llama_cpp") is None:
        return None
    return importlib.metadata.version("llama-cpp-python")


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
    found = _logits(model, ids)
    model.close()
    return found


def findings(path: Path, rounded: Pretrained, text: Text) -> dict[str, Any]:
    """For a certificate: how far llama.cpp's logits are from those of `rounded`, and the token ids of the text.

    CertificateError where the logits are further than llama.cpp's own rounding explains, or an id is another one.
    """
    if version() is None:
        return {"llama.cpp": None}
    model, own = load(path, text.windows.shape[1]), Overnight(rounded, rounded.tokenizer)
    largest = difference = 0.0
    for window in text.windows:
        expected = own.logits(window[None])[0]
        largest = max(largest, float(expected.abs().max()))
        difference = max(difference, float((_logits(model, window.tolist()) - expected).abs().max()))
    if not difference <= FAR * largest:
        raise CertificateError(
            f"llama.cpp's logits differ by up to {difference:.3g}, more than {FAR} of the largest, {largest:.3g}"
        )
    assert rounded.tokenizer is not None
    ids = compare_ids(rounded.tokenizer, lambda sample: _ids(model, sample), "llama.cpp", text)
    model.close()
    found = {"versions": {"llama-cpp-python": version()}, "largest_difference": difference, "largest_logit": largest}
    return {"llama.cpp": found, "tokenizer": {"vocabulary": rounded.tokenizer.vocab_size, "ids_compared": ids}}


def _logits(model: Any, ids: Sequence[int]) -> Tensor:
    model.reset()
    model.eval(list(ids))
    return torch.from_numpy(model.scores[: len(ids)].copy())


def _ids(model: Any, sample: str) -> list[int]:
    return list(model.tokenize(sample.encode(), add_bos=True, special=True))  # add_bos: where the file says so
