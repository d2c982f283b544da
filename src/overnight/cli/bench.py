"""`overnight bench`"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from overnight.cli.arguments import parse
from overnight.cli.train import one_length, preset_of, read_config, switches
from overnight.config import Config, Machine, Recipe
from overnight.errors import UserError
from overnight.launching import is_worker, launch, processes_here
from overnight.scaling import at_depth


@dataclass(frozen=True)
class Arguments:
    """How fast a preset trains on this machine, and where its time and memory go: a run's own steps, for a moment, in a
    folder that is gone afterwards."""

    preset: Annotated[str, tyro.conf.Positional] = "gpt2-124m"
    """A name that `overnight presets` lists, a TOML file, a run folder or its config.json, or module:function."""
    depth: int | None = None
    """Blocks of a modern model, as with train."""
    data: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """A dataset folder, or several with weights; else tokens drawn at random."""
    steps: int | None = None
    """How many steps to time; by default for about 20 seconds, at least 5."""
    trace: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write a profile of two steps for chrome://tracing or Perfetto; .gz compresses it."""
    ladder: bool = False
    """Climb from plain float32 to what a run does, and say what each rung gains."""
    processes: int | None = None
    """Processes that train together on this machine; by default one for each GPU, or one."""
    json: bool = False
    """Print JSON instead of text."""
    recipe: Annotated[Recipe, tyro.conf.arg(name="")] = field(default_factory=Recipe)
    machine: Annotated[Machine, tyro.conf.arg(name="")] = field(default_factory=Machine)


def main(arguments: Sequence[str]) -> int:
    arguments = switches(arguments)
    name, depth = preset_of(arguments, Arguments, "bench")
    base, _ = read_config(name, "bench")
    if depth is not None:
        base = at_depth(base, depth)
    given = parse(Arguments, arguments, "bench", Arguments(name, depth, recipe=base.recipe, machine=base.machine))
    if given.steps is not None and given.steps < 1:
        raise UserError(f"bench: --steps {given.steps}: it must be 1 or more")
    config = one_length(base, dataclasses.replace(base, recipe=given.recipe, machine=given.machine))
    if given.ladder:
        return _climb(given, config)
    processes = 1 if is_worker() else processes_here(given.processes, config.machine.device)
    if processes > 1:
        return launch(["bench", *arguments], processes, lambda: 0)
    return _bench(given, config)


def _bench(given: Arguments, config: Config) -> int:
    from overnight.bench.bench import bench
    from overnight.bench.text import lines
    from overnight.console import Console
    from overnight.distributed import current_world, joined
    from overnight.files import to_json

    world = current_world()
    with joined(world), Console() if world.rank == 0 else Console.silent() as console:
        result = bench(config, given.data, world, console, given.steps, given.trace)
        for line in [to_json(result.to_json(), indent=2)] if given.json else lines(result):
            console.line(line)
    return 0


def _climb(given: Arguments, config: Config) -> int:
    from overnight.bench.ladder import climb, table
    from overnight.console import Console
    from overnight.files import to_json

    if (given.processes or 1) > 1 or is_worker() or given.trace is not None:
        raise UserError("bench: --ladder is for one process, without --trace")
    with Console() as console:
        rungs = climb(config, given.data, given.steps, console.progress if console.live else lambda text: None)
        shown = {"rungs": [dataclasses.asdict(rung) for rung in rungs]}
        for line in [to_json(shown, indent=2)] if given.json else table(rungs):
            console.line(line)
    return 0
