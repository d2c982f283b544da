"""GGUF files in llama.cpp itself, through llama-cpp-python where that is installed."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from overnight.errors import UserError
from overnight.exchange.certificate import (
    Expected,
    Text,
    compare_continuations,
    compare_ids,
    compare_logits,
    told,
)
from overnight.tokenizers import Tokenizer

# Of the largest logit: over three times the most that llama.cpp's own rounding moved one in models of 4 to 48 layers
# (benchmarks/results/llamacpp_rounding.md). It looks the GELU up in float16; what it multiplies weights of 16 bits with
# it rounds to their type, and beside q8_0 to 8 bits. That the weights are right is proven by reading them back.
FAR = {"float32": 2e-3, "float16": 4e-3, "bfloat16": 2.5e-2, "q8_0": 1e-1}


def version() -> str | None:
    """That of llama-cpp-python; None where it is not installed."""
    if importlib.util.find_spec("llama_cpp") is None:
        return None
    try:
        return importlib.metadata.version("llama-cpp-python")
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


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


class LlamaCpp:
    """A GGUF file in llama.cpp, as a certificate's runtime."""

    name = "llama.cpp"

    def __init__(self, path: Path, context: int, tokenizer: Tokenizer) -> None:
        self.model = load(path, context)
        self.versions = {"llama-cpp-python": str(version())}
        self.size, self.end = tokenizer.vocab_size, tokenizer.end_of_text

    def logits(self, ids: Tensor) -> Tensor:
        return torch.stack([_logits(self.model, row) for row in ids.tolist()])

    def greedy(self, prompts: Tensor, count: int) -> list[list[int]]:
        """By the ids that the tokenizer has, as `overnight sample` does: llama.cpp's own samplers take padding, too."""
        return [self._continued(prompt, count) for prompt in prompts.tolist()]

    def _continued(self, prompt: list[int], count: int) -> list[int]:
        self.model.reset()
        self.model.eval(prompt)
        ids: list[int] = []
        while len(ids) < count and (not ids or ids[-1] != self.end):
            if ids:
                self.model.eval(ids[-1:])
            ids.append(int(self.model.scores[self.model.n_tokens - 1, : self.size].argmax()))
        return ids

    def vocabulary(self) -> None:
        return None

    def encode(self, text: str) -> list[int]:
        return list(self.model.tokenize(text.encode(), add_bos=True, special=True))  # add_bos: if the file says so


def findings(path: Path, expected: Expected, tokenizer: Tokenizer, text: Text, dtype: str) -> dict[str, Any]:
    """For a certificate: how far llama.cpp's logits are from the expected, its greedy continuations, and its token ids.

    CertificateError where they differ by more than llama.cpp's own rounding explains, or llama.cpp fails.
    """
    if version() is None:
        return {"llama.cpp": None}
    with told("llama.cpp fails on what was written"):
        runtime = LlamaCpp(path, text.windows.shape[1], tokenizer)
        with contextlib.closing(runtime.model):
            tolerance = FAR[dtype] * expected.largest
            difference = compare_logits(expected, runtime, text, tolerance)
            # each of two logits may be that far off
            continuations = compare_continuations(expected, runtime, 2 * difference)
            ids = compare_ids(tokenizer, runtime.encode, runtime.name, text)
    found = {"versions": runtime.versions, "largest_difference": difference, "tolerance": tolerance}
    return {
        "llama.cpp": {**found, "largest_logit": expected.largest, "continuations": continuations},
        "tokenizer": {"vocabulary": tokenizer.vocab_size, "ids_compared": ids},
    }


def _logits(model: Any, ids: Sequence[int]) -> Tensor:
    model.reset()
    model.eval(list(ids))
    return torch.from_numpy(model.scores[: len(ids)].copy())
