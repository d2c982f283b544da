"""The tables of evaluations: losses by step, results of tasks, and published numbers beside them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from overnight.evals.baselines import for_task
from overnight.report.charts import COLORS
from overnight.report.published import verdict
from overnight.report.run_data import RunData
from overnight.report.series import Numbers
from overnight.report.tasks import best, curve, heading, kinds, main_metric, results, with_error
from overnight.report.wording import Html, escape, join, short, table
from overnight.words import DASH

MOST_ROWS = 100
FEW = 12  # rows that need not be folded away


def tables(runs: Sequence[RunData]) -> Html:
    """Results of tasks, then the losses of each run by step."""
    losses = []
    for i, run in enumerate(runs):
        name = Html(f'<span class="swatch c{i % COLORS}"></span>{escape(run.name)}') if len(runs) > 1 else Html("")
        losses.append(_by_step(run, name))
    return Html(_tasks(runs) + join(losses) + _published(runs))


def _tasks(runs: Sequence[RunData]) -> Html:
    """The last result and the best one of each task, of each run."""
    rows: list[list[object]] = []
    notes: dict[str, None] = {}
    for kind in kinds(runs):
        for run in runs:
            found, highest = results(run, kind), best(run, kind)
            if not found:
                continue
            last = found[-1]
            others = [name for name in last.metrics if not name.endswith("_stderr") and name != main_metric(last)]
            said = [*last.notes, last.told if last.told not in ("", kind.protocol) else ""]
            notes |= {f"{kind.title}: {note}": None for note in said if note}
            rows.append([
                run.name,
                kind.title,
                f"{main_metric(last)} {with_error(last, main_metric(last))}",
                f"{highest.metrics[main_metric(highest)]:.4f} at step {highest.step:,.0f}" if highest else DASH,
                verdict(last),
                ", ".join(f"{name} {with_error(last, name)}" for name in others),
                last.examples,
                f"{last.step:,.0f}",
                kind.protocol,
            ])  # fmt: skip
    if not rows:
        return Html("")
    columns = ["Run", "Task", "Result", "Best", "Beside published", "Also", "Examples", "At step", "Protocol"]
    first = 0 if len(runs) > 1 else 1
    told = join(Html(f'<p class="about">{escape(note)}</p>\n') for note in notes)
    return Html(table(columns[first:], [row[first:] for row in rows], "log") + told)


def _by_step(run: RunData, name: Html) -> Html:
    """Losses, gap and results of tasks at the steps at which a run was evaluated."""
    series = {key: run.series[f"eval.{key}"] for key in ("val_loss", "train_split_loss") if f"eval.{key}" in run.series}
    every = [found.step for found in series.values()] + [np.array([one.step for one in run.tasks])]
    steps = np.unique(np.concatenate(every))
    if not len(steps) or not series:
        return Html("")
    steps = steps[np.unique(np.linspace(0, len(steps) - 1, min(len(steps), MOST_ROWS)).astype(int))]
    columns: dict[str, list[str]] = {"Step": [f"{step:,.0f}" for step in steps]}
    columns["Tokens"] = [short(value) for value in run.clock.along("tokens", steps)]
    columns["Epochs"] = _numbers(run.clock.along("epochs", steps), ".3g")
    losses = {key: found.at(steps) for key, found in series.items()}
    missing = np.full(len(steps), np.nan)
    val, split = losses.get("val_loss", missing), losses.get("train_split_loss", missing)
    errors = run.series.get("eval.val_loss_stderr")
    columns["Validation loss"] = _numbers(val, ".4f")
    columns["± one standard error"] = _numbers(errors.at(steps) if errors else missing, ".4f")
    columns["Train-split loss"] = _numbers(split, ".4f")
    columns["Gap"] = _numbers(val - split, "+.4f")
    bits = run.series.get("eval.val_bits_per_byte")
    columns["Bits per byte"] = _numbers(bits.at(steps) if bits else missing, ".3f")
    for kind in kinds([run]):
        if (found := curve(run, kind)) is not None:
            columns[heading([run], kind)] = _numbers(found[1].at(steps), ".4f")
    used = {title: cells for title, cells in columns.items() if any(cell != DASH for cell in cells)}
    shown = table(list(used), list(zip(*used.values(), strict=True)), "steps")
    title = name if name else Html("By step")
    opened = " open" if len(steps) <= FEW and not name else ""
    return Html(f"<details{opened}><summary>{title}</summary>\n{shown}</details>\n")


def _numbers(values: Numbers, digits: str) -> list[str]:
    return [format(value, digits) if np.isfinite(value) else DASH for value in values.tolist()]


def _published(runs: Sequence[RunData]) -> Html:
    """The published numbers that the results can stand beside, and where they are from."""
    rows = []
    for kind in kinds(runs):
        names = dict.fromkeys(main_metric(result) for run in runs for result in results(run, kind))
        known = [one for name in names for one in for_task(kind.task, name, kind.protocol)]
        rows += [[kind.title, one.name, one.metric, f"{one.value:.4g}", one.protocol, one.source] for one in known]
    if not rows:
        return Html("")
    shown = table(["Task", "Model", "Metric", "Value", "Protocol", "Source"], rows, "log")
    return Html(f"<details><summary>Published numbers</summary>\n{shown}</details>\n")
