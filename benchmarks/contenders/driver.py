"""Contenders as processes, and the tokens that they train on."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from contenders.lineup import Entry
from contenders.task import Task
from overnight.data.dataset import SPLITS, Manifest
from overnight.data.foreign.write import write
from overnight.data.mixture import Mixture

PACKAGE = Path(__file__).parent.parent
LAST = 15  # lines of what a contender printed that tell why it failed


class Failed(Exception):
    """A contender's process ended; its text is the end of what it had printed."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text)
        self.name = name


@contextlib.contextmanager
def forms(data: Path) -> Iterator[Path]:
    """A folder, gone afterwards, with the dataset as the peers' loaders want it."""
    manifest = Mixture.open(data).first
    if manifest.format != Manifest.__dataclass_fields__["format"].default or manifest.dtype != "uint16":
        raise SystemExit(f"{data}: give a dataset folder of `overnight prepare` with at most 65,536 ids")
    with tempfile.TemporaryDirectory(prefix="against-peers-") as name:
        work = Path(name)
        write(manifest, "nanogpt", work / "nanogpt")
        shards = work / "build-nanogpt" / "edu_fineweb10B"
        shards.mkdir(parents=True)
        for split in SPLITS:
            for shard in manifest.splits[split]["shards"]:
                (shards / shard["file"]).symlink_to((manifest.folder / shard["file"]).resolve())
        yield work


class Contender:
    """A contender's process, from its start to the end of the `with` block."""

    def __init__(self, entry: Entry, task: Task) -> None:
        self.entry = entry
        micro_batch, accumulation = entry.batch or (task.micro_batch, task.accumulation)
        self.task = dataclasses.replace(
            task, checkout=entry.checkout, setting=entry.setting, micro_batch=micro_batch, accumulation=accumulation
        )

    def __enter__(self) -> Contender:
        self.log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        paths = [str(PACKAGE), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"}
        if self.task.device == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""  # build-nanogpt takes what it finds
        self.process = subprocess.Popen(
            [sys.executable, "-m", "contenders", self.entry.module, json.dumps(dataclasses.asdict(self.task))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, env=environment,
        )  # fmt: skip
        try:
            self.facts = self._answer()
        except BaseException:
            self.__exit__()
            raise
        self.memory = 0
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.communicate()
        self.log.close()

    def steps(self, count: int) -> float:
        """Makes so many steps; returns tokens a second."""
        seconds = float(self._ask(steps=count)["seconds"])
        return count * self.task.tokens_per_step / seconds

    def loss(self, tokens: int) -> float:
        """On so many validation tokens, the same ones for all."""
        return float(self._ask(measure=tokens)["loss"])

    def _ask(self, **asked: int) -> dict[str, Any]:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(asked) + "\n")
            self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            raise Failed(self.entry.name, "\n".join(self.log.read().strip().splitlines()[-LAST:]))
        answer: dict[str, Any] = json.loads(line)
        self.memory = answer.get("memory", 0)
        return answer
