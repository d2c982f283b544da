"""What a command says of how far it is."""

from __future__ import annotations

import io

import pytest

from overnight import console as module
from overnight.console import PACE, Console, Stages


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_a_terminal_has_a_live_line_that_goes_away(clock: list[float]) -> None:
    stream = Terminal()
    with Console(stream=stream) as console:
        stages = Stages(console)
        stages("reading")
        stages("loss", 0.5)
        clock[0] += 10
        stages("loss", 0.75)
        console.clear()
        stream.write("result\n")
        stages("writing")
    lines = stream.getvalue().split("\r\x1b[2K")
    assert lines == ["reading", "loss 50%", "loss 75%, 10s left", "result\nwriting", ""]


def test_a_pipe_has_a_line_every_half_minute_at_most(clock: list[float]) -> None:
    stream = io.StringIO()
    with Console(stream=stream) as console:
        stages = Stages(console)
        for second in range(1, 201):
            clock[0] += 1
            stages("loss", second / 200)
    assert PACE == 30
    lines = stream.getvalue().splitlines()
    assert len(lines) == 6
    assert (lines[0], lines[-1]) == ("loss 15%, 2m 50s left", "loss 90%, 20s left")
