"""Run folders made by hand, as docs/formats.md describes them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest

CONFIG: dict[str, Any] = {
    "format": "overnight-config",
    "version": 1,
    "preset": "tiny",
    "recipe": {
        "seed": 1,
        "model": {"block": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 32},
        "data": {"sequence_length": 64, "order": "shuffled"},
        "optim": {"lr": 0.001},
        "train": {"steps": 200, "tokens": None, "tokens_per_step": 512},
    },
    "machine": {"device": "auto", "micro_batch": None},
    "observe": {"log": {"every": 10}},
}


def train_line(step: int, loss: float, seconds: float | None = None) -> dict[str, Any]:
    time = {
        "seconds": step / 10 if seconds is None else seconds,
        "tokens_per_second": 5000.0,
        "now": "2026-01-02T03:04:05+00:00",
    }
    return {"kind": "train", "step": step, "tokens": 512 * step, "epoch": step / 100, "loss": loss, "lr": 1e-3,
            "grad_norm": 1.5, "time": time}  # fmt: skip


def eval_line(step: int, loss: float) -> dict[str, Any]:
    return {"kind": "eval", "step": step, "tokens": 512 * step, "val_loss": loss, "val_tokens": 99,
            "val_bits_per_byte": loss / 2, "time": {"seconds": 0.2}}  # fmt: skip


def attempt_line(number: int, step: int, **more: Any) -> dict[str, Any]:
    return {"attempt": number, "step": step, "command": ["overnight", "train", "tiny"], "device": "cpu",
            "versions": {"torch": "2.13"}, "world_size": 1, "dataset": {"path": "/nowhere", "fingerprint": "feed" * 16},
            "machine": {"micro_batch": number}, "observe": {}, "host": "here",
            "time": {"now": "2026-01-02T03:00:00+00:00"}, **more}  # fmt: skip


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Makes a run folder: a complete small one, of which any file can be given."""

    def make(name: str = "run", config: dict[str, Any] | None = None, **files: list[dict[str, Any]]) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config or CONFIG))
        losses = {step: 2 + 3 * math.exp(-step / 50) for step in range(0, 201, 10)}
        lines = [train_line(step, loss) for step, loss in losses.items() if step]
        lines += [eval_line(step, losses[step] + 0.1) for step in (0, 100, 200)]
        samples = [{"step": step, "prompt": "Once", "texts": [f"Once upon {step}", "Once more"]} for step in (100, 200)]
        decision = {"step": 0, "name": "micro_batch", "value": 8, "reason": "the largest that fits", "attempt": 1}
        content = {
            "metrics": sorted(lines, key=lambda line: line["step"]), "samples": samples,
            "attempts": [attempt_line(1, 0)], "decisions": [decision], **files,
        }  # fmt: skip
        for file, values in content.items():
            write_lines(folder / f"{file}.jsonl", values)
        return folder

    return make


def task_line(step: int, value: float, task: str = "hellaswag", **more: Any) -> dict[str, Any]:
    metrics = {"acc_norm": value, "acc_norm_stderr": 0.0046, "acc": value - 0.008, "acc_stderr": 0.0044}
    return {"kind": "task", "step": step, "tokens": 512 * step, "task": task, "metrics": metrics, "examples": 10_042,
            "protocol": "completion style, mean token loss of each ending", "notes": [],
            "time": {"took": 30.5, "now": "2026-01-02T03:04:05+00:00"}, **more}  # fmt: skip


def morning_run(folder: Path, seed: int = 0, best: float = 0.31, steps: int = 2000, lift: float = 0.0) -> Path:
    """A night's run with all that a report can show: evaluations, a spike, a second attempt, samples, a band."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, "recipe": {**CONFIG["recipe"], "train": {
        "steps": steps, "tokens": None, "tokens_per_step": 524_288}}}))  # fmt: skip
    random = Random(seed)
    begin = datetime(2026, 1, 2, 22, 0, tzinfo=UTC)
    lines, second = [], steps // 2

    def stamped(line: dict[str, Any], seconds: float) -> None:
        line["tokens"] = 524_288 * line["step"]
        waited = 1800 if line["step"] > second else 0  # for the second attempt
        line["time"]["now"] = (begin + timedelta(seconds=60 + 9 * line["step"] + waited + seconds)).isoformat()
        lines.append(line)

    for step in range(0, steps + 1, 10):
        loss = 3.2 + lift + 7.7 * math.exp(-step / (steps / 12)) + 0.9 * math.exp(-step / (steps / 2))
        spike = 1.4 if step == steps * 7 // 10 else 0.0
        line = train_line(step, loss + random.gauss(0, 0.03) + spike, 8.0 * (step - second * (step > second)))
        line |= {"epoch": step / steps * 1.7, "lr": 6e-4 * min(1, (step + 10) / 100) * (1 - 0.9 * step / steps),
                 "grad_norm": math.exp(random.gauss(-1, 0.15)) + 5 * spike}  # fmt: skip
        line["time"]["tokens_per_second"] = 524_288 / (8.0 + random.random() / 10)
        if step:
            stamped(line, 0)
        if step % (steps // 10) == 0:
            gap = 0.02 + 0.1 * step / steps
            measured = {"val_loss": loss + gap, "val_loss_stderr": 0.012, "train_split_loss": loss + 0.01}
            stamped(
                {**eval_line(step, 0), **measured, "val_bits_per_byte": (loss + gap) / 3.1, "time": {"took": 20.5}}, 20
            )
            stamped(task_line(step, best - (best - 0.248) * math.exp(-step / (steps / 3)) + random.gauss(0, 0.003)), 50)
    texts = ["Once upon a time, a model that read all night long knew a little more of the world in the morning.",
             "Once upon a midnight dreary:\n    def loss(step):\n        return 3.2 + 0.9 ** step"]  # fmt: skip
    samples = [
        {"step": step, "prompt": "Once upon", "texts": texts} for step in range(steps // 10, steps + 1, steps // 10)
    ]
    again = begin + timedelta(seconds=60 + 9 * second + 1700)
    attempts = [
        attempt_line(number, step, device="NVIDIA H100 80GB HBM3", time={"now": moment.isoformat()})
        for number, step, moment in ((1, 0, begin), (2, second, again))
    ]
    write_lines(folder / "metrics.jsonl", lines)
    write_lines(folder / "samples.jsonl", samples)
    write_lines(folder / "attempts.jsonl", attempts)
    write_lines(folder / "decisions.jsonl", [
        {"step": 0, "name": "micro_batch", "value": 64, "reason": "the largest that fits", "attempt": 1}
    ])  # fmt: skip
    return folder
