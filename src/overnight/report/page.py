"""Puts a report together: one HTML file that asks nothing of the network."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path

from overnight import __version__
from overnight.errors import UserError
from overnight.files import write_atomic
from overnight.report import sections
from overnight.report.charts import COLORS, Chart, charts, payload
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
    html = page([read_run(folder) for folder in dict.fromkeys(runs)])
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out, html)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}); choose another file with --out") from None
    return out


def page(runs: Sequence[RunData]) -> str:
    """The whole page as text."""
    _name_apart(runs)
    script = _asset("curves.js") + _asset("report.js")
    values = {
        # The script runs because its hash is named here; anything that slipped into the page from a run does not.
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "title": escape(" · ".join(run.name for run in runs[:4]) + (" …" if len(runs) > 4 else "")),
        "style": _asset("report.css"),
        "body": _body(runs, drawn := charts(runs)),
        "footer": escape(f"overnight {__version__} · written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"),
        "data": payload(runs, drawn),
        "script": script,
    }
    parts = _asset("report.html").split("{{")  # split once: nothing that a value contains is filled in again
    filled = [parts[0]]
    for part in parts[1:]:
        name, rest = part.split("}}", 1)
        filled += [values[name], rest]
    return "".join(filled)


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
    there = [(name, title, content) for name, title, content in parts if content]
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title, _ in there)
    rest = "".join(f'<section id="{name}"><h2>{title}</h2>\n{content}</section>\n' for name, title, content in there)
    return Html(f"{headline(runs)}<nav>{links}</nav>\n{sections.notes(runs)}{rest}")


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


def _asset(name: str) -> str:
    return (resources.files("overnight.report") / name).read_text(encoding="utf-8")
