"""How parts become tasks, how it is seen that a task died, and which options are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from corpora import ListSource, texts
from hypothesis import given
from hypothesis import strategies as st

from overnight.data.engines import executors, submission
from overnight.data.engines.submission import Pulse, Submission, grouped
from overnight.data.prepare import PrepareOptions, prepare
from overnight.data.sources import Part, Span
from overnight.errors import UserError


def test_a_task_that_gives_no_sign_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "running").mkdir()
    pulse, clock = Pulse(Submission(tmp_path)), [0.0]
    monkeypatch.setattr(submission.time, "monotonic", lambda: clock[0])
    sign = tmp_path / "running" / "00003"
    assert not pulse.lost()
    for beat in range(3):
        sign.write_text(f"another.host 17 {beat}")
        assert not pulse.lost()
        clock[0] += Pulse.STALE + 1 if beat == 2 else Pulse.STALE - 1
    assert pulse.lost()
    sign.unlink()
    assert not pulse.lost()


files = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1000)), min_size=1, max_size=40)


@given(files, st.none() | st.integers(1, 50), st.integers(1, 8))
def test_tasks_take_the_parts_in_order(found: list[tuple[int, int]], tasks: int | None, workers: int) -> None:
    parts = [(number, Part((Span(str(file), 0, size, size),))) for number, (file, size) in enumerate(sorted(found))]
    groups = grouped(parts, tasks, workers)
    assert [numbered for group in groups for numbered in group] == parts
    assert all(groups) and len(groups) <= (tasks or len(parts))
    held = [{part.spans[0].file for _, part in group} for group in groups]
    if tasks is None and len({file for file, _ in found}) >= workers:  # a file is one machine's
        assert sum(map(len, held)) == len(set().union(*held)) == len(groups)


def test_tasks_are_about_equal() -> None:
    parts = [(number, Part((Span(str(number), 0, 10, 10),))) for number in range(100)]
    assert {len(group) for group in grouped(parts, 10, 1)} == {10}


@pytest.mark.parametrize(
    ("executor", "options", "message"),
    [
        ("slrum", {}, r"there is no executor 'slrum' \(did you mean slurm\?\)"),
        ("slurm", {"partition": "cpu"}, "--executor slurm needs time: --executor-options time=10:00:00"),
        ("slurm", {"partitoin": "cpu"}, r"no option 'partitoin' \(did you mean partition\?\); .*sbatch.NAME"),
        ("local", {"sbatch.account": "me"}, "--executor local has no option 'sbatch.account'"),
        ("ray", {"cpus_per_task": "two"}, "cpus_per_task=two: it must be a whole number above 0"),
        ("ray", {"mem_per_cpu_gb": "nan"}, "mem_per_cpu_gb=nan: it must be a number above 0"),
        ("local", {"tasks": "0"}, "tasks=0: it must be a whole number above 0"),
    ],
)
def test_options_that_are_refused(executor: str, options: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        executors.parse(executor, options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"engine": "datatrov"},
            r"^there is no engine 'datatrov' \(did you mean datatrove\?\); there are local, datatrove$",
        ),
        ({"executor": "slurm"}, "are for --engine datatrove; add it"),
        ({"executor_options": {"tasks": "2"}}, "are for --engine datatrove; add it"),
        ({"engine": "datatrove"}, r"^datatrove is not installed: pip install 'overnight\[datatrove\]'$"),
        ({"engine": "datatrove", "executor": "ray"}, r"^datatrove is not installed"),
    ],
)
def test_engines_that_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=message):
        prepare(ListSource(texts(40)), tmp_path / "out", PrepareOptions(**options))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", ["tasks", "=4"])
def test_options_are_pairs(words: str) -> None:
    with pytest.raises(UserError, match=f"--executor-options {words}: write it as KEY=VALUE"):
        executors.split_options((words,))
