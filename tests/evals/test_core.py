"""CORE against a plain computation, one row at a time, from logits."""

from __future__ import annotations

import json
import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from gpts import random_gpt
from torch import Tensor

from overnight.config import ModelConfig
from overnight.distributed import World
from overnight.errors import UserError
from overnight.evals.core import CORE, open_core
from overnight.evals.scoring import score
from overnight.model import GPT
from overnight.tokenizers import Tokenizer
from overnight.tokenizers.gpt2 import GPT2Tokenizer
from overnight.tokenizers.simple import BytesTokenizer

WINDOW = 256
CHOICE = [
    {"query": f"What is {n} and {n}?", "choices": [str(2 * n), "many", f"{n} apples"], "gold": n % 3} for n in range(9)
]
SCHEMA = [
    {
        "context_options": [f"Ann met {n} men as Sue", f"Ann met {n} men as Ann's"],
        "continuation": "left.",
        "gold": n % 2,
    }
    for n in range(8)
]
WRITING = [{"context": f"The number after {n} is ", "continuation": str(n + 1)} for n in range(7)]
KINDS: dict[str, tuple[str, list[dict[str, Any]], int, str | None]] = {
    "choices.jsonl": ("multiple_choice", CHOICE, 2, "\nAnswer: "),
    "schemas.jsonl": ("schema", SCHEMA, 1, None),
    "writing.jsonl": ("language_modeling", WRITING, 3, "\nAnswer: "),
    "guessed.jsonl": ("language_modeling", WRITING, 0, ":"),
}


def gpt(vocab_size: int) -> GPT:
    """Of large weights, so that it has opinions."""
    small = random_gpt(vocab_size=vocab_size)
    model = GPT(ModelConfig(n_layer=2, n_head=4, n_embd=32, vocab_size=vocab_size), WINDOW).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for (name, parameter), like in zip(model.named_parameters(), small.parameters(), strict=True):
            if name == "wpe.weight":
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
            else:
                parameter.copy_(like * 8 if parameter.dim() > 1 else like)
    return model


@pytest.fixture(scope="module", params=[BytesTokenizer, GPT2Tokenizer], ids=["bytes", "gpt2"])
def subject(request: pytest.FixtureRequest) -> tuple[GPT, Tokenizer]:
    tokenizer = request.param()
    return gpt(tokenizer.vocab_size), tokenizer


def bundle(home: Path, files: dict[str, list[dict[str, Any]]], labels: tuple[str, ...] = CORE) -> Path:
    """A bundle whose tasks take turns with the files."""
    (home / "eval_data" / "some").mkdir(parents=True)
    for name, rows in files.items():
        lines = "\n".join(json.dumps(row) for row in rows) + "\n\n"
        (home / "eval_data" / "some" / name).write_text(lines, encoding="utf-8")
    tasks = []
    for number, label in enumerate(labels):
        name = sorted(files)[number % len(files)]
        kind, _, shots, delimiter = KINDS[name]
        task = {"label": label, "dataset_uri": f"some/{name}", "num_fewshot": [shots], "icl_task_type": kind}
        tasks.append(task | ({} if delimiter is None else {"continuation_delimiter": delimiter}))
    (home / "core.yaml").write_text(yaml.safe_dump({"icl_tasks": tasks}))
    lines = [f"{label},x,{number}" for number, label in enumerate(labels)]
    (home / "eval_meta_data.csv").write_text("\n".join(["Eval Task,Task Category,Random baseline", *lines]) + "\n")
    return home


def evaluate(folder: Path, model: GPT, tokenizer: Tokenizer, examples: int = 0) -> Any:
    scorer = partial(score, model, device=torch.device("cpu"), precision="fp32")
    return open_core(folder, examples, print)(scorer, tokenizer, World())


def plain(name: str, rows: list[dict[str, Any]], model: GPT, tokenizer: Tokenizer) -> list[bool]:
    """Right or wrong, for each row after the shuffle."""
    kind, _, shots, delimiter = KINDS[name]
    delimiter = " " if delimiter is None else delimiter
    rows = list(rows)
    random.Random(1337).shuffle(rows)

    def log_probabilities(text: str) -> tuple[list[int], Tensor]:
        ids = [tokenizer.end_of_text, *tokenizer.encode(text).tolist()]
        assert len(ids) <= WINDOW
        return ids, model(torch.tensor([ids]))[0].log_softmax(-1)

    found = []
    for number, row in enumerate(rows):
        others = random.Random(1234 + number).sample(rows[:number] + rows[number + 1 :], shots)
        if kind == "language_modeling":
            before = "".join(f"{o['context'].strip()}{delimiter}{o['continuation']}\n\n" for o in others)
            text = before + row["context"].strip() + delimiter
            start = 1 + len(tokenizer.encode(text.strip()))
            ids, found_there = log_probabilities(text + row["continuation"])
            found.append(found_there[start - 1 : -1].argmax(-1).tolist() == ids[start:])
            continue
        if kind == "schema":
            before = "".join(f"{o['context_options'][o['gold']]}{delimiter}{o['continuation']}\n\n" for o in others)
            texts = [f"{before}{option}{delimiter}{row['continuation']}" for option in row["context_options"]]
        else:
            before = "".join(f"{o['query']}{delimiter}{o['choices'][o['gold']]}\n\n" for o in others)
            texts = [f"{before}{row['query']}{delimiter}{choice}" for choice in row["choices"]]
        every = [log_probabilities(text) for text in texts]
        step = -1 if kind == "schema" else 1
        same = 0
        while len({tuple(ids[::step][: same + 1]) for ids, _ in every}) == 1:
            same += 1
        means = []
        for ids, there in every:
            start = len(ids) - same if kind == "schema" else same
            means.append(-sum(float(there[at - 1, ids[at]]) for at in range(start, len(ids))) / (len(ids) - start))
        found.append(means.index(min(means)) == row["gold"])
    return found


def guessed(model: GPT, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Rows, some of which the model completes as they are."""
    rows = []
    for n in range(40):
        ids = [tokenizer.end_of_text, *tokenizer.encode(f"Row {n}:").tolist()]
        likeliest = tokenizer.decode([int(model(torch.tensor([ids]))[0, -1].argmax())])
        usual = likeliest.isascii() and likeliest.strip() == likeliest and likeliest
        rows.append({"context": f"Row {n}", "continuation": likeliest if usual and n % 2 else "z"})
    return rows


@torch.no_grad()
def test_core_is_that_of_a_plain_loop(subject: tuple[GPT, Tokenizer], tmp_path: Path) -> None:
    files = {name: rows for name, (_, rows, _, _) in KINDS.items()} | {"guessed.jsonl": guessed(*subject)}
    result = evaluate(bundle(tmp_path / "bundle", files), *subject)
    right = {name: plain(name, rows, *subject) for name, rows in files.items()}
    assert 0 < sum(right["guessed.jsonl"]) < 40 and 0 < sum(right["choices.jsonl"]) < 9
    centred = []
    for number, label in enumerate(CORE):
        name = sorted(files)[number % len(files)]
        accuracy, baseline = sum(right[name]) / len(right[name]), number / 100
        centred.append((accuracy - baseline) / (1 - baseline))
        assert [row["acc"] for row in result.rows if row["task"] == label] == [float(hit) for hit in right[name]]
        assert result.metrics[label] == pytest.approx(accuracy)
        assert result.metrics[f"{label}_centered"] == pytest.approx(centred[-1])
    assert next(iter(result.metrics)) == "core"
    assert result.metrics["core"] == pytest.approx(sum(centred) / 22)
    assert 0 < result.metrics["core_stderr"] < 0.1
    assert len(CORE) == 22 and not any("no CORE number" in note for note in result.notes)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return bundle(tmp_path / "bundle", {"choices.jsonl": CHOICE, "schemas.jsonl": SCHEMA}, CORE[:2])


def test_a_part_of_the_bundle_has_no_core_number(small: Path) -> None:
    model, tokenizer = gpt(257), BytesTokenizer()
    whole = evaluate(small, model, tokenizer)
    assert "core" not in whole.metrics and whole.notes[0] == "2 of CORE's 22 tasks: no CORE number"
    (small / "eval_data" / "some" / "schemas.jsonl").unlink()
    part = evaluate(small, model, tokenizer, examples=5)
    assert part.notes[0] == "1 of CORE's 22 tasks: no CORE number"
    assert part.notes[1].startswith(f"{CORE[1]} is left out: there is no ")
    assert part.examples == 5 and "at most 5 rows" in part.notes[-1]
    (small / "eval_data" / "some" / "choices.jsonl").unlink()
    with pytest.raises(UserError, match="none of the files"):
        open_core(small, 0, print)


def test_what_is_no_bundle_is_refused_in_one_line(small: Path, tmp_path: Path) -> None:
    model, tokenizer = gpt(257), BytesTokenizer()

    def refused(text: str, examples: int = 0) -> None:
        with pytest.raises(UserError, match=text):
            evaluate(small, model, tokenizer, examples)

    with pytest.raises(UserError, match="core=DIR"):
        open_core(None, 0, print)
    with pytest.raises(UserError, match=r"there is no .*core\.yaml"):
        open_core(tmp_path / "nowhere", 0, print)
    refused(f"has 2 rows, {CORE[0]} needs 2 examples", examples=2)
    rows = small / "eval_data" / "some" / "choices.jsonl"
    for wrong in ('{"query": "?", "choices": ["a"], "gold": 1}', "[]", "{", '{"query": "?", "choices": [], "gold": 0}'):
        rows.write_text(json.dumps(CHOICE[0]) + "\n" + wrong + "\n")
        refused("line 2: no")
    table, listed = small / "eval_meta_data.csv", (small / "core.yaml").read_text()
    table.write_text("Eval Task,Random baseline\ncopa,50\n")
    refused(f"no random baseline for {CORE[0]}")
    table.write_text("a,b\n1,2\n")
    refused("needs the columns")
    table.unlink()
    refused("without its random baselines")
    (small / "core.yaml").write_text(listed.replace("multiple_choice", "essay"))
    table.write_text("Eval Task,Random baseline\n")
    refused("of the kind essay")
    (small / "core.yaml").write_text("icl_tasks: [{label: x}]")
    refused("a task needs label")
    (small / "core.yaml").write_text("{]")
    refused("does not list tasks")
