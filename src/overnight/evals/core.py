"""CORE: DCLM's centred mean over 22 few-shot tasks (Li et al. 2024, arXiv:2406.11794), from its bundle's folder."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overnight.distributed import World
from overnight.errors import UserError
from overnight.evals.base import Result, Scorer, mean_and_error
from overnight.evals.core_bundle import CoreTask, Row, read_bundle, read_task
from overnight.evals.scoring import Answer, Question
from overnight.tokenizers import Tokenizer, prompt_ids

CORE = (  # "low_variance_datasets" in eval/additional_aggregation.json of github.com/mlfoundations/dclm
    *("hellaswag_zeroshot", "jeopardy", "bigbench_qa_wikidata", "arc_easy", "arc_challenge", "copa", "commonsense_qa"),
    *("piqa", "openbook_qa", "lambada_openai", "hellaswag", "winograd", "winogrande", "bigbench_dyck_languages"),
    *("agi_eval_lsat_ar", "bigbench_cs_algorithms", "bigbench_operators", "bigbench_repeat_copy_logic", "squad"),
    *("coqa", "boolq", "bigbench_language_identification"),
)
PROTOCOL = (
    "DCLM's tasks as nanochat asks them: few-shot, rows shuffled with seed 1337, examples drawn with seed 1234 + the "
    "row's number there; end-of-text first; the choice of the lowest mean token loss, or each token of the completion "
    "the likeliest; (accuracy - baseline) / (1 - baseline), mean over tasks"
)
NOTES = [
    "prompts longer than the model's context lose their oldest tokens",
    "not checked against a published CORE number; nanochat's source says that its scores match DCLM's reference but "
    "for squad, 31% where the reference has 37%",
]
SHUFFLE, DRAW = 1337, 1234
CHUNK = 1000  # rows whose prompts are in memory at a time


def open_core(file: Path | None, examples: int, say: Callable[[str], None]) -> Core:
    """The evaluation on the bundle's folder. UserError where there is none."""
    if file is None:
        raise UserError("core: name the folder of DCLM's evaluation bundle, with core=DIR")
    read_bundle(file)
    return Core(file, examples, say)


@dataclass
class Core:
    """The evaluation `core` on a bundle's folder, or on the first `examples` rows of each task after the shuffle (0:
    all)."""

    folder: Path
    examples: int = 0
    say: Callable[[str], None] = lambda line: None
    name: str = "core"

    def __call__(self, scorer: Scorer, tokenizer: Tokenizer, world: World) -> Result:
        tasks, notes = read_bundle(self.folder)
        centred: dict[str, tuple[float, float]] = {}
        metrics: dict[str, float] = {}
        rows: list[dict[str, Any]] = []
        for task in tasks:
            right = self._right(task, scorer, tokenizer)
            own = mean_and_error(task.label, [float(value) for value in right])
            scale = 1 - task.baseline
            centred[task.label] = (own[task.label] - task.baseline) / scale, own[f"{task.label}_stderr"] / scale
            metrics |= own | {f"{task.label}_centered": centred[task.label][0]}
            rows += [{"task": task.label, "row": number, "acc": float(value)} for number, value in enumerate(right)]
            self.say(f"{task.label}: {own[task.label]:.4f}, centred {centred[task.label][0]:.4f}")
        notes = [*notes, *NOTES]
        if self.examples:
            notes.append(f"at most {self.examples:,} rows of each task: not comparable with published numbers")
        if centred.keys() == set(CORE):
            values, errors = zip(*centred.values(), strict=True)
            error = math.sqrt(math.fsum(error**2 for error in errors)) / len(values)
            metrics = {"core": math.fsum(values) / len(values), "core_stderr": error} | metrics
        else:
            notes.insert(0, f"{len(centred.keys() & set(CORE))} of CORE's {len(CORE)} tasks: no CORE number")
        return Result(self.name, PROTOCOL, metrics, len(rows), notes, rows)

    def _right(self, task: CoreTask, scorer: Scorer, tokenizer: Tokenizer) -> list[bool]:
        """Whether the model is right on each row, in the shuffled order."""
        rows = read_task(task)
        random.Random(SHUFFLE).shuffle(rows)
        rows = rows[: self.examples or None]
        if len(rows) <= task.shots:
            raise UserError(f"{task.path} has {len(rows):,} rows, {task.label} needs {task.shots} examples beside each")
        found: list[bool] = []
        for start in range(0, len(rows), CHUNK):
            numbers = range(start, min(start + CHUNK, len(rows)))
            asked = [_questions(task, rows, number, tokenizer) for number in numbers]
            answers = iter(scorer([question for questions in asked for question in questions]))
            for number, questions in zip(numbers, asked, strict=True):
                found.append(_is_right(task, rows[number], [next(answers) for _ in questions]))
        return found


def prompts(task: CoreTask, rows: Sequence[Row], number: int) -> list[str]:
    """The texts of a row with its examples before it: one a choice, or without and with its completion."""
    drawn = random.Random(DRAW + number).sample([i for i in range(len(rows)) if i != number], task.shots)
    before = "".join(task.shown(rows[i]) + "\n\n" for i in drawn)
    return [before + text for text in task.asked(rows[number])]


def _questions(task: CoreTask, rows: Sequence[Row], number: int, tokenizer: Tokenizer) -> list[Question]:
    begin = prompt_ids(tokenizer, "")
    texts = prompts(task, rows, number)
    if task.kind == "language_modeling":
        texts[0] = texts[0].rstrip()  # white space goes to the completion's first token
    ids = [(*begin, *tokenizer.encode(text).tolist()) for text in texts]
    if task.kind == "language_modeling":  # only what is there with the completion is asked
        most = min(len(ids[0]), len(ids[1]) - 1)
        common = _common(ids, most)
        return [Question(ids[1][:common], (ids[1][common:],))]
    most = min(map(len, ids)) - 1  # of each choice at least a token is scored
    if task.kind == "schema":  # other contexts, the same ending
        common = _common([one[::-1] for one in ids], most)
        return [Question(one[: len(one) - common], (one[len(one) - common :],)) for one in ids]
    common = _common(ids, most)
    return [Question(ids[0][:common], tuple(one[common:] for one in ids))]


def _common(sequences: Sequence[tuple[int, ...]], most: int) -> int:
    """How many tokens all begin with, up to `most`."""
    return next((i for i in range(most) if len({one[i] for one in sequences}) > 1), most)


def _is_right(task: CoreTask, row: Row, answers: Sequence[Sequence[Answer]]) -> bool:
    every = [answer for own in answers for answer in own]
    if task.kind == "language_modeling":
        return every[0].greedy
    means = [answer.nats / answer.tokens for answer in every]
    return means.index(min(means)) == int(row["gold"])
