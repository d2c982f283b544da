"""Runs in the terminal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_runs import MakeRun

from overnight.cli.watch import main
from overnight.watch.terminal import bars


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
