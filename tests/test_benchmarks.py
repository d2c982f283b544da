"""The scripts that compare with other programs: their arguments, and what they are made of."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from overnight.config import resolve

SCRIPT = """
import math
steps = 3
class Config:
    width: int = 7
def build(width=1):
    return width
total = build(width=1)
done = []
for step in range(steps):
    evaluated = True
    before = step
    if step == 99:
        evaluated = done.val
    done.append((before, total, steps, Config.width))
"""


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))  # type: ignore[no-untyped-call]


def test_a_script_is_cut_into_its_setting_up_and_a_step(tmp_path: Path) -> None:
    from contenders.cut import cut

    path = tmp_path / "train.py"
    path.write_text(SCRIPT)
    setup, step = cut(path, {"steps": 5, "width": 8}, "before = ", ("done.val",))
    names: dict[str, Any] = {}
    exec(setup, names)
    assert names["done"] == []
    for names["step"] in (4, 99):
        exec(step, names)
    assert names["done"] == [(4, 8, 5, 8), (99, 8, 5, 8)]
    assert "evaluated" not in names


def test_another_version_of_a_script_is_told(tmp_path: Path) -> None:
    from contenders.cut import cut

    path = tmp_path / "train.py"
    path.write_text(SCRIPT)
    with pytest.raises(SystemExit, match="does not set max_steps"):
        cut(path, {"max_steps": 5}, "before = ")


def test_our_recipes_are_valid_at_both_sizes() -> None:
    from contenders.ours import configured
    from contenders.task import Task

    task = Task("data", "work", "cpu", 12, 12, 768, 50304, 256, 4, 1, 6e-4, 100)
    for model in ("gpt2", "modern"):
        for size in ({}, {"n_layer": 2, "n_head": 2, "n_embd": 64}):
            config = configured(dataclasses.replace(task, setting={"model": model}, **size))
            recipe = resolve(config, "gpt2", 50257).recipe
            assert recipe.train.tokens_per_step == 1024
            assert (recipe.model.n_layer, recipe.model.n_embd) == (size.get("n_layer", 12), size.get("n_embd", 768))


def test_the_line_up_and_the_table(tmp_path: Path) -> None:
    import against_peers
    from contenders import text

    words = ["--data", "d", "--nanogpt", str(tmp_path), "--litgpt", "--device", "cpu"]
    given = against_peers.arguments(words)
    names = [entry.name for entry in against_peers.contenders(given)]
    assert names == ["overnight, GPT-2", "nanoGPT", "nanoGPT, best", "litgpt", "overnight, modern"]
    quick = against_peers.arguments([*words, "--quick", "--device", "cuda", "--contenders", "nanoGPT"])
    assert quick.lengths == [64]
    assert {entry.batch for entry in against_peers.contenders(quick)} == {None}

    point = {"step": 0.0, "tokens": 0.0, "seconds": 0.0, "loss": 9.0}
    curves = {
        "nanoGPT, best": [point, {**point, "tokens": 100.0, "seconds": 10.0, "loss": 5.0}],
        "overnight, modern": [point, {**point, "tokens": 80.0, "seconds": 10.0, "loss": 1.0}],
        "litgpt": None,
    }
    rows = [
        {"name": name, "about": "x", "parameters": 1e6, **({"points": own} if own else {"failed": "a\nno such | file"})}
        for name, own in curves.items()
    ]
    task = {
        "n_layer": 1,
        "n_embd": 8,
        "n_head": 1,
        "sequence_length": 4,
        "micro_batch": 2,
        "accumulation": 1,
        "lr": 1e-3,
    }
    found = {"task": task, "seconds": 10.0, "measured": 64, "rows": rows}
    shown = text._learning(found)
    assert "| 5 (50%) | 40 (40%) |" in shown  # half of the way down from 9 to 1
    assert "| litgpt | x | failed: no such / file |" in shown


def test_arguments_of_the_others() -> None:
    import tinyshakespeare
    import tokens_to_loss

    given = tinyshakespeare.arguments(["--nanogpt", "n", "--text", "t"])
    assert "modern-shakespeare" in given.run
    own = tokens_to_loss.arguments(["--data", "d", "--share", "0.4", "0.3", "--tokens", "81920"])
    words = tokens_to_loss.flags(own, 0.3)
    assert words[words.index("--train.steps") + 1] == "3"

    run = {"name": "GPT-2, AdamW at 0.002", "parameters": 1, "loss": 3.0, "tokens": 100, "seconds": 10.0}
    better = {**run, "name": "modern", "loss": 2.5, "tokens": 40, "seconds": 4.0}
    settings = {**vars(own), "rates": [1e-3, 2e-3, 4e-3]}
    facts = {"device": "d", "torch": "t", "python": "p", "load": 0.0, "date": "x", "settings": settings}
    shown = tokens_to_loss.table({**facts, "gpt2": [{**run, "name": "a", "loss": 3.5}, run], "modern": [better]})
    assert "| modern | 1 | 2.5000 | 40 | 4 | 40% | 40% | yes |" in shown
    assert "end of the sweep" not in shown
