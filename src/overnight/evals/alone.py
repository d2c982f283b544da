"""The loss of weights from anywhere on a dataset, outside of any training."""

from __future__ import annotations

import datetime
import json
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from overnight.config import Precision
from overnight.data.dataset import Manifest, load_tokenizer
from overnight.errors import UserError
from overnight.evals.loss import Loss, mean_loss
from overnight.exchange import sources
from overnight.files import write_json
from overnight.machine import device as machine
from overnight.session import open_stream

BASELINES, FORMAT, VERSION = "baselines.json", "overnight-baselines", 1
TOKENS = 8192  # computed at once


@dataclass(frozen=True)
class Evaluation:
    """A loss, and what it was measured with."""

    name: str
    where: str
    split: str
    loss: Loss
    sequence_length: int
    device: str
    precision: str

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "weights": self.where,
            "split": self.split,
            "loss": self.loss.mean,
            "stderr": self.loss.error,
            "perplexity": math.exp(min(self.loss.mean, 700)),
            "bits_per_byte": self.loss.bits_per_byte,
            "tokens": self.loss.tokens,
            "sequence_length": self.sequence_length,
            "device": self.device,
            "precision": self.precision,
            "date": datetime.date.today().isoformat(),
        }


def evaluate(
    source: str,
    data: Path,
    split: str = "val",
    tokens: int = 0,
    which: str = "best",
    device: str = "auto",
    precision: Precision = "fp32",
) -> Evaluation:
    """The mean loss of the model that `source` names over `tokens` tokens of a split (0: all), spread evenly.

    Raises UserError where the dataset's tokenizer is not the model's.
    """
    manifest, found = Manifest.read(data), sources.read(source, which)
    tokenizer = load_tokenizer(manifest)
    found.refuse_other_tokenizer(tokenizer, str(data))
    on = machine.choose_device(device)
    gpt = found.build().to(on)
    rows = max(1, TOKENS // found.block_size)
    with torch.no_grad(), machine.autocast(on, precision):
        stream, per_token = open_stream(manifest, split), partial(gpt, per_token=True)
        loss = mean_loss(per_token, stream, found.block_size, tokens, rows, on, tokenizer.token_bytes())
    name = source if found.step is None else f"{Path(source).resolve().name} at step {found.step}"
    return Evaluation(name, found.where, split, loss, found.block_size, machine.describe(on), precision)


def save_baseline(data: Path, measured: Evaluation) -> Path:
    """Keeps a result in the dataset's folder, in the place of an earlier one of that name and split.

    Reports of runs on that dataset draw it.
    """
    path = data / BASELINES
    kept = []
    if path.exists():
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            kept = [
                old for old in content["baselines"] if (old["name"], old["split"]) != (measured.name, measured.split)
            ]
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"{path} is not what --save-baseline writes; move it away") from None
    write_json(path, {"format": FORMAT, "version": VERSION, "baselines": [*kept, measured.to_json()]})
    return path
