"""The items of an evaluation file: rows of JSON lines or parquet, paragraphs of a text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overnight.errors import UserError

TEXT, CONTEXT = "text", "context"


@dataclass(frozen=True)
class Item:
    """One question or text of an evaluation."""

    name: str
    """Where it stands in the file."""
    kind: str
    """TEXT, or CONTEXT: what a model is given of it, without the answer."""
    text: str


def read_items(path: Path) -> list[Item]:
    """The items of `path`; UserError where it cannot be read or has none.

    Of a row with HellaSwag's fields (ctx, endings, label), the text is ctx and the right ending, and ctx alone is the
    context; of any other row, the text is all of its strings, in the order of the fields.
    """
    readers = {".jsonl": _json_rows, ".parquet": _parquet_rows, ".txt": _paragraphs}
    if path.suffix not in readers:
        raise UserError(f"{path}: items are read from {', '.join(readers)}")
    try:
        items = list(readers[path.suffix](path))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8: {error.reason} at byte {error.start:,}") from None
    if not items:
        raise UserError(f"{path} holds no text")
    return items


def _paragraphs(path: Path) -> Iterator[Item]:
    found = (text for text in re.split(r"\n\s*\n", path.read_text(encoding="utf-8")) if text.strip())
    return (Item(f"paragraph {number}", TEXT, text) for number, text in enumerate(found))


def _json_rows(path: Path) -> Iterator[Item]:
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}: row {number} (line {number + 1}): not JSON: {error}") from None
            yield from _row_items(path, number, row)


def _parquet_rows(path: Path) -> Iterator[Item]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as content:
            for batch in content.iter_batches(1000):
                for row in batch.to_pylist():
                    yield from _row_items(path, number, row)
                    number += 1
    except pa.ArrowException as error:
        raise UserError(f"{path} is not a parquet file: {' '.join(str(error).split())}") from None


def _row_items(path: Path, number: int, row: Any) -> Iterator[Item]:
    if isinstance(row, dict) and {"ctx", "endings"} <= row.keys():
        yield from _hellaswag(path, number, row)
    elif text := "\n".join(_strings(row)):
        yield Item(f"row {number}", TEXT, text)


def _hellaswag(path: Path, number: int, row: dict[str, Any]) -> Iterator[Item]:
    context, endings = row["ctx"], row["endings"]
    try:
        # the test set has no labels
        ending = endings[int(row["label"])] if row.get("label") not in (None, "") else ""
        yield Item(f"row {number}", TEXT, f"{context} {ending}")
        yield Item(f"row {number}", CONTEXT, str(context))
    except (TypeError, ValueError, LookupError):
        raise UserError(f"{path}: row {number}: ctx, endings and label are not as in HellaSwag") from None


def _strings(value: Any) -> Iterable[str]:
    """All strings in a value of JSON, names of fields aside."""
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for one in inner for text in _strings(one)]
