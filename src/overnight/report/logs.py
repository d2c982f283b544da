"""Logs of other programs as curves: build-nanogpt's log.txt, nanoGPT's console, llm.c's main.log."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from overnight.errors import UserError
from overnight.evals.baselines import COMPLETION
from overnight.report.bands import reference
from overnight.report.metrics_file import TaskResult
from overnight.report.run_data import RunData, read_run
from overnight.report.series import Clock, Series, by_step, drawable

LONGEST = 2_000  # letters of a line that are looked at: a file that is no log may have no line ends at all
PATIENCE = 20_000  # lines without a measurement after which a file is no log
NUMBER, STEP = r"(-?(?:\d+\.?\d*(?:e[-+]?\d+)?|nan|inf))", r"(\d{1,15})"
Found = list[tuple[int, str, float]]  # (step, name of the series, value)

BUILD_NANOGPT = re.compile(rf"{STEP} (train|val|hella) {NUMBER}$")
LLM_C = re.compile(rf"s:{STEP}((?: [a-z]+:{NUMBER})+)$")
NANOGPT_EVAL = re.compile(rf"step {STEP}: train loss {NUMBER}, val loss {NUMBER}$")
NANOGPT_STEP = re.compile(rf"iter {STEP}: loss {NUMBER}, time {NUMBER}ms(?:, mfu {NUMBER}%)?$")
NANOGPT_TOKENS = re.compile(r"tokens per iteration will be: ([\d,]+)$")
NAMES = {"train": "train.loss", "trl": "train.loss", "val": "eval.val_loss", "tel": "eval.val_loss",
         "lr": "train.lr", "norm": "train.grad_norm", "hella": "hellaswag", "eval": "hellaswag"}  # fmt: skip


def read(path: Path, tokens_per_step: int = 0) -> RunData:
    """A run folder, with its place in the band of its preset, or a log of another program; a UserError where it is
    neither."""
    if path.is_file():
        return read_log(path, tokens_per_step)
    run = read_run(path)
    run.reference = reference(run)
    return run


def read_log(path: Path, tokens_per_step: int = 0) -> RunData:
    """The curves in a log. Lines that hold no measurement are counted, in a problem.

    Steps are counted as everywhere here: a training loss that the log gives for step s, from 0, is update s + 1.
    The tokens of a step are given, or as the log has them; else they are not known. A UserError where no line is of a
    format that is known.
    """
    columns: dict[str, tuple[array[float], array[float]]] = {}
    program, others, told = _parse(path, columns)
    if not program:
        raise UserError(
            f"{path} is neither a run folder nor a log of build-nanogpt (log.txt), nanoGPT (its console) or "
            "llm.c (main.log): no line of it is a measurement"
        )
    series = {
        name: Series(*by_step(np.array(at), drawable(np.array(values)))) for name, (at, values) in columns.items()
    }
    scores = series.pop("hellaswag", None)
    tokens = tokens_per_step or told
    _add_rate(series, tokens)
    problems = [f"{path.name}: {others:,} of its lines hold no measurement and are left out."] if others else []
    if not tokens:
        problems.append(
            f"{path.name} does not tell the tokens of a step (--tokens-per-step): it is drawn over steps only."
        )
    return RunData(
        name=path.stem if path.stem not in ("log", "main") else f"{path.resolve().parent.name}/{path.name}",
        folder=path,
        series=series,
        clock=_clock([*series.values(), *([scores] if scores else [])], tokens),
        tasks=_scores(scores) if scores else [],
        program=program,
        problems=problems,
    )


def _parse(path: Path, columns: dict[str, tuple[array[float], array[float]]]) -> tuple[str, int, int]:
    """Fills the columns; returns the program that wrote most of it, the number of other lines, the tokens of a step."""
    counts: Counter[str] = Counter()
    others = tokens = 0
    for line in _lines(path):
        if match := NANOGPT_TOKENS.match(line):
            tokens = int(match[1].replace(",", ""))
            continue
        program, found = next(((name, found) for name, parse in FORMATS.items() if (found := parse(line))), ("", []))
        if not program:
            others += bool(line)
            if not counts and others > PATIENCE:
                break
            continue
        counts[program] += 1
        for step, name, value in found:
            if name not in columns:
                columns[name] = array("d"), array("d")
            columns[name][0].append(step)
            columns[name][1].append(value)
    return (counts.most_common(1)[0][0] if counts else ""), others, tokens


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            while line := file.readline(LONGEST):
                yield line.strip()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None


def _build_nanogpt(line: str) -> Found:
    """A line of its log.txt: "250 val 4.1234"."""
    match = BUILD_NANOGPT.match(line)
    if not match:
        return []
    return [(int(match[1]) + (match[2] == "train"), NAMES[match[2]], float(match[3]))]


def _llm_c(line: str) -> Found:
    """A line of its main.log: "s:250 trl:4.1234 lr:0.000600 norm:0.50"."""
    match = LLM_C.match(line)
    if not match:
        return []
    values = dict(part.split(":") for part in match[2].split())
    after = any(name in values for name in ("tel", "eval"))
    known = [(NAMES[name], float(value)) for name, value in values.items() if name in NAMES]
    return [(int(match[1]) + (not after), name, value) for name, value in known]


def _nanogpt(line: str) -> Found:
    """A line of its console: "iter 250: loss 1.2345, time 30.12ms, mfu 1.23%", or of an evaluation."""
    if match := NANOGPT_EVAL.match(line):
        step = int(match[1])
        return [(step, "eval.train_split_loss", float(match[2])), (step, "eval.val_loss", float(match[3]))]
    if match := NANOGPT_STEP.match(line):
        step = int(match[1]) + 1
        mfu = [(step, "train.mfu", float(match[4]) / 100)] if match[4] and float(match[4]) >= 0 else []
        return [(step, "train.loss", float(match[2])), (step, "milliseconds", float(match[3])), *mfu]
    return []


FORMATS: dict[str, Callable[[str], Found]] = {"build-nanogpt": _build_nanogpt, "llm.c": _llm_c, "nanoGPT": _nanogpt}


def _add_rate(series: dict[str, Series], tokens: int) -> None:
    """Tokens a second, of the steps that the log timed."""
    took = series.pop("milliseconds", None)
    if took is not None and tokens:
        with np.errstate(divide="ignore", invalid="ignore"):
            series["train.tokens_per_second"] = Series(took.step, drawable(1000 * tokens / took.value))


def _clock(series: list[Series], tokens: int) -> Clock:
    """Steps, and tokens where they are known; no log tells the time or the epoch."""
    steps = np.unique(np.concatenate([one.step for one in series]))
    missing = np.full(len(steps), np.nan)
    return Clock(steps, steps * tokens if tokens else missing, missing, missing)


def _scores(series: Series) -> list[TaskResult]:
    """HellaSwag as both programs score it: all of the validation file, by the mean loss of the ending's tokens."""
    pairs = zip(series.step.tolist(), series.value.tolist(), strict=True)
    return [TaskResult(step, "hellaswag", COMPLETION, {"acc_norm": value}) for step, value in pairs]
