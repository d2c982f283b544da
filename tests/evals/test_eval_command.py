"""`overnight eval` with tasks: files, examples, what it keeps, and the released GPT-2 as a check."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from gpts import oracle

from overnight.evals import hellaswag
from overnight.evals.alone import keep_results
from overnight.evals.base import Result
from overnight.evals.calibrate import calibration


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve rows in rowanz's schema."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = [
        {
            "ind": number,
            "activity_label": "Baking",
            "ctx_a": f"A cook takes {number} eggs.",
            "ctx_b": "the cook",
            "ctx": f"A cook takes {number} eggs. the cook",
            "split": "val",
            "split_type": "indomain",
            "label": number % 4,
            "endings": ["breaks them.", f"counts to {number}.", "sings a song.", "goes home."],
            "source_id": "activitynet~x",
        }
        for number in range(12)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which a model is called gpt2."""
    folder = tmp_path_factory.mktemp("models")
    oracle(vocab_size=50257).save_pretrained(folder / "gpt2")
    return folder


def test_a_task_on_a_file(overnight, rows, gpt2, tmp_path) -> None:
    asked = ["eval", "gpt2", "--evals", "hellaswag", "--file", rows, "--device", "cpu", "--out", tmp_path / "out"]
    told = overnight(*asked, "--show", "2", cwd=gpt2).stdout
    assert "acc_norm" in told and "a subset: 12 rows" in told and told.count("(right)") == 2
    kept = [json.loads(line) for line in (tmp_path / "out" / "hellaswag.jsonl").read_text().splitlines()]
    assert len(kept) == 12
    found = json.loads(overnight(*asked, "--json", cwd=gpt2).stdout)["tasks"][0]
    assert found["metrics"]["acc"] == sum(row["acc"] for row in kept) / 12
    assert json.loads((tmp_path / "out" / "results.json").read_text())["tasks"] == [found]
    few = json.loads(overnight(*asked, "--examples", "3", "--json", cwd=gpt2).stdout)["tasks"][0]
    assert few["examples"] == 3
    assert json.loads((tmp_path / "out" / "results.json").read_text())["tasks"] == [found, few]  # nothing is lost


def test_results_of_other_weights_are_not_kept(tmp_path) -> None:
    def keep(weights: str, precision: str, **told: object) -> dict[str, object]:
        subject = SimpleNamespace(sha256=weights)
        keep_results(tmp_path, subject, {"precision": precision, **told})
        kept: dict[str, object] = json.loads((tmp_path / "results.json").read_text())
        return kept

    one, two = ({"name": name, "protocol": "p", "examples": 3} for name in ("one", "two"))
    keep("a", "fp32", loss=2.0, tasks=[one])
    kept = keep("a", "fp32", tasks=[two, {**one, "examples": 9}])
    assert (kept["loss"], kept["tasks"]) == (2.0, [one, two, {**one, "examples": 9}])
    assert keep("a", "bf16", tasks=[two])["tasks"] == [two]
    assert keep("b", "bf16", loss=1.0) == {"sha256": "b", "precision": "bf16", "loss": 1.0}
    for damaged in ("{", "[]", '{"sha256": "b", "precision": "bf16", "tasks": [3]}'):
        (tmp_path / "results.json").write_text(damaged)
        assert keep("b", "bf16", tasks=[one])["tasks"] == [one]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--evals", "hellaswg"], "did you mean hellaswag"),
        (["--evals", "hellaswag,piqa", "--file", "x"], "for one task"),
        (["--evals", "hellaswag@5"], "for training"),
        (["--evals", "hellaswag", "--file", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--data", "x", "--calibrate"], "name one"),
        (["--evals", "hellaswag=x", "--save-baseline"], "add it to --evals"),
    ],
)
def test_mistakes_are_told_in_a_line(overnight, gpt2, flags, message) -> None:
    done = overnight("eval", "gpt2", *flags, cwd=gpt2, check=False)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1


def test_calibration_scores_the_model_called_gpt2_first(overnight, rows, gpt2, monkeypatch) -> None:
    asked = ["eval", "gpt2", "--evals", "hellaswag", "--file", rows, "--device", "cpu", "--calibrate"]
    told = overnight(*asked, cwd=gpt2).stdout.splitlines()
    assert told[0].startswith("calibration: hellaswag: GPT-2 124M cannot be held against") and "a subset" in told[0]
    monkeypatch.setattr(hellaswag, "WHOLE", 12)
    told = overnight(*asked, cwd=gpt2).stdout.splitlines()
    verdicts = [line for line in told if line.startswith("calibration")]
    assert len(verdicts) == 4 and all("does NOT come out" in line for line in verdicts)


def test_a_published_number_that_comes_out() -> None:
    whole = {"acc_norm": 0.2954, "acc": 0.29, "harness_acc_norm": 0.3114, "harness_acc": 0.2892, "other": 1.0}
    told = calibration(Result("hellaswag", "", whole, 10_042))
    assert [("it comes out" in line) for line in told] == [True, False, True, True]
    assert "0.2859 published" in told[1]
    assert "no published number" in calibration(Result("piqa", "", {"acc": 0.5}, 3))[0]


def test_any_number_of_processes_has_the_same_numbers(overnight, dataset, tiny, rows, tmp_path) -> None:
    longer = ["--data.sequence-length", "128", "--sample.every", "0"]
    overnight("train", "gpt2-tiny", "--data", dataset, "--out", tmp_path / "run", *tiny, *longer, "--eval.every", "0")
    asked = ["eval", tmp_path / "run", "--evals", f"loss,hellaswag={rows}", "--tokens", "5k", "--device", "cpu"]
    alone = json.loads(overnight(*asked, "--json").stdout)
    done = subprocess.run(
        [sys.executable, "-m", "overnight", *map(str, asked), "--json", "--processes", "3"],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["loss"] == pytest.approx(alone["loss"], abs=1e-6)
    assert told["stderr"] == pytest.approx(alone["stderr"], abs=1e-6)
    assert told["tasks"][0]["metrics"] == pytest.approx(alone["tasks"][0]["metrics"], abs=1e-6)
