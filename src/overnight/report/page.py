"""Puts a report together: one HTML file that asks nothing of the network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from overnight.errors import UserError
from overnight.report import sections
from overnight.report.charts import COLORS, Chart, charts, payload
from overnight.report.document import asset, document, with_links, write_page
from overnight.report.headline import headline, incomparable
from overnight.report.run_data import RunData, read_run
from overnight.report.svg import draw
from overnight.report.wording import Html, escape, join


def write_report(runs: Sequence[Path], out: Path) -> Path:
    """Writes the report of one run, or of several beside each other, to `out`, and returns `out`.

    The runs may be finished or under way. A folder that is not a run is a UserError.
    """
    if not runs:
        raise UserError("a report needs at least one run folder")
    return write_page(page([read_run(folder) for folder in dict.fromkeys(runs)]), out)


def page(runs: Sequence[RunData]) -> str:
    """The whole page as text."""
    _name_apart(runs)
    drawn = charts(runs)
    return document(
        " · ".join(run.name for run in runs[:4]) + (" …" if len(runs) > 4 else ""),
        _body(runs, drawn),
        script=asset("curves.js") + asset("report.js"),
        data=payload(runs, drawn),
    )


def _body(runs: Sequence[RunData], drawn: Sequence[Chart]) -> Html:
    """Headline, notes, charts and everything below them, with links to the parts that there are."""
    parts = [
        ("curves", "Curves", _charts(runs, drawn)),
        ("samples", "Samples", sections.samples(runs)),
        ("configuration", "Configuration", sections.configuration(runs)),
        ("dataset", "Dataset", sections.dataset(runs)),
        ("attempts", "Attempts", sections.attempts(runs)),
        ("decisions", "Decisions", sections.decisions(runs)),
    ]
    links, rest = with_links(parts)
    return Html(f"{headline(runs)}{links}{sections.notes(runs)}{rest}")


def _charts(runs: Sequence[RunData], drawn: Sequence[Chart]) -> Html:
    if not drawn:
        return Html('<p class="empty">No metrics yet: nothing to draw.</p>')
    warning = incomparable(runs)
    keys = _keys([(f"run:{i}", run.name, i % COLORS) for i, run in enumerate(runs)]) if len(runs) > 1 else Html("")
    figures = join(_figure(chart, len(runs)) for chart in drawn)
    small = sum(not chart.large for chart in drawn)
    pairs = " pairs" if small % 3 and small % 2 == 0 else ""
    return Html(f'{warning}<div class="tools" id="tools" hidden></div>{keys}<div class="charts{pairs}">{figures}</div>')


def _figure(chart: Chart, runs: int) -> Html:
    keys = [(line.key, line.label, line.color) for line in chart.lines]
    legend = _keys(keys) if runs == 1 and len(keys) > 1 else ""
    size = " large" if chart.large else ""
    return Html(
        f'<figure class="chart{size}" data-chart="{chart.id}"><figcaption><h3>{escape(chart.title)}</h3>{legend}'
        f'</figcaption>\n<div class="plot">{draw(chart)}</div></figure>\n'
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
