"""Run folders made by hand, as docs/formats.md describes them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CONFIG = {
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
