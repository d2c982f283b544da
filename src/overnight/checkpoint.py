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
from overnight.files import PARTIAL, folder_atomic, sha256, write_json
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
        write_json(
            aside / "state.json",
            {"format": FORMAT, "version": VERSION, **dataclasses.asdict(state), "files": described},
        )
    return path


def read_state(path: Path) -> State:
    """The state.json of a checkpoint; a UserError where it is not as `save` wrote it."""
    values = read_json(path / "state.json")
    if values.get("format") != FORMAT or values.get("version") != VERSION:
        raise UserError(f"{path / 'state.json'}: not a checkpoint of version {VERSION}")
    values.setdefault("recent_losses", [])  # not in older ones
    right = {name: name in values and isinstance(values[name], kinds) for name, kinds in TYPES.items()}
    right["offsets"] = right["offsets"] and all(_is_count(values["offsets"].get(name)) for name in OFFSETS)
    right["optimizer"] = right["optimizer"] and all(_is_scalars(entry) for entry in values["optimizer"].values())
    right["recent_losses"] = right["recent_losses"] and _is_numbers(values["recent_losses"])
    for name, is_right in right.items():
        if not is_right:
            raise UserError(
                f"{path / 'state.json'}: '{name}' is missing or wrong: this checkpoint is damaged; remove {path}"
            )
    if folder_name(values["step"]) != path.name:
        raise UserError(
            f"{path / 'state.json'} is that of step {values['step']}: this checkpoint is damaged; remove {path}"
        )
    return State(**{item.name: values[item.name] for item in dataclasses.fields(State)})


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

    described = read_json(path / "state.json")
    expected = described.get("files", {}).get(name)
    file = path / name
    if not file.is_file() or expected is None:
        raise UserError(f"{file} is missing: this checkpoint is damaged; remove {path} to go on from the one before")
    if file.stat().st_size != expected["bytes"] or (check and sha256(file) != expected["sha256"]):
        raise UserError(
            f"{file} is not what was written: this checkpoint is damaged; remove {path} to go on from the one before"
        )
    try:
        tensors: dict[str, Tensor] = load_file(file)
    except SafetensorError as error:
        raise UserError(f"{file}: {error}") from None
    if name == OPTIMIZER:
        for owner in {key.partition("/")[2] for key in tensors} - set(described.get("optimizer", {})):
            raise UserError(
                f"{path / 'state.json'}: 'optimizer' lacks {owner}: this checkpoint is damaged; remove {path}"
            )
    return tensors


def steps(folder: Path) -> list[int]:
    """The steps of the complete checkpoints in a run's checkpoints folder, ascending."""
    if not folder.is_dir():
        return []
    found = [entry.name.removeprefix("step_") for entry in folder.iterdir() if entry.name.startswith("step_")]
    return sorted(int(digits) for digits in found if digits.isdigit())


def best(folder: Path) -> int | None:
    """The step with the lowest validation loss among those that have one; the latest of equals. A checkpoint whose
    state cannot be read is passed over."""
    losses: dict[int, float | None] = {}
    for step in steps(folder):
        with contextlib.suppress(UserError):
            losses[step] = read_state(folder / folder_name(step)).val_loss
    known = {step: loss for step, loss in losses.items() if loss is not None and loss == loss}
    return min(known, key=lambda step: (known[step], -step)) if known else None


def find(folder: Path, which: str) -> Path:
    """The checkpoint called 'last', 'best' or by its step."""
    available = steps(folder)
    if not available:
        raise UserError(f"{folder} has no checkpoint yet")
    if which == "last":
        return folder / folder_name(available[-1])
    if which == "best":
        found = best(folder)
        return folder / folder_name(available[-1] if found is None else found)
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
