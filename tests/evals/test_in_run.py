"""Evaluations inside a run: they change nothing, and need nothing turned off."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from overnight.evals import registry
from overnight.evals.base import Result
from overnight.evals.scoring import Question
from overnight.runs import read_lines


class Toy:
    """Asks a few questions, and notes how many graphs were compiled by then."""

    name = "toy"

    def __init__(self, examples: int) -> None:
        self.examples = examples
        self.graphs: list[int] = []

    def __call__(self, scorer, tokenizer, world) -> Result:
        torch.rand(1, generator=torch.Generator().manual_seed(1))
        questions = [Question((n, n + 1, 7), ((n,), (n + 2, 5))) for n in range(1, 10)]
        answers = scorer(questions)
        self.graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        mean = float(np.mean([answer.nats for each in answers for answer in each]))
        return Result("toy", "sums", {"nats": mean, "nats_stderr": 0.1}, len(questions), ["a note"])


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> list[Toy]:
    """The evaluations called toy that were made."""
    made: list[Toy] = []

    def maker(file, examples, say) -> Toy:
        made.append(Toy(examples))
        return made[-1]

    monkeypatch.setitem(registry.EVALS, "toy", maker)
    return made


def lines(run: Path, kind: str) -> list[dict]:
    return [line for line in read_lines(run / "metrics.jsonl") if line["kind"] == kind]


def test_a_run_with_evaluations_is_the_run_without(overnight, dataset, tiny, tmp_path, toys) -> None:
    with_dropout = [*tiny, "--data", dataset, "--model.dropout", "0.1"]
    busy = ["--eval.every", "3", "--eval.tasks", "toy@2", "--eval.examples", "9", "--sample.every", "1"]
    overnight("train", "gpt2-tiny", "--out", tmp_path / "busy", *with_dropout, *busy)
    overnight(
        "train", "gpt2-tiny", "--out", tmp_path / "quiet", *with_dropout, "--eval.every", "0", "--sample.every", "0"
    )
    last = Path("checkpoints", "step_00000012")
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (tmp_path / "busy" / last / name).read_bytes() == (tmp_path / "quiet" / last / name).read_bytes()
    found = lines(tmp_path / "busy", "task")
    assert [line["step"] for line in found] == [0, 2, 4, 6, 8, 10, 12]
    assert toys[0].examples == 9
    assert found[-1]["tokens"] == 12 * 256
    assert {key: found[-1][key] for key in ("task", "protocol", "examples", "notes")} == {
        "task": "toy",
        "protocol": "sums",
        "examples": 9,
        "notes": ["a note"],
    }
    assert found[-1]["metrics"]["nats"] < found[0]["metrics"]["nats"] + 5
    told = (tmp_path / "busy" / "log.txt").read_text()
    assert "step 12: toy nats" in told and told.count("evaluating toy before the first step") == 1
    evaluations = lines(tmp_path / "busy", "eval")
    assert [line["step"] for line in evaluations] == [0, 3, 6, 9, 12]
    assert all(line["val_loss_stderr"] > 0 and line["train_split_loss_stderr"] > 0 for line in evaluations)
    assert evaluations[0]["train_split_loss"] == pytest.approx(evaluations[0]["val_loss"], abs=0.1)
    assert lines(tmp_path / "quiet", "eval") == []


@pytest.mark.parametrize("during", ["loss", "scoring"])
def test_asked_to_end_it_does_not_finish_what_is_measured_before_the_first_step(
    overnight, dataset, tiny, tmp_path, toys, monkeypatch, during
) -> None:
    few = [*tiny, "--train.steps", 2, "--sample.every", 0, "--eval.tasks", "toy@6"]
    out, command = tmp_path / "stopped", ["train", "gpt2-tiny", "--data", dataset, *few, "--out"]
    with monkeypatch.context() as patch:
        patch.setattr(f"overnight.evals.{during}.hanging", SimpleNamespace(beat=(out / "stop").touch))
        done = overnight(*command, out, check=False)
    assert done.returncode == 75, done.stderr
    assert "stopped before the first step" in done.stdout
    assert not list((out / "checkpoints").iterdir())
    assert len(lines(out, "eval")) == (during == "scoring")
    overnight(*command, out)
    overnight(*command, tmp_path / "whole")
    for kind in ("eval", "task", "train"):
        found, expected = ([{**line, "time": None} for line in lines(run, kind)] for run in (out, tmp_path / "whole"))
        assert found == expected


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_with_compile_everything_works_in_one_run_and_compiles_once(overnight, dataset, tiny, tmp_path, toys) -> None:
    torch._dynamo.reset()
    row = {"activity_label": "Cooking", "ctx_a": "A cook", "ctx_b": "he", "ctx": "A cook he", "label": 1}
    rows = [{**row, "endings": ["eats.", "cooks " * (n % 3 + 1), "is", "sings."]} for n in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    small = ["--model.n-layer", "1", "--train.steps", "8", "--compile", "on", "--sample.every", "2"]
    every = ["--eval.every", "2", "--eval.tasks", f"hellaswag={tmp_path / 'rows.jsonl'},toy"]
    overnight("train", "gpt2-tiny", "--data", dataset, "--out", tmp_path / "run", *tiny, *small, *every)
    _, *graphs = toys[0].graphs  # the first time it is only looked at whether it can be asked
    assert len(graphs) == 5  # before the first step, and after 2, 4, 6 and 8
    assert graphs[0] >= 1, "nothing was compiled"
    # the first evaluation and the first step compile; whatever comes after finds what it needs
    assert graphs[1:] == [graphs[1]] * 4
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs[1]
    losses = [line["val_loss"] for line in lines(tmp_path / "run", "eval")]
    assert losses[-1] < losses[0]
    found = [line for line in lines(tmp_path / "run", "task") if line["task"] == "hellaswag"]
    assert [(line["step"], line["examples"]) for line in found] == [(step, 6) for step in (0, 2, 4, 6, 8)]


def test_what_cannot_be_evaluated_is_told_before_anything_is_written(overnight, dataset, tiny, tmp_path, toys) -> None:
    for flags, message in (
        (["--eval.tasks", "nothing"], "no evaluation 'nothing'"),
        (["--eval.tasks", "loss"], "measured anyway"),
        (["--eval.tasks", "toy", "--eval.every", "0"], "toy@1000"),
        (["--eval.tasks", "os:system"], "OVERNIGHT_TRUST"),
    ):
        done = overnight("train", "gpt2-tiny", "--data", dataset, "--out", tmp_path / "run", *tiny, *flags, check=False)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
        assert not (tmp_path / "run" / "config.json").exists()


def test_a_task_that_the_model_cannot_be_asked_is_told_before_the_run(overnight, dataset, tiny, tmp_path) -> None:
    row = {"ctx_a": "a", "ctx_b": "b", "ctx": "a b", "activity_label": "c", "endings": ["d", "e" * 50, "f", "g"]}
    (tmp_path / "rows.jsonl").write_text(json.dumps({**row, "label": 0}) + "\n")
    asked = ["--eval.tasks", f"hellaswag={tmp_path / 'rows.jsonl'}", "--out", tmp_path / "run"]
    done = overnight("train", "gpt2-tiny", "--data", dataset, *tiny, *asked, check=False)  # 32 bytes a window
    assert done.returncode == 2 and "hellaswag cannot be asked of this model: an ending has 51 tokens" in done.stderr
    assert not (tmp_path / "run" / "config.json").exists()


def test_alone_on_a_checkpoint_of_a_run(overnight, dataset, tiny, tmp_path, toys) -> None:
    overnight("train", "gpt2-tiny", "--data", dataset, "--out", tmp_path / "run", *tiny, "--eval.tasks", "toy")
    inside = lines(tmp_path / "run", "task")[-1]["metrics"]
    told = overnight("eval", tmp_path / "run", "--evals", "loss,toy", "--checkpoint", "last").stdout
    assert "toy nats" in told and "val loss" in told and "a note" in told
    out = tmp_path / "run" / "evals" / "step_00000012"
    kept = json.loads((out / "results.json").read_text())
    assert kept["tasks"][0]["metrics"] == pytest.approx(inside, abs=1e-6)
    assert kept["loss"] == pytest.approx(lines(tmp_path / "run", "eval")[-1]["val_loss"], abs=0.2)
    again = json.loads(overnight("eval", tmp_path / "run", "--evals", "toy", "--checkpoint", "12", "--json").stdout)
    assert again["tasks"] == kept["tasks"]
    assert json.loads((out / "results.json").read_text()) == kept  # the loss that was measured before stays
