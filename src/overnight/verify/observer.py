"""What goes through a run's training steps on one process, noted without changing it."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from torch import Tensor

from overnight.distributed import whole
from overnight.loss import IGNORE
from overnight.runs import JsonLines
from overnight.training import Training
from overnight.verify.reference import NAMES, fingerprint, gradients_file

ROUNDED = (
    1e-4  # of the largest entry of all gradients: one that is smaller in all its entries may be 0 but for rounding
)
UNKNOWN = -1  # a sequence that belongs to none of the steps


class Observer:
    """Notes of each step: the micro-batches that reach the model, the gradient that reaches the optimizer, and the
    loss and norm that are reported; the gradient as its difference from the reference in `folder`."""

    def __init__(self, training: Training, folder: Path) -> None:
        self.training, self.folder = training, folder
        self.names: dict[str, int] = json.loads((folder / NAMES).read_text(encoding="utf-8"))
        self.plain = training.forward
        self.sequences: dict[int, list[int]] = defaultdict(list)
        self.shapes: dict[int, list[list[int]]] = defaultdict(list)
        self.counted: dict[int, int] = defaultdict(int)
        self.gradients: dict[int, dict[str, float]] = {}
        self.reported = Reported(training.folder.metrics)
        training.forward = self._forward
        training.folder.metrics = self.reported
        training.optimizer.register_step_pre_hook(self._before_update)

    def found(self) -> dict[str, Any]:
        """All of it, by step."""
        return {
            "sequences": self.sequences,
            "shapes": self.shapes,
            "counted": self.counted,
            "gradients": self.gradients,
            "reported": {
                line["step"] - 1: [line["loss"], line["grad_norm"]]
                for line in self.reported.lines
                if line["kind"] == "train"
            },
        }

    def _forward(self, inputs: Tensor, targets: Tensor, **options: Any) -> Tensor:
        if self.training.model.training:  # and not in an evaluation
            self._note(self.training.step, inputs, targets)
        return self.plain(inputs, targets, **options)

    def _note(self, step: int, inputs: Tensor, targets: Tensor) -> None:
        for row, labels in zip(inputs, targets, strict=True):
            if (labels != IGNORE).any():
                self.sequences[step].append(self.names.get(fingerprint(row, labels), UNKNOWN))
        self.shapes[step].append(list(inputs.shape))
        self.counted[step] += int((targets != IGNORE).sum())

    def _before_update(self, *_: object) -> None:
        path = self.folder / gradients_file(self.training.step)
        if path.exists():  # the reference has so many steps
            named = {name: p.grad for name, p in self.training.model.named_parameters()}
            expected = load(path)
            least = ROUNDED * max(float(gradient.abs().max()) for gradient in expected.values())
            self.gradients[self.training.step] = differences(
                {name: whole(grad) for name, grad in named.items() if grad is not None}, expected, least
            )


class Reported(JsonLines):
    """metrics.jsonl, which on every process keeps in memory what it would write."""

    def __init__(self, metrics: JsonLines) -> None:
        super().__init__(metrics.path, metrics.writes)
        self.lines: list[dict[str, Any]] = []

    def append(self, value: dict[str, Any]) -> OSError | None:
        self.lines.append(value)
        return super().append(value)


def load(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = load_file(path)
    return tensors


def differences(found: dict[str, Tensor], expected: dict[str, Tensor], least: float = 0.0) -> dict[str, float]:
    """How far each tensor is from what it must be, as a share of that one's largest entry, or of `least` where that is
    larger; inf where it is missing."""
    result = {}
    for name, right in expected.items():
        if name not in found or found[name].shape != right.shape:
            result[name] = float("inf")
            continue
        scale = max(float(right.abs().max()), least) or 1.0
        result[name] = float((found[name].detach().cpu().double() - right.double()).abs().max()) / scale
    return result
