"""Evaluations by name, and answers that are not asked for twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from overnight.distributed import World
from overnight.errors import UserError
from overnight.evals import registry
from overnight.evals.registry import Asked
from overnight.evals.remembered import PORTION, remembering
from overnight.evals.scoring import Answer, Question


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.EVALS, "toy", lambda file, examples, say: (file, examples))


def test_a_list_says_which_with_which_files_and_how_often(made: None) -> None:
    assert registry.parse("") == []
    assert registry.parse("loss, toy=a@b/rows@2.jsonl@1000") == [
        Asked("loss"),
        Asked("toy", Path("a@b/rows@2.jsonl"), 1000),
    ]
    assert registry.parse("toy@5") == [Asked("toy", None, 5)]
    assert registry.make(Asked("toy", Path("x")), 3, print, trusted=False) == (Path("x"), 3)
    with pytest.raises(UserError, match=r"no evaluation 'tyo' \(did you mean toy"):
        registry.parse("tyo")
    with pytest.raises(UserError, match="twice"):
        registry.parse("toy,toy=x")


def test_an_import_path_needs_trust_where_a_folder_names_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "my_evals.py").write_text("def make(file, examples, say):\n    return examples\n")
    monkeypatch.syspath_prepend(tmp_path)
    (asked,) = registry.parse("my_evals:make")
    with pytest.raises(UserError, match="OVERNIGHT_TRUST"):
        registry.make(asked, 7, print, trusted=False)
    assert registry.make(asked, 7, print, trusted=True) == 7
    monkeypatch.setenv("OVERNIGHT_TRUST", "my_evals:make")
    assert registry.make(asked, 7, print, trusted=False) == 7
    with pytest.raises(UserError, match="cannot import"):
        registry.make(Asked("no_such_module:make"), 0, print, trusted=True)


class Counting:
    """A scorer that remembers what it was asked, and is interrupted when told."""

    def __init__(self, stop_after: int = 10**9) -> None:
        self.asked: list[Question] = []
        self.left = stop_after

    def __call__(
        self, questions: list[Question], progress: Callable[[float], None] = lambda share: None
    ) -> list[list[Answer]]:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        self.asked += questions
        progress(0.5)
        return [[Answer(sum(end) / 3, len(end), True) for end in question.endings] for question in questions]


QUESTIONS = [Question((number, 1), ((2, number), (3,))) for number in range(3 * PORTION + 5)]


def test_an_interrupted_evaluation_goes_on(tmp_path: Path) -> None:
    path, identity = tmp_path / "deep" / "answers.jsonl", {"weights": "a"}
    wanted = Counting()(QUESTIONS)
    first, seen = Counting(stop_after=2), []
    with pytest.raises(KeyboardInterrupt):
        remembering(first, path, identity, World())(QUESTIONS)
    with path.open("ab") as file:
        file.write(b'{"question": "torn')
    second = Counting()
    progress = lambda done, total: seen.append((done, total))  # noqa: E731
    assert remembering(second, path, identity, World(), progress)(QUESTIONS) == wanted
    assert second.asked == QUESTIONS[2 * PORTION :]
    done = [2 * PORTION, 2 * PORTION + PORTION // 2, 3 * PORTION, 3 * PORTION + 2, 3 * PORTION + 5]
    assert seen == [(count, len(QUESTIONS)) for count in done]
    third = Counting()
    assert remembering(third, path, identity, World())(QUESTIONS[::-1]) == wanted[::-1]
    assert third.asked == []


def test_answers_of_other_weights_are_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    remembering(Counting(), path, {"weights": "a"}, World())(QUESTIONS[:3])
    other = Counting()
    remembering(other, path, {"weights": "b"}, World())(QUESTIONS[:3])
    assert other.asked == QUESTIONS[:3]
    assert json.loads(path.read_text().splitlines()[0]) == {"identity": {"weights": "b"}}
    assert len(path.read_text().splitlines()) == 4
