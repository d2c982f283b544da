"""Looking at runs again and again: what they are doing, and only what is new read."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_runs import CONFIG, MakeRun, attempt_line, eval_line, train_line, write_lines

from overnight.report.run_data import RunData, RunReader, read_run
from overnight.runs import RunFolder
from overnight.watch.watcher import MOST_RUNS, Watcher


def name(folder: Path) -> str:
    (seen,) = Watcher([folder]).look().runs
    return seen.state.name


def at(line: dict[str, Any], moment: datetime) -> dict[str, Any]:
    return {**line, "time": {**line["time"], "now": moment.isoformat(timespec="seconds")}}


@pytest.fixture
def held() -> Iterator[Any]:
    """Holds the locks of run folders, as the processes that train them do."""
    with ExitStack() as stack:
        yield lambda folder: stack.enter_context(RunFolder(folder).lock())


# ---- what a run is doing


def test_a_run_from_before_its_start_to_after_its_end(make_run: MakeRun, tmp_path: Path) -> None:
    folder = tmp_path / "coming"
    assert name(folder) == "waiting"
    folder.mkdir()
    (folder / "log.txt").write_text("starting\n")
    assert name(folder) == "waiting"
    (folder / "config.json").write_text(json.dumps(CONFIG))
    now = datetime.now(UTC)
    with RunFolder(folder).lock():
        assert name(folder) == "starting"
        write_lines(folder / "attempts.jsonl", [at(attempt_line(1, 0), now)])
        write_lines(folder / "metrics.jsonl", [at(train_line(10, 3.0), now)])
        (seen,) = Watcher([folder]).look().runs
        assert seen.state.name == "training" and socket.gethostname() in seen.state.text and seen.state.live
        RunFolder(folder).request_stop()
        assert name(folder) == "stopping"
        RunFolder(folder).clear_stop()
    assert name(folder) == "stopped"
    write_lines(folder / "metrics.jsonl", [train_line(200, 3.0)])
    assert name(folder) == "finished"


def test_the_time_left_is_that_of_the_last_line(make_run: MakeRun, held: Any) -> None:
    now = datetime.now(UTC)
    line = at(train_line(10, 3.0), now)
    line["time"]["left"] = 90.0
    folder = make_run(metrics=[line])
    held(folder)
    (seen,) = Watcher([folder]).look().runs
    assert seen.state.done == pytest.approx(now.timestamp() + 90, abs=1)
    assert seen.state.heard == pytest.approx(now.timestamp(), abs=1)


def test_a_run_that_went_on_is_starting_until_it_writes(make_run: MakeRun, held: Any) -> None:
    folder = make_run(
        metrics=[train_line(10, 3.0)], attempts=[attempt_line(1, 0), at(attempt_line(2, 10), datetime.now(UTC))]
    )
    held(folder)
    assert name(folder) == "starting"


def test_a_killed_process_leaves_its_name_in_the_lock(make_run: MakeRun) -> None:
    folder = make_run(metrics=[at(train_line(10, 3.0), datetime.now(UTC))])
    (folder / "lock").write_text(json.dumps({"host": socket.gethostname(), "pid": 1}))
    assert name(folder) == "killed"
    write_lines(folder / "metrics.jsonl", [train_line(200, 3.0)])
    assert name(folder) == "finished"


def test_a_copied_folder_is_told_by_when_it_wrote_last(make_run: MakeRun) -> None:
    fresh, old = at(train_line(10, 3.0), datetime.now(UTC)), train_line(10, 3.0)
    for line, lock, expected in (
        (fresh, True, "training"),
        (old, True, "silent"),
        (fresh, False, "training"),
        (old, False, "silent"),
    ):
        folder = make_run(f"{expected}{lock}", metrics=[line], attempts=[])
        if lock:
            (folder / "lock").write_text('{"host": "far.away", "pid": 1}')
        assert name(folder) == expected, (lock, expected)


# ---- which runs


def test_a_folder_of_runs_shows_those_that_come(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("runs/b")
    (tmp_path / "runs" / "notes").mkdir()
    watcher = Watcher([tmp_path / "later", tmp_path / "runs"])
    look = watcher.look()
    assert [seen.path.name for seen in look.runs] == ["b", "later"]
    assert watcher.look().tag == look.tag
    make_run("runs/a")
    make_run("later")
    newer = watcher.look()
    assert [seen.path.name for seen in newer.runs] == ["b", "later", "a"]  # each keeps its place, and its color
    assert newer.tag != look.tag
    shutil.rmtree(tmp_path / "runs" / "b")
    assert [seen.path.name for seen in watcher.look().runs] == ["later", "a"]


def test_of_many_runs_the_latest(tmp_path: Path) -> None:
    for number in range(MOST_RUNS + 3):
        (tmp_path / f"run{number:02}").mkdir()
        (tmp_path / f"run{number:02}" / "config.json").write_text(json.dumps(CONFIG))
    look = Watcher([tmp_path]).look()
    assert (len(look.runs), look.left_out) == (MOST_RUNS, 3)


def test_what_is_not_a_run_is_said(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}')
    (seen,) = Watcher([tmp_path]).look().runs
    assert seen.run is None and "is not the configuration of a run" in seen.state.text


def test_a_log_of_another_program_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text("0 val 10.9\n0 train 10.8\n")
    watcher = Watcher([path])
    (seen,) = watcher.look().runs
    assert seen.run is not None and "train.loss" in seen.run.series
    path.write_text(path.read_text() + "1 train 9.5\n")
    (seen,) = watcher.look().runs
    assert seen.run is not None and len(seen.run.series["train.loss"].step) == 2


# ---- only what is new


def content(run: RunData) -> str:
    """Everything that is known of a run, as text that can be compared."""
    return json.dumps(
        asdict(run), default=lambda value: np.asarray(value).tolist() if isinstance(value, np.ndarray) else str(value)
    )


LINES = [line for step in range(1, 9) for line in (train_line(step, 3.0 / step), eval_line(step, 2.0))]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, len(LINES)), st.booleans()), min_size=1, max_size=6))
def test_reading_on_gives_what_reading_anew_gives(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[tuple[int, bool]]
) -> None:
    """The file grows, or is cut back by a run that goes on; after each, an unfinished line may stand at its end."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    reader, attempts, before = RunReader(folder), [attempt_line(1, 0)], 0
    for length, torn in lengths:
        if length < before:
            attempts.append(attempt_line(len(attempts) + 1, length // 2))
        before = length
        write_lines(folder / "attempts.jsonl", attempts)
        write_lines(folder / "metrics.jsonl", LINES[:length])
        if torn:
            with (folder / "metrics.jsonl").open("a") as file:
                file.write('{"kind": "train", "st')
        write_lines(folder / "samples.jsonl", [{"step": n, "texts": ["x"]} for n in range(length // 4)])
        assert content(reader.read()) == content(read_run(folder))


def test_what_was_read_is_not_read_again(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run()
    watcher = Watcher([folder])
    watcher.look()
    read: list[object] = []
    real = json.loads
    monkeypatch.setattr("overnight.following.json.loads", lambda text: read.append(text) or real(text))
    watcher.look()
    assert read == []
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(train_line(210, 1.0)) + "\n")
    (seen,) = watcher.look().runs
    assert [text for text in read if '"kind"' in str(text)] == [json.dumps(train_line(210, 1.0)) + "\n"]
    assert seen.run is not None and seen.run.series["train.loss"].step[-1] == 210
