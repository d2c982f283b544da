"""Runs in the terminal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_runs import MakeRun
from rich.console import Console

from overnight.cli.watch import main
from overnight.watch.terminal import bars, screen
from overnight.watch.watcher import Watcher


def test_bars_rise_with_the_values() -> None:
    assert bars(np.arange(8.0), 8) == ["▁▂▃▄▅▆▇█"]
    assert bars(np.arange(8.0), 4) == ["▁▃▆█"]
    assert bars(np.array([0.0, np.nan, 1.0]), 9, 2) == ["  █", "▁ █"]
    assert bars(np.full(3, 2.0), 3) == ["▄▄▄"]
    assert bars(np.empty(0), 5, 2) == ["", ""]
    assert bars(np.array([np.inf, 1.0, 2.0]), 3) == [" ▁█"]


def test_without_a_terminal_it_is_printed_once(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run("first", samples=[{"step": 100, "texts": ["Once \x1b[2J upon"]}])
    (folder / "log.txt").write_text("one\ntwo\x1b]0;evil\x07\n")
    assert main([str(folder), "--terminal"]) == 0
    out = capsys.readouterr().out
    for words in ("first", "finished", "200 of 200", "2.1549", "Once", "two", "█"):
        assert words in out, words
    assert "\x1b" not in out
    assert main([str(folder), str(make_run("second")), str(tmp_path / "third"), "--terminal"]) == 0
    out = capsys.readouterr().out
    assert "second" in out and "the folder does not" in out and "Once" not in out


@pytest.mark.parametrize("width", [40, 60, 80, 100, 160])
def test_the_table_fits_the_terminal(make_run: MakeRun, tmp_path: Path, width: int) -> None:
    make_run("runs/first")
    make_run("runs/one with a long name that says all that its maker thought of")
    console = Console(width=width, record=True, file=(tmp_path / "out").open("w"))
    console.print(screen(Watcher([tmp_path / "runs"]).look(), console))
    lines = console.export_text().splitlines()
    assert len(lines) == 3  # nothing is wrapped
    assert all(len(line) <= width for line in lines)
    assert all("finished" in line and "200 of 200" in line for line in lines[1:])
    assert ("2.1549" in lines[1]) == (width > 40)
    assert ("█" in lines[1]) == (width == 160)


def test_of_a_folder_of_runs_what_is_none_is_said(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run("runs/first")
    (tmp_path / "runs" / "locked").mkdir()
    (tmp_path / "runs" / "locked" / "lock").write_text("{}")
    assert main([str(tmp_path / "runs"), "--terminal"]) == 0
    said, *table = capsys.readouterr().out.splitlines()
    assert said == f"{tmp_path / 'runs' / 'locked'}: no run in it yet, left out until there is"
    assert "first" in table[1]
