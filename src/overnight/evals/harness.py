"""lm-evaluation-harness on our models: its tasks as evaluations of ours, and its own command."""

from __future__ import annotations

import contextlib
import importlib.util
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from overnight.config import Precision
from overnight.distributed import World
from overnight.errors import UserError, suggestion
from overnight.evals.base import Result

if TYPE_CHECKING:
    from overnight.evals.bridge import OvernightLM

NAME = "overnight"  # as in --model overnight
DRAWS = 1000  # for standard errors that have no formula


def run_harness(
    source: str,
    tasks: Sequence[str],
    *,
    checkpoint: str = "best",
    device: str = "auto",
    precision: Precision = "fp32",
    tokens: int = 0,
    shots: int | None = None,
    limit: int | None = None,
    include: Path | None = None,
    world: World | None = None,
) -> list[Result]:
    """Tasks, groups or tags of the installed harness, or paths of its YAML files, on whatever `overnight eval` takes.

    `limit` takes the first examples of each task. `include` is a folder with further tasks. On every rank. The random
    state is as before. Raises UserError where the harness is not installed, or has no such task.
    """
    require()
    from overnight.evals.bridge import OvernightLM

    with unchanged_random_state(), contextlib.redirect_stdout(sys.stderr):  # it prints, and our output may be JSON
        lm = OvernightLM(source, checkpoint, device, precision, tokens, world=world)
        return evaluate(lm, tasks, shots, limit, include)


def evaluate(
    lm: OvernightLM, tasks: Sequence[Any], shots: int | None = None, limit: int | None = None, include: Any = None
) -> list[Result]:
    """The same with a model that is there, and tasks as the harness takes them."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    named = [task for task in tasks if isinstance(task, str) and not Path(task).is_file()]
    manager = TaskManager(include_path=include, include_defaults=bool(named))  # to list all takes it seconds
    for task in named:
        if task not in manager.all_tasks:
            raise UserError(
                f"lm-eval has no task '{task}'{suggestion(task, manager.all_tasks)}; `lm_eval ls tasks` lists them"
            )
    try:
        found = simple_evaluate(
            lm, tasks=list(tasks), num_fewshot=shots, limit=limit, task_manager=manager, bootstrap_iters=DRAWS
        )
    except (ConnectionError, FileNotFoundError) as error:  # what `datasets` raises where rows cannot be had
        raise UserError(f"lm-eval cannot get the rows of {', '.join(map(str, tasks))}: {_line(error)}") from None
    results = [] if found is None else [_result(name, found, limit) for name in found["results"]]
    return lm.world.first(results)  # it gives nothing on other ranks


def main(arguments: Sequence[str]) -> int:
    """`lm_eval`'s own command line, with `--model overnight` beside the models that it knows.

    It has no entry point for models of other packages, so a plain `lm_eval` does not know ours.
    """
    require()
    register()
    from lm_eval.__main__ import cli_evaluate

    before = sys.argv
    sys.argv = ["lm_eval", *(["run"] if list(arguments) in (["--help"], ["-h"]) else []), *arguments]
    try:
        cli_evaluate()
    except (ValueError, OSError) as error:  # what it raises for a task that there is not, or rows that it cannot get
        raise UserError(f"lm_eval: {_line(error)}") from error
    finally:
        sys.argv = before
    return 0


def register() -> None:
    """Makes the model known to the harness in this process, under the name `overnight`."""
    import lm_eval.models  # noqa: F401  (only an empty registry gets the harness's own)
    from lm_eval.api.registry import model_registry

    if NAME not in model_registry:
        model_registry.register(NAME, target="overnight.evals.bridge:OvernightLM")


def require() -> None:
    """UserError where the harness is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("lm-evaluation-harness is not installed: pip install 'overnight[lm-eval]'")


@contextlib.contextmanager
def unchanged_random_state() -> Iterator[None]:
    """What is drawn from Python's, numpy's and torch's generators inside is not missing outside."""
    python, arrays = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)


def _result(name: str, found: Any, limit: int | None) -> Result:
    """One task or group of the harness's results; its metrics without the name of the filter that does nothing."""
    import lm_eval

    values = {
        key.removesuffix(",none"): float(value)
        for key, value in found["results"][name].items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and "," in key
    }
    shots, version = found["n-shot"].get(name), found["versions"].get(name)
    counts = found["n-samples"].get(name)
    rows = [_row(sample) for sample in found["samples"].get(name, [])]
    examples = counts["effective"] if counts else len(rows)
    parts = [
        f"lm-evaluation-harness {lm_eval.__version__}",
        *([] if version is None else [f"{name} version {version}"]),
        *([] if shots is None else [f"{shots}-shot"]),
    ]
    notes = []
    if limit and counts and counts["effective"] < counts["original"]:
        notes.append(
            f"a subset: {examples:,} of {counts['original']:,} examples; not comparable with published numbers"
        )
    return Result(name, ", ".join(parts), values, examples, notes, rows)


def _row(sample: dict[str, Any]) -> dict[str, Any]:
    """What the harness keeps of an example, without its hashes."""
    return {"row": sample["doc_id"] + 1} | {
        key: value for key, value in sample.items() if key != "doc_id" and not key.endswith("_hash")
    }


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
