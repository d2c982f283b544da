"""Puts a report together: one HTML file that asks nothing of the network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from overnight.errors import UserError
from overnight.report.document import asset, document, with_links, write_page
from overnight.report.fragments import of_runs
from overnight.report.logs import read
from overnight.report.run_data import RunData
from overnight.report.wording import Html

SCRIPTS = ("curves.js", "drawing.js", "report.js")
START = 'startReport(JSON.parse(document.getElementById("data").textContent));\n'


def write_report(runs: Sequence[Path], out: Path, tokens_per_step: int = 0) -> Path:
    """Writes the report of one run, or of several beside each other, to `out`, and returns `out`.

    Each is a run folder, finished or under way, or a log of another program, for which `tokens_per_step` is what its
    steps took where it does not tell. What is neither is a UserError.
    """
    if not runs:
        raise UserError("a report needs at least one run folder")
    return write_page(page([read(path, tokens_per_step) for path in dict.fromkeys(runs)]), out)


def page(runs: Sequence[RunData]) -> str:
    """The whole page as text."""
    found = of_runs(runs)
    links, rest = with_links(found.sections)
    return document(
        found.title,
        Html(f"{found.headline}{links}{found.notes}{rest}"),
        script="".join(asset(name) for name in SCRIPTS) + START,
        data=found.data,
    )
