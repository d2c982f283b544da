"""What the processes of `overnight verify` wrote down."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from overnight.runs import read_json
from overnight.verify.plan import Case
from overnight.verify.reference import Reference
from overnight.verify.worker import result_file

Found = dict[str, float]  # differences by where they were found


class Results:
    """What the processes wrote down, and the runs that they left."""

    def __init__(self, folder: Path, reference: Reference, cases: Sequence[Case]) -> None:
        self.folder, self.reference, self.cases = folder, reference, cases
        self.by_rank: dict[str, list[dict[str, Any]]] = {
            case.name: [_read(result_file(folder, case, rank)) for rank in range(case.processes)] for case in cases
        }

    def each(self, *cases: Case) -> Iterator[tuple[Case, int, dict[str, Any]]]:
        """Every rank's notes of some cases."""
        for case in cases:
            for rank, notes in enumerate(self.by_rank[case.name]):
                yield case, rank, notes

    def errors(self, *cases: Case) -> Found:
        """Cases that did not come to their end."""
        found = {}
        for case in cases:
            told = [notes["error"] for notes in self.by_rank[case.name] if "error" in notes]
            if told:  # the first that failed has an error of its own, the others that they lost it
                found[f"{case}: {min(told, key=_is_consequence)}"] = math.inf
        return found

    def named(self, name: str) -> Case:
        return next(case for case in self.cases if case.name == name)

    def run(self, case: Case) -> Path:
        return self.folder / "runs" / case.name


def _read(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {"error": "it did not come to its end"}


def _is_consequence(error: str) -> bool:
    return "did not come" in error or "DistBackendError" in error or "gloo" in error or "Connection" in error
