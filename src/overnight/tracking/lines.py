"""Lines of a run folder as trackers take them: flat names with numbers."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

PLACE = {"kind", "step", "time"}  # where a line stands, not what it measures


def numbers(line: dict[str, Any]) -> dict[str, float]:
    """The numbers of a metrics line: train/loss, val/loss, hellaswag/acc; of the times only the speed."""
    kind = str(line.get("kind"))
    found: dict[str, float] = {}
    if kind == "task":  # one evaluation with a name
        kind, line = str(line.get("task")), {**_dict(line.get("metrics")), "tokens": line.get("tokens")}
    for name, value in line.items():
        if name not in PLACE:
            found |= _flat(name, value, kind)
    speed = _dict(line.get("time")).get("tokens_per_second")
    return found | dict(_flat("tokens_per_second", speed, kind))


def moment(line: dict[str, Any]) -> float | None:
    """When a line was written, in seconds since 1970."""
    try:
        return datetime.fromisoformat(_dict(line.get("time"))["now"]).timestamp()
    except (KeyError, TypeError, ValueError):
        return None


def text(line: dict[str, Any]) -> str:
    """The texts of a samples line."""
    texts = line.get("texts")
    return "\n\n".join(str(one) for one in texts) if isinstance(texts, list) else ""


def _flat(name: str, value: Any, group: str) -> dict[str, float]:
    """A value under its name in a group; nested ones with each their own."""
    if isinstance(value, dict):
        pairs: Iterator[tuple[str, Any]] = ((f"{name}/{inner}", one) for inner, one in value.items())
        return {key: number for path, one in pairs for key, number in _flat(path, one, "").items()}
    if isinstance(value, bool) or not isinstance(value, int | float):
        return {}
    if name == "tokens":
        return {name: value}
    if group == "eval" and name.startswith("val_"):
        return {"val/" + name.removeprefix("val_"): value}
    return {f"{group}/{name}" if group else name: value}


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
