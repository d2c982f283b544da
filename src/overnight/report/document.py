"""The frame around every page: one HTML file that asks nothing of the network and runs no script but its own."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path

from overnight import __version__
from overnight.errors import UserError
from overnight.files import write_atomic
from overnight.report.wording import Html, escape, join


def document(title: str, body: Html, style: str = "", script: str = "", data: str = "", connect: str = "'none'") -> str:
    """A whole page as text; `data` is JSON for the script, safe to stand in HTML; `connect` is where it may fetch."""
    # The script runs because its hash is named here; anything that slipped into the page from a run does not.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    values = {
        "script_source": f"'sha256-{digest}'" if script else "'none'",
        "connect_source": connect,
        "title": escape(title),
        "style": asset("report.css") + style,
        "body": body,
        "footer": escape(f"overnight {__version__} · written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"),
        "scripts": f'<script type="application/json" id="data">{data}</script>\n<script>{script}</script>\n'
        if script
        else "",
    }
    parts = asset("report.html").split("{{")  # split once: nothing that a value contains is filled in again
    filled = [parts[0]]
    for part in parts[1:]:
        name, rest = part.split("}}", 1)
        filled += [values[name], rest]
    return "".join(filled)


def with_links(parts: Sequence[tuple[str, str, Html]]) -> tuple[Html, Html]:
    """Links to sections, and the sections: of (id, title, content) those that have content."""
    there = [(name, title, content) for name, title, content in parts if content]
    links = join(Html(f'<a href="#{name}">{title}</a>') for name, title, _ in there)
    sections = join(
        Html(f'<section id="{name}"><h2>{title}</h2>\n{content}</section>\n') for name, title, content in there
    )
    return Html(f"<nav>{links}</nav>\n"), sections


def write_page(html: str, out: Path) -> Path:
    """Writes a page whole, makes its folder where there is none, and returns `out`; UserError where it cannot."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out, html)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}); choose another file with --out") from None
    return out


def asset(name: str) -> str:
    return (resources.files("overnight.report") / name).read_text(encoding="utf-8")
