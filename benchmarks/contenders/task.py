"""What a contender is to train, and what stands between its loop and the driver."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Any, TextIO

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overnight.data.mixture import Mixture
from overnight.evals.loss import mean_loss
from overnight.loader import TokenStream
from overnight.loss import IGNORE
from overnight.machine.device import synchronize
from overnight.session import open_stream

Losses = Callable[[Tensor, Tensor], Tensor]  # nats of each target (B, T), of inputs and targets (B, T)
WARMUP = 715 / 19_073  # share of a run, as in build-nanogpt
MEASURED = 8192  # tokens at once where a loss is measured


@dataclass(frozen=True)
class Task:
    """A model and a batch; the same for all, but for what a contender ships with."""

    data: str
    """A dataset folder."""
    work: str
    """A folder with the dataset as nanoGPT and build-nanogpt read it, and room for what a contender writes."""
    device: str
    n_layer: int
    n_head: int
    n_embd: int
    vocab: int
    """Rows of the embedding: the tokenizer's ids, rounded up to a multiple of 64."""
    sequence_length: int
    micro_batch: int
    accumulation: int
    lr: float
    """Of AdamW."""
    steps: int
    """Over which the learning rate goes."""
    checkout: str = ""
    """The contender's own code, where that is not installed."""
    setting: dict[str, Any] = field(default_factory=dict)
    """How it computes; each contender has its own."""

    @property
    def tokens_per_step(self) -> int:
        return self.micro_batch * self.accumulation * self.sequence_length

    @property
    def flops_per_token(self) -> int:
        """Of a GPT-2 of this size: 6 N + 12 L C T, as `overnight bench` counts."""
        matrices = 12 * self.n_layer * self.n_embd**2 + self.vocab * self.n_embd
        return 6 * matrices + 12 * self.n_layer * self.n_embd * self.sequence_length

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "flops_per_token": self.flops_per_token}

    def windows(self, split: str = "train") -> Iterator[np.ndarray]:
        """Micro-batches (micro_batch, T + 1) at random places, for those that bring no loader of token files."""
        stream, random = self.stream(split), np.random.default_rng(0)
        while True:
            starts = random.integers(0, stream.length - self.sequence_length - 1, self.micro_batch)
            yield np.stack([stream.read(int(at), self.sequence_length + 1) for at in starts]).astype(np.int64)

    def stream(self, split: str) -> TokenStream:
        return open_stream(Mixture.open(self.data).first, split)


class Gate:
    """Called by a contender before each step of its loop: it waits there until the driver wants one."""

    def __init__(self, task: Task, answers: TextIO) -> None:
        self.task, self.answers = task, answers
        self.device = torch.device(task.device)
        self.left, self.begin = 0, 0.0
        self.losses: Losses | None = None

    def ready(self, model: nn.Module, losses: Losses, **facts: Any) -> None:
        """The contender is set up; `losses` measures `model`, not compiled."""
        self.model, self.losses = model, losses
        parameters = sum(parameter.numel() for parameter in model.parameters())
        self._answer({"parameters": parameters, **facts})

    def __call__(self) -> None:
        if self.left == 0:
            if self.begin:
                synchronize(self.device)
                self._answer({"seconds": time.perf_counter() - self.begin})
            self.left = self._asked()
            synchronize(self.device)
            self.begin = time.perf_counter()
        self.left -= 1

    def _asked(self) -> int:
        """Answers the driver until it wants steps; ends the process where there is no driver any more."""
        for line in sys.stdin:
            asked = json.loads(line)
            if "steps" in asked:
                return int(asked["steps"])
            self._answer({"loss": self._loss(asked["measure"])})
        raise SystemExit

    def _loss(self, tokens: int) -> float:
        assert self.losses is not None
        length, ids = self.task.sequence_length, self.task.vocab
        training, cuda = self.model.training, self.device.type == "cuda"
        self.model.eval()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=cuda):  # as exact as it needs to be
            found = mean_loss(
                self.losses, self.task.stream("val"), length, tokens, max(1, MEASURED // length), self.device,
                np.zeros(ids, dtype=np.int32),
            )  # fmt: skip
        self.model.train(training)
        return found.mean

    def _answer(self, fields: dict[str, Any]) -> None:
        if self.device.type == "cuda":
            fields["memory"] = torch.cuda.max_memory_allocated()
            torch.cuda.empty_cache()  # the others need the card as well
        elif sys.platform == "linux":
            fields["memory"] = getrusage(RUSAGE_SELF).ru_maxrss * 1024
        self.answers.write(json.dumps(fields) + "\n")
        self.answers.flush()


def nats(logits: Tensor, targets: Tensor) -> Tensor:
    """Of each target (B, T), of logits (B, T, ids)."""
    return F.cross_entropy(logits.transpose(1, 2).float(), targets, ignore_index=IGNORE, reduction="none")


def work_folder(task: Task, name: str) -> Path:
    folder = Path(task.work, name)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
