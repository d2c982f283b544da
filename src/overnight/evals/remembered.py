"""Answers that were scored before, so that an evaluation that was interrupted goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from overnight.distributed import World
from overnight.errors import UserError
from overnight.evals.base import Scorer
from overnight.evals.scoring import Answer, Question
from overnight.runs import JsonLines, read_lines

PORTION = 512  # questions of a process that are scored between two looks at the clock and the disk


def remembering(
    scorer: Callable[..., list[list[Answer]]],
    path: Path | None,
    identity: dict[str, object],
    world: World,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Scorer:
    """`scorer` in portions, each written to `path` (None: nowhere), and not asked again for what stands there.

    `identity` says what the answers depend on beside the question: weights, precision. A file with another one is begun
    anew. `progress` gets how many questions are answered, and of how many; `scorer` is given a `progress` of its own,
    to which it tells the share of its questions.
    """
    known, log = _open(path, identity, world)

    def score(questions: list[Question]) -> list[list[Answer]]:
        keys = [_key(question) for question in questions]
        missing = [index for index, key in enumerate(keys) if key not in known]
        progress(len(questions) - len(missing), len(questions))
        size = PORTION * world.size  # with fewer some of many processes would have nothing to do
        for start in range(0, len(missing), size):
            portion = missing[start : start + size]
            before = len(questions) - len(missing) + start

            def within(share: float, before: int = before, count: int = len(portion)) -> None:
                progress(before + int(share * count), len(questions))

            found = scorer([questions[index] for index in portion], progress=within)
            for index, answers in zip(portion, found, strict=True):
                known[keys[index]] = answers
                if log is not None:
                    plain = [[answer.nats, answer.tokens, answer.greedy] for answer in answers]
                    log.append({"question": keys[index], "answers": plain})
            progress(before + len(portion), len(questions))
        return [known[key] for key in keys]

    return score


def _open(
    path: Path | None, identity: dict[str, object], world: World
) -> tuple[dict[str, list[Answer]], JsonLines | None]:
    """The answers that are there, on every rank, and on the first the file to go on with."""
    if path is None:
        return {}, None
    log, known = None, dict[str, list[Answer]]()
    if world.rank == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        log = JsonLines(path)
        log.drop_torn_line()
        lines = read_lines(path)
        if lines[:1] == [{"identity": identity}]:
            known = _known(path, lines[1:])
        else:
            log.cut(0)
            log.append({"identity": identity})
    return world.first(known), log


def _known(path: Path, lines: list[dict[str, Any]]) -> dict[str, list[Answer]]:
    try:
        return {
            line["question"]: [
                Answer(float(nats), int(tokens), bool(greedy)) for nats, tokens, greedy in line["answers"]
            ]
            for line in lines
        }
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path} is not what an evaluation writes; move it away") from None


def _key(question: Question) -> str:
    content = json.dumps([question.context, question.endings])
    return hashlib.sha256(content.encode()).hexdigest()[:32]
