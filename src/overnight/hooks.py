"""Side work of a run: validation loss, evaluations and samples."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from overnight import generate
from overnight.bands import Look
from overnight.config import SampleConfig
from overnight.evals.base import Eval, headline
from overnight.evals.loss import Loss, mean_loss, mixed
from overnight.evals.scoring import score
from overnight.loader import TokenStream
from overnight.machine.device import autocast
from overnight.runs import now
from overnight.tokenizers import Tokenizer, prompt_ids
from overnight.training import Training

EVAL_TOKENS = 8192  # computed at once on the CPU


@dataclass
class Validation:
    """Measures the loss on `tokens` tokens of each corpus' validation split (0: all), always the same ones; and on
    `train_tokens` of its training split, where those are given.

    The loss of a mixture is the mean over its corpora by their weights, and theirs are recorded beside it.
    """

    every: int
    streams: dict[str, TokenStream]
    weights: Sequence[int]
    token_bytes: npt.NDArray[np.int32]
    tokens: int = 0
    train_streams: dict[str, TokenStream] = field(default_factory=dict)
    train_tokens: int = 0
    band: Callable[[Look], str] | None = None
    """Words on where an evaluation lies in the preset's band."""
    first: bool = True

    def run(self, training: Training) -> None:
        begin = time.perf_counter()
        if training.step == 0:
            tokens = sum(min(self.tokens or stream.length, stream.length - 1) for stream in self.streams.values())
            training.console.line(f"measuring the loss before the first step, on {tokens:,} validation tokens")
        losses = {name: self._measure(training, stream, self.tokens) for name, stream in self.streams.items()}
        loss = self._mixed(losses)
        training.val_loss[training.step] = loss.mean
        fields = {
            "val_loss": loss.mean,
            "val_loss_stderr": loss.error,
            "val_tokens": loss.tokens,
            "val_bits_per_byte": loss.bits_per_byte,
        }
        for name, own in losses.items() if len(losses) > 1 else ():
            fields |= {f"val_loss_{name}": own.mean, f"val_bits_per_byte_{name}": own.bits_per_byte}
        seen = ""
        if self.train_tokens:
            streams = self.train_streams.items()
            own = self._mixed(
                {name: self._measure(training, stream, self.train_tokens, "training") for name, stream in streams}
            )
            fields |= {"train_split_loss": own.mean, "train_split_loss_stderr": own.error}
            seen = f"; {own.mean:.4f} on training text"
        training.record("eval", training.step, fields, {"took": round(time.perf_counter() - begin, 3)})
        bits = f"{loss.bits_per_byte:.3f} bits per byte, " if loss.bytes else ""  # ids alone have no known text
        training.console.line(
            f"step {training.step}: validation loss {loss.mean:.4f} ({bits}{loss.tokens:,} tokens){seen}"
            f"{self._place(training.step, loss)}"
        )

    def _place(self, step: int, loss: Loss) -> str:
        if self.band is None:
            return ""
        words = self.band(Look(step, loss.mean, loss.tokens, loss.bits_per_byte, loss.error))
        return f"; {words}" if words else ""

    def _measure(self, training: Training, stream: TokenStream, tokens: int, split: str = "validation") -> Loss:
        micro_batch = int(training.folder.decided("micro_batch", training.step))
        # without gradients far more fits; small batches would only waste time
        rows = max(micro_batch, EVAL_TOKENS // training.dataset.T) if training.device.type == "cpu" else micro_batch

        def forward(inputs: Tensor, targets: Tensor) -> Tensor:
            training.end_if_asked()
            return training.forward(inputs, targets, per_token=True)

        training.model.eval()
        with autocast(training.device, training.precision):
            return mean_loss(
                forward,
                stream,
                training.dataset.T,
                tokens,
                rows,
                training.device,
                self.token_bytes,
                training.world,
                split,
            )

    def _mixed(self, losses: dict[str, Loss]) -> Loss:
        return next(iter(losses.values())) if len(losses) == 1 else mixed(list(losses.values()), self.weights)


@dataclass
class Task:
    """Asks the model the questions of an evaluation, on every rank."""

    every: int
    evaluation: Eval
    tokenizer: Tokenizer
    first: bool = True

    def run(self, training: Training) -> None:
        begin = time.perf_counter()
        if training.step == 0:  # it may take long, and nobody has seen it yet
            training.console.line(f"evaluating {self.evaluation.name} before the first step")
        scorer = partial(
            score,
            training.model,
            device=training.device,
            precision=training.precision,
            world=training.world,
            progress=lambda share: training.end_if_asked(),
        )
        found = self.evaluation(scorer, self.tokenizer, training.world)
        fields = {
            "task": found.name,
            "protocol": found.protocol,
            "examples": found.examples,
            "notes": found.notes,
            "metrics": found.metrics,
        }
        training.record("task", training.step, fields, {"took": round(time.perf_counter() - begin, 3)})
        training.console.line(f"step {training.step}: {headline(found)} ({found.examples:,} examples)")


@dataclass
class Samples:
    """Samples text from the model as it is, with a random generator of its own."""

    every: int
    tokenizer: Tokenizer
    config: SampleConfig
    first: bool = False

    def __post_init__(self) -> None:
        self.prompt = prompt_ids(self.tokenizer, self.config.prompt)

    def run(self, training: Training) -> None:
        generator = torch.Generator(training.device).manual_seed(self.config.seed)
        start = torch.tensor(self.prompt, device=training.device).repeat(self.config.samples, 1)
        with autocast(training.device, training.precision):
            columns = list(
                generate.stream(
                    training.model,
                    start,
                    max(1, self.config.length - start.shape[1]),
                    temperature=self.config.temperature,
                    top_k=self.config.top_k,
                    generator=generator,
                    vocab_size=self.tokenizer.vocab_size,
                )
            )
        texts = [self.tokenizer.decode(row) for row in torch.cat((start, *columns), dim=1).tolist()]
        error = training.folder.samples.append(
            {"step": training.step, "prompt": self.config.prompt, "texts": texts, "time": {"now": now()}}
        )
        if error:
            training.console.line(
                f"cannot write {training.folder.samples.path} ({error.strerror}); its lines wait in memory"
            )
        for text in texts:
            training.console.line(f"step {training.step} sample: {text}")
