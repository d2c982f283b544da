"""Numbers, times and foreign text as people read them, safe to stand in HTML."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Iterable, Sequence
from datetime import datetime

from overnight.words import DASH

# What HTML cannot hold, and lone surrogates, which UTF-8 cannot: sampled text may contain anything.
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
NUMERIC = re.compile(r"[-+±]?\d[\d,. ]*(e[-+]?\d+)?( ?[a-zA-Z%/]{1,3})?$")


class Html(str):
    """Text that is HTML already: it is not escaped again."""


def escape(value: object) -> Html:
    """Any value as HTML text."""
    if isinstance(value, Html):
        return value
    return Html(html.escape(UNPRINTABLE.sub("\ufffd", number(value) if not isinstance(value, str) else value)))


def join(parts: Iterable[object], between: str = "") -> Html:
    return Html(between.join(escape(part) for part in parts))


def number(value: object) -> str:
    """A configuration's or table's value."""
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 and abs(value) < 10**300 else str(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def short(value: float) -> str:
    """1,234 or 45.6k or 7.89M: three digits or so."""
    if not math.isfinite(value):
        return DASH
    if abs(value) >= 1e15:
        return f"{value:.1e}".replace("e+", "e")
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):.3g}{unit}"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def moment(text: object) -> str:
    """A moment in ISO format, to the minute."""
    try:
        return datetime.fromisoformat(str(text)).strftime("%Y-%m-%d %H:%M %Z").strip()
    except ValueError:
        return number(text)


def several(count: int, word: str) -> str:
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def table(columns: Sequence[object], rows: Sequence[Sequence[object]], kind: str = "") -> Html:
    """A table that scrolls sideways where it is too wide; columns of numbers stand on the right."""
    width = max([len(columns), *map(len, rows)], default=0)
    filled = [[*row, *[""] * (width - len(row))] for row in rows]
    side = [' class="n"' if _numeric([row[i] for row in filled]) else "" for i in range(width)]
    heads = [*columns, *[""] * (width - len(columns))]
    head = "".join(f'<th scope="col"{side[i]}>{escape(cell)}</th>' for i, cell in enumerate(heads))
    cells = ("".join(f"<td{side[i]}>{escape(cell)}</td>" for i, cell in enumerate(row)) for row in filled)
    body = "".join(f"<tr>{row}</tr>\n" for row in cells)
    thead = f"<thead><tr>{head}</tr></thead>\n" if any(columns) else ""
    return Html(f'<div class="wide"><table class="{kind}">{thead}<tbody>\n{body}</tbody></table></div>\n')


def tiles(shown: Iterable[tuple[str, str, str]]) -> Html:
    """Numbers in large type: (name, value, what stands below it)."""
    cells = join(
        Html(f'<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd><dd class="beside">{escape(beside)}</dd></div>\n')
        for name, value, beside in shown
    )
    return Html(f'<dl class="tiles{" many" if cells.count("<dt>") > 6 else ""}">{cells}</dl>\n')


def _numeric(cells: Sequence[object]) -> bool:
    texts = [re.sub("<[^>]*>", "", cell) if isinstance(cell, str) else number(cell) for cell in cells]
    filled = [text for text in texts if text not in ("", DASH)]
    return bool(filled) and all(NUMERIC.match(text) for text in filled)
