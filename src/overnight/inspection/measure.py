"""Numbers of a model's tensors: norms, spreads, singular values, and what is not a number."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from overnight.model import weights, without_memory
from overnight.pretrained import Pretrained


@dataclass(frozen=True)
class Measured:
    """One tensor. What cannot be said, of an empty tensor or of one with values that are not finite, is None."""

    name: str
    shape: tuple[int, ...]
    non_finite: int
    """How many values are NaN or infinite."""
    norm: float | None
    """Frobenius."""
    std: float | None
    """Of all values, around their mean."""
    max_abs: float | None
    spectrum: tuple[float, ...] = ()
    """The singular values of a matrix, the largest first."""

    @property
    def parameters(self) -> int:
        return math.prod(self.shape)

    @property
    def largest(self) -> float | None:
        return self.spectrum[0] if self.spectrum else None

    @property
    def smallest(self) -> float | None:
        return self.spectrum[-1] if self.spectrum else None

    @property
    def stable_rank(self) -> float | None:
        """||A||_F^2 / ||A||_2^2: between 1 and the rank."""
        if not self.norm or not self.largest:
            return None
        return (self.norm / self.largest) ** 2

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "shape": list(self.shape),
            "parameters": self.parameters,
            "non_finite": self.non_finite,
            "norm": self.norm,
            "std": self.std,
            "max_abs": self.max_abs,
            "largest_singular_value": self.largest,
            "smallest_singular_value": self.smallest,
            "stable_rank": self.stable_rank,
        }


@dataclass(frozen=True)
class Inspection:
    """A model with the numbers of its tensors, in its order."""

    source: Pretrained
    tensors: tuple[Measured, ...]
    problems: tuple[str, ...]
    """In sentences: what is not finite, missing, unknown or misshapen."""

    @property
    def parameters(self) -> int:
        return sum(tensor.parameters for tensor in self.tensors)

    @property
    def groups(self) -> dict[str, int]:
        """Parameters by part of the model: the first word of their names, as wte, or h (the blocks)."""
        found: dict[str, int] = {}
        for tensor in self.tensors:
            part = tensor.name.partition(".")[0]
            found[part] = found.get(part, 0) + tensor.parameters
        return found

    def to_json(self) -> dict[str, Any]:
        source, tokenizer = self.source, self.source.tokenizer
        model = source.model
        return {
            "weights": source.where,
            "step": source.step,
            "model": {
                "block": model.block,
                "n_layer": model.n_layer,
                "n_head": model.n_head,
                "n_embd": model.n_embd,
                "vocab_size": model.vocab_size,
                "block_size": source.block_size,
                "activation": model.activation,
                "bias": model.bias,
            },
            "tokenizer": None if tokenizer is None else {"name": tokenizer.name, "vocab_size": tokenizer.vocab_size},
            "notes": source.notes,
            "parameters": self.parameters,
            "groups": self.groups,
            "problems": list(self.problems),
            "non_finite": sum(tensor.non_finite for tensor in self.tensors),
            "tensors": [tensor.to_json() for tensor in self.tensors],
        }


def inspect(source: Pretrained, tell: Callable[[str], None] = lambda text: None) -> Inspection:
    """Measures every tensor, those of the model in its order; `tell` hears which is next."""
    expected = {
        name: tuple(tensor.shape) for name, tensor in weights(without_memory(source.model, source.block_size)).items()
    }
    measured = []
    for name in [*(name for name in expected if name in source.tensors), *sorted(source.tensors.keys() - expected)]:
        tell(f"measuring {name}")
        measured.append(measure(name, source.tensors[name]))
    problems = [f"{name} is missing" for name in expected if name not in source.tensors]
    for tensor in measured:
        if tensor.name not in expected:
            problems.append(f"{tensor.name} is no part of a {_kind(source)}")
        elif tensor.shape != expected[tensor.name]:
            problems.append(f"{tensor.name} is {tensor.shape}, expected {expected[tensor.name]}")
        if tensor.non_finite:
            problems.append(
                f"{tensor.name}: {tensor.non_finite:,} of {tensor.parameters:,} values are not finite (NaN or infinity)"
            )
    return Inspection(source, tuple(measured), tuple(problems))


def _kind(source: Pretrained) -> str:
    return "GPT-2" if source.model.block == "gpt2" else f"model of block {source.model.block}"


@torch.no_grad()
def measure(name: str, tensor: Tensor) -> Measured:
    """The numbers of one tensor, all computed in float64."""
    shape, non_finite = tuple(tensor.shape), int((~tensor.isfinite()).sum())
    if non_finite or not tensor.numel():
        return Measured(name, shape, non_finite, None, None, None)
    values = tensor.double()
    return Measured(
        name,
        shape,
        non_finite,
        norm=float(torch.linalg.vector_norm(values)),
        std=float(values.std(correction=0)),
        max_abs=float(values.abs().max()),
        spectrum=tuple(singular_values(values).tolist()) if values.dim() == 2 else (),
    )


def singular_values(matrix: Tensor) -> Tensor:
    """The singular values of a float64 matrix (rows, columns), the largest first: (min(rows, columns),).

    They are the roots of the eigenvalues of the smaller of A^T A and A A^T, which takes a fraction of the time that a
    decomposition of A takes. What it loses lies near 1e-8 of the largest value, where a float32 matrix ends as well.
    """
    rows, columns = matrix.shape
    gram = matrix.T @ matrix if rows >= columns else matrix @ matrix.T
    eigenvalues: Tensor = torch.linalg.eigvalsh(gram)
    return eigenvalues.clamp(min=0).sqrt().flip(0)
