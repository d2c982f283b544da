"""Where the time of runs went, as a bar and a table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from overnight.report.charts import COLORS
from overnight.report.run_data import RunData
from overnight.report.time_spent import REST, TRAINING, Spent
from overnight.report.wording import Html, escape, join, short, table
from overnight.words import DASH, duration

UNKNOWN = (
    "The rest is what no line tells the length of: loading, trying out the machine, compiling, sampling, checkpoints. "
    "Between attempts there was waiting, and work that was lost and made again."
)


def section(runs: Sequence[RunData]) -> Html:
    """Where the time went, from the first start to the last line."""
    parts = []
    for i, run in enumerate(runs):
        if (spent := run.spent) is None:
            continue
        parts_by_size = sorted(spent.parts.items(), key=lambda part: -part[1][0])
        names = {**dict(parts_by_size), REST: (spent.rest, 0)}
        bar = join(
            Html(f'<span class="c{j % COLORS}" style="width:{100 * seconds / (spent.total or 1):.2f}%"></span>')
            for j, (seconds, _) in enumerate(names.values())
        )
        rows = [
            [
                Html(f'<span class="swatch c{j % COLORS}"></span>{escape(name)}'), duration(seconds),
                f"{seconds / (spent.total or 1):.1%}", f"{count:,}" if count else DASH,
            ]
            for j, (name, (seconds, count)) in enumerate(names.items())
        ]  # fmt: skip
        heading = f'<h3><span class="swatch c{i % COLORS}"></span>{escape(run.name)}</h3>' if len(runs) > 1 else ""
        about = (
            f'<p class="about">{duration(spent.total)} from the first start to the last line.{_rate(run, spent)}</p>'
        )
        shown = table(["", "Time", "Share", "Times"], rows)
        parts.append(f'{heading}{about}<div class="hours">{bar}</div>{shown}')
    if not parts:
        return Html("")
    return Html("".join(parts) + f'<p class="about">{UNKNOWN}</p>\n')


def _rate(run: RunData, spent: Spent) -> str:
    """Tokens a second, with and without all that is not training."""
    training, _ = spent.parts.get(TRAINING, (0.0, 0))
    tokens = run.clock.tokens[-1] if len(run.clock.tokens) else np.nan
    if not training or not spent.total or not np.isfinite(tokens):
        return ""
    return (
        f" {short(tokens / training)} tokens a second in training steps, {short(tokens / spent.total)} over all of it."
    )
