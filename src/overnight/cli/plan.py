"""`overnight plan`"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import tyro

from overnight.cli.arguments import parse
from overnight.cli.train import one_length, preset_of, read_config, switches
from overnight.config import Config, Machine, Observe, Recipe
from overnight.errors import UserError
from overnight.launching import is_worker, launch, processes_here
from overnight.scaling import at_depth


@dataclass(frozen=True)
class Arguments:
    """What a run will take, before it begins: time, memory, disk and money, by a short trial on this machine."""

    preset: Annotated[str, tyro.conf.Positional]
    """A name that `overnight presets` lists, a TOML file, a run folder or its config.json, or module:function."""
    depth: int | None = None
    """Blocks of a modern model, as with train."""
    data: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """A dataset folder, or several with weights; else tokens drawn at random."""
    tokens: str | None = None
    """Plan for so many training tokens, like 100M."""
    price: str | None = None
    """What an hour of all this costs, like 2.50/h."""
    processes: int | None = None
    """Processes that train together on this machine; by default one for each GPU, or one."""
    table: bool = False
    """Parameters, operations and memory by part, without a trial; and compute-optimal sizes."""
    fresh: bool = False
    """Measure again, whatever is known from earlier."""
    json: bool = False
    """Print JSON instead of text."""
    recipe: Annotated[Recipe, tyro.conf.arg(name="")] = field(default_factory=Recipe)
    machine: Annotated[Machine, tyro.conf.arg(name="")] = field(default_factory=Machine)
    observe: Annotated[Observe, tyro.conf.arg(name="")] = field(default_factory=Observe)


def main(arguments: Sequence[str]) -> int:
    from overnight.data.sizes import parse_count

    arguments = switches(arguments)
    name, depth = preset_of(arguments, Arguments, "plan")
    base, _ = read_config(name, "plan")
    if depth is not None:
        base = at_depth(base, depth)
    defaults = Arguments(name, depth, recipe=base.recipe, machine=base.machine, observe=base.observe)
    given = parse(Arguments, arguments, "plan", defaults)
    price, recipe = _price(given.price), given.recipe
    if given.tokens is not None:
        recipe = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, tokens=parse_count(given.tokens)))
    config = one_length(base, dataclasses.replace(base, recipe=recipe, machine=given.machine, observe=given.observe))
    if given.table:
        return _table(given, config)
    processes = 1 if is_worker() else processes_here(given.processes, config.machine.device)
    if processes > 1:
        return launch(["plan", *arguments], processes, lambda: 0)
    return _plan(given, config, price)


def _price(text: str | None) -> float | None:
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(?:/h)?", text.strip())
    if match is None:
        raise UserError(f"plan: --price {text}: give what an hour costs, like 2.50/h")
    return float(match[1])


def _plan(given: Arguments, config: Config, price: float | None) -> int:
    from overnight.bench.plan import lines, planned
    from overnight.console import Console
    from overnight.data.mixture import Mixture
    from overnight.deadline import made
    from overnight.distributed import current_world, joined
    from overnight.files import to_json

    begun, world = time.time(), current_world()
    made(config.machine, begun)  # what cannot be is told at once
    mixture = None if given.data is None else Mixture.open(given.data)
    tokens = {"train": None, "val": None} if mixture is None else {
        split: sum(corpus.manifest.splits[split]["tokens"] for corpus in mixture.corpora) for split in ("train", "val")
    }  # fmt: skip
    with joined(world), Console() if world.rank == 0 else Console.silent() as console:
        trial, cached = _trial(given, config, None if mixture is None else mixture.fingerprint, world, console)
        parameters = sum(trial["parameters"].values())
        config = _lengthened(config)
        plan = planned(config, trial["run_tokens_per_second"], parameters, tokens["train"], tokens["val"], begun, price)
        shown = {"preset": config.preset, **dataclasses.asdict(plan), "seconds": plan.seconds, "loss": None}
        shown |= {"trial": trial, "cached": cached}
        for line in [to_json(shown, indent=2)] if given.json else lines(config, plan, trial, cached):
            console.line(line)
    return 0


def _lengthened(config: Config) -> Config:
    """The configuration with its length in steps."""
    train = config.recipe.train
    if train.tokens is None:
        return config
    train = dataclasses.replace(train, steps=-(-train.tokens // train.tokens_per_step), tokens=None)
    return dataclasses.replace(config, recipe=dataclasses.replace(config.recipe, train=train))


def _trial(
    given: Arguments, config: Config, fingerprint: str | None, world: Any, console: Any
) -> tuple[dict[str, Any], bool]:
    """What a bench of this configuration says, and whether it was known from earlier: on the same machine, with the
    same versions and everything that changes its speed."""
    from overnight.bench.bench import bench
    from overnight.files import write_json
    from overnight.machine import device as machine
    from overnight.network.web import cache_folder
    from overnight.session import choose_device

    timed = dataclasses.replace(
        config,
        recipe=dataclasses.replace(config.recipe, train=dataclasses.replace(config.recipe.train, tokens=None, steps=1)),
        machine=dataclasses.replace(config.machine, hours=None, until=None),
    )
    device = choose_device(config.machine.device, console.line, world)
    about = [machine.describe(device), machine.versions(), world.size, fingerprint]
    about += [dataclasses.asdict(timed.recipe), dataclasses.asdict(timed.machine)]
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    path = cache_folder() / "plans" / f"{key[:32]}.json"
    known = None
    if world.rank == 0 and not given.fresh and path.is_file():
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = None
    known = world.first(known)
    if known is not None:
        return known, True
    found = bench(timed, given.data, world, console).to_json()
    if world.rank == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, found)
    return found, False


def _table(given: Arguments, config: Config) -> int:
    import torch

    from overnight import config as configuration
    from overnight import sizes
    from overnight.bench.opening import vocabulary
    from overnight.bench.plan import compute_optimal, table
    from overnight.data.mixture import Mixture
    from overnight.files import to_json
    from overnight.machine.memory import predict
    from overnight.model import make_model

    ids = vocabulary(config) if given.data is None else Mixture.open(given.data).first.tokenizer["vocab_size"]
    config = configuration.resolve(config, config.recipe.data.tokenizer or f"ids:{ids}", ids)
    with torch.device("meta"):
        model = make_model(config.recipe.model, config.recipe.data.sequence_length)
    parameters, flops = sizes.parameters(model), sizes.flops_per_token(model)
    memory = predict(config, torch.device("cpu"), "fp32", 1).parts
    train = config.recipe.train
    best, tokens = compute_optimal(sum(flops.values()) * train.steps * train.tokens_per_step)
    optimal = {"parameters": best, "tokens": tokens, "fit": "Hoffmann et al. 2022, equations 4 and 10"}
    shown = {"parameters": parameters, "flops_per_token": flops, "memory": memory, "compute_optimal": optimal}
    print(to_json(shown, indent=2) if given.json else "\n".join(table(config, parameters, flops, memory)))
    return 0
