"""What can be said about datatrove's executors: `--executor NAME --executor-options KEY=VALUE ...`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, get_type_hints

from overnight.errors import UserError, suggestion

SBATCH = "sbatch."  # begins what is handed to sbatch as it is: sbatch.account=NAME


@dataclass(frozen=True)
class Local:
    """Processes on this machine."""

    tasks: int | None = None
    """The source is divided into at most so many tasks; None: each takes a file, 1,000 of them at most."""


@dataclass(frozen=True)
class Slurm:
    """A job array of a Slurm cluster. The names are datatrove's."""

    partition: str
    time: str
    """Limit of a task, as sbatch takes it: 10:00:00."""
    tasks: int | None = None
    cpus_per_task: int = 1
    mem_per_cpu_gb: int = 2
    qos: str = ""
    env_command: str = ""
    """Run by a task's shell before Python; nothing: this Python's folder is put in front of PATH."""
    max_array_size: int = 1001
    sbatch: Mapping[str, str] = field(default_factory=dict)
    """Further options of sbatch."""


@dataclass(frozen=True)
class Ray:
    """A Ray cluster."""

    address: str = ""
    """Of the cluster; `auto` where this machine belongs to it; nothing: $RAY_ADDRESS, or a Ray of its own here."""
    tasks: int | None = None
    cpus_per_task: int = 1
    mem_per_cpu_gb: float = 1.0


EXECUTORS: dict[str, type[Local | Slurm | Ray]] = {"local": Local, "slurm": Slurm, "ray": Ray}


def parse(executor: str, given: Mapping[str, Any]) -> Local | Slurm | Ray:
    """The options of an executor; UserError for one that is unknown, missing, or of the wrong kind."""
    if executor not in EXECUTORS:
        known = ", ".join(EXECUTORS)
        raise UserError(f"there is no executor '{executor}'{suggestion(executor, EXECUTORS)}; there are {known}")
    made = EXECUTORS[executor]
    known_fields = {one.name: one for one in fields(made) if one.name != "sbatch"}
    values: dict[str, Any] = {}
    passed_on: dict[str, str] = {}
    for name, value in given.items():
        if executor == "slurm" and name.startswith(SBATCH):
            passed_on[name.removeprefix(SBATCH)] = str(value)
        elif name not in known_fields:
            more = f", and {SBATCH}NAME for what else sbatch takes" if executor == "slurm" else ""
            raise UserError(
                f"--executor {executor} has no option '{name}'{suggestion(name, known_fields)}; "
                f"there are {', '.join(known_fields)}{more}"
            )
        else:
            values[name] = _value(name, str(value), get_type_hints(made)[name])
    missing = [name for name, one in known_fields.items() if one.default is MISSING and not values.get(name)]
    if missing:
        example = " ".join(f"{name}={'10:00:00' if name == 'time' else 'NAME'}" for name in missing)
        raise UserError(f"--executor {executor} needs {' and '.join(missing)}: --executor-options {example}")
    if passed_on:
        values["sbatch"] = passed_on
    return made(**values)


def _value(name: str, text: str, kind: Any) -> Any:
    if kind is str:
        return text
    number = float if kind is float else int
    try:
        value = number(text)
    except ValueError:
        value = number(0)
    if not 0 < value < float("inf"):
        what = "number" if number is float else "whole number"
        raise UserError(f"--executor-options {name}={text}: it must be a {what} above 0")
    return value


def split_options(words: tuple[str, ...]) -> dict[str, str]:
    """KEY=VALUE words as a dictionary."""
    options = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise UserError(f"--executor-options {word}: write it as KEY=VALUE, such as tasks=100")
        options[name] = value
    return options
