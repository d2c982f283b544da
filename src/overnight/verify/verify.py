"""`overnight verify`: small runs in every layout, and what came of them."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from overnight import checkpoint, session
from overnight import config as configuration
from overnight.config import Config, Precision
from overnight.data.mixture import Mixture
from overnight.data.prepare import PrepareOptions, prepare
from overnight.data.sources import open_source
from overnight.errors import UserError
from overnight.loader import hash64
from overnight.verify import plan, processes, reference, worker
from overnight.verify.checks import Check, all_checks
from overnight.verify.plan import HALF, Case
from overnight.verify.results import Results
from overnight.verify.worker import Task


@dataclass(frozen=True)
class Verdict:
    """The table, and what it was made on."""

    checks: list[Check]
    block: str
    processes: list[int]
    device: str
    precision: str
    seconds: float

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "model": self.block,
            "processes": self.processes,
            "device": self.device,
            "precision": self.precision,
            "seconds": round(self.seconds, 1),
            "checks": [
                {
                    "check": check.name,
                    "compared": check.compared,
                    "difference": check.difference,
                    "where": check.where,
                    "tolerance": check.tolerance,
                    "passed": check.passed,
                    "differences": check.details,
                }
                for check in self.checks
            ],
        }


def verify(
    counts: Sequence[int],
    data: str | None = None,
    cuda: bool = False,
    say: Callable[[str], None] = lambda text: None,
    setup: str | None = None,
    block: str = "gpt2",
) -> Verdict:
    """Checks the training of a model, `block`, on each number of processes in `counts`, which begins with 1. `setup` is
    for tests."""
    begin, lives = time.perf_counter(), plan.lives(counts, block)
    device, precision = _device(cuda, counts)
    with tempfile.TemporaryDirectory(prefix="overnight-verify-") as name:
        folder = Path(name)
        for part in ("reference", "results", "runs"):
            (folder / part).mkdir()
        data = data or str(_own_text(folder))
        say("computing the reference")
        processes.run(1, reference.main, _resolved(lives[0][0], data), data, folder / "reference")
        expected = reference.read(folder / "reference")
        for cases in lives:
            for case in cases:
                _continue(case, folder)
            count = cases[0].processes
            say(f"{count} {'process' if count == 1 else 'processes'}: {len(cases)} runs")
            processes.run(count, worker.main, Task(cases, folder, data, device, precision, setup))
        results = Results(folder, expected, [case for cases in lives for case in cases])
        checks = all_checks(results, precision, exact=device == "cpu")
    return Verdict(checks, block, list(counts), device, precision, time.perf_counter() - begin)


def gpus() -> int:
    """How many GPUs there are for --cuda."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _device(cuda: bool, counts: Sequence[int]) -> tuple[str, Precision]:
    if not cuda:
        return "cpu", "fp32"
    if not gpus():
        raise UserError("verify: --cuda needs an NVIDIA GPU and a torch built for it; there is none here")
    if max(counts) > gpus():
        raise UserError(f"verify: {max(counts)} processes with --cuda need as many GPUs, and there are {gpus()}")
    return "cuda", "bf16" if torch.cuda.get_device_capability()[0] >= 8 else "fp32"


def _own_text(folder: Path) -> Path:
    """A small dataset that needs no download and is the same everywhere: sums, in bytes."""
    numbers = [(hash64(line, 1) % 1000, hash64(line, 2) % 1000) for line in range(1000)]
    (folder / "sums.txt").write_text("".join(f"{a} + {b} = {a + b}\n" for a, b in numbers), encoding="utf-8")
    source = open_source("files", [folder / "sums.txt"])
    prepare(source, folder / "data", PrepareOptions(tokenizer="bytes", workers=1))
    return folder / "data"


def _resolved(case: Case, data: str) -> Config:
    """The configuration of the reference; a UserError where the dataset does not do."""
    mixture = Mixture.open(data)
    tokenizer = mixture.first.tokenizer
    config = configuration.resolve(plan.config(case, "cpu", "fp32"), tokenizer["name"], tokenizer["vocab_size"])
    session.open_dataset(config, mixture)
    return config


def _continue(case: Case, folder: Path) -> None:
    """Gives a case that goes on with another one a copy of that run, as if it had been killed after `HALF` steps."""
    source = folder / "runs" / str(case.resumes)
    if case.resumes is None or not source.is_dir():
        return
    shutil.copytree(source, folder / "runs" / case.name)
    for step in checkpoint.steps(folder / "runs" / case.name / "checkpoints"):
        if step > HALF:
            shutil.rmtree(folder / "runs" / case.name / "checkpoints" / checkpoint.folder_name(step))
