"""`overnight demo`"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from overnight.cli.arguments import parse
from overnight.errors import UserError
from overnight.presets import modern_stdlib as preset
from overnight.runs import RunFolder

NEXT = """
next:
  overnight sample {run} --prompt "class "                      talk to the model
  overnight train {run} --train.steps {more}                    let it learn longer
  overnight prepare files FOLDER --out mine                     your own text ...
  overnight train modern-stdlib --data mine --out runs/mine     ... and a model of it
  overnight presets                                             the other configurations, GPT-2 among them"""


@dataclass(frozen=True)
class Arguments:
    """Prepare text, train a small model on the CPU for two or three minutes, sample from it and write a report."""

    out: Path = Path("overnight-demo")
    """Folder for the dataset and the run."""
    steps: int | None = None
    """Train for another number of steps."""
    minutes: float | None = None
    """Take so many minutes, all in all."""


def main(arguments: Sequence[str]) -> int:
    given = parse(Arguments, arguments, "demo")
    begin, begun = time.perf_counter(), time.time()
    config = preset()
    if given.minutes is not None:
        if given.steps is not None:
            raise UserError("demo: --steps and --minutes are both given: keep one")
        if not given.minutes > 0:
            raise UserError(f"demo: --minutes {given.minutes:g}: it must be above 0")
        config = replace(config, machine=replace(config.machine, hours=given.minutes / 60))
    if given.steps is not None:
        train = replace(config.recipe.train, steps=given.steps)
        config = replace(config, recipe=replace(config.recipe, train=train))
    from overnight import demo
    from overnight.api import Stopped
    from overnight.launching import STOPPED
    from overnight.machine.allocator import keep_freed_memory

    keep_freed_memory()
    try:
        report = demo.run(config, given.out, lambda text: print(text, flush=True), begun)
    except Stopped:
        return STOPPED
    run = given.out / "run"
    print(f"\n{time.perf_counter() - begin:.0f} s in all; open {report} in a browser")
    steps = int(RunFolder.open(run).decided("train.steps", sys.maxsize, config.recipe.train.steps))
    print(NEXT.format(run=run, more=2 * steps))
    return 0
