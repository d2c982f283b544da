"""Checkpoints: complete or absent, tensors in safetensors, the rest in JSON."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from overnight.config import CheckpointConfig
from overnight.errors import UserError
from overnight.files import PARTIAL, folder_atomic, json_sha256, sha256, write_json
from overnight.runs import read_json

FORMAT, VERSION = "overnight-checkpoint", 1
MODEL, OPTIMIZER = FILES = "model.safetensors", "optimizer.safetensors"
TYPES: dict[str, tuple[type, ...]] = {  # of the fields of state.json
    "step": (int,),
    "tokens": (int,),
    "val_loss": (float, int, type(None)),
    "optimizer": (dict,),
    "scaler": (dict, type(None)),
    "offsets": (dict,),
    "recent_losses": (list,),
    "files": (dict,),
}
OFFSETS = ("metrics.jsonl", "samples.jsonl", "decisions")
ASIDE = "damaged_"  # prefix of a damaged checkpoint's name, so that it is none any more


class Damaged(UserError):
    """A checkpoint that is not as it was written; `what` says which file, and in what."""

    def __init__(self, what: str, path: Path) -> None:
        self.what = what
        super().__init__(f"{what}: this checkpoint is damaged; take another one, or remove {path}")


@dataclass
class State:
    """All the state that training has after `step` updates, but for the tensors."""

    step: int
    tokens: int
    val_loss: float | None = None
    optimizer: dict[str, dict[str, float]] = field(default_factory=dict)
    scaler: dict[str, Any] | None = None
    offsets: dict[str, int] = field(default_factory=lambda: dict.fromkeys(OFFSETS, 0))
    recent_losses: list[float] = field(default_factory=list)  # by which a bad step is told
    decisions_sha256: str | None = None
    """Of the first lines of decisions.jsonl, as many as `offsets` counts."""


def folder_name(step: int) -> str:
    return f"step_{step:08d}"


def save(folder: Path, state: State, model: dict[str, Tensor], optimizer: dict[str, Tensor]) -> Path:
    """Writes `folder`/step_NNNNNNNN such that after a crash at any moment it is complete or absent.

    Raises OSError where the disk refuses (it is full); then nothing of it is left and older checkpoints are
    untouched.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path = folder / folder_name(state.step)
    if path.exists():
        raise FileExistsError(f"{path} exists already")
    with folder_atomic(path) as aside:
        files = {MODEL: model, OPTIMIZER: optimizer}
        for name, tensors in files.items():
            try:
                save_file({key: value.contiguous().cpu() for key, value in tensors.items()}, aside / name)
            except SafetensorError as error:
                raise OSError(f"{aside / name}: {error}") from error
        described = {name: {"bytes": (aside / name).stat().st_size, "sha256": sha256(aside / name)} for name in files}
        values = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(state), "files": described}
        write_json(aside / "state.json", values | {"sha256": json_sha256(values)})
    return path


def read_state(path: Path) -> State:
    """The state.json of a checkpoint; a UserError where it is not as `save` wrote it."""
    values = _described(path)
    return State(**{item.name: values[item.name] for item in dataclasses.fields(State)})


def _described(path: Path) -> dict[str, Any]:
    """What state.json says, checked."""
    file = path / "state.json"
    try:
        values = read_json(file)
    except UserError as error:
        raise Damaged(str(error), path) from None
    if values.get("format") != FORMAT:
        raise Damaged(f"{file}: not the state of a checkpoint", path)
    if values.get("version") != VERSION:
        raise UserError(f"{file}: not a checkpoint of version {VERSION}")
    written = values.pop("sha256", None)  # older checkpoints have none
    intact = written is None or written == json_sha256(values)
    values.setdefault("decisions_sha256", None)
    values.setdefault("recent_losses", [])
    right = {name: name in values and isinstance(values[name], kinds) for name, kinds in TYPES.items()}
    right["offsets"] = right["offsets"] and all(_is_count(values["offsets"].get(name)) for name in OFFSETS)
    right["optimizer"] = right["optimizer"] and all(_is_scalars(entry) for entry in values["optimizer"].values())
    right["recent_losses"] = right["recent_losses"] and _is_numbers(values["recent_losses"])
    right["files"] = right["files"] and all(_is_file(values["files"].get(name)) for name in FILES)
    for name, is_right in right.items():
        if not is_right:
            raise Damaged(f"{file}: '{name}' is missing or wrong", path)
    if folder_name(values["step"]) != path.name:
        raise Damaged(f"{file} is that of step {values['step']}", path)
    if not intact:
        raise Damaged(f"{file} is not what was written", path)
    return values


def _is_file(entry: Any) -> bool:
    return isinstance(entry, dict) and _is_count(entry.get("bytes")) and isinstance(entry.get("sha256"), str)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_scalars(entry: Any) -> bool:
    return isinstance(entry, dict) and _is_numbers(list(entry.values()))


def _is_numbers(values: list[Any]) -> bool:
    return all(isinstance(value, (int, float)) for value in values)


def load_tensors(path: Path, name: str, check: bool = True) -> dict[str, Tensor]:
    """The tensors of one file of a checkpoint, after its size and hash were found right (a UserError if not).

    A tensor of the optimizer has to have its parameter's entry in state.json too.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    described = _described(path)
    file = path / name
    _require_written(file, described["files"][name], check)
    try:
        tensors: dict[str, Tensor] = load_file(file)
    except SafetensorError as error:
        raise Damaged(f"{file}: {error}", path) from None
    if name == OPTIMIZER:
        for owner in {key.partition("/")[2] for key in tensors} - set(described["optimizer"]):
            raise Damaged(f"{path / 'state.json'}: 'optimizer' lacks {owner}", path)
    return tensors


def _require_written(file: Path, expected: dict[str, Any], check: bool = True) -> None:
    """Damaged where a file's size, or with `check` its hash, is not the one that was written down."""
    if not file.is_file():
        raise Damaged(f"{file} is missing", file.parent)
    if file.stat().st_size != expected["bytes"] or (check and sha256(file) != expected["sha256"]):
        raise Damaged(f"{file} is not what was written", file.parent)


def verify(path: Path) -> None:
    """Damaged where a file of a checkpoint is missing or not what was written. Reads all of it."""
    described = _described(path)
    for name in FILES:
        _require_written(path / name, described["files"][name])


def set_damaged_aside(folder: Path) -> list[str]:
    """Renames the newest checkpoints up to one that is whole, which is then the newest; says which were damaged.

    Raises UserError, and changes nothing, where no other is whole: then a person has to say what is to be done.
    """
    damaged: dict[int, str] = {}
    for step in reversed(steps(folder)):
        try:
            verify(folder / folder_name(step))
        except Damaged as error:
            damaged[step] = error.what
            continue
        for older in damaged:
            aside = folder / f"{ASIDE}{folder_name(older)}"
            shutil.rmtree(aside, ignore_errors=True)
            (folder / folder_name(older)).rename(aside)
        return [f"{what}: checkpoint {number} is damaged, going on from {step}" for number, what in damaged.items()]
    if damaged:
        raise UserError(
            f"{next(iter(damaged.values()))}, and no other checkpoint in {folder} is whole; put a copy back, or remove "
            "them all to begin anew"
        )
    return []


def steps(folder: Path) -> list[int]:
    """The steps of the complete checkpoints in a run's checkpoints folder, ascending."""
    if not folder.is_dir():
        return []
    found = [entry.name.removeprefix("step_") for entry in folder.iterdir() if entry.name.startswith("step_")]
    return sorted(int(digits) for digits in found if digits.isdigit())


def best(folder: Path) -> int | None:
    """The step with the lowest validation loss among those that have one; the latest of equals. A checkpoint whose
    state cannot be read is passed over."""
    losses = {step: state.val_loss for step, state in _states(folder).items()}
    known = {step: loss for step, loss in losses.items() if loss is not None and loss == loss}
    return min(known, key=lambda step: (known[step], -step)) if known else None


def _states(folder: Path) -> dict[int, State]:
    """The states that can be read, by step."""
    states = {}
    for step in steps(folder):
        with contextlib.suppress(UserError):
            states[step] = read_state(folder / folder_name(step))
    return states


def unreadable(folder: Path) -> list[str]:
    """What is wrong with checkpoints that `best` passes over."""
    found = []
    for step in steps(folder):
        try:
            read_state(folder / folder_name(step))
        except Damaged as error:
            found.append(error.what)
    return found


def find(folder: Path, which: str) -> Path:
    """The checkpoint called 'last', 'best' or by its step."""
    available = steps(folder)
    if not available:
        raise UserError(f"{folder} has no checkpoint yet")
    if which == "last":
        return folder / folder_name(available[-1])
    if which == "best":
        found = best(folder)
        return folder / folder_name(max(_states(folder) or available) if found is None else found)
    if not which.isdigit() or int(which) not in available:
        raise UserError(
            f"{folder} has no checkpoint '{which}'; there are: last, best, {', '.join(map(str, available))}"
        )
    return folder / folder_name(int(which))


def retain(folder: Path, keep: CheckpointConfig) -> None:
    """Removes what the retention rule does not keep, and what crashes left unfinished."""
    if not folder.is_dir():
        return
    kept = set(steps(folder)[-keep.keep_last :])
    found_best = best(folder) if keep.keep_best else None
    for step in steps(folder):
        if step in kept or step == found_best or (keep.keep_every and step % keep.keep_every == 0):
            continue
        # renamed first, so that a crash leaves a checkpoint whole or out of sight
        doomed = (folder / folder_name(step)).rename(folder / f"{PARTIAL}{folder_name(step)}")
        shutil.rmtree(doomed)
    for leftover in folder.glob(f"{PARTIAL}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    for damaged in folder.glob(f"{ASIDE}*"):
        if damaged.name.removeprefix(ASIDE) <= folder_name(max(kept, default=0)):  # the run is past it again
            shutil.rmtree(damaged, ignore_errors=True)
