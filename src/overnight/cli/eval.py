"""`overnight eval`"""

from __future__ import annotations

import contextlib
import io
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from overnight.cli.arguments import parse
from overnight.errors import UserError
from overnight.launching import is_worker, launch, processes_here

if TYPE_CHECKING:
    from overnight.console import Console, Stages
    from overnight.distributed import World
    from overnight.evals.alone import DatasetLoss, Subject
    from overnight.evals.base import Result
    from overnight.evals.registry import Asked


@dataclass(frozen=True)
class Arguments:
    """What a model can do: its loss on a dataset, HellaSwag and other tasks. Of a run, or of weights from elsewhere."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """A run, gpt2 ... gpt2-xl, a hub's OWNER/NAME, a folder of transformers, a checkpoint of nanoGPT and others."""
    evals: Annotated[str, tyro.conf.arg(metavar="NAMES")] = ""
    """Which, separated by commas: loss (where none is named), hellaswag, lambada, piqa, ...; NAME=FILE with a file."""
    data: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """loss: the dataset folder; by default the one that the run was trained on."""
    split: Literal["val", "train"] = "val"
    """loss: which of its splits."""
    tokens: Annotated[str, tyro.conf.arg(metavar="N")] = "0"
    """loss: on so many tokens, spread evenly over the split; 0: on all."""
    file: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """The examples of the one task that is named; by default fetched once and kept."""
    examples: Annotated[str, tyro.conf.arg(metavar="N")] = "0"
    """Only so many examples of each task, spread evenly over it; 0: all."""
    harness: Annotated[str, tyro.conf.arg(metavar="TASKS")] = ""
    """Tasks of the installed lm-evaluation-harness, separated by commas."""
    calibrate: bool = False
    """First score the released GPT-2 (124M) on the same tasks, and say whether its published numbers come out."""
    show: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Print so many examples of each task, with what the model chose."""
    checkpoint: str = "best"
    """Of a run: best, last, or a step."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    """Of the matrix products."""
    processes: int | None = None
    """How many share the work; by default one for each GPU."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Where results are kept, and from where an interrupted evaluation goes on; of a run by default RUN/evals/STEP."""
    save_baseline: bool = False
    """Keep the loss in the dataset's folder: reports of runs on it draw it as a line."""
    json: bool = False
    """Print JSON instead of text."""


def main(arguments: Sequence[str]) -> int:
    given = parse(Arguments, arguments, "eval")
    processes = 1 if is_worker() else processes_here(given.processes, given.device)
    if processes > 1:
        return launch(["eval", *arguments], processes, lambda: 0)
    from overnight.console import Console
    from overnight.distributed import current_world, joined

    world = current_world()
    quiet = contextlib.redirect_stdout(io.StringIO()) if world.rank else contextlib.nullcontext()
    with joined(world), quiet, Console.silent() if world.rank else Console(stream=sys.stderr) as console:
        _evaluate(given, world, console)
    return 0


def _evaluate(given: Arguments, world: World, console: Console) -> None:
    """On every rank; what is printed and written is rank 0's."""
    from overnight.console import Stages
    from overnight.evals import alone, registry
    from overnight.evals.fitting import require_fit
    from overnight.files import to_json

    asked = _with_file(registry.parse(given.evals or ("" if given.harness else "loss")), given.file)
    wants_loss = any(one.name == "loss" for one in asked)
    data = (given.data or _own_dataset(given.source)) if wants_loss else given.data
    if given.save_baseline and not wants_loss:
        raise UserError("eval: --save-baseline keeps a loss: add it to --evals")
    stages = Stages(console)
    evaluations = world.in_turn(lambda: _evaluations(asked, given.examples, console.line))
    if given.calibrate and not evaluations:
        raise UserError("eval: --calibrate scores GPT-2 on the tasks of --evals: name one, as in hellaswag")
    calibrated = _calibrate(evaluations, given, world, stages) if given.calibrate else []
    stages(f"reading {given.source}")
    subject = alone.open_subject(given.source, given.checkpoint, given.device, given.precision, world, console.line)
    for evaluation in evaluations:
        require_fit(evaluation, subject.weights.known_tokenizer(), subject.gpt.block_size)
    out = given.out or (_own_folder(given.source, subject) if evaluations or given.harness else None)
    told = subject.facts() | ({"calibration": calibrated} if calibrated else {})
    if wants_loss and data is not None:
        told |= _loss(subject, data, given, stages)
    results = [alone.task(subject, evaluation, out, _answered(stages, evaluation.name)) for evaluation in evaluations]
    console.clear()
    results += _harness(given, out, world)
    if results:
        told["tasks"] = [alone.result_json(found) for found in results]
    if out is not None and world.rank == 0:
        alone.keep_results(out, subject, told)
    console.clear()
    if given.json:
        print(to_json(told, indent=2))
        return
    for found in results:
        _print(subject, found, given.show)


def _calibrate(evaluations: list[Any], given: Arguments, world: World, stages: Stages) -> list[str]:
    """What the released GPT-2 gets, told at once."""
    from overnight.evals import alone
    from overnight.evals.calibrate import MODEL, calibration

    stages(f"reading {MODEL}")
    released = alone.open_subject(MODEL, "best", given.device, given.precision, world, stages.console.line)
    lines = [
        line
        for evaluation in evaluations
        for line in calibration(
            alone.task(released, evaluation, None, _answered(stages, f"{MODEL}, {evaluation.name}"))
        )
    ]
    stages.console.clear()
    for line in lines:
        print(f"calibration: {line}", file=sys.stderr if given.json else sys.stdout)
    return lines


def _harness(given: Arguments, out: Path | None, world: World) -> list[Result]:
    """What lm-evaluation-harness finds; its examples beside those of our own tasks."""
    if not given.harness:
        return []
    from overnight.data.sizes import parse_count
    from overnight.evals import alone
    from overnight.evals.harness import run_harness

    results = run_harness(
        given.source,
        [name.strip() for name in given.harness.split(",") if name.strip()],
        checkpoint=given.checkpoint,
        device=given.device,
        precision=given.precision,
        limit=parse_count(given.examples) or None,
        world=world,
    )
    if out is not None and world.rank == 0:
        for found in results:
            alone.write_rows(out, found)
    return results


def _with_file(asked: list[Asked], file: Path | None) -> list[Asked]:
    """`--file` beside the one task that it is for."""
    tasks = [one for one in asked if one.name != "loss"]
    if any(one.every is not None for one in asked):
        raise UserError("eval: an interval (@N) is for training")
    if file is None:
        return asked
    if len(tasks) != 1:
        raise UserError(f"eval: --file is for one task, and --evals names {len(tasks)}: write NAME=FILE")
    return [replace(one, file=file) if one in tasks else one for one in asked]


def _evaluations(asked: list[Asked], examples: str, say: Callable[[str], None]) -> list[Any]:
    from overnight.data.sizes import parse_count
    from overnight.evals import registry

    tasks = [one for one in asked if one.name != "loss"]
    return [registry.make(one, parse_count(examples), say, trusted=True) for one in tasks]


def _loss(subject: Subject, data: Path, given: Arguments, stages: Stages) -> dict[str, Any]:
    from overnight.data.sizes import parse_count
    from overnight.evals import alone

    measured = alone.dataset_loss(subject, data, given.split, parse_count(given.tokens), stages)
    stages.console.clear()
    if given.save_baseline and subject.world.rank == 0:
        alone.save_baseline(data, subject, measured)
    if not given.json:
        print(f"{subject.name}: {_loss_line(measured)} ({subject.facts()['device']}, {subject.precision})")
    return measured.to_json()


def _loss_line(measured: DatasetLoss) -> str:
    loss = measured.loss
    bits = "" if math.isnan(loss.bits_per_byte) else f"{loss.bits_per_byte:.4f} bits per byte, "
    error = "" if math.isnan(loss.error) else f" ± {loss.error:.4f}"
    return (
        f"{measured.split} loss {loss.mean:.4f}{error} nats per token, perplexity {math.exp(min(loss.mean, 700)):.2f}, "
        f"{bits}on {loss.tokens:,} tokens in windows of {measured.sequence_length}"
    )


def _print(subject: Subject, found: Result, show: int) -> None:
    from overnight.evals.base import headline
    from overnight.evals.shown import chosen, example_lines

    print(f"{subject.name}: {headline(found)}")
    for line in (f"{found.examples:,} examples, {found.protocol}", *found.notes):
        print(f"  {line}")
    for row in chosen(found.rows, show):
        print()
        print("\n".join(example_lines(row)))
    if show and found.rows:
        print("\n  (nats of each ending; > the likeliest)")


def _answered(stages: Stages, name: str) -> Callable[[int, int], None]:
    """Tells how many of an evaluation's questions are answered."""
    return lambda done, total: stages(f"{name}, {total:,} questions:", done / max(1, total))


def _own_folder(source: str, subject: Subject) -> Path | None:
    """A run keeps what its checkpoints can do."""
    step = subject.weights.step
    return None if step is None else Path(source) / "evals" / f"step_{step:08d}"


def _own_dataset(source: str) -> Path:
    """The dataset that a run was trained on last."""
    from overnight.runs import datasets_of

    used = datasets_of(Path(source))
    if not used or "corpora" in used[-1]:
        raise UserError(f"eval: say on which dataset to evaluate {source}, with --data DIR")
    return Path(used[-1]["path"])
