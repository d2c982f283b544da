"""The files of DCLM's evaluation bundle: core.yaml, eval_meta_data.csv and eval_data/."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overnight.errors import UserError
from overnight.evals.files import numbered_rows

Row = Mapping[str, Any]
NEEDED = {  # by kind: what a row has
    "multiple_choice": ("query", "choices", "gold"),
    "schema": ("context_options", "continuation", "gold"),
    "language_modeling": ("context", "continuation"),
}


@dataclass(frozen=True)
class CoreTask:
    """A task of core.yaml."""

    label: str
    kind: str
    path: Path
    shots: int
    delimiter: str
    """Between what is asked and the answer."""
    baseline: float
    """The accuracy of guessing, 0 to 1."""

    def shown(self, row: Row) -> str:
        """A row with its answer, as an example."""
        if self.kind == "multiple_choice":
            return f"{row['query']}{self.delimiter}{row['choices'][row['gold']]}"
        if self.kind == "schema":
            return f"{row['context_options'][row['gold']]}{self.delimiter}{row['continuation']}"
        return f"{row['context'].strip()}{self.delimiter}{row['continuation']}"

    def asked(self, row: Row) -> list[str]:
        """A row with each of its choices; of a completion, without it and with it."""
        if self.kind == "multiple_choice":
            return [f"{row['query']}{self.delimiter}{choice}" for choice in row["choices"]]
        if self.kind == "schema":
            return [f"{context}{self.delimiter}{row['continuation']}" for context in row["context_options"]]
        context = f"{row['context'].strip()}{self.delimiter}"
        return [context, context + row["continuation"]]


def read_bundle(folder: Path) -> tuple[list[CoreTask], list[str]]:
    """The tasks whose file is there, and a sentence for each that is missing.

    Raises UserError where the folder is no bundle, or none of its tasks is there.
    """
    listed = _listed(folder / "core.yaml")
    baselines = _baselines(folder / "eval_meta_data.csv")
    tasks, notes = [], []
    for entry in listed:
        task = _task(folder, entry, baselines)
        if task.path.is_file():
            tasks.append(task)
        else:
            notes.append(f"{task.label} is left out: there is no {task.path}")
    if not tasks:
        raise UserError(f"{folder} has none of the files that its core.yaml names: unpack the whole bundle")
    return tasks, notes


def read_task(task: CoreTask) -> list[Row]:
    """A task's rows; UserError names the line that is not one."""
    rows: list[Row] = []
    for where, row in numbered_rows(task.path):
        try:
            _check(task, row)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            needed = ", ".join(NEEDED[task.kind])
            raise UserError(f"{where}: no row of a {task.kind} task, which has {needed}") from None
        rows.append(row)
    return rows


def _check(task: CoreTask, row: Row) -> None:
    """Raises what an answer out of place raises, before anything is computed."""
    if not task.asked(row) or not isinstance(task.shown(row), str) or row.get("gold", 0) < 0:
        raise ValueError


def _listed(path: Path) -> list[dict[str, Any]]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return list(content["icl_tasks"])
    except FileNotFoundError:
        raise UserError(
            f"there is no {path}: core needs the folder of DCLM's evaluation bundle (core.yaml, eval_meta_data.csv, "
            "eval_data)"
        ) from None
    except (ValueError, KeyError, TypeError, yaml.YAMLError):
        raise UserError(f"{path} does not list tasks under icl_tasks") from None


def _baselines(path: Path) -> dict[str, float]:
    """The accuracy of guessing by task, in percent."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return {row["Eval Task"]: float(row["Random baseline"]) for row in csv.DictReader(file)}
    except FileNotFoundError:
        raise UserError(f"there is no {path}: without its random baselines nothing can be centred") from None
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path} needs the columns 'Eval Task' and 'Random baseline'") from None


def _task(folder: Path, entry: dict[str, Any], baselines: dict[str, float]) -> CoreTask:
    try:
        label, kind = str(entry["label"]), str(entry["icl_task_type"])
        path, shots = folder / "eval_data" / entry["dataset_uri"], int(entry["num_fewshot"][0])
        delimiter = str(entry.get("continuation_delimiter", " "))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        raise UserError(
            f"{folder / 'core.yaml'}: a task needs label, icl_task_type, dataset_uri and num_fewshot"
        ) from None
    if kind not in NEEDED:
        raise UserError(f"{folder / 'core.yaml'}: {label} is of the kind {kind}, not one of {', '.join(NEEDED)}")
    if label not in baselines:
        raise UserError(f"{folder / 'eval_meta_data.csv'} has no random baseline for {label}")
    return CoreTask(label, kind, path, shots, delimiter, baselines[label] / 100)
