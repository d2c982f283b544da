"""`overnight demo`"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from overnight.cli.arguments import parse
from overnight.presets import demo as preset

NEXT = """
next:
  overnight sample {run} --prompt "class "                      talk to the model
  overnight train {run} --train.steps {more}                    let it learn longer
  overnight prepare files FOLDER --out mine                     your own text ...
  overnight train demo --data mine --out runs/mine              ... and a model of it
  overnight presets                                             the other configurations, GPT-2 among them"""


@dataclass(frozen=True)
class Arguments:
    """Prepare text, train a small GPT on the CPU for about three minutes, sample from it and write a report."""

    out: Path = Path("overnight-demo")
    """Folder for the dataset and the run."""
    steps: int | None = None
    """Train for another number of steps."""


def main(arguments: Sequence[str]) -> int:
    given = parse(Arguments, arguments, "demo")
    begin = time.perf_counter()
    config = preset()
    if given.steps is not None:
        train = replace(config.recipe.train, steps=given.steps)
        config = replace(config, recipe=replace(config.recipe, train=train))
    from overnight import demo
    from overnight.api import Stopped
    from overnight.launching import STOPPED

    try:
        report = demo.run(config, given.out, lambda text: print(text, flush=True))
    except Stopped:
        return STOPPED
    run = given.out / "run"
    print(f"\n{time.perf_counter() - begin:.0f} s in all; open {report} in a browser")
    print(NEXT.format(run=run, more=2 * config.recipe.train.steps))
    return 0
