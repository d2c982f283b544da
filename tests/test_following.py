"""A JSON lines file that another process writes."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from overnight.following import Growing


def line(number: int) -> bytes:
    return json.dumps({"n": number, "text": "ä"}, ensure_ascii=False).encode() + b"\n"


def numbers(growing: Growing) -> list[int]:
    return [value["n"] for value in growing.unread()]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["write", "tear", "cut", "read"]), st.integers(1, 90)), max_size=25))
def test_whatever_happens_to_the_file_the_reader_ends_with_its_content(moves: list[tuple[str, int]]) -> None:
    """Pieces of lines of any size, cuts to any earlier line, and readings in between, in any order."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.jsonl"
        path.write_bytes(b"")
        growing, seen, made, coming = Growing(path), [], 0, b""
        for what, amount in [*moves, ("read", 1)]:
            content = path.read_bytes()
            if what == "write":
                coming += line(made)
                made += 1
                path.write_bytes(content + coming)
                coming = b""
            elif what == "tear":
                coming = coming or line(made)
                made += coming == line(made)
                path.write_bytes(content + coming[:amount])
                coming = coming[amount:]
            elif what == "cut":  # to whole lines, as a run that goes on does
                lines = content.splitlines(keepends=True)
                whole = [one for one in lines if one.endswith(b"\n")]
                path.write_bytes(b"".join(whole[: amount % (len(whole) + 1)]))
                coming = b""
            else:
                if growing.rewound():
                    growing.start_over()
                    seen = []
                seen += numbers(growing)
        whole = path.read_bytes()
        expected = [json.loads(one)["n"] for one in whole[: whole.rfind(b"\n") + 1].split(b"\n") if one]
        assert seen == expected
        assert growing.broken == 0


def test_broken_lines_are_counted_and_told(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    growing = Growing(path)
    assert numbers(growing) == [] and growing.problems() == []
    path.write_bytes(line(0) + b"{half\n" + line(1))
    assert numbers(growing) == [0, 1]
    with path.open("ab") as file:
        file.write(b"[1]\n\n" + line(2))
    assert numbers(growing) == [2]
    assert growing.problems() == ["metrics.jsonl: 2 lines are not JSON objects and left out, the first is line 2."]


def test_a_file_that_grew_past_the_cut_is_seen_through(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line(0) + line(1))
    growing = Growing(path)
    assert numbers(growing) == [0, 1]
    path.write_bytes(line(0) + line(5) + line(6) + line(7))
    assert growing.rewound()
    path.unlink()
    assert growing.rewound()
