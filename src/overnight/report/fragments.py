"""The parts of a report as pieces of HTML, for a page of one's own: a saved report, or one that follows a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from overnight.report import evaluations, sections, spikes, time_table
from overnight.report.charts import COLORS, Chart, axis, charts, place
from overnight.report.headline import headline, incomparable
from overnight.report.logs import read
from overnight.report.payload import payload
from overnight.report.run_data import RunData
from overnight.report.svg import draw
from overnight.report.wording import Html, escape, join


@dataclass(frozen=True)
class Fragments:
    """What stands on a page about runs."""

    title: str
    headline: Html
    """Name, progress, the numbers that matter, warnings."""
    notes: Html
    sections: list[tuple[str, str, Html]]
    """Id, title and content, in order, of the parts that there are. The charts are drawn in the first, `curves`."""
    data: str
    """JSON for `startReport` of report.js; safe to stand in a script element."""


def fragments(runs: Sequence[Path], tokens_per_step: int = 0) -> Fragments:
    """The parts of the report of one run, or of several beside each other; the arguments are those of
    `write_report`."""
    return of_runs([read(path, tokens_per_step) for path in dict.fromkeys(runs)])


def of_runs(runs: Sequence[RunData], pictures: bool = True) -> Fragments:
    """As `fragments`, of runs that were read already; runs with the same name get longer ones.

    Without `pictures` the charts are empty until the script draws them.
    """
    _name_apart(runs)
    drawn = charts(runs)
    parts = [
        ("curves", "Curves", curves(runs, drawn, pictures)),
        ("evaluations", "Evaluations", evaluations.tables(runs)),
        ("spikes", "Spikes", spikes.section(runs)),
        ("time", "Time", time_table.section(runs)),
        ("samples", "Samples", sections.samples(runs)),
        ("configuration", "Configuration", sections.configuration(runs)),
        ("dataset", "Dataset", sections.dataset(runs)),
        ("attempts", "Attempts", sections.attempts(runs)),
        ("decisions", "Decisions", sections.decisions(runs)),
    ]
    return Fragments(
        title=" · ".join(run.name for run in runs[:4]) + (" …" if len(runs) > 4 else ""),
        headline=headline(runs),
        notes=sections.notes(runs),
        sections=[part for part in parts if part[2]],
        data=payload(runs, drawn),
    )


def curves(runs: Sequence[RunData], drawn: Sequence[Chart], pictures: bool = True) -> Html:
    """The charts, drawn or left to the script, with their legends."""
    if not drawn:
        return Html('<p class="empty">No metrics yet: nothing to draw.</p>')
    warning = incomparable(runs)
    keys = _keys([(f"run:{i}", run.name, i % COLORS) for i, run in enumerate(runs)]) if len(runs) > 1 else Html("")
    figures = join(_figure(chart, runs, pictures) for chart in drawn)
    small = sum(not chart.large for chart in drawn)
    pairs = " pairs" if small % 3 and small % 2 == 0 else ""
    return Html(f'{warning}<div class="tools" id="tools" hidden></div>{keys}<div class="charts{pairs}">{figures}</div>')


def _figure(chart: Chart, runs: Sequence[RunData], pictures: bool) -> Html:
    keys = [(line.key, line.label, line.color) for line in chart.lines]
    legend = _keys(keys) if len(runs) == 1 and len(keys) > 1 else ""
    size = " large" if chart.large else ""
    about = f'<span class="about">{escape(chart.about)}</span>' if chart.about else ""
    along = axis(runs)
    picture = draw(chart, along, place(runs, along)) if pictures else '<svg role="img"></svg>'
    return Html(
        f'<figure class="chart{size}" data-chart="{chart.id}"><figcaption><h3>{escape(chart.title)}</h3>{about}{legend}'
        f'</figcaption>\n<div class="plot">{picture}</div></figure>\n'
    )


def _keys(keys: Sequence[tuple[str, str, int]]) -> Html:
    """A legend; the script makes its entries switch curves off and on."""
    return Html(
        '<div class="keys">'
        + join(
            Html(f'<button class="key c{color}" data-key="{key}" aria-pressed="true">{escape(label)}</button>')
            for key, label, color in keys
        )
        + "</div>"
    )


def _name_apart(runs: Sequence[RunData]) -> None:
    """Runs whose folders have the same name get as much of their paths as tells them apart."""
    depth = 1
    while depth < 20 and max(Counter(run.name for run in runs).values()) > 1:
        depth += 1
        for run in runs:
            run.name = "/".join(run.folder.resolve().parts[-depth:]).lstrip("/")
