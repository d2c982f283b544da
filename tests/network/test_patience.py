"""Trying again over a network: not for longer than patience lasts."""

from __future__ import annotations

import threading
import time

import pytest

from overnight.network.patience import GaveUp, Patience


class Clock(threading.Event):
    """Time that passes only while somebody waits."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.pauses = 0.0, list[float]()

    def wait(self, timeout: float | None = None) -> bool:
        self.pauses.append(timeout or 0.0)
        self.now += self.pauses[-1]
        return False


@pytest.mark.parametrize("limit", [0.5, 15.0, 100.0, 300.0])
def test_the_last_try_is_when_patience_ends(monkeypatch: pytest.MonkeyPatch, limit: float) -> None:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    patience = Patience(limit, clock)
    with pytest.raises(GaveUp, match="refused"):
        while True:
            patience.wait("refused", 0.0, limit)
    assert clock.now == pytest.approx(limit)
    assert len(clock.pauses) >= 4 and max(clock.pauses) <= 60
    rising = clock.pauses[:-1]
    assert rising == sorted(rising)
