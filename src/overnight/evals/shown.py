"""Examples of an evaluation as text: what was asked, what is right, and what the model chose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from overnight.files import to_json

WIDTH = 160  # characters of a text


def chosen(rows: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """So many rows, spread evenly."""
    taken = min(count, len(rows))
    return [rows[index * len(rows) // taken] for index in range(taken)]


def example_lines(row: dict[str, Any]) -> list[str]:
    """A row that has endings with their losses as a list of them; any other as JSON."""
    endings, nats = row.get("endings"), row.get("nats")
    if not isinstance(endings, list) or not isinstance(nats, list) or len(endings) != len(nats):
        return [to_json(row)]
    contexts = row.get("contexts") or [row.get("ctx", "")]
    right, likeliest = row.get("gold", row.get("label")), nats.index(min(nats))
    lines = [_short(context, end=True) for context in contexts]
    for number, (ending, own) in enumerate(zip(endings, nats, strict=True)):
        mark = ">" if number == likeliest and len(endings) > 1 else " "
        verdict = "  (right)" if number == right and len(endings) > 1 else ""
        lines.append(f"  {mark} {own:8.3f}  {_short(ending)}{verdict}")
    return lines


def _short(text: str, end: bool = False) -> str:
    """A text in one line; of a long one its end, or its beginning."""
    line = " ".join(str(text).split())
    if len(line) <= WIDTH:
        return line
    return f"... {line[-WIDTH:]}" if end else f"{line[:WIDTH]} ..."
