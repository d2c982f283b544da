"""The world that a launcher describes in the environment."""

from __future__ import annotations

import pytest

from overnight.distributed import World, current_world
from overnight.errors import UserError


def test_without_a_launcher_it_is_a_world_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert current_world() == World(0, 1)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert current_world() == World(0, 1)


@pytest.mark.parametrize(
    ("value", "message"), [("8", "started as 8 processes"), ("two", "'two', not a number"), ("", "''")]
)
def test_another_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch, value: str, message: str) -> None:
    monkeypatch.setenv("WORLD_SIZE", value)
    with pytest.raises(UserError, match=message) as error:
        current_world()
    assert "WORLD_SIZE" in str(error.value)
