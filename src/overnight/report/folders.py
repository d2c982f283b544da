"""Which runs are meant: folders that hold runs stand for all of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path


def is_run(path: Path) -> bool:
    """Whether a run was begun in a folder."""
    return (path / "config.json").exists()


def runs_in(path: Path) -> list[Path]:
    """The runs right in a folder that is none itself, by name."""
    return [folder for folder in _folders(path) if is_run(folder)]


def passed_over(paths: Iterable[Path]) -> list[Path]:
    """The folders beside the runs in folders of runs: without a run, or without one yet."""
    return [folder for path in paths if runs_in(path) for folder in _folders(path) if not is_run(folder)]


def runs_among(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Runs and logs, with those in folders of runs, each once; and folders without a run, which are left out.

    Where nothing is a run all that was given counts as one: what reads it says what is wrong.
    """
    found = [run for path in paths for run in runs_in(path) or ([] if _is_empty(path) else [path])]
    if not found:
        return list(paths), []
    left_out = [path for path in paths if _is_empty(path) and not runs_in(path)]
    return list(dict.fromkeys(found)), [*left_out, *passed_over(paths)]


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not is_run(path)


def _folders(path: Path) -> list[Path]:
    """What may be runs in a folder; nothing in that of a run, which has its own."""
    with contextlib.suppress(OSError):
        if _is_empty(path):
            return sorted(inner for inner in path.iterdir() if inner.is_dir() and not inner.name.startswith("."))
    return []
