"""Evaluations of weights from anywhere, outside of any training."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from overnight.config import Precision
from overnight.data.dataset import Manifest, load_tokenizer
from overnight.data.unchanged import require_unchanged
from overnight.distributed import World
from overnight.errors import UserError
from overnight.evals.base import Eval, Result, Scorer
from overnight.evals.loss import Loss, mean_loss
from overnight.evals.remembered import remembering
from overnight.evals.scoring import score
from overnight.exchange import sources
from overnight.files import to_json, write_atomic, write_json
from overnight.machine import device as machine
from overnight.model import LanguageModel
from overnight.pretrained import Pretrained
from overnight.session import choose_device, open_stream

BASELINES, FORMAT, VERSION = "baselines.json", "overnight-baselines", 1
RESULTS = "results.json"
TOKENS = 8192  # computed at once


@dataclass(frozen=True)
class Subject:
    """The model that is evaluated, and what it computes on."""

    name: str
    weights: Pretrained
    gpt: LanguageModel
    device: torch.device
    precision: Precision
    world: World

    @cached_property
    def sha256(self) -> str:
        """Of the weights; read once, since a large model takes seconds."""
        return str(self.weights.identity["sha256"])

    def facts(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "weights": self.weights.where,
            "device": machine.describe(self.device),
            "precision": self.precision,
            "date": datetime.date.today().isoformat(),
        }


@dataclass(frozen=True)
class DatasetLoss:
    """A loss, and on what it was measured."""

    split: str
    sequence_length: int
    loss: Loss

    def to_json(self) -> dict[str, Any]:
        return {
            "split": self.split,
            "loss": self.loss.mean,
            "stderr": self.loss.error,
            "perplexity": math.exp(min(self.loss.mean, 700)),
            "bits_per_byte": self.loss.bits_per_byte,
            "tokens": self.loss.tokens,
            "sequence_length": self.sequence_length,
        }


def open_subject(
    source: str,
    which: str = "best",
    device: str = "auto",
    precision: Precision = "fp32",
    world: World | None = None,
    say: Callable[[str], None] = sources.on_stderr,
) -> Subject:
    """The model that `source` names, on a device; `which` is the checkpoint of a run."""
    world = world or World()
    read = sources.use if world.rank == 0 else sources.read  # what there is to say is said once
    found = world.in_turn(lambda: read(source, which, say))
    on = choose_device(device, say, world)
    machine.check_precision(precision, on)
    machine.set_matmul_precision(precision)
    name = source if found.step is None else f"{Path(source).resolve().name} at step {found.step}"
    return Subject(name, found, found.build().to(on), on, precision, world)


def dataset_loss(
    subject: Subject,
    data: Path,
    split: str = "val",
    tokens: int = 0,
    progress: Callable[[str, float], None] = lambda what, share: None,
) -> DatasetLoss:
    """The mean loss over `tokens` tokens of a split (0: all), spread evenly.

    `progress` gets what is done, and what share of it is. Raises UserError where the dataset's tokenizer is not the
    model's.
    """
    progress(f"checking {data}", 0.0)
    manifest = Manifest.read(data)
    require_unchanged([manifest], splits=[split])
    tokenizer, length = load_tokenizer(manifest), subject.gpt.block_size
    subject.weights.refuse_other_tokenizer(tokenizer, str(data))
    with machine.autocast(subject.device, subject.precision):
        loss = mean_loss(
            partial(subject.gpt, per_token=True),
            open_stream(manifest, split),
            length,
            tokens,
            max(1, TOKENS // length),
            subject.device,
            tokenizer.token_bytes(),
            subject.world,
            progress=lambda share: progress(f"loss on {data}, {split}", share),
        )
    return DatasetLoss(split, length, loss)


def task(
    subject: Subject,
    evaluation: Eval,
    out: Path | None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Result:
    """What an evaluation finds. With `out` its rows are in out/NAME.jsonl, and an interrupted one goes on."""
    tokenizer = subject.weights.known_tokenizer()
    scorer: Scorer = partial(
        score, subject.gpt, device=subject.device, precision=subject.precision, world=subject.world
    )
    kept = None if out is None else out / f".{evaluation.name}.answers.jsonl"
    identity: dict[str, object] = {} if kept is None else {"weights": subject.sha256, "precision": subject.precision}
    found = evaluation(remembering(scorer, kept, identity, subject.world, progress), tokenizer, subject.world)
    if out is not None and subject.world.rank == 0:
        write_rows(out, found)
    return found


def write_rows(out: Path, found: Result) -> None:
    """The examples of a result as out/NAME.jsonl."""
    out.mkdir(parents=True, exist_ok=True)
    lines = "".join(to_json(row) + "\n" for row in found.rows)
    write_atomic(out / f"{found.name.replace('/', '_')}.jsonl", lines)


def result_json(found: Result) -> dict[str, Any]:
    """A result without its rows."""
    return {key: value for key, value in asdict(found).items() if key != "rows"}


def keep_results(out: Path, subject: Subject, told: dict[str, Any]) -> None:
    """Writes what was found to out/results.json. What stands there already of the same weights in the same precision
    stays, but for what was measured anew."""
    told = {"sha256": subject.sha256, **told}
    try:
        before = json.loads((out / RESULTS).read_text(encoding="utf-8"))
        same = all(before[key] == told[key] for key in ("sha256", "precision"))
        others = [one for one in before.get("tasks", []) if _measure(one) not in map(_measure, told.get("tasks", []))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none, or not one of ours
        same = False
    if same:
        tasks = [*others, *told.get("tasks", [])]
        told = {**before, **told} | ({"tasks": tasks} if tasks else {})
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / RESULTS, told)


def _measure(task: dict[str, Any]) -> tuple[object, ...]:
    return task.get("name"), task.get("protocol"), task.get("examples")


def save_baseline(data: Path, subject: Subject, measured: DatasetLoss) -> Path:
    """Keeps a result in the dataset's folder, in the place of an earlier one of that name and split.

    Reports of runs on that dataset draw it.
    """
    path = data / BASELINES
    kept = []
    if path.exists():
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            kept = [
                old for old in content["baselines"] if (old["name"], old["split"]) != (subject.name, measured.split)
            ]
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"{path} is not what --save-baseline writes; move it away") from None
    baselines = [*kept, {**subject.facts(), **measured.to_json()}]
    write_json(path, {"format": FORMAT, "version": VERSION, "baselines": baselines})
    return path
