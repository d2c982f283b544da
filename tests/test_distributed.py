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


def test_a_world_of_one_talks_to_itself() -> None:
    world = World()
    assert world.gather({"a": 1}) == [{"a": 1}]
    assert world.interleaved(world.mine([1, 2, 3])) == [1, 2, 3]
    assert world.total(2.5) == 2.5
    assert world.first("x") == "x"
    assert world.any(True)
    assert not world.any(False)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("count", [0, 1, 5, 6])
def test_work_that_was_divided_comes_back_in_order(monkeypatch: pytest.MonkeyPatch, size: int, count: int) -> None:
    parts = [list(World(rank, size).mine(range(count))) for rank in range(size)]
    monkeypatch.setattr(World, "gather", lambda self, value: parts)
    assert World(0, size).interleaved(parts[0]) == list(range(count))
