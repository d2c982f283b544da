"""The disk that a prepare takes at its peak is known before it starts."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from corpora import ListSource, texts, write_parquet

from overnight.data import prepare as module
from overnight.data.cleaning import Cleaning
from overnight.data.disk import PARTS, estimate, taken
from overnight.data.prepare import PrepareOptions, prepare
from overnight.data.sources import Bad, Document, Part, open_source
from overnight.tokenizers.gpt2 import GPT2Tokenizer


def written(path: Path, documents: list[str], **more: Any) -> Path:
    path.write_text("".join(json.dumps({"text": text, **more}) + "\n" for text in documents), encoding="utf-8")
    return path


def languages(count: int, seed: int) -> list[str]:
    """Each document in one of several scripts, with very different numbers of tokens for a byte."""
    draw = random.Random(seed)
    scripts = [
        "the quick brown fox jumps over",
        "данные и модели языка",
        "東京は日本の首都です",
        "def f(x):\n    return x",
    ]
    return [f"{draw.choice(scripts)} {draw.random()} " * draw.randint(1, 200) for _ in range(count)]


def sorted_by_kind(path: Path) -> Path:
    """The first tenth is short lines of digits, the rest prose."""
    digits = [str(random.Random(n).random()) * 3 for n in range(5000)]
    return written(path, digits + texts(1500, words=300))


def folder(path: Path) -> Path:
    path.mkdir()
    for number, text in enumerate(texts(300, words=600)):
        (path / f"a file with a long name of its own, number {number}.txt").write_text(text)
    return path


CORPORA: dict[str, Callable[[Path], Path]] = {
    "short documents": lambda path: written(path / "a.jsonl", texts(30_000, words=4)),
    "long documents": lambda path: written(path / "a.jsonl", texts(40, words=20_000)),
    "parquet with other columns": lambda path: write_parquet(path / "a.parquet", texts(5000, words=100), 1000),
    "other fields": lambda path: written(path / "a.jsonl", texts(2000, words=100), other="x" * 2000),
    "languages": lambda path: written(path / "a.jsonl", languages(2000, 0)),
    "sorted": lambda path: sorted_by_kind(path / "a.jsonl"),
    "many files": lambda path: folder(path / "folder"),
    "one document": lambda path: written(path / "a.jsonl", texts(1, words=200_000)),
}


def measured(source: Any, out: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[int, int, list[str]]:
    """Bytes predicted, bytes taken when the manifest was there and `.work` still, and what was said."""
    seen, lines = [], []
    original = module.shutil.rmtree

    def before(folder: Path) -> None:
        seen.append(taken(out))
        original(folder)

    class Log:
        def line(self, text: str = "") -> None:
            lines.append(text)

        def progress(self, text: str) -> None: ...

    monkeypatch.setattr(module.shutil, "rmtree", before)
    plans = []
    told = module.check
    monkeypatch.setattr(module, "check", lambda out, needed, *there: plans.append(needed) or told(out, needed, *there))
    prepare(source, out, PrepareOptions(workers=1, **options), Log())
    return plans[0], seen[0], lines


@pytest.mark.parametrize("name", CORPORA)
def test_predicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    source = open_source("files", [CORPORA[name](tmp_path)])
    predicted, peak, lines = measured(source, tmp_path / "out", monkeypatch)
    assert 0.9 * peak < predicted < 1.1 * peak, (name, predicted, peak)
    assert any(re.fullmatch(r"disk: .* at the peak, .* predicted", line) for line in lines)


@pytest.mark.parametrize("asked", [{"limit_tokens": 60_000}, {"val_tokens": 2_000, "val_fraction": 0.5}])
def test_predicted_with_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any]) -> None:
    source = ListSource(texts(4000), per_part=100)
    predicted, peak, _ = measured(source, tmp_path / "out", monkeypatch, **asked)
    assert 0.9 * peak < predicted < 1.1 * peak, (predicted, peak)


@pytest.mark.parametrize("local", [True, False])
def test_what_is_elsewhere_is_not_fetched_to_be_looked_at(local: bool) -> None:
    read: list[int] = []

    class Elsewhere(ListSource):
        def read(self, part: Part) -> Iterator[Document | Bad]:
            read.append(part.spans[0].start)
            return super().read(part)

    source = Elsewhere(texts(400), per_part=1)
    source.local = local
    parts = [
        Part((replace(part.spans[0], file=f"{number // 4}.txt"),)) for number, part in enumerate(source.parts())
    ]  # four of each file
    estimate(source, parts, GPT2Tokenizer(), Cleaning())
    assert len(read) == (PARTS if local else 4) and 0 in read
    assert not local or max(read) > 350
