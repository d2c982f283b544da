"""`overnight train`"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Protocol

import tyro

from overnight import config as configuration
from overnight.cli.arguments import parse
from overnight.config import Config, Machine, Observe, Recipe
from overnight.errors import UserError, suggestion
from overnight.launching import STOPPED, is_worker, launch, processes_here
from overnight.presets import PRESETS
from overnight.runs import RunFolder, datasets_of, read_json, read_lines
from overnight.scaling import at_depth


class Named(Protocol):
    """Arguments of a command that takes a preset."""

    @property
    def preset(self) -> str: ...

    @property
    def depth(self) -> int | None: ...


@dataclass(frozen=True)
class Arguments:
    """Train a model, or go on with a run: the same command does both.

    Exit codes: 0 the run is finished, 2 something must be put right first, 75 it was asked to stop and goes on
    with the same command.
    """

    preset: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PRESET")]
    """A name that `overnight presets` lists, a TOML file, a run folder or its config.json, or module:function."""
    data: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """The dataset folder, from `overnight prepare`; or several with weights: DIR:0.7,DIR:0.3."""
    out: Path | None = None
    """The run folder; by default runs/PRESET."""
    depth: int | None = None
    """Blocks of a modern model; width, heads, batch, rates, weight decay and length follow. Flags beside it win."""
    print_config: bool = False
    """Print the whole configuration and exit."""
    detach: bool = False
    """Go on without this terminal; `overnight stop RUN` ends it."""
    processes: int | None = None
    """Processes that train together on this machine; by default one for each GPU, or one."""
    recipe: Annotated[Recipe, tyro.conf.arg(name="")] = field(default_factory=Recipe)
    machine: Annotated[Machine, tyro.conf.arg(name="")] = field(default_factory=Machine)
    observe: Annotated[Observe, tyro.conf.arg(name="")] = field(default_factory=Observe)


def main(arguments: Sequence[str]) -> int:
    begun = time.time()  # --hours are those of the user, who waits for the libraries, too
    arguments = switches(arguments)
    name, depth = preset_of(arguments, Arguments, "train")
    base, out = read_config(name)
    if depth is not None:
        base = at_depth(base, depth)
    defaults = Arguments(preset=name, depth=depth, recipe=base.recipe, machine=base.machine, observe=base.observe)
    given = parse(Arguments, arguments, "train", defaults)
    config = one_length(
        base, dataclasses.replace(base, recipe=given.recipe, machine=given.machine, observe=given.observe)
    )
    if given.print_config:
        print(json.dumps(configuration.to_dict(config), indent=2))
        return 0
    out = given.out or out or Path("runs") / config.preset
    data = given.data or _last_dataset(out)
    if data is None:
        raise UserError("train: say which dataset with --data DIR; `overnight prepare` makes one")
    if given.detach:
        return _detach([argument for argument in arguments if argument != "--detach"], out)
    processes = 1 if is_worker() else processes_here(given.processes, config.machine.device)
    if processes > 1:
        return _launch(arguments, processes, out)
    if os.environ.get("RANK", "0") == "0":
        _print_differences(base, config)
    return _train(config, data, out, arguments, begun)


def _launch(arguments: Sequence[str], processes: int, out: Path) -> int:
    from overnight.checkpoint import steps

    return launch(["train", *arguments], processes, lambda: (steps(out / "checkpoints") or [-1])[-1])


def _print_differences(base: Config, config: Config) -> None:
    """What differs from the preset."""
    for key, old, new in configuration.differences(base, config):
        if config.recipe.init_from and key.startswith("recipe.model.") and key != "recipe.model.dropout":
            print(f"{key.partition('.')[2]} is that of {config.recipe.init_from}, not {new}")
        else:
            print(f"{key.partition('.')[2]} {old} -> {new}")


def preset_of(arguments: Sequence[str], cls: type[Named], command: str) -> tuple[str, int | None]:
    """Which preset a command's arguments name, and of what depth; `--help` beside one is left for when its values are
    known."""
    others = [argument for argument in arguments if argument not in ("-h", "--help")]
    try:
        found = parse(cls, others, command)
    except UserError:
        if len(others) == len(arguments):
            raise
        found = parse(cls, arguments, command)
    return found.preset, found.depth


def _train(config: Config, data: str, out: Path, arguments: Sequence[str], begun: float) -> int:
    from overnight.api import Stopped, train
    from overnight.machine.allocator import keep_freed_memory

    keep_freed_memory()
    try:
        train(config, data, out, command=["overnight", "train", *arguments], begun=begun)
    except Stopped:
        return STOPPED
    return 0


def read_config(name: str, command: str = "train") -> tuple[Config, Path | None]:
    """The configuration that a name stands for, and the run folder where it is one's own; UserError where there is
    none."""
    path = Path(name)
    if name in PRESETS:
        return PRESETS[name](), None
    if (path / "config.json").is_file():
        return RunFolder.open(path).config(), path
    if path.suffix == ".json" and path.is_file():
        return configuration.from_dict(read_json(path), name), None
    if path.suffix == ".toml":
        return _read_toml(path), None
    if ":" in name:
        return _call(name), None
    raise UserError(
        f"{command}: there is no preset or file '{name}'{suggestion(name, PRESETS)}; `overnight presets` lists them"
    )


def _read_toml(path: Path, before: tuple[Path, ...] = ()) -> Config:
    """`preset = NAME` and below it any of the flags, a table for each section: [train] steps = 100.

    The preset may be another such file; `before` are those that led here. It may not be a function: a file that
    somebody sent calls no code.
    """
    if path.resolve() in before:
        raise UserError(f"train: {path}: its preset leads back to itself")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"train: {path} does not exist") from None
    except (OSError, ValueError) as error:
        raise UserError(f"train: {path}: {error}") from None
    name = str(values.pop("preset", "gpt2-124m"))
    if name in PRESETS:
        base = PRESETS[name]()
    elif name.endswith(".toml"):
        base = _read_toml(Path(name), (*before, path.resolve()))
    else:
        raise UserError(
            f"train: {path}: preset '{name}' is neither a TOML file nor a name that `overnight presets` lists"
            f"{suggestion(name, PRESETS)}"
        )
    sections: dict[str, dict[str, Any]] = {"recipe": {}, "machine": {}, "observe": {}}
    owner = {
        item.name: section
        for section, cls in (("recipe", Recipe), ("machine", Machine), ("observe", Observe))
        for item in dataclasses.fields(cls)
    }
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in owner:
            raise UserError(f"{path}: unknown key '{key}'{suggestion(name, [*owner, 'preset'])}")
        sections[owner[name]][name] = value
    return dataclasses.replace(configuration.build(Config, sections, str(path), base), preset=path.stem)


def _call(name: str) -> Config:
    module, _, function = name.partition(":")
    sys.path.insert(0, "")  # a module in the current folder, as `python -m` finds it
    try:
        found = getattr(importlib.import_module(module), function)
        made = found()
    except Exception as error:  # it is the user's code
        what = " ".join(str(error).split())
        raise UserError(f"train: {name}: {type(error).__name__}: {what} (--debug shows where)") from error
    if not isinstance(made, Config):
        raise UserError(f"train: {name} gave {type(made).__name__}, not an overnight.Config")
    return made


def switches(arguments: Sequence[str]) -> list[str]:
    """--compile alone, --no-compile, and true or false, in the words of the field."""
    words = {"true": "on", "false": "off", "1": "on", "0": "off"}
    result: list[str] = []
    for index, argument in enumerate(arguments):
        if argument == "--no-compile":
            result += ["--compile", "off"]
        elif argument == "--compile" and (index + 1 == len(arguments) or arguments[index + 1].startswith("-")):
            result += ["--compile", "on"]
        elif index and arguments[index - 1] == "--compile":
            result.append(words.get(argument.lower(), argument))
        elif argument.startswith("--compile="):
            value = argument.partition("=")[2]
            result += ["--compile", words.get(value.lower(), value)]
        else:
            result.append(argument)
    return result


def one_length(base: Config, given: Config) -> Config:
    """Refuses two lengths at once, of steps that differ from the preset's, tokens, hours, and the end of them; and
    leaves the clock where a run that followed it is now given steps or tokens."""
    machine, train = given.machine, given.recipe.train
    asked = {
        "--train.steps": train.steps != base.recipe.train.steps,
        "--train.tokens": train.tokens is not None,
        "--hours": machine.hours is not None and machine.hours != base.machine.hours,
        "--until": machine.until is not None and machine.until != base.machine.until,
    }
    names = [name for name, is_asked in asked.items() if is_asked]
    if len(names) > 1:
        raise UserError(f"train: {names[0]} and {names[1]} are both given: keep one")
    if names:
        machine = dataclasses.replace(
            machine,
            hours=machine.hours if names == ["--hours"] else None,
            until=machine.until if names == ["--until"] else None,
        )
    return dataclasses.replace(given, machine=machine)


def _last_dataset(out: Path) -> str | None:
    used = datasets_of(out)
    return str(used[-1]["path"]) if used else None


def _detach(arguments: list[str], out: Path) -> int:
    """Starts the same command in a session of its own, and waits until it trains or fails."""
    out.mkdir(parents=True, exist_ok=True)
    before = len(read_lines(out / "attempts.jsonl"))
    options: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        options = {"creationflags": subprocess.DETACHED_PROCESS | subprocess.CREATE_NEW_PROCESS_GROUP}
    with (out / "log.txt").open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "overnight", "train", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            **options,
        )
    while len(read_lines(out / "attempts.jsonl")) == before:
        if child.poll() is not None:
            last = (out / "log.txt").read_text(encoding="utf-8").strip().splitlines()
            raise UserError((last[-1] if last else "it ended at once").removeprefix("overnight: "))
        time.sleep(0.1)
    print(f"training in {out} as process {child.pid}\n  watch:  overnight watch {out}\n  stop:   overnight stop {out}")
    return 0
