"""Times and foreign text as people read them."""

from __future__ import annotations

import pytest

from overnight.words import duration, one_line, printable


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.04, "0.0s"), (9.94, "9.9s"), (43, "43s"), (725, "12m 05s"), (3599.9, "59m 59s"), (3600, "1h 00m"),
        (27_660, "7h 41m"), (47.9 * 3600, "47h 54m"), (48 * 3600, "2d 0h"), (7767 * 3600, "323d 15h"),
        (float("nan"), "–"), (float("inf"), "–"),
    ],
)  # fmt: skip
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_foreign_text_moves_no_cursor() -> None:
    assert printable("a\x1b[2Jb\nc\u202e") == "a\ufffd[2Jb\ufffdc\ufffd"
    assert one_line("  a\n\n b\x1b ") == "a b\ufffd"
    assert one_line("word " * 100, 7) == "word wo"
